"""PyTorch's own `torch._dynamo`, which its shape functions in Python import, some seconds long."""

from types import ModuleType

from genie import _native


def use_shape_functions(module: ModuleType) -> None:
    """Shapes come from those functions once the program has paid for that import; before, the node
    tells them, until an operator was asked for often."""
    _native.metas_imported()
