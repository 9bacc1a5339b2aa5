"""Runs programs on one host and node for long and tells how their resident memory grows.

    python tests/soak/run.py [--minutes 10] [--write docs/soak.md]

Training on fresh batches, generation with ever other lengths, and sessions that come and go, some of
them killed (programs.py). What is sampled after the warm-up must not grow (growth.py).
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path

import psutil
from growth import GROWTH_MIB_PER_HOUR_MAX, MEBI, WANDER_MIB, growth

HERE = Path(__file__).resolve().parent
NAMES = ("training", "generation", "sessions")
# Before anything is sampled: so many rounds of each, and this share of the time.
WARM_ROUNDS = {"training": 30, "generation": 30, "sessions": 10}
WARM_SHARE = 0.25
SAMPLES = 600
SAMPLE_SECONDS_MIN = 0.25
# It goes on until no process has reached a new height for so long, or this long.
SETTLED_SECONDS, SETTLE_SECONDS_MAX = 30, 600
SETTLED_MIB = 1.0
# A session that is killed while it works, this often.
VICTIM_SECONDS = 60
# A round takes milliseconds; a program that says nothing for so long hangs.
ROUND_SECONDS_MAX = 300
END_SECONDS_MAX = 120

VICTIM = """
import torch
torch.set_num_threads(1)
x = torch.ones(1 << 20).to("remote_accelerator")
print((x + 1).sum().item(), flush=True)
while True:
    x = torch.randn(1 << 20).to("remote_accelerator") + x
"""


class Failed(Exception):
    """What went wrong besides memory."""


class Program:
    """One of programs.py; it counts its rounds."""

    def __init__(self, name, environment, errors):
        self.name, self.count, self.heard = name, 0, time.monotonic()
        self.errors = errors
        with open(errors, "w") as file:
            self.process = subprocess.Popen(
                [sys.executable, HERE / "programs.py", name],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True, env=environment,
            )  # fmt: skip
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self):
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):
                self.count, self.heard = json.loads(line)["count"], time.monotonic()

    def check(self):
        if self.process.poll() is not None:
            raise Failed(f"{self.name} ended with status {self.process.returncode}: {self.errors.read_text()[-2000:]}")
        if time.monotonic() - self.heard > ROUND_SECONDS_MAX:
            raise Failed(f"{self.name} has done nothing for {ROUND_SECONDS_MAX} s, after {self.count} rounds")

    def end(self):
        """It ends by itself, and well."""
        self.process.stdin.close()
        if self.process.wait(END_SECONDS_MAX):
            raise Failed(f"{self.name} ended with status {self.process.returncode}: {self.errors.read_text()[-2000:]}")


class Soak:
    def __init__(self, directory):
        self.directory = Path(directory)
        self.samples = {}
        self.killed = 0
        self.seconds = 0.0

    def __enter__(self):
        address = f"unix:{self.directory / 'host.sock'}"
        self.environment = {**os.environ, "GENIE_HOST": address}
        self.log = self.directory / "host.log"
        self.programs, self.victim = [], None
        with open(self.log, "w") as log:
            self.host = subprocess.Popen(
                # Weights that no tensor uses are kept up to this bound, which is reached while it gets warm.
                ["genie-host", "serve", "--listen", address, "--parent-pid", str(os.getpid())]
                + ["--weight-cache-bytes", str(8 << 20)],
                stdout=subprocess.PIPE, stderr=log, text=True,
            )  # fmt: skip
        if not self.host.stdout.readline().startswith("ready"):
            raise Failed(f"genie-host did not become ready: {self.log.read_text()}")
        self.programs = [Program(name, self.environment, self.directory / f"{name}.log") for name in NAMES]
        return self

    def __exit__(self, *_):
        for process in [*(program.process for program in self.programs), self.victim, self.host]:
            if process and process.poll() is None:
                process.terminate()
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(END_SECONDS_MAX)
                process.kill()

    def nodes(self):
        """The processes of the host's nodes."""
        below = psutil.Process(self.host.pid).children(recursive=True)
        found = []
        for process in below:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.name() in ("genie-node", "genie-zygote", "genie-worker"):
                    found.append(process)
        return found

    def check(self):
        if self.host.poll() is not None:
            raise Failed(f"genie-host ended with status {self.host.returncode}: {self.log.read_text()[-2000:]}")
        for program in self.programs:
            program.check()

    def wait(self, what, condition):
        while not condition():
            self.check()
            time.sleep(0.1)
        say(what)

    def sample(self, at):
        for program in self.programs:
            self._note(f"client: {program.name}", at, psutil.Process(program.process.pid).memory_info().rss)
        self._note("host", at, psutil.Process(self.host.pid).memory_info().rss)
        self._note("node", at, sum(node.memory_info().rss for node in self.nodes()))

    def _note(self, name, at, resident):
        self.samples.setdefault(name, []).append((at, resident))

    def settle(self):
        """Caches fill and allocators find their size. What leaks never settles, and is told by its slope."""
        heights, began = {}, time.monotonic()
        rose = began
        while (now := time.monotonic()) - rose < SETTLED_SECONDS and now - began < SETTLE_SECONDS_MAX:
            self.check()
            self.sample(now)
            for name, samples in self.samples.items():
                level = samples[-1][1]
                if level > heights.get(name, 0) + SETTLED_MIB * MEBI:
                    heights[name], rose = level, now
            time.sleep(SAMPLE_SECONDS_MIN)
        self.samples = {}
        say(f"settled after {time.monotonic() - began:.0f} s more")

    def visit(self):
        """A program that is killed while it works comes and goes."""
        if self.victim is None:
            self.victim = subprocess.Popen(
                [sys.executable, "-c", VICTIM], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=self.environment
            )
            threading.Thread(target=self._kill, args=[self.victim], daemon=True).start()

    def _kill(self, victim):
        if victim.stdout.readline():
            victim.send_signal(signal.SIGKILL)
            self.killed += 1
        victim.wait()
        victim.stdout.close()
        self.victim = None

    def run(self, seconds):
        ready = {name: 1 for name in NAMES}
        self.wait("all programs are at work", lambda: self._have_done(ready))
        node = {process.pid for process in self.nodes()}
        began = time.monotonic()
        self.visit()
        self.wait("warm", lambda: time.monotonic() - began > seconds * WARM_SHARE and self._have_done(WARM_ROUNDS))
        self.settle()
        began = visited = time.monotonic()
        self.before = {program.name: program.count for program in self.programs}
        every = max(SAMPLE_SECONDS_MIN, seconds / SAMPLES)
        ends = began + seconds * (1 - WARM_SHARE)
        while (now := time.monotonic()) < ends:
            self.check()
            self.sample(now - began)
            if now - visited > VICTIM_SECONDS:
                self.visit()
                visited = now
            time.sleep(every)
        self.seconds = time.monotonic() - began
        after = {process.pid for process in self.nodes()}
        if not node <= after:
            raise Failed(f"a node ended: {node} before, {after} after: {self.log.read_text()[-2000:]}")
        self.rounds = {program.name: program.count - self.before[program.name] for program in self.programs}
        for program in self.programs:
            program.end()

    def _have_done(self, rounds):
        return all(program.count >= rounds[program.name] for program in self.programs)


def say(text):
    print(f"  {text}", file=sys.stderr, flush=True)


def page(soak, found):
    bound = next(iter(found.values())).bound
    rows = [
        f"| {name} | {g.start_mib:.1f} | {g.end_mib:.1f} | {g.mib_per_hour:+.2f} | {g.uncertainty:.2f} |"
        for name, g in found.items()
    ]
    done = ", ".join(f"{soak.rounds[name]:,} rounds of {name}" for name in NAMES)
    short = "" if bound <= GROWTH_MIB_PER_HOUR_MAX else (
        f"So short a run cannot tell that: a level that wanders by {WANDER_MIB:g} MiB has not grown, so it tells growth "
        f"above {bound:.1f} MiB an hour. `make soak HOURS=8` tells what is asked for."
    )  # fmt: skip
    lines = [
        "# Soak: what stays in memory", "",
        f"Written by `make soak` on {datetime.date.today().isoformat()}: {soak.seconds / 60:.1f} minutes after the warm-up,",
        f"{os.cpu_count()} cores, torch {version('torch')}, Python {platform.python_version()}, Linux {platform.release().split('-')[0]}.",
        "", "One host and one node serve three programs for all that time: training on batches that were never seen before",
        "(1 MiB each, ten steps a round), generation with other lengths each time, and sessions that come and go; beside",
        "them programs that are killed while they work. Meanwhile: " + f"{done}, {soak.killed} programs killed.", "",
        f"Resident memory grows by less than {GROWTH_MIB_PER_HOUR_MAX:g} MiB an hour, of each process. {short}".strip(), "",
        "| process | MiB at first | MiB at last | MiB an hour | +- |", "|---|---|---|---|---|", *rows, "",
        "The slope of a line through the medians of 24 parts of the run, and twice its standard error.", "",
    ]  # fmt: skip
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--write", type=Path, metavar="FILE")
    options = parser.parse_args()
    # Short: the path of a socket has little room.
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        try:
            with Soak(directory) as soak:
                soak.run(options.minutes * 60)
        except Failed as failure:
            print(f"soak: FAILED: {failure}")
            return 1
    found = {name: growth(samples) for name, samples in soak.samples.items()}
    text = page(soak, found)
    print(text)
    if options.write:
        options.write.write_text(text)
    grown = [f"{name} by {g.mib_per_hour:.1f} MiB an hour" for name, g in found.items() if not g.is_bounded]
    bound = next(iter(found.values())).bound
    print(f"soak: FAILED: grows: {', '.join(grown)}" if grown else f"soak: ok: nothing grows by {bound:.1f} MiB an hour")
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
