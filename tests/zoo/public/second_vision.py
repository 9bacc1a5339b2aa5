"""Vision by a second author: hand-made convolutions and norms, dense heads, detectors with loops, pairs of pictures."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..oracle import phase
from ..parts import TrainStep, img
from ..registry import split

case = split("public")
STEM, BACK, HEAD, FIND = "vision.stem", "vision.backbone", "vision.head", "vision.detect"
SBH = (STEM, BACK, HEAD)
PLAIN = "plain torch, second author"


def w(*shape: int, scale: float = 0.05) -> nn.Parameter:
    """A random weight."""
    return nn.Parameter(torch.randn(*shape) * scale)


class Unfolded(nn.Module):
    """A classifier whose convolutions are unfold and matmul."""

    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = w(27, d, scale=0.2), w(9 * d, 2 * d), w(18 * d, 4 * d), w(4 * d, 10)

    @staticmethod
    def conv(x: torch.Tensor, k: torch.Tensor, stride: int) -> torch.Tensor:
        n, _, h, wide = x.shape
        cols = F.unfold(x, 3, padding=1, stride=stride).transpose(1, 2)
        return (cols @ k).transpose(1, 2).reshape(n, -1, h // stride, wide // stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(STEM):
            x = self.conv(x, self.a, 2).relu()
        with phase(BACK):
            x = self.conv(x, self.b, 2).relu()
            x = self.conv(x, self.c, 2).relu()
        with phase(HEAD):
            return x.mean((2, 3)) @ self.d


@case("vision2.unfolded_cnn", "vision", SBH, source=PLAIN)
def _() -> Any:
    return Unfolded(), (img(2, 48),)


class Patches(nn.Module):
    """A transformer over patches cut by reshape, registers, relative bias, attention pooling; channels last."""

    def __init__(self, p: int = 8, d: int = 64, n: int = 3, h: int = 4, side: int = 6, r: int = 3) -> None:
        super().__init__()
        self.p, self.h, self.n, self.r = p, h, n, r
        self.x0, self.x1 = w(3 * p * p, d), w(r, d, scale=0.5)
        self.x2, self.x3 = (
            nn.ModuleList(nn.Linear(d, 3 * d) for _ in range(n)),
            nn.ModuleList(nn.Linear(d, d) for _ in range(n)),
        )
        self.x4, self.x5 = (
            nn.ModuleList(nn.Linear(d, 2 * d) for _ in range(n)),
            nn.ModuleList(nn.Linear(2 * d, d) for _ in range(n)),
        )
        self.x6, self.x7, self.x8 = w(h, (2 * side - 1) ** 2, scale=0.3), w(1, d, scale=0.5), nn.Linear(d, 20)
        i = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).view(-1, 2)
        gap = i[:, None] - i[None] + side - 1
        self.register_buffer("at", gap[..., 0] * (2 * side - 1) + gap[..., 1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, hh, ww, c = x.shape
        with phase(STEM):
            x = x.reshape(b, hh // self.p, self.p, ww // self.p, self.p, c).permute(0, 1, 3, 2, 4, 5)
            x = x.reshape(b, -1, self.p * self.p * c) @ self.x0
        with phase(BACK):
            bias = F.pad(self.x6[:, self.at], (self.r, 0, self.r, 0))
            x = torch.cat([self.x1.expand(b, -1, -1), x], 1)
            t, d = x.shape[1:]
            for i in range(self.n):
                q, k, v = self.x2[i](F.layer_norm(x, (d,))).view(b, t, 3, self.h, -1).permute(2, 0, 3, 1, 4)
                a = (q @ k.transpose(-1, -2) * 0.25 + bias).softmax(-1)
                x = x + self.x3[i]((a @ v).transpose(1, 2).reshape(b, t, d))
                x = x + self.x5[i](F.gelu(self.x4[i](F.layer_norm(x, (d,)))))
        with phase(HEAD):
            a = (x[:, self.r :] @ self.x7.T).softmax(1)
            return self.x8((a * x[:, self.r :]).sum(1))


@case("vision2.patches_by_reshape", "vision", SBH, source=PLAIN)
def _() -> Any:
    return Patches(), (torch.randn(2, 48, 48, 3),)


class Next(nn.Module):
    """Large depthwise kernels, norm over the channels by hand, expansions as linear layers, a scale for each layer."""

    def __init__(self, widths: tuple[int, ...] = (24, 48)) -> None:
        super().__init__()
        a, b = widths
        self.q = nn.Conv2d(3, a, 4, 4)
        self.k1, self.k2 = nn.Conv2d(a, a, 7, padding=3, groups=a), nn.Conv2d(b, b, 7, padding=3, groups=b)
        self.e1, self.f1, self.e2, self.f2 = (
            nn.Linear(a, 4 * a),
            nn.Linear(4 * a, a),
            nn.Linear(b, 4 * b),
            nn.Linear(4 * b, b),
        )
        self.s1, self.s2, self.m = nn.Parameter(torch.ones(a)), nn.Parameter(torch.ones(b)), nn.Conv2d(a, b, 2, 2)
        self.o = nn.Linear(b, 12)

    @staticmethod
    def n(x: torch.Tensor) -> torch.Tensor:
        mean = x.mean(1, keepdim=True)
        return (x - mean) * torch.rsqrt((x - mean).square().mean(1, keepdim=True) + 1e-6)

    def block(self, x: torch.Tensor, k: nn.Module, e: nn.Module, f: nn.Module, s: torch.Tensor) -> torch.Tensor:
        return x + (s * f(F.gelu(e(self.n(k(x)).permute(0, 2, 3, 1))))).permute(0, 3, 1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(STEM):
            x = self.n(self.q(x))
        with phase(BACK):
            x = self.block(x, self.k1, self.e1, self.f1, self.s1)
            x = self.m(self.n(x))
            x = self.block(x, self.k2, self.e2, self.f2, self.s2)
        with phase(HEAD):
            return self.o(F.layer_norm(x.mean((-2, -1)), (x.shape[1],)))


@case("vision2.large_kernels", "vision", SBH, source=PLAIN)
def _() -> Any:
    return Next(), (img(1, 64),)


class Inception(nn.Module):
    """Branches of several kernels side by side; one picture without a batch dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.s = nn.Conv2d(3, 32, 5, 2, 2)
        self.m = nn.ModuleList(
            nn.ModuleList(
                [
                    nn.Conv2d(32, 8, 1),
                    nn.Conv2d(32, 8, 3, padding=1),
                    nn.Conv2d(32, 8, 5, padding=2),
                    nn.Conv2d(32, 8, 1),
                ]
            )
            for _ in range(3)
        )
        self.f = nn.Linear(32, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(STEM):
            x = F.max_pool2d(F.leaky_relu(self.s(x), 0.1), 2)
        with phase(BACK):
            for a, b, c, d in self.m:
                x = F.leaky_relu(torch.cat([a(x), b(x), c(x), d(F.avg_pool2d(x, 3, 1, 1))], 0), 0.1)
        with phase(HEAD):
            return F.log_softmax(self.f(x.amax((1, 2))), 0)


@case("vision2.branches_unbatched", "vision", SBH, source=PLAIN)
def _() -> Any:
    return Inception(), (torch.randn(3, 56, 56),)


class Weighted(nn.Module):
    """A residual net with standardized weights and GroupNorm, preactivation, grey pictures (X-rays)."""

    def __init__(self, d: int = 16) -> None:
        super().__init__()
        self.i = w(d, 1, 7, 7)
        self.a = nn.ParameterList([w(d * 2**j, d * 2 ** max(j - 1, 0), 3, 3) for j in range(3)])
        self.b = nn.ParameterList([w(d * 2**j, d * 2**j, 3, 3) for j in range(3)])
        self.c = nn.ParameterList([w(d * 2**j, d * 2 ** max(j - 1, 0), 1, 1) for j in range(3)])
        self.g = nn.ModuleList(nn.GroupNorm(4, d * 2 ** max(j - 1, 0)) for j in range(3))
        self.g2, self.o = nn.ModuleList(nn.GroupNorm(4, d * 2**j) for j in range(3)), nn.Linear(4 * d, 14)

    @staticmethod
    def std(k: torch.Tensor) -> torch.Tensor:
        return (k - k.mean((1, 2, 3), keepdim=True)) / (k.std((1, 2, 3), keepdim=True) + 1e-5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(STEM):
            x = F.max_pool2d(F.conv2d(x, self.std(self.i), stride=2, padding=3), 3, 2, 1)
        with phase(BACK):
            for j in range(3):
                s = 1 if j == 0 else 2
                y = F.relu(self.g[j](x))
                z = F.conv2d(
                    F.relu(self.g2[j](F.conv2d(y, self.std(self.a[j]), stride=s, padding=1))),
                    self.std(self.b[j]),
                    padding=1,
                )
                x = F.conv2d(y, self.std(self.c[j]), stride=s) + z
        with phase(HEAD):
            return torch.sigmoid(self.o(F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1)))


@case("vision2.standardized_xray", "vision", SBH, source=PLAIN)
def _() -> Any:
    return Weighted(), (torch.randn(2, 1, 96, 96),)


class Fpn(nn.Module):
    """Segmentation by a pyramid: lateral 1x1 convolutions, nearest upsampling, summed levels."""

    def __init__(self) -> None:
        super().__init__()
        self.z = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.SiLU())
        self.d = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(c, 2 * c, 3, 2, 1),
                nn.BatchNorm2d(2 * c),
                nn.SiLU(),
                nn.Conv2d(2 * c, 2 * c, 3, 1, 1),
                nn.SiLU(),
            )
            for c in (16, 32, 64)
        )
        self.l = nn.ModuleList(nn.Conv2d(c, 24, 1) for c in (32, 64, 128))
        self.o = nn.ModuleList(nn.Conv2d(24, 24, 3, padding=1) for _ in range(3))
        self.y = nn.Conv2d(24, 6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        size = x.shape[-2:]
        with phase(STEM):
            x = self.z(x)
        maps = []
        with phase(BACK):
            for m in self.d:
                x = m(x)
                maps.append(x)
        p = [lat(m) for lat, m in zip(self.l, maps, strict=True)]
        for i in (1, 0):
            p[i] = p[i] + F.interpolate(p[i + 1], scale_factor=2)
        p = [F.relu(o(m)) for o, m in zip(self.o, p, strict=True)]
        y = sum(F.interpolate(m, p[0].shape[-2:], mode="bilinear") for m in p)
        with phase(HEAD):
            return F.interpolate(self.y(y), size, mode="bilinear", align_corners=False)


@case("vision2.pyramid_segmentation", "vision", SBH, segmentation=True, source=PLAIN)
def _() -> Any:
    return Fpn(), (img(1, 96, 64),)


def suppress(boxes: torch.Tensor, scores: torch.Tensor, most: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    """Non-maximum suppression in a loop of fixed length."""
    area = (boxes[:, 2] - boxes[:, 0]).clamp(min=0) * (boxes[:, 3] - boxes[:, 1]).clamp(min=0)
    left, kept = scores, []
    for _ in range(most):
        best = left.argmax()
        kept.append(best)
        low, high = torch.maximum(boxes[:, :2], boxes[best, :2]), torch.minimum(boxes[:, 2:], boxes[best, 2:])
        inner = (high - low).clamp(min=0).prod(1)
        overlap = inner / (area + area[best] - inner + 1e-6)
        left = torch.where(overlap > 0.5, torch.zeros_like(left), left)
    at = torch.stack(kept)
    return boxes[at], scores[at]


class Grid(nn.Module):
    """A one-stage detector: three scales of cells with anchors, boxes decoded and suppressed by hand."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 12, 3, 2, 1)
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(c, 2 * c, 3, 2, 1, bias=False), nn.BatchNorm2d(2 * c), nn.LeakyReLU(0.1))
            for c in (12, 24, 48)
        )
        self.out = nn.ModuleList(nn.Conv2d(c, 2 * (5 + classes), 1) for c in (48, 96))
        self.register_buffer("anchors", torch.tensor([[12.0, 16.0], [36.0, 24.0]]))

    def forward(self, x: torch.Tensor) -> Any:
        with phase(BACK):
            x = F.leaky_relu(self.first(x), 0.1)
            maps = []
            for m in self.body:
                x = m(x)
                maps.append(x)
        with phase(FIND):
            boxes, scores = [], []
            for m, conv, stride in zip(maps[1:], self.out, (8, 16), strict=True):
                y = conv(m)
                h, wide = y.shape[-2:]
                y = y.view(2, -1, h, wide).permute(2, 3, 0, 1)
                r, c = torch.meshgrid(
                    torch.arange(h, device=x.device), torch.arange(wide, device=x.device), indexing="ij"
                )
                center = (y[..., :2].sigmoid() + torch.stack([c, r], -1)[:, :, None]) * stride
                size = y[..., 2:4].clamp(max=4).exp() * self.anchors
                boxes.append(torch.cat([center - size / 2, center + size / 2], -1).reshape(-1, 4))
                scores.append((y[..., 4:5].sigmoid() * y[..., 5:].softmax(-1)).amax(-1).reshape(-1))
            return suppress(torch.cat(boxes), torch.cat(scores))


@case("vision2.cells_with_anchors", "vision", (BACK, FIND), detection=True, source=PLAIN)
def _() -> Any:
    return Grid(), (img(1, 64),)


class Centers(nn.Module):
    """Objects as peaks of a heat map: the head, max pooling for the peaks, sizes and offsets gathered there."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.b = nn.Sequential(
            nn.Conv2d(3, 16, 7, 2, 3),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, 2, 1),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3, 2, 1),
            nn.ReLU(),
        )
        self.u = nn.ConvTranspose2d(64, 32, 4, 2, 1)
        self.h = nn.ModuleList(
            nn.Sequential(nn.Conv2d(32, 16, 3, 1, 1), nn.ReLU(), nn.Conv2d(16, n, 1)) for n in (classes, 2, 2)
        )

    def forward(self, x: torch.Tensor, k: int = 8) -> Any:
        with phase(BACK):
            x = self.b(x)
        x = F.relu(self.u(x))
        with phase(FIND):
            heat, size, shift = (h(x) for h in self.h)
            heat = heat.sigmoid()
            heat = heat * (heat == F.max_pool2d(heat, 3, 1, 1))
            n, c, hh, ww = heat.shape
            score, at = heat.view(n, -1).topk(k)
            where = at % (hh * ww)
            y, x_ = (where // ww).float(), (where % ww).float()
            pick = where[:, None].expand(-1, 2, -1)
            size, shift = size.view(n, 2, -1).gather(2, pick), shift.view(n, 2, -1).gather(2, pick)
            mid = torch.stack([x_, y], 1) + shift
            return torch.cat([mid - size / 2, mid + size / 2], 1), score, at // (hh * ww)


@case("vision2.centers", "vision", (BACK, FIND), detection=True, source=PLAIN)
def _() -> Any:
    return Centers(), (img(2, 64),)


class Keypoints(nn.Module):
    """Heat maps of joints by transposed convolutions and a soft argmax."""

    def __init__(self, joints: int = 9) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 24, 3, 2, 1), nn.InstanceNorm2d(24), nn.ReLU6())
        self.b = nn.Sequential(
            *(
                nn.Sequential(nn.Conv2d(24 * 2**i, 48 * 2**i, 3, 2, 1), nn.InstanceNorm2d(48 * 2**i), nn.ReLU6())
                for i in range(2)
            )
        )
        self.c = nn.Sequential(
            nn.ConvTranspose2d(96, 48, 4, 2, 1), nn.ReLU6(), nn.ConvTranspose2d(48, 32, 4, 2, 1), nn.ReLU6()
        )
        self.o = nn.Conv2d(32, joints, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(STEM):
            x = self.a(x)
        with phase(BACK):
            x = self.b(x)
        x = self.c(x)
        with phase(HEAD):
            y = self.o(x)
            p = (10 * y).flatten(2).softmax(-1).view_as(y)
            down = torch.linspace(0, 1, y.shape[2], device=y.device)
            across = torch.linspace(0, 1, y.shape[3], device=y.device)
            return torch.stack([(p.sum(2) * across).sum(-1), (p.sum(3) * down).sum(-1)], -1)


@case("vision2.keypoints", "vision", SBH, keypoints=True, source=PLAIN)
def _() -> Any:
    return Keypoints(), (img(2, 64, 48),)


class Flow(nn.Module):
    """Optical flow: shared features of two pictures, a correlation volume over shifts, convolutions to vectors."""

    def __init__(self, d: int = 24, reach: int = 2) -> None:
        super().__init__()
        self.s, self.r = nn.Conv2d(3, d, 7, 2, 3), reach
        self.f = nn.Sequential(nn.LeakyReLU(0.1), nn.Conv2d(d, d, 3, 2, 1), nn.LeakyReLU(0.1), nn.Conv2d(d, d, 3, 1, 1))
        self.h = nn.Sequential(
            nn.Conv2d((2 * reach + 1) ** 2 + d, 32, 3, 1, 1), nn.LeakyReLU(0.1), nn.Conv2d(32, 2, 3, 1, 1)
        )

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        x = torch.cat([a, b])
        with phase(STEM):
            x = self.s(x)
        with phase(BACK):
            x = self.f(x)
        a, b = x.chunk(2)
        h, wide = a.shape[2:]
        padded, reach = F.pad(b, (self.r,) * 4), range(2 * self.r + 1)
        cost = [(a * padded[:, :, i : i + h, j : j + wide]).mean(1) for i in reach for j in reach]
        x = torch.cat([torch.stack(cost, 1), a], 1)
        with phase(HEAD):
            y = self.h(x)
            return 4 * F.interpolate(y, scale_factor=4, mode="bilinear", align_corners=True)


@case("vision2.optical_flow", "vision", SBH, flow=True, source=PLAIN)
def _() -> Any:
    return Flow(), (img(1, 64), img(1, 64))


class Depth(nn.Module):
    """Depth from one picture by inverted residuals, squeeze and excitation, and a decoder with skips."""

    def __init__(self) -> None:
        super().__init__()
        self.i = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.Hardswish())
        self.e = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(c, 4 * c, 1), nn.Hardswish(), nn.Conv2d(4 * c, 4 * c, 5, 2, 2, groups=4 * c), nn.Hardswish()
            )
            for c in (16, 24)
        )
        self.q = nn.ModuleList(
            nn.Sequential(nn.Linear(4 * c, c), nn.ReLU(), nn.Linear(c, 4 * c), nn.Hardsigmoid()) for c in (16, 24)
        )
        self.p = nn.ModuleList(nn.Conv2d(4 * a, b, 1) for a, b in ((16, 24), (24, 40)))
        self.u = nn.ModuleList(nn.Conv2d(a, b, 3, 1, 1) for a, b in ((64, 24), (40, 12)))
        self.o = nn.Conv2d(12, 1, 3, 1, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(STEM):
            x = self.i(x)
        skips = [x]
        with phase(BACK):
            for e, q, p in zip(self.e, self.q, self.p, strict=True):
                y = e(x)
                x = p(y * q(y.mean((2, 3)))[:, :, None, None])
                skips.append(x)
        for u, skip in zip(self.u, (skips[1], skips[0]), strict=True):
            x = F.elu(u(torch.cat([F.interpolate(x, scale_factor=2, mode="nearest"), skip], 1)))
        with phase(HEAD):
            return 1 / (0.1 + torch.sigmoid(self.o(F.interpolate(x, scale_factor=2))))


@case("vision2.depth", "vision", SBH, source=PLAIN)
def _() -> Any:
    return Depth(), (img(1, 64, 96),)


class Siamese(nn.Module):
    """Metric learning: unit vectors of two pictures by one net, their distance."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 16, 5), nn.Conv2d(16, 32, 5), nn.Conv2d(32, 48, 3)
        self.f = nn.Linear(48 * 4, 24)

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        with phase(STEM):
            x = F.relu(self.a(x))
        x = F.max_pool2d(x, 2)
        with phase(BACK):
            x = F.max_pool2d(F.relu(self.b(x)), 2)
            x = F.max_pool2d(F.relu(self.c(x)), 2)
        with phase(HEAD):
            return F.normalize(self.f(x.flatten(1)))

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return F.pairwise_distance(self.embed(a), self.embed(b))


@case("vision2.siamese_digits", "vision", SBH, source=PLAIN)
def _() -> Any:
    return Siamese(), (torch.rand(4, 1, 36, 36), torch.rand(4, 1, 36, 36))


class Video(nn.Module):
    """Convolutions of space and of time apart, on clips."""

    def __init__(self) -> None:
        super().__init__()
        self.i = nn.Sequential(
            nn.Conv3d(3, 12, (1, 7, 7), (1, 2, 2), (0, 3, 3)),
            nn.ReLU(),
            nn.Conv3d(12, 16, (3, 1, 1), padding=(1, 0, 0)),
            nn.ReLU(),
        )
        self.s = nn.ModuleList(nn.Conv3d(16, 16, (1, 3, 3), padding=(0, 1, 1)) for _ in range(3))
        self.t = nn.ModuleList(nn.Conv3d(16, 16, (3, 1, 1), padding=(1, 0, 0)) for _ in range(3))
        self.o = nn.Linear(16, 11)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(STEM):
            x = self.i(x)
        with phase(BACK):
            for s, t in zip(self.s, self.t, strict=True):
                x = F.relu(x + t(F.relu(s(x))))
                x = F.avg_pool3d(x, (1, 2, 2))
        with phase(HEAD):
            return self.o(x.mean((2, 3, 4)))


@case("vision2.space_then_time", "vision", SBH, video=True, source=PLAIN)
def _() -> Any:
    return Video(), (torch.randn(1, 3, 6, 48, 48),)


class Gated(nn.Module):
    """A gated MLP over patches: half of the channels gate the others by a mix over positions."""

    def __init__(self, d: int = 48, n: int = 3, tokens: int = 49) -> None:
        super().__init__()
        self.c = nn.Conv2d(3, d, 8, 8)
        self.u, self.v = (
            nn.ModuleList(nn.Linear(d, 4 * d) for _ in range(n)),
            nn.ModuleList(nn.Linear(2 * d, d) for _ in range(n)),
        )
        self.m, self.b = (
            nn.ParameterList([w(tokens, tokens) for _ in range(n)]),
            nn.ParameterList([nn.Parameter(torch.ones(tokens, 1)) for _ in range(n)]),
        )
        self.l, self.o = nn.ModuleList(nn.LayerNorm(d) for _ in range(n)), nn.Linear(d, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(STEM):
            x = self.c(x).flatten(2).transpose(1, 2)
        with phase(BACK):
            for norm, u, m, b, v in zip(self.l, self.u, self.m, self.b, self.v, strict=True):
                y, z = F.gelu(u(norm(x))).chunk(2, 2)
                x = x + v(y * (m @ F.layer_norm(z, z.shape[-1:]) + b))
        with phase(HEAD):
            return self.o(x.mean(1))


@case("vision2.gated_mlp", "vision", SBH, source=PLAIN)
def _() -> Any:
    return Gated(), (img(2, 56),)


class Upscale(nn.Module):
    """Super resolution: residual convolutions without norms, a long skip, pixel shuffle."""

    def __init__(self, d: int = 20) -> None:
        super().__init__()
        self.a, self.z = nn.Conv2d(3, d, 3, 1, 1), nn.Conv2d(d, 12, 3, 1, 1)
        self.b = nn.ModuleList(nn.ModuleList([nn.Conv2d(d, d, 3, 1, 1), nn.Conv2d(d, d, 3, 1, 1)]) for _ in range(4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(STEM):
            y = self.a(x)
        with phase(BACK):
            z = y
            for p, q in self.b:
                z = z + 0.1 * q(F.relu(p(z)))
            y = y + z
        with phase(HEAD):
            return F.pixel_shuffle(self.z(y), 2) + F.interpolate(x, scale_factor=2, mode="bicubic")


@case("vision2.super_resolution", "vision", SBH, source=PLAIN)
def _() -> Any:
    return Upscale(), (torch.rand(1, 3, 40, 40),)


@case("train2.unfolded_cnn_rmsprop", "vision", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    def loss(m: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(m(x), y)

    return TrainStep(Unfolded(), loss, lambda p: torch.optim.RMSprop(p, 1e-3)), (img(4, 32), torch.randint(10, (4,)))


class Triplets(nn.Module):
    """Gradients accumulated over two batches, clipped, then one step of AdamW."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Siamese()

    def forward(self, a: torch.Tensor, p: torch.Tensor, n: torch.Tensor) -> torch.Tensor:
        opt = torch.optim.AdamW(self.model.parameters(), 1e-3)
        losses = []
        for x in zip(a.chunk(2), p.chunk(2), n.chunk(2), strict=True):
            with phase("train.forward"):
                loss = F.triplet_margin_loss(*(self.model.embed(i) for i in x)) / 2
            with phase("train.backward"):
                loss.backward()
            losses.append(loss.detach())
        with phase("train.optimizer"):
            nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            opt.step()
            opt.zero_grad()
        return torch.stack(losses)


@case("train2.triplets_accumulated", "vision", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    return Triplets(), tuple(torch.rand(4, 1, 36, 36) for _ in range(3))
