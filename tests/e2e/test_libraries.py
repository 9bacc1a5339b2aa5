"""Other people's libraries: told of the device when they are imported, and unchanged for who does not name it."""

import os
import subprocess
import sys

import pytest
import torch

pytestmark = pytest.mark.remote


def run(source, tmp_path, **env):
    environment = {name: value for name, value in os.environ.items() if name != "ACCELERATE_TORCH_DEVICE"} | env
    ended = subprocess.run(
        [sys.executable, "-c", source], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout.split()


@pytest.fixture
def weights(tmp_path):
    from safetensors.torch import save_file

    tensors = {"a": torch.arange(12.0).reshape(3, 4), "b": torch.arange(5)}
    save_file(tensors, tmp_path / "weights.safetensors")
    return tmp_path / "weights.safetensors", tensors


@pytest.mark.parametrize("named", [str, torch.device, lambda name: f"{name}:0"])
def test_safetensors_reads_to_the_device(weights, device, named):
    from safetensors import safe_open
    from safetensors.torch import load_file

    path, tensors = weights
    loaded = load_file(path, device=named(device))
    assert {each.device.type for each in loaded.values()} == {torch.device(device).type}
    assert all(torch.equal(loaded[name].cpu(), tensors[name]) for name in tensors)
    with safe_open(path, framework="pt", device=named(device)) as file:
        assert isinstance(file, safe_open)
        assert set(file.keys()) == set(tensors)
        part = file.get_slice("a")
        assert part.get_shape() == [3, 4]
        assert torch.equal(part[1:, :2].cpu(), tensors["a"][1:, :2]) and part[1:].device.type == torch.device(device).type


def test_safetensors_for_others_is_the_library_itself(weights):
    from safetensors import SafetensorError, safe_open

    path, _ = weights
    own = safe_open(path, framework="pt")
    assert type(own).__module__ == "builtins" and isinstance(own, safe_open)
    with pytest.raises(SafetensorError, match="nonsense"):
        safe_open(path, framework="pt", device="nonsense")


CHOICES = """
import sys, torch
from accelerate import Accelerator
from accelerate.utils import get_max_memory
from transformers.utils import is_torch_bf16_gpu_available
print(Accelerator().device.type, list(get_max_memory()), is_torch_bf16_gpu_available(), "genie.integrations.accelerate" in sys.modules)
"""


def test_nobody_chooses_the_device_unasked(tmp_path):
    told = "".join(run(CHOICES, tmp_path, CUDA_VISIBLE_DEVICES=""))
    assert told == "cpu['cpu']FalseTrue"


def test_the_variable_asks_for_the_device(tmp_path):
    told = "".join(run(CHOICES, tmp_path, ACCELERATE_TORCH_DEVICE="remote_accelerator"))
    assert told == "remote_accelerator['remote_accelerator','cpu']TrueTrue"


def test_the_default_device_asks_for_the_device(tmp_path):
    told = run("import torch\ntorch.set_default_device('remote_accelerator')\n" + CHOICES, tmp_path)
    assert told[0] == "remote_accelerator"


def test_integrations_can_be_left_out(tmp_path):
    assert run(CHOICES, tmp_path, GENIE_INTEGRATIONS="0")[-1] == "False"


def test_an_integration_leaves_no_trace_in_the_module(tmp_path):
    source = """
import sys, torch
assert not [name for name in sys.modules if name.startswith(("safetensors", "accelerate", "transformers", "genie.integrations."))]
import importlib.util
assert importlib.util.find_spec("accelerate.state").origin.endswith("state.py")
import accelerate.state, inspect
loader = type(accelerate.state.__loader__).__name__
print(loader, type(accelerate.state.__spec__.loader).__name__ == loader, len(inspect.getsource(accelerate.state)) > 1000)
"""
    assert run(source, tmp_path) == ["SourceFileLoader", "True", "True"]


def test_an_integration_that_does_not_fit_spoils_no_import(tmp_path):
    (tmp_path / "safetensors.py").write_text("__version__ = '99'\n")
    source = """
import warnings, torch
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import safetensors
print(safetensors.__version__, len(caught), "GENIE_INTEGRATIONS=0" in str(caught[0].message))
"""
    assert run(source, tmp_path) == ["99", "1", "True"]


def refusals():
    """(what, the call with a device tensor, words of the way around)."""
    nested = [torch.randn(2, 4), torch.randn(3, 4)]

    def sparse_gradient(x):
        layer = torch.nn.Embedding(4, 4, sparse=True).to(x.device)
        layer(torch.tensor([1], device=x.device)).sum().backward()

    def by_pickling(x):
        from multiprocessing.reduction import ForkingPickler

        ForkingPickler.dumps(x)

    return {
        "to_sparse": (lambda x: x.to_sparse(), "to_dense"),
        "to_sparse_csr": (lambda x: x.to_sparse_csr(), "to_dense"),
        "sparse moved": (lambda x: torch.eye(3).to_sparse().to(x.device), "to_dense"),
        "sparse times dense": (lambda x: torch.eye(4).to_sparse() @ x, "to_dense"),
        "sparse gradient": (sparse_gradient, "sparse=False"),
        "quantize": (lambda x: torch.quantize_per_tensor(x, 0.1, 0, torch.quint8), "bfloat16"),
        "quantized moved": (lambda x: torch.quantize_per_tensor(x.cpu(), 0.1, 0, torch.quint8).to(x.device), "bfloat16"),
        "quantized argument": (
            lambda x: torch.ops.quantized.linear_prepack(
                torch.quantize_per_tensor(torch.randn(4, 4), 0.1, 0, torch.qint8), x[0].contiguous()
            ),
            "bfloat16",
        ),
        "nested made": (lambda x: torch.nested.as_nested_tensor([x, x[:2]]), "jagged"),
        "nested moved": (lambda x: torch.nested.nested_tensor(nested).to(x.device), "jagged"),
        "mkldnn": (lambda x: x.to_mkldnn(), "cpu"),
        "dlpack": (lambda x: x.__dlpack__(), r"x\.cpu\(\)"),
        "dlpack device": (lambda x: x.__dlpack_device__(), r"x\.cpu\(\)"),
        "dlpack capsule": (lambda x: torch.utils.dlpack.to_dlpack(x), r"x\.cpu\(\)"),
        "from_dlpack": (lambda x: torch.from_dlpack(x), r"x\.cpu\(\)"),
        "another process": (by_pickling, r"send x\.cpu\(\)"),
        "another process, storage": (lambda x: by_pickling(x.untyped_storage()), r"send x\.cpu\(\)"),
        "numpy": (lambda x: x.numpy(), r"Tensor\.cpu\(\)"),
    }


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("what", refusals())
def test_what_the_device_does_not_hold_names_the_way_around(what, device):
    call, way = refusals()[what]
    x = torch.randn(4, 4, device=device)
    with pytest.raises((NotImplementedError, BufferError, RuntimeError, TypeError), match=way) as caught:
        call(x)
    assert "remote_accelerator" in str(caught.value)
    assert torch.equal(x.cpu(), x.cpu()), "the session goes on"


def test_dlpack_to_the_cpu_is_a_copy(device):
    x = torch.arange(4.0, device=device)
    assert torch.from_dlpack(x.__dlpack__(dl_device=(1, 0))).tolist() == [0, 1, 2, 3]
    shared = torch.arange(3)
    assert torch.from_dlpack(shared).data_ptr() == shared.data_ptr()


def test_jagged_tensors_and_qat_run_there(device):
    jagged = torch.nested.nested_tensor([torch.randn(2, 4), torch.randn(3, 4)], layout=torch.jagged, device=device)
    assert torch.nn.Linear(4, 4).to(device)(jagged * 2).device.type == torch.device(device).type
    assert torch.fake_quantize_per_tensor_affine(torch.randn(3, device=device), 0.1, 0, 0, 255).shape == (3,)


def test_a_pipeline_stays_on_its_models_device(device):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=16, patch_size=8
    )
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(config).eval()
    processor = transformers.ViTImageProcessor(size={"height": 16, "width": 16})
    image = pytest.importorskip("PIL.Image").new("RGB", (16, 16), "red")
    said = {}
    for where in ("cpu", device):
        pipe = transformers.pipeline("image-classification", model=model.to(where), image_processor=processor)
        assert pipe.device.type == model.device.type == torch.device(where).type
        said[where] = pipe(image)
    assert [each["label"] for each in said["cpu"]] == [each["label"] for each in said[device]]
