"""Who used the processors during a measurement, from /proc, sampled beside it."""

import os
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

TICK = 1 / os.sysconf("SC_CLK_TCK")
EVERY_SECONDS = 0.1


def process_seconds(pid):
    """(user, system) seconds of all threads of a process; None once it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return int(fields[11]) * TICK, int(fields[12]) * TICK


def machine_seconds():
    """(user, kernel, idle) seconds of all cores together."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    user, nice, system, idle, waiting, hard, soft, stolen = fields
    return (user + nice) * TICK, (system + hard + soft) * TICK, (idle + waiting + stolen) * TICK


@dataclass
class Sample:
    at: float
    machine: tuple
    processes: dict


@dataclass
class Usage:
    """Core seconds per second in a window."""

    seconds: float
    processes: dict = field(default_factory=dict)
    busy: float = 0.0  # all cores together
    foreign: float = 0.0  # user time of programs that are not ours

    def endpoints(self):
        """Of the programs that send and receive, together."""
        return self.processes["sender"] + self.processes["receiver"]

    def network_and_ours(self):
        """Of everything but other people's programs: endpoints, kernel, router, relay."""
        return self.busy - self.foreign


class Sampler:
    """Samples named processes and the machine until it is left."""

    def __init__(self, pids):
        self.pids = pids
        self.samples = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()

    def _run(self):
        while True:
            processes = {name: process_seconds(pid) for name, pid in self.pids.items()}
            self.samples.append(Sample(time.monotonic(), machine_seconds(), processes))
            if self._stop.wait(EVERY_SECONDS):
                return

    def usage(self, seconds):
        """Use in the last `seconds` in which every process was there."""
        whole = [sample for sample in self.samples if None not in sample.processes.values()]
        if len(whole) < 2:
            raise RuntimeError("the programs ended at once")
        last = whole[-1]
        first = next(sample for sample in whole if last.at - sample.at <= seconds)
        span = last.at - first.at

        def both(name):
            return [(b - a) / span for a, b in zip(first.processes[name], last.processes[name], strict=True)]

        user, kernel, _ = ((b - a) / span for a, b in zip(first.machine, last.machine, strict=True))
        shares = {name: both(name) for name in self.pids}
        ours = sum(share[0] for share in shares.values())
        totals = {name: sum(share) for name, share in shares.items()}
        return Usage(span, totals, user + kernel, max(0.0, user - ours))


def foreign_now(seconds=0.3):
    """Cores busy at the moment (nothing of ours runs)."""
    before = machine_seconds()
    time.sleep(seconds)
    after = machine_seconds()
    return sum(b - a for a, b in zip(before[:2], after[:2], strict=True)) / seconds
