"""Recommenders by a second author: tables of other shapes, factorization and attention by hand, sequences."""

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
PLAIN = "plain torch, second author"


def w(*shape: int, scale: float = 0.1) -> nn.Parameter:
    """A random weight."""
    return nn.Parameter(torch.randn(*shape) * scale)


class OneBag(nn.Module):
    """All fields in one EmbeddingBag over hashed ids with offsets, its rows then through layers of matrices."""

    def __init__(self, rows: int = 6000, d: int = 12, fields: int = 7) -> None:
        super().__init__()
        self.bag, self.fields = nn.EmbeddingBag(rows, d, mode="mean"), fields
        self.a, self.b, self.c = w(fields * d + 4, 64), w(64, 32), w(32, 1)

    def forward(self, raw: torch.Tensor, offsets: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            ids = (raw * 2654435761 + 12345) % self.bag.num_embeddings
            e = self.bag(ids, offsets).view(-1, self.fields * self.bag.embedding_dim)
        with phase(DENSE):
            x = torch.cat([torch.log1p(dense), e], 1)
            return torch.sigmoid(((x @ self.a).relu() @ self.b).relu() @ self.c)


@case("recsys2.hashed_bag", "recsys", (LOOKUP, DENSE), source=PLAIN)
def _() -> Any:
    return OneBag(), (torch.randint(10**7, (64 * 7 * 3,)), torch.arange(0, 64 * 7 * 3, 3), torch.rand(64, 4) * 50)


class Fm(nn.Module):
    """Factorization machine: tables in a ParameterList indexed by columns, the wide part with rows of width 1."""

    def __init__(self, sizes: tuple[int, ...] = (40, 3000, 700, 12, 900, 5000), d: int = 10) -> None:
        super().__init__()
        self.v = nn.ParameterList([w(n, d) for n in sizes])
        self.w = nn.ParameterList([w(n, 1) for n in sizes])
        self.b = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            v = [t[x[:, i]] for i, t in enumerate(self.v)]
            line = [t[x[:, i]] for i, t in enumerate(self.w)]
        v, line = torch.stack(v, 1), torch.cat(line, 1)
        with phase(CROSS):
            pairs = 0.5 * (v.sum(1).square() - v.square().sum(1)).sum(1)
        return torch.sigmoid(self.b + line.sum(1) + pairs)


def columns(batch: int, *sizes: int) -> torch.Tensor:
    """One column of ids a size."""
    return torch.stack([torch.randint(n, (batch,)) for n in sizes], 1)


FM = (40, 3000, 700, 12, 900, 5000)


@case("recsys2.fm", "recsys", (LOOKUP, CROSS), source=PLAIN)
def _() -> Any:
    return Fm(), (columns(96, *FM),)


class Ffm(nn.Module):
    """Field-aware factorization: each field has a vector for each other field."""

    def __init__(self, fields: int = 5, rows: int = 800, d: int = 4) -> None:
        super().__init__()
        self.t = nn.ModuleList(nn.Embedding(rows * fields, d) for _ in range(fields))
        self.u = nn.Embedding(rows * fields, 1)
        self.register_buffer("o", torch.arange(fields) * rows)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            x = x + self.o
            per = [t(x) for t in self.t]
            first = self.u(x)
        first = first.sum((1, 2))
        with phase(CROSS):
            n = x.shape[1]
            total = torch.zeros_like(first)
            for i in range(n):
                for j in range(i + 1, n):
                    total = total + (per[j][:, i] * per[i][:, j]).sum(-1)
        return (first + total).sigmoid()


@case("recsys2.ffm", "recsys", (LOOKUP, CROSS), source=PLAIN)
def _() -> Any:
    return Ffm(), (torch.randint(800, (128, 5)),)


class DeepFm(nn.Module):
    """DeepFM with fused tables fetched by index_select."""

    def __init__(self, fields: int = 8, rows: int = 500, d: int = 8) -> None:
        super().__init__()
        self.p, self.d, self.k = w(fields * rows, d), d, fields
        self.q = w(fields * rows, 1)
        self.net = nn.Sequential(nn.Linear(fields * d, 48), nn.PReLU(), nn.Dropout(0.1), nn.Linear(48, 1))
        self.register_buffer("s", torch.arange(fields) * rows)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            at = (x + self.s).flatten()
            e = torch.index_select(self.p, 0, at).view(-1, self.k, self.d)
            y = torch.index_select(self.q, 0, at).view(-1, self.k)
        with phase(CROSS):
            s = e.sum(1)
            pair = (s * s - (e * e).sum(1)).sum(1, keepdim=True) / 2
        with phase(DENSE):
            deep = self.net(e.flatten(1))
        return torch.sigmoid(y.sum(1, keepdim=True) + pair + deep)


@case("recsys2.deepfm_index_select", "recsys", (LOOKUP, CROSS, DENSE), source=PLAIN)
def _() -> Any:
    return DeepFm(), (torch.randint(500, (80, 8)),)


class DcnMix(nn.Module):
    """DCN-v2 with low-rank experts in the cross layers, parallel to a deep tower."""

    def __init__(self, sizes: tuple[int, ...] = (300, 40, 9000, 2500), d: int = 16, r: int = 6, k: int = 3) -> None:
        super().__init__()
        self.e = nn.ModuleList(nn.Embedding(n, d) for n in sizes)
        m = len(sizes) * d + 5
        self.u, self.v, self.c = w(2, k, m, r), w(2, k, m, r), w(2, k, r, r)
        self.g, self.b = nn.ModuleList(nn.Linear(m, 1, bias=False) for _ in range(k)), nn.Parameter(torch.zeros(2, m))
        self.deep, self.last = mlp(m, 64, 32), nn.Linear(m + 32, 1)

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            e = [t(x[:, i]) for i, t in enumerate(self.e)]
        with phase(DENSE):
            x0 = torch.cat([*e, z], 1)
            xl = x0
            for i in range(2):
                gate = torch.cat([g(xl) for g in self.g], 1).softmax(1)
                low = torch.tanh(torch.einsum("bm,kmr->bkr", xl, self.v[i]))
                low = torch.tanh(torch.einsum("bkr,krs->bks", low, self.c[i]))
                high = torch.einsum("bks,kms->bkm", low, self.u[i]) + self.b[i]
                xl = xl + torch.einsum("bk,bkm->bm", gate, x0[:, None] * high)
            return self.last(torch.cat([xl, self.deep(x0)], 1)).sigmoid()


@case("recsys2.dcn_mix", "recsys", (LOOKUP, DENSE), source=PLAIN)
def _() -> Any:
    return DcnMix(), (columns(64, 300, 40, 9000, 2500), torch.rand(64, 5))


class Ple(nn.Module):
    """Progressive layered extraction: shared and own experts, gates, three tasks."""

    def __init__(self, tasks: int = 3, d: int = 8) -> None:
        super().__init__()
        self.u, self.i, self.g = nn.Embedding(2000, d), nn.Embedding(3000, d), nn.EmbeddingBag(300, d, mode="sum")
        self.shared = nn.ModuleList(mlp(3 * d, 32) for _ in range(2))
        self.own = nn.ModuleList(nn.ModuleList(mlp(3 * d, 32) for _ in range(2)) for _ in range(tasks))
        self.gate = nn.ModuleList(nn.Linear(3 * d, 4) for _ in range(tasks))
        self.top = nn.ModuleList(mlp(32, 16, 1, last=True) for _ in range(tasks))

    def forward(self, u: torch.Tensor, i: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            e = self.u(u), self.i(i), self.g(g)
        e = torch.hstack(e)
        with phase(DENSE):
            common = [m(e) for m in self.shared]
            out = []
            for own, gate, top in zip(self.own, self.gate, self.top, strict=True):
                every = torch.stack(common + [m(e) for m in own], 2)
                out.append(top((every @ gate(e).softmax(1).unsqueeze(2)).squeeze(2)))
            return torch.cat(out, 1).sigmoid()


@case("recsys2.ple", "recsys", (LOOKUP, DENSE), source=PLAIN)
def _() -> Any:
    return Ple(), (torch.randint(2000, (48,)), torch.randint(3000, (48,)), torch.randint(300, (48, 6)))


class Esmm(nn.Module):
    """Click and conversion towers over shared tables; their product is the conversion of impressions."""

    def __init__(self, d: int = 6) -> None:
        super().__init__()
        self.tabs = nn.ParameterDict({"user": w(1500, d), "shop": w(400, d), "good": w(7000, d), "hour": w(24, d)})
        self.m = nn.ModuleList(mlp(4 * d, 40, 20, 1, last=True) for _ in range(2))

    def forward(self, user: torch.Tensor, shop: torch.Tensor, good: torch.Tensor, hour: torch.Tensor) -> Any:
        with phase(LOOKUP):
            given = {"user": user, "shop": shop, "good": good, "hour": hour}
            e = [F.embedding(given[name], table) for name, table in self.tabs.items()]
        with phase(DENSE):
            x = torch.cat(e, -1)
            ctr, cvr = (torch.sigmoid(m(x)).squeeze(-1) for m in self.m)
        return ctr, ctr * cvr


@case("recsys2.esmm", "recsys", (LOOKUP, DENSE), source=PLAIN)
def _() -> Any:
    return Esmm(), tuple(torch.randint(n, (70,)) for n in (1500, 400, 7000, 24))


class AutoInt(nn.Module):
    """Multi-head attention between the fields, dense fields as scaled vectors."""

    def __init__(self, fields: int = 6, rows: int = 700, d: int = 8, dense: int = 3) -> None:
        super().__init__()
        self.e, self.k = nn.ModuleList(nn.Embedding(rows, d) for _ in range(fields)), w(dense, d)
        self.q = nn.ModuleList(nn.Linear(d, 4 * d, bias=False) for _ in range(2))
        self.o = nn.Linear((fields + dense) * d, 1)

    def forward(self, x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            e = [t(c) for t, c in zip(self.e, x.unbind(1), strict=True)]
        y = torch.cat([torch.stack(e, 1), z.unsqueeze(2) * self.k], 1)
        with phase(CROSS):
            for m in self.q:
                q, k, v, r = m(y).chunk(4, 2)
                b, f, d = q.shape
                q, k, v = (t.view(b, f, 2, d // 2).transpose(1, 2) for t in (q, k, v))
                a = torch.softmax(q @ k.transpose(2, 3), 3) @ v
                y = torch.relu(a.transpose(1, 2).reshape(b, f, d) + r)
        with phase(DENSE):
            return torch.sigmoid(self.o(y.flatten(1)))


@case("recsys2.autoint", "recsys", (LOOKUP, CROSS, DENSE), source=PLAIN)
def _() -> Any:
    return AutoInt(), (torch.randint(700, (50, 6)), torch.rand(50, 3))


class Towers(nn.Module):
    """Two towers of unlike inputs; in-batch scores with a correction by popularity."""

    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.u, self.i, self.c = nn.Embedding(4000, d), nn.Embedding(6000, d), nn.Embedding(50, d)
        self.f = nn.Sequential(nn.Linear(2 * d + 3, 64), nn.SELU(), nn.Linear(64, 32))
        self.g = nn.Sequential(nn.Linear(2 * d, 64), nn.SELU(), nn.Linear(64, 32))

    def forward(self, user: torch.Tensor, seen: torch.Tensor, age: torch.Tensor, item: torch.Tensor, kind: torch.Tensor,
                often: torch.Tensor) -> torch.Tensor:  # fmt: skip
        with phase(LOOKUP):
            a, h, b, c = self.u(user), self.i(seen), self.i(item), self.c(kind)
        h = h.mean(1)
        with phase(DENSE):
            p, q = self.f(torch.cat([a, h, age], 1)), self.g(torch.cat([b, c], 1))
        with phase(CROSS):
            scores = F.normalize(p) @ F.normalize(q).T
        return (scores / 0.05 - often.log()).log_softmax(1)


def tower_inputs(batch: int = 40) -> tuple[torch.Tensor, ...]:
    return (
        torch.randint(4000, (batch,)), torch.randint(6000, (batch, 9)), torch.rand(batch, 3),
        torch.randint(6000, (batch,)), torch.randint(50, (batch,)), torch.rand(batch) + 0.1,
    )  # fmt: skip


@case("recsys2.towers_in_batch", "recsys", (LOOKUP, DENSE, CROSS), source=PLAIN)
def _() -> Any:
    return Towers(), tower_inputs()


class Narm(nn.Module):
    """A GRU over the session, attention to its states, candidates by a bilinear score."""

    def __init__(self, items: int = 5000, d: int = 32) -> None:
        super().__init__()
        self.t, self.r = nn.Embedding(items, d, padding_idx=0), nn.GRU(d, d, batch_first=True)
        self.a, self.b, self.v = w(d, d), w(d, d), w(d)
        self.bi = w(2 * d, d)

    def forward(self, session: torch.Tensor, some: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            x, c = self.t(session), self.t(some)
        h, last = self.r(x)
        last = last[0]
        with phase(CROSS):
            e = torch.sigmoid(h @ self.a + (last @ self.b)[:, None]) @ self.v
            e = e.masked_fill(session == 0, -1e9).softmax(1)
            local = (e.unsqueeze(2) * h).sum(1)
            return ((torch.cat([last, local], 1) @ self.bi).unsqueeze(1) * c).sum(2)


@case("recsys2.narm_candidates", "recsys", (LOOKUP, CROSS), source=PLAIN)
def _() -> Any:
    return Narm(), (torch.randint(1, 5000, (24, 15)), torch.randint(1, 5000, (24, 20)))


class Din(nn.Module):
    """Target attention by hand: differences and products of history and target through a small net."""

    def __init__(self, items: int = 6000, shops: int = 300, d: int = 9) -> None:
        super().__init__()
        self.i, self.s, self.u = w(items, d), w(shops, d), w(1000, d)
        self.att = nn.Sequential(nn.Linear(8 * d, 24), nn.Sigmoid(), nn.Linear(24, 1))
        self.net = nn.Sequential(nn.BatchNorm1d(5 * d), nn.Linear(5 * d, 50), nn.PReLU(50), nn.Linear(50, 2))

    def forward(self, user: torch.Tensor, item: torch.Tensor, shop: torch.Tensor, items: torch.Tensor,
                shops: torch.Tensor) -> torch.Tensor:  # fmt: skip
        with phase(LOOKUP):
            u = self.u[user]
            t, h = [self.i[item], self.s[shop]], [self.i[items], self.s[shops]]
        t, h = torch.cat(t, -1), torch.cat(h, -1)
        with phase(CROSS):
            t_ = t[:, None].expand_as(h)
            a = self.att(torch.cat([h, t_, h - t_, h * t_], -1))
            a = torch.where((items > 0)[..., None], a, torch.zeros_like(a))
            pooled = (a * h).sum(1)
        with phase(DENSE):
            return self.net(torch.cat([u, t, pooled], -1)).softmax(-1)[:, 0]


def din_inputs(batch: int = 36, length: int = 10) -> tuple[torch.Tensor, ...]:
    one = tuple(torch.randint(n, (batch,)) for n in (1000, 6000, 300))
    return (*one, torch.randint(6000, (batch, length)), torch.randint(300, (batch, length)))


@case("recsys2.din_by_hand", "recsys", (LOOKUP, CROSS, DENSE), source=PLAIN)
def _() -> Any:
    return Din(), din_inputs()


class Factors(nn.Module):
    """Matrix factorization with biases, over all items for one user without a batch dimension."""

    def __init__(self, users: int = 3000, items: int = 4000, d: int = 24) -> None:
        super().__init__()
        self.p, self.q = nn.Embedding(users, d), nn.Embedding(items, d)
        self.bu, self.bi, self.mu = nn.Embedding(users, 1), nn.Embedding(items, 1), nn.Parameter(torch.tensor(3.5))

    def forward(self, u: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            p, q, a, b = self.p(u), self.q(i), self.bu(u), self.bi(i)
        with phase(CROSS):
            dot = (p * q).sum(-1)
        return dot + a[..., 0] + b[..., 0] + self.mu


@case("recsys2.biased_factors", "recsys", (LOOKUP, CROSS), source=PLAIN)
def _() -> Any:
    return Factors(), (torch.randint(3000, (200,)), torch.randint(4000, (200,)))


class Bst(nn.Module):
    """Behaviour-sequence transformer: the target is the last of the sequence, then a deep tower."""

    def __init__(self, items: int = 5000, d: int = 16, longest: int = 12) -> None:
        super().__init__()
        self.item, self.age, self.user = nn.Embedding(items, d), nn.Embedding(longest + 1, d), nn.Embedding(900, d)
        self.enc = nn.TransformerEncoderLayer(d, 2, 32, dropout=0.0, batch_first=True)
        self.deep = nn.Sequential(nn.Linear(d * (longest + 2), 64), nn.LeakyReLU(), nn.Linear(64, 1))

    def forward(self, past: torch.Tensor, target: torch.Tensor, user: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            x = self.item(torch.cat([past, target[:, None]], 1))
            u = self.user(user)
        with phase(CROSS):
            y = self.enc(x + self.age.weight)
        with phase(DENSE):
            return self.deep(torch.cat([y.flatten(1), u], 1)).sigmoid()


@case("recsys2.behaviour_sequence", "recsys", (LOOKUP, CROSS, DENSE), source=PLAIN)
def _() -> Any:
    return Bst(), (torch.randint(5000, (30, 12)), torch.randint(5000, (30,)), torch.randint(900, (30,)))


class Caser(nn.Module):
    """The last items as a picture: horizontal and vertical convolutions, then scores for sampled items."""

    def __init__(self, items: int = 4000, users: int = 700, d: int = 16, n: int = 5) -> None:
        super().__init__()
        self.e, self.u = nn.Embedding(items, d), nn.Embedding(users, d)
        self.h = nn.ModuleList(nn.Conv2d(1, 4, (i + 1, d)) for i in range(n))
        self.v = nn.Conv2d(1, 2, (n, 1))
        self.fc, self.o, self.b = nn.Linear(4 * n + 2 * d, d), nn.Embedding(items, 2 * d), nn.Embedding(items, 1)

    def forward(self, seq: torch.Tensor, user: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            x, u, o, b = self.e(seq), self.u(user), self.o(items), self.b(items)
        p = x.unsqueeze(1)
        rows = [F.relu(c(p)).squeeze(3).amax(2) for c in self.h]
        z = F.relu(self.fc(torch.cat([*rows, self.v(p).flatten(1)], 1)))
        with phase(CROSS):
            return torch.baddbmm(b, o, torch.cat([z, u], 1).unsqueeze(2)).squeeze(2)


@case("recsys2.caser", "recsys", (LOOKUP, CROSS), source=PLAIN)
def _() -> Any:
    return Caser(), (torch.randint(4000, (20, 5)), torch.randint(700, (20,)), torch.randint(4000, (20, 8)))


class Bpr(nn.Module):
    """Two updates of a pairwise ranking by hand: the rows of this batch only."""

    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.u, self.i = w(2000, d), w(3000, d)

    def forward(self, user: torch.Tensor, good: torch.Tensor, bad: torch.Tensor) -> torch.Tensor:
        losses = []
        for _ in range(2):
            with phase("train.forward"):
                u, p, n = self.u[user], self.i[good], self.i[bad]
                loss = -F.logsigmoid((u * p).sum(1) - (u * n).sum(1)).mean() + 1e-3 * u.square().mean()
            with phase("train.backward"):
                grads = torch.autograd.grad(loss, [self.u, self.i])
            with phase("train.optimizer"), torch.no_grad():
                for p, g in zip([self.u, self.i], grads, strict=True):
                    p -= 0.1 * g
            losses.append(loss.detach())
        return torch.stack(losses)


@case("train2.bpr_by_hand", "recsys", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    return Bpr(), (torch.randint(2000, (64,)), torch.randint(3000, (64,)), torch.randint(3000, (64,)))


@case("train2.din_rmsprop", "recsys", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    def loss(m: nn.Module, y: torch.Tensor, *x: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(m(*x), y)

    rmsprop = lambda p: torch.optim.RMSprop(p, 1e-3)  # noqa: E731
    return TrainStep(Din(), loss, rmsprop), (torch.rand(36).round(), *din_inputs())
