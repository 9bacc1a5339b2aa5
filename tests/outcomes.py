"""What ran, failed and was skipped: the last line of `make test`.

Each part of `make test` leaves files of lines in the directory GENIE_OUTCOMES: `passed N`, `failed N`, or
`skipped TEST<tab>WHY`. pytest leaves them by this module (`-p outcomes`), Rust's tests by what cargo prints
(`outcomes.py cargo LOG`), the others by themselves. With OUTCOMES_AGAIN=1 pytest leaves out what failed: it is run
once more. `outcomes.py close` makes the last line of them. With CI=true a skip fails that is not in tests/skips.txt.
"""

import fnmatch
import os
import re
import sys
import uuid
from collections import Counter, defaultdict
from pathlib import Path

ALLOWED = Path(__file__).with_name("skips.txt")
# What cargo nextest and cargo test close with.
NEXTEST = re.compile(r"Summary \[.*\] +\d+/?\d* tests? run: (?P<passed>\d+) passed(?P<rest>.*)")
CARGO_TEST = re.compile(r"test result: \w+\. (?P<passed>\d+) passed; (?P<failed>\d+) failed")
NEXTEST_FAILED = re.compile(r"(\d+) (?:failed|timed out)")
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def leave(lines):
    """Leaves lines for the last line of `make test`, if it runs."""
    if directory := os.environ.get("GENIE_OUTCOMES"):
        (Path(directory) / uuid.uuid4().hex).write_text("".join(f"{line}\n" for line in lines))


# pytest


class Told:
    def __init__(self):
        self.counts = Counter()
        self.skips = []

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.counts["failed"] += 1
        elif report.skipped and not hasattr(report, "wasxfail"):
            self.skip(report.nodeid, report.longrepr)
        elif report.when == "call":
            self.counts["passed"] += 1

    def pytest_collectreport(self, report):
        if report.failed:
            self.counts["failed"] += 1
        elif report.skipped:
            self.skip(report.nodeid, report.longrepr)

    def skip(self, test, why):
        why = why[2] if isinstance(why, tuple) else str(why)
        self.skips.append(f"skipped {test}\t{one_line(why.removeprefix('Skipped: '))}")

    def pytest_sessionfinish(self, session):
        if os.environ.get("OUTCOMES_AGAIN"):
            # What failed is run once more, and counts then.
            del self.counts["failed"]
        leave([f"{name} {count}" for name, count in self.counts.items()] + self.skips)


def pytest_configure(config):
    # With several processes (pytest-xdist), the first hears of all tests.
    if not hasattr(config, "workerinput"):
        config.pluginmanager.register(Told(), "genie-outcomes")


def one_line(text):
    return " ".join(text.split())


# cargo


def of_cargo(text):
    """Lines from what cargo nextest or cargo test printed."""
    text = COLOUR.sub("", text)
    if summaries := list(NEXTEST.finditer(text)):
        # It repeats what a test that failed printed, which looks as cargo test does.
        failed = sum(int(count) for one in summaries for count in NEXTEST_FAILED.findall(one["rest"]))
    else:
        summaries = list(CARGO_TEST.finditer(text))
        failed = sum(int(one["failed"]) for one in summaries)
    return [f"passed {sum(int(one['passed']) for one in summaries)}", f"failed {failed}"]


# The last line


def collect(directory):
    """(counts of passed and failed, {why: tests that were skipped})"""
    counts, skips = Counter(), defaultdict(list)
    for file in sorted(Path(directory).iterdir()):
        for line in file.read_text().splitlines():
            word, rest = line.split(None, 1)
            if word == "skipped":
                test, why = rest.split("\t", 1)
                skips[why].append(test)
            else:
                counts[word] += int(rest)
    return counts, skips


def allowed(path=ALLOWED):
    """Patterns of `TEST: WHY` that may be skipped where a continuous integration runs."""
    lines = (line.split("#", 1)[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]


def forbidden(skips, patterns):
    """Of the skips those that no pattern allows."""
    every = ((test, why) for why, tests in skips.items() for test in tests)
    return [(test, why) for test, why in every if not any(fnmatch.fnmatch(f"{test}: {why}", p) for p in patterns)]


def told(skips):
    """Which tests were skipped, and why; a whole file's together."""
    reasons = []
    for why, tests in skips.items():
        files = Counter(test.split("::")[0] for test in tests)
        names = (f"{file} ({count})" if count > 1 else next(t for t in tests if t.startswith(file)) for file, count in files.items())
        reasons.append(f"{', '.join(names)}: {why}")
    return "; ".join(reasons)


def close(directory, failed_parts, seconds, is_ci):
    """(the last line, whether all is well)"""
    counts, skips = collect(directory)
    skipped = sum(map(len, skips.values()))
    refused = forbidden(skips, allowed()) if is_ci else []
    problems = [f"FAILED: {', '.join(failed_parts)}"] if failed_parts else []
    if counts["failed"] and not failed_parts:
        problems.append("FAILED: a part that did not say so")
    if refused:
        problems.append(f"FAILED: {len(refused)} skipped in CI without a line in tests/{ALLOWED.name}")
    verdict = "; ".join(problems) or "ok"
    line = f"make test: {verdict}: {counts['passed']} passed, {counts['failed']} failed, {skipped} skipped in {seconds} s"
    return (f"{line}; skipped: {told(skips)}" if skips else line), not problems


def main(words):
    match words:
        case ["cargo", log]:
            leave(of_cargo(Path(log).read_text(errors="replace")))
        case ["close", seconds, *failed_parts]:
            is_ci = os.environ.get("CI", "").lower() in ("1", "true", "yes")
            line, is_well = close(os.environ["GENIE_OUTCOMES"], failed_parts, seconds, is_ci)
            print(line)
            return 0 if is_well else 1
        case _:
            sys.exit(f"usage: {sys.argv[0]} cargo LOG | close SECONDS [FAILED PART ...]")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
