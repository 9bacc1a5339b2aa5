"""Encoder-decoders by a third author: families of transformers not seen before, and decoders of unlike kinds."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..oracle import phase
from ..parts import VOCABULARY as V
from ..parts import Generate, Out, TrainStep, ids
from ..registry import split

case = split("public")
ENC, DEC = "seq2seq.encode", "seq2seq.decode"
BOTH = (ENC, DEC)
PLAIN = "plain torch, third author"


def w(*shape: int, scale: float = 0.1) -> nn.Parameter:
    """A random weight."""
    return nn.Parameter(torch.randn(*shape) * scale)


class Guarded(nn.Module):
    """Training steps with what stands around an optimizer: clipping before its step, a slow copy after it."""

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., torch.Tensor],
        optimizer: Callable[..., torch.optim.Optimizer],
        norm: float | None = None,
        value: float | None = None,
        slow: float | None = None,
        steps: int = 2,
    ) -> None:
        super().__init__()
        self.model, self.loss, self.make, self.steps = model.train(), loss, optimizer, steps
        self.norm, self.value, self.rate = norm, value, slow
        self.slow = None if slow is None else copy.deepcopy(model).requires_grad_(False)

    def forward(self, *x: torch.Tensor) -> torch.Tensor:
        weights, losses = list(self.model.parameters()), []
        optimizer = self.make(weights)
        for _ in range(self.steps):
            with phase("train.forward"):
                loss = self.loss(self.model, *x)
            with phase("train.backward"):
                loss.backward()
            with phase("train.optimizer"):
                if self.norm is not None:
                    nn.utils.clip_grad_norm_(weights, self.norm)
                if self.value is not None:
                    nn.utils.clip_grad_value_(weights, self.value)
                optimizer.step()
                optimizer.zero_grad()
                if self.slow is not None:
                    with torch.no_grad():
                        for a, b in zip(self.slow.parameters(), weights, strict=True):
                            a.lerp_(b, 1 - self.rate)
            losses.append(loss.detach())
        return torch.stack(losses)


# Families of transformers.
FAIR = dict(
    d_model=96, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
    encoder_ffn_dim=192, decoder_ffn_dim=192, max_position_embeddings=128,
)  # fmt: skip
SPANS = [(r"model\.model\.encoder", ENC), (r"model\.(model\.decoder|lm_head)", DEC)]


@case("seq2seq.third_bert2bert", "seq2seq", BOTH, kv="dynamic", family="encoder-decoder",
      spans=[(r"model\.encoder", ENC), (r"model\.decoder", DEC)])  # fmt: skip
def _() -> Any:
    import transformers as t

    small = dict(vocab_size=V, hidden_size=96, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192)
    writer = t.BertLMHeadModel(t.BertConfig(**small, is_decoder=True, add_cross_attention=True))
    model = t.EncoderDecoderModel(encoder=t.BertModel(t.BertConfig(**small)), decoder=writer).eval()
    model.generation_config.decoder_start_token_id = 1
    x = ids(2, 18)
    return Generate(model, 5), (x,), dict(attention_mask=torch.ones_like(x))


@case("seq2seq.third_prophetnet_forced", "seq2seq", BOTH, family="prophetnet",
      spans=[(r"model\.prophetnet\.encoder", ENC), (r"model\.(prophetnet\.decoder|lm_head)", DEC)])  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.ProphetNetConfig(
        vocab_size=V, hidden_size=96, num_encoder_layers=2, num_decoder_layers=2, num_encoder_attention_heads=4,
        num_decoder_attention_heads=4, encoder_ffn_dim=192, decoder_ffn_dim=192, ngram=2, max_position_embeddings=64,
    )  # fmt: skip
    x = dict(input_ids=ids(2, 15), decoder_input_ids=ids(2, 10))
    return Out(t.ProphetNetForConditionalGeneration(config), "logits", "logits_ngram"), (), x


@case("seq2seq.third_led_windows", "seq2seq", BOTH, kv="dynamic", family="led",
      spans=[(r"model\.led\.encoder", ENC), (r"model\.(led\.decoder|lm_head)", DEC)])  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.LEDConfig(
        vocab_size=V, attention_window=[8, 8], max_encoder_position_embeddings=128, max_decoder_position_embeddings=64,
        **{k: n for k, n in FAIR.items() if k != "max_position_embeddings"},
    )  # fmt: skip
    x = ids(1, 32)
    return Generate(t.LEDForConditionalGeneration(config).eval(), 4), (x,), dict(attention_mask=torch.ones_like(x))


@case("seq2seq.third_m2m_beams", "seq2seq", BOTH, kv="dynamic", beams=3, family="m2m_100", spans=SPANS)
def _() -> Any:
    import transformers as t

    model = t.M2M100ForConditionalGeneration(t.M2M100Config(vocab_size=V, decoder_start_token_id=2, **FAIR)).eval()
    x = ids(2, 11)
    return Generate(model, 5, num_beams=3), (x,), dict(attention_mask=torch.ones_like(x))


@case("seq2seq.third_switch_forced", "seq2seq", BOTH, moe=True, family="switch_transformers",
      spans=[(r"model\.encoder", ENC), (r"model\.(decoder|lm_head)", DEC)])  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.SwitchTransformersConfig(
        vocab_size=V, d_model=96, d_kv=24, d_ff=128, num_heads=4, num_layers=2, num_decoder_layers=2, num_experts=4,
        num_sparse_encoder_layers=1, num_sparse_decoder_layers=1, expert_capacity=16,
    )  # fmt: skip
    model = t.SwitchTransformersForConditionalGeneration(config)
    return Out(model, "logits"), (), dict(input_ids=ids(2, 14), decoder_input_ids=ids(2, 9))


@case("seq2seq.third_longt5_global", "seq2seq", BOTH, kv="dynamic", family="longt5",
      spans=[(r"model\.encoder", ENC), (r"model\.(decoder|lm_head)", DEC)])  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.LongT5Config(
        vocab_size=V, d_model=96, d_kv=24, d_ff=192, num_heads=4, num_layers=2, local_radius=7, global_block_size=8,
        encoder_attention_type="transient-global", decoder_start_token_id=0, feed_forward_proj="gated-gelu",
    )  # fmt: skip
    x = ids(1, 48)
    return Generate(t.LongT5ForConditionalGeneration(config).eval(), 4), (x,), dict(attention_mask=torch.ones_like(x))


@case("seq2seq.third_t5gemma", "seq2seq", BOTH, kv="dynamic", family="t5gemma",
      spans=[(r"model\.model\.encoder", ENC), (r"model\.(model\.decoder|lm_head)", DEC)])  # fmt: skip
def _() -> Any:
    import transformers as t

    side = dict(
        vocab_size=V, hidden_size=96, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=24, query_pre_attn_scalar=24, max_position_embeddings=128, sliding_window=16,
    )  # fmt: skip
    model = t.T5GemmaForConditionalGeneration(t.T5GemmaConfig(encoder=side, decoder=side, vocab_size=V)).eval()
    model.generation_config.bos_token_id = model.generation_config.decoder_start_token_id = 2
    x = ids(1, 20)
    return Generate(model, 4), (x,), dict(attention_mask=torch.ones_like(x))


class Later(nn.Module):
    """Only the steps: what the encoder made comes from elsewhere, in half precision."""

    def __init__(self, steps: int = 5) -> None:
        import transformers as t

        super().__init__()
        self.model = t.BlenderbotSmallForConditionalGeneration(t.BlenderbotSmallConfig(vocab_size=V, **FAIR))
        self.model.to(torch.bfloat16)
        self.steps = steps

    def forward(self, memory: torch.Tensor) -> torch.Tensor:
        from transformers.modeling_outputs import BaseModelOutput

        token, past, out = torch.ones(memory.shape[0], 1, dtype=torch.long, device=memory.device), None, []
        for _ in range(self.steps):
            result = self.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=memory), decoder_input_ids=token,
                past_key_values=past, use_cache=True,
            )  # fmt: skip
            past = result.past_key_values
            token = result.logits[:, -1].argmax(-1, keepdim=True)
            out.append(result.logits[:, -1])
        return torch.stack(out)


@case("seq2seq.third_steps_alone", "seq2seq", (DEC,), kv="dynamic", family="blenderbot_small",
      spans=[(r"model\.(model\.decoder|lm_head)", DEC)])  # fmt: skip
def _() -> Any:
    return Later(), (torch.randn(2, 13, 96, dtype=torch.bfloat16),)


# Plain models.
class Aligned(nn.Module):
    """LSTMs; the whole target goes through the decoder at once, then every state looks at the source (Luong)."""

    def __init__(self, v: int = 900, d: int = 48) -> None:
        super().__init__()
        self.m1, self.m2 = nn.Embedding(v, d), nn.Embedding(v, d)
        self.m3 = nn.LSTM(d, d // 2, 2, batch_first=True, bidirectional=True)
        self.m4 = nn.LSTM(d, d, 2, batch_first=True)
        self.m5, self.m6, self.m7 = nn.Linear(d, d, False), nn.Linear(2 * d, d, False), nn.Linear(d, v)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with phase(ENC):
            m, (h, c) = self.m3(self.m1(x))
            h, c = (z.unflatten(0, (2, 2)).transpose(1, 2).flatten(2) for z in (h, c))
        with phase(DEC):
            s = self.m4(self.m2(y), (h.contiguous(), c.contiguous()))[0]
            a = torch.baddbmm(torch.zeros_like(s @ m.mT), s, self.m5(m).mT)
            a = a.masked_fill((x == 0)[:, None], -1e4).softmax(2)
            return self.m7(torch.tanh(self.m6(torch.cat([a @ m, s], 2)))).log_softmax(2)


@case("seq2seq.third_aligned_at_once", "seq2seq", BOTH, source=PLAIN)
def _() -> Any:
    x = torch.randint(1, 900, (3, 12))
    x[1, 9:] = 0
    return Aligned(), (x, torch.randint(1, 900, (3, 9)))


class Beam(nn.Module):
    """Three hypotheses by hand: caches and sums of logarithms follow the best of all continuations."""

    def __init__(self, v: int = 600, d: int = 48, n: int = 2, width: int = 3) -> None:
        super().__init__()
        self.t, self.p, self.k, self.n = nn.Embedding(v, d), w(40, d), width, n
        self.a = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(d, 4, 96, 0.0, batch_first=True, norm_first=True), n, enable_nested_tensor=False
        )
        self.q, self.o = (nn.ModuleList(nn.Linear(d, c * d) for _ in range(n)) for c in (3, 1))
        self.r, self.u = (nn.ModuleList(nn.Linear(d, d) for _ in range(n)) for _ in range(2))
        self.c = nn.ModuleList(nn.Linear(d, 2 * d) for _ in range(n))
        self.f = nn.ModuleList(nn.Sequential(nn.Linear(d, 96), nn.GELU(), nn.Linear(96, d)) for _ in range(n))

    @staticmethod
    def look(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (z.unflatten(-1, (4, -1)).transpose(1, 2) for z in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def forward(self, x: torch.Tensor, steps: int = 5) -> Any:
        with phase(ENC):
            m = self.a(self.t(x) + self.p[: x.shape[1]])
        with phase(DEC):
            far = [c(m).expand(self.k, -1, -1).chunk(2, -1) for c in self.c]
        tokens = torch.ones(self.k, 1, dtype=torch.long, device=x.device)
        total = torch.tensor([0.0] + [-1e9] * (self.k - 1), device=x.device)
        past: list[Any] = [None] * self.n
        for step in range(steps):
            with phase(DEC):
                y = self.t(tokens[:, -1:]) + self.p[step]
                d = y.shape[-1:]
                for i in range(self.n):
                    q, k, v = self.q[i](F.layer_norm(y, d)).chunk(3, -1)
                    if past[i] is not None:
                        k, v = torch.cat([past[i][0], k], 1), torch.cat([past[i][1], v], 1)
                    past[i] = k, v
                    y = y + self.o[i](self.look(q, k, v))
                    y = y + self.u[i](self.look(self.r[i](F.layer_norm(y, d)), *far[i]))
                    y = y + self.f[i](F.layer_norm(y, d))
                s = F.linear(F.layer_norm(y[:, 0], d), self.t.weight).log_softmax(-1)
            total, best = (total[:, None] + s).flatten().topk(self.k)
            origin = torch.div(best, s.shape[1], rounding_mode="floor")
            tokens = torch.cat([tokens.index_select(0, origin), (best % s.shape[1])[:, None]], 1)
            past = [(k.index_select(0, origin), v.index_select(0, origin)) for k, v in past]
        return tokens, total


@case("seq2seq.third_beams_by_hand", "seq2seq", BOTH, kv="legacy", beams=3, source=PLAIN)
def _() -> Any:
    return Beam(), (torch.randint(1, 600, (1, 10)),)


class Distances(nn.Module):
    """No positions but learned vectors of clipped distances in keys and values (Shaw); the target is given."""

    def __init__(self, v: int = 800, d: int = 48, n: int = 2, h: int = 4, reach: int = 6) -> None:
        super().__init__()
        self.z0, self.h, self.n, self.reach = nn.Embedding(v, d), h, n, reach
        self.z1, self.z2 = w(2, n, 4, d, d, scale=d**-0.5), w(n, 4, d, d, scale=d**-0.5)
        self.z3, self.z4 = w(2, n, d, 96, scale=d**-0.5), w(2, n, 96, d)
        self.z5 = w(2, 2, 2 * reach + 1, d // h, scale=0.3)
        self.z6 = nn.ModuleList(nn.LayerNorm(d) for _ in range(5 * n))

    def att(self, x: torch.Tensor, y: torch.Tensor, m: torch.Tensor, r: Any = None, mask: Any = None) -> torch.Tensor:
        q, k, v = ((a @ b).unflatten(2, (self.h, -1)).transpose(1, 2) for a, b in zip((x, y, y), m, strict=False))
        a = q @ k.transpose(2, 3)
        if r is not None:
            t = torch.arange(x.shape[1], device=x.device)
            at = (t[None] - t[:, None]).clamp(-self.reach, self.reach) + self.reach
            rk, rv = r[0][at], r[1][at]
            a = a + torch.einsum("bhqd,qkd->bhqk", q, rk)
        a = a * q.shape[-1] ** -0.5
        a = (a if mask is None else a + mask).softmax(-1)
        o = a @ v if r is None else a @ v + torch.einsum("bhqk,qkd->bhqd", a, rv)
        return o.transpose(1, 2).flatten(2) @ m[3]

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        norms = iter(self.z6)
        with phase(ENC):
            x = self.z0(x)
            for i in range(self.n):
                x = next(norms)(x + self.att(x, x, self.z1[0, i], self.z5[0]))
                x = next(norms)(x + (x @ self.z3[0, i]).relu() @ self.z4[0, i])
        with phase(DEC):
            y = self.z0(y)
            mask = torch.full((y.shape[1], y.shape[1]), -1e9, device=y.device).triu(1)
            for i in range(self.n):
                y = next(norms)(y + self.att(y, y, self.z1[1, i], self.z5[1], mask))
                y = next(norms)(y + self.att(y, x, self.z2[i]))
                y = next(norms)(y + (y @ self.z3[1, i]).relu() @ self.z4[1, i])
            return F.linear(y, self.z0.weight)


@case("seq2seq.third_distances_forced", "seq2seq", BOTH, source=PLAIN)
def _() -> Any:
    return Distances(), (torch.randint(1, 800, (2, 13)), torch.randint(1, 800, (2, 9)))


class Routed(nn.Module):
    """Rotary, root-mean-square norms, and four gated experts of which each token takes two, on both sides."""

    def __init__(self, v: int = 700, d: int = 64, n: int = 2, e: int = 4) -> None:
        super().__init__()
        self.e, self.f, self.n = nn.Embedding(v, d), nn.Embedding(v, d), n
        self.a, self.b, self.c = w(n, d, 3 * d), w(n, d, 3 * d), w(n, 3, d, d)
        self.o, self.g = w(2 * n, d, d), w(2 * n, d, e, scale=0.5)
        self.u, self.v = w(2 * n, e, d, 2 * 48), w(2 * n, e, 48, d)
        self.l = nn.Linear(d, v, bias=False)

    @staticmethod
    def turn(x: torch.Tensor, at: int) -> torch.Tensor:
        t, half = x.shape[-2], x.shape[-1] // 2
        f = 1e4 ** (-torch.arange(half, device=x.device) / half)
        a = torch.arange(at, at + t, device=x.device)[:, None] * f
        p, q = x[..., :half], x[..., half:]
        return torch.cat([p * a.cos() - q * a.sin(), q * a.cos() + p * a.sin()], -1)

    @staticmethod
    def norm(x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)

    def experts(self, x: torch.Tensor, i: int) -> torch.Tensor:
        y = self.norm(x)
        best, which = (y @ self.g[i]).softmax(-1).topk(2, -1)
        gate = torch.zeros_like(y @ self.g[i]).scatter(-1, which, best / best.sum(-1, keepdim=True))
        a, b = torch.einsum("btd,edf->btef", y, self.u[i]).chunk(2, -1)
        return x + torch.einsum("btef,efd,bte->btd", F.silu(a) * b, self.v[i], gate)

    def forward(self, x: torch.Tensor, steps: int = 5) -> torch.Tensor:
        cut = lambda z: z.unflatten(-1, (4, -1)).transpose(1, 2)  # noqa: E731
        with phase(ENC):
            x = self.e(x)
            for i in range(self.n):
                q, k, v = (cut(z) for z in (self.norm(x) @ self.a[i]).chunk(3, -1))
                a = F.scaled_dot_product_attention(self.turn(q, 0), self.turn(k, 0), v)
                x = self.experts(x + a.transpose(1, 2).flatten(2) @ self.o[i], i)
            x = self.norm(x)
        token = torch.ones(x.shape[0], 1, dtype=torch.long, device=x.device)
        past: list[Any] = [None] * self.n
        out = []
        for step in range(steps):
            with phase(DEC):
                y = self.f(token)
                for i in range(self.n):
                    j = self.n + i
                    q, k, v = (cut(z) for z in (self.norm(y) @ self.b[i]).chunk(3, -1))
                    k = self.turn(k, step)
                    past[i] = (k, v) if past[i] is None else tuple(
                        torch.cat([a, b], 2) for a, b in zip(past[i], (k, v), strict=True)
                    )  # fmt: skip
                    a = F.scaled_dot_product_attention(self.turn(q, step), *past[i])
                    y = y + a.transpose(1, 2).flatten(2) @ self.o[j]
                    q, k, v = (cut(z @ m) for z, m in zip((self.norm(y), x, x), self.c[i], strict=True))
                    y = y + F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
                    y = self.experts(y, j)
                s = self.l(self.norm(y))
            token = s.argmax(-1)
            out.append(s)
        return torch.cat(out, 1)


@case("seq2seq.third_rotary_experts", "seq2seq", BOTH, kv="legacy", moe=True, source=PLAIN)
def _() -> Any:
    return Routed(), (torch.randint(1, 700, (2, 12)),)


class Kernels(nn.Module):
    """Lightweight convolutions: softmax kernels shared by groups of channels, over unfolded neighbours; no cache."""

    def __init__(self, v: int = 700, d: int = 48, n: int = 2, width: int = 5, h: int = 4) -> None:
        super().__init__()
        self.a, self.b, self.pos = nn.Embedding(v, d), nn.Embedding(v, d), w(32, d)
        self.k, self.dyn = w(n, h, width, scale=1.0), nn.ModuleList(nn.Linear(d, h * width) for _ in range(n))
        self.i, self.j = (nn.ModuleList(nn.Linear(d, 2 * d) for _ in range(n)) for _ in range(2))
        self.x = nn.ModuleList(nn.MultiheadAttention(d, 4, batch_first=True) for _ in range(n))
        self.f, self.g = (nn.ModuleList(nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 96), nn.ReLU(), nn.Linear(96, d))
                                        for _ in range(n)) for _ in range(2))  # fmt: skip
        self.width, self.h, self.o = width, h, nn.Linear(d, v)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        r, half = self.width, self.width // 2
        with phase(ENC):
            x = self.a(x) + self.pos[: x.shape[1]]
            for kernel, i, f in zip(self.k, self.i, self.f, strict=True):
                z = F.pad(F.glu(i(x), -1), (0, 0, half, half)).unfold(1, r, 1).unflatten(2, (self.h, -1))
                x = x + (z * kernel.softmax(-1)[:, None]).sum(-1).flatten(2)
                x = x + f(x)
        with phase(DEC):
            y = self.b(y) + self.pos[: y.shape[1]]
            for dyn, j, at, g in zip(self.dyn, self.j, self.x, self.g, strict=True):
                kernel = dyn(y).unflatten(-1, (self.h, 1, r)).softmax(-1)
                z = F.pad(F.glu(j(y), -1), (0, 0, r - 1, 0)).unfold(1, r, 1).unflatten(2, (self.h, -1))
                y = y + (z * kernel).sum(-1).flatten(2)
                y = y + at(y, x, x, need_weights=False)[0]
                y = y + g(y)
            return self.o(y)


@case("seq2seq.third_light_kernels", "seq2seq", BOTH, source=PLAIN)
def _() -> Any:
    return Kernels(), (torch.randint(1, 700, (2, 14)), torch.randint(1, 700, (2, 10)))


class Tour(nn.Module):
    """Points in a plane read by a GRU; each step points at one that was not visited, with a glimpse before."""

    def __init__(self, d: int = 48) -> None:
        super().__init__()
        self.l1, self.l2, self.l3 = nn.Linear(2, d), nn.GRU(d, d, batch_first=True), nn.GRUCell(d, d)
        self.l4, self.l5, self.l6, self.l7 = (nn.Linear(d, d, bias=False) for _ in range(4))
        self.v1, self.v2, self.go = w(d), w(d), w(1, d)

    def forward(self, x: torch.Tensor) -> Any:
        with phase(ENC):
            e = self.l1(x)
            m, h = self.l2(e)
        h, y = h[0], self.go.expand(len(x), -1)
        seen, tour, logs = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device), [], []
        for _ in range(x.shape[1]):
            with phase(DEC):
                h = self.l3(y, h)
                a = torch.tanh(self.l4(m) + self.l5(h)[:, None]) @ self.v1
                g = torch.einsum("bn,bnd->bd", a.masked_fill(seen, -1e9).softmax(1), m)
                s = 8 * torch.tanh(torch.tanh(self.l6(m) + self.l7(g)[:, None]) @ self.v2)
                s = s.masked_fill(seen, -1e9).log_softmax(1)
            best = s.argmax(1, keepdim=True)
            seen = seen.scatter(1, best, True)
            y = e.gather(1, best[..., None].expand(-1, -1, e.shape[2]))[:, 0]
            tour.append(best)
            logs.append(s.gather(1, best))
        return torch.cat(tour, 1), torch.cat(logs, 1)


@case("seq2seq.third_pointing_tour", "seq2seq", BOTH, source=PLAIN)
def _() -> Any:
    return Tour(), (torch.rand(3, 8, 2),)


class Refined(nn.Module):
    """All words at once, three times: what is least certain is masked again (no order from left to right)."""

    def __init__(self, v: int = 700, d: int = 48, size: int = 9) -> None:
        super().__init__()
        self.e, self.p, self.size, self.mask = nn.Embedding(v, d), nn.Embedding(40, d), size, v - 1
        self.left = nn.TransformerEncoder(nn.TransformerEncoderLayer(d, 4, 96, 0.0), 2, enable_nested_tensor=False)
        self.right = nn.TransformerDecoder(nn.TransformerDecoderLayer(d, 4, 96, 0.0, activation="gelu"), 2)
        self.o = nn.Linear(d, v)

    def forward(self, x: torch.Tensor, rounds: int = 3) -> Any:
        with phase(ENC):
            m = self.left(self.e(x) + self.p.weight[: len(x), None])
        y = torch.full((self.size, x.shape[1]), self.mask, device=x.device)
        for i in range(rounds):
            with phase(DEC):
                z = self.right(self.e(y) + self.p.weight[: self.size, None], m)
                s = self.o(z).log_softmax(-1)
            sure, word = s.max(-1)
            y = word
            if i + 1 < rounds:
                worst = sure.topk(self.size * (rounds - 1 - i) // rounds, 0, largest=False).indices
                y = word.scatter(0, worst, self.mask)
        return y, s


@case("seq2seq.third_masked_rounds", "seq2seq", BOTH, source=PLAIN)
def _() -> Any:
    return Refined(), (torch.randint(1, 699, (11, 2)),)


# Training steps.
@case("seq2seq.third_train_bart_smoothed", "seq2seq", TRAIN, mode="train", family="bart")
def _() -> Any:
    import transformers as t

    def loss(m: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        s = m(input_ids=x, decoder_input_ids=y[:, :-1]).logits
        return F.cross_entropy(s.flatten(0, 1), y[:, 1:].flatten(), label_smoothing=0.1)

    model = t.BartForConditionalGeneration(t.BartConfig(vocab_size=1000, **FAIR))
    loop = lambda p: torch.optim.Adam(p, 1e-3, betas=(0.9, 0.98), foreach=False)  # noqa: E731
    return TrainStep(model, loss, loop, steps=1), (ids(2, 16, 1000), ids(2, 11, 1000))


@case("seq2seq.third_train_distances", "seq2seq", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    def loss(m: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.nll_loss(m(x, y[:, :-1]).log_softmax(2).transpose(1, 2), y[:, 1:])

    nesterov = lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=1e-4)  # noqa: E731
    return Guarded(Distances(), loss, nesterov, norm=1.0), (
        torch.randint(1, 800, (3, 12)),
        torch.randint(1, 800, (3, 10)),
    )
