"""The page that compares torch versions, from the results that `run.py --write` left for each.

    python tests/conformance/versions.py PAGE TORCH=RESULTS.json ...
"""

import json
import sys
from collections import Counter
from pathlib import Path

FAILED = ("fail", "crash", "hang")

HEAD = """# Conformance by torch version

Written by `make test-matrix WHOLE=1`: PyTorch's OpInfo database, forward, float32, as in
[conformance.md](conformance.md), on each version that Genie is built against. The database differs
between versions, so totals do too.

| torch | pass | fail | crash | hang | skip | samples |
|---|---|---|---|---|---|---|
"""


def page(results):
    lines = []
    for torch, entries in results.items():
        c = Counter(entry["forward"]["status"] for entry in entries)
        samples = sum(entry["forward"]["samples"] for entry in entries)
        lines.append(
            f"| {torch} | {c['pass']} | {c['fail']} | {c['crash']} | {c['hang']} | {c['skip']} | {samples} |"
        )
    text = HEAD + "\n".join(lines) + "\n"
    for torch, entries in results.items():
        text += f"\n## torch {torch}\n\n"
        failed = [entry for entry in entries if entry["forward"]["status"] in FAILED]
        if failed:
            text += "| entry | how | reason |\n|---|---|---|\n"
        for entry in failed:
            part = entry["forward"]
            text += f"| `{entry['op']}` | {part['status']} | {part['reason'].replace('|', '/')} |\n"
        fell_back = sorted({op for entry in entries for op in entry["fell_back"]})
        text += f"{'' if failed else 'No failures.'}\n"
        text += f"On the client's CPU: {', '.join(f'`{op}`' for op in fell_back) or 'nothing'}.\n"
    return text


def main():
    target, *named = sys.argv[1:]
    results = {}
    for each in named:
        torch, path = each.split("=", 1)
        results[torch] = json.loads(Path(path).read_text())
    Path(target).write_text(page(results))
    print(f"written: {target}")


if __name__ == "__main__":
    main()
