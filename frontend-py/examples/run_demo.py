"""`make demo`: each example on eager CPU and on a device, side by side, and what it cost.

    python run_demo.py [EXAMPLE ...] [--device remote_accelerator] [--threads 1]

Each example runs in a process of its own. The rounds of the two devices are interleaved and the
times are medians, so that a busy machine slows both alike.
"""

import argparse
import importlib
import json
import math
import os
import statistics
import subprocess
import sys
import time

EXAMPLES = ["vqa", "llm_generate", "smollm2", "sentence_search", "train_digits"]
# So many rounds, and for quick examples until this time is over: 3 rounds once read 0.64 for 1.05.
ROUNDS = 3
ROUNDS_MAX = 31
SECONDS = 4.0
# Of the largest value.
TOLERANCE = 1e-5


def counters(device):
    """The numbers of genie.stats() that the report uses; zeros on other devices."""
    if not device.startswith("remote_accelerator"):
        return dict.fromkeys(("ops", "bytes_up", "bytes_down", "round_trips", "capture_ns"), 0)
    import genie

    stats = genie.stats()
    return {key: stats[key] for key in ("ops", "bytes_up", "bytes_down", "round_trips", "capture_ns")}


def compare(expected, got):
    """(largest |difference| of any tensor as a share of its scale, within TOLERANCE?)

    A tensor's scale is the largest |value| that eager computed: rounding of a sum is as large as its
    largest terms, also where they cancel. Whole numbers, such as tokens, must be equal.
    """
    worst = 0.0
    for want, have in zip(expected, got, strict=True):
        worst = max(worst, difference(want, have))
    return worst, worst <= TOLERANCE


def difference(want, have):
    """The largest |difference| as a share of the largest |value| wanted; infinite for what is no answer."""
    import torch

    if want.shape != have.shape or want.dtype != have.dtype:
        return math.inf
    if torch.equal(want, have):
        return 0.0
    if not want.is_floating_point():
        return math.inf
    want, have = want.double(), have.double()
    share = float((want - have).abs().max() / want.abs().max())
    return share if math.isfinite(share) else math.inf


def timed(work):
    start = time.perf_counter()
    answer, tensors = work()
    return time.perf_counter() - start, answer, tensors


def run_one(name, device, threads):
    """Runs one example on both devices and returns its row of the report."""
    import _example

    _example.use(device, threads)
    example = importlib.import_module(name)
    _example.progress(f"{name}: preparing on cpu")
    eager = example.prepare("cpu")
    _example.progress(f"{name}: preparing on {device}")
    before_upload = counters(device)
    remote = example.prepare(device)
    _, _, expected = timed(eager)
    _, answer, got = timed(remote)  # the first run defines templates: not timed
    uploaded = counters(device)["bytes_up"] - before_upload["bytes_up"]
    worst, close = compare(expected, got)

    rounds = getattr(example, "ROUNDS", ROUNDS)
    eager_s, remote_s, moved = [], [], []
    while len(eager_s) < rounds or (sum(eager_s + remote_s) < SECONDS and len(eager_s) < ROUNDS_MAX):
        eager_s.append(timed(eager)[0])
        before = counters(device)
        remote_s.append(timed(remote)[0])
        after = counters(device)
        moved.append({key: after[key] - before[key] for key in after})
    _example.progress(f"{name}: {len(eager_s)} rounds on each side")
    last = moved[-1]
    return {
        "example": name,
        "answer": answer,
        "difference": worst,
        "close": close,
        "eager_ms": 1e3 * statistics.median(eager_s),
        "remote_ms": 1e3 * statistics.median(remote_s),
        "ratio": statistics.median(remote_s) / statistics.median(eager_s),
        "rounds": len(eager_s),
        "first_up": uploaded,
        "up": last["bytes_up"],
        "down": last["bytes_down"],
        "round_trips": last["round_trips"],
        "ops": last["ops"],
        "capture_us_per_op": 1e-3 * last["capture_ns"] / max(1, last["ops"]),
    }


def amount(count):
    for unit in ("B", "kB", "MB"):
        if count < 10_000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


def show(row):
    verdict = "same" if row["close"] else f"DIFFERS by more than {TOLERANCE}"
    print(f"\n{row['example']}")
    print(f"  answer         {row['answer']}")
    print(f"  against eager  max |difference| {row['difference']:.1e} of the largest value ({verdict})")
    print(f"  time           {row['remote_ms']:.1f} ms, eager CPU {row['eager_ms']:.1f} ms, ratio {row['ratio']:.2f} ({row['rounds']} rounds)")
    print(
        f"  moved a run    {amount(row['up'])} up, {amount(row['down'])} down, "
        f"{row['round_trips']} round trips (first run with weights: {amount(row['first_up'])} up)"
    )
    print(f"  capture        {row['ops']} ops, {row['capture_us_per_op']:.2f} us/op", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("examples", nargs="*", metavar="EXAMPLE", help=", ".join(EXAMPLES))
    parser.add_argument("--device", default=os.environ.get("GENIE_TEST_DEVICE", "remote_accelerator"))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    unknown = set(options.examples) - set(EXAMPLES)
    if unknown:
        parser.error(f"no example {', '.join(sorted(unknown))}; there are {', '.join(EXAMPLES)}")
    sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
    if options.one:
        print(json.dumps(run_one(options.examples[0], options.device, options.threads)))
        return 0

    failed = []
    print(f"Five PyTorch programs on {options.device} and on eager CPU, {options.threads} thread(s) each side.")
    for name in options.examples or EXAMPLES:
        command = [sys.executable, __file__, name, "--one", "--device", options.device]
        child = subprocess.run(command + ["--threads", str(options.threads)], stdout=subprocess.PIPE, text=True)
        if child.returncode != 0:
            print(f"\n{name}\n  FAILED (exit {child.returncode}); alone: python {name}.py --device cpu", flush=True)
            failed.append(name)
            continue
        row = json.loads(child.stdout.splitlines()[-1])
        show(row)
        if not row["close"]:
            failed.append(name)
    print()
    if failed:
        print(f"demo: FAILED: {', '.join(failed)}")
        return 1
    print("demo: ok: every answer agrees with eager PyTorch")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
