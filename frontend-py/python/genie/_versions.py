"""What older versions of PyTorch ask of a device's module. The C++ side has torch_version.h."""

import functools
import inspect
from types import ModuleType, SimpleNamespace

import torch
from torch.utils import checkpoint

from genie import _native

TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])

# c10::ScalarType, of the dtypes that torch.autocast may hand over.
_NUMBERS = {torch.float16: 5, torch.float32: 6, torch.float64: 7, torch.bfloat16: 15}
_DTYPES = {number: dtype for dtype, number in _NUMBERS.items()}


def complete(module: ModuleType) -> None:
    """Adds to the device's module what this version of torch wants there."""
    if TORCH < (2, 4):
        for function in (is_autocast_enabled, set_autocast_enabled, get_autocast_dtype, set_autocast_dtype):
            setattr(module, function.__name__, function)
        # Checkpointing looks there.
        module.amp = SimpleNamespace(autocast=functools.partial(torch.autocast, module.NAME))
    if "device_type" not in inspect.signature(checkpoint.set_device_states).parameters:
        # It restores random states to one default device, whatever device they came from: cuda.
        if torch.cuda.device_count() == 0:
            checkpoint.DefaultDeviceType.set_device_type(module.NAME)


def generate_methods() -> None:
    """Gives tensors, modules, packed sequences and storages the methods named after the device."""
    generate = torch.utils.generate_methods_for_privateuse1_backend
    wanted = {"for_tensor", "for_module", "for_packed_sequence", "for_storage"}
    generate(**dict.fromkeys(wanted & set(inspect.signature(generate).parameters), True))


# Before 2.4, torch.autocast keeps the state of other devices through their modules.


def is_autocast_enabled() -> bool:
    return _native.autocast()[0]


def set_autocast_enabled(enabled: bool) -> None:
    _native.set_autocast(enabled, _native.autocast()[1])


def get_autocast_dtype() -> torch.dtype:
    return _DTYPES[_native.autocast()[1]]


def set_autocast_dtype(dtype: torch.dtype) -> None:
    _native.set_autocast(_native.autocast()[0], _NUMBERS[dtype])
