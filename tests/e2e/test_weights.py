"""The same weights move once: for the same program, and for another one on the same host."""

import copy
import textwrap

import pytest
import torch

pytestmark = pytest.mark.remote

UPLOAD = """
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(512, 1024), torch.nn.Linear(1024, 512))
payload = sum(p.numel() * 4 for p in model.parameters())
def moved():
    before = genie.stats()["payload_bytes_up"]
    there = copy.deepcopy(model).to(DEVICE)
    value = there(torch.ones(1, 512, device=DEVICE)).sum().item()
    return genie.stats()["payload_bytes_up"] - before, value
import copy
first, value = moved()
second, again = moved()
say(payload=payload, first=first, second=second, value=value, again=again)
"""


def test_second_upload_by_the_same_program_moves_nothing(program):
    said, _ = program(UPLOAD).finish()
    assert said["first"] >= said["payload"] - (64 << 10)
    assert said["second"] == 0
    assert said["value"] == said["again"]


def test_upload_by_another_program_moves_nothing(host, program):
    first, _ = program(UPLOAD, env=host.environment).finish()
    other, _ = program(UPLOAD, env=host.environment).finish()
    assert first["first"] > 0
    assert other["first"] == other["second"] == 0
    assert other["value"] == first["value"]


def test_writing_to_a_shared_weight_copies_it(device):
    """Two tensors from the same bytes: a write to one is not seen in the other."""
    source = torch.randn(64, 1024)
    a, b = source.to(device), source.to(device)
    a.zero_()
    assert a.abs().sum().item() == 0
    assert torch.equal(b.cpu(), source)
    assert torch.equal(source.to(device).cpu(), source)


def test_training_does_not_change_stored_weights(device):
    torch.manual_seed(0)
    source = torch.nn.Linear(256, 256)
    trained = copy.deepcopy(source).to(device)
    optimizer = torch.optim.SGD(trained.parameters(), 0.5)
    trained(torch.ones(1, 256, device=device)).sum().backward()
    optimizer.step()
    fresh = copy.deepcopy(source).to(device)
    assert torch.equal(fresh.weight.cpu(), source.weight)
    assert not torch.equal(trained.weight.cpu(), source.weight)


BATCHES = """
torch.manual_seed(0)
d = DEVICE
def node(name="node.resident_bytes"):
    torch.ones(1, device=d).item()
    return genie.stats()[name]
"""


def test_fresh_batches_leave_nothing_on_the_node(program):
    """1,000 distinct batches of 4 MiB."""
    source = """
    torch.ones(1 << 20).to(d).sum().item()
    before, kept = node(), node("node.weight_bytes")
    total = torch.zeros((), device=d)
    batch = torch.zeros(1 << 20)
    for number in range(1000):
        batch = torch.full((1 << 20,), float(number))
        batch[::4096] = torch.randn(256)
        total += batch.to(d)[5]
    total.item()
    say(grown=node() - before, kept=node("node.weight_bytes") - kept, questions=genie.stats()["weight_queries"],
        total=total.item())
    """
    said, _ = program(BATCHES + textwrap.dedent(source)).finish(300)
    assert said["total"] == sum(range(1000))
    assert said["grown"] < 64 << 20
    # Contents that look alike cost a question or two, and are kept then.
    assert said["kept"] <= 8 << 20 and said["questions"] <= 2


@pytest.mark.parametrize("count", [20_000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_many_small_uploads(program, count):
    """Distinct uploads of 64 bytes, plain tensors and parameters."""
    source = f"""
    total = torch.zeros((), device=d)
    say(rss=node())
    for number in range({count}):
        small = torch.full((16,), float(number % 1000))
        if number % 100 == 0:
            small = torch.nn.Parameter(small)
        total += small.detach().to(d)[3] if number % 200 else small.to(d)[3].detach()
    say(total=total.item(), live=genie.stats()["live_storages"], weights=node("node.weights"), rss=node())
    """
    running = program(BATCHES + textwrap.dedent(source))
    before = running.heard()
    said, _ = running.finish(3600)
    assert said["total"] == sum(number % 1000 for number in range(count)) or count >= 1_000_000
    assert said["live"] < 100 and said["weights"] <= 1 << 16
    assert said["rss"] - before["rss"] < 64 << 20


WHOLE_MODEL = """
class Part(torch.nn.Module):
    "Parameters, frozen ones, buffers of several kinds, and tied ones."
    def __init__(self):
        super().__init__()
        self.layers = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.BatchNorm1d(64)) for _ in range(40))
        self.frozen = torch.nn.Parameter(torch.randn(64, 64), requires_grad=False)
        self.register_buffer("table", torch.arange(4096).reshape(64, 64).clone())
        self.tied = torch.nn.Linear(64, 64, bias=False)
        self.tied.weight = self.layers[0][0].weight
        self.rnn = torch.nn.LSTM(64, 64)
    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.tied(x @ self.frozen + self.table[:1])
import copy
torch.manual_seed(0)
model = Part().eval()
x = torch.randn(3, 64)
with torch.no_grad():
    expected = model(x)
def move(how):
    there = copy.deepcopy(model)
    before = genie.stats()
    there = how(there)
    after = genie.stats()
    with torch.no_grad():
        equal = torch.equal(there(x.to(DEVICE)).cpu(), expected)
    return [equal] + [after[key] - before[key] for key in ("payload_bytes_up", "weight_queries")]
"""


def test_all_of_a_model_moves_once_and_is_one_question(host, program):
    source = WHOLE_MODEL + "say(moves=[move(lambda m: m.to(DEVICE)) for _ in range(2)] + "
    source += "[move(lambda m: m.remote_accelerator())], tied=len(list(model.to(DEVICE).parameters())))"
    for first in (True, False):
        said, _ = program(source, env=host.environment).finish()
        [equal, up, questions], *again = said["moves"]
        assert equal and questions == 1
        assert up > 40 * 64 * 64 * 4 if first else up == 0
        assert again == [[True, 0, 1], [True, 0, 1]]
        assert said["tied"] == 40 * 4 + 1 + 4, "tied weights stay tied"


def test_a_model_that_is_converted_on_its_way_is_right(device):
    """What changes on its way is not what was hashed."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    x = torch.randn(2, 3, 8, 8)
    for _ in range(3):
        there = copy.deepcopy(model).to(device, torch.float64)
        assert torch.equal(there[0].weight.cpu(), model[0].weight.double())
        there = copy.deepcopy(model).to(device, memory_format=torch.channels_last)
        assert torch.equal(there[0].weight.cpu(), model[0].weight)
        torch.testing.assert_close(there(x.to(device)).cpu(), copy.deepcopy(model)(x))


class Changes(torch.nn.Module):
    """Changes its weights while it moves."""

    def __init__(self):
        super().__init__()
        self.inner = torch.nn.Linear(64, 64)

    def _apply(self, fn, recurse=True):
        self.inner.weight.data.numpy()[:] += 1
        return super()._apply(fn, recurse)


def test_a_module_with_a_way_of_its_own_moves_what_it_has_then(device):
    for nested in (False, True):
        module = Changes()
        before = module.inner.weight.detach().clone()
        there = (torch.nn.Sequential(torch.nn.Linear(8, 8), module) if nested else module).to(device)
        assert next(there.parameters()).device.type == torch.device(device).type
        assert torch.equal(module.inner.weight.detach().cpu(), before + 1)


def test_content_moves_until_it_was_seen_twice(device, stats):
    seen = torch.randn(1 << 18)
    up = []
    for _ in range(4):
        before = stats()["payload_bytes_up"]
        there = seen.to(device)
        up.append(stats()["payload_bytes_up"] - before)
        there += 1
        assert torch.equal(there.cpu(), seen + 1), "the first write copies"
    assert up == [1 << 20, 1 << 20, 0, 0]


def test_what_no_tensor_uses_is_dropped_by_least_recent_use(host_with, program):
    """8 MiB are kept at most; what is bound stays whatever comes."""
    joined = host_with("--weight-cache-bytes", str(8 << 20))
    source = """
    torch.manual_seed(0)
    bound = torch.nn.Parameter(torch.randn(1 << 20))
    there = bound.to(DEVICE)
    seen = []
    for number in range(8):
        each = torch.nn.Parameter(torch.full((1 << 20,), float(number)))
        each.to(DEVICE).sum().item()
        seen.append(genie.stats()["node.weight_bytes_unheld"])
    before = genie.stats()["payload_bytes_up"]
    kept = bound.to(DEVICE)
    last = each.to(DEVICE)
    say(equal=torch.equal(there.cpu(), bound) and torch.equal(kept.cpu(), bound), unheld=max(seen),
        evicted=genie.stats()["node.weights_evicted"], up=genie.stats()["payload_bytes_up"] - before)
    """
    said, _ = program(source, env=joined.environment).finish()
    assert said == {"equal": True, "unheld": 8 << 20, "evicted": 6, "up": 0}


def test_several_sessions_share_weights_and_each_writes_its_own(host, program):
    source = """
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(256, 256), torch.nn.Linear(256, 256))
    other = torch.nn.Linear(256, 256).to(DEVICE)
    there = copy.deepcopy(model).to(DEVICE)
    say()
    sys.stdin.readline()
    optimizer = torch.optim.SGD(there.parameters(), float(sys.argv[1]))
    for _ in range(3):
        optimizer.zero_grad()
        there(torch.ones(1, 256, device=DEVICE)).sum().backward()
        optimizer.step()
    say()
    sys.stdin.readline()
    before = genie.stats()["payload_bytes_up"]
    fresh = copy.deepcopy(model).to(DEVICE)
    equal = all(torch.equal(a.detach().cpu(), b.detach()) for a, b in zip(fresh.parameters(), model.parameters()))
    say(equal=equal, up=genie.stats()["payload_bytes_up"] - before, sum=there[0].weight.double().sum().item())
    """
    programs = [
        program("import copy\n" + textwrap.dedent(source), env=host.environment, args=[rate])
        for rate in ("0.001", "0.002")
    ]
    for _ in range(2):
        for each in programs:
            each.heard()
        for each in programs:
            each.tell()
    one, other = (each.finish()[0] for each in programs)
    assert (one["equal"], one["up"]) == (other["equal"], other["up"]) == (True, 0)
    assert one["sum"] != other["sum"]


@pytest.mark.parametrize("elements", [1 << 10, 1 << 14, 1 << 20])
def test_a_tensor_that_another_thread_writes_is_some_mixture(device, elements):
    """What is hashed is one reading of it, what is sent another."""
    import threading

    for wrap in (torch.nn.Parameter, lambda tensor: tensor):
        source = torch.zeros(elements)
        going = threading.Event()
        going.set()

        def write(source=source, going=going):
            while going.is_set():
                source.fill_(1.0)
                source.fill_(2.0)

        thread = threading.Thread(target=write)
        thread.start()
        try:
            module = torch.nn.Module()
            module.weight = torch.nn.Parameter(source, requires_grad=False)
            for number in range(30):
                there = wrap(source).to(device) if number % 2 else copy.copy(module).to(device).weight
                back = there.detach().cpu()
                assert ((back == 0) | (back == 1) | (back == 2)).all()
                module.weight = torch.nn.Parameter(source, requires_grad=False)
        finally:
            going.clear()
            thread.join()
