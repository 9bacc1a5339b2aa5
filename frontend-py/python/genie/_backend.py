"""Makes the device known to PyTorch. Once per process; starts nothing."""

import functools
import os
from typing import Any

import torch

from genie import env

NAME = "remote_accelerator"
_DEFAULT_SEED = 67280421310721
# A tensor that is read whole to be printed.
_PRINT_BYTES_MAX = 4 << 20
# What PyTorch's profiler logs, and its number for errors only.
_KINETO_LOG_LEVEL, _KINETO_ERRORS = "KINETO_LOG_LEVEL", "4"
_registered = False


def register() -> None:
    """Registers the device, its module and its methods, unless that was done."""
    global _registered
    if _registered:
        return
    _registered = True
    from genie import _native, _versions, _weights, device, errors, integrations, parallel

    torch.utils.rename_privateuse1_backend(NAME)
    for code in (errors.NODE_LOST, errors.UNAVAILABLE, errors.PROGRAM_ENDS, errors.START_FAILED):
        _native.set_error_type(code, errors.CLASSES[code])
    _native.register(
        log_intercepts=env.flag(env.LOG_INTERCEPTS, False),
        meta_infer=env.flag(env.ENABLE_META_INFER, True),
        aten_impl=env.flag(env.ENABLE_ATEN_IMPL, True),
        debug_lines=env.flag(env.DEBUG, False),
    )
    _versions.complete(device)
    torch._register_device_module(NAME, device)
    # `x.remote_accelerator()`, `x.is_remote_accelerator`, the same of modules and storages.
    _versions.generate_methods()
    _weights.install()
    parallel.install()
    _route_compiled_graphs()
    _leave_process_groups()
    _leave_profiles()
    _print_by_one_read()
    # `torch.manual_seed` before this line did not know the device yet.
    seed = torch.initial_seed()
    if seed != _DEFAULT_SEED:
        _native.seed(seed & 0xFFFF_FFFF_FFFF_FFFF)
    if env.flag(env.INTEGRATIONS, True):
        integrations.install()


def _print_by_one_read() -> None:
    """A tensor is printed from a copy on the CPU: PyTorch's printing looks at it by dozens of small
    operators and reads. One too large is looked at where it lies; most of it is not printed."""
    elsewhere = torch._tensor_str._tensor_str

    @functools.wraps(elsewhere)
    def tensor_str(self: torch.Tensor, indent: int) -> str:
        if self.device.type == NAME and self.numel() * self.itemsize <= _PRINT_BYTES_MAX:
            self = self.detach().cpu()
        return elsewhere(self, indent)

    torch._tensor_str._tensor_str = tensor_str


def _route_compiled_graphs() -> None:
    """Gives graphs that compute on the device to our compiler where `torch.compile` would take its
    default one, which knows no such device. Other graphs go where they went."""
    inductor = torch._TorchCompileInductorWrapper
    elsewhere = inductor.__call__

    @functools.wraps(elsewhere)
    def compile_graph(self: Any, module: Any, inputs: Any) -> Any:
        from genie import _compile

        if type(self) is not inductor or not _compile.is_on_device(module, inputs):
            return elsewhere(self, module, inputs)
        return _compile.backend(module, inputs, **self.config)

    inductor.__call__ = compile_graph


def _leave_profiles() -> None:
    """A profile holds what it holds without Genie. `torch.profiler.profile()` takes all activities that
    there are, also this device's, of which it learns nothing; and because there is such a device it
    looks for a GPU's recorder, and warns where there is no GPU."""
    profiler = torch.autograd.profiler
    activities, prepare = torch.autograd._supported_activities, profiler._prepare_profiler

    def supported_activities() -> set[Any]:
        return activities() - {torch.profiler.ProfilerActivity.PrivateUse1}

    @functools.wraps(prepare)
    def prepare_profiler(*args: Any) -> None:
        profiler._prepare_profiler = prepare  # the recorder is looked for once
        if _KINETO_LOG_LEVEL in os.environ or torch.cuda.is_available():
            return prepare(*args)
        os.environ[_KINETO_LOG_LEVEL] = _KINETO_ERRORS
        try:
            return prepare(*args)
        finally:
            del os.environ[_KINETO_LOG_LEVEL]

    torch.autograd._supported_activities = supported_activities
    profiler._prepare_profiler = prepare_profiler


def _leave_process_groups() -> None:
    """`init_process_group()` without a backend takes that of the accelerator, which counts as this
    device: it goes on to take the CPU's, through which the device's collectives go, and CUDA's."""
    if not torch.distributed.is_available() or not hasattr(torch._C, "_get_accelerator"):
        return
    from torch.distributed.distributed_c10d import Backend, BackendConfig

    elsewhere = BackendConfig.__init__

    @functools.wraps(elsewhere)
    def configure(self: Any, backend: Any) -> None:
        if str(backend) == Backend.UNDEFINED and torch._C._get_accelerator().type == NAME:
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "cpu:gloo"
        elsewhere(self, backend)

    BackendConfig.__init__ = configure
