"""What the device costs beside eager CPU: the runs of both are interleaved, the figures are medians.

    python tests/bench/run.py [--device remote_accelerator] [--rounds 15] [--threads 1] [--write FILE]

Times on a busy machine say little; ratios from interleaved runs do.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from torch import nn
from torch.nn import functional as F

import compiled

HERE = Path(__file__).resolve().parent
PROMPT_TOKENS, NEW_TOKENS = 64, 32


# Work: prepare(device) -> work(); a run of work() ends with a value that the program has read.


def chain_500(device):
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).to(device)

    @torch.no_grad()
    def work():
        y = x
        for _ in range(125):
            y = y * 0.5
            y = y + x
            y = torch.relu(y)
            y = y - 0.25
        return y.sum().item()

    return work


def resnet18_batch_1(device):
    from torchvision.models import resnet18

    torch.manual_seed(0)
    model = resnet18(weights=None).eval().to(device)
    image = torch.randn(1, 3, 224, 224)

    @torch.no_grad()
    def work():
        return model(image.to(device)).argmax().item()

    return work


def gpt2_decode(device):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(vocab_size=4000, n_positions=512, n_embd=256, n_layer=4, n_head=4)
    model = GPT2LMHeadModel(config).eval().to(device)
    prompt = torch.randint(5, 4000, (1, PROMPT_TOKENS))

    @torch.no_grad()
    def work():
        out = model(prompt.to(device), use_cache=True)
        tokens = []
        for _ in range(NEW_TOKENS):
            token = out.logits[:, -1].argmax(-1, keepdim=True)
            tokens.append(token.item())
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
        return tokens

    return work


def mlp_adam_steps(device, steps=5):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    x, labels = torch.randn(64, 256).to(device), torch.randint(10, (64,)).to(device)

    def work():
        for _ in range(steps):
            optimizer.zero_grad(set_to_none=True)
            loss = F.cross_entropy(model(x), labels)
            loss.backward()
            optimizer.step()
            value = loss.item()
        return value

    return work


# Name, prepare, units of one run, name of the unit, the largest ratio that was asked for.
WORK = [
    ("500-op chain, 64x64", chain_500, 500, "op", 2.0),
    ("ResNet-18, batch 1", resnet18_batch_1, 1, "picture", 1.1),
    ("GPT-2 (4 x 256) decode, each token read", gpt2_decode, NEW_TOKENS, "token", 1.25),
    ("MLP Adam step, loss read", mlp_adam_steps, 5, "step", 1.5),
]


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def cpu_per_wall(work, runs):
    """CPU seconds per second of wall time, of the program and of its node, while `work` repeats.

    With one thread a side the node cannot exceed 1; a sum above 1 means that both work at once.
    """
    import psutil

    me = psutil.Process()
    processes = {"client": me, **{p.name(): p for p in me.children(recursive=True)}}

    def used():
        return {name: sum(p.cpu_times()[:2]) for name, p in processes.items()}

    before, start = used(), time.perf_counter()
    while time.perf_counter() - start < 0.5 or runs > 0:
        work()
        runs -= 1
    after, wall = used(), time.perf_counter() - start
    return {"genie-worker": 0.0} | {name: (after[name] - before[name]) / wall for name in processes}


class Meter:
    """Differences of genie.stats() around a piece of work; zeros on CPU."""

    def __init__(self, device):
        self.remote = device.startswith("remote_accelerator")

    def read(self):
        if not self.remote:
            return {}
        import genie

        return {key: value for key, value in genie.stats().items() if isinstance(value, int)}

    def around(self, work):
        before = self.read()
        work()
        after = self.read()
        return {key: after[key] - before.get(key, 0) for key in after}


def first_of(counts, *names):
    """The first of these counters that there is."""
    return next((counts[name] for name in names if name in counts), 0)


BYTES_TO_HOST = ("bytes_up", "tape_bytes")
BYTES_TO_NODE = ("host.session.bytes_to_node", "bytes_to_node")


def side_by_side(options, meter):
    rows = []
    for name, prepare, units, unit, target in WORK:
        print(f"  {name}", flush=True)
        eager, remote = prepare("cpu"), prepare(options.device)
        for _ in range(3):
            eager(), remote()
        eager_s, remote_s = [], []
        for _ in range(options.rounds):
            eager_s.append(seconds(eager))
            remote_s.append(seconds(remote))
        counts = meter.around(remote)
        busy = cpu_per_wall(remote, options.rounds)
        eager_median, remote_median = statistics.median(eager_s), statistics.median(remote_s)
        ops = counts.get("ops", 0)
        rows.append(
            {
                "name": name,
                "unit": unit,
                "eager_us": 1e6 * eager_median / units,
                "remote_us": 1e6 * remote_median / units,
                "ratio": remote_median / eager_median,
                "ratio_max": target,
                "ops": ops,
                "round_trips": counts.get("round_trips", 0),
                "client_cpu": busy["client"],
                "node_cpu": busy["genie-worker"],
                "hits": counts.get("template_hits", 0) / max(1, counts.get("template_hits", 0) + counts.get("template_misses", 0)),
                "to_host_per_op": first_of(counts, *BYTES_TO_HOST) / max(1, ops),
                "to_node_per_op": first_of(counts, *BYTES_TO_NODE) / max(1, ops),
                "to_host_per_unit": first_of(counts, *BYTES_TO_HOST) / units,
                "to_node_per_unit": first_of(counts, *BYTES_TO_NODE) / units,
            }
        )
    return rows


def latency(options):
    """Reading one scalar, in turns with a bare ping-pong over the same four hops."""
    with tempfile.TemporaryDirectory() as directory:
        program = Path(directory) / "pingpong"
        compiler = os.environ.get("CXX", "c++")
        subprocess.run([compiler, "-O2", "-o", program, HERE / "pingpong.cpp"], check=True)
        x = torch.ones((), device=options.device)
        x.item()
        read_us, op_read_us, bare_us = [], [], []
        for _ in range(options.rounds):
            bare_us.append(float(subprocess.run([program, "1000"], capture_output=True, text=True, check=True).stdout))
            took = []
            for _ in range(200):
                took.append(seconds(x.item))
            read_us.append(1e6 * statistics.median(took))
            took = [seconds(lambda: x.add_(1).item()) for _ in range(200)]
            op_read_us.append(1e6 * statistics.median(took))
    return {
        "item_us": statistics.median(read_us),
        "op_item_us": statistics.median(op_read_us),
        "pingpong_us": statistics.median(bare_us),
        "item_over_pingpong": statistics.median(read_us) / statistics.median(bare_us),
    }


def capture_counts(remote):
    """(ops, nanoseconds in capture), read inside this process.

    Not genie.stats(): it asks host and node, a round trip right before what is measured and inside the
    wall time. A version that did so read 0.30 us an op where a plain loop had a median of 1.7 to 2.6.
    """
    if not remote:
        return 0, 0
    from genie import _native

    stats = _native.capture_stats()
    return stats["ops"], stats["capture_ns"]


def capture(options, meter):
    """us an op: inside the boxed kernels and the tape (the counter), and of the whole Python loop."""
    ops_of_chain = 200

    def chain(x):
        for _ in range(ops_of_chain // 4):
            x = x * 0.5
            x = x + 1.0
            x = torch.relu(x)
            x = x - 0.25
        return x

    def sample(work, drain):
        """(counter us/op, wall us/op) of one run, from a drained queue and without a read in it."""
        drain()
        ops, ns = capture_counts(meter.remote)
        start = time.perf_counter()
        kept = work()
        wall = time.perf_counter() - start
        ops_after, ns_after = capture_counts(meter.remote)
        del kept
        return 1e-3 * (ns_after - ns) / max(1, ops_after - ops), 1e6 * wall

    def drain():
        torch.zeros(1, device=options.device).item()

    rows = []
    for name, grad, target in (("forward chain, no grad", False, 2.0), ("forward chain, with grad", True, 4.0)):
        with torch.set_grad_enabled(grad):
            here = torch.randn(64, 64).requires_grad_(grad)
            there = here.detach().to(options.device).requires_grad_(grad)
            for _ in range(20):
                chain(here), chain(there)
            eager, counter, wall = [], [], []
            for _ in range(options.rounds * 5):
                eager.append(sample(lambda: chain(here), lambda: None)[1] / ops_of_chain)
                us, wall_us = sample(lambda: chain(there), drain)
                counter.append(us)
                wall.append(wall_us / ops_of_chain)
        rows.append(
            {
                "name": name,
                "us_per_op": statistics.median(counter),
                "us_per_op_min": min(counter),
                "us_max": target,
                "wall_us_per_op": statistics.median(wall),
                "wall_us_per_op_min": min(wall),
                "eager_us_per_op": statistics.median(eager),
            }
        )
    step = mlp_adam_steps(options.device, 1)
    for _ in range(5):
        step()
    us = [sample(step, drain)[0] for _ in range(30)]
    rows.append({"name": "whole training step", "us_per_op": statistics.median(us), "us_per_op_min": min(us)})
    return rows


def compiled_functions(options, meter):
    if not meter.remote:
        return []
    from genie import _native

    def counters():
        _native.flush()
        return _native.counters()

    print("  compiled functions", flush=True)
    return compiled.measure(options, counters)


def resident(options):
    """Bytes of host and node just after the first op of a fresh session."""
    source = (
        "import torch, psutil, json; torch.set_num_threads(1)\n"
        f"torch.ones(1, device={options.device!r}).item()\n"
        "print(json.dumps({p.name(): p.memory_info().rss for p in psutil.Process().children(recursive=True)}))"
    )
    out = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    return json.loads(out.stdout.splitlines()[-1])


def verdict(value, limit):
    return "met" if value <= limit else "**missed**"


def report(results, options):
    lines = [
        "# Benchmarks",
        "",
        f"Written by `make bench` on {datetime.date.today().isoformat()}: torch {torch.__version__}, "
        f"Python {platform.python_version()}, {os.cpu_count()} CPUs, {options.threads} thread(s) on each side, "
        f"medians of {options.rounds} interleaved rounds, load average {os.getloadavg()[0]:.1f}. "
        "Times depend on the machine and its load; read the ratios.",
        "",
        "## Against eager CPU, side by side",
        "",
        "The last columns are CPU seconds per second of wall time. With one thread the node stays at or below 1;",
        "where both together exceed 1, Python runs ahead while the node computes. That fits a ratio below 1 for",
        "the GPT-2 decode. It does not explain one for ResNet-18, whose client is idle: there the cause is not",
        "known (page faults were looked at and are none on either side). Count it as 1, not as a gain.",
        "",
        "| work | eager us | remote us | ratio | asked | | ops | round trips | template hits (>= 99 %) | client CPU | node CPU |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in results["work"]:
        lines.append(
            f"| {r['name']} (per {r['unit']}) | {r['eager_us']:.1f} | {r['remote_us']:.1f} | {r['ratio']:.2f} | "
            f"<= {r['ratio_max']} | {verdict(r['ratio'], r['ratio_max'])} | {r['ops']} | {r['round_trips']} | "
            f"{r['hits']:.1%}{'' if r['hits'] >= 0.99 else ' **missed**'} | {r['client_cpu']:.2f} | {r['node_cpu']:.2f} |"
        )
    lines += [
        "",
        "## Bytes moved",
        "",
        "| work | client to host, per op | host to node, per op | client to host, per unit | host to node, per unit |",
        "|---|---|---|---|---|",
    ]
    for r in results["work"]:
        lines.append(
            f"| {r['name']} (unit: {r['unit']}) | {r['to_host_per_op']:.1f} | {r['to_node_per_op']:.1f} | "
            f"{r['to_host_per_unit']:.0f} | {r['to_node_per_unit']:.0f} |"
        )
    chain, decode = results["work"][0], results["work"][2]
    lines += [
        "",
        f"Asked, host to node: <= 48 bytes an op ({verdict(chain['to_node_per_op'], 48)} on the chain), "
        f"<= 4,000 bytes a decoded token ({verdict(decode['to_node_per_unit'], 4000)}).",
        "",
        "## Capture",
        "",
        "Median (and least) us an op. Counter: inside the boxed kernels and the tape; it leaves out Python,",
        "the dispatcher and autograd's own work. Wall: the whole Python loop, so an upper bound. A chain of",
        "200 ops from a drained queue. The counter has two modes, near 0.3 and near 2.3 us; which one the median",
        "falls into changed between runs. Waking the host at each flush is suspected, not shown.",
        "",
        "| what | counter | wall | eager, wall | asked | by the counter | by the wall |",
        "|---|---|---|---|---|---|---|",
    ]
    for r in results["capture"]:
        counter = f"{r['us_per_op']:.2f} ({r['us_per_op_min']:.2f})"
        if "us_max" not in r:
            lines.append(f"| {r['name']} | {counter} | | | reported | | |")
            continue
        lines.append(
            f"| {r['name']} | {counter} | {r['wall_us_per_op']:.2f} ({r['wall_us_per_op_min']:.2f}) | "
            f"{r['eager_us_per_op']:.2f} | <= {r['us_max']} | {verdict(r['us_per_op'], r['us_max'])} | "
            f"{verdict(r['wall_us_per_op'], r['us_max'])} |"
        )
    if results["compiled"]:
        lines += ["", *compiled.page(results["compiled"])]
    late = results["latency"]
    met = late["item_us"] <= 150 or late["item_over_pingpong"] <= 3
    lines += [
        "",
        "## Reading one scalar",
        "",
        f"- `.item()`: {late['item_us']:.0f} us; an op and `.item()`: {late['op_item_us']:.0f} us",
        f"- bare ping-pong over the same four hops (three processes, Unix sockets), same run: {late['pingpong_us']:.0f} us",
        f"- asked: <= 150 us, or <= 3x the ping-pong: {late['item_over_pingpong']:.1f}x, {'met' if met else '**missed**'}",
        "",
        "## Resident memory of an idle session",
        "",
    ]
    lines += [f"- {name}: {rss / 1e6:.0f} MB" for name, rss in results["resident"].items()]
    return "\n".join(lines) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default=os.environ.get("GENIE_TEST_DEVICE", "remote_accelerator"))
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--write", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    meter = Meter(options.device)
    print(f"benchmarks: {options.device} against eager CPU, {options.rounds} rounds (a few minutes)")
    results = {"work": side_by_side(options, meter)}
    print("  latency of a read", flush=True)
    results["latency"] = latency(options)
    print("  capture", flush=True)
    results["capture"] = capture(options, meter)
    results["compiled"] = compiled_functions(options, meter)
    results["resident"] = resident(options) if meter.remote else {}
    page = report(results, options)
    print("\n" + page)
    if options.write:
        options.write.write_text(page)
        options.write.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
        print(f"written: {options.write}")


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
