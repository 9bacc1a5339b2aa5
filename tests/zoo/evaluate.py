#!/usr/bin/env python3
"""How often the analyzer is right about recorded graphs: classes, phases, a confusion table.

    tests/zoo/evaluate.py DIR --host genie-host --plugins DIR [--scramble SEED] [--permute SEED]
                          [--split public] [--write docs/zoo.md]

DIR holds what `zoo.record` wrote. The host sees the graphs without their marks; `--scramble` adds the
same with module names scrambled, `--permute` with the modules re-ordered, side by side. Needs no torch.
"""

import argparse
import json
import subprocess
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LABELS = ".labels.json"
# A command line stays short, and a lost host costs few answers.
FILES_PER_RUN = 32
RUN_SECONDS_MAX = 600
# What the answer is when there is none.
NOTHING = "(nothing)"


@dataclass
class Verdict:
    """One case under one condition."""

    name: str
    split: str
    workload: str
    phases: list[str]
    said: str = NOTHING
    confidence: float = 0.0
    said_phases: set[str] = field(default_factory=set)
    """Of all operators, those without a mark too."""
    right: Counter[str] = field(default_factory=Counter)
    """Operators by true phase, those that were labelled rightly."""
    marked: Counter[str] = field(default_factory=Counter)
    """Operators by true phase."""

    @property
    def workload_right(self) -> bool:
        return self.said == self.workload

    @property
    def phase_accuracy(self) -> float:
        """Of the marked operators; a case without an answer has none right."""
        marked = self.marked.total()
        if not marked and not self.phases:
            return 1.0  # a case that has a class alone
        return self.right.total() / marked if marked else 0.0

    @property
    def phases_equal(self) -> bool:
        return self.said_phases == set(self.phases)


def judge(labels: dict[str, Any], answer: dict[str, Any] | None) -> Verdict:
    """Compares the host's answer about one graph with its labels."""
    verdict = Verdict(labels["name"], labels["split"], labels["workload"], labels["phases"])
    if answer is None:
        return verdict
    workload = answer.get("workload") or {}
    verdict.said = workload.get("label") or NOTHING
    verdict.confidence = workload.get("confidence") or 0.0
    for op in answer.get("ops", ()):
        said, mark = op.get("phase"), op.get("mark")
        if said:
            verdict.said_phases.add(said)
        if mark:
            verdict.marked[mark] += 1
            verdict.right[mark] += said == mark
    return verdict


def mean(values: Iterable[float]) -> float:
    """0 where there is nothing."""
    values = list(values)
    return sum(values) / len(values) if values else 0.0


@dataclass
class Score:
    """All cases under one condition."""

    verdicts: list[Verdict]

    def workload(self, label: str | None = None) -> float:
        return mean(v.workload_right for v in self.verdicts if label in (None, v.workload))

    def phase(self, label: str | None = None) -> float:
        """Macro-averaged over cases: a long program counts as much as a short one."""
        return mean(v.phase_accuracy for v in self.verdicts if label in (None, v.workload) and v.phases)

    def one_phase(self, phase: str) -> float:
        """Of the operators of this phase, those labelled so; macro-averaged over the cases that have it."""
        return mean(v.right[phase] / v.marked[phase] for v in self.verdicts if v.marked[phase])

    def sets_equal(self, label: str | None = None) -> float:
        return mean(v.phases_equal for v in self.verdicts if label in (None, v.workload) and v.phases)

    def confusion(self) -> dict[str, Counter[str]]:
        """True class -> what was said."""
        table: dict[str, Counter[str]] = defaultdict(Counter)
        for v in self.verdicts:
            table[v.workload][v.said] += 1
        return dict(table)


def percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table that can be read as it is."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(cells: list[str]) -> str:
        first, *rest = zip(cells, widths, strict=True)
        return "| " + " | ".join([first[0].ljust(first[1])] + [c.rjust(w) for c, w in rest]) + " |"

    rule = "|" + "|".join(["-" * (widths[0] + 2)] + ["-" * (w + 1) + ":" for w in widths[1:]]) + "|"
    return "\n".join([line(head), rule, *map(line, rows)])


def report(scores: dict[str, Score], split: str, name_blind: bool = False) -> str:
    """The whole report of one split, in Markdown; `scores` by condition."""
    conditions = list(scores)
    plain = scores[conditions[0]]
    count = Counter(v.workload for v in plain.verdicts)
    classes = sorted(count)
    parts = [f"## {split}: {len(plain.verdicts)} cases"]

    def rows(measure: str) -> list[list[str]]:
        total = [["all", str(len(plain.verdicts)), *(percent(getattr(s, measure)()) for s in scores.values())]]
        return total + [
            [c, str(count[c]), *(percent(getattr(s, measure)(c)) for s in scores.values())] for c in classes
        ]

    for title, measure in (
        ("Workload class", "workload"),
        ("Phase of each marked operator, macro-averaged over cases", "phase"),
        ("Cases whose set of phases is exactly right", "sets_equal"),
    ):
        parts += [f"### {title}", table(["class", "cases", *conditions], rows(measure))]

    phases = sorted({phase for v in plain.verdicts for phase in v.phases})
    having = {p: sum(p in v.phases for v in plain.verdicts) for p in phases}
    each = [[p, str(having[p]), *(percent(s.one_phase(p)) for s in scores.values())] for p in phases]
    parts += ["### Operators of each phase that are labelled so", table(["phase", "cases", *conditions], each)]

    for condition, score in scores.items():
        confusion = score.confusion()
        said = sorted({label for row in confusion.values() for label in row})
        body = [[c, *(str(confusion[c][s] or ".") for s in said)] for c in classes]
        parts += [f"### Confusion, {condition} (rows: the truth)", table(["", *said], body)]

    for condition, score in scores.items():
        wrong = [v for v in score.verdicts if not v.workload_right or v.phase_accuracy < 0.9]
        if not wrong:
            continue
        parts.append(f"### Wrong class, or phase under 90 %, {condition}: {len(wrong)}")
        if split == "blind" and not name_blind:
            parts.append("Not named: whoever writes recognizers must not know them (`--name-blind` names them).")
            continue
        parts.append("\n".join(f"- {_wrong(v)}" for v in sorted(wrong, key=lambda v: v.name)))
    return "\n\n".join(parts) + "\n"


def _wrong(v: Verdict) -> str:
    text = f"`{v.name}`: "
    text += v.workload if v.workload_right else f"{v.workload}, said {v.said} ({v.confidence:.2f})"
    text += f"; phase {percent(v.phase_accuracy)}"
    missing, extra = set(v.phases) - v.said_phases, v.said_phases - set(v.phases)
    text += f"; missing {', '.join(sorted(missing))}" if missing else ""
    return text + (f"; extra {', '.join(sorted(extra))}" if extra else "")


def load(directory: Path, split: str | None) -> list[tuple[dict[str, Any], Path]]:
    """Labels and graph of each recorded case."""
    found = []
    for path in sorted(directory.glob(f"*{LABELS}")):
        labels = json.loads(path.read_text())
        if split in (None, labels["split"]):
            found.append((labels, path.with_name(path.name.removesuffix(LABELS) + ".json")))
    return found


def ask(host: str, plugins: str | None, files: list[Path], options: list[str]) -> dict[str, dict[str, Any]]:
    """The host's answers by file name. What it does not answer is missing, with a line on stderr."""
    answers = {}
    for i in range(0, len(files), FILES_PER_RUN):
        batch = files[i : i + FILES_PER_RUN]
        command = [host, "graph", *map(str, batch), "--print", "--strip-marks", *options]
        command += ["--plugins", plugins] if plugins else []
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=RUN_SECONDS_MAX)
        if done.returncode:
            print(f"{' '.join(command[:2])} ended with {done.returncode}", file=sys.stderr)
        for line in done.stdout.splitlines():
            if line.startswith("{"):
                answer = json.loads(line)
                answers[Path(answer["file"]).name] = answer
    for file in files:
        if file.name not in answers:
            print(f"no answer about {file.name}", file=sys.stderr)
    return answers


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path, metavar="DIR")
    parser.add_argument("--host", default="genie-host")
    parser.add_argument("--plugins", metavar="DIR", help="default: the host's own choice")
    parser.add_argument("--split", choices=("public", "blind"), help="default: both")
    parser.add_argument("--scramble", type=int, metavar="SEED", help="also with scrambled names")
    parser.add_argument("--permute", type=int, metavar="SEED", help="also with permuted modules")
    parser.add_argument("--write", type=Path, metavar="FILE", help="writes the report here too")
    parser.add_argument("--name-blind", action="store_true", help="names the blind cases that are wrong")
    parser.add_argument(
        "--workload-min", type=float, default=0.0, metavar="PERCENT", help="fails below, names as they are"
    )
    parser.add_argument("--phase-min", type=float, default=0.0, metavar="PERCENT", help="the same for phases")
    parser.add_argument(
        "--scrambled-min", type=float, default=0.0, metavar="PERCENT", help="the same for classes, scrambled"
    )
    args = parser.parse_args(arguments)

    conditions: dict[str, list[str]] = {"as they are": []}
    if args.scramble is not None:
        conditions["scrambled"] = ["--scramble-names", str(args.scramble)]
    if args.permute is not None:
        conditions["permuted"] = ["--permute-modules", str(args.permute)]
    found = load(args.directory, args.split)
    if not found:
        print(
            f"{args.directory} holds no recorded cases: `python -m zoo.record --out {args.directory}` makes them",
            file=sys.stderr,
        )
        return 2
    files = [graph for _, graph in found]
    answers = {name: ask(args.host, args.plugins, files, options) for name, options in conditions.items()}

    text = "# The zoo: how often the analyzer is right\n\nMade by `tests/zoo/evaluate.py`; see `tests/zoo/README.md`.\n"
    enough = True
    for split in sorted({labels["split"] for labels, _ in found}, reverse=True):
        scores = {
            name: Score([judge(labels, given.get(graph.name)) for labels, graph in found if labels["split"] == split])
            for name, given in answers.items()
        }
        text += "\n" + report(scores, split, args.name_blind)
        plain = scores["as they are"]
        enough &= 100 * plain.workload() >= args.workload_min and 100 * plain.phase() >= args.phase_min
        if "scrambled" in scores:
            enough &= 100 * scores["scrambled"].workload() >= args.scrambled_min
        for v in plain.verdicts:
            if v.marked and set(v.marked) != set(v.phases):
                print(f"{v.name}: its marks are not those of its labels; record it again", file=sys.stderr)
    print(text)
    if args.write is not None:
        args.write.write_text(text)
    if not enough:
        print("below what was asked for (--workload-min, --phase-min, --scrambled-min)", file=sys.stderr)
    return 0 if enough else 1


if __name__ == "__main__":
    sys.exit(main())
