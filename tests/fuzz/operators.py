"""Runs operators with crafted arguments on a node, and looks whether another client notices.

    python tests/fuzz/operators.py [--calls 100000] [--minutes M] [--seed S] [--only OP [--first N]] [--write FILE]

A raw client (wire.py) of one certificate asks for operators drawn from the dispatcher, with arguments
that are wrong in many ways (crafted.py). Its worker may crash. Meanwhile a program of another certificate
(witness.py) compares its answers to the bit; those, its session, the gate and the gate's memory must stay
as they are.

The witness's rate is compared with its rate while a plain client runs harmless operators, in turns of
seconds: what else the machine does then hits both alike.
"""

import argparse
import datetime
import os
import platform
import random
import re
import signal
import sys
import tempfile
import time
from collections import Counter, deque
from importlib.metadata import version
from pathlib import Path

import wire
from crafted import Schemas
from stage import OPERATOR_S, Failed, Stage

MEBI = 1 << 20
# Calls in one message.
BATCH = 24
# Calls that are told of a crash: those before it may have had to do with it.
TOLD = 4
# Of operators that the node does not say that it runs: each is refused.
OTHERS_SHARE = 0.03
REPLY_SECONDS_MAX = OPERATOR_S + 3
SESSION_SECONDS_MAX = 120
# One turn of the fuzzer, and of the plain client.
TURN_SECONDS, PLAIN_SECONDS = 9, 4
ALONE_SECONDS = 6
PROGRESS_SECONDS = 10
GATE_GROWTH_MIB_MAX = 16
# The witness's rate beside its rate with a plain client. On a busy machine it may lose some: each crash forks a new
# worker, on the cores that the witness has too.
RATE_MIN = 0.9
ENDED = re.compile(
    r"the node (?:was killed \((?P<killed>SIG\w+)[^)]*\)|ended by (?P<by>[\w ]+?)|ended (?P<status>[^;]*?))"
    r"(?: while it ran (?P<op>[\w:.]+))?;"
)
HARMLESS = ("aten::add.Tensor", "aten::mul.Tensor", "aten::relu", "aten::neg", "aten::abs")


class Counts:
    """What became of calls."""

    def __init__(self):
        self.ok = self.errors = self.unanswered = self.sessions = 0
        self.crashes, self.timeouts, self.refused = Counter(), Counter(), Counter()

    @property
    def calls(self):
        ended = (self.crashes, self.timeouts, self.refused)
        return self.ok + self.errors + self.unanswered + sum(each.total() for each in ended)

    def line(self):
        crashes, timeouts, refused = (each.total() for each in (self.crashes, self.timeouts, self.refused))
        return (
            f"{self.calls:,} calls: {self.ok:,} ok, {self.errors:,} errors, {crashes:,} crashes, "
            f"{timeouts:,} time-outs, {refused:,} refused, {self.unanswered:,} lost with those"
        )


class Client:
    """Makes calls in sessions, one after the other; `source` gives (operator, its call's number, call)."""

    def __init__(self, address, source, counts, tell=lambda text: None):
        self.address, self.source, self.counts, self.tell = address, source, counts, tell
        self.session, self.free = None, []
        self.answered = deque(maxlen=2 * BATCH)
        # An operator that runs on after its session was closed: it takes the worker with it.
        self.forsaken = None

    def close(self):
        if self.session:
            self.session.close()
        self.session, self.free = None, []
        self.answered.clear()

    def open(self):
        """A session, once there is one: a worker that is ended takes new sessions with it."""
        deadline = time.monotonic() + SESSION_SECONDS_MAX
        while self.session is None:
            try:
                self.session = wire.Session(self.address, SESSION_SECONDS_MAX)
            except wire.Refused as refused:
                if time.monotonic() > deadline:
                    raise Failed(f"the fuzzer gets no session any more: {refused.message}") from None
            except TimeoutError:
                raise Failed(f"the fuzzer hears nothing of a new session for {SESSION_SECONDS_MAX} s") from None
        self.counts.sessions += 1

    def batch(self, size=BATCH):
        """Makes so many calls, or fewer when one of them ends the session."""
        if self.session is None:
            self.open()
        calls = [next(self.source) for _ in range(size)]
        waiting = list(calls)
        try:
            firsts = self.session.send([call for *_, call in calls], self.free)
            self.free = []
            for first in firsts:
                made, error = self.session.reply(REPLY_SECONDS_MAX)
                self.free += range(first, first + made)
                self.counts.errors += error is not None
                self.counts.ok += error is None
                self.answered.append(waiting.pop(0))
            self.forsaken = None
        except TimeoutError:
            self.ended(self.counts.timeouts, "a time-out", waiting, waiting[0][0])
            self.forsaken = waiting[0][0]
        except wire.Refused as refused:
            self.refused(refused, waiting)

    def refused(self, refused, waiting):
        found = ENDED.search(refused.message)
        name = found and found["op"]
        if name and name == self.forsaken and found["killed"]:
            # The node ended what was given up, and with it the session that was begun since.
            self.forsaken = None
            self.counts.unanswered += len(waiting)
            self.close()
        elif found:
            how = found["killed"] or found["by"] or found["status"] or "?"
            self.ended(self.counts.crashes, how, waiting, name or "(no operator)", key=how)
        else:
            self.ended(self.counts.refused, refused.message or "hung up", waiting, waiting[0][0])

    def ended(self, counter, what, waiting, name, key=None):
        """A call ended its session: one that waits, or one before that broke something."""
        counter[(name, key) if key else name] += 1
        self.counts.unanswered += len(waiting) - 1
        op, number, _ = next((call for call in [*waiting, *reversed(self.answered)] if call[0] == name), waiting[0])
        before = ", ".join(f"{op} {number}" for op, number, _ in list(self.answered)[-TOLD:])
        self.tell(f"{what}: {name}, after [{before}]; again: --only {op} --first {number} --calls 1")
        self.close()


def crafted(schemas, names, others, seed, only, first):
    """Calls without end."""
    numbers = random.Random(seed)
    counts = Counter(dict.fromkeys([only], first)) if only else Counter()
    while True:
        name = only or numbers.choice(others if others and numbers.random() < OTHERS_SHARE else names)
        number = counts[name]
        counts[name] += 1
        yield name, number, schemas.call(seed, name, number)


def harmless():
    """Calls without end that each succeed."""
    ones = b"\0\0\x80\x3f" * 64
    whole = wire.geometry(6, 0, [8, 8], [8, 1])
    while True:
        for name in HARMLESS:
            binary = name.endswith(".Tensor")
            args = [wire.tensor(slot, whole) for slot in range(1 + binary)]
            args += [wire.integer(1)] if name == "aten::add.Tensor" else []
            yield name, 0, wire.Call(name, [ones] * (1 + binary), list(range(1 + binary)), [], args, [])


class Turns:
    """The times of one kind of turn, and the witness's rate in them."""

    def __init__(self, witness):
        self.witness, self.times = witness, []
        self.calls = 0

    def add(self, start, end):
        self.times.append((start, end))

    @property
    def seconds(self):
        return sum(end - start for start, end in self.times)

    @property
    def rate(self):
        """The witness's rounds per second."""
        rounds = sum(self.witness.rounds(end) - self.witness.rounds(start) for start, end in self.times)
        return rounds / max(self.seconds, 1e-9)

    @property
    def call_rate(self):
        return self.calls / max(self.seconds, 1e-9)

    @property
    def slowest(self):
        return max((self.witness.slowest(*each) for each in self.times), default=0.0)


class Fuzz:
    def __init__(self, stage, options):
        self.stage, self.options = stage, options
        self.counts, self.began = Counts(), time.monotonic()
        self.alone, self.plain, self.fuzzed = (Turns(stage.witness) for _ in range(3))
        self.told = self.began
        schemas = Schemas()
        with wire.Session(stage.other.address, SESSION_SECONDS_MAX) as session:
            self.names, self.others = schemas.drawable(session.operators)
        if options.only and options.only not in schemas.all:
            raise Failed(f"there is no operator {options.only}")
        if not self.names:
            raise Failed("no operator of this PyTorch is one that the node runs")
        source = crafted(schemas, self.names, self.others, options.seed, options.only, options.first)
        self.client = Client(stage.other.address, source, self.counts, self.tell)
        self.plain_counts = Counts()
        self.plain_client = Client(stage.other.address, harmless(), self.plain_counts)

    def tell(self, text):
        print(f"  {text} --seed {self.options.seed}", flush=True)

    def run(self):
        self.turn(self.alone, ALONE_SECONDS, lambda: time.sleep(0.05))
        # What workers, sessions and their crashes cost once is not growth.
        self.turn(self.plain, PLAIN_SECONDS, self.one_plain)
        self.gate_before = self.stage.gate_bytes()
        deadline = self.began + 60 * self.options.minutes if self.options.minutes else float("inf")
        while (left := self.options.calls - self.counts.calls) > 0 and time.monotonic() < deadline:
            self.plain_client.close()
            self.turn(self.fuzzed, TURN_SECONDS, self.one_crafted, lambda: self.counts.calls)
            self.client.close()
            if left > BATCH:
                self.turn(self.plain, PLAIN_SECONDS, self.one_plain, lambda: self.plain_counts.calls)
        if self.plain_counts.crashes or self.plain_counts.errors:
            raise Failed(f"harmless calls failed: {self.plain_counts.line()}")

    def turn(self, turns, seconds, work, calls=lambda: 0):
        start, before = time.monotonic(), calls()
        while time.monotonic() - start < seconds and work() is not False:
            self.stage.check()
            if time.monotonic() - self.told > PROGRESS_SECONDS:
                self.told = time.monotonic()
                print(f"{self.told - self.began:6.0f} s  {self.counts.line()}", flush=True)
        turns.add(start, time.monotonic())
        turns.calls += calls() - before

    def one_crafted(self):
        left = self.options.calls - self.counts.calls
        if left <= 0:
            return False
        self.client.batch(min(BATCH, left))
        return True

    def one_plain(self):
        """As many calls a second as the fuzzer makes, as far as it gets."""
        start, counted = time.monotonic(), self.plain_counts.calls
        self.plain_client.batch()
        made = self.plain_counts.calls - counted
        if self.fuzzed.calls:
            time.sleep(max(0.0, start + made / self.fuzzed.call_rate - time.monotonic()))
        return True

    def finish(self):
        """What is judged at the end: names of what failed."""
        self.stage.check()
        self.growth_mib = (self.stage.gate_bytes() - self.gate_before) / MEBI
        self.stage.witness.finish()
        failed = []
        if self.growth_mib > GATE_GROWTH_MIB_MAX:
            failed.append(f"the gate grew by {self.growth_mib:.1f} MiB")
        if self.fuzzed.times and self.ratio < self.options.rate_min:
            failed.append(f"the witness's rate fell to {self.ratio:.0%}")
        return failed

    @property
    def ratio(self):
        return self.fuzzed.rate / max(self.plain.rate, 1e-9)


def report(fuzz, options):
    counts = fuzz.counts
    rows = [f"| `{op}` | {how} | {count:,} |" for (op, how), count in counts.crashes.most_common(40)]
    late = [f"`{op}` {count}" for op, count in counts.timeouts.most_common(20)]
    minutes, linux = (time.monotonic() - fuzz.began) / 60, platform.release().split("-")[0]
    ends = (counts.crashes, counts.timeouts, counts.refused)
    figures = [counts.calls, counts.ok, counts.errors, *(each.total() for each in ends), counts.unanswered]
    rates = {
        "alone": fuzz.alone,
        f"beside a plain client, {fuzz.plain.call_rate:.0f} calls a second": fuzz.plain,
        f"beside the fuzzer, {fuzz.fuzzed.call_rate:.0f} calls a second": fuzz.fuzzed,
    }
    return "\n".join([
        "# Fuzzing: operators with crafted arguments", "",
        f"Written by `make fuzz-operators` on {datetime.date.today().isoformat()}: seed {options.seed},",
        f"{minutes:.1f} minutes, {os.cpu_count()} cores, torch {version('torch')}, Python {platform.python_version()}, Linux {linux}.",
        f"{len(fuzz.names):,} operators that the node runs, and {len(fuzz.others):,} that it refuses.", "",
        "A malicious client asks a node for operators with wrong arguments: geometries beyond the storage, places far",
        "outside, huge and negative numbers, NaN, other kinds and types than the schema's. What crashes is its own",
        "worker. Another client computes meanwhile and compares every answer to the bit.", "",
        "| calls | ok | errors | crashes | time-outs | sessions refused | lost with those |",
        "|---|---|---|---|---|---|---|",
        "| " + " | ".join(f"{figure:,}" for figure in figures) + " |", "",
        "| the other client | rounds a second | slowest round, s |", "|---|---|---|",
        *(f"| {name} | {turns.rate:.1f} | {turns.slowest:.2f} |" for name, turns in rates.items()), "",
        f"That is {fuzz.ratio:.0%} of its rate beside a plain client. The gate's memory grew by",
        f"{fuzz.growth_mib:.1f} MiB.", "",
        f"Crashes, of {len({op for op, _ in counts.crashes})} operators:", "",
        "| operator | ended by | times |", "|---|---|---|", *rows, "",
        f"Time-outs, after {REPLY_SECONDS_MAX} s: {', '.join(late) or 'none'}.", "",
    ])  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, help="end after so long, whatever --calls says")
    parser.add_argument("--seed", type=int, default=None, help="default: another each time")
    parser.add_argument("--only", metavar="OP", help="only this operator, such as aten::add.Tensor")
    parser.add_argument("--first", type=int, default=0, metavar="N", help="with --only: begin with its call N")
    parser.add_argument("--rate-min", type=float, default=RATE_MIN, help="witness, beside a plain client")
    parser.add_argument("--write", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.seed is None:
        options.seed = random.SystemRandom().randrange(1 << 32)
    print(f"seed {options.seed}", flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))
    # Short: the path of a socket has little room.
    with tempfile.TemporaryDirectory(prefix="fuzz-") as directory:
        try:
            with Stage(directory) as stage:
                fuzz, stopped = Fuzz(stage, options), False
                try:
                    fuzz.run()
                except KeyboardInterrupt:
                    stopped = True
                fuzz.client.close()
                fuzz.plain_client.close()
                failed = fuzz.finish()
                text = report(fuzz, options)
        except Failed as failure:
            print(f"fuzz-operators: FAILED: {failure}")
            return 1
    print(text)
    if options.write and not stopped:
        options.write.write_text(text)
    print(f"fuzz-operators: FAILED: {', '.join(failed)}" if failed else f"fuzz-operators: ok: {fuzz.counts.line()}")
    return 1 if failed else 130 if stopped else 0


if __name__ == "__main__":
    sys.exit(main())
