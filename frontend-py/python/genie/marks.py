"""Semantic context on the tape: module paths, phases, stages of training.

Marks cost a few dozen bytes each and change no answer. Hooks are installed only while a session
runs, so programs that do not use the device pay nothing.
"""

import contextlib
import os
import sys
import threading
import weakref
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.nn.modules import module as _modules
from torch.optim import optimizer as _optimizers

from genie import _native, env

MODULE_ENTER, MODULE_EXIT, PHASE_ENTER, PHASE_EXIT = range(4)
# The wire allows 16 KiB; nobody reads that.
TEXT_BYTES_MAX = 1000


class phase(contextlib.ContextDecorator):
    """Names a part of the program, as context manager or decorator: `with genie.phase("decode"):`.

    Phases nest. They guide placement and reports, never the answer.
    """

    def __init__(self, name: str) -> None:
        self.name = _checked(name)

    def __enter__(self) -> "phase":
        _native.mark(PHASE_ENTER, self.name)
        return self

    def __exit__(self, *error: object) -> None:
        _native.mark(PHASE_EXIT, self.name)


def annotate(module: torch.nn.Module, phase: str) -> torch.nn.Module:
    """Every call of `module` is a phase of this name from now on. Returns the module."""
    name = _checked(phase)

    def enter(_module: torch.nn.Module, _args: Any) -> None:
        _native.mark(PHASE_ENTER, name)

    def leave(_module: torch.nn.Module, _args: Any, _output: Any) -> None:
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


def install() -> None:
    """Begins to record marks. Nothing when they are being recorded."""
    if _handles or not env.flag(env.MODULE_MARKS, True):
        return
    _handles.append(_modules.register_module_forward_pre_hook(_enter_module))
    _handles.append(_modules.register_module_forward_hook(_leave_module, always_call=True))
    if hasattr(_optimizers, "register_optimizer_step_pre_hook"):
        _handles.append(_optimizers.register_optimizer_step_pre_hook(_enter_step))
        _handles.append(_optimizers.register_optimizer_step_post_hook(_leave_step))


def uninstall() -> None:
    """Records no more marks."""
    while _handles:
        _handles.pop().remove()
    _depth.__dict__.clear()


def _enter_module(module: torch.nn.Module, _args: Any) -> None:
    depth = _depth.__dict__.get("now", 0)
    _depth.now = depth + 1
    text = _by_id.get(id(module))
    if text is None:
        text = _learn(module, depth == 0)
    _native.mark(MODULE_ENTER, text)


def _leave_module(module: torch.nn.Module, _args: Any, _output: Any) -> None:
    # A module that was entered before the hooks were installed is left without having entered.
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
    _native.set_stage(True)


def _leave_step(_optimizer: Any, _args: Any, _kwargs: Any) -> None:
    _native.set_stage(False)
