"""The third author's pictures: other families of timm, torchvision and transformers, and nameless nets."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..oracle import phase
from ..parts import Out, TrainStep, adamw, img
from ..registry import split

case = split("blind")
STEM, BACK, HEAD, FIND = (
    "vision.stem",
    "vision.backbone",
    "vision.head",
    "vision.detect",
)
SBH = (STEM, BACK, HEAD)
PLAIN = "plain torch, third author"


def p(*shape: int, s: float = 0.1) -> nn.Parameter:
    """A random weight."""
    return nn.Parameter(torch.randn(*shape) * s)


def spans(
    stem: str | None, back: str, head: str | None = None, find: str | None = None
) -> list[tuple[str, str]]:
    given = ((stem, STEM), (back, BACK), (head, HEAD), (find, FIND))
    return [(pattern, name) for pattern, name in given if pattern is not None]


TIMM = {
    "repvgg": ("repvgg_a0", 96, spans("stem", "stages", "head")),
    "xcit": (
        "xcit_nano_12_p16_224",
        224,
        spans("patch_embed", r"(cls_attn_)?blocks\.\d+", "norm|head"),
    ),
    "edgenext": (
        "edgenext_xx_small",
        128,
        spans("stem", "stages", r"head\.(global_pool|norm|flatten|fc)"),
    ),
    "twins": (
        "twins_svt_small",
        224,
        spans(
            r"patch_embeds\.0",
            r"blocks\.\d+\.\d+|pos_block\.\d+|patch_embeds\.[123]",
            "norm|head",
        ),
    ),
    "rexnet": ("rexnet_100", 96, spans("stem", "features", "head")),
}


def add_timm(name: str) -> None:
    arch, size, where = TIMM[name]

    @case(f"vision3.{name}", "vision", SBH, spans=where, source="timm")
    def make() -> Any:
        import timm

        return timm.create_model(arch, pretrained=False, num_classes=37), (
            img(1, size),
        )


for name in ("repvgg", "xcit", "edgenext", "twins", "rexnet"):
    add_timm(name)


BEIT = dict(
    hidden_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    intermediate_size=192,
    image_size=64,
    patch_size=16,
)


@case(
    "vision3.beit", "vision", SBH,
    spans=spans(
        r"model\.beit\.embeddings\.patch_embeddings\.projection", r"model\.beit\.encoder",
        r"model\.beit\.pooler|model\.classifier",
    ),
)  # fmt: skip
def _() -> Any:
    import transformers as t

    return Out(
        t.BeitForImageClassification(t.BeitConfig(num_labels=12, **BEIT)), "logits"
    ), (img(2, 64),)


@case(
    "vision3.dinov2", "vision", SBH, attn="eager",
    spans=spans(
        r"model\.dinov2\.embeddings\.patch_embeddings", r"model\.dinov2\.encoder", r"model\.dinov2\.layernorm|model\.classifier"
    ),
)  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.Dinov2Config(
        num_labels=9, use_swiglu_ffn=True, attn_implementation="eager", **BEIT
    )
    return Out(t.Dinov2ForImageClassification(config), "logits"), (img(1, 64),)


@case(
    "vision3.focalnet", "vision", SBH,
    spans=spans(
        r"model\.focalnet\.embeddings", r"model\.focalnet\.encoder", r"model\.focalnet\.(layernorm|pooler)|model\.classifier"
    ),
)  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.FocalNetConfig(image_size=64, embed_dim=32, depths=[1, 2, 1], focal_levels=[2, 2, 2], focal_windows=[3, 3, 3],
                              hidden_sizes=[32, 64, 128], num_labels=8)  # fmt: skip
    return Out(t.FocalNetForImageClassification(config), "logits"), (img(1, 64),)


@case(
    "vision3.glpn", "vision", (BACK, HEAD), depth=True,
    spans=spans(None, r"model\.glpn", r"model\.(decoder|head)"),
)  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.GLPNConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[16, 32, 48, 64],
        decoder_hidden_size=16,
        num_attention_heads=[1, 2, 4, 4],
    )
    return Out(t.GLPNForDepthEstimation(config), "predicted_depth"), (img(1, 64),)


@case(
    "vision3.upernet", "vision", (BACK, HEAD), segmentation=True,
    spans=spans(None, r"model\.backbone", r"model\.decode_head"),
)  # fmt: skip
def _() -> Any:
    import transformers as t

    back = t.ConvNextConfig(
        depths=[1, 1, 1, 1],
        hidden_sizes=[16, 24, 32, 48],
        out_features=[f"stage{i}" for i in (1, 2, 3, 4)],
    )
    config = t.UperNetConfig(
        backbone_config=back,
        hidden_size=32,
        num_labels=6,
        use_auxiliary_head=False,
        pool_scales=[1, 2],
    )
    return Out(t.UperNetForSemanticSegmentation(config), "logits"), (img(1, 96),)


class Listed(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> Any:
        return [tuple(each[k] for k in sorted(each)) for each in self.model(list(x))]


@case(
    "vision3.keypoints", "vision", (BACK, FIND), source="torchvision", detection=True,
    spans=spans(None, r"model\.backbone", None, r"model\.rpn|model\.roi_heads"),
)  # fmt: skip
def _() -> Any:
    import torchvision as tv
    from torchvision.models.detection import KeypointRCNN
    from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor

    back = _resnet_fpn_extractor(tv.models.resnet18(weights=None), 5)
    model = KeypointRCNN(back, num_classes=2, num_keypoints=5, min_size=96, max_size=128, box_score_thresh=0.0,
                         rpn_post_nms_top_n_test=20, box_detections_per_img=5)  # fmt: skip
    return Listed(model), (torch.rand(1, 3, 96, 96),)


@case(
    "vision3.mnasnet", "vision", SBH, source="torchvision",
    spans=spans(r"layers\.[012]", r"layers\.(?![012]$)\d+", "classifier"),
)  # fmt: skip
def _() -> Any:
    import torchvision.models as m

    return m.mnasnet0_5(weights=None, num_classes=21), (img(2, 96),)


class Gx(nn.Module):
    """Sets of channels attend to each other; the kernel of each place is computed from its pixel (involution)."""

    def __init__(self, c: int = 24) -> None:
        super().__init__()
        self.i, self.j = (
            p(c, 3, 4, 4),
            nn.ModuleList(nn.Conv2d(c, 9 * 4, 1) for _ in range(3)),
        )
        self.k, self.l = (
            nn.ModuleList(nn.Conv2d(c, 2 * c, 1) for _ in range(3)),
            nn.ModuleList(nn.Conv2d(2 * c, c, 1) for _ in range(3)),
        )
        self.m = p(c, 15)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(STEM):
            x = F.conv2d(x, self.i, stride=4)
        with phase(BACK):
            b, c, h, w = x.shape
            for j, k, l in zip(self.j, self.k, self.l, strict=True):
                y = F.group_norm(x, 4)
                near = F.unfold(y, 3, padding=1).view(b, 4, c // 4, 9, h * w)
                x = x + (near * j(y).view(b, 4, 1, 9, h * w)).sum(3).view(b, c, h, w)
                x = x + l(F.hardswish(k(F.group_norm(x, 4))))
        with phase(HEAD):
            return torch.logsumexp(x.flatten(2), 2) @ self.m


@case("vision3.gx", "vision", SBH, source=PLAIN)
def _() -> Any:
    return Gx(), (img(2, 48),)


class Hy(nn.Module):
    """Three strided convolutions, then attention whose keys are pooled, a class token by cross attention."""

    def __init__(self, d: int = 48) -> None:
        super().__init__()
        self.s = nn.ModuleList(
            nn.Conv2d(a, b, 3, 2, 1, bias=False)
            for a, b in ((3, 16), (16, 32), (32, d))
        )
        self.n = nn.ModuleList(nn.BatchNorm2d(b) for b in (16, 32, d))
        self.q, self.k, self.o = (
            nn.ModuleList(nn.Linear(d, e) for _ in range(3)) for e in (d, 2 * d, d)
        )
        self.u, self.v = (
            nn.ModuleList(nn.Linear(d, 3 * d) for _ in range(3)),
            nn.ModuleList(nn.Linear(3 * d, d) for _ in range(3)),
        )
        self.t, self.c = p(1, 1, d), nn.Linear(d, 17)

    def look(self, i: int, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        q = self.q[i](a).unflatten(2, (3, -1)).transpose(1, 2)
        k, v = self.k[i](b).unflatten(2, (2, 3, -1)).permute(2, 0, 3, 1, 4)
        return self.o[i](
            ((q * 0.25) @ k.mT).softmax(-1).matmul(v).transpose(1, 2).flatten(2)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(STEM):
            x = F.hardswish(self.n[0](self.s[0](x)))
        # Whether these are still the stem may be argued.
        for s, n in zip(self.s[1:], self.n[1:], strict=True):
            x = F.hardswish(n(s(x)))
        with phase(BACK):
            b, d, h, w = x.shape
            y = x.flatten(2).transpose(1, 2)
            for i in range(2):
                z = F.layer_norm(y, (d,))
                small = (
                    F.avg_pool2d(z.transpose(1, 2).reshape(b, d, h, w), 2)
                    .flatten(2)
                    .transpose(1, 2)
                )
                y = y + self.look(i, z, small)
                y = y + self.v[i](F.gelu(self.u[i](F.layer_norm(y, (d,)))))
            t = self.t.expand(b, -1, -1) + self.look(
                2, self.t.expand(b, -1, -1), F.layer_norm(y, (d,))
            )
            t = t + self.v[2](F.gelu(self.u[2](F.layer_norm(t, (d,)))))
        with phase(HEAD):
            return self.c(F.layer_norm(t[:, 0], (d,)))


@case("vision3.hy", "vision", SBH, source=PLAIN)
def _() -> Any:
    return Hy(), (img(1, 64),)


class Nv(nn.Module):
    """Distances to the four sides predicted at each cell of two maps, suppressed by torchvision's operator."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.ModuleList(
            nn.Conv2d(i, o, 3, 2, 1) for i, o in ((3, 16), (16, 24), (24, 32), (32, 48))
        )
        self.b, self.c = (
            nn.ModuleList(nn.Conv2d(n, 4, 1) for n in (32, 48)),
            nn.ModuleList(nn.Conv2d(n, 3, 1) for n in (32, 48)),
        )

    def forward(self, x: torch.Tensor) -> Any:
        import torchvision

        with phase(BACK):
            maps = []
            for a in self.a:
                x = F.mish(a(x))
                maps.append(x)
        with phase(FIND):
            boxes, scores = [], []
            for m, b, c, s in zip(maps[2:], self.b, self.c, (8, 16), strict=True):
                side = F.softplus(b(m)).flatten(2).transpose(1, 2)[0] * s
                h, w = m.shape[2:]
                y = ((torch.arange(h, device=x.device) + 0.5) * s).repeat_interleave(w)
                z = ((torch.arange(w, device=x.device) + 0.5) * s).repeat(h)
                boxes.append(
                    torch.stack(
                        [
                            z - side[:, 0],
                            y - side[:, 1],
                            z + side[:, 2],
                            y + side[:, 3],
                        ],
                        1,
                    )
                )
                scores.append(c(m).sigmoid().flatten(2).amax(1)[0])
            boxes, scores = torch.cat(boxes).clamp(0, 64), torch.cat(scores)
            kept = torchvision.ops.nms(boxes, scores, 0.6)[:5]
            return boxes[kept], scores[kept]


@case("vision3.nv", "vision", (BACK, FIND), detection=True, source=PLAIN)
def _() -> Any:
    return Nv(), (img(1, 64),)


@case("train3.regnet", "vision", TRAIN, mode="train", source="torchvision")
def _() -> Any:
    import torchvision.models as m

    return TrainStep(
        m.regnet_x_400mf(weights=None, num_classes=6), lambda m, x, y: F.cross_entropy(m(x), y, label_smoothing=0.1),
        lambda q: torch.optim.SGD(q, 0.05, momentum=0.9, nesterov=True, weight_decay=1e-4), 1,
    ), (img(2, 64), torch.randint(6, (2,)))  # fmt: skip


@case("train3.gx_views", "vision", TRAIN, mode="train", source=PLAIN)
def _() -> Any:
    def loss(m: nn.Module, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Two views of each picture: their vectors' correlations are to be the identity."""
        u, v = ((z - z.mean(0)) / (z.std(0) + 1e-4) for z in (m(a), m(b)))
        c = u.T @ v / u.shape[0]
        return ((c - torch.eye(c.shape[0], device=c.device)) ** 2).sum()

    x = img(6, 32)
    return TrainStep(Gx(16), loss, adamw), (x + 0.1 * torch.randn_like(x), x.flip(3))
