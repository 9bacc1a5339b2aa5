"""Encoder-decoders by a fourth author: long inputs, experts, two stacks joined, and plain ones."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..oracle import phase
from ..parts import VOCABULARY as V
from ..parts import Generate, Out, TrainStep, adamw, ids
from ..registry import split

case = split("public")
ENC, DEC = "seq2seq.encode", "seq2seq.decode"
BOTH = (ENC, DEC)
PLAIN = "plain torch, fourth author"
SPANS = [(r"model\.((model|led)\.)?encoder", ENC), (r"model\.((model|led)\.)?decoder|model\.lm_head", DEC)]
STACKS = dict(
    vocab_size=V, d_model=96, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4,
    encoder_ffn_dim=192, decoder_ffn_dim=192,
)  # fmt: skip


def attend(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """The attention mask of sentences without padding."""
    return dict(attention_mask=torch.ones_like(x))


# Of transformers.
@case("seq2seq.fourth_led", "seq2seq", BOTH, spans=SPANS, kv="dynamic", prompt=50)
def _() -> Any:
    import transformers as t

    config = t.LEDConfig(
        max_encoder_position_embeddings=128, max_decoder_position_embeddings=64, attention_window=16, **STACKS
    )
    x = ids(1, 50)
    globally = torch.zeros_like(x)
    globally[:, 0] = 1
    return Generate(t.LEDForConditionalGeneration(config).eval(), 5), (x,), dict(
        attend(x), global_attention_mask=globally
    )  # fmt: skip


@case("seq2seq.fourth_pegasus_x", "seq2seq", BOTH, spans=SPANS, kv="dynamic", prompt=40)
def _() -> Any:
    import transformers as t

    config = t.PegasusXConfig(max_position_embeddings=128, num_global_tokens=4, block_size=16, **STACKS)
    x = ids(2, 40)
    return Generate(t.PegasusXForConditionalGeneration(config).eval(), 4), (x,), attend(x)


@case("seq2seq.fourth_bigbird_pegasus", "seq2seq", BOTH, spans=SPANS, kv="dynamic", prompt=96)
def _() -> Any:
    import transformers as t

    config = t.BigBirdPegasusConfig(max_position_embeddings=128, block_size=8, num_random_blocks=2, **STACKS)
    x = ids(1, 96)
    return Generate(t.BigBirdPegasusForConditionalGeneration(config).eval(), 4), (x,), attend(x)


@case("seq2seq.fourth_mvp_beams", "seq2seq", BOTH, spans=SPANS, kv="dynamic", prompt=17, beams=3)
def _() -> Any:
    import transformers as t

    config = t.MvpConfig(max_position_embeddings=64, use_prompt=True, prompt_length=6, prompt_mid_dim=48, **STACKS)
    x = ids(2, 17)
    return Generate(t.MvpForConditionalGeneration(config).eval(), 5, num_beams=3), (x,), attend(x)


@case("seq2seq.fourth_fsmt", "seq2seq", BOTH, spans=SPANS, forced=True)
def _() -> Any:
    import transformers as t

    more = {k: v for k, v in STACKS.items() if k != "vocab_size"}
    config = t.FSMTConfig(src_vocab_size=V, tgt_vocab_size=3000, max_position_embeddings=64, **more)
    x = ids(2, 19)
    given = dict(input_ids=x, decoder_input_ids=ids(2, 13, 3000), use_cache=False, **attend(x))
    return Out(t.FSMTForConditionalGeneration(config), "logits"), (), given


@case("seq2seq.fourth_switch", "seq2seq", BOTH, spans=SPANS, kv="dynamic", prompt=22, moe=True)
def _() -> Any:
    import transformers as t

    config = t.SwitchTransformersConfig(
        vocab_size=V, d_model=96, d_kv=24, d_ff=192, num_layers=2, num_sparse_encoder_layers=1, num_decoder_layers=2,
        num_sparse_decoder_layers=1, num_heads=4, num_experts=4, decoder_start_token_id=0,
    )  # fmt: skip
    x = ids(2, 22)
    return Generate(t.SwitchTransformersForConditionalGeneration(config).eval(), 4), (x,), attend(x)


@case("seq2seq.fourth_nllb_moe", "seq2seq", BOTH, spans=SPANS, forced=True, moe=True)
def _() -> Any:
    import transformers as t

    config = t.NllbMoeConfig(
        max_position_embeddings=64, num_experts=4, encoder_sparse_step=2, decoder_sparse_step=2, **STACKS
    )
    x = ids(2, 15)
    given = dict(input_ids=x, decoder_input_ids=ids(2, 11), use_cache=False, **attend(x))
    return Out(t.NllbMoeForConditionalGeneration(config), "logits"), (), given


@case(
    "seq2seq.fourth_two_berts", "seq2seq", BOTH, kv="dynamic", prompt=21, family="encoder-decoder",
    spans=[(r"model\.encoder", ENC), (r"model\.decoder", DEC)],
)  # fmt: skip
def _() -> Any:
    import transformers as t

    size = dict(vocab_size=V, num_attention_heads=4, num_hidden_layers=2, intermediate_size=192)
    encoder = t.BertModel(t.BertConfig(hidden_size=128, **size), add_pooling_layer=False)
    decoder = t.BertLMHeadModel(
        t.BertConfig(hidden_size=96, is_decoder=True, add_cross_attention=True, **size)
    )
    model = t.EncoderDecoderModel(encoder=encoder, decoder=decoder).eval()
    model.generation_config.decoder_start_token_id, model.generation_config.pad_token_id = 1, 0
    x = ids(2, 21)
    return Generate(model, 5), (x,), attend(x)


@case("seq2seq.fourth_t5gemma", "seq2seq", BOTH, spans=SPANS, kv="dynamic", prompt=26)
def _() -> Any:
    import transformers as t

    half = dict(
        vocab_size=V, hidden_size=96, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=24, query_pre_attn_scalar=24, sliding_window=16, max_position_embeddings=64,
    )  # fmt: skip
    config = t.T5GemmaConfig(encoder=dict(half), decoder=dict(half), vocab_size=V)
    model = t.T5GemmaForConditionalGeneration(config).eval()
    model.generation_config.decoder_start_token_id = 2
    x = ids(1, 26)
    return Generate(model, 5), (x,), attend(x)


# Plain ones.
class Wire(nn.Module):
    """Stacked LSTMs; attention by a general product, its vector fed in at the next step (Luong)."""

    def __init__(self, n: int = 650, d: int = 56) -> None:
        super().__init__()
        self.m0, self.m1 = nn.Embedding(n, d), nn.Embedding(n, d)
        self.m2, self.m3 = nn.LSTM(d, d, 2, batch_first=True), nn.LSTM(2 * d, d, 2, batch_first=True)
        self.m4, self.m5, self.m6 = nn.Linear(d, d, False), nn.Linear(2 * d, d, False), nn.Linear(d, n)

    def forward(self, a: torch.Tensor, steps: int = 6) -> torch.Tensor:
        with phase(ENC):
            h, s = self.m2(self.m0(a.flip(1)))
        u = torch.zeros_like(h[:, :1])
        z = torch.full_like(a[:, :1], 2)
        r = []
        for _ in range(steps):
            with phase(DEC):
                q, s = self.m3(torch.cat([self.m1(z), u], -1), s)
                g = torch.bmm(self.m4(q), h.transpose(1, 2)).softmax(-1)
                u = torch.tanh(self.m5(torch.cat([torch.bmm(g, h), q], -1)))
                y = self.m6(u)
            z = y.argmax(-1)
            r.append(y)
        return torch.cat(r, 1)


@case("seq2seq.fourth_wire", "seq2seq", BOTH, source=PLAIN)
def _() -> Any:
    return Wire(), (ids(3, 14, 650),)


class Holes(nn.Module):
    """No order of words: a length is foreseen, all words at once, the unsure ones masked and filled in again."""

    def __init__(self, n: int = 700, d: int = 64, longest: int = 16) -> None:
        super().__init__()
        self.w, self.k = nn.Embedding(n, d), nn.Parameter(torch.randn(40, d) * 0.1)
        side = lambda kind: kind(d, 4, 2 * d, 0.0, "gelu", batch_first=True, norm_first=True)  # noqa: E731
        self.p = nn.ModuleList(side(nn.TransformerEncoderLayer) for _ in range(2))
        self.q = nn.ModuleList(side(nn.TransformerDecoderLayer) for _ in range(2))
        self.l, self.o, self.longest = nn.Linear(d, longest), nn.Linear(d, n), longest

    def forward(self, a: torch.Tensor, rounds: int = 3) -> Any:
        with phase(ENC):
            x = self.w(a) + self.k[: a.shape[1]]
            for m in self.p:
                x = m(x)
            length = self.l(x.mean(1))
        size = length.argmax(1, keepdim=True) + 1
        absent = torch.arange(self.longest, device=a.device)[None] >= size
        y = torch.full((a.shape[0], self.longest), 3, device=a.device)
        for r in range(rounds):
            with phase(DEC):
                h = self.w(y) + self.k[: self.longest]
                for m in self.q:
                    h = m(h, x, tgt_key_padding_mask=absent)
                s = self.o(h).log_softmax(-1)
            score, y = s.max(-1)
            again = score.masked_fill(absent, 1.0).argsort(1)[:, : self.longest * (rounds - 1 - r) // rounds]
            y = y.scatter(1, again, 3)
        return s, length


@case("seq2seq.fourth_holes", "seq2seq", BOTH, source=PLAIN)
def _() -> Any:
    return Holes(), (ids(2, 12, 700),)


class Turn(nn.Module):
    """Rotated heads with shared keys, a gated feed-forward, caches by cat, and a beam of hypotheses by hand."""

    def __init__(self, n: int = 500, d: int = 64, h: int = 4, g: int = 2, layers: int = 2) -> None:
        super().__init__()
        self.e, self.h, self.g, self.c = nn.Embedding(n, d), h, g, d // h
        lin = lambda a, b: nn.ModuleList(nn.Linear(a, b, bias=False) for _ in range(layers))  # noqa: E731
        kv = 2 * g * self.c
        self.a1, self.a2, self.a3, self.a4 = lin(d, d + kv), lin(d, d), lin(d, 4 * d), lin(2 * d, d)
        self.b1, self.b2, self.b3, self.b4 = lin(d, d + kv), lin(d, d), lin(d, 4 * d), lin(2 * d, d)
        self.x1, self.x2, self.x3 = lin(d, d), lin(d, kv), lin(d, d)
        f = torch.arange(64)[:, None] * 10000 ** (-torch.arange(0, self.c, 2) / self.c)
        self.register_buffer("cos", f.cos())
        self.register_buffer("sin", f.sin())

    def norm(self, x: torch.Tensor) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)

    def spin(self, x: torch.Tensor, at: int) -> torch.Tensor:
        c, s = self.cos[at : at + x.shape[2]], self.sin[at : at + x.shape[2]]
        a, b = x[..., 0::2], x[..., 1::2]
        return torch.stack([a * c - b * s, a * s + b * c], -1).flatten(-2)

    def heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (-1, self.c)).transpose(1, 2)

    def mix(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        k, v = (t.repeat_interleave(self.h // self.g, 1) for t in (k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def gate(self, up: nn.Module, down: nn.Module, x: torch.Tensor) -> torch.Tensor:
        a, b = up(self.norm(x)).chunk(2, -1)
        return x + down(F.silu(a) * b)

    def forward(self, ids: torch.Tensor, steps: int = 5, width: int = 3) -> Any:
        with phase(ENC):
            x = self.e(ids)
            for i in range(len(self.a1)):
                y = self.a1[i](self.norm(x))
                q, k, v = y.split([self.h * self.c, self.g * self.c, self.g * self.c], -1)
                q, k = self.spin(self.heads(q), 0), self.spin(self.heads(k), 0)
                x = self.gate(self.a3[i], self.a4[i], x + self.a2[i](self.mix(q, k, self.heads(v))))
            memory = self.norm(x)
        cross = [[self.heads(t) for t in m(memory).chunk(2, -1)] for m in self.x2]
        cross = [[t.expand(width, -1, -1, -1) for t in pair] for pair in cross]
        past: list[Any] = [None] * len(self.b1)
        token = torch.ones(width, 1, dtype=torch.long, device=ids.device)
        total = torch.tensor([0.0] + [-1e4] * (width - 1), device=ids.device)
        text = token
        for s in range(steps):
            with phase(DEC):
                x = self.e(token)
                for i in range(len(self.b1)):
                    y = self.b1[i](self.norm(x))
                    q, k, v = y.split([self.h * self.c, self.g * self.c, self.g * self.c], -1)
                    q, k, v = self.spin(self.heads(q), s), self.spin(self.heads(k), s), self.heads(v)
                    if past[i] is not None:
                        k, v = torch.cat([past[i][0], k], 2), torch.cat([past[i][1], v], 2)
                    past[i] = k, v
                    x = x + self.b2[i](self.mix(q, k, v))
                    x = x + self.x3[i](self.mix(self.heads(self.x1[i](self.norm(x))), *cross[i]))
                    x = self.gate(self.b3[i], self.b4[i], x)
                p = (self.norm(x[:, -1]) @ self.e.weight.t()).log_softmax(-1)
            total, best = (total[:, None] + p).flatten().topk(width)
            from_, token = best // p.shape[1], (best % p.shape[1])[:, None]
            text = torch.cat([text[from_], token], 1)
            past = [(k[from_], v[from_]) for k, v in past]
        return text, total


@case("seq2seq.fourth_turn", "seq2seq", BOTH, source=PLAIN, beams=3)
def _() -> Any:
    return Turn(), (ids(1, 18, 500),)


class Light(nn.Module):
    """Weights of each position's convolution from the position itself; one forward on the whole target."""

    def __init__(self, n: int = 800, d: int = 64, h: int = 4, k: int = 5) -> None:
        super().__init__()
        self.e, self.f, self.h, self.k = nn.Embedding(n, d), nn.Embedding(n, d), h, k
        many = lambda a, b: nn.ModuleList(nn.Linear(a, b) for _ in range(2))  # noqa: E731
        self.i, self.j, self.p, self.q = many(d, 2 * d), many(d, h * k), many(d, d), many(d, d)
        self.r, self.s, self.t, self.u = many(d, 2 * d), many(d, h * k), many(d, d), many(d, d)
        self.x = nn.ModuleList(nn.MultiheadAttention(d, h, batch_first=True) for _ in range(2))

    def roll(self, x: torch.Tensor, weight: torch.Tensor, left: int) -> torch.Tensor:
        b, t, d = x.shape
        near = F.pad(x, (0, 0, left, self.k - 1 - left)).unfold(1, self.k, 1).view(b, t, self.h, d // self.h, self.k)
        return (near * weight.view(b, t, self.h, 1, self.k).softmax(-1)).sum(-1).view(b, t, d)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        with phase(ENC):
            x = self.e(a)
            for i, j, p, q in zip(self.i, self.j, self.p, self.q, strict=True):
                y = F.glu(i(x), -1)
                x = F.layer_norm(x + p(self.roll(y, j(y), self.k // 2)), x.shape[-1:])
                x = F.layer_norm(x + torch.relu(q(x)), x.shape[-1:])
        with phase(DEC):
            z = self.f(b)
            for r, s, t, u, m in zip(self.r, self.s, self.t, self.u, self.x, strict=True):
                y = F.glu(r(z), -1)
                z = F.layer_norm(z + t(self.roll(y, s(y), self.k - 1)), z.shape[-1:])
                z = F.layer_norm(z + m(z, x, x)[0], z.shape[-1:])
                z = F.layer_norm(z + torch.relu(u(z)), z.shape[-1:])
            return z @ self.f.weight.T


@case("seq2seq.fourth_light", "seq2seq", BOTH, source=PLAIN, forced=True)
def _() -> Any:
    return Light(), (ids(2, 16, 800), ids(2, 12, 800))


# Training steps.
@case("seq2seq.fourth_blenderbot_small_steps", "seq2seq", TRAIN, mode="train")
def _() -> Any:
    import transformers as t

    config = t.BlenderbotSmallConfig(max_position_embeddings=64, dropout=0.0, **STACKS)
    model = t.BlenderbotSmallForConditionalGeneration(config)
    return TrainStep(
        model, lambda m, x, y: m(input_ids=x, labels=y, attention_mask=(x != 0).long()).loss, adamw
    ), (ids(3, 20), ids(3, 15))  # fmt: skip


class Tutor(nn.Module):
    """GRUs with additive attention, the target's own words fed in; momentum and a limit of the norm by hand."""

    def __init__(self, n: int = 400, d: int = 40) -> None:
        super().__init__()
        self.a, self.b = nn.Embedding(n, d), nn.Embedding(n, d)
        self.c, self.d = nn.GRU(d, d, bidirectional=True, batch_first=True), nn.GRUCell(3 * d, d)
        self.i, self.j, self.k, self.l = nn.Linear(2 * d, d), nn.Linear(d, d), nn.Linear(d, 1), nn.Linear(3 * d, n)

    def loss(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        m, last = self.c(self.a(x))
        h, k, total = last.mean(0), self.i(m), 0
        for t in range(y.shape[1] - 1):
            w = self.k(torch.tanh(k + self.j(h)[:, None])).softmax(1)
            ctx = (w * m).sum(1)
            h = self.d(torch.cat([self.b(y[:, t]), ctx], 1), h)
            total = total + F.cross_entropy(self.l(torch.cat([h, ctx], 1)), y[:, t + 1])
        return total / (y.shape[1] - 1)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        params, out = list(self.parameters()), []
        with phase("train.optimizer"):
            speed = [torch.zeros_like(p) for p in params]
        for _ in range(2):
            with phase("train.forward"):
                loss = self.loss(x, y)
            with phase("train.backward"):
                grads = torch.autograd.grad(loss, params)
            with phase("train.optimizer"), torch.no_grad():
                norm = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
                scale = (1.0 / (norm + 1e-6)).clamp(max=1.0)
                for p, g, v in zip(params, grads, speed, strict=True):
                    v.mul_(0.9).add_(g * scale)
                    p.sub_(0.05 * v)
            out.append(loss.detach())
        return torch.stack(out)


@case("seq2seq.fourth_tutor_steps", "seq2seq", ("train.optimizer", "train.forward", "train.backward"), mode="train",
      source=PLAIN)  # fmt: skip
def _() -> Any:
    return Tutor(), (ids(3, 8, 400), ids(3, 6, 400))
