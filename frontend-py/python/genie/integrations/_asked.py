"""Whether the program asked for this device where a library chooses one by itself."""

import os
from typing import Any

import torch

NAME = "remote_accelerator"


def is_asked_for() -> bool:
    """By `ACCELERATE_TORCH_DEVICE`, accelerate's own variable, or by torch.set_default_device.

    That Genie is installed is no wish to use it: a library that takes the CPU or CUDA goes on doing so.
    """
    return names_device(os.environ.get("ACCELERATE_TORCH_DEVICE", "")) or is_default_device()


def is_default_device() -> bool:
    """Whether torch.set_default_device, or `with torch.device(...)`, chose this device."""
    # Before 2.3 it cannot be asked.
    return hasattr(torch, "get_default_device") and torch.get_default_device().type == NAME


def names_device(device: Any) -> bool:
    """Whether a device given by string or as torch.device is this one; an index never is."""
    if isinstance(device, torch.device):
        return device.type == NAME
    return isinstance(device, str) and device.partition(":")[0] == NAME
