"""Flex attention has a list of devices; what it is made of runs anywhere."""

import functools
from types import ModuleType

import torch


def add_device(flex_attention: ModuleType) -> None:
    """Lets tensors of the device pass its check."""
    checked = getattr(flex_attention, "_validate_device", None)
    if checked is None:
        return

    @functools.wraps(checked)
    def validate(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        if query.device.type != "remote_accelerator":
            checked(query, key, value)

    flex_attention._validate_device = validate
