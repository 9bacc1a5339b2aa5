"""The cases that whoever writes a recognizer may look at, by workload class."""

from . import (  # noqa: F401
    audio,
    diffusion,
    gnn,
    llm,
    multimodal,
    other,
    recsys,
    second_audio,
    second_gnn,
    second_llm,
    second_more,
    second_other,
    second_recsys,
    second_text,
    second_vision,
    seq2seq,
    text,
    torch25,
    vision,
)
