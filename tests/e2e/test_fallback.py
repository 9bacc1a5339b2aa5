"""What the node cannot run still gives the right answer, is counted and explained once."""

import pytest
import torch
from parity import assert_same

pytestmark = pytest.mark.remote


def test_torchvision_nms(device):
    from torchvision.ops import nms

    torch.manual_seed(0)
    boxes = torch.rand(40, 4)
    boxes[:, 2:] += boxes[:, :2]
    scores = torch.rand(40)
    assert_same(nms(boxes, scores, 0.5), nms(boxes.to(device), scores.to(device), 0.5))


def test_torchvision_roi_align_with_gradient(device):
    from torchvision.ops import roi_align

    results = []
    for where in ("cpu", device):
        torch.manual_seed(0)
        x = torch.rand(1, 4, 16, 16).to(where).requires_grad_()
        boxes = torch.tensor([[0, 1.0, 1.0, 9.0, 9.0]]).to(where)
        out = roi_align(x, boxes, (3, 3))
        out.sum().backward()
        results.append((out.detach(), x.grad))
    assert_same(*results)


@pytest.fixture(scope="module")
def library():
    """Operators of a library that the node does not have: one pure, one that writes to its argument."""
    lib = torch.library.Library("genie_test", "DEF")
    lib.define("scaled(Tensor x, float by) -> Tensor")
    lib.define("bump_(Tensor(a!) x) -> Tensor(a!)")
    lib.impl("scaled", lambda x, by: x * by + 1, "CPU")
    lib.impl("bump_", lambda x: x.add_(5), "CPU")
    yield torch.ops.genie_test
    lib._destroy()


def test_library_op_runs_on_the_client(library, device, stats):
    before = stats()["fallbacks"]
    out = library.scaled(torch.arange(4.0, device=device), 2.5)
    assert out.device.type == "remote_accelerator"
    assert out.cpu().tolist() == [1.0, 3.5, 6.0, 8.5]
    now = stats()
    assert now["fallbacks"] == before + 1
    assert any("genie_test::scaled" in op for op in now["fallbacks_by_op"])


def test_library_op_writes_back(library, device):
    x = torch.zeros(2, 3, device=device)
    view = x[0]
    library.bump_(view)
    assert x.cpu().tolist() == [[5, 5, 5], [0, 0, 0]]


def test_warned_once_with_the_reason(program):
    _, err = program(
        """
        from torchvision.ops import nms
        boxes, scores = torch.rand(4, 4, device=DEVICE), torch.rand(4, device=DEVICE)
        for _ in range(3):
            nms(boxes, scores, 0.5).cpu()
        """
    ).finish()
    lines = [line for line in err.splitlines() if "torchvision::nms" in line]
    assert len(lines) == 1, err


def test_op_forced_unsupported(program):
    """GENIE_NODE_WITHOUT names operators that the node pretends to lack."""
    said, _ = program(
        """
        x = torch.tensor([[2.0, 1.0], [1.0, 3.0]], device=DEVICE)
        y = torch.tanh(x) + torch.erf(x)
        say(value=y.cpu().tolist(), by_op=genie.stats()["fallbacks_by_op"])
        """,
        env={"GENIE_NODE_WITHOUT": "aten::tanh,aten::erf"},
    ).finish()
    x = torch.tensor([[2.0, 1.0], [1.0, 3.0]])
    assert torch.allclose(torch.tensor(said["value"]), torch.tanh(x) + torch.erf(x), atol=1e-6)
    assert {op.split("::")[-1].split(".")[0] for op in said["by_op"]} >= {"tanh", "erf"}


def test_sparse_is_supported_by_falling_back(device):
    dense = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    try:
        out = dense.to(device).to_sparse()
    except (RuntimeError, NotImplementedError) as error:
        assert "sparse" in str(error).lower()
    else:
        assert torch.equal(out.to_dense().cpu(), dense)
