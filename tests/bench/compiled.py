"""What a call of a compiled function costs the client, beside the same call recorded by operators."""

import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F

CALLS = 50


def chain(operators):
    def prepare(device):
        def work(x):
            for _ in range(operators // 4):
                x = torch.relu(x * 0.5 + 1.0) - 0.25
            return x

        return work, (torch.randn(16, 16).to(device),)

    return prepare


def gpt2_forward(device):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=500, n_positions=64, n_embd=32, n_layer=12, n_head=4)).eval()
    model = model.to(device).requires_grad_(False)
    tokens = torch.randint(500, (1, 16)).to(device)
    return lambda tokens: model(tokens, use_cache=False).logits, (tokens,)


def mlp_step(device):
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Sequential(nn.Linear(32, 32), nn.GELU()) for _ in range(12)]).to(device)
    x, labels = torch.randn(16, 32).to(device), torch.randint(32, (16,)).to(device)
    return lambda x: F.cross_entropy(model(x), labels), (x,)


# Name, prepare, whether a backward pass belongs to a call, the most that the graph's part may take.
WORK = [
    ("chain of 40 operators", chain(40), False, 100),
    ("chain of 400 operators", chain(400), False, 100),
    ("GPT-2 (12 layers) forward", gpt2_forward, False, 100),
    ("MLP (12 layers) forward and backward", mlp_step, True, None),
]


def cpu_us(call, drain, rounds):
    """CPU microseconds of this process for a call, its threads included and waiting excluded."""
    took = []
    for _ in range(rounds):
        drain()
        start = time.process_time()
        for _ in range(CALLS):
            call()
        took.append(1e6 * (time.process_time() - start) / CALLS)
    return statistics.median(took)


def measure(options, counters):
    from genie import _compile

    last = []
    called = _compile.Graph.__call__

    def noting(self, *args):
        last[:] = [self, args]
        return called(self, *args)

    rows = []
    for name, prepare, backward, limit in WORK:
        torch._dynamo.reset()
        work, inputs = prepare(options.device)
        compiled = torch.compile(work)

        def drain():
            torch.zeros(1, device=options.device).item()

        def caller(function, inputs=inputs, backward=backward):
            def call():
                result = function(*inputs)
                if backward:
                    result.backward()

            return call

        recorded, sent = caller(work), caller(compiled)
        for _ in range(5):
            recorded(), sent()
        before = counters()
        recorded()
        operators = counters()["ops"] - before["ops"]
        before = counters()
        kept = compiled(*inputs)
        after = counters()
        row = {
            "name": name,
            "operators": operators,
            "records": after["records"] - before["records"],
            "bytes": after["tape_bytes"] - before["tape_bytes"],
            "recorded_us": cpu_us(recorded, drain, options.rounds),
            "compiled_us": cpu_us(sent, drain, options.rounds),
            "limit_us": limit,
        }
        del kept
        if not backward:
            # The part behind Dynamo's guards.
            _compile.Graph.__call__ = noting
            compiled(*inputs)
            _compile.Graph.__call__ = called
            graph, args = last
            row["graph_us"] = cpu_us(lambda graph=graph, args=args: graph(*args), drain, options.rounds)
        rows.append(row)
    return rows


def page(rows):
    lines = [
        "## Compiled functions",
        "",
        "CPU us of the client for a call: recorded operator by operator, compiled (Dynamo's guards and, with gradients,",
        "AOTAutograd's and autograd's Python included), and the part behind the guards, which was asked to stay below",
        "100 us whatever the number of operators.",
        "",
        "| what | operators | recorded us | compiled us | behind the guards us | asked | records a call | tape bytes a call |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        behind = r.get("graph_us")
        part = "" if behind is None else f"{behind:.1f}"
        limit = r["limit_us"]
        asked = "" if limit is None else f"<= {limit}: {'met' if behind <= limit else '**missed**'}"
        lines.append(
            f"| {r['name']} | {r['operators']} | {r['recorded_us']:.0f} | {r['compiled_us']:.0f} | {part} | {asked} | "
            f"{r['records']} | {r['bytes']} |"
        )
    return lines
