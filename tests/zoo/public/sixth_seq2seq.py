"""Encoder-decoders by a sixth author: passages read apart, drafts looked up, ranks, forecasts, and plain ones."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..oracle import phase
from ..parts import VOCABULARY as V
from ..parts import Generate, TrainStep, ids
from ..registry import split

case = split("public")
ENC, DEC = "seq2seq.encode", "seq2seq.decode"
BOTH = (ENC, DEC)
PLAIN = "plain torch, sixth author"
FIVE = [(r"model\.encoder", ENC), (r"model\.(decoder|lm_head)", DEC)]
SIDES = [(r"model\.model\.encoder", ENC), (r"model\.(model\.decoder|lm_head)", DEC)]


def w(*shape: int, scale: float = 0.1) -> nn.Parameter:
    """A random weight."""
    return nn.Parameter(torch.randn(*shape) * scale)


def padded(batch: int, length: int, shortest: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Sentences of unlike lengths, zeros behind them, and their mask."""
    x = ids(batch, length)
    mask = (torch.arange(length) < torch.linspace(length, shortest, batch).long()[:, None]).long()
    return x * mask, mask


# Of transformers.
def five(**more: Any) -> nn.Module:
    import transformers as t

    size = dict(
        vocab_size=V, d_model=192, d_kv=32, d_ff=512, num_layers=4, num_decoder_layers=4, num_heads=6,
        decoder_start_token_id=0, feed_forward_proj="gated-gelu", tie_word_embeddings=False,
    )  # fmt: skip
    return t.T5ForConditionalGeneration(t.T5Config(**dict(size, **more))).eval()


class Passages(nn.Module):
    """Each passage is encoded alone with the question; the decoder sees all of them in a row (FiD)."""

    def __init__(self, steps: int = 5) -> None:
        super().__init__()
        self.model, self.steps = five(), steps
        self.write = dict(max_new_tokens=steps, min_new_tokens=steps, do_sample=False, num_beams=1)
        self.model.generation_config.pad_token_id = 0
        self.model.generation_config.eos_token_id = None

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        from transformers.modeling_outputs import BaseModelOutput

        b = x.shape[0]
        seen = self.model.encoder(input_ids=x.flatten(0, 1), attention_mask=mask.flatten(0, 1)).last_hidden_state
        seen = BaseModelOutput(last_hidden_state=seen.reshape(b, -1, seen.shape[-1]))
        return self.model.generate(encoder_outputs=seen, attention_mask=mask.reshape(b, -1), **self.write)


@case("seq2seq.sixth_passages_in_a_row", "seq2seq", BOTH, kv="dynamic", family="t5", spans=FIVE)
def _() -> Any:
    x, mask = padded(10, 32, 20)
    return Passages(), (x.view(2, 5, 32), mask.view(2, 5, 32))


@case("seq2seq.sixth_looked_up_drafts", "seq2seq", BOTH, kv="dynamic", family="t5", assisted=True, spans=FIVE)
def _() -> Any:
    x = ids(1, 12).repeat(1, 4)
    model = five(num_layers=6, num_decoder_layers=3, feed_forward_proj="relu", tie_word_embeddings=True)
    loop = Generate(model, 8, prompt_lookup_num_tokens=4)
    model.generation_config.eos_token_id = 3  # the drafts are cut behind it; the shortest length forbids it
    return loop, (x,), dict(attention_mask=torch.ones_like(x))


class Relevance(nn.Module):
    """One step of the decoder: the probability of "true" against "false" for each document (monoT5)."""

    def __init__(self) -> None:
        super().__init__()
        self.model = five(d_model=256, num_heads=8, d_ff=1024, num_layers=6, num_decoder_layers=6)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        start = torch.zeros(x.shape[0], 1, dtype=torch.long, device=x.device)
        s = self.model(input_ids=x, attention_mask=mask, decoder_input_ids=start, use_cache=False).logits[:, 0]
        return s[:, 10:12].log_softmax(1)[:, 0]


@case("seq2seq.sixth_ranks_documents", "seq2seq", BOTH, family="t5", spans=FIVE)
def _() -> Any:
    return Relevance(), padded(12, 64, 30)


class Tongues(nn.Module):
    """A loop by hand: the language's token comes first, so the first step has two tokens."""

    def __init__(self, steps: int = 5) -> None:
        import transformers as t

        super().__init__()
        config = t.MBartConfig(
            vocab_size=V, d_model=256, encoder_layers=4, decoder_layers=4, encoder_attention_heads=8,
            decoder_attention_heads=8, encoder_ffn_dim=1024, decoder_ffn_dim=1024, max_position_embeddings=128,
            scale_embedding=True,
        )  # fmt: skip
        config._attn_implementation = "eager"
        self.model, self.steps = t.MBartForConditionalGeneration(config), steps

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        from transformers import DynamicCache, EncoderDecoderCache

        seen = self.model.get_encoder()(input_ids=x, attention_mask=mask)
        past = EncoderDecoderCache(DynamicCache(), DynamicCache())
        token, out = torch.tensor([[2, 7]], device=x.device).expand(x.shape[0], -1), []
        for _ in range(self.steps):
            s = self.model(
                encoder_outputs=seen, attention_mask=mask, decoder_input_ids=token, past_key_values=past,
                use_cache=True,
            ).logits[:, -1]  # fmt: skip
            token = s.argmax(-1, keepdim=True)
            out.append(token)
        return torch.cat(out, 1)


@case("seq2seq.sixth_tongue_first", "seq2seq", BOTH, kv="dynamic", attn="eager", family="mbart50", spans=SIDES)
def _() -> Any:
    return Tongues(), padded(6, 28, 12)


@case("seq2seq.sixth_generation_berts", "seq2seq", BOTH, kv="dynamic", family="encoder-decoder", spans=[
    (r"model\.encoder", ENC), (r"model\.decoder", DEC),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    size = dict(vocab_size=V, hidden_size=192, num_hidden_layers=4, num_attention_heads=6, intermediate_size=768)
    left = t.BertGenerationEncoder(t.BertGenerationConfig(**size))
    right = t.BertGenerationDecoder(t.BertGenerationConfig(is_decoder=True, add_cross_attention=True, **size))
    model = t.EncoderDecoderModel(encoder=left, decoder=right).eval()
    model.generation_config.decoder_start_token_id, model.generation_config.pad_token_id = 1, 0
    x, mask = padded(8, 40, 25)
    return Generate(model, 5), (x,), dict(attention_mask=mask)


class Forecast(nn.Module):
    """The means of what follows, sampled in parallel a step at a time."""

    def __init__(self) -> None:
        import transformers as t

        super().__init__()
        config = t.InformerConfig(
            prediction_length=6, context_length=36, lags_sequence=[1, 2, 3, 7], num_time_features=3, d_model=48,
            num_static_categorical_features=1, cardinality=[30], embedding_dimension=[6], encoder_layers=2,
            decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=96,
            decoder_ffn_dim=96, distribution_output="normal", num_parallel_samples=10, attention_type="full",
            distil=True, scaling="mean",
        )  # fmt: skip
        self.model = t.InformerForPrediction(config)

    def forward(self, kind: torch.Tensor, past: torch.Tensor, when: torch.Tensor, then: torch.Tensor) -> torch.Tensor:
        return self.model.generate(
            past_values=past, past_time_features=when, future_time_features=then, static_categorical_features=kind,
            past_observed_mask=torch.ones_like(past),
        ).sequences.mean(1)  # fmt: skip


@case("seq2seq.sixth_forecast_samples", "seq2seq", BOTH, family="informer", series=True, spans=[
    (r"model\.model\.encoder", ENC), (r"model\.(model\.decoder|parameter_projection)", DEC),
])  # fmt: skip
def _() -> Any:
    past = torch.randn(8, 43).cumsum(1) + 20
    return Forecast(), (torch.randint(30, (8, 1)), past, torch.rand(8, 43, 3), torch.rand(8, 6, 3))


@case("seq2seq.sixth_six_layers_two_beams", "seq2seq", BOTH, kv="dynamic", beams=2, family="marian", spans=SIDES)
def _() -> Any:
    import transformers as t

    config = t.MarianConfig(
        vocab_size=V, d_model=384, encoder_layers=6, decoder_layers=6, encoder_attention_heads=8,
        decoder_attention_heads=8, encoder_ffn_dim=1536, decoder_ffn_dim=1536, activation_function="swish",
        scale_embedding=True, static_position_embeddings=True, max_position_embeddings=128, pad_token_id=0,
        decoder_start_token_id=0,
    )  # fmt: skip
    x, mask = padded(3, 22, 14)
    return Generate(t.MarianMTModel(config).eval(), 4, num_beams=2, length_penalty=0.6), (x,), dict(attention_mask=mask)


class Accumulated(nn.Module):
    """Two small batches for each step of the optimizer."""

    def __init__(self, model: nn.Module, steps: int = 1) -> None:
        super().__init__()
        self.model, self.steps = model.train(), steps

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        optimizer = torch.optim.NAdam(self.model.parameters(), 1e-3, weight_decay=0.01, decoupled_weight_decay=True)
        out = []
        for _ in range(self.steps):
            for some, target in zip(x.chunk(2), y.chunk(2), strict=True):
                with phase("train.forward"):
                    loss = self.model(input_ids=some, labels=target).loss / 2
                with phase("train.backward"):
                    loss.backward()
                out.append(loss.detach())
            with phase("train.optimizer"):
                optimizer.step()
                optimizer.zero_grad()
        return torch.stack(out)


@case("seq2seq.sixth_train_small_batches", "seq2seq", TRAIN, mode="train", family="pegasus")
def _() -> Any:
    import transformers as t

    config = t.PegasusConfig(
        vocab_size=2000, d_model=96, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=192, decoder_ffn_dim=192, max_position_embeddings=64, dropout=0.0,
        attention_dropout=0.0, activation_dropout=0.0, decoder_start_token_id=0,
    )  # fmt: skip
    return Accumulated(t.PegasusForConditionalGeneration(config)), (ids(8, 20, 2000), ids(8, 9, 2000))


# Plain ones, whose names say nothing.
class Same(nn.Module):
    """One block of weights on each side, passed four times; a signal tells the round."""

    def __init__(self, n: int = 1200, d: int = 96, rounds: int = 4, h: int = 4) -> None:
        super().__init__()
        self.a, self.b, self.c, self.h, self.r = nn.Embedding(n, d), w(rounds, d), w(64, d), h, rounds
        self.d, self.e = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.f, self.g = nn.Sequential(nn.Linear(d, 2 * d), nn.ReLU(), nn.Linear(2 * d, d)), nn.LayerNorm(d)
        self.i, self.j, self.k, self.l = (nn.Linear(d, m * d) for m in (3, 1, 1, 2))
        self.m, self.o = nn.Sequential(nn.Linear(d, 2 * d), nn.ReLU(), nn.Linear(2 * d, d)), nn.Linear(d, d)
        self.p, self.q, self.s, self.t = (nn.LayerNorm(d) for _ in range(4))

    def look(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (z.unflatten(2, (self.h, -1)).transpose(1, 2) for z in (q, k, v))
        return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)

    def forward(self, x: torch.Tensor, steps: int = 6) -> torch.Tensor:
        with phase(ENC):
            x = self.a(x)
            for i in range(self.r):
                x = x + self.b[i] + self.c[: x.shape[1]]
                x = self.p(x + self.e(self.look(*self.d(x).chunk(3, 2))))
                x = self.q(x + self.f(x))
            far = self.l(x).chunk(2, 2)
        token, out = torch.ones(x.shape[0], 1, dtype=torch.long, device=x.device), []
        past: list[Any] = [None] * self.r
        for step in range(steps):
            with phase(DEC):
                y = self.a(token)
                for i in range(self.r):
                    y = y + self.b[i] + self.c[step]
                    q, k, v = self.i(y).chunk(3, 2)
                    if past[i] is not None:
                        k, v = torch.cat([past[i][0], k], 1), torch.cat([past[i][1], v], 1)
                    past[i] = k, v
                    y = self.s(y + self.j(self.look(q, k, v)))
                    y = self.t(y + self.o(self.look(self.k(y), *far)))
                    y = self.g(y + self.m(y))
                s = y[:, 0] @ self.a.weight.t()
            token = s.argmax(1, keepdim=True)
            out.append(s)
        return torch.stack(out, 1)


@case("seq2seq.sixth_same_block_again", "seq2seq", BOTH, kv="legacy", source=PLAIN)
def _() -> Any:
    return Same(), (torch.randint(1, 1200, (8, 20)),)


class Slopes(nn.Module):
    """Heads share one key and one value; distances are slopes; the caches are allocated before and written into."""

    def __init__(self, n: int = 1500, d: int = 128, h: int = 8, layers: int = 3, room: int = 12) -> None:
        super().__init__()
        self.x0, self.x1, self.h, self.n, self.room = w(n, d, scale=0.3), w(n, d, scale=0.3), h, layers, room
        k = d // h
        self.x2, self.x3, self.x4 = (w(layers, d, d + 2 * k), w(layers, d, d + 2 * k), w(layers, d, d))
        self.x5, self.x6, self.x7 = w(layers, d, 2 * k), w(2, layers, d, d), w(layers, d, d)
        self.x8, self.x9 = w(2, layers, d, 6 * d // 2), w(2, layers, 3 * d // 2, d)
        self.register_buffer("m", 2.0 ** -torch.arange(1, h + 1).float())
        self.k = k

    @staticmethod
    def n1(x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, x.shape[-1:])

    def mix(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: Any = None) -> torch.Tensor:
        q = q.unflatten(2, (self.h, self.k))
        a = torch.einsum("bqhd,bkd->bhqk", q, k) / self.k**0.5
        a = (a if bias is None else a + bias).softmax(3)
        return torch.einsum("bhqk,bkd->bqhd", a, v).flatten(2)

    def gate(self, x: torch.Tensor, side: int, i: int) -> torch.Tensor:
        a, b = (self.n1(x) @ self.x8[side, i]).chunk(2, -1)
        return x + (F.gelu(a, approximate="tanh") * b) @ self.x9[side, i]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t = x.shape
        cut = (self.h * self.k, self.k, self.k)
        with phase(ENC):
            at = torch.arange(t, device=x.device)
            bias = -self.m[:, None, None] * (at[None] - at[:, None]).abs()
            x = F.embedding(x, self.x0)
            for i in range(self.n):
                x = x + self.mix(*(self.n1(x) @ self.x2[i]).split(cut, 2), bias) @ self.x6[0, i]
                x = self.gate(x, 0, i)
            x = self.n1(x)
        keys = torch.zeros(self.n, b, self.room, self.k, device=x.device)
        values = torch.zeros_like(keys)
        with phase(DEC):
            far = [(x @ self.x5[i]).chunk(2, 2) for i in range(self.n)]
            at = torch.arange(self.room, device=x.device)
        token, out = torch.zeros(b, dtype=torch.long, device=x.device), []
        for step in range(6):
            with phase(DEC):
                y = F.embedding(token, self.x1)[:, None]
                bias = torch.where(at <= step, (at - step).float(), -1e9) * self.m[:, None, None]
                for i in range(self.n):
                    q, k, v = (self.n1(y) @ self.x3[i]).split(cut, 2)
                    keys[i, :, step] = k[:, 0]
                    values[i, :, step] = v[:, 0]
                    y = y + self.mix(q, keys[i], values[i], bias) @ self.x6[1, i]
                    y = y + self.mix(self.n1(y) @ self.x4[i], *far[i]) @ self.x7[i]
                    y = self.gate(y, 1, i)
                s = F.linear(self.n1(y[:, 0]), self.x1)
            token = s.argmax(1)
            out.append(s)
        return torch.stack(out, 1)


@case("seq2seq.sixth_slopes_one_key", "seq2seq", BOTH, kv="static", source=PLAIN)
def _() -> Any:
    return Slopes(), (torch.randint(1500, (6, 26)),)


class Nest(nn.Module):
    """Words into sentences, sentences into a document; each step weighs sentences, then the words within them."""

    def __init__(self, n: int = 1000, d: int = 48) -> None:
        super().__init__()
        self.m0 = nn.Embedding(n, d, padding_idx=0)
        self.m1 = nn.GRU(d, d, batch_first=True, bidirectional=True)
        self.m2 = nn.GRU(2 * d, d, batch_first=True, bidirectional=True)
        self.m3, self.m4, self.m5 = w(2 * d), nn.Linear(2 * d, 2 * d), nn.Linear(2 * d, 2 * d)
        self.m6, self.m7, self.m8 = nn.LSTMCell(3 * d, 2 * d), nn.Linear(2 * d, 2 * d), nn.Linear(4 * d, n)

    def forward(self, x: torch.Tensor, steps: int = 8) -> torch.Tensor:
        b, s, _ = x.shape
        with phase(ENC):
            there = x.ne(0)
            y = self.m1(self.m0(x.flatten(0, 1)))[0]
            a = (torch.tanh(self.m4(y)) @ self.m3).masked_fill(~there.flatten(0, 1), -1e9).softmax(1)
            z = torch.einsum("bt,btd->bd", a, y).view(b, s, -1)
            z, last = self.m2(z)
            y = y.view(b, s, x.shape[2], -1)
            h = torch.cat([last[0], last[1]], 1)
        c, ctx = torch.zeros_like(h), torch.zeros_like(h)
        token, out = torch.ones(b, dtype=torch.long, device=x.device), []
        for _ in range(steps):
            with phase(DEC):
                h, c = self.m6(torch.cat([self.m0(token), ctx], 1), (h, c))
                q = self.m7(h)
                up = torch.bmm(z, q[:, :, None]).squeeze(2).softmax(1)
                down = torch.einsum("bstd,bd->bst", y, self.m5(q)).masked_fill(~there, -1e9).softmax(2)
                ctx = torch.einsum("bs,bst,bstd->bd", up, down, y)
                p = self.m8(torch.cat([h, ctx], 1)).log_softmax(1)
            token = p.argmax(1)
            out.append(p)
        return torch.stack(out, 1)


@case("seq2seq.sixth_nested_sentences", "seq2seq", BOTH, source=PLAIN)
def _() -> Any:
    x = torch.randint(1, 1000, (4, 6, 15))
    x[1:3, 2:5, 10:] = 0
    return Nest(), (x,)


class Twice(nn.Module):
    """A draft by one cell, then a second pass whose every word looks at the source and at the whole draft."""

    def __init__(self, n: int = 900, d: int = 64) -> None:
        super().__init__()
        self.u, self.v = nn.Embedding(n, d), nn.Embedding(n, d)
        self.a, self.b = nn.ModuleList(nn.Conv1d(d, 2 * d, 3, padding=1) for _ in range(4)), w(1, 60, d)
        self.c, self.e = nn.GRUCell(2 * d, d), nn.Linear(d, d)
        self.f, self.g = nn.GRUCell(3 * d, d), nn.ModuleList(nn.Linear(d, d) for _ in range(2))
        self.o, self.p = nn.Linear(2 * d, n), nn.Linear(3 * d, n)

    @staticmethod
    def see(q: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        a = torch.softmax(torch.einsum("bd,btd->bt", q, x), 1)
        return torch.einsum("bt,btd->bd", a, x)

    def forward(self, x: torch.Tensor, steps: int = 7) -> Any:
        with phase(ENC):
            x = self.u(x) + self.b[:, : x.shape[1]]
            for a in self.a:
                x = x + F.glu(a(x.transpose(1, 2)), 1).transpose(1, 2)
        h = z = x.mean(1)
        token, draft = torch.ones(len(x), dtype=torch.long, device=x.device), []
        for _ in range(steps):
            with phase(DEC):
                h = self.c(torch.cat([self.v(token), z], 1), h)
                z = self.see(self.e(h), x)
                s = self.o(torch.cat([h, z], 1))
            token = s.argmax(1)
            draft.append(h)
        with phase(DEC):
            draft = torch.stack(draft, 1)
        h = x.mean(1)
        token, out = torch.ones_like(token), []
        for _ in range(steps):
            with phase(DEC):
                z, y = self.see(self.g[0](h), x), self.see(self.g[1](h), draft)
                h = self.f(torch.cat([self.v(token), z, y], 1), h)
                s = self.p(torch.cat([h, z, y], 1))
            token = s.argmax(1)
            out.append(s)
        return torch.stack(out, 1)


@case("seq2seq.sixth_drafted_and_written", "seq2seq", BOTH, source=PLAIN)
def _() -> Any:
    return Twice(), (torch.randint(1, 900, (8, 24)),)


# Plain ones with names.
class ContextLayer(nn.Module):
    """Self-attention, attention to the sentence and to what was said before it, and a gate between the two."""

    def __init__(self, d: int, heads: int = 4) -> None:
        super().__init__()
        self.self_attn, self.source_attn, self.context_attn = (
            nn.MultiheadAttention(d, heads, batch_first=True) for _ in range(3)
        )
        self.gate, self.ffn = nn.Linear(2 * d, d), nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))
        self.norms = nn.ModuleList(nn.LayerNorm(d) for _ in range(3))

    def forward(self, y: torch.Tensor, source: torch.Tensor, context: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        z = self.norms[0](y)
        y = y + self.self_attn(z, z, z, attn_mask=mask, need_weights=False)[0]
        z = self.norms[1](y)
        a = self.source_attn(z, source, source, need_weights=False)[0]
        b = self.context_attn(z, context, context, need_weights=False)[0]
        g = torch.sigmoid(self.gate(torch.cat([a, b], -1)))
        y = y + g * a + (1 - g) * b
        return y + self.ffn(self.norms[2](y))


class DocumentTranslator(nn.Module):
    """Log-probabilities of given translations, with the sentences before as a second source."""

    def __init__(self, d: int = 128, layers: int = 3) -> None:
        super().__init__()
        self.embed, self.position = nn.Embedding(V, d), nn.Embedding(128, d)
        layer = nn.TransformerEncoderLayer(d, 4, 4 * d, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.context_encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.decoder = nn.ModuleList(ContextLayer(d) for _ in range(layers))
        self.final = nn.LayerNorm(d)

    def embedded(self, x: torch.Tensor) -> torch.Tensor:
        return self.embed(x) + self.position(torch.arange(x.shape[1], device=x.device))

    def forward(self, source: torch.Tensor, context: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        with phase(ENC):
            source, context = self.encoder(self.embedded(source)), self.context_encoder(self.embedded(context))
        with phase(DEC):
            given, wanted = target[:, :-1], target[:, 1:]
            mask = torch.ones(given.shape[1], given.shape[1], dtype=torch.bool, device=given.device).triu(1)
            y = self.embedded(given)
            for layer in self.decoder:
                y = layer(y, source, context, mask)
            logits = F.linear(self.final(y), self.embed.weight)
            return logits.log_softmax(-1).gather(-1, wanted[..., None]).squeeze(-1).sum(1)


@case("seq2seq.sixth_two_sources_scored", "seq2seq", BOTH, source=PLAIN)
def _() -> Any:
    return DocumentTranslator(), (ids(8, 24), ids(8, 60), ids(8, 22))


class Retrosynthesis(nn.Module):
    """Characters of a molecule into those of what it is made from; beams over nn.Transformer, prefixes run anew."""

    def __init__(self, symbols: int = 72, d: int = 128, width: int = 5) -> None:
        super().__init__()
        self.symbols, self.width = nn.Embedding(symbols, d), width
        position = torch.arange(128)[:, None] * torch.exp(torch.arange(0, d, 2) * (-9.21 / d))
        self.register_buffer("waves", torch.stack([position.sin(), position.cos()], 2).flatten(1))
        self.transformer = nn.Transformer(d, 8, 3, 3, 512, 0.0, "relu", batch_first=True, norm_first=True)
        self.generator = nn.Linear(d, symbols)

    def forward(self, x: torch.Tensor, steps: int = 7) -> Any:
        b, k = x.shape[0], self.width
        with phase(ENC):
            pad = x == 0
            memory = self.transformer.encoder(
                self.symbols(x) * 11.3 + self.waves[: x.shape[1]], src_key_padding_mask=pad
            )
        memory, pad = memory.repeat_interleave(k, 0), pad.repeat_interleave(k, 0)
        y = torch.ones(b * k, 1, dtype=torch.long, device=x.device)
        total = torch.tensor([0.0] + [-1e9] * (k - 1), device=x.device).repeat(b, 1)
        for step in range(steps):
            with phase(DEC):
                mask = torch.full((step + 1, step + 1), float("-inf"), device=x.device).triu(1)
                z = self.symbols(y) * 11.3 + self.waves[: step + 1]
                z = self.transformer.decoder(z, memory, tgt_mask=mask, memory_key_padding_mask=pad)
                s = self.generator(z[:, -1]).log_softmax(-1)
            total, best = (total[:, :, None] + s.view(b, k, -1)).flatten(1).topk(k, 1)
            origin = torch.div(best, s.shape[1], rounding_mode="floor")
            origin = origin + torch.arange(b, device=x.device)[:, None] * k
            y = torch.cat([y[origin.flatten()], (best % s.shape[1]).view(-1, 1)], 1)
        return y.view(b, k, -1), total


@case("seq2seq.sixth_molecules_by_beams", "seq2seq", BOTH, beams=5, source=PLAIN)
def _() -> Any:
    x = torch.randint(3, 72, (3, 40))
    x[1, 33:], x[2, 25:] = 0, 0
    return Retrosynthesis(), (x,)


class Inflector(nn.Module):
    """A lemma's letters and tags into the inflected word: an LSTM both ways, an LSTM with attention, both forced."""

    def __init__(self, letters: int = 60, d: int = 64) -> None:
        super().__init__()
        self.letters = nn.Embedding(letters, d)
        self.encoder = nn.LSTM(d, d // 2, 2, batch_first=True, bidirectional=True)
        self.decoder = nn.LSTM(d, d, batch_first=True)
        self.attention, self.output = nn.MultiheadAttention(d, 2, batch_first=True), nn.Linear(2 * d, letters)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        memory, (h, c) = self.encoder(self.letters(x))
        state = tuple(torch.cat([z[-2], z[-1]], 1)[None].contiguous() for z in (h, c))
        states = self.decoder(self.letters(y), state)[0]
        seen = self.attention(states, memory, memory, need_weights=False)[0]
        return self.output(torch.cat([states, seen], 2))


@case("seq2seq.sixth_train_inflections", "seq2seq", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    def loss(m: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(m(x, y[:, :-1]).transpose(1, 2), y[:, 1:], ignore_index=0)

    adamax = lambda p: torch.optim.Adamax(p, 2e-3)  # noqa: E731
    return TrainStep(Inflector(), loss, adamax), (torch.randint(1, 60, (32, 14)), torch.randint(1, 60, (32, 12)))
