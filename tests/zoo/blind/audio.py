"""Speech and sound: other families, and plain ones whose names say nothing."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..oracle import phase
from ..parts import VOCABULARY as V
from ..parts import Out, TrainStep, adam, adamw
from ..registry import split
from .multimodal import Block

case = split("blind")
FRONT, ENCODE, DECODE = "audio.frontend", "audio.encode", "audio.decode"
PLAIN = dict(source="plain torch", obfuscated=True)
CONV = dict(
    vocab_size=28, hidden_size=96, num_hidden_layers=2, num_attention_heads=4, intermediate_size=192,
    conv_dim=(48,) * 5, conv_stride=(5, 2, 2, 2, 2), conv_kernel=(10, 3, 3, 3, 2), num_feat_extract_layers=5,
    num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
)  # fmt: skip


def add(kind: str, name: str, path: str, attn: str | None = None, **more: Any) -> None:
    where = [
        (rf"model\.{path}\.feature_extractor", FRONT),
        (rf"model\.{path}\.(encoder|feature_projection)|model\.lm_head", ENCODE),
    ]

    @case(f"audio.{kind}", "audio", (FRONT, ENCODE), spans=where)
    def make() -> Any:
        import transformers as t

        model = getattr(t, f"{name}ForCTC")(getattr(t, f"{name}Config")(**CONV, **more))
        if attn:
            model.set_attn_implementation(attn)
        return Out(model, "logits"), (torch.randn(1, 6000),)


add("unispeech", "UniSpeech", "unispeech", "eager", num_ctc_classes=28)
add("wav2vec2_conformer", "Wav2Vec2Conformer", "wav2vec2_conformer")


@case("audio.moonshine", "audio", (ENCODE, DECODE), spans=[
    (r"model\.model\.encoder", ENCODE), (r"model\.model\.decoder|model\.proj_out", DECODE),
])  # fmt: skip
def _() -> Any:
    import transformers as t

    c = t.MoonshineConfig(
        vocab_size=V, hidden_size=96, intermediate_size=192, encoder_num_hidden_layers=2, decoder_num_hidden_layers=2,
        encoder_num_attention_heads=4, decoder_num_attention_heads=4, max_position_embeddings=128,
    )  # fmt: skip
    model = t.MoonshineForConditionalGeneration(c)
    x = dict(input_values=torch.randn(1, 8000), decoder_input_ids=torch.randint(5, V, (1, 6)))
    return Out(model, "logits"), (), x


class A(nn.Module):
    """Strides over the wave, then attention over frames, letters for each of them."""

    def __init__(self, d: int = 64) -> None:
        super().__init__()
        self.a = nn.ModuleList(
            nn.Conv1d(i, d, k, s) for i, k, s in ((1, 10, 5), (d, 8, 4), (d, 4, 2), (d, 4, 2), (d, 4, 2))
        )
        self.b, self.c = nn.LayerNorm(d), nn.ModuleList(Block(d) for _ in range(3))
        self.d = nn.Linear(d, 30)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(FRONT):
            y = x[:, None]
            for a in self.a:
                y = F.gelu(a(y))
        with phase(ENCODE):
            y = self.b(y.transpose(1, 2))
            for c in self.c:
                y = c(y)
            return self.d(y).log_softmax(-1)


@case("audio.b_letters", "audio", (FRONT, ENCODE), **PLAIN)
def _() -> Any:
    return A(), (torch.randn(1, 12000),)


class B(nn.Module):
    """Gated dilated convolutions on the wave with sums of what each of them skips."""

    def __init__(self, d: int = 32, n: int = 6) -> None:
        super().__init__()
        self.a = nn.Conv1d(1, d, 64, 32)
        self.b = nn.ModuleList(nn.Conv1d(d, 2 * d, 3, padding=2**i, dilation=2**i) for i in range(n))
        self.c = nn.ModuleList(nn.Conv1d(d, 2 * d, 1) for _ in range(n))
        self.d = nn.Linear(d, 11)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with phase(FRONT):
            y = self.a(x)
        with phase(ENCODE):
            s: Any = 0.0
            for b, c in zip(self.b, self.c, strict=True):
                p, q = b(y).chunk(2, 1)
                p, q = c(p.tanh() * q.sigmoid()).chunk(2, 1)
                y, s = y + p, s + q
            return self.d(s.relu().mean(-1))


@case("audio.b_gates", "audio", (FRONT, ENCODE), **PLAIN)
def _() -> Any:
    return B(), (torch.randn(2, 1, 16000),)


class C(nn.Module):
    """Frames of a mel spectrogram are encoded, words are decoded one by one."""

    def __init__(self, d: int = 64) -> None:
        super().__init__()
        self.a, self.b = nn.Conv1d(80, d, 3, padding=1), nn.Conv1d(d, d, 3, 2, 1)
        self.c = nn.ModuleList(Block(d) for _ in range(2))
        self.d, self.e = nn.Embedding(V, d), nn.ModuleList(Block(d) for _ in range(4))
        self.register_buffer("f", torch.randn(256, d) * 0.1)

    def forward(self, x: torch.Tensor, n: int = 4) -> torch.Tensor:
        with phase(ENCODE):
            y = F.gelu(self.b(F.gelu(self.a(x)))).transpose(1, 2)
            y = y + self.f[: y.shape[1]]
            for c in self.c:
                y = c(y)
        t = torch.ones(x.shape[0], 1, dtype=torch.long, device=x.device)
        out = []
        for _ in range(n):
            with phase(DECODE):
                z = self.d(t) + self.f[: t.shape[1]]
                for p, q in zip(self.e[::2], self.e[1::2], strict=True):
                    z = q(p(z, causal=True), y)
                out.append(z[:, -1] @ self.d.weight.T)
            t = torch.cat([t, out[-1].argmax(-1, keepdim=True)], 1)
        return torch.stack(out)


@case("audio.b_words", "audio", (ENCODE, DECODE), **PLAIN)
def _() -> Any:
    return C(), (torch.randn(1, 80, 200),)


@case("train.b_letters", "audio", TRAIN, mode="train", **PLAIN)
def _() -> Any:
    def loss(m: nn.Module, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        z = m(x).transpose(0, 1)
        return F.ctc_loss(z, y, (z.shape[0],) * z.shape[1], (y.shape[1],) * y.shape[0])

    return TrainStep(A(48), loss, adamw, steps=1), (torch.randn(2, 8000), torch.randint(1, 30, (2, 6)))


@case("train.b_gates", "audio", TRAIN, mode="train", **PLAIN)
def _() -> Any:
    return TrainStep(
        B(), lambda m, x, y: F.cross_entropy(m(x), y), adam
    ), (torch.randn(2, 1, 8000), torch.randint(11, (2,)))  # fmt: skip
