"""The last line of `make test` says what was skipped and why; a skip fails in CI."""

import os
import subprocess
import sys
from pathlib import Path

import outcomes
import pytest

NEXTEST = """
    test result: FAILED. 0 passed; 1 failed; 0 ignored; 0 measured; 22 filtered out; finished in 60.17s
     Summary [  12.345s] 812 tests run: 809 passed (1 slow), 2 failed, 1 timed out, 3 skipped
"""
CARGO = """
test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
test result: FAILED. 7 passed; 2 failed; 1 ignored; 0 measured; 0 filtered out; finished in 1.00s
"""
PROGRAMS = {
    "whole": "import pytest\npytestmark = pytest.mark.skip(reason='no namespaces here')\ndef test_a(): pass\ndef test_b(): pass\n",
    "inside": "import pytest\ndef test_c():\n    pytest.skip('no cargo')\ndef test_d(): pass\n",
    "module": "import pytest\npytest.skip('no torch', allow_module_level=True)\n",
    "bad": "def test_e(): assert False\n",
    "fixture": "import pytest\n@pytest.fixture\ndef f(): assert False\ndef test_f(f): pass\n",
}


@pytest.mark.parametrize(("text", "expected"), [(NEXTEST, (809, 3)), (CARGO, (12, 2)), ("error: no such crate", (0, 0))])
def test_what_cargo_says(text, expected):
    assert outcomes.of_cargo(text) == [f"passed {expected[0]}", f"failed {expected[1]}"]


@pytest.fixture
def ran(tmp_path):
    """Runs these programs by pytest with the plugin; the directory of their outcomes."""

    def run(*names, **variables):
        left = tmp_path / "outcomes"
        left.mkdir()
        for name in names:
            (tmp_path / f"test_{name}.py").write_text(PROGRAMS[name])
        inherited = {name: value for name, value in os.environ.items() if name != "OUTCOMES_AGAIN"}
        env = {**inherited, "GENIE_OUTCOMES": str(left), "PYTHONPATH": str(Path(outcomes.__file__).parent)} | variables
        files = [f"test_{name}.py" for name in names]
        subprocess.run([sys.executable, "-m", "pytest", "-q", "-p", "outcomes", *files], cwd=tmp_path, env=env, capture_output=True)
        return left

    return run


def test_skips_are_told_with_their_reasons(ran):
    line, is_well = outcomes.close(ran("whole", "inside", "module"), [], 9, is_ci=False)
    assert is_well
    assert line.startswith("make test: ok: 1 passed, 0 failed, 4 skipped in 9 s; skipped: ")
    for part in ("test_whole.py (2): no namespaces here", "test_inside.py::test_c: no cargo", "test_module.py: no torch"):
        assert part in line, line


def test_a_skip_fails_in_ci_unless_it_is_listed(ran, monkeypatch, tmp_path):
    left = ran("inside")
    line, is_well = outcomes.close(left, [], 9, is_ci=True)
    assert not is_well and "1 skipped in CI" in line and "test_inside.py::test_c: no cargo" in line
    listed = tmp_path / "skips.txt"
    listed.write_text("# why\n*test_inside.py::*: no cargo  # this machine has none\n")
    monkeypatch.setattr(outcomes, "ALLOWED", listed)
    monkeypatch.setattr(outcomes, "allowed", lambda read=outcomes.allowed: read(listed))
    assert outcomes.close(left, [], 9, is_ci=True)[1]


def test_failures_are_counted_and_never_well(ran):
    left = ran("bad", "fixture", "inside")
    line, is_well = outcomes.close(left, ["test-python"], 9, is_ci=False)
    assert not is_well and "FAILED: test-python: 1 passed, 2 failed, 1 skipped" in line
    # Also where a part forgets to say so by its exit status.
    assert not outcomes.close(left, [], 9, is_ci=False)[1]


def test_what_is_run_once_more_is_not_counted_before(ran):
    counts, _ = outcomes.collect(ran("bad", "inside", OUTCOMES_AGAIN="1"))
    assert counts == {"passed": 1}
