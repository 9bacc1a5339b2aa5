"""Vision models of other families, and plain ones whose names say nothing."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..oracle import phase
from ..parts import Out, TrainStep, adam, adamw, img, sgd
from ..registry import split

case = split("blind")
STEM, BACK, HEAD, DETECT = "vision.stem", "vision.backbone", "vision.head", "vision.detect"
SBH = (STEM, BACK, HEAD)
PLAIN = dict(source="plain torch", obfuscated=True)


# timm and torchvision.
def add(name: str, arch: str, stem: str, back: str, head: str, source: str = "timm", size: int = 0) -> None:
    @case(f"vision.{name}", "vision", SBH, spans=[(stem, STEM), (back, BACK), (head, HEAD)], source=source)
    def make() -> Any:
        if source == "torchvision":
            import torchvision.models as m

            return getattr(m, arch)(weights=None, num_classes=20), (img(1, size),)
        import timm

        model = timm.create_model(arch, pretrained=False, num_classes=20)
        return model, (img(1, size or model.default_cfg["input_size"][1]),)


add("xcit", "xcit_nano_12_p16_224", "patch_embed", r"blocks\.\d+|cls_attn_blocks\.\d+", "norm|head")
add("davit", "davit_tiny", "stem", "stages", r"norm_pre|head\.(norm|global_pool|flatten|fc)", size=96)
add("edgenext", "edgenext_xx_small", "stem", "stages", r"norm_pre|head\.(norm|global_pool|flatten|fc)|head")
add("repvgg", "repvgg_a0", "stem", "stages", r"final_conv|head", size=96)
add("nfnet", "nfnet_l0", "stem", "stages", "final_conv|final_act|head", size=96)
add("mnasnet", "mnasnet0_5", r"layers\.[0-7]", r"layers\.([89]|1[0-6])", "classifier", "torchvision", 96)


@case("vision.dinov2", "vision", SBH, spans=[
    (r"model\.dinov2\.embeddings\.patch_embeddings", STEM), (r"model\.dinov2\.encoder", BACK),
    (r"model\.dinov2\.layernorm|model\.classifier", HEAD),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    c = t.Dinov2Config(
        hidden_size=96, num_hidden_layers=3, num_attention_heads=4, image_size=84, patch_size=14, num_labels=9
    )
    model = t.Dinov2ForImageClassification(c)
    model.set_attn_implementation("eager")
    return Out(model, "logits"), (img(2, 84),)


@case("vision.focalnet", "vision", SBH, spans=[
    (r"model\.focalnet\.embeddings\.patch_embeddings", STEM), (r"model\.focalnet\.encoder", BACK),
    (r"model\.focalnet\.(layernorm|pooler)|model\.classifier", HEAD),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    c = t.FocalNetConfig(
        image_size=64, embed_dim=24, depths=[1, 2], hidden_sizes=[24, 48], focal_levels=[2, 2], focal_windows=[3, 3]
    )
    return Out(t.FocalNetForImageClassification(c), "logits"), (img(1, 64),)


@case("vision.dpt", "vision", (BACK, HEAD), depth=True, spans=[
    (r"model\.dpt", BACK), (r"model\.(neck|head)", HEAD),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    c = t.DPTConfig(
        hidden_size=64, num_hidden_layers=4, num_attention_heads=4, intermediate_size=128, image_size=64, patch_size=16,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[16, 24, 32, 48], fusion_hidden_size=24, is_hybrid=False,
    )  # fmt: skip
    return Out(t.DPTForDepthEstimation(c), "predicted_depth"), (img(1, 64),)


@case("vision.deformable_detr", "vision", (BACK, DETECT), detection=True, spans=[
    (r"model\.model\.backbone", BACK),
    (r"model\.(class_embed|bbox_embed)\.\d+", DETECT),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    b = t.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32, 48, 64], depths=[1] * 4, out_features=["stage2", "stage3", "stage4"]
    )
    c = t.DeformableDetrConfig(
        use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=b, d_model=64,
        encoder_layers=1, decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=96,
        decoder_ffn_dim=96, num_queries=8,
    )  # fmt: skip
    return Out(t.DeformableDetrForObjectDetection(c), "logits", "pred_boxes"), (img(1, 96),)


# Plain models.
class A(nn.Module):
    """Patches by unfold and a linear layer."""

    def __init__(self, d: int = 96, n: int = 3, h: int = 4) -> None:
        super().__init__()
        self.h = h
        self.a = nn.Linear(3 * 64, d)
        self.b = nn.Parameter(torch.randn(1, 65, d) * 0.02)
        self.c = nn.Parameter(torch.zeros(1, 1, d))
        self.d = nn.ModuleList(
            nn.ModuleList(
                [nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.Linear(d, d), nn.LayerNorm(d), nn.Linear(d, 2 * d),
                 nn.Linear(2 * d, d)]
            )
            for _ in range(n)
        )  # fmt: skip
        self.e, self.f = nn.LayerNorm(d), nn.Linear(d, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(STEM):
            y = self.a(F.unfold(x, 8, stride=8).transpose(1, 2))
        y = torch.cat([self.c.expand(y.shape[0], -1, -1), y], 1) + self.b
        with phase(BACK):
            for l1, qkv, pr, l2, f1, f2 in self.d:
                q, k, v = qkv(l1(y)).unflatten(-1, (3, self.h, -1)).permute(2, 0, 3, 1, 4)
                w = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, -1)
                y = y + pr((w @ v).transpose(1, 2).flatten(2))
                y = y + f2(F.gelu(f1(l2(y))))
        with phase(HEAD):
            return self.f(self.e(y)[:, 0])


@case("vision.b_unfold", "vision", SBH, **PLAIN)
def _() -> Any:
    return A(), (img(2, 64),)


class B(nn.Module):
    """Residual convolutions without norms; a learned scale on each branch."""

    def __init__(self, w: int = 24, n: int = 4) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, w, 5, 2, 2)
        widths = [w * 2 ** (i // 2) for i in range(n + 1)]
        self.b = nn.ModuleList(
            nn.ModuleList(
                [nn.Conv2d(p, q, 3, 1 + (p != q), 1), nn.Conv2d(q, q, 3, 1, 1), nn.Conv2d(p, q, 1, 1 + (p != q))]
            )
            for p, q in zip(widths, widths[1:], strict=False)
        )
        self.c = nn.Parameter(torch.full((n,), 0.2))
        self.d = nn.Linear(widths[-1], 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(STEM):
            x = F.leaky_relu(self.a(x), 0.1)
        with phase(BACK):
            for (p, q, r), s in zip(self.b, self.c, strict=True):
                x = F.leaky_relu(r(x) + s * q(F.leaky_relu(p(x), 0.1)), 0.1)
        with phase(HEAD):
            return self.d(x.mean((2, 3)))


@case("vision.b_no_norm", "vision", SBH, **PLAIN)
def _() -> Any:
    return B(), (img(2, 64),)


class C(nn.Module):
    """Depthwise and pointwise convolutions on patches."""

    def __init__(self, d: int = 64, n: int = 4) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, d, 4, 4), nn.GELU(), nn.BatchNorm2d(d))
        self.b = nn.ModuleList(
            nn.Sequential(nn.Conv2d(d, d, 7, padding=3, groups=d), nn.GELU(), nn.BatchNorm2d(d)) for _ in range(n)
        )
        self.c = nn.ModuleList(nn.Sequential(nn.Conv2d(d, d, 1), nn.GELU(), nn.BatchNorm2d(d)) for _ in range(n))
        self.d = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(d, 15))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(STEM):
            x = self.a(x)
        with phase(BACK):
            for p, q in zip(self.b, self.c, strict=True):
                x = q(x + p(x))
        with phase(HEAD):
            return self.d(x)


@case("vision.b_mix", "vision", SBH, **PLAIN)
def _() -> Any:
    return C(), (img(1, 64),)


class D(nn.Module):
    """Down by strides, up by nearest neighbours, sums across; a map of classes."""

    def __init__(self, w: int = 16) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, w, 3, padding=1)
        self.b = nn.ModuleList(nn.Conv2d(w * 2**i, w * 2 ** (i + 1), 3, 2, 1) for i in range(3))
        self.c = nn.ModuleList(nn.Conv2d(w * 2 ** (i + 1), w * 2**i, 3, padding=1) for i in range(3))
        self.d = nn.ModuleList(nn.GroupNorm(4, w * 2 ** (i + 1)) for i in range(3))
        self.e = nn.Conv2d(w, 6, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(STEM):
            x = F.silu(self.a(x))
        with phase(BACK):
            s = [x]
            for b, d in zip(self.b, self.d, strict=True):
                s.append(F.silu(d(b(s[-1]))))
            x = s.pop()
            for c in reversed(self.c):
                x = F.silu(c(F.interpolate(x, scale_factor=2.0))) + s.pop()
        with phase(HEAD):
            return self.e(x)


@case("vision.b_down_up", "vision", SBH, segmentation=True, **PLAIN)
def _() -> Any:
    return D(), (img(1, 64),)


class E(nn.Module):
    """Windows of places attend among themselves, every other layer on a rolled map; merged by halves."""

    def __init__(self, d: int = 48, w: int = 4, h: int = 4) -> None:
        super().__init__()
        self.w, self.h = w, h
        self.a = nn.Conv2d(3, d, 4, 4)
        dims = [d, d, 2 * d, 2 * d]
        self.b = nn.ModuleList(nn.ModuleList([nn.LayerNorm(c), nn.Linear(c, 3 * c), nn.Linear(c, c)]) for c in dims)
        self.c = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(c), nn.Linear(c, 2 * c), nn.GELU(), nn.Linear(2 * c, c)) for c in dims
        )
        self.d = nn.Linear(4 * d, 2 * d)
        self.e, self.f = nn.LayerNorm(2 * d), nn.Linear(2 * d, 8)

    def near(self, y: torch.Tensor, i: int) -> torch.Tensor:
        n, q, o = self.b[i]
        b, s, _, c = y.shape
        w = self.w
        z = n(y)
        z = z.roll((-w // 2, -w // 2), (1, 2)) if i % 2 else z
        z = z.view(b, s // w, w, s // w, w, c).transpose(2, 3).reshape(-1, w * w, c)
        p, k, v = q(z).unflatten(-1, (3, self.h, -1)).permute(2, 0, 3, 1, 4)
        z = F.scaled_dot_product_attention(p, k, v).transpose(1, 2).flatten(2)
        z = o(z).view(b, s // w, s // w, w, w, c).transpose(2, 3).reshape(b, s, s, c)
        return z.roll((w // 2, w // 2), (1, 2)) if i % 2 else z

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(STEM):
            y = self.a(x).permute(0, 2, 3, 1)
        with phase(BACK):
            for i in range(4):
                if i == 2:
                    y = self.d(torch.cat([y[:, a::2, b::2] for a in (0, 1) for b in (0, 1)], -1))
                y = y + self.near(y, i)
                y = y + self.c[i](y)
        with phase(HEAD):
            return self.f(self.e(y).mean((1, 2)))


@case("vision.b_windows", "vision", SBH, **PLAIN)
def _() -> Any:
    return E(), (img(1, 64),)


class G(nn.Module):
    """One shot: boxes and classes at each place of two maps, then suppression."""

    def __init__(self, w: int = 24, k: int = 4) -> None:
        super().__init__()
        self.k = k

        def step(p: int, q: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(p, q, 3, 2, 1, bias=False), nn.BatchNorm2d(q), nn.ReLU6())

        self.a = nn.Sequential(step(3, w), step(w, 2 * w), step(2 * w, 2 * w))
        self.b = step(2 * w, 4 * w)
        self.c = nn.ModuleList(nn.Conv2d(n, 5 + k, 3, padding=1) for n in (2 * w, 4 * w))

    def forward(self, x: torch.Tensor) -> Any:
        from torchvision.ops import nms

        with phase(BACK):
            y = self.a(x)
            z = self.b(y)
        with phase(DETECT):
            boxes, scores = [], []
            for c, m, stride in zip(self.c, (y, z), (8, 16), strict=True):
                p = c(m).permute(0, 2, 3, 1)
                r = torch.arange(m.shape[-1], device=x.device) * stride + stride // 2
                at = torch.stack(torch.meshgrid(r, r, indexing="xy"), -1)
                mid = at + p[0, ..., :2].tanh() * stride
                half = p[0, ..., 2:4].exp() * stride
                boxes.append(torch.cat([mid - half, mid + half], -1).view(-1, 4))
                scores.append((p[0, ..., 4:5].sigmoid() * p[0, ..., 5:].softmax(-1)).view(-1, self.k))
            box, (score, kind) = torch.cat(boxes), torch.cat(scores).max(-1)
            keep = nms(box + kind[:, None] * 1000.0, score, 0.5)[:10]
            return box[keep], score[keep], kind[keep]


@case("vision.b_one_shot", "vision", (BACK, DETECT), detection=True, **PLAIN)
def _() -> Any:
    return G(), (img(1, 64),)


class H(nn.Module):
    """Clips: space and time convolve apart, then squeeze and scale."""

    def __init__(self, w: int = 24) -> None:
        super().__init__()
        self.a = nn.Conv3d(3, w, (1, 5, 5), (1, 2, 2), (0, 2, 2))
        self.b = nn.ModuleList(nn.Conv3d(w, w, (1, 3, 3), (1, 2, 2), (0, 1, 1)) for _ in range(3))
        self.c = nn.ModuleList(nn.Conv3d(w, w, (3, 1, 1), padding=(1, 0, 0)) for _ in range(3))
        self.d = nn.ModuleList(
            nn.Sequential(nn.Linear(w, 8), nn.ReLU(), nn.Linear(8, w), nn.Sigmoid()) for _ in range(3)
        )
        self.e = nn.Linear(w, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(STEM):
            x = self.a(x).relu()
        with phase(BACK):
            for b, c, d in zip(self.b, self.c, self.d, strict=True):
                x = c(b(x).relu()).relu()
                x = x * d(x.mean((2, 3, 4)))[:, :, None, None, None]
        with phase(HEAD):
            return self.e(x.amax((2, 3, 4)))


@case("vision.b_clips", "vision", SBH, video=True, **PLAIN)
def _() -> Any:
    return H(), (torch.randn(1, 3, 8, 48, 48),)


# Training steps.
def _entropy(m: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(m(x), y)


for name, make, opt in (("unfold", A, adamw), ("no_norm", B, sgd), ("mix", C, adam)):

    @case(f"train.b_{name}", "vision", TRAIN, mode="train", **PLAIN)
    def _(make: Any = make, opt: Any = opt) -> Any:
        return TrainStep(make(), _entropy, opt), (img(2, 64), torch.randint(8, (2,)))
