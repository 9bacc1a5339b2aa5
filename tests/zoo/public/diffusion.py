"""Diffusion: denoisers in a sampling loop, latent decoders, and training steps."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..oracle import phase
from ..parts import TrainStep, adamw
from ..registry import split

case = split("public")
DENOISE, VAE = "diffusion.denoise", "diffusion.vae"


def unet_conditional() -> nn.Module:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=16, in_channels=4, out_channels=4, block_out_channels=(64, 128), layers_per_block=1,
        cross_attention_dim=64, attention_head_dim=8, norm_num_groups=16,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )  # fmt: skip


def decoder() -> nn.Module:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(32, 64), norm_num_groups=8, layers_per_block=1,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip


class Ddim(nn.Module):
    def __init__(self, steps: int = 3) -> None:
        super().__init__()
        self.unet = unet_conditional()
        self.steps = steps

    def forward(self, z: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        from diffusers import DDIMScheduler

        scheduler = DDIMScheduler()
        scheduler.set_timesteps(self.steps)
        for t in scheduler.timesteps:
            z = scheduler.step(self.unet(z, t.to(z.device), text).sample, t, z).prev_sample
        return z


@case("diffusion.unet_ddim", "diffusion", (DENOISE,), spans=[("unet", DENOISE)], source="diffusers")
def _() -> Any:
    return Ddim(), (torch.randn(1, 4, 16, 16), torch.randn(1, 12, 64))


class Latent(Ddim):
    """Sampling in the latent space, then the picture from it."""

    def __init__(self) -> None:
        super().__init__(2)
        self.vae = decoder()

    def forward(self, z: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        z = super().forward(z, text)
        with phase(VAE):
            return self.vae.decode(z).sample


@case("diffusion.latent", "diffusion", (DENOISE, VAE), spans=[("unet", DENOISE)], source="diffusers")
def _() -> Any:
    return Latent(), (torch.randn(1, 4, 16, 16), torch.randn(1, 8, 64))


class Decode(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vae = decoder()

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        with phase(VAE):
            return self.vae.decode(z).sample


@case("diffusion.vae_decode", "diffusion", (VAE,), source="diffusers")
def _() -> Any:
    return Decode(), (torch.randn(1, 4, 16, 16),)


class Unconditional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from diffusers import UNet2DModel

        self.unet = UNet2DModel(
            sample_size=16, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8,
            down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        )  # fmt: skip

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        from diffusers import DDPMScheduler

        scheduler = DDPMScheduler()
        scheduler.set_timesteps(3)
        for t in scheduler.timesteps:
            noise = self.unet(z, t.to(z.device)).sample
            # The last step adds no noise; the others would draw it on another device's generator.
            z = scheduler.step(noise, t, z, generator=torch.Generator().manual_seed(0)).prev_sample
        return z


@case("diffusion.unet2d_ddpm", "diffusion", (DENOISE,), spans=[("unet", DENOISE)], source="diffusers")
def _() -> Any:
    return Unconditional(), (torch.randn(1, 3, 16, 16),)


class Flow(nn.Module):
    """Euler steps of a flow along `velocity(z, t)`, a transformer of diffusers."""

    def __init__(self, net: nn.Module, steps: int, **fixed: Any) -> None:
        super().__init__()
        self.net, self.steps = net, steps
        self.fixed = list(fixed)
        for name, value in fixed.items():
            self.register_buffer(name, value)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        for i in range(self.steps):
            t = torch.full((z.shape[0],), 1 - i / self.steps, device=z.device)
            given = {name: getattr(self, name) for name in self.fixed}
            z = z - self.net(z, timestep=t, **given).sample[:, : z.shape[1]] / self.steps
        return z


@case("diffusion.dit", "diffusion", (DENOISE,), spans=[("net", DENOISE)], source="diffusers")
def _() -> Any:
    from diffusers import DiTTransformer2DModel

    net = DiTTransformer2DModel(
        num_attention_heads=4, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=3, sample_size=16,
        norm_num_groups=4,
    )  # fmt: skip
    return Flow(net, 3, class_labels=torch.tensor([7])), (torch.randn(1, 4, 16, 16),)


@case("diffusion.sd3", "diffusion", (DENOISE,), spans=[("net", DENOISE)], source="diffusers")
def _() -> Any:
    from diffusers import SD3Transformer2DModel

    net = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=4,
        joint_attention_dim=48, caption_projection_dim=64, pooled_projection_dim=32, out_channels=4,
        pos_embed_max_size=16,
    )  # fmt: skip
    text = dict(encoder_hidden_states=torch.randn(1, 10, 48), pooled_projections=torch.randn(1, 32))
    return Flow(net, 3, **text), (torch.randn(1, 4, 16, 16),)


@case("diffusion.flux", "diffusion", (DENOISE,), spans=[("net", DENOISE)], source="diffusers")
def _() -> Any:
    from diffusers import FluxTransformer2DModel

    net = FluxTransformer2DModel(
        patch_size=1, in_channels=16, num_layers=1, num_single_layers=2, attention_head_dim=32, num_attention_heads=2,
        joint_attention_dim=48, pooled_projection_dim=32, axes_dims_rope=[8, 12, 12],
    )  # fmt: skip
    given = dict(
        encoder_hidden_states=torch.randn(1, 8, 48), pooled_projections=torch.randn(1, 32),
        img_ids=torch.rand(36, 3), txt_ids=torch.zeros(8, 3),
    )  # fmt: skip
    return Flow(net, 2, **given), (torch.randn(1, 36, 16),)


class Denoiser(nn.Module):
    """A U-Net that knows the noise level by a sinusoidal embedding."""

    def __init__(self, w: int = 32) -> None:
        super().__init__()
        self.w = w
        self.time = nn.Sequential(nn.Linear(w, 2 * w), nn.SiLU(), nn.Linear(2 * w, 2 * w))
        self.inp, self.out = nn.Conv2d(3, w, 3, padding=1), nn.Conv2d(w, 3, 3, padding=1)
        widths = ((w, w), (w, 2 * w), (2 * w, 2 * w), (3 * w, w))
        self.blocks = nn.ModuleList(
            nn.ModuleList(
                [nn.GroupNorm(4, a), nn.Conv2d(a, b, 3, padding=1), nn.Linear(2 * w, b), nn.GroupNorm(4, b),
                 nn.Conv2d(b, b, 3, padding=1), nn.Conv2d(a, b, 1)]
            )
            for a, b in widths
        )  # fmt: skip

    def block(self, i: int, x: torch.Tensor, e: torch.Tensor) -> torch.Tensor:
        n1, c1, t, n2, c2, skip = self.blocks[i]
        h = c1(F.silu(n1(x))) + t(e)[:, :, None, None]
        return c2(F.silu(n2(h))) + skip(x)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        f = torch.exp(-torch.arange(self.w // 2, device=x.device) * (9.0 / (self.w // 2)))
        a = t[:, None].float() * f
        e = self.time(torch.cat([a.sin(), a.cos()], 1))
        h = self.block(0, self.inp(x), e)
        g = self.block(1, F.avg_pool2d(h, 2), e)
        g = F.interpolate(self.block(2, g, e), scale_factor=2.0, mode="nearest")
        return self.out(self.block(3, torch.cat([g, h], 1), e))


class Ddpm(nn.Module):
    """Ancestral sampling by hand."""

    def __init__(self, steps: int = 4) -> None:
        super().__init__()
        self.net, self.steps = Denoiser(), steps
        beta = torch.linspace(1e-3, 0.2, steps)
        self.register_buffer("beta", beta)
        self.register_buffer("left", (1 - beta).cumprod(0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for i in reversed(range(self.steps)):
            eps = self.net(x, torch.full((x.shape[0],), i, device=x.device))
            x = (x - self.beta[i] / (1 - self.left[i]).sqrt() * eps) / (1 - self.beta[i]).sqrt()
            if i:
                x = x + self.beta[i].sqrt() * torch.randn_like(x)
        return x


@case("diffusion.plain_ddpm", "diffusion", (DENOISE,), spans=[("net", DENOISE)], source="plain torch")
def _() -> Any:
    return Ddpm(), (torch.randn(2, 3, 16, 16),)


@case("diffusion.consistency", "diffusion", (DENOISE,), spans=[("net", DENOISE)], source="plain torch")
def _() -> Any:
    class Consistency(nn.Module):
        """Two steps, each from the noise to the picture at once."""

        def __init__(self) -> None:
            super().__init__()
            self.net = Denoiser()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for sigma in (80.0, 2.0):
                t = torch.full((x.shape[0],), sigma, device=x.device)
                skip, scale = 0.25 / (sigma**2 + 0.25), 0.5 * sigma / (sigma**2 + 0.25) ** 0.5
                x = skip * x + scale * self.net(x / (sigma**2 + 0.25) ** 0.5, t)
                x = x.clamp(-1, 1) + 0.1 * torch.randn_like(x)
            return x

    return Consistency(), (torch.randn(1, 3, 16, 16) * 80,)


# Training steps.
@case("train.plain_ddpm", "diffusion", TRAIN, mode="train", source="plain torch")
def _() -> Any:
    def loss(m: nn.Module, x: torch.Tensor, t: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        left = (1 - t.float() / 1000)[:, None, None, None]
        return F.mse_loss(m(left.sqrt() * x + (1 - left).sqrt() * noise, t), noise)

    return TrainStep(Denoiser(), loss, adamw), (
        torch.randn(2, 3, 16, 16), torch.randint(1000, (2,)), torch.randn(2, 3, 16, 16),
    )  # fmt: skip


@case("train.unet_conditional", "diffusion", TRAIN, mode="train", source="diffusers")
def _() -> Any:
    def loss(m: nn.Module, z: torch.Tensor, t: torch.Tensor, text: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        from diffusers import DDPMScheduler

        return F.mse_loss(m(DDPMScheduler().add_noise(z, noise, t), t, text).sample, noise)

    return TrainStep(unet_conditional(), loss, adamw, steps=1), (
        torch.randn(1, 4, 16, 16), torch.tensor([300]), torch.randn(1, 8, 64), torch.randn(1, 4, 16, 16),
    )  # fmt: skip
