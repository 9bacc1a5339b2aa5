"""The cases that whoever writes a recognizer does not look at. See README.md."""

from . import (
    audio,
    diffusion,
    gnn,
    llm,
    multimodal,
    other,
    recsys,
    seq2seq,
    seventh_audio,
    seventh_multimodal,
    seventh_recsys,
    seventh_seq2seq,
    text,
    third,
    third_more,
    third_vision,
    vision,
)  # noqa: F401
