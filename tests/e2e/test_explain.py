"""`genie.explain()`: what a program ran, in the words of the recognizers that ship with Genie."""

import json
import subprocess
import threading

import pytest
import torch
from torch import nn

import genie
from conftest import DEVICE, wait_until

pytestmark = pytest.mark.remote


class Decoder(nn.Module):
    """A small causal language model with a concatenated cache; its names say nothing."""

    def __init__(self, vocabulary=200, width=32, layers=2, heads=2):
        super().__init__()
        self.heads = heads
        self.a = nn.Embedding(vocabulary, width)
        self.b = nn.ModuleList(
            nn.ModuleList([nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)])
            for _ in range(layers)
        )
        self.c = nn.Linear(width, vocabulary, bias=False)

    def forward(self, tokens, cache):
        x = self.a(tokens)
        grown = []
        for layer, (norm, split, join) in enumerate(self.b):
            q, k, v = (
                part.view(*part.shape[:2], self.heads, -1).transpose(1, 2) for part in split(norm(x)).chunk(3, -1)
            )
            if cache is not None:
                k, v = torch.cat([cache[layer][0], k], 2), torch.cat([cache[layer][1], v], 2)
            grown.append((k, v))
            y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1)
            x = x + join(y.transpose(1, 2).flatten(2))
        return self.c(x[:, -1:]), grown


@torch.no_grad()
def generate(model, prompt, steps):
    logits, cache = model(prompt, None)
    tokens = []
    for _ in range(steps):
        token = logits.argmax(-1)
        tokens.append(int(token))
        logits, cache = model(token, cache)
    return tokens


@pytest.fixture(scope="module")
def decoder():
    torch.manual_seed(3)
    return Decoder().eval().to(DEVICE), torch.randint(200, (1, 7)).to(DEVICE)


def test_a_language_model_is_told_with_its_phases_and_caches(decoder):
    genie.reset_trace()
    generate(*decoder, steps=4)
    told = genie.explain()
    assert str(told.workload) == "llm" and told.workload.confidence > 0.7
    assert [str(phase) for phase in told.phases] == ["llm.prefill", "llm.decode"]
    assert told.ops_total == len(told.ops) == sum(phase.ops for phase in told.phases)
    assert not told.truncated
    first = told.ops[0]
    assert (first.op, first.module, first.phase) == ("aten::embedding", "a", "llm.prefill")
    assert told.ops[-1].phase == told.ops[-1]["phase"] == "llm.decode" and told.ops[1:3] == list(told.ops)[1:3]
    label, confidence = told.workload
    assert (label, confidence) == (told.workload["label"], told.workload.confidence)
    with pytest.raises(KeyError):
        first["nothing"]
    kept = {each.residency for each in told.residency}
    assert {"kv_cache", "weight"} <= kept
    assert told.plan["policy"] == "balanced", str(told)
    assert sum(region["ops"] for region in told.plan["regions"]) == told.ops_total
    text = str(told)
    assert "workload: llm" in text and "llm.decode" in text and "kv_cache" in text
    assert {plugin["outcome"] for plugin in told.plugins} == {"ok"}


class Encoder(nn.Module):
    """Pictures to scores."""

    def __init__(self, width=16):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU())
        self.head = nn.Linear(width, 10)

    def forward(self, pictures):
        return self.head(self.body(self.stem(pictures)).mean((2, 3)))


def test_models_of_one_program_are_told_apart(decoder):
    """A picture is classified, its class is the first token of a text: by the program, and on the device."""
    generate(*decoder, steps=2)
    genie.reset_trace()
    generate(*decoder, steps=4)
    alone = [op.phase for op in genie.explain().ops if op.module]
    model, prompt = decoder
    pictures = Encoder().eval().to(DEVICE)
    seen = torch.randn(2, 3, 16, 16).to(DEVICE)
    genie.reset_trace()
    with torch.no_grad():
        chosen = pictures(seen).argmax(-1)
    generate(model, prompt + 0 * chosen[0], steps=4)
    told = genie.explain()
    text = str(told)
    assert str(told.workload) == "mixed" and {str(label) for label, _ in told.workloads} == {"vision", "llm"}, text
    assert [str(each) for each in told.models] == ["vision", "llm"], text
    sees, speaks = told.models
    # Small parameters travel as inputs do.
    assert sees.weights >= 4 and sees.weight_bytes > 4 * 16 * 27, text
    assert {str(phase) for phase in speaks.phases} == {"llm.prefill", "llm.decode"}, text
    assert sum(each.ops for each in told.models) == told.ops_total
    assert [op.phase for op in told.ops if op.model == 1 and op.module] == alone, text
    assert "├─ 0: vision" in text and "└─ 1: llm (decoder-only)" in text and "(2 models)" in text
    # A step of training, and then the same model evaluated beside the other.
    optimizer = torch.optim.SGD(pictures.parameters(), 0.1)
    genie.reset_trace()
    pictures.train()
    nn.functional.cross_entropy(pictures(seen), torch.tensor([1, 2]).to(DEVICE)).backward()
    optimizer.step()
    generate(*decoder, steps=2)
    told = genie.explain()
    assert [str(each) for each in told.models] == ["vision", "llm"], str(told)
    trained, served = ({str(phase) for phase in each.phases} for each in told.models)
    assert trained == {"train.forward", "train.backward", "train.optimizer"}, str(told)
    assert served == {"llm.prefill", "llm.decode"}, str(told)


def test_weights_made_on_the_device_are_weights(decoder):
    """Converted or copied there, or tensors without modules: each model is one by itself."""
    model, prompt = decoder
    copies = [Decoder().to(DEVICE).double() for _ in range(2)]
    genie.reset_trace()
    for each in copies:
        generate(each.eval(), prompt, steps=2)
    told = genie.explain()
    assert [str(each) for each in told.models] == ["llm", "llm"], str(told)
    assert all(each.weights >= 6 for each in told.models), str(told)
    assert str(told).startswith("workload: llm (2 models)\n"), str(told)
    weights = [torch.randn(64, 32).to(DEVICE) for _ in range(2)]
    genie.reset_trace()
    for _ in range(3):
        for weight in weights:
            torch.relu(torch.randn(8, 64).to(DEVICE) @ weight).cpu()
    told = genie.explain()
    assert [each.ops for each in told.models] == [6, 6], str(told)


def test_a_dozen_models_read_well():
    models = [nn.Sequential(nn.Linear(8, 8 + n), nn.ReLU(), nn.Linear(8 + n, 4)).to(DEVICE) for n in range(12)]
    genie.reset_trace()
    with torch.no_grad():
        for model in models:
            model(torch.randn(2, 8).to(DEVICE)).cpu()
    told = genie.explain()
    assert len(told.models) == 12 and all(model.weights >= 2 for model in told.models), str(told)
    assert str(told).count("─ ") == 12 and "(12 models)" in str(told)


def test_reset_trace_forgets(decoder):
    generate(*decoder, steps=1)
    genie.reset_trace()
    assert genie.explain().ops_total == 0
    (torch.ones(3, 4).to(DEVICE) + 1).cpu()
    assert [op.op for op in genie.explain().ops] == ["aten::add.Tensor"]


def test_a_steady_decode_step_calls_no_plugin(decoder):
    # A length that equals another size is a topology of its own: 40 steps meet all of theirs. What the
    # analysis had no time for is left out, and met again.
    calls = []
    while len(calls) < 2 or (calls[-1] > calls[-2] and len(calls) < 20):
        generate(*decoder, steps=40)
        calls.append(_settled_calls())
    assert calls[-1] == calls[-2], calls
    assert calls[-1] > 0 and genie.stats()["host.analysis.topologies"] > 0


def _settled_calls():
    """Plugin calls once everything that was met is recognized."""
    torch.ones(1).to(DEVICE).cpu()
    found = []

    def settled():
        stats = genie.stats()
        found[:] = [stats.get("host.plugins.calls")]
        return stats.get("host.plugins.ready", 0) > 0 and stats["host.analysis.waiting"] == 0

    wait_until(settled, 600, lambda: f"the analysis does not come to rest: {genie.stats()}")
    return found[0]


def test_more_operators_than_a_trace_holds_are_counted_out(device):
    genie.reset_trace()
    x = torch.ones(4).to(device)
    for _ in range(25_000):
        x = x + 1
    x.cpu()
    told = genie.explain()
    assert told.truncated and 15_000 < told.ops_total <= (1 << 14) + 4096
    assert len(told.ops) <= 1 << 15
    genie.reset_trace()
    assert not genie.explain().truncated


def _steps(nets, count, device, every=0):
    """How many operators `count` steps of each net were, one net after the other, with one more now and then."""
    ran = 0
    x = torch.randn(4, 16, device=device)
    with torch.no_grad():
        for step in range(count):
            for net in nets:
                net(x).sum().item()
                ran += 4
            if every and step % every == every - 1:
                x.neg().max().item()
                ran += 2
    return ran


@pytest.mark.parametrize(("models", "every"), [(1, 0), (2, 0), (1, 97)])
def test_a_long_loop_is_told_whole(device, models, every):
    nets = [nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16)).to(device) for _ in range(models)]
    _steps(nets, 1, device)
    genie.reset_trace()
    ran = _steps(nets, 6000 // models, device, every) + 1
    told = genie.explain()
    assert not told.truncated and len(told.ops) < 1 << 14
    assert told.ops_total == sum(op.times for op in told.ops) == sum(model.ops for model in told.models)
    # The first numbers are drawn on the device.
    assert told.ops_total in (ran, ran - 1), (told.ops_total, ran)
    assert sum(phase.ops for phase in told.phases) == told.ops_total
    largest = sorted((model.ops for model in told.models), reverse=True)[:models]
    # Two of one architecture that take turns stay two.
    assert len(largest) == models and max(largest) - min(largest) < 8, told
    assert str(len(told.ops)) in str(told) and "counted" in str(told)
    genie.reset_trace()


def test_a_long_training_without_reads_keeps_its_phases(device):
    net = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 2)).to(device)
    optimizer = torch.optim.Adam(net.parameters())

    def train(steps):
        genie.reset_trace()
        for _ in range(steps):
            loss = net(torch.randn(8, 16).to(device)).pow(2).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        told = genie.explain()
        assert not told.truncated
        return {phase.phase: phase.ops for phase in told.phases}

    train(1)
    one = train(1)
    assert set(one) == {"train.forward", "train.backward", "train.optimizer"}
    assert train(700) == {phase: 700 * ops for phase, ops in one.items()}
    # What comes after training is none.
    genie.reset_trace()
    with torch.no_grad():
        net(torch.randn(8, 16).to(device)).cpu()
    assert {phase.phase for phase in genie.explain().phases} == {"other.forward"}


def test_many_answers_keep_their_phases(decoder):
    model, _ = decoder
    genie.reset_trace()
    for answer in range(60):
        prompt = torch.randint(200, (1, 5 + answer % 4)).to(DEVICE)
        with torch.no_grad():
            with genie.phase("prompt"):
                logits, cache = model(prompt, None)
                token = logits.argmax(-1)
                int(token)
            for _ in range(4):
                with genie.phase("token"):
                    logits, cache = model(token, cache)
                    token = logits.argmax(-1)
                    int(token)
    told = genie.explain()
    assert not told.truncated and told.ops_total > len(told.ops)
    wrong = [op for op in told.ops if op.phase != {"prompt": "llm.prefill", "token": "llm.decode"}[op.mark]]
    assert sum(op.times for op in wrong) == 0, wrong[:5]


def test_threads_are_in_modules_and_phases_of_their_own(device):
    turn = threading.Barrier(2)

    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(16, 16)

        def forward(self, x):
            for _ in range(20):
                turn.wait(60)
                x = torch.tanh(self.inner(x))
            return x

    class Second(First):
        pass

    nets = {"one": First().to(device), "two": Second().to(device)}
    x = torch.randn(4, 16).to(device)

    def run(name):
        with torch.no_grad(), genie.phase(name):
            nets[name](x).sum().item()

    genie.reset_trace()
    threads = [threading.Thread(target=run, args=(name,)) for name in nets]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    told = genie.explain()
    seen = {(op.mark, op.class_.rsplit(".")[-1]) for op in told.ops if "tanh" in op.op}
    assert seen == {("one", "First"), ("two", "Second")}
    assert len(told.models) == 2 and all(model.estimated_us > 0 for model in told.models)
    # What autograd runs for this thread is in its phase.
    layer = nn.Linear(16, 16).to(device)
    genie.reset_trace()
    with genie.phase("step"):
        layer(x).sum().backward()
    torch.relu(x).cpu()
    assert {op.op: op.mark for op in genie.explain().ops}["aten::relu"] == ""
    assert {op.mark for op in genie.explain().ops if op.op != "aten::relu"} == {"step"}


def test_training_is_told_by_stage(device):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1)).to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    x = torch.randn(8, 6).to(device)
    genie.reset_trace()
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    phases = [str(phase) for phase in genie.explain().phases]
    assert phases == ["train.forward", "train.backward", "train.optimizer"]


def test_an_exported_graph_is_read_by_the_host(decoder, tmp_path):
    genie.reset_trace()
    generate(*decoder, steps=2)
    with genie.phase("mine"):
        (torch.ones(2).to(DEVICE) * 3).cpu()
    path = tmp_path / "graph.json"
    genie.export_graph(path)
    graph = json.loads(path.read_text())
    assert graph["version"] == 1 and not graph["truncated"] and "mine" in graph["graph"]["blob"]
    out = subprocess.run(
        ["genie-host", "graph", str(path), "--out", str(tmp_path)], capture_output=True, text=True, timeout=600
    )
    assert out.returncode == 0, out.stderr
    assert "llm" in out.stdout
    svg = (tmp_path / "graph.svg").read_text()
    assert svg.startswith("<svg") or "<svg" in svg[:200]
    assert "digraph" in (tmp_path / "graph.dot").read_text()


def test_nowhere_to_write_is_an_error_of_its_own(decoder, tmp_path):
    with pytest.raises(OSError):
        genie.export_graph(tmp_path / "none" / "graph.json")
    generate(*decoder, steps=1)  # the session goes on


def test_without_a_host_the_error_says_so(program):
    run = program(
        """
        import genie
        errors = []
        def ask():
            try:
                genie.explain()
            except RuntimeError as error:
                errors.append(str(error))
        ask()
        (torch.ones(2).to("remote_accelerator") + 1).cpu()
        genie.reset_trace()
        ask()
        say(errors=errors)
        """,
        env={"GENIE_MODE": "local"},
    )
    first, then = run.finish()[0]["errors"]
    assert first.startswith("nothing ran on remote_accelerator yet") and "mode local has no host" in then


def test_without_plugins_the_answer_says_so(program):
    run = program(
        """
        import genie
        (torch.ones(2).to("remote_accelerator") + 1).cpu()
        told = genie.explain()
        say(label=told.workload.label, ops=told.ops_total, why=told.why)
        """,
        env={"GENIE_PLUGINS": "none"},
    )
    said = run.finish()[0]
    assert (said["label"], said["ops"]) == ("unknown", 1) and "this host has no plugins" in said["why"][0]
