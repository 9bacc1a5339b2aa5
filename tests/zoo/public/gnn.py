"""Graph networks."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..parts import TrainStep, adam, mlp
from ..registry import split

case = split("public")
PASSING = "gnn.message_passing"


def graph(nodes: int = 400, edges: int = 2400, width: int = 32) -> tuple[torch.Tensor, torch.Tensor]:
    """Features of the nodes, and edges as int64 [2, edges]."""
    return torch.randn(nodes, width), torch.randint(nodes, (2, edges))


def add(name: str) -> None:
    @case(f"gnn.{name.lower()}", "gnn", (PASSING,), default=PASSING, source="torch_geometric")
    def make() -> Any:
        import torch_geometric.nn as g

        return getattr(g, name)(32, 64, num_layers=3, out_channels=7), graph()


for name in ("GCN", "GAT", "GIN", "GraphSAGE"):
    add(name)


@case("gnn.transformer_conv", "gnn", (PASSING,), default=PASSING, source="torch_geometric")
def _() -> Any:
    import torch_geometric.nn as g

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = g.TransformerConv(32, 16, heads=4), g.TransformerConv(64, 8, heads=1)

        def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
            return self.two(self.one(x, edges).relu(), edges)

    return Net(), graph(200, 1200)


class Messages(nn.Module):
    """Messages by an MLP over both ends of each edge, summed with index_add; a readout for each graph."""

    def __init__(self, d: int = 48) -> None:
        super().__init__()
        self.inp = nn.Linear(32, d)
        self.message = nn.ModuleList(mlp(2 * d, d, d, last=True) for _ in range(3))
        self.update = nn.ModuleList(nn.GRUCell(d, d) for _ in range(3))
        self.out = nn.Linear(d, 2)

    def forward(self, x: torch.Tensor, edges: torch.Tensor, member: torch.Tensor) -> torch.Tensor:
        h = self.inp(x)
        a, b = edges
        for message, update in zip(self.message, self.update, strict=True):
            m = message(torch.cat([h[a], h[b]], 1))
            h = update(torch.zeros_like(h).index_add(0, b, m), h)
        pooled = torch.zeros(8, h.shape[1], device=h.device).index_add(0, member, h)
        return self.out(pooled)


@case("gnn.plain_messages", "gnn", (PASSING,), default=PASSING, source="plain torch")
def _() -> Any:
    return Messages(), (*graph(200, 900), torch.arange(200) // 25)


class Scatter(nn.Module):
    """GraphSAGE by scatter_add and degrees."""

    def __init__(self, d: int = 64) -> None:
        super().__init__()
        self.own = nn.ModuleList([nn.Linear(32, d), nn.Linear(d, 7)])
        self.near = nn.ModuleList([nn.Linear(32, d, bias=False), nn.Linear(d, 7, bias=False)])

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        n = x.shape[0]
        ones = torch.ones(edges.shape[1], device=x.device)
        degree = torch.zeros(n, device=x.device).scatter_add_(0, edges[1], ones).clamp(min=1)
        for i, (own, near) in enumerate(zip(self.own, self.near, strict=True)):
            at = edges[1].unsqueeze(1).expand(-1, x.shape[1])
            mean = torch.zeros_like(x).scatter_add_(0, at, x.index_select(0, edges[0])) / degree.unsqueeze(1)
            x = own(x) + near(mean)
            x = x.relu() if i == 0 else x
        return x.log_softmax(1)


@case("gnn.plain_scatter", "gnn", (PASSING,), default=PASSING, source="plain torch")
def _() -> Any:
    return Scatter(), graph(300, 1500)


@case("train.gcn", "gnn", TRAIN, mode="train", source="torch_geometric")
def _() -> Any:
    import torch_geometric.nn as g

    return TrainStep(
        g.GCN(32, 48, num_layers=2, out_channels=7), lambda m, x, e, y: F.cross_entropy(m(x, e), y), adam
    ), (*graph(200, 1000), torch.randint(7, (200,)))  # fmt: skip


@case("train.plain_scatter", "gnn", TRAIN, mode="train", source="plain torch")
def _() -> Any:
    return TrainStep(
        Scatter(), lambda m, x, e, y: F.nll_loss(m(x, e), y)
    ), (*graph(200, 1000), torch.randint(7, (200,)))  # fmt: skip
