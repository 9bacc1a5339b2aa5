"""The node is in another network namespace: the same answers over each transport, and which
transport it is can be seen."""

import os
import subprocess
import sys
from pathlib import Path

import far as far_away
import pytest
from far import Far, tool

WHY_NOT = far_away.bed.why_not()
pytestmark = [pytest.mark.remote, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT or "")]

EXAMPLES = Path(__file__).resolve().parents[2] / "frontend-py" / "examples"
DEMO_SECONDS_MAX = 900
# Bytes: what the work moves each way at least, and control alone never.
MUCH = 80 << 20
# Control, tensors, and what stats() must say of the latter.
WAYS = {
    "udp": ("quic", "udp", "udp"),
    "tcp": ("quic", "tcp", "tcp"),
    "quic": ("quic", "quic", "quic"),
    "control-tcp": ("tcp", "tcp", "tcp"),
    "control-tcp-udp": ("tcp", "udp", "udp"),
    "shm": ("shm", "", "shm"),
}


@pytest.fixture(scope="module")
def far(tmp_path_factory):
    with Far(tmp_path_factory.mktemp("far")) as far:
        yield far


@pytest.fixture
def node(far):
    """A node that listens in every way, and holds nothing yet."""
    address = far.link.b.address
    yield far.node(listen=[f"quic://{address}:0", f"tcp://{address}:0", f"shm://{far.fresh('node.shm')}"])
    far.end_all()


def address_of(node, control):
    """Where the node listens over this transport."""
    return next(address for address in node.addresses if address.startswith(f"{control}://"))


WORK = """
import copy
from parity import move, tensors, train
from zoo import build

def same(expected, got):
    pairs = list(zip(tensors(expected), tensors(got), strict=True))
    return bool(pairs) and all(torch.equal(a, b.cpu()) for a, b in pairs)

def forward(name):
    model, args, kwargs = build(name)
    model.eval()
    with torch.no_grad():
        expected = model(*args, **kwargs)
        return same(expected, model.to(DEVICE)(*move(args, DEVICE), **move(kwargs, DEVICE)))

def training(name):
    losses = []
    model, args, kwargs = build(name)
    for where in ("cpu", DEVICE):
        there = copy.deepcopy(model).to(where)
        adam = lambda parameters: torch.optim.Adam(parameters, 1e-3)
        square = lambda output: (output.float() ** 2).mean()
        losses.append(train(there, square, adam, move(args, where), move(kwargs, where), 3))
        losses[-1] += [p.detach() for p in there.parameters()]
    return same(*losses)

def decoding(name):
    model, (prompt,), _ = build(name)
    model.eval()
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = None, 0
    lines = []
    for where in ("cpu", DEVICE):
        mask = torch.ones_like(prompt).to(where)
        out = model.to(where).generate(prompt.to(where), attention_mask=mask, max_new_tokens=12, do_sample=False)
        lines.append(out.cpu())
    return lines[0].shape[1] == prompt.shape[1] + 12 and torch.equal(*lines)

def there_and_back(bytes):
    # Odd, so that neither pages nor packets divide it.
    data = torch.randint(0, 255, (bytes + 13,), dtype=torch.uint8)
    far = data.to(DEVICE)
    return torch.equal(far.cpu(), data) and torch.equal(far[7:].cpu(), data[7:])

answers = {"forward": forward("resnet18"), "training": training("mlp"), "decoding": decoding("gpt2"),
           "there_and_back": there_and_back(80 << 20)}
stats = genie.stats()
say(answers=answers, **{key: stats[key] for key in ("mode", "route", "transport", "node_pid")})
"""


@pytest.mark.parametrize("way", WAYS)
def test_answers_are_equal_bit_for_bit(way, far, node):
    control, data, transport = WAYS[way]
    before = far.link.counters()
    # Shared memory is less than the mode `remote`, which would be said.
    mode = "auto" if way == "shm" else "remote"
    said = far.worker.do(WORK, far.environment(address_of(node, control), data=data, GENIE_MODE=mode))
    assert not said["warnings"]
    assert all(said["answers"].values()), said
    assert said["transport"] == transport, said
    assert said["mode"] == ("local_remote" if way == "shm" else "remote"), said
    assert said["node_pid"] == node.process.pid, "the tensors were on the node at the other end"
    assert said["route"].startswith(f"{control}://"), said
    assert "not over" not in said["route"], said
    for lane, (_, bytes) in far.link.counters().items():
        if lane in ("forward", "back"):
            crossed = bytes - before[lane][1]
            assert crossed < MUCH if way == "shm" else crossed > MUCH, f"{lane}: {crossed} bytes"


@pytest.mark.parametrize("way", WAYS)
def test_status_shows_the_transport(way, far, node):
    control, data, transport = WAYS[way]
    address = address_of(node, control)
    host = far.host(address, data=data)
    words = tool("status", "--host", host.address)
    assert f"\n{'host.session.transport':<24} {transport}\n" in words, words
    assert address in words, "the node is named"


def demo(far, node, way, *names):
    """Runs the demo's examples as `make demo` does: the environment alone says where the node is. They
    compare their results with eager PyTorch themselves."""
    control, data, transport = WAYS[way]
    environment = far.environment(address_of(node, control), data=data, GENIE_LOG="info")
    done = subprocess.run(
        [*far.at_a, sys.executable, str(EXAMPLES / "run_demo.py"), *names],
        env={**os.environ, **{key: str(value) for key, value in environment.items()}},
        capture_output=True,
        text=True,
        timeout=DEMO_SECONDS_MAX,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    assert f"a session runs over {control}://" in done.stderr, done.stderr
    assert not data or f"tensors over {transport}" in done.stderr, done.stderr


def test_an_example_of_the_demo_runs_unchanged(far, node):
    before = far.link.counters()["forward"][1]
    demo(far, node, "udp", "train_digits")
    crossed = far.link.counters()["forward"][1] - before
    assert crossed > 1_000_000, f"only {crossed} bytes went to the node"


@pytest.mark.slow
@pytest.mark.parametrize("way", WAYS)
def test_all_examples_of_the_demo_run_unchanged(way, far, node):
    demo(far, node, way)
