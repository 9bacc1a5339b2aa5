"""Programs of two and three of the zoo's models: each operator's label is the one that its model gets alone.

    python -m zoo.programs record --alone DIR --out DIR [--count 120] [--seed 1] [--jobs 2]
    python -m zoo.programs judge --alone DIR DIR [--host genie-host] [--plugins DIR] [--append FILE]

`--alone` holds what `zoo.record` wrote of one split. Programs are drawn by a seed: models run one after
the other, by turns (in threads of which one runs at a time), handing values on (by the program, or as integers on
the device), and serving while another trains. Which model an operator is of is marked on the tape; the host
sees the graphs without marks.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import threading
import time
import traceback
from collections import Counter, defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .evaluate import ask, load, mean, percent, table

DEVICE = "remote_accelerator"
PROGRAM = ".program.json"
SUFFIX_GRAPH = ".json"
HOW = ("in turn", "by turns", "handing on", "beside training")
# The window holds so many records, and alone and together the same must be seen.
OPERATORS_MAX = 5_000
PROGRAM_SECONDS_MAX = 180
# By turns: of so many calls of modules one is a change of model.
CALLS_A_TURN = 12


@dataclass(frozen=True)
class Program:
    """Models that run in one process."""

    name: str
    how: str
    cases: tuple[str, ...]
    seed: int


def draw(alone: dict[str, dict[str, Any]], count: int, seed: int) -> list[Program]:
    """Programs of these cases: as many classes side by side as there are, a third of them triples."""
    chance = random.Random(seed)
    by_class: dict[str, list[str]] = defaultdict(list)
    for name, labels in sorted(alone.items()):
        by_class[labels["workload"]].append(name)
    training = sorted(name for name, labels in alone.items() if labels["mode"] == "train")
    serving = {c: [n for n in names if alone[n]["mode"] != "train"] for c, names in by_class.items()}
    serving = {c: names for c, names in serving.items() if names}
    programs = []
    for index in range(count):
        how = HOW[index % len(HOW)]
        classes = chance.sample(sorted(serving), 3 if index % 3 == 2 else 2)
        cases = [chance.choice(serving[c]) for c in classes]
        if how == "beside training":
            cases[0] = chance.choice(training)
        programs.append(Program(f"program{index:03}", how, tuple(cases), seed * 1000 + index))
    return programs


class Turns:
    """Lets one thread run at a time, and marks on the tape whose operators come."""

    def __init__(self, genie: Any, count: int, seed: int) -> None:
        self.genie = genie
        self.chance = random.Random(seed)
        self.running = list(range(count))
        self.now = 0
        self.changed = threading.Condition()
        self.mark: Any = None
        self.numbers = threading.local()

    def _open(self, number: int | None) -> None:
        if self.mark is not None:
            self.mark.__exit__(None, None, None)
        self.mark = None if number is None else self.genie.phase(f"model{number}")
        if self.mark is not None:
            self.mark.__enter__()

    def enter(self, number: int) -> None:
        self.numbers.mine = number
        with self.changed:
            self.changed.wait_for(lambda: self.now == number)
            self._open(number)

    def maybe(self, *_call: Any) -> None:
        """At the call of a module: another's turn, perhaps."""
        mine = getattr(self.numbers, "mine", None)
        if mine is None or len(self.running) < 2 or self.chance.randrange(CALLS_A_TURN):
            return
        with self.changed:
            self.now = self.chance.choice([other for other in self.running if other != mine])
            self.changed.notify_all()
            self.changed.wait_for(lambda: self.now == mine)
            self._open(mine)

    def leave(self, number: int) -> None:
        self.numbers.mine = None
        with self.changed:
            self._open(None)
            self.running.remove(number)
            self.now = self.running[0] if self.running else -1
            self.changed.notify_all()


def run(program: Program) -> None:
    """Builds the models, moves them, and runs them under marks."""
    import genie
    import torch
    from torch.utils import _pytree as pytree

    from . import registry
    from .parts import tensors

    def move(leaf: Any) -> Any:
        return leaf.to(DEVICE) if isinstance(leaf, torch.Tensor) else leaf

    def integers(args: Any) -> bool:
        return any(not t.is_floating_point() for t in tensors(args))

    built = []
    for name in program.cases:
        case = registry.named(name)
        module, args, kwargs = registry.build(case)
        module = module.to(DEVICE)
        own = getattr(module, "device", None)
        if isinstance(own, (str, torch.device)) and not isinstance(getattr(type(module), "device", None), property):
            module.device = DEVICE  # deepctr-torch asks its own attribute
        built.append((case, module, *pytree.tree_map(move, (args, kwargs))))
    turns = Turns(genie, len(built), program.seed)
    genie.reset_trace()
    results: list[Any] = [None] * len(built)
    errors: list[BaseException] = []

    def call(number: int, args: Any, kwargs: Any) -> None:
        case, module = built[number][:2]
        turns.enter(number)
        try:
            # Each model draws what it draws alone, as far as others let it.
            torch.manual_seed(0)
            with torch.no_grad() if case.mode == "inference" else torch.enable_grad():
                results[number] = module(*args, **kwargs)
                for tensor in tensors(results[number]):
                    tensor.detach().cpu()
        except BaseException as error:
            errors.append(error)
        finally:
            turns.leave(number)

    if program.how in ("by turns", "beside training"):
        handle = torch.nn.modules.module.register_module_forward_pre_hook(turns.maybe)
        threads = [threading.Thread(target=call, args=(n, *each[2:])) for n, each in enumerate(built)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        handle.remove()
    else:
        handed: Any = None
        for number, (_, _, args, kwargs) in enumerate(built):
            if handed is not None and program.how == "handing on":
                zero, program_zero = handed

                def on(leaf: Any, zero: Any = zero, program_zero: float = program_zero) -> Any:
                    if not isinstance(leaf, torch.Tensor) or leaf.dtype == torch.bool or leaf.is_complex():
                        return leaf
                    # Integers go on the device, other values by way of the program.
                    return leaf + program_zero if leaf.is_floating_point() else leaf + zero.to(leaf.dtype)

                args, kwargs = pytree.tree_map(on, (args, kwargs))
            call(number, args, kwargs)
            made = [t for t in tensors(results[number]) if t.is_floating_point() and t.numel()]
            if made:
                chosen = made[0].detach().reshape(-1)[:64].argmax()
                handed = (chosen.clamp(max=0), 0.0 * float(chosen.cpu()))
    if errors:
        raise errors[0]


def operators(file: Path) -> list[tuple[str, str]]:
    """Each operator of a recorded graph with its mark."""
    graph = json.loads(file.read_text())["graph"]
    blob, words, start = graph["blob"].encode(), [], 0
    for end in graph["symbol_ends"]:
        words.append(blob[start:end].decode())
        start = end
    named = ((words[op], words[mark]) for op, mark in zip(graph["op"], graph["mark"], strict=True))
    return [(op, mark) for op, mark in named if not op.startswith("genie::")]


def record(program: Program, out: Path) -> None:
    """Runs a program and writes its graph."""
    import genie

    run(program)
    genie.export_graph(str(out / f"{program.name}{SUFFIX_GRAPH}"))
    (out / f"{program.name}{PROGRAM}").write_text(json.dumps(asdict(program)) + "\n")


def judge(program: Program, answer: dict[str, Any], alone: dict[str, dict[str, Any]]) -> dict[str, Any] | str:
    """How many operators keep the label that their model gets alone; a text where that cannot be said."""
    right = total = 0
    ops = answer["ops"]
    for number, case in enumerate(program.cases):
        mine = [op for op in ops if op["mark"] == f"model{number}"]
        expected = alone[case]["ops"]
        if [op["op"] for op in mine] != [op["op"] for op in expected]:
            return f"{case} ran {len(mine)} operators there and {len(expected)} alone, or others"
        total += len(mine)
        right += sum(a["phase"] == b["phase"] for a, b in zip(mine, expected, strict=True))
    wanted = {alone[case]["workload"]["label"] for case in program.cases}
    named = {model["label"] for model in answer.get("models", [answer["workload"]])}
    return {"right": right, "total": total, "wanted": wanted, "named": named}


def report(verdicts: dict[Program, dict[str, Any]], left_out: dict[Program, str]) -> tuple[str, float, float]:
    """In Markdown; then the shares of operators and of programs."""
    rows = []
    for how in ("all", *HOW):
        chosen = [v for p, v in verdicts.items() if how in ("all", p.how)]
        if not chosen:
            continue
        kept = sum(v["right"] for v in chosen) / sum(v["total"] for v in chosen)
        each = mean(v["right"] / v["total"] for v in chosen)
        named = mean(v["wanted"] <= v["named"] for v in chosen)
        rows.append([how, str(len(chosen)), percent(kept), percent(each), percent(named)])
    head = ["how they run", "programs", "operators", "mean of programs", "all classes named"]
    parts = [f"## programs: {len(verdicts)}", table(head, rows)]
    wrong = [(p, v) for p, v in verdicts.items() if v["right"] < 0.97 * v["total"] or not v["wanted"] <= v["named"]]
    if wrong:
        parts.append(f"### Under 97 % of operators, or a class not named: {len(wrong)}")
        parts.append(
            "\n".join(
                f"- `{p.name}` ({p.how}: {', '.join(p.cases)}): {percent(v['right'] / v['total'])}; "
                f"named {', '.join(sorted(v['named']))}"
                for p, v in wrong
            )
        )
    if left_out:
        counts = Counter(left_out.values())
        parts.append(f"Left out: {len(left_out)}.")
        parts.append("\n".join(f"- {count}: {why}" for why, count in counts.most_common(10)))
    kept = sum(v["right"] for v in verdicts.values()) / max(1, sum(v["total"] for v in verdicts.values()))
    return "\n\n".join(parts) + "\n", kept, mean(v["wanted"] <= v["named"] for v in verdicts.values())


def _drawn(args: argparse.Namespace) -> list[Program]:
    alone = {}
    for labels, graph in load(args.alone, None):
        count = len(operators(graph))
        if 0 < count <= OPERATORS_MAX:
            alone[labels["name"]] = labels
    return draw(alone, args.count, args.seed)


def _supervise(programs: list[Program], args: argparse.Namespace, failed: dict[str, str]) -> None:
    """Runs workers until every program has an answer; a worker that dies or hangs costs one program."""
    left = {program.name: program for program in programs}
    while left:
        command = [sys.executable, "-m", f"{__package__}.programs", "work", "--out", str(args.out)]
        worker = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert worker.stdin is not None and worker.stdout is not None
        worker.stdin.write("".join(json.dumps(asdict(program)) + "\n" for program in left.values()))
        worker.stdin.close()
        watch = threading.Timer(PROGRAM_SECONDS_MAX, worker.kill)
        watch.start()
        for line in worker.stdout:
            watch.cancel()
            name, error = json.loads(line)
            del left[name]
            if error:
                failed[name] = error
            watch = threading.Timer(PROGRAM_SECONDS_MAX, worker.kill)
            watch.start()
        watch.cancel()
        code = worker.wait()
        if left:
            failed[left.pop(next(iter(left))).name] = f"its process ended with {code}"


def _record(args: argparse.Namespace) -> int:
    programs = _drawn(args)
    args.out.mkdir(parents=True, exist_ok=True)
    failed: dict[str, str] = {}
    started = time.monotonic()
    threads = [
        threading.Thread(target=_supervise, args=(programs[n :: args.jobs], args, failed)) for n in range(args.jobs)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"{len(programs)} programs, {len(failed)} failed, {time.monotonic() - started:.0f} s, in {args.out}")
    for name, error in sorted(failed.items()):
        print(f"  {name}: {error}")
    return 0


def _program(told: str) -> Program:
    fields = json.loads(told)
    return Program(**{**fields, "cases": tuple(fields["cases"])})


def _work(args: argparse.Namespace) -> int:
    """Records the programs of standard input; a line for each on standard output, and nothing else there."""
    import torch

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    for line in sys.stdin:
        program, error = _program(line), None
        try:
            record(program, args.out)
        except Exception as cause:
            error = f"{type(cause).__name__}: {cause}"[:300]
            traceback.print_exc()
        print(json.dumps([program.name, error]), file=answers, flush=True)
    return 0


def _judge(args: argparse.Namespace) -> int:
    programs = [_program(path.read_text()) for path in sorted(args.directory.glob(f"*{PROGRAM}"))]
    if not programs:
        print(f"{args.directory} holds no recorded programs", file=sys.stderr)
        return 2
    cases = sorted({case for program in programs for case in program.cases})
    answers = ask(args.host, args.plugins, [args.alone / f"{case}{SUFFIX_GRAPH}" for case in cases], [])
    alone = {case: answers[f"{case}{SUFFIX_GRAPH}"] for case in cases}
    given = ask(args.host, args.plugins, [args.directory / f"{p.name}{SUFFIX_GRAPH}" for p in programs], [])
    verdicts, left_out = {}, {}
    for program in programs:
        verdict = judge(program, given[f"{program.name}{SUFFIX_GRAPH}"], alone)
        if isinstance(verdict, str):
            left_out[program] = verdict
        else:
            verdicts[program] = verdict
    text, kept, named = report(verdicts, left_out)
    print(text)
    if args.append is not None:
        args.append.write_text(args.append.read_text() + "\n" + text)
    enough = 100 * kept >= args.operators_min and 100 * named >= args.named_min
    if not enough:
        print("below what was asked for (--operators-min, --named-min)", file=sys.stderr)
    return 0 if enough else 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    recording = commands.add_parser("record", help="draws programs, runs them and writes their graphs")
    recording.add_argument("--alone", type=Path, required=True, metavar="DIR")
    recording.add_argument("--out", type=Path, required=True, metavar="DIR")
    recording.add_argument("--count", type=int, default=120)
    recording.add_argument("--seed", type=int, default=1)
    recording.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    recording.set_defaults(act=_record)
    work = commands.add_parser("work", help="records the programs of standard input")
    work.add_argument("--out", type=Path, required=True)
    work.set_defaults(act=_work)
    judging = commands.add_parser("judge", help="compares what the host says with what it says of each model alone")
    judging.add_argument("directory", type=Path, metavar="DIR")
    judging.add_argument("--alone", type=Path, required=True, metavar="DIR")
    judging.add_argument("--host", default="genie-host")
    judging.add_argument("--plugins", metavar="DIR", help="default: the host's own choice")
    judging.add_argument("--append", type=Path, metavar="FILE", help="adds the report to this one")
    judging.add_argument("--operators-min", type=float, default=0.0, metavar="PERCENT")
    judging.add_argument("--named-min", type=float, default=0.0, metavar="PERCENT")
    judging.set_defaults(act=_judge)
    args = parser.parse_args()
    return args.act(args)


if __name__ == "__main__":
    sys.exit(main())
