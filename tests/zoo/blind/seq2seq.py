"""Encoder-decoders of other families, and plain ones."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..oracle import phase
from ..parts import VOCABULARY as V
from ..parts import Generate, TrainStep, adamw, ids
from ..registry import split

case = split("blind")
PHASES = ("seq2seq.encode", "seq2seq.decode")


def add(kind: str, length: int, encoder: str, decoder: str) -> None:
    spans = [(encoder, PHASES[0]), (decoder, PHASES[1])]

    @case(f"seq2seq.{kind}.generate", "seq2seq", PHASES, spans=spans, prompt=length)
    def make() -> Any:
        import transformers as t

        b = dict(
            vocab_size=V, d_model=128, encoder_layers=2, decoder_layers=2, encoder_attention_heads=4,
            decoder_attention_heads=4, encoder_ffn_dim=256, decoder_ffn_dim=256, max_position_embeddings=128,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
        )  # fmt: skip
        model = {
            "blenderbot": lambda: t.BlenderbotForConditionalGeneration(t.BlenderbotConfig(**b)),
            "m2m_100": lambda: t.M2M100ForConditionalGeneration(t.M2M100Config(**b)),
            "prophetnet": lambda: t.ProphetNetForConditionalGeneration(
                t.ProphetNetConfig(
                    vocab_size=V, hidden_size=96, num_encoder_layers=2, num_decoder_layers=2,
                    num_encoder_attention_heads=4, num_decoder_attention_heads=4, encoder_ffn_dim=192,
                    decoder_ffn_dim=192, max_position_embeddings=128,
                )
            ),
        }[kind]().eval()  # fmt: skip
        x = ids(1, length)
        return Generate(model, 4), (x,), dict(attention_mask=torch.ones_like(x))


add("blenderbot", 6, r"model\.model\.encoder", r"model\.model\.decoder|model\.lm_head")
add("m2m_100", 24, r"model\.model\.encoder", r"model\.model\.decoder|model\.lm_head")
add("prophetnet", 16, r"model\.prophetnet\.encoder", r"model\.prophetnet\.decoder|model\.lm_head")


def look(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, m: torch.Tensor | None = None) -> torch.Tensor:
    w = torch.einsum("bqhd,bkhd->bhqk", q, k) * q.shape[-1] ** -0.5
    w = w if m is None else w + m
    return torch.einsum("bhqk,bkhd->bqhd", w.softmax(-1), v).flatten(2)


class A(nn.Module):
    """Attention in both halves; keys and values over the source are made once, those of the target joined."""

    def __init__(self, d: int = 96, n: int = 2, h: int = 4) -> None:
        super().__init__()
        self.h = h
        self.a, self.b = nn.Embedding(V, d), nn.Embedding(64, d)
        self.c = nn.ModuleList(nn.Linear(d, 3 * d) for _ in range(2 * n))
        self.d = nn.ModuleList(nn.Linear(d, d) for _ in range(3 * n))
        self.e = nn.ModuleList(nn.Linear(d, d) for _ in range(n))
        self.f = nn.ModuleList(nn.Linear(d, 2 * d) for _ in range(n))
        self.g = nn.ModuleList(nn.Sequential(nn.Linear(d, 2 * d), nn.ReLU(), nn.Linear(2 * d, d)) for _ in range(2 * n))
        self.i = nn.ModuleList(nn.LayerNorm(d) for _ in range(5 * n))

    def one(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(x) + self.b.weight[: x.shape[1]]
        n = len(self.e)
        for j in range(n):
            q, k, v = self.c[j](self.i[j](y)).unflatten(-1, (3, self.h, -1)).unbind(2)
            y = y + self.d[j](look(q, k, v))
            y = y + self.g[j](self.i[n + j](y))
        return y

    def two(self, x: torch.Tensor, z: Any, s: Any, o: int) -> Any:
        n, t = len(self.e), x.shape[1]
        y = self.a(x) + self.b.weight[o : o + t]
        m = torch.full((t, o + t), float("-inf"), device=x.device).triu(o + 1) if t > 1 else None
        r = []
        for j in range(n):
            q, k, v = self.c[n + j](self.i[2 * n + j](y)).unflatten(-1, (3, self.h, -1)).unbind(2)
            if s:
                k, v = torch.cat([s[j][0], k], 1), torch.cat([s[j][1], v], 1)
            r.append((k, v))
            y = y + self.d[n + j](look(q, k, v, m))
            q = self.e[j](self.i[3 * n + j](y)).unflatten(-1, (self.h, -1))
            y = y + self.d[2 * n + j](look(q, *z[j]))
            y = y + self.g[n + j](self.i[4 * n + j](y))
        return y @ self.a.weight.T, r

    def over(self, y: torch.Tensor) -> Any:
        return [f(y).unflatten(-1, (2, self.h, -1)).unbind(2) for f in self.f]

    def forward(self, x: torch.Tensor, steps: int = 5) -> torch.Tensor:
        with phase(PHASES[0]):
            y = self.one(x)
        t = torch.ones(x.shape[0], 1, dtype=torch.long, device=x.device)
        out, s = [], None
        for j in range(steps):
            with phase(PHASES[1]):
                if j == 0:
                    z = self.over(y)
                w, s = self.two(t, z, s, j)
            out.append(w[:, -1])
            t = out[-1].argmax(-1, keepdim=True)
        return torch.stack(out)


@case("seq2seq.b_joined", "seq2seq", PHASES, source="plain torch", obfuscated=True)
def _() -> Any:
    return A(), (ids(1, 8),)


class B(nn.Module):
    """Two GRUs and additive attention."""

    def __init__(self, d: int = 80) -> None:
        super().__init__()
        self.a, self.b = nn.Embedding(V, d), nn.Embedding(V, d)
        self.c, self.d = nn.GRU(d, d, batch_first=True, bidirectional=True), nn.GRUCell(3 * d, d)
        self.e, self.f, self.g = nn.Linear(2 * d, d), nn.Linear(d, d), nn.Linear(d, 1, bias=False)
        self.h, self.i = nn.Linear(3 * d, V), nn.Linear(2 * d, d)

    def forward(self, x: torch.Tensor, steps: int = 5) -> torch.Tensor:
        with phase(PHASES[0]):
            y, _ = self.c(self.a(x))
            k = self.e(y)
        t = torch.ones(x.shape[0], dtype=torch.long, device=x.device)
        out: list[torch.Tensor] = []
        for j in range(steps):
            with phase(PHASES[1]):
                if j == 0:
                    s = torch.tanh(self.i(y[:, -1]))
                w = self.g(torch.tanh(k + self.f(s)[:, None])).softmax(1)
                c = (w * y).sum(1)
                s = self.d(torch.cat([self.b(t), c], 1), s)
                out.append(self.h(torch.cat([s, c], 1)))
            t = out[-1].argmax(-1)
        return torch.stack(out)


@case("seq2seq.b_gru_look", "seq2seq", PHASES, source="plain torch", obfuscated=True)
def _() -> Any:
    return B(), (ids(2, 10),)


@case("train.b_joined", "seq2seq", TRAIN, mode="train", source="plain torch", obfuscated=True)
def _() -> Any:
    def loss(m: A, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        w, _ = m.two(y[:, :-1], m.over(m.one(x)), None, 0)
        return F.cross_entropy(w.flatten(0, 1), y[:, 1:].flatten())

    return TrainStep(A(), loss, adamw, steps=1), (ids(3, 12), ids(3, 9))
