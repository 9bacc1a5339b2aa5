"""More cases by the second author, of all classes: the styles that a recognizer is likely to have missed."""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..oracle import phase
from ..parts import img, mlp
from ..registry import split

case = split("public")
PLAIN = "plain torch, second author"
PRE, DEC = "llm.prefill", "llm.decode"
STEM, BACK, HEAD, FIND = "vision.stem", "vision.backbone", "vision.head", "vision.detect"


def w(*shape: int, scale: float = 0.1) -> nn.Parameter:
    """A random weight."""
    return nn.Parameter(torch.randn(*shape) * scale)


def text(*shape: int, n: int = 900) -> torch.Tensor:
    """Random token ids."""
    return torch.randint(1, n, shape)


def greedy(run: Any, first: torch.Tensor, steps: int, name: str) -> torch.Tensor:
    """Steps of the best token; `run` gets the tokens and the number of the step."""
    s, out = first, [first]
    for i in range(steps):
        token = s.argmax(-1)
        with phase(name):
            s = run(token, i)
        out.append(s)
    return torch.stack(out)


# Language models.
class Small(nn.Module):
    """The cache holds bytes: keys and values as int8 with a scale for each token."""

    def __init__(self, v: int = 900, d: int = 64, n: int = 2, h: int = 4) -> None:
        super().__init__()
        self.e, self.q, self.o = (
            nn.Embedding(v, d),
            nn.ModuleList(nn.Linear(d, 3 * d) for _ in range(n)),
            nn.ModuleList(nn.Linear(d, d) for _ in range(n)),
        )
        self.f, self.h, self.p = nn.ModuleList(mlp(d, 2 * d, d, last=True) for _ in range(n)), h, w(40, d)

    @staticmethod
    def pack(x: torch.Tensor) -> Any:
        s = x.abs().amax(-1, keepdim=True) / 127 + 1e-6
        return (x / s).round().to(torch.int8), s

    def run(self, ids: torch.Tensor, past: list[Any], at: int) -> torch.Tensor:
        x = self.e(ids) + self.p[at : at + ids.shape[1]]
        t, d = ids.shape[1], x.shape[-1]
        for i, (q_, o, f) in enumerate(zip(self.q, self.o, self.f, strict=True)):
            q, k, v = q_(F.layer_norm(x, (d,))).unflatten(2, (3, self.h, -1)).permute(2, 0, 3, 1, 4)
            new = (*self.pack(k), *self.pack(v))
            past[i] = new if past[i] is None else tuple(torch.cat(z, 2) for z in zip(past[i], new, strict=True))
            k, v = past[i][0].float() * past[i][1], past[i][2].float() * past[i][3]
            a = q @ k.transpose(2, 3) * 0.25
            a = a + torch.full(a.shape[-2:], -1e9, device=a.device).triu(a.shape[-1] - t + 1)
            x = x + o((a.softmax(-1) @ v).transpose(1, 2).flatten(2))
            x = x + f(F.layer_norm(x, (d,)))
        return F.linear(x[:, -1], self.e.weight)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        past: list[Any] = [None] * len(self.q)
        with phase(PRE):
            s = self.run(ids, past, 0)
        return greedy(lambda t, i: self.run(t[:, None], past, ids.shape[1] + i), s, 4, DEC)


@case("llm2.bytes_in_cache", "llm", (PRE, DEC), kv="legacy", source=PLAIN)
def _() -> Any:
    return Small(), (text(2, 9),)


class Halves(nn.Module):
    """Everything in bfloat16; keys are stored transposed; two norms a block, before and after."""

    def __init__(self, v: int = 900, d: int = 64, n: int = 2, room: int = 24) -> None:
        super().__init__()
        self.e, self.room, self.n = nn.Embedding(v, d), room, n
        self.a, self.b, self.c, self.d = w(n, d, 3 * d), w(n, d, d), w(n, d, 4 * d), w(n, 2 * d, d)
        self.g = nn.Parameter(torch.ones(n, 4, d))
        self.o = nn.Linear(d, v, bias=False)
        self.bfloat16()

    def run(self, ids: torch.Tensor, k: torch.Tensor, v: torch.Tensor, at: int) -> torch.Tensor:
        x = self.e(ids)
        b, t, d = x.shape
        seen = torch.arange(self.room, device=x.device)[None] <= torch.arange(at, at + t, device=x.device)[:, None]
        for i in range(self.n):
            y = F.rms_norm(x, (d,), self.g[i, 0])
            q, k_, v_ = (z.view(b, t, 4, -1).transpose(1, 2) for z in (y @ self.a[i]).split(d, 2))
            k[i, ..., at : at + t] = k_.transpose(2, 3)
            v[i, ..., at : at + t, :] = v_
            a = (q @ k[i]).float() / 4
            a = torch.where(seen, a, -torch.inf).softmax(-1).to(x.dtype) @ v[i]
            x = x + F.rms_norm(a.transpose(1, 2).reshape(b, t, d) @ self.b[i], (d,), self.g[i, 1])
            u, r = (F.rms_norm(x, (d,), self.g[i, 2]) @ self.c[i]).chunk(2, -1)
            x = x + F.rms_norm((F.gelu(u) * r) @ self.d[i], (d,), self.g[i, 3])
        return self.o(x[:, -1]).float()

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        b, d = ids.shape[0], self.e.weight.shape[1]
        k = torch.zeros(self.n, b, 4, d // 4, self.room, dtype=torch.bfloat16, device=ids.device)
        v = torch.zeros(self.n, b, 4, self.room, d // 4, dtype=torch.bfloat16, device=ids.device)
        with phase(PRE):
            s = self.run(ids, k, v, 0)
        return greedy(lambda t, i: self.run(t[:, None], k, v, ids.shape[1] + i), s, 4, DEC)


@case("llm2.bfloat16_transposed_keys", "llm", (PRE, DEC), kv="static", source=PLAIN)
def _() -> Any:
    return Halves(), (text(1, 10),)


class MinGru(nn.Module):
    """A gated recurrence: over the prompt by cumulative sums of logarithms, then step by step."""

    def __init__(self, v: int = 900, d: int = 64, n: int = 2) -> None:
        super().__init__()
        self.e, self.g, self.o = (
            nn.Embedding(v, d),
            nn.ModuleList(nn.Linear(d, 2 * d) for _ in range(n)),
            nn.Linear(d, v),
        )
        self.f = nn.ModuleList(mlp(d, 2 * d, d, last=True) for _ in range(n))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        states = []
        with phase(PRE):
            x = self.e(ids)
            for g, f in zip(self.g, self.f, strict=True):
                z, h = g(x).chunk(2, -1)
                keep, add = -F.softplus(z), -F.softplus(-z) + F.softplus(h).log()
                total = keep.cumsum(1)
                y = torch.exp(total + torch.logcumsumexp(add - total, 1))
                states.append(y[:, -1])
                x = x + y
                x = x + f(x)
            s = self.o(x[:, -1])

        def step(token: torch.Tensor, _i: int) -> torch.Tensor:
            x = self.e(token)
            for i, (g, f) in enumerate(zip(self.g, self.f, strict=True)):
                z, h = g(x).chunk(2, -1)
                states[i] = torch.lerp(states[i], F.softplus(h), torch.sigmoid(z))
                x = x + states[i]
                x = x + f(x)
            return self.o(x)

        return greedy(step, s, 5, DEC)


@case("llm2.parallel_recurrence", "llm", (PRE, DEC), kv="ssm", source=PLAIN)
def _() -> Any:
    return MinGru(), (text(2, 12),)


# Text and sequence to sequence.
class Mixed(nn.Module):
    """Words mixed by a cosine transform as a matrix, one block used three times, a class from the first token."""

    def __init__(self, v: int = 1000, d: int = 48) -> None:
        super().__init__()
        self.e, self.f, self.o = nn.Embedding(v, 24), mlp(d, 96, d, last=True), nn.Linear(d, 3)
        self.p, self.c = nn.Linear(24, d), w(d, d)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.p(self.e(ids))
        t, d = x.shape[1:]
        a, b = (
            torch.cos(
                math.pi
                / n
                * torch.outer(torch.arange(n, device=x.device) + 0.5, torch.arange(n, device=x.device).float())
            )
            for n in (t, d)
        )
        for _ in range(3):
            x = F.layer_norm(x + a.T @ x @ b / 8, (d,))
            x = F.layer_norm(x + self.f(x), (d,))
        return self.o(torch.tanh(x[:, 0] @ self.c))


@case("text2.cosine_mixing", "text_encoder", ("text.encode",), default="text.encode", source=PLAIN)
def _() -> Any:
    return Mixed(), (text(2, 16, n=1000),)


class Spelled(nn.Module):
    """Words from their letters: convolutions and a maximum over letters, highway layers, LSTMs both ways, tags."""

    def __init__(self, d: int = 40) -> None:
        super().__init__()
        self.e, self.c = nn.Embedding(100, 12), nn.ModuleList(nn.Conv1d(12, 20, k) for k in (2, 3))
        self.t, self.h, self.r, self.o = (
            nn.Linear(d, d),
            nn.Linear(d, d),
            nn.LSTM(d, d, bidirectional=True),
            nn.Linear(2 * d, 8),
        )

    def forward(self, letters: torch.Tensor) -> torch.Tensor:
        n, k = letters.shape
        x = self.e(letters).transpose(1, 2)
        x = torch.cat([c(x).tanh().amax(2) for c in self.c], 1)
        g = torch.sigmoid(self.t(x))
        x = g * F.relu(self.h(x)) + (1 - g) * x
        return self.o(self.r(x.unsqueeze(1))[0]).squeeze(1).log_softmax(1)


@case("text2.letters_to_tags", "text_encoder", ("text.encode",), default="text.encode", source=PLAIN)
def _() -> Any:
    return Spelled(), (text(10, 9, n=100),)


class Lists(nn.Module):
    """One sentence without a batch dimension: bidirectional encoder, decoder whose keys are lists of vectors."""

    def __init__(self, v: int = 600, d: int = 48) -> None:
        super().__init__()
        self.t, self.p = w(v, d, scale=0.4), w(30, d)
        self.a, self.b, self.c = w(4, d, d, scale=0.15), w(4, d, d, scale=0.15), w(4, d, d, scale=0.15)
        self.f, self.g = mlp(d, 96, d, last=True), mlp(d, 96, d, last=True)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        with phase("seq2seq.encode"):
            x = self.t[ids] + self.p[: len(ids)]
            x = x + ((x @ self.a[0]) @ (x @ self.a[1]).T / 7).softmax(1) @ (x @ self.a[2]) @ self.a[3]
            x = x + self.f(F.layer_norm(x, x.shape[-1:]))
        k, v = x @ self.c[1], x @ self.c[2]
        keys: list[torch.Tensor] = []
        values: list[torch.Tensor] = []

        def step(token: torch.Tensor, i: int) -> torch.Tensor:
            u = self.t[token] + self.p[i]
            keys.append(u @ self.b[1])
            values.append(u @ self.b[2])
            u = u + (torch.stack(keys) @ (u @ self.b[0]) / 7).softmax(0) @ torch.stack(values) @ self.b[3]
            u = u + (k @ (u @ self.c[0]) / 7).softmax(0) @ v @ self.c[3]
            return self.t @ (u + self.g(F.layer_norm(u, u.shape)))

        with phase("seq2seq.decode"):
            first = step(torch.ones_like(ids[0]), 0)
        return greedy(lambda t, i: step(t, i + 1), first, 5, "seq2seq.decode")


@case("seq2seq2.lists_unbatched", "seq2seq", ("seq2seq.encode", "seq2seq.decode"), source=PLAIN)
def _() -> Any:
    return Lists(), (text(8, n=600),)


# Vision.
class Windowed(nn.Module):
    """Attention in windows that shift by rolling, patches merged by strided slices; channels last."""

    def __init__(self, d: int = 32) -> None:
        super().__init__()
        self.i, self.m, self.o = w(4, 4, 3, d), nn.Linear(4 * d, 2 * d), nn.Linear(2 * d, 9)
        self.q, self.p = (
            nn.ModuleList(nn.Linear(n, 3 * n) for n in (d, d, 2 * d)),
            nn.ModuleList(nn.Linear(n, n) for n in (d, d, 2 * d)),
        )
        self.f = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(n), nn.Linear(n, 2 * n), nn.GELU(), nn.Linear(2 * n, n)) for n in (d, d, 2 * d)
        )

    def block(self, i: int, x: torch.Tensor, shift: int, s: int = 4) -> torch.Tensor:
        b, h, wide, d = x.shape
        y = torch.roll(F.layer_norm(x, (d,)), (-shift, -shift), (1, 2)) if shift else F.layer_norm(x, (d,))
        y = y.view(b, h // s, s, wide // s, s, d).transpose(2, 3).reshape(-1, s * s, d)
        q, k, v = self.q[i](y).view(y.shape[0], s * s, 3, 4, -1).permute(2, 0, 3, 1, 4)
        y = self.p[i](((q @ k.transpose(2, 3)) * 0.3).softmax(-1).matmul(v).transpose(1, 2).reshape(y.shape))
        y = y.view(b, h // s, wide // s, s, s, d).transpose(2, 3).reshape(b, h, wide, d)
        x = x + (torch.roll(y, (shift, shift), (1, 2)) if shift else y)
        return x + self.f[i](x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, h, wide, _ = x.shape
        with phase(STEM):
            x = torch.einsum("bhiwjc,ijcd->bhwd", x.view(b, h // 4, 4, wide // 4, 4, 3), self.i)
        with phase(BACK):
            x = self.block(1, self.block(0, x, 0), 2)
            x = self.m(torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1))
            x = self.block(2, x, 0)
        with phase(HEAD):
            return self.o(F.layer_norm(x, x.shape[-1:]).mean((1, 2)))


@case("vision2.shifted_windows", "vision", (STEM, BACK, HEAD), source=PLAIN)
def _() -> Any:
    return Windowed(), (torch.randn(1, 64, 64, 3),)


class Volume(nn.Module):
    """A scan of one channel in three dimensions: instance norms, strided convolutions, two classes."""

    def __init__(self) -> None:
        super().__init__()
        self.c = nn.ModuleList(nn.Conv3d(a, b, 3, s, 1) for a, b, s in ((1, 8, 1), (8, 16, 2), (16, 32, 2)))
        self.o = nn.Linear(32, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(STEM):
            x = F.leaky_relu(F.instance_norm(self.c[0](x)))
        with phase(BACK):
            for c in self.c[1:]:
                x = F.leaky_relu(F.instance_norm(c(x)))
        with phase(HEAD):
            return self.o(F.adaptive_max_pool3d(x, 1).flatten(1))


@case("vision2.scan_volume", "vision", (STEM, BACK, HEAD), source=PLAIN)
def _() -> Any:
    return Volume(), (torch.randn(1, 1, 16, 24, 24),)


class Stereo(nn.Module):
    """Two views: features by one net, a volume of shifted differences, a soft minimum of disparity."""

    def __init__(self, d: int = 16, reach: int = 6) -> None:
        super().__init__()
        self.a, self.b, self.n = nn.Conv2d(3, d, 5, 2, 2), nn.Conv2d(d, d, 3, 2, 1), reach
        self.c, self.e = nn.Conv3d(d, 8, 3, padding=1), nn.Conv3d(8, 1, 3, padding=1)

    def features(self, x: torch.Tensor) -> torch.Tensor:
        with phase(STEM):
            x = F.relu(self.a(x))
        with phase(BACK):
            return self.b(x)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        a, b = self.features(left), self.features(right)
        cost = torch.stack([(a - F.pad(b, (i, 0))[..., : a.shape[-1]]).abs() for i in range(self.n)], 2)
        cost = F.relu(self.c(cost))
        with phase(HEAD):
            p = (-self.e(cost).squeeze(1)).softmax(1)
            return (p * torch.arange(self.n, device=p.device).view(1, -1, 1, 1)).sum(1)


@case("vision2.stereo", "vision", (STEM, BACK, HEAD), source=PLAIN)
def _() -> Any:
    return Stereo(), (img(1, 40, 64), img(1, 40, 64))


class Boxes(nn.Module):
    """Default boxes on two maps without objectness; overlaps of all pairs as a matrix decide what survives."""

    def __init__(self, classes: int = 4, per: int = 3) -> None:
        super().__init__()
        self.b = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in ((3, 16), (16, 32), (32, 48), (48, 64)))
        self.l = nn.ModuleList(nn.Conv2d(c, 4 * per, 3, 1, 1) for c in (48, 64))
        self.s, self.per = nn.ModuleList(nn.Conv2d(c, classes * per, 3, 1, 1) for c in (48, 64)), per
        self.register_buffer("prior", torch.rand(3 * (8 * 8 + 4 * 4), 4))

    def forward(self, x: torch.Tensor) -> Any:
        maps = []
        with phase(BACK):
            for c in self.b:
                x = F.relu(c(x))
                maps.append(x)
        with phase(FIND):
            d = torch.cat([m(y).permute(0, 2, 3, 1).reshape(-1, 4) for m, y in zip(self.l, maps[2:], strict=True)])
            s = torch.cat([m(y).permute(0, 2, 3, 1).reshape(-1, 4) for m, y in zip(self.s, maps[2:], strict=True)])
            mid, size = (
                self.prior[:, :2] + 0.1 * d[:, :2] * self.prior[:, 2:],
                self.prior[:, 2:] * torch.exp(0.2 * d[:, 2:]),
            )
            best, label = s.softmax(1)[:, 1:].max(1)
            top, at = best.topk(12)
            b = torch.cat([mid - size / 2, mid + size / 2], 1)[at]
            low, high = torch.maximum(b[:, None, :2], b[None, :, :2]), torch.minimum(b[:, None, 2:], b[None, :, 2:])
            inner = (high - low).clamp(min=0).prod(2)
            area = (b[:, 2:] - b[:, :2]).prod(1)
            worst = (inner / (area[:, None] + area[None] - inner)).triu(1).amax(0)
            return b, top * (worst < 0.5), label[at]


@case("vision2.default_boxes", "vision", (BACK, FIND), detection=True, source=PLAIN)
def _() -> Any:
    return Boxes(), (img(1, 64),)


class Numbers(nn.Module):
    """A detector of queries: a convolutional map, an encoder over its cells, learned queries, classes and boxes."""

    def __init__(self, d: int = 48, n: int = 8) -> None:
        super().__init__()
        self.c = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in ((3, 16), (16, 32), (32, d)))
        self.t, self.q, self.p = nn.Transformer(d, 4, 1, 1, 96, 0.0, batch_first=True), w(n, d, scale=1.0), w(64, d)
        self.k, self.b = nn.Linear(d, 6), mlp(d, d, 4, last=True)

    def forward(self, x: torch.Tensor) -> Any:
        with phase(BACK):
            for c in self.c:
                x = F.relu(c(x))
        x = x.flatten(2).transpose(1, 2) + self.p
        x = self.t(x, self.q.expand(x.shape[0], -1, -1))
        with phase(FIND):
            return self.k(x), self.b(x).sigmoid()


@case("vision2.query_detector", "vision", (BACK, FIND), detection=True, source=PLAIN)
def _() -> Any:
    return Numbers(), (img(1, 64),)


# Recommenders.
class Weights(nn.Module):
    """Logistic regression over hashed categories: one weight a category, summed by bags."""

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.EmbeddingBag(20000, 1, mode="sum"), nn.Parameter(torch.zeros(1))

    def forward(self, ids: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        with phase("recsys.embedding_lookup"):
            y = self.w(ids, per_sample_weights=value)
        return torch.sigmoid(y + self.b)


@case("recsys2.wide_only", "recsys", ("recsys.embedding_lookup",), source=PLAIN)
def _() -> Any:
    return Weights(), (torch.randint(20000, (64, 15)), torch.rand(64, 15))


class Interests(nn.Module):
    """Several interests of a user by routing, the best of them for each candidate item."""

    def __init__(self, items: int = 6000, d: int = 24, k: int = 3) -> None:
        super().__init__()
        self.t, self.s, self.k = nn.Embedding(items, d), w(d, d, scale=0.2), k
        self.net = mlp(d, 48, d, last=True)

    def forward(self, past: torch.Tensor, some: torch.Tensor) -> torch.Tensor:
        with phase("recsys.embedding_lookup"):
            x, c = self.t(past), self.t(some)
        x = x @ self.s
        b = (
            torch.sin(torch.arange(past.shape[1] * self.k, device=x.device).float())
            .view(1, self.k, -1)
            .repeat(x.shape[0], 1, 1)
        )
        for _ in range(3):
            u = b.softmax(1) @ x
            n = u.square().sum(-1, keepdim=True)
            u = u * n.sqrt() / (1 + n)
            b = b + u @ x.transpose(1, 2)
        with phase("recsys.dense_mlp"):
            u = self.net(u)
        with phase("recsys.interaction"):
            return (c @ u.transpose(1, 2)).amax(2)


@case(
    "recsys2.interests", "recsys", ("recsys.embedding_lookup", "recsys.dense_mlp", "recsys.interaction"), source=PLAIN
)
def _() -> Any:
    return Interests(), (torch.randint(6000, (16, 12)), torch.randint(6000, (16, 10)))


# Several modalities, audio, diffusion, graphs.
class Prefix(nn.Module):
    """A caption after patches: they are the first positions of a decoder whose cache is a buffer."""

    def __init__(self, v: int = 700, d: int = 48, n: int = 2, room: int = 48) -> None:
        super().__init__()
        self.c, self.x, self.e, self.n = nn.Conv2d(3, d, 8, 8), w(2, 4, d, d, scale=0.15), nn.Embedding(v, d), n
        self.m, self.f, self.room = (
            w(n, 4, d, d, scale=0.15),
            nn.ModuleList(mlp(d, 96, d, last=True) for _ in range(n)),
            room,
        )
        self.p, self.o = w(room, d), nn.Linear(d, v)

    def run(self, x: torch.Tensor, k: torch.Tensor, v: torch.Tensor, at: int) -> torch.Tensor:
        t = x.shape[1]
        x = x + self.p[at : at + t]
        for i in range(self.n):
            y = F.layer_norm(x, x.shape[-1:])
            k[i, :, at : at + t], v[i, :, at : at + t] = y @ self.m[i, 1], y @ self.m[i, 2]
            a = (y @ self.m[i, 0]) @ k[i, :, : at + t].transpose(1, 2) / 7
            a = a + torch.full(a.shape[1:], -1e9, device=a.device).triu(at + 1)
            x = x + a.softmax(2) @ v[i, :, : at + t] @ self.m[i, 3]
            x = x + self.f[i](F.layer_norm(x, x.shape[-1:]))
        return self.o(x[:, -1])

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        with phase("mm.vision_encoder"):
            x = self.c(x).flatten(2).mT
            for m in self.x:
                x = x + ((x @ m[0]) @ (x @ m[1]).mT / 7).softmax(2) @ (x @ m[2]) @ m[3]
        k = torch.zeros(self.n, x.shape[0], self.room, x.shape[2], device=x.device)
        v = torch.zeros_like(k)
        with phase("mm.fusion"):
            s = self.run(torch.cat([x, self.e(ids)], 1), k, v, 0)
        at = x.shape[1] + ids.shape[1]
        return greedy(lambda t, i: self.run(self.e(t[:, None]), k, v, at + i), s, 4, "mm.fusion")


@case("mm2.prefix_captions", "multimodal", ("mm.vision_encoder", "mm.fusion"), kv="static", source=PLAIN)
def _() -> Any:
    return Prefix(), (img(1, 40), text(1, 3, n=700))


class Memes(nn.Module):
    """Late fusion: a bag of words and a convolutional net, both vectors through an MLP."""

    def __init__(self, d: int = 32) -> None:
        super().__init__()
        self.c, self.t, self.o = (
            nn.ModuleList(nn.Conv2d(a, b, 5, 3) for a, b in ((3, 16), (16, d))),
            w(900, d, scale=0.5),
            mlp(2 * d, 48, 2, last=True),
        )

    def forward(self, ids: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        with phase("mm.vision_encoder"):
            for c in self.c:
                x = F.relu(c(x))
            x = x.amax((2, 3))
        with phase("mm.text_encoder"):
            y = self.t[ids].mean(1)
        with phase("mm.fusion"):
            return self.o(torch.cat([x, y], 1))


@case("mm2.bag_of_words_and_picture", "multimodal", ("mm.vision_encoder", "mm.text_encoder", "mm.fusion"), source=PLAIN)
def _() -> Any:
    return Memes(), (text(3, 8), img(3, 64))


class Waves(nn.Module):
    """torch.stft inside: magnitudes, a mask by a recurrent net, and the masked magnitudes."""

    def __init__(self, n: int = 128, d: int = 40) -> None:
        super().__init__()
        self.n, self.r, self.o = (
            n,
            nn.GRU(n // 2 + 1, d, batch_first=True, bidirectional=True),
            nn.Linear(2 * d, n // 2 + 1),
        )
        self.register_buffer("win", torch.hann_window(n))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase("audio.frontend"):
            m = torch.stft(x, self.n, self.n // 2, window=self.win, return_complex=True).abs()
            y = torch.log1p(m).transpose(1, 2)
        with phase("audio.encode"):
            return m * torch.sigmoid(self.o(self.r(y)[0])).transpose(1, 2)


@case("audio2.stft_mask", "audio", ("audio.frontend", "audio.encode"), source=PLAIN)
def _() -> Any:
    return Waves(), (torch.randn(1, 2048),)


class Dilated(nn.Module):
    """A wave from mel frames: transposed convolutions and gated dilated ones (a vocoder); no phase is argued for."""

    def __init__(self, mels: int = 40, d: int = 24) -> None:
        super().__init__()
        self.u = nn.ModuleList(
            [nn.ConvTranspose1d(mels, d, 8, 4, 2), nn.ConvTranspose1d(d, d, 8, 4, 2), nn.ConvTranspose1d(d, d, 8, 4, 2)]
        )
        self.g = nn.ModuleList(nn.Conv1d(d, 2 * d, 3, padding=2**i, dilation=2**i) for i in range(4))
        self.o = nn.Conv1d(d, 1, 7, padding=3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for u in self.u:
            x = u(F.leaky_relu(x, 0.1))
        for g in self.g:
            a, b = g(x).chunk(2, 1)
            x = x + torch.tanh(a) * torch.sigmoid(b)
        return torch.tanh(self.o(F.leaky_relu(x, 0.1)))


@case("audio2.vocoder", "audio", (), source=PLAIN)
def _() -> Any:
    return Dilated(), (torch.randn(1, 40, 24),)


class Channel(nn.Module):
    """The time is one more channel of the picture; plain convolutions; Euler steps with a midpoint."""

    def __init__(self, d: int = 24) -> None:
        super().__init__()
        self.c = nn.ModuleList(
            [
                nn.Conv2d(4, d, 3, 1, 1),
                nn.Conv2d(d, 2 * d, 3, 2, 1),
                nn.Conv2d(2 * d, 2 * d, 3, 1, 1),
                nn.ConvTranspose2d(2 * d, d, 2, 2),
                nn.Conv2d(2 * d, 3, 3, 1, 1),
            ]
        )

    def net(self, x: torch.Tensor, t: float) -> torch.Tensor:
        a = F.silu(self.c[0](torch.cat([x, torch.full_like(x[:, :1], t)], 1)))
        b = F.silu(self.c[2](F.silu(self.c[1](a))))
        return self.c[4](torch.cat([a, F.silu(self.c[3](b))], 1))

    def forward(self, x: torch.Tensor, steps: int = 3) -> torch.Tensor:
        for i in range(steps):
            with phase("diffusion.denoise"):
                v = self.net(x, i / steps)
            half = x + v / (2 * steps)
            with phase("diffusion.denoise"):
                v = self.net(half, (i + 0.5) / steps)
            x = x + v / steps
        return x


@case("diffusion2.time_as_channel", "diffusion", ("diffusion.denoise",), source=PLAIN)
def _() -> Any:
    return Channel(), (torch.randn(1, 3, 16, 16),)


class Incidence(nn.Module):
    """Edges as matrices of zeros and ones: states go to edges and back by products with them."""

    def __init__(self, d: int = 20) -> None:
        super().__init__()
        self.a, self.b, self.c, self.o = nn.Linear(6, d), nn.Linear(2 * d, d), nn.Linear(2 * d, d), nn.Linear(d, 3)

    def forward(self, x: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.a(x))
        with phase("gnn.message_passing"):
            src, dst = (F.one_hot(i, x.shape[0]).to(x.dtype) for i in e)
            for _ in range(2):
                m = torch.relu(self.b(torch.cat([src @ x, dst @ x], 1)))
                x = torch.relu(self.c(torch.cat([x, dst.T @ m], 1)))
        return self.o(x.sum(0))


@case("gnn2.incidence_matrices", "gnn", ("gnn.message_passing",), source=PLAIN)
def _() -> Any:
    return Incidence(), (torch.randn(22, 6), torch.randint(22, (2, 70)))


class Segments(nn.Module):
    """Messages gathered, sorted edges summed by differences of cumulative sums, then a mean over nodes."""

    def __init__(self, d: int = 24) -> None:
        super().__init__()
        self.a, self.b = (
            nn.ModuleList([nn.Linear(8, d), nn.Linear(d, d)]),
            nn.ModuleList([nn.Linear(8, d), nn.Linear(d, d)]),
        )

    def forward(self, x: torch.Tensor, src: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        with phase("gnn.message_passing"):
            for a, b in zip(self.a, self.b, strict=True):
                total = F.pad(x[src].cumsum(0), (0, 0, 1, 0))
                x = torch.relu(a(x) + b(total[ends[1:]] - total[ends[:-1]]))
        return x.mean(0)


@case("gnn2.cumulative_segments", "gnn", ("gnn.message_passing",), source=PLAIN)
def _() -> Any:
    ends = torch.cat([torch.zeros(1, dtype=torch.long), torch.randint(1, 5, (25,)).cumsum(0)])
    return Segments(), (torch.randn(25, 8), torch.randint(25, (int(ends[-1]),)), ends)


# None of the classes.
def rest(name: str) -> Any:
    return case(name, "other", ("other.forward",), default="other.forward", source=PLAIN)


class Forecast(nn.Module):
    """A causal transformer over numbers whose cache grows while it feeds its own forecasts back."""

    def __init__(self, d: int = 32) -> None:
        super().__init__()
        self.i, self.q, self.o, self.z = nn.Linear(2, d), nn.Linear(d, 3 * d), nn.Linear(d, d), nn.Linear(d, 2)

    def forward(self, x: torch.Tensor, steps: int = 5) -> torch.Tensor:
        past, out = None, []
        for _ in range(steps + 1):
            y = self.i(x)
            q, k, v = self.q(y).chunk(3, -1)
            k, v = (k, v) if past is None else (torch.cat([past[0], k], 1), torch.cat([past[1], v], 1))
            past = (k, v)
            y = y + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[1] > 1))
            x = self.z(F.gelu(y[:, -1:]))
            out.append(x)
        return torch.cat(out, 1)


@rest("other2.cached_forecast")
def _() -> Any:
    return Forecast(), (torch.randn(3, 20, 2),)


class Bodies(nn.Module):
    """Gravity between all pairs of bodies, leapfrog steps."""

    def forward(self, x: torch.Tensor, v: torch.Tensor, m: torch.Tensor) -> Any:
        for _ in range(6):
            d = x[None] - x[:, None]
            f = (d * (m[None, :, None] / (d.square().sum(-1, keepdim=True) + 0.01) ** 1.5)).sum(1)
            v = v + 0.01 * f
            x = x + 0.01 * v
        return x, v


@rest("other2.bodies")
def _() -> Any:
    return Bodies(), (torch.randn(16, 3), torch.randn(16, 3), torch.rand(16))


class Hidden(nn.Module):
    """Forward probabilities of a hidden Markov model over symbols that are observed."""

    def __init__(self, s: int = 5, o: int = 8) -> None:
        super().__init__()
        self.t, self.e = w(s, s, scale=1.0), w(s, o, scale=1.0)

    def forward(self, seen: torch.Tensor) -> torch.Tensor:
        t, e = self.t.log_softmax(1), self.e.log_softmax(1)
        a = e[:, seen[:, 0]].T - math.log(t.shape[0])
        for i in range(1, seen.shape[1]):
            a = torch.logsumexp(a[:, :, None] + t, 1) + e[:, seen[:, i]].T
        return a.logsumexp(1)


@rest("other2.hidden_markov")
def _() -> Any:
    return Hidden(), (torch.randint(8, (4, 14)),)


class Transport(nn.Module):
    """Optimal transport between two clouds by Sinkhorn's iterations."""

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        cost = (a[:, None] - b[None]).square().sum(-1)
        f, g = torch.zeros_like(cost[:, 0]), torch.zeros_like(cost[0])
        for _ in range(8):
            f = -0.1 * torch.logsumexp((g[None] - cost) / 0.1 - math.log(len(b)), 1)
            g = -0.1 * torch.logsumexp((f[:, None] - cost) / 0.1 - math.log(len(a)), 0)
        plan = torch.exp((f[:, None] + g[None] - cost) / 0.1) / (len(a) * len(b))
        return (plan * cost).sum()


@rest("other2.transport")
def _() -> Any:
    return Transport(), (torch.rand(20, 2), torch.rand(24, 2))
