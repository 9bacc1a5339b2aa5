"""Other people's libraries that list devices by name learn the name of this one.

An integration is imported when its library is, never before, and by an import hook that lets every
other import pass after one look into a table. Each only adds a branch for this device: whoever does
not name the device gets what the library does without Genie. `GENIE_INTEGRATIONS=0` leaves them out.
"""

import importlib
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

# Module of a library -> module here and its function that is given the library's, once it is imported.
_WANTED = {
    "torch._dynamo": ("dynamo", "use_shape_functions"),
    "torch.nn.attention.flex_attention": ("flex_attention", "add_device"),
    "torch.distributed.fsdp._fully_shard._fsdp_init": ("fsdp", "default_to_cpu"),
    "safetensors": ("safetensors", "add_device"),
    "accelerate.utils.modeling": ("accelerate", "add_memory_and_scaler"),
    "accelerate.state": ("accelerate", "add_default_device"),
    "accelerate.accelerator": ("accelerate", "add_half_precision"),
    "transformers.utils.import_utils": ("transformers", "add_half_precision"),
    "transformers.pipelines.base": ("transformers", "keep_pipelines_device"),
    "transformers.cache_utils": ("transformers", "add_offloaded_cache"),
    "diffusers.pipelines.pipeline_utils": ("diffusers", "add_device_map"),
    # Lightning comes under two names each.
    "lightning.pytorch.accelerators": ("lightning", "register"),
    "pytorch_lightning.accelerators": ("lightning", "register"),
    "lightning.fabric.accelerators": ("lightning", "register"),
    "lightning_fabric.accelerators": ("lightning", "register"),
    "lightning.pytorch.trainer.connectors.accelerator_connector": ("lightning", "add_to_trainer"),
    "pytorch_lightning.trainer.connectors.accelerator_connector": ("lightning", "add_to_trainer"),
    "lightning.fabric.connector": ("lightning", "add_to_fabric"),
    "lightning_fabric.connector": ("lightning", "add_to_fabric"),
}


def install() -> None:
    """Integrates what is imported already, and the rest when it will be."""
    finder = _Finder(dict(_WANTED))
    for name in [name for name in finder.wanted if name in sys.modules]:
        finder.integrate(sys.modules[name])
    sys.meta_path.insert(0, finder)


class _Finder(MetaPathFinder):
    """Finds what the other finders find, and is told when it has been executed."""

    def __init__(self, wanted: dict[str, tuple[str, str]]) -> None:
        self.wanted = wanted

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.wanted:
            return None
        for finder in sys.meta_path:
            if finder is self or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(fullname, path, target)
            if spec is not None:
                if spec.loader is not None and hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader, self)
                return spec
        return None

    def integrate(self, module: ModuleType) -> None:
        """Once a module. What fails here is no failure of the library's import."""
        where = self.wanted.pop(module.__name__, None)
        if where is None:
            return
        name, function = where
        try:
            getattr(importlib.import_module(f"{__name__}.{name}"), function)(module)
        except Exception as error:
            warnings.warn(
                f"{module.__name__} does not know remote_accelerator, because Genie's integration does not fit "
                f"this version ({type(error).__name__}: {error}); GENIE_INTEGRATIONS=0 leaves it out",
                RuntimeWarning,
                stacklevel=2,
            )


class _Loader(Loader):
    """The module's own loader for one execution; afterwards the module does not know of this one."""

    def __init__(self, own: Any, finder: _Finder) -> None:
        self._own, self._finder = own, finder

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._own.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self._own
        module.__loader__ = self._own
        self._own.exec_module(module)
        # A module may have put another in its place, as those that import lazily do.
        self._finder.integrate(sys.modules.get(module.__name__, module))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)


def replace(module: ModuleType, name: str, value: Any) -> None:
    """Puts `value` in the place of `module.name`, also where it was imported by name before."""
    old = getattr(module, name)
    for each in list(sys.modules.values()):
        if isinstance(each, ModuleType) and each.__dict__.get(name) is old:
            setattr(each, name, value)
