"""What eager refuses, refused at the call.

    python tests/conformance/errors.py [--device D] [--ops NAME ...] [--every N] [-v]

Wrong calls are PyTorch's own (OpInfo's error inputs), and its right ones (sample inputs) with one
argument after another spoilt, made after the right call was: integers far out of range, tensors of other
dtypes and shapes. Each is made on the CPU and on the device. Where eager raises without looking at values, the device must raise the same class at the
call, before anything is read. Prints one line for each that does not; the exit status says whether
those are all known (VALUES below).
"""

import argparse
import itertools
import sys
import warnings

warnings.filterwarnings("ignore")

import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.opinfo.core import SampleInput
from torch.utils import _pytree as pytree
from worker import entry_name

# Entries that eager refuses for what the tensors hold: these errors come when something is read.
VALUES = {
    "gather", "scatter", "scatter_add", "take", "index_select", "index_fill", "index_copy", "index_add",
    "multinomial", "linalg.cholesky", "linalg.inv", "cholesky", "histogram", "nn.functional.nll_loss",
    "nn.functional.multi_margin_loss", "nn.functional.embedding", "unravel_index",
    "masked_fill",  # a number that the dtype cannot hold; numbers vary from record to record
    "__getitem__", "linalg.lu_factor", "_segment_reduce", "nn.functional.embedding_bag",
    "index_put",  # by masks, which choose as many as they hold
    "native_batch_norm",  # of shapes that no module passes on
}  # fmt: skip
# The device computes what eager on the CPU does not: it takes another way there.
COMPUTED = {"nn.functional.dropout", "nn.functional.max_pool1d"}
# PyTorch's own kernels write past their memory for wrong shapes of these.
UNSAFE = {"lu_unpack"}
# Of each operator; of these that many have each argument spoilt.
SAMPLES = 4


def spoilt(leaf):
    """(what, another value) for an argument."""
    if type(leaf) is int:
        # No dimension or index, and small enough where it is a size.
        return [("77", 77), ("-78", -78)]
    if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided and not leaf.is_quantized:
        plain = leaf.detach()
        dtypes = [dtype for dtype in (torch.int32, torch.bool, torch.float64, torch.complex64) if dtype != leaf.dtype]
        shapes = [(7, *leaf.shape), (*leaf.shape[:-1], leaf.shape[-1] + 6) if leaf.dim() else (7,)]
        return [(str(dtype), plain.to(dtype)) for dtype in dtypes] + [
            (str(list(shape)), plain.new_ones(shape)) for shape in shapes
        ]
    return []


def outcome(op, sample, device):
    """The exception of the call, or None."""
    move = lambda leaf: (  # noqa: E731
        leaf.detach().clone().to(device).requires_grad_(leaf.requires_grad)
        if isinstance(leaf, torch.Tensor) and leaf.layout is torch.strided and leaf.device.type == "cpu"
        else torch.device(device) if isinstance(leaf, torch.device) and leaf.type == "cpu" else leaf
    )
    arguments = sample.input, sample.args, dict(sample.kwargs)
    if device != "cpu":
        arguments = pytree.tree_map(move, arguments)
    first, args, kwargs = arguments
    if "device" in kwargs and isinstance(kwargs["device"], str) and kwargs["device"] == "cpu":
        kwargs["device"] = device
    try:
        op(first, *args, **kwargs)
    except Exception as error:
        return error
    return None


def is_usable(device):
    """Whether the device still computes; if not, it is started anew."""
    try:
        torch.ones(1, device=device).item()
        return True
    except RuntimeError:
        import genie

        genie.shutdown()
        return False


def shares_storage(tree):
    """Whether tensors share memory, or one its own: copies to a device do not."""
    tensors = [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, torch.Tensor)]
    if any(0 in tensor.stride() and tensor.numel() > 1 for tensor in tensors if tensor.layout is torch.strided):
        return True
    storages = {tensor.untyped_storage()._cdata for tensor in tensors if tensor.layout is torch.strided}
    return len(storages) < len(tensors)


def wrong_samples(op):
    """PyTorch's own: (name, sample, None)."""
    for index, wanted in enumerate(op.error_inputs("cpu")):
        sample = wanted.sample_input
        if not shares_storage((sample.input, sample.args, sample.kwargs)):
            yield f"{entry_name(op)} {index}", sample, None


def spoilt_samples(op):
    """Right ones with one wrong argument: (name, sample, the right one)."""
    dtype = torch.float32 if torch.float32 in op.dtypes else next(iter(op.dtypes), None)
    if dtype is None:
        return
    for right in itertools.islice(op.sample_inputs("cpu", dtype), SAMPLES):
        leaves, shape = pytree.tree_flatten((right.input, right.args, right.kwargs))
        for at, leaf in enumerate(leaves):
            for what, value in spoilt(leaf) if op.name not in UNSAFE else ():
                first, args, kwargs = pytree.tree_unflatten([*leaves[:at], value, *leaves[at + 1 :]], shape)
                yield f"{entry_name(op)} {at}={what}", SampleInput(first, args=args, kwargs=kwargs), right


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="remote_accelerator")
    parser.add_argument("--ops", nargs="*", default=[])
    parser.add_argument("--every", type=int, default=1)
    parser.add_argument("-v", "--verbose", action="store_true", help="names each call: the last one ended the process")
    options = parser.parse_args()
    torch.set_num_threads(1)
    entries = [op for op in op_db if not options.ops or entry_name(op) in options.ops][:: options.every]
    tried, wrong, late = 0, [], []
    for op in entries:
        listed = wrong_samples(op) if op.error_inputs_func is not None else ()
        for name, sample, right in itertools.chain(listed, spoilt_samples(op)):
            expected = outcome(op, sample, "cpu")
            if expected is None or "memory" in str(expected):
                continue
            tried += 1
            if options.verbose:
                print(name, file=sys.stderr, flush=True)
            if right is not None:
                outcome(op, right, options.device)
            actual = outcome(op, sample, options.device)
            if not is_usable(options.device):
                wrong.append(f"{name}: the session ended: {' '.join(str(expected).split())[:120]}")
                continue
            said = " ".join(str(expected).split())[:120]
            if actual is None and op.name in COMPUTED:
                continue
            if actual is None:
                (late if op.name in VALUES else wrong).append(f"{name}: not at the call: {said}")
            elif type(actual) is not type(expected) and "holds dense tensors only" not in str(actual):
                wrong.append(
                    f"{name}: {type(actual).__name__} ({' '.join(str(actual).split())[:120]}) instead of "
                    f"{type(expected).__name__} ({said})"
                )
    for line in wrong:
        print("WRONG", line)
    for line in late:
        print("late, by values:", line)
    print(f"{tried} wrong calls of {len(entries)} entries, {len(late)} refused late for values")
    return bool(wrong) or not tried


if __name__ == "__main__":
    sys.exit(main())
