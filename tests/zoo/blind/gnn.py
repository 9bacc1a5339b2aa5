"""Graph networks of other families, and plain ones whose names say nothing."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..parts import TrainStep, adam
from ..registry import split

case = split("blind")
PASSING = "gnn.message_passing"
PLAIN = dict(source="plain torch", obfuscated=True)


def add(name: str) -> None:
    @case(f"gnn.{name}", "gnn", (PASSING,), default=PASSING, source="torch_geometric")
    def make() -> Any:
        import torch_geometric.nn as g

        more = {}
        if name == "pna":
            more = dict(
                aggregators=["mean", "max", "std"],
                scalers=["identity", "amplification"],
                deg=torch.tensor([1, 5, 9, 20, 8]),
            )
        model = (g.PNA if name == "pna" else g.EdgeCNN)(24, 32, num_layers=2, out_channels=5, **more)
        return model, (torch.randn(150, 24), torch.randint(150, (2, 700)))


add("pna")
add("edge_cnn")


class A(nn.Module):
    """A normalized dense matrix of neighbours."""

    def __init__(self, d: int = 48) -> None:
        super().__init__()
        self.a = nn.ModuleList([nn.Linear(20, d), nn.Linear(d, d), nn.Linear(d, 6)])

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        y = y + torch.eye(y.shape[0], device=y.device)
        w = y.sum(1).rsqrt()
        y = w[:, None] * y * w[None]
        for i, a in enumerate(self.a):
            x = y @ a(x)
            x = F.relu(x) if i < 2 else x
        return x


def dense(n: int = 120) -> tuple[torch.Tensor, torch.Tensor]:
    y = (torch.rand(n, n) < 0.05).float()
    return torch.randn(n, 20), ((y + y.T) > 0).float()


@case("gnn.b_matrix", "gnn", (PASSING,), default=PASSING, **PLAIN)
def _() -> Any:
    return A(), dense()


class B(nn.Module):
    """Weights of edges by a softmax over those that meet at a node."""

    def __init__(self, d: int = 32, h: int = 4) -> None:
        super().__init__()
        self.h = h
        self.a = nn.ModuleList([nn.Linear(16, d), nn.Linear(d, d)])
        self.b = nn.ParameterList(nn.Parameter(torch.randn(2, h, d // h) * 0.2) for _ in range(2))
        self.c = nn.Linear(d, 4)

    def forward(self, x: torch.Tensor, i: torch.Tensor, j: torch.Tensor) -> torch.Tensor:
        n = x.shape[0]
        for a, b in zip(self.a, self.b, strict=True):
            z = a(x).unflatten(-1, (self.h, -1))
            w = F.leaky_relu((z * b[0]).sum(-1)[i] + (z * b[1]).sum(-1)[j], 0.2)
            m = torch.full((n, self.h), -1e9, device=x.device).scatter_reduce(0, j[:, None].expand_as(w), w, "amax")
            w = (w - m[j]).exp()
            s = torch.zeros(n, self.h, device=x.device).scatter_add(0, j[:, None].expand_as(w), w)
            w = w / (s[j] + 1e-9)
            y = torch.zeros_like(z).index_add(0, j, w[..., None] * z[i])
            x = F.elu(y.flatten(1))
        return self.c(x)


def edges(n: int = 160, e: int = 800) -> tuple[torch.Tensor, ...]:
    return torch.randn(n, 16), torch.randint(n, (e,)), torch.randint(n, (e,))


@case("gnn.b_meeting", "gnn", (PASSING,), default=PASSING, **PLAIN)
def _() -> Any:
    return B(), edges()


class C(nn.Module):
    """Points in space: messages by distance, moves along differences (equivariant)."""

    def __init__(self, d: int = 32) -> None:
        super().__init__()
        self.a = nn.Embedding(10, d)
        self.b = nn.ModuleList(
            nn.Sequential(nn.Linear(2 * d + 1, d), nn.SiLU(), nn.Linear(d, d), nn.SiLU()) for _ in range(3)
        )
        self.c = nn.ModuleList(nn.Linear(d, 1, bias=False) for _ in range(3))
        self.d = nn.ModuleList(nn.Sequential(nn.Linear(2 * d, d), nn.SiLU(), nn.Linear(d, d)) for _ in range(3))
        self.e = nn.Linear(d, 1)

    def forward(
        self, k: torch.Tensor, p: torch.Tensor, i: torch.Tensor, j: torch.Tensor, g: torch.Tensor
    ) -> torch.Tensor:
        x = self.a(k)
        for b, c, d in zip(self.b, self.c, self.d, strict=True):
            v = p.index_select(0, i) - p.index_select(0, j)
            m = b(torch.cat([x.index_select(0, i), x.index_select(0, j), v.square().sum(1, keepdim=True)], 1))
            p = p.index_add(0, j, v * c(m).tanh() * 0.1)
            x = x + d(torch.cat([x, torch.zeros_like(x).index_add(0, j, m)], 1))
        return torch.zeros(6, 1, device=x.device).index_add(0, g, self.e(x))


@case("gnn.b_points", "gnn", (PASSING,), default=PASSING, **PLAIN)
def _() -> Any:
    n, e = 60, 300
    return C(), (
        torch.randint(10, (n,)), torch.randn(n, 3), torch.randint(n, (e,)), torch.randint(n, (e,)),
        torch.arange(n) // 10,
    )  # fmt: skip


@case("train.b_matrix", "gnn", TRAIN, mode="train", **PLAIN)
def _() -> Any:
    return TrainStep(
        A(), lambda m, x, y, z: F.cross_entropy(m(x, y), z), adam
    ), (*dense(80), torch.randint(6, (80,)))  # fmt: skip


@case("train.b_meeting", "gnn", TRAIN, mode="train", **PLAIN)
def _() -> Any:
    return TrainStep(
        B(), lambda m, x, i, j, z: F.cross_entropy(m(x, i, j), z), adam
    ), (*edges(80, 400), torch.randint(4, (80,)))  # fmt: skip
