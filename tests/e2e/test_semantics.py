"""The device behaves as any device: control flow, views, weights, randomness, shapes from data."""

import copy
import io
import pickle

import pytest
import torch
from parity import assert_same, check_training
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def both(device, function):
    """function(device) on CPU and on the device, compared."""
    torch.manual_seed(3)
    expected = function("cpu")
    torch.manual_seed(3)
    actual = function(device)
    assert_same(expected, actual)
    return expected, actual


# Control flow


def test_while_on_a_value_stops_when_it_should(device):
    x, steps = torch.zeros((), device=device), 0
    while not bool(x >= 25):
        x = x + 1
        steps += 1
        assert steps <= 25
    assert (steps, x.item()) == (25, 25.0)


def test_decode_loop_makes_exactly_the_tokens_asked_for(device):
    table = torch.randn(50, 50, generator=torch.Generator().manual_seed(0))
    made = []
    for where in ("cpu", device):
        weights, token, tokens = table.to(where), torch.tensor(7, device=where), []
        while len(tokens) < 32:
            token = (weights[token] + 0.01 * len(tokens)).argmax()
            tokens.append(token.item())
        made.append(tokens)
    assert made[0] == made[1] and len(made[1]) == 32


def test_branch_on_data(device):
    def collatz(where):
        x, steps = torch.tensor(27, device=where), 0
        while x != 1:
            x = x // 2 if x % 2 == 0 else 3 * x + 1
            steps += 1
        return torch.tensor(steps)

    both(device, collatz)


# Shapes that depend on data


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.nonzero(x > 0),
        lambda x: x[x > 0],
        lambda x: torch.unique((x * 3).int(), return_counts=True),
        lambda x: torch.masked_select(x, x < 0),
        lambda x: torch.where(x > 0),
        lambda x: torch.bincount((x.abs() * 3).long().flatten()),
        lambda x: torch.unique_consecutive((x > 0).flatten()),
        lambda x: torch.repeat_interleave(x, torch.arange(5, device=x.device), dim=0),
        lambda x: torch.argwhere(x > 1),
    ],
    ids=["nonzero", "mask", "unique", "masked_select", "where", "bincount", "consecutive", "repeat", "argwhere"],
)
def test_shape_from_data(function, device):
    x = torch.randn(5, 7, generator=torch.Generator().manual_seed(1))
    both(device, lambda where: function(x.to(where)))


def test_boolean_mask_assignment(device):
    def assign(where):
        x = torch.arange(12.0, device=where).reshape(3, 4)
        x[x > 5] = -1.0
        x[torch.tensor([0, 2], device=where), 1:3] += 10.0
        return x

    both(device, assign)


def test_lstm_and_gru(device):
    def run(where):
        torch.manual_seed(0)
        lstm, gru = nn.LSTM(6, 10, 2, bidirectional=True).to(where), nn.GRU(6, 10).to(where)
        x = torch.randn(5, 3, 6).to(where)
        out, (h, c) = lstm(x)
        out.sum().backward()
        return out.detach(), h.detach(), c.detach(), gru(x)[0].detach(), lstm.weight_ih_l0.grad

    both(device, run)


def test_packed_sequences(device):
    def run(where):
        torch.manual_seed(0)
        lstm = nn.LSTM(4, 8, batch_first=True).to(where)
        x = torch.randn(3, 5, 4).to(where)
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 3, 2]), batch_first=True)
        out, _ = nn.utils.rnn.pad_packed_sequence(lstm(packed)[0], batch_first=True)
        return out.detach()

    both(device, run)


# Views and in-place


def test_views_share_memory(device):
    def run(where):
        x = torch.arange(24.0, device=where)
        table = x.view(4, 6)
        table.t()[1].mul_(10)
        table[1:3, ::2] = 7.0
        column = table.unsqueeze(0).expand(2, 4, 6)[1, :, 5]
        column += 0.5
        x[3:5].zero_()
        flat = table.as_strided((3,), (7,), 1)
        flat.neg_()
        return x, table, column, flat

    both(device, run)


def test_in_place_chain_and_out(device):
    def run(where):
        x = torch.linspace(-2, 2, 10, device=where)
        y = x.clone().clamp_(-1, 1).mul_(2).add_(x, alpha=0.5).relu_()
        out = torch.empty(10, device=where)
        torch.add(x, y, out=out)
        y.copy_(out.flip(0))
        y.fill_diagonal_(0) if y.dim() > 1 else y.index_fill_(0, torch.tensor([2], device=where), 9.0)
        return x, y, out

    both(device, run)


def test_in_place_on_a_leaf_raises_as_eager_does(device):
    x = torch.ones(3, device=device, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf Variable"):
        x.add_(1)


def test_saved_tensor_changed_in_place_raises(device):
    x = torch.ones(3, device=device, requires_grad=True)
    y = x.exp()
    y.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.remote
def test_snapshot_of_source(device):
    """`.to(device)` takes the values of the moment: later writes on the CPU are not seen."""
    source = torch.ones(1000)
    there = source.to(device)
    source.zero_()
    assert there.sum().item() == 1000.0


def test_channels_last_and_strides(device):
    def run(where):
        x = torch.randn(2, 3, 8, 8).to(where).to(memory_format=torch.channels_last)
        y = nn.functional.conv2d(x, torch.ones(4, 3, 3, 3).to(where))
        return x.contiguous(), y, torch.tensor(y.stride())

    both(device, run)


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]
)
def test_dtypes_travel(dtype, device):
    x = torch.tensor([0, 1, 1, 0]).to(dtype)
    there = x.to(device)
    assert there.dtype == dtype
    assert torch.equal(there.cpu(), x)
    assert torch.equal((there == there).cpu(), x == x)


def test_empty_and_scalar_tensors(device):
    assert torch.empty(0, 3, device=device).sum(0).cpu().tolist() == [0, 0, 0]
    assert torch.tensor(3.5, device=device).item() == 3.5
    assert torch.cat([torch.empty(0, device=device), torch.ones(2, device=device)]).cpu().tolist() == [1, 1]


# Saving, copying, printing


def test_print(device):
    x = torch.tensor([[1.5, -2.0], [0.25, 3.0]], device=device)
    text = repr(x)
    assert "1.5000" in text and ("remote_accelerator:0" in text or device == "cpu")
    assert repr(torch.arange(3, device=device)).startswith("tensor([0, 1, 2]")


def test_numpy_wants_cpu_first(device):
    x = torch.ones(3, device=device)
    assert x.cpu().numpy().tolist() == [1, 1, 1]
    if device != "cpu":
        with pytest.raises(TypeError, match="cpu"):
            x.numpy()


def test_tolist_and_iteration(device):
    x = torch.arange(6, device=device).reshape(2, 3)
    assert x.tolist() == [[0, 1, 2], [3, 4, 5]]
    assert [row.sum().item() for row in x] == [3, 12]


def test_deepcopy(device):
    model = nn.Linear(3, 2).to(device)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.weight.zero_()
    assert other.weight.device == model.weight.device
    assert model.weight.abs().sum().item() > 0


def test_save_and_load(device, tmp_path):
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)).to(device)
    path = tmp_path / "model.pt"
    torch.save({"model": model.state_dict(), "step": 3}, path)
    for where in ("cpu", device):
        back = torch.load(path, map_location=where, weights_only=True)
        assert back["step"] == 3
        for name, value in model.state_dict().items():
            assert back["model"][name].device.type == torch.device(where).type
            assert torch.equal(back["model"][name].cpu(), value.cpu())
    same = torch.load(path, weights_only=True)["model"]["0.weight"]
    assert same.device.type == torch.device(device).type


def test_save_keeps_shared_storage(device):
    x = torch.arange(10.0, device=device)
    buffer = io.BytesIO()
    torch.save([x, x[2:5]], buffer)
    buffer.seek(0)
    whole, part = torch.load(buffer, weights_only=True)
    part.zero_()
    assert whole.cpu().tolist() == [0, 1, 0, 0, 0, 5, 6, 7, 8, 9]


def test_load_state_dict_from_cpu(device):
    torch.manual_seed(0)
    source, target = nn.Linear(3, 3), nn.Linear(3, 3).to(device)
    target.load_state_dict(source.state_dict())
    assert_same(source.state_dict(), target.state_dict())


def test_optimizer_state_round_trip(device):
    model = nn.Linear(3, 3).to(device)
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 3, device=device)).sum().backward()
    optimizer.step()
    state = copy.deepcopy(optimizer.state_dict())
    other = torch.optim.Adam(model.parameters())
    other.load_state_dict(state)
    assert other.state_dict()["state"][0]["exp_avg"].device.type == torch.device(device).type


# Weights


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(torch.tanh(self.embedding(tokens)))


def test_tied_weights_stay_tied_and_train_alike(device):
    torch.manual_seed(0)
    model = Tied()
    parameters = list(model.parameters())
    there = copy.deepcopy(model)
    before = list(there.parameters())
    there.to(device)
    assert there.head.weight is there.embedding.weight
    assert len(list(there.parameters())) == len(parameters) == 1
    assert list(there.parameters())[0] is before[0], ".to() must keep the Parameter: optimizers hold it"
    tokens = torch.randint(20, (4, 6))
    check_training(
        model, lambda y: y.pow(2).mean(), lambda p: torch.optim.Adam(p, 0.01), (tokens,), {}, device, steps=5
    )


def test_optimizer_made_before_the_move_still_trains(device):
    def run(where):
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        model.to(where)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(2, 4, device=where)).sum().backward()
            optimizer.step()
        return model.weight.detach()

    both(device, run)


def test_requires_grad_hooks_and_checkpoint(device):
    from torch.utils.checkpoint import checkpoint

    def run(where):
        torch.manual_seed(0)
        layer, seen = nn.Linear(4, 4).to(where), []
        x = torch.ones(2, 4, device=where, requires_grad=True)
        y = checkpoint(lambda t: torch.relu(layer(t)), x, use_reentrant=False)
        y.register_hook(lambda grad: seen.append(grad))
        y.pow(2).sum().backward()
        return x.grad, layer.weight.grad, seen[0]

    both(device, run)


def test_double_backward_and_custom_function(device):
    class Cube(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx, grad):
            (x,) = ctx.saved_tensors
            return 3 * x**2 * grad

    def run(where):
        x = torch.tensor([1.0, 2.0], device=where, requires_grad=True)
        (first,) = torch.autograd.grad(Cube.apply(x).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.sum(), x)
        return first.detach(), second

    both(device, run)


# Mixed precision


@pytest.mark.remote
@pytest.mark.parametrize("lower", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
def test_autocast_picks_dtypes(lower, device):
    model, x = nn.Linear(8, 4).to(device), torch.randn(3, 8, device=device)
    with torch.autocast(device, dtype=lower):
        y = model(x)
        assert y.dtype == lower
        assert torch.softmax(y, -1).dtype == nn.functional.layer_norm(y, (4,)).dtype == torch.float32
        assert torch.addcmul(y, y, torch.ones_like(y, dtype=torch.float32)).dtype == torch.float32
        assert torch.addcmul(y, y, y).dtype == lower
        with torch.autocast(device, enabled=False):
            assert model(x).dtype == torch.float32
        assert model(x).dtype == lower
        loss = nn.functional.mse_loss(y, torch.zeros_like(y))
    assert loss.dtype == model(x).dtype == torch.float32
    loss.backward()
    assert model.weight.grad.dtype == torch.float32
    with torch.no_grad():
        assert torch.allclose(y.float().cpu(), model(x).cpu(), atol=0.1)


# Bad arguments


def test_too_many_dimensions_raise_and_harm_nothing(device):
    with pytest.raises(RuntimeError, match="up to 64 dims"):
        torch.ones([1] * 65, device=device).amax(dim=0)
    assert torch.ones(2, device=device).sum().item() == 2


# Randomness


def test_manual_seed_is_reproducible(device):
    draws = []
    for _ in range(2):
        torch.manual_seed(11)
        draws.append([torch.randn(5, device=device).cpu(), torch.rand(3, device=device).cpu()])
    assert_same(*draws)
    assert not torch.equal(torch.randn(5, device=device).cpu(), draws[0][0])


@pytest.mark.parametrize(
    "function",
    [
        lambda where: torch.randn(9, 33, device=where),
        lambda where: torch.rand(100, device=where),
        lambda where: torch.randint(0, 1000, (40,), device=where),
        lambda where: torch.randperm(17, device=where),
        lambda where: nn.functional.dropout(torch.ones(50, 7, device=where), 0.3),
        lambda where: torch.bernoulli(torch.full((64,), 0.4, device=where)),
        lambda where: torch.multinomial(torch.ones(12, device=where), 5),
        lambda where: torch.empty(20, device=where).normal_(2, 3),
        lambda where: torch.empty(20, device=where).exponential_(),
        lambda where: nn.init.kaiming_uniform_(torch.empty(8, 8, device=where)),
    ],
    ids="randn rand randint randperm dropout bernoulli multinomial normal_ exponential_ init".split(),
)
def test_random_stream_equals_the_cpu_stream(function, device):
    both(device, lambda where: (function(where), function(where)))


def test_dropout_trains_alike(device):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Dropout(0.5), nn.ReLU(), nn.Linear(32, 2))
    check_training(
        model, lambda y: y.pow(2).mean(), lambda p: torch.optim.SGD(p, 0.1), (torch.randn(16, 8),), {}, device
    )


def test_generator_of_the_device(device):
    draws = []
    for _ in range(2):
        generator = torch.Generator(device=device).manual_seed(5)
        draws.append(torch.randn(4, device=device, generator=generator).cpu())
    assert_same(*draws)


def test_generators_of_another_device_are_refused_in_eagers_words(device):
    ours = torch.Generator(device=device)
    for draw in (torch.rand, torch.randn):
        with pytest.raises(RuntimeError, match="Expected a 'cpu' device type for generator but found 'remote_acc"):
            draw(3, generator=ours)
    with pytest.raises(RuntimeError, match="Expected a 'remote_accelerator' device type for generator but found 'cpu'"):
        torch.rand(3, device=device, generator=torch.Generator())


def test_printing_reads_a_tensor_once(device, stats):
    tensors = [torch.randn(12), torch.randn(40, 50), torch.tensor(3.5), torch.randn(3, dtype=torch.complex64)]
    for tensor in tensors:
        there = tensor.to(device)
        before = stats()["round_trips"]
        said = repr(there)
        assert stats()["round_trips"] <= before + 1
        # The device's name may move a line's end.
        said = "".join(said.split()).replace(",device='remote_accelerator:0'", "")
        assert said == "".join(repr(tensor).split())


@pytest.mark.parametrize("take", [copy.deepcopy, lambda generator: pickle.loads(pickle.dumps(generator))])
def test_generators_are_copied_with_their_state(device, take):
    generator = torch.Generator(device=device).manual_seed(5)
    torch.randn(4, device=device, generator=generator)
    other = take(generator)
    assert other.device == generator.device and other.initial_seed() == 5
    draws = [torch.randn(4, device=device, generator=each).cpu() for each in (generator, other)]
    assert_same(*draws)


@pytest.mark.remote
def test_rng_state_round_trip(device):
    torch.manual_seed(1)
    torch.randn(3, device=device)
    state = torch.remote_accelerator.get_rng_state()
    first = torch.randn(4, device=device).cpu()
    torch.remote_accelerator.set_rng_state(state)
    assert torch.equal(torch.randn(4, device=device).cpu(), first)


def test_fork_rng(device):
    torch.manual_seed(1)
    before = torch.randn(4, device=device).cpu()
    torch.manual_seed(1)
    with torch.random.fork_rng(devices=[0] if device != "cpu" else [], device_type=torch.device(device).type if device != "cpu" else "cuda"):
        torch.randn(100, device=device)
    if device != "cpu":
        assert torch.equal(torch.randn(4, device=device).cpu(), before)


# Data


def test_data_loader(device):
    data = TensorDataset(torch.arange(40.0).reshape(20, 2), torch.arange(20))
    total = torch.zeros((), device=device)
    for x, y in DataLoader(data, batch_size=6, shuffle=True):
        total += (x.to(device).sum(1) * y.to(device)).sum()
    expected = (data.tensors[0].sum(1) * data.tensors[1]).sum()
    assert total.item() == expected.item()


def test_data_loader_with_workers(device):
    """Worker processes are forked after the device has been used; they work on the CPU only."""
    torch.ones(3, device=device).sum().item()
    data = TensorDataset(torch.arange(12.0))
    total = sum(x.to(device).sum().item() for (x,) in DataLoader(data, batch_size=4, num_workers=2))
    assert total == 66.0


def test_pinned_memory_and_non_blocking(device):
    x = torch.arange(100.0)
    there = x.to(device, non_blocking=True)
    back = there.to("cpu", non_blocking=True)
    assert torch.equal(back, x)


# Size


@pytest.mark.parametrize("megabytes", [16, 64, 200])
def test_large_tensors_there_and_back(megabytes, device):
    x = torch.arange(megabytes << 18, dtype=torch.float32)
    there = x.to(device)
    assert torch.equal((there + 1).cpu(), x + 1)
    there[: 1 << 20] = -1
    assert there[0].item() == -1 and there[1 << 20].item() == float(1 << 20)


@pytest.mark.slow
def test_one_gibibyte_there_and_back(device):
    x = torch.arange(1 << 28, dtype=torch.int32)
    there = x.to(device)
    there.add_(1)
    back = there.cpu()
    del there
    back.sub_(1)
    assert torch.equal(back, x)


# Threads


def test_threads_share_the_device(device):
    """Several threads capture at once; each sees its own values in order."""
    from concurrent.futures import ThreadPoolExecutor

    def job(seed):
        x = torch.full((8, 8), float(seed), device=device)
        for _ in range(50):
            x = x + 1
        return x[0, 0].item()

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(job, range(12))) == [seed + 50.0 for seed in range(12)]


# Nothing falls back in silence


@pytest.mark.remote
def test_common_ops_do_not_fall_back(device, stats):
    before = stats()["fallbacks"]
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4)).to(device)
    loss = nn.functional.cross_entropy(model(torch.randn(2, 3, 8, 8, device=device)), torch.tensor([0, 1], device=device))
    loss.backward()
    torch.optim.AdamW(model.parameters()).step()
    torch.nn.functional.scaled_dot_product_attention(*[torch.randn(1, 2, 5, 8, device=device)] * 3).cpu()
    torch.topk(torch.randn(10, device=device), 3).values.sort().values.cpu()
    assert stats()["fallbacks"] == before


# Streaming


@pytest.mark.remote
def test_work_begins_before_the_program_reads(stats):
    """One operator, fewer than a batch: the node computes it while the program does something else."""
    import psutil

    from conftest import BUSY_SECONDS_MAX, wait_until

    a = torch.ones(1500, 1500, device="remote_accelerator")
    a[0, 0].item()
    tree = psutil.Process(stats()["node_pid"]).children(recursive=True)
    node = next(process for process in tree if process.name() == "genie-worker")
    before = node.cpu_times().user
    b = a @ a  # about 90 ms of work
    wait_until(lambda: node.cpu_times().user - before > 0.03, BUSY_SECONDS_MAX, "the node has not begun")
    assert b[0, 0].item() == 1500.0


@pytest.mark.parametrize("observes_first", [True, False])
@pytest.mark.parametrize("shape", [(4, 6), (4, 3, 2, 2)])
def test_fake_quantization_by_channel_grows_its_observer(device, shape, observes_first):
    """The weights' observer of quantization-aware training: its results have no size before the first."""
    weights = [torch.randn(shape) * (5 - step) for step in range(4)]
    seen = []
    for place in ("cpu", device):
        on, off = (torch.tensor([flag], device=place) for flag in (1, 0))
        low, high = torch.tensor([], device=place), torch.tensor([], device=place)
        scale = torch.ones(1, device=place)
        zero_point = torch.zeros(1, dtype=torch.int32, device=place)
        state, results = (low, high, scale, zero_point), []
        for step, weight in enumerate(weights):
            observes = on if step != (3 if observes_first else 0) else off
            quantizes = on if step else off
            results.append(
                torch.fused_moving_avg_obs_fake_quant(
                    weight.to(place), observes, quantizes, low, high, scale, zero_point, 0.01, -128, 127, 0, True, True
                ).cpu()
            )
            # Before the first quantization, scales are memory that nobody wrote.
            if step:
                results += [each.cpu().clone() for each in state]
        seen.append(results)
    for expected, found in zip(*seen, strict=True):
        assert torch.equal(expected, found)


LAYOUTS = {
    "contiguous": lambda: torch.randn(2, 4, 5, 8),
    "heads inside": lambda: torch.randn(2, 5, 4, 8).transpose(1, 2),
    "permuted": lambda: torch.randn(8, 4, 5, 2).permute(3, 1, 2, 0),
    "expanded": lambda: torch.randn(1, 4, 5, 8).expand(2, 4, 5, 8),
    "strided": lambda: torch.randn(2, 4, 5, 16)[..., ::2],
}


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_attention_lies_as_eagers(device, layout, grad):
    query = LAYOUTS[layout]()
    seen = []
    for place in ("cpu", device):
        q = query.to(place).detach().requires_grad_(grad)
        result = torch.nn.functional.scaled_dot_product_attention(q, q, q)
        if grad:
            result.square().sum().backward()
        seen.append((result.stride(), result.detach().cpu(), q.grad.cpu() if grad else result.detach().cpu()))
    (strides, *values), (strides_there, *values_there) = seen
    assert strides == strides_there
    for value, there in zip(values, values_there, strict=True):
        torch.testing.assert_close(there, value, rtol=1e-5, atol=1e-5)
