"""`torch.compile` on the device: what eager computes, to the bit, for one record a call."""

import contextlib
import copy
import gc
import json
import logging
import threading
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import genie

# Calls until a graph is a script: an operator's first runs may be synchronous, and one is noted.
WARM = 4
COUNTED = ("ops", "records", "marks", "scripts", "script_runs", "round_trips")

pytestmark = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 5), reason="Dynamo asks older devices for inductor"
)


@pytest.fixture(autouse=True)
def fresh_dynamo(caplog):
    # What is no script says why.
    caplog.set_level(logging.DEBUG, "genie")
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@contextlib.contextmanager
def counting():
    """What the tape took meanwhile. Destructors of earlier results are not of it."""
    gc.collect()
    before, counts = genie.stats(), {}
    yield counts
    after = genie.stats()
    counts.update({name: after[name] - before[name] for name in COUNTED})


def assert_one_record(counts, runs=1):
    """The results must be alive, for each free is a record too."""
    assert counts["script_runs"] == runs and counts["ops"] == 0, counts
    assert counts["records"] - counts["marks"] - counts["scripts"] == runs, counts


def assert_becomes_one_record(compiled, model, device):
    """On fresh inputs it computes what the model does, to the bit, and is one record a call once warm."""
    kept = []
    for index in range(WARM + 2):
        x = torch.randn(4, 32).to(device)
        with torch.no_grad():
            expected = model(x)
            with counting() as counts:
                kept.append(compiled(x))
        assert torch.equal(kept[-1], expected)
        if index >= WARM:
            assert_one_record(counts)


def deep_model(device, layers=20):
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Linear(32, 32), nn.LayerNorm(32), nn.GELU()) for _ in range(layers)]
    return nn.Sequential(*blocks).to(device).eval()


# One record a call


@pytest.mark.parametrize("options", [{}, {"fullgraph": True}, {"dynamic": True}, {"backend": "genie"}], ids=str)
def test_a_call_is_one_record_and_exact(device, options):
    model = deep_model(device)
    assert_becomes_one_record(torch.compile(model, **options), model, device)


@contextlib.contextmanager
def setting(set_it, value, before):
    set_it(value)
    try:
        yield
    finally:
        set_it(before)


# Settings of whole programs: PyTorch's own pages advise the first for compiled ones.
SETTINGS = {
    "precision": (torch.set_float32_matmul_precision, "medium", "highest"),
    "dtype": (torch.set_default_dtype, torch.float64, torch.float32),
    "deterministic": (torch.use_deterministic_algorithms, True, False),
    "denormals": (torch.set_flush_denormal, True, False),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_a_call_is_one_record_under_other_settings(device, name):
    def work(model, x):
        return model(x), x.argmax(-1) / 7

    model, kept = deep_model(device, 3), []
    compiled = torch.compile(work, fullgraph=True)
    x = torch.randn(4, 32).to(device)
    with torch.no_grad():
        # Both ways there and back: what was kept under one is not run under another.
        for _ in range(2):
            for context in (contextlib.nullcontext(), setting(*SETTINGS[name])):
                with context:
                    expected = work(model, x)
                    for index in range(WARM + 2):
                        with counting() as counts:
                            kept.append(compiled(model, x))
                        assert all(map(torch.equal, kept[-1], expected))
                        assert [each.dtype for each in kept[-1]] == [each.dtype for each in expected]
                        if index >= WARM:
                            assert counts["script_runs"] == 1 and counts["ops"] == 0, counts


@pytest.mark.parametrize("part", ["__call__", "forward"])
def test_a_models_own_call_is_compiled(device, part):
    """transformers compiles `model.__call__`. Dynamo begins there with the program's own code."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = deep_model(device, 3)

        def forward(self, x):
            return self.inner(x) + 1

    model = Model()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = torch.compile(getattr(model, part), fullgraph=True, dynamic=False)
        assert_becomes_one_record(compiled, model, device)


def test_the_cost_does_not_grow_with_the_operators(device):
    tape_bytes = []
    for layers in (2, 60):
        scale = [torch.ones(32, device=device)]

        def chain(x, scale=scale, layers=layers):
            for _ in range(layers):
                x = torch.relu(x * 0.5 + scale[0])
            return x

        compiled = torch.compile(chain, fullgraph=True)
        x = torch.randn(4, 32).to(device)
        kept = [compiled(x) for _ in range(3)]
        before = genie.stats()["tape_bytes"]
        kept += [compiled(x) for _ in range(64)]
        torch.remote_accelerator.synchronize()
        tape_bytes.append(genie.stats()["tape_bytes"] - before)
        assert torch.equal(kept[-1], chain(x))
    # Ids grow with what was made, and with them the bytes that name them.
    assert all(bytes_ < 64 * 16 for bytes_ in tape_bytes), tape_bytes


def test_dynamic_sizes_take_a_script_each(device):
    model = deep_model(device, 3)
    compiled = torch.compile(model, dynamic=True, fullgraph=True)
    runs = []
    with torch.no_grad():
        for rows in (3, 5, 7, 3, 5, 7, 3, 5, 7):
            x = torch.randn(rows, 32).to(device)
            expected = [model(x) for _ in range(WARM)][0]
            with counting() as counts:
                y = compiled(x)
            runs.append(counts["script_runs"])
            assert torch.equal(y, expected)
    assert runs == [0] * 3 + [1] * 6


@pytest.mark.parametrize("kind", ["norm", "number"])
def test_dynamic_graphs_with_gradients_are_compiled(device, kind, caplog):
    """Dynamo may want to trace a graph again, with its numbers as they are."""
    model = nn.BatchNorm1d(12).to(device)
    work = (lambda x, k: model(x)) if kind == "norm" else (lambda x, k: F.leaky_relu(x, k))
    compiled = torch.compile(work, dynamic=True)
    for rows in (4, 5, 6):
        grads = []
        for function in (work, compiled):
            x = torch.linspace(-1, 1, 12 * rows).reshape(rows, 12).to(device).requires_grad_()
            function(x, 0.1 * rows).square().sum().backward()
            grads.append(x.grad)
        assert torch.equal(*grads)
    assert "operator by operator" not in caplog.text


def test_sizes_that_never_come_again_are_exact(device):
    compiled = torch.compile(lambda cache, x: torch.cat([cache, x]).softmax(0), dynamic=True)
    cache = torch.zeros(2, 4, device=device)
    for _ in range(60):
        x = torch.randn(1, 4).to(device)
        cache = torch.cat([cache, x])
        assert torch.equal(compiled(cache, x), torch.cat([cache, x]).softmax(0))


def test_recompiles_keep_what_each_has(device):
    def work(x, twice):
        return x.sin() * 2 if twice else x.cos()

    compiled = torch.compile(work)
    for _ in range(3):
        for dtype in (torch.float32, torch.float64):
            for twice in (True, False):
                x = torch.randn(3, 3, dtype=dtype).to(device)
                assert torch.equal(compiled(x, twice), work(x, twice))


@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"])
def test_modes_are_accepted_with_one_warning(device, mode, monkeypatch):
    from genie import _compile

    monkeypatch.setattr(_compile, "_warned_of_options", False)
    x = torch.randn(4).to(device)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for scale in (2.0, 3.0):
            compiled = torch.compile(lambda x, scale=scale: x.sin() * scale, mode=mode)
            assert torch.equal(compiled(x), x.sin() * scale)
    assert sum("change nothing on remote_accelerator" in str(each.message) for each in caught) == 1


# Training


def train(device, compile_it, steps=WARM + 3):
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Dropout(0.2),
        nn.Linear(8 * 16, 10),
    ).to(device)  # fmt: skip
    forward = torch.compile(model) if compile_it else model
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    torch.manual_seed(2)
    losses, grads, counted = [], [], []
    for _ in range(steps):
        x, labels = torch.randn(4, 3, 8, 8).to(device), torch.randint(10, (4,)).to(device)
        with counting() as counts:
            loss = F.cross_entropy(forward(x), labels)
            loss.backward()
        counted.append(counts)
        grads += [parameter.grad.cpu() for parameter in model.parameters()]
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach().cpu())
    return [*losses, *grads, *(each.detach().cpu() for each in model.state_dict().values())], counted


def test_training_is_eager_to_the_bit(device):
    eager, _ = train(device, False)
    compiled, counted = train(device, True)
    assert all(torch.equal(a, b) for a, b in zip(eager, compiled, strict=True))
    # A forward and a backward graph each.
    assert [counts["script_runs"] for counts in counted][WARM:] == [2] * 3


def test_attention_trains_as_without(device):
    def train(compile_it):
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True).to(device)
        forward = torch.compile(layer) if compile_it else layer
        torch.manual_seed(1)
        for _ in range(3):
            forward(torch.randn(2, 6, 32).to(device)).square().mean().backward()
        return [parameter.grad.cpu() for parameter in layer.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(train(False), train(True), strict=True))


def test_an_optimizers_step_is_compiled(device):
    weights = []
    for compile_it in (False, True):
        torch.manual_seed(0)
        model = nn.Linear(8, 8).to(device)
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        step = torch.compile(optimizer.step) if compile_it else optimizer.step
        for _ in range(4):
            model(torch.ones(2, 8).to(device)).square().sum().backward()
            step()
            optimizer.zero_grad()
        weights.append(model.weight.detach().cpu())
    assert torch.equal(*weights)


# What a graph does to its inputs, and what it returns


def test_a_cache_is_written_in_place(device):
    def step(cache, index, x):
        cache.index_copy_(1, index, x)
        return cache.sum(1), cache.view(-1)

    compiled = torch.compile(step, fullgraph=True)
    cache, expected = torch.zeros(2, 8, 4, device=device), torch.zeros(2, 8, 4, device=device)
    for position in range(6):
        index, x = torch.tensor([position]).to(device), torch.randn(2, 1, 4).to(device)
        version, total, flat = cache._version, None, None
        with counting() as counts:
            total, flat = compiled(cache, index, x)
        assert torch.equal(total, step(expected, index, x)[0]) and torch.equal(cache, expected)
        assert cache._version > version
        assert flat.untyped_storage().data_ptr() == cache.untyped_storage().data_ptr()
        if position >= WARM:
            assert_one_record(counts)
    flat.zero_()
    assert not cache.any()


def test_buffers_and_counters_go_on(device):
    model = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4)).to(device)
    torch.manual_seed(0)
    reference = nn.Sequential(nn.BatchNorm1d(4), nn.BatchNorm1d(4)).to(device)
    compiled = torch.compile(model)
    for _ in range(4):
        x = torch.randn(8, 4).to(device)
        with torch.no_grad():
            assert torch.equal(compiled(x), reference(x))
    for a, b in zip(model.state_dict().values(), reference.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_results_that_share_storage_go_on_sharing(device):
    def parts(x):
        y = x + 1
        return y, y[1:], y.t(), x.view(-1), x

    compiled = torch.compile(parts)
    for _ in range(4):
        x = torch.arange(6.0).view(2, 3).to(device)
        y, tail, turned, flat, same = compiled(x)
        y.add_(10)
        flat.mul_(2)
        assert same is x
        assert torch.equal(tail, y[1:]) and torch.equal(turned, y.t()) and torch.equal(x.view(-1), flat)
        assert tail._version == y._version


def test_the_same_storage_twice_is_another_script(device):
    def add(a, b):
        a.add_(b)
        return a * b

    compiled = torch.compile(add)
    for _ in range(3):
        for alias in (False, True):
            a, expected_a = torch.ones(4, device=device), torch.ones(4, device=device)
            b, expected_b = (a.view(4), expected_a.view(4)) if alias else (torch.ones(4).to(device),) * 2
            assert torch.equal(compiled(a, b), add(expected_a, expected_b)) and torch.equal(a, expected_a)


def test_offsets_of_views_are_told_apart(device):
    compiled = torch.compile(lambda x: x * 2)
    whole = torch.arange(12.0).to(device)
    for _ in range(3):
        for start in (0, 4, 8):
            assert torch.equal(compiled(whole[start : start + 4]), whole[start : start + 4] * 2)


def test_random_streams_are_eagers(device):
    def draw(x):
        return F.dropout(x, 0.5) + torch.rand_like(x), torch.randperm(5, device=x.device)

    x = torch.ones(64, device=device)
    drawn = []
    for function in (draw, torch.compile(draw)):
        torch.manual_seed(7)
        drawn.append([each.cpu() for _ in range(4) for each in function(x)])
    assert all(torch.equal(a, b) for a, b in zip(*drawn, strict=True))


# Where a graph is not repeated


def test_graph_breaks_are_exact(device):
    def work(x):
        y = x * 2
        return y + 1 if y.sum().item() > 0 else y - 1

    compiled = torch.compile(work)
    for _ in range(3):
        for sign in (1, -1):
            x = sign * torch.ones(3, device=device)
            assert torch.equal(compiled(x), work(x))


def test_constants_are_kept_and_not_written(device):
    def add(x):
        return x + torch.tensor([1.0, 2.0, 3.0], device=x.device)

    def count(x):
        counter = torch.tensor([1.0, 2.0, 3.0], device=x.device)
        counter.add_(x)
        return counter

    for work, one_record in ((add, True), (count, False)):
        compiled, kept = torch.compile(work), []
        x = torch.ones(3, device=device)
        for index in range(WARM + 2):
            with counting() as counts:
                kept.append(compiled(x))
            assert torch.equal(kept[-1], work(x))
            if index >= WARM and one_record:
                assert_one_record(counts)


def test_the_cpus_part_is_computed_every_time(device):
    def work(x, offset):
        offset.add_(1)
        return x + offset.to(x.device), offset * 2

    compiled = torch.compile(work)
    x, offset = torch.ones(3, device=device), torch.zeros(3)
    for turn in range(1, 5):
        on_device, on_cpu = compiled(x, offset)
        assert torch.equal(on_device.cpu(), torch.full((3,), 1.0 + turn)) and torch.equal(offset, torch.full((3,), turn))
        assert torch.equal(on_cpu, torch.full((3,), 2.0 * turn))


def test_numbers_that_vary_are_not_frozen(device):
    compiled = torch.compile(lambda x, scale, shift: x * scale + shift)
    x = torch.ones(3, device=device)
    for turn in range(6):
        assert torch.equal(compiled(x, turn * 0.5, turn), x * (turn * 0.5) + turn)


def test_the_python_code_of_an_operator_of_others_runs_every_time(device):
    calls = []

    @torch.library.custom_op("genie_test::counted", mutates_args=())
    def counted(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return x * len(calls)

    counted.register_fake(torch.empty_like)
    compiled = torch.compile(lambda x: counted(x) + 1)
    x = torch.ones(2, device=device)
    assert [compiled(x)[0].item() for _ in range(4)] == [2, 3, 4, 5]


# Programs around it


def test_several_models_keep_apart(device):
    models = [deep_model(device, layers) for layers in (1, 2, 3)]
    compiled = [torch.compile(model) for model in models]
    with torch.no_grad():
        for _ in range(3):
            x = torch.randn(2, 32).to(device)
            for model, fast in zip(models, compiled, strict=True):
                assert torch.equal(fast(x), model(x))


def test_threads_run_one_compiled_function(device):
    def work(x):
        for _ in range(10):
            x = torch.relu(x * 1.1 - 0.1)
        return x

    compiled, wrong = torch.compile(work), []
    compiled(torch.ones(4, 4, device=device))

    def run(seed):
        generator = torch.Generator().manual_seed(seed)
        for _ in range(20):
            x = torch.randn(4, 4, generator=generator).to(device)
            if not torch.equal(compiled(x), work(x)):
                wrong.append(seed)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_nothing_is_left_on_the_node(device):
    model = deep_model(device, 5)
    compiled = torch.compile(model)
    x = torch.randn(4, 32).to(device)
    with torch.no_grad():
        for _ in range(3):
            compiled(x)
        torch.remote_accelerator.synchronize()
        before = genie.stats()
        for _ in range(20):
            compiled(x)
    torch.remote_accelerator.synchronize()
    after = genie.stats()
    for name in ("node.storages", "node.storage_bytes", "live_storages"):
        assert after[name] == before[name], name


def test_the_peak_of_memory_counts_what_lives_inside(device):
    def work(x):
        return (x + 1).sum()

    compiled = torch.compile(work)
    x = torch.ones(1 << 18, device=device)
    for _ in range(3):
        compiled(x)
    torch.remote_accelerator.reset_peak_memory_stats()
    start = torch.remote_accelerator.memory_allocated()
    compiled(x)
    assert torch.remote_accelerator.max_memory_allocated() - start >= 1 << 20


def test_errors_name_operator_and_module(device):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.words = nn.Embedding(10, 4)

        def forward(self, tokens):
            return self.words(tokens) + 1

    model = Model().to(device)
    compiled = torch.compile(model)
    with torch.no_grad():
        good, bad = torch.tensor([1, 2]).to(device), torch.tensor([1, 99]).to(device)
        for _ in range(3):
            expected = compiled(good)
        broken = compiled(bad)
        with pytest.raises(IndexError, match=r"embedding.*words"):
            broken.cpu()
        assert torch.equal(compiled(good), expected)


def test_explain_sees_the_same_operators(device, tmp_path):
    model = deep_model(device, 2)
    compiled = torch.compile(model)
    x = torch.randn(4, 32).to(device)
    seen = []
    with torch.no_grad():
        for function in (model, compiled):
            for _ in range(WARM):
                function(x)
            genie.reset_trace()
            function(x).cpu()
            path = tmp_path / "graph.json"
            genie.export_graph(path)
            seen.append(operators(json.loads(path.read_text())))
    assert seen[0] == seen[1] and len(seen[0]) >= 6


def operators(recorded):
    """The operators of a recorded graph, in order."""
    graph = recorded["graph"]
    blob, ends = graph["blob"].encode(), graph["symbol_ends"]
    symbols = [blob[begin:end].decode() for begin, end in zip([0, *ends], ends, strict=False)]
    return [symbols[op] for op in graph["op"]]


@pytest.mark.parametrize("scripts", ["0", "1"])
def test_scripts_have_a_switch(program, scripts):
    said, _ = program(
        """
        model = torch.nn.Linear(8, 8).to(DEVICE)
        compiled = torch.compile(model, fullgraph=True)
        x = torch.randn(2, 8).to(DEVICE)
        with torch.no_grad():
            equal = [torch.equal(compiled(x), model(x)) for _ in range(6)]
        say(equal=all(equal), runs=genie.stats()["script_runs"] > 0)
        """,
        env={"GENIE_SCRIPTS": scripts},
    ).finish()
    assert said == {"equal": True, "runs": scripts == "1"}


def test_a_new_session_begins_anew(program):
    run = program(
        """
        import torch, genie
        x = torch.ones(3).to("remote_accelerator")
        compiled = torch.compile(lambda x: (x * 2).sin())
        for session in range(2):
            x = torch.ones(3).to("remote_accelerator")
            for _ in range(4):
                assert torch.equal(compiled(x), (x * 2).sin())
            assert genie.stats()["script_runs"] == 3, genie.stats()["script_runs"]
            old = x
            genie.shutdown()
        x = torch.ones(3).to("remote_accelerator")
        try:
            compiled(old)
        except genie.NodeLost:
            say(ok=True)
        """
    )
    assert run.finish()[0]["ok"]


# Libraries


def test_generate_with_a_static_cache_and_a_compiled_forward(device):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    reference = copy.deepcopy(model)
    prompt = torch.randint(64, (1, 5))
    how = dict(max_new_tokens=12, do_sample=False, cache_implementation="static", pad_token_id=0)
    expected = reference.generate(prompt, **how)
    model = model.to(device)
    model.forward = torch.compile(model.forward, fullgraph=True)
    for turn in range(3):
        with counting() as counts:
            made = model.generate(prompt.to(device), **how)
        assert torch.equal(made.cpu(), expected)
    assert counts["script_runs"] == 12, counts


def causal(batch, head, query, key):
    return query >= key


def nearer(score, batch, head, query, key):
    return score + (key - query) * 0.1


@pytest.mark.parametrize("compile_it", [False, True])
@pytest.mark.parametrize("how", ["plain", "score", "mask"])
def test_flex_attention(device, compile_it, how):
    flex = pytest.importorskip("torch.nn.attention.flex_attention")
    torch.manual_seed(0)
    inputs = [torch.randn(1, 2, 128, 16) for _ in range(3)]

    def options(where):
        mask = flex.create_block_mask(causal, None, None, 128, 128, device=where) if how == "mask" else None
        return dict(score_mod=nearer if how == "score" else None, block_mask=mask)

    expected = flex.flex_attention(*inputs, **options("cpu"))
    there, more = [each.to(device) for each in inputs], options(device)
    eager = flex.flex_attention(*there, **more)
    torch.testing.assert_close(eager.cpu(), expected)
    if compile_it:
        compiled = torch.compile(flex.flex_attention, fullgraph=True)
        kept = [compiled(*there, **more) for _ in range(WARM)]
        with counting() as counts:
            kept.append(compiled(*there, **more))
        assert all(torch.equal(each, eager) for each in kept)
        assert_one_record(counts)
