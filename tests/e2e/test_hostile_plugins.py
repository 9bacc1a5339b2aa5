"""Hostile plugins under a real program: its answer stays, the others go on, one line tells."""

import json
import os
import subprocess
from pathlib import Path

import pytest
from conftest import Host

ROOT = Path(__file__).resolve().parents[2]
WASM = "wasm32-unknown-unknown"
GUESTS = {"hostile": "genie-guest-hostile", "policy": "genie-guest-policy", "good": "genie-plugin-general"}

pytestmark = pytest.mark.remote


@pytest.fixture(scope="module")
def guests():
    """The components, built from source."""
    target = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    packages = [part for package in GUESTS.values() for part in ("-p", package)]
    command = ["cargo", "build", "--release", "--quiet", "--target", WASM, "--target-dir", str(target), *packages]
    subprocess.run(command, cwd=ROOT, check=True, timeout=600)
    built = target / WASM / "release"
    return {name: (built / f"{package.replace('-', '_')}.wasm").read_bytes() for name, package in GUESTS.items()}


def install(place, name, kind, component, deed=""):
    """Writes a plugin's directory."""
    directory = place / name
    directory.mkdir(parents=True, mode=0o755)
    config = f"\n[config]\ndo = {json.dumps(deed)}\n" if deed else ""
    manifest = f'name = "{name}"\nversion = "1"\nkinds = ["{kind}"]\ncomponent = "it.wasm"\n{config}'
    for file, content in (("plugin.toml", manifest.encode()), ("it.wasm", component)):
        (directory / file).write_bytes(content)
        (directory / file).chmod(0o644)


PROGRAM = """
import genie
x = torch.arange(12.0).reshape(3, 4).to("remote_accelerator")
w = torch.eye(4).to("remote_accelerator")
sums = []
for step in range(4):
    y = (x @ w).relu() + step
    sums.append(float(y.sum()))
    told = genie.explain()
outcomes = {plugin["name"]: plugin["outcome"] for plugin in told.plugins}
say(sums=sums, outcomes=outcomes, why=told.why, plan=told.plan, label=told.workload.label)
"""
SUMS = [66.0, 78.0, 90.0, 102.0]


@pytest.mark.parametrize("deed", ["loop", "memory", "recursion", "trap"])
def test_a_hostile_recognizer_changes_nothing(program, guests, tmp_path, deed):
    install(tmp_path, "bad", "recognizer", guests["hostile"], deed)
    install(tmp_path, "general", "recognizer", guests["good"])
    run = program(PROGRAM, env={"GENIE_PLUGINS": str(tmp_path)})
    said, err = run.finish()
    assert said["sums"] == SUMS
    assert said["outcomes"]["general"] == "ok" and said["label"] == "other"
    # Three strikes: the fourth question finds it disabled, and says so.
    assert "bad" not in said["outcomes"] and any("plugin bad is disabled" in why for why in said["why"])
    lines = [line for line in err.splitlines() if "bad" in line and "disabled" in line]
    assert len(lines) == 1, err


def test_a_file_that_is_no_plugin_changes_nothing(program, guests, tmp_path):
    install(tmp_path, "broken", "recognizer", b"\0asm but not really")
    install(tmp_path, "general", "recognizer", guests["good"])
    said, err = program(PROGRAM, env={"GENIE_PLUGINS": str(tmp_path)}).finish()
    assert said["sums"] == SUMS and said["outcomes"] == {"general": "ok"}
    assert any("plugin broken was refused" in why for why in said["why"])
    assert len([line for line in err.splitlines() if "broken" in line]) == 1, err


@pytest.mark.parametrize("deed", ["unknown-device", "missing-node", "cycle"])
def test_an_illegal_plan_is_refused_and_the_built_in_plan_runs(program, guests, tmp_path, deed):
    install(tmp_path, "bad", "policy", guests["policy"], deed)
    run = program(PROGRAM, env={"GENIE_PLUGINS": str(tmp_path), "GENIE_POLICY": "bad"})
    said, err = run.finish()
    assert said["sums"] == SUMS
    plan = said["plan"]
    refused = dict(plan["refused"])
    assert plan["policy"] != "bad"
    assert "bad" in json.dumps([refused, said["why"]]), said


def test_a_policy_that_is_not_there_is_named(program, guests, tmp_path):
    install(tmp_path, "general", "recognizer", guests["good"])
    said, _ = program(PROGRAM, env={"GENIE_PLUGINS": str(tmp_path), "GENIE_POLICY": "nobody"}).finish()
    assert said["sums"] == SUMS and any("there is no policy `nobody`" in why for why in said["why"])


SLOW = """
import genie
x = torch.arange(12.0).reshape(3, 4).to(DEVICE)
sums = [float(x.sum())]
asking = threading.Thread(target=genie.explain, daemon=True)
asking.start()
while genie.stats()["host.analysis.questions"] == 0:
    assert asking.is_alive()
# The plugin computes, for longer than this test waits, and holds up nobody.
sums.append(float((x + 1).sum()))
calls = genie.stats()["host.plugin.slow.calls"]
say(sums=sums, calls=calls, asking=asking.is_alive())
"""


def test_a_question_holds_up_nobody(program, guests, tmp_path):
    """While a plugin thinks about `explain()`, reads and `stats()` go on, in the same session."""
    (tmp_path / "plugins").mkdir(mode=0o755)
    install(tmp_path / "plugins", "slow", "recognizer", guests["hostile"], "loop")
    flags = ["--plugins", str(tmp_path / "plugins"), "--plugin-call-ms", "60000"]
    host = Host(tmp_path / "host.sock", *flags)
    try:
        said, err = program(SLOW, env=host.environment).finish()
    finally:
        host.end()
    assert said == {"sums": [66.0, 78.0], "calls": 0, "asking": True}
    assert err == ""
