"""Whoever installed Genie and does not use the device notices nothing."""

import textwrap

import pytest

pytestmark = pytest.mark.remote

COMPILE = """
import warnings
from torch import nn
from torch._dynamo.testing import CompileCounter
from torch._dynamo.utils import counters

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
    def forward(self, x):
        return x + self.b(torch.relu(self.a(x)))
    # As transformers' layers do.
    def __call__(self, *args, **kwargs):
        return super().__call__(*args, **kwargs)

class Kept(nn.Module):
    def forward(self, x):
        return x * 2

def model(device):
    torch.manual_seed(1)
    kept = Kept()
    kept.register_forward_hook(lambda module, args, out: out + 1)
    return nn.Sequential(*[Block() for _ in range(4)], kept).to(device)

def check(device):
    x = torch.linspace(-1, 1, 16).reshape(2, 8).to(device)
    net = model(device)
    expected = net(x)
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        for options in ({}, {"fullgraph": True}, {"fullgraph": True, "dynamic": True}):
            torch._dynamo.reset()
            counter = CompileCounter()
            compiled = torch.compile(net, backend=counter, **options)
            assert torch.allclose(compiled(x).cpu(), expected.cpu())
            assert counter.frame_count == 1, (device, counter.frame_count)
        step = torch.compile(lambda x: net(x).sum(), backend=counter, fullgraph=True)
        step(x)
        for strict in (True, False):
            exported = torch.export.export(net, (x,), strict=strict)
            assert torch.allclose(exported.module()(x).cpu(), expected.cpu())
    assert not counters["graph_break"], counters["graph_break"]
    assert not [str(each.message) for each in heard if "hook" in str(each.message)]

before = nn.Module.__call__
"""


@pytest.mark.parametrize("first", ["torch._dynamo", "genie"])
def test_compiling_sees_nothing_while_a_session_lives(program, first):
    """Neither for a model on the CPU nor for one on the device, whichever was imported first."""
    begin = "torch.zeros(1, device=DEVICE)\n" if first == "genie" else "import torch._dynamo\n"
    running = program(
        begin
        + COMPILE.replace("before = nn.Module.__call__", "")
        + textwrap.dedent("""
        torch.zeros(1, device=DEVICE)
        check("cpu"); check(DEVICE)
        # It is marked all the same.
        marks = genie.stats()["marks"]
        model(DEVICE)(torch.ones(2, 8, device=DEVICE)).cpu()
        marked = genie.stats()["marks"] - marks
        genie.shutdown()
        check("cpu")
        from torch.nn.modules import module as m
        say(marked=marked, hooks=m._has_any_global_hook(), call=nn.Module.__call__.__module__)
        """)
    )
    said, _ = running.finish(300)
    assert said["marked"] >= 2 * 14
    assert not said["hooks"] and said["call"] == "torch.nn.modules.module"


def test_what_was_compiled_before_a_session_is_not_compiled_again(program):
    running = program(
        COMPILE
        + textwrap.dedent("""
        x = torch.ones(2, 8)
        counter = CompileCounter()
        net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Sequential(nn.Linear(8, 8)))
        compiled = torch.compile(net, backend=counter, fullgraph=True)
        for _ in range(2):
            compiled(x)
            torch.zeros(1, device=DEVICE)
            compiled(x)
            genie.shutdown()
            compiled(x)
        say(graphs=counter.frame_count, same=nn.Module.__call__ is before)
        """)
    )
    said, _ = running.finish(300)
    assert said == {"graphs": 1, "same": True}


def test_phases_and_annotations_do_not_break_graphs(program):
    running = program(
        COMPILE
        + textwrap.dedent("""
        torch.zeros(1, device=DEVICE)
        net = genie.annotate(model("cpu"), "prefill")
        def step(x):
            with genie.phase("decode"):
                return net(x)
        counter = CompileCounter()
        torch.compile(step, backend=counter, fullgraph=True)(torch.ones(2, 8))
        say(graphs=counter.frame_count)
        """)
    )
    assert running.finish(300)[0] == {"graphs": 1}
