"""`torch.compile` on the device: a graph is captured once and sent as one record a call.

Dynamo's graph is run operator by operator the first time, as without `torch.compile`, while the tape
notes what is recorded. From the second call on with inputs of the same geometry that segment of the
tape is a *script*, which the node keeps: a call is one record. So a compiled function computes what
it would compute without, in the same order, on whatever it mutates. With gradients AOTAutograd makes
a forward and a backward graph first, and each is treated so.

What a script cannot be (a value is read, the CPU takes part, an operator of others runs Python code)
runs operator by operator: right, and as fast as without `torch.compile`.
"""

import functools
import logging
import struct
import types
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import fx

from genie import _native, env
from genie.marks import MODULE_ENTER, MODULE_EXIT

NAME = "remote_accelerator"
# Values that are no tensors, of scripts of one graph: as many as the shim keeps scripts.
VALUES_MAX = 256
# Higher-order operators whose bodies are graphs, and that do nothing else.
_HIGHER_ORDER = frozenset(
    "associative_scan autograd_function_apply checkpoint cond dynamo_bypassing_wrapper flex_attention "
    "flex_attention_backward invoke_subgraph map_impl out_dtype scan tag_activation_checkpoint while_loop "
    "wrap wrap_activation_checkpoint wrap_with_autocast wrap_with_set_grad_enabled".split()
)
_NAMESPACES = ("aten", "prims", "prim", "torchvision")
_MODULES = ("torch", "_operator", "operator", "math", "builtins")
_RANDOM = ("rand", "dropout", "bernoulli", "multinomial", "normal", "poisson", "exponential", "geometric")

log = logging.getLogger("genie")
_warned_of_options = False


def is_on_device(module: fx.GraphModule, inputs: Sequence[Any]) -> bool:
    """Whether a graph computes on the device."""
    if any(isinstance(each, torch.Tensor) and each.device.type == NAME for each in inputs):
        return True
    return any(tensor.device.type == NAME for node in module.graph.nodes for tensor in _tensors(_value(node)))


def warn_of_options(options: Any) -> None:
    """Says once that inductor's options change nothing here."""
    global _warned_of_options
    if options and not _warned_of_options:
        _warned_of_options = True
        warnings.warn(
            f"torch.compile's mode and options are inductor's and change nothing on {NAME}: graphs are sent "
            "whole and run by the node's own kernels",
            stacklevel=2,
        )


def backend(module: fx.GraphModule, inputs: Sequence[Any], **options: Any) -> Callable[..., Any]:
    """The compiler that Dynamo calls; also by name, as `torch.compile(backend="genie")`."""
    warn_of_options(options)
    if not is_on_device(module, inputs):
        return module.forward
    attributes = [*module.parameters(), *module.buffers()]
    if torch.is_grad_enabled() and any(
        isinstance(each, torch.Tensor) and each.requires_grad for each in (*inputs, *attributes)
    ):
        return _with_gradients(module, inputs)
    return Graph(module, inputs)


def _with_gradients(module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    from torch._dynamo.backends.common import aot_autograd
    from torch._dynamo.exc import RestartAnalysis
    from torch._functorch.partitioners import default_partition

    # No decompositions and nothing computed twice: the operators, and so the digits, are eager's.
    compiler = aot_autograd(
        fw_compiler=_flat,
        bw_compiler=_flat,
        inference_compiler=_flat,
        partition_fn=default_partition,
        decompositions={},
        keep_inference_input_mutations=True,
    )
    try:
        return compiler(module, inputs)
    except RestartAnalysis:
        # Dynamo wants to trace again, with numbers as tensors or without.
        raise
    except Exception as error:
        log.warning("remote_accelerator: a graph runs operator by operator, AOTAutograd cannot take it: %r", error)
        log.debug("AOTAutograd's failure", exc_info=True)
        return module.forward


def _flat(module: fx.GraphModule, inputs: Sequence[Any]) -> Callable[[list[Any]], Any]:
    graph = Graph(module, inputs)

    def call(args: list[Any]) -> Any:
        return graph(*args)

    call._boxed_call = True  # type: ignore[attr-defined]
    return call


class Graph:
    """A graph without gradients, run by scripts where it can be."""

    def __init__(self, module: fx.GraphModule, inputs: Sequence[Any]) -> None:
        self._module = module
        self._attributes = [*module.parameters(), *module.buffers()]
        # Numbers that Dynamo hands over as tensors of the CPU: part of the key by their bits.
        self._numbers = _numbers(module, inputs)
        self._why_plain = _why_plain(module, [each for i, each in enumerate(inputs) if i not in self._numbers])
        if self._why_plain:
            log.debug("a compiled graph runs operator by operator: %s", self._why_plain)
        tensors = [
            index for index, each in enumerate(inputs) if isinstance(each, torch.Tensor) and index not in self._numbers
        ]
        # Where the arguments are; none for all of them.
        self._tensors = None if len(tensors) == len(inputs) else tensors
        self._sizes = [index for index in range(len(inputs)) if index not in tensors and index not in self._numbers]
        # By script, where not all results are tensors: the others, in their places.
        self._mixed = not all(isinstance(value, torch.Tensor) for value in _results(module))
        self._values: dict[int, list[Any]] = {}
        shim = torch.ops.genie
        self._run = shim.graph_run.default._op
        self._number = shim.graph_new()
        weakref.finalize(self, shim.graph_drop, self._number).atexit = False
        _mark_modules(module)

    def __call__(self, *args: Any) -> Any:
        if self._why_plain or torch._C._len_torch_dispatch_stack():
            return self._module(*args)
        tensors = args if self._tensors is None else [args[index] for index in self._tensors]
        if self._attributes:
            tensors = [*tensors, *self._attributes]
        sizes = [args[index] for index in self._sizes]
        for index in self._numbers:
            sizes += struct.unpack("q", struct.pack("d", args[index]))
        results, script = self._run(self._number, tensors, sizes)
        if script > 0 and not self._mixed:
            return results
        if script > 0 and script in self._values:
            tensors = iter(results)
            return [next(tensors) if each is torch.Tensor else each for each in self._values[script]]
        if script == 0:
            return self._note(args, tensors, sizes)
        return self._module(*args)

    def _note(self, args: Sequence[Any], tensors: Sequence[torch.Tensor], sizes: list[int]) -> Any:
        shim = torch.ops.genie
        if not shim.graph_note(self._number, tensors, sizes):
            return self._module(*args)
        try:
            results = self._module(*args)
        except BaseException:
            shim.graph_abandon()
            raise
        flat = results if isinstance(results, tuple | list) else (results,)
        kept = [each for each in flat if isinstance(each, torch.Tensor)]
        script, why = shim.graph_keep(self._number, tensors, sizes, kept)
        if why:
            log.debug("a run of a compiled graph is not kept as a script: %s", why)
        elif self._mixed:
            if len(self._values) >= VALUES_MAX:
                del self._values[next(iter(self._values))]
            self._values[script] = [torch.Tensor if isinstance(each, torch.Tensor) else each for each in flat]
        return results


def _numbers(module: fx.GraphModule, inputs: Sequence[Any]) -> list[int]:
    """The inputs that are the program's numbers, made tensors for this graph alone."""
    placeholders = [node for node in module.graph.nodes if node.op == "placeholder"]
    wrapped = [getattr(node.meta.get("grapharg"), "pass_arg_as_tensor", False) for node in placeholders]
    return [
        index
        for index, (each, is_number) in enumerate(zip(inputs, wrapped, strict=False))
        if is_number and isinstance(each, torch.Tensor) and each.dtype == torch.float64 and each.dim() == 0
    ]


def _why_plain(module: fx.GraphModule, inputs: Sequence[Any]) -> str:
    """Why the graph cannot be a script, as far as can be seen before it runs."""
    if not env.flag(env.SCRIPTS, True):
        return f"{env.SCRIPTS} is off"
    for each in inputs:
        if isinstance(each, torch.Tensor):
            if each.device.type != NAME:
                return f"an input is on {each.device}"
        elif not isinstance(each, int | torch.SymInt):
            return f"an input is a {type(each).__name__}"
    return _why_not_repeated(module)


def _why_not_repeated(module: torch.nn.Module) -> str:
    for each in (*module.parameters(), *module.buffers()):
        if each.device.type != NAME:
            return f"an attribute of the graph is on {each.device}"
    for inner in module.modules():
        if not isinstance(inner, fx.GraphModule):
            continue
        for node in inner.graph.nodes:
            if node.op == "call_function" and (why := _why_not_called(node.target)):
                return why
            if node.op in ("call_function", "call_method", "call_module"):
                name = str(node.target).lower()
                on_cpu = any(tensor.device.type != NAME for tensor in _tensors(_value(node)))
                if on_cpu and any(word in name for word in _RANDOM):
                    return f"{node.target} draws on the CPU"
    return ""


def _why_not_called(target: Any) -> str:
    """A script repeats operators, not the Python or C++ code of others that calls them."""
    if isinstance(target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        name = str(target).split(".")[0]
        return "" if name in _NAMESPACES else f"{target} is an operator of others"
    if isinstance(target, torch._ops.HigherOrderOperator):
        return "" if target.name() in _HIGHER_ORDER else f"{target.name()} may do more than run its graphs"
    home = getattr(target, "__module__", None)
    if home is None and isinstance(target, types.BuiltinFunctionType | types.MethodDescriptorType | type):
        return ""
    root = str(home).split(".")[0]
    return "" if root in _MODULES or target in (enter, leave) else f"{target} is a function of {home}"


def _value(node: fx.Node) -> Any:
    return node.meta.get("example_value", node.meta.get("val"))


def _results(module: fx.GraphModule) -> list[Any]:
    (results,) = next(node for node in module.graph.nodes if node.op == "output").args
    flat = results if isinstance(results, tuple | list) else [results]
    return [_value(each) if isinstance(each, fx.Node) else each for each in flat]


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from _tensors(each)


# Modules: a graph has lost their calls, its nodes remember them.


def enter(text: str) -> None:
    _native.mark(MODULE_ENTER, text)


def leave(text: str) -> None:
    _native.mark(MODULE_EXIT, text)


def _mark_modules(module: fx.GraphModule) -> None:
    """Marks where modules begin and end, as their calls would."""
    entered: list[str] = []

    def become(stack: list[str], before: fx.Node) -> None:
        common = 0
        while common < min(len(entered), len(stack)) and entered[common] == stack[common]:
            common += 1
        with graph.inserting_before(before):
            while len(entered) > common:
                graph.call_function(leave, (entered.pop(),))
            for text in stack[common:]:
                graph.call_function(enter, (text,))
                entered.append(text)

    graph = module.graph
    for node in list(graph.nodes):
        if node.op == "output":
            become([], node)
        elif node.op not in ("placeholder", "get_attr"):
            become(_modules_of(node), node)
    module.recompile()


def _modules_of(node: fx.Node) -> list[str]:
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack") or {}
    return [_text(*each) for each in stack.values() if isinstance(each, tuple) and len(each) == 2]


@functools.lru_cache(1 << 12)
def _text(path: str, class_: Any) -> str:
    """`path\\0class`, as `genie.marks` writes it."""
    name = class_.rpartition(".")[2] if isinstance(class_, str) else class_.__qualname__
    for mark in ("_modules['", "']"):
        path = path.replace(mark, "." if mark == "']" else "")
    parts = [part for part in path.replace("L['", ".").split(".") if part]
    return f"{'.'.join(parts[1:])}\0{name}"[:250]
