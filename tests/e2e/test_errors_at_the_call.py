"""What eager refuses without looking at values is refused at the call, and changes nothing."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

OVERLAPS = {
    "shifted": lambda x: x[1:].add_(x[:-1]),
    "shifted multiplication": lambda x: x[1:].mul_(x[:-1]),
    "expanded": lambda x: x[:1].expand(4).add_(1),
    "expanded by a tensor": lambda x: x[:1].expand(3).add_(torch.ones(3, device=x.device)),
    "copy": lambda x: x[1:].copy_(x[:-1]),
    "copy into expanded": lambda x: x[:1].expand(3).copy_(torch.ones(3, device=x.device)),
    "copy from the cpu into expanded": lambda x: x[:1].expand(3).copy_(torch.ones(3)),
    "item assignment": lambda x: x.__setitem__(slice(1, None), x[:-1]),
    "out partly": lambda x: torch.add(x[:4], 1, out=x[2:6]),
    "out of a unary": lambda x: torch.exp(x[:4], out=x[1:5]),
    "out is the input": lambda x: torch.add(x, x, out=x),
    "out of a product": lambda x: torch.mm(x[:4].view(2, 2), x[4:8].view(2, 2), out=x[2:6].view(2, 2)),
    "out of a cat": lambda x: torch.cat([x[:2], x[2:4]], out=x[:4]),
    "out of a gather": lambda x: torch.gather(x, 0, torch.arange(8, device=x.device), out=x),
    "scatter from itself": lambda x: x.scatter_(0, torch.arange(8, device=x.device), x),
    "index_add of itself": lambda x: x.index_add_(0, torch.arange(8, device=x.device), x),
    "index_copy of itself": lambda x: x.index_copy_(0, torch.arange(8, device=x.device), x),
    "index_put of itself": lambda x: x.index_put_((torch.arange(8, device=x.device),), x),
    "masked_fill of expanded": lambda x: x[:1].expand(3).masked_fill_(torch.ones(3, dtype=torch.bool, device=x.device), 0),
    "masked_scatter of itself": lambda x: x.masked_scatter_(torch.ones(8, dtype=torch.bool, device=x.device), x),
    "sort": lambda x: torch.sort(x, out=(x, torch.empty(8, dtype=torch.int64, device=x.device))),
    "cumulative": lambda x: torch.cumsum(x[:6], 0, out=x[1:7]),
    "cumulative in place": lambda x: x.cumsum_(0),
    "fill of expanded": lambda x: x[:1].expand(4).fill_(2),
    "zero of expanded": lambda x: x[:1].expand(4).zero_(),
    "in place with itself": lambda x: x.mul_(x),
    "a half with the other": lambda x: x[:4].add_(x[4:]),
    "transposed with itself": lambda x: x[:4].view(2, 2).add_(x[:4].view(2, 2).t()),
    "addcmul": lambda x: x[1:].addcmul_(x[:-1], x[:-1]),
    "lerp": lambda x: x[1:].lerp_(x[:-1], 0.5),
    "foreach": lambda x: torch._foreach_add_([x[1:5], x[6:]], [x[:4], x[5:7]]),
    "foreach with itself": lambda x: torch._foreach_mul_([x[:4], x[4:]], [x[:4], x[4:]]),
    "where out": lambda x: torch.where(x[:4] > 2, x[:4], x[4:], out=x[2:6]),
    "random of expanded": lambda x: x[:1].expand(3).bernoulli_(0.5),
    "logical": lambda x: x[1:].logical_and_(x[:-1]),
}

OTHERS = {
    "dtypes of a product": lambda x: x.view(2, 4) @ torch.ones(4, 2, dtype=torch.float64, device=x.device),
    "shapes of a product": lambda x: x.view(2, 4) @ x.view(2, 4),
    "broadcast": lambda x: x + torch.ones(3, device=x.device),
    "out of another dtype": lambda x: torch.add(x, 1, out=torch.empty(8, dtype=torch.int64, device=x.device)),
    "in place of integers": lambda x: torch.arange(8, device=x.device).div_(2),
    "index of floats": lambda x: x[x],
    "embedding of floats": lambda x: torch.nn.functional.embedding(x, x.view(2, 4)),
    "gather by another rank": lambda x: x.gather(0, torch.zeros(1, 1, dtype=torch.int64, device=x.device)),
    "view": lambda x: x.view(3, 3),
    "more drawn than there are": lambda x: torch.multinomial(x, 9),
    "more drawn than there are, by rows": lambda x: torch.multinomial(x.view(2, 4), 5),
    "renormalised dimension": lambda x: x.view(2, 4).renorm(2, 2, 1),
    "renormalised dimension in place": lambda x: x.view(2, 4).renorm_(2, -3, 1),
    "softmax that is safe": lambda x: torch.ops.aten._safe_softmax(x, 1),
    "output padding": lambda x: torch.conv_transpose1d(x.view(1, 2, 4), torch.ones(2, 3, 2, device=x.device), output_padding=1),
    "bias of a linear": lambda x: torch.nn.functional.linear(x.view(2, 4), torch.ones(3, 4, device=x.device), x[:4]),
    "values of an assignment": lambda x: x.view(2, 4).__setitem__(torch.zeros(3, dtype=torch.int64, device=x.device), x[:3]),
    "values of a slice and indices": lambda x: x.view(2, 2, 2).__setitem__(
        (slice(None), torch.zeros(3, dtype=torch.int64, device=x.device)), torch.ones(2, 4, 2, device=x.device)
    ),
    "mask of another shape": lambda x: x.view(2, 4).__setitem__(torch.ones(4, dtype=torch.bool, device=x.device), 0),
    "a mask in a product": lambda x: (x > 3).view(2, 4) @ x.view(4, 2),
    "a mask to attend": lambda x: torch.nn.functional.scaled_dot_product_attention(*[x.view(1, 2, 4)] * 2, (x > 3).view(1, 2, 4)),
    "condition of integers": lambda x: torch.where(x.int(), x, x),
    "sorted dimension": lambda x: x.view(2, 4).sort(-7),
    "scattered dimension": lambda x: torch.select_scatter(x.view(2, 4), x[:2], -7, 0),
    "targets of 32 bits": lambda x: torch.nn.functional.cross_entropy(x.view(2, 4), torch.ones(2, dtype=torch.int32, device=x.device)),
    "driver of a decomposition": lambda x: torch.linalg.svd(x.view(2, 4), driver="gesvd"),
    "without pivots": lambda x: torch.linalg.lu(x[:4].view(2, 2), pivot=False),
    "random from nothing": lambda x: x.random_(3, 3),
    "random like": lambda x: torch.randint_like(x, 5, 2),
    "renormalised by nothing": lambda x: x.view(2, 4).renorm(0, 0, 1),
    "cat of other shapes": lambda x: torch.cat([x.view(2, 4), x.view(4, 2)]),
    "squeezed dimension": lambda x: x.sum(3),
    "bit operators": lambda x: x & x,
    "convolution": lambda x: torch.conv1d(x.view(1, 2, 4), torch.ones(1, 3, 2, device=x.device)),
    "normalisation": lambda x: torch.nn.functional.layer_norm(x.view(2, 4), (3,)),
    "loss": lambda x: torch.nn.functional.nll_loss(x.view(2, 4), torch.zeros(3, dtype=torch.int64, device=x.device)),
    "scatter dtype": lambda x: x.scatter_(0, torch.zeros(8, dtype=torch.int64, device=x.device), torch.ones(8, dtype=torch.float64, device=x.device)),
}  # fmt: skip


def outcome(call, device):
    """The error's class and first line, or None, and the values afterwards."""
    x = torch.arange(8.0, device=device)
    torch.manual_seed(0)
    try:
        call(x)
        error = None
    except Exception as raised:
        error = type(raised).__name__, str(raised).split("\n")[0].replace(device, "cpu").replace("cpu:0", "cpu")
    return error, x


@pytest.mark.parametrize("name", [*OVERLAPS, *OTHERS])
def test_refused_at_the_call(device, name):
    call = {**OVERLAPS, **OTHERS}[name]
    expected, values = outcome(call, "cpu")
    for _ in range(3):  # new, accepted by the node once, known
        error, there = outcome(call, device)
        assert (error and error[0]) == (expected and expected[0]), (error, expected)
        assert torch.equal(there.cpu(), values)


GOOD_THEN_WRONG = {
    "sort": (lambda x: x.view(2, 4).sort(-1), lambda x: x.view(2, 4).sort(-7)),
    "random": (lambda x: x.random_(2, 5), lambda x: x.random_(5, 2)),
    "random like": (lambda x: torch.randint_like(x, 2, 5), lambda x: torch.randint_like(x, 5, 2)),
    "filled": (lambda x: x.int().fill_(3), lambda x: x.int().fill_(float("inf"))),
    "filled bytes": (lambda x: x.byte().fill_(3), lambda x: x.byte().fill_(300)),
    "masked halves": (
        lambda x: x.half().masked_fill(x > 3, -1e4), lambda x: x.half().masked_fill(x > 3, -1e9)
    ),
    "floor division": (lambda x: x.int() // 2, lambda x: x.int() // 0),
    "remainder": (lambda x: x.int() % 2, lambda x: x.int() % 0),
    "celu": (lambda x: torch.nn.functional.celu(x, 1.0), lambda x: torch.nn.functional.celu(x, 0.0)),
    "huber": (
        lambda x: torch.nn.functional.huber_loss(x, x, delta=1.0), lambda x: torch.nn.functional.huber_loss(x, x, delta=0.0)
    ),
    "smooth_l1": (
        lambda x: torch.nn.functional.smooth_l1_loss(x, x, beta=1.0), lambda x: torch.nn.functional.smooth_l1_loss(x, x, beta=-1.0)
    ),
    "softshrink": (lambda x: torch.nn.functional.softshrink(x, 0.5), lambda x: torch.nn.functional.softshrink(x, -0.5)),
    "cdist": (lambda x: torch.cdist(x.view(2, 4), x.view(2, 4), p=3.0), lambda x: torch.cdist(x.view(2, 4), x.view(2, 4), p=-1.0)),
    "renorm": (lambda x: x.view(2, 4).renorm(2, 0, 1), lambda x: x.view(2, 4).renorm(2, 2, 1)),
    "select_scatter": (
        lambda x: torch.select_scatter(x.view(2, 4), x[:2], -1, 0),
        lambda x: torch.select_scatter(x.view(2, 4), x[:2], -1, -7),
    ),
    "as_strided_copy": (lambda x: torch.as_strided_copy(x, (2,), (4,)), lambda x: torch.as_strided_copy(x, (3,), (4,))),
    "multinomial": (lambda x: torch.multinomial(x, 2), lambda x: torch.multinomial(x, 9)),
    "cross_entropy": (
        lambda x: torch.nn.functional.cross_entropy(x.view(2, 4), torch.tensor([0, 1], device=x.device)),
        lambda x: torch.nn.functional.cross_entropy(x.view(2, 4), torch.tensor([0, 1], device=x.device).int()),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD_THEN_WRONG)
def test_refused_after_calls_that_were_not(device, name):
    """What the node took before says nothing of other numbers and dtypes."""
    good, wrong = GOOD_THEN_WRONG[name]
    for where in ("cpu", device):
        for _ in range(4):
            assert outcome(good, where)[0] is None
    expected, _ = outcome(wrong, "cpu")
    error, _ = outcome(wrong, device)
    assert expected and error and error[0] == expected[0]


def test_calls_without_overlap_wait_for_nothing(device, stats):
    x = torch.zeros(8, 4, device=device)
    x[0].add_(x[1])
    before = stats()["runs"]
    for i in range(1, 7):
        x[i].add_(x[i + 1])
        x[:, 0].copy_(x[:, 1])
        x.mul_(x)
        torch._foreach_add_([x[0], x[1]], [x[2], x[3]])
    assert stats()["runs"] == before
    assert not x.cpu().any()


@pytest.mark.remote
def test_wrong_calls_of_pytorchs_own_list():
    """A slice; the whole is `python tests/conformance/errors.py`."""
    script = Path(__file__).parents[1] / "conformance" / "errors.py"
    done = subprocess.run([sys.executable, str(script), "--every", "2"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
