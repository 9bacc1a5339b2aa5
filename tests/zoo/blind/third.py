"""The third author's language models, text encoders and encoder-decoders: other families, short prompts, odd code."""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..oracle import phase
from ..parts import VOCABULARY as V
from ..parts import Decode, Generate, Out, Prefill, TrainStep, adam, ids
from ..registry import split

case = split("blind")
PRE, DEC = "llm.prefill", "llm.decode"
BOTH = (PRE, DEC)
ENC, STEP = "seq2seq.encode", "seq2seq.decode"
TEXT = "text.encode"
PLAIN = "plain torch, third author"


def p(*shape: int, s: float = 0.1) -> nn.Parameter:
    """A random weight."""
    return nn.Parameter(torch.randn(*shape) * s)


# Families of transformers.
def lm(kind: str, attn: str = "eager") -> nn.Module:
    """A small causal LM of this family."""
    import transformers as t

    c = dict(vocab_size=V, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    h = dict(
        hidden_size=160, num_hidden_layers=3, num_attention_heads=4, intermediate_size=320,
        max_position_embeddings=256, **c,
    )  # fmt: skip
    kv = dict(h, num_key_value_heads=2)
    made = {
        "starcoder2": lambda: t.Starcoder2Config(**kv),
        "codegen": lambda: t.CodeGenConfig(n_positions=128, n_ctx=128, n_embd=128, n_layer=3, n_head=4, rotary_dim=16, **c),
        "xglm": lambda: t.XGLMConfig(
            d_model=128, ffn_dim=256, num_layers=3, attention_heads=4, max_position_embeddings=128, **c
        ),
        "persimmon": lambda: t.PersimmonConfig(**h),
        "nemotron": lambda: t.NemotronConfig(**kv),
        "mpt": lambda: t.MptConfig(d_model=128, n_heads=4, n_layers=3, max_seq_len=128, expansion_ratio=2, **c),
        "biogpt": lambda: t.BioGptConfig(**h),
        "glm": lambda: t.GlmConfig(head_dim=40, **kv),
        "olmoe": lambda: t.OlmoeConfig(num_experts=4, num_experts_per_tok=2, **kv),
        "mamba2": lambda: t.Mamba2Config(
            hidden_size=64, num_hidden_layers=2, state_size=16, head_dim=16, num_heads=8, n_groups=1, chunk_size=16, **c
        ),
        "smollm3": lambda: t.SmolLM3Config(**kv),
        "openai-gpt": lambda: t.OpenAIGPTConfig(n_positions=128, n_embd=128, n_layer=3, n_head=4, **c),
    }[kind]()  # fmt: skip
    options = {} if kind == "mamba2" else dict(attn_implementation=attn)
    model = t.AutoModelForCausalLM.from_config(made, **options)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model.eval()


def add(
    kind: str,
    way: str,
    s: int,
    n: int = 4,
    attn: str = "eager",
    batch: int = 1,
    **attrs: Any,
) -> None:
    phases = {"prefill": (PRE,), "decode": (DEC,)}.get(way, BOTH)
    kv = "ssm" if kind == "mamba2" else "static" if way == "static" else "dynamic"

    @case(
        f"llm3.{kind}.{way}",
        "llm",
        phases,
        lm="model",
        attn=attn,
        prompt=s,
        kv=kv,
        **attrs,
    )
    def make() -> Any:
        model = lm(kind, attn)
        if way == "prefill":
            return Prefill(model), (ids(batch, s),)
        if way == "decode":
            return Decode(model, ids(batch, s), n), (ids(batch, 1),)
        x = ids(batch, s)
        more = dict(cache_implementation="static") if way == "static" else {}
        return Generate(model, n, **more), (x,), dict(attention_mask=torch.ones_like(x))


add("starcoder2", "generate", 3)
add("codegen", "generate", 4, batch=2)
add("xglm", "generate", 5)
add("persimmon", "decode", 9, 3)
add("nemotron", "generate", 2, 5)
add("mpt", "generate", 6, 3)
add("biogpt", "prefill", 4, batch=2)
add("glm", "static", 4)
add("olmoe", "generate", 5, 3, moe=True)
add("mamba2", "generate", 6, 3)
add("smollm3", "prefill", 24, attn="sdpa")


# Plain language models.
class Qz(nn.Module):
    """Attention and feed-forward side by side, pairs turned by complex numbers, caches stacked over the layers."""

    def __init__(self, v: int = 700, d: int = 48, n: int = 3, h: int = 3) -> None:
        super().__init__()
        self.zz, self.h = (
            nn.ParameterList(
                [p(v, d, s=0.5)] + [p(d, 3 * d + 2 * d, s=0.12) for _ in range(n)]
            ),
            h,
        )
        self.yy = nn.ParameterList(
            [p(d + 2 * d, d, s=0.1) for _ in range(n)] + [p(d, v)]
        )

    def forward(self, x: torch.Tensor, k: int = 4) -> torch.Tensor:
        d, got, mem = self.zz[0].shape[1], [], None
        e = d // self.h

        def f(a: torch.Tensor, mem: Any) -> Any:
            t0 = 0 if mem is None else mem.shape[-2]
            u = self.zz[0][a]
            b, t = a.shape
            w = 100.0 ** (-torch.arange(0, e, 2, device=a.device) / e)
            o = torch.arange(t0, t0 + t, device=a.device)[:, None] * w
            c, s = o.cos(), o.sin()
            new = []
            for i, (m, r) in enumerate(
                zip(list(self.zz)[1:], list(self.yy)[:-1], strict=True)
            ):
                g = (u - u.mean(-1, True)) / (
                    u.var(-1, keepdim=True, unbiased=False) + 1e-5
                ).sqrt()
                q, kk, vv, ff = torch.split(g @ m, [d, d, d, 2 * d], -1)
                q, kk, vv = (
                    z.reshape(b, t, self.h, e).transpose(1, 2) for z in (q, kk, vv)
                )
                q, kk = (
                    torch.stack(
                        [
                            z[..., ::2] * c - z[..., 1::2] * s,
                            z[..., ::2] * s + z[..., 1::2] * c,
                        ],
                        -1,
                    ).flatten(-2)
                    for z in (q, kk)
                )
                if mem is not None:
                    kk, vv = (
                        torch.cat([mem[i, 0], kk], -2),
                        torch.cat([mem[i, 1], vv], -2),
                    )
                new.append(torch.stack([kk, vv]))
                l = q.matmul(kk.transpose(-1, -2)).div(e**0.5)
                if t > 1:
                    l = l.masked_fill(
                        torch.ones(t, t, dtype=torch.bool, device=a.device).triu(1),
                        -1e9,
                    )
                y = torch.softmax(l, -1).matmul(vv).transpose(1, 2).reshape(b, t, d)
                u = u + torch.cat([y, F.gelu(ff)], -1) @ r
            return u[:, -1] @ self.yy[-1], torch.stack(new)

        with phase(PRE):
            s, mem = f(x, mem)
        got.append(s)
        for _ in range(k):
            a = got[-1].argmax(-1)[:, None]
            with phase(DEC):
                s, mem = f(a, mem)
            got.append(s)
        return torch.stack(got, 1)


@case("llm3.qz", "llm", BOTH, kv="legacy", source=PLAIN)
def _() -> Any:
    return Qz(), (torch.randint(700, (1, 3)),)


@case("llm3.qz_single", "llm", BOTH, kv="legacy", source=PLAIN)
def _() -> Any:
    return Qz(500, 36, 2), (torch.randint(500, (2, 1)),)


class Wv(nn.Module):
    """Keeps the first two tokens and the last five: older entries are dropped from the cache after each step."""

    def __init__(self, v: int = 800, d: int = 64, n: int = 2, g: int = 2) -> None:
        super().__init__()
        self.m = nn.ModuleDict(
            {"0": nn.Embedding(v, d), "9": nn.Linear(d, v, bias=False)}
        )
        for i in range(n):
            self.m[f"1{i}"] = nn.Linear(d, d + 2 * g * 16)
            self.m[f"2{i}"] = nn.Linear(d, d)
            self.m[f"3{i}"] = nn.Linear(d, 6 * d)
            self.m[f"4{i}"] = nn.Linear(3 * d, d)
        self.n, self.g = n, g
        self.slope = nn.Parameter(torch.rand(4))

    def once(
        self, a: torch.Tensor, box: dict[str, torch.Tensor], at: torch.Tensor
    ) -> torch.Tensor:
        x = self.m["0"](a)
        b, t, d = x.shape
        box["@"] = torch.cat([box["@"], at]) if "@" in box else at
        far = box["@"][None, :] - at[:, None]
        for i in range(self.n):
            q, k, v = self.m[f"1{i}"](F.rms_norm(x, (d,))).split([d, 32, 32], -1)
            q = q.view(b, t, self.g, 2, 16).permute(0, 2, 3, 1, 4)
            k, v = (z.view(b, t, self.g, 16).transpose(1, 2) for z in (k, v))
            if f"k{i}" in box:
                k, v = torch.cat((box[f"k{i}"], k), 2), torch.cat((box[f"v{i}"], v), 2)
            box[f"k{i}"], box[f"v{i}"] = k, v
            w = torch.einsum("bgrqe,bgke->bgrqk", q, k) / 4
            w = w + self.slope.view(2, 2, 1, 1) * far
            w = torch.where(far > 0, torch.tensor(-1e9, device=x.device), w)
            y = torch.einsum("bgrqk,bgke->bqgre", w.softmax(-1), v).reshape(b, t, d)
            x = x + self.m[f"2{i}"](y)
            u, w = self.m[f"3{i}"](F.rms_norm(x, (d,))).chunk(2, -1)
            x = x + self.m[f"4{i}"](u.sigmoid() * u * w)
        for name in list(box):
            z = box[name]
            axis = 0 if name == "@" else 2
            if z.shape[axis] > 7:
                size = z.shape[axis]
                box[name] = torch.cat(
                    [z.narrow(axis, 0, 2), z.narrow(axis, size - 5, 5)], axis
                )
        return self.m["9"](x[:, -1:])

    def forward(self, a: torch.Tensor) -> torch.Tensor:
        box: dict[str, torch.Tensor] = {}
        with phase(PRE):
            s = self.once(a, box, torch.arange(a.shape[1], device=a.device))
        out = [s]
        for i in range(5):
            a_ = s.argmax(-1)
            with phase(DEC):
                s = self.once(
                    a_, box, torch.full((1,), a.shape[1] + i, device=a.device)
                )
            out.append(s)
        return torch.cat(out, 1)


@case("llm3.wv", "llm", BOTH, kv="legacy", source=PLAIN)
def _() -> Any:
    return Wv(), (torch.randint(800, (2, 6)),)


class Dl(nn.Module):
    """Fast weights by the delta rule: the state is corrected by what it recalls for each key."""

    def __init__(self, v: int = 640, d: int = 48, n: int = 2, h: int = 3) -> None:
        super().__init__()
        self.o0, self.h = nn.Embedding(v, d), h
        self.o1 = nn.ModuleList(nn.Linear(d, 3 * d + h) for _ in range(n))
        self.o2 = nn.ModuleList(nn.Linear(d, d) for _ in range(n))
        self.o3 = nn.ModuleList(
            nn.Sequential(nn.RMSNorm(d), nn.Linear(d, 96), nn.SiLU(), nn.Linear(96, d))
            for _ in range(n)
        )

    def tick(self, u: torch.Tensor, s: list[torch.Tensor]) -> torch.Tensor:
        d = u.shape[-1]
        for i, (a, b, c) in enumerate(zip(self.o1, self.o2, self.o3, strict=True)):
            q, k, v, r = a(F.layer_norm(u, (d,))).split([d, d, d, self.h], -1)
            q, k, v = (z.unflatten(-1, (self.h, -1)) for z in (q, k, v))
            k = F.normalize(k, dim=-1)
            old = torch.einsum("bhk,bhkv->bhv", k, s[i])
            s[i] = (
                s[i]
                + r.sigmoid()[..., None, None]
                * k[..., :, None]
                * (v - old)[..., None, :]
            )
            u = u + b(torch.einsum("bhk,bhkv->bhv", q, s[i]).flatten(1))
            u = u + c(u)
        return u

    def forward(self, a: torch.Tensor) -> torch.Tensor:
        d = self.o0.embedding_dim // self.h
        with phase(PRE):
            s = [
                torch.zeros(a.shape[0], self.h, d, d, device=a.device) for _ in self.o1
            ]
            for t in range(a.shape[1]):
                u = self.tick(self.o0(a[:, t]), s)
            y = u @ self.o0.weight.T
        out = [y]
        for _ in range(4):
            token = y.argmax(-1)
            with phase(DEC):
                y = self.tick(self.o0(token), s) @ self.o0.weight.T
            out.append(y)
        return torch.stack(out)


@case("llm3.dl", "llm", BOTH, kv="ssm", source=PLAIN)
def _() -> Any:
    return Dl(), (torch.randint(640, (1, 6)),)


class Df(nn.Module):
    """The difference of two attentions, a preallocated cache with masks over all of it, sampling at a temperature."""

    def __init__(self, v: int = 720, d: int = 64, n: int = 2, room: int = 16) -> None:
        super().__init__()
        self.a, self.b, self.room = nn.Embedding(v, d), nn.Embedding(room, d), room
        self.c, self.d = (
            nn.ModuleList(nn.Linear(d, 5 * 32) for _ in range(n)),
            nn.ModuleList(nn.Linear(32, d) for _ in range(n)),
        )
        self.e, self.f = (
            nn.ModuleList(nn.Linear(d, 2 * d) for _ in range(n)),
            nn.ModuleList(nn.Linear(2 * d, d) for _ in range(n)),
        )
        self.l, self.z = nn.Parameter(torch.tensor(0.4)), nn.Linear(d, v)

    def go(
        self, x: torch.Tensor, at: torch.Tensor, cache: torch.Tensor
    ) -> torch.Tensor:
        y = self.a(x) + self.b(at)
        seen = torch.arange(self.room, device=x.device)[None] <= at[:, None]
        for i in range(len(self.c)):
            q1, q2, k1, k2, v = self.c[i](F.layer_norm(y, y.shape[-1:])).chunk(5, -1)
            cache[i].index_copy_(1, at, torch.cat([k1, k2, v], -1))
            k1, k2, v = cache[i].chunk(3, -1)
            w1, w2 = (
                (q @ k.mT / 32**0.5).masked_fill(~seen, float("-inf")).softmax(-1)
                for q, k in ((q1, k1), (q2, k2))
            )
            y = y + self.d[i](F.rms_norm((w1 - self.l * w2) @ v, (32,)))
            y = y + self.f[i](F.relu(self.e[i](F.layer_norm(y, y.shape[-1:]))).square())
        return self.z(y[:, -1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = x.shape[1]
        cache = torch.zeros(len(self.c), x.shape[0], self.room, 96, device=x.device)
        with phase(PRE):
            s = self.go(x, torch.arange(n, device=x.device), cache)
        out = [s]
        for i in range(4):
            token = torch.multinomial((s / 0.9).softmax(-1), 1)
            with phase(DEC):
                s = self.go(token, torch.tensor([n + i], device=x.device), cache)
            out.append(s)
        return torch.stack(out)


@case("llm3.df", "llm", BOTH, kv="static", source=PLAIN)
def _() -> Any:
    return Df(), (torch.randint(720, (2, 4)),)


class Lion(nn.Module):
    """Steps by the sign of a mixed momentum, with decay, under no_grad."""

    def __init__(self, net: nn.Module, loss: Any, steps: int = 2) -> None:
        super().__init__()
        self.net, self.loss, self.steps = net.train(), loss, steps

    def forward(self, *x: torch.Tensor) -> torch.Tensor:
        params = [q for q in self.net.parameters()]
        mem = [torch.zeros_like(q) for q in params]
        out = []
        for _ in range(self.steps):
            with phase("train.forward"):
                loss = self.loss(self.net, *x)
            with phase("train.backward"):
                grads = torch.autograd.grad(loss, params)
            with phase("train.optimizer"), torch.no_grad():
                for i, (q, g) in enumerate(zip(params, grads, strict=True)):
                    q.mul_(0.999).add_((0.9 * mem[i] + 0.1 * g).sign(), alpha=-1e-3)
                    mem[i] = 0.99 * mem[i] + 0.01 * g
            out.append(loss.detach())
        return torch.stack(out)


class Tl(nn.Module):
    """A causal transformer of PyTorch's own layers."""

    def __init__(self, v: int = 500, d: int = 48) -> None:
        super().__init__()
        self.u, self.w = nn.Embedding(v, d), nn.Embedding(32, d)
        self.k = nn.ModuleList(
            nn.TransformerEncoderLayer(
                d,
                4,
                96,
                dropout=0.0,
                batch_first=True,
                norm_first=True,
                activation="gelu",
            )
            for _ in range(2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        t = x.shape[1]
        m = torch.full((t, t), float("-inf"), device=x.device).triu(1)
        y = self.u(x) + self.w.weight[:t]
        for k in self.k:
            y = k(y, src_mask=m)
        return y @ self.u.weight.t()


@case("train3.tl_lion", "llm", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    def loss(m: nn.Module, x: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(m(x[:, :-1]).transpose(1, 2), x[:, 1:])

    return Lion(Tl(), loss), (torch.randint(500, (3, 11)),)


@case("train3.starcoder2", "llm", TRAIN, mode="train")
def _() -> Any:
    return TrainStep(
        lm("starcoder2"), lambda m, x: m(x, labels=x, use_cache=False).loss, lambda q: torch.optim.Adagrad(q, 0.01), 1
    ), (ids(2, 9),)  # fmt: skip


# Text encoders.
def encoder(kind: str) -> nn.Module:
    import transformers as t

    b = dict(
        vocab_size=V, hidden_size=128, num_hidden_layers=3, num_attention_heads=4, intermediate_size=256,
        max_position_embeddings=130,
    )  # fmt: skip
    return {
        "squeezebert": lambda: t.SqueezeBertForMaskedLM(
            t.SqueezeBertConfig(embedding_size=128, **b)
        ),
        "nystromformer": lambda: t.NystromformerForSequenceClassification(
            t.NystromformerConfig(segment_means_seq_len=32, num_landmarks=8, **b)
        ),
        "convbert": lambda: t.ConvBertForTokenClassification(
            t.ConvBertConfig(embedding_size=64, **b)
        ),
        "funnel": lambda: t.FunnelForMaskedLM(
            t.FunnelConfig(
                vocab_size=V,
                block_sizes=[2, 2],
                num_decoder_layers=1,
                d_model=96,
                n_head=4,
                d_head=24,
                d_inner=192,
            )
        ),
        "camembert": lambda: t.CamembertForSequenceClassification(
            t.CamembertConfig(attn_implementation="eager", pad_token_id=1, **b)
        ),
    }[kind]()


def add_encoder(kind: str, length: int, batch: int = 2) -> None:
    @case(f"text3.{kind}", "text_encoder", (TEXT,), default=TEXT)
    def make() -> Any:
        x = ids(batch, length)
        return (
            Out(encoder(kind), "logits"),
            (x,),
            dict(attention_mask=torch.ones_like(x)),
        )


add_encoder("squeezebert", 12)
add_encoder("nystromformer", 32)
add_encoder("convbert", 20, 1)
add_encoder("funnel", 16)
add_encoder("camembert", 6, 3)


class Rb(nn.Module):
    """Bidirectional attention by einsum with biases of bucketed distances, gated feed-forwards, a mean by the mask."""

    def __init__(self, v: int = 900, d: int = 60, h: int = 5, n: int = 2) -> None:
        super().__init__()
        self.t, self.r, self.h = p(v, d, s=0.4), p(h, 17), h
        self.w = nn.ParameterList([p(4, d, d) for _ in range(n)])
        self.x, self.y = (
            nn.ParameterList([p(d, 4 * d) for _ in range(n)]),
            nn.ParameterList([p(2 * d, d) for _ in range(n)]),
        )

    def forward(self, a: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        u = F.embedding(a, self.t)
        i = torch.arange(a.shape[1], device=a.device)
        bias = (
            self.r[:, (i[None] - i[:, None]).clamp(-8, 8) + 8]
            + (1 - keep.float())[:, None, None] * -1e9
        )
        for w, x, y in zip(self.w, self.x, self.y, strict=True):
            z = F.rms_norm(u, u.shape[-1:])
            q, k, v = (
                torch.einsum("btd,de->bte", z, w[j]).unflatten(-1, (self.h, -1))
                for j in range(3)
            )
            s = (torch.einsum("bqhe,bkhe->bhqk", q, k) * 0.29 + bias).softmax(-1)
            u = u + torch.einsum("bhqk,bkhe->bqhe", s, v).flatten(2) @ w[3]
            g, f = (F.rms_norm(u, u.shape[-1:]) @ x).chunk(2, -1)
            u = u + (F.gelu(g) * f) @ y
        m = keep.float().unsqueeze(-1)
        return F.normalize((u * m).sum(1) / m.sum(1), dim=-1)


@case("text3.rb", "text_encoder", (TEXT,), default=TEXT, source=PLAIN)
def _() -> Any:
    keep = torch.ones(3, 10, dtype=torch.long)
    keep[0, 6:] = 0
    return Rb(), (torch.randint(900, (3, 10)), keep)


@case("train3.rb_pairs", "text_encoder", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    def loss(m: nn.Module, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        one = torch.ones_like(a)
        s = m(a, one) @ m(b, one).T * 20
        return F.cross_entropy(s, torch.arange(s.shape[0], device=s.device))

    return TrainStep(Rb(), loss, adam), (
        torch.randint(900, (4, 8)),
        torch.randint(900, (4, 8)),
    )


# Encoder-decoders.
def pair(kind: str) -> nn.Module:
    import transformers as t

    b = dict(
        vocab_size=V, d_model=128, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=256, decoder_ffn_dim=256, pad_token_id=0, decoder_start_token_id=1,
        attn_implementation="eager",
    )  # fmt: skip
    five = dict(
        vocab_size=V,
        d_model=128,
        d_kv=32,
        d_ff=256,
        num_layers=2,
        num_heads=4,
        decoder_start_token_id=0,
    )
    return {
        "m2m_100": lambda: t.M2M100ForConditionalGeneration(
            t.M2M100Config(max_position_embeddings=64, **b)
        ),
        "blenderbot": lambda: t.BlenderbotForConditionalGeneration(
            t.BlenderbotConfig(max_position_embeddings=64, **b)
        ),
        "longt5": lambda: t.LongT5ForConditionalGeneration(
            t.LongT5Config(local_radius=4, **five)
        ),
        "umt5": lambda: t.UMT5ForConditionalGeneration(t.UMT5Config(**five)),
        "plbart": lambda: t.PLBartForConditionalGeneration(
            t.PLBartConfig(max_position_embeddings=64, **b)
        ),
    }[kind]().eval()


def add_pair(
    kind: str, length: int, steps: int = 4, batch: int = 1, **attrs: Any
) -> None:
    where = [
        (r"model\.(model\.)?encoder", ENC),
        (r"model\.(model\.)?decoder|model\.lm_head", STEP),
    ]

    @case(
        f"seq2seq3.{kind}", "seq2seq", (ENC, STEP), spans=where, kv="dynamic", **attrs
    )
    def make() -> Any:
        x = ids(batch, length)
        return (
            Generate(pair(kind), steps),
            (x,),
            dict(attention_mask=torch.ones_like(x)),
        )


add_pair("m2m_100", 6)
add_pair("blenderbot", 3, 5, 2)
add_pair("longt5", 9, 3)
add_pair("umt5", 4, 4, 2)


class Lu(nn.Module):
    """A bidirectional LSTM reads; an LSTM cell writes with a bilinear look back at each step and its last look fed in."""

    def __init__(self, v: int = 600, d: int = 40) -> None:
        super().__init__()
        self.a, self.b = nn.Embedding(v, d), nn.Embedding(v, d)
        self.c, self.d = (
            nn.LSTM(d, d, bidirectional=True, batch_first=True),
            nn.LSTMCell(3 * d, d),
        )
        self.e, self.f, self.g = (
            nn.Linear(d, 2 * d, bias=False),
            nn.Linear(3 * d, d),
            nn.Linear(d, v),
        )

    def read(self, x: torch.Tensor) -> Any:
        m, (h, c) = self.c(self.a(x))
        return m, h.sum(0), c.sum(0)

    def write(
        self, t: torch.Tensor, m: torch.Tensor, h: Any, c: Any, look: torch.Tensor
    ) -> Any:
        h, c = self.d(torch.cat([self.b(t), look], 1), (h, c))
        w = (m @ self.e(h).unsqueeze(2)).squeeze(2).softmax(1)
        look = (w.unsqueeze(1) @ m).squeeze(1)
        return self.g(torch.tanh(self.f(torch.cat([look, h], 1)))), h, c, look

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(ENC):
            m, h, c = self.read(x)
        look = torch.zeros(x.shape[0], m.shape[-1], device=x.device)
        t, out = torch.ones_like(x[:, 0]), []
        for _ in range(5):
            with phase(STEP):
                s, h, c, look = self.write(t, m, h, c, look)
            out.append(s)
            t = s.argmax(1)
        return torch.stack(out, 1)


@case("seq2seq3.lu", "seq2seq", (ENC, STEP), source=PLAIN)
def _() -> Any:
    return Lu(), (torch.randint(600, (2, 7)),)


class Bk(nn.Module):
    """Matrices in one tensor: relative slopes in both halves, the memory's keys made once, caches by cat."""

    def __init__(self, v: int = 700, d: int = 48, h: int = 4) -> None:
        super().__init__()
        self.t, self.m, self.h = p(v, d, s=0.4), p(14, d, d, s=0.14), h
        self.f, self.g = p(4, d, 2 * d), p(4, 2 * d, d)

    def mix(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: Any = 0.0
    ) -> torch.Tensor:
        q, k, v = (z.unflatten(-1, (self.h, -1)).transpose(1, 2) for z in (q, k, v))
        return (
            ((q @ k.mT / math.sqrt(q.shape[-1]) + bias).softmax(-1) @ v)
            .transpose(1, 2)
            .flatten(2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n = lambda z: F.layer_norm(z, z.shape[-1:])  # noqa: E731
        with phase(ENC):
            y = self.t[x]
            i = torch.arange(x.shape[1], device=x.device)
            bias = -(i[None] - i[:, None]).abs() * 0.2
            for j in range(2):
                z = n(y)
                y = y + self.mix(
                    z @ self.m[3 * j],
                    z @ self.m[3 * j + 1],
                    z @ self.m[3 * j + 2],
                    bias,
                )
                y = y + F.silu(n(y) @ self.f[j]) @ self.g[j]
            y = n(y)
        kc, vc = y @ self.m[6], y @ self.m[7]
        a, b, out, t = None, None, [], torch.ones_like(x[:, :1])
        for _ in range(5):
            with phase(STEP):
                u = self.t[t]
                z = n(u)
                k, v = z @ self.m[8], z @ self.m[9]
                a, b = (
                    (k, v)
                    if a is None
                    else (torch.cat([a, k], 1), torch.cat([b, v], 1))
                )
                far = torch.arange(a.shape[1], device=x.device) - a.shape[1] + 1
                u = u + self.mix(z @ self.m[10], a, b, far * 0.2) @ self.m[11]
                u = u + self.mix(n(u) @ self.m[12], kc, vc) @ self.m[13]
                u = u + F.silu(n(u) @ self.f[2]) @ self.g[2]
                s = n(u) @ self.t.T
            out.append(s)
            t = s.argmax(-1)
        return torch.cat(out, 1)


@case("seq2seq3.bk", "seq2seq", (ENC, STEP), kv="legacy", source=PLAIN)
def _() -> Any:
    return Bk(), (torch.randint(700, (2, 6)),)


@case("train3.plbart", "seq2seq", TRAIN, mode="train")
def _() -> Any:
    return TrainStep(
        pair("plbart"), lambda m, x, y: m(input_ids=x, labels=y).loss, lambda q: torch.optim.NAdam(q, 1e-3), 1
    ), (ids(2, 8), ids(2, 6))  # fmt: skip
