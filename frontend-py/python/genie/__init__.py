"""Genie: PyTorch's device `remote_accelerator`.

Ordinary PyTorch programs run on it by their device string alone; `import torch` finds it by itself
(torch >= 2.5). What this package offers besides: `explain()`, `stats()`,
`init()`, `shutdown()`, `phase()`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from genie._trace import explain, export_graph, reset_trace


def _autoload() -> None:
    """Registers the device. torch calls it while it is being imported; starts no process."""
    from genie import _backend

    _backend.register()


# Below the function: `import torch` may call it.
import torch  # noqa: E402, F401

_autoload()

from genie._session import init, is_available, shutdown  # noqa: E402
from genie._stats import stats  # noqa: E402
from genie.errors import FallbackWarning, NodeLost, StartFailed  # noqa: E402
from genie.marks import annotate, phase  # noqa: E402


def __getattr__(name: str) -> Any:
    # Every `import torch` waits for this module, and few programs ask what ran.
    if name in ("explain", "export_graph", "reset_trace"):
        from genie import _trace

        return getattr(_trace, name)
    raise AttributeError(f"module 'genie' has no attribute {name!r}")


__version__ = "0.1.0"
__all__ = [
    "FallbackWarning",
    "NodeLost",
    "StartFailed",
    "annotate",
    "explain",
    "export_graph",
    "init",
    "is_available",
    "phase",
    "reset_trace",
    "shutdown",
    "stats",
]
