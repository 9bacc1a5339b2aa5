"""Weights that move with their module: announced all at once, so that one question asks for many.

`Module.to` hands its parameters and buffers over one by one, each as if it were any tensor. Here
they are listed first: the node learns that they are weights, to be known the next time, and
whatever it has already is not sent. Nothing is announced, and nothing costs, unless a module moves
to the device.
"""

import functools
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch

from genie import _native
from genie._backend import NAME

_thread = threading.local()


def install() -> None:
    """Announces the weights of modules that move to the device from now on."""
    original = torch.nn.Module._apply

    @functools.wraps(original)
    def _apply(self: torch.nn.Module, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> torch.nn.Module:
        converts = None if getattr(_thread, "moving", False) else _converts(fn)
        if converts is None:
            return original(self, fn, *args, **kwargs)
        tensors = [tensor for tensor in _tensors(self, set()) if converts(tensor)]
        # What was announced stays readable until it was uploaded, whatever other threads do.
        kept = {tensor.data_ptr(): tensor.untyped_storage() for tensor in tensors}

        def move(tensor: torch.Tensor) -> torch.Tensor:
            place = tensor.data_ptr() if _is_plain(tensor) else 0
            moved = fn(tensor)
            kept.pop(place, None)
            return moved

        _thread.moving = True
        _native.begin_weights([(tensor.data_ptr(), tensor.nbytes) for tensor in tensors])
        try:
            return original(self, move, *args, **kwargs)
        finally:
            _thread.moving = False
            _native.end_weights()

    torch.nn.Module._apply = _apply


def _converts(fn: Callable[..., Any]) -> Callable[[torch.Tensor], bool] | None:
    """Of what is applied to a module: None, unless it moves tensors to the device; else whether it
    uploads a tensor as it is."""
    name, module = getattr(fn, "__qualname__", ""), getattr(fn, "__module__", "")
    if module == "torch.utils.backend_registration" and ".wrap_module_to." in name:
        return lambda tensor: True
    if module != "torch.nn.modules.module" or name != "Module.to.<locals>.convert":
        return None
    values = {name: cell.cell_contents for name, cell in zip(fn.__code__.co_freevars, fn.__closure__ or ())}
    device, dtype, layout = (values.get(name) for name in ("device", "dtype", "convert_to_format"))
    if not isinstance(device, torch.device) or device.type != NAME:
        return None

    def as_it_is(tensor: torch.Tensor) -> bool:
        if layout is not None and tensor.dim() in (4, 5):
            return False
        return dtype in (None, tensor.dtype) or not (tensor.is_floating_point() or tensor.is_complex())

    return as_it_is


def _tensors(module: torch.nn.Module, seen: set[int]) -> Iterator[torch.Tensor]:
    """The parameters and buffers, in the order in which `_apply` comes to them."""
    own = type(module)._apply
    if id(module) in seen or not (own is torch.nn.Module._apply or own.__module__.startswith("torch.")):
        # One with a way of its own might change them first.
        return
    seen.add(id(module))
    for child in module.children():
        yield from _tensors(child, seen)
    for tensor in (*module._parameters.values(), *module._buffers.values()):
        if tensor is not None and _is_plain(tensor):
            if tensor.is_contiguous() or (tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)):
                yield tensor


def _is_plain(tensor: torch.Tensor) -> bool:
    """Whether it is bytes in the CPU's memory, and no class of its own gives them a meaning."""
    plain = type(tensor) in (torch.Tensor, torch.nn.Parameter)
    return plain and tensor.device.type == "cpu" and tensor.layout is torch.strided
