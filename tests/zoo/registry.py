"""Cases: a name, its ground truth and the function that builds its model and inputs.

Every model is built on the CPU with random weights from a seed that depends on the name alone, so
a case is the same wherever it is built. Inference models need no gradients and are in eval mode.
"""

import importlib
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .labels import PHASES, WORKLOADS

SPLITS = ("public", "blind")
# What `make` returns: the module, its positional and its keyword arguments.
Built = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Case:
    """One model, one way of running it, and what is true about it."""

    name: str
    split: str
    workload: str
    phases: tuple[str, ...]
    """In the order of their first appearance."""
    mode: str
    """`inference` or `train`."""
    family: str
    source: str
    spans: tuple[tuple[str, str], ...]
    """(pattern of whole module paths, phase): each call of such a module is of that phase."""
    default: str | None
    """The phase of what no span covers; None leaves it without a label."""
    lm: str | None
    """Path of a decoder LM: its first call is `llm.prefill` where the case has that phase, the others decode."""
    torch25: bool
    """Runs only with torch 2.5.1 (see requirements-torch25.txt)."""
    attrs: dict[str, Any]
    make: Callable[[], Any]

    def labels(self) -> dict[str, Any]:
        """The ground truth as it is written next to a recorded graph."""
        return {
            "name": self.name,
            "split": self.split,
            "workload": self.workload,
            "phases": list(self.phases),
            "mode": self.mode,
            "family": self.family,
            "source": self.source,
            "attrs": self.attrs,
        }


_cases: dict[str, Case] = {}
_loaded: set[str] = set()


def split(name: str) -> Callable[..., Callable[[Callable[[], Any]], Callable[[], Any]]]:
    """The decorator that adds cases to one split."""
    assert name in SPLITS, name

    def case(case_name: str, workload: str, phases: Any, **kw: Any) -> Callable[..., Any]:
        def add(make: Callable[[], Any]) -> Callable[[], Any]:
            assert case_name not in _cases, f"{case_name} is there twice"
            assert workload in WORKLOADS, case_name
            assert all(phase in PHASES for phase in phases), case_name
            _cases[case_name] = Case(
                name=case_name,
                split=name,
                workload=workload,
                phases=tuple(phases),
                mode=kw.pop("mode", "inference"),
                family=kw.pop("family", case_name.split(".")[1]),
                source=kw.pop("source", "transformers"),
                spans=tuple(kw.pop("spans", ())),
                default=kw.pop("default", None),
                lm=kw.pop("lm", None),
                torch25=kw.pop("torch25", False),
                attrs=kw,
                make=make,
            )
            return make

        return add

    return case


def cases(split: str | None = None, torch25: bool = False) -> list[Case]:
    """The cases of a split (None: of all), those for torch 2.5.1 only where asked for."""
    for each in SPLITS if split is None else (split,):
        if each not in _loaded:
            importlib.import_module(f"{__package__}.{each}")
            _loaded.add(each)
    return [c for c in _cases.values() if split in (None, c.split) and c.torch25 == torch25]


def named(name: str) -> Case:
    """The case of this name."""
    cases()
    if name not in _cases:
        raise KeyError(f"no case {name!r}; `python -m zoo.verify --list` names them all")
    return _cases[name]


def build(case: Case) -> Built:
    """Builds the case's model and inputs on the CPU."""
    torch.manual_seed(zlib.crc32(case.name.encode()) & 0x7FFFFFFF)
    made = case.make()
    module, args, kwargs = (*made, {})[:3] if isinstance(made, tuple) else (made, (), {})
    if case.mode == "inference":
        module.eval().requires_grad_(False)
    return module, tuple(args), dict(kwargs)
