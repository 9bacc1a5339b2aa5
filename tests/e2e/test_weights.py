"""The same weights move once: for the same program, and for another one on the same host."""

import copy

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
