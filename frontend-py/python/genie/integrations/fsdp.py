"""`fully_shard` without a mesh: PyTorch takes one of the accelerator, which this device counts as."""

import functools
from types import ModuleType
from typing import Any

from genie._backend import NAME


def default_to_cpu(module: ModuleType) -> None:
    """`torch.distributed.fsdp._fully_shard._fsdp_init`: the CPU's mesh, as on a machine without an
    accelerator. The device's collectives go through the CPU, so its shards would gain nothing."""
    elsewhere = module.init_device_mesh

    @functools.wraps(elsewhere)
    def init_device_mesh(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return elsewhere("cpu" if device_type == NAME else device_type, *args, **kwargs)

    module.init_device_mesh = init_device_mesh
