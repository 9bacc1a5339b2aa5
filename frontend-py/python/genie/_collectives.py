"""torch.distributed on tensors of the device: each collective goes through the CPU's backend (gloo).

A process group needs a backend for the CPU, which `init_process_group("gloo")` has; then DDP,
FSDP's collectives and point-to-point calls take tensors of the device as they are.
"""

import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree

NAME = "remote_accelerator"

# Operators of c10d whose first argument is written and not read.
_FILLED = (
    "allgather_",
    "_allgather_base_",
    "allgather_coalesced_",
    "allgather_into_tensor_coalesced_",
    "reduce_scatter_",
    "_reduce_scatter_base_",
    "reduce_scatter_tensor_coalesced_",
    "gather_",
    "scatter_",
    "alltoall_",
    "alltoall_base_",
    "recv_",
    "recv_any_source_",
)
# Those whose first argument is read and written.
_CHANGED = ("broadcast_", "allreduce_", "allreduce_coalesced_", "reduce_")
_SENT = ("send", "barrier")

_library: Any = None


def install() -> None:
    """Registers the device's kernels for c10d's operators, once, where torch has torch.distributed."""
    global _library
    if _library is not None or not torch.distributed.is_available():
        return
    _library = torch.library.Library("c10d", "IMPL")
    with warnings.catch_warnings():
        # PyTorch's own kernels for such devices are replaced: they look for a backend of the device.
        warnings.simplefilter("ignore")
        for name in (*_FILLED, *_CHANGED, *_SENT):
            operator = getattr(torch.ops.c10d, name, None)
            if operator is not None:
                _library.impl(name, _through_cpu(name, operator.default), "PrivateUse1")


def _through_cpu(name: str, operator: Any) -> Callable[..., Any]:
    def run(first: Any, *rest: Any) -> Any:
        _check_backend(name, rest)
        copies = _on_cpu(first, read=name not in _FILLED)
        result = operator(copies, *_on_cpu(rest, read=True))
        boxed = result[1] if isinstance(result, (tuple, list)) else result
        if name not in _SENT:
            work = torch.distributed.Work.unbox(boxed)
            if name.startswith("recv_"):
                boxed = _received_later(work, first, copies)
            else:
                work.wait()
                _copy_back(first, copies)
        return (first, boxed) if isinstance(result, (tuple, list)) else boxed

    return run


def _received_later(work: Any, tensors: Any, copies: Any) -> Any:
    """Who receives may have to send first, so nothing waits here; a thread copies what arrives."""
    future: Any = torch.futures.Future()

    def wait() -> None:
        try:
            work.wait()
            _copy_back(tensors, copies)
        except Exception as error:
            future.set_exception(error)
        else:
            future.set_result(tensors)

    threading.Thread(target=wait, name="genie-receive", daemon=True).start()
    return torch._C._distributed_c10d._create_work_from_future(future).boxed()


def _on_cpu(arguments: Any, read: bool) -> Any:
    def copy(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.device.type != NAME:
            return tensor
        return tensor.cpu() if read else torch.empty_like(tensor, device="cpu")

    return _pytree.tree_map_only(torch.Tensor, copy, arguments)


@torch.no_grad()
def _copy_back(tensors: Any, copies: Any) -> None:
    for tensor, copy in zip(_pytree.tree_leaves(tensors), _pytree.tree_leaves(copies), strict=True):
        if tensor is not copy:
            tensor.copy_(copy)


def _check_backend(name: str, arguments: Any) -> None:
    for group in arguments:
        if isinstance(group, torch.ScriptObject) and "ProcessGroup" in group._type().qualified_name():
            devices = {device.type for device in torch.distributed.ProcessGroup.unbox(group)._device_types}
            if "cpu" not in devices:
                raise NotImplementedError(
                    f"c10d::{name}: collectives of {NAME} go through the CPU, and this process group has a backend "
                    f"for {', '.join(sorted(devices)) or 'no device'} alone; "
                    'init_process_group("gloo"), or "cpu:gloo,cuda:nccl", has one for the CPU'
                )
