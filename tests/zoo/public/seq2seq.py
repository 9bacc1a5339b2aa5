"""Text encoder-decoders."""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from ..labels import TRAIN
from ..oracle import phase
from ..parts import VOCABULARY as V
from ..parts import Generate, TrainStep, adamw, ids, sgd
from ..registry import split

case = split("public")
PHASES = ("seq2seq.encode", "seq2seq.decode")
SPANS = [
    (r"model\.(model\.)?encoder", "seq2seq.encode"),
    (r"model\.(model\.)?decoder|model\.lm_head", "seq2seq.decode"),
]


def model(kind: str) -> nn.Module:
    import transformers as t

    b = dict(
        vocab_size=V, d_model=192, encoder_layers=3, decoder_layers=3, encoder_attention_heads=6,
        decoder_attention_heads=6, encoder_ffn_dim=512, decoder_ffn_dim=512, max_position_embeddings=256,
    )  # fmt: skip
    five = dict(vocab_size=V, d_model=192, d_kv=32, d_ff=512, num_layers=3, num_heads=6, decoder_start_token_id=0)
    return {
        "t5": lambda: t.T5ForConditionalGeneration(t.T5Config(**five)),
        "bart": lambda: t.BartForConditionalGeneration(t.BartConfig(**b)),
        "marian": lambda: t.MarianMTModel(t.MarianConfig(pad_token_id=0, decoder_start_token_id=0, **b)),
        "pegasus": lambda: t.PegasusForConditionalGeneration(t.PegasusConfig(**b)),
        "mbart": lambda: t.MBartForConditionalGeneration(t.MBartConfig(decoder_start_token_id=1, **b)),
        "mt5": lambda: t.MT5ForConditionalGeneration(t.MT5Config(**five)),
    }[kind]().eval()


def add(kind: str, length: int = 48, steps: int = 6, batch: int = 2) -> None:
    @case(f"seq2seq.{kind}.generate", "seq2seq", PHASES, kv="dynamic", spans=SPANS, prompt=length)
    def make() -> Any:
        x = ids(batch, length)
        return Generate(model(kind), steps), (x,), dict(attention_mask=torch.ones_like(x))


for kind in ("t5", "bart", "marian", "pegasus"):
    add(kind)
add("mbart", 7, 5, 1)
add("mt5", 5, 5, 1)


class Translator(nn.Module):
    """nn.Transformer with greedy decoding that recomputes the whole prefix."""

    def __init__(self, d: int = 128) -> None:
        super().__init__()
        self.source = nn.Embedding(V, d)
        self.target = nn.Embedding(V, d)
        self.places = nn.Embedding(128, d)
        self.net = nn.Transformer(d, 4, 2, 2, 256, batch_first=True, dropout=0.0)
        self.out = nn.Linear(d, V)

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.net.encoder(self.source(x) + self.places(torch.arange(x.shape[1], device=x.device)))

    def decode(self, y: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
        t = y.shape[1]
        mask = torch.triu(torch.full((t, t), float("-inf"), device=y.device), 1)
        h = self.target(y) + self.places(torch.arange(t, device=y.device))
        return self.out(self.net.decoder(h, memory, tgt_mask=mask))

    def forward(self, x: torch.Tensor, steps: int = 6) -> torch.Tensor:
        with phase("seq2seq.encode"):
            memory = self.encode(x)
        y = torch.ones(x.shape[0], 1, dtype=torch.long, device=x.device)
        for _ in range(steps):
            with phase("seq2seq.decode"):
                logits = self.decode(y, memory)[:, -1]
            y = torch.cat([y, logits.argmax(-1, keepdim=True)], 1)
        return logits


@case("seq2seq.plain_transformer", "seq2seq", PHASES, source="plain torch")
def _() -> Any:
    return Translator(), (ids(2, 20),)


@case("train.plain_transformer", "seq2seq", TRAIN, mode="train", source="plain torch")
def _() -> Any:
    def loss(m: Translator, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(m.decode(y[:, :-1], m.encode(x)).flatten(0, 1), y[:, 1:].flatten())

    return TrainStep(Translator(), loss, adamw), (ids(4, 20), ids(4, 16))


@case("train.t5", "seq2seq", TRAIN, mode="train")
def _() -> Any:
    return TrainStep(model("t5"), lambda m, x, y: m(input_ids=x, labels=y).loss, sgd), (ids(2, 24), ids(2, 12))
