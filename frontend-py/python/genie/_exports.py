"""Where a tensor's memory would leave this process: DLPack, and another process by torch.multiprocessing.

A tensor of the device has no memory here, only an address that means nothing. PyTorch would hand
that address out, or fail with words about file descriptors; here the way out is named.
"""

import functools
from collections.abc import Callable
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch

NAME = "remote_accelerator"
_CPU = 1  # kDLCPU
_installed = False


def install() -> None:
    """Once, before there are tensors of the device."""
    global _installed
    if _installed:
        return
    _installed = True
    _guard_dlpack()
    _guard_pickling()


def _guard_dlpack() -> None:
    tensor, dlpack = torch.Tensor, torch.utils.dlpack
    export, device_of, to_dlpack = tensor.__dlpack__, tensor.__dlpack_device__, dlpack.to_dlpack

    @functools.wraps(export)
    def __dlpack__(self: torch.Tensor, **wanted: Any) -> Any:
        if self.device.type != NAME:
            return export(self, **wanted)
        where = wanted.get("dl_device")
        if where is None or where[0] != _CPU or wanted.get("copy") is False:
            raise _no_dlpack()
        wanted.pop("copy", None)
        return export(self.detach().cpu(), **wanted)

    @functools.wraps(device_of)
    def __dlpack_device__(self: torch.Tensor) -> Any:
        if self.device.type == NAME:
            raise _no_dlpack()
        return device_of(self)

    @functools.wraps(to_dlpack)
    def guarded_to_dlpack(tensor: torch.Tensor, *more: Any) -> Any:
        if tensor.device.type == NAME:
            raise _no_dlpack()
        return to_dlpack(tensor, *more)

    tensor.__dlpack__ = __dlpack__  # type: ignore[method-assign]
    tensor.__dlpack_device__ = __dlpack_device__  # type: ignore[method-assign]
    dlpack.to_dlpack = guarded_to_dlpack
    if hasattr(torch, "to_dlpack"):
        torch.to_dlpack = guarded_to_dlpack


def _no_dlpack() -> BufferError:
    return BufferError(
        f"a tensor of {NAME} has no memory in this process that DLPack could share: export x.cpu(), and take what "
        f'comes back by torch.from_dlpack(...).to("{NAME}")'
    )


def _guard_pickling() -> None:
    from torch.multiprocessing import reductions

    guarded = (reductions.reduce_tensor, reductions.reduce_storage)
    for kind, reduce in list(ForkingPickler._extra_reducers.items()):  # type: ignore[attr-defined]
        if reduce in guarded:
            ForkingPickler.register(kind, _refusing(reduce))


def _refusing(reduce: Callable[[Any], Any]) -> Callable[[Any], Any]:
    @functools.wraps(reduce)
    def reduce_elsewhere(it: Any) -> Any:
        if it.device.type == NAME:
            raise RuntimeError(
                f"a tensor of {NAME} belongs to this process's session and cannot be sent to another process: "
                f'send x.cpu(), and let the other process move it by x.to("{NAME}") to its own session '
                "(a DataLoader's workers: keep the data set on the CPU and move each batch)"
            )
        return reduce(it)

    return reduce_elsewhere
