"""`torch.remote_accelerator`: what PyTorch expects of a device's module.

One device, one stream: operators run in the order of the program.
"""

import os
from collections import namedtuple
from typing import Any

import torch

from genie import _native, _session
from genie.streams import NAME, Stream
from genie.streams import Event as Event

DEFAULT_SEED = 67280421310721  # that of every generator of PyTorch

_DeviceLike = int | str | torch.device | None
# The last is 1 to this side, whatever the device: `nn.DataParallel` compares devices by it.
DeviceProperties = namedtuple("DeviceProperties", "name kind total_memory multi_processor_count", defaults=[1])


# Devices.


def is_available() -> bool:
    """Whether the device can be used in this process. Starts nothing."""
    return _session.is_available()


def is_initialized() -> bool:
    """Whether a session runs."""
    return _native.is_live()


def init() -> None:
    """Starts the session, unless it runs."""
    _session.start_at_first_use()


def _lazy_init() -> None:
    """PyTorch calls it for whoever names the device or asks for the accelerator's stream or index,
    as `torch.compile` and `nn.DataParallel` do for programs on the CPU. Nothing to do: what needs
    the session starts it."""


def device_count() -> int:
    return 1


def current_device() -> int:
    return 0


def set_device(device: _DeviceLike) -> None:
    _index(device)


def get_device_name(device: _DeviceLike = None) -> str:
    """The name of the node's device, as its driver tells it. Starts the session."""
    return get_device_properties(device).name


def get_device_properties(device: _DeviceLike = None) -> DeviceProperties:
    """Name, kind (`cpu` or `cuda`) and bytes of memory. Starts the session."""
    index = _index(device)
    init()
    welcome = _native.welcome()
    devices = welcome["devices"] if welcome else []
    if index >= len(devices):
        raise RuntimeError("the host told of no device; `genie-host doctor` says what is wrong")
    kind, name, memory_bytes = devices[index]
    return DeviceProperties(name, kind, memory_bytes)


def _index(device: _DeviceLike) -> int:
    """The index of a device that exists."""
    if isinstance(device, str):
        device = torch.device(device)
    if isinstance(device, torch.device):
        if device.type != NAME:
            raise ValueError(f"{device} is not a device of type {NAME}")
        device = device.index
    index = 0 if device is None else int(device)
    if index not in (-1, 0):
        raise RuntimeError(f"there is no device {NAME}:{index}; device_count() is {device_count()}")
    return 0


class device:
    """Context manager that selects a device. There is one, so it only checks the name."""

    def __init__(self, device: _DeviceLike) -> None:
        self.idx = _index(device)
        self.prev_idx = 0

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> bool:
        return False


class device_of(device):
    """Context manager that selects the device of a tensor; tensors elsewhere change nothing."""

    def __init__(self, tensor: torch.Tensor) -> None:
        super().__init__(tensor.device if tensor.device.type == NAME else None)


def synchronize(device: _DeviceLike = None) -> None:
    """Waits until the node has done everything asked of it. Raises genie.NodeLost if it is gone."""
    _index(device)
    _native.synchronize()


# Random numbers.


def manual_seed(seed: int) -> None:
    """Seeds the generator; before a session runs, the seed is kept for it."""
    _native.seed(int(seed) & 0xFFFF_FFFF_FFFF_FFFF)


manual_seed_all = manual_seed


def seed() -> int:
    """Seeds the generator at random; returns the seed."""
    value = int.from_bytes(os.urandom(8), "little") >> 1
    manual_seed(value)
    return value


seed_all = seed


def initial_seed() -> int:
    """The seed last given."""
    value = _native.last_seed()
    return DEFAULT_SEED if value is None else value


def get_rng_state(device: _DeviceLike = NAME) -> torch.Tensor:
    """The generator's state as bytes on the CPU. Starts the session."""
    _index(device)
    return torch.frombuffer(bytearray(_native.generator_state()), dtype=torch.uint8)


def set_rng_state(new_state: torch.Tensor, device: _DeviceLike = NAME) -> None:
    _index(device)
    if new_state.dtype != torch.uint8:
        raise TypeError(f"a generator's state is a tensor of torch.uint8, not {new_state.dtype}")
    state = new_state.cpu().contiguous()
    torch.Generator(NAME).set_state(state)  # refuses what is no state
    _native.set_generator_state(bytes(state.tolist()))


def get_rng_state_all() -> list[torch.Tensor]:
    return [get_rng_state()]


def set_rng_state_all(new_states: list[torch.Tensor]) -> None:
    for state in new_states:
        set_rng_state(state)


# Memory. Bytes of the storages that this program holds, as it sees them; the node frees them
# when it comes to that place in the tape.


def memory_stats(device: _DeviceLike = None) -> dict[str, int]:
    """By the names of `torch.accelerator.memory_stats`."""
    _index(device)
    memory = _native.memory()
    number = {
        "current": memory["live_storages"],
        "peak": memory["peak_storages"],
        "allocated": memory["allocations"],
        "freed": memory["frees"],
    }
    size = {
        "current": memory["live_bytes"],
        "peak": memory["peak_bytes"],
        "allocated": memory["allocated_bytes"],
        "freed": memory["freed_bytes"],
    }
    sums = dict.fromkeys(("allocation", "active"), number)
    sums.update(dict.fromkeys(("allocated_bytes", "reserved_bytes", "active_bytes", "requested_bytes"), size))
    return {f"{name}.all.{metric}": value for name, metrics in sums.items() for metric, value in metrics.items()}


def memory_allocated(device: _DeviceLike = None) -> int:
    return memory_stats(device)["allocated_bytes.all.current"]


def max_memory_allocated(device: _DeviceLike = None) -> int:
    return memory_stats(device)["allocated_bytes.all.peak"]


def memory_reserved(device: _DeviceLike = None) -> int:
    """As memory_allocated: nothing is held in reserve for this program alone."""
    return memory_allocated(device)


def max_memory_reserved(device: _DeviceLike = None) -> int:
    return max_memory_allocated(device)


def reset_peak_memory_stats(device: _DeviceLike = None) -> None:
    _index(device)
    _native.reset_peak_memory()


def reset_accumulated_memory_stats(device: _DeviceLike = None) -> None:
    """Counts what is allocated and freed from here on."""
    _index(device)
    _native.reset_accumulated_memory()


def empty_cache() -> None:
    """Sends pending frees to the node. There is no cache of free memory on this side."""
    _native.flush()


def mem_get_info(device: _DeviceLike = None) -> tuple[int, int]:
    """(free, total) bytes. Free is what this program leaves; others may use the device too."""
    total = get_device_properties(device).total_memory
    return max(total - memory_allocated(device), 0), total


# Autocast.


def get_amp_supported_dtype() -> list[torch.dtype]:
    return [torch.bfloat16, torch.float16]


def is_bf16_supported(including_emulation: bool = True) -> bool:
    return True


# Streams. There is one and it is in order, so to wait for another stream is nothing to do.


def current_stream(device: _DeviceLike = None) -> Stream:
    return Stream(_index(device))


default_stream = current_stream


def set_stream(stream: torch.Stream) -> None:
    """Nothing to do: there is one stream."""


class stream:
    """Context manager that selects a stream. There is one."""

    def __init__(self, stream: torch.Stream | None) -> None:
        self.stream = stream

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> bool:
        return False


StreamContext = stream


# What PyTorch asks for by convention.


def _is_in_bad_fork() -> bool:
    return _native.is_forked()


def __getattr__(name: str) -> Any:
    # Checkpointing reads it as an attribute.
    if name == "_initialized":
        return is_initialized()
    raise AttributeError(f"module 'torch.{NAME}' has no attribute {name!r}")
