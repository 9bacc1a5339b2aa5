"""Encoder-decoders by a seventh author: what is run most, at inference, with batches, beams and caches."""

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

case = split("blind")
ENC, DEC = "seq2seq.encode", "seq2seq.decode"
BOTH = (ENC, DEC)
PLAIN = "plain torch, seventh author"
SPANS = [(r"model\.(model\.)?encoder", ENC), (r"model\.(model\.)?decoder|model\.lm_head", DEC)]


def stacks(d: int, enc: int, dec: int, heads: int, wide: int, **more: Any) -> dict[str, Any]:
    """Sizes of a model of the BART kind."""
    return dict(
        vocab_size=V, d_model=d, encoder_layers=enc, decoder_layers=dec, encoder_attention_heads=heads,
        decoder_attention_heads=heads, encoder_ffn_dim=wide, decoder_ffn_dim=wide, **more,
    )  # fmt: skip


def padded(batch: int, length: int, vocabulary: int = V, pad: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Sentences of different lengths, filled up behind, and their mask."""
    x = ids(batch, length, vocabulary)
    size = torch.randint(length // 2, length + 1, (batch, 1))
    size[0] = length
    mask = (torch.arange(length) < size).long()
    return x * mask + pad * (1 - mask), mask


# Of transformers.
@case("seq2seq.seventh_t5_small", "seq2seq", BOTH, spans=SPANS, kv="dynamic", prompt=64)
def _() -> Any:
    import transformers as t

    config = t.T5Config(
        vocab_size=8000, d_model=512, d_kv=64, d_ff=2048, num_layers=6, num_heads=8, decoder_start_token_id=0
    )
    x, mask = padded(4, 64, 8000)
    return Generate(t.T5ForConditionalGeneration(config).eval(), 6), (x,), dict(attention_mask=mask)


@case("seq2seq.seventh_bart_summary", "seq2seq", BOTH, spans=SPANS, kv="dynamic", prompt=96, beams=4)
def _() -> Any:
    import transformers as t

    config = t.BartConfig(max_position_embeddings=128, **stacks(384, 6, 6, 12, 1536))
    x, mask = padded(2, 96, pad=1)
    model = t.BartForConditionalGeneration(config).eval()
    return Generate(model, 4, num_beams=4, no_repeat_ngram_size=3), (x,), dict(attention_mask=mask)


@case("seq2seq.seventh_opus", "seq2seq", BOTH, spans=SPANS, kv="dynamic", prompt=28)
def _() -> Any:
    import transformers as t

    config = t.MarianConfig(
        pad_token_id=0, decoder_start_token_id=0, scale_embedding=True, activation_function="swish",
        static_position_embeddings=True, max_position_embeddings=128, **stacks(256, 6, 6, 8, 1024),
    )  # fmt: skip
    x, mask = padded(16, 28)
    return Generate(t.MarianMTModel(config).eval(), 6), (x,), dict(attention_mask=mask)


@case("seq2seq.seventh_fifty_languages", "seq2seq", BOTH, spans=SPANS, kv="dynamic", prompt=33, attn="eager")
def _() -> Any:
    import transformers as t

    config = t.MBartConfig(scale_embedding=True, max_position_embeddings=96, **stacks(256, 4, 4, 8, 1024))
    model = t.MBartForConditionalGeneration(config).eval()
    model.set_attn_implementation("eager")
    x, mask = padded(6, 33, pad=1)
    given = dict(attention_mask=mask, decoder_input_ids=torch.tensor([[2, 3990]]).repeat(6, 1))
    return Generate(model, 5), (x,), given


@case("seq2seq.seventh_answers_rated", "seq2seq", BOTH, spans=SPANS, forced=True)
def _() -> Any:
    import transformers as t

    config = t.T5Config(
        vocab_size=V, d_model=256, d_kv=32, d_ff=512, num_layers=4, num_heads=8, decoder_start_token_id=0,
        feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip
    x, mask = padded(8, 72)
    y = ids(8, 10)
    given = dict(input_ids=x, attention_mask=mask, decoder_input_ids=y, use_cache=False)
    return Out(t.T5ForConditionalGeneration(config), "logits"), (), given


@case("seq2seq.seventh_code_told", "seq2seq", BOTH, spans=SPANS, kv="dynamic", prompt=80)
def _() -> Any:
    import transformers as t

    config = t.PLBartConfig(max_position_embeddings=128, **stacks(192, 4, 4, 6, 768))
    model = t.PLBartForConditionalGeneration(config).eval()
    model.generation_config.decoder_start_token_id = 2
    x, mask = padded(4, 80, pad=1)
    return Generate(model, 6), (x,), dict(attention_mask=mask)


@case("seq2seq.seventh_long_local", "seq2seq", BOTH, spans=SPANS, kv="dynamic", prompt=256)
def _() -> Any:
    import transformers as t

    config = t.LongT5Config(
        vocab_size=V, d_model=192, d_kv=32, d_ff=512, num_layers=4, num_heads=6, local_radius=31,
        encoder_attention_type="local", feed_forward_proj="gated-gelu", decoder_start_token_id=0,
    )  # fmt: skip
    x, mask = padded(2, 256)
    return Generate(t.LongT5ForConditionalGeneration(config).eval(), 5), (x,), dict(attention_mask=mask)


@case("seq2seq.seventh_opus_steps", "seq2seq", TRAIN, mode="train")
def _() -> Any:
    import transformers as t

    config = t.MarianConfig(
        pad_token_id=0, decoder_start_token_id=0, dropout=0.0, scale_embedding=True, max_position_embeddings=64,
        **stacks(128, 3, 3, 4, 512),
    )  # fmt: skip

    def loss(m: nn.Module, x: torch.Tensor, mask: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        start = torch.cat([torch.zeros_like(y[:, :1]), y[:, :-1]], 1)
        logits = m(input_ids=x, attention_mask=mask, decoder_input_ids=start, use_cache=False).logits
        return F.cross_entropy(logits.flatten(0, 1), y.flatten(), ignore_index=0, label_smoothing=0.1)

    nadam = lambda p: torch.optim.NAdam(p, 1e-3)  # noqa: E731
    return TrainStep(t.MarianMTModel(config), loss, nadam, steps=1), (*padded(8, 20), padded(8, 18)[0])


# Plain ones.
class Attention(nn.Module):
    """Attention of the annotated transformer."""

    def __init__(self, d: int, heads: int) -> None:
        super().__init__()
        self.heads, self.width = heads, d // heads
        self.query, self.key, self.value, self.output = (nn.Linear(d, d) for _ in range(4))

    def forward(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        b = q.shape[0]
        q = self.query(q).view(b, -1, self.heads, self.width).transpose(1, 2)
        k = self.key(k).view(b, -1, self.heads, self.width).transpose(1, 2)
        v = self.value(v).view(b, -1, self.heads, self.width).transpose(1, 2)
        scores = torch.matmul(q, k.transpose(-2, -1)) / math.sqrt(self.width)
        weights = F.softmax(scores.masked_fill(mask.unsqueeze(1) == 0, -1e9), -1)
        return self.output(torch.matmul(weights, v).transpose(1, 2).contiguous().view(b, -1, self.heads * self.width))


class AnnotatedLayer(nn.Module):
    def __init__(self, d: int, heads: int, wide: int, cross: bool) -> None:
        super().__init__()
        self.self_attn = Attention(d, heads)
        self.src_attn = Attention(d, heads) if cross else None
        self.feed_forward = nn.Sequential(nn.Linear(d, wide), nn.ReLU(), nn.Dropout(0.1), nn.Linear(wide, d))
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(3 if cross else 2))

    def forward(self, x: torch.Tensor, mask: torch.Tensor, memory: Any = None, seen: Any = None) -> torch.Tensor:
        y = self.norms[0](x)
        x = x + self.self_attn(y, y, y, mask)
        if self.src_attn is not None:
            x = x + self.src_attn(self.norms[1](x), memory, memory, seen)
        return x + self.feed_forward(self.norms[-1](x))


class Annotated(nn.Module):
    """The annotated transformer: sine positions, masks filled in, greedy decoding of the whole prefix each time."""

    def __init__(self, d: int = 192, heads: int = 6, layers: int = 4) -> None:
        super().__init__()
        self.d = d
        self.src_embed, self.tgt_embed = nn.Embedding(V, d), nn.Embedding(V, d)
        place = torch.arange(128)[:, None] * torch.exp(torch.arange(0, d, 2) * -(math.log(10000.0) / d))
        self.register_buffer("pe", torch.stack([place.sin(), place.cos()], -1).flatten(1))
        self.encoder = nn.ModuleList(AnnotatedLayer(d, heads, 4 * d, False) for _ in range(layers))
        self.decoder = nn.ModuleList(AnnotatedLayer(d, heads, 4 * d, True) for _ in range(layers))
        self.encoder_norm, self.decoder_norm = nn.LayerNorm(d), nn.LayerNorm(d)
        self.generator = nn.Linear(d, V)

    def forward(self, src: torch.Tensor, steps: int = 6) -> Any:
        src_mask = (src != 0).unsqueeze(-2)
        with phase(ENC):
            x = self.src_embed(src) * math.sqrt(self.d) + self.pe[: src.shape[1]]
            for layer in self.encoder:
                x = layer(x, src_mask)
            memory = self.encoder_norm(x)
        ys = torch.ones(src.shape[0], 1, dtype=torch.long, device=src.device)
        for _ in range(steps):
            with phase(DEC):
                tgt_mask = torch.ones(1, ys.shape[1], ys.shape[1], device=src.device).tril().bool()
                y = self.tgt_embed(ys) * math.sqrt(self.d) + self.pe[: ys.shape[1]]
                for layer in self.decoder:
                    y = layer(y, tgt_mask, memory, src_mask)
                prob = F.log_softmax(self.generator(self.decoder_norm(y)[:, -1]), -1)
            ys = torch.cat([ys, prob.argmax(-1, keepdim=True)], 1)
        return ys, prob


@case("seq2seq.seventh_annotated", "seq2seq", BOTH, source=PLAIN)
def _() -> Any:
    return Annotated(), (padded(8, 24)[0],)


class CachedBlock(nn.Module):
    """A block before whose parts stands a norm; keys and values of both attentions are kept."""

    def __init__(self, d: int, heads: int, cross: bool) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv, self.proj = nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.Linear(d, d)
        if cross:
            self.norm_cross, self.q = nn.LayerNorm(d), nn.Linear(d, d)
            self.kv, self.proj_cross = nn.Linear(d, 2 * d), nn.Linear(d, d)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(d), nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def split(self, x: torch.Tensor, n: int) -> tuple[torch.Tensor, ...]:
        b, t, _ = x.shape
        return x.view(b, t, n, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)

    def forward(self, x: torch.Tensor, mask: torch.Tensor, memory: Any = None, cache: Any = None) -> torch.Tensor:
        q, k, v = self.split(self.qkv(self.norm1(x)), 3)
        if cache is not None:
            if "k" in cache:
                k, v = torch.cat([cache["k"], k], 2), torch.cat([cache["v"], v], 2)
            cache["k"], cache["v"] = k, v
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask if cache is None else None)
        x = x + self.proj(y.transpose(1, 2).flatten(2))
        if cache is not None:
            if "ck" not in cache:
                cache["ck"], cache["cv"] = self.split(self.kv(memory), 2)
            (q,) = self.split(self.q(self.norm_cross(x)), 1)
            y = F.scaled_dot_product_attention(q, cache["ck"], cache["cv"], attn_mask=mask)
            x = x + self.proj_cross(y.transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class CachedTranslator(nn.Module):
    """Translation as it is served: padding masked, caches grow, sentences that ended stay ended."""

    def __init__(self, d: int = 256, heads: int = 8, enc: int = 4, dec: int = 4) -> None:
        super().__init__()
        self.embed, self.pos = nn.Embedding(V, d, padding_idx=0), nn.Embedding(128, d)
        self.encoder = nn.ModuleList(CachedBlock(d, heads, False) for _ in range(enc))
        self.decoder = nn.ModuleList(CachedBlock(d, heads, True) for _ in range(dec))
        self.enc_norm, self.dec_norm = nn.LayerNorm(d), nn.LayerNorm(d)

    def forward(self, src: torch.Tensor, steps: int = 8) -> Any:
        mask = (src != 0)[:, None, None]
        with phase(ENC):
            x = self.embed(src) + self.pos(torch.arange(src.shape[1], device=src.device))
            for block in self.encoder:
                x = block(x, mask)
            memory = self.enc_norm(x)
        token = torch.ones(src.shape[0], 1, dtype=torch.long, device=src.device)
        ended = torch.zeros_like(token, dtype=torch.bool)
        caches: list[dict[str, torch.Tensor]] = [{} for _ in self.decoder]
        tokens, scores = [], []
        for step in range(steps):
            with phase(DEC):
                y = self.embed(token) + self.pos.weight[step]
                for block, cache in zip(self.decoder, caches, strict=True):
                    y = block(y, mask, memory, cache)
                logits = self.dec_norm(y) @ self.embed.weight.t()
            token = logits.argmax(-1).masked_fill(ended, 0)
            ended = ended | (token == 2)
            tokens.append(token)
            scores.append(logits)
        return torch.cat(tokens, 1), torch.cat(scores, 1)


@case("seq2seq.seventh_served_translator", "seq2seq", BOTH, source=PLAIN, kv="legacy")
def _() -> Any:
    return CachedTranslator(), (padded(12, 32)[0],)


class BeamTranslator(nn.Module):
    """Stock stacks, sequence first, and a search with beams that keeps the best of all continuations."""

    def __init__(self, d: int = 160, heads: int = 5) -> None:
        super().__init__()
        self.embed, self.positions = nn.Embedding(V, d), nn.Parameter(torch.randn(64, 1, d) * 0.02)
        side = dict(dim_feedforward=4 * d, dropout=0.0, activation="gelu")
        self.encoder = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(d, heads, **side), 3, nn.LayerNorm(d), enable_nested_tensor=False
        )
        self.decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(d, heads, **side), 3, nn.LayerNorm(d))
        self.output = nn.Linear(d, V)

    def forward(self, src: torch.Tensor, pad: torch.Tensor, beams: int = 4, steps: int = 5) -> Any:
        batch = src.shape[1]
        with phase(ENC):
            memory = self.encoder(self.embed(src) + self.positions[: len(src)], src_key_padding_mask=pad)
        memory, pad = memory.repeat_interleave(beams, 1), pad.repeat_interleave(beams, 0)
        out = torch.ones(1, batch * beams, dtype=torch.long, device=src.device)
        scores = torch.full((batch, beams), -1e9, device=src.device)
        scores[:, 0] = 0
        base = torch.arange(batch, device=src.device)[:, None] * beams
        for _ in range(steps):
            with phase(DEC):
                mask = nn.Transformer.generate_square_subsequent_mask(len(out), device=src.device)
                hidden = self.decoder(
                    self.embed(out) + self.positions[: len(out)], memory, tgt_mask=mask,
                    memory_key_padding_mask=torch.zeros_like(pad, dtype=mask.dtype).masked_fill(pad, float("-inf")),
                )  # fmt: skip
                logp = self.output(hidden[-1]).log_softmax(-1)
            total = scores[:, :, None] + logp.view(batch, beams, -1)
            scores, best = total.flatten(1).topk(beams, 1)
            rows = (base + best // logp.shape[1]).flatten()
            out = torch.cat([out[:, rows], (best % logp.shape[1]).view(1, -1)])
        return out, scores


@case("seq2seq.seventh_stock_beams", "seq2seq", BOTH, source=PLAIN, beams=4)
def _() -> Any:
    x, mask = padded(3, 22)
    return BeamTranslator(), (x.t().contiguous(), mask == 0)


class Na(nn.Module):
    """Packed sentences through an LSTM of both directions; the whole target through another, that looks back once."""

    def __init__(self, n: int = 3000, d: int = 128) -> None:
        super().__init__()
        self.a, self.b = nn.Embedding(n, d, padding_idx=0), nn.Embedding(n, d, padding_idx=0)
        self.c = nn.LSTM(d, d, 2, batch_first=True, bidirectional=True)
        self.d, self.e = nn.LSTM(d, 2 * d, batch_first=True), nn.Linear(4 * d, d)
        self.f, self.g = nn.Linear(d, n), nn.Linear(2 * d, 2 * d, bias=False)

    def forward(self, x: torch.Tensor, size: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with phase(ENC):
            p = nn.utils.rnn.pack_padded_sequence(self.a(x), size.cpu(), batch_first=True, enforce_sorted=False)
            h, (u, v) = self.c(p)
            h = nn.utils.rnn.pad_packed_sequence(h, batch_first=True)[0]
            u, v = (torch.cat([z[-2], z[-1]], 1)[None] for z in (u, v))
        with phase(DEC):
            z = self.d(self.b(y), (u, v))[0]
            s = torch.bmm(self.g(z), h.transpose(1, 2)).masked_fill((x == 0)[:, None], -1e9).softmax(2)
            z = torch.tanh(self.e(torch.cat([z, torch.bmm(s, h)], 2)))
            return self.f(z).log_softmax(2)


@case("seq2seq.seventh_na", "seq2seq", BOTH, source=PLAIN, forced=True)
def _() -> Any:
    x, mask = padded(10, 26, 3000)
    return Na(), (x, mask.sum(1), ids(10, 16, 3000))


class Nb(nn.Module):
    """Many blocks that read, one that writes into slots made beforehand; flat weights."""

    def __init__(self, n: int = V, d: int = 192, h: int = 6, k: int = 8, room: int = 16) -> None:
        super().__init__()
        w = lambda *s: nn.Parameter(torch.randn(*s) * s[-2] ** -0.5)  # noqa: E731
        self.t, self.p, self.h, self.k, self.room = w(n, d), w(64, d), h, k, room
        self.a0, self.a1, self.a2, self.a3 = w(k, d, 3 * d), w(k, d, d), w(k, d, 4 * d), w(k, 4 * d, d)
        self.b0, self.b1, self.b2, self.b3 = w(d, 3 * d), w(d, d), w(d, 4 * d), w(4 * d, d)
        self.c0, self.c1, self.c2 = w(d, d), w(d, 2 * d), w(d, d)
        self.g = nn.Parameter(torch.ones(2 * k + 5, d))

    def n(self, x: torch.Tensor, i: int) -> torch.Tensor:
        return F.layer_norm(x, x.shape[-1:], self.g[i])

    def s(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.h, -1)).transpose(1, 2)

    def forward(self, x: torch.Tensor, steps: int = 8) -> torch.Tensor:
        m = (x != 0)[:, None, None]
        with phase(ENC):
            e = F.embedding(x, self.t) + self.p[: x.shape[1]]
            for i in range(self.k):
                q, k, v = (self.s(z) for z in (self.n(e, 2 * i) @ self.a0[i]).chunk(3, -1))
                e = e + F.scaled_dot_product_attention(q, k, v, m).transpose(1, 2).flatten(2) @ self.a1[i]
                e = e + F.relu(self.n(e, 2 * i + 1) @ self.a2[i]) @ self.a3[i]
            e = self.n(e, -1)
        with phase(DEC):
            ck, cv = (self.s(z) for z in (e @ self.c1).chunk(2, -1))
            ks = torch.zeros(len(x), self.h, self.room, e.shape[2] // self.h, device=x.device)
            vs = torch.zeros_like(ks)
        y, out = torch.ones_like(x[:, :1]), []
        for i in range(steps):
            with phase(DEC):
                at = torch.tensor([i], device=x.device)
                z = F.embedding(y, self.t) + self.p[i]
                q, k, v = (self.s(u) for u in (self.n(z, -2) @ self.b0).chunk(3, -1))
                ks.index_copy_(2, at, k)
                vs.index_copy_(2, at, v)
                real = torch.arange(self.room, device=x.device) <= at
                z = z + F.scaled_dot_product_attention(q, ks, vs, real[None, None, None]).transpose(1, 2).flatten(
                    2
                ) @ self.b1
                q = self.s(self.n(z, -3) @ self.c0)
                z = z + F.scaled_dot_product_attention(q, ck, cv, m).transpose(1, 2).flatten(2) @ self.c2
                z = z + F.relu(self.n(z, -4) @ self.b2) @ self.b3
                r = self.n(z, -5) @ self.t.t()
            y = r.argmax(-1)
            out.append(r)
        return torch.cat(out, 1)


@case("seq2seq.seventh_nb", "seq2seq", BOTH, source=PLAIN, kv="static")
def _() -> Any:
    return Nb(), (padded(8, 30)[0],)


class Nc(nn.Module):
    """Norms after the parts, learned positions with an offset, caches by cat."""

    class X(nn.Module):
        def __init__(self, d: int, h: int) -> None:
            super().__init__()
            self.h, self.q, self.k = h, nn.Linear(d, d), nn.Linear(d, d)
            self.v, self.o, self.n = nn.Linear(d, d), nn.Linear(d, d), nn.LayerNorm(d)

        def f(self, x: torch.Tensor) -> torch.Tensor:
            return x.view(x.shape[0], -1, self.h, x.shape[2] // self.h).transpose(1, 2)

        def forward(self, x: torch.Tensor, y: Any, m: Any, c: Any = None, grow: bool = False) -> Any:
            q = self.f(self.q(x)) * (x.shape[2] // self.h) ** -0.5
            if y is None:
                k, v = c
            else:
                k, v = self.f(self.k(y)), self.f(self.v(y))
                if grow and c is not None:
                    k, v = torch.cat([c[0], k], 2), torch.cat([c[1], v], 2)
            s = q @ k.transpose(2, 3)
            s = (s if m is None else s + m).softmax(-1)
            return self.n(x + self.o((s @ v).transpose(1, 2).reshape(x.shape))), (k, v)

    class Y(nn.Module):
        def __init__(self, d: int) -> None:
            super().__init__()
            self.a, self.b, self.n = nn.Linear(d, 4 * d), nn.Linear(4 * d, d), nn.LayerNorm(d)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.n(x + self.b(F.gelu(self.a(x))))

    def __init__(self, n: int = V, d: int = 192, h: int = 6, k: int = 4) -> None:
        super().__init__()
        self.w, self.p, self.r = nn.Embedding(n, d), nn.Embedding(66, d), nn.Embedding(66, d)
        self.i, self.j = nn.LayerNorm(d), nn.LayerNorm(d)
        self.s = nn.ModuleList(nn.ModuleList([self.X(d, h), self.Y(d)]) for _ in range(k))
        self.t = nn.ModuleList(nn.ModuleList([self.X(d, h), self.X(d, h), self.Y(d)]) for _ in range(k))
        self.register_buffer("z", torch.zeros(1, n))

    def forward(self, x: torch.Tensor, steps: int = 6) -> torch.Tensor:
        m = (x == 0)[:, None, None] * -1e9
        with phase(ENC):
            e = self.i(self.w(x) + self.p(torch.arange(x.shape[1], device=x.device) + 2))
            for a, f in self.s:
                e = f(a(e, e, m)[0])
        y, c, out = torch.full_like(x[:, :1], 2), [[None, None] for _ in self.t], []
        for i in range(steps):
            with phase(DEC):
                u = self.j(self.w(y) + self.r(torch.full_like(y, i + 2)))
                for (a, b, f), s in zip(self.t, c, strict=True):
                    u, s[0] = a(u, u, None, s[0], True)
                    u, s[1] = b(u, None if i else e, m, s[1])
                    u = f(u)
                r = F.linear(u, self.w.weight) + self.z
            y = r.argmax(-1)
            out.append(r)
        return torch.cat(out, 1)


@case("seq2seq.seventh_nc", "seq2seq", BOTH, source=PLAIN, kv="legacy")
def _() -> Any:
    return Nc(), (padded(6, 36)[0],)


class Chatbot(nn.Module):
    """The chatbot of the tutorial: GRUs whose directions are summed, attention by dot products, teacher forcing."""

    def __init__(self, n: int = 1500, d: int = 96) -> None:
        super().__init__()
        self.embedding = nn.Embedding(n, d)
        self.encoder = nn.GRU(d, d, 2, bidirectional=True)
        self.decoder = nn.GRU(d, d, 2)
        self.concat, self.out, self.d = nn.Linear(2 * d, d), nn.Linear(d, n), d

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        outputs, hidden = self.encoder(self.embedding(x))
        outputs = outputs[..., : self.d] + outputs[..., self.d :]
        hidden, loss = hidden[:2], 0
        for t in range(len(y) - 1):
            rnn, hidden = self.decoder(self.embedding(y[t : t + 1]), hidden)
            weights = (rnn * outputs).sum(2).t().softmax(1).unsqueeze(1)
            context = weights.bmm(outputs.transpose(0, 1)).squeeze(1)
            logits = self.out(torch.tanh(self.concat(torch.cat([rnn.squeeze(0), context], 1))))
            loss = loss + F.cross_entropy(logits, y[t + 1])
        return loss / (len(y) - 1)


@case("seq2seq.seventh_chatbot_steps", "seq2seq", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    adagrad = lambda p: torch.optim.Adagrad(p, 0.02, weight_decay=1e-5)  # noqa: E731
    return TrainStep(Chatbot(), lambda m, x, y: m(x, y), adagrad, steps=1), (ids(14, 16, 1500), ids(8, 16, 1500))
