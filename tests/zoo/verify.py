"""Checks cases on the CPU: `python -m zoo.verify [--split public] [--case NAME ...] [--jobs 2]`.

Each case runs in a process of its own: its phases are exactly the labelled ones and in their order,
its values are finite and the same when it is built anew, and it keeps the zoo's limits.
"""

import argparse
import collections
import json
import multiprocessing
import resource
import sys
import time
import traceback

SECONDS_MAX = 2.0
MEGABYTES_MAX = 400
OPS_MAX = 5000


def check(name: str) -> dict:
    """Runs one case and says what is wrong with it (`problems`; empty: nothing)."""
    import torch

    from . import oracle, registry
    from .parts import tensors

    torch.set_num_threads(1)
    row: dict = {"name": name, "problems": []}
    try:
        case = registry.named(name)
        built = registry.build(case)
        # A training step changes its weights, so what is compared is built anew.
        ops, out = oracle.trace_with_output(case, built)
        again = registry.build(case)
        before = resource.getrusage(resource.RUSAGE_SELF)
        repeated = oracle.run(case, again)
        after = resource.getrusage(resource.RUSAGE_SELF)
        out, repeated = tensors(out), tensors(repeated)
        seen = list(dict.fromkeys(phase for _, phase in ops if phase))
        row.update(
            split=case.split,
            workload=case.workload,
            ops=len(ops),
            unlabelled=sum(phase is None for _, phase in ops),
            seconds=round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, 3),
            # Weights, gradients and activations are not told apart: the weights say most of it.
            megabytes=round(sum(p.numel() * p.element_size() for p in built[0].parameters()) / 1e6, 1),
            resident=round(after.ru_maxrss / 1024),
        )
        problems = row["problems"]
        if seen != list(case.phases):
            problems.append(f"phases seen {seen}, labelled {list(case.phases)}")
        if not out or not all(torch.isfinite(t).all() for t in out if t.is_floating_point()):
            problems.append("no output, or values that are not finite")
        if len(out) != len(repeated) or not all(torch.equal(a, b) for a, b in zip(out, repeated, strict=False)):
            problems.append("another result when built anew")
        for what, value, most in (
            ("ops", row["ops"], OPS_MAX),
            ("seconds", row["seconds"], SECONDS_MAX),
            ("megabytes", row["megabytes"], MEGABYTES_MAX),
        ):
            if value > most:
                problems.append(f"{value} {what}, at most {most}")
    except Exception as error:
        row["problems"].append(f"{type(error).__name__}: {error}"[:500])
        row["traceback"] = traceback.format_exc(limit=-6)
    return row


def _forked(name: str) -> dict:
    # A process for each case: one case's memory and patches do not reach another.
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(False)
    child = context.Process(target=lambda: send.send(check(name)))
    child.start()
    send.close()
    try:
        return receive.recv()
    except EOFError:
        return {"name": name, "problems": ["its process ended without a result"]}
    finally:
        child.join()


def _import_packages() -> None:
    # Once, before the cases fork: each of them would take seconds.
    import importlib

    for name in ("transformers", "torchvision", "timm", "diffusers", "torch_geometric", "sklearn.datasets"):
        try:
            importlib.import_module(name)
        except ImportError as error:
            print(f"{error}: its cases will fail", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--split", choices=("public", "blind"))
    parser.add_argument("--case", nargs="*", default=[], help="only these")
    parser.add_argument("--torch25", action="store_true", help="the cases for torch 2.5.1")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--list", action="store_true", help="names only")
    parser.add_argument("--json", help="writes the rows here")
    args = parser.parse_args()

    from . import registry

    if not args.list:
        _import_packages()

    chosen = [registry.named(n) for n in args.case] or registry.cases(args.split, args.torch25)
    if args.list:
        for case in chosen:
            print(f"{case.split:7} {case.workload:13} {case.mode:10} {case.name}")
        return 0
    from concurrent.futures import ThreadPoolExecutor

    started = time.monotonic()
    rows = []
    with ThreadPoolExecutor(args.jobs) as pool:
        for row in pool.map(_forked, [c.name for c in chosen]):
            rows.append(row)
            flag = "BAD" if row["problems"] else "ok "
            print(
                f"{flag} {row['name']:36} {row.get('ops', 0):5} ops {row.get('unlabelled', 0):5} unlabelled "
                f"{row.get('seconds', 0):6.2f} s {row.get('megabytes', 0):6.1f} MB of weights",
                *row["problems"],
                flush=True,
            )
            if "traceback" in row:
                print(row["traceback"], file=sys.stderr)
    bad = [row["name"] for row in rows if row["problems"]]
    count = collections.Counter((c.split, c.workload) for c in chosen)
    for (split, workload), n in sorted(count.items()):
        print(f"{split:7} {workload:13} {n}")
    print(f"{len(rows)} cases, {len(bad)} bad {bad or ''}, {time.monotonic() - started:.0f} s")
    if args.json:
        with open(args.json, "w") as file:
            json.dump(rows, file, indent=1)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
