"""What the node cannot run still gives the right answer, is counted and explained once."""

import warnings

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


def test_what_runs_nowhere_is_no_fallback(device):
    """The CPU refuses it too: the error is all that there is to say."""
    x = torch.ones(2, dtype=torch.complex64, device=device)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            with pytest.raises(NotImplementedError):
                x > x  # noqa: B015
            x.real.add(1)


def test_the_warning_comes_in_the_thread_and_at_the_line_of_the_call(program):
    said, _ = program(
        """
        import threading, warnings
        import torchvision
        boxes, scores = torch.rand(5, 4, device=DEVICE), torch.rand(5, device=DEVICE)
        seen = []
        warnings.showwarning = lambda message, category, file, line, *_: seen.append(
            [category.__name__, threading.current_thread().name])
        thread = threading.Thread(target=lambda: torchvision.ops.nms(boxes, scores, 0.5), name="worker")
        thread.start()
        thread.join()
        say(seen=seen)
        """
    ).finish()
    assert said["seen"] == [["FallbackWarning", "worker"]]


def test_a_failure_that_nobody_read_is_told_at_the_end(program):
    source = """
        x = torch.randn(8, 4, device=DEVICE)
        y = torch.full((8,), 9, device=DEVICE)
        loss = torch.nn.functional.cross_entropy(x, y)
        """
    # The node runs it before the program ends.
    _, stderr = program(source + "torch.remote_accelerator.synchronize()").finish()
    assert "never read" in stderr and "Target 9 is out of bounds" in stderr
    read = """
        try:
            loss.item()
        except IndexError as error:
            say(error=str(error))
        """
    said, stderr = program(source + read).finish()
    assert "Target 9" in said["error"] and not stderr


def test_named_tensors_are_refused(device):
    x = torch.ones(2, 3, device=device).rename("N", "C")
    with pytest.raises(NotImplementedError, match="rename"):
        x + x
    assert (x.rename(None) + 1).sum().item() == 12


def test_a_lost_imaginary_part_is_told_as_in_eager(program):
    """By Python's warnings, once; what warns on the node says nothing in the program's terminal."""
    said, stderr = program(
        """
        import warnings
        x = torch.ones(2, dtype=torch.complex64, device=DEVICE)
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            values = [x.to(torch.float32).tolist() for _ in range(2)]
        say(values=values, seen=[str(each.message) for each in seen])
        """
    ).finish()
    assert said["values"] == [[1.0, 1.0]] * 2
    assert len(said["seen"]) == 1 and "imaginary part" in said["seen"][0]
    assert not stderr


def test_shapes_of_a_short_program_import_no_compiler(program):
    """Some of PyTorch's shape functions are Python's and import torch._dynamo, for seconds."""
    said, _ = program(
        """
        x = torch.rand(4, 4, device=DEVICE) + 1
        values = [x.abs(), x.roll(1), x.logsumexp(0), x.isinf(), torch.dot(x[0], x[1]), x // 2, torch.fmod(x, 2),
                  x.count_nonzero(), torch.nn.functional.huber_loss(x, x), (x / 3).logit()]
        torch.cat([each.reshape(-1).float() for each in values]).sum().item()
        early = "torch._dynamo" in sys.modules
        import torch._dynamo
        before = genie.stats()["runs"]
        for n in range(2, 12):
            torch.ones(n, 3, device=DEVICE).roll(1)
        say(early=early, runs=genie.stats()["runs"] - before)
        """
    ).finish()
    assert said["early"] is False
    # Known by shape functions from the third on.
    assert said["runs"] <= 2


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


def test_a_file_is_opened_by_the_program_alone(program, tmp_path):
    """Its name is one of the program's machine. The node refuses to open one of its own."""
    said, _ = program(
        """
        import os
        from pathlib import Path
        torch.ones(1, device=DEVICE).item()
        before, here = Path.cwd(), Path(sys.argv[1])
        os.chdir(here)
        Path("there").write_bytes(bytes([1, 2, 3, 4]))
        x = torch.from_file("there", shared=False, size=4, dtype=torch.uint8, device=DEVICE)
        torch.from_file("new", shared=True, size=4, dtype=torch.uint8, device=DEVICE)
        say(value=(x + 1).tolist(), device=x.device.type, made=[(at / "new").exists() for at in (before, here)],
            by_op=genie.stats()["fallbacks_by_op"])
        """,
        args=[str(tmp_path)],
    ).finish()
    assert said["value"] == [2, 3, 4, 5] and said["device"] == "remote_accelerator"
    # The node lives where the program began.
    assert said["made"] == [False, True]
    assert any("aten::from_file" in op for op in said["by_op"])


def test_an_assertion_without_waiting_is_raised_at_the_call(device):
    """On CUDA it would end the sessions of others; so no node runs it."""
    torch._assert_async(torch.tensor(True, device=device))
    with pytest.raises(RuntimeError, match="a bad value"):
        torch._assert_async(torch.tensor(False, device=device), "a bad value")


def test_sparse_is_supported_by_falling_back(device):
    dense = torch.tensor([[0.0, 2.0], [3.0, 0.0]])
    try:
        out = dense.to(device).to_sparse()
    except (RuntimeError, NotImplementedError) as error:
        assert "sparse" in str(error).lower()
    else:
        assert torch.equal(out.to_dense().cpu(), dense)


READERS = """
a = torch.ops.aten
def same(op, *args):
    "Whether the device's result is the CPU's; args are made on the CPU."
    to = lambda device: [x.to(device) if isinstance(x, torch.Tensor) else x for x in args]
    there, here = op(*to(DEVICE)), op(*to("cpu"))
    there, here = (x if isinstance(x, (tuple, list)) else [x] for x in (there, here))
    return all(torch.equal(x.cpu(), y) if isinstance(y, torch.Tensor) else x == y for x, y in zip(there, here))
def refuses(op, *args):
    try:
        op(*(x.to(DEVICE) for x in args))
    except NotImplementedError as error:
        return "x.cpu()" in str(error)
square, counts = torch.rand(4, 4), torch.tensor([2, 1])
weight, packed = torch.rand(4, 4) - 0.5, torch.rand(3, 4)
cells = [torch.rand(4 * 4, 4) for _ in range(2)] + [torch.rand(4 * 4) for _ in range(2)]
lstm = lambda data, sizes, h, c, *params: a.lstm.data(data, sizes, [h, c], params, True, 1, 0.0, False, False)
say(
    pack=refuses(a.fbgemm_pack_gemm_matrix_fp16, square),
    pack_quantized=refuses(a.fbgemm_pack_quantized_matrix, square.to(torch.int8)),
    quantize=same(a.fbgemm_linear_quantize_weight, weight),
    saturate=same(a._saturate_weight_to_fp16, square),
    prune=same(a._rowwise_prune, square, torch.tensor([True, False, True, True]), torch.int32),
    qparams=same(a.choose_qparams_optimized, weight.flatten(), 16, 200, 0.16, 8),
    pad=same(a._pad_packed_sequence, packed, counts, True, 0.0, 2),
    reshape=same(a._reshape_from_tensor, square, torch.tensor([2, 8])),
    lstm=same(lstm, packed, counts, torch.rand(1, 2, 4), torch.rand(1, 2, 4), *cells),
    sobol=same(a._sobol_engine_ff_, torch.zeros(2, dtype=torch.long), 3, torch.ones(2, 30, dtype=torch.long), 2, 0),
)
"""


def test_code_that_reads_memory_by_itself_never_meets_the_device(program):
    """Such composites run on the client's CPU, get what they read, or refuse in words."""
    said, _ = program(READERS).finish()
    assert all(said.values()), said


EVERY_COMPOSITE = """
import itertools, re, warnings
warnings.simplefilter("ignore")
MAKE = {
    "square": lambda: torch.rand(4, 4, device=DEVICE), "line": lambda: torch.rand(4, device=DEVICE),
    "image": lambda: torch.rand(1, 2, 4, 4, device=DEVICE), "number": lambda: torch.tensor(1.0, device=DEVICE),
    "steps": lambda: torch.rand(3, 2, 4, device=DEVICE), "counts": lambda: torch.tensor([2, 1], device=DEVICE),
    "bytes": lambda: torch.ones(4, 4, dtype=torch.int8, device=DEVICE),
    "mask": lambda: torch.ones(4, 4, dtype=torch.bool, device=DEVICE),
}
MIXES = [["square"], ["line"], ["image"], ["counts"], ["bytes"], ["mask"], ["number"], ["steps", "counts"], ["square", "bytes", "line"]]
def value(argument, tensors):
    kind = str(argument.type)
    if "Tensor" in kind:
        return [MAKE[next(tensors)]() for _ in range(2)] if "List" in kind else MAKE[next(tensors)]()
    if argument.has_default_value():
        return argument.default_value
    simple = {"int": 1, "number": 1, "float": 0.5, "bool": True, "str": "sum", "List[int]": [1, 1], "List[float]": [1.0, 1.0]}
    return simple.get(kind)
def composites():
    for name in sorted(torch._C._dispatch_get_all_op_names()):
        if name.startswith("aten::") and not name.startswith(("aten::record_stream", "aten::from_file")):
            if re.search(r"^PrivateUse1: .*math kernel", torch._C._dispatch_dump_table(name), re.M):
                base, _, overload = name[len("aten::"):].partition(".")
                op = getattr(getattr(torch.ops.aten, base, None), overload or "default", None)
                if op and any("Tensor" in str(each.type) for each in op._schema.arguments):
                    yield name, op
tried = 0
for name, op in composites():
    print("GENIE-TEST-NOW", name, file=sys.stderr, flush=True)
    for mix in MIXES:
        tensors = itertools.chain(mix, itertools.repeat(mix[-1]))
        arguments = [(each, value(each, tensors)) for each in op._schema.arguments]
        try:
            op(*(x for each, x in arguments if not each.kwarg_only), **{e.name: x for e, x in arguments if e.kwarg_only})
        except genie.NodeLost:
            raise
        except Exception:
            pass  # most make no sense
        tried += 1
say(tried=tried)
"""


@pytest.mark.slow
def test_no_composite_ends_the_program(program):
    """Every composite of this PyTorch, called with tensors of the device: a newcomer that reads memory
    by itself ends the program, and the last line of stderr names it."""
    said, _ = program(EVERY_COMPOSITE).finish(seconds=3600)
    assert said["tried"] > 1000
