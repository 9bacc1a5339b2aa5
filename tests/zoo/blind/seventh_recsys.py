"""Recommenders by a seventh author: what is run most, at inference, with batches of real size; some sequential."""

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

case = split("blind")
LOOKUP, DENSE, CROSS = "recsys.embedding_lookup", "recsys.dense_mlp", "recsys.interaction"
PLAIN = "plain torch, seventh author"
TABLES = (r"(linear_model\.)?embedding_dict\.\w+", LOOKUP)
TABLE = (r"model\.embedding\.embed_dict\.\w+", LOOKUP)


def picks(batch: int, *sizes: int) -> torch.Tensor:
    """One column of ids for each size."""
    return torch.stack([torch.randint(n, (batch,)) for n in sizes], 1)


def histories(batch: int, length: int, items: int, behind: bool = True) -> torch.Tensor:
    """Histories of different lengths, zeros behind or in front."""
    x, n = torch.randint(1, items, (batch, length)), torch.randint(length // 3, length + 1, (batch, 1))
    at = torch.arange(length)
    return x * (at < n if behind else at >= length - n)


def deepctr() -> Any:
    """Its import would ask the network for the newest version."""
    still = types.ModuleType("deepctr_torch.utils")
    still.check_version = lambda _version: None
    sys.modules.setdefault("deepctr_torch.utils", still)
    import deepctr_torch.models

    return deepctr_torch.models


class Fed(nn.Module):
    """Columns in the order of names."""

    def __init__(self, model: nn.Module, *names: str) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *columns: torch.Tensor) -> Any:
        return self.model(dict(zip(self.names, columns, strict=True)))


# Of libraries.
CRITEO = (1400, 550, 9000, 7000, 300, 24, 8000, 630, 3, 6000, 5000, 8500, 3100, 26, 5600, 7500)


@case(
    "recsys.seventh_deepfm_of_genres", "recsys", (LOOKUP, CROSS, DENSE), source="deepctr-torch", family="DeepFM",
    spans=[TABLES, ("fm", CROSS), ("dnn|dnn_linear", DENSE)],
)  # fmt: skip
def _() -> Any:
    models = deepctr()
    from deepctr_torch.inputs import SparseFeat, VarLenSparseFeat

    sizes = (6040, 3700, 2, 7, 21, 3400)
    columns: list[Any] = [SparseFeat(f"m{i}", n, embedding_dim=16) for i, n in enumerate(sizes)]
    columns.append(VarLenSparseFeat(SparseFeat("genres", 19, embedding_dim=16), maxlen=6, combiner="mean"))
    model = models.DeepFM(columns, columns, dnn_hidden_units=(256, 128), device="cpu")
    return model, (torch.cat([picks(256, *sizes), histories(256, 6, 19)], 1).float(),)


@case(
    "recsys.seventh_matrix_crosses", "recsys", (LOOKUP, DENSE), source="deepctr-torch", family="DCN",
    spans=[TABLES, ("dnn|dnn_linear|crossnet", DENSE)],
)  # fmt: skip
def _() -> Any:
    models = deepctr()
    from deepctr_torch.inputs import DenseFeat, SparseFeat

    columns: list[Any] = [SparseFeat(f"C{i}", n, embedding_dim=12) for i, n in enumerate(CRITEO)]
    columns.append(DenseFeat("I", 13))
    model = models.DCN(
        columns, columns, cross_num=3, cross_parameterization="matrix", dnn_hidden_units=(256, 256), device="cpu"
    )
    return model, (torch.cat([picks(256, *CRITEO).float(), torch.rand(256, 13)], 1),)


@case(
    "recsys.seventh_income_and_marriage", "recsys", (LOOKUP, DENSE), source="deepctr-torch", family="MMOE",
    spans=[TABLES, (r"(expert|gate|tower)_dnn(_final_layer)?\.\d+", DENSE)],
)  # fmt: skip
def _() -> Any:
    models = deepctr()
    from deepctr_torch.inputs import DenseFeat, SparseFeat

    sizes = (9, 52, 47, 17, 3, 7, 24, 15, 5, 10, 2, 3, 6, 8, 51)
    columns: list[Any] = [SparseFeat(f"c{i}", n, embedding_dim=4) for i, n in enumerate(sizes)]
    columns += [DenseFeat(f"n{i}", 1) for i in range(7)]
    model = models.MMOE(
        columns, num_experts=6, expert_dnn_hidden_units=(128, 64), gate_dnn_hidden_units=(), device="cpu",
        tower_dnn_hidden_units=(32,), task_types=["binary", "binary"], task_names=["income", "marriage"],
    )  # fmt: skip
    return model, (torch.cat([picks(512, *sizes).float(), torch.rand(512, 7)], 1),)


@case(
    "recsys.seventh_goods_and_their_kinds", "recsys", (LOOKUP, CROSS, DENSE), source="torch-rechub", family="DIEN",
    spans=[TABLE, (r"model\.interest_evolving_layers\.\d+", CROSS), (r"model\.mlp", DENSE)],
)  # fmt: skip
def _() -> Any:
    from torch_rechub.basic.features import SequenceFeature, SparseFeature
    from torch_rechub.models.ranking import DIEN

    wide = dict(embed_dim=16, padding_idx=0)
    user = [SparseFeature("user", vocab_size=2000, embed_dim=16)]
    target = [SparseFeature("good", vocab_size=4000, **wide), SparseFeature("kind", vocab_size=120, **wide)]
    seen = lambda p: [  # noqa: E731
        SequenceFeature(f"{p}{k}", vocab_size=n, pooling="concat", shared_with=k, **wide)
        for k, n in (("good", 4000), ("kind", 120))
    ]
    model = DIEN(user, seen("hist_"), seen("neg_"), target, {"dims": [128, 64]})
    goods, kinds = histories(64, 16, 4000), histories(64, 16, 120)
    kinds = (kinds + 1).clamp(max=119) * (goods > 0)
    given = [torch.randint(n, (64,)) for n in (2000, 4000, 120)]
    given += [goods, kinds, torch.randint(1, 4000, (64, 16)), torch.randint(1, 120, (64, 16))]
    return Fed(model, "user", "good", "kind", "hist_good", "hist_kind", "neg_good", "neg_kind"), given


@case(
    "recsys.seventh_heads_over_fields", "recsys", (LOOKUP, CROSS, DENSE), source="torch-rechub", family="AutoInt",
    spans=[
        (r"model\.sparse_embedding\.embed_dict\.\w+", LOOKUP), (r"model\.interacting_layers\.\d+", CROSS),
        (r"model\.(attn_linear|linear|mlp)", DENSE),
    ],
)  # fmt: skip
def _() -> Any:
    from torch_rechub.basic.features import DenseFeature, SparseFeature
    from torch_rechub.models.ranking import AutoInt

    sparse = [SparseFeature(f"C{i}", vocab_size=n, embed_dim=16) for i, n in enumerate(CRITEO)]
    model = AutoInt(
        sparse, [DenseFeature(f"I{i}") for i in range(4)], num_layers=3, num_heads=4,
        mlp_params={"dims": [128, 64], "activation": "relu"},
    )  # fmt: skip
    given = [*picks(256, *CRITEO).unbind(1), *torch.rand(4, 256).unbind(0)]
    return Fed(model, *(f"C{i}" for i in range(len(CRITEO))), *(f"I{i}" for i in range(4))), given


@case(
    "recsys.seventh_clicks_then_orders", "recsys", (LOOKUP, DENSE), source="torch-rechub", family="ESMM",
    spans=[TABLE, (r"model\.tower_c[tv]r", DENSE)],
)  # fmt: skip
def _() -> Any:
    from torch_rechub.basic.features import SparseFeature
    from torch_rechub.models.multi_task import ESMM

    users, items = (5000, 98, 14, 3, 8, 4), (9000, 1200, 300, 40)
    a = [SparseFeature(f"u{i}", vocab_size=n, embed_dim=16) for i, n in enumerate(users)]
    b = [SparseFeature(f"i{i}", vocab_size=n, embed_dim=16) for i, n in enumerate(items)]
    model = ESMM(a, b, {"dims": [160, 80]}, {"dims": [160, 80]})
    return Fed(model, *(f.name for f in a + b)), picks(512, *users, *items).unbind(1)


class Towers(nn.Module):
    """Both towers of a matching model of torch-rechub, and the products as its own forward takes them."""

    def __init__(self, model: nn.Module, *names: str) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        x = dict(zip(self.names, columns, strict=True))
        user, items = self.model.user_tower(x), self.model.item_tower(x)
        with phase(CROSS):
            return torch.mul(user, items).sum(-1)


@case(
    "recsys.seventh_recurrent_matching", "recsys", (LOOKUP, DENSE, CROSS), source="torch-rechub", family="GRU4Rec",
    spans=[TABLE, (r"model\.user_mlp", DENSE)],
)  # fmt: skip
def _() -> Any:
    from torch_rechub.basic.features import SequenceFeature, SparseFeature
    from torch_rechub.models.matching import GRU4Rec

    user = [SparseFeature("user", vocab_size=3000, embed_dim=32), SparseFeature("age", vocab_size=8, embed_dim=32)]
    more = dict(vocab_size=6000, embed_dim=32, pooling="concat", shared_with="item")
    model = GRU4Rec(
        user, [SequenceFeature("past", **more)], [SparseFeature("item", vocab_size=6000, embed_dim=32)],
        [SequenceFeature("others", **more)], {"dims": [128, 32]},
    )  # fmt: skip
    given = [torch.randint(n, (64,)) for n in (3000, 8, 6000)]
    given += [histories(64, 20, 6000), torch.randint(1, 6000, (64, 30))]
    return Towers(model, "user", "age", "item", "past", "others"), given


@case("recsys.seventh_deepfm_steps", "recsys", TRAIN, mode="train", source="torch-rechub", family="DeepFM")
def _() -> Any:
    from torch_rechub.basic.features import DenseFeature, SparseFeature
    from torch_rechub.models.ranking import DeepFM

    sparse = [SparseFeature(f"C{i}", vocab_size=n, embed_dim=8) for i, n in enumerate(CRITEO[:8])]
    dense = [DenseFeature("I0"), DenseFeature("I1")]
    model = Fed(
        DeepFM(dense + sparse, sparse, {"dims": [64, 32], "dropout": 0.0, "activation": "relu"}),
        "I0", "I1", *(f"C{i}" for i in range(8)),
    )  # fmt: skip
    rms = lambda p: torch.optim.RMSprop(p, 1e-3, alpha=0.9)  # noqa: E731
    loss = lambda m, *x: F.binary_cross_entropy(m(*x[:-1]), x[-1])  # noqa: E731
    given = [torch.rand(128), torch.rand(128), *picks(128, *CRITEO[:8]).unbind(1), torch.rand(128).round()]
    return TrainStep(model, loss, rms), given


# Plain ones.
class News(nn.Module):
    """News by the words of their titles, a user by the news that were read: heads, then one weight each (NRMS)."""

    def __init__(self, words: int = 8000, d: int = 100, heads: int = 5, query: int = 64) -> None:
        super().__init__()
        self.word_embedding = nn.Embedding(words, d, padding_idx=0)
        self.title_heads, self.user_heads = (nn.MultiheadAttention(d, heads, batch_first=True) for _ in range(2))
        self.title_query, self.user_query = (
            nn.Sequential(nn.Linear(d, query), nn.Tanh(), nn.Linear(query, 1)) for _ in range(2)
        )

    def forward(self, clicked: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        b, n = clicked.shape[:2]
        titles = torch.cat([clicked, candidates], 1)
        with phase(LOOKUP):
            words = self.word_embedding(titles)
        with phase(CROSS):
            x = words.flatten(0, 1)
            x = self.title_heads(x, x, x, need_weights=False)[0]
            weight = self.title_query(x).squeeze(2).masked_fill(titles.flatten(0, 1) == 0, -1e9).softmax(1)
            news = torch.bmm(weight[:, None], x).view(b, titles.shape[1], -1)
            read, offered = news[:, :n], news[:, n:]
            user = self.user_heads(read, read, read, need_weights=False)[0]
            user = (self.user_query(user).softmax(1) * user).sum(1)
            return torch.bmm(offered, user[:, :, None]).squeeze(2)


@case("recsys.seventh_news", "recsys", (LOOKUP, CROSS), source=PLAIN)
def _() -> Any:
    titles = lambda n: histories(16 * n, 15, 8000).view(16, n, 15)  # noqa: E731
    return News(), (titles(20), titles(5))


class Retrieval(nn.Module):
    """A user's tower against vectors of all items made beforehand: the nearest hundred of twenty thousand."""

    def __init__(self, items: int = 20000, d: int = 32, out: int = 64) -> None:
        super().__init__()
        self.user_id, self.country, self.device = nn.Embedding(10000, d), nn.Embedding(240, d), nn.Embedding(6, d)
        self.watched = nn.EmbeddingBag(items, d, mode="mean", padding_idx=0)
        self.searched = nn.EmbeddingBag(5000, d, mode="mean", padding_idx=0)
        self.tower = mlp(5 * d + 3, 256, 128, out, last=True)
        self.register_buffer("index", F.normalize(torch.randn(items, out)))

    def forward(self, who: torch.Tensor, watched: torch.Tensor, searched: torch.Tensor, age: torch.Tensor) -> Any:
        with phase(LOOKUP):
            parts = [self.user_id(who[:, 0]), self.country(who[:, 1]), self.device(who[:, 2])]
            parts += [self.watched(watched), self.searched(searched)]
        with phase(DENSE):
            user = self.tower(torch.cat([*parts, age, age.sqrt(), age**2], 1))
        with phase(CROSS):
            scores = F.normalize(user) @ self.index.t()
        return scores.topk(100, 1)


@case("recsys.seventh_nearest_of_all", "recsys", (LOOKUP, DENSE, CROSS), source=PLAIN)
def _() -> Any:
    given = picks(64, 10000, 240, 6), histories(64, 40, 20000), histories(64, 10, 5000), torch.rand(64, 1)
    return Retrieval(), given


class Ranker(nn.Module):
    """Which of the found videos to show: the past weighed by the candidate, then towers for clicks, likes and time."""

    def __init__(self, items: int = 12000, d: int = 24, dense: int = 10) -> None:
        super().__init__()
        self.item_table, self.author_table = nn.Embedding(items, d, padding_idx=0), nn.Embedding(2000, d, padding_idx=0)
        self.user_table, self.context_table = nn.Embedding(6000, d), nn.Embedding(500, d)
        self.attention = nn.Sequential(nn.Linear(8 * d, 64), nn.PReLU(), nn.Linear(64, 1))
        self.bottom = nn.Sequential(nn.BatchNorm1d(6 * d + dense), mlp(6 * d + dense, 256, 128))
        self.heads = nn.ModuleDict({k: mlp(128, 64, 1, last=True) for k in ("click", "like", "time")})

    def forward(
        self, user: torch.Tensor, item: torch.Tensor, author: torch.Tensor, context: torch.Tensor,
        past_items: torch.Tensor, past_authors: torch.Tensor, numbers: torch.Tensor,
    ) -> torch.Tensor:  # fmt: skip
        with phase(LOOKUP):
            u, c = self.user_table(user), self.context_table(context)
            target = torch.cat([self.item_table(item), self.author_table(author)], 1)
            past = torch.cat([self.item_table(past_items), self.author_table(past_authors)], 2)
        with phase(CROSS):
            query = target[:, None].expand_as(past)
            weight = self.attention(torch.cat([query, past, query - past, query * past], 2))
            weight = weight.masked_fill((past_items == 0)[:, :, None], 0.0)
            interest = (weight * past).sum(1)
        with phase(DENSE):
            x = self.bottom(torch.cat([u, c, target, interest, numbers], 1))
            out = [head(x) for head in self.heads.values()]
            return torch.cat([torch.sigmoid(out[0]), torch.sigmoid(out[1]), F.softplus(out[2])], 1)


@case("recsys.seventh_ranked_videos", "recsys", (LOOKUP, CROSS, DENSE), source=PLAIN)
def _() -> Any:
    past = histories(200, 30, 12000)
    one = [torch.randint(1, n, (200,)) for n in (6000, 12000, 2000, 500)]
    return Ranker(), (*one, past, torch.randint(1, 2000, (200, 30)) * (past > 0), torch.randn(200, 10))


ROWS = (
    3000, 12, 900, 4000, 60, 5000, 700, 3, 2500, 40, 1800, 6000, 10, 130, 3300, 5, 480, 2200, 90, 1500, 7, 310, 4400,
    75, 260, 1100,
)  # fmt: skip


class Ra(nn.Module):
    """Twenty-six tables, thirteen numbers, products of all pairs."""

    def __init__(self, d: int = 32) -> None:
        super().__init__()
        self.a = nn.ParameterList(nn.Parameter(torch.randn(n, d) * n**-0.5) for n in ROWS)
        self.b, self.c = mlp(13, 256, 128, d), mlp(d + 27 * 26 // 2, 256, 128, 1, last=True)
        i, j = torch.tril_indices(27, 27, -1)
        self.register_buffer("d", i * 27 + j)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with phase(DENSE):
            x = self.b(x)
        with phase(LOOKUP):
            e = [F.embedding(y[:, i], a) for i, a in enumerate(self.a)]
        with phase(CROSS):
            z = torch.stack([x, *e], 1)
            z = torch.bmm(z, z.transpose(1, 2)).flatten(1)[:, self.d]
        with phase(DENSE):
            return self.c(torch.cat([x, z], 1)).squeeze(1).sigmoid()


@case("recsys.seventh_ra", "recsys", (DENSE, LOOKUP, CROSS), source=PLAIN)
def _() -> Any:
    return Ra(), (torch.rand(512, 13).mul(50).log1p(), picks(512, *ROWS))


class Rb(nn.Module):
    """Columns into one flat table, a list summed, then crosses of full matrices before a net."""

    def __init__(self, n: int = 18, r: int = 1000, d: int = 16, k: int = 3) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(n * r, d) * 0.05), nn.EmbeddingBag(3000, d, mode="sum")
        self.register_buffer("c", torch.arange(n) * r)
        m = (n + 1) * d + 8
        self.d = nn.ModuleList(nn.Linear(m, m) for _ in range(k))
        self.e, self.f = nn.LayerNorm(8), nn.Sequential(
            nn.Linear(m, 256), nn.LayerNorm(256), nn.ReLU(), nn.Linear(256, 128), nn.ReLU(), nn.Linear(128, 1)
        )  # fmt: skip

    def forward(self, x: torch.Tensor, y: torch.Tensor, o: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            u = self.a[x + self.c].flatten(1)
            v = self.b(y, o)
        with phase(DENSE):
            s = t = torch.cat([self.e(z), u, v], 1)
            for d in self.d:
                t = torch.addcmul(t, s, d(t))
            return torch.sigmoid(self.f(t))


@case("recsys.seventh_rb", "recsys", (LOOKUP, DENSE), source=PLAIN)
def _() -> Any:
    n = torch.randint(1, 8, (256,))
    o = torch.cat([torch.zeros(1, dtype=torch.long), n.cumsum(0)[:-1]])
    return Rb(), (torch.randint(1000, (256, 18)), torch.randint(3000, (int(n.sum()),)), o, torch.randn(256, 8))


class Rc(nn.Module):
    """What comes next after fifty things: stock causal blocks, and products with every row."""

    def __init__(self, n: int = 10000, d: int = 64, t: int = 50) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Embedding(n, d, padding_idx=0), nn.Embedding(t, d), nn.LayerNorm(d)
        e = nn.TransformerEncoderLayer(d, 2, 4 * d, 0.0, "gelu", batch_first=True)
        self.d = nn.TransformerEncoder(e, 2, enable_nested_tensor=False)
        self.register_buffer("e", torch.full((t, t), float("-inf")).triu(1))

    def forward(self, x: torch.Tensor) -> Any:
        with phase(LOOKUP):
            z = self.a(x)
        with phase(CROSS):
            z = self.c(z + self.b(torch.arange(x.shape[1], device=x.device)))
            z = self.d(z, mask=self.e)
            i = (x > 0).sum(1) - 1
            z = z[torch.arange(len(x), device=x.device), i] @ self.a.weight.t()
        z[:, 0] = -1e9
        return z.scatter(1, x, -1e9).topk(20, 1)


@case("recsys.seventh_rc", "recsys", (LOOKUP, CROSS), source=PLAIN)
def _() -> Any:
    return Rc(), (histories(64, 50, 10000),)


class Rd(nn.Module):
    """Two pairs of tables, a product beside a net; one thing that was taken against four that were not."""

    def __init__(self, u: int = 3000, i: int = 5000, d: int = 32) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Embedding(u, d), nn.Embedding(i, d), nn.Embedding(u, d), nn.Embedding(i, d)
        self.e, self.f = mlp(2 * d, 64, 32), nn.Linear(32 + d, 1)

    def forward(self, u: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        u = u[:, None].expand_as(i)
        x = self.e(torch.cat([self.c(u), self.d(i)], 2))
        return self.f(torch.cat([self.a(u) * self.b(i), x], 2)).squeeze(2)


@case("recsys.seventh_rd_steps", "recsys", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    def loss(m: nn.Module, u: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        s = m(u, i)
        return F.binary_cross_entropy_with_logits(s, (torch.arange(5, device=s.device) == 0).float().expand_as(s))

    delta = lambda p: torch.optim.Adadelta(p, 0.5)  # noqa: E731
    return TrainStep(Rd(), loss, delta, steps=3), (torch.randint(3000, (128,)), torch.randint(5000, (128, 5)))
