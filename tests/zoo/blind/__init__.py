"""The cases that whoever writes a recognizer does not look at. See README.md."""

from . import (
    audio,
    diffusion,
    fifth_audio,
    fifth_multimodal,
    fifth_recsys,
    fifth_seq2seq,
    gnn,
    llm,
    multimodal,
    other,
    recsys,
    seq2seq,
    text,
    third,
    third_more,
    third_vision,
    vision,
)  # noqa: F401
