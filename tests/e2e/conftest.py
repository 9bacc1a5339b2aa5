"""Fixtures of the end-to-end tests: real host and node processes, or plain CPU.

GENIE_TEST_DEVICE names the device under test (default remote_accelerator). With `cpu` the tests
that ask for host and node are skipped and the others try the test itself.
"""

import json
import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import psutil
import pytest
import torch

DEVICE = os.environ.get("GENIE_TEST_DEVICE", "remote_accelerator")
REMOTE = DEVICE.startswith("remote_accelerator")
# Bounds of what is waited for: what a fault costs, not how fast a machine is.
GONE_SECONDS_MAX = 60
BUSY_SECONDS_MAX = 120
PROCESS_NAMES = ("genie-host", "genie-node", "genie-zygote", "genie-worker")

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)
if REMOTE:
    import genie


def pytest_configure(config):
    config.addinivalue_line("markers", "slow: long or large; `make test-slow` runs it, `make test` does not")
    config.addinivalue_line("markers", "remote: needs host and node processes")


def pytest_collection_modifyitems(items):
    for item in items:
        if not REMOTE and ("remote" in item.keywords or "program" in getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.skip(reason="the device under test has no host and node"))


@pytest.fixture(scope="session")
def device():
    return DEVICE


@pytest.fixture
def stats():
    """Reads genie.stats(); skips where there is none."""
    if not REMOTE:
        pytest.skip("no counters on cpu")
    return genie.stats


def hosts_of(pids):
    """Pids of the hosts that were started by these programs, also when the programs are gone."""
    found = set()
    for process in psutil.process_iter(["name", "cmdline", "status"]):
        words = process.info["cmdline"] or []
        if process.info["name"] == "genie-host" and "--parent-pid" in words:
            if int(words[words.index("--parent-pid") + 1]) in pids:
                found.add(process.pid)
    return found


def descendants(pid):
    """Processes below this one, now."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def name_of(process):
    """The process's name, or None: it may end while it is looked at."""
    try:
        return process.name()
    except psutil.NoSuchProcess:
        return None


def wait_until(condition, seconds, what):
    """Polls `condition` until it holds; fails with `what` when the time is over."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"after {seconds} s: {what() if callable(what) else what}")
        time.sleep(0.02)


def alive(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


PRELUDE = """
import json, os, signal, sys, threading, time
import torch
import genie
# A shell that starts the tests in the background leaves SIGINT ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)
DEVICE = "remote_accelerator"
def say(**fields):
    print("GENIE-TEST " + json.dumps(fields), flush=True)
def children():
    "{name: pid} of the host and of the node's processes behind this process."
    import psutil
    found = {}
    for process in psutil.Process().children(recursive=True):
        try:
            found[process.name()] = process.pid
        except psutil.NoSuchProcess:
            pass
    return {name: pid for name, pid in found.items() if name.startswith("genie-")}
"""


class Program:
    """A Python program in a process of its own that talks to the test by `say(...)` lines.

    `prefix` is a command that runs a command, such as one that enters a network namespace; it must
    replace itself.
    """

    def __init__(self, source, env=None, args=(), prefix=()):
        environment = {**os.environ, **{k: str(v) for k, v in (env or {}).items()}}
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-c", PRELUDE + textwrap.dedent(source), *args],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            start_new_session=True,
        )
        self.seen = set()

    def note_processes(self):
        """Remembers the host and the node behind this program, to look for them afterwards."""
        self.seen.update(p for p in descendants(self.pid) if name_of(p) in PROCESS_NAMES)

    @property
    def pid(self):
        return self.process.pid

    def heard(self):
        """The fields of the next say(...)."""
        for line in self.process.stdout:
            if line.startswith("GENIE-TEST "):
                self.note_processes()
                return json.loads(line[len("GENIE-TEST ") :])
        raise AssertionError(f"the program ended early:\n{self.process.stderr.read()}")

    def tell(self, line=""):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def finish(self, seconds=600):
        """Waits for the end; (last said fields, stderr). Fails when the exit status is not 0."""
        try:
            out, err = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            pytest.fail(f"the program hangs after {seconds} s:\n{out}\n{err}")
        assert self.process.returncode == 0, f"exit {self.process.returncode}:\n{out}\n{err}"
        said = [line for line in out.splitlines() if line.startswith("GENIE-TEST ")]
        return (json.loads(said[-1][len("GENIE-TEST ") :]) if said else {}), err

    def end(self):
        self.note_processes()
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def left_behind(self):
        still = [p for p in self.seen if alive(p.pid) and p.is_running()]
        return [p.pid for p in still] + sorted(hosts_of({self.pid}))


@pytest.fixture
def program():
    """Starts programs; afterwards each of them, its host and its node must be gone."""
    started = []

    def start(source, env=None, args=(), prefix=()):
        started.append(Program(source, env, args, prefix))
        return started[-1]

    yield start
    for each in started:
        each.end()
    left = [0]

    def nothing_left():
        left[:] = [pid for each in started for pid in each.left_behind()]
        return not left

    wait_until(nothing_left, GONE_SECONDS_MAX, lambda: f"processes left behind: {left}")


class Host:
    """A genie-host of its own, that programs join by GENIE_HOST."""

    def __init__(self, path, *flags, prefix=(), **more):
        self.path = path
        self.address = f"unix:{path}"
        self.environment = {"GENIE_HOST": self.address}
        self.process = subprocess.Popen(
            # It ends with the tests, however they end.
            [*prefix, "genie-host", "serve", "--listen", self.address, "--parent-pid", str(os.getpid()), *flags],
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **more,
        )
        assert self.process.stdout.readline().startswith("ready"), "genie-host did not become ready"

    def node(self):
        """The node, once a program has used the host."""
        found = [c for c in psutil.Process(self.process.pid).children() if name_of(c) == "genie-node"]
        assert len(found) == 1, found
        return found[0]

    def worker(self):
        """The process that runs this user's operators on the node."""
        found = [c for c in self.node().children(recursive=True) if name_of(c) == "genie-worker"]
        assert len(found) == 1, found
        return found[0]

    def end(self):
        if self.process.poll() is None:
            self.process.terminate()
        try:
            self.process.wait(GONE_SECONDS_MAX)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            pytest.fail("genie-host does not end at SIGTERM")
        finally:
            self.process.stdout.close()
        wait_until(lambda: not self.path.exists(), GONE_SECONDS_MAX, "the socket file stays")


@pytest.fixture
def host(tmp_path):
    serving = Host(tmp_path / "host.sock")
    yield serving
    serving.end()


@pytest.fixture
def host_with(tmp_path):
    """Starts a host with these flags."""
    started = []

    def start(*flags):
        started.append(Host(tmp_path / f"host{len(started)}.sock", *flags))
        return started[-1]

    yield start
    for each in started:
        each.end()
