"""Bidirectional text encoders."""

from typing import Any

import torch
from torch import nn

from ..labels import TRAIN
from ..parts import VOCABULARY as V
from ..parts import Out, TrainStep, adam, ids
from ..registry import split

case = split("public")


def model(kind: str) -> nn.Module:
    """A small encoder with a head; its output has `logits`."""
    import transformers as t

    b = dict(
        vocab_size=V, hidden_size=192, num_hidden_layers=4, num_attention_heads=6, intermediate_size=768,
        max_position_embeddings=514,
    )  # fmt: skip
    return {
        "bert": lambda: t.BertForSequenceClassification(t.BertConfig(**b)),
        "distilbert": lambda: t.DistilBertForTokenClassification(
            t.DistilBertConfig(vocab_size=V, dim=192, n_layers=3, n_heads=6, hidden_dim=768)
        ),
        "roberta": lambda: t.RobertaForMaskedLM(t.RobertaConfig(**b)),
        "albert": lambda: t.AlbertForMaskedLM(t.AlbertConfig(embedding_size=64, **b)),
        "electra": lambda: t.ElectraForPreTraining(t.ElectraConfig(embedding_size=64, **b)),
        "deberta_v2": lambda: t.DebertaV2ForSequenceClassification(
            t.DebertaV2Config(relative_attention=True, pos_att_type=["p2c", "c2p"], **b)
        ),
        "modernbert": lambda: t.ModernBertForMaskedLM(
            t.ModernBertConfig(attn_implementation="sdpa", reference_compile=False, pad_token_id=0, **b)
        ),
        "mpnet": lambda: t.MPNetForMaskedLM(t.MPNetConfig(**b)),
        "longformer": lambda: t.LongformerForMaskedLM(t.LongformerConfig(attention_window=16, **b)),
        "fnet": lambda: t.FNetForMaskedLM(
            t.FNetConfig(vocab_size=V, hidden_size=192, num_hidden_layers=3, intermediate_size=512)
        ),
        "esm": lambda: t.EsmForMaskedLM(
            t.EsmConfig(mask_token_id=4, pad_token_id=1, position_embedding_type="rotary", **dict(b, vocab_size=33))
        ),
    }[kind]()


def add(kind: str, length: int = 64, vocabulary: int = V) -> None:
    @case(f"text.{kind}.encode", "text_encoder", ("text.encode",), default="text.encode")
    def make() -> Any:
        x = ids(2, length, vocabulary)
        return Out(model(kind), "logits"), (x,), {} if kind == "fnet" else dict(attention_mask=torch.ones_like(x))


for kind in ("bert", "distilbert", "roberta", "albert", "electra", "deberta_v2", "modernbert", "longformer", "fnet"):
    add(kind)
add("mpnet", 7)
add("esm", 40, 24)


@case("text.bert_eager.encode", "text_encoder", ("text.encode",), default="text.encode", family="bert", attn="eager")
def _() -> Any:
    import transformers as t

    config = t.BertConfig(
        vocab_size=V, hidden_size=128, num_hidden_layers=3, num_attention_heads=4, intermediate_size=512
    )
    config._attn_implementation = "eager"
    return Out(t.BertModel(config), "last_hidden_state", "pooler_output"), (ids(1, 6),)


class Sentence(nn.Module):
    """PyTorch's own encoder with mean pooling over the mask, as sentence encoders do."""

    def __init__(self, d: int = 128) -> None:
        super().__init__()
        self.words = nn.Embedding(V, d, padding_idx=0)
        self.places = nn.Embedding(128, d)
        layer = nn.TransformerEncoderLayer(d, 4, 256, batch_first=True, norm_first=True, dropout=0.0)
        self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pad = x == 0
        y = self.words(x) + self.places(torch.arange(x.shape[1], device=x.device))
        y = self.encoder(y, src_key_padding_mask=pad)
        keep = (~pad).unsqueeze(-1).float()
        return nn.functional.normalize((y * keep).sum(1) / keep.sum(1), dim=-1)


@case("text.plain_sentence", "text_encoder", ("text.encode",), default="text.encode", source="plain torch")
def _() -> Any:
    x = ids(3, 24)
    x[1, 15:] = 0
    return Sentence(), (x,)


@case("train.bert", "text_encoder", TRAIN, mode="train")
def _() -> Any:
    return TrainStep(
        model("bert"), lambda m, x, y: nn.functional.cross_entropy(m(x).logits, y), adam
    ), (ids(4, 24), torch.randint(2, (4,)))  # fmt: skip
