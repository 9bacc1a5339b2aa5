"""PyTorch's global settings hold on the device: results are eager's to the last bit under each."""

import threading
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

# As PyTorch starts with them.
RESET = """
    torch.set_default_dtype(torch.float32)
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.set_flush_denormal(False)
    torch.set_float32_matmul_precision("highest")
    torch.backends.mkldnn.set_flags(True, False)
    torch.set_num_threads(1)
"""


def reset():
    exec("\n".join(line.strip() for line in RESET.splitlines()))
    for family in ("matmul", "conv", "rnn"):
        part = getattr(torch.backends.mkldnn, family, None)
        if part is not None:
            part.fp32_precision = "none"


@pytest.fixture(autouse=True)
def settings():
    yield
    reset()


def bits(tensor):
    tensor = tensor.detach().cpu().contiguous()
    return tensor.dtype, tuple(tensor.shape), tensor.reshape(-1).view(torch.uint8).numpy().tobytes()


def exact(device, function):
    """function(device) on CPU and on the device: the same bits."""
    torch.manual_seed(5)
    expected = function("cpu")
    torch.manual_seed(5)
    actual = function(device)
    assert len(expected) == len(actual)
    for want, got in zip(expected, actual):
        assert bits(want) == bits(got)
    return expected


def of_integers(where):
    n = torch.arange(1, 9, device=where)
    mask = n > 3
    return [
        n / 7,
        n.div(3),
        mask * 0.3,
        torch.sqrt(n),
        n.sin(),
        torch.full((3,), 0.1, device=where),
        torch.arange(0, 1, 0.1, device=where),
        torch.linspace(0, 1, 5, device=where),
        torch.rand(4, device=where),
        torch.tensor([0.1, 0.2], device=where),
        torch.zeros(2, device=where),
        torch.where(mask, 0.1, 0.7),
        n.to(torch.float32) * 0.1,
        torch.mean(n.double()),
        torch.special.expit(n),
        F.one_hot(n).softmax(0, dtype=torch.get_default_dtype()),
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float32])
def test_default_dtype(device, dtype):
    torch.set_default_dtype(dtype)
    assert exact(device, of_integers)[0].dtype == dtype


def test_default_dtype_changes_within_a_program(device):
    def function(where):
        n, made = torch.arange(1, 6, device=where), []
        for _ in range(3):
            for dtype in (torch.float32, torch.float64, torch.bfloat16):
                torch.set_default_dtype(dtype)
                made += [n / 7, n.sqrt()]
        return made

    dtypes = [each.dtype for each in exact(device, function)[::2]]
    assert dtypes == [torch.float32, torch.float64, torch.bfloat16] * 3


def test_a_module_of_the_default_dtype_trains(device):
    torch.set_default_dtype(torch.float64)

    def function(where):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).to(where)
        optimizer = torch.optim.Adam(model.parameters(), foreach=False)
        steps = torch.arange(32, device=where).reshape(4, 8)
        for _ in range(3):
            optimizer.zero_grad()
            (model(steps / 7) - steps.sum(1, keepdim=True) / 3).square().mean().backward()
            optimizer.step()
        return list(model.parameters())

    exact(device, function)


def test_memory_is_filled_under_deterministic_algorithms(device):
    torch.use_deterministic_algorithms(True)

    def function(where):
        grown = torch.ones(2, device=where)
        grown.resize_(6)
        return [
            torch.empty(3, device=where),
            torch.empty(3, device=where, dtype=torch.int64),
            torch.empty_strided((2, 2), (1, 2), device=where),
            torch.empty_like(grown),
            grown.new_empty(4),
            grown,
        ]

    made = exact(device, function)
    assert made[0].isnan().all()
    torch.utils.deterministic.fill_uninitialized_memory = False
    assert torch.empty(3, device=device).shape == (3,)


def test_what_is_not_deterministic_is_refused_at_the_call(device):
    def put(where):
        x = torch.zeros(3, device=where)
        try:
            x.put_(torch.tensor([0, 0], device=where), torch.ones(2, device=where), accumulate=False)
        except RuntimeError as error:
            return x.tolist(), "deterministic implementation" in str(error)
        return x.tolist(), None

    assert put(device) == put("cpu") == ([1.0, 0, 0], None)
    torch.use_deterministic_algorithms(True)
    for _ in range(3):
        assert put(device) == put("cpu") == ([0.0, 0, 0], True)
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert put(device)[1] is None
    torch.use_deterministic_algorithms(False)
    assert put(device) == ([1.0, 0, 0], None)


def products(where):
    x = torch.randn(512, 512, generator=torch.Generator().manual_seed(1)).to(where)
    kernel = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(2)).to(where)
    image = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(3)).to(where)
    return [x @ x, F.linear(x, x), torch.baddbmm(x[None], x[None], x[None]), F.conv2d(image, kernel)]


def test_precision_of_products(device):
    highest = exact(device, products)
    torch.set_float32_matmul_precision("medium")
    medium = exact(device, products)
    torch.set_float32_matmul_precision("highest")
    again = exact(device, products)
    assert all(torch.equal(a, b) for a, b in zip(highest, again))
    if "avx512_bf16" in Path("/proc/cpuinfo").read_text():
        assert not torch.equal(highest[0], medium[0]), "the setting changes nothing here to compare"


@pytest.mark.skipif(not hasattr(torch.backends.mkldnn, "matmul"), reason="an older PyTorch")
def test_precision_by_its_new_names(device):
    """These lie apart from the other settings, in a map."""
    exact(device, products)
    for family in ("matmul", "conv"):
        getattr(torch.backends.mkldnn, family).fp32_precision = "bf16"
        exact(device, products)
        getattr(torch.backends.mkldnn, family).fp32_precision = "none"
        exact(device, products)


def test_mkldnn_switched_off(device):
    def function(where):
        return [*products(where), F.gelu(torch.linspace(-3, 3, 1000, device=where))]

    exact(device, function)
    with torch.backends.mkldnn.flags(enabled=False):
        exact(device, function)
    exact(device, function)


def test_denormals(device):
    def function(where):
        tiny = torch.full((1 << 16,), 1e-40, device=where)
        return [tiny * 1.0, (tiny + 0).sum(), tiny * 1e-2]

    kept = exact(device, function)
    assert (kept[0] != 0).all()
    if not torch.set_flush_denormal(True):
        pytest.skip("this processor keeps denormals")
    flushed = exact(device, function)
    assert (flushed[0] == 0).all()
    torch.set_flush_denormal(False)
    assert torch.equal(exact(device, function)[0], kept[0])


def test_threads_set_later(device):
    """The way a sum is split follows the threads, so its last digits do."""

    def function(where):
        x = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)).to(where)
        return [x.sum(), x.cumsum(0)[-1], x.norm()]

    sums = set()
    for threads in (1, 2, 3, 1):
        torch.set_num_threads(threads)
        sums.add(exact(device, function)[0].item())
    assert len(sums) > 1, "the number of threads changes nothing here to compare"


def attention(where):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 4, 40, 16, generator=generator).to(where).requires_grad_() for _ in range(3))
    with torch.no_grad():
        plain = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    out = F.scaled_dot_product_attention(q, k, v)
    out.sum().backward()
    return [plain, out, q.grad, k.grad, v.grad]


def test_choice_of_attention(device):
    free = exact(device, attention)
    with sdpa_kernel(SDPBackend.MATH):
        math = exact(device, attention)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        flash = exact(device, attention)
    assert torch.equal(free[0], flash[0]) and not torch.equal(free[0], math[0])
    with sdpa_kernel([SDPBackend.MATH, SDPBackend.FLASH_ATTENTION], set_priority=True):
        exact(device, attention)
    exact(device, attention)


def test_no_kernel_left_for_attention(device):
    def refused(where):
        x = torch.ones(1, 1, 4, 4, device=where)
        with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION), pytest.raises(RuntimeError) as raised:
            F.scaled_dot_product_attention(x, x, x)
        return str(raised.value).split("\n")[0]

    assert refused("cpu") in refused(device)


def test_inference_mode(device):
    def function(where):
        with torch.inference_mode():
            x = torch.arange(6, device=where) / 7
            y = x.view(2, 3)
            y.add_(1)
            return [x.clone(), (y @ y.T).clone()]

    exact(device, function)
    with torch.inference_mode():
        inside = torch.ones(2, device=device)
    assert inside.is_inference()
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        (torch.ones(2, device=device, requires_grad=True) * inside).sum()


@pytest.mark.parametrize("cache", [True, False])
def test_autocast_keeps_copies_of_weights_as_long_as_elsewhere(device, cache):
    def function(where):
        torch.manual_seed(0)
        layer = torch.nn.Linear(16, 16).to(where)
        x = torch.ones(4, 16, device=where)
        made = []
        with torch.autocast(torch.device(where).type, dtype=torch.bfloat16, cache_enabled=cache):
            made.append(layer(x))
            with torch.no_grad():
                layer.weight.mul_(2)
            made.append(layer(x))  # with the cache, by the copy of before
        with torch.autocast(torch.device(where).type, dtype=torch.bfloat16, cache_enabled=cache):
            made.append(layer(x))
        return made

    first, second, third = exact(device, function)
    assert torch.equal(first, second) == cache and not torch.equal(second, third) == cache


def test_each_thread_has_its_own_share_of_them(device):
    """What belongs to the process holds in every thread; threads come and go between operators."""
    results, turns = {}, threading.Barrier(2)

    def run(name, count):
        torch.set_num_threads(count)
        x = torch.randn(1 << 21, generator=torch.Generator().manual_seed(0))
        there, same = x.to(device), []
        for _ in range(4):
            turns.wait()
            same.append(bits(there.sum()) == bits(x.sum()))
        results[name] = same

    threads = [threading.Thread(target=run, args=(name, count)) for name, count in (("a", 1), ("b", 3))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {"a": [True] * 4, "b": [True] * 4}
    torch.set_default_dtype(torch.float64)
    made = []
    thread = threading.Thread(target=lambda: made.append((torch.arange(3, device=device) / 7).cpu()))
    thread.start()
    thread.join()
    assert bits(made[0]) == bits(torch.arange(3) / 7)


def test_a_backward_pass_computes_as_its_caller(device):
    """The engine runs it on a thread of its own, which knows nothing of this thread's settings."""

    def function(where):
        x = torch.full((1 << 12,), 3e-20, device=where, requires_grad=True)
        (x * 1e-20).sum().backward()
        big = torch.randn(1 << 21, generator=torch.Generator().manual_seed(0)).to(where)
        scale = torch.ones((), device=where, requires_grad=True)
        (big * scale).backward(torch.ones_like(big))
        return [x.grad * 1e-20, scale.grad]

    exact(device, function)
    for threads, flush in ((2, False), (1, True), (3, True), (1, False)):
        torch.set_num_threads(threads)
        torch.set_flush_denormal(flush)
        exact(device, function)


# Other sessions


PROGRAM = """
torch.set_default_dtype(getattr(torch, sys.argv[1]))
torch.set_num_threads(int(sys.argv[2]))
torch.set_flush_denormal(sys.argv[3] == "flush")
torch.set_float32_matmul_precision(sys.argv[4])
def of(where):
    n = torch.arange(1, 9, device=where)
    x = torch.randn(1 << 18, dtype=torch.float32, generator=torch.Generator().manual_seed(0)).to(where)
    tiny = torch.full((1 << 16,), 1e-40, dtype=torch.float32, device=where)
    square = x.view(512, 512)
    return [n / 7, n.sqrt(), x.sum(), (tiny * 1.0).sum(), square @ square]
def bits(t):
    return str(t.dtype), t.cpu().reshape(-1).view(torch.uint8).numpy().tobytes()
expected = [bits(t) for t in of("cpu")]
sys.stdin.readline()
same = True
for _ in range(int(sys.argv[5])):
    same = same and [bits(t) for t in of(DEVICE)] == expected
    say(same=same)
    sys.stdin.readline()
say(same=same)
"""


@pytest.mark.remote
def test_programs_with_other_settings_share_a_node(program, host):
    """Turn by turn on one node, on one thread of it."""
    turns = 3
    ways = [
        ("float32", 1, "keep", "highest"),
        ("float64", 2, "flush", "medium"),
        ("bfloat16", 1, "keep", "high"),
    ]
    started = [program(PROGRAM, env=host.environment, args=(*map(str, way), str(turns))) for way in ways]
    for each in started:
        each.tell()
    for _ in range(turns):
        for each in started:
            assert each.heard() == {"same": True}
        for each in started:
            each.tell()
    for each in started:
        assert each.finish()[0] == {"same": True}
    assert host.node()


@pytest.mark.remote
def test_mode_local_gives_the_process_back_what_it_had(program):
    said, _ = program(
        """
        n = torch.arange(1, 9, device=DEVICE)
        torch.set_default_dtype(torch.float64)
        torch.set_flush_denormal(True)
        torch.set_num_threads(2)
        wide = n / 7
        torch.set_default_dtype(torch.float32)
        torch.set_flush_denormal(False)
        torch.set_num_threads(1)
        narrow = n / 7  # both run here, when they are asked for
        say(
            wide=torch.equal(wide.cpu(), (torch.arange(1, 9, dtype=torch.float64) / 7)),
            narrow=torch.equal(narrow.cpu(), torch.arange(1, 9) / 7),
            mine=[str(torch.get_default_dtype()), torch.get_num_threads(), (torch.tensor([1e-40]) * 1).item() != 0],
        )
        """,
        env={"GENIE_MODE": "local"},
    ).finish()
    assert said == {"wide": True, "narrow": True, "mine": ["torch.float32", 1, True]}


@pytest.mark.remote
def test_a_new_session_starts_with_the_settings_of_now(program):
    said, _ = program(
        """
        def same():
            n = torch.arange(1, 9, device=DEVICE)
            return (n / 7).cpu().equal(torch.arange(1, 9) / 7)
        torch.set_default_dtype(torch.float64)
        first = same()
        genie.shutdown()
        second = same()
        genie.shutdown()
        torch.set_default_dtype(torch.float32)
        say(same=[first, second, same()])
        """
    ).finish()
    assert said == {"same": [True, True, True]}


@pytest.mark.remote
def test_threads_that_the_host_sets_stay(program, tmp_path):
    from conftest import Host

    serving = Host(tmp_path / "fixed.sock", "--threads", "2")
    try:
        said, _ = program(
            """
            # Some, for one sum may come out equal by chance.
            rows = torch.randn(16, 1 << 20)
            def sums(x):
                return torch.stack([row.sum() for row in x]).cpu()
            torch.set_num_threads(1)
            one = sums(rows)
            torch.set_num_threads(2)
            two = sums(rows)
            torch.set_num_threads(1)
            say(differ=not torch.equal(one, two), as_two=torch.equal(sums(rows.to(DEVICE)), two))
            """,
            env=serving.environment,
        ).finish()
    finally:
        serving.end()
    assert said == {"differ": True, "as_two": True}
