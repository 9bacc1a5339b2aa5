"""transformers: mixed precision in TrainingArguments, pipelines, and caches that lie on the CPU between
their uses."""

import functools
from types import ModuleType
from typing import Any

from genie.integrations import replace
from genie.integrations._asked import NAME, is_asked_for


def add_half_precision(import_utils: ModuleType) -> None:
    """`TrainingArguments(bf16=True)` asks whether "the GPU" has bfloat16."""
    of_library = import_utils.is_torch_bf16_gpu_available

    @functools.wraps(of_library)
    def is_torch_bf16_gpu_available() -> bool:
        return is_asked_for() or of_library()

    replace(import_utils, "is_torch_bf16_gpu_available", is_torch_bf16_gpu_available)


def add_offloaded_cache(cache_utils: ModuleType) -> None:
    """`cache_implementation="offloaded"` orders its copies by CUDA's default stream. This device has one
    stream, and it is in order: a layer comes back before it is used and leaves after."""
    update_of_library = cache_utils.Cache.update

    @functools.wraps(update_of_library)
    def update(self: Any, key_states: Any, value_states: Any, layer_idx: int, *more: Any, **named: Any) -> Any:
        if not self.offloading or key_states.device.type != NAME:
            return update_of_library(self, key_states, value_states, layer_idx, *more, **named)
        if layer_idx < len(self.layers):
            self.layers[layer_idx].prefetch()
        self.offloading = False
        try:
            states = update_of_library(self, key_states, value_states, layer_idx, *more, **named)
        finally:
            self.offloading = True
        self.offload(layer_idx, self.only_non_sliding)
        return states

    cache_utils.Cache.update = update


def keep_pipelines_device(base: ModuleType) -> None:
    """A pipeline that is told no device takes the first kind of its list that there is, and moves the model
    there: of this device it knows nothing, so the model would go to the CPU."""
    init_of_library = base.Pipeline.__init__

    @functools.wraps(init_of_library)
    def init(self: Any, model: Any, *more: Any, **named: Any) -> None:
        placed = getattr(model, "hf_device_map", None) is not None
        on_device = getattr(getattr(model, "device", None), "type", None) == NAME
        if named.get("device") is None and not placed and (on_device or is_asked_for()):
            named["device"] = model.device if on_device else NAME
        init_of_library(self, model, *more, **named)

    base.Pipeline.__init__ = init
