"""Pictures and video: classification, detection, segmentation, and training steps."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..parts import Out, TrainStep, adam, adamw, img
from ..registry import split

case = split("public")
SBH = ("vision.stem", "vision.backbone", "vision.head")
BH = ("vision.backbone", "vision.head")
BD = ("vision.backbone", "vision.detect")


def spans(stem: str | None, backbone: str, head: str | None = None, detect: str | None = None) -> list[tuple[str, str]]:
    """The spans of these path patterns."""
    given = {"stem": stem, "backbone": backbone, "head": head, "detect": detect}
    return [(pattern, f"vision.{name}") for name, pattern in given.items() if pattern is not None]


# torchvision's classifiers.
RESNET = spans("conv1|bn1|relu|maxpool", r"layer\d", "avgpool|fc")
FEATURES = spans(r"features\.0", r"features\.(?!0$)\d+", "avgpool|classifier")
SWIN = spans(r"features\.0", r"features\.(?!0$)\d+", "norm|avgpool|head")
TORCHVISION = {
    "resnet18": RESNET,
    "resnet50": RESNET,
    "resnext50_32x4d": RESNET,
    "mobilenet_v3_small": FEATURES,
    "mobilenet_v2": FEATURES,
    "efficientnet_b0": FEATURES,
    "convnext_tiny": FEATURES,
    "vgg11": spans(r"features\.[01]", r"features\.(?![01]$)\d+", "avgpool|classifier"),
    "squeezenet1_1": spans(r"features\.[01]", r"features\.(?![01]$)\d+", "classifier"),
    "densenet121": spans(
        r"features\.(conv0|norm0|relu0|pool0)", r"features\.(denseblock\d|transition\d|norm5)", "classifier"
    ),
    "swin_t": SWIN,
    "shufflenet_v2_x1_0": spans("conv1|maxpool", r"stage\d|conv5", "fc"),
    "regnet_y_400mf": spans("stem", "trunk_output", "avgpool|fc"),
}


def add_torchvision(arch: str, size: int = 160) -> None:
    @case(f"vision.{arch}", "vision", SBH, spans=TORCHVISION[arch], source="torchvision")
    def make() -> Any:
        import torchvision.models as m

        model = getattr(m, arch)(weights=None)
        if arch == "vgg11":  # its classifier on 7 x 7 alone has 411 MB
            model.avgpool, model.classifier[0] = nn.AdaptiveAvgPool2d(1), nn.Linear(512, 4096)
        return model, (img(2, size),)


for arch in TORCHVISION:
    add_torchvision(arch, 96 if arch in ("densenet121", "convnext_tiny", "swin_t", "resnet50") else 128)

# timm's classifiers.
BLOCKS = spans("patch_embed", "blocks", "norm|fc_norm|head")
TIMM = {
    "vit_tiny": ("vit_tiny_patch16_224", BLOCKS),
    "deit_tiny": ("deit_tiny_distilled_patch16_224", spans("patch_embed", "blocks", "norm|head|head_dist")),
    "mixer": ("mixer_s32_224", spans("stem", "blocks", "norm|head")),
    "cait": ("cait_xxs24_224", spans("patch_embed", "blocks|blocks_token_only", "norm|head")),
    "levit": ("levit_128s", spans("stem", "stages", "head|head_dist")),
    "mobilevit": ("mobilevit_xxs", spans("stem", r"stages|final_conv", "head")),
    "poolformer": ("poolformer_s12", spans("stem", "stages", r"head\.(global_pool|norm|flatten|fc)")),
    "resmlp": ("resmlp_12_224", spans("stem", "blocks", "norm|head")),
    "ghostnet": ("ghostnet_050", spans("conv_stem|bn1", "blocks", "global_pool|conv_head|act2|flatten|classifier")),
}


def add_timm(name: str) -> None:
    arch, where = TIMM[name]

    @case(f"vision.{name}", "vision", SBH, spans=where, source="timm")
    def make() -> Any:
        import timm

        model = timm.create_model(arch, pretrained=False, num_classes=100)
        return model, (torch.randn(1, *model.default_cfg["input_size"]),)


for name in TIMM:
    add_timm(name)


# Detection.
class Detector(nn.Module):
    """Gives torchvision's detectors a list of pictures and flattens what they return."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> Any:
        return [tuple(each[key] for key in sorted(each)) for each in self.model(list(x))]


def add_detector(name: str, function: str, detect: str, size: int = 96, **options: Any) -> None:
    where = spans(None, r"model\.backbone", None, detect)

    @case(f"vision.{name}", "vision", BD, spans=where, source="torchvision", detection=True)
    def make() -> Any:
        import torchvision.models.detection as d

        picked = dict(weights=None, weights_backbone=None, num_classes=5) | options
        model = getattr(d, function)(**picked)
        if not function.startswith("ssd"):
            model.transform.min_size, model.transform.max_size = (size,), 2 * size
        return Detector(model), (torch.rand(1, 3, size, size),)


RCNN = dict(box_score_thresh=0.0, rpn_post_nms_top_n_test=30, box_detections_per_img=8)
HEADS = r"model\.rpn|model\.roi_heads"
HEAD = r"model\.head|model\.anchor_generator"


@case(
    "vision.fasterrcnn", "vision", BD, spans=spans(None, r"model\.backbone", None, HEADS), source="torchvision",
    detection=True,
)  # fmt: skip
def _() -> Any:
    from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn as f

    options = dict(box_score_thresh=0.0, rpn_post_nms_top_n_test=50, box_detections_per_img=10)
    return Detector(f(weights=None, weights_backbone=None, **options)), (torch.rand(1, 3, 256, 256),)


add_detector("maskrcnn", "maskrcnn_resnet50_fpn", HEADS, **RCNN)
add_detector("retinanet", "retinanet_resnet50_fpn", HEAD, score_thresh=0.0, topk_candidates=20, detections_per_img=8)
add_detector("fcos", "fcos_resnet50_fpn", HEAD, score_thresh=0.0, topk_candidates=20, detections_per_img=8)
add_detector(
    "ssdlite", "ssdlite320_mobilenet_v3_large", HEAD, 128, score_thresh=0.0, topk_candidates=20, detections_per_img=8
)

SMALL_RESNET = dict(embedding_size=16, hidden_sizes=[16, 32, 64, 64], depths=[1, 1, 1, 1])
DETR = dict(
    use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, d_model=64, encoder_layers=2,
    decoder_layers=2, encoder_attention_heads=4, decoder_attention_heads=4, encoder_ffn_dim=128, decoder_ffn_dim=128,
    num_queries=10,
)  # fmt: skip


@case(
    "vision.detr", "vision", BD, detection=True,
    spans=spans(
        None, r"model\.model\.backbone", None, r"model\.(class_labels_classifier|bbox_predictor)"
    ),
)  # fmt: skip
def _() -> Any:
    import transformers as t

    backbone = t.ResNetConfig(**SMALL_RESNET, out_features=["stage4"])
    model = t.DetrForObjectDetection(t.DetrConfig(backbone_config=backbone, **DETR))
    return Out(model, "logits", "pred_boxes"), (img(1, 128),)


@case(
    "vision.yolos", "vision", ("vision.stem", *BD), detection=True,
    spans=spans(
        r"model\.vit\.embeddings\.patch_embeddings", r"model\.vit\.encoder",
        None, r"model\.(class_labels_classifier|bbox_predictor)",
    ),
)  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.YolosConfig(
        hidden_size=96, num_hidden_layers=3, num_attention_heads=4, intermediate_size=192, image_size=[96, 96],
        num_detection_tokens=10,
    )  # fmt: skip
    return Out(t.YolosForObjectDetection(config), "logits", "pred_boxes"), (img(1, 96),)


# Segmentation and depth.
@case(
    "vision.segformer", "vision", BH, spans=spans(None, r"model\.segformer", r"model\.decode_head"), segmentation=True
)
def _() -> Any:
    import transformers as t

    config = t.SegformerConfig(num_labels=11, decoder_hidden_size=64)
    return Out(t.SegformerForSemanticSegmentation(config), "logits"), (img(1, 128),)


class Segmenter(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.model(x)["out"]


def add_segmenter(name: str, function: str) -> None:
    where = spans(None, r"model\.backbone", r"model\.classifier")

    @case(f"vision.{name}", "vision", BH, spans=where, source="torchvision", segmentation=True)
    def make() -> Any:
        import torchvision.models.segmentation as s

        return Segmenter(getattr(s, function)(weights=None, weights_backbone=None, num_classes=5)), (img(1, 96),)


add_segmenter("deeplab", "deeplabv3_mobilenet_v3_large")
add_segmenter("fcn", "fcn_resnet50")


class UNet(nn.Module):
    """A segmenter with skips by concatenation."""

    def __init__(self, w: int = 16, classes: int = 4) -> None:
        super().__init__()

        def block(inputs: int, outputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(),
                nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(),
            )  # fmt: skip

        self.stem = nn.Conv2d(3, w, 3, padding=1)
        self.down = nn.ModuleList([block(w, w), block(w, 2 * w), block(2 * w, 4 * w)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(4 * w, 2 * w, 2, 2), nn.ConvTranspose2d(2 * w, w, 2, 2)])
        self.join = nn.ModuleList([block(4 * w, 2 * w), block(2 * w, w)])
        self.head = nn.Conv2d(w, classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        kept = []
        for i, block in enumerate(self.down):
            x = block(x if i == 0 else F.max_pool2d(x, 2))
            kept.append(x)
        for i, (up, join) in enumerate(zip(self.up, self.join, strict=True)):
            x = join(torch.cat([kept[1 - i], up(x)], 1))
        return self.head(x)


@case(
    "vision.plain_unet", "vision", SBH, spans=spans("stem", r"(down|up|join)\.\d+", "head"), source="plain torch",
    segmentation=True,
)  # fmt: skip
def _() -> Any:
    return UNet(), (img(1, 64),)


@case(
    "vision.mask2former", "vision", BH, segmentation=True,
    spans=spans(
        None, r"model\.model\.pixel_level_module\.encoder",
        r"model\.model\.pixel_level_module\.decoder|model\.model\.transformer_module|model\.class_predictor",
    ),
)  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.Mask2FormerConfig(
        backbone_config=t.SwinConfig(
            image_size=96, embed_dim=16, depths=[1, 1, 1, 1], num_heads=[2, 2, 4, 4], window_size=3,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        ),
        use_timm_backbone=False, use_pretrained_backbone=False, feature_size=32, mask_feature_size=32, hidden_dim=32,
        encoder_feedforward_dim=64, encoder_layers=2, decoder_layers=3, num_attention_heads=4, dim_feedforward=64,
        num_queries=8,
    )  # fmt: skip
    model = t.Mask2FormerForUniversalSegmentation(config)
    return Out(model, "class_queries_logits", "masks_queries_logits"), (img(1, 96),)


# Video.
@case("vision.r3d", "vision", SBH, spans=spans("stem", r"layer\d", "avgpool|fc"), source="torchvision", video=True)
def _() -> Any:
    from torchvision.models.video import r3d_18

    return r3d_18(weights=None, num_classes=10), (torch.randn(1, 3, 8, 48, 48),)


@case(
    "vision.videomae", "vision", SBH, video=True,
    spans=spans(
        r"model\.videomae\.embeddings\.patch_embeddings", r"model\.videomae\.encoder", r"model\.(fc_norm|classifier)"
    ),
)  # fmt: skip
def _() -> Any:
    import transformers as t

    config = t.VideoMAEConfig(
        image_size=64, patch_size=16, num_frames=4, hidden_size=96, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=192,
    )  # fmt: skip
    return Out(t.VideoMAEForVideoClassification(config), "logits"), (torch.randn(1, 4, 3, 64, 64),)


# Training steps.
def _entropy(m: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(m(x), y)


@case("train.resnet18", "vision", TRAIN, mode="train", source="torchvision")
def _() -> Any:
    import torchvision.models as m

    return TrainStep(m.resnet18(weights=None, num_classes=10), _entropy), (img(4, 64), torch.randint(10, (4,)))


@case("train.digits_cnn", "vision", TRAIN, mode="train", source="plain torch + sklearn digits")
def _() -> Any:
    from sklearn.datasets import load_digits

    pictures, digits = load_digits(return_X_y=True)
    model = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(256, 10))
    x = torch.tensor(pictures[:128] / 16, dtype=torch.float32).view(-1, 1, 8, 8)
    return TrainStep(model, _entropy, steps=3), (x, torch.tensor(digits[:128]))


@case("train.vit", "vision", TRAIN, mode="train", source="timm")
def _() -> Any:
    import timm

    model = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=3, num_classes=10)
    return TrainStep(model, _entropy, adamw), (img(2, 64), torch.randint(10, (2,)))


@case("train.plain_unet", "vision", TRAIN, mode="train", source="plain torch", segmentation=True)
def _() -> Any:
    return TrainStep(UNet(8), _entropy, adam), (img(2, 32), torch.randint(4, (2, 32, 32)))


@case("train.autoencoder_conv", "vision", TRAIN, mode="train", source="plain torch")
def _() -> Any:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(),
        nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 3, 4, 2, 1),
    )  # fmt: skip
    return TrainStep(model, lambda m, x: F.mse_loss(m(x), x), adam), (img(4, 32),)
