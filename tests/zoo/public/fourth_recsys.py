"""Recommenders by a fourth author: jagged tables, sequences scored over all items, towers, experts, and libraries."""

import sys
import types
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..oracle import phase
from ..parts import TrainStep, mlp
from ..registry import split

case = split("public")
LOOKUP, DENSE, CROSS = "recsys.embedding_lookup", "recsys.dense_mlp", "recsys.interaction"
PLAIN = "plain torch, fourth author"


def w(*shape: int, scale: float = 0.1) -> nn.Parameter:
    """A random weight."""
    return nn.Parameter(torch.randn(*shape) * scale)


def picks(batch: int, *sizes: int) -> torch.Tensor:
    """One column of ids for each size."""
    return torch.stack([torch.randint(n, (batch,)) for n in sizes], 1)


# Of libraries.
@case(
    "recsys.fourth_afn", "recsys", (LOOKUP, CROSS, DENSE), source="deepctr-torch",
    spans=[
        (r"embedding_dict\.\w+|linear_model\.embedding_dict\.\w+", LOOKUP), ("ltl", CROSS),
        ("afn_dnn|afn_dnn_linear", DENSE),
    ],
)  # fmt: skip
def _() -> Any:
    # Its import would ask the network for the newest version.
    still = types.ModuleType("deepctr_torch.utils")
    still.check_version = lambda _version: None
    sys.modules.setdefault("deepctr_torch.utils", still)
    from deepctr_torch.inputs import DenseFeat, SparseFeat
    from deepctr_torch.models import AFN

    sizes = (400, 2000, 60, 900, 1500, 24, 700)
    columns = [SparseFeat(f"A{i}", n, embedding_dim=12) for i, n in enumerate(sizes)]
    model = AFN(
        [*columns, DenseFeat("age", 1)], columns, ltl_hidden_size=40, afn_dnn_hidden_units=(64, 32), device="cpu"
    )
    return model, (torch.cat([picks(80, *sizes).float(), torch.rand(80, 1)], 1),)


class Fed(nn.Module):
    """Columns in the order of names."""

    def __init__(self, model: nn.Module, *names: str) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        return self.model(dict(zip(self.names, columns, strict=True)))


@case(
    "recsys.fourth_edcn", "recsys", (LOOKUP, DENSE), source="torch-rechub",
    spans=[
        (r"model\.embedding\.embed_dict\.\w+", LOOKUP),
        (r"model\.(cross_layers|mlps|bridge_modules)\.\d+|model\.linear", DENSE),
    ],
)  # fmt: skip
def _() -> Any:
    from torch_rechub.basic.features import SparseFeature
    from torch_rechub.models.ranking import EDCN

    sizes = (300, 5000, 80, 1200, 45, 640)
    features = [SparseFeature(f"f{i}", vocab_size=n, embed_dim=10) for i, n in enumerate(sizes)]
    model = EDCN(features, 3, {"dropout": 0.1, "activation": "relu"}, bridge_type="attention_pooling")
    return Fed(model, *(f"f{i}" for i in range(len(sizes)))), tuple(picks(70, *sizes).unbind(1))


@case(
    "recsys.fourth_youtube", "recsys", (LOOKUP, DENSE, CROSS), source="torch-rechub",
    spans=[(r"model\.embedding\.embed_dict\.\w+", LOOKUP), (r"model\.user_mlp", DENSE)],
)  # fmt: skip
def _() -> Any:
    from torch_rechub.basic.features import SequenceFeature, SparseFeature
    from torch_rechub.models.matching import YoutubeDNN

    class Ranked(Fed):
        def forward(self, *columns: torch.Tensor) -> torch.Tensor:
            x = dict(zip(self.names, columns, strict=True))
            user, items = self.model.user_tower(x), self.model.item_tower(x)
            with phase(CROSS):
                return (user * items).sum(2) / self.model.temperature

    users = [SparseFeature("who", 900, 16), SparseFeature("city", 120, 16)]
    users += [SequenceFeature("seen", 4000, 16, pooling="mean", shared_with="item")]
    item = [SparseFeature("item", 4000, 16)]
    others = [SequenceFeature("others", 4000, 16, pooling="concat", shared_with="item")]
    model = YoutubeDNN(users, item, others, {"dims": [64, 32, 16], "activation": "relu"}, temperature=0.02)
    columns = [torch.randint(1, n, (48,)) for n in (900, 120)]
    columns += [torch.randint(1, 4000, (48, 15)), torch.randint(1, 4000, (48,)), torch.randint(1, 4000, (48, 6))]
    return Ranked(model, "who", "city", "seen", "item", "others"), columns


@case(
    "recsys.fourth_stamp", "recsys", (LOOKUP, DENSE, CROSS), source="torch-rechub",
    spans=[(r"model\.item_emb", LOOKUP), (r"model\.(f_s|f_t)", DENSE)],
)  # fmt: skip
def _() -> Any:
    from torch_rechub.basic.features import SequenceFeature
    from torch_rechub.models.matching import STAMP

    class Sessions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = STAMP(SequenceFeature("past", vocab_size=3000, embed_dim=40), 0.05, 0.02)

        def forward(self, past: torch.Tensor) -> torch.Tensor:
            user = self.model._compute_user_repr({"past": past})
            with phase(CROSS):
                return user @ self.model.item_emb.weight.T

    x = torch.randint(1, 3000, (32, 10))
    x[::3, 7:] = 0
    return Sessions(), (x,)


# Plain ones.
class Jag(nn.Module):
    """All bags in one table with rows of their own fields; products with oneself too; dense numbers by logarithm."""

    def __init__(self, rows: tuple[int, ...] = (900, 6000, 50, 2200, 14, 7000), d: int = 24) -> None:
        super().__init__()
        self.t, self.n = w(sum(rows), d), len(rows)
        self.a, self.b = mlp(9, 48, d), mlp(d + 28, 64, 32, 1, last=True)
        self.register_buffer("z", torch.ones(7, 7, dtype=torch.bool).tril())

    def forward(self, at: torch.Tensor, ends: torch.Tensor, much: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            e = F.embedding_bag(at, self.t, ends, mode="sum", per_sample_weights=much, include_last_offset=True)
        e = e.view(self.n, -1, self.t.shape[1]).transpose(0, 1)
        with phase(DENSE):
            y = self.a(torch.log1p(x))
        with phase(CROSS):
            every = torch.cat([y[:, None], e], 1)
            pairs = torch.einsum("bid,bjd->bij", every, every)[:, self.z]
        with phase(DENSE):
            return torch.sigmoid(self.b(torch.cat([y, pairs], 1))).squeeze(1)


@case("recsys.fourth_jag", "recsys", (LOOKUP, DENSE, CROSS), source=PLAIN)
def _() -> Any:
    rows, batch = (900, 6000, 50, 2200, 14, 7000), 40
    counts = torch.randint(1, 6, (len(rows), batch))
    starts = [sum(rows[:i]) for i in range(len(rows))]
    at = torch.cat(
        [torch.randint(n, (int(c.sum()),)) + s for n, c, s in zip(rows, counts, starts, strict=True)]
    )  # fmt: skip
    ends = torch.cat([torch.zeros(1, dtype=torch.long), counts.flatten().cumsum(0)])
    return Jag(rows), (at, ends, torch.rand(at.shape[0]), torch.rand(batch, 9) * 20)


class Cloze(nn.Module):
    """Items under a mask guessed from both sides, over all items, with a bias for each."""

    def __init__(self, n: int = 3500, d: int = 48, longest: int = 24) -> None:
        super().__init__()
        self.a, self.b = nn.Embedding(n + 2, d, padding_idx=0), nn.Embedding(longest, d)
        self.q, self.o, self.u, self.v = (
            nn.ModuleList(nn.Linear(i, j) for _ in range(2)) for i, j in ((d, 3 * d), (d, d), (d, 4 * d), (4 * d, d))
        )
        self.x, self.y = (nn.ModuleList(nn.LayerNorm(d) for _ in range(2)) for _ in range(2))
        self.n, self.f, self.g, self.h = nn.LayerNorm(d), nn.Linear(d, d), nn.LayerNorm(d), w(n + 2)

    def forward(self, x: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            y = self.a(x)
        there = (x != 0)[:, None, None]
        with phase(CROSS):
            y = self.n(y + self.b(torch.arange(x.shape[1], device=x.device)))
            for q, o, u, v, n, m in zip(self.q, self.o, self.u, self.v, self.x, self.y, strict=True):
                z = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in q(y).chunk(3, -1))
                z = F.scaled_dot_product_attention(*z, attn_mask=there).transpose(1, 2).flatten(2)
                y = n(y + o(z))
                y = m(y + v(F.gelu(u(y))))
        y = y.gather(1, at[..., None].expand(-1, -1, y.shape[2]))
        with phase(DENSE):
            y = self.g(F.gelu(self.f(y)))
        with phase(CROSS):
            return y @ self.a.weight.t() + self.h


@case("recsys.fourth_cloze", "recsys", (LOOKUP, CROSS, DENSE), source=PLAIN)
def _() -> Any:
    x, at = torch.randint(1, 3500, (16, 24)), torch.stack([torch.randperm(20)[:3] + 4 for _ in range(16)])
    x[:5, :4] = 0
    return Cloze(), (x.scatter(1, at, 3501), at)


class Drift(nn.Module):
    """Interests that change: a GRU over the past, attention to the target, and a GRU whose update that weighs."""

    def __init__(self, items: int = 4000, kinds: int = 90, d: int = 12) -> None:
        super().__init__()
        self.i, self.k, self.u = nn.Embedding(items, d), nn.Embedding(kinds, d), nn.Embedding(1000, d)
        h = 2 * d
        self.g, self.w = nn.GRU(h, h, batch_first=True), w(h, h, scale=0.2)
        self.x, self.y, self.z = nn.Linear(h, 3 * h), nn.Linear(h, 2 * h), nn.Linear(h, h)
        self.net = nn.Sequential(nn.Linear(2 * h + d, 64), nn.PReLU(), nn.Linear(64, 24), nn.PReLU(), nn.Linear(24, 1))

    def forward(self, u: torch.Tensor, i: torch.Tensor, k: torch.Tensor, si: torch.Tensor, sk: torch.Tensor) -> Any:
        with phase(LOOKUP):
            u, target = self.u(u), (self.i(i), self.k(k))
            past = self.i(si), self.k(sk)
        target, past = torch.cat(target, -1), torch.cat(past, -1)
        s, _ = self.g(past)
        with phase(CROSS):
            a = torch.einsum("bth,hk,bk->bt", s, self.w, target).masked_fill(si == 0, -1e9).softmax(1)
        h = torch.zeros_like(target)
        gates = self.x(s)
        for t in range(s.shape[1]):
            r1, z1, n1 = gates[:, t].chunk(3, 1)
            r2, z2 = self.y(h).chunk(2, 1)
            r, z = torch.sigmoid(r1 + r2), torch.sigmoid(z1 + z2) * a[:, t, None]
            h = (1 - z) * h + z * torch.tanh(n1 + r * self.z(h))
        with phase(DENSE):
            return torch.sigmoid(self.net(torch.cat([u, target, h], 1)))


@case("recsys.fourth_drift", "recsys", (LOOKUP, CROSS, DENSE), source=PLAIN)
def _() -> Any:
    past = torch.randint(1, 4000, (28, 9))
    past[:6, 6:] = 0
    return Drift(), (*picks(28, 1000, 4000, 90).unbind(1), past, torch.randint(90, (28, 9)))


class Widen(nn.Module):
    """Residual dilated convolutions over the past, which see what came before only; the last state over all items."""

    def __init__(self, n: int = 3000, d: int = 32) -> None:
        super().__init__()
        self.e, self.o, self.b = nn.Embedding(n, d), w(n, d), w(n)
        self.p = nn.ModuleList(nn.Conv1d(d, d, 3, dilation=2**i) for i in (0, 1, 2, 0))
        self.q, self.r = (nn.ModuleList(nn.LayerNorm(d) for _ in range(4)) for _ in range(2))
        self.s = nn.ModuleList(nn.Linear(d, d) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            x = self.e(x)
        for p, q, r, s in zip(self.p, self.q, self.r, self.s, strict=True):
            y = F.relu(q(x)).transpose(1, 2)
            y = p(F.pad(y, (2 * p.dilation[0], 0))).transpose(1, 2)
            x = x + s(F.relu(r(y)))
        with phase(CROSS):
            return torch.addmm(self.b, x[:, -1], self.o.T)


@case("recsys.fourth_widen", "recsys", (LOOKUP, CROSS), source=PLAIN)
def _() -> Any:
    return Widen(), (torch.randint(3000, (24, 20)),)


class Outer(nn.Module):
    """Outer products of each layer with the first, compressed by 1x1 convolutions; a line and a deep net beside."""

    def __init__(self, sizes: tuple[int, ...] = (70, 4000, 900, 33, 1600), d: int = 10, maps: int = 12) -> None:
        super().__init__()
        self.e, self.l = (nn.ModuleList(nn.Embedding(n, k) for n in sizes) for k in (d, 1))
        m = len(sizes)
        self.c = nn.ModuleList([nn.Conv1d(m * m, maps, 1), nn.Conv1d(m * maps, maps, 1), nn.Conv1d(m * maps, maps, 1)])
        self.f, self.d = nn.Linear(3 * maps, 1), mlp(m * d, 48, 24, 1, last=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            y = torch.stack([t(x[:, i]) for i, t in enumerate(self.e)], 1)
            line = torch.cat([t(x[:, i]) for i, t in enumerate(self.l)], 1)
        line = line.sum(1, keepdim=True)
        with phase(CROSS):
            z, sums = y, []
            for c in self.c:
                z = (z[:, :, None] * y[:, None]).flatten(1, 2)
                z = F.relu(c(z))
                sums.append(z.sum(2))
            cross = self.f(torch.cat(sums, 1))
        with phase(DENSE):
            deep = self.d(y.flatten(1))
        return torch.sigmoid(line + cross + deep)


@case("recsys.fourth_outer", "recsys", (LOOKUP, CROSS, DENSE), source=PLAIN)
def _() -> Any:
    return Outer(), (picks(60, 70, 4000, 900, 33, 1600),)


class Serve(nn.Module):
    """The user's tower at serving time against the stored vectors of all items; the best ones and their scores."""

    def __init__(self, items: int = 5000, d: int = 32) -> None:
        super().__init__()
        self.u, self.c, self.h = nn.Embedding(3000, 24), nn.Embedding(60, 8), nn.EmbeddingBag(items, 24, mode="mean")
        self.f = nn.Sequential(
            nn.Linear(24 + 8 + 24 + 4, 96), nn.LayerNorm(96), nn.GELU(), nn.Linear(96, 64), nn.LayerNorm(64), nn.GELU(),
            nn.Linear(64, d),
        )  # fmt: skip
        self.register_buffer("index", F.normalize(torch.randn(items, d), dim=1))

    def forward(self, u: torch.Tensor, c: torch.Tensor, h: torch.Tensor, x: torch.Tensor) -> Any:
        with phase(LOOKUP):
            u, c, h = self.u(u), self.c(c), self.h(h)
        with phase(DENSE):
            q = self.f(torch.cat([u, c, h, x], 1))
        with phase(CROSS):
            s = torch.matmul(F.normalize(q, dim=1), self.index.t())
        return s.topk(10, 1)


@case("recsys.fourth_serve", "recsys", (LOOKUP, DENSE, CROSS), source=PLAIN)
def _() -> Any:
    return Serve(), (*picks(20, 3000, 60).unbind(1), torch.randint(5000, (20, 12)), torch.rand(20, 4))


class Share(nn.Module):
    """Experts as one stack of matrices, a gate for each of four tasks; several tags of an item in bags."""

    def __init__(self, d: int = 16, experts: int = 5, tasks: int = 4, h: int = 40) -> None:
        super().__init__()
        self.a, self.b = nn.Embedding(2500, d), nn.Embedding(70, d)
        self.c = nn.EmbeddingBag(800, d, mode="max")
        self.d = nn.EmbeddingBag(1500, d, mode="sum", padding_idx=0)
        k = 4 * d + 6
        self.n, self.p, self.q = nn.BatchNorm1d(6), w(experts, k, h), w(experts, h, 24)
        self.g, self.x, self.y = w(tasks, k, experts), w(tasks, 24, 16), w(tasks, 16)

    def forward(self, a: torch.Tensor, b: torch.Tensor, c: torch.Tensor, d: torch.Tensor, x: torch.Tensor) -> Any:
        with phase(LOOKUP):
            e = [self.a(a), self.b(b), self.c(c), self.d(d)]
        with phase(DENSE):
            x = torch.cat([*e, self.n(x)], 1)
            y = F.relu(torch.einsum("bk,ekh->beh", x, self.p))
            y = F.relu(torch.einsum("beh,eho->beo", y, self.q))
            g = torch.einsum("bk,tke->bte", x, self.g).softmax(2)
            z = F.relu(torch.einsum("bte,beo,toi->bti", g, y, self.x))
            return torch.sigmoid((z * self.y).sum(2))


@case("recsys.fourth_share", "recsys", (LOOKUP, DENSE), source=PLAIN)
def _() -> Any:
    tags = torch.randint(1, 1500, (36, 7))
    tags[::2, 5:] = 0
    return Share(), (*picks(36, 2500, 70).unbind(1), torch.randint(800, (36, 3)), tags, torch.rand(36, 6))


class Streams(nn.Module):
    """Two nets over gated copies of the fields; their outputs meet in a bilinear form with several heads."""

    def __init__(self, fields: int = 9, rows: int = 600, d: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.t, self.h = nn.Embedding(fields * rows, d), heads
        self.register_buffer("o", torch.arange(fields) * rows)
        k = fields * d
        self.g0, self.g1 = w(fields, d), mlp(k, 32, k, last=True)
        self.m0, self.m1 = mlp(k, 64, 32), mlp(k, 48, 32)
        self.l0, self.l1, self.b = nn.Linear(32, 1), nn.Linear(32, 1, bias=False), w(heads, 32 // heads, 32 // heads)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            e = self.t(x + self.o)
        with phase(DENSE):
            one = (e * 2 * torch.sigmoid(self.g0)).flatten(1)
            e = e.flatten(1)
            two = e * 2 * torch.sigmoid(self.g1(e))
            one, two = self.m0(one), self.m1(two)
        with phase(CROSS):
            p, q = (t.unflatten(1, (self.h, -1)) for t in (one, two))
            both = torch.einsum("bhi,hij,bhj->b", p, self.b, q)
        with phase(DENSE):
            line = self.l0(one) + self.l1(two)
        return torch.sigmoid(line.squeeze(1) + both)


@case("recsys.fourth_streams", "recsys", (LOOKUP, DENSE, CROSS), source=PLAIN)
def _() -> Any:
    return Streams(), (torch.randint(600, (64, 9)),)


class Acts(nn.Module):
    """Actions in a row: attention by SiLU without a softmax, biased by distance, gated; candidates at the end."""

    def __init__(self, n: int = 4500, d: int = 32, h: int = 2, layers: int = 2, longest: int = 20) -> None:
        super().__init__()
        self.e, self.a, self.h = nn.Embedding(n, d), nn.Embedding(6, d), h
        self.p, self.o = (nn.ModuleList(nn.Linear(d, k * d) for _ in range(layers)) for k in (4, 1))
        self.b = w(layers, h, 2 * longest - 1)
        at = torch.arange(longest)
        self.register_buffer("near", at[None] - at[:, None] + longest - 1)
        self.register_buffer("before", torch.ones(longest, longest).tril())

    def forward(self, x: torch.Tensor, act: torch.Tensor, some: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            y, z, c = self.e(x), self.a(act), self.e(some)
        y, d = y + z, y.shape[-1]
        with phase(CROSS):
            for i, (p, o) in enumerate(zip(self.p, self.o, strict=True)):
                u, *qkv = F.silu(p(F.layer_norm(y, (d,)))).chunk(4, -1)
                q, k, v = (t.unflatten(-1, (self.h, -1)).transpose(1, 2) for t in qkv)
                s = F.silu(q @ k.transpose(2, 3) + self.b[i][:, self.near]) * self.before / y.shape[1]
                y = y + o(F.layer_norm((s @ v).transpose(1, 2).flatten(2), (d,)) * u)
            return torch.bmm(c, F.normalize(y[:, -1], dim=-1)[..., None])[..., 0]


@case("recsys.fourth_acts", "recsys", (LOOKUP, CROSS), source=PLAIN)
def _() -> Any:
    return Acts(), (torch.randint(4500, (18, 20)), torch.randint(6, (18, 20)), torch.randint(4500, (18, 25)))


# Training steps.
class Clicks(nn.Module):
    """A line, products of pairs and a deep net over the same fields."""

    def __init__(self, sizes: tuple[int, ...] = (500, 1800, 25, 640), d: int = 8) -> None:
        super().__init__()
        self.a, self.b = (nn.ModuleList(nn.Embedding(n, k) for n in sizes) for k in (d, 1))
        self.c = nn.Sequential(nn.Linear(len(sizes) * d, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        e = torch.stack([t(i) for t, i in zip(self.a, x.unbind(1), strict=True)], 1)
        line = sum(t(i) for t, i in zip(self.b, x.unbind(1), strict=True))
        pairs = e.sum(1).square() - e.square().sum(1)
        return (line + pairs.sum(1, keepdim=True) / 2 + self.c(e.flatten(1))).squeeze(1)


@case("recsys.fourth_clicks_steps", "recsys", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    def loss(m: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.binary_cross_entropy_with_logits(m(x), y)

    adagrad = lambda p: torch.optim.Adagrad(p, 0.02, initial_accumulator_value=0.1)  # noqa: E731
    return TrainStep(Clicks(), loss, adagrad), (picks(48, 500, 1800, 25, 640), torch.rand(48).round())


class Next(nn.Module):
    """The next items of a past with attention against sampled others; Adam's moments kept by hand."""

    def __init__(self, n: int = 1500, d: int = 32, longest: int = 12) -> None:
        super().__init__()
        self.e, self.p = nn.Embedding(n, d), nn.Embedding(longest, d)
        self.q, self.o, self.f, self.g = nn.Linear(d, 3 * d), nn.Linear(d, d), nn.Linear(d, d), nn.Linear(d, d)

    def loss(self, x: torch.Tensor, good: torch.Tensor, bad: torch.Tensor) -> torch.Tensor:
        y = self.e(x) + self.p.weight
        d = y.shape[-1:]
        q, k, v = (t.unflatten(-1, (2, -1)).transpose(1, 2) for t in self.q(F.layer_norm(y, d)).chunk(3, -1))
        y = y + self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        y = y + self.g(F.relu(self.f(F.layer_norm(y, d))))
        up, down = (y * self.e(good)).sum(-1), (y * self.e(bad)).sum(-1)
        return -(F.logsigmoid(up) + F.logsigmoid(-down)).mean()

    def forward(self, x: torch.Tensor, good: torch.Tensor, bad: torch.Tensor) -> torch.Tensor:
        params, out = list(self.parameters()), []
        with phase("train.optimizer"):
            first, second = ([torch.zeros_like(p) for p in params] for _ in range(2))
        for step in range(1, 3):
            with phase("train.optimizer"):
                for p in params:
                    p.grad = None
            with phase("train.forward"):
                loss = self.loss(x, good, bad)
            with phase("train.backward"):
                loss.backward()
            with phase("train.optimizer"), torch.no_grad():
                for p, m, v in zip(params, first, second, strict=True):
                    m.lerp_(p.grad, 0.1)
                    v.mul_(0.98).addcmul_(p.grad, p.grad, value=0.02)
                    p.addcdiv_(m / (1 - 0.9**step), (v / (1 - 0.98**step)).sqrt().add_(1e-8), value=-1e-3)
            out.append(loss.detach())
        return torch.stack(out)


@case("recsys.fourth_next_steps", "recsys", ("train.optimizer", "train.forward", "train.backward"), mode="train",
      source=PLAIN)  # fmt: skip
def _() -> Any:
    return Next(), tuple(torch.randint(1500, (16, 12)) for _ in range(3))
