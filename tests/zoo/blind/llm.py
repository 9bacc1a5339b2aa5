"""Decoder language models of other families, and plain ones whose names say nothing."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..oracle import phase
from ..parts import VOCABULARY as V
from ..parts import Decode, Generate, Prefill, TrainStep, adamw, ids, sgd
from ..registry import split

case = split("blind")
BOTH = ("llm.prefill", "llm.decode")
HALF = {"prefill": ("llm.prefill",), "decode": ("llm.decode",)}


# transformers.
def model(kind: str, attention: str) -> nn.Module:
    import transformers as t

    ends = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
    h = dict(
        vocab_size=V, hidden_size=192, num_hidden_layers=3, num_attention_heads=6, intermediate_size=512,
        max_position_embeddings=256, **ends,
    )  # fmt: skip
    kv = dict(h, num_key_value_heads=2)
    config = {
        "codegen": lambda: t.CodeGenConfig(
            vocab_size=V, n_positions=256, n_embd=192, n_layer=3, n_head=4, rotary_dim=16
        ),
        "xglm": lambda: t.XGLMConfig(
            vocab_size=V, d_model=192, ffn_dim=512, num_layers=3, attention_heads=6, max_position_embeddings=256
        ),
        "starcoder2": lambda: t.Starcoder2Config(**kv),
        "glm": lambda: t.GlmConfig(head_dim=32, **kv),
        "persimmon": lambda: t.PersimmonConfig(**h),
        "olmoe": lambda: t.OlmoeConfig(num_experts=4, num_experts_per_tok=2, **dict(kv, intermediate_size=128)),
        "falcon_mamba": lambda: t.FalconMambaConfig(vocab_size=V, hidden_size=128, num_hidden_layers=2, state_size=8),
        "helium": lambda: t.HeliumConfig(head_dim=32, **kv),
        "biogpt": lambda: t.BioGptConfig(**h),
        "nemotron": lambda: t.NemotronConfig(**kv),
    }[kind]()
    config.pad_token_id = 0
    options = {} if kind == "falcon_mamba" else dict(attn_implementation=attention)
    made = t.AutoModelForCausalLM.from_config(config, **options)
    made.generation_config.eos_token_id = None
    made.generation_config.pad_token_id = 0
    return made.eval()


def add(kind: str, way: str, attn: str = "sdpa", s: int = 32, n: int = 5) -> None:
    @case(f"llm.{kind}.{way}", "llm", HALF.get(way, BOTH), lm="model", attn=attn, prompt=s)
    def make() -> Any:
        lm = model(kind, attn)
        if way == "prefill":
            return Prefill(lm), (ids(1, s),)
        if way == "decode":
            return Decode(lm, ids(1, s)), (ids(1, 1),)
        options = dict(cache_implementation="static") if way == "generate_static" else {}
        x = ids(1, s)
        return Generate(lm, n, **options), (x,), dict(attention_mask=torch.ones_like(x))


add("codegen", "generate", "eager", 5)
add("xglm", "generate", "eager", 6)
add("starcoder2", "decode")
add("glm", "prefill", "eager", 6)
add("persimmon", "decode", "eager", 8)
add("olmoe", "generate", s=12, n=3)
add("falcon_mamba", "generate", s=7, n=4)
add("helium", "generate_static", s=8)
add("biogpt", "prefill", s=40)
add("nemotron", "generate_static", "eager", 20)


# Plain models: `p` runs new tokens and returns logits and a state.
class Loop(nn.Module):
    """The prompt, then greedy steps."""

    def __init__(self, z: nn.Module, n: int = 5) -> None:
        super().__init__()
        self.z, self.n = z, n

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase("llm.prefill"):
            y, s = self.z.p(x, None)
        out = [y[:, -1]]
        for _ in range(self.n):
            with phase("llm.decode"):
                y, s = self.z.p(out[-1].argmax(-1, keepdim=True), s)
            out.append(y[:, -1])
        return torch.stack(out, 1)


def rms(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * w


def turn(x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    """Rotates pairs of neighbours by their place."""
    d = x.shape[-1]
    f = at[:, None].float() * 10000.0 ** (-torch.arange(0, d, 2, device=x.device) / d)
    c, s = f.cos(), f.sin()
    a, b = x[..., ::2], x[..., 1::2]
    return torch.stack([a * c - b * s, a * s + b * c], -1).flatten(-2)


class A(nn.Module):
    """Neighbour rotary, SwiGLU, caches joined."""

    def __init__(self, d: int = 128, n: int = 3, h: int = 4) -> None:
        super().__init__()
        self.h = h
        self.a = nn.Parameter(torch.randn(V, d) * 0.02)
        self.b = nn.ParameterList(nn.Parameter(torch.ones(d)) for _ in range(2 * n + 1))
        self.c = nn.ModuleList(nn.Linear(d, 3 * d, bias=False) for _ in range(n))
        self.d = nn.ModuleList(nn.Linear(d, d, bias=False) for _ in range(n))
        self.e = nn.ModuleList(nn.Linear(d, 4 * d, bias=False) for _ in range(n))
        self.f = nn.ModuleList(nn.Linear(2 * d, d, bias=False) for _ in range(n))

    def p(self, x: torch.Tensor, s: Any) -> Any:
        y = self.a[x]
        o = 0 if s is None else s[0].shape[3]
        at = torch.arange(o, o + x.shape[1], device=x.device)
        r = []
        for i in range(len(self.c)):
            q, k, v = self.c[i](rms(y, self.b[2 * i])).unflatten(-1, (3, self.h, -1)).permute(2, 0, 3, 1, 4)
            q, k = turn(q, at), turn(k, at)
            u = torch.stack([k, v])
            if s is not None:
                u = torch.cat([s[i], u], 3)
            r.append(u)
            z = F.scaled_dot_product_attention(q, u[0], u[1], is_causal=s is None)
            y = y + self.d[i](z.transpose(1, 2).flatten(2))
            g, w = self.e[i](rms(y, self.b[2 * i + 1])).chunk(2, -1)
            y = y + self.f[i](F.silu(g) * w)
        return rms(y, self.b[-1]) @ self.a.t(), r


@case("llm.b_rope_cat", "llm", BOTH, source="plain torch", obfuscated=True)
def _() -> Any:
    return Loop(A()), (ids(1, 7),)


class B(nn.Module):
    """ALiBi; keys and values are written into room kept for them."""

    def __init__(self, d: int = 96, n: int = 3, h: int = 4, room: int = 64) -> None:
        super().__init__()
        self.n, self.h, self.room = n, h, room
        self.a = nn.Embedding(V, d)
        self.b = nn.ModuleList(nn.LayerNorm(d) for _ in range(2 * n + 1))
        self.c = nn.ModuleList(nn.Linear(d, k) for _ in range(n) for k in (d, 2 * d, d, 4 * d))
        self.d = nn.ModuleList(nn.Linear(4 * d, d) for _ in range(n))
        self.e = nn.Linear(d, V, bias=False)
        self.register_buffer("m", 2.0 ** -torch.arange(1, h + 1).float())

    def p(self, x: torch.Tensor, s: Any) -> Any:
        y = self.a(x)
        b, t, d = y.shape
        if s is None:
            s = [0, y.new_zeros(self.n, 2, b, self.h, self.room, d // self.h)]
        o, w = s
        i = torch.arange(o, o + t, device=x.device)
        j = torch.arange(o + t, device=x.device)
        bias = self.m[:, None, None] * (j[None] - i[:, None]).clamp(max=0)
        bias = bias.masked_fill(j[None] > i[:, None], float("-inf"))
        for k in range(self.n):
            z = self.b[2 * k](y)
            q = self.c[4 * k](z).view(b, t, self.h, -1).transpose(1, 2)
            u = self.c[4 * k + 1](z).view(b, t, 2, self.h, -1).permute(2, 0, 3, 1, 4)
            w[k, :, :, :, o : o + t] = u
            g = q @ w[k, 0, :, :, : o + t].mT * (d // self.h) ** -0.5 + bias
            g = torch.softmax(g, -1) @ w[k, 1, :, :, : o + t]
            y = y + self.c[4 * k + 2](g.transpose(1, 2).reshape(b, t, d))
            y = y + self.d[k](F.relu(self.c[4 * k + 3](self.b[2 * k + 1](y))).square())
        return self.e(self.b[-1](y)), [o + t, w]


@case("llm.b_alibi_room", "llm", BOTH, source="plain torch", obfuscated=True)
def _() -> Any:
    return Loop(B(), 6), (ids(2, 9),)


class C(nn.Module):
    """One key and value head; tokens are kept in lists and stacked at each step."""

    def __init__(self, d: int = 96, n: int = 2, h: int = 6) -> None:
        super().__init__()
        self.h, self.k = h, d // h
        self.a, self.b = nn.Embedding(V, d), nn.Embedding(64, d)
        self.c = nn.ModuleList(
            nn.ModuleList(
                [nn.LayerNorm(d), nn.Linear(d, d + 2 * self.k), nn.Linear(d, d), nn.LayerNorm(d), nn.Linear(d, 2 * d),
                 nn.Linear(2 * d, d)]
            )
            for _ in range(n)
        )  # fmt: skip
        self.d = nn.Linear(d, V)

    def p(self, x: torch.Tensor, s: Any) -> Any:
        s = s or [([], []) for _ in self.c]
        o, t = len(s[0][0]), x.shape[1]
        y = self.a(x) + self.b.weight[o : o + t]
        for (l1, qkv, pr, l2, f1, f2), (ks, vs) in zip(self.c, s, strict=True):
            q, k, v = qkv(l1(y)).split([self.h * self.k, self.k, self.k], -1)
            ks += k.unbind(1)
            vs += v.unbind(1)
            kk, vv = torch.stack(ks, 1), torch.stack(vs, 1)
            g = torch.einsum("bthd,bsd->bhts", q.unflatten(-1, (self.h, self.k)), kk) / self.k**0.5
            if t > 1:
                g = g + torch.full((t, t), float("-inf"), device=x.device).triu(1)
            g = torch.einsum("bhts,bsd->bthd", g.softmax(-1), vv).flatten(2)
            y = y + pr(g)
            y = y + f2(torch.tanh(f1(l2(y))))
        return self.d(y), s


@case("llm.b_one_head_lists", "llm", BOTH, source="plain torch", obfuscated=True)
def _() -> Any:
    return Loop(C()), (ids(1, 6),)


class D(nn.Module):
    """Experts by index; grouped queries; caches joined."""

    def __init__(self, d: int = 96, n: int = 2, h: int = 4, g: int = 2, e: int = 4) -> None:
        super().__init__()
        self.h, self.g, self.k = h, g, d // h
        self.a = nn.Embedding(V, d)
        self.b = nn.ModuleList(nn.RMSNorm(d) for _ in range(2 * n + 1))
        self.c = nn.ModuleList(nn.Linear(d, (h + 2 * g) * self.k, bias=False) for _ in range(n))
        self.d = nn.ModuleList(nn.Linear(d, d, bias=False) for _ in range(n))
        self.e = nn.ModuleList(nn.Linear(d, e, bias=False) for _ in range(n))
        self.f = nn.Parameter(torch.randn(n, e, d, 2 * d) * 0.05)
        self.i = nn.Parameter(torch.randn(n, e, 2 * d, d) * 0.05)

    def mix(self, i: int, x: torch.Tensor) -> torch.Tensor:
        y = x.flatten(0, 1)
        w, at = self.e[i](y).softmax(-1).topk(2, -1)
        out = torch.zeros_like(y)
        for j in range(self.f.shape[1]):
            row, col = torch.where(at == j)
            z = F.gelu(y[row] @ self.f[i, j]) @ self.i[i, j]
            out.index_add_(0, row, z * w[row, col, None])
        return out.view_as(x)

    def p(self, x: torch.Tensor, s: Any) -> Any:
        y = self.a(x)
        o = 0 if s is None else s[0][0].shape[2]
        at = torch.arange(o, o + x.shape[1], device=x.device)
        r = []
        for i in range(len(self.c)):
            z = self.c[i](self.b[2 * i](y)).unflatten(-1, (-1, self.k)).transpose(1, 2)
            q, k, v = z.split([self.h, self.g, self.g], 1)
            q, k = turn(q, at), turn(k, at)
            if s is not None:
                k, v = torch.cat((s[i][0], k), 2), torch.cat((s[i][1], v), 2)
            r.append((k, v))
            kk, vv = (j.repeat_interleave(self.h // self.g, 1) for j in (k, v))
            z = F.scaled_dot_product_attention(q, kk, vv, is_causal=s is None)
            y = y + self.d[i](z.transpose(1, 2).flatten(2))
            y = y + self.mix(i, self.b[2 * i + 1](y))
        return F.linear(self.b[-1](y), self.a.weight), r


@case("llm.b_experts", "llm", BOTH, source="plain torch", obfuscated=True, moe=True)
def _() -> Any:
    return Loop(D(), 4), (ids(1, 10),)


class E(nn.Module):
    """Attention and MLP side by side on one norm; returns the filled caches too."""

    def __init__(self, d: int = 128, n: int = 3, h: int = 8) -> None:
        super().__init__()
        self.h = h
        self.a = nn.Embedding(V, d)
        self.b = nn.ModuleList(nn.LayerNorm(d) for _ in range(n + 1))
        self.c = nn.ModuleList(nn.Linear(d, 7 * d) for _ in range(n))
        self.d = nn.ModuleList(nn.Linear(5 * d, d) for _ in range(n))

    def forward(self, x: torch.Tensor) -> Any:
        y = self.a(x)
        t, d = y.shape[1:]
        at = torch.arange(t, device=x.device)
        m = torch.ones(t, t, dtype=torch.bool, device=x.device).tril()
        kept = []
        for i in range(len(self.c)):
            q, k, v, w = self.c[i](self.b[i](y)).split([d, d, d, 4 * d], -1)
            q, k, v = (z.unflatten(-1, (self.h, -1)).transpose(1, 2) for z in (q, k, v))
            q, k = turn(q, at), turn(k, at)
            kept += [k, v]
            g = (q @ k.transpose(2, 3)).mul((d / self.h) ** -0.5).where(m, float("-inf")).softmax(-1) @ v
            y = y + self.d[i](torch.cat([g.transpose(1, 2).flatten(2), F.gelu(w, approximate="tanh")], -1))
        return self.b[-1](y)[:, -1] @ self.a.weight.T, *kept


@case("llm.b_side_by_side.prefill", "llm", ("llm.prefill",), source="plain torch", obfuscated=True,
      default="llm.prefill")  # fmt: skip
def _() -> Any:
    return E(), (ids(1, 6),)


class G(nn.Module):
    """A GRU carries the state."""

    def __init__(self, d: int = 128) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Embedding(V, d), nn.GRU(d, d, 2, batch_first=True), nn.Linear(d, V)

    def p(self, x: torch.Tensor, s: Any) -> Any:
        y, s = self.b(self.a(x), s)
        return self.c(y), s


@case("llm.b_gru_state", "llm", BOTH, source="plain torch", obfuscated=True, kv="ssm")
def _() -> Any:
    return Loop(G(), 6), (ids(1, 12),)


class H(nn.Module):
    """Linear attention: the prompt at once by decayed products, then a matrix as state (retention)."""

    def __init__(self, d: int = 96, n: int = 2, h: int = 4) -> None:
        super().__init__()
        self.h = h
        self.a = nn.Embedding(V, d)
        self.b = nn.ModuleList(nn.LayerNorm(d) for _ in range(2 * n + 1))
        self.c = nn.ModuleList(nn.Linear(d, 4 * d, bias=False) for _ in range(n))
        self.d = nn.ModuleList(nn.Linear(d, d) for _ in range(n))
        self.e = nn.ModuleList(nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d)) for _ in range(n))
        self.f = nn.GroupNorm(h, d)
        self.register_buffer("g", 1 - 2.0 ** (-3 - torch.arange(h).float()))

    def p(self, x: torch.Tensor, s: Any) -> Any:
        y = self.a(x)
        b, t, d = y.shape
        r = []
        for i in range(len(self.c)):
            q, k, v, u = self.c[i](self.b[2 * i](y)).chunk(4, -1)
            q, k, v = (z.unflatten(-1, (self.h, -1)).transpose(1, 2) for z in (q, k, v))
            k = k * k.shape[-1] ** -0.5
            if s is None:
                n = torch.arange(t, device=x.device)
                w = (n[:, None] - n[None]).clamp(min=0)
                w = torch.tril(self.g[:, None, None] ** w)
                z = (q @ k.mT * w) @ v
                m = (k * (self.g[:, None] ** (t - 1 - n))[..., None]).mT @ v
            else:
                m = s[i] * self.g[:, None, None] + k.mT @ v
                z = q @ m
            r.append(m)
            z = self.f(z.transpose(1, 2).reshape(b * t, d)).view(b, t, d)
            y = y + self.d[i](z * F.silu(u))
            y = y + self.e[i](self.b[2 * i + 1](y))
        return self.b[-1](y) @ self.a.weight.T, r


@case("llm.b_retention", "llm", BOTH, source="plain torch", obfuscated=True, kv="ssm")
def _() -> Any:
    return Loop(H(), 5), (ids(1, 11),)


class I(nn.Module):  # noqa: E742
    """Steps on a ring of the last places; its contents lie in buffers."""

    def __init__(self, d: int = 96, n: int = 3, h: int = 4, room: int = 24, steps: int = 4) -> None:
        super().__init__()
        self.h, self.room, self.steps = h, room, steps
        self.a = nn.Embedding(V, d)
        self.b = nn.ModuleList(nn.LayerNorm(d) for _ in range(2 * n))
        self.c = nn.ModuleList(nn.Linear(d, 3 * d) for _ in range(n))
        self.d = nn.ModuleList(nn.Linear(d, d) for _ in range(n))
        self.e = nn.ModuleList(nn.Sequential(nn.Linear(d, 3 * d), nn.SiLU(), nn.Linear(3 * d, d)) for _ in range(n))
        self.register_buffer("x", torch.randn(n, 2, 1, room, h, d // h) * 0.5)

    def forward(self, t: torch.Tensor) -> torch.Tensor:
        out = []
        x = [list(w.unbind(0)) for w in self.x.clone().unbind(0)]
        for j in range(self.steps):
            y = self.a(t)
            at = torch.tensor([(self.room + j) % self.room], device=t.device)
            for i in range(len(self.c)):
                q, k, v = self.c[i](self.b[2 * i](y)).unflatten(-1, (3, self.h, -1)).unbind(2)
                x[i][0] = x[i][0].index_copy(1, at, k)
                x[i][1] = x[i][1].index_copy(1, at, v)
                g = torch.einsum("bqhd,bkhd->bhqk", q, x[i][0]) * q.shape[-1] ** -0.5
                y = y + self.d[i](torch.einsum("bhqk,bkhd->bqhd", g.softmax(-1), x[i][1]).flatten(2))
                y = y + self.e[i](self.b[2 * i + 1](y))
            out.append(y[:, -1] @ self.a.weight.T)
            t = out[-1].argmax(-1, keepdim=True)
        return torch.stack(out)


@case("llm.b_ring.decode", "llm", ("llm.decode",), source="plain torch", obfuscated=True, default="llm.decode")
def _() -> Any:
    return I(), (ids(1, 1),)


# Training steps.
def _next(m: Any, x: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(m.p(x[:, :-1], None)[0].flatten(0, 1), x[:, 1:].flatten())


@case("train.b_rope", "llm", TRAIN, mode="train", source="plain torch", obfuscated=True)
def _() -> Any:
    return TrainStep(A(96, 2), _next, adamw), (ids(2, 17),)


@case("train.b_experts", "llm", TRAIN, mode="train", source="plain torch", obfuscated=True, moe=True)
def _() -> Any:
    return TrainStep(D(), _next, sgd), (ids(2, 13),)


@case("train.codegen", "llm", TRAIN, mode="train", attn="eager")
def _() -> Any:
    return TrainStep(
        model("codegen", "eager"), lambda m, x: m(x, labels=x, use_cache=False).loss, adamw, steps=1
    ), (ids(2, 24),)  # fmt: skip
