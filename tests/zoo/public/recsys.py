"""Recommenders: click-through rate, retrieval, sequences, several tasks, and training steps."""

import sys
import types
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..oracle import phase
from ..parts import TrainStep, adam, mlp, sgd
from ..registry import split

case = split("public")
LOOKUP, DENSE, CROSS = "recsys.embedding_lookup", "recsys.dense_mlp", "recsys.interaction"
TABLES = (100, 1000, 5000, 20000, 37, 4000, 250, 12000)


class Dlrm(nn.Module):
    """Embedding bags, a dense tower and pairwise dot products."""

    def __init__(self, tables: tuple[int, ...] = TABLES, width: int = 16, mode: str = "sum") -> None:
        super().__init__()
        self.emb = nn.ModuleList(nn.EmbeddingBag(rows, width, mode=mode) for rows in tables)
        self.bot = mlp(13, 64, width)
        count = len(tables) + 1
        self.register_buffer("pairs", torch.tril_indices(count, count, -1))
        self.top = mlp(width + count * (count - 1) // 2, 64, 32, 1, last=True)

    def forward(self, dense: torch.Tensor, indices: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        x = self.bot(dense)
        rows = torch.stack([x] + [bag(indices[i], offsets[i]) for i, bag in enumerate(self.emb)], 1)
        with phase(CROSS):
            dots = torch.bmm(rows, rows.transpose(1, 2))[:, self.pairs[0], self.pairs[1]]
        return torch.sigmoid(self.top(torch.cat([x, dots], 1)))


def dlrm_inputs(batch: int = 64, hot: int = 4, tables: tuple[int, ...] = TABLES) -> tuple[torch.Tensor, ...]:
    """Dense features, indices and offsets of each table."""
    indices = torch.stack([torch.randint(rows, (batch * hot,)) for rows in tables])
    return torch.rand(batch, 13), indices, torch.arange(0, batch * hot, hot).repeat(len(tables), 1)


@case(
    "recsys.dlrm", "recsys", (DENSE, LOOKUP, CROSS), spans=[(r"emb\.\d+", LOOKUP), ("bot|top", DENSE)],
    source="plain torch (facebookresearch/dlrm layout)",
)  # fmt: skip
def _() -> Any:
    return Dlrm(), dlrm_inputs()


# deepctr-torch.
def deepctr() -> Any:
    """deepctr_torch.models, without the thread of its `import` that asks the network for its newest version."""
    still = types.ModuleType("deepctr_torch.utils")
    still.check_version = lambda _version: None
    sys.modules.setdefault("deepctr_torch.utils", still)
    import deepctr_torch.models

    return deepctr_torch.models


def ctr_features(count: int = 10, rows: int = 1000, width: int = 8, dense: int = 6) -> tuple[list[Any], torch.Tensor]:
    deepctr()
    from deepctr_torch.inputs import DenseFeat, SparseFeat

    features = [SparseFeat(f"C{i}", rows, embedding_dim=width) for i in range(count)]
    features += [DenseFeat(f"I{i}", 1) for i in range(dense)]
    return features, torch.cat([torch.randint(rows, (128, count)).float(), torch.rand(128, dense)], 1)


EMBEDDINGS = (r"embedding_dict\.\w+|linear_model\.embedding_dict\.\w+", LOOKUP)
CTR = {
    "WDL": ("dnn|dnn_linear", None),
    "DeepFM": ("dnn|dnn_linear", "fm"),
    "xDeepFM": ("dnn|dnn_linear", "cin"),
    "AutoInt": ("dnn|dnn_linear", r"int_layers\.\d+"),
    "PNN": ("dnn|dnn_linear", "innerproduct"),
    "NFM": ("dnn|dnn_linear", "bi_pooling"),
    "AFM": (None, "fm"),
    "FiBiNET": ("dnn|dnn_linear", "SE|Bilinear"),
    "DCN": ("dnn|dnn_linear|crossnet", None),
}


def add_ctr(name: str) -> None:
    dense, cross = CTR[name]
    where = [EMBEDDINGS] + ([(dense, DENSE)] if dense else []) + ([(cross, CROSS)] if cross else [])
    phases = [LOOKUP] + ([CROSS] if cross else []) + ([DENSE] if dense else [])

    @case(f"recsys.{name.lower()}_deepctr", "recsys", phases, spans=where, source="deepctr-torch", family=name)
    def make() -> Any:
        models = deepctr()
        features, x = ctr_features()
        # AFM takes no dense features into its attention.
        both = (features,) if name == "PNN" else (features, features[:10] if name == "AFM" else features)
        return getattr(models, name)(*both, task="binary", device="cpu"), (x,)


for name in CTR:
    add_ctr(name)


# torch-rechub.
class Named(nn.Module):
    """Gives a torch-rechub model its dictionary of features."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model = model
        self.names = names

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        return self.model(dict(zip(self.names, columns, strict=True)))


def rechub_features(dense: int = 3, sparse: int = 6) -> tuple[list[Any], list[Any], list[str], list[torch.Tensor]]:
    from torch_rechub.basic.features import DenseFeature, SparseFeature

    numbers = [DenseFeature(f"d{i}") for i in range(dense)]
    symbols = [SparseFeature(f"s{i}", vocab_size=500, embed_dim=8) for i in range(sparse)]
    names = [f"d{i}" for i in range(dense)] + [f"s{i}" for i in range(sparse)]
    columns = [torch.rand(64) for _ in range(dense)] + [torch.randint(500, (64,)) for _ in range(sparse)]
    return numbers, symbols, names, columns


TABLE = (r"model\.embedding\.embed_dict\.\w+", LOOKUP)


@case(
    "recsys.din_rechub", "recsys", (LOOKUP, CROSS, DENSE), source="torch-rechub", family="DIN",
    spans=[TABLE, (r"model\.attention_layers\.\d+", CROSS), (r"model\.mlp", DENSE)],
)  # fmt: skip
def _() -> Any:
    from torch_rechub.basic.features import SequenceFeature, SparseFeature
    from torch_rechub.models.ranking import DIN

    wide = dict(embed_dim=8)
    users = [SparseFeature("user", vocab_size=300, **wide)]
    target = [SparseFeature("item", vocab_size=500, **wide), SparseFeature("group", vocab_size=40, **wide)]
    history = [
        SequenceFeature("items", vocab_size=500, pooling="concat", shared_with="item", **wide),
        SequenceFeature("groups", vocab_size=40, pooling="concat", shared_with="group", **wide),
    ]
    model = DIN(users, history, target, mlp_params={"dims": [64, 32]}, attention_mlp_params={"dims": [32, 16]})
    columns = [torch.randint(n, (32,)) for n in (300, 500, 40)] + [torch.randint(n, (32, 12)) for n in (500, 40)]
    return Named(model, ["user", "item", "group", "items", "groups"]), columns


@case(
    "recsys.mmoe_rechub", "recsys", (LOOKUP, DENSE), source="torch-rechub", family="MMOE",
    spans=[TABLE, (r"model\.(experts|gates|towers|predict_layers)\.\d+", DENSE)],
)  # fmt: skip
def _() -> Any:
    from torch_rechub.models.multi_task import MMOE

    numbers, symbols, names, columns = rechub_features()
    tower = [{"dims": [16]}, {"dims": [16]}]
    model = MMOE(numbers + symbols, ["classification", "classification"], 4, {"dims": [32]}, tower)
    return Named(model, names), columns


# Plain models.
class Ncf(nn.Module):
    """Neural collaborative filtering (MLPerf's)."""

    def __init__(self, users: int = 5000, items: int = 8000, d: int = 32) -> None:
        super().__init__()
        self.gu, self.gi = nn.Embedding(users, d), nn.Embedding(items, d)
        self.mu, self.mi = nn.Embedding(users, d), nn.Embedding(items, d)
        self.mlp, self.out = mlp(2 * d, 64, 32), nn.Linear(d + 32, 1)

    def forward(self, u: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        product = self.gu(u) * self.gi(i)
        deep = self.mlp(torch.cat([self.mu(u), self.mi(i)], -1))
        return self.out(torch.cat([product, deep], -1)).sigmoid()


@case(
    "recsys.ncf", "recsys", (LOOKUP, DENSE), spans=[("gu|gi|mu|mi", LOOKUP), ("mlp|out", DENSE)],
    source="plain torch (MLPerf NCF)",
)  # fmt: skip
def _() -> Any:
    return Ncf(), (torch.randint(5000, (256,)), torch.randint(8000, (256,)))


class TwoTower(nn.Module):
    """Retrieval: user and item towers, scores by dot product."""

    def __init__(self, d: int = 32) -> None:
        super().__init__()
        self.user, self.country, self.item = nn.Embedding(3000, d), nn.Embedding(200, d), nn.Embedding(9000, d)
        self.tags = nn.EmbeddingBag(500, d, mode="mean")
        self.left, self.right = mlp(2 * d, 128, 64, last=True), mlp(2 * d, 128, 64, last=True)

    def forward(self, user: torch.Tensor, country: torch.Tensor, item: torch.Tensor, tags: torch.Tensor) -> Any:
        u = self.left(torch.cat([self.user(user), self.country(country)], 1))
        v = self.right(torch.cat([self.item(item), self.tags(tags)], 1))
        with phase(CROSS):
            return F.normalize(u, dim=1) @ F.normalize(v, dim=1).t()


@case(
    "recsys.two_tower", "recsys", (LOOKUP, DENSE, CROSS), source="plain torch",
    spans=[("user|country|item|tags", LOOKUP), ("left|right", DENSE)],
)  # fmt: skip
def _() -> Any:
    columns = [torch.randint(n, (64,)) for n in (3000, 200, 9000)]
    return TwoTower(), (*columns, torch.randint(500, (64, 5)))


class SasRec(nn.Module):
    """Self-attention over the history of items; scores of candidates by dot product with the same table."""

    def __init__(self, items: int = 4000, d: int = 64, longest: int = 30) -> None:
        super().__init__()
        self.item, self.place = nn.Embedding(items, d, padding_idx=0), nn.Embedding(longest, d)
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                dict(
                    one=nn.LayerNorm(d), att=nn.MultiheadAttention(d, 2, batch_first=True), two=nn.LayerNorm(d),
                    ffn=mlp(d, d, d, last=True),
                )
            )
            for _ in range(2)
        )  # fmt: skip
        self.norm = nn.LayerNorm(d)

    def forward(self, history: torch.Tensor, candidates: torch.Tensor) -> torch.Tensor:
        t = history.shape[1]
        with phase(LOOKUP):
            x = self.item(history)
            targets = self.item(candidates)
        with phase(CROSS):
            x = x * x.shape[-1] ** 0.5 + self.place(torch.arange(t, device=x.device))
            mask = torch.triu(torch.ones(t, t, dtype=torch.bool, device=x.device), 1)
            for b in self.blocks:
                y = b["one"](x)
                x = x + b["att"](y, y, y, attn_mask=mask, need_weights=False)[0]
                x = x + b["ffn"](b["two"](x))
            return (self.norm(x)[:, -1:] @ targets.transpose(1, 2)).squeeze(1)


@case("recsys.sasrec", "recsys", (LOOKUP, CROSS), source="plain torch")
def _() -> Any:
    return SasRec(), (torch.randint(1, 4000, (32, 30)), torch.randint(1, 4000, (32, 50)))


class Gru4Rec(nn.Module):
    """Sessions through a GRU; what lies between the table and the scores is left without a label."""

    def __init__(self, items: int = 5000, d: int = 48) -> None:
        super().__init__()
        self.item, self.gru = nn.Embedding(items, d), nn.GRU(d, d, batch_first=True)
        self.deep = mlp(d, 64, d, last=True)

    def forward(self, history: torch.Tensor) -> torch.Tensor:
        x = self.deep(self.gru(self.item(history))[0][:, -1])
        with phase(CROSS):
            return x @ self.item.weight.t()


@case(
    "recsys.gru4rec", "recsys", (LOOKUP, DENSE, CROSS), source="plain torch",
    spans=[("item", LOOKUP), ("deep", DENSE)],
)  # fmt: skip
def _() -> Any:
    return Gru4Rec(), (torch.randint(5000, (64, 12)),)


class WideDeep(nn.Module):
    """Wide and deep over hashed columns with one shared table and offsets."""

    def __init__(self, columns: int = 12, rows: int = 800, d: int = 8) -> None:
        super().__init__()
        self.wide, self.deep = nn.Embedding(columns * rows, 1), nn.Embedding(columns * rows, d)
        self.register_buffer("start", torch.arange(columns) * rows)
        self.mlp = nn.Sequential(
            nn.Linear(columns * d + 5, 64),
            nn.BatchNorm1d(64),
            nn.ReLU(),
            nn.Linear(64, 32),
            nn.ReLU(),
            nn.Linear(32, 1),
        )

    def forward(self, x: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            x = x + self.start
            line, rows = self.wide(x), self.deep(x)
        with phase(DENSE):
            return torch.sigmoid(line.sum(1) + self.mlp(torch.cat([rows.flatten(1), dense], 1)))


def wide_inputs(batch: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randint(800, (batch, 12)), torch.rand(batch, 5)


@case("recsys.plain_wide_deep", "recsys", (LOOKUP, DENSE), source="plain torch")
def _() -> Any:
    return WideDeep(), wide_inputs()


# Training steps.
def _clicks(m: nn.Module, *features: torch.Tensor) -> torch.Tensor:
    *features, y = features
    return F.binary_cross_entropy(m(*features).squeeze(-1), y)


@case("train.dlrm", "recsys", TRAIN, mode="train", source="plain torch")
def _() -> Any:
    return TrainStep(Dlrm(TABLES[:5]), _clicks, sgd), (*dlrm_inputs(32, tables=TABLES[:5]), torch.rand(32).round())


@case("train.wide_deep", "recsys", TRAIN, mode="train", source="plain torch")
def _() -> Any:
    return TrainStep(WideDeep(), _clicks, adam), (*wide_inputs(), torch.rand(96).round())


@case("train.two_tower", "recsys", TRAIN, mode="train", source="plain torch")
def _() -> Any:
    def loss(m: nn.Module, *x: torch.Tensor) -> torch.Tensor:
        scores = m(*x)
        return F.cross_entropy(scores * 10, torch.arange(scores.shape[0], device=scores.device))

    columns = [torch.randint(n, (32,)) for n in (3000, 200, 9000)]
    return TrainStep(TwoTower(), loss, adam), (*columns, torch.randint(500, (32, 5)))
