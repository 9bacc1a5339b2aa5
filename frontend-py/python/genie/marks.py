"""Semantic context on the tape: module paths, phases, stages of training.

Marks cost a few dozen bytes each and change no answer. Calls of modules are marked only while a
session runs, so programs that do not use the device pay nothing. No hook is registered for that:
`torch.compile` would trace it in every module, guard against it, and warn of it. And nothing is
marked while a program is compiled or exported: PyTorch must find no call into C on its way.
"""

import contextlib
import functools
import os
import sys
import threading
import weakref
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.compiler import is_compiling
from torch.optim import optimizer as _optimizers

from genie import _native, env

MODULE_ENTER, MODULE_EXIT, PHASE_ENTER, PHASE_EXIT = range(4)
# The wire allows 16 KiB; nobody reads that.
TEXT_BYTES_MAX = 1000


class phase(contextlib.ContextDecorator):
    """Names a part of the program, as context manager or decorator: `with genie.phase("decode"):`.

    Phases nest. They are the thread's, as `torch.no_grad()` is, and hold for the backward passes that it asks
    for. They guide placement and reports, never the answer.
    """

    def __init__(self, name: str) -> None:
        self.name = _checked(name)

    def __enter__(self) -> "phase":
        if not is_compiling():
            _native.mark(PHASE_ENTER, self.name)
        return self

    def __exit__(self, *error: object) -> None:
        if not is_compiling():
            _native.mark(PHASE_EXIT, self.name)


def annotate(module: torch.nn.Module, phase: str) -> torch.nn.Module:
    """Every call of `module` is a phase of this name from now on. Returns the module."""
    name = _checked(phase)

    def enter(_module: torch.nn.Module, _args: Any) -> None:
        if not is_compiling():
            _native.mark(PHASE_ENTER, name)

    def leave(_module: torch.nn.Module, _args: Any, _output: Any) -> None:
        if not is_compiling():
            _native.mark(PHASE_EXIT, name)

    module.register_forward_pre_hook(enter)
    module.register_forward_hook(leave, always_call=True)
    return module


def _checked(name: str) -> str:
    if not isinstance(name, str) or not name or "\0" in name or len(name.encode()) > TEXT_BYTES_MAX:
        raise ValueError(f"a phase's name is a text of 1 to {TEXT_BYTES_MAX} bytes without NUL, not {name!r}")
    return name


# What to write by the module's id. An entry lives as long as its module.
_by_id: dict[int, str] = {}
_depth = threading.local()
_handles: list[Any] = []
# What a call of any module does: by PyTorch, and marked. A program or library may have put
# something of its own there before, which goes on to work.
_unmarked_call: Any = torch.nn.Module.__call__


def _marked_call(self: torch.nn.Module, *args: Any, **kwargs: Any) -> Any:
    if is_compiling():
        return _unmarked_call(self, *args, **kwargs)
    _enter_module(self)
    try:
        return _unmarked_call(self, *args, **kwargs)
    finally:
        _leave_module(self)


def install() -> None:
    """Begins to record marks. Nothing when they are being recorded."""
    global _unmarked_call
    if not env.flag(env.MODULE_MARKS, True):
        return
    if torch.nn.Module.__call__ is not _marked_call:
        _unmarked_call = torch.nn.Module.__call__
        functools.update_wrapper(_marked_call, _unmarked_call)
        _skip_frames(_marked_call)
        # `torch.compile(model.__call__)` comes by here.
        for own in (_enter_module, _leave_module, _learn, _remember):
            _skip_frames(own, and_what_it_calls=True)
        _replace_call(_unmarked_call, _marked_call)
    if not _handles and hasattr(_optimizers, "register_optimizer_step_pre_hook"):
        _handles.append(_optimizers.register_optimizer_step_pre_hook(_enter_step))
        _handles.append(_optimizers.register_optimizer_step_post_hook(_leave_step))


def uninstall() -> None:
    """Records no more marks."""
    if torch.nn.Module.__call__ is _marked_call:
        _replace_call(_marked_call, _unmarked_call)
    while _handles:
        _handles.pop().remove()
    _depth.__dict__.clear()


def _replace_call(old: Any, new: Any) -> None:
    torch.nn.Module.__call__ = new
    # Here `torch.compile` remembers the call by which it knows modules that nobody changed: those
    # it takes straight to their `forward`.
    for name in ("torch._dynamo.utils", "torch._dynamo.variables.nn_module"):
        module = sys.modules.get(name)
        if getattr(module, "unpatched_nn_module_call", None) is old:
            module.unpatched_nn_module_call = new  # type: ignore[union-attr]


def _skip_frames(function: Any, and_what_it_calls: bool = False) -> None:
    """Makes `torch.compile` begin with what `function` calls, as it does for PyTorch's own call, or look
    at none of it."""
    # Importing torch._dynamo would take a second.
    frames = torch._C._dynamo.eval_frame
    if hasattr(frames, "set_code_exec_strategy"):
        skip, default = frames._FrameAction.SKIP, frames._FrameAction.DEFAULT
        strategy = frames._FrameExecStrategy(skip, skip if and_what_it_calls else default)
        frames.set_code_exec_strategy(function.__code__, strategy)
    elif hasattr(frames, "skip_code"):
        frames.skip_code(function.__code__)


def _enter_module(module: torch.nn.Module) -> None:
    depth = _depth.__dict__.get("now", 0)
    _depth.now = depth + 1
    text = _by_id.get(id(module))
    if text is None:
        text = _learn(module, depth == 0)
    _native.mark(MODULE_ENTER, text)


def _leave_module(module: torch.nn.Module) -> None:
    # A session may have ended, and another begun, since the module was entered.
    depth = _depth.__dict__.get("now", 0)
    if depth:
        _depth.now = depth - 1
        _native.mark(MODULE_EXIT, _by_id.get(id(module), ""))


def _learn(module: torch.nn.Module, outermost: bool) -> str:
    """Finds paths: those below an outermost module are its attributes' names."""
    if outermost:
        for path, each in module.named_modules():
            if id(each) not in _by_id:
                _remember(each, path)
    if id(module) not in _by_id:
        _remember(module, "")
    return _by_id[id(module)]


def _remember(module: torch.nn.Module, path: str) -> None:
    key = id(module)
    _by_id[key] = f"{path}\0{type(module).__qualname__}"[: TEXT_BYTES_MAX // 4]
    weakref.finalize(module, _by_id.pop, key, None).atexit = False


_LIBRARIES = tuple(str(Path(module.__file__).parent) + os.sep for module in (torch, sys.modules["genie"]))


def frame_of_program() -> FrameType | None:
    """The innermost frame outside of torch and genie; None in threads of C++."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code.co_filename.startswith(_LIBRARIES):
        frame = frame.f_back
    return frame


def line_of_program() -> str | None:
    """`FILE line N` of the line being run."""
    frame = frame_of_program()
    return None if frame is None else f"{frame.f_code.co_filename} line {frame.f_lineno}"


def _enter_step(_optimizer: Any, _args: Any, _kwargs: Any) -> None:
    if not is_compiling():
        _native.set_stage(True)


def _leave_step(_optimizer: Any, _args: Any, _kwargs: Any) -> None:
    if not is_compiling():
        _native.set_stage(False)
