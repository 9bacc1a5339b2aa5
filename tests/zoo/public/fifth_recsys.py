"""Recommenders by a fifth author: operation-aware tables, long pasts, interests, products in stacks, whole feeds."""

import math
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
PLAIN = "plain torch, fifth author"
TABLES = (r"embedding_dict\.\w+|linear_model\.embedding_dict\.\w+", LOOKUP)
RECHUB = (r"model\.embedding\.embed_dict\.\w+", LOOKUP)


def w(*shape: int, scale: float = 0.1) -> nn.Parameter:
    """A random weight."""
    return nn.Parameter(torch.randn(*shape) * scale)


def picks(batch: int, *sizes: int) -> torch.Tensor:
    """One column of ids for each size."""
    return torch.stack([torch.randint(1, n, (batch,)) for n in sizes], 1)


def pasts(batch: int, length: int, items: int) -> torch.Tensor:
    """What was clicked, zeros behind the shorter ones."""
    x = torch.randint(1, items, (batch, length))
    return x * (torch.arange(length) < torch.randint(length // 3, length + 1, (batch, 1)))


def later(batch: int, length: int, items: int) -> torch.Tensor:
    """What was clicked, zeros before the shorter ones."""
    return pasts(batch, length, items).flip(1)


# Of deepctr-torch and torch-rechub.
def deepctr() -> Any:
    """deepctr_torch, whose import would ask the network for the newest version."""
    still = types.ModuleType("deepctr_torch.utils")
    still.check_version = lambda _version: None
    sys.modules.setdefault("deepctr_torch.utils", still)
    import deepctr_torch.inputs
    import deepctr_torch.models

    return deepctr_torch


def fields(*sizes: int, width: int = 12, numbers: int = 4) -> tuple[list[Any], list[Any]]:
    """Columns of ids and of numbers."""
    inputs = deepctr().inputs
    symbols = [inputs.SparseFeat(f"s{i}", n, embedding_dim=width) for i, n in enumerate(sizes)]
    return symbols, [inputs.DenseFeat(f"n{i}", 1) for i in range(numbers)]


SIZES = (1200, 80, 4000, 350, 24, 9000)


@case("recsys.fifth_onn", "recsys", (LOOKUP, CROSS, DENSE), source="deepctr-torch", family="ONN", spans=[
    TABLES, (r"second_order_embedding_dict\.[^.]+", CROSS), (r"second_order_embedding_dict\..+\.emb[12]", LOOKUP),
    ("dnn|dnn_linear", DENSE),
])  # fmt: skip
def _() -> Any:
    symbols, numbers = fields(*SIZES, width=10)
    model = deepctr().models.ONN(symbols + numbers, symbols + numbers, (96, 48), dnn_use_bn=True, device="cpu")
    return model, (torch.cat([picks(256, *SIZES).float(), torch.rand(256, 4)], 1),)


@case("recsys.fifth_din_of_a_shop", "recsys", (LOOKUP, CROSS, DENSE), source="deepctr-torch", family="DIN", spans=[
    (r"embedding_dict\.\w+", LOOKUP), ("attention", CROSS), ("dnn|dnn_linear", DENSE),
])  # fmt: skip
def _() -> Any:
    inputs = deepctr().inputs
    sparse, many = inputs.SparseFeat, inputs.VarLenSparseFeat
    columns = [sparse("user", 3000, embedding_dim=16), sparse("sex", 3, embedding_dim=4)]
    columns += [sparse("item", 8000, embedding_dim=16), sparse("kind", 120, embedding_dim=8)]
    columns += [inputs.DenseFeat("price", 1)]
    for name, rows, width in (("item", 8000, 16), ("kind", 120, 8)):
        old = sparse(f"hist_{name}", rows, embedding_dim=width, embedding_name=name)
        columns.append(many(old, maxlen=25, length_name="length"))
    model = deepctr().models.DIN(
        columns, ["item", "kind"], dnn_hidden_units=(128, 64), att_hidden_size=(48, 16), att_weight_normalization=True,
        device="cpu",
    )  # fmt: skip
    # In the order of the model's own index: a sequence, its length, the next sequence.
    length = torch.randint(5, 26, (128, 1))
    short = torch.arange(25) < length
    given = torch.cat([
        picks(128, 3000, 3, 8000, 120).float(), torch.rand(128, 1), torch.randint(1, 8000, (128, 25)) * short,
        length, torch.randint(1, 120, (128, 25)) * short,
    ], 1)  # fmt: skip
    return model, (given.float(),)


@case("recsys.fifth_difm", "recsys", (LOOKUP, CROSS, DENSE), source="deepctr-torch", family="DIFM", spans=[
    TABLES, ("vector_wise_net|fm", CROSS), ("bit_wise_net|transform_matrix_P_(vec|bit)", DENSE),
])  # fmt: skip
def _() -> Any:
    symbols, numbers = fields(*SIZES, 60, 2200, width=16, numbers=3)
    model = deepctr().models.DIFM(symbols + numbers, symbols, 4, dnn_hidden_units=(96, 48), device="cpu")
    return model, (torch.cat([picks(200, *SIZES, 60, 2200).float(), torch.rand(200, 3)], 1),)


class Fed(nn.Module):
    """Columns in the order of names."""

    def __init__(self, model: nn.Module, *names: str) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        return self.model(dict(zip(self.names, columns, strict=True)))


@case("recsys.fifth_behaviour_transformer", "recsys", (LOOKUP, CROSS, DENSE), source="torch-rechub", family="BST",
      spans=[RECHUB, (r"model\.transformer_layers", CROSS), (r"model\.mlp", DENSE)])  # fmt: skip
def _() -> Any:
    from torch_rechub.basic.features import SequenceFeature, SparseFeature
    from torch_rechub.models.ranking import BST

    users = [SparseFeature("user", 5000, 16), SparseFeature("place", 90, 16)]
    target = [SparseFeature("item", 6000, 16), SparseFeature("shop", 400, 16)]
    history = [
        SequenceFeature("items", 6000, 16, pooling="concat", shared_with="item", padding_idx=0),
        SequenceFeature("shops", 400, 16, pooling="concat", shared_with="shop", padding_idx=0),
    ]
    model = BST(users, history, target, {"dims": [128, 64]}, nhead=4, num_layers=2, max_seq_len=31)
    items = pasts(96, 30, 6000)
    columns = [*picks(96, 5000, 90, 6000, 400).unbind(1), items, torch.randint(1, 400, (96, 30)) * (items > 0)]
    return Fed(model, "user", "place", "item", "shop", "items", "shops"), columns


@case("recsys.fifth_hstu", "recsys", (CROSS, LOOKUP), source="torch-rechub", family="HSTU", spans=[
    ("model", CROSS), (r"model\.token_embedding", LOOKUP),
])  # fmt: skip
def _() -> Any:
    from torch_rechub.models.generative.hstu import HSTUModel

    class Best(nn.Module):
        """Ten items for the last place of each past."""

        def __init__(self) -> None:
            super().__init__()
            self.model = HSTUModel(
                4000, d_model=96, n_heads=4, n_layers=3, dqk=24, dv=24, max_seq_len=48, num_time_buckets=64
            )

        def forward(self, x: torch.Tensor, ago: torch.Tensor) -> Any:
            return self.model(x, ago)[:, -1].topk(10, 1)

    ago = torch.randint(60, 100000, (8, 48)).sort(1, descending=True).values
    return Best(), (later(8, 48, 4000), ago)


@case("recsys.fifth_interests_by_attention", "recsys", (LOOKUP, CROSS), source="torch-rechub", family="ComirecSA",
      spans=[RECHUB, (r"model\.multi_interest_sa", CROSS)])  # fmt: skip
def _() -> Any:
    from torch_rechub.basic.features import SequenceFeature, SparseFeature
    from torch_rechub.models.matching import ComirecSA

    class Reached(Fed):
        """The best of a user's interests for each of the items."""

        def forward(self, *columns: torch.Tensor) -> torch.Tensor:
            x = dict(zip(self.names, columns, strict=True))
            user, items = self.model.user_tower(x), self.model.item_tower(x)
            with phase(CROSS):
                return torch.einsum("bkd,bnd->bkn", user, items).amax(1)

    item = [SparseFeature("item", 7000, 32)]
    past = [SequenceFeature("past", 7000, 32, pooling="concat", shared_with="item")]
    others = [SequenceFeature("others", 7000, 32, pooling="concat", shared_with="item")]
    users = [SparseFeature("user", 2000, 16), SparseFeature("age", 12, 16)]
    model = ComirecSA(users, past, item, others, temperature=0.02, interest_num=4)
    columns = [*picks(64, 2000, 12).unbind(1), pasts(64, 40, 7000), torch.randint(1, 7000, (64,))]
    return Reached(model, "user", "age", "past", "item", "others"), [*columns, torch.randint(1, 7000, (64, 20))]


@case("recsys.fifth_field_aware", "recsys", (LOOKUP, CROSS, DENSE), source="torch-rechub", family="DeepFFM", spans=[
    (r"model\.(linear|ffm)_embedding\.embed_dict\.\w+", LOOKUP), (r"model\.ffm", CROSS), (r"model\.mlp_out", DENSE),
])  # fmt: skip
def _() -> Any:
    from torch_rechub.basic.features import SparseFeature
    from torch_rechub.models.ranking import DeepFFM

    sizes = (700, 3000, 50, 1500, 18, 420, 2600)
    names = [f"f{i}" for i in range(len(sizes))]
    line = [SparseFeature(n, vocab_size=k, embed_dim=1) for n, k in zip(names, sizes, strict=True)]
    cross = [SparseFeature(n, vocab_size=k * len(sizes), embed_dim=8) for n, k in zip(names, sizes, strict=True)]
    model = DeepFFM(line, cross, 8, {"dims": [96, 48], "activation": "relu"})
    return Fed(model, *names), tuple(picks(160, *sizes).unbind(1))


@case("recsys.fifth_train_shared_bottom", "recsys", TRAIN, mode="train", source="deepctr-torch", family="SharedBottom",
      optimizer="adagrad")  # fmt: skip
def _() -> Any:
    symbols, numbers = fields(*SIZES, width=12, numbers=5)
    model = deepctr().models.multitask.SharedBottom(
        symbols + numbers, (96, 48), (24,), task_types=("binary", "binary"), task_names=("click", "buy"), device="cpu"
    )
    grad = lambda p: torch.optim.Adagrad(p, 0.05)  # noqa: E731
    x = torch.cat([picks(128, *SIZES).float(), torch.rand(128, 5)], 1)
    click = torch.rand(128).round()
    y = torch.stack([click, click * torch.rand(128).round()], 1)
    return TrainStep(model, lambda m, x, y: F.binary_cross_entropy(m(x), y), grad), (x, y)


# Plain ones.
class LongPast(nn.Module):
    """A past of hundreds: the nearest to the target are searched for, those alone get attention (SIM)."""

    def __init__(self, items: int = 20000, kinds: int = 300, users: int = 4000, width: int = 16) -> None:
        super().__init__()
        self.item, self.kind = nn.Embedding(items, width, padding_idx=0), nn.Embedding(kinds, width, padding_idx=0)
        self.user, self.gap = nn.Embedding(users, width), nn.Embedding(20, 2 * width)
        self.search = nn.Linear(2 * width, 2 * width, bias=False)
        self.attention = nn.MultiheadAttention(2 * width, 4, batch_first=True)
        self.short = nn.Sequential(nn.Linear(8 * width, 36), nn.PReLU(), nn.Linear(36, 1))
        self.deep = nn.Sequential(
            nn.Linear(7 * width + 6, 128), nn.PReLU(), nn.Linear(128, 64), nn.PReLU(), nn.Linear(64, 1)
        )

    def forward(self, user: torch.Tensor, target: torch.Tensor, past: torch.Tensor, gaps: torch.Tensor,
                recent: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:  # fmt: skip
        with phase(LOOKUP):
            who = self.user(user)
            goal = torch.cat([self.item(target[:, 0]), self.kind(target[:, 1])], 1)
            old = torch.cat([self.item(past[..., 0]), self.kind(past[..., 1])], 2)
            new = torch.cat([self.item(recent[..., 0]), self.kind(recent[..., 1])], 2)
        with phase(CROSS):
            near = torch.bmm(old, self.search(goal)[:, :, None]).squeeze(2).masked_fill(past[..., 0] == 0, -1e9)
            best = near.topk(20, 1).indices
            chosen = old.gather(1, best[..., None].expand(-1, -1, old.shape[2])) + self.gap(gaps.gather(1, best))
            lasting = self.attention(goal[:, None], chosen, chosen, need_weights=False)[0].squeeze(1)
            same = goal[:, None].expand_as(new)
            scores = self.short(torch.cat([same, new, same - new, same * new], 2)).squeeze(2)
            passing = ((scores * (recent[..., 0] > 0))[..., None] * new).sum(1)
        with phase(DENSE):
            return torch.sigmoid(self.deep(torch.cat([who, goal, lasting, passing, numbers], 1)).squeeze(1))


@case("recsys.fifth_long_pasts_searched", "recsys", (LOOKUP, CROSS, DENSE), source=PLAIN)
def _() -> Any:
    def pairs(length: int) -> torch.Tensor:
        x = pasts(32, length, 20000)
        return torch.stack([x, torch.randint(1, 300, x.shape) * (x > 0)], 2)

    given = (torch.randint(4000, (32,)), picks(32, 20000, 300), pairs(400), torch.randint(20, (32, 400)))
    return LongPast(), (*given, pairs(15), torch.rand(32, 6))


class Tall(nn.Module):
    """Layers of factorization machines on compressed fields beside linear mixtures of fields, stacked (Wukong)."""

    def __init__(self, sizes: tuple[int, ...] = (3000, 90, 700, 15000, 40, 2500, 600, 60, 8000, 310), d: int = 24,
                 k: int = 3, l: int = 8, r: int = 6) -> None:  # noqa: E741  # fmt: skip
        super().__init__()
        self.a = nn.ModuleList(nn.Embedding(n, d) for n in sizes)
        self.b, n = nn.Linear(13, 2 * d), len(sizes) + 2
        ins = [n] + [2 * l] * (k - 1)
        self.c, self.e = nn.ParameterList(w(i, r) for i in ins), nn.ParameterList(w(i, l, scale=0.3) for i in ins)
        self.f = nn.ModuleList(nn.LayerNorm(i * r) for i in ins)
        self.g = nn.ModuleList(nn.Sequential(nn.Linear(i * r, 128), nn.ReLU(), nn.Linear(128, l * d)) for i in ins)
        self.h = nn.ParameterList(w(i, 2 * l, scale=0.3) for i in ins)
        self.i, self.j = nn.ModuleList(nn.LayerNorm(d) for _ in ins), mlp(2 * l * d, 96, 1, last=True)

    def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            e = [t(c) for t, c in zip(self.a, x.unbind(1), strict=True)]
        with phase(DENSE):
            z = self.b(torch.log1p(z)).unflatten(1, (2, -1))
        e = torch.cat([torch.stack(e, 1), z], 1)
        for c, p, f, g, h, i in zip(self.c, self.e, self.f, self.g, self.h, self.i, strict=True):
            with phase(CROSS):
                y = torch.bmm(e, e.transpose(1, 2) @ c).flatten(1)
            with phase(DENSE):
                y = g(f(y)).unflatten(1, (-1, e.shape[2]))
                u = torch.einsum("bnd,nl->bld", e, p)
                e = i(torch.cat([y, u], 1) + torch.einsum("bnd,nl->bld", e, h))
        with phase(DENSE):
            return torch.sigmoid(self.j(e.flatten(1)))


@case("recsys.fifth_products_in_stacks", "recsys", (LOOKUP, DENSE, CROSS), source=PLAIN)
def _() -> Any:
    x = picks(256, 3000, 90, 700, 15000, 40, 2500, 600, 60, 8000, 310)
    return Tall(), (torch.rand(256, 13) * 30, x)


class Pace(nn.Module):
    """Causal blocks over a past whose keys and values know places and how long ago (TiSASRec); some candidates."""

    def __init__(self, n: int = 5000, d: int = 48, k: int = 2, h: int = 2, room: int = 32, span: int = 64) -> None:
        super().__init__()
        self.q0, self.h, self.k = nn.Embedding(n, d, padding_idx=0), h, k
        self.q1, self.q2 = w(2, room, d), w(2, span, d)
        self.q3 = nn.ModuleList(nn.Linear(d, 3 * d) for _ in range(k))
        self.q4 = nn.ModuleList(nn.ModuleList([nn.Conv1d(d, d, 1), nn.Conv1d(d, d, 1)]) for _ in range(k))
        self.q5 = nn.ModuleList(nn.LayerNorm(d, eps=1e-8) for _ in range(2 * k + 1))

    def cut(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (self.h, -1))

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            e, y = self.q0(x), self.q0(y)
        with phase(CROSS):
            pad, n = x == 0, x.shape[1]
            gap = (t[:, :, None] - t[:, None]).abs().clamp(max=self.q2.shape[1] - 1)
            kt, vt = self.cut(self.q2[0][gap]), self.cut(self.q2[1][gap])
            kp, vp = self.cut(self.q1[0, :n]), self.cut(self.q1[1, :n])
            hide = torch.ones(n, n, dtype=torch.bool, device=x.device).triu(1) | pad[:, None, None]
            e = e * e.shape[-1] ** 0.5 * ~pad[..., None]
            for i in range(self.k):
                u = self.q5[2 * i](e)
                q, k, v = (self.cut(z) for z in self.q3[i](u).chunk(3, 2))
                s = torch.einsum("bqhd,bkhd->bhqk", q, k + kp) + torch.einsum("bqhd,bqkhd->bhqk", q, kt)
                s = (s * q.shape[-1] ** -0.5).masked_fill(hide, -1e9).softmax(3)
                o = torch.einsum("bhqk,bkhd->bqhd", s, v + vp) + torch.einsum("bhqk,bqkhd->bqhd", s, vt)
                e = u + o.flatten(2)
                u = self.q5[2 * i + 1](e).transpose(1, 2)
                e = (u + self.q4[i][1](F.relu(self.q4[i][0](u)))).transpose(1, 2) * ~pad[..., None]
            return torch.einsum("bd,bnd->bn", self.q5[-1](e[:, -1]), y)


@case("recsys.fifth_paces_of_clicks", "recsys", (LOOKUP, CROSS), source=PLAIN)
def _() -> Any:
    when = torch.randint(0, 200, (24, 32)).sort(1).values
    return Pace(), (later(24, 32, 5000), when, torch.randint(1, 5000, (24, 100)))


class Tune(nn.Module):
    """A past as a signal: learned weights on its frequencies, nets on each place; the last place over all items."""

    def __init__(self, n: int = 6000, d: int = 64, k: int = 2, room: int = 48) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Embedding(n, d, padding_idx=0), nn.Embedding(room, d), nn.LayerNorm(d, eps=1e-12)
        self.d = w(k, room // 2 + 1, d, 2, scale=0.3)
        self.e = nn.ModuleList(nn.LayerNorm(d, eps=1e-12) for _ in range(2 * k))
        self.f = nn.ModuleList(nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d)) for _ in range(k))

    def forward(self, x: torch.Tensor) -> Any:
        with phase(LOOKUP):
            e = self.a(x)
        e = self.c(e + self.b.weight[: x.shape[1]])
        for i, f in enumerate(self.f):
            y = torch.fft.rfft(e, dim=1, norm="ortho") * torch.view_as_complex(self.d[i])
            e = self.e[2 * i](e + torch.fft.irfft(y, n=x.shape[1], dim=1, norm="ortho"))
            with phase(DENSE):
                e = self.e[2 * i + 1](e + f(e))
        with phase(CROSS):
            s = e[:, -1] @ self.a.weight.T
        return s.topk(20, 1)


@case("recsys.fifth_pasts_as_signals", "recsys", (LOOKUP, DENSE, CROSS), source=PLAIN)
def _() -> Any:
    return Tune(), (later(32, 48, 6000),)


class LowRankCross(nn.Module):
    """Multi-hot tables in bags, a bottom net, low-rank crossing of all with itself, a top net (MLPerf's DLRM v2)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        rows = (30000, 4000, 120, 9000, 60, 15000, 700, 20000)
        self.tables = nn.ModuleList(nn.EmbeddingBag(n, width, mode="sum", include_last_offset=True) for n in rows)
        self.bottom = mlp(13, 128, 64, width)
        total, rank = width * (len(rows) + 1), 48
        self.down = nn.ModuleList(nn.Linear(total, rank, bias=False) for _ in range(3))
        self.up = nn.ModuleList(nn.Linear(rank, total) for _ in range(3))
        self.top = mlp(total, 128, 64, 1, last=True)

    def forward(self, dense: torch.Tensor, values: list[torch.Tensor], offsets: list[torch.Tensor]) -> torch.Tensor:
        with phase(DENSE):
            x = self.bottom(dense)
        with phase(LOOKUP):
            bags = [t(v, o) for t, v, o in zip(self.tables, values, offsets, strict=True)]
        with phase(DENSE):
            first = x = torch.cat([x, *bags], 1)
            for down, up in zip(self.down, self.up, strict=True):
                x = first * up(down(x)) + x
            return torch.sigmoid(self.top(x)).squeeze(1)


@case("recsys.fifth_low_rank_crosses", "recsys", (DENSE, LOOKUP), source=PLAIN)
def _() -> Any:
    values, offsets = [], []
    for n, hot in zip((30000, 4000, 120, 9000, 60, 15000, 700, 20000), (3, 2, 1, 2, 6, 1, 7, 3), strict=True):
        lengths = torch.randint(0, 2 * hot, (512,))
        offsets.append(torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)]))
        values.append(torch.randint(n, (int(lengths.sum()),)))
    return LowRankCross(), (torch.rand(512, 13), values, offsets)


class Feed(nn.Module):
    """One user's feed ranked: target attention over what was watched, products of fields, experts for three tasks."""

    def __init__(self, videos: int = 12000, authors: int = 3000, width: int = 24, experts: int = 4) -> None:
        super().__init__()
        self.video, self.author = nn.Embedding(videos, width, padding_idx=0), nn.Embedding(authors, width)
        self.user, self.city, self.hour = nn.Embedding(8000, width), nn.Embedding(350, width), nn.Embedding(24, width)
        self.tags = nn.EmbeddingBag(1500, width, mode="mean", padding_idx=0)
        self.query, self.key, self.value = (nn.Linear(2 * width, 48) for _ in range(3))
        total = 6 * width + 48 + 15 + 8
        self.experts = nn.ModuleList(mlp(total, 96, 48) for _ in range(experts))
        self.gates = nn.ModuleList(nn.Linear(total, experts) for _ in range(3))
        self.towers = nn.ModuleList(mlp(48, 24, 1, last=True) for _ in range(3))
        self.register_buffer("pairs", torch.triu_indices(6, 6, 1))

    def forward(self, user: torch.Tensor, video: torch.Tensor, author: torch.Tensor, tags: torch.Tensor,
                watched: torch.Tensor, by: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:  # fmt: skip
        n = len(video)
        with phase(LOOKUP):
            who = [table(c).expand(n, -1) for table, c in zip((self.user, self.city, self.hour), user, strict=True)]
            what = [self.video(video), self.author(author), self.tags(tags)]
            past = torch.cat([self.video(watched), self.author(by)], 1)
        with phase(CROSS):
            q = self.query(torch.cat(what[:2], 1)).view(n, 4, 12)
            k, v = self.key(past).view(-1, 4, 12), self.value(past).view(-1, 4, 12)
            scores = torch.einsum("nhd,thd->nht", q, k) / math.sqrt(12)
            scores = scores.masked_fill(watched == 0, float("-inf")).softmax(2)
            interest = torch.einsum("nht,thd->nhd", scores, v).flatten(1)
            fields = torch.stack(who + what, 1)
            products = torch.bmm(fields, fields.mT)[:, self.pairs[0], self.pairs[1]]
        x = torch.cat([fields.flatten(1), interest, products, numbers], 1)
        with phase(DENSE):
            each = torch.stack([expert(x) for expert in self.experts], 1)
            out = [
                tower((gate(x).softmax(1)[:, :, None] * each).sum(1))
                for gate, tower in zip(self.gates, self.towers, strict=True)
            ]
            click, like, share = torch.sigmoid(torch.cat(out, 1)).unbind(1)
        return click * (1 + 4 * like) * (1 + 8 * share)


@case("recsys.fifth_feed_for_one_user", "recsys", (LOOKUP, CROSS, DENSE), source=PLAIN)
def _() -> Any:
    watched = torch.randint(1, 12000, (50,))
    watched[38:] = 0
    given = (torch.tensor([4211, 87, 19]), torch.randint(1, 12000, (400,)), torch.randint(3000, (400,)))
    return Feed(), (*given, torch.randint(0, 1500, (400, 5)), watched, torch.randint(3000, (50,)), torch.rand(400, 8))


class Sampled(nn.Module):
    """Two towers, the items of a batch against each other, how often each is drawn subtracted."""

    def __init__(self, users: int = 3000, items: int = 6000, width: int = 24) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(users, width), nn.Embedding(items, width)
        self.history, self.genre = nn.EmbeddingBag(items, width, mode="mean"), nn.Embedding(30, width)
        self.left, self.right = mlp(2 * width, 64, 32, last=True), mlp(2 * width, 64, 32, last=True)

    def forward(self, user: torch.Tensor, seen: torch.Tensor, item: torch.Tensor, genre: torch.Tensor) -> torch.Tensor:
        a = self.left(torch.cat([self.user(user), self.history(seen)], 1))
        b = self.right(torch.cat([self.item(item), self.genre(genre)], 1))
        return F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / 0.05


@case("recsys.fifth_train_sampled_towers", "recsys", TRAIN, mode="train", source=PLAIN, optimizer="nesterov")
def _() -> Any:
    def loss(m: nn.Module, *x: torch.Tensor) -> torch.Tensor:
        *given, often = x
        scores = m(*given) - often.log()
        return F.cross_entropy(scores, torch.arange(len(scores), device=scores.device))

    nesterov = lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, nesterov=True, weight_decay=1e-5)  # noqa: E731
    given = (torch.randint(3000, (64,)), torch.randint(6000, (64, 10)), torch.randint(6000, (64,)))
    return TrainStep(Sampled(), loss, nesterov), (*given, torch.randint(30, (64,)), torch.rand(64) * 0.01 + 1e-4)
