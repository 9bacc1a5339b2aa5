"""Who knows the true phase of what is running now.

It comes from module paths, from the order of calls, and from `with phase(...)` in the plain models:
things that a recognizer under test must not read. Nothing here runs a tensor operation.
"""

import contextlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from .registry import Built, Case

_active: "Oracle | None" = None


@contextlib.contextmanager
def phase(name: str) -> Iterator[None]:
    """What runs inside is of this phase. Nothing where no oracle watches."""
    oracle = _active
    if oracle is None:
        yield
        return
    oracle.enter(name)
    try:
        yield
    finally:
        oracle.leave()


class Oracle:
    """While entered, `current` is the phase of what the module runs; `changed(phase)` is told each change."""

    def __init__(self, case: Case, module: nn.Module, changed: Callable[[str | None], None] | None = None) -> None:
        self.case = case
        self.module = module
        self.changed = changed
        self.current: str | None = None
        self._stack: list[str] = []
        self._hooks: list[Any] = []
        self._lm_calls = 0

    def enter(self, name: str) -> None:
        self._stack.append(name)
        self._settle()

    def leave(self) -> None:
        self._stack.pop()
        self._settle()

    def _settle(self) -> None:
        # The innermost phase counts, but a training step's forward pass is `train.forward` throughout.
        now = self.case.default if not self._stack else self._stack[0 if self.case.mode == "train" else -1]
        if now != self.current:
            self.current = now
            if self.changed is not None:
                self.changed(now)

    def _lm_phase(self) -> str:
        self._lm_calls += 1
        return "llm.prefill" if self._lm_calls == 1 and "llm.prefill" in self.case.phases else "llm.decode"

    def _watch(self, module: nn.Module, label: Callable[[], str]) -> None:
        self._hooks += [
            module.register_forward_pre_hook(lambda _module, _args: self.enter(label())),
            module.register_forward_hook(lambda _module, _args, _output: self.leave(), always_call=True),
        ]

    def __enter__(self) -> "Oracle":
        global _active
        assert _active is None, "one oracle at a time"
        paths = dict(self.module.named_modules())
        if self.case.lm is not None:
            self._watch(paths[self.case.lm], self._lm_phase)
        for pattern, name in self.case.spans:
            found = [module for path, module in paths.items() if re.fullmatch(pattern, path)]
            assert found, f"{self.case.name}: the span {pattern!r} matches no module"
            for module in found:
                self._watch(module, lambda name=name: name)
        _active = self
        self._settle()
        return self

    def __exit__(self, *error: object) -> None:
        global _active
        _active = None
        while self._hooks:
            self._hooks.pop().remove()
        self._stack.clear()
        if self.current is not None and self.changed is not None:
            self.changed(None)
        self.current = None


def run(case: Case, built: Built, changed: Callable[[str | None], None] | None = None) -> Any:
    """Runs the case once under the oracle; `changed` is told each change of the phase."""
    module, args, kwargs = built
    torch.manual_seed(0)
    with contextlib.ExitStack() as stack:
        if case.mode == "inference":
            stack.enter_context(torch.no_grad())
        stack.enter_context(Oracle(case, module, changed))
        return module(*args, **kwargs)


def trace(case: Case, built: Built) -> list[tuple[str, str | None]]:
    """Runs the case on the CPU: every dispatched operator with its true phase."""
    return trace_with_output(case, built)[0]


def trace_with_output(case: Case, built: Built) -> tuple[list[tuple[str, str | None]], Any]:
    """As `trace`, with what the module returned."""
    ops: list[tuple[str, str | None]] = []
    now: list[str | None] = [None]

    class Recorder(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # noqa: ANN001, ANN204
            # The profiler's range markers of optimizers are no operators of the program.
            if func.namespace != "profiler":
                ops.append((str(func), now[0]))
            return func(*args, **(kwargs or {}))

    def changed(name: str | None) -> None:
        now[0] = name

    with Recorder():
        out = run(case, built, changed)
    return ops, out
