"""Graphs and several modalities by a second author."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..oracle import phase
from ..parts import TrainStep, img
from ..registry import split

case = split("public")
PASS = "gnn.message_passing"
SEE, READ, FUSE = "mm.vision_encoder", "mm.text_encoder", "mm.fusion"
MM = (SEE, READ, FUSE)
PLAIN = "plain torch, second author"


def w(*shape: int, scale: float = 0.1) -> nn.Parameter:
    """A random weight."""
    return nn.Parameter(torch.randn(*shape) * scale)


def edges(nodes: int, count: int) -> torch.Tensor:
    """Sources and targets, the targets in order."""
    pairs = torch.randint(nodes, (2, count))
    return pairs[:, pairs[1].argsort()]


class Sums(nn.Module):
    """Isomorphism layers: neighbours by index_select, index_add into a zero tensor, graphs read out by index_add."""

    def __init__(self, d: int = 24) -> None:
        super().__init__()
        self.a, self.b = (
            nn.ModuleList(nn.Linear(n, d) for n in (9, d, d)),
            nn.ModuleList(nn.Linear(d, d) for _ in range(3)),
        )
        self.e, self.o = nn.Parameter(torch.zeros(3)), nn.Linear(d, 2)

    def forward(self, x: torch.Tensor, e: torch.Tensor, owner: torch.Tensor) -> torch.Tensor:
        with phase(PASS):
            for a, b, eps in zip(self.a, self.b, self.e, strict=True):
                got = torch.zeros_like(x).index_add_(0, e[1], x.index_select(0, e[0]))
                x = F.relu(b(F.relu(a((1 + eps) * x + got))))
        pooled = torch.zeros(6, x.shape[1], device=x.device).index_add(0, owner, x)
        return self.o(pooled)


@case("gnn2.isomorphism_index_add", "gnn", (PASS,), source=PLAIN)
def _() -> Any:
    return Sums(), (torch.randn(48, 9), edges(48, 150), torch.arange(6).repeat_interleave(8))


class Normalized(nn.Module):
    """Graph convolutions with a dense adjacency that is normalized inside, several graphs in a batch."""

    def __init__(self, d: int = 32) -> None:
        super().__init__()
        self.w = nn.ParameterList([w(12, d), w(d, d), w(d, 4)])

    def forward(self, x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        with phase(PASS):
            a = a + torch.eye(a.shape[-1], device=a.device)
            r = a.sum(-1).pow(-0.5)
            a = r.unsqueeze(-1) * a * r.unsqueeze(-2)
            for i, k in enumerate(self.w):
                x = a @ (x @ k)
                x = x if i == 2 else torch.relu(x)
        return x.log_softmax(-1)


@case("gnn2.dense_normalized", "gnn", (PASS,), source=PLAIN)
def _() -> Any:
    a = (torch.rand(3, 20, 20) < 0.15).float()
    return Normalized(), (torch.randn(3, 20, 12), ((a + a.transpose(1, 2)) > 0).float())


class Attention(nn.Module):
    """Graph attention with a softmax over each node's edges by scatter_reduce and scatter_add."""

    def __init__(self, d: int = 32, h: int = 4) -> None:
        super().__init__()
        self.p, self.h = nn.ModuleList([nn.Linear(16, d, bias=False), nn.Linear(d, d, bias=False)]), h
        self.s, self.t = w(2, h, d // h, scale=0.4), w(2, h, d // h, scale=0.4)

    def forward(self, x: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        src, dst = e
        n = x.shape[0]
        with phase(PASS):
            for i, p in enumerate(self.p):
                z = p(x).view(n, self.h, -1)
                s = F.leaky_relu((z * self.s[i]).sum(-1)[src] + (z * self.t[i]).sum(-1)[dst], 0.2)
                at = dst[:, None].expand_as(s)
                top = torch.full((n, self.h), -1e9, device=x.device).scatter_reduce(0, at, s, "amax")
                s = torch.exp(s - top[dst])
                total = torch.zeros(n, self.h, device=x.device).scatter_add(0, at, s)
                m = z[src] * (s / (total[dst] + 1e-9)).unsqueeze(-1)
                x = F.elu(torch.zeros_like(z).index_add(0, dst, m).flatten(1))
        return x


@case("gnn2.attention_scatter", "gnn", (PASS,), source=PLAIN)
def _() -> Any:
    return Attention(), (torch.randn(40, 16), edges(40, 160))


class Molecules(nn.Module):
    """Messages conditioned on bonds and distances, a GRU as the update, atoms from a table, a sum as the energy."""

    def __init__(self, d: int = 24) -> None:
        super().__init__()
        self.z, self.b = nn.Embedding(20, d), nn.Embedding(4, d)
        self.f, self.u, self.o = (
            nn.Sequential(nn.Linear(16, d), nn.Softplus(), nn.Linear(d, d)),
            nn.GRUCell(d, d),
            nn.Linear(d, 1),
        )

    def forward(self, kind: torch.Tensor, xyz: torch.Tensor, e: torch.Tensor, bond: torch.Tensor) -> torch.Tensor:
        x = self.z(kind)
        with phase(PASS):
            far = (xyz[e[0]] - xyz[e[1]]).norm(dim=1, keepdim=True)
            basis = torch.exp(-4 * (far - torch.linspace(0, 4, 16, device=far.device)).square())
            gate = self.f(basis) * self.b(bond)
            for _ in range(3):
                m = torch.zeros_like(x).index_add(0, e[1], x[e[0]] * gate)
                x = self.u(m, x)
        return self.o(x).sum()


@case("gnn2.molecule_gru", "gnn", (PASS,), source=PLAIN)
def _() -> Any:
    return Molecules(), (torch.randint(20, (18,)), torch.randn(18, 3), edges(18, 60), torch.randint(4, (60,)))


class Rows(nn.Module):
    """Neighbours as rows of a compressed matrix: a loop over nodes, the mean of each row, its maximum too."""

    def __init__(self, starts: list[int], d: int = 20) -> None:
        super().__init__()
        self.starts = starts
        self.a, self.b = nn.Linear(3 * 8, d), nn.Linear(3 * d, 5)

    def forward(self, x: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
        with phase(PASS):
            for layer in (self.a, self.b):
                got = []
                for i in range(len(self.starts) - 1):
                    rows = x[near[self.starts[i] : self.starts[i + 1]]]
                    got.append(torch.cat([x[i], rows.mean(0), rows.max(0).values]))
                x = torch.tanh(layer(torch.stack(got)))
        return x


@case("gnn2.row_loop", "gnn", (PASS,), source=PLAIN)
def _() -> Any:
    counts = [3, 1, 4, 2, 5, 2, 3, 1, 4, 3, 2, 2, 3, 4]
    starts = [sum(counts[:i]) for i in range(len(counts) + 1)]
    return Rows(starts), (torch.randn(14, 8), torch.randint(14, (starts[-1],)))


class Relations(nn.Module):
    """Several kinds of edges, a matrix each from shared bases, degrees by bincount-like sums."""

    def __init__(self, d: int = 16, kinds: int = 3, bases: int = 2) -> None:
        super().__init__()
        self.x, self.v, self.c, self.s = (
            w(30, d, scale=0.5),
            w(2, bases, d, d, scale=0.3),
            w(2, kinds, bases, scale=0.7),
            w(2, d, d, scale=0.3),
        )
        self.o = nn.Linear(d, 6)

    def forward(self, *graphs: torch.Tensor) -> torch.Tensor:
        x = self.x
        with phase(PASS):
            for i in range(2):
                out = x @ self.s[i]
                for k, (src, dst) in enumerate(graphs):
                    m = torch.einsum("b,bde->de", self.c[i, k], self.v[i])
                    degree = torch.zeros(x.shape[0], device=x.device).index_add(
                        0, dst, torch.ones_like(dst, dtype=x.dtype)
                    )
                    out = out.index_add(0, dst, (x @ m)[src] / degree.clamp(min=1)[dst].unsqueeze(1))
                x = torch.relu(out)
        return self.o(x)


@case("gnn2.relations", "gnn", (PASS,), source=PLAIN)
def _() -> Any:
    return Relations(), tuple(edges(30, 40) for _ in range(3))


class Links(nn.Module):
    """Sampled neighbours in a table of fixed size, means over them, the dot product of pairs as a link's score."""

    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(10, d), nn.Linear(10, d), nn.Linear(d, d), nn.Linear(d, d)

    def forward(self, x: torch.Tensor, near: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        with phase(PASS):
            x = F.relu(self.a(x) + self.b(x[near].mean(1)))
            x = F.normalize(self.c(x) + self.d(x[near].mean(1)))
        return (x[pairs[0]] * x[pairs[1]]).sum(1).sigmoid()


@case("gnn2.neighbour_table", "gnn", (PASS,), source=PLAIN)
def _() -> Any:
    return Links(), (torch.randn(50, 10), torch.randint(50, (50, 5)), torch.randint(50, (2, 30)))


@case("train2.attention_scatter_clipped", "gnn", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    class Clipped(torch.optim.Adam):
        def step(self, closure: Any = None) -> Any:
            nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 0.5)
            return super().step(closure)

    def loss(m: nn.Module, x: torch.Tensor, e: torch.Tensor, y: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(m(x, e)[known], y[known])

    x = (torch.randn(40, 16), edges(40, 160), torch.randint(32, (40,)), torch.arange(0, 40, 3))
    return TrainStep(Attention(), loss, lambda p: Clipped(p, 1e-3)), x


# Several modalities.
class Eye(nn.Module):
    """A little convolutional net: a map of features."""

    def __init__(self, d: int = 48) -> None:
        super().__init__()
        self.c = nn.ModuleList(nn.Conv2d(a, b, 3, 2, 1) for a, b in ((3, 16), (16, 32), (32, d)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for c in self.c:
            x = F.relu(c(x))
        return x


class Asked(nn.Module):
    """Questions about pictures: a convolutional net, an LSTM, their product, classes of answers."""

    def __init__(self, v: int = 1000, d: int = 48) -> None:
        super().__init__()
        self.a, self.e, self.r = Eye(d), nn.Embedding(v, d), nn.LSTM(d, d, batch_first=True)
        self.p, self.q, self.o = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, 100)

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        with phase(SEE):
            x = self.a(x).mean((2, 3))
        with phase(READ):
            q = self.r(self.e(ids))[1][0][-1]
        x, q = torch.tanh(self.p(x)), torch.tanh(self.q(q))
        with phase(FUSE):
            return self.o(x * q)


@case("mm2.cnn_lstm_product", "multimodal", MM, vqa=True, source=PLAIN)
def _() -> Any:
    return Asked(), (img(2, 48), torch.randint(1, 1000, (2, 9)))


class Stacked(nn.Module):
    """Attention over the map by the question, twice; the text by convolutions; the text runs first."""

    def __init__(self, v: int = 1000, d: int = 48) -> None:
        super().__init__()
        self.i, self.t, self.c = Eye(d), w(v, d, scale=0.4), nn.ModuleList(nn.Conv1d(d, d, k) for k in (1, 2, 3))
        self.f = nn.Linear(3 * d, d)
        self.u, self.w, self.p, self.o = w(2, d, 32), w(2, d, 32), w(2, 32), nn.Linear(d, 50)

    def forward(self, ids: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        with phase(READ):
            y = self.t[ids].transpose(1, 2)
            q = self.f(torch.cat([torch.tanh(c(y)).amax(2) for c in self.c], 1))
        with phase(SEE):
            m = self.i(x).flatten(2).transpose(1, 2)
        with phase(FUSE):
            for i in range(2):
                a = torch.tanh(m @ self.u[i] + (q @ self.w[i])[:, None]) @ self.p[i]
                q = q + (a.softmax(1).unsqueeze(1) @ m).squeeze(1)
            return self.o(q)


@case("mm2.stacked_attention", "multimodal", (READ, SEE, FUSE), vqa=True, source=PLAIN)
def _() -> Any:
    return Stacked(), (torch.randint(1, 1000, (2, 8)), img(2, 48))


class Blocks(nn.Module):
    """Transformer blocks of stacked matrices, optionally with keys from elsewhere."""

    def __init__(self, d: int, n: int, h: int = 4, cross: bool = False) -> None:
        super().__init__()
        self.m, self.f, self.g, self.h = (
            w(n, 4, d, d, scale=d**-0.5),
            w(n, d, 2 * d, scale=d**-0.5),
            w(n, 2 * d, d, scale=0.1),
            h,
        )
        self.x = w(n, 4, d, d, scale=d**-0.5) if cross else None

    def att(self, x: torch.Tensor, y: torch.Tensor, m: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        q, k, v = ((a @ b).unflatten(2, (self.h, -1)).transpose(1, 2) for a, b in zip((x, y, y), m, strict=False))
        a = q @ k.transpose(2, 3) * q.shape[-1] ** -0.5
        a = a if mask is None else a.masked_fill(mask, -1e9)
        return (a.softmax(3) @ v).transpose(1, 2).flatten(2) @ m[3]

    def over(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        n = x.shape[-1:]
        x = x + self.att(F.layer_norm(x, n), y, self.m[0])
        return x + F.gelu(F.layer_norm(x, n) @ self.f[0]) @ self.g[0]

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None, mask: torch.Tensor | None = None) -> torch.Tensor:
        n = x.shape[-1:]
        for i in range(self.m.shape[0]):
            z = F.layer_norm(x, n)
            x = x + self.att(z, z, self.m[i], mask)
            if self.x is not None and y is not None:
                x = x + self.att(F.layer_norm(x, n), y, self.x[i])
            x = x + F.gelu(F.layer_norm(x, n) @ self.f[i]) @ self.g[i]
        return x


def cut(x: torch.Tensor, p: int = 8) -> torch.Tensor:
    """Patches of pictures, flattened."""
    return F.unfold(x, p, stride=p).transpose(1, 2)


class Dual(nn.Module):
    """Contrastive towers of matrices: patches by unfold, words by index, unit vectors, a matrix of similarities."""

    def __init__(self, v: int = 900, d: int = 48) -> None:
        super().__init__()
        self.a, self.b, self.c, self.t = w(192, d), w(v, d, scale=0.4), w(1, 1, d), nn.Parameter(torch.tensor(2.6))
        self.x, self.y, self.p, self.q = Blocks(d, 2), Blocks(d, 2), w(d, 32, scale=0.2), w(d, 32, scale=0.2)

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        with phase(SEE):
            x = cut(x) @ self.a
            x = self.x(torch.cat([self.c.expand(x.shape[0], -1, -1), x], 1))[:, 0] @ self.p
        with phase(READ):
            y = self.y(self.b[ids]).mean(1) @ self.q
        with phase(FUSE):
            x, y = (z / z.norm(dim=1, keepdim=True) for z in (x, y))
            return self.t.exp() * x @ y.T


@case("mm2.dual_matrices", "multimodal", MM, source=PLAIN)
def _() -> Any:
    return Dual(), (img(3, 48), torch.randint(1, 900, (3, 7)))


class Three(nn.Module):
    """An image encoder, a text encoder, and a joint encoder over both of their outputs with a token of its own."""

    def __init__(self, v: int = 900, d: int = 48) -> None:
        super().__init__()
        self.p, self.e = nn.Conv2d(3, d, 12, 12), nn.Embedding(v, d)
        layer = lambda: nn.TransformerEncoderLayer(d, 4, 96, 0.0, "gelu", batch_first=True, norm_first=True)  # noqa: E731
        self.i, self.t, self.j = (nn.ModuleList(layer() for _ in range(2)) for _ in range(3))
        self.a, self.b, self.c, self.o = nn.Linear(d, d), nn.Linear(d, d), w(1, 1, d), nn.Linear(d, 2)

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        with phase(SEE):
            x = self.p(x).flatten(2).mT
            for m in self.i:
                x = m(x)
        with phase(READ):
            y = self.e(ids)
            for m in self.t:
                y = m(y)
        x, y = self.a(x), self.b(y)
        with phase(FUSE):
            z = torch.cat([self.c.expand(x.shape[0], -1, -1), x, y], 1)
            for m in self.j:
                z = m(z)
            return self.o(z[:, 0])


@case("mm2.joint_encoder", "multimodal", MM, source=PLAIN)
def _() -> Any:
    return Three(), (img(2, 48), torch.randint(1, 900, (2, 8)))


class Captioner(nn.Module):
    """Captions: patches, then an LSTM that attends to them for each word, greedy."""

    def __init__(self, v: int = 700, d: int = 48) -> None:
        super().__init__()
        self.i, self.e, self.c, self.o = Eye(d), nn.Embedding(v, d), nn.LSTMCell(2 * d, d), nn.Linear(d, v)
        self.k, self.q, self.s = nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, 1)

    def forward(self, x: torch.Tensor, steps: int = 6) -> torch.Tensor:
        with phase(SEE):
            m = self.i(x).flatten(2).transpose(1, 2)
        h = c = m.mean(1)
        token, out = torch.ones(x.shape[0], dtype=torch.long, device=x.device), []
        for _ in range(steps):
            with phase(FUSE):
                a = self.s(torch.tanh(self.k(m) + self.q(h).unsqueeze(1))).softmax(1)
                h, c = self.c(torch.cat([self.e(token), (a * m).sum(1)], 1), (h, c))
                s = self.o(h)
            token = s.argmax(1)
            out.append(s)
        return torch.stack(out)


@case("mm2.lstm_captions", "multimodal", (SEE, FUSE), source=PLAIN)
def _() -> Any:
    return Captioner(), (img(2, 48),)


class Queries(nn.Module):
    """Learned queries gather from patches; they and the prompt's words run through causal blocks."""

    def __init__(self, v: int = 900, d: int = 48) -> None:
        super().__init__()
        self.a, self.x, self.q, self.g = w(192, d), Blocks(d, 2), w(6, d, scale=0.5), Blocks(d, 1, cross=True)
        self.e, self.l, self.p = nn.Embedding(v, d), Blocks(d, 2), nn.Linear(d, d)

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        with phase(SEE):
            x = self.x(cut(x) @ self.a)
        q = self.p(self.g(self.q.expand(x.shape[0], -1, -1), x))
        with phase(FUSE):
            z = torch.cat([q, self.e(ids)], 1)
            mask = torch.ones(z.shape[1], z.shape[1], dtype=torch.bool, device=z.device).triu(1)
            return self.l(z, mask=mask)[:, -1] @ self.e.weight.T


@case("mm2.learned_queries", "multimodal", (SEE, FUSE), source=PLAIN)
def _() -> Any:
    return Queries(), (img(2, 48), torch.randint(1, 900, (2, 6)))


class BothWays(nn.Module):
    """Words attend to patches and patches to words; both are pooled and compared."""

    def __init__(self, v: int = 900, d: int = 48) -> None:
        super().__init__()
        self.e, self.p, self.i, self.t = w(v, d, scale=0.4), nn.Linear(192, d), Blocks(d, 1), Blocks(d, 1)
        self.a, self.b = Blocks(d, 1), Blocks(d, 1)
        self.o = nn.Linear(2 * d, 3)

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        with phase(READ):
            y = self.t(F.embedding(ids, self.e))
        with phase(SEE):
            x = self.i(self.p(cut(x)))
        with phase(FUSE):
            u, v = self.a.over(y, x), self.b.over(x, y)
            return self.o(torch.cat([u.amax(1), v.amax(1)], 1))


@case("mm2.both_ways", "multimodal", (READ, SEE, FUSE), source=PLAIN)
def _() -> Any:
    return BothWays(), (img(2, 40), torch.randint(1, 900, (2, 10)))


class Clip(nn.Module):
    """Frames of a clip through a net, a GRU over them; a sentence through a GRU; an MLP on both."""

    def __init__(self, v: int = 900, d: int = 48) -> None:
        super().__init__()
        self.i, self.g = Eye(d), nn.GRU(d, d, batch_first=True)
        self.e, self.t = nn.Embedding(v, d), nn.GRU(d, d, batch_first=True, bidirectional=True)
        self.o = nn.Sequential(nn.Linear(3 * d, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        with phase(SEE):
            b, f = x.shape[:2]
            x = self.i(x.flatten(0, 1)).mean((2, 3)).view(b, f, -1)
            x = self.g(x)[0][:, -1]
        with phase(READ):
            y = self.t(self.e(ids))[0].mean(1)
        with phase(FUSE):
            return self.o(torch.cat([x, y], 1)).squeeze(1)


@case("mm2.video_sentence", "multimodal", MM, video=True, source=PLAIN)
def _() -> Any:
    return Clip(), (torch.randn(2, 4, 3, 32, 32), torch.randint(1, 900, (2, 7)))


@case("train2.dual_matrices", "multimodal", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    def loss(m: nn.Module, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        s = m(x, ids)
        at = torch.arange(len(s), device=s.device)
        return (F.cross_entropy(s, at) + F.cross_entropy(s.t(), at)) / 2

    return TrainStep(Dual(), loss, lambda p: torch.optim.SGD(p, 0.05, weight_decay=1e-4)), (
        img(3, 32),
        torch.randint(1, 900, (3, 6)),
    )
