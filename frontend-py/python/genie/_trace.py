"""What the session ran: `reset_trace()`, `explain()`, `export_graph()`."""

import json
import os
from collections import namedtuple
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from genie import _native

_RESET, _EXPLAIN, _GRAPH = range(3)


def reset_trace() -> None:
    """Forgets what the session ran so far; `explain()` tells of what comes from here on."""
    _native.trace(_RESET)


def export_graph(path: "str | os.PathLike[str]") -> None:
    """Writes the graph of what ran since the last `reset_trace()` as a recorded graph (JSON).

    `genie-host graph`, `genie-host plugin test` and the tests of plugins read it. An OSError tells
    of a path that cannot be written, a RuntimeError of a session without a host (mode `local`).
    """
    graph = _ask(_GRAPH)
    with open(path, "wb") as file:
        file.write(graph)


def explain() -> "Explanation":
    """What the session ran since the last `reset_trace()`, in the words of its recognizers.

    Waits for nothing but the recognizers: operators still under way are included. Print it, or
    look at its fields. A RuntimeError tells of a session without a host (mode `local`).
    """
    return Explanation._of(json.loads(_ask(_EXPLAIN)))


def _ask(question: int) -> bytes:
    answer = _native.trace(question)
    if not answer:
        raise RuntimeError("nothing ran on remote_accelerator yet: there is no session to explain")
    return answer


class _Entry:
    """A named tuple whose fields can be read by key as well: `op.phase`, `op["phase"]`, `op[2]`."""

    __slots__ = ()

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, str):
            if key not in self._fields:  # type: ignore[attr-defined]
                raise KeyError(key)
            return getattr(self, key)
        return super().__getitem__(key)  # type: ignore[misc]


class Label(_Entry, namedtuple("Label", "label confidence")):
    """A class of workload and how sure its recognizer is (0 to 1)."""

    __slots__ = ()

    def __str__(self) -> str:
        return str(self.label)


class Phase(_Entry, namedtuple("Phase", "phase ops confidence flops bytes")):
    """A phase, with the number of its operators, their mean confidence (0 to 1) and cost."""

    __slots__ = ()

    def __str__(self) -> str:
        return str(self.phase)


_MODEL = "label confidence by family phases ops weights weight_bytes flops bytes estimated_us"


class Model(_Entry, namedtuple("Model", _MODEL)):
    """A model of the program: its class of workload, how sure which recognizer (`by`) is of it (0 to 1), what that
    calls its family, its phases, operators, tensors of weights and their bytes, what it cost, and the microseconds
    that its operators take on the device, estimated by the roofline."""

    __slots__ = ()

    def __str__(self) -> str:
        return str(self.label)


class Op(_Entry, namedtuple("Op", "op module phase confidence class_ modality by mark model times")):
    """One recorded operator: its name, the path and class of its module, its phase and modality,
    how sure which recognizer (`by`) is of the phase, the phase that the program marked, the
    number of its model in `models`, and how often it ran: repeats of a loop are listed once."""

    __slots__ = ()


class Residency(_Entry, namedtuple("Residency", "residency bytes used_by confidence by alive")):
    """What kind of data a tensor's storage holds. `used_by` is a module's path or an operator."""

    __slots__ = ()


class Match(_Entry, namedtuple("Match", "pattern phase modality confidence by nodes nodes_total")):
    """A pattern that a recognizer found; `nodes` are numbers in the exported graph."""

    __slots__ = ()


class Ops:
    """The recorded operators in order, as a sequence of `Op`; made when they are looked at."""

    def __init__(self, words: list[str], columns: dict[str, list[Any]]) -> None:
        self._words = words
        self._columns = columns

    def __len__(self) -> int:
        return len(self._columns["op"])

    def __getitem__(self, index: "int | slice") -> Any:
        if isinstance(index, slice):
            return [self[each] for each in range(*index.indices(len(self)))]
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"operator {index} of {len(self)}")
        columns, words = self._columns, self._words
        return Op(
            op=words[columns["op"][index]],
            module=words[columns["module"][index]],
            phase=words[columns["phase"][index]],
            confidence=columns["confidence"][index],
            class_=words[columns["class"][index]],
            modality=words[columns["modality"][index]],
            by=words[columns["by"][index]],
            mark=words[columns["mark"][index]],
            model=columns["model"][index],
            times=columns["times"][index],
        )

    def __iter__(self) -> "Iterator[Op]":
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True)
class Explanation:
    """What the session ran.

    workload: the class of the program, claimed by the plugin `workload_by`; `mixed` where its models have
    several. `workloads` has all that were claimed, with their plugins.
    models: what shares weights or activations is one, in the order of their first operators.
    phases: in order of first appearance. ops: one entry for each recorded operator; long loops are kept
    a few times and then counted, so that `ops_total` may be more than there are entries. The trace
    holds some 16,000 records; `truncated` says whether the program went on beyond them.
    residency: for each weight, cache, input and living tensor, the largest first.
    plan: which policy places what where, and why. matches: what recognizers found.
    """

    workload: Label
    workload_by: str
    workloads: list[tuple[Label, str]]
    models: list[Model]
    phases: list[Phase]
    ops: Ops
    ops_total: int
    truncated: bool
    residency: list[Residency]
    matches: list[Match]
    attributes: list[tuple[str, str, str]]
    plan: "dict[str, Any] | None"
    plugins: list[dict[str, Any]]
    why: list[str] = field(default_factory=list)

    @staticmethod
    def _of(told: dict[str, Any]) -> "Explanation":
        residency = [Residency(*(each[name] for name in Residency._fields)) for each in told["residency"]]
        workloads = [(Label(each["label"], each["confidence"]), each["by"]) for each in told["workloads"]]
        best = told["workload"]
        return Explanation(
            workload=Label(best["label"], best["confidence"]),
            workload_by=best["by"],
            workloads=workloads,
            models=[
                Model(**{**each, "phases": [Phase(**phase) for phase in each["phases"]]}) for each in told["models"]
            ],
            phases=[Phase(**each) for each in told["phases"]],
            ops=Ops(told["words"], told["ops"]),
            ops_total=told["ops_total"],
            truncated=told["truncated"],
            residency=residency,
            matches=[Match(**each) for each in told["matches"]],
            attributes=[tuple(each) for each in told["attributes"]],
            plan=told["plan"],
            plugins=told["plugins"],
            why=told["why"],
        )

    def __str__(self) -> str:
        return "\n".join(self._lines())

    __repr__ = __str__

    def _lines(self) -> Iterator[str]:
        sure = f"{self.workload.confidence:.0%} sure" + (f", by {self.workload_by}" if self.workload_by else "")
        if len(self.models) > 1:
            kinds = [str(label) for label, _ in self.workloads] if self.workload.label == "mixed" else []
            parts = f": {', '.join(kinds)}" if kinds else ""
            yield f"workload: {self.workload.label}{parts} ({len(self.models)} models)"
        else:
            yield f"workload: {self.workload.label} ({sure})"
            for key, value, by in self.attributes:
                if by == self.workload_by:
                    yield f"  {key}: {value}"
        notes = []
        if self.ops_total > len(self.ops):
            notes.append(f"{len(self.ops)} listed, repeats are counted")
        if self.truncated:
            notes.append("not all: the trace was full; call genie.reset_trace()")
        yield f"ops: {self.ops_total}" + (f" ({'; '.join(notes)})" if notes else "")
        if len(self.models) > 1:
            yield from _tree(self.models)
            if len(self.models) >= _MODELS_MAX:
                yield f"  the smallest are one: no more than {_MODELS_MAX} models are told apart"
        elif self.phases:
            yield "phases:"
            for each in self.phases:
                yield f"  {_phase(each)}"
        patterns: dict[tuple[str, str], int] = {}
        for match in self.matches:
            patterns[match.pattern, match.by] = patterns.get((match.pattern, match.by), 0) + 1
        if patterns:
            yield "matches:"
            for (pattern, by), count in sorted(patterns.items()):
                yield f"  {pattern} x{count} ({by})"
        kinds: dict[str, tuple[int, int]] = {}
        for each in self.residency:
            count, size = kinds.get(each.residency, (0, 0))
            kinds[each.residency] = (count + 1, size + each.bytes)
        if kinds:
            yield "residency:"
            for kind, (count, size) in sorted(kinds.items(), key=lambda item: -item[1][1]):
                yield f"  {kind:16} {count:5} storages {_amount(size, 'B'):>10}"
        if self.plan:
            policy, why = self.plan["policy"], self.plan["why"]
            yield f"plan: {why}" if why.startswith(policy) else f"plan: {policy}: {why}"
            devices: dict[str, tuple[int, int]] = {}
            for region in self.plan["regions"]:
                regions, ops = devices.get(region["device"], (0, 0))
                devices[region["device"]] = (regions + 1, ops + region["ops"])
            for device, (regions, ops) in devices.items():
                yield f"  {ops} ops in {regions} regions on {device}"
            for directive in self.plan["directives"]:
                yield (
                    f"  {directive['kind']} {directive['storages']} storages "
                    f"({_amount(directive['bytes'], 'B')}) on {directive['device']}: {directive['why']}"
                )
            for policy, refused in self.plan["refused"]:
                yield f"  {policy} was refused: {refused}"
        for each in self.why:
            yield f"note: {each}"
        for each in self.plugins:
            if each["outcome"] != "ok":
                yield f"plugin {each['name']}: {each['outcome']}"


# The host tells so many apart (host/analyzer/src/components.rs).
_MODELS_MAX = 64
# With more models than this, a line each has room for.
_MODELS_IN_FULL = 4


def _tree(models: list[Model]) -> Iterator[str]:
    """Models with their phases."""
    yield "models:"
    for number, model in enumerate(models):
        last = number == len(models) - 1
        name = f"{model.label} ({model.family})" if model.family else str(model.label)
        weights = f"{model.weights} weights {_amount(model.weight_bytes, 'B')}" if model.weights else "no weights"
        short = len(models) > _MODELS_IN_FULL
        phases = ", ".join(f"{each.phase} {each.ops}" for each in model.phases)
        detail = phases if short and phases else f"{model.ops} ops"
        time = f", about {_time(model.estimated_us)}" if model.estimated_us else ""
        yield f"  {'└' if last else '├'}─ {number}: {name}, {detail}, {weights}{time}, {model.confidence:.0%} sure"
        for each in () if short else model.phases:
            yield f"  {' ' if last else '│'}    {_phase(each)}"


def _phase(phase: Phase) -> str:
    return (
        f"{phase.phase:24} {phase.ops:6} ops {_amount(phase.flops, 'flop'):>10} "
        f"{_amount(phase.bytes, 'B'):>10}  {phase.confidence:.0%} sure"
    )


def _time(us: float) -> str:
    return f"{us:.0f} us" if us < 1e3 else f"{us / 1e3:.1f} ms" if us < 1e6 else f"{us / 1e6:.1f} s"


def _amount(value: float, unit: str) -> str:
    for prefix in ("", "k", "M", "G", "T"):
        if value < 1000 or prefix == "T":
            return f"{value:.0f} {prefix}{unit}" if value >= 100 or not prefix else f"{value:.1f} {prefix}{unit}"
        value /= 1000
    return ""
