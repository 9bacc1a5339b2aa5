"""What is none of the other classes, by a second author: filters, trees, series, control, flows, statistics."""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..oracle import phase
from ..parts import TrainStep, mlp
from ..registry import split

case = split("public")
REST = "other.forward"
PLAIN = "plain torch, second author"


def w(*shape: int, scale: float = 0.1) -> nn.Parameter:
    """A random weight."""
    return nn.Parameter(torch.randn(*shape) * scale)


def add(name: str, **more: Any) -> Any:
    return case(name, "other", (REST,), default=REST, source=PLAIN, **more)


class Trees(nn.Module):
    """A forest of soft trees of depth three over tables of numbers."""

    def __init__(self, inputs: int = 10, trees: int = 12) -> None:
        super().__init__()
        self.s, self.t, self.l = w(trees, 7, inputs), w(trees, 7), w(trees, 8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        p = torch.sigmoid(5 * (torch.einsum("bi,tni->btn", x, self.s) - self.t))
        at = torch.ones_like(p[..., :1])
        for level in range(3):
            go = p[..., 2**level - 1 : 2 ** (level + 1) - 1]
            at = torch.stack([at * go, at * (1 - go)], -1).flatten(2)
        return torch.einsum("btl,tlc->bc", at, self.l).softmax(1)


@add("other2.soft_trees")
def _() -> Any:
    return Trees(), (torch.randn(50, 10),)


class Kalman(nn.Module):
    """A filter of four states over twenty measurements."""

    def __init__(self) -> None:
        super().__init__()
        f = torch.eye(4)
        f[0, 2] = f[1, 3] = 0.1
        self.register_buffer("f", f)
        self.register_buffer("h", torch.eye(2, 4))
        self.register_buffer("q", 0.01 * torch.eye(4))
        self.register_buffer("r", 0.1 * torch.eye(2))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        x, p, out = torch.zeros(4, device=z.device), torch.eye(4, device=z.device), []
        for m in z:
            x, p = self.f @ x, self.f @ p @ self.f.T + self.q
            s = self.h @ p @ self.h.T + self.r
            det = s[0, 0] * s[1, 1] - s[0, 1] * s[1, 0]
            inverse = torch.stack([torch.stack([s[1, 1], -s[0, 1]]), torch.stack([-s[1, 0], s[0, 0]])]) / det
            k = p @ self.h.T @ inverse
            x = x + k @ (m - self.h @ x)
            p = p - k @ self.h @ p
            out.append(x)
        return torch.stack(out)


@add("other2.kalman")
def _() -> Any:
    return Kalman(), (torch.randn(20, 2).cumsum(0),)


class Mixture(nn.Module):
    """Expectation and maximization of a mixture of Gaussians with diagonal covariances."""

    def forward(self, x: torch.Tensor, mean: torch.Tensor) -> Any:
        var, weight = torch.ones_like(mean), torch.full((mean.shape[0],), 1 / mean.shape[0], device=x.device)
        for _ in range(5):
            far = (x[:, None] - mean).square() / var
            r = (weight.log() - 0.5 * (far + var.log()).sum(2)).softmax(1)
            n = r.sum(0) + 1e-6
            mean = (r.T @ x) / n[:, None]
            var = (r.T @ x.square()) / n[:, None] - mean.square() + 1e-3
            weight = n / n.sum()
        return mean, var, weight


@add("other2.gaussian_mixture")
def _() -> Any:
    return Mixture(), (torch.randn(200, 3), torch.randn(4, 3))


class Echo(nn.Module):
    """A fixed reservoir, a leak, and a linear readout."""

    def __init__(self, n: int = 80) -> None:
        super().__init__()
        self.register_buffer("r", torch.randn(n, n) * (0.9 / math.sqrt(n)))
        self.register_buffer("i", torch.randn(n, 2) * 0.5)
        self.o = nn.Linear(n, 1)

    def forward(self, u: torch.Tensor) -> torch.Tensor:
        s, every = torch.zeros(self.r.shape[0], device=u.device), []
        for x in u:
            s = 0.7 * s + 0.3 * torch.tanh(torch.mv(self.r, s) + torch.mv(self.i, x))
            every.append(s)
        return self.o(torch.stack(every))[:, 0]


@add("other2.echo_state")
def _() -> Any:
    return Echo(), (torch.randn(30, 2),)


class Hyper(nn.Module):
    """A network writes the weights of another one from a context."""

    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.h, self.d = mlp(6, 48, 3 * d + d + d + 1, last=True), d

    def forward(self, c: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        a, b, v, t = self.h(c).split([3 * self.d, self.d, self.d, 1], 1)
        y = torch.tanh(torch.bmm(x, a.view(-1, 3, self.d)) + b.unsqueeze(1))
        return torch.bmm(y, v.unsqueeze(2)) + t.unsqueeze(1)


@add("other2.hypernetwork")
def _() -> Any:
    return Hyper(), (torch.randn(8, 6), torch.randn(8, 20, 3))


class Series(nn.Module):
    """A transformer over patches of a series of numbers; each instance normalized and restored."""

    def __init__(self, d: int = 32, patch: int = 8) -> None:
        super().__init__()
        self.p, self.i, self.z = patch, nn.Linear(patch, d), w(12, d)
        self.e, self.o = (
            nn.TransformerEncoder(
                nn.TransformerEncoderLayer(d, 4, 64, 0.0, batch_first=True), 2, enable_nested_tensor=False
            ),
            nn.Linear(12 * d, 24),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, c = x.shape
        m, s = x.mean(1, keepdim=True), x.std(1, keepdim=True) + 1e-5
        y = ((x - m) / s).transpose(1, 2).reshape(b * c, -1, self.p)
        y = self.o(self.e(self.i(y) + self.z).flatten(1)).view(b, c, -1).transpose(1, 2)
        return y * s + m


@add("other2.series_patches")
def _() -> Any:
    return Series(), (torch.randn(2, 96, 3),)


class Beats(nn.Module):
    """Stacks of forecasts and backcasts on a basis of polynomials and one of waves."""

    def __init__(self, back: int = 30, ahead: int = 8) -> None:
        super().__init__()
        t = torch.linspace(-1, ahead / back, back + ahead)
        self.register_buffer("poly", torch.stack([t**i for i in range(3)]))
        self.register_buffer(
            "wave", torch.cat([torch.stack([torch.sin(k * 3.1 * t), torch.cos(k * 3.1 * t)]) for k in range(1, 4)])
        )
        self.a, self.b, self.n = mlp(back, 64, 64, 3, last=True), mlp(back, 64, 64, 6, last=True), back

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = 0
        for net, basis in ((self.a, self.poly), (self.b, self.wave)):
            y = net(x) @ basis
            x, total = x - y[:, : self.n], total + y[:, self.n :]
        return total


@add("other2.basis_forecast")
def _() -> Any:
    return Beats(), (torch.randn(16, 30),)


class Gates(nn.Module):
    """Gated residual blocks select variables of a series; an LSTM; attention over time; three quantiles."""

    def __init__(self, c: int = 5, d: int = 16) -> None:
        super().__init__()
        self.v, self.s = nn.ModuleList(nn.Linear(1, d) for _ in range(c)), nn.Linear(c * d, c)
        self.g = nn.ModuleList(nn.ModuleList([nn.Linear(d, d), nn.Linear(d, 2 * d), nn.LayerNorm(d)]) for _ in range(2))
        self.r, self.a, self.o = (
            nn.LSTM(d, d, batch_first=True),
            nn.MultiheadAttention(d, 2, batch_first=True),
            nn.Linear(d, 3),
        )

    def gate(self, i: int, x: torch.Tensor) -> torch.Tensor:
        a, b, n = self.g[i]
        return n(x + F.glu(b(F.elu(a(x))), -1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z = torch.stack([v(x[..., i : i + 1]) for i, v in enumerate(self.v)], 2)
        y = (self.s(z.flatten(2)).softmax(-1).unsqueeze(-1) * z).sum(2)
        y = self.gate(0, y + self.r(y)[0])
        return self.o(self.gate(1, y + self.a(y, y, y, need_weights=False)[0])[:, -4:])


@add("other2.gated_forecast")
def _() -> Any:
    return Gates(), (torch.randn(4, 16, 5),)


class Coupling(nn.Module):
    """A normalizing flow on vectors: affine couplings of alternating halves, and the log-likelihood."""

    def __init__(self, d: int = 6, n: int = 4) -> None:
        super().__init__()
        self.n = nn.ModuleList(mlp(d // 2, 32, d, last=True) for _ in range(n))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logdet = torch.zeros(x.shape[0], device=x.device)
        for n in self.n:
            a, b = x.chunk(2, 1)
            s, t = n(a).chunk(2, 1)
            s = torch.tanh(s)
            x, logdet = torch.cat([b * s.exp() + t, a], 1), logdet + s.sum(1)
        return logdet - 0.5 * x.square().sum(1) - 0.5 * x.shape[1] * math.log(2 * math.pi)


@add("other2.couplings")
def _() -> Any:
    return Coupling(), (torch.randn(64, 6),)


class Energy(nn.Module):
    """Restricted Boltzmann machine on vectors: three Gibbs steps and the free energy."""

    def __init__(self, v: int = 40, h: int = 24) -> None:
        super().__init__()
        self.w, self.a, self.b = w(v, h), nn.Parameter(torch.zeros(v)), nn.Parameter(torch.zeros(h))

    def forward(self, x: torch.Tensor) -> Any:
        for _ in range(3):
            h = torch.bernoulli(torch.sigmoid(x @ self.w + self.b))
            x = torch.bernoulli(torch.sigmoid(h @ self.w.T + self.a))
        return x, -(x @ self.a) - F.softplus(x @ self.w + self.b).sum(1)


@add("other2.boltzmann")
def _() -> Any:
    return Energy(), (torch.rand(32, 40).round(),)


class Bandit(nn.Module):
    """Linear bandits with upper confidence bounds: the covariances are updated by Sherman and Morrison."""

    def forward(self, x: torch.Tensor, reward: torch.Tensor) -> Any:
        arms, d = reward.shape[1], x.shape[1]
        a = torch.eye(d, device=x.device).repeat(arms, 1, 1)
        b = torch.zeros(arms, d, device=x.device)
        total = torch.zeros((), device=x.device)
        for i in range(12):
            c = x[i]
            mean = torch.einsum("ade,ae,d->a", a, b, c)
            width = torch.einsum("d,ade,e->a", c, a, c).sqrt()
            hot = F.one_hot((mean + 0.8 * width).argmax(), arms).float()
            u = torch.einsum("ade,e->ad", a, c)
            step = u[:, :, None] * u[:, None] / (1 + (u @ c))[:, None, None]
            a = a - hot[:, None, None] * step
            b = b + hot[:, None] * reward[i][:, None] * c
            total = total + (hot * reward[i]).sum()
        return total, b


@add("other2.bandit")
def _() -> Any:
    return Bandit(), (torch.randn(12, 5), torch.rand(12, 4))


class Duel(nn.Module):
    """A dueling Q network on vectors of state, its target's best actions, and the errors."""

    def __init__(self, s: int = 8, a: int = 4) -> None:
        super().__init__()
        self.x, self.v, self.a = mlp(s, 64, 64), nn.Linear(64, 1), nn.Linear(64, a)

    def q(self, s: torch.Tensor) -> torch.Tensor:
        y = self.x(s)
        a = self.a(y)
        return self.v(y) + a - a.mean(1, keepdim=True)

    def forward(self, s: torch.Tensor, a: torch.Tensor, r: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        goal = r + 0.99 * self.q(n).amax(1)
        return goal - self.q(s).gather(1, a[:, None])[:, 0]


@add("other2.dueling_values")
def _() -> Any:
    return Duel(), (torch.randn(32, 8), torch.randint(4, (32,)), torch.randn(32), torch.randn(32, 8))


class Actor(nn.Module):
    """Actor and critic: advantages by a backward loop, the clipped surrogate with an entropy bonus."""

    def __init__(self, s: int = 6, a: int = 2) -> None:
        super().__init__()
        self.m = nn.ModuleList([nn.Linear(s, 32), nn.Linear(32, a), nn.Linear(s, 32), nn.Linear(32, 1)])
        self.s = nn.Parameter(torch.zeros(a))

    def forward(self, s: torch.Tensor, a: torch.Tensor, old: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        mean, v = self.m[1](torch.tanh(self.m[0](s))), self.m[3](torch.tanh(self.m[2](s))).squeeze(-1)
        adv, last = [], torch.zeros((), device=s.device)
        held = v.detach()
        for t in range(s.shape[0] - 2, -1, -1):
            last = r[t] + 0.99 * held[t + 1] - held[t] + 0.94 * last
            adv.append(last)
        adv = torch.stack(adv[::-1])
        logp = (-0.5 * ((a - mean) / self.s.exp()).square() - self.s).sum(1)[:-1]
        ratio = torch.exp(logp - old[:-1])
        gain = torch.minimum(ratio * adv, ratio.clamp(0.8, 1.2) * adv).mean()
        return -gain + 0.5 * (v[:-1] - (adv + held[:-1])).square().mean() - 0.01 * self.s.sum()


def rollout() -> tuple[torch.Tensor, ...]:
    return torch.randn(12, 6), torch.randn(12, 2), torch.randn(12), torch.randn(12)


@case("train2.actor_critic_clipped", "other", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    class Step(torch.optim.Adam):
        def step(self, closure: Any = None) -> Any:
            nn.utils.clip_grad_norm_(self.param_groups[0]["params"], 0.5)
            return super().step(closure)

    return TrainStep(Actor(), lambda m, *x: m(*x), lambda p: Step(p, 3e-4)), rollout()


class Map(nn.Module):
    """A self-organizing map: each sample pulls the neighbourhood of the best unit."""

    def __init__(self, side: int = 6, d: int = 4) -> None:
        super().__init__()
        self.register_buffer("w", torch.rand(side * side, d))
        self.register_buffer(
            "at",
            torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).view(-1, 2).float(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        k = self.w
        for i, v in enumerate(x):
            best = (k - v).square().sum(1).argmin()
            near = torch.exp(-(self.at - self.at[best]).square().sum(1) / (2 * (3 - i / 8) ** 2))
            k = k + 0.3 * near[:, None] * (v - k)
        return k


@add("other2.organizing_map")
def _() -> Any:
    return Map(), (torch.rand(16, 4),)


class Nearest(nn.Module):
    """The majority of the nearest neighbours among stored vectors."""

    def forward(self, x: torch.Tensor, stored: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
        near = torch.cdist(x, stored).topk(5, largest=False).indices
        return F.one_hot(label[near], 3).sum(1).argmax(1)


@add("other2.nearest_neighbours")
def _() -> Any:
    return Nearest(), (torch.randn(20, 6), torch.randn(100, 6), torch.randint(3, (100,)))


class Components(nn.Module):
    """Principal components by power iteration with deflation."""

    def forward(self, x: torch.Tensor, v: torch.Tensor) -> Any:
        x = x - x.mean(0)
        c, out = x.T @ x / (x.shape[0] - 1), []
        for u in v:
            for _ in range(8):
                u = c @ u
                u = u / u.norm()
            out.append(u)
            c = c - (u @ c @ u) * torch.outer(u, u)
        axes = torch.stack(out)
        return axes, x @ axes.T


@add("other2.principal_components")
def _() -> Any:
    return Components(), (torch.randn(120, 7), torch.randn(3, 7))


class Regression(nn.Module):
    """Ten steps of gradient descent of a line, with the gradient written out."""

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> Any:
        a, b = torch.zeros(x.shape[1], device=x.device), torch.zeros((), device=x.device)
        for _ in range(10):
            e = x @ a + b - y
            a, b = a - 0.1 * x.T @ e / len(y), b - 0.1 * e.mean()
        return a, b


@add("other2.regression_descent")
def _() -> Any:
    return Regression(), (torch.randn(60, 4), torch.randn(60))


class Sparse(nn.Module):
    """A wide autoencoder of vectors that keeps the eight largest of its features."""

    def __init__(self, d: int = 48, m: int = 256) -> None:
        super().__init__()
        self.e, self.d, self.b = w(d, m), w(m, d), nn.Parameter(torch.zeros(d))

    def forward(self, x: torch.Tensor) -> Any:
        z = F.relu((x - self.b) @ self.e)
        top = z.topk(8, dim=1)
        z = torch.zeros_like(z).scatter(1, top.indices, top.values)
        return z @ self.d + self.b, z


@add("other2.sparse_autoencoder")
def _() -> Any:
    return Sparse(), (torch.randn(40, 48),)


class Heat(nn.Module):
    """The residual of a heat equation on a coordinate net of sines, derivatives by hand through two layers."""

    def __init__(self, d: int = 32) -> None:
        super().__init__()
        self.a, self.b, self.c, self.e = w(2, d, scale=1.0), w(d), w(d, 1), w(1)

    def forward(self, p: torch.Tensor) -> torch.Tensor:
        z = p @ self.a + self.b
        u = torch.sin(z) @ self.c + self.e
        time = (torch.cos(z) * self.a[1]) @ self.c
        space = (-torch.sin(z) * self.a[0].square()) @ self.c
        return (time - 0.1 * space).square().mean() + u.square().mean()


@add("other2.heat_residual")
def _() -> Any:
    return Heat(), (torch.rand(100, 2),)


class LineByAdam(nn.Module):
    """Adam written out with foreach-less loops on a regression of tables with a Huber loss."""

    def __init__(self) -> None:
        super().__init__()
        self.model = mlp(7, 32, 16, 1, last=True)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        params = list(self.model.parameters())
        m, v, losses = [torch.zeros_like(p) for p in params], [torch.zeros_like(p) for p in params], []
        for step in range(1, 4):
            with phase("train.forward"):
                loss = F.smooth_l1_loss(self.model(x)[:, 0], y)
            with phase("train.backward"):
                loss.backward()
            with phase("train.optimizer"), torch.no_grad():
                for i, p in enumerate(params):
                    m[i] = 0.9 * m[i] + 0.1 * p.grad
                    v[i] = 0.999 * v[i] + 0.001 * p.grad**2
                    p -= 1e-2 * (m[i] / (1 - 0.9**step)) / ((v[i] / (1 - 0.999**step)).sqrt() + 1e-8)
                    p.grad = None
            losses.append(loss.detach())
        return torch.stack(losses)


@case("train2.adam_by_hand", "other", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    return LineByAdam(), (torch.randn(32, 7), torch.randn(32))


@case("train2.couplings", "other", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    return TrainStep(Coupling(), lambda m, x: -m(x).mean(), lambda p: torch.optim.Adam(p, 1e-3)), (torch.randn(32, 6),)
