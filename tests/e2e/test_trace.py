"""torch.jit: what is traced or scripted on the device is the graph of the CPU, and computes the same."""

import io

import pytest
import torch
from parity import assert_same
from torch import nn


class Convolutional(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(8, 8, 3, groups=4, padding="same"), nn.GELU(), nn.ConvTranspose2d(8, 4, 2, stride=2),
            nn.GroupNorm(2, 4), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 5),
        )  # fmt: skip

    def forward(self, x):
        return self.body(x)


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.lstm = nn.LSTM(8, 8, num_layers=2, bidirectional=True, batch_first=True)
        self.gru = nn.GRU(16, 8)
        self.cell = nn.LSTMCell(8, 8)
        self.gru_cell = nn.GRUCell(8, 8)

    def forward(self, tokens):
        x, _ = self.lstm(self.embed(tokens))
        x, _ = self.gru(x)
        h, c = self.cell(x[:, 0])
        return self.gru_cell(h, c)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
        self.query = nn.Linear(16, 16)

    def forward(self, x):
        q = self.query(x).unflatten(-1, (2, 8)).transpose(1, 2)
        mixed = nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
        return self.block(x) + mixed.transpose(1, 2).flatten(2)


def cases():
    generator = torch.Generator().manual_seed(0)
    return {
        "convolutions": (Convolutional, torch.randn(2, 3, 8, 8, generator=generator)),
        "one dimension": (lambda: nn.Conv1d(3, 4, 3), torch.randn(2, 3, 9, generator=generator)),
        "three dimensions": (lambda: nn.Conv3d(2, 3, 2), torch.randn(1, 2, 4, 4, 4, generator=generator)),
        "recurrence": (Recurrent, torch.randint(0, 20, (3, 5), generator=generator)),
        "attention": (Attention, torch.randn(2, 6, 16, generator=generator)),
    }


def made(name, training):
    torch.manual_seed(1)
    build, x = cases()[name]
    return build().train(training), x


def kinds(graph):
    return sorted(node.kind() for node in graph.nodes())


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", list(cases()))
def test_traces_run_and_travel(device, name, training):
    model, x = made(name, training)
    expected_trace = torch.jit.trace(model, x, check_trace=False)
    expected = expected_trace(x)
    model, _ = made(name, training)
    # Eager itself chooses another path for attention from one run to the next.
    repeats = not training and name != "attention"
    there = torch.jit.trace(model.to(device), x.to(device), check_trace=repeats)
    actual = there(x.to(device))
    assert actual.device.type == torch.device(device).type
    assert_same(expected, actual)
    if name != "recurrence":  # cells have kernels of their own on every accelerator
        assert kinds(there.inlined_graph) == kinds(expected_trace.inlined_graph)
    file = io.BytesIO()
    torch.jit.save(there, file)
    for where in ("cpu", device):
        if name == "recurrence" and where == "cpu":
            continue
        file.seek(0)
        loaded = torch.jit.load(file, map_location=where)
        if not training:
            assert_same(expected, loaded(x.to(where)))


@pytest.mark.parametrize("name", list(cases()))
def test_traces_train(device, name):
    gradients = []
    for where in ("cpu", device):
        model, x = made(name, training=True)
        traced = torch.jit.trace(model.to(where), x.to(where), check_trace=False)
        traced(x.to(where)).square().mean().backward()
        gradients.append([parameter.grad for parameter in traced.parameters()])
    assert len(gradients[0]) and all(each is not None for each in gradients[1])
    assert_same(*gradients)


@pytest.mark.parametrize("name", list(cases()))
def test_scripts_run(device, name):
    model, x = made(name, training=False)
    scripted = torch.jit.script(model)
    expected = [scripted(x) for _ in range(3)]  # the executor specialises after two runs
    there = torch.jit.script(made(name, training=False)[0].to(device))
    assert_same(expected, [there(x.to(device)) for _ in range(3)])
    frozen = torch.jit.freeze(there)
    assert_same(expected[0], frozen(x.to(device)))


@pytest.mark.parametrize("name", ["convolutions", "attention"])
def test_the_old_onnx_exporter(device, name, monkeypatch):
    from torch.onnx._internal.torchscript_exporter import onnx_proto_utils

    # The one step that wants the package `onnx`, for functions of users.
    monkeypatch.setattr(onnx_proto_utils, "_add_onnxscript_fn", lambda model, functions: model)
    files = []
    for where in ("cpu", device):
        model, x = made(name, training=False)
        file = io.BytesIO()
        torch.onnx.export(model.to(where), (x.to(where),), file, dynamo=False)
        files.append(file.getvalue())
    assert len(files[0]) == len(files[1]) > 0
