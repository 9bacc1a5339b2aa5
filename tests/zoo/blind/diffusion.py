"""Diffusion: other families, and plain ones whose names say nothing."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..oracle import phase
from ..parts import TrainStep, adamw
from ..registry import split
from .multimodal import Block

case = split("blind")
DENOISE, VAE = "diffusion.denoise", "diffusion.vae"
PLAIN = dict(source="plain torch", obfuscated=True)


def wave(t: torch.Tensor, d: int) -> torch.Tensor:
    a = t[:, None].float() * torch.exp(-9.0 * torch.arange(d // 2, device=t.device) / (d // 2))
    return torch.cat([a.cos(), a.sin()], -1)


class A(nn.Module):
    """Patches of noise; the level scales and shifts every norm."""

    def __init__(self, d: int = 64, n: int = 3) -> None:
        super().__init__()
        self.d = d
        self.a, self.b = nn.Conv2d(4, d, 2, 2), nn.Parameter(torch.randn(64, d) * 0.02)
        self.c = nn.Sequential(nn.Linear(d, d), nn.SiLU(), nn.Linear(d, d))
        self.e = nn.ModuleList(nn.Linear(d, 6 * d) for _ in range(n))
        self.f = nn.ModuleList(nn.MultiheadAttention(d, 4, batch_first=True) for _ in range(n))
        self.g = nn.ModuleList(nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d)) for _ in range(n))
        self.h = nn.Linear(d, 16)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        y = self.a(x).flatten(2).transpose(1, 2) + self.b
        c = self.c(wave(t, self.d))
        for e, f, g in zip(self.e, self.f, self.g, strict=True):
            p, q, r, s, u, v = e(F.silu(c))[:, None].chunk(6, -1)
            z = F.layer_norm(y, (self.d,)) * (1 + q) + p
            y = y + r * f(z, z, z, need_weights=False)[0]
            y = y + v * g(F.layer_norm(y, (self.d,)) * (1 + u) + s)
        z = self.h(F.layer_norm(y, (self.d,)))
        return z.view(-1, 8, 8, 2, 2, 4).permute(0, 5, 1, 3, 2, 4).reshape(x.shape)


class B(nn.Module):
    """Straight paths from noise in few steps, with and without the condition."""

    def __init__(self, n: int = 3) -> None:
        super().__init__()
        self.a, self.n = A(), n

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i in range(self.n):
            with phase(DENOISE):
                v = self.a(x, torch.full((x.shape[0],), 1000.0 * (1 - i / self.n), device=x.device))
            x = x - v / self.n
        return x


@case("diffusion.b_paths", "diffusion", (DENOISE,), **PLAIN)
def _() -> Any:
    return B(), (torch.randn(1, 4, 16, 16),)


class C(nn.Module):
    """Down and up with attention in the middle and words to look at; the picture is decoded at the end."""

    def __init__(self, w: int = 32) -> None:
        super().__init__()
        self.w = w
        self.a, self.b = nn.Conv2d(4, w, 3, padding=1), nn.Linear(w, 2 * w)
        self.c, self.d = nn.Conv2d(w, 2 * w, 3, 2, 1), nn.Conv2d(2 * w, 2 * w, 3, padding=1)
        self.e, self.f = Block(2 * w), Block(2 * w)
        self.g, self.h = nn.ConvTranspose2d(2 * w, w, 2, 2), nn.Conv2d(2 * w, 4, 3, padding=1)
        self.i = nn.Sequential(
            nn.Conv2d(4, w, 3, padding=1), nn.SiLU(), nn.Upsample(scale_factor=2), nn.Conv2d(w, w, 3, padding=1),
            nn.GroupNorm(4, w), nn.SiLU(), nn.Upsample(scale_factor=2), nn.Conv2d(w, 3, 3, padding=1),
        )  # fmt: skip

    def eps(self, x: torch.Tensor, t: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        s = self.a(x)
        z = self.c(F.silu(s)) + self.b(wave(t, self.w))[:, :, None, None]
        z = self.d(F.silu(F.group_norm(z, 4)))
        q = z.flatten(2).transpose(1, 2)
        q = self.f(self.e(q), y)
        z = self.g(q.transpose(1, 2).view_as(z))
        return self.h(torch.cat([z, s], 1))

    def forward(self, x: torch.Tensor, y: torch.Tensor, n: int = 3) -> torch.Tensor:
        for i in range(n, 0, -1):
            with phase(DENOISE):
                e = self.eps(x, torch.full((x.shape[0],), 300 * i, device=x.device), y)
            a, b = 1 - i / (n + 1), 1 - (i - 1) / (n + 1)
            x = b**0.5 * (x - (1 - a) ** 0.5 * e) / a**0.5 + (1 - b) ** 0.5 * e
        with phase(VAE):
            return self.i(x)


@case("diffusion.b_words", "diffusion", (DENOISE, VAE), **PLAIN)
def _() -> Any:
    return C(), (torch.randn(1, 4, 16, 16), torch.randn(1, 6, 64))


@case("diffusion.pixart", "diffusion", (DENOISE,), spans=[("net", DENOISE)], source="diffusers")
def _() -> Any:
    from diffusers import DPMSolverMultistepScheduler, PixArtTransformer2DModel

    class Sample(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = PixArtTransformer2DModel(
                num_attention_heads=4, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2,
                cross_attention_dim=64, sample_size=16, patch_size=2, caption_channels=48,
                use_additional_conditions=False,
            )  # fmt: skip

        def forward(self, z: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            scheduler = DPMSolverMultistepScheduler()
            scheduler.set_timesteps(3)
            none = {"resolution": None, "aspect_ratio": None}
            for t in scheduler.timesteps:
                at = t.expand(z.shape[0]).to(z.device)
                e = self.net(z, text, timestep=at, added_cond_kwargs=none).sample[:, :4]
                z = scheduler.step(e, t, z).prev_sample
            return z

    return Sample(), (torch.randn(1, 4, 16, 16), torch.randn(1, 7, 48))


@case("train.b_paths", "diffusion", TRAIN, mode="train", **PLAIN)
def _() -> Any:
    def loss(m: nn.Module, x: torch.Tensor, n: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return F.mse_loss(m((1 - t[:, None, None, None]) * x + t[:, None, None, None] * n, t * 1000), n - x)

    return TrainStep(A(48, 2), loss, adamw), (torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16), torch.rand(2))
