"""What a node costs beside its work: `make bench-node`.

    python tests/bench/node.py [--write docs/node.md] [--devices 8] [--clients 4]

A node that serves the CPU as several devices, and clients with certificates of their own, each with one session
on each device. Tells the memory of gate, zygote and workers apart, what they do when nobody asks for anything, how
long a client's first session takes, how much the gate passes on, and what a read takes over each way.
"""

import argparse
import contextlib
import datetime
import json
import os
import platform
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch

BIN = Path(sys.executable).parent
TORCH_LIB = str(Path(torch.__file__).parent / "lib")
MEBI = 1 << 20
IDLE_SECONDS = 10
STARTS = 20
PROGRAM_SECONDS_MAX = 300

# `genie.Hello` and the kinds of frames: host/wire/src/{control,frame}.rs.
HELLO, WELCOME, PROTOCOL = 1, 129, 3

PRELUDE = """
import json, statistics, sys, time
import torch
torch.set_num_threads(1)

def say(**fields):
    print("BENCH " + json.dumps(fields), flush=True)
"""
READS = """
x = torch.ones(1, device="remote_accelerator")
times = []
for _ in range(3000):
    start = time.perf_counter()
    (x + 1).item()
    times.append(time.perf_counter() - start)
say(us=statistics.median(times[500:]) * 1e6)
"""
MOVES = """
x = torch.empty(64 << 20, dtype=torch.uint8)
y = torch.empty(64 << 20, dtype=torch.uint8)
x[:] = torch.arange(64 << 20, dtype=torch.int64).to(torch.uint8)
d = torch.empty_like(x, device="remote_accelerator")
d.copy_(x)
torch.remote_accelerator.synchronize()
say(ready=True)
sys.stdin.readline()
start, rounds = time.perf_counter(), 0
while time.perf_counter() - start < 5:
    x[rounds] += 1
    d.copy_(x)
    y.copy_(d)
    rounds += 1
assert torch.equal(x, y)
say(bytes=rounds * 2 * x.numel(), seconds=time.perf_counter() - start)
sys.stdin.readline()
"""


class Program:
    def __init__(self, text, environment):
        clean = {name: value for name, value in os.environ.items() if not name.startswith("GENIE_")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PRELUDE + text],
            env=clean | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def heard(self):
        for line in self.process.stdout:
            if line.startswith("BENCH "):
                return json.loads(line[len("BENCH ") :])
        raise SystemExit(f"a program ended early, with status {self.process.wait()}")

    def end(self):
        self.process.communicate("\n", timeout=PROGRAM_SECONDS_MAX)


class Node:
    """A node with certificates, and one certificate for each client."""

    def __init__(self, directory, clients, listen, *flags):
        self.directory = Path(directory)
        tool("certs", "init", "--dir", self.directory / "authority")
        tool("certs", "issue", "node", "here", "--address", "127.0.0.1", "--dir", self.directory / "authority", "--out", self.directory / "node")
        self.clients = []
        for number in range(clients):
            own = self.directory / f"client-{number}"
            tool("certs", "issue", "host", f"client-{number}", "--dir", self.directory / "authority", "--out", own)
            self.clients.append(own)
        self.socket = self.directory / "node.sock"
        command = [BIN / "genie-node", "--listen", f"unix:{self.socket}", "--listen", listen]
        command += ["--certs", self.directory / "node", "--device", "cpu", "--threads", "1", *flags]
        environment = {"PATH": "/usr/bin:/bin", "LD_LIBRARY_PATH": TORCH_LIB}
        self.process = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, env=environment, text=True)
        ready = self.process.stdout.readline().split()
        assert ready[:1] == ["ready"], "the node did not start"
        self.address = next(word for word in ready if not word.startswith(("unix:", "ready")))
        self.gate = psutil.Process(self.process.pid)

    def of(self, client):
        return {"GENIE_MODE": "remote", "GENIE_NODES": self.address, "GENIE_CERTS": str(self.clients[client])}

    @contextlib.contextmanager
    def host(self, client):
        """The socket of a host of this client."""
        command = [BIN / "genie-host", "serve", "--plugins", "none", "--node", self.address, "--certs", self.clients[client]]
        started = subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, text=True)
        try:
            yield started.stdout.readline().split()[1].removeprefix("unix:")
        finally:
            started.terminate()
            started.communicate(timeout=PROGRAM_SECONDS_MAX)

    def processes(self):
        """{name: its processes}"""
        below = self.gate.children(recursive=True)
        named = {"gate": [self.gate], "zygote": [], "worker": []}
        for process in below:
            named[process.name().removeprefix("genie-")].append(process)
        return named

    def end(self):
        self.process.terminate()
        self.process.wait(PROGRAM_SECONDS_MAX)


@contextlib.contextmanager
def node(clients, listen, *flags):
    with tempfile.TemporaryDirectory() as directory:
        served = Node(directory, clients, listen, *flags)
        try:
            yield served
        finally:
            served.end()


def tool(*arguments):
    subprocess.run([BIN / "genie-host", *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)


def memory(process):
    """(own, proportional) MiB: own is what no other process has."""
    full = process.memory_full_info()
    return full.uss / MEBI, full.pss / MEBI


def wake_ups(process):
    """How often its threads went to sleep so far."""
    return sum(
        int(line.split()[1])
        for task in Path(f"/proc/{process.pid}/task").iterdir()
        for line in (task / "status").read_text().splitlines()
        if line.startswith("voluntary_ctxt_switches")
    )


def idle_costs(devices, clients):
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(node(clients, "quic://127.0.0.1:0", "--cpu-devices", devices))
        time.sleep(1)
        alone, asleep = memory(served.gate)[0], wake_ups(served.gate)
        time.sleep(IDLE_SECONDS)
        asleep = (wake_ups(served.gate) - asleep) / IDLE_SECONDS
        for client in range(clients):
            host = stack.enter_context(served.host(client))
            for device in range(devices):
                stack.enter_context(Session(host, device))
        named = served.processes()
        assert len(named["worker"]) == devices * clients, named
        time.sleep(1)
        everybody = [process for processes in named.values() for process in processes]
        before, cpu = {p: wake_ups(p) for p in everybody}, {p: sum(p.cpu_times()[:2]) for p in everybody}
        time.sleep(IDLE_SECONDS)
        woken = {name: sum(wake_ups(p) - before[p] for p in named[name]) / IDLE_SECONDS for name in named}
        spent = sum(sum(p.cpu_times()[:2]) - cpu[p] for p in everybody)
        used = {name: [memory(process) for process in named[name]] for name in named}
        return {
            "gate_alone": alone,
            "woken_alone": asleep,
            "own": {name: statistics.median(own for own, _ in used[name]) for name in used},
            "all": sum(share for name in used for _, share in used[name]),
            "workers": len(named["worker"]),
            "woken": woken,
            "cpu": spent / IDLE_SECONDS,
        }


class Session:
    """A session that asks for nothing, at a host's or node's socket; it keeps how long its welcome took."""

    def __init__(self, path, device=0):
        hello = bytes([0x08, PROTOCOL, 0x20, 1, 0x30, device])
        self.link = socket.socket(socket.AF_UNIX)
        self.link.connect(str(path))
        start = time.perf_counter()
        self.link.sendall(struct.pack("<IB3x", len(hello), HELLO) + hello)
        answer = self.link.recv(8, socket.MSG_WAITALL)
        self.seconds = time.perf_counter() - start
        assert answer[4] == WELCOME, answer + self.link.recv(1000)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.link.close()


def first_sessions():
    with node(1, "quic://127.0.0.1:0", "--linger-s", "0") as served:
        times = []
        for _ in range(STARTS):
            while served.processes()["worker"]:
                time.sleep(0.01)
            with Session(served.socket) as session:
                times.append(session.seconds)
        return times


def read_times():
    """{way: median us}: the embedded default, and a node over loopback; and the own memory of a worker that ran operators."""
    found = {"embedded": [], "quic": [], "tcp": []}
    with node(1, "quic://127.0.0.1:0") as quic, node(1, "tcp://127.0.0.1:0") as tcp:
        for _ in range(3):
            for way, environment in (("embedded", {}), ("quic", quic.of(0)), ("tcp", tcp.of(0))):
                program = Program(READS, environment)
                found[way].append(program.heard()["us"])
                program.end()
        [worker] = quic.processes()["worker"]
        own = memory(worker)[0]
    return {way: statistics.median(times) for way, times in found.items()}, own


def throughput(listen, **environment):
    """(Gb/s, Gb/s for each core that the gate uses), up and down by turns"""
    with node(1, listen) as served:
        program = Program(MOVES, served.of(0) | environment)
        program.heard()
        before = sum(served.gate.cpu_times()[:2])
        program.process.stdin.write("\n")
        program.process.stdin.flush()
        moved = program.heard()
        cpu = sum(served.gate.cpu_times()[:2]) - before
        program.end()
    bits = moved["bytes"] * 8 / 1e9
    return bits / moved["seconds"], bits / max(cpu, 0.01)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--write", type=Path, help="also write the tables there")
    options = parser.parse_args()
    print("idle costs ...", file=sys.stderr)
    idle = idle_costs(options.devices, options.clients)
    print("first sessions ...", file=sys.stderr)
    starts = sorted(first_sessions())
    print("reads ...", file=sys.stderr)
    reads, worked = read_times()
    print("throughput ...", file=sys.stderr)
    moved = {way: throughput("quic://127.0.0.1:0", GENIE_DATA=way) for way in ("udp", "tcp", "quic")}
    with tempfile.TemporaryDirectory() as directory:
        moved["shm"] = throughput(f"shm://{directory}/node")
    rows = [
        ("gate, no client: own memory", f"{idle['gate_alone']:.0f} MiB", "<= 15"),
        (f"gate, {options.clients} clients: own memory", f"{idle['own']['gate']:.0f} MiB", ""),
        ("worker, no operator yet: own memory (median)", f"{idle['own']['worker']:.0f} MiB", "<= 40"),
        ("worker, after operators: own memory", f"{worked:.0f} MiB", "<= 40"),
        ("zygote: own memory", f"{idle['own']['zygote']:.0f} MiB", ""),
        (f"all processes, {idle['workers']} workers: memory, shared pages once", f"{idle['all']:.0f} MiB", "< 2048"),
        ("gate: wake-ups a second, no client", f"{idle['woken_alone']:.1f}", "0"),
        (f"gate: wake-ups a second, {idle['workers']} idle sessions (their links' signs of life)", f"{idle['woken']['gate']:.1f}", ""),
        ("zygote and workers: wake-ups a second, idle", f"{idle['woken']['worker'] + idle['woken']['zygote']:.1f}", "0"),
        ("all: processor, idle", f"{idle['cpu']:.1%} of a core", "0"),
        ("first session of a client: hello to welcome, median", f"{statistics.median(starts) * 1e3:.0f} ms", "<= 150"),
        (f"the slowest of {STARTS}", f"{starts[-1] * 1e3:.0f} ms", "<= 150"),
        *((f"`(x + 1).item()`, {way}", f"{us:.0f} us", "") for way, us in reads.items()),
        *((f"tensors over {way}: rate, and for each core of the gate", f"{rate:.1f}, {core:.0f} Gb/s", ">= 5") for way, (rate, core) in moved.items()),
    ]
    text = "# What a node costs\n\n"
    text += f"Written by `make bench-node` on {datetime.date.today()}: {platform.system()} {platform.release()}, {os.cpu_count()} cores, "
    text += f"torch {torch.__version__},\nload average {os.getloadavg()[0]:.1f}. A CPU served as {options.devices} devices to {options.clients} clients with certificates of their own, one worker\n"
    text += "for each client and device; all on one machine, over loopback. Own memory is what no other process has (USS).\n"
    text += "Tensors of 64 MiB go up and down by turns, encrypted; host and program use the same two cores.\n\n"
    text += "| what | measured | wanted |\n|---|---|---|\n" + "".join(f"| {a} | {b} | {c} |\n" for a, b, c in rows)
    print(text)
    if options.write:
        options.write.write_text(text)


if __name__ == "__main__":
    main()
