"""Runs entries of PyTorch's OpInfo database on a device and on CPU and compares them.

Reads names of entries on stdin, one a line; writes JSON lines on stdout: `{"at": ...}` before each
sample (so that the driver can name what a crash was doing) and `{"result": ...}` after each entry.
"""

import json
import os
import sys
import warnings

warnings.filterwarnings("ignore")

import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils import _pytree as pytree

SEED = 1234
RTOL = ATOL = 1e-5
REASON_CHARS_MAX = 300
# Their values are uninitialised memory: only shape and dtype are promised.
UNINITIALISED = {
    "empty",
    "empty_like",
    "empty_permuted",
    "empty_strided",
    "new_empty",
    "new_empty_strided",
    "resize_",
    "resize_as_",
}


def entry_name(op):
    return op.name + ("." + op.variant_test_name if op.variant_test_name else "")


def entries():
    """The database by name: an operator and its variant."""
    return {entry_name(op): op for op in op_db}


def say(**message):
    print(json.dumps(message), file=sys.__stdout__, flush=True)


class Case:
    """One sample of an entry, made anew for each device so that neither sees the other's writes."""

    def __init__(self, op, sample, device):
        self.op, self.device = op, torch.device(device)
        self.input = self.move(sample.input)
        self.args = self.move(sample.args)
        self.kwargs = self.move(sample.kwargs)
        if "device" in self.kwargs:
            self.kwargs["device"] = self.device
        self.process = sample.output_process_fn_grad

    def move(self, tree):
        return pytree.tree_map(self.move_leaf, tree)

    def move_leaf(self, leaf):
        if isinstance(leaf, torch.Tensor):
            moved = leaf.detach().clone().to(self.device) if leaf.layout is torch.strided else leaf
            return moved.requires_grad_(leaf.requires_grad)
        if isinstance(leaf, torch.device):
            return self.device
        return leaf

    def run(self):
        torch.manual_seed(SEED)
        return self.op(self.input, *self.args, **self.kwargs)

    def run_with_gradients(self):
        """(outputs, gradients of every input that asks for one); None without any."""
        output = self.run()
        processed = self.process(output) if self.process else output
        outputs = [
            leaf
            for leaf in pytree.tree_leaves(processed)
            if isinstance(leaf, torch.Tensor) and leaf.requires_grad
        ]
        inputs = [
            leaf
            for leaf in pytree.tree_leaves((self.input, self.args, self.kwargs))
            if isinstance(leaf, torch.Tensor) and leaf.requires_grad
        ]
        if not outputs or not inputs:
            return output, None
        generator = torch.Generator().manual_seed(SEED)
        seeds = [
            torch.randn(out.shape, dtype=out.dtype, generator=generator).to(out.device) for out in outputs
        ]
        return output, torch.autograd.grad(outputs, inputs, seeds, allow_unused=True)


def compare(expected, actual, uninitialised):
    expected, actual = pytree.tree_leaves(expected), pytree.tree_leaves(actual)
    if len(expected) != len(actual):
        raise AssertionError(f"{len(actual)} outputs instead of {len(expected)}")
    for want, got in zip(expected, actual):
        if not isinstance(want, torch.Tensor):
            if want != got and not (want != want and got != got):
                if not isinstance(want, torch.device):
                    raise AssertionError(f"{got!r} instead of {want!r}")
            continue
        if uninitialised:
            if (want.shape, want.dtype) != (got.shape, got.dtype):
                raise AssertionError(f"{got.shape} {got.dtype} instead of {want.shape} {want.dtype}")
            continue
        torch.testing.assert_close(got.cpu(), want, rtol=RTOL, atol=ATOL, equal_nan=True)


def reason_of(error):
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:REASON_CHARS_MAX]


def check(op, device, gradients):
    """{"status": pass | fail | skip, "samples": compared, "reason": of the first failure}."""
    if torch.float32 not in op.dtypes or (gradients and not op.supports_autograd):
        return {"status": "skip", "samples": 0, "reason": "no float32" if not gradients else "no autograd"}
    run = Case.run_with_gradients if gradients else Case.run
    uninitialised = op.name in UNINITIALISED
    compared, refused = 0, ""
    torch.manual_seed(SEED)
    for index, sample in enumerate(op.sample_inputs("cpu", torch.float32, requires_grad=gradients)):
        say(at=f"{'gradients' if gradients else 'forward'}, sample {index}")
        try:
            expected = run(Case(op, sample, "cpu"))
        except Exception as error:  # eager refuses it: nothing to compare with
            refused = reason_of(error)
            continue
        if gradients and expected[1] is None:
            continue
        try:
            compare(expected, run(Case(op, sample, device)), uninitialised)
        except Exception as error:
            return {"status": "fail", "samples": compared, "reason": f"sample {index}: {reason_of(error)}"}
        compared += 1
    if compared == 0:
        return {"status": "skip", "samples": 0, "reason": refused or "no samples"}
    return {"status": "pass", "samples": compared, "reason": ""}


def main():
    device, gradients = sys.argv[1], sys.argv[2] == "grad"
    torch.set_num_threads(1)
    fallbacks = dict
    if device.startswith("remote_accelerator"):
        import genie

        def fallbacks():
            return {op: each["count"] for op, each in genie.stats()["fallbacks_by_op"].items()}

    known = entries()
    for line in sys.stdin:
        name = line.strip()
        before = fallbacks()
        result = {"op": name, "forward": check(known[name], device, False)}
        if gradients:
            result["grad"] = check(known[name], device, True)
        result["fell_back"] = sorted(op for op, n in fallbacks().items() if n > before.get(op, 0))
        say(result=result)


if __name__ == "__main__":
    main()
