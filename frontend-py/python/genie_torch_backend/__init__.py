"""Where `import torch` (from 2.5 on) finds Genie.

It has a name of its own: a program's own `genie.py` hides the package, which is no reason for
`import torch` to run that file, or to fail. Such a program has no device `remote_accelerator`.
"""

import importlib.util
import sys
from pathlib import Path


def autoload() -> None:
    """Registers the device, if `genie` is the package beside this one."""
    ours = Path(__file__).resolve().parent.parent / "genie" / "__init__.py"
    module = sys.modules.get("genie")
    if module is not None:
        found = getattr(module, "__file__", None)
    else:
        spec = importlib.util.find_spec("genie")
        found = spec.origin if spec is not None else None
    if found is None or Path(found).resolve() != ours:
        return
    import genie

    genie._autoload()
