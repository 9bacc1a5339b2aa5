"""Arguments for an operator, after its schema: mostly of the right kind, often with wrong values.

What a call is depends on the seed, the operator and the number of its call alone, so each can be
made again.
"""

import math
import random
import struct

import torch
import wire

# By c10::ScalarType: how Python packs one, how many numbers that are, and the bytes of one element.
INTS = {0: "B", 1: "b", 2: "h", 3: "i", 4: "q", 11: "?"}
FLOATS = {5: "e", 6: "f", 7: "d"}
COMPLEX = {8: "e", 9: "f", 10: "d"}
BYTES = {0: 1, 1: 1, 2: 2, 3: 4, 4: 8, 5: 2, 6: 4, 7: 8, 8: 4, 9: 8, 10: 16, 11: 1, 15: 2}
RARE = (12, 13, 14, 23, 24, 27, 28, 29, 44, 255)
# Arguments whose tensors are most likely numbers of places.
PLACES = ("ind", "idx", "offset", "length", "target", "perm", "batch_sizes", "pivot", "mapping", "sorted", "ptr")
ODD_INTS = (-1, -2, 63, 64, 65, 1 << 15, 1 << 31, 1 << 32, 1 << 40, 1 << 62, (1 << 63) - 1, -(1 << 31), -1 << 63)
ODD_FLOATS = (math.nan, math.inf, -math.inf, -0.0, 1e-320, 1e308, -1e308, 0.0, -1.0)
WORDS = (b"mean", b"none", b"sum", b"reflect", b"constant", b"zeros", b"trunc", b"floor", b"linear", b"ij", b"tanh",
         b"none", b"left", b"amax", b"prod", b"gelsd", b"bk,kj->bj", b"aten::relu", b"", b"\xc3\xa9" * 100, b"%n%s")  # fmt: skip
# Of each seldom thing, how often.
ODD, WRONG_KIND, ILLEGAL, HUGE_VIEW, HUGE_LIST, SHARED = 0.12, 0.02, 0.02, 0.002, 0.005, 0.1


class Schemas:
    """The operators of the dispatcher in this process, by name."""

    def __init__(self):
        self.all = {name_of(schema): schema for schema in torch._C._jit_get_all_schemas()}

    def drawable(self, node_runs):
        """(what the node says it runs, other operators)."""
        runs, others = [], []
        for name, schema in sorted(self.all.items()):
            if any(str(each.real_type) in ("t", "t1", "t2", "AnyEnumType") for each in schema.arguments):
                continue
            (runs if fingerprint(name, schema) in node_runs else others).append(name)
        return runs, others

    def call(self, seed, name, number):
        return Craft(random.Random(f"{seed} {name} {number}")).call(name, self.all[name])


def name_of(schema):
    return f"{schema.name}.{schema.overload_name}" if schema.overload_name else schema.name


def fingerprint(name, schema):
    """As a node names the operators that it runs (control.rs)."""
    value = 0xCBF29CE484222325
    for byte in f"{name}\0{schema}".encode():
        value = (value ^ byte) * 0x100000001B3 % (1 << 64)
    return value


class Craft:
    """The arguments of one call."""

    def __init__(self, numbers):
        self.numbers = numbers
        self.storages, self.slots, self.mutated, self.words = [], [], set(), []
        # What the tensors of a call have in common, unless it is odd.
        self.dtype = numbers.choices((6, 7, 4, 5, 15, 9, 11, 0, 3), (50, 10, 12, 4, 4, 6, 5, 5, 4))[0]
        self.rank = numbers.choices(range(7), (6, 16, 24, 20, 22, 10, 2))[0]
        self.sizes = [self.size() for _ in range(self.rank)]

    def call(self, name, schema):
        args = [self.argument(each) for each in schema.arguments]
        return wire.Call(name, self.storages, self.slots, sorted(self.mutated), args, self.words, self.sometimes(0.5))

    def sometimes(self, share):
        return self.numbers.random() < share

    def argument(self, argument):
        if argument.has_default_value() and self.sometimes(0.45):
            if (default := constant(argument.default_value)) is not None:
                return default
        return self.of_type(str(argument.real_type), argument)

    def of_type(self, kind, argument):
        if self.sometimes(WRONG_KIND):
            kind = self.numbers.choice(("Tensor", "int", "float", "bool", "str", "List[int]", "List[Tensor]", "None"))
        if kind.startswith("Optional["):
            return wire.none() if self.sometimes(0.35) else self.of_type(kind[9:-1], argument)
        if kind.startswith("List["):
            return self.listed(kind[5:-1], argument)
        match kind:
            case "Tensor":
                return self.tensor(argument)
            case "int" | "SymInt":
                return wire.integer(self.integer())
            case "float":
                return wire.double(self.float())
            case "number":
                return self.number()
            case "complex":
                return wire.complex_number(complex(self.float(), self.float()))
            case "bool":
                return wire.boolean(self.sometimes(0.5))
            case "str":
                return wire.string(self.numbers.choice(WORDS))
            case "ScalarType":
                odd = (self.numbers.choice(RARE), self.integer())
                return wire.integer(self.numbers.choice((*BYTES, 6, 4, 7, *odd)))
            case "Layout" | "MemoryFormat":
                odd = self.numbers.choice((1, 2, 3, 4, 9, 200, -1, 1 << 40))
                return wire.integer(0 if self.sometimes(0.6) else odd)
            case "Device":
                return wire.device(self.numbers.choice((0, 0, 255, 1, 254)))
            case "Generator":
                return wire.generator()
        return self.numbers.choice((wire.none(), wire.integer(self.integer()), wire.undefined()))

    def listed(self, kind, argument):
        count = self.numbers.choices((self.rank, 0, 1, 2, 3, 5), (30, 8, 20, 24, 12, 6))[0]
        huge = self.sometimes(HUGE_LIST)
        if kind in ("int", "SymInt"):
            count = self.numbers.choice((65, 1000, 1 << 16)) if huge else count
            return wire.integers([self.integer() for _ in range(count)])
        count = 2000 if huge and "Tensor" not in kind else count
        return wire.listed([self.of_type(kind, argument) for _ in range(count)])

    # Numbers

    def size(self):
        return self.numbers.choices((1, 2, 3, 4, 5, 8, 0, 16), (20, 24, 18, 16, 8, 6, 3, 2))[0]

    def integer(self):
        if self.sometimes(ODD):
            return self.numbers.choice(ODD_INTS)
        return self.numbers.choices((0, 1, 2, 3, 4, 5, 7, -1, -3), (25, 30, 16, 8, 5, 3, 3, 8, 2))[0]

    def float(self):
        return self.numbers.choice(ODD_FLOATS if self.sometimes(ODD) else (0.0, 1.0, 0.5, 1e-5, 2.0))

    def number(self):
        match self.numbers.randrange(8):
            case 0:
                return wire.boolean(self.sometimes(0.5))
            case 1:
                return wire.complex_number(complex(self.float(), self.float()))
            case 2 | 3 | 4:
                return wire.integer(self.integer())
        return wire.double(self.float())

    # Tensors

    def tensor(self, argument):
        is_place = any(each in argument.name for each in PLACES)
        if not argument.is_out and self.sometimes(0.02):
            return wire.undefined()
        if not (argument.alias_info and argument.alias_info.is_write) and self.sometimes(0.03):
            return self.scalar_tensor()
        dtype = self.numbers.choice((4, 4, 4, 3, 11)) if is_place else self.dtype
        if self.sometimes(ODD):
            dtype = self.numbers.choice(list(BYTES))
        if self.sometimes(0.004):
            dtype = self.numbers.choice(RARE)
        sizes = self.tensor_sizes(is_place)
        offset = self.numbers.choice((0, 0, 0, 0, 1, 3))
        strides = self.strides(sizes)
        reach = offset + 1 + sum((size - 1) * stride for size, stride in zip(sizes, strides)) if all(sizes) else 0
        storage = self.content(dtype, min(reach, 4096) + self.numbers.choice((0, 0, 0, 2)), is_place)
        if self.sometimes(HUGE_VIEW):
            # Legal, and takes for ever.
            sizes, strides = [*sizes, self.numbers.choice((1 << 22, 1 << 34, 1 << 40))], [*strides, 0]
        if self.sometimes(ILLEGAL):
            sizes, strides, offset = self.illegal(sizes, strides, offset)
        slot = self.slot(storage)
        if self.numbers.random() < (0.98 if argument.alias_info and argument.alias_info.is_write else 0.02):
            self.mutated.add(slot)
        return wire.tensor(slot, wire.geometry(dtype, offset, sizes, strides))

    def slot(self, content):
        """A slot of this storage, or of one that another argument has too."""
        if self.slots and self.sometimes(SHARED):
            slot = self.numbers.randrange(len(self.slots))
            if len(self.storages[self.slots[slot]]) >= len(content):
                return slot
        self.storages.append(content)
        self.slots.append(len(self.storages) - 1)
        return len(self.slots) - 1

    def tensor_sizes(self, is_place):
        sizes = list(self.sizes)
        match self.numbers.randrange(12):
            case 0:
                sizes = sizes[1:]
            case 1:
                sizes = sizes[:1]
            case 2:
                sizes = [self.size() for _ in range(self.numbers.randrange(6))]
            case 3 if sizes:
                sizes[self.numbers.randrange(len(sizes))] = self.size()
            case 4:
                sizes = sizes[::-1]
            case 5 | 6 if is_place:
                sizes = [self.size()]
        return sizes

    def strides(self, sizes):
        strides, step = [], 1
        for size in reversed(sizes):
            strides.insert(0, step)
            step *= max(size, 1)
        match self.numbers.randrange(16):
            case 0:
                self.numbers.shuffle(strides)
            case 1 if strides:
                strides[self.numbers.randrange(len(strides))] = 0
            case 2:
                strides = [2 * stride for stride in strides]
            case 3 if strides:
                strides[self.numbers.randrange(len(strides))] = self.numbers.choice((1, 3, 7))
        return strides

    def illegal(self, sizes, strides, offset):
        big = self.numbers.choice((100, 1 << 20, 1 << 40, 1 << 62, (1 << 63) - 1))
        match self.numbers.randrange(4):
            case 0 if sizes:
                sizes[self.numbers.randrange(len(sizes))] = big
            case 1 if strides:
                strides[self.numbers.randrange(len(strides))] = big
            case 2:
                offset = big
            case _:
                count = self.numbers.choice((10, 26, 64))
                sizes, strides = [1] * count, [self.numbers.choice((0, 1, big))] * count
        return sizes, strides, offset

    def content(self, dtype, elements, is_place):
        if dtype in INTS:
            values = [self.place(dtype) if is_place else self.numbers.randrange(8) for _ in range(elements)]
            return struct.pack(f"<{elements}{INTS[dtype]}", *values)
        count = elements * (2 if dtype in COMPLEX else 1)
        odd = self.numbers.choice(ODD_FLOATS[:4]) if self.sometimes(0.1) else None
        values = [self.numbers.choice((0.0, 1.0, -1.0, 0.5, 2.0, 3.25, -0.125)) for _ in range(count)]
        if odd is not None and values:
            values[self.numbers.randrange(count)] = odd
        if letter := FLOATS.get(dtype) or COMPLEX.get(dtype):
            return struct.pack(f"<{count}{letter}", *values)
        return self.numbers.randbytes(elements * BYTES.get(dtype, 4))

    def place(self, dtype):
        """Where an element is said to be."""
        bits = 1 if dtype == 11 else 8 * BYTES[dtype]
        value = self.numbers.choice(ODD_INTS) if self.sometimes(0.15) else self.numbers.randrange(4)
        low = 0 if dtype in (0, 11) else -(1 << bits - 1)
        return min(max(value, low), low + (1 << bits) - 1)

    def scalar_tensor(self):
        dtype = self.numbers.choice((6, 7, 4, 11, 9, 5, 255 if self.sometimes(0.1) else 3))
        word = len(self.words)
        self.words += [self.numbers.choice((0, 1, 3, 0x3FF0000000000000, (1 << 64) - 1)) for _ in range(2)]
        return wire.scalar_tensor(word, dtype, self.sometimes(0.5))


def constant(value):
    """A default in its wire form, or None where it has none."""
    if value is None:
        return wire.none()
    encoders = {bool: wire.boolean, int: wire.integer, float: wire.double, complex: wire.complex_number}
    if type(value) in encoders:
        return encoders[type(value)](value)
    if isinstance(value, str):
        return wire.string(value.encode())
    if isinstance(value, list) and all(type(each) is int for each in value):
        return wire.integers(value)
    return None
