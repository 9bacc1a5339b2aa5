"""Records the cases' graphs on `remote_accelerator` with the true phase of each operator as a mark.

    python -m zoo.record --split public --out DIR [--case NAME ...] [--jobs 2]

For each case: DIR/NAME.json (what `genie.export_graph` writes) and DIR/NAME.labels.json (the ground
truth). A case that fails is listed at the end and decides the exit code; the others go on.
"""

import argparse
import json
import os
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

DEVICE = "remote_accelerator"
# A case that takes longer hangs.
CASE_SECONDS_MAX = 180
LABELS = ".labels.json"


class Marks:
    """Marks the true phase on the tape by `genie.phase`, one at a time: it follows an oracle's changes."""

    def __init__(self, genie: Any) -> None:
        self.genie = genie
        self.open: Any = None

    def changed(self, name: str | None) -> None:
        if self.open is not None:
            self.open.__exit__(None, None, None)
            self.open = None
        if name is not None:
            self.open = self.genie.phase(name)
            self.open.__enter__()


def record(name: str, out: Path, dry: bool = False) -> None:
    """Builds one case on the CPU, moves it, runs it under marks, and writes its graph and labels."""
    import genie
    import torch
    from torch.utils import _pytree as pytree

    from . import oracle, registry
    from .parts import tensors

    for need in () if dry else ("reset_trace", "export_graph"):
        if not hasattr(genie, need):
            raise RuntimeError(f"this genie has no `genie.{need}`: install one that records graphs")
    case = registry.named(name)
    module, args, kwargs = registry.build(case)

    def move(leaf: Any) -> Any:
        return leaf.to(DEVICE) if isinstance(leaf, torch.Tensor) else leaf

    module = module.to(DEVICE)
    own = getattr(module, "device", None)
    if isinstance(own, (str, torch.device)) and not isinstance(getattr(type(module), "device", None), property):
        module.device = DEVICE  # deepctr-torch asks its own attribute
    args, kwargs = pytree.tree_map(move, args), pytree.tree_map(move, kwargs)
    if not dry:
        genie.reset_trace()
    result = oracle.run(case, (module, args, kwargs), Marks(genie).changed)
    # The program reads what it computed.
    for tensor in tensors(result):
        tensor.detach().cpu()
    if dry:
        return
    genie.export_graph(str(out / f"{name}.json"))
    (out / f"{name}{LABELS}").write_text(json.dumps(case.labels(), indent=1) + "\n")


def _work(names: list[str], out: Path, dry: bool) -> None:
    """A worker: one JSON line for each case on the real standard output, nothing else there."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import torch

    torch.set_num_threads(1)
    for name in names:
        started = time.monotonic()
        error = None
        try:
            record(name, out, dry)
        except Exception as cause:
            error = f"{type(cause).__name__}: {cause}"[:500]
            traceback.print_exc(limit=-4)
        print(
            json.dumps({"name": name, "error": error, "seconds": time.monotonic() - started}), file=answers, flush=True
        )


class Progress:
    """Counts and prints what is done, for all workers together."""

    def __init__(self, total: int) -> None:
        self.lock = threading.Lock()
        self.total = total
        self.done = 0
        self.failed: dict[str, str] = {}

    def finished(self, name: str, error: str | None, seconds: float) -> None:
        with self.lock:
            self.done += 1
            if error is not None:
                self.failed[name] = error
            print(f"[{self.done}/{self.total}] {name} {seconds:.1f} s {'' if error is None else error}", flush=True)


def _supervise(names: list[str], args: argparse.Namespace, progress: Progress) -> None:
    """Runs workers until every name has an answer; a worker that dies costs one case."""
    left = list(names)
    while left:
        command = [sys.executable, "-m", f"{__package__}.record", "--worker", "--out", args.out, "--case", *left]
        command += ["--dry"] if args.dry else []
        log = None if args.verbose else subprocess.DEVNULL
        worker = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True)
        watch = threading.Timer(CASE_SECONDS_MAX, worker.kill)
        watch.start()
        assert worker.stdout is not None
        for line in worker.stdout:
            watch.cancel()
            answer = json.loads(line)
            left.remove(answer["name"])
            progress.finished(**answer)
            watch = threading.Timer(CASE_SECONDS_MAX, worker.kill)
            watch.start()
        watch.cancel()
        code = worker.wait()
        if left:
            progress.finished(left.pop(0), f"its process ended with {code} (or took over {CASE_SECONDS_MAX} s)", 0.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=("public", "blind"), help="default: both")
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--case", nargs="*", default=[], metavar="NAME", help="only these")
    parser.add_argument("--torch25", action="store_true", help="the cases for torch 2.5.1")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--dry", action="store_true", help="runs the cases on the device, writes nothing")
    parser.add_argument("--verbose", action="store_true", help="shows the workers' own output")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    out = Path(args.out)
    if args.worker:
        _work(args.case, out, args.dry)
        return 0

    from . import registry

    chosen = [registry.named(n) for n in args.case] or registry.cases(args.split, args.torch25)
    out.mkdir(parents=True, exist_ok=True)
    names = [case.name for case in chosen]
    progress = Progress(len(names))
    started = time.monotonic()
    shares = [share for share in (names[i :: args.jobs] for i in range(args.jobs)) if share]
    threads = [threading.Thread(target=_supervise, args=(share, args, progress)) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"{len(names)} cases, {len(progress.failed)} failed, {time.monotonic() - started:.0f} s, in {out}")
    for name, error in sorted(progress.failed.items()):
        print(f"  {name}: {error}")
    return 1 if progress.failed else 0


if __name__ == "__main__":
    sys.exit(main())
