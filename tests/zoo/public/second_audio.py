"""Audio and diffusion by a second author."""

import math
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..oracle import phase
from ..parts import TrainStep, adamw
from ..registry import split

case = split("public")
FRONT, ENCODE, DECODE = "audio.frontend", "audio.encode", "audio.decode"
DENOISE, VAE = "diffusion.denoise", "diffusion.vae"
PLAIN = "plain torch, second author"


def w(*shape: int, scale: float = 0.1) -> nn.Parameter:
    """A random weight."""
    return nn.Parameter(torch.randn(*shape) * scale)


class Raw(nn.Module):
    """Commands from the raw wave: strided 1-d convolutions throughout (M5)."""

    def __init__(self, d: int = 24) -> None:
        super().__init__()
        self.c = nn.ModuleList(
            [nn.Conv1d(1, d, 80, 16), nn.Conv1d(d, d, 3), nn.Conv1d(d, 2 * d, 3), nn.Conv1d(2 * d, 2 * d, 3)]
        )
        self.b, self.o = nn.ModuleList(nn.BatchNorm1d(n) for n in (d, d, 2 * d, 2 * d)), nn.Linear(2 * d, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(FRONT):
            x = F.relu(self.b[0](self.c[0](x)))
        x = F.max_pool1d(x, 4)
        for c, b in zip(self.c[1:], self.b[1:], strict=True):
            x = F.max_pool1d(F.relu(b(c(x))), 2)
        return F.log_softmax(self.o(x.mean(2)), 1)


@case("audio2.raw_commands", "audio", (FRONT,), source=PLAIN)
def _() -> Any:
    return Raw(), (torch.randn(2, 1, 8000),)


class Squeeze(nn.Module):
    """Convolutions on mel frames, a recurrent encoder in both directions, CTC logits."""

    def __init__(self, mels: int = 64, d: int = 48) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, (11, 5), (2, 2), (5, 2)), nn.Conv2d(8, 8, (11, 5), (1, 2), (5, 2))
        self.r, self.o = nn.GRU(8 * mels // 4, d, 2, bidirectional=True, batch_first=True), nn.Linear(2 * d, 30)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(FRONT):
            x = F.hardtanh(self.b(F.hardtanh(self.a(x[:, None]), 0, 20)), 0, 20)
        with phase(ENCODE):
            x = self.r(x.permute(0, 2, 1, 3).flatten(2))[0]
            return self.o(x).log_softmax(-1)


@case("audio2.recurrent_ctc", "audio", (FRONT, ENCODE), source=PLAIN)
def _() -> Any:
    return Squeeze(), (torch.randn(2, 90, 64),)


class Conformer(nn.Module):
    """Half feed-forwards around attention and a gated depthwise convolution, on subsampled mel frames."""

    def __init__(self, mels: int = 40, d: int = 48, n: int = 2) -> None:
        super().__init__()
        self.s, self.p = nn.ModuleList([nn.Conv2d(1, 16, 3, 2), nn.Conv2d(16, 16, 3, 2)]), nn.Linear(16 * 9, d)
        half = lambda: nn.Sequential(nn.LayerNorm(d), nn.Linear(d, 96), nn.SiLU(), nn.Linear(96, d))  # noqa: E731
        self.f, self.g = nn.ModuleList(half() for _ in range(n)), nn.ModuleList(half() for _ in range(n))
        self.q, self.k = (
            nn.ModuleList(nn.Linear(d, 3 * d) for _ in range(n)),
            nn.ModuleList(nn.Linear(d, d) for _ in range(n)),
        )
        self.u, self.v = (
            nn.ModuleList(nn.Conv1d(d, 2 * d, 1) for _ in range(n)),
            nn.ModuleList(nn.Conv1d(d, d, 7, padding=3, groups=d) for _ in range(n)),
        )
        self.w, self.b, self.o = (
            nn.ModuleList(nn.Conv1d(d, d, 1) for _ in range(n)),
            nn.ModuleList(nn.BatchNorm1d(d) for _ in range(n)),
            nn.Linear(d, 60),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(FRONT):
            x = x.unsqueeze(1)
            for c in self.s:
                x = F.relu(c(x))
        with phase(ENCODE):
            x = self.p(x.transpose(1, 2).flatten(2))
            for i in range(len(self.f)):
                x = x + 0.5 * self.f[i](x)
                q, k, v = (
                    z.unflatten(2, (4, -1)).transpose(1, 2)
                    for z in self.q[i](F.layer_norm(x, x.shape[-1:])).chunk(3, 2)
                )
                x = x + self.k[i](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
                y = F.glu(self.u[i](F.layer_norm(x, x.shape[-1:]).transpose(1, 2)), 1)
                x = x + self.w[i](F.silu(self.b[i](self.v[i](y)))).transpose(1, 2)
                x = x + 0.5 * self.g[i](x)
            return self.o(x)


@case("audio2.conformer", "audio", (FRONT, ENCODE), source=PLAIN)
def _() -> Any:
    return Conformer(), (torch.randn(1, 80, 40),)


class Speech(nn.Module):
    """A tiny transcriber of plain matrices: two convolutions, an encoder, a decoder with caches by torch.cat."""

    def __init__(self, mels: int = 40, v: int = 500, d: int = 64, h: int = 4, n: int = 2) -> None:
        super().__init__()
        self.c, self.c2, self.h, self.n = w(d, mels, 3), w(d, d, 3), h, n
        self.e, self.s, self.x = w(n, 4, d, d), w(n, 4, d, d), w(n, 4, d, d)
        self.m, self.r = w(2, n, d, 2 * d), w(2, n, 2 * d, d)
        self.t, self.p, self.z = w(v, d, scale=0.4), w(20, d), w(100, d)

    def att(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        q, k, v = (z.unflatten(2, (self.h, -1)).transpose(1, 2) for z in (q, k, v))
        return ((q @ k.mT / 4).softmax(-1) @ v).transpose(1, 2).flatten(2)

    def forward(self, x: torch.Tensor, steps: int = 5) -> torch.Tensor:
        with phase(ENCODE):
            x = F.gelu(F.conv1d(x, self.c, padding=1))
            x = F.gelu(F.conv1d(x, self.c2, padding=1, stride=2)).transpose(1, 2)
            x = x + self.z[: x.shape[1]]
            for i in range(self.n):
                y = F.layer_norm(x, x.shape[-1:])
                x = x + self.att(y @ self.e[i, 0], y @ self.e[i, 1], y @ self.e[i, 2]) @ self.e[i, 3]
                x = x + F.gelu(F.layer_norm(x, x.shape[-1:]) @ self.m[0, i]) @ self.r[0, i]
            heard = F.layer_norm(x, x.shape[-1:])
        cross = [(heard @ self.x[i, 1], heard @ self.x[i, 2]) for i in range(self.n)]
        past: list[Any] = [None] * self.n
        token, out = torch.ones(heard.shape[0], 1, dtype=torch.long, device=heard.device), []
        for step in range(steps):
            with phase(DECODE):
                u = F.embedding(token, self.t) + self.p[step]
                for i in range(self.n):
                    y = F.layer_norm(u, u.shape[-1:])
                    k, v = y @ self.s[i, 1], y @ self.s[i, 2]
                    past[i] = (
                        (k, v) if past[i] is None else (torch.cat([past[i][0], k], 1), torch.cat([past[i][1], v], 1))
                    )
                    u = u + self.att(y @ self.s[i, 0], *past[i]) @ self.s[i, 3]
                    u = u + self.att(F.layer_norm(u, u.shape[-1:]) @ self.x[i, 0], *cross[i]) @ self.x[i, 3]
                    u = u + F.gelu(F.layer_norm(u, u.shape[-1:]) @ self.m[1, i]) @ self.r[1, i]
                s = F.layer_norm(u, u.shape[-1:]) @ self.t.T
            token = s.argmax(-1)
            out.append(s)
        return torch.cat(out, 1)


@case("audio2.transcriber_by_hand", "audio", (ENCODE, DECODE), source=PLAIN)
def _() -> Any:
    return Speech(), (torch.randn(1, 40, 160),)


class Codec(nn.Module):
    """A neural codec: strided convolutions, nearest codewords of two codebooks, transposed convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.e = nn.ModuleList(nn.Conv1d(a, b, 2 * s, s, s // 2) for a, b, s in ((1, 16, 2), (16, 32, 4), (32, 32, 4)))
        self.d = nn.ModuleList(
            nn.ConvTranspose1d(a, b, 2 * s, s, s // 2) for a, b, s in ((32, 32, 4), (32, 16, 4), (16, 1, 2))
        )
        self.k = w(2, 64, 32, scale=1.0)

    def forward(self, x: torch.Tensor) -> Any:
        for e in self.e:
            x = F.elu(e(x))
        z = x.transpose(1, 2)
        left, total, codes = z, torch.zeros_like(z), []
        for book in self.k:
            far = left.pow(2).sum(-1, keepdim=True) - 2 * left @ book.t() + book.pow(2).sum(-1)
            code = far.argmin(-1)
            q = book[code]
            left, total = left - q, total + q
            codes.append(code)
        y = total.transpose(1, 2)
        for d in self.d:
            y = d(F.elu(y))
        return torch.tanh(y), torch.stack(codes)


@case("audio2.codec", "audio", (), source=PLAIN)
def _() -> Any:
    return Codec(), (torch.randn(1, 1, 2048),)


class Speaker(nn.Module):
    """Voices: dilated convolutions over mel frames, mean and deviation over time, a unit vector."""

    def __init__(self, mels: int = 40, d: int = 64) -> None:
        super().__init__()
        self.c = nn.ModuleList(
            [
                nn.Conv1d(mels, d, 5),
                nn.Conv1d(d, d, 3, dilation=2),
                nn.Conv1d(d, d, 3, dilation=3),
                nn.Conv1d(d, 2 * d, 1),
            ]
        )
        self.b, self.o = nn.ModuleList(nn.BatchNorm1d(n) for n in (d, d, d, 2 * d)), nn.Linear(4 * d, 48)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(ENCODE):
            x = x - x.mean(2, keepdim=True)
            for c, b in zip(self.c, self.b, strict=True):
                x = b(F.relu(c(x)))
            x = torch.cat([x.mean(2), x.std(2)], 1)
            return F.normalize(self.o(x), dim=1)


@case("audio2.speaker_statistics", "audio", (ENCODE,), source=PLAIN)
def _() -> Any:
    return Speaker(), (torch.randn(3, 40, 100),)


class Spectrum(nn.Module):
    """Frames of the wave times a Fourier basis, mel filters, logarithm, then convolutions over time."""

    def __init__(self, size: int = 256, hop: int = 128, mels: int = 40, d: int = 48) -> None:
        super().__init__()
        t = torch.arange(size)
        angle = 2 * math.pi * t[:, None] * torch.arange(size // 2 + 1)[None] / size
        self.register_buffer("re", angle.cos() * torch.hann_window(size)[:, None])
        self.register_buffer("im", angle.sin() * torch.hann_window(size)[:, None])
        self.register_buffer("mel", torch.rand(size // 2 + 1, mels))
        self.size, self.hop = size, hop
        self.a, self.b, self.r, self.o = (
            nn.Conv1d(mels, d, 3, padding=1),
            nn.Conv1d(d, d, 3, padding=1),
            nn.LSTM(d, d, batch_first=True),
            nn.Linear(d, 10),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(FRONT):
            frames = x.unfold(1, self.size, self.hop)
            power = (frames @ self.re).square() + (frames @ self.im).square()
            x = torch.log(power @ self.mel + 1e-5)
        with phase(ENCODE):
            x = F.relu(self.b(F.relu(self.a(x.transpose(1, 2))))).transpose(1, 2)
            x = self.r(x)[0]
            return self.o(x.mean(1))


@case("audio2.spectrum_inside", "audio", (FRONT, ENCODE), source=PLAIN)
def _() -> Any:
    return Spectrum(), (torch.randn(2, 4096),)


class Spotting(nn.Module):
    """Words spotted: a loss over alignments on the recurrent encoder."""

    def __init__(self) -> None:
        super().__init__()
        self.m = Squeeze(mels=32, d=24)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        s = self.m(x)
        # The probability of a path by the forward recursion, over labels without blanks between them.
        p = s.gather(2, y[:, None].expand(-1, s.shape[1], -1))
        first = torch.full_like(p[:, 0], -1e4)
        a = torch.cat([p[:, 0, :1], first[:, 1:]], 1)
        for t in range(1, p.shape[1]):
            a = torch.logaddexp(a, torch.cat([first[:, :1], a[:, :-1]], 1)) + p[:, t]
        return -a[:, -1].mean()


@case("train2.alignment", "audio", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    return TrainStep(Spotting(), lambda m, *x: m(*x), adamw), (torch.randn(2, 14, 32), torch.randint(1, 30, (2, 4)))


# Diffusion.
def waves(t: torch.Tensor, d: int) -> torch.Tensor:
    """Sines and cosines of a time."""
    f = torch.exp(torch.arange(d // 2, device=t.device) * (-math.log(1e4) / (d // 2 - 1)))
    a = t.float()[:, None] * f
    return torch.cat([a.sin(), a.cos()], 1)


class Tiny(nn.Module):
    """A U-Net: the time scales and shifts each block, an attention in the middle, skips by concatenation."""

    def __init__(self, c: int = 3, d: int = 16, classes: int = 0) -> None:
        super().__init__()
        self.d, self.t = d, nn.Sequential(nn.Linear(d, 4 * d), nn.SiLU(), nn.Linear(4 * d, 4 * d))
        self.y = nn.Embedding(classes, 4 * d) if classes else None
        self.i = nn.Conv2d(c, d, 3, 1, 1)
        sizes = ((d, d), (d, 2 * d), (2 * d, 2 * d), (4 * d, d), (2 * d, d))
        self.b = nn.ModuleList(
            nn.ModuleList(
                [
                    nn.GroupNorm(4, a),
                    nn.Conv2d(a, b, 3, 1, 1),
                    nn.Linear(4 * d, 2 * b),
                    nn.GroupNorm(4, b),
                    nn.Conv2d(b, b, 3, 1, 1),
                    nn.Conv2d(a, b, 1),
                ]
            )
            for a, b in sizes
        )
        self.q, self.p, self.o = nn.Conv2d(2 * d, 6 * d, 1), nn.Conv2d(2 * d, 2 * d, 1), nn.Conv2d(d, c, 3, 1, 1)

    def block(self, i: int, x: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        n1, c1, t, n2, c2, s = self.b[i]
        h = c1(F.silu(n1(x)))
        scale, shift = t(F.silu(e))[:, :, None, None].chunk(2, 1)
        return s(x) + c2(F.silu(n2(h) * (1 + scale) + shift))

    def forward(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
        e = self.t(waves(t, self.d))
        if self.y is not None and y is not None:
            e = e + self.y(y)
        a = self.block(0, self.i(x), e)
        b = self.block(1, F.avg_pool2d(a, 2), e)
        q, k, v = self.q(b).flatten(2).chunk(3, 1)
        m = b + self.p((v @ (q.transpose(1, 2) @ k / 6).softmax(2).transpose(1, 2)).view_as(b))
        m = self.block(2, m, e)
        u = self.block(3, torch.cat([m, b], 1), e)
        u = self.block(4, torch.cat([F.interpolate(u, scale_factor=2), a], 1), e)
        return self.o(F.silu(u))


class Ancestral(nn.Module):
    """DDPM by hand with fresh noise at each step."""

    def __init__(self, steps: int = 4) -> None:
        super().__init__()
        self.net, self.steps = Tiny(), steps
        b = torch.linspace(1e-4, 0.2, steps)
        self.register_buffer("b", b)
        self.register_buffer("a", (1 - b).cumprod(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i in reversed(range(self.steps)):
            t = torch.full((x.shape[0],), i, device=x.device)
            with phase(DENOISE):
                e = self.net(x, t)
            x = (x - self.b[i] / (1 - self.a[i]).sqrt() * e) / (1 - self.b[i]).sqrt()
            if i:
                x = x + self.b[i].sqrt() * torch.randn_like(x)
        return x


@case("diffusion2.ancestral", "diffusion", (DENOISE,), source=PLAIN)
def _() -> Any:
    return Ancestral(), (torch.randn(1, 3, 16, 16),)


class Guided(nn.Module):
    """Classifier-free guidance: with the class and without in one batch, Euler steps of the noise."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Tiny(c=1, classes=11)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        sigmas = [4.0, 1.5, 0.5, 0.0]
        both = torch.cat([y, torch.full_like(y, 10)])
        for s, n in zip(sigmas, sigmas[1:], strict=False):
            with phase(DENOISE):
                c, u = self.net(torch.cat([x, x]), torch.full((2 * x.shape[0],), s, device=x.device), both).chunk(2)
            x = x + (n - s) * (u + 2.0 * (c - u)) / max(s, 1.0)
        return x


@case("diffusion2.guided_classes", "diffusion", (DENOISE,), source=PLAIN)
def _() -> Any:
    return Guided(), (torch.randn(2, 1, 16, 16), torch.randint(10, (2,)))


class Adaptive(nn.Module):
    """A transformer over latent patches whose norms are steered by the time (DiT), Euler steps of a flow, a decoder."""

    def __init__(self, c: int = 4, d: int = 48, n: int = 2) -> None:
        super().__init__()
        self.x, self.y, self.d, self.c = nn.Linear(4 * c, d), nn.Linear(d, 4 * c), d, c
        self.t, self.s = nn.Sequential(nn.Linear(d, d), nn.SiLU()), nn.ModuleList(nn.Linear(d, 6 * d) for _ in range(n))
        self.q, self.o = (
            nn.ModuleList(nn.Linear(d, 3 * d) for _ in range(n)),
            nn.ModuleList(nn.Linear(d, d) for _ in range(n)),
        )
        self.f = nn.ModuleList(
            nn.Sequential(nn.Linear(d, 2 * d), nn.GELU("tanh"), nn.Linear(2 * d, d)) for _ in range(n)
        )
        self.pos = w(16, d, scale=0.3)
        self.v = nn.Sequential(
            nn.Conv2d(c, 32, 3, 1, 1),
            nn.SiLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(32, 16, 3, 1, 1),
            nn.SiLU(),
            nn.Upsample(scale_factor=2),
            nn.Conv2d(16, 3, 3, 1, 1),
        )

    def velocity(self, z: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        b, c, h, _ = z.shape
        x = z.view(b, c, h // 2, 2, h // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, -1, 4 * c)
        x, e = self.x(x) + self.pos, self.t(waves(1000 * t, self.d))
        for s, q, o, f in zip(self.s, self.q, self.o, self.f, strict=True):
            m = s(e)[:, None].chunk(6, 2)
            y = F.layer_norm(x, (self.d,)) * (1 + m[0]) + m[1]
            a = F.scaled_dot_product_attention(*(k.unflatten(2, (4, -1)).transpose(1, 2) for k in q(y).chunk(3, 2)))
            x = x + m[2] * o(a.transpose(1, 2).flatten(2))
            x = x + m[5] * f(F.layer_norm(x, (self.d,)) * (1 + m[3]) + m[4])
        return self.y(x).view(b, h // 2, h // 2, c, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(z.shape)

    def forward(self, z: torch.Tensor, steps: int = 4) -> torch.Tensor:
        for i in range(steps):
            t = torch.full((z.shape[0],), i / steps, device=z.device)
            with phase(DENOISE):
                v = self.velocity(z, t)
            z = z + v / steps
        with phase(VAE):
            return self.v(z / 0.18)


@case("diffusion2.flow_transformer_latent", "diffusion", (DENOISE, VAE), source=PLAIN)
def _() -> Any:
    return Adaptive(), (torch.randn(1, 4, 8, 8),)


class Fourier(nn.Module):
    """Score model with random Fourier features of the noise; each block adds a dense projection; annealed Langevin."""

    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.register_buffer("f", torch.randn(8) * 16)
        self.e = nn.Linear(16, d)
        self.c = nn.ModuleList(
            [nn.Conv2d(1, d, 3, padding=1), nn.Conv2d(d, 2 * d, 3, 2, 1), nn.Conv2d(2 * d, 4 * d, 3, 2, 1)]
        )
        self.k = nn.ModuleList(nn.Linear(d, n) for n in (d, 2 * d, 4 * d, 2 * d, d))
        self.u, self.v, self.o = (
            nn.ConvTranspose2d(4 * d, 2 * d, 4, 2, 1),
            nn.ConvTranspose2d(4 * d, d, 4, 2, 1),
            nn.Conv2d(2 * d, 1, 3, padding=1),
        )

    def score(self, x: torch.Tensor, s: torch.Tensor) -> torch.Tensor:
        p = s[:, None] * self.f * (2 * math.pi)
        e = F.silu(self.e(torch.cat([p.sin(), p.cos()], 1)))
        add = [k(e)[:, :, None, None] for k in self.k]
        a = F.silu(self.c[0](x) + add[0])
        b = F.silu(self.c[1](a) + add[1])
        m = F.silu(self.c[2](b) + add[2])
        m = F.silu(self.u(m) + add[3])
        m = F.silu(self.v(torch.cat([m, b], 1)) + add[4])
        return self.o(torch.cat([m, a], 1)) / s[:, None, None, None]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for sigma in (1.0, 0.4, 0.1):
            s = torch.full((x.shape[0],), sigma, device=x.device)
            for _ in range(2):
                with phase(DENOISE):
                    g = self.score(x, s)
                x = x + 0.02 * sigma**2 * g + 0.2 * sigma * torch.randn_like(x)
        return x


@case("diffusion2.annealed_langevin", "diffusion", (DENOISE,), source=PLAIN)
def _() -> Any:
    return Fourier(), (torch.randn(2, 1, 16, 16),)


class Points(nn.Module):
    """Diffusion on points of the plane: an MLP that gets the time as one more input, DDIM."""

    def __init__(self, d: int = 64, steps: int = 6) -> None:
        super().__init__()
        self.n, self.steps = (
            nn.Sequential(nn.Linear(2 + 16, d), nn.SiLU(), nn.Linear(d, d), nn.SiLU(), nn.Linear(d, 2)),
            steps,
        )
        self.register_buffer("a", torch.linspace(0.999, 0.05, steps))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i in range(self.steps - 1, -1, -1):
            t = torch.full((x.shape[0],), float(i), device=x.device)
            with phase(DENOISE):
                e = self.n(torch.cat([x, waves(t, 16)], 1))
            clean = (x - (1 - self.a[i]).sqrt() * e) / self.a[i].sqrt()
            x = self.a[i - 1].sqrt() * clean + (1 - self.a[i - 1]).sqrt() * e if i else clean
        return x


@case("diffusion2.points_ddim", "diffusion", (DENOISE,), source=PLAIN)
def _() -> Any:
    return Points(), (torch.randn(64, 2),)


class Prompted(nn.Module):
    """A denoiser with cross-attention to given text features, linear attention inside, v-prediction."""

    def __init__(self, d: int = 24, text: int = 32) -> None:
        super().__init__()
        self.i, self.o, self.dn, self.up = (
            nn.Conv2d(4, d, 3, 1, 1),
            nn.Conv2d(d, 4, 3, 1, 1),
            nn.Conv2d(d, d, 3, 2, 1),
            nn.Conv2d(d, d, 3, 1, 1),
        )
        self.t, self.e = nn.Linear(1, d), nn.Linear(d, d)
        self.q, self.k, self.v, self.p = nn.Linear(d, d), nn.Linear(text, d), nn.Linear(text, d), nn.Linear(d, d)
        self.s = nn.Linear(d, 3 * d)

    def net(self, x: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
        e = self.e(torch.sin(self.t(t)))[:, :, None, None]
        a = F.silu(self.i(x) + e)
        y = self.dn(a)
        b, d, h, wide = y.shape
        z = y.flatten(2).transpose(1, 2)
        q, k, v = self.s(z).chunk(3, 2)
        z = z + q.softmax(2) @ (k.softmax(1).transpose(1, 2) @ v)
        z = z + self.p((self.q(z) @ self.k(c).transpose(1, 2) / d**0.5).softmax(2) @ self.v(c))
        y = self.up(F.interpolate(z.transpose(1, 2).reshape(b, d, h, wide), scale_factor=2.0)) + a
        return self.o(F.silu(y))

    def forward(self, x: torch.Tensor, c: torch.Tensor, steps: int = 3) -> torch.Tensor:
        times = torch.linspace(1, 0, steps + 1, device=x.device)
        for i in range(steps):
            a, b = torch.cos(times[i] * 1.5), torch.sin(times[i] * 1.5)
            with phase(DENOISE):
                v = self.net(x, times[i].expand(x.shape[0], 1), c)
            clean, noise = a * x - b * v, b * x + a * v
            x = torch.cos(times[i + 1] * 1.5) * clean + torch.sin(times[i + 1] * 1.5) * noise
        return x


@case("diffusion2.prompted_v", "diffusion", (DENOISE,), source=PLAIN)
def _() -> Any:
    return Prompted(), (torch.randn(1, 4, 16, 16), torch.randn(1, 9, 32))


class FlowMatching(nn.Module):
    """The loss of flow matching on a small U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Tiny(c=1)

    def forward(self, x: torch.Tensor, noise: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        r = t[:, None, None, None]
        return (self.net((1 - r) * noise + r * x, 1000 * t) - (x - noise)).square().mean()


@case("train2.flow_matching", "diffusion", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    return TrainStep(FlowMatching(), lambda m, *x: m(*x), adamw), (
        torch.randn(2, 1, 16, 16),
        torch.randn(2, 1, 16, 16),
        torch.rand(2),
    )
