"""Encoder-decoders by a fifth author: uneven depths, bytes, beams, speech models' text side, copies, running states."""

import math
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
PLAIN = "plain torch, fifth author"
STACK = [(r"model\.(model\.)?encoder", ENC), (r"model\.(model\.)?decoder|model\.lm_head", DEC)]


def w(*shape: int, scale: float = 0.1) -> nn.Parameter:
    """A random weight."""
    return nn.Parameter(torch.randn(*shape) * scale)


def ragged(batch: int, length: int, vocabulary: int = V, pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Sentences of unequal lengths, padded behind, and their mask."""
    x = ids(batch, length, vocabulary)
    mask = torch.arange(length) < torch.linspace(length // 2, length, batch).long()[:, None]
    return torch.where(mask, x, pad), mask.long()


# Of transformers.
@case("seq2seq.fifth_distilled", "seq2seq", BOTH, spans=STACK, kv="dynamic", family="bart", prompt=64)
def _() -> Any:
    import transformers as t

    config = t.BartConfig(
        vocab_size=V, d_model=256, encoder_layers=6, decoder_layers=1, encoder_attention_heads=8,
        decoder_attention_heads=8, encoder_ffn_dim=512, decoder_ffn_dim=512, max_position_embeddings=128,
        scale_embedding=True,
    )  # fmt: skip
    x, mask = ragged(4, 64, pad=1)
    return Generate(t.BartForConditionalGeneration(config).eval(), 8), (x,), dict(attention_mask=mask)


@case("seq2seq.fifth_gated_halves", "seq2seq", BOTH, spans=STACK, kv="dynamic", family="t5", prompt=40)
def _() -> Any:
    import transformers as t

    config = t.T5Config(
        vocab_size=V, d_model=192, d_kv=32, d_ff=384, num_layers=4, num_decoder_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0,
        relative_attention_num_buckets=16, relative_attention_max_distance=64,
    )  # fmt: skip
    x, mask = ragged(6, 40)
    return Generate(t.T5ForConditionalGeneration(config).eval().bfloat16(), 5), (x,), dict(attention_mask=mask)


@case("seq2seq.fifth_bytes", "seq2seq", BOTH, spans=STACK, kv="dynamic", family="t5", prompt=180)
def _() -> Any:
    import transformers as t

    config = t.T5Config(
        vocab_size=384, d_model=128, d_kv=16, d_ff=320, num_layers=6, num_decoder_layers=2, num_heads=6,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False, decoder_start_token_id=0,
    )  # fmt: skip
    x = ids(2, 180, 259)
    return Generate(t.T5ForConditionalGeneration(config).eval(), 10), (x,), dict(attention_mask=torch.ones_like(x))


@case("seq2seq.fifth_four_beams", "seq2seq", BOTH, spans=STACK, kv="dynamic", family="marian", prompt=24, beams=4)
def _() -> Any:
    import transformers as t

    config = t.MarianConfig(
        vocab_size=V, d_model=128, encoder_layers=4, decoder_layers=2, encoder_attention_heads=8,
        decoder_attention_heads=8, encoder_ffn_dim=384, decoder_ffn_dim=384, max_position_embeddings=64,
        activation_function="swish", pad_token_id=V - 1, eos_token_id=0, decoder_start_token_id=V - 1,
        scale_embedding=True,
    )  # fmt: skip
    x, mask = ragged(3, 24, V - 1, pad=V - 1)
    model = t.MarianMTModel(config).eval()
    return Generate(model, 6, num_beams=4, length_penalty=0.8), (x,), dict(attention_mask=mask)


@case("seq2seq.fifth_roberta_and_gpt", "seq2seq", BOTH, kv="dynamic", family="encoder-decoder", prompt=32,
      spans=[(r"model\.encoder", ENC), (r"model\.decoder", DEC)])  # fmt: skip
def _() -> Any:
    import transformers as t

    size = dict(vocab_size=V, hidden_size=128, num_hidden_layers=3, num_attention_heads=4, intermediate_size=256)
    reader = t.RobertaModel(t.RobertaConfig(max_position_embeddings=66, **size), add_pooling_layer=False)
    writer = t.GPT2Config(vocab_size=V, n_embd=128, n_layer=3, n_head=4, n_positions=48, add_cross_attention=True)
    model = t.EncoderDecoderModel(encoder=reader, decoder=t.GPT2LMHeadModel(writer)).eval()
    model.generation_config.decoder_start_token_id = 4
    x, mask = ragged(4, 32, pad=1)
    return Generate(model, 6), (x,), dict(attention_mask=mask)


@case("seq2seq.fifth_zero_shot_labels", "seq2seq", BOTH, spans=STACK, family="bart", forced=True, classifies=True)
def _() -> Any:
    import transformers as t

    config = t.BartConfig(
        vocab_size=V, d_model=192, encoder_layers=3, decoder_layers=3, encoder_attention_heads=6,
        decoder_attention_heads=6, encoder_ffn_dim=512, decoder_ffn_dim=512, max_position_embeddings=64, num_labels=3,
    )  # fmt: skip
    # A premise with each of eight hypotheses.
    x = torch.cat([ids(1, 26).expand(8, -1), ids(8, 9), torch.full((8, 1), 2)], 1)
    return Out(t.BartForSequenceClassification(config), "logits"), (x,), dict(attention_mask=torch.ones_like(x))


class Interpret(nn.Module):
    """Greedy words of another language; the encoder runs once, a cache is handed on."""

    def __init__(self, model: nn.Module, steps: int = 5) -> None:
        super().__init__()
        self.model, self.steps = model, steps

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        memory = self.model.text_encoder(x, attention_mask=mask)
        token, past, out = torch.full_like(x[:, :1], 3), None, []
        for _ in range(self.steps):
            r = self.model(
                encoder_outputs=memory, attention_mask=mask, decoder_input_ids=token, past_key_values=past,
                use_cache=True,
            )  # fmt: skip
            past = r.past_key_values
            out.append(r.logits[:, -1])
            token = out[-1].argmax(-1, keepdim=True)
        return torch.stack(out, 1)


@case("seq2seq.fifth_seamless_text", "seq2seq", BOTH, kv="dynamic", family="seamless_m4t_v2", prompt=28,
      spans=[(r"model\.text_encoder", ENC), (r"model\.text_decoder|model\.lm_head", DEC)])  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.SeamlessM4Tv2Config(
        vocab_size=V, hidden_size=128, encoder_layers=3, encoder_ffn_dim=320, encoder_attention_heads=4,
        decoder_layers=2, decoder_ffn_dim=320, decoder_attention_heads=4, max_position_embeddings=64,
        speech_encoder_layers=1, speech_encoder_attention_heads=4, speech_encoder_intermediate_size=64,
        t2u_encoder_layers=1, t2u_decoder_layers=1,
    )  # fmt: skip
    return Interpret(t.SeamlessM4Tv2ForTextToText(config).eval()), ragged(3, 28)


@case("seq2seq.fifth_train_adafactor", "seq2seq", TRAIN, mode="train", family="t5", optimizer="adafactor")
def _() -> Any:
    import transformers as t
    from transformers.optimization import Adafactor

    config = t.T5Config(
        vocab_size=2000, d_model=128, d_kv=32, d_ff=256, num_layers=2, num_decoder_layers=2, num_heads=4,
        feed_forward_proj="gated-gelu", decoder_start_token_id=0,
    )  # fmt: skip
    factored = lambda p: Adafactor(p, lr=1e-3, scale_parameter=False, relative_step=False)  # noqa: E731

    def loss(m: nn.Module, x: torch.Tensor, mask: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return m(input_ids=x, attention_mask=mask, labels=y).loss

    y = ids(4, 12, 2000)
    y[1, 8:] = -100
    return TrainStep(t.T5ForConditionalGeneration(config), loss, factored, steps=1), (*ragged(4, 20, 2000), y)


# Plain ones.
class SlotBlock(nn.Module):
    """One decoder block that writes its key and value into slot `at`."""

    def __init__(self, width: int, heads: int, wide: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_self, self.norm_cross, self.norm_ffn = (nn.LayerNorm(width) for _ in range(3))
        self.qkv, self.self_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.query, self.keys_values, self.cross_out = (nn.Linear(width, n * width) for n in (1, 2, 1))
        self.ffn = nn.Sequential(nn.Linear(width, wide), nn.GELU(), nn.Linear(wide, width))

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def remember(self, memory: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(self.split(x) for x in self.keys_values(memory).chunk(2, -1))

    def forward(self, x: torch.Tensor, slots: torch.Tensor, cross: Any, at: int, masks: Any) -> torch.Tensor:
        q, k, v = (self.split(y) for y in self.qkv(self.norm_self(x)).chunk(3, -1))
        slots[0, :, :, at], slots[1, :, :, at] = k[:, :, 0], v[:, :, 0]
        y = F.scaled_dot_product_attention(q, slots[0], slots[1], attn_mask=masks[0])
        x = x + self.self_out(y.transpose(1, 2).flatten(2))
        y = F.scaled_dot_product_attention(self.split(self.query(self.norm_cross(x))), *cross, attn_mask=masks[1])
        x = x + self.cross_out(y.transpose(1, 2).flatten(2))
        return x + self.ffn(self.norm_ffn(x))


class Slots(nn.Module):
    """A transformer whose decoder keeps keys and values in slots made beforehand; empty ones are masked."""

    def __init__(self, vocabulary: int = 1500, width: int = 128, heads: int = 4, room: int = 16) -> None:
        super().__init__()
        self.embed, self.position, self.room = nn.Embedding(vocabulary, width), nn.Embedding(64, width), room
        layer = nn.TransformerEncoderLayer(width, heads, 384, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 3, nn.LayerNorm(width), enable_nested_tensor=False)
        self.decoder = nn.ModuleList(SlotBlock(width, heads, 384) for _ in range(2))
        self.norm, self.heads = nn.LayerNorm(width), heads

    def forward(self, source: torch.Tensor, steps: int = 8) -> torch.Tensor:
        empty = source == 0
        with phase(ENC):
            memory = self.embed(source) + self.position.weight[: source.shape[1]]
            memory = self.encoder(memory, src_key_padding_mask=empty)
        b, _, d = memory.shape
        with phase(DEC):
            crosses = [block.remember(memory) for block in self.decoder]
        slots = [memory.new_zeros(2, b, self.heads, self.room, d // self.heads) for _ in self.decoder]
        token, out = torch.ones_like(source[:, :1]), []
        for at in range(steps):
            with phase(DEC):
                x = self.embed(token) + self.position.weight[at]
                filled = (torch.arange(self.room, device=source.device) <= at)[None, None, None]
                for block, slot, cross in zip(self.decoder, slots, crosses, strict=True):
                    x = block(x, slot, cross, at, (filled, ~empty[:, None, None]))
                scores = F.linear(self.norm(x[:, 0]), self.embed.weight)
            token = scores.argmax(-1, keepdim=True)
            out.append(scores)
        return torch.stack(out, 1)


@case("seq2seq.fifth_static_slots", "seq2seq", BOTH, kv="static", source=PLAIN)
def _() -> Any:
    return Slots(), (ragged(8, 30, 1500)[0],)


class Fader(nn.Module):
    """LSTMs that may copy: what was looked at before counts in the scores, words come from a table or the source."""

    def __init__(self, n: int = 1200, d: int = 64) -> None:
        super().__init__()
        self.a, self.b = nn.Embedding(n, d), nn.LSTM(d, d, batch_first=True, bidirectional=True)
        self.c, self.d = nn.Linear(2 * d, d), nn.Linear(2 * d, d)
        self.e, self.f = nn.LSTMCell(3 * d, d), nn.Linear(2 * d, 2 * d, bias=False)
        self.g, self.h, self.i = nn.Linear(2 * d, 2 * d), nn.Linear(1, 2 * d, bias=False), nn.Linear(2 * d, 1)
        self.j, self.k, self.l = nn.Linear(6 * d, 1), nn.Linear(4 * d, d), nn.Linear(d, n)

    def forward(self, x: torch.Tensor, steps: int = 7) -> torch.Tensor:
        hide = x == 0
        with phase(ENC):
            m, (h, c) = self.b(self.a(x))
            h, c = torch.relu(self.c(torch.cat([h[0], h[1]], 1))), torch.relu(self.d(torch.cat([c[0], c[1]], 1)))
        with phase(DEC):
            k = self.f(m)
        seen, u = torch.zeros_like(m[..., 0]), torch.zeros_like(m[:, 0])
        token, out = torch.ones_like(x[:, 0]), []
        for _ in range(steps):
            with phase(DEC):
                y = torch.cat([self.a(token), u], 1)
                h, c = self.e(y, (h, c))
                s = torch.cat([h, c], 1)
                a = self.i(torch.tanh(k + self.g(s)[:, None] + self.h(seen[..., None]))).squeeze(2)
                a = a.masked_fill(hide, float("-inf")).softmax(1)
                u = torch.einsum("bt,btd->bd", a, m)
                seen = seen + a
                own = torch.sigmoid(self.j(torch.cat([u, s, self.g(s)], 1)))
                p = self.l(self.k(torch.cat([s, u], 1))).softmax(1) * own
                p = p.scatter_add(1, x, a * (1 - own))
            token = p.argmax(1)
            out.append(p)
        return torch.stack(out, 1)


@case("seq2seq.fifth_copies_with_coverage", "seq2seq", BOTH, source=PLAIN)
def _() -> Any:
    return Fader(), (ragged(6, 36, 1200)[0],)


class Mean(nn.Module):
    """Deep encoder; the decoder has running means in place of self-attention, gated (AAN), and looks at the source."""

    def __init__(self, n: int = 2000, d: int = 96, up: int = 4, down: int = 2, h: int = 6) -> None:
        super().__init__()
        self.m0, self.m1, self.h = nn.Embedding(n, d), w(96, d, scale=0.05), h
        lay = lambda a, b: nn.ModuleList(nn.Linear(d, b * d) for _ in range(a))  # noqa: E731
        self.m2, self.m3, self.m4 = lay(up, 3), lay(up, 1), lay(up, 4)
        self.m5 = nn.ModuleList(nn.Linear(4 * d, d) for _ in range(up + down))
        self.m6 = nn.ModuleList(nn.LayerNorm(d) for _ in range(2 * up + 3 * down))
        self.m7, self.m8 = lay(down, 1), nn.ModuleList(nn.Linear(2 * d, 2 * d) for _ in range(down))
        self.m9, self.ma, self.mb, self.mc = lay(down, 1), lay(down, 2), lay(down, 1), lay(down, 4)

    def cut(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(*x.shape[:2], self.h, -1).permute(0, 2, 1, 3)

    def mix(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        s = torch.matmul(q, k.transpose(-1, -2)).mul(q.shape[-1] ** -0.5).softmax(-1)
        return torch.matmul(s, v).transpose(1, 2).flatten(2)

    def forward(self, x: torch.Tensor, steps: int = 6) -> torch.Tensor:
        up, down, d = len(self.m2), len(self.m7), self.m0.embedding_dim
        with phase(ENC):
            x = self.m0(x) * d**0.5 + self.m1[: x.shape[1]]
            for i in range(up):
                q, k, v = self.m2[i](x).chunk(3, 2)
                x = self.m6[2 * i](x + self.m3[i](self.mix(self.cut(q), self.cut(k), self.cut(v))))
                x = self.m6[2 * i + 1](x + self.m5[i](F.relu(self.m4[i](x))))
        with phase(DEC):
            far = [[self.cut(z) for z in m(x).chunk(2, 2)] for m in self.ma]
        total = [torch.zeros_like(x[:, :1]) for _ in range(down)]
        y, out = torch.ones(x.shape[0], 1, dtype=torch.long, device=x.device), []
        for t in range(steps):
            with phase(DEC):
                z = self.m0(y) * d**0.5 + self.m1[t]
                for i in range(down):
                    at = 2 * up + 3 * i
                    total[i] = total[i] + z
                    a = self.m7[i](F.relu(total[i] / (t + 1)))
                    g = torch.sigmoid(self.m8[i](torch.cat([z, a], 2)))
                    z = self.m6[at](z + g[..., :d] * z + g[..., d:] * a)
                    z = self.m6[at + 1](z + self.mb[i](self.mix(self.cut(self.m9[i](z)), *far[i])))
                    z = self.m6[at + 2](z + self.m5[up + i](F.relu(self.mc[i](z))))
                s = z[:, 0] @ self.m0.weight.t()
            y = s.argmax(1, keepdim=True)
            out.append(s)
        return torch.stack(out, 1)


@case("seq2seq.fifth_running_means", "seq2seq", BOTH, source=PLAIN)
def _() -> Any:
    return Mean(), (ids(4, 33, 2000),)


class Bucket(nn.Module):
    """Biases by buckets of distances, root-mean-square norms, gated feed-forward; caches by torch.cat."""

    def __init__(self, n: int = 1800, d: int = 96, h: int = 4, k: int = 2, wide: int = 256, b: int = 16) -> None:
        super().__init__()
        self.p, self.h, self.k, self.b = nn.Embedding(n, d), h, k, b
        self.q, self.r = w(2, b, h, scale=0.5), nn.Parameter(torch.ones(5 * k + 2, d))
        self.s, self.t = w(2, k, 4, d, d, scale=d**-0.5), w(k, 4, d, d, scale=d**-0.5)
        self.u, self.v = w(2, k, d, 2 * wide, scale=d**-0.5), w(2, k, wide, d, scale=wide**-0.5)
        self.z = nn.Linear(d, n, bias=False)

    def near(self, q: int, k: int, side: int, at: int, like: torch.Tensor) -> torch.Tensor:
        far = torch.arange(k, device=like.device)[None] - torch.arange(at, at + q, device=like.device)[:, None]
        n, off = self.b, torch.zeros_like(far)
        if side == 0:
            n //= 2
            off, far = (far > 0).long() * n, far.abs()
        else:
            far = (-far).clamp(min=0)
        big = n // 2 + (torch.log(far.float().clamp(min=1) / (n // 2)) / math.log(64 / (n // 2)) * (n - n // 2)).long()
        at_bucket = off + torch.where(far < n // 2, far, big.clamp(max=n - 1))
        return self.q[side][at_bucket].permute(2, 0, 1)[None]

    def norm(self, x: torch.Tensor, i: int) -> torch.Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6) * self.r[i]

    def cut(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(2, (self.h, -1)).transpose(1, 2)

    def look(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return ((q @ k.mT + bias).softmax(-1) @ v).transpose(1, 2).flatten(2)

    def gate(self, x: torch.Tensor, side: int, i: int) -> torch.Tensor:
        a, b = (x @ self.u[side, i]).chunk(2, -1)
        return (F.gelu(a, approximate="tanh") * b) @ self.v[side, i]

    def forward(self, x: torch.Tensor, mask: torch.Tensor, steps: int = 6) -> torch.Tensor:
        k = self.k
        hide = (1.0 - mask[:, None, None].float()) * -1e9
        with phase(ENC):
            x = self.p(x)
            bias = self.near(x.shape[1], x.shape[1], 0, 0, x) + hide
            for i in range(k):
                y, m = self.norm(x, 2 * i), self.s[0, i]
                x = x + self.look(self.cut(y @ m[0]), self.cut(y @ m[1]), self.cut(y @ m[2]), bias) @ m[3]
                x = x + self.gate(self.norm(x, 2 * i + 1), 0, i)
            x = self.norm(x, 5 * k)
        past: list[Any] = [None] * k
        far: list[Any] = [None] * k
        token, out = torch.zeros(x.shape[0], 1, dtype=torch.long, device=x.device), []
        for t in range(steps):
            with phase(DEC):
                y = self.p(token)
                bias = self.near(1, t + 1, 1, t, y)
                for i in range(k):
                    z, m = self.norm(y, 2 * k + 3 * i), self.s[1, i]
                    a, b = self.cut(z @ m[1]), self.cut(z @ m[2])
                    past[i] = (a, b) if t == 0 else (torch.cat([past[i][0], a], 2), torch.cat([past[i][1], b], 2))
                    y = y + self.look(self.cut(z @ m[0]), *past[i], bias) @ m[3]
                    z, m = self.norm(y, 2 * k + 3 * i + 1), self.t[i]
                    if far[i] is None:
                        far[i] = self.cut(x @ m[1]), self.cut(x @ m[2])
                    y = y + self.look(self.cut(z @ m[0]), *far[i], hide) @ m[3]
                    y = y + self.gate(self.norm(y, 2 * k + 3 * i + 2), 1, i)
                s = self.z(self.norm(y[:, 0], 5 * k + 1))
            token = s.argmax(1, keepdim=True)
            out.append(s)
        return torch.stack(out, 1)


@case("seq2seq.fifth_buckets_by_hand", "seq2seq", BOTH, kv="cat", source=PLAIN)
def _() -> Any:
    return Bucket(), ragged(5, 34, 1800)


class Sums(nn.Module):
    """No softmax: features of queries and keys, sums over keys; the decoder's sums grow with each word."""

    def __init__(self, n: int = 1600, d: int = 80, h: int = 5, k: int = 2) -> None:
        super().__init__()
        self.x0, self.x1, self.h, self.k = nn.Embedding(n, d), nn.Embedding(80, d), h, k
        lin = lambda a, b: nn.ModuleList(nn.Linear(a, b) for _ in range(k))  # noqa: E731
        self.x2, self.x3, self.x4, self.x5 = lin(d, 3 * d), lin(d, d), lin(d, 3 * d), lin(d, d)
        self.x6, self.x7, self.x8 = lin(d, d), lin(d, 2 * d), lin(d, d)
        self.x9, self.xa, self.xb, self.xc = lin(d, 3 * d), lin(3 * d, d), lin(d, 3 * d), lin(3 * d, d)
        self.xd = nn.ModuleList(nn.LayerNorm(d) for _ in range(5 * k + 1))

    def cut(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(2, (self.h, -1)).transpose(1, 2)

    def read(self, q: torch.Tensor, s: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        q = F.elu(self.cut(q)) + 1
        y = (q @ s) / ((q * z[:, :, None]).sum(-1, keepdim=True) + 1e-6)
        return y.transpose(1, 2).flatten(2)

    def store(self, k: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        k, v = F.elu(self.cut(k)) + 1, self.cut(v)
        return torch.einsum("bhtd,bhte->bhde", k, v), k.sum(2)

    def forward(self, x: torch.Tensor, steps: int = 7) -> torch.Tensor:
        n = iter(self.xd)
        with phase(ENC):
            x = self.x0(x) + self.x1.weight[: x.shape[1]]
            for i in range(self.k):
                q, k, v = self.x2[i](next(n)(x)).chunk(3, 2)
                x = x + self.x3[i](self.read(q, *self.store(k, v)))
                x = x + self.xa[i](F.silu(self.x9[i](next(n)(x))))
        with phase(DEC):
            far = [self.store(*m(x).chunk(2, 2)) for m in self.x7]
        past: list[Any] = [None] * self.k
        token, out, rest = torch.ones(x.shape[0], 1, dtype=torch.long, device=x.device), [], list(n)
        for t in range(steps):
            with phase(DEC):
                y = self.x0(token) + self.x1.weight[t]
                for i in range(self.k):
                    q, k, v = self.x4[i](rest[3 * i](y)).chunk(3, 2)
                    s, z = self.store(k, v)
                    past[i] = (s, z) if past[i] is None else (past[i][0] + s, past[i][1] + z)
                    y = y + self.x5[i](self.read(q, *past[i]))
                    y = y + self.x8[i](self.read(self.x6[i](rest[3 * i + 1](y)), *far[i]))
                    y = y + self.xc[i](F.silu(self.xb[i](rest[3 * i + 2](y))))
                s = rest[-1](y[:, 0]) @ self.x0.weight.T
            token = s.argmax(1, keepdim=True)
            out.append(s)
        return torch.stack(out, 1)


@case("seq2seq.fifth_running_sums", "seq2seq", BOTH, source=PLAIN)
def _() -> Any:
    return Sums(), (ids(6, 40, 1600),)


class Forecast(nn.Module):
    """Days of a load curve through GRUs; the hours ahead one by one, each looking back over the days."""

    def __init__(self, features: int = 6, width: int = 64) -> None:
        super().__init__()
        self.embed_series = nn.Embedding(40, 8)
        self.encoder = nn.GRU(features + 8, width, 2, batch_first=True)
        self.cell = nn.GRUCell(1 + width + features - 1, width)
        self.attention, self.mean, self.spread = nn.Linear(width, width, False), nn.Linear(2 * width, 1), nn.Linear(
            2 * width, 1
        )  # fmt: skip

    def forward(self, past: torch.Tensor, future: torch.Tensor, series: torch.Tensor) -> torch.Tensor:
        with phase(ENC):
            who = self.embed_series(series)[:, None].expand(-1, past.shape[1], -1)
            memory, state = self.encoder(torch.cat([past, who], 2))
            state = state[-1]
        last, context, out = past[:, -1, :1], torch.zeros_like(state), []
        for known in future.unbind(1):
            with phase(DEC):
                state = self.cell(torch.cat([last, context, known], 1), state)
                weights = torch.bmm(memory, self.attention(state)[:, :, None]).softmax(1)
                context = (weights * memory).sum(1)
                both = torch.cat([state, context], 1)
                last, spread = self.mean(both), F.softplus(self.spread(both))
            out.append(torch.cat([last, spread], 1))
        return torch.stack(out, 1)


@case("seq2seq.fifth_hours_ahead", "seq2seq", BOTH, series=True, source=PLAIN)
def _() -> Any:
    return Forecast(), (torch.randn(32, 96, 6), torch.randn(32, 12, 5), torch.randint(40, (32,)))


class Spelling(nn.Module):
    """Letters through gated convolutions, sounds by a GRU whose states all look at the letters."""

    def __init__(self, letters: int = 60, sounds: int = 80, width: int = 64) -> None:
        super().__init__()
        self.letters, self.sounds = nn.Embedding(letters, width, padding_idx=0), nn.Embedding(sounds, width)
        self.convs = nn.ModuleList(nn.Conv1d(width, 2 * width, 5, padding=2) for _ in range(3))
        self.rnn = nn.GRU(width, width, batch_first=True)
        self.look = nn.MultiheadAttention(width, 4, batch_first=True)
        self.out = nn.Linear(2 * width, sounds)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        m = self.letters(x).transpose(1, 2)
        for conv in self.convs:
            m = (m + F.glu(conv(m), 1)) * 0.5**0.5
        m = m.transpose(1, 2)
        h = self.rnn(self.sounds(y), m.mean(1)[None].contiguous())[0]
        return self.out(torch.cat([h, self.look(h, m, m, key_padding_mask=x == 0, need_weights=False)[0]], 2))


@case("seq2seq.fifth_train_letters_to_sounds", "seq2seq", TRAIN, mode="train", source=PLAIN, optimizer="nadam")
def _() -> Any:
    def loss(m: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        s = m(x, y[:, :-1])
        return F.cross_entropy(s.flatten(0, 1), y[:, 1:].flatten(), ignore_index=0, label_smoothing=0.1)

    nadam = lambda p: torch.optim.NAdam(p, 2e-3, weight_decay=1e-4)  # noqa: E731
    return TrainStep(Spelling(), loss, nadam), (ragged(16, 14, 60)[0], ragged(16, 12, 80)[0])
