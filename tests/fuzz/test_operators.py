"""A slice of `make fuzz-operators`; and that calls can be made again, and that a judge can say no."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
import operators
import wire
from crafted import Schemas

SLICE_CALLS, SLICE_SEED = 1000, 20
# What it may take on a machine that does much else; some twenty seconds where it does not.
SLICE_SECONDS_MAX = 900
# Seconds say little of a rate: only whether the witness was held up.
SLICE_RATE_MIN = 0.1
LOST = "the process that ran this session's operators on the node {}; its tensors are lost"


@pytest.fixture(scope="module")
def schemas():
    return Schemas()


def test_a_slice_of_the_fuzzer():
    command = [sys.executable, HERE / "operators.py", "--calls", str(SLICE_CALLS), "--seed", str(SLICE_SEED)]
    command += ["--rate-min", str(SLICE_RATE_MIN)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SLICE_SECONDS_MAX)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "fuzz-operators: ok" in done.stdout


def test_a_call_is_the_same_each_time(schemas):
    for name in ("aten::add.Tensor", "aten::embedding_bag", "aten::_foreach_add.List"):
        for number in range(20):
            assert schemas.call(3, name, number) == schemas.call(3, name, number)
        assert schemas.call(3, name, 0) != schemas.call(4, name, 0)


def test_every_operator_has_calls(schemas):
    runs, others = schemas.drawable(set())
    assert not runs and len(others) > 2000
    for name in others:
        assert schemas.call(0, name, 0).template()


@pytest.mark.parametrize(
    "how, key",
    [
        ("ended by SIGSEGV while it ran aten::b", ("aten::b", "SIGSEGV")),
        ("ended by signal 31 while it ran aten::b", ("aten::b", "signal 31")),
        ("ended with status 3 while it ran aten::b", ("aten::b", "with status 3")),
        ("was killed (SIGKILL; the machine may be out of memory) while it ran aten::b", ("aten::b", "SIGKILL")),
        ("ended by SIGABRT", ("(no operator)", "SIGABRT")),
    ],
)
def test_who_crashed_is_read_from_the_refusal(how, key):
    said = []
    client = operators.Client("unix:none", iter(()), operators.Counts(), said.append)
    client.refused(wire.Refused(wire.NODE_LOST, LOST.format(how)), [("aten::a", 7, None), ("aten::b", 9, None)])
    assert client.counts.crashes == {key: 1} and client.counts.unanswered == 1
    assert ("--only aten::b --first 9" in said[0]) == (key[0] == "aten::b"), said


def test_what_was_given_up_is_no_crash():
    client = operators.Client("unix:none", iter(()), operators.Counts())
    client.forsaken = "aten::b"
    how = "was killed (SIGKILL; the machine may be out of memory) while it ran aten::b"
    client.refused(wire.Refused(wire.NODE_LOST, LOST.format(how)), [("aten::a", 0, None)])
    assert not client.counts.crashes and client.counts.unanswered == 1
