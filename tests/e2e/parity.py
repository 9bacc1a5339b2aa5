"""Running the same program on CPU and on the device and comparing what comes out."""

import copy

import torch
from torch.utils import _pytree as pytree

TOLERANCE = 1e-5


def move(tree, device):
    return pytree.tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, torch.Tensor) else leaf, tree)


def tensors(tree):
    """All tensors of a result, also of Hugging Face's output classes, in order."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, (list, tuple)):
        return [tensor for part in tree for tensor in tensors(part)]
    return []


def assert_same(expected, actual):
    expected, actual = tensors(expected), tensors(actual)
    assert len(expected) == len(actual) and expected
    for want, got in zip(expected, actual):
        torch.testing.assert_close(got.cpu(), want, rtol=TOLERANCE, atol=TOLERANCE * max(scale(want), 1.0), equal_nan=True)


def scale(tensor):
    """The largest finite |value|: rounding of a sum is as large as its largest terms, also where they cancel."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return 0.0
    finite = tensor.detach()[torch.isfinite(tensor)].abs()
    return float(finite.max()) if finite.numel() else 0.0


def check_inference(model, args, kwargs, device):
    model = model.eval()
    with torch.no_grad():
        expected = model(*args, **kwargs)
        there = copy.deepcopy(model).to(device)
        actual = there(*move(args, device), **move(kwargs, device))
    assert all(tensor.device.type == torch.device(device).type for tensor in tensors(actual))
    assert_same(expected, actual)


def train(model, loss_of, optimizer_of, args, kwargs, steps):
    """Losses of each step; the model's parameters are left trained."""
    model.train()
    optimizer = optimizer_of(model.parameters())
    losses = []
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss = loss_of(model(*args, **kwargs))
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def check_training(model, loss_of, optimizer_of, args, kwargs, device, steps=3):
    there = copy.deepcopy(model).to(device)
    torch.manual_seed(7)
    expected = train(model, loss_of, optimizer_of, args, kwargs, steps)
    torch.manual_seed(7)
    actual = train(there, loss_of, optimizer_of, move(args, device), move(kwargs, device), steps)
    assert_same(expected, actual)
    here, there = model.state_dict(), there.state_dict()
    assert list(here) == list(there)
    assert_same(here, there)
