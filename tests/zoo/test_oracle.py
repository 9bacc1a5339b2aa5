"""The oracle's phases on models of a few lines, and what is promised about the two splits."""

import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))
from zoo import labels, oracle, parts, record, registry


def case(make, phases, **kw):
    """A case that is in no split."""
    given = dict(mode="inference", spans=(), default=None, lm=None) | kw
    given |= dict(family="", source="", torch25=False, attrs={})
    return registry.Case("test.case", "public", "other", phases, make=make, **given)


def phases_of(one):
    """The phase of each run of equal ones, None left out."""
    seen = [phase for _, phase in oracle.trace(one, registry.build(one))]
    return [p for i, p in enumerate(seen) if p is not None and (i == 0 or seen[i - 1] != p)]


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        y = self.a(x) + 1
        with oracle.phase("mm.fusion"):
            return self.b(y) * 2


def test_spans_count_inside_of_phases_and_the_rest_has_the_default():
    spans = (("a", "vision.stem"), ("b", "vision.head"))
    one = case(lambda: (Two(), (torch.ones(2, 4),)), ("vision.stem",), spans=spans, default="other.forward")
    assert phases_of(one) == ["vision.stem", "other.forward", "vision.head", "mm.fusion"]


def test_what_nothing_covers_has_no_phase():
    one = case(lambda: (Two(), (torch.ones(2, 4),)), (), spans=(("a", "vision.stem"),))
    assert ("aten.add.Tensor", None) in oracle.trace(one, registry.build(one))


def test_a_span_that_matches_nothing_is_an_error():
    one = case(lambda: (Two(), (torch.ones(2, 4),)), (), spans=(("c", "vision.stem"),))
    with pytest.raises(AssertionError, match="matches no module"):
        oracle.trace(one, registry.build(one))


def test_training_steps_have_the_outermost_phase():
    def loss(model, x):
        return model(x).sum()

    one = case(lambda: (parts.TrainStep(Two(), loss, steps=2), (torch.ones(2, 4),)), labels.TRAIN, mode="train")
    assert phases_of(one) == [*labels.TRAIN, *labels.TRAIN]


@pytest.mark.parametrize(
    ("phases", "expect"),
    [
        (("llm.prefill", "llm.decode"), ["llm.prefill", "llm.decode"]),
        (("llm.prefill",), ["llm.prefill", "llm.decode"]),
        (("llm.decode",), ["llm.decode"]),
    ],
)
def test_only_the_first_call_of_an_lm_is_prefill(phases, expect):
    class Loop(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = nn.Linear(4, 4)

        def forward(self, x):
            return self.model(self.model(self.model(x)))

    assert phases_of(case(lambda: (Loop(), (torch.ones(1, 4),)), phases, lm="model")) == expect


def test_one_mark_is_open_at_a_time_and_none_is_left():
    said = []

    class Genie:
        class phase:
            def __init__(self, name):
                self.name = name

            def __enter__(self):
                said.append(f"+{self.name}")

            def __exit__(self, *error):
                said.append(f"-{self.name}")

    one = case(lambda: (Two(), (torch.ones(2, 4),)), (), spans=(("b", "vision.head"),), default="other.forward")
    oracle.run(one, registry.build(one), record.Marks(Genie).changed)
    expect = ("other.forward", "mm.fusion", "vision.head", "mm.fusion", "other.forward")
    assert said == [f"{sign}{name}" for name in expect for sign in "+-"]


def test_cases_are_the_same_every_time():
    one = registry.named("other.mlp_tabular")
    first, second = registry.build(one), registry.build(one)
    assert torch.equal(first[1][0], second[1][0])
    assert all(torch.equal(a, b) for a, b in zip(first[0].parameters(), second[0].parameters(), strict=True))


@pytest.mark.parametrize(("split", "least"), [("public", 70), ("blind", 66)])
def test_each_split_has_all_classes_and_phases(split, least):
    found = registry.cases(split)
    assert len(found) >= least
    assert set(Counter(c.workload for c in found)) == set(labels.WORKLOADS)
    assert {phase for c in found for phase in c.phases} == set(labels.PHASES)
    assert {c.workload for c in found if c.mode == "train"} == set(labels.WORKLOADS)
