"""Plugins change no answer: with all of them, with none, and with one that answers at random."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import Program

ROOT = Path(__file__).resolve().parents[2]
WASM = "wasm32-unknown-unknown"

pytestmark = pytest.mark.remote


@pytest.fixture(scope="module")
def random_plugins(tmp_path_factory):
    """A directory with the plugin of tests/plugins/random, built from source."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    command = ["cargo", "build", "--release", "--quiet", "--target", WASM, "-p", "genie-random-notes"]
    subprocess.run([*command, "--target-dir", str(target)], cwd=ROOT, check=True, timeout=600)
    place = tmp_path_factory.mktemp("plugins") / "random"
    place.mkdir(mode=0o755)
    shutil.copy(target / WASM / "release" / "genie_random_notes.wasm", place / "random.wasm")
    shutil.copy(ROOT / "tests/plugins/random/plugin.toml", place / "plugin.toml")
    for file in place.iterdir():
        file.chmod(0o644)
    return place.parent


@pytest.fixture(params=["installed", "random"])
def plugins(request):
    """The environment of a program whose host has these plugins."""
    return {"GENIE_PLUGINS": str(request.getfixturevalue("random_plugins"))} if request.param == "random" else {}


@pytest.fixture(scope="module")
def without():
    """What the program says whose host has no plugins."""
    running = Program(PROGRAM, env={"GENIE_PLUGINS": "none"})
    try:
        return running.finish()[0]
    finally:
        running.end()


PROGRAM = """
import hashlib, genie
from torch import nn
device = "remote_accelerator"
digest = hashlib.sha256()

def read(tensor):
    digest.update(tensor.detach().cpu().numpy().tobytes())

torch.manual_seed(11)
# Inference with a cache, token by token, explained in between.
norm, split, head = nn.LayerNorm(16).to(device), nn.Linear(16, 48).to(device), nn.Linear(16, 50).to(device)
table = nn.Embedding(50, 16).to(device)
with torch.no_grad():
    token, cache = torch.tensor([[3, 5, 7]]).to(device), None
    for step in range(6):
        x = table(token)
        q, k, v = split(norm(x)).chunk(3, -1)
        cache = (k, v) if cache is None else (torch.cat([cache[0], k], 1), torch.cat([cache[1], v], 1))
        y = nn.functional.scaled_dot_product_attention(q, *cache, is_causal=step == 0)
        token = head(x + y)[:, -1:].argmax(-1)
        read(token)
        if step in (1, 4):
            genie.explain()
# Training, with dropout on the device's own generator.
model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.3), nn.Flatten(), nn.Linear(144, 5)).to(device)
optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
images, answers = torch.randn(6, 1, 8, 8).to(device), torch.randint(5, (6,)).to(device)
for step in range(4):
    optimizer.zero_grad()
    loss = nn.functional.cross_entropy(model(images), answers)
    loss.backward()
    optimizer.step()
    read(loss)
for parameter in model.parameters():
    read(parameter)
told = genie.explain()
say(digest=digest.hexdigest(), told=told.ops_total > 0, plugins=sorted(each["name"] for each in told.plugins))
"""

def test_results_are_equal_to_the_bit(program, plugins, without):
    said = program(PROGRAM, env=plugins).finish()[0]
    assert said["told"] and said["plugins"] and not without["plugins"], (said, without)
    assert said["digest"] == without["digest"]


def test_a_slice_of_pytorchs_operators(plugins):
    out = subprocess.run(
        [sys.executable, "tests/conformance/run.py", "--every", "40"]
        + ["--allow", "tests/conformance/known_failures.txt"],
        cwd=ROOT,
        env={**os.environ, **plugins},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert out.returncode == 0, out.stdout[-2000:] + out.stderr[-2000:]
