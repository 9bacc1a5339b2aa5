"""The recognizer in Python (plugin-sdk/examples/python-recognizer) builds, loads and answers."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "plugin-sdk" / "examples" / "python-recognizer"
BUILD_SECONDS_MAX = 300
TEST_SECONDS_MAX = 900


@pytest.fixture(scope="module")
def component(tmp_path_factory):
    """The built component; without componentize-py the tests are skipped."""
    builder = os.environ.get("COMPONENTIZE_PY") or shutil.which("componentize-py")
    if builder is None:
        pytest.skip("componentize-py is not here: pip install componentize-py==0.25.1")
    out = tmp_path_factory.mktemp("component") / "python_recognizer.wasm"
    env = dict(os.environ, COMPONENTIZE_PY=builder)
    subprocess.run([EXAMPLE / "build.sh", out], env=env, check=True, timeout=BUILD_SECONDS_MAX)
    return out


def test_nothing_of_a_system_is_imported(component):
    """Names of imports stand in a component as text; WASI's begin with `wasi:`."""
    content = component.read_bytes()
    assert b"genie:plugin/recognizer@0.2.0" in content
    assert b"genie:plugin/clock" not in content


@pytest.mark.skipif(shutil.which("cargo") is None, reason="cargo is not here")
def test_it_is_loaded_and_recognizes(component):
    command = ["cargo", "test", "--release", "--quiet", "-p", "genie-plugin-host", "--example", "compile_child",
               "--test", "python", "--", "--ignored", "--nocapture"]
    done = subprocess.run(
        command, cwd=ROOT, env=dict(os.environ, GENIE_PYTHON_PLUGIN=str(component)),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=TEST_SECONDS_MAX,
    )
    assert done.returncode == 0, done.stdout
    assert "compiled and started in" in done.stdout, done.stdout
