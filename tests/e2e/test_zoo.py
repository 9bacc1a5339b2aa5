"""What running other people's models showed: each test here failed once."""

import copy

import pytest
import torch
from parity import assert_same
from torch import nn


def both(device, function):
    torch.manual_seed(3)
    expected = function("cpu")
    torch.manual_seed(3)
    actual = function(device)
    assert_same(expected, actual)


def runs_of_third_call(stats, function):
    """Synchronous runs of a call whose operators have been seen."""
    function()
    function()
    before = stats()["runs"]
    function()
    return stats()["runs"] - before


OUT_PAIRS = {
    "max": lambda x, out: torch.max(x, 1, out=out),
    "topk": lambda x, out: torch.topk(x, 2, out=out),
    "sort": lambda x, out: torch.sort(x, 1, out=out),
    "mode": lambda x, out: torch.mode(x, 1, out=out),
}


@pytest.mark.parametrize("name", OUT_PAIRS)
def test_several_out_arguments(name, device):
    """The node died: nothing held the results while they were returned."""
    data = torch.randn(3, 4)

    def function(where):
        out = torch.empty(0, device=where), torch.empty(0, dtype=torch.long, device=where)
        OUT_PAIRS[name](data.to(where), out)
        return out

    both(device, function)


def test_attention_layer_with_and_without_weights(device):
    """What a Meta kernel says with weights was believed without them."""
    layer = nn.MultiheadAttention(32, 4, batch_first=True).eval()
    x = torch.randn(2, 7, 32)

    def function(where):
        there, y = copy.deepcopy(layer).to(where), x.to(where)
        with torch.no_grad():
            some = [there(y, y, y) for _ in range(3)]
            others = [there(y, y, y, need_weights=False) for _ in range(3)]
        assert all(weights is None for _, weights in others)
        return some, [output for output, _ in others]

    both(device, function)


def test_encoder_with_padding(device):
    """The device has no nested tensors. Padded places are the mask's to forget, and may differ."""
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    x, padding = torch.randn(2, 7, 32), torch.zeros(2, 7, dtype=torch.bool)
    padding[0, 5:] = True

    def function(where):
        there = copy.deepcopy(encoder).to(where)
        with torch.no_grad():
            return there(x.to(where), src_key_padding_mask=padding.to(where)).cpu()[~padding]

    both(device, function)


@pytest.mark.parametrize("arguments", [(9,), (9, False), (9, True, 5.0)])
def test_kaiser_window(arguments, device):
    both(device, lambda where: torch.kaiser_window(*arguments, device=where))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("padding", [None, 3])
def test_embedding_bags_are_recorded(mode, last, padding, device, stats):
    bag = nn.EmbeddingBag(20, 6, mode=mode, include_last_offset=last, padding_idx=padding)
    there = copy.deepcopy(bag).to(device)
    indices, offsets = torch.randint(20, (12,)), torch.tensor([0, 4, 4, 12])
    here, away = (indices, offsets), (indices.to(device), offsets.to(device))
    assert_same(bag(*here), there(*away))
    with torch.no_grad():
        assert_same(bag(*here), there(*away))
        assert runs_of_third_call(stats, lambda: there(*away)) == 0
    assert runs_of_third_call(stats, lambda: there(*away)) == 0


def test_attention_over_fewer_heads_is_recorded(device, stats):
    """Keys and values of one head for all of the queries', broadcast."""
    q, k = torch.randn(2, 4, 5, 8), torch.randn(2, 1, 5, 8)
    attend = nn.functional.scaled_dot_product_attention
    both(device, lambda where: attend(q.to(where), k.to(where), k.to(where)))
    there = q.to(device), k.to(device)
    assert runs_of_third_call(stats, lambda: attend(there[0], there[1], there[1])) == 0


def test_encoder_layer_is_recorded(device, stats):
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True).eval()
    x = torch.randn(2, 7, 32)
    there, y = copy.deepcopy(layer).to(device), x.to(device)
    with torch.no_grad():
        assert_same(layer(x), there(y))
        assert runs_of_third_call(stats, lambda: there(y)) == 0


def test_sums_of_whole_tensors_are_recorded(device, stats):
    there = [torch.ones(3, dtype=dtype).to(device) for dtype in (torch.float32, torch.int64, torch.bool)]

    def function():
        return [each.sum() for each in there] + [there[0].mean(), there[1].sum(dtype=torch.float64)]

    assert_same([torch.tensor(3.0), torch.tensor(3), torch.tensor(3), torch.tensor(1.0),
                 torch.tensor(3.0, dtype=torch.float64)], function())  # fmt: skip
    assert runs_of_third_call(stats, function) == 0
