"""`nn.DataParallel` and what it is made of, for one device.

PyTorch takes every accelerator for the place where `nn.DataParallel` computes, and moves tensors
between devices by functions that know CUDA alone. Here they learn of this device; calls that are
not about it go to PyTorch's own as before.
"""

import functools
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import _utils
from torch.nn.parallel import DataParallel, comm

from genie.streams import NAME


def install() -> None:
    for function in (broadcast, broadcast_coalesced, scatter, gather):
        name = function.__name__
        setattr(comm, name, _or_else(getattr(comm, name), function))
    DataParallel.__init__ = _data_parallel_init(DataParallel.__init__)  # type: ignore[method-assign]


def _data_parallel_init(init: Any) -> Any:
    """A model that lives on the CPU stays there, as on a machine without accelerator."""

    @functools.wraps(init)
    def __init__(self: DataParallel, module: torch.nn.Module, *args: Any, **kwargs: Any) -> None:
        if _utils._get_available_device_type() != NAME or _is_on_device(module):
            return init(self, module, *args, **kwargs)
        torch.nn.Module.__init__(self)
        self.module = module
        self.device_ids = []

    return __init__


def _is_on_device(module: torch.nn.Module) -> bool:
    return any(each.device.type == NAME for each in chain(module.parameters(), module.buffers()))


def _or_else(theirs: Any, ours: Any) -> Any:
    """PyTorch's function, but ours where tensors are on this device or may be meant for it."""

    @functools.wraps(theirs)
    def function(tensors: Any, *args: Any, **kwargs: Any) -> Any:
        each = (tensors,) if isinstance(tensors, torch.Tensor) else tuple(tensors)
        kinds = {tensor.device.type for tensor in each}
        if NAME in kinds or (kinds <= {"cpu"} and _utils._get_available_device_type() == NAME):
            return ours(each[0] if isinstance(tensors, torch.Tensor) else each, *args, **kwargs)
        return theirs(each[0] if isinstance(tensors, torch.Tensor) else each, *args, **kwargs)

    return function


def broadcast(
    tensor: torch.Tensor, devices: Iterable[Any] | None = None, *, out: Sequence[torch.Tensor] | None = None
) -> tuple[torch.Tensor, ...]:
    tensor = _utils._handle_complex(tensor)
    if (devices is None) == (out is None):
        raise RuntimeError(f"Exactly one of 'devices' and 'out' must be specified, but got {devices=} and {out=}")
    if out is not None:
        return tuple(each.copy_(tensor) for each in out)
    return tuple(copies[0] for copies in broadcast_coalesced((tensor,), devices or ()))


def broadcast_coalesced(
    tensors: Sequence[torch.Tensor], devices: Iterable[Any], buffer_size: int = 0
) -> list[list[torch.Tensor]]:
    """The first device gets the tensors themselves, if they are there."""
    real = [_utils._handle_complex(each) for each in tensors]
    return [
        [each.to(_device(device), copy=number > 0) for each in real] for number, device in enumerate(devices)
    ]


def scatter(
    tensor: torch.Tensor,
    devices: Sequence[Any] | None = None,
    chunk_sizes: Sequence[int] | None = None,
    dim: int = 0,
    streams: Any = None,
    *,
    out: Sequence[torch.Tensor] | None = None,
) -> tuple[torch.Tensor, ...]:
    tensor = _utils._handle_complex(tensor)
    if out is not None:
        if devices is not None or chunk_sizes is not None:
            raise RuntimeError("'devices' and 'chunk_sizes' must not be specified when 'out' is specified")
        chunks = tensor.split([each.size(dim) for each in out], dim)
        return tuple(each.copy_(chunk) for each, chunk in zip(out, chunks, strict=True))
    places = [_device(each) for each in devices or ()]
    chunks = tensor.chunk(len(places), dim) if chunk_sizes is None else tensor.split(list(chunk_sizes), dim)
    return tuple(chunk.to(place) for chunk, place in zip(chunks, places, strict=False))


def gather(
    tensors: Sequence[torch.Tensor], dim: int = 0, destination: Any = None, *, out: torch.Tensor | None = None
) -> torch.Tensor:
    real = [_utils._handle_complex(each) for each in tensors]
    if out is not None:
        if destination is not None:
            raise RuntimeError("'destination' must not be specified when 'out' is specified")
        return out.copy_(torch.cat([each.to(out.device) for each in real], dim))
    place = _device(0 if destination is None else destination)
    return torch.cat([each.to(place) for each in real], dim)


def _device(device: Any) -> torch.device:
    """-1 is the CPU, as PyTorch has it."""
    index = _utils._get_device_index(device, optional=True, allow_cpu=True)
    return torch.device("cpu") if index == -1 else torch.device(NAME, index)
