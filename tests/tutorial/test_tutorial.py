"""The tutorials' commands, run as a reader would run them.

A fenced block is taken where its first line says so: `sh run` is run by bash, and
`LANGUAGE file=PATH` is written to a file. Both happen in the directory that the shell is in by
then. genie-host must be on PATH, and `python` must be one that has genie.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TUTORIALS = ["tutorial-plugin.md"]
BLOCK_SECONDS_MAX = 900
BLOCK = re.compile(r"^```(\w+) +(run|file=(\S+))\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text):
    """(line, language, file or None, content) of each marked block."""
    for match in BLOCK.finditer(text):
        line = text.count("\n", 0, match.start()) + 1
        yield line, match[1], match[3], match[4]


def environment(bin_dir):
    """The tests' environment, with their own Python as `python`."""
    bin_dir.mkdir()
    (bin_dir / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    (bin_dir / "python").chmod(0o755)
    env = dict(os.environ, PATH=f"{bin_dir}{os.pathsep}{os.environ['PATH']}")
    # Host and plugins are the reader's own, not those of the tests around this one.
    for name in ("GENIE_HOST", "GENIE_PLUGINS"):
        env.pop(name, None)
    # Kept between runs, so that only the new crate is compiled.
    env.setdefault("CARGO_TARGET_DIR", str(ROOT / "target" / "tutorial"))
    return env


def run(command, cwd, env, where):
    """Runs a block; gives the directory that it ends in."""
    state = env["GENIE_TUTORIAL_STATE"]
    script = f"set -eu\n{command}\npwd > {state}\n"
    done = subprocess.run(
        ["bash", "-c", script], cwd=cwd, env=env, text=True, timeout=BLOCK_SECONDS_MAX,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{where} failed ({done.returncode}):\n{command}\n{done.stdout}"
    print(done.stdout)
    return Path(Path(state).read_text().strip())


@pytest.mark.parametrize("name", TUTORIALS)
def test_every_command_of_a_tutorial_works(name, tmp_path):
    for program in ("genie-host", "cargo"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not on PATH")
    work = tmp_path / "work"
    work.mkdir()
    env = environment(tmp_path / "bin")
    env["GENIE_TUTORIAL_STATE"] = str(tmp_path / "state")
    cwd = work
    for line, _, file, content in blocks((ROOT / "docs" / name).read_text()):
        where = f"docs/{name}:{line}"
        if file is None:
            cwd = run(content, cwd, env, where)
            pin(cwd)
            continue
        path = cwd / file
        assert work in path.resolve().parents, where
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def pin(cwd):
    """Gives a new crate the versions of this checkout, which are there without a network."""
    lock = cwd / "Cargo.lock"
    if (cwd / "Cargo.toml").exists() and not lock.exists():
        shutil.copy(ROOT / "Cargo.lock", lock)


def test_blocks_are_found_with_their_place():
    text = "a\n```sh run\nls\n```\n```text\nno\n```\n```rust file=src/lib.rs\nfn a() {}\n```\n"
    assert list(blocks(text)) == [(2, "sh", None, "ls\n"), (8, "rust", "src/lib.rs", "fn a() {}\n")]
