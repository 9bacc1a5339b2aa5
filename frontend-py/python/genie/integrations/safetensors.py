"""safetensors reads to the devices that its Rust side knows; for this one it reads to the CPU, and the
tensors go on from there. The file is mapped, so they are read once."""

from types import ModuleType
from typing import Any

import torch

from genie.integrations import replace
from genie.integrations._asked import names_device


def add_device(safetensors: ModuleType) -> None:
    """`safe_open(..., device="remote_accelerator")`, and with it `load_file`, `load_model` and transformers."""
    replace(safetensors, "safe_open", _knowing_device(safetensors.safe_open))


def _knowing_device(original: type) -> type:
    class Choice(type):
        """Makes `safe_open(...)` the library's own object unless this device is named."""

        def __call__(cls, filename: Any, framework: Any, device: Any = "cpu", *more: Any, **named: Any) -> Any:
            if not names_device(device):
                return original(filename, framework, device, *more, **named)
            return _OnDevice(original(filename, framework, "cpu", *more, **named), torch.device(device))

        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, (original, _OnDevice))

    class safe_open(metaclass=Choice):
        __doc__ = original.__doc__

    safe_open.__module__, safe_open.__qualname__ = original.__module__, original.__qualname__
    return safe_open


class _OnDevice:
    """An open file whose tensors are given on the device."""

    def __init__(self, file: Any, device: torch.device) -> None:
        self._file, self._device = file, device

    def __enter__(self) -> "_OnDevice":
        self._file.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._file.__exit__(*error)

    def get_tensor(self, name: str) -> torch.Tensor:
        return self._file.get_tensor(name).to(self._device)

    def get_tensors(self, *arguments: Any, **named: Any) -> dict[str, torch.Tensor]:
        tensors = self._file.get_tensors(*arguments, **named)
        return {name: tensor.to(self._device) for name, tensor in tensors.items()}

    def get_slice(self, name: str) -> "_SliceOnDevice":
        return _SliceOnDevice(self._file.get_slice(name), self._device)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _SliceOnDevice:
    """A tensor of an open file, of which parts are read to the device."""

    def __init__(self, part: Any, device: torch.device) -> None:
        self._part, self._device = part, device

    def __getitem__(self, index: Any) -> torch.Tensor:
        return self._part[index].to(self._device)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._part, name)
