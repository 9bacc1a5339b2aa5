"""Arguments that PyTorch reads on the host: on the device they work as they do on the CPU."""

import pytest
import torch
from parity import assert_same
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence


def lengths(where):
    return torch.tensor([5, 3, 2], device=where)


def sections(x, on):
    return [
        *torch.tensor_split(x, torch.tensor(3, device=on)),
        *torch.tensor_split(x, torch.tensor([1, 4], device=on), dim=1),
        *x.tensor_split(torch.tensor([2], device=on)),
    ]


def packed(x, on):
    data = pack_padded_sequence(x, lengths(on), batch_first=True)
    back, sizes = pad_packed_sequence(data, batch_first=True)
    return [data.data, back, sizes]


def unsorted(x, on):
    data = pack_padded_sequence(x, torch.tensor([2, 5, 3], device=on), batch_first=True, enforce_sorted=False)
    return [data.data, pad_packed_sequence(data, batch_first=True)[0]]


def recurrent(kind):
    def function(x, on):
        torch.manual_seed(0)
        net = kind(6, 4, num_layers=2, bidirectional=True).to(x.device)
        weights, hidden = net._flat_weights, torch.zeros(4, 3, 4, device=x.device)
        data = pack_padded_sequence(x, lengths("cpu"), batch_first=True)
        call = {nn.LSTM: torch.lstm, nn.GRU: torch.gru}[kind]
        hidden = (hidden, hidden) if kind is nn.LSTM else hidden
        return list(
            call(data.data, data.batch_sizes.to(on), hidden, weights, True, 2, 0.0, False, True)
        )

    return function


def indexed(x, on):
    rows = torch.tensor([0, 2], device=on)
    mask = torch.tensor([True, False, True], device=on)
    y = x.clone()
    y[rows] = 1.0
    y[mask] += torch.tensor(2.0)
    return [x[rows], x[mask], x[rows, :, 1], y, x.masked_fill(x > 0, torch.tensor(3.0))]


def numbers(x, on):
    return [
        torch.clamp(x, torch.tensor(-0.5, device=on), torch.tensor(0.5, device=on)),
        torch.where(x > 0, x, torch.tensor(0.0, device=on)),
        x * torch.tensor(3, device=on),
        torch.linspace(torch.tensor(0.0, device=on), torch.tensor(1.0, device=on), 4, device=x.device),
        torch.full((2,), torch.tensor(2.5, device=on), device=x.device),
        x.narrow(1, torch.tensor(1, device=on), 2),
        torch.bucketize(torch.tensor(0.3, device=on), torch.tensor([0.0, 0.5], device=x.device)),
    ]


def ctc(x, on):
    scores = x.new_ones(5, 3, 6).log_softmax(2)
    targets = torch.tensor([[1, 2], [3, 4], [5, 1]], device=x.device)
    return [
        torch.nn.functional.ctc_loss(
            scores, targets, torch.tensor([5, 5, 4], device=on), torch.tensor([2, 2, 1], device=on)
        )
    ]


CASES = [sections, packed, unsorted, recurrent(nn.LSTM), recurrent(nn.GRU), indexed, numbers, ctc]
NAMES = ["tensor_split", "packed", "unsorted", "lstm", "gru", "index", "numbers", "ctc_loss"]


@pytest.mark.parametrize("function", CASES, ids=NAMES)
@pytest.mark.parametrize("there", [False, True], ids=["on the CPU", "on the device"])
def test_it_works_wherever_the_argument_lies(device, function, there):
    def run(where, on):
        generator = torch.Generator().manual_seed(0)
        return function(torch.randn(3, 5, 6, generator=generator).to(where), on)

    assert_same(run("cpu", "cpu"), run(device, device if there else "cpu"))


@pytest.mark.parametrize("function", [sections, packed], ids=["tensor_split", "packed"])
def test_gradients_pass(device, function):
    def run(where):
        x = torch.arange(90.0, device=where).reshape(3, 5, 6).requires_grad_()
        sum(part.square().sum() for part in function(x, where) if part.is_floating_point()).backward()
        return x.grad

    assert_same(run("cpu"), run(device))


def test_sections_of_a_tensor_of_the_cpu(device):
    x = torch.arange(6)
    assert_same(x.tensor_split(torch.tensor([2])), x.tensor_split(torch.tensor([2], device=device)))


@pytest.mark.skipif(not hasattr(torch.ops.aten.randint_like, "Tensor"), reason="an older PyTorch")
def test_a_bound_of_random_integers(device):
    def run(where):
        torch.manual_seed(0)
        return torch.ops.aten.randint_like.Tensor(torch.zeros(64, device=where), torch.tensor(9, device=where))

    assert_same(run("cpu"), run(device))
