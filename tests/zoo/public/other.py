"""What is none of the other classes."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..parts import TrainStep, adam, mlp, sgd
from ..registry import split

case = split("public")


def add(name: str, **kw: Any) -> Any:
    source = kw.pop("source", "plain torch")
    return case(f"other.{name}", "other", ("other.forward",), default="other.forward", source=source, **kw)


def tabular() -> nn.Module:
    return nn.Sequential(
        nn.Linear(40, 256), nn.BatchNorm1d(256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 3)
    )


@add("mlp_tabular")
def _() -> Any:
    return tabular(), (torch.randn(64, 40),)


class Forecast(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l, self.o = nn.LSTM(8, 64, 2, batch_first=True), nn.Linear(64, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.o(self.l(x)[0][:, -1])


@add("lstm_forecast")
def _() -> Any:
    return Forecast(), (torch.randn(16, 48, 8),)


class TabularResNet(nn.Module):
    """Residual blocks over tabular features."""

    def __init__(self, d: int = 96) -> None:
        super().__init__()
        self.inp = nn.Linear(30, d)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.BatchNorm1d(d), nn.Linear(d, 2 * d), nn.ReLU(), nn.Dropout(0.1), nn.Linear(2 * d, d))
            for _ in range(4)
        )
        self.out = nn.Sequential(nn.BatchNorm1d(d), nn.ReLU(), nn.Linear(d, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.inp(x)
        for block in self.blocks:
            x = x + block(x)
        return self.out(x)


@add("tabular_resnet")
def _() -> Any:
    return TabularResNet(), (torch.randn(50, 30),)


@add("autoencoder")
def _() -> Any:
    return nn.Sequential(mlp(60, 128, 32, 8), mlp(8, 32, 128, 60, last=True)), (torch.randn(32, 60),)


class NBeats(nn.Module):
    """Doubly residual stacks of a time series."""

    def __init__(self, past: int = 48, future: int = 12, blocks: int = 4) -> None:
        super().__init__()
        self.past = past
        self.blocks = nn.ModuleList(mlp(past, 96, 96, 96, past + future, last=True) for _ in range(blocks))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total: Any = 0.0
        for block in self.blocks:
            back, ahead = block(x).split([self.past, 12], 1)
            x, total = x - back, total + ahead
        return total


@add("nbeats")
def _() -> Any:
    return NBeats(), (torch.randn(20, 48),)


class Tcn(nn.Module):
    """Causal dilated convolutions over a few sensors."""

    def __init__(self, d: int = 32) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv1d(4 if i == 0 else d, d, 3, dilation=2**i) for i in range(4))
        self.out = nn.Linear(d, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i, layer in enumerate(self.layers):
            y = layer(F.pad(x, (2 * 2**i, 0))).relu()
            x = y if i == 0 else x + y
        return self.out(x[:, :, -1])


@add("tcn_forecast")
def _() -> Any:
    return Tcn(), (torch.randn(8, 4, 64),)


class Nerf(nn.Module):
    """Colours and densities along rays, composed."""

    def __init__(self, bands: int = 6, d: int = 96) -> None:
        super().__init__()
        self.register_buffer("f", 2.0 ** torch.arange(bands))
        self.net = mlp(3 + 6 * bands, d, d, d, 4, last=True)

    def forward(self, origin: torch.Tensor, direction: torch.Tensor) -> torch.Tensor:
        t = torch.linspace(0.5, 4.0, 24, device=origin.device)
        p = origin[:, None] + direction[:, None] * t[:, None]
        a = (p[..., None] * self.f).flatten(-2)
        out = self.net(torch.cat([p, a.sin(), a.cos()], -1))
        alpha = 1 - torch.exp(-out[..., 3].relu() * 0.15)
        left = torch.cumprod(torch.cat([torch.ones_like(alpha[:, :1]), 1 - alpha[:, :-1]], 1), 1)
        return ((alpha * left)[..., None] * out[..., :3].sigmoid()).sum(1)


@add("nerf")
def _() -> Any:
    return Nerf(), (torch.randn(64, 3), F.normalize(torch.randn(64, 3), dim=1))


@add("gaussian_process")
def _() -> Any:
    class Gp(nn.Module):
        """The posterior of an RBF kernel by Cholesky."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("x", torch.randn(60, 4))
            self.register_buffer("y", torch.randn(60))
            self.scale = nn.Parameter(torch.tensor(1.5))

        def kernel(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
            return torch.exp(-((a[:, None] - b[None]) ** 2).sum(-1) / (2 * self.scale**2))

        def forward(self, at: torch.Tensor) -> Any:
            root = torch.linalg.cholesky(self.kernel(self.x, self.x) + 0.1 * torch.eye(60, device=at.device))
            cross = self.kernel(at, self.x)
            mean = cross @ torch.cholesky_solve(self.y[:, None], root)
            half = torch.linalg.solve_triangular(root, cross.t(), upper=False)
            return mean, 1 - (half**2).sum(0)

    return Gp(), (torch.randn(20, 4),)


@add("policy")
def _() -> Any:
    class ActorCritic(nn.Module):
        """A rollout of a small policy over a linear world."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.act, self.value = mlp(8, 64, 64), nn.Linear(64, 3), nn.Linear(64, 1)
            self.register_buffer("world", torch.randn(8, 8) * 0.3)
            self.register_buffer("push", torch.randn(3, 8) * 0.3)

        def forward(self, state: torch.Tensor) -> Any:
            values = []
            for _ in range(5):
                h = self.body(state)
                values.append(self.value(h))
                state = state @ self.world + F.one_hot(self.act(h).argmax(-1), 3).float() @ self.push
            return state, torch.stack(values)

    return ActorCritic(), (torch.randn(16, 8),)


@add("deepsets")
def _() -> Any:
    class DeepSets(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.each, self.all = mlp(5, 64, 64), mlp(64, 32, 1, last=True)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.all(self.each(x).sum(1))

    return DeepSets(), (torch.randn(10, 25, 5),)


@case("train.mlp", "other", TRAIN, mode="train", source="plain torch")
def _() -> Any:
    return TrainStep(
        tabular(), lambda m, x, y: F.cross_entropy(m(x), y), sgd, steps=3
    ), (torch.randn(64, 40), torch.randint(3, (64,)))  # fmt: skip


@case("train.vae", "other", TRAIN, mode="train", source="plain torch")
def _() -> Any:
    class Vae(nn.Module):
        """Over tabular features."""

        def __init__(self) -> None:
            super().__init__()
            self.inp, self.out = mlp(50, 64, 16, last=True), mlp(8, 64, 50, last=True)

        def forward(self, x: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
            mean, log = self.inp(x).chunk(2, 1)
            back = self.out(mean + (log / 2).exp() * noise)
            return F.mse_loss(back, x) - 0.5 * (1 + log - mean**2 - log.exp()).mean()

    return TrainStep(Vae(), lambda m, x, z: m(x, z), adam), (torch.randn(40, 50), torch.randn(40, 8))


@case("train.pinn", "other", TRAIN, mode="train", source="plain torch")
def _() -> Any:
    def loss(m: nn.Module, at: torch.Tensor) -> torch.Tensor:
        """u'' = -u with u(0) = 1, by gradients of gradients."""
        at = at.detach().requires_grad_(True)
        u = m(at)
        (first,) = torch.autograd.grad(u.sum(), at, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), at, create_graph=True)
        return ((second + u) ** 2).mean() + (m(torch.zeros(1, 1, device=at.device)) - 1).pow(2).mean()

    net = nn.Sequential(nn.Linear(1, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1))
    return TrainStep(net, loss, adam), (torch.rand(40, 1) * 3,)


@case("train.lstm", "other", TRAIN, mode="train", source="plain torch")
def _() -> Any:
    return TrainStep(
        Forecast(), lambda m, x, y: F.mse_loss(m(x), y), adam, steps=1
    ), (torch.randn(8, 16, 8), torch.randn(8, 1))  # fmt: skip
