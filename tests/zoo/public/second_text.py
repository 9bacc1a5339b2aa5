"""Text encoders and sequence-to-sequence models by a second author."""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..oracle import phase
from ..parts import TrainStep
from ..registry import split

case = split("public")
READ, ENC, DEC = "text.encode", "seq2seq.encode", "seq2seq.decode"
PLAIN = "plain torch, second author"


def w(*shape: int, scale: float = 0.1) -> nn.Parameter:
    """A random weight."""
    return nn.Parameter(torch.randn(*shape) * scale)


def text(*shape: int, n: int = 900) -> torch.Tensor:
    """Random token ids."""
    return torch.randint(1, n, shape)


def add(name: str, **more: Any) -> Any:
    return case(name, "text_encoder", (READ,), default=READ, source=PLAIN, **more)


class Sentences(nn.Module):
    """A bidirectional transformer of plain matrices, one-hot inputs, mean pooling over what is no padding."""

    def __init__(self, v: int = 900, d: int = 64, n: int = 2, h: int = 4) -> None:
        super().__init__()
        self.t, self.p, self.h = w(v, d, scale=0.5), w(64, d), h
        self.a, self.b = w(n, 4, d, d, scale=d**-0.5), w(n, 2, d, d, scale=d**-0.5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        real = (ids != 0).float()
        x = F.one_hot(ids, self.t.shape[0]).to(self.t.dtype) @ self.t + self.p[: ids.shape[1]]
        b, t, d = x.shape
        for a, f in zip(self.a, self.b, strict=True):
            q, k, v = ((x @ m).view(b, t, self.h, -1).transpose(1, 2) for m in a[:3])
            s = q @ k.transpose(2, 3) / math.sqrt(d // self.h) + (1 - real)[:, None, None] * -1e4
            x = F.layer_norm(x + (s.softmax(3) @ v).transpose(1, 2).reshape(b, t, d) @ a[3], (d,))
            x = F.layer_norm(x + F.gelu(x @ f[0]) @ f[1], (d,))
        return F.normalize((x * real[..., None]).sum(1) / real.sum(1, keepdim=True), dim=1)


@add("text2.sentences_one_hot")
def _() -> Any:
    ids = text(4, 12)
    ids[1, 7:] = ids[2, 4:] = 0
    return Sentences(), (ids,)


class Windows(nn.Module):
    """Convolutions of several widths over words, max over time, a softmax of classes."""

    def __init__(self, v: int = 2000, d: int = 48, classes: int = 5) -> None:
        super().__init__()
        self.e = nn.Embedding(v, d, padding_idx=0)
        self.c = nn.ModuleList(nn.Conv1d(d, 24, k) for k in (2, 3, 4))
        self.o = nn.Linear(72, classes)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.e(ids).permute(0, 2, 1)
        return self.o(torch.cat([F.relu(c(x)).max(2).values for c in self.c], 1)).log_softmax(1)


@add("text2.word_windows")
def _() -> Any:
    return Windows(), (text(6, 20, n=2000),)


class Tagger(nn.Module):
    """A bidirectional LSTM that tags words, with the best path through transitions (Viterbi)."""

    def __init__(self, v: int = 1500, d: int = 40, tags: int = 7) -> None:
        super().__init__()
        self.e, self.r, self.o = (
            nn.Embedding(v, d),
            nn.LSTM(d, 32, bidirectional=True, batch_first=True),
            nn.Linear(64, tags),
        )
        self.t = w(tags, tags, scale=0.5)

    def forward(self, ids: torch.Tensor) -> Any:
        s = self.o(self.r(self.e(ids))[0])
        best, back = s[:, 0], []
        for i in range(1, ids.shape[1]):
            top = (best[:, :, None] + self.t).max(1)
            back.append(top.indices)
            best = top.values + s[:, i]
        path = [best.argmax(1, keepdim=True)]
        for at in reversed(back):
            path.append(at.gather(1, path[-1]))
        return torch.cat(path[::-1], 1), best.amax(1)


@add("text2.lstm_tagger")
def _() -> Any:
    return Tagger(), (text(3, 11, n=1500),)


class Spans(nn.Module):
    """Start and end of an answer: rotary, gated feed-forward, no batch dimension, one question."""

    def __init__(self, v: int = 1200, d: int = 64, n: int = 3, h: int = 4) -> None:
        super().__init__()
        self.e, self.s, self.h = nn.Embedding(v, d), nn.Embedding(2, d), h
        self.l = nn.ModuleList(
            nn.ModuleList([nn.Linear(d, 3 * d), nn.Linear(d, d), nn.Linear(d, 4 * d), nn.Linear(2 * d, d)])
            for _ in range(n)
        )
        self.n, self.o = nn.ModuleList(nn.RMSNorm(d) for _ in range(2 * n)), nn.Linear(d, 2)

    def forward(self, ids: torch.Tensor, part: torch.Tensor) -> Any:
        x = self.e(ids) + self.s(part)
        t, d = x.shape
        half = d // self.h // 2
        angle = torch.arange(t, device=x.device)[:, None] / 10000 ** (torch.arange(half, device=x.device) / half)
        turn = (angle.cos()[:, None], angle.sin()[:, None])
        for i, (qkv, o, up, down) in enumerate(self.l):
            q, k, v = qkv(self.n[2 * i](x)).view(t, self.h, 3, -1).unbind(2)
            q, k = (
                torch.cat([a * turn[0] - b * turn[1], a * turn[1] + b * turn[0]], -1)
                for a, b in (q.chunk(2, -1), k.chunk(2, -1))
            )
            a = torch.einsum("qhe,khe->hqk", q, k).mul(0.25).softmax(2)
            x = x + o(torch.einsum("hqk,khe->qhe", a, v).reshape(t, d))
            g, u = up(self.n[2 * i + 1](x)).chunk(2, 1)
            x = x + down(F.silu(g) * u)
        return self.o(x).unbind(1)


@add("text2.answer_spans_unbatched")
def _() -> Any:
    part = torch.zeros(26, dtype=torch.long)
    part[9:] = 1
    return Spans(), (text(26, n=1200), part)


class Relative(nn.Module):
    """Attention with buckets of relative distance, post-norm, one score per token, four tokens only."""

    def __init__(self, v: int = 800, d: int = 48, n: int = 2, h: int = 3) -> None:
        super().__init__()
        self.e, self.h = w(v, d, scale=0.5), h
        self.q = nn.ModuleList(nn.MultiheadAttention(d, h, batch_first=True) for _ in range(n))
        self.f = nn.ModuleList(nn.Sequential(nn.Linear(d, 96), nn.Mish(), nn.Linear(96, d)) for _ in range(n))
        self.g, self.r, self.o = nn.ModuleList(nn.LayerNorm(d) for _ in range(2 * n)), w(17, h), nn.Linear(d, 9)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        b, t = ids.shape
        x = self.e[ids]
        at = torch.arange(t, device=x.device)
        bias = self.r[(at[:, None] - at[None]).clamp(-8, 8) + 8].permute(2, 0, 1).repeat(b, 1, 1)
        for i, (q, f) in enumerate(zip(self.q, self.f, strict=True)):
            x = self.g[2 * i](x + q(x, x, x, attn_mask=bias, need_weights=False)[0])
            x = self.g[2 * i + 1](x + f(x))
        return self.o(x)


@add("text2.relative_tokens_short")
def _() -> Any:
    return Relative(), (text(2, 4, n=800),)


class Hierarchy(nn.Module):
    """Words to sentences to a document: GRUs in both directions with attention at each level."""

    def __init__(self, v: int = 1500, d: int = 32) -> None:
        super().__init__()
        self.e = nn.Embedding(v, d)
        self.a, self.b = (
            nn.GRU(d, d, bidirectional=True, batch_first=True),
            nn.GRU(2 * d, d, bidirectional=True, batch_first=True),
        )
        self.u, self.v, self.p, self.q, self.o = (
            nn.Linear(2 * d, d),
            nn.Linear(2 * d, d),
            w(d),
            w(d),
            nn.Linear(2 * d, 4),
        )

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        n, s, t = ids.shape
        x = self.a(self.e(ids.view(n * s, t)))[0]
        x = ((torch.tanh(self.u(x)) @ self.p).softmax(1)[..., None] * x).sum(1).view(n, s, -1)
        x = self.b(x)[0]
        return self.o(((torch.tanh(self.v(x)) @ self.q).softmax(1)[..., None] * x).sum(1))


@add("text2.hierarchical_attention")
def _() -> Any:
    return Hierarchy(), (text(2, 4, 9, n=1500),)


@case("train2.word_windows", "text_encoder", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    def loss(m: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.nll_loss(m(x), y)

    return TrainStep(Windows(), loss, lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, nesterov=True)), (
        text(4, 16, n=2000),
        torch.randint(5, (4,)),
    )


# Sequence to sequence.
class Bahdanau(nn.Module):
    """A GRU encoder, a GRU decoder with additive attention, greedy."""

    def __init__(self, v: int = 700, d: int = 48) -> None:
        super().__init__()
        self.a, self.b = nn.Embedding(v, d), nn.Embedding(v, d)
        self.enc, self.dec = nn.GRU(d, d, batch_first=True, bidirectional=True), nn.GRUCell(3 * d, d)
        self.h, self.p, self.q, self.v, self.o = (
            nn.Linear(d, d),
            nn.Linear(2 * d, d),
            nn.Linear(d, d),
            nn.Linear(d, 1),
            nn.Linear(4 * d, v),
        )

    def forward(self, ids: torch.Tensor, steps: int = 6) -> torch.Tensor:
        with phase(ENC):
            m, last = self.enc(self.a(ids))
            h, k = torch.tanh(self.h(last[1])), self.p(m)
        token, out = torch.ones(ids.shape[0], dtype=torch.long, device=ids.device), []
        for _ in range(steps):
            with phase(DEC):
                a = self.v(torch.tanh(k + self.q(h)[:, None])).softmax(1)
                c, e = (a * m).sum(1), self.b(token)
                h = self.dec(torch.cat([e, c], 1), h)
                s = self.o(torch.cat([h, c, e], 1))
            token = s.argmax(1)
            out.append(s)
        return torch.stack(out)


@case("seq2seq2.gru_attention", "seq2seq", (ENC, DEC), source=PLAIN)
def _() -> Any:
    return Bahdanau(), (text(2, 9, n=700),)


class ConvS2s(nn.Module):
    """Gated convolutions on both sides with attention in each decoder layer; steps by the whole prefix again."""

    def __init__(self, v: int = 700, d: int = 48, n: int = 2) -> None:
        super().__init__()
        self.a, self.b, self.pa, self.pb = nn.Embedding(v, d), nn.Embedding(v, d), w(40, d), w(40, d)
        self.c, self.g = (
            nn.ModuleList(nn.Conv1d(d, 2 * d, 3, padding=1) for _ in range(n)),
            nn.ModuleList(nn.Conv1d(d, 2 * d, 3) for _ in range(n)),
        )
        self.q, self.o = nn.ModuleList(nn.Linear(d, d) for _ in range(n)), nn.Linear(d, v)

    def forward(self, ids: torch.Tensor, steps: int = 5) -> torch.Tensor:
        with phase(ENC):
            e = self.a(ids) + self.pa[: ids.shape[1]]
            z = e.transpose(1, 2)
            for c in self.c:
                z = (z + F.glu(c(z), 1)) * 0.7
            k = z.transpose(1, 2)
            m = (k + e) * 0.7
        y, out = torch.ones(ids.shape[0], 1, dtype=torch.long, device=ids.device), []
        for _ in range(steps):
            with phase(DEC):
                t = self.b(y) + self.pb[: y.shape[1]]
                x = t
                for g, q in zip(self.g, self.q, strict=True):
                    r = F.glu(g(F.pad(x.transpose(1, 2), (2, 0))), 1).transpose(1, 2)
                    a = ((q(r) + t) @ k.transpose(1, 2)).softmax(-1)
                    x = (x + r + a @ m) * 0.6
                s = self.o(x[:, -1])
            y = torch.cat([y, s.argmax(1, keepdim=True)], 1)
            out.append(s)
        return torch.stack(out)


@case("seq2seq2.convolutions", "seq2seq", (ENC, DEC), source=PLAIN)
def _() -> Any:
    return ConvS2s(), (text(2, 13, n=700),)


class Cached(nn.Module):
    """Transformer of flat matrices; cross keys computed once, own keys in a preallocated buffer."""

    def __init__(self, v: int = 800, d: int = 64, n: int = 2, h: int = 4) -> None:
        super().__init__()
        self.e, self.h, self.n = nn.Embedding(v, d), h, n
        self.x, self.y, self.z = (
            w(n, 4, d, d, scale=d**-0.5),
            w(n, 4, d, d, scale=d**-0.5),
            w(n, 4, d, d, scale=d**-0.5),
        )
        self.i, self.j = w(2, n, d, 2 * d, scale=d**-0.5), w(2, n, 2 * d, d, scale=0.09)
        self.register_buffer("pe", torch.sin(torch.arange(32)[:, None] * torch.exp(torch.arange(d) * -0.1)))

    def split(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.h, -1)).transpose(-3, -2)

    def mix(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        a = torch.softmax(q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5, -1)
        return (a @ v).transpose(-3, -2).flatten(-2)

    def forward(self, ids: torch.Tensor, steps: int = 5) -> torch.Tensor:
        b, t = ids.shape
        d = self.e.weight.shape[1]
        with phase(ENC):
            x = self.e(ids) + self.pe[:t]
            for j in range(self.n):
                y = F.layer_norm(x, (d,))
                x = x + self.mix(*(self.split(y @ m) for m in self.x[j, :3])) @ self.x[j, 3]
                x = x + F.relu(F.layer_norm(x, (d,)) @ self.i[0, j]) @ self.j[0, j]
            memory = F.layer_norm(x, (d,))
        cross = [(self.split(memory @ self.z[j, 1]), self.split(memory @ self.z[j, 2])) for j in range(self.n)]
        own = torch.zeros(self.n, 2, b, self.h, steps, d // self.h, device=ids.device)
        token, out = torch.ones(b, 1, dtype=torch.long, device=ids.device), []
        for s in range(steps):
            with phase(DEC):
                x = self.e(token) + self.pe[s]
                for j in range(self.n):
                    y = F.layer_norm(x, (d,))
                    own[j, 0, :, :, s] = self.split(y @ self.y[j, 1])[:, :, 0]
                    own[j, 1, :, :, s] = self.split(y @ self.y[j, 2])[:, :, 0]
                    x = (
                        x
                        + self.mix(self.split(y @ self.y[j, 0]), own[j, 0, :, :, : s + 1], own[j, 1, :, :, : s + 1])
                        @ self.y[j, 3]
                    )
                    x = x + self.mix(self.split(F.layer_norm(x, (d,)) @ self.z[j, 0]), *cross[j]) @ self.z[j, 3]
                    x = x + F.relu(F.layer_norm(x, (d,)) @ self.i[1, j]) @ self.j[1, j]
                logits = F.layer_norm(x, (d,)) @ self.e.weight.T
            token = logits.argmax(-1)
            out.append(logits)
        return torch.cat(out, 1)


@case("seq2seq2.cached_matrices", "seq2seq", (ENC, DEC), source=PLAIN)
def _() -> Any:
    return Cached(), (text(2, 10, n=800),)


class Pointer(nn.Module):
    """LSTM to LSTM with a copy mechanism: words of the source get the attention's weight by scatter_add."""

    def __init__(self, v: int = 600, d: int = 40) -> None:
        super().__init__()
        self.e, self.a, self.b = nn.Embedding(v, d), nn.LSTM(d, d), nn.LSTMCell(2 * d, d)
        self.k, self.o, self.g = w(d, d), nn.Linear(2 * d, v), nn.Linear(3 * d, 1)

    def forward(self, ids: torch.Tensor, steps: int = 5) -> torch.Tensor:
        with phase(ENC):
            m, (h, c) = self.a(self.e(ids))
            h, c, m = h[0], c[0], m.transpose(0, 1)
        token, ctx, out = torch.ones_like(ids[0]), torch.zeros_like(h), []
        for _ in range(steps):
            with phase(DEC):
                e = self.e(token)
                h, c = self.b(torch.cat([e, ctx], 1), (h, c))
                a = torch.softmax((m @ (h @ self.k).unsqueeze(2)).squeeze(2), 1)
                ctx = (a.unsqueeze(1) @ m).squeeze(1)
                g = torch.sigmoid(self.g(torch.cat([h, ctx, e], 1)))
                p = self.o(torch.cat([h, ctx], 1)).softmax(1) * g
                p = p.scatter_add(1, ids.t(), (1 - g) * a)
            token = p.argmax(1)
            out.append(p)
        return torch.stack(out)


@case("seq2seq2.pointer", "seq2seq", (ENC, DEC), source=PLAIN)
def _() -> Any:
    return Pointer(), (text(12, 2, n=600),)


class Stock(nn.Module):
    """torch's own Transformer; the target so far runs again at each step."""

    def __init__(self, v: int = 800, d: int = 48) -> None:
        super().__init__()
        self.e, self.f, self.p = nn.Embedding(v, d), nn.Embedding(v, d), nn.Parameter(torch.randn(30, d) * 0.1)
        self.t, self.o = nn.Transformer(d, 4, 2, 2, 96, 0.0, batch_first=True), nn.Linear(d, v)

    def forward(self, ids: torch.Tensor, steps: int = 4) -> torch.Tensor:
        with phase(ENC):
            m = self.t.encoder(self.e(ids) + self.p[: ids.shape[1]])
        y, out = torch.ones(ids.shape[0], 1, dtype=torch.long, device=ids.device), []
        for _ in range(steps):
            with phase(DEC):
                mask = torch.full((y.shape[1],) * 2, float("-inf"), device=ids.device).triu(1)
                x = self.t.decoder(self.f(y) + self.p[: y.shape[1]], m, tgt_mask=mask)
                s = self.o(x[:, -1])
            y = torch.cat([y, s.argmax(1)[:, None]], 1)
            out.append(s)
        return torch.stack(out)


@case("seq2seq2.stock_uncached", "seq2seq", (ENC, DEC), source=PLAIN)
def _() -> Any:
    return Stock(), (text(2, 7, n=800),)


class Forced(nn.Module):
    """The GRU translator under teacher forcing."""

    def __init__(self) -> None:
        super().__init__()
        self.m = Bahdanau(500, 32)

    def forward(self, ids: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        m = self.m
        z, last = m.enc(m.a(ids))
        h, k = torch.tanh(m.h(last[1])), m.p(z)
        loss = 0
        for i in range(target.shape[1] - 1):
            c = (m.v(torch.tanh(k + m.q(h)[:, None])).softmax(1) * z).sum(1)
            e = m.b(target[:, i])
            h = m.dec(torch.cat([e, c], 1), h)
            loss = loss + F.cross_entropy(m.o(torch.cat([h, c, e], 1)), target[:, i + 1])
        return loss / (target.shape[1] - 1)


@case("train2.gru_attention", "seq2seq", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    adam = lambda p: torch.optim.Adam(p, 2e-3, foreach=False)  # noqa: E731
    return TrainStep(Forced(), lambda m, *x: m(*x), adam), (text(2, 7, n=500), text(2, 6, n=500))
