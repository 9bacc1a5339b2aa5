"""PyTorch's own OpInfo database on the device against CPU, each entry safe from the others' crashes.

    python tests/conformance/run.py [--grad] [--ops NAME ...] [--every N] [--limit N] [--write FILE]

Entries go one by one to worker processes. A worker that dies or takes too long on an entry is
replaced; the entry counts as a crash or a hang.
"""

import argparse
import datetime
import json
import os
import platform
import queue
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
START_SECONDS_MAX = 120
FAILED = ("fail", "crash", "hang")


class Worker:
    """A worker process; `ask` gives it one entry and waits for the result."""

    def __init__(self, device, gradients, seconds_max):
        self.command = [sys.executable, str(HERE / "worker.py"), device, "grad" if gradients else "forward"]
        self.gradients, self.seconds_max = gradients, seconds_max
        self.process = None
        self.fresh = True

    def start(self):
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE if not os.environ.get("GENIE_DEBUG") else None,
            start_new_session=True,
        )
        self.errors = b""
        self.buffer = b""
        self.fresh = True

    def stop(self):
        """Ends the worker; the host and the node follow by themselves."""
        if self.process is None:
            return
        self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def lines(self, seconds):
        """Lines of the worker's stdout until it ends or the time is over (then None)."""
        deadline = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            if self.process.stderr:
                selector.register(self.process.stderr, selectors.EVENT_READ)
            while True:
                while b"\n" in self.buffer:
                    line, self.buffer = self.buffer.split(b"\n", 1)
                    yield line
                left = deadline - time.monotonic()
                ready = selector.select(left) if left > 0 else []
                if not ready:
                    yield None
                    return
                for key, _ in ready:
                    data = os.read(key.fd, 1 << 16)
                    if key.fileobj is self.process.stderr:
                        self.errors = (self.errors + data)[-4000:]
                        if not data:
                            selector.unregister(key.fileobj)
                    elif data:
                        self.buffer += data
                    else:
                        return

    def ask(self, name):
        if self.process is None:
            self.start()
        at = "start"
        try:
            self.process.stdin.write(name.encode() + b"\n")
            self.process.stdin.flush()
            for line in self.lines(self.seconds_max + (START_SECONDS_MAX if self.fresh else 0)):
                if line is None:
                    self.process.kill()
                    self.process.wait()
                    self.process = None
                    return self.broken(name, "hang", f"no answer in {self.seconds_max} s at {at}")
                try:
                    message = json.loads(line)
                except ValueError:
                    continue  # something the operator printed
                self.fresh = False
                if "at" in message:
                    at = message["at"]
                elif "result" in message:
                    return message["result"]
        except BrokenPipeError:
            pass
        status = self.process.wait()
        self.process = None
        last = self.errors.decode(errors="replace").strip().splitlines()[-1:]
        how = signal.Signals(-status).name if status < 0 else f"exit {status}"
        return self.broken(name, "crash", f"{how} at {at}: {' '.join(last)}"[:300])

    def broken(self, name, status, reason):
        part = {"status": status, "samples": 0, "reason": reason}
        result = {"op": name, "forward": part, "fell_back": []}
        if self.gradients:
            result["grad"] = part
        return result


def run(names, options):
    """Results by name, in the order of `names`; prints progress."""
    waiting, results, lock = queue.SimpleQueue(), {}, threading.Lock()
    for name in names:
        waiting.put(name)
    started = last_shown = time.monotonic()
    stop = threading.Event()

    def serve():
        nonlocal last_shown
        worker = Worker(options.device, options.grad, options.seconds)
        try:
            while not stop.is_set():
                try:
                    name = waiting.get_nowait()
                except queue.Empty:
                    return
                result = worker.ask(name)
                with lock:
                    results[name] = result
                    for part in ("forward", "grad"):
                        if result.get(part, {}).get("status") in FAILED:
                            print(f"  {result[part]['status']} {name} ({part}): {result[part]['reason']}", flush=True)
                    if time.monotonic() - last_shown > 10:
                        last_shown = time.monotonic()
                        print(f"  {len(results)}/{len(names)} entries, {last_shown - started:.0f} s", flush=True)
        finally:
            worker.stop()

    threads = [threading.Thread(target=serve) for _ in range(options.workers)]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            while thread.is_alive():
                thread.join(0.5)
    except KeyboardInterrupt:
        stop.set()
        for thread in threads:
            thread.join(options.seconds + 15)
        raise
    return [results[name] for name in names if name in results]


def count(results, part):
    return Counter(result[part]["status"] for result in results if part in result)


def summary(results, part):
    counts = count(results, part)
    samples = sum(result[part]["samples"] for result in results if part in result)
    return (
        f"{counts['pass']} pass, {counts['fail']} fail, {counts['crash']} crash, {counts['hang']} hang, "
        f"{counts['skip']} skip; {samples} samples compared"
    )


def failures(results, parts):
    return [
        (result["op"], part, result[part]["status"], result[part]["reason"])
        for part in parts
        for result in results
        if result[part]["status"] in FAILED
    ]


def report(results, parts, options, seconds):
    """The page for docs/."""
    lines = [
        "# Conformance: PyTorch's OpInfo database",
        "",
        "Written by `make conformance`. Every entry of `op_db` runs all its float32 samples on",
        f"`{options.device}` (real host and node processes) and on eager CPU, one thread each side;",
        "results must agree within rtol = atol = 1e-5. Values of `empty*` and `resize*` are uninitialised",
        "memory: shape and dtype only. Random operators get the same seed on both sides. An entry passes",
        "when all its samples do. Skipped: entries without float32, without gradients, or that eager refuses.",
        "",
        f"torch {version('torch')}, Python {platform.python_version()}, "
        f"{datetime.date.today().isoformat()}, {seconds:.0f} s.",
        "",
        "| | pass | fail | crash | hang | skip | samples |",
        "|---|---|---|---|---|---|---|",
    ]
    for part in parts:
        c = count(results, part)
        samples = sum(result[part]["samples"] for result in results)
        name = "forward" if part == "forward" else "with gradients"
        lines.append(
            f"| {name} | {c['pass']} | {c['fail']} | {c['crash']} | {c['hang']} | {c['skip']} | {samples} |"
        )
    lines += ["", "## Failures", ""]
    failed = failures(results, parts)
    if failed:
        lines += ["| entry | part | how | reason |", "|---|---|---|---|"]
        lines += [
            f"| `{op}` | {part} | {status} | {reason.replace('|', '/')} |" for op, part, status, reason in failed
        ]
    else:
        lines.append("None.")
    fell_back = sorted({op for result in results for op in result["fell_back"]})
    lines += ["", "## Operators that ran on the client's CPU (fallback)", ""]
    lines.append(", ".join(f"`{op}`" for op in fell_back) or "None.")
    return "\n".join(lines) + "\n"


def allowed_failures(path):
    """{(entry, part)} from lines `entry part reason...`."""
    rows = (line.split(None, 2) for line in path.read_text().splitlines() if line and line[0] != "#")
    return {(row[0], row[1]) for row in rows}


def parse():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default=os.environ.get("GENIE_TEST_DEVICE", "remote_accelerator"))
    parser.add_argument("--grad", action="store_true", help="gradients too")
    parser.add_argument("--ops", nargs="+", help="only these entries (operator or operator.variant)")
    parser.add_argument("--every", type=int, default=1, help="only every N-th entry")
    parser.add_argument("--limit", type=int, help="at most so many entries")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=int, default=120, help="time an entry may take")
    parser.add_argument("--allow", type=Path, help="file of known failures; others make the run fail")
    parser.add_argument("--write", type=Path, help="write the page of results here (and .json beside it)")
    return parser.parse_args()


def main():
    options = parse()
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    from outcomes import leave
    from worker import entries

    names = list(entries())
    if options.ops:
        wanted = set(options.ops)
        names = [name for name in names if name in wanted or name.split(".")[0] in wanted or name.rsplit(".", 1)[0] in wanted]
        if not names:
            sys.exit(f"no entry is called {' or '.join(options.ops)}")
    names = names[:: options.every][: options.limit]
    parts = ["forward", "grad"] if options.grad else ["forward"]
    print(f"{len(names)} entries on {options.device}, {options.workers} workers")
    started = time.monotonic()
    results = run(names, options)
    seconds = time.monotonic() - started
    for part in parts:
        print(f"{part}: {summary(results, part)}")
    if options.write and not (options.ops or options.limit or options.every > 1):
        options.write.write_text(report(results, parts, options, seconds))
        options.write.with_suffix(".json").write_text(json.dumps(results, indent=0))
        print(f"written: {options.write}")

    failed = failures(results, parts)
    if options.allow:
        known = allowed_failures(options.allow)
        failed = [row for row in failed if row[:2] not in known or row[2] != "fail"]
    elif options.write:
        failed = [row for row in failed if row[2] != "fail"]  # a survey: only crashes and hangs end it badly
    leave([f"passed {sum(count(results, part)['pass'] for part in parts)}", f"failed {len(failed)}"])
    verdict = f"FAILED: {', '.join(sorted({row[0] for row in failed}))}" if failed else "ok"
    print(f"conformance: {verdict} ({seconds:.0f} s)")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
