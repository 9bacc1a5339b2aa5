"""What is none of the other classes, in other styles than the public ones."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..parts import TrainStep, adam, sgd
from ..registry import split

case = split("blind")
PLAIN = dict(source="plain torch", obfuscated=True)


def add(name: str) -> Any:
    return case(f"other.{name}", "other", ("other.forward",), default="other.forward", **PLAIN)


class A(nn.Module):
    """Forecasts of sensors by a GRU cell that feeds on what it says."""

    def __init__(self, d: int = 48) -> None:
        super().__init__()
        self.a, self.b = nn.GRUCell(6, d), nn.Linear(d, 6)

    def forward(self, x: torch.Tensor, n: int = 8) -> torch.Tensor:
        s = x.new_zeros(x.shape[0], self.a.hidden_size)
        for t in range(x.shape[1]):
            s = self.a(x[:, t], s)
        out = [self.b(s)]
        for _ in range(n - 1):
            s = self.a(out[-1], s)
            out.append(self.b(s))
        return torch.stack(out, 1)


@add("b_sensors")
def _() -> Any:
    return A(), (torch.randn(10, 16, 6),)


class B(nn.Module):
    """Values at places by sines of sines."""

    def __init__(self, d: int = 64) -> None:
        super().__init__()
        self.a = nn.ParameterList(nn.Parameter(torch.randn(p, q) / p**0.5) for p, q in ((2, d), (d, d), (d, d), (d, 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for a in self.a[:-1]:
            x = torch.sin(10.0 * (x @ a))
        return x @ self.a[-1]


@add("b_sines")
def _() -> Any:
    return B(), (torch.rand(500, 2) * 2 - 1,)


class C(nn.Module):
    """A state follows a learned slope (fourth order)."""

    def __init__(self, d: int = 32) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, d), nn.Linear(d, 4)

    def forward(self, x: torch.Tensor, n: int = 6, h: float = 0.1) -> torch.Tensor:
        def f(y: torch.Tensor) -> torch.Tensor:
            return self.b(torch.tanh(self.a(y)))

        for _ in range(n):
            k = f(x)
            l = f(x + h / 2 * k)  # noqa: E741
            m = f(x + h / 2 * l)
            x = x + h / 6 * (k + 2 * l + 2 * m + f(x + h * m))
        return x


@add("b_slopes")
def _() -> Any:
    return C(), (torch.randn(30, 4),)


class D(nn.Module):
    """Several nets vote; mean and spread of what they say."""

    def __init__(self, n: int = 5, d: int = 32) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(n, 12, d) * 0.2), nn.Parameter(torch.zeros(n, 1, d))
        self.c, self.d = nn.Parameter(torch.randn(n, d, 2) * 0.2), nn.Parameter(torch.zeros(n, 1, 2))

    def forward(self, x: torch.Tensor) -> Any:
        y = torch.baddbmm(self.b, x.expand(self.a.shape[0], -1, -1), self.a).relu()
        y = torch.baddbmm(self.d, y, self.c)
        return y.mean(0), y.std(0)


@add("b_votes")
def _() -> Any:
    return D(), (torch.randn(40, 12),)


class E(nn.Module):
    """Soft trees over tabular features."""

    def __init__(self, n: int = 8, k: int = 3) -> None:
        super().__init__()
        self.n, self.k = n, k
        self.a, self.b = nn.Linear(16, n * k), nn.Parameter(torch.randn(n, 2**k, 3))
        self.register_buffer("c", torch.tensor([[(i >> j) & 1 for j in range(k)] for i in range(2**k)]).float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        p = torch.sigmoid(self.a(x)).view(-1, self.n, 1, self.k)
        w = (p * self.c + (1 - p) * (1 - self.c)).prod(-1)
        return torch.einsum("bnl,nlc->bc", w, self.b)


@add("b_trees")
def _() -> Any:
    return E(), (torch.randn(50, 16),)


@case("train.b_votes", "other", TRAIN, mode="train", **PLAIN)
def _() -> Any:
    return TrainStep(D(), lambda m, x, y: F.mse_loss(m(x)[0], y), adam), (torch.randn(40, 12), torch.randn(40, 2))


@case("train.b_trees", "other", TRAIN, mode="train", **PLAIN)
def _() -> Any:
    return TrainStep(
        E(), lambda m, x, y: F.cross_entropy(m(x), y), sgd, steps=3
    ), (torch.randn(50, 16), torch.randint(3, (50,)))  # fmt: skip


@case("train.b_actions", "other", TRAIN, mode="train", **PLAIN)
def _() -> Any:
    def net() -> nn.Module:
        return nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4))

    class Q(nn.Module):
        """A value net beside its slow copy."""

        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = net(), net()
            self.b.requires_grad_(False)

        def forward(self, s: torch.Tensor, a: torch.Tensor, r: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            y = r + 0.9 * self.b(t).amax(1)
            return F.smooth_l1_loss(self.a(s).gather(1, a[:, None]).squeeze(1), y)

    x = (torch.randn(32, 5), torch.randint(4, (32,)), torch.randn(32), torch.randn(32, 5))
    return TrainStep(Q(), lambda m, *x: m(*x), adam), x
