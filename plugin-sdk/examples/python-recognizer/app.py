"""A recognizer in Python: finds attention as a product, a softmax and a product.

The classes that the host calls are named after the interfaces of the world; the graph crosses
as columns (see plugin-sdk/wit/v0.3/plugin.wit). Walk the columns with loops over integers and
make few objects: the interpreter is the slow part.
"""

import json

from wit_world import exports
from wit_world.imports.types import Annotations, Graph, Info
from componentize_py_types import Err

PRODUCTS = {"mm", "bmm", "matmul", "baddbmm"}
SOFTMAXES = {"_softmax", "softmax", "_safe_softmax"}
# What may stand between a product and its softmax: scaling, a mask, casts.
BETWEEN = {"mul", "div", "add", "masked_fill", "where", "_to_copy", "clone"}
BETWEEN_MAX = 6

config = {"confidence": 0.5}


def symbols(graph: Graph) -> list[str]:
    """The strings of the table. The ends count bytes, so the blob is cut as bytes."""
    blob = graph.blob.encode()
    starts = [0, *graph.symbol_ends[:-1]]
    return [blob[start:end].decode() for start, end in zip(starts, graph.symbol_ends)]


def plain_name(op: str) -> str:
    """`add` for `aten::add_.Tensor`."""
    name = op.rsplit("::", 1)[-1].split(".", 1)[0]
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def inputs(graph: Graph, node: int) -> list[int]:
    start = graph.input_ends[node - 1] if node else 0
    return graph.input_value[start : graph.input_ends[node]]


def product_behind(graph: Graph, names: list[str], node: int) -> list[int]:
    """The nodes from a softmax up to the product that feeds it; empty where there is none."""
    path = []
    for _ in range(BETWEEN_MAX):
        producers = [graph.value_producer[value] for value in inputs(graph, node)]
        producers = [p for p in producers if names[p] in PRODUCTS or names[p] in BETWEEN]
        if not producers:
            return []
        node = max(producers, key=lambda p: (names[p] in PRODUCTS, p))
        path.append(node)
        if names[node] in PRODUCTS:
            return path
    return []


class Metadata(exports.Metadata):
    def describe(self) -> Info:
        return Info("python-example", "0.1.0", "Attention, in Python", ["attention"])

    def configure(self, json_text: str) -> None:
        try:
            config.update(json.loads(json_text or "{}"))
        except ValueError as error:
            raise Err(f"[config] is no JSON: {error}")


class Recognizer(exports.Recognizer):
    def recognize(self, graph: Graph) -> Annotations:
        table = [plain_name(text) for text in symbols(graph)]
        names = [table[op] for op in graph.op]
        found: list[list[int]] = []
        for node, name in enumerate(names):
            if name not in PRODUCTS:
                continue
            for value in inputs(graph, node):
                softmax = graph.value_producer[value]
                if names[softmax] in SOFTMAXES:
                    path = product_behind(graph, names, softmax)
                    if path:
                        found.append(sorted([*path, softmax, node]))
        # Symbol 0 is the empty string, symbol 1 the pattern.
        ends, nodes = [], []
        for match in found:
            nodes += match
            ends.append(len(nodes))
        count = len(found)
        return Annotations(
            blob="attention",
            symbol_ends=[0, len("attention")],
            workload=[],
            workload_confidence=[],
            pattern=[1] * count,
            phase=[0] * count,
            modality=[0] * count,
            confidence=[float(config["confidence"])] * count,
            node_ends=ends,
            nodes=nodes,
            storage=[],
            residency=[],
            residency_confidence=[],
            attribute_key=[],
            attribute_value=[],
        )
