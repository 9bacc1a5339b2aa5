"""How much of a link the transports use: `make bench-net`.

    python tests/net/run.py [--quick] [--cells 1g,2ms,0.1%] [--contenders tcp-cubic,genie-udp] [--seconds 3]

Measures kernel TCP (cubic, bbr) and Genie's transports on links of namespaces (tests/net/bed.py), in each cell
one after the other on the same link, and prints and writes (--write) a table of goodput as a share of the
link, and CPU seconds per gigabyte. Ctrl-C removes the namespaces.
"""

import argparse
import contextlib
import datetime
import itertools
import json
import os
import platform
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import bed
import plot
from contender import WARM_UP_SECONDS, KernelTcp, contenders
from measure import Sampler, foreign_now

ROOT = Path(__file__).resolve().parents[2]
GIGABITS, RTTS_MS, LOSSES = (1, 2.5, 5), (0, 2), (0, 0.001, 0.01)
# Beyond these a figure says more about this machine or the test bed than about the contender.
CPU_SHARE_MAX, RELAY_SHARE_MAX, FOREIGN_SHARE_MAX, FULL_SHARE_MIN = 0.9, 0.5, 0.2, 0.9
MARKS = {
    "c": f"bound by CPU: an endpoint used over {CPU_SHARE_MAX:.0%} of a core, or the test in all over {CPU_SHARE_MAX:.0%} of all cores",
    "n": f"bound by the test bed: its router used over {CPU_SHARE_MAX:.0%} of a core and the link was not full",
    "r": f"the delay relay used over {RELAY_SHARE_MAX:.0%} of a core",
    "s": f"shared: other programs used over {FOREIGN_SHARE_MAX:.0%} of a core meanwhile",
}
QUIET_CORES_MAX = 0.15
FAIRNESS_SECONDS = 10
# At half a gigabit the router has time to spare and its queue overflows. At a whole one it may be its processor that
# limits; then packets wait in A, where nothing is lost and the kernel holds TCP back (TCP small queues).
FAIRNESS_GIGABITS = (0.5, 1)


@dataclass(frozen=True)
class Cell:
    gigabits: float
    rtt_ms: float
    loss: float

    @property
    def name(self):
        return f"{self.gigabits:g}g,{self.rtt_text()},{self.loss * 100:g}%"

    def rtt_text(self):
        return f"{self.rtt_ms or 0.1:g}ms"

    def link(self):
        return bed.Link(self.gigabits * 1e9, self.rtt_ms, self.loss)


def cells(options):
    """The cells asked for: all, some (`--quick`), or those whose name has every part of a `--cells` word."""
    chosen = [Cell(*setting) for setting in itertools.product(GIGABITS, RTTS_MS, LOSSES)]
    if options.quick:
        chosen = [cell for cell in chosen if cell.gigabits == 1 and (cell.rtt_ms, cell.loss) != (0, 0.01)]
    if options.cells:
        wanted = [set(word.split(",")) for word in options.cells]
        chosen = [cell for cell in chosen if any(parts <= set(cell.name.split(",")) for parts in wanted)]
    if not chosen:
        raise SystemExit(f"no cell is called so; they are like {Cell(1, 2, 0.001).name}, or parts of that: 1g,2ms")
    return chosen


def say(text):
    print(text, file=sys.stderr, flush=True)


def wait_for_quiet(seconds):
    """Waits for other programs to leave the machine alone, not for ever."""
    until = time.monotonic() + seconds
    while foreign_now() > QUIET_CORES_MAX and time.monotonic() < until:
        time.sleep(0.5)


def measure(contender, link, seconds):
    """One contender on a link: its result and what it cost."""
    running = contender.start(link, seconds)
    pids = running.pids() | ({"relay": link.relay.process.pid} if link.relay else {})
    pids |= {f"router{number or ''}": pid for number, pid in enumerate(link.router_threads)}
    with Sampler(pids) as sampler:
        result = running.finish()
    usage = sampler.usage(seconds)
    gigabytes_per_s = result["goodput_bits_per_s"] / 8e9
    everything = usage.network_and_ours()
    cores = len(os.sched_getaffinity(0))
    share = result["goodput_bits_per_s"] / link.rate_bits if link.rate_bits else 1.0
    marks = ""
    if max(usage.processes["sender"], usage.processes["receiver"]) > CPU_SHARE_MAX or everything > CPU_SHARE_MAX * cores:
        marks += "c"
    if usage.processes.get("router", 0) > CPU_SHARE_MAX and share < FULL_SHARE_MIN:
        marks += "n"
    if usage.processes.get("relay", 0) > RELAY_SHARE_MAX:
        marks += "r"
    if usage.foreign > FOREIGN_SHARE_MAX:
        marks += "s"
    return {
        **result,
        "share": share,
        "endpoint_cpu_s_per_gb": usage.endpoints() / gigabytes_per_s,
        "machine_cpu_s_per_gb": everything / gigabytes_per_s,
        "cpu": {name: round(share, 3) for name, share in usage.processes.items()},
        "busy": round(usage.busy, 3),
        "foreign": round(usage.foreign, 3),
        "marks": marks,
    }


def quiet_run(racer, link, options, cell):
    """A run that other programs did not disturb, or after some tries the least disturbed one."""
    runs = []
    for _ in range(options.tries):
        wait_for_quiet(min(options.patience, options.ends - time.monotonic()))
        before = link.counters()
        run = measure(racer, link, options.seconds)
        after = link.counters()
        sent, lost = (after[name][0] - before[name][0] for name in ("forward", "lost"))
        runs.append(run | {"packets": sent, "packets_lost": lost})
        say(f"  {cell.name:16} {racer.name:12} {show(run)} CPU {run['cpu']} others {run['foreign']}")
        if "s" not in run["marks"] or time.monotonic() > options.ends:
            break
    return min(runs, key=lambda run: run["foreign"])


def measure_cell(cell, racers, options):
    """Every contender on one link; the median of the rounds counts, with every mark that one of them had."""
    results = {racer.name: [] for racer in racers}
    failed = {}
    with cell.link() as link:
        for _, racer in itertools.product(range(options.rounds), racers):
            try:
                run = quiet_run(racer, link, options, cell)
            except (EOFError, TimeoutError, RuntimeError, ValueError, KeyError) as error:
                say(f"  {cell.name} {racer.name}: failed: {error}")
                failed[racer.name] = {"failed": str(error)}
                continue
            results[racer.name].append(run)
    return failed | {name: middle(runs) for name, runs in results.items() if runs}


def middle(runs):
    runs = sorted(runs, key=lambda run: run["goodput_bits_per_s"])
    marks = "".join(mark for mark in MARKS if any(mark in run["marks"] for run in runs))
    return runs[(len(runs) - 1) // 2] | {"marks": marks, "runs_share": [round(run["share"], 4) for run in runs]}


def bed_capacity(seconds):
    """What crosses the test bed without a rate limit, in bits per second: TCP cubic, packets of 1500 bytes."""
    with bed.Link() as link:
        return measure(KernelTcp("cubic"), link, seconds)["goodput_bits_per_s"]


def shared_link(first, second, gigabits, seconds=FAIRNESS_SECONDS):
    """Two contenders on one link with 2 ms: the second's share of the bytes that B receives."""
    with bed.Link(gigabits * 1e9, 2) as link:
        lead = max(first.lead_seconds, second.lead_seconds)
        runs = [contender.start(link, seconds + lead + 1) for contender in (first, second)]
        link.counter_at_b("meta l4proto { tcp, udp }")
        link.counter_at_b(f"tcp dport {runs[0].port}")
        time.sleep(lead)
        before, dropped = link.read_at_b(), link.queue_drops()
        time.sleep(seconds)
        after, dropped = link.read_at_b(), link.queue_drops() - dropped
        for run in runs:
            run.finish()
    both, one = (b[1] - a[1] for a, b in zip(before, after, strict=True))
    used = both * 8 / seconds / (gigabits * 1e9)
    return {"first": one / both, "second": 1 - one / both, "used": used, "dropped": dropped}


def fairness(racers):
    """Each contender against one flow of cubic, by rate."""
    found = {}
    for gigabits, racer in itertools.product(FAIRNESS_GIGABITS, racers):
        if racer.name in ("tcp-cubic", "tcp-bbr", "genie-udp", "genie-quic"):
            with contextlib.suppress(EOFError, TimeoutError, RuntimeError):
                shares = shared_link(KernelTcp("cubic"), racer, gigabits)
                found.setdefault(f"{gigabits:g}", {})[racer.name] = shares
                say(f"  fairness at {gigabits:g} Gb/s: cubic {shares['first']:.0%}, {racer.name} {shares['second']:.0%}")
    return found


def show(run):
    if "failed" in run:
        return "failed"
    text = f"{run['share'] * 100:.1f} ({run['endpoint_cpu_s_per_gb']:.1f}/{run['machine_cpu_s_per_gb']:.1f})"
    return f"{text} {run['marks']}".strip()


def page(report):
    """The report as Markdown."""
    names, lines = report["contenders"], ["# What the transports make of a link", ""]
    lines += [
        f"Written by `make bench-net` on {report['date']}: Linux {report['kernel']}, {report['cores']} cores,"
        f" {report['seconds']:g} s a run after {WARM_UP_SECONDS:g} s of warm-up, {report['rounds']} round(s).",
        f"Without a rate limit the test bed itself carries {report['capacity'] / 1e9:.1f} Gb/s of TCP here.",
        "",
        "Each figure is goodput as % of the link's rate, measured where the bytes arrive. With MTU 1500 nothing can",
        "exceed 95.6 % (TCP's and Ethernet's headers). `0.1ms` has no delay added: the hops themselves take 0.01 ms on",
        "a quiet machine and more on a busy one. In brackets: CPU seconds per gigabyte, of both endpoint processes and",
        "of the whole machine. The second includes what a real network does elsewhere: the router (`tbf` sets a timer",
        "for each packet, so slow links cost more per gigabyte than fast ones), the relay, B's receive work, which the",
        "kernel charges to whichever process it interrupts (now and then to an endpoint, so the first figure wanders),",
        "and in shared runs the kernel's work for other programs, which no counter tells apart. How the link is made:",
        "`tests/net/bed.py`.",
        "",
        "| link, RTT, loss | " + " | ".join(names) + " |",
        "|---|" + "---|" * len(names),
    ]
    for cell, found in report["cells"].items():
        shown = [show(found[name]) if name in found else "" for name in names]
        lines.append(f"| {cell.replace(',', ', ')} | " + " | ".join(shown) + " |")
    lines += ["", "Marks:", "", *(f"- `{mark}`: {text}" for mark, text in MARKS.items()), ""]
    lines += ["![the same as a picture](pictures/network.svg)", ""]
    if report["fairness"]:
        lines += ["## Beside one flow of TCP cubic", ""]
        lines += [
            f"2 ms, no loss but by overflow, both for {FAIRNESS_SECONDS} s, counted where they arrive. Where the router drops",
            "nothing, its processor is the limit: packets then wait in A, and the kernel holds TCP back there.",
            "",
        ]
        lines += ["| link | flow | its share | cubic's share | dropped by the router |", "|---|---|---|---|---|"]
        for gigabits, found in report["fairness"].items():
            for name, shares in found.items():
                lines.append(
                    f"| {gigabits} Gb/s | {name} | {shares['second']:.0%} | {shares['first']:.0%} | {shares['dropped']} |"
                )
        lines.append("")
    lines += round_trips(report)
    if report["missing"]:
        lines += ["## Not measured", "", *(f"- {name}: {why}" for name, why in report["missing"].items()), ""]
    return "\n".join(lines)


def round_trips(report):
    """What the bench command says about small messages, beside the same over plain TCP."""
    rows = []
    for cell, found in report["cells"].items():
        for name, run in found.items():
            if ours := run.get("round_trip_us"):
                plain, ratio = run.get("tcp_round_trip_us"), run.get("round_trip_ratio")
                beside = f"{plain['median']:.0f} | {ratio:.2f}" if plain else "- | -"
                rows.append(f"| {name} | {cell} | {ours['median']:.0f} | {ours['p99']:.0f} | {beside} |")
    head = ["| transport | link | median us | p99 us | plain TCP us | ratio |", "|---|---|---|---|---|---|"]
    return ["## Round trip of a small message", "", *head, *rows, ""] if rows else []


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="five cells at 1 Gb/s")
    parser.add_argument("--cells", nargs="+", metavar="CELL", help="such as 1g,2ms,0.1%% or a part: 5g")
    parser.add_argument("--contenders", help="names, with commas (default: all that there are)")
    parser.add_argument("--seconds", type=float, default=3, help="a run's window (default 3)")
    parser.add_argument("--rounds", type=int, default=1, help="runs of each contender in a cell; the median counts")
    parser.add_argument("--tries", type=int, default=3, help="runs again when other programs took part (default 3)")
    parser.add_argument("--patience", type=float, default=10, help="seconds to wait for a quiet machine before a run")
    parser.add_argument("--minutes", type=float, default=30, help="after that it neither waits nor tries again")
    parser.add_argument("--no-fairness", action="store_true", help="(never with --quick or --cells)")
    parser.add_argument("--write", type=Path, metavar="DIRECTORY", help="writes network.md, .json, pictures/network.svg")
    return parser.parse_args()


def main():
    options = arguments()
    if reason := bed.why_not():
        say(f"skipped: {reason}")
        return
    everyone = contenders()
    if options.contenders:
        names = options.contenders.split(",")
        if unknown := set(names) - {racer.name for racer in everyone}:
            raise SystemExit(f"no contender {', '.join(sorted(unknown))}; there are {', '.join(r.name for r in everyone)}")
        everyone = [racer for racer in everyone if racer.name in names]
    missing = {racer.name: why for racer in everyone if (why := racer.missing())}
    racers = [racer for racer in everyone if racer.name not in missing]
    for name, why in missing.items():
        say(f"not measured: {name}: {why}")
    chosen = cells(options)
    run_seconds = options.seconds + WARM_UP_SECONDS + 1
    say(f"{len(chosen)} cells, {len(racers)} contenders: about {len(chosen) * len(racers) * options.rounds * run_seconds / 60:.0f} min")
    options.ends = time.monotonic() + options.minutes * 60
    wait_for_quiet(options.patience)
    capacity = bed_capacity(options.seconds)
    say(f"the test bed carries {capacity / 1e9:.1f} Gb/s without a limit")
    report = {
        "date": datetime.date.today().isoformat(),
        "kernel": platform.release().split("-")[0],
        "cores": len(os.sched_getaffinity(0)),
        "seconds": options.seconds,
        "rounds": options.rounds,
        "capacity": capacity,
        "contenders": [racer.name for racer in racers],
        "missing": missing,
        "cells": {},
    }
    for number, cell in enumerate(chosen, 1):
        say(f"[{number}/{len(chosen)}] {cell.name}")
        report["cells"][cell.name] = measure_cell(cell, racers, options)
    report["fairness"] = {} if options.quick or options.cells or options.no_fairness else fairness(racers)
    text = page(report)
    print(text)
    if options.write:
        (options.write / "network.md").write_text(text)
        (options.write / "network.json").write_text(json.dumps(report, indent=1) + "\n")
        (options.write / "pictures" / "network.svg").write_text(plot.bars(report))
        say(f"written: {options.write}/network.md, network.json, pictures/network.svg")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        say("stopped; the namespaces are gone")
        raise SystemExit(130) from None
