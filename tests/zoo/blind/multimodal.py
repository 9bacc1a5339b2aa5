"""Pictures and text: other families, and plain ones whose names say nothing."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..oracle import phase
from ..parts import VOCABULARY as V
from ..parts import Out, TrainStep, adamw, ids, img
from ..registry import split

case = split("blind")
SEE, READ, FUSE = "mm.vision_encoder", "mm.text_encoder", "mm.fusion"
PLAIN = dict(source="plain torch", obfuscated=True)
TOWER = dict(hidden_size=96, intermediate_size=192, num_hidden_layers=2, num_attention_heads=4)
EYE = dict(image_size=64, patch_size=16, **TOWER)


@case("mm.chinese_clip", "multimodal", (SEE, READ, FUSE), default=FUSE, spans=[
    (r"model\.(vision_model|visual_projection)", SEE), (r"model\.(text_model|text_projection)", READ),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    c = t.ChineseCLIPConfig(
        text_config=dict(vocab_size=V, max_position_embeddings=32, pad_token_id=0, **TOWER), vision_config=EYE,
        projection_dim=48,
    )  # fmt: skip
    x = dict(input_ids=ids(2, 7), pixel_values=img(2, 64), attention_mask=torch.ones(2, 7, dtype=torch.long))
    return Out(t.ChineseCLIPModel(c), "logits_per_image"), (), x


@case("mm.blip2", "multimodal", (SEE, FUSE), spans=[
    (r"model\.vision_model", SEE), (r"model\.(qformer|language_projection|language_model)", FUSE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    c = t.Blip2Config(
        vision_config=EYE, qformer_config=dict(vocab_size=300, encoder_hidden_size=96, **TOWER), num_query_tokens=4,
        text_config=dict(
            model_type="opt", vocab_size=V, hidden_size=96, ffn_dim=192, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=64, word_embed_proj_dim=96,
        ),
        image_token_index=V - 1,
    )  # fmt: skip
    x = ids(1, 11, V - 5)
    x[0, :4] = V - 1
    return (
        Out(t.Blip2ForConditionalGeneration(c), "logits"),
        (),
        dict(pixel_values=img(1, 64), input_ids=x, attention_mask=torch.ones_like(x)),
    )


@case("mm.bridgetower", "multimodal", (READ, SEE, FUSE), spans=[
    (r"model\.text_model\.(embeddings|encoder\.layer\.\d+)", READ),
    (r"model\.vision_model\.visual(\.embeddings|\.ln_pre|\.transformer\.resblocks\.\d+)", SEE),
    (r"model\.(cross_modal\w*)(\.\d+)?", FUSE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    c = t.BridgeTowerConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        text_config=dict(
            vocab_size=V, hidden_size=64, num_hidden_layers=3, num_attention_heads=4, intermediate_size=128,
            max_position_embeddings=40,
        ),
        vision_config=dict(hidden_size=64, num_hidden_layers=3, patch_size=16, image_size=64),
    )  # fmt: skip
    x = dict(
        input_ids=ids(1, 9), attention_mask=torch.ones(1, 9, dtype=torch.long), pixel_values=img(1, 64),
        pixel_mask=torch.ones(1, 64, 64, dtype=torch.long),
    )  # fmt: skip
    return Out(t.BridgeTowerModel(c), "pooler_output"), (), x


def tokens(x: torch.Tensor, conv: nn.Module) -> torch.Tensor:
    return conv(x).flatten(2).transpose(1, 2)


class Block(nn.Module):
    """Attention of `x` to `y` (itself without one), and a small net."""

    def __init__(self, d: int, h: int = 4) -> None:
        super().__init__()
        self.h = h
        self.a, self.b, self.c = nn.Linear(d, d), nn.Linear(d, 2 * d), nn.Linear(d, d)
        self.d, self.e = nn.LayerNorm(d), nn.LayerNorm(d)
        self.f = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))

    def forward(self, x: torch.Tensor, y: torch.Tensor | None = None, causal: bool = False) -> torch.Tensor:
        z = self.d(x)
        k, v = self.b(z if y is None else y).unflatten(-1, (2, self.h, -1)).permute(2, 0, 3, 1, 4)
        q = self.a(z).unflatten(-1, (self.h, -1)).transpose(1, 2)
        w = q @ k.mT * q.shape[-1] ** -0.5
        if causal:
            w = w + torch.full(w.shape[-2:], float("-inf"), device=w.device).triu(1)
        x = x + self.c((w.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return x + self.f(self.e(x))


class A(nn.Module):
    """A question is read, a picture is seen, the one looks at the other."""

    def __init__(self, d: int = 64) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, d, 8, 8), nn.Embedding(V, d)
        self.c, self.d = nn.Parameter(torch.randn(64, d) * 0.02), nn.Parameter(torch.randn(32, d) * 0.02)
        self.e, self.f = nn.ModuleList(Block(d) for _ in range(2)), nn.ModuleList(Block(d) for _ in range(2))
        self.g, self.h = nn.ModuleList(Block(d) for _ in range(2)), nn.Linear(d, 30)

    def forward(self, x: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        with phase(SEE):
            s = tokens(x, self.a)
            s = s + self.c[: s.shape[1]]
            for m in self.e:
                s = m(s)
        with phase(READ):
            t = self.b(q) + self.d[: q.shape[1]]
            for m in self.f:
                t = m(t)
        with phase(FUSE):
            for m in self.g:
                t = m(t, s)
            return self.h(t[:, 0])


@case("mm.b_look", "multimodal", (SEE, READ, FUSE), vqa=True, **PLAIN)
def _() -> Any:
    return A(), (img(2, 64), ids(2, 6))


class B(nn.Module):
    """A small convnet and a recurrent reader meet in one space."""

    def __init__(self, d: int = 64) -> None:
        super().__init__()
        self.a = nn.Sequential(
            nn.Conv2d(3, 24, 5, 2, 2), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 48, 3, 2, 1), nn.BatchNorm2d(48),
            nn.ReLU(), nn.Conv2d(48, 64, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, d),
        )  # fmt: skip
        self.b, self.c = nn.Embedding(V, d), nn.Sequential(Block(d), Block(d))
        self.d, self.e = nn.Linear(d, d), nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        with phase(SEE):
            s = self.a(x)
        with phase(READ):
            r = self.d(self.c(self.b(t)).mean(1))
        with phase(FUSE):
            return self.e.exp() * F.normalize(s, dim=-1) @ F.normalize(r, dim=-1).T


@case("mm.b_meet", "multimodal", (SEE, READ, FUSE), **PLAIN)
def _() -> Any:
    return B(), (img(3, 64), ids(3, 8))


class C(nn.Module):
    """A caption, word after word, from a map of features."""

    def __init__(self, d: int = 64) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(3, 32, 4, 4), nn.GELU(), nn.Conv2d(32, d, 3, 2, 1))
        self.b, self.c = nn.ModuleList(Block(d) for _ in range(2)), nn.Embedding(V, d)
        self.d, self.e = nn.ModuleList(Block(d) for _ in range(2)), nn.ModuleList(Block(d) for _ in range(2))
        self.f = nn.Parameter(torch.randn(16, d) * 0.02)

    def forward(self, x: torch.Tensor, n: int = 4) -> torch.Tensor:
        with phase(SEE):
            s = tokens(x, self.a)
            for m in self.b:
                s = m(s)
        t = torch.ones(x.shape[0], 1, dtype=torch.long, device=x.device)
        out = []
        for _ in range(n):
            with phase(FUSE):
                y = self.c(t) + self.f[: t.shape[1]]
                for p, q in zip(self.d, self.e, strict=True):
                    y = q(p(y, causal=True), s)
                out.append(y[:, -1] @ self.c.weight.T)
            t = torch.cat([t, out[-1].argmax(-1, keepdim=True)], 1)
        return torch.stack(out)


@case("mm.b_word_after_word", "multimodal", (SEE, FUSE), **PLAIN)
def _() -> Any:
    return C(), (img(1, 64),)


class D(nn.Module):
    """Patches and words in one sequence."""

    def __init__(self, d: int = 64) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(3 * 64, d), nn.Embedding(V, d), nn.Embedding(2, d)
        self.d, self.e = nn.ModuleList(Block(d) for _ in range(3)), nn.Linear(d, 5)

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        with phase(SEE):
            s = self.a(x.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2))
        with phase(READ):
            r = self.b(t)
        with phase(FUSE):
            y = torch.cat([r + self.c.weight[0], s + self.c.weight[1]], 1)
            for m in self.d:
                y = m(y)
            return self.e(y[:, 0])


@case("mm.b_one_sequence", "multimodal", (SEE, READ, FUSE), **PLAIN)
def _() -> Any:
    return D(), (img(2, 48), ids(2, 10))


@case("train.b_look", "multimodal", TRAIN, mode="train", **PLAIN)
def _() -> Any:
    return TrainStep(
        A(), lambda m, x, q, y: F.cross_entropy(m(x, q), y), adamw, steps=1
    ), (img(2, 64), ids(2, 6), torch.randint(30, (2,)))  # fmt: skip


@case("train.b_meet", "multimodal", TRAIN, mode="train", **PLAIN)
def _() -> Any:
    def loss(m: nn.Module, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        y = m(x, t)
        i = torch.arange(y.shape[0], device=y.device)
        return (F.cross_entropy(y, i) + F.cross_entropy(y.T, i)) / 2

    return TrainStep(B(), loss, adamw), (img(4, 64), ids(4, 8))
