"""Every interval and every verdict of the package; notebooks, report and README use these alone.

One rule gives every verdict. The paper's number, plus or minus a stated margin, is a target range; ours is a 95 %
interval over seeds. Inside the target: reproduced. Outside: not reproduced. Across an edge, or fewer than three seeds:
undecided. So an interval too wide to exclude a contradiction never counts as a reproduction, and a difference too small
to matter never counts as a contradiction. For a claim "more than b" the target is all above b; an interval that
contains b is undecided.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

VERDICTS = ("reproduced", "not reproduced", "undecided", "cannot be checked")
SEEDS = 3  # fewer are not judged
MARGIN = 0.5  # points of accuracy: the noise of a single run on CIFAR-10, and the paper has one run for each number


@dataclass(frozen=True)
class Interval:
    """A mean of `n` values with its 95 % interval; `low` and `high` are nan for fewer than two values."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half(self) -> float:
        return (self.high - self.low) / 2


def mean_interval(values: Sequence[float]) -> Interval:
    """95 % interval of the mean of independent values (Student's t)."""
    return _student(values, len(values), further=0)


def prediction_interval(values: Sequence[float]) -> Interval:
    """95 % interval of one further value, for numbers of which the paper has a single run (Student's t)."""
    return _student(values, len(values), further=1)


def _student(values: Sequence[float], n: int, further: int) -> Interval:
    """mean ± t·sd·√(further + 1/n), with mean and standard deviation of `values`, as if they were `n`."""
    x = np.asarray(values, dtype=float)
    mean = float(x.mean()) if len(x) else math.nan
    half = float(stats.t.ppf(0.975, n - 1) * x.std(ddof=1)) * math.sqrt(further + 1 / n) if len(x) > 1 else math.nan
    return Interval(mean, mean - half, mean + half, n)


def paired_images(right: Sequence[bool], other: Sequence[bool]) -> Interval:
    """Difference in accuracy of two networks on the same images, in points, with the interval over images."""
    x = 100 * (np.asarray(right, dtype=float) - np.asarray(other, dtype=float))
    half = float(stats.norm.ppf(0.975) * x.std(ddof=1)) / math.sqrt(len(x))
    return Interval(float(x.mean()), float(x.mean()) - half, float(x.mean()) + half, len(x))


def paired_differences(table: pd.DataFrame, by: str, baseline, value: str = "accuracy_pct") -> pd.DataFrame:
    """`value` of each group of column `by` minus the `baseline` group's of the same seed.

    `table`: one row per run, with a column `seed`; several runs of a group and seed count as their mean. Each group has
    the noise of its own differences: a group that fails by 20 points widens no other's interval. Returns the columns
    `by`, difference (mean), low, high (its 95 % interval), half, n (seeds), each (list of the differences by seed).
    """
    cells = _cells(table, by, value)
    if baseline not in cells:
        raise ValueError(f"{baseline!r} is not in column {by!r}: {', '.join(map(str, cells))}")
    rows = []
    for name in cells:
        each = (cells[name] - cells[baseline]).dropna().tolist()
        i = mean_interval(each)
        rows += [(name, i.mean, i.low, i.high, i.half, i.n, each)] if each else []
    return pd.DataFrame(rows, columns=[by, "difference", "low", "high", "half", "n", "each"])


def scatter(table: pd.DataFrame, by: str = "rate", value: str = "accuracy_pct") -> float:
    """Standard deviation of a single run around a smooth curve over `by`, from neighbours of the same seed.

    Differences are taken within each seed: those of means over n seeds would be smaller by √n.
    """
    steps = _cells(table, by, value).diff(axis=1).iloc[:, 1:].to_numpy()
    return math.sqrt(np.nanmean(steps**2) / 2)


def _cells(table: pd.DataFrame, by: str, value: str) -> pd.DataFrame:
    return table.groupby(["seed", by])[value].mean().unstack()


def verdict(interval: Interval, target: tuple[float, float]) -> str:
    """One of VERDICTS, by where `interval` lies against the range `target`."""
    low, high = target
    if interval.n < SEEDS:
        return "undecided"
    if low < interval.low and interval.high < high:
        return "reproduced"
    return "not reproduced" if interval.high < low or interval.low > high else "undecided"


def seeds_to_decide(values: Sequence[float], target: tuple[float, float], further: int = 0) -> int | None:
    """How many seeds would end "undecided" if mean and standard deviation stayed as they are.

    `further`: 0 where the mean's interval is judged, 1 where one further value's is. None: no number up to 1000 would,
    or the standard deviation is unknown (fewer than two values).
    """
    if len(values) < 2:
        return None
    counts = range(max(SEEDS, len(values)), 1001)
    return next((n for n in counts if verdict(_student(values, n, further), target) != "undecided"), None)
