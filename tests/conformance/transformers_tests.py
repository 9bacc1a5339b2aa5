"""transformers' own tests of models on the device: what passes on the CPU must pass there.

    python tests/conformance/transformers_tests.py --src DIR [--models NAME ...] [--write FILE]

DIR is a source tree of transformers (their sdist and wheel leave the models' tests out). Each model's
files run twice, once on the CPU and once on the device; nothing of the tree is written to.
"""

import argparse
import datetime
import os
import platform
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from importlib.metadata import version
from pathlib import Path

HERE = Path(__file__).resolve().parent
MODELS = ("gpt2", "bert", "llama", "t5", "vit", "clip")
# Their tests of tokenizers touch no device.
FILES = ("test_modeling_*.py", "test_image_processing_*.py")
SPECIFICATION = "device_spec.py"
DEVICE = "remote_accelerator"
SECONDS_MAX = 3600


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--src", type=Path, required=True, help="a source tree of transformers")
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--write", type=Path, help="the page to write")
    arguments = parser.parse_args()
    source = arguments.src.resolve()
    if not (source / "tests" / "models").is_dir():
        sys.exit(f"{source} has no tests/models: SRC=DIR is a checkout of transformers, of the version installed")
    rows, lost = [], []
    with tempfile.TemporaryDirectory(prefix="genie-hf-") as folder:
        work = working_directory(Path(folder), source)
        for model in arguments.models:
            cpu, device = (outcomes(work, model, name) for name in ("cpu", DEVICE))
            rows.append((model, cpu, device))
            missing = sorted(test for test, result in cpu.items() if result == "passed" and device.get(test) != "passed")
            lost += [f"{model}: {test}: {device.get(test, 'not run')} on the device" for test in missing]
            print(f"{model}: cpu {told(cpu)}; {DEVICE} {told(device)}; {len(missing)} lost", flush=True)
    for line in lost:
        print(f"  {line}")
    if arguments.write and not lost:
        arguments.write.write_text(page(rows))
    sys.exit(1 if lost else 0)


def working_directory(work, source):
    """Their tests read files by paths below the current directory, and the specification lies in it."""
    for entry in source.iterdir():
        if not entry.name.startswith("."):
            (work / entry.name).symlink_to(entry)
    (work / SPECIFICATION).symlink_to(HERE / "hf" / SPECIFICATION)
    return work


def outcomes(work, model, device):
    """{test: passed, failed, error or skipped} of a model's files."""
    folder = Path("tests", "models", model)
    files = [str(path.relative_to(work)) for pattern in FILES for path in sorted((work / folder).glob(pattern))]
    if not files:
        sys.exit(f"no tests of the model {model} in {folder}")
    report = work / f"report-{model}-{device}.xml"
    command = [sys.executable, "-m", "pytest", "-p", Path(SPECIFICATION).stem, "-p", "no:cacheprovider", "--rootdir=."]
    command += ["-q", "--tb=line", f"--junitxml={report}", *files]
    environment = {
        **os.environ,
        "TRANSFORMERS_TEST_DEVICE": device,
        "TRANSFORMERS_TEST_DEVICE_SPEC": SPECIFICATION,
        "HF_HUB_OFFLINE": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONPATH": os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(work)]),
    }
    log = work / f"{model}-{device}.log"
    with log.open("w") as out:
        ended = subprocess.run(command, cwd=work, env=environment, stdout=out, stderr=out, timeout=SECONDS_MAX)
    # 0: all passed, 1: some failed. Anything else is no run of tests.
    if ended.returncode not in (0, 1):
        sys.exit(f"the tests of {model} on {device} did not run (pytest ended with {ended.returncode}):\n{log.read_text()[-4000:]}")
    return dict(map(outcome, ElementTree.parse(report).iter("testcase")))


def outcome(case):
    name = f"{case.get('classname').rpartition('.')[2]}::{case.get('name')}"
    for kind, result in (("failure", "failed"), ("error", "error"), ("skipped", "skipped")):
        if case.find(kind) is not None:
            return name, result
    return name, "passed"


def told(results):
    counts = Counter(results.values())
    return f"{counts['passed']} passed, {counts['failed'] + counts['error']} failed, {counts['skipped']} skipped"


def page(rows):
    lines = [
        "# transformers' own tests",
        "",
        f"The test files of transformers {version('transformers')} for {len(rows)} models, from their source tree, on "
        f"the CPU and on `{DEVICE}` (`make conformance-hf SRC=DIR`). Every test that passes on the CPU passes on the "
        "device. What fails on both asks for a download; what the device runs beyond are tests for accelerators.",
        "",
        "The tolerance of their comparison of eager and sdpa attention is a table by the device's name; the device gets "
        "the CPU's row (`tests/conformance/hf/device_spec.py`), as it runs the CPU's kernels.",
        "",
        "| model | CPU: passed | failed | skipped | device: passed | failed | skipped |",
        "|---|---|---|---|---|---|---|",
    ]
    for model, *both in rows:
        cells = [model]
        for results in both:
            counts = Counter(results.values())
            cells += [counts["passed"], counts["failed"] + counts["error"], counts["skipped"]]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", f"torch {version('torch')}, Python {platform.python_version()}, {datetime.date.today()}.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
