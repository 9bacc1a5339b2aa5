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
# A Python interpreter is 18 MB of code: some 10 s of one idle core.
LOAD_MS = 180_000


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
    assert b"genie:plugin/recognizer@0.3.0" in content
    assert b"genie:plugin/clock" not in content


@pytest.mark.skipif(shutil.which("genie-host") is None, reason="genie-host is not on PATH")
def test_it_is_loaded_and_recognizes(component, tmp_path):
    """Compiled once with a raised limit for loading, then within the default one."""
    plugin = tmp_path / "python"
    plugin.mkdir(mode=0o755)
    shutil.copy(EXAMPLE / "plugin.toml", plugin)
    shutil.copy(component, plugin / "python_recognizer.wasm")
    env = dict(os.environ, XDG_CACHE_HOME=str(tmp_path / "cache"))
    for limit in (["--plugin-load-ms", str(LOAD_MS)], []):
        command = ["genie-host", "plugin", "test", plugin, EXAMPLE / "attention.json", *limit]
        done = subprocess.run(command, env=env, text=True, timeout=TEST_SECONDS_MAX, capture_output=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("attention") >= 2, done.stdout
