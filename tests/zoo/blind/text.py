"""Bidirectional encoders of other families, and plain ones."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..parts import VOCABULARY as V
from ..parts import Out, TrainStep, adamw, ids
from ..registry import split

case = split("blind")


def add(kind: str, length: int, attn: str | None = None) -> None:
    @case(f"text.{kind}.encode", "text_encoder", ("text.encode",), default="text.encode", prompt=length)
    def make() -> Any:
        import transformers as t

        b = dict(
            vocab_size=V, hidden_size=128, num_hidden_layers=3, num_attention_heads=4, intermediate_size=256,
            max_position_embeddings=130,
        )  # fmt: skip
        model = {
            "mobilebert": lambda: t.MobileBertForMaskedLM(
                t.MobileBertConfig(embedding_size=64, intra_bottleneck_size=64, **b)
            ),
            "roformer": lambda: t.RoFormerForMaskedLM(t.RoFormerConfig(embedding_size=128, **b)),
            "convbert": lambda: t.ConvBertForMaskedLM(t.ConvBertConfig(embedding_size=64, **b)),
            "megatron_bert": lambda: t.MegatronBertForMaskedLM(t.MegatronBertConfig(**b)),
            "camembert": lambda: t.CamembertForTokenClassification(t.CamembertConfig(**b)),
        }[kind]()
        if attn:
            model.set_attn_implementation(attn)
        x = ids(2, length)
        return Out(model, "logits"), (x,), dict(attention_mask=torch.ones_like(x))


add("mobilebert", 24)
add("roformer", 6)
add("convbert", 40)
add("megatron_bert", 8)
add("camembert", 30, "eager")


class A(nn.Module):
    """Norms after; distances between places as learned biases; the first token's vector."""

    def __init__(self, d: int = 96, n: int = 3, h: int = 4, reach: int = 16) -> None:
        super().__init__()
        self.h, self.r = h, reach
        self.a, self.b = nn.Embedding(V, d), nn.Embedding(2 * reach + 1, h)
        self.c = nn.ModuleList(nn.Linear(d, 3 * d) for _ in range(n))
        self.d = nn.ModuleList(nn.Linear(d, d) for _ in range(n))
        self.e = nn.ModuleList(nn.LayerNorm(d) for _ in range(2 * n))
        self.f = nn.ModuleList(nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d)) for _ in range(n))
        self.g = nn.Linear(d, V)

    def forward(self, x: torch.Tensor, m: torch.Tensor) -> torch.Tensor:
        y = self.a(x)
        i = torch.arange(x.shape[1], device=x.device)
        w = self.b((i[None] - i[:, None]).clamp(-self.r, self.r) + self.r).permute(2, 0, 1)
        w = w + (1.0 - m[:, None, None].float()) * -1e4
        for c, d, f, j in zip(self.c, self.d, self.f, range(len(self.c)), strict=True):
            q, k, v = (z.unflatten(-1, (self.h, -1)).transpose(1, 2) for z in c(y).chunk(3, -1))
            g = torch.softmax(q @ k.mT / q.shape[-1] ** 0.5 + w, -1) @ v
            y = self.e[2 * j](y + d(g.transpose(1, 2).flatten(2)))
            y = self.e[2 * j + 1](y + f(y))
        return self.g(y)


@case("text.b_distances", "text_encoder", ("text.encode",), default="text.encode", source="plain torch",
      obfuscated=True)  # fmt: skip
def _() -> Any:
    m = torch.ones(2, 20, dtype=torch.long)
    m[1, 14:] = 0
    return A(), (ids(2, 20), m)


@case("train.b_masked_words", "text_encoder", TRAIN, mode="train", source="plain torch", obfuscated=True)
def _() -> Any:
    def loss(m: nn.Module, x: torch.Tensor, w: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
        y = m(x.masked_fill(at, 4), w)
        return F.cross_entropy(y.flatten(0, 1), x.masked_fill(~at, -100).flatten())

    at = torch.rand(4, 16) < 0.25
    at[:, 0] = True
    return TrainStep(A(64, 2), loss, adamw), (ids(4, 16), torch.ones(4, 16, dtype=torch.long), at)
