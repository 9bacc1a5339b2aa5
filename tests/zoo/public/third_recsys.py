"""Recommenders by a third author: next items over the whole table, evolving interests, field matrices, rows trained."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..oracle import phase
from ..parts import TrainStep, mlp
from ..registry import split
from .recsys import EMBEDDINGS, TABLE, Named, ctr_features, deepctr, rechub_features
from .third_seq2seq import PLAIN, Guarded, w

case = split("public")
LOOKUP, DENSE, CROSS = "recsys.embedding_lookup", "recsys.dense_mlp", "recsys.interaction"


def columns(batch: int, *sizes: int) -> torch.Tensor:
    """One column of ids a size."""
    return torch.stack([torch.randint(n, (batch,)) for n in sizes], 1)


# Libraries.
@case(
    "recsys.third_ifm_deepctr", "recsys", (LOOKUP, DENSE, CROSS), source="deepctr-torch", family="IFM",
    spans=[EMBEDDINGS, ("factor_estimating_net|transform_weight_matrix_P", DENSE), ("fm", CROSS)],
)  # fmt: skip
def _() -> Any:
    models = deepctr()
    features, x = ctr_features(7, 400, 6, 2)
    return models.IFM(features, features, dnn_hidden_units=(48, 24), task="binary", device="cpu"), (x,)


@case(
    "recsys.third_edcn_rechub", "recsys", (LOOKUP, DENSE), source="torch-rechub", family="EDCN",
    spans=[TABLE, (r"model\.(cross_layers|mlps)\.\d+|model\.linear", DENSE)],
)  # fmt: skip
def _() -> Any:
    from torch_rechub.models.ranking import EDCN

    _numbers, symbols, names, given = rechub_features(0, 7)
    return Named(EDCN(symbols, 2, {"dropout": 0.0, "activation": "relu"}), names), given


# The next item, over the whole table.
class Next(nn.Module):
    """Causal blocks over the items so far (SASRec), scores of all items for the last place; one flat set of weights."""

    def __init__(self, items: int = 3000, d: int = 48, n: int = 2, room: int = 24) -> None:
        super().__init__()
        self.t, self.p, self.n = w(items, d), w(room, d), n
        self.a, self.b, self.c, self.d = w(n, d, 3 * d), w(n, d, d), w(n, d, d), w(n, d, d)
        self.g = nn.Parameter(torch.ones(2 * n + 1, d))

    def states(self, x: torch.Tensor, pad: torch.Tensor) -> torch.Tensor:
        size = x.shape[-1:]
        keep = (~pad).to(x.dtype)[:, :, None]
        x = (x * size[0] ** 0.5 + self.p[: x.shape[1]]) * keep
        ahead = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        for i in range(self.n):
            q, k, v = (F.layer_norm(x, size, self.g[2 * i]) @ self.a[i]).chunk(3, 2)
            s = (q @ k.transpose(1, 2) / size[0] ** 0.5).masked_fill(ahead, -1e9).softmax(2)
            x = x + s @ v @ self.b[i]
            y = F.layer_norm(x, size, self.g[2 * i + 1])
            x = (x + torch.relu(y @ self.c[i]) @ self.d[i]) * keep
        return F.layer_norm(x, size, self.g[-1])

    def forward(self, seen: torch.Tensor) -> Any:
        with phase(LOOKUP):
            x = F.embedding(seen, self.t)
        with phase(CROSS):
            s = self.states(x, seen == 0)[:, -1] @ self.t.T
        s = s.scatter(1, seen, -1e9)
        return s.topk(10, 1)


def histories(batch: int, length: int, items: int) -> torch.Tensor:
    """Histories with zeros in front of the shorter ones."""
    x = torch.randint(1, items, (batch, length))
    return x * (torch.arange(length) >= torch.randint(length // 2, (batch, 1)))


@case("recsys.third_causal_table", "recsys", (LOOKUP, CROSS), source=PLAIN)
def _() -> Any:
    return Next(), (histories(12, 24, 3000),)


class Cloze(nn.Module):
    """Hidden places of a history are guessed from both sides; a bias for each item (BERT4Rec)."""

    def __init__(self, items: int = 2500, d: int = 48, room: int = 20) -> None:
        super().__init__()
        self.item, self.place = nn.Embedding(items + 2, d, padding_idx=0), nn.Embedding(room, d)
        layer = nn.TransformerEncoderLayer(d, 4, 96, 0.0, "gelu", batch_first=True)
        self.body = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.guess, self.norm = nn.Linear(d, d), nn.LayerNorm(d)
        self.bias, self.hidden = nn.Parameter(torch.zeros(items + 2)), items + 1

    def forward(self, x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            e = self.item(x.scatter(1, at, self.hidden))
        with phase(CROSS):
            h = self.body(e + self.place.weight[: x.shape[1]], src_key_padding_mask=x == 0)
            h = h.gather(1, at[:, :, None].expand(-1, -1, h.shape[2]))
            h = self.norm(F.gelu(self.guess(h)))
            return F.linear(h, self.item.weight, self.bias)


def hidden(batch: int, length: int, count: int) -> torch.Tensor:
    """Different places of each row, in its later half where no padding is."""
    half = length // 2
    return torch.rand(batch, length - half).argsort(1)[:, :count] + half


@case("recsys.third_cloze_table", "recsys", (LOOKUP, CROSS), source=PLAIN)
def _() -> Any:
    return Cloze(), (histories(10, 20, 2500), hidden(10, 20, 3))


class Session(nn.Module):
    """Clicks arrive one by one: each goes through two cells, and all items are scored after it (GRU4Rec served)."""

    def __init__(self, items: int = 4000, d: int = 40) -> None:
        super().__init__()
        self.x, self.y, self.b = nn.Embedding(items, d), nn.Embedding(items, d), nn.Embedding(items, 1)
        self.c, self.k = nn.GRUCell(d, d), nn.GRUCell(d, d)

    def forward(self, clicks: torch.Tensor) -> torch.Tensor:
        g = h = torch.zeros(len(clicks), self.x.embedding_dim, device=clicks.device)
        out = []
        for click in clicks.unbind(1):
            with phase(LOOKUP):
                e = self.x(click)
            g = self.c(e, g)
            h = self.k(g, h)
            with phase(CROSS):
                s = torch.addmm(self.b.weight.T, h, self.y.weight.T)
            out.append(s.topk(5, 1).indices)
        return torch.stack(out, 1)


@case("recsys.third_click_by_click", "recsys", (LOOKUP, CROSS), source=PLAIN)
def _() -> Any:
    return Session(), (torch.randint(4000, (16, 6)),)


class Picture(nn.Module):
    """Rows of items as a picture, convolved along and across, with the user; all items scored (Caser)."""

    def __init__(self, users: int = 600, items: int = 3000, d: int = 20, length: int = 6) -> None:
        super().__init__()
        self.f1, self.f2 = nn.Embedding(users, d), nn.Embedding(items, d)
        self.f3, self.f4 = nn.ModuleList(nn.Conv1d(d, 6, k) for k in (2, 3, 4)), nn.Linear(length, 3, bias=False)
        self.f5, self.f6 = nn.Linear(18 + 3 * d, d), nn.Linear(2 * d, items)

    def forward(self, user: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            u, x = self.f1(user), self.f2(seen).transpose(1, 2)
        z = torch.cat([F.relu(c(x)).amax(2) for c in self.f3] + [self.f4(x).flatten(1)], 1)
        z = F.relu(self.f5(z))
        with phase(CROSS):
            return self.f6(torch.cat([z, u], 1))


@case("recsys.third_convolved_rows", "recsys", (LOOKUP, CROSS), source=PLAIN)
def _() -> Any:
    return Picture(), (torch.randint(600, (20,)), torch.randint(3000, (20, 6)))


class Short(nn.Module):
    """The last click and the mean of all weigh the clicks; two small nets, a product, all items (STAMP)."""

    def __init__(self, items: int = 5000, d: int = 32) -> None:
        super().__init__()
        self.v, self.w0 = nn.Embedding(items, d, padding_idx=0), nn.Linear(d, 1, bias=False)
        self.w1, self.w2, self.w3 = nn.Linear(d, d), nn.Linear(d, d, False), nn.Linear(d, d, False)
        self.s, self.t = (nn.Sequential(nn.Linear(d, d), nn.Tanh()) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            e = self.v(x)
        real = (x > 0)[:, :, None]
        mean = e.sum(1) / real.sum(1)
        last = e[:, -1]
        with phase(CROSS):
            a = self.w0(torch.sigmoid(self.w1(e) + self.w2(last)[:, None] + self.w3(mean)[:, None])) * real
            m = (a * e).sum(1) + mean
        with phase(DENSE):
            m, last = self.s(m), self.t(last)
        with phase(CROSS):
            return (m * last) @ self.v.weight[1:].t()


@case("recsys.third_short_memory", "recsys", (LOOKUP, CROSS, DENSE), source=PLAIN)
def _() -> Any:
    return Short(), (histories(24, 10, 5000),)


# Clicks.
class Evolving(nn.Module):
    """Interests drawn from a history by a GRU, and moved by a cell whose gate is the target's attention (DIEN)."""

    def __init__(self, goods: int = 4000, kinds: int = 80, d: int = 12) -> None:
        super().__init__()
        self.good, self.kind, self.user = nn.Embedding(goods, d), nn.Embedding(kinds, d), nn.Embedding(500, d)
        self.draw = nn.GRU(2 * d, 2 * d, batch_first=True)
        self.match, self.into, self.back = w(2 * d, 2 * d), nn.Linear(2 * d, 6 * d), nn.Linear(2 * d, 6 * d)
        self.last = nn.Sequential(nn.Linear(7 * d, 48), nn.PReLU(), nn.Linear(48, 16), nn.PReLU(), nn.Linear(16, 1))

    def forward(self, user: torch.Tensor, target: torch.Tensor, past: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            u = self.user(user)
            t = torch.cat([self.good(target[:, 0]), self.kind(target[:, 1])], 1)
            x = torch.cat([self.good(past[..., 0]), self.kind(past[..., 1])], 2)
        h = self.draw(x)[0]
        with phase(CROSS):
            a = (h @ self.match @ t[:, :, None]).softmax(1)
            s, gates = torch.zeros_like(t), self.into(h)
            for i in range(h.shape[1]):
                r, z, n = gates[:, i].chunk(3, 1)
                r2, z2, n2 = self.back(s).chunk(3, 1)
                z = torch.sigmoid(z + z2) * a[:, i]
                n = torch.tanh(n + torch.sigmoid(r + r2) * n2)
                s = (1 - z) * s + z * n
        with phase(DENSE):
            return torch.sigmoid(self.last(torch.cat([u, t, s, s * t], 1)))


@case("recsys.third_evolving_interests", "recsys", (LOOKUP, CROSS, DENSE), source=PLAIN)
def _() -> Any:
    past = torch.stack([torch.randint(4000, (24, 9)), torch.randint(80, (24, 9))], 2)
    return Evolving(), (torch.randint(500, (24,)), columns(24, 4000, 80), past)


class Compressed(nn.Module):
    """Outer products of fields with those of the layer before, pressed by a convolution; a tower; a line (xDeepFM)."""

    def __init__(self, fields: int = 9, rows: int = 300, d: int = 8, maps: tuple[int, ...] = (12, 8)) -> None:
        super().__init__()
        self.p, self.q = nn.Embedding(fields * rows, d), nn.Embedding(fields * rows, 1)
        self.register_buffer("o", torch.arange(fields) * rows)
        self.c = nn.ModuleList(
            nn.Conv1d(fields * a, b, 1) for a, b in zip((fields, *maps), maps, strict=False)
        )  # fmt: skip
        self.m, self.z = mlp(fields * d, 64, 32, 1, last=True), nn.Linear(sum(maps), 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            x = x + self.o
            e, line = self.p(x), self.q(x)
        with phase(CROSS):
            h, every = e, []
            for c in self.c:
                h = torch.einsum("bid,bjd->bijd", e, h).flatten(1, 2)
                h = F.relu(c(h))
                every.append(h.sum(2))
            crossed = self.z(torch.cat(every, 1))
        with phase(DENSE):
            deep = self.m(e.flatten(1))
        return torch.sigmoid(line.sum(1) + crossed + deep).squeeze(1)


@case("recsys.third_compressed_products", "recsys", (LOOKUP, CROSS, DENSE), source=PLAIN)
def _() -> Any:
    return Compressed(), (torch.randint(300, (40, 9)),)


class CrossNet(nn.Module):
    """Bags with weights; the vector crossed with its projections (DCN), beside a tower with norms."""

    def __init__(self, sizes: tuple[int, ...] = (3000, 400, 9000, 60), d: int = 12, n: int = 3) -> None:
        super().__init__()
        self.t = nn.ModuleList(nn.EmbeddingBag(k, d, mode="sum") for k in sizes)
        m = d * len(sizes) + 6
        self.k, self.b = w(n, m, 1), nn.Parameter(torch.zeros(n, m))
        self.d = nn.Sequential(nn.Linear(m, 48), nn.BatchNorm1d(48), nn.ReLU(), nn.Linear(48, 24), nn.ReLU())
        self.o, self.s = nn.Linear(m + 24, 1), nn.BatchNorm1d(6)

    def forward(self, z: torch.Tensor, ids: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            e = [t(i, per_sample_weights=v) for t, i, v in zip(self.t, ids, weight, strict=True)]
        with phase(DENSE):
            x0 = x = torch.cat([self.s(z), *e], 1)
            for k, b in zip(self.k, self.b, strict=True):
                x = x0 * (x @ k) + b + x
            return self.o(torch.cat([x, self.d(x0)], 1)).sigmoid().flatten()


@case("recsys.third_weighted_bags_crossed", "recsys", (LOOKUP, DENSE), source=PLAIN)
def _() -> Any:
    ids = torch.stack([torch.randint(n, (48, 4)) for n in (3000, 400, 9000, 60)])
    return CrossNet(), (torch.rand(48, 6), ids, torch.rand(4, 48, 4))


class FieldMatrices(nn.Module):
    """A matrix for each pair of fields between their vectors, all pairs at once (FmFM), and nothing deep."""

    def __init__(self, sizes: tuple[int, ...] = (70, 2500, 900, 15, 4000, 320, 8), d: int = 9) -> None:
        super().__init__()
        self.n1 = nn.ModuleList(nn.Embedding(k, d + 1) for k in sizes)
        a, b = torch.triu_indices(len(sizes), len(sizes), 1)
        self.register_buffer("n2", a)
        self.register_buffer("n3", b)
        self.n4, self.n5 = w(len(a), d, d, scale=0.3), nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            e = torch.stack([t(c) for t, c in zip(self.n1, x.unbind(1), strict=True)], 1)
        v, line = e[..., 1:], e[..., 0].sum(1)
        with phase(CROSS):
            left = torch.einsum("bpi,pij->bpj", v[:, self.n2], self.n4)
            pairs = (left * v[:, self.n3]).sum((1, 2))
        return torch.sigmoid(self.n5 + line + pairs)


@case("recsys.third_field_matrices", "recsys", (LOOKUP, CROSS), source=PLAIN)
def _() -> Any:
    return FieldMatrices(), (columns(64, 70, 2500, 900, 15, 4000, 320, 8),)


class Remainders(nn.Module):
    """DLRM whose tables are a product of rows for quotients and for remainders; the pairs by boolean mask."""

    def __init__(self, sizes: tuple[int, ...] = (40000, 9000, 100000), d: int = 16, base: int = 256) -> None:
        super().__init__()
        self.hi = nn.ParameterList(w(k // base + 1, d, scale=0.5) for k in sizes)
        self.lo, self.base = nn.ParameterList(w(base, d, scale=0.5) for _ in sizes), base
        self.low, n = mlp(8, 32, d), len(sizes) + 1
        self.register_buffer("at", torch.ones(n, n).tril(-1).flatten().nonzero().flatten())
        self.top = mlp(d + n * (n - 1) // 2, 32, 16, 1, last=True)

    def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            e = []
            for i, (hi, lo) in enumerate(zip(self.hi, self.lo, strict=True)):
                q = torch.div(x[:, i], self.base, rounding_mode="floor")
                e.append(hi[q] * lo[x[:, i] % self.base])
        with phase(DENSE):
            z = self.low(torch.log1p(z))
        with phase(CROSS):
            v = torch.stack([z, *e], 1)
            pairs = (v @ v.mT).flatten(1).index_select(1, self.at)
        with phase(DENSE):
            return self.top(torch.cat([z, pairs], 1)).sigmoid()


@case("recsys.third_quotients_and_remainders", "recsys", (LOOKUP, DENSE, CROSS), source=PLAIN)
def _() -> Any:
    return Remainders(), (torch.rand(50, 8) * 20, columns(50, 40000, 9000, 100000))


# Retrieval, several tasks.
class Corpus(nn.Module):
    """A request's tower against the tower of the whole corpus, the nearest hundred, and they are ranked again."""

    def __init__(self, items: int = 2000, d: int = 16) -> None:
        super().__init__()
        self.item, self.brand = nn.Embedding(items, d), nn.Embedding(90, d)
        self.query = nn.EmbeddingBag(3000, d, mode="mean")
        self.register_buffer("brands", torch.randint(90, (items,)))
        self.f, self.g = mlp(d, 48, 24, last=True), mlp(2 * d, 48, 24, last=True)
        self.r = mlp(48, 32, 1, last=True)

    def forward(self, words: torch.Tensor, offsets: torch.Tensor) -> Any:
        with phase(LOOKUP):
            a = self.query(words, offsets)
            b = torch.cat([self.item.weight, self.brand(self.brands)], 1)
        with phase(DENSE):
            a, b = self.f(a), self.g(b)
        with phase(CROSS):
            near = F.normalize(a) @ F.normalize(b).mT
        best = near.topk(100, 1).indices
        some = torch.cat([a[:, None].expand(-1, 100, -1), b[best]], 2)
        with phase(DENSE):
            s = self.r(some).squeeze(2)
        return best.gather(1, s.argsort(1, descending=True)[:, :10]), s


@case("recsys.third_whole_corpus", "recsys", (LOOKUP, DENSE, CROSS), source=PLAIN)
def _() -> Any:
    return Corpus(), (torch.randint(3000, (40,)), torch.arange(0, 40, 5))


class Tasks(nn.Module):
    """Experts as one stack of matrices, a gate for each of three tasks, the second conditioned on the first (MMoE)."""

    def __init__(self, d: int = 10, e: int = 5, wide: int = 24) -> None:
        super().__init__()
        self.h1, self.h2, self.h3 = w(2000, d), w(5000, d), nn.EmbeddingBag(700, d, mode="max")
        m = 3 * d + 4
        self.h4, self.h5, self.h6 = w(e, m, wide), nn.Parameter(torch.zeros(e, wide)), w(3, m, e)
        self.h7, self.h8, self.h9 = w(3, wide, 12, scale=0.3), w(3, 12), nn.Linear(1, 1)

    def forward(self, a: torch.Tensor, b: torch.Tensor, tags: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            e = self.h1[a], self.h2.index_select(0, b), self.h3(tags)
        x = torch.cat([*e, z], 1)
        with phase(DENSE):
            y = torch.relu(torch.einsum("bm,emw->bew", x, self.h4) + self.h5)
            gate = torch.einsum("bm,tme->bte", x, self.h6).softmax(2)
            y = torch.relu(torch.einsum("btw,twk->btk", gate @ y, self.h7))
            s = (y * self.h8).sum(2)
            second = s[:, 1] + self.h9(s[:, :1]).squeeze(1)
            return torch.stack([s[:, 0], second, s[:, 2]], 1).sigmoid()


@case("recsys.third_stacked_experts", "recsys", (LOOKUP, DENSE), source=PLAIN)
def _() -> Any:
    given = (torch.randint(2000, (40,)), torch.randint(5000, (40,)), torch.randint(700, (40, 6)), torch.rand(40, 4))
    return Tasks(), given


# Training steps.
@case("recsys.third_train_causal_table", "recsys", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    def loss(m: nn.Module, x: torch.Tensor, good: torch.Tensor, bad: torch.Tensor) -> torch.Tensor:
        h = m.states(F.embedding(x, m.t), x == 0)
        p, n = ((h * F.embedding(y, m.t)).sum(2) for y in (good, bad))
        real = (x > 0).float()
        return ((F.softplus(-p) + F.softplus(n)) * real).sum() / real.sum()

    adam = lambda p: torch.optim.Adam(p, 2e-3, betas=(0.9, 0.98), foreach=True)  # noqa: E731
    x = histories(8, 16, 3000)
    return TrainStep(Next(), loss, adam), (x, x.roll(-1, 1), torch.randint(1, 3000, (8, 16)))


@case("recsys.third_train_cloze_table", "recsys", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    def loss(m: nn.Module, x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(m(x, at).flatten(0, 1), x.gather(1, at).flatten())

    decoupled = lambda p: torch.optim.AdamW(p, 1e-3, weight_decay=0.01, foreach=False)  # noqa: E731
    return Guarded(Cloze(), loss, decoupled, norm=5.0), (histories(8, 16, 2500), hidden(8, 16, 2))


class RowWise(nn.Module):
    """Steps by hand: one sum of squares for each row of a table, plain descent for all else."""

    def __init__(self, steps: int = 3) -> None:
        super().__init__()
        self.model, self.steps = CrossNet().train(), steps
        for i, t in enumerate(self.model.t):
            self.register_buffer(f"s{i}", torch.zeros(t.num_embeddings, 1))

    def forward(self, z: torch.Tensor, ids: torch.Tensor, weight: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        tables, losses = [t.weight for t in self.model.t], []
        rest = [p for name, p in self.model.named_parameters() if not name.startswith("t.")]
        for _ in range(self.steps):
            with phase("train.forward"):
                loss = F.binary_cross_entropy(self.model(z, ids, weight), y)
            with phase("train.backward"):
                grads = torch.autograd.grad(loss, tables + rest)
            with phase("train.optimizer"), torch.no_grad():
                for i, (p, g) in enumerate(zip(tables, grads, strict=False)):
                    s = getattr(self, f"s{i}")
                    s.add_(g.square().mean(1, keepdim=True))
                    p.addcdiv_(g, s.sqrt().add_(1e-6).expand_as(g), value=-0.02)
                for p, g in zip(rest, grads[len(tables) :], strict=True):
                    p.sub_(g, alpha=0.05)
            losses.append(loss.detach())
        return torch.stack(losses)


@case("recsys.third_train_rows_by_hand", "recsys", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    ids = torch.stack([torch.randint(n, (32, 3)) for n in (3000, 400, 9000, 60)])
    return RowWise(), (torch.rand(32, 6), ids, torch.rand(4, 32, 3), torch.rand(32).round())
