"""`genie-host plugin new` makes crates of every kind that build, test and load at once."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECONDS_MAX = 900
KINDS = ["recognizer", "policy", "rewrite", "hints"]

needs_host = pytest.mark.skipif(shutil.which("genie-host") is None, reason="genie-host is not on PATH")
needs_cargo = pytest.mark.skipif(shutil.which("cargo") is None, reason="cargo is not here")


def call(*command, cwd, **env):
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=dict(os.environ, **env), text=True, timeout=SECONDS_MAX,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
    )


def works(*command, cwd, **env):
    done = call(*command, cwd=cwd, **env)
    assert done.returncode == 0, f"{command}:\n{done.stdout}"
    return done.stdout


@needs_host
@needs_cargo
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_crate_builds_tests_and_loads(kind, tmp_path):
    target = os.environ.get("CARGO_TARGET_DIR", str(ROOT / "target" / "tutorial"))
    name = f"new-{kind}"
    works("genie-host", "plugin", "new", name, "--kind", kind, "--dir", tmp_path, cwd=tmp_path)
    crate = tmp_path / name
    # The versions of this checkout, which are there without a network.
    shutil.copy(ROOT / "Cargo.lock", crate)
    works("cargo", "test", "--quiet", cwd=crate, CARGO_TARGET_DIR=target)
    # What `cargo plugin` does, but with dependencies that were built before.
    wasm = ["--release", "--target", "wasm32-unknown-unknown", "--target-dir", f"{target}/wasm"]
    works("cargo", "build", "--quiet", *wasm, cwd=crate)
    component = crate / "target/wasm32-unknown-unknown/release" / f"new_{kind}.wasm"
    component.parent.mkdir(parents=True)
    shutil.copy(f"{target}/wasm/wasm32-unknown-unknown/release/{component.name}", component)
    said = works("genie-host", "plugin", "inspect", crate, cwd=tmp_path, XDG_CACHE_HOME=str(tmp_path / "cache"))
    assert "ready" in said and kind in said, said


@needs_host
@pytest.mark.parametrize(
    ("name", "expect"),
    [("Upper", "begins with a letter"), ("../out", "begins with a letter"), ("fn", "Rust keeps"), ("there", "exists already")],
)
def test_what_cannot_be_made_is_refused_with_the_reason(name, expect, tmp_path):
    (tmp_path / "there").mkdir()
    done = call("genie-host", "plugin", "new", name, "--kind", "recognizer", cwd=tmp_path)
    assert done.returncode != 0
    assert expect in done.stdout, done.stdout
    assert [entry.name for entry in tmp_path.iterdir()] == ["there"]
