"""The third author's recommenders, several modalities, sound, diffusion, graphs, and what is none of these."""

import sys
import types
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..oracle import phase
from ..parts import VOCABULARY as V
from ..parts import Out, TrainStep, adam, adamw, ids, img, mlp
from ..registry import split

case = split("blind")
PLAIN = "plain torch, third author"
LOOKUP, DENSE, CROSS = (
    "recsys.embedding_lookup",
    "recsys.dense_mlp",
    "recsys.interaction",
)
SEE, READ, FUSE = "mm.vision_encoder", "mm.text_encoder", "mm.fusion"
FRONT, HEAR, SAY = "audio.frontend", "audio.encode", "audio.decode"
NOISE, VAE = "diffusion.denoise", "diffusion.vae"
PASS, OTHER = "gnn.message_passing", "other.forward"


def p(*shape: int, s: float = 0.1) -> nn.Parameter:
    """A random weight."""
    return nn.Parameter(torch.randn(*shape) * s)


# Recommenders.
def ctr() -> Any:
    """deepctr_torch.models without its look at the network."""
    quiet = types.ModuleType("deepctr_torch.utils")
    quiet.check_version = lambda _version: None
    sys.modules.setdefault("deepctr_torch.utils", quiet)
    import deepctr_torch.models

    return deepctr_torch.models


def add_ctr(
    name: str, dense: str | None, cross: str | None, phases: tuple[str, ...]
) -> None:
    where = [(r"embedding_dict\.\w+|linear_model\.embedding_dict\.\w+", LOOKUP)]
    where += ([(dense, DENSE)] if dense else []) + ([(cross, CROSS)] if cross else [])

    @case(
        f"recsys3.{name.lower()}",
        "recsys",
        phases,
        spans=where,
        source="deepctr-torch",
        family=name,
    )
    def make() -> Any:
        models = ctr()
        from deepctr_torch.inputs import SparseFeat

        f = [SparseFeat(f"q{i}", 400, embedding_dim=8) for i in range(7)]
        return getattr(models, name)(f, f, task="binary", device="cpu"), (
            torch.randint(400, (48, 7)).float(),
        )


add_ctr(
    "IFM",
    "factor_estimating_net|transform_weight_matrix_P",
    "fm",
    (LOOKUP, DENSE, CROSS),
)
add_ctr("DCNMix", "dnn|dnn_linear|crossnet", None, (LOOKUP, DENSE))


class Named(nn.Module):
    """Gives a torch-rechub model its dictionary of features."""

    def __init__(self, model: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(self, *columns: torch.Tensor) -> torch.Tensor:
        return self.model(dict(zip(self.names, columns, strict=True)))


TABLE = (r"model\.embedding\.embed_dict\.\w+", LOOKUP)


@case(
    "recsys3.dssm", "recsys", (LOOKUP, DENSE), source="torch-rechub", family="DSSM",
    spans=[TABLE, (r"model\.(user|item)_mlp", DENSE)],
)  # fmt: skip
def _() -> Any:
    from torch_rechub.basic.features import SparseFeature
    from torch_rechub.models.matching import DSSM

    u, v = (
        [SparseFeature(f"{a}{i}", vocab_size=300, embed_dim=8) for i in range(3)]
        for a in "uv"
    )
    model = DSSM(u, v, user_params={"dims": [32, 16]}, item_params={"dims": [32, 16]})
    return Named(model, [f.name for f in u + v]), [
        torch.randint(300, (40,)) for _ in range(6)
    ]


@case(
    "recsys3.aitm", "recsys", (LOOKUP, DENSE), source="torch-rechub", family="AITM",
    spans=[TABLE, (r"model\.(bottoms|towers|info_gates)\.\d+", DENSE)],
)  # fmt: skip
def _() -> Any:
    from torch_rechub.basic.features import SparseFeature
    from torch_rechub.models.multi_task import AITM

    f = [SparseFeature(f"c{i}", vocab_size=250, embed_dim=8) for i in range(5)]
    model = AITM(f, 2, {"dims": [32, 16]}, [{"dims": [8]}, {"dims": [8]}])
    return Named(model, [x.name for x in f]), [torch.randint(250, (36,)) for _ in f]


class Qr(nn.Module):
    """Each id's row is the product of a row by its quotient and one by its remainder; two streams, bilinear at the end."""

    def __init__(self, k: int = 6, m: int = 64, d: int = 8) -> None:
        super().__init__()
        self.a, self.b = (
            nn.ParameterList([p(m, d, s=0.5) for _ in range(k)]),
            nn.ParameterList([p(m, d, s=0.5) for _ in range(k)]),
        )
        self.c, self.e, self.m = mlp(k * d, 48, 24), mlp(k * d, 48, 24), m
        self.f = p(4, 6, 6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(LOOKUP):
            hi, lo = x // self.m, x % self.m
            one = [F.embedding(hi[:, i], a) for i, a in enumerate(self.a)]
            two = [F.embedding(lo[:, i], b) for i, b in enumerate(self.b)]
        z = torch.cat(one, 1) * torch.cat(two, 1)
        with phase(DENSE):
            u, v = self.c(z), self.e(z)
        with phase(CROSS):
            u, v = u.unflatten(1, (4, 6)), v.unflatten(1, (4, 6))
            return torch.einsum("bhi,hijo,bhj->bo", u, self.f, v).sigmoid()


@case("recsys3.qr", "recsys", (LOOKUP, DENSE, CROSS), source=PLAIN)
def _() -> Any:
    return Qr(), (torch.randint(64 * 64, (72, 6)),)


class Vw(nn.Module):
    """Bags of several widths brought to one, fields compared pairwise, dense numbers in buckets, two towers of outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.t = nn.ModuleList(
            nn.EmbeddingBag(n, d, mode="sum")
            for n, d in ((5000, 32), (700, 16), (90, 8), (2000, 16))
        )
        self.k = nn.ModuleList(nn.Linear(d, 16, bias=False) for d in (32, 16, 8, 16))
        self.bot, self.top = mlp(4, 32, 16), mlp(10 + 16, 32, 2, last=True)

    def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        with phase(DENSE):
            d = self.bot(z.clamp(min=0).log1p())
        with phase(LOOKUP):
            e = [t(x[:, i]) for i, t in enumerate(self.t)]
        e = [k(v) for k, v in zip(self.k, e, strict=True)]
        s = torch.stack([d, *e], 1)
        with phase(CROSS):
            c = s @ s.mT
            i, j = torch.triu_indices(5, 5, 1, device=z.device)
            c = c[:, i, j]
        with phase(DENSE):
            return self.top(torch.cat([d, c], 1)).sigmoid()


@case("recsys3.vw", "recsys", (DENSE, LOOKUP, CROSS), source=PLAIN)
def _() -> Any:
    return Vw(), (torch.rand(50, 4) * 9, torch.randint(90, (50, 4, 3)))


@case("train3.vw_adagrad", "recsys", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    return TrainStep(
        Vw(), lambda m, z, x, y: F.binary_cross_entropy(m(z, x), y), lambda q: torch.optim.Adagrad(q, 0.02)
    ), (torch.rand(24, 4), torch.randint(90, (24, 4, 2)), torch.rand(24, 2).round())  # fmt: skip


# Several modalities.
T2 = dict(
    hidden_size=96, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4
)


@case(
    "mm3.chinese_clip", "multimodal", (SEE, READ, FUSE), default=FUSE,
    spans=[(r"model\.vision_model|model\.visual_projection", SEE), (r"model\.text_model|model\.text_projection", READ)],
)  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.ChineseCLIPConfig(
        text_config=dict(vocab_size=V, **T2),
        vision_config=dict(image_size=64, patch_size=16, **T2),
        projection_dim=48,
    )
    x = dict(
        input_ids=ids(3, 5),
        pixel_values=img(2, 64),
        attention_mask=torch.ones(3, 5, dtype=torch.long),
    )
    return Out(t.ChineseCLIPModel(config), "logits_per_image"), (), x


@case(
    "mm3.altclip", "multimodal", (READ, SEE, FUSE), default=FUSE, attn="eager",
    spans=[(r"model\.vision_model|model\.visual_projection", SEE), (r"model\.text_model|model\.text_projection", READ)],
)  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.AltCLIPConfig(
        text_config=dict(vocab_size=V, project_dim=48, **T2), vision_config=dict(image_size=64, patch_size=16, **T2),
        projection_dim=48,
    )  # fmt: skip
    x = dict(
        input_ids=ids(2, 6),
        pixel_values=img(2, 64),
        attention_mask=torch.ones(2, 6, dtype=torch.long),
    )
    return Out(t.AltCLIPModel(config), "logits_per_image"), (), x


@case(
    "mm3.smolvlm", "multimodal", (SEE, FUSE),
    spans=[(r"model\.model\.vision_model", SEE), (r"model\.model\.(connector|text_model)|model\.lm_head", FUSE)],
)  # fmt: skip
def _() -> Any:
    import transformers as t

    text = t.LlamaConfig(
        vocab_size=V,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        **T2,
    )
    config = t.SmolVLMConfig(
        vision_config=dict(image_size=64, patch_size=16, **T2),
        text_config=text,
        scale_factor=2,
        image_token_id=V - 1,
    )
    x = ids(1, 9, V - 10)
    x[0, 2:6] = V - 1
    given = dict(
        pixel_values=img(1, 64).unsqueeze(1),
        input_ids=x,
        attention_mask=torch.ones_like(x),
    )
    return Out(t.SmolVLMForConditionalGeneration(config), "logits"), (), given


@case(
    "mm3.pix2struct",
    "multimodal",
    (SEE, FUSE),
    spans=[(r"model\.encoder", SEE), (r"model\.decoder", FUSE)],
)
def _() -> Any:
    import transformers as t

    config = t.Pix2StructConfig(
        text_config=dict(
            vocab_size=V, hidden_size=64, d_kv=16, d_ff=128, num_layers=2, num_heads=4
        ),
        vision_config=dict(
            hidden_size=64,
            patch_embed_hidden_size=768,
            d_ff=128,
            d_kv=16,
            num_hidden_layers=2,
            num_attention_heads=4,
        ),
    )
    patches = torch.cat(
        [torch.randint(1, 20, (1, 24, 2)).float(), torch.randn(1, 24, 768)], 2
    )
    return (
        Out(t.Pix2StructForConditionalGeneration(config), "logits"),
        (),
        dict(
            flattened_patches=patches,
            attention_mask=torch.ones(1, 24),
            decoder_input_ids=ids(1, 6),
        ),
    )


class Fl(nn.Module):
    """A question's GRU scales and shifts the maps of a net over the picture, block by block."""

    def __init__(self, c: int = 24) -> None:
        super().__init__()
        self.w, self.r = nn.Embedding(300, 20), nn.GRU(20, 40, batch_first=True)
        self.e = nn.Sequential(
            nn.Conv2d(3, c, 4, 4),
            nn.ELU(),
            nn.Conv2d(c, c, 3, 1, 1),
            nn.ELU(),
            nn.Conv2d(c, c, 3, 2, 1),
        )
        self.g, self.k = (
            nn.ModuleList(nn.Linear(40, 2 * c) for _ in range(3)),
            nn.ModuleList(nn.Conv2d(c, c, 3, 1, 1) for _ in range(3)),
        )
        self.o = mlp(c, 48, 28, last=True)

    def forward(self, a: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        with phase(READ):
            q = self.r(self.w(a))[1][0]
        with phase(SEE):
            y = self.e(x)
        with phase(FUSE):
            for g, k in zip(self.g, self.k, strict=True):
                u, v = g(q)[:, :, None, None].chunk(2, 1)
                y = y + F.elu((1 + u) * F.instance_norm(k(y)) + v)
            return self.o(y.amax((2, 3)))


@case("mm3.fl", "multimodal", (READ, SEE, FUSE), vqa=True, source=PLAIN)
def _() -> Any:
    return Fl(), (torch.randint(300, (2, 6)), img(2, 48))


@case("train3.fl", "multimodal", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    return TrainStep(Fl(16), lambda m, a, x, y: F.cross_entropy(m(a, x), y), adamw, 1), (
        torch.randint(300, (3, 5)), img(3, 32), torch.randint(28, (3,)),
    )  # fmt: skip


# Sound.
CONV = dict(
    vocab_size=32, hidden_size=96, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192,
    conv_dim=(48,) * 7, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
)  # fmt: skip


def add_speech(name: str, path: str, **more: Any) -> None:
    where = [
        (rf"model\.{path}\.feature_extractor", FRONT), (rf"model\.{path}\.(encoder|feature_projection)|model\.lm_head", HEAR),
    ]  # fmt: skip

    @case(f"audio3.{path}", "audio", (FRONT, HEAR), spans=where)
    def make() -> Any:
        import transformers as t

        config = getattr(t, f"{name}Config")(**dict(CONV, **more))
        return Out(getattr(t, f"{name}ForCTC")(config), "logits"), (
            torch.randn(1, 6400),
        )


add_speech("UniSpeechSat", "unispeech_sat")
add_speech(
    "Wav2Vec2Conformer",
    "wav2vec2_conformer",
    position_embeddings_type="rotary",
    conv_depthwise_kernel_size=7,
)


@case(
    "audio3.moonshine", "audio", (HEAR, SAY), attn="eager",
    spans=[(r"model\.model\.encoder\.(layers\.\d+|layer_norm)", HEAR), (r"model\.model\.decoder|model\.proj_out", SAY)],
)  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.MoonshineConfig(
        vocab_size=V, hidden_size=64, intermediate_size=128, encoder_num_hidden_layers=2, decoder_num_hidden_layers=2,
        encoder_num_attention_heads=4, decoder_num_attention_heads=4, attn_implementation="eager",
    )  # fmt: skip
    model = t.MoonshineForConditionalGeneration(config)

    class Say(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, wave: torch.Tensor) -> torch.Tensor:
            heard = self.model.model.encoder(wave)
            token, past, out = (
                torch.ones(1, 1, dtype=torch.long, device=wave.device),
                None,
                [],
            )
            for _ in range(4):
                r = self.model(
                    encoder_outputs=heard,
                    decoder_input_ids=token,
                    past_key_values=past,
                    use_cache=True,
                )
                past = r.past_key_values
                out.append(r.logits[:, -1])
                token = out[-1].argmax(-1, keepdim=True)
            return torch.stack(out)

    return Say(), (torch.randn(1, 4000),)


class Sx(nn.Module):
    """Learned filters over the wave, energies in decibels, frames through gated convolutions and one attention pool."""

    def __init__(self, c: int = 32) -> None:
        super().__init__()
        self.f, self.g = p(c, 1, 129, s=0.2), p(c, 1, 65, s=0.05)
        self.a, self.b = (
            nn.ModuleList(nn.Conv1d(c, 2 * c, 5, padding=2) for _ in range(3)),
            nn.Linear(c, 1),
        )
        self.z = nn.Linear(c, 11)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(FRONT):
            y = F.conv1d(x.unsqueeze(1), self.f, stride=2, padding=64).square()
            y = F.conv1d(y, self.g.softmax(2), stride=40, padding=32, groups=y.shape[1])
            y = torch.log10(y + 1e-5)
        with phase(HEAR):
            for a in self.a:
                y = y + F.glu(a(F.group_norm(y, 1)), 1)
            y = y.transpose(1, 2)
            return self.z((self.b(y).softmax(1) * y).sum(1))


@case("audio3.sx", "audio", (FRONT, HEAR), source=PLAIN)
def _() -> Any:
    return Sx(), (torch.randn(2, 8000),)


@case("train3.sx", "audio", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    return TrainStep(Sx(), lambda m, x, y: F.cross_entropy(m(x), y), adamw, 1), (
        torch.randn(2, 4000),
        torch.randint(11, (2,)),
    )


# Diffusion.
class Ab(nn.Module):
    """Adams-Bashforth steps through a denoiser of diffusers."""

    def __init__(self, net: nn.Module, steps: int, **given: torch.Tensor) -> None:
        super().__init__()
        self.net, self.steps, self.names = net, steps, list(given)
        for k, v in given.items():
            self.register_buffer(k, v)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        old = None
        for i in range(self.steps):
            t = torch.full((z.shape[0],), 900.0 - 300 * i, device=z.device)
            v = self.net(
                z, timestep=t, **{k: getattr(self, k) for k in self.names}
            ).sample[:, : z.shape[1]]
            z = z - (v if old is None else 1.5 * v - 0.5 * old) / self.steps
            old = v
        return z


@case(
    "diffusion3.pixart",
    "diffusion",
    (NOISE,),
    spans=[("net", NOISE)],
    source="diffusers",
)
def _() -> Any:
    from diffusers import PixArtTransformer2DModel

    net = PixArtTransformer2DModel(
        num_attention_heads=4, attention_head_dim=16, in_channels=4, out_channels=8, num_layers=2, sample_size=16,
        cross_attention_dim=64, caption_channels=32, norm_num_groups=4, use_additional_conditions=False,
    )  # fmt: skip

    class Conditioned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, z: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            for i in range(2):
                t = torch.full((z.shape[0],), 800 - 400 * i, device=z.device)
                e = self.net(
                    z,
                    encoder_hidden_states=text,
                    timestep=t,
                    added_cond_kwargs={"resolution": None, "aspect_ratio": None},
                ).sample
                z = z - 0.5 * e.chunk(2, 1)[0]
            return z

    return Conditioned(), (torch.randn(1, 4, 16, 16), torch.randn(1, 7, 32))


@case(
    "diffusion3.video",
    "diffusion",
    (NOISE,),
    spans=[("net", NOISE)],
    source="diffusers",
    video=True,
)
def _() -> Any:
    from diffusers import UNet3DConditionModel

    net = UNet3DConditionModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(32, 32), layers_per_block=1, norm_num_groups=8,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"), up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=32, attention_head_dim=8,
    )  # fmt: skip
    return Ab(net, 2, encoder_hidden_states=torch.randn(1, 5, 32)), (
        torch.randn(1, 4, 3, 8, 8),
    )


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from diffusers import AutoencoderTiny

        self.v = AutoencoderTiny(
            encoder_block_out_channels=(16, 16), decoder_block_out_channels=(16, 16), num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
        )  # fmt: skip

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        with phase(VAE):
            return self.v.decode(z).sample


@case("diffusion3.tiny_decode", "diffusion", (VAE,), source="diffusers")
def _() -> Any:
    return Small(), (torch.randn(1, 4, 12, 12),)


class Ed(nn.Module):
    """A preconditioned denoiser of matrices over patches; each block's norm is modulated by the noise level."""

    def __init__(self, d: int = 48, n: int = 2, s: int = 4) -> None:
        super().__init__()
        self.i, self.o, self.s = nn.Linear(3 * s * s, d), nn.Linear(d, 3 * s * s), s
        self.q, self.m = (
            nn.ModuleList(nn.Linear(d, 3 * d) for _ in range(n)),
            nn.ModuleList(nn.Linear(d, 6 * d) for _ in range(n)),
        )
        self.r, self.u = (
            nn.ModuleList(nn.Linear(d, d) for _ in range(n)),
            nn.ModuleList(mlp(d, 2 * d, d, last=True) for _ in range(n)),
        )
        self.e, self.at = mlp(16, d, d, last=True), p(1, 16, d)

    def forward(self, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        b, s, c = x.shape[0], self.s, 1 / (sigma**2 + 0.25).sqrt()[:, None, None, None]
        w = sigma.log()[:, None] / 4 * torch.arange(1, 9, device=x.device)
        e = F.silu(self.e(torch.cat([w.sin(), w.cos()], 1)))
        y = (
            (x * c)
            .unflatten(2, (-1, s))
            .unflatten(4, (-1, s))
            .permute(0, 2, 4, 1, 3, 5)
            .flatten(3)
            .flatten(1, 2)
        )
        y = self.i(y) + self.at
        for q, m, r, u in zip(self.q, self.m, self.r, self.u, strict=True):
            a1, b1, g1, a2, b2, g2 = m(e)[:, None].chunk(6, 2)
            h = F.layer_norm(y, y.shape[-1:]) * (1 + a1) + b1
            h, k, v = (
                z.unflatten(2, (4, -1)).transpose(1, 2) for z in q(h).chunk(3, 2)
            )
            y = y + g1 * r(
                ((h @ k.mT) * 0.29).softmax(-1).matmul(v).transpose(1, 2).flatten(2)
            )
            y = y + g2 * u(F.layer_norm(y, y.shape[-1:]) * (1 + a2) + b2)
        side = x.shape[-1] // s
        y = (
            self.o(y)
            .view(b, side, side, 3, s, s)
            .permute(0, 3, 1, 4, 2, 5)
            .reshape(x.shape)
        )
        t = sigma[:, None, None, None]
        return 0.25 * c**2 * x + 0.5 * t * c * y


class Heun(nn.Module):
    """Second-order steps down a schedule of noise levels."""

    def __init__(self) -> None:
        super().__init__()
        self.n = Ed()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        levels = [10.0, 3.0, 0.6, 0.0]
        for a, b in zip(levels, levels[1:], strict=False):
            with phase(NOISE):
                y = self.n(x, torch.full((x.shape[0],), a, device=x.device))
            d = (x - y) / a
            z = x + (b - a) * d
            if b:
                with phase(NOISE):
                    y = self.n(z, torch.full((x.shape[0],), b, device=x.device))
                z = x + (b - a) * 0.5 * (d + (z - y) / b)
            x = z
        return x


@case("diffusion3.heun", "diffusion", (NOISE,), source=PLAIN)
def _() -> Any:
    return Heun(), (torch.randn(2, 3, 16, 16) * 10,)


@case("train3.levels", "diffusion", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    def loss(
        m: nn.Module, x: torch.Tensor, e: torch.Tensor, g: torch.Tensor
    ) -> torch.Tensor:
        s = (g * 1.2 - 1.2).exp()
        y = m(x + s[:, None, None, None] * e, s)
        return (
            ((s**2 + 0.25) / (s * 0.5) ** 2)[:, None, None, None] * (y - x) ** 2
        ).mean()

    return TrainStep(Ed(), loss, adam), (
        torch.randn(3, 3, 16, 16),
        torch.randn(3, 3, 16, 16),
        torch.randn(3),
    )


# Graphs.
def graph(n: int = 120, e: int = 700, d: int = 16) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, d), torch.randint(n, (2, e))


def add_graph(name: str, make: Any) -> None:
    @case(f"gnn3.{name}", "gnn", (PASS,), default=PASS, source="torch_geometric")
    def _() -> Any:
        import torch_geometric.nn as g

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inp, self.convs, self.out = (
                    nn.Linear(16, 32),
                    nn.ModuleList(make(g)),
                    nn.Linear(32, 5),
                )

            def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
                x = self.inp(x)
                for c in self.convs:
                    x = F.elu(c(x, edges))
                return self.out(x)

        return Net(), graph()


add_graph("gatv2", lambda g: [g.GATv2Conv(32, 8, heads=4) for _ in range(2)])
add_graph("appnp", lambda g: [g.APPNP(K=4, alpha=0.1)])
add_graph("edge", lambda g: [g.EdgeConv(mlp(64, 32, 32)) for _ in range(2)])
add_graph(
    "pna",
    lambda g: [
        g.PNAConv(
            32,
            32,
            ["mean", "max", "std"],
            ["identity", "amplification"],
            torch.arange(20),
        )
    ],
)


class Eg(nn.Module):
    """Points and features: messages from squared distances move both; sums of neighbours by index_add_."""

    def __init__(self, d: int = 24) -> None:
        super().__init__()
        self.m, self.c, self.h = (nn.ModuleList(f() for _ in range(3)) for f in (
            lambda: mlp(2 * d + 1, d, d), lambda: mlp(d, d, 1, last=True), lambda: mlp(2 * d, d, d, last=True)))  # fmt: skip

    def forward(self, h: torch.Tensor, x: torch.Tensor, e: torch.Tensor) -> Any:
        i, j = e[0], e[1]
        for m, c, u in zip(self.m, self.c, self.h, strict=True):
            r = x[i] - x[j]
            w = m(torch.cat([h[i], h[j], (r * r).sum(1, keepdim=True)], 1))
            x = x + torch.zeros_like(x).index_add_(0, i, r * c(w).tanh()) / 8
            h = h + u(torch.cat([h, torch.zeros_like(h).index_add_(0, i, w)], 1))
        return h, x


@case("gnn3.eg", "gnn", (PASS,), default=PASS, source=PLAIN)
def _() -> Any:
    return Eg(), (torch.randn(90, 24), torch.randn(90, 3), torch.randint(90, (2, 500)))


@case("train3.eg", "gnn", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    return TrainStep(Eg(16), lambda m, h, x, e, y: F.l1_loss(m(h, x, e)[1], y), adam), (
        torch.randn(40, 16), torch.randn(40, 3), torch.randint(40, (2, 200)), torch.randn(40, 3),
    )  # fmt: skip


# None of these.
def other(name: str, source: str = PLAIN) -> Any:
    return case(f"other3.{name}", "other", (OTHER,), default=OTHER, source=source)


class Rk(nn.Module):
    """A field of velocities integrated by Runge and Kutta's fourth order."""

    def __init__(self, d: int = 6) -> None:
        super().__init__()
        self.f = nn.Sequential(
            nn.Linear(d + 1, 40),
            nn.Tanh(),
            nn.Linear(40, 40),
            nn.Tanh(),
            nn.Linear(40, d),
        )

    def v(self, y: torch.Tensor, t: float) -> torch.Tensor:
        return self.f(torch.cat([y, torch.full_like(y[:, :1], t)], 1))

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        h = 0.2
        for i in range(5):
            a = self.v(y, i * h)
            b = self.v(y + h / 2 * a, (i + 0.5) * h)
            c = self.v(y + h / 2 * b, (i + 0.5) * h)
            y = y + h / 6 * (a + 2 * b + 2 * c + self.v(y + h * c, (i + 1) * h))
        return y


@other("rk")
def _() -> Any:
    return Rk(), (torch.randn(32, 6),)


class Ka(nn.Module):
    """Sums of learned functions of each column: Gaussians on a grid beside a smooth part."""

    def __init__(self, widths: tuple[int, ...] = (9, 16, 3), k: int = 7) -> None:
        super().__init__()
        self.c = nn.ParameterList(
            [p(a, k, b) for a, b in zip(widths, widths[1:], strict=False)]
        )
        self.b = nn.ParameterList(
            [p(a, b, s=0.3) for a, b in zip(widths, widths[1:], strict=False)]
        )
        self.register_buffer("g", torch.linspace(-2, 2, k))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for c, b in zip(self.c, self.b, strict=True):
            x = (
                torch.einsum(
                    "nik,iko->no", torch.exp(-((x[..., None] - self.g) ** 2) * 2), c
                )
                + F.silu(x) @ b
            )
        return x


@other("ka")
def _() -> Any:
    return Ka(), (torch.randn(40, 9),)


class Is(nn.Module):
    """Sparse codes of signals by unrolled shrinkage with learned thresholds."""

    def __init__(self, m: int = 30, n: int = 80) -> None:
        super().__init__()
        self.a, self.t = p(m, n, s=0.18), nn.Parameter(torch.full((6,), 0.1))

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        z = torch.zeros(y.shape[0], self.a.shape[1], device=y.device)
        for t in self.t:
            z = z + 0.1 * (y - z @ self.a.T) @ self.a
            z = torch.sign(z) * F.relu(z.abs() - t)
        return z


@other("is")
def _() -> Any:
    return Is(), (torch.randn(20, 30),)


class Bo(nn.Module):
    """Bodies under gravity, leapfrog steps, and the energy."""

    def __init__(self, n: int = 24) -> None:
        super().__init__()
        self.register_buffer("m", torch.rand(n) + 0.5)

    def pull(self, x: torch.Tensor) -> torch.Tensor:
        r = x[None] - x[:, None]
        return (
            r
            * (self.m[None, :, None] / (r.square().sum(-1, keepdim=True) + 0.1) ** 1.5)
        ).sum(1)

    def forward(self, x: torch.Tensor, v: torch.Tensor) -> Any:
        for _ in range(6):
            v = v + 0.005 * self.pull(x)
            x = x + 0.01 * v
            v = v + 0.005 * self.pull(x)
        return x, v, 0.5 * (self.m * v.square().sum(1)).sum()


@other("bo")
def _() -> Any:
    return Bo(), (torch.randn(24, 3), torch.randn(24, 3) * 0.1)


@other("patchtsmixer", "transformers")
def _() -> Any:
    import transformers as t

    config = t.PatchTSMixerConfig(context_length=64, patch_length=8, patch_stride=8, num_input_channels=3, d_model=16,
                                  num_layers=2, prediction_length=12)  # fmt: skip
    return (
        Out(t.PatchTSMixerForPrediction(config), "prediction_outputs"),
        (),
        dict(past_values=torch.randn(4, 64, 3)),
    )


class Dv(nn.Module):
    """A series is its moving mean and the rest; a line for each."""

    def __init__(self, past: int = 60, ahead: int = 15) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(past, ahead), nn.Linear(past, ahead)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x.transpose(1, 2)
        slow = F.avg_pool1d(F.pad(y, (6, 6), mode="replicate"), 13, 1)
        return (self.a(slow) + self.b(y - slow)).transpose(1, 2)


@other("dv")
def _() -> Any:
    return Dv(), (torch.randn(8, 60, 7),)


class Duel(nn.Module):
    """A generator of vectors and its critic; the loss of both at once, with the sign turned for the generator."""

    def __init__(self) -> None:
        super().__init__()
        self.g, self.d = mlp(8, 32, 12, last=True), mlp(12, 32, 1, last=True)

    def forward(self, z: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        fake = self.g(z)
        return (
            F.softplus(-self.d(x)).mean()
            + F.softplus(self.d(fake.detach())).mean()
            + F.softplus(-self.d(fake)).mean()
        )


@case("train3.duel", "other", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    return TrainStep(
        Duel(), lambda m, z, x: m(z, x), lambda q: torch.optim.Adamax(q, 2e-3)
    ), (torch.randn(30, 8), torch.randn(30, 12))
