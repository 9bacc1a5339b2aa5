"""Every limit of the wire: what a legal program that reaches it meets, and that its session goes on.

The table has an entry for each name in `host/wire/src/limits.rs`. A case is a function of a device:
it gives on the device what it gives on the CPU, or raises what an allocation that fails raises.
After each, the session is the same and another tensor is intact.
"""

import re
import threading
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

pytestmark = pytest.mark.remote

SOURCE = Path(__file__).resolve().parents[2] / "host/wire/src/limits.rs"
LIMITS = {
    name: eval(value.replace("_", ""), {})  # noqa: S307 - integers of our own source
    for name, value in re.findall(r"pub const (\w+): \w+ = ([\d<_ ]+);", SOURCE.read_text())
}
TIB = 1 << 40


# Results larger than a storage may be: eager's allocation fails as well.

TOO_LARGE = {
    "arange": lambda d: torch.arange(1 << 45, device=d),
    "one_hot": lambda d: F.one_hot(torch.tensor([3, 1], device=d), 1 << 44),
    "broadcast": lambda d: torch.ones(1 << 21, 1, device=d) + torch.ones(1, 1 << 21, device=d),
    "broadcast in half": lambda d: (
        torch.ones(1 << 21, 1, device=d).half() * torch.ones(1, 1 << 21, device=d).half()
    ),
    "zeros": lambda d: torch.zeros(1 << 45, device=d),
    "empty": lambda d: torch.empty(TIB + 1, dtype=torch.uint8, device=d),
    "full": lambda d: torch.full((1 << 23, 1 << 23), 1.0, device=d),
    "repeat": lambda d: torch.ones(4, device=d).repeat(1 << 44),
    "repeat beyond 64 bits": lambda d: torch.ones(4, device=d).repeat(1 << 40, 1 << 40),
    "repeat_interleave": lambda d: torch.ones(4, device=d).repeat_interleave(1 << 44),
    "pad": lambda d: F.pad(torch.ones(4, device=d), (0, 1 << 44)),
    "a view made real": lambda d: torch.ones(1, device=d).expand(1 << 44).contiguous(),
    "outer": lambda d: torch.outer(torch.ones(1 << 21, device=d), torch.ones(1 << 21, device=d)),
    "stack of views": lambda d: torch.stack([torch.ones(1, device=d).expand(1 << 40)] * 3),
    "cat of many views": lambda d: torch.cat([torch.ones(1, device=d).expand(1 << 30)] * 70_000),
    "upsample": lambda d: F.interpolate(torch.ones(1, 1, 4, 4, device=d), size=(1 << 22, 1 << 22)),
    "out": lambda d: torch.add(
        torch.ones(1 << 21, 1, device=d), torch.ones(1, 1 << 21, device=d), out=torch.empty(0, device=d)
    ),
    "foreach": lambda d: torch._foreach_add(
        [torch.ones(1 << 21, 1, device=d)], [torch.ones(1, 1 << 21, device=d)]
    ),
}


def resize_fails(device):
    x = torch.arange(4.0, device=device)
    with pytest.raises(RuntimeError):
        x.resize_(1 << 45)
    with pytest.raises(RuntimeError):
        x.untyped_storage().resize_(1 << 45)
    # On the CPU eager leaves it with the size that it could not have.
    return x if device != "cpu" else torch.arange(4.0)


# Calls that eager runs.


def numbers(count, device, offset=0):
    """So many tensors, each with a storage of its own."""
    return [torch.full((), offset + i, dtype=torch.float32, device=device) for i in range(count)]


def wide(device):
    """A tensor whose layout takes half a KiB to say."""
    return torch.ones(1, device=device).as_strided([1] * 60, [1 << 61] * 60)


def stacks(device):
    xs = numbers(40_000, device)
    return torch.stack(xs), torch.stack(xs, dim=-1).sum(), torch.cat([x[None] for x in xs])


def lists_of_one_tensor(device):
    x, y = torch.ones(2, device=device), torch.zeros(0, device=device)
    return torch.stack([x] * 70_000, dim=1), torch.cat([y] * 70_000), torch.cat([y, x] * 35_000)


def mixed_dtypes_join(device):
    """No part may round what the whole does not: 2**31 + 1 is no half."""
    xs = [torch.tensor([2**31 + 1], device=device), torch.ones(1, device=device).half()] * 17_000
    return torch.cat([*xs, torch.ones(1, dtype=torch.float64, device=device)])


def joins_refuse(device):
    with pytest.raises(RuntimeError, match=r"\[2\] at entry 0 and \[3\] at entry 69999"):
        torch.stack([torch.ones(2, device=device)] * 69_999 + [torch.ones(3, device=device)])
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        torch.cat([torch.ones(2, 2, device=device)] * 69_999 + [torch.ones(2, 3, device=device)])


def joins_have_gradients(device):
    x = torch.ones(2, device=device, requires_grad=True)
    (torch.stack([x] * 40_000).sum(0) * torch.tensor([1.0, 2.0], device=device)).sum().backward()
    return x.grad


def foreach(device):
    xs, ys = numbers(33_000, device), numbers(33_000, device, 5)
    torch._foreach_add_(xs, 1.5)
    torch._foreach_mul_(xs, ys)
    sums = torch._foreach_add(xs, ys, alpha=2)
    torch._foreach_copy_(ys, sums)
    return torch.stack(xs), torch.stack(sums), torch.stack(ys), torch.stack(torch._foreach_norm(xs))


def foreach_with_numbers(device):
    xs = numbers(5_000, device)
    steps = [0.5 + i for i in range(5_000)]
    torch._foreach_mul_(xs, steps)
    torch._foreach_addcdiv_(xs, xs, torch._foreach_add(xs, 1.0), steps)
    return torch.stack(xs)


def an_optimizer_of_many(device):
    parameters = [torch.nn.Parameter(x) for x in numbers(12_000, device)]
    optimizer = torch.optim.AdamW(parameters, lr=0.1, foreach=True, amsgrad=True)
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = parameter.detach() * 0.5
        optimizer.step()
    return torch.stack([p.detach() for p in parameters])


def foreach_refuses(device):
    with pytest.raises(RuntimeError, match="must have the same number of tensors"):
        torch._foreach_add_(numbers(33_000, device), numbers(32_999, device))


def many_outputs(device):
    x = torch.arange(40_000.0, device=device)
    rows = torch.unbind_copy(x)
    assert len(rows) == 40_000
    return torch.stack(rows[:100]), rows[-1]


def outputs_beyond_the_reserve(device):
    parts = torch.split_copy(torch.arange(10_000.0, device=device), 2)
    assert len(parts) == 5_000
    return torch.stack(parts)


def long_sizes(device):
    parts = torch.split_with_sizes_copy(torch.arange(70_000.0, device=device), [1] * 70_000)
    assert len(parts) == 70_000
    return parts[0], parts[-1]


def many_dimensions(device):
    x = torch.arange(4.0, device=device).reshape([1] * 64 + [4])
    return x, x.clone(), x.contiguous().flatten() + 1


def a_result_of_many_dimensions(device):
    return torch.unsqueeze_copy(torch.arange(4.0, device=device).reshape([1] * 63 + [4]), 0)


def wide_layouts(device):
    return torch.cat([wide(device)] * 3_000).reshape(-1), torch.stack(torch._foreach_add([wide(device)] * 3_000, 1))


def ever_new_wide_layouts(device):
    """Some 150 MiB of templates, each met once."""
    x = wide(device)
    for count in range(1_200, 1_400):
        last = torch.cat([x] * count)
    return last.reshape(-1)


def stacks_of_ever_new_lengths(device):
    xs = numbers(2_600, device)
    return [torch.stack(xs[:count]) for count in range(600, 2_600, 10)][-1], torch.stack(xs[:700])


def ever_new_sizes(device):
    x = torch.arange(40_000.0, device=device)
    total = torch.zeros((), device=device)
    for count in range(1, 34_000):
        total += (x[:count] * 2)[-1]
    return total


def a_long_text(device):
    with pytest.raises(RuntimeError, match="rounding_mode"):
        torch.div(torch.ones(2, device=device), 2, rounding_mode="x" * 20_000)


def long_names(device):
    import genie

    with pytest.raises(ValueError, match="1000 bytes"):
        genie.phase("x" * 20_000)
    with genie.phase("x" * 1000):
        x = torch.ones(3, device=device) * 2
    with genie.phase("\u00e9" * 500):
        return x + 1


def transfers(device):
    sizes = [LIMITS["INLINE_BYTES_MAX"] + extra for extra in (-1, 0, 1)]
    made = [torch.arange(size, device="cpu").to(torch.uint8) for size in sizes]
    moved = [x.to(device) for x in made]
    return [x.cpu() for x in moved], [x[1:].cpu() for x in moved]


def many_fences(device):
    """More events than replies a session may wait for, behind something that takes a while."""
    x = torch.ones(1500, 1500, device=device)
    y = x @ x
    if device != "cpu":
        from genie import _native

        tokens = [_native.fence() for _ in range(LIMITS["TOKENS_MAX"] + 500)]
        for token in tokens:
            _native.wait_fence(token)
    return y[0, 0]


def many_statuses(device):
    import genie

    failed = []

    def ask():
        try:
            genie.stats()
        except Exception as error:  # noqa: BLE001 - told below
            failed.append(error)

    torch.ones(1, device=device)
    threads = [threading.Thread(target=ask) for _ in range(3 * LIMITS["STATUS_WAITING_MAX"])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed, failed[0]


def a_large_answer(device):
    """The recorded graph of this takes more than the queue of a link."""
    import genie

    genie.reset_trace()
    xs = numbers(3_000, device)
    for _ in range(300):
        last = torch.stack(xs)
    if device != "cpu":
        assert len(genie._native.trace(2)) > 9 << 20
        genie.reset_trace()
    return last


def generator_states(device):
    state = torch.zeros(LIMITS["GENERATOR_STATE_BYTES_MAX"] + 1, dtype=torch.uint8)
    generator = torch.Generator(device)
    generator.manual_seed(3)
    with pytest.raises(RuntimeError):
        generator.set_state(state)
    if device != "cpu":
        with pytest.raises(RuntimeError):
            torch.remote_accelerator.set_rng_state(state)
    return torch.rand(4, generator=generator, device=device)


def no_schema_nests_deeper(_):
    def depth(kind):
        inner = kind.getElementType() if hasattr(kind, "getElementType") else None
        return 0 if inner is None else (kind.kind() == "ListType") + depth(inner)

    schemas = torch._C._jit_get_all_schemas()
    deepest = max(depth(a.type) for s in schemas if s.name.startswith("aten::") for a in s.arguments)
    assert 1 <= deepest <= LIMITS["NESTING_MAX"]


IN_THIS_SESSION = {
    "FRAME_BYTES_MAX": [a_large_answer],
    "TEMPLATE_BYTES_MAX": [wide_layouts],
    "TEMPLATES_MAX": [ever_new_sizes],
    "TEMPLATES_BYTES_MAX": [ever_new_wide_layouts, stacks_of_ever_new_lengths],
    "SLOTS_MAX": [stacks, foreach, foreach_refuses, an_optimizer_of_many, mixed_dtypes_join],
    "SCALARS_MAX": [foreach_with_numbers],
    "OUTPUTS_MAX": [many_outputs],
    "DIMS_MAX": [many_dimensions, a_result_of_many_dimensions],
    "LIST_MAX": [lists_of_one_tensor, joins_refuse, joins_have_gradients, long_sizes],
    "NESTING_MAX": [no_schema_nests_deeper],
    "STRING_BYTES_MAX": [a_long_text, long_names],
    "INLINE_BYTES_MAX": [transfers],
    "STORAGE_BYTES_MAX": [resize_fails],
    "TOKENS_MAX": [many_fences],
    "STATUS_WAITING_MAX": [many_statuses],
    "RUN_RESERVE_MAX": [outputs_beyond_the_reserve],
    "GENERATOR_STATE_BYTES_MAX": [generator_states],
}
# Tried by programs of their own, further down: they use up what a session has, or choose it.
ELSEWHERE = {
    "STORAGES_MAX", "SYMBOLS_MAX", "SYMBOLS_BYTES_MAX", "REGIONS_MAX", "REGION_BYTES_MAX",
    "WANTED_MAX", "SETTINGS_BYTES_MAX",
    "SCRIPT_BYTES_MAX", "SCRIPT_STEPS_MAX", "SCRIPT_EXTERNALS_MAX", "SCRIPTS_MAX", "SCRIPTS_BYTES_MAX",
}  # fmt: skip


def test_every_limit_has_its_place():
    assert set(LIMITS) == set(IN_THIS_SESSION) | ELSEWHERE


@pytest.fixture
def canary(device):
    """A tensor of the session, which must be there afterwards; and no device tensor of another."""
    import genie

    tensor = torch.arange(1000.0, device=device)
    before = genie._native.session_number()
    yield
    assert genie._native.session_number() == before, "the session ended"
    assert torch.equal(tensor.cpu(), torch.arange(1000.0))


def flat(value):
    if isinstance(value, torch.Tensor):
        return [value.cpu()]
    return [leaf for item in value or () for leaf in flat(item)]


@pytest.mark.parametrize(
    ("limit", "case"),
    [(limit, case) for limit, cases in IN_THIS_SESSION.items() for case in cases],
    ids=lambda value: value if isinstance(value, str) else value.__name__,
)
def test_a_limit_costs_at_most_the_call(limit, case, device, canary):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        got, expected = flat(case(device)), flat(case("cpu"))
    assert len(got) == len(expected)
    for one, other in zip(got, expected):
        assert one.dtype == other.dtype and torch.equal(one, other), limit


@pytest.mark.parametrize("case", TOO_LARGE)
def test_what_is_too_large_is_out_of_memory_at_the_call(case, device, canary):
    said = "Tried to allocate|can't allocate|bytes were asked for"
    with warnings.catch_warnings(), pytest.raises(torch.OutOfMemoryError, match=said):
        warnings.simplefilter("ignore")
        TOO_LARGE[case](device)


# Limits that a program uses up for its whole session, in programs of their own.


def test_a_program_out_of_names_goes_on(program):
    said, _ = program(
        """
        x = torch.arange(4.0, device=DEVICE)
        for step in range(68_000):
            with genie.phase(f"{step:05}" + "x" * 990):
                y = x + step
        model = torch.nn.Linear(4, 4).to(DEVICE)
        model(x).sum().backward()
        say(last=y.tolist(), gradient=model.bias.grad.tolist(), x=x.tolist())
        """
    ).finish(300)
    assert said == {"last": [67999.0, 68000.0, 68001.0, 68002.0], "gradient": [1.0] * 4, "x": [0.0, 1.0, 2.0, 3.0]}


@pytest.mark.slow
def test_a_million_names(program):
    said, _ = program(
        """
        x = torch.arange(4.0, device=DEVICE)
        for step in range((1 << 20) + 1000):
            with genie.phase(str(step)):
                y = x + step
        say(last=y.tolist())
        """
    ).finish(600)
    assert said["last"][0] == (1 << 20) + 999


@pytest.mark.slow
def test_as_many_storages_as_a_session_may_hold(program):
    """Some 5 GB of client, host and node."""
    said, _ = program(
        """
        x = torch.arange(4.0, device=DEVICE)
        held, error = [], None
        try:
            for _ in range((4 << 20) + 10):
                held.append(torch.empty(0, device=DEVICE))
        except torch.OutOfMemoryError as out:
            error = str(out)
        count = len(held)
        try:
            x + 1
            also = None
        except torch.OutOfMemoryError as out:
            also = str(out)
        del held[:100]
        say(count=count, error=error, also=also, after=(x + 1).tolist())
        """
    ).finish(600)
    assert said["count"] == LIMITS["STORAGES_MAX"] - 1
    assert "free tensors" in said["error"] and "free tensors" in said["also"]
    assert said["after"] == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("asked", [1, 1 << 40])
def test_regions_of_any_size_are_asked_for(program, asked):
    """A session has two regions; how large is the user's choice, within the wire's."""
    said, _ = program(
        """
        x = torch.arange(300_000.0)
        say(same=torch.equal(x.to(DEVICE).cpu(), x))
        """,
        env={"GENIE_UPLOAD_BYTES": asked, "GENIE_DOWNLOAD_BYTES": asked},
    ).finish()
    assert said == {"same": True}
