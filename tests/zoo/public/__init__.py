"""The cases that whoever writes a recognizer may look at, by workload class."""

from . import audio, diffusion, gnn, llm, multimodal, other, recsys, seq2seq, text, torch25, vision  # noqa: F401
from . import (  # noqa: F401
    second_audio,
    second_gnn,
    second_llm,
    second_more,
    second_other,
    second_recsys,
    second_text,
    second_vision,
)
