"""accelerate, and by it transformers' Trainer and `device_map="auto"`.

`ACCELERATE_TORCH_DEVICE=remote_accelerator` is accelerate's own way to name the device. What it lacks
there are lists of devices by name: who has float16, whose memory can be asked, which scaler to make.
"""

import functools
from types import ModuleType
from typing import Any

import torch

from genie.integrations import replace
from genie.integrations._asked import NAME, is_asked_for, is_default_device


def add_memory_and_scaler(modeling: ModuleType) -> None:
    """The device's memory for `device_map="auto"`, and its scaler for float16."""
    get_max_memory, get_grad_scaler = modeling.get_max_memory, modeling.get_grad_scaler

    @functools.wraps(get_max_memory)
    def with_device(max_memory: dict[Any, Any] | None = None) -> dict[Any, Any]:
        if max_memory is None:
            if not is_asked_for():
                return get_max_memory()
            rest = {name: size for name, size in get_max_memory().items() if not isinstance(name, int)}
            # What accelerate leaves free of a device of its own choice.
            return {NAME: int(torch.get_device_module(NAME).mem_get_info()[0] * 0.9), **rest}
        if NAME not in max_memory:
            return get_max_memory(max_memory)
        size = max_memory[NAME]
        rest = get_max_memory({name: size for name, size in max_memory.items() if name != NAME})
        return {NAME: modeling.convert_file_size_to_int(size) if isinstance(size, str) else size, **rest}

    @functools.wraps(get_grad_scaler)
    def of_device(distributed_type: Any = None, **settings: Any) -> Any:
        from accelerate.state import PartialState

        if PartialState._shared_state and PartialState().device.type == NAME:
            return torch.amp.GradScaler(NAME, **settings)
        return get_grad_scaler(distributed_type, **settings)

    replace(modeling, "get_max_memory", with_device)
    replace(modeling, "get_grad_scaler", of_device)


def add_default_device(state: ModuleType) -> None:
    """torch.set_default_device("remote_accelerator") asks for the device as the variable does."""
    of_library = state.PartialState.default_device

    @functools.wraps(of_library.fget)
    def default_device(self: Any) -> torch.device:
        return torch.device(NAME) if is_default_device() else of_library.fget(self)

    state.PartialState.default_device = property(default_device, doc=of_library.__doc__)


def add_half_precision(accelerator: ModuleType) -> None:
    """The device in the list of those that may use float16, which is a constant in a constructor."""
    code = accelerator.Accelerator.__init__.__code__
    constants = tuple(
        (*constant, NAME) if isinstance(constant, tuple) and {"cuda", "xpu", "mps"} <= set(constant) else constant
        for constant in code.co_consts
    )
    if constants == code.co_consts:
        raise LookupError("Accelerator.__init__ has no list of devices with float16")
    accelerator.Accelerator.__init__.__code__ = code.replace(co_consts=constants)
