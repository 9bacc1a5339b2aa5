"""How fast a level grows, and whether that is too much: a straight line through what was sampled."""

import math
import statistics
from dataclasses import dataclass

MEBI = 1 << 20
# What is asked for, of each process.
GROWTH_MIB_PER_HOUR_MAX = 1.0
# Allocators give and take: a level that wanders by so much has not grown. It bounds what a run can tell.
WANDER_MIB = 4.0
# A level is the median of as many samples as fall into one of these parts of a run.
BLOCKS = 24


@dataclass(frozen=True)
class Growth:
    """Of one process."""

    start_mib: float
    end_mib: float
    mib_per_hour: float
    """The slope of the line."""
    uncertainty: float
    """Of the slope: twice its standard error."""
    hours: float

    @property
    def bound(self):
        """The growth that this run can tell from none, or what is asked for if that is more."""
        return max(GROWTH_MIB_PER_HOUR_MAX, WANDER_MIB / self.hours)

    @property
    def is_bounded(self):
        return self.mib_per_hour - self.uncertainty < self.bound and self.mib_per_hour < 2 * self.bound


def growth(samples):
    """Of [(seconds, bytes resident)], in order of time."""
    if len(samples) < BLOCKS:
        raise ValueError(f"{len(samples)} samples are too few for a line; at least {BLOCKS}")
    first, last = samples[0][0], samples[-1][0]
    blocks = [[] for _ in range(BLOCKS)]
    for seconds, resident in samples:
        blocks[min(BLOCKS - 1, int((seconds - first) / (last - first) * BLOCKS))].append((seconds, resident))
    points = [
        (statistics.mean(s for s, _ in block) / 3600, statistics.median(r for _, r in block) / MEBI)
        for block in blocks
        if block
    ]
    hours, levels = zip(*points, strict=True)
    line = statistics.linear_regression(hours, levels)
    squares = sum((level - line.slope * hour - line.intercept) ** 2 for hour, level in points)
    middle = statistics.mean(hours)
    spread = sum((hour - middle) ** 2 for hour in hours)
    uncertainty = 2 * math.sqrt(squares / (len(points) - 2) / spread)
    return Growth(levels[0], levels[-1], line.slope, uncertainty, (last - first) / 3600)
