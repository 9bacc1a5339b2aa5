"""What `make demo` rests on: a fair comparison with eager PyTorch, and a verdict that can be no."""

import importlib
import math
import sys
from pathlib import Path

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parents[2] / "frontend-py" / "examples"
# What PyTorch's CPU allocator gives.
ALIGNMENT_BYTES = 64


@pytest.fixture
def example(monkeypatch):
    """Imports a module of the examples' directory."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    yield importlib.import_module
    for name in [name for name, module in sys.modules.items() if str(EXAMPLES) in (getattr(module, "__file__", None) or "")]:
        del sys.modules[name]


VERDICTS = {
    "equal": ([1.0, -3.0], [1.0, -3.0], True),
    "nothing but zeros": ([0.0, 0.0], [0.0, 0.0], True),
    "rounding of the largest term": ([30.0, 1e-6], [30.0, 1.2e-4], True),
    "an error of the whole": ([30.0, 1.0], [30.001, 1.0], False),
    "small values that are wrong": ([1e-6, 2e-6], [2e-6, 1e-6], False),
    "zeros that are none": ([0.0], [1e-9], False),
    "not a number": ([1.0], [math.nan], False),
    "not a number either": ([math.nan], [math.nan], False),
    "infinite": ([1.0], [math.inf], False),
    "other tokens": ([3, 4], [3, 5], False),
    "the same tokens": ([3, 4], [3, 4], True),
    "another shape": ([1.0], [1.0, 1.0], False),
    "another dtype": ([1.0], [1], False),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_verdict(name, example):
    want, have, close = VERDICTS[name]
    worst, verdict = example("run_demo").compare([torch.tensor(want)], [torch.tensor(have)])
    assert verdict == close, worst


def test_fewer_answers_than_eager_are_no_agreement(example):
    with pytest.raises(ValueError):
        example("run_demo").compare([torch.ones(1)], [])


@pytest.mark.parametrize("name", ["sentence_search", "smollm2"])
def test_weights_of_a_mapped_file_are_copied_before_they_are_compared(name, example, monkeypatch):
    """Both sides begin with weights as PyTorch allocates them: eager rounds by how they are aligned."""
    seen = []

    def to(module, *arguments, **more):
        seen.extend(tensor.data_ptr() % ALIGNMENT_BYTES for tensor in module.parameters())
        return moved(module, *arguments, **more)

    moved = torch.nn.Module.to
    monkeypatch.setattr(torch.nn.Module, "to", to)
    example(name).prepare("cpu")
    assert seen and not any(seen), f"{sum(map(bool, seen))} of {len(seen)} weights lie elsewhere"


def test_tied_weights_stay_tied_when_they_are_copied(example):
    model = torch.nn.Sequential(torch.nn.Embedding(5, 3), torch.nn.Linear(3, 5, bias=False))
    model[1].weight = model[0].weight
    before = model[0].weight.data_ptr()
    own = example("_example").own_memory(model)
    assert own[1].weight is own[0].weight and own[0].weight.data_ptr() != before
    assert own[0].weight.requires_grad
