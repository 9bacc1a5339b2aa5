"""Lightning: `Trainer(accelerator="remote_accelerator")`, `Fabric(accelerator="remote_accelerator")`.

Its registry takes the name. Beside it two choices are made by a list of names: the device of a
strategy with one device, and that of mixed precision.
"""

import functools
from types import ModuleType
from typing import Any

import torch

from genie.integrations._asked import NAME


def register(accelerators: ModuleType) -> None:
    """Puts the accelerator into the registry of Lightning's Trainer or of Fabric."""
    registry = getattr(accelerators, "AcceleratorRegistry", None) or accelerators.ACCELERATOR_REGISTRY
    if NAME not in registry:
        registry.register(NAME, _accelerator(accelerators.Accelerator), description=f"Genie's {NAME}")


def add_to_trainer(connector: ModuleType) -> None:
    """One device's strategy and mixed precision in Lightning's Trainer."""
    _add_choices(connector, connector._AcceleratorConnector, "_precision_plugin_flag", "_precision_flag")


def add_to_fabric(connector: ModuleType) -> None:
    """The same in Fabric."""
    _add_choices(connector, connector._Connector, "_precision_instance", "_precision_input")


def _add_choices(connector: ModuleType, kind: Any, plugin: str, precision: str) -> None:
    choose_strategy, init_precision = kind._choose_strategy, kind._check_and_init_precision

    @functools.wraps(choose_strategy)
    def _choose_strategy(self: Any) -> Any:
        strategy = choose_strategy(self)
        if _is_chosen(self) and isinstance(strategy, connector.SingleDeviceStrategy):
            return connector.SingleDeviceStrategy(device=torch.device(NAME, 0))
        return strategy

    @functools.wraps(init_precision)
    def _check_and_init_precision(self: Any) -> Any:
        wanted = getattr(self, precision)
        if _is_chosen(self) and wanted in ("16-mixed", "bf16-mixed") and not getattr(self, plugin, None):
            return connector.MixedPrecision(wanted, NAME)
        return init_precision(self)

    kind._choose_strategy, kind._check_and_init_precision = _choose_strategy, _check_and_init_precision


def _is_chosen(connector: Any) -> bool:
    flag = connector._accelerator_flag
    return flag == NAME if isinstance(flag, str) else getattr(type(flag), "name", lambda: None)() == NAME


def _accelerator(base: type) -> type:
    class RemoteAccelerator(base):  # type: ignore[misc, valid-type]
        """The device as an accelerator of Lightning's."""

        def setup_device(self, device: torch.device) -> None:
            if device.type != NAME:
                raise ValueError(f"the device should be {NAME}, not {device}")

        def teardown(self) -> None:
            pass

        def get_device_stats(self, device: Any) -> dict[str, Any]:
            return dict(torch.get_device_module(NAME).memory_stats(device))

        @staticmethod
        def parse_devices(devices: Any) -> list[int]:
            wanted = [0] if devices in (1, -1, "1", "-1", "auto", "0,") else devices
            if list(wanted) != [0]:
                raise ValueError(f"{NAME} is one device: devices=1, not {devices!r}")
            return [0]

        @staticmethod
        def get_parallel_devices(devices: list[int]) -> list[torch.device]:
            return [torch.device(NAME, index) for index in devices]

        @staticmethod
        def auto_device_count() -> int:
            return 1

        @staticmethod
        def is_available() -> bool:
            return bool(torch.get_device_module(NAME).is_available())

        @staticmethod
        def name() -> str:
            return NAME

    return RemoteAccelerator
