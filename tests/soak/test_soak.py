"""A short slice of `make soak`, and that its judge can say no."""

import random
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))
from growth import MEBI, growth

SLICE_MINUTES = 1
SLICE_SECONDS_MAX = 1500


def sampled(hours, mib_per_hour, noise_mib=0.0, step_mib=0.0, count=600):
    """Samples of a level of 200 MiB that grows, wanders and steps up once, in the middle."""
    numbers = random.Random(5)
    for i in range(count):
        at = hours * i / (count - 1)
        level = 200 + mib_per_hour * at + numbers.gauss(0, noise_mib) + (step_mib if i > count // 2 else 0)
        yield 3600 * at, level * MEBI


VERDICTS = {
    "flat": (sampled(6, 0), True),
    "noise": (sampled(6, 0, noise_mib=20), True),
    "half of what is allowed": (sampled(6, 0.5, noise_mib=1), True),
    "twice of what is allowed": (sampled(6, 2, noise_mib=1), False),
    "much, in noise": (sampled(6, 40, noise_mib=10), False),
    "shrinks": (sampled(6, -20), True),
    "a short run, a step of an allocator": (sampled(1 / 60, 0, step_mib=2), True),
    "a short run, a leak": (sampled(1 / 60, 1200, noise_mib=1), False),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_verdict(name):
    samples, bounded = VERDICTS[name]
    found = growth(list(samples))
    assert found.is_bounded == bounded, found


def test_what_a_run_can_tell_is_said():
    assert growth(list(sampled(6, 0))).bound == 1.0
    assert growth(list(sampled(1 / 60, 0))).bound == pytest.approx(240)


def test_a_slice_of_the_soak():
    command = [sys.executable, HERE / "run.py", "--minutes", str(SLICE_MINUTES)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SLICE_SECONDS_MAX)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "soak: ok" in done.stdout
