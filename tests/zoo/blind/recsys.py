"""Recommenders of other families, and plain ones whose names say nothing."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..oracle import phase
from ..parts import TrainStep, adam, mlp, sgd
from ..registry import split

case = split("blind")
LOOKUP, DENSE, CROSS = "recsys.embedding_lookup", "recsys.dense_mlp", "recsys.interaction"
PLAIN = dict(source="plain torch", obfuscated=True)


class A(nn.Module):
    """One table for all columns; products of pairs above the diagonal."""

    def __init__(self, n: int = 7, rows: int = 3000, d: int = 12) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(n * rows, d) * 0.05)
        self.register_buffer("b", torch.arange(n) * rows)
        self.c, self.d = mlp(9, 48, d, last=True), mlp(n * (n + 1) // 2 + d, 48, 1, last=True)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        with phase(DENSE):
            z = self.c(torch.log1p(y))
        with phase(LOOKUP):
            e = F.embedding(x + self.b, self.a)
        with phase(CROSS):
            e = torch.cat([z[:, None], e], 1)
            i, j = torch.triu_indices(e.shape[1], e.shape[1], 1, device=x.device)
            w = (e[:, i] * e[:, j]).sum(-1)
        with phase(DENSE):
            return self.d(torch.cat([w, z], 1)).sigmoid()


@case("recsys.b_pairs", "recsys", (DENSE, LOOKUP, CROSS), **PLAIN)
def _() -> Any:
    return A(), (torch.randint(3000, (40, 7)), torch.rand(40, 9))


class B(nn.Module):
    """Two towers with bags by masked means; one positive against many."""

    def __init__(self, d: int = 24) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Embedding(6000, d), nn.Embedding(900, d, padding_idx=0), nn.Embedding(60, d)
        self.d, self.e = mlp(2 * d, 64, 32, last=True), mlp(2 * d, 64, 32, last=True)

    def forward(self, u: torch.Tensor, h: torch.Tensor, i: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            m = (h > 0).float()[..., None]
            p = (self.b(h) * m).sum(1) / m.sum(1).clamp(min=1)
            u, i, g = self.a(u), self.b(i), self.c(g)
        with phase(DENSE):
            x = self.d(torch.cat([u, p], -1))
            y = self.e(torch.cat([i, g], -1))
        with phase(CROSS):
            return torch.einsum("bd,bnd->bn", x, y)


def _towers(b: int = 24, n: int = 10) -> tuple[torch.Tensor, ...]:
    h = torch.randint(1, 900, (b, 8))
    h[:, 5:] = 0
    return torch.randint(6000, (b,)), h, torch.randint(900, (b, n)), torch.randint(60, (b, n))


@case("recsys.b_towers", "recsys", (LOOKUP, DENSE, CROSS), **PLAIN)
def _() -> Any:
    return B(), _towers()


class C(nn.Module):
    """What was seen before is weighed by a small net against the candidate."""

    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.a, self.b = nn.Embedding(5000, d), nn.Embedding(300, d)
        self.c, self.d = mlp(8 * d, 32, 1, last=True), mlp(6 * d, 64, 32, 1, last=True)

    def forward(
        self, h: torch.Tensor, k: torch.Tensor, i: torch.Tensor, g: torch.Tensor, n: torch.Tensor
    ) -> torch.Tensor:
        with phase(LOOKUP):
            x, y = torch.cat([self.a(h), self.b(k)], -1), torch.cat([self.a(i), self.b(g)], -1)
        with phase(CROSS):
            z = y[:, None].expand_as(x)
            w = self.c(torch.cat([z, x, z - x, z * x], -1)).squeeze(-1)
            w = w.masked_fill(torch.arange(h.shape[1], device=h.device) >= n[:, None], -1e9).softmax(-1)
            s = torch.bmm(w[:, None], x).squeeze(1)
        with phase(DENSE):
            return self.d(torch.cat([s, y, s * y], -1))


@case("recsys.b_seen_before", "recsys", (LOOKUP, CROSS, DENSE), **PLAIN)
def _() -> Any:
    b, t = 20, 14
    return C(), (
        torch.randint(5000, (b, t)), torch.randint(300, (b, t)), torch.randint(5000, (b,)), torch.randint(300, (b,)),
        torch.randint(1, t, (b,)),
    )  # fmt: skip


class D(nn.Module):
    """Factorization: half of the square of the sum less the sum of squares."""

    def __init__(self, n: int = 14, d: int = 10) -> None:
        super().__init__()
        self.a = nn.ModuleList(nn.Embedding(700, d) for _ in range(n))
        self.b = nn.ModuleList(nn.Embedding(700, 1) for _ in range(n))
        self.c = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            e = torch.stack([a(x[:, i]) for i, a in enumerate(self.a)], 1)
            w = torch.cat([b(x[:, i]) for i, b in enumerate(self.b)], 1)
        with phase(CROSS):
            z = 0.5 * (e.sum(1).square() - e.square().sum(1)).sum(-1)
        return torch.sigmoid(z + w.sum(1) + self.c)


@case("recsys.b_squares", "recsys", (LOOKUP, CROSS), **PLAIN)
def _() -> Any:
    return D(), (torch.randint(700, (64, 14)),)


class E(nn.Module):
    """Bags of several lengths; crosses with a full matrix beside a deep net."""

    def __init__(self, n: int = 6, d: int = 8) -> None:
        super().__init__()
        self.a = nn.ModuleList(nn.EmbeddingBag(2000, d, mode="mean") for _ in range(n))
        w = n * d + 4
        self.b, self.c = nn.ModuleList(nn.Linear(w, w) for _ in range(3)), mlp(w, 96, 48)
        self.d = nn.Linear(w + 48, 1)

    def forward(self, y: torch.Tensor, *x: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            e = [a(i, o) for a, i, o in zip(self.a, x[::2], x[1::2], strict=True)]
        z = torch.cat([y, *e], 1)
        with phase(DENSE):
            w = z
            for b in self.b:
                w = z * b(w) + w
            return self.d(torch.cat([w, self.c(z)], 1))


@case("recsys.b_crosses", "recsys", (LOOKUP, DENSE), **PLAIN)
def _() -> Any:
    b = 16
    x = []
    for _i in range(6):
        n = torch.randint(1, 6, (b,))
        x += [torch.randint(2000, (int(n.sum()),)), torch.cat([torch.zeros(1, dtype=torch.long), n.cumsum(0)[:-1]])]
    return E(), (torch.rand(b, 4), *x)


# torch-rechub and deepctr-torch.
@case("recsys.dcn_v2_rechub", "recsys", (LOOKUP, DENSE), source="torch-rechub", spans=[
    (r"model\.embedding\.embed_dict\.\w+", LOOKUP), (r"model\.(crossnet|mlp|linear|final_layer)", DENSE),
])  # fmt: skip
def _() -> Any:
    from torch_rechub.models.ranking import DCNv2

    from ..public.recsys import Named, rechub_features

    numbers, symbols, names, columns = rechub_features(4, 7)
    return Named(DCNv2(numbers + symbols, 2, {"dims": [48, 24]}), names), columns


@case("recsys.ple_rechub", "recsys", (LOOKUP, DENSE), source="torch-rechub", spans=[
    (r"model\.embedding\.embed_dict\.\w+", LOOKUP), (r"model\.(cgc_layers|towers|predict_layers)\.\d+", DENSE),
])  # fmt: skip
def _() -> Any:
    from torch_rechub.models.multi_task import PLE

    from ..public.recsys import Named, rechub_features

    numbers, symbols, names, columns = rechub_features(2, 5)
    tower = [{"dims": [12]}, {"dims": [12]}]
    model = PLE(numbers + symbols, ["classification", "regression"], 1, 2, 1, {"dims": [24]}, tower)
    return Named(model, names), columns


# Training steps.
def _clicks(m: nn.Module, *x: torch.Tensor) -> torch.Tensor:
    *x, y = x
    return F.binary_cross_entropy(m(*x).squeeze(-1), y)


@case("train.b_pairs", "recsys", TRAIN, mode="train", **PLAIN)
def _() -> Any:
    return TrainStep(A(4, 500, 8), _clicks, adam), (
        torch.randint(500, (32, 4)),
        torch.rand(32, 9),
        torch.rand(32).round(),
    )


@case("train.b_squares", "recsys", TRAIN, mode="train", **PLAIN)
def _() -> Any:
    return TrainStep(D(6), _clicks, sgd), (torch.randint(700, (32, 6)), torch.rand(32).round())


@case("train.b_towers", "recsys", TRAIN, mode="train", **PLAIN)
def _() -> Any:
    def loss(m: nn.Module, *x: torch.Tensor) -> torch.Tensor:
        y = m(*x)
        return -F.logsigmoid(y[:, :1] - y[:, 1:]).mean()

    return TrainStep(B(), loss, adam), _towers(16, 5)
