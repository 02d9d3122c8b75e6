"""Every interval and every verdict of the package. Notebooks, the report and README use these alone.

One rule gives every verdict. The paper's number, plus or minus a stated margin, is a target range. Ours is a 95 %
interval over seeds. Inside the target: reproduced. Outside: not reproduced. Across an edge, or fewer than three seeds:
undecided. So an interval too wide to exclude a contradiction never counts as a reproduction, and a difference too small
to matter never counts as a contradiction. For a claim "more than b" the target is everything above b, and an interval
that contains b is undecided.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

REPRODUCED = "reproduced"
NOT_REPRODUCED = "not reproduced"
UNDECIDED = "undecided"
CANNOT_BE_CHECKED = "cannot be checked"
VERDICTS = (REPRODUCED, NOT_REPRODUCED, UNDECIDED, CANNOT_BE_CHECKED)

SEEDS_NEEDED = 3  # fewer are not judged
MARGIN = 0.5  # points of accuracy: the noise of a single run on CIFAR-10, and the paper has one run for each number
UPPER = 0.975  # a two-sided 95 % interval leaves 2.5 % on either side
MOST_SEEDS = 1000  # `seeds_to_decide` looks no further


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval."""

    mean: float
    low: float  # nan for fewer than two values, as is `high`
    high: float
    n: int  # number of values

    @property
    def half(self) -> float:
        """Half of the interval's width."""
        return (self.high - self.low) / 2


def mean_interval(values: Sequence[float]) -> Interval:
    """95 % interval of the mean of independent values (Student's t)."""
    return _student_interval(values, len(values), one_more=False)


def prediction_interval(values: Sequence[float]) -> Interval:
    """95 % interval of one more value, for numbers of which the paper has a single run (Student's t)."""
    return _student_interval(values, len(values), one_more=True)


def verdict(interval: Interval, target: tuple[float, float]) -> str:
    """One of VERDICTS, by where `interval` lies against the range `target` = (low, high)."""
    low, high = target
    if interval.n < SEEDS_NEEDED:
        return UNDECIDED
    if low < interval.low and interval.high < high:
        return REPRODUCED
    if interval.high < low or interval.low > high:
        return NOT_REPRODUCED
    return UNDECIDED


def seeds_to_decide(values: Sequence[float], target: tuple[float, float], one_more: bool = False) -> int | None:
    """Number of seeds that would end "undecided" if mean and standard deviation stayed the same.

    `one_more`: the interval of one more value is judged, not that of the mean. None: not even MOST_SEEDS would decide,
    or the standard deviation is unknown (fewer than two values).
    """
    if len(values) < 2:
        return None
    for n in range(max(SEEDS_NEEDED, len(values)), MOST_SEEDS + 1):
        if verdict(_student_interval(values, n, one_more), target) != UNDECIDED:
            return n
    return None


def _student_interval(values: Sequence[float], n: int, one_more: bool) -> Interval:
    """The interval that `n` values with the mean and standard deviation sd of `values` would have.

    The mean of n values has the variance sd²/n. One more value differs from it by sd² + sd²/n.
    scipy's `t.interval` and `ttest_1samp` give the same for the mean, but nan or a warning for values that are equal.
    """
    x = np.asarray(values, dtype=float)
    if len(x) == 0:
        return Interval(math.nan, math.nan, math.nan, n)
    mean = float(x.mean())
    if len(x) == 1:
        return Interval(mean, math.nan, math.nan, n)
    variances = 1 + 1 / n if one_more else 1 / n
    half = float(stats.t.ppf(UPPER, n - 1) * x.std(ddof=1)) * math.sqrt(variances)
    return Interval(mean, mean - half, mean + half, n)


def paired_images(correct: Sequence[bool], baseline_correct: Sequence[bool]) -> Interval:
    """Difference in accuracy of two networks on the same images, in points, with its interval over the images.

    Both hold one entry per image: whether the network classifies it correctly.
    """
    difference = 100 * (np.asarray(correct, dtype=float) - np.asarray(baseline_correct, dtype=float))
    mean = float(difference.mean())
    half = float(stats.norm.ppf(UPPER) * difference.std(ddof=1)) / math.sqrt(len(difference))
    return Interval(mean, mean - half, mean + half, len(difference))


def paired_differences(
    table: pd.DataFrame, by: str, baseline: float | str, value: str = "accuracy_pct"
) -> pd.DataFrame:
    """`value` of each group of column `by` minus that of the group `baseline` with the same seed.

    `table`: one row per run, with a column `seed`; several runs of a group and seed count as their mean. Each interval
    has the noise of its own differences: a group that fails by 20 points widens no other's interval. Returns the
    columns `by`, difference (mean), low, high (its 95 % interval), half, n (seeds), each (differences, one per seed).
    Raises ValueError if no run belongs to `baseline`.
    """
    means = _seed_means(table, by, value)
    if baseline not in means:
        raise ValueError(f"{baseline!r} is not in column {by!r}: {', '.join(map(str, means))}")
    rows = []
    for group in means:
        differences = (means[group] - means[baseline]).dropna().tolist()
        if not differences:
            continue
        interval = mean_interval(differences)
        rows.append(
            {
                by: group,
                "difference": interval.mean,
                "low": interval.low,
                "high": interval.high,
                "half": interval.half,
                "n": interval.n,
                "each": differences,
            }
        )
    return pd.DataFrame(rows, columns=[by, "difference", "low", "high", "half", "n", "each"])


def scatter(table: pd.DataFrame, by: str = "rate", value: str = "accuracy_pct") -> float:
    """Standard deviation of a single run around a smooth curve over `by`, from neighbours of the same seed.

    A difference of two runs has twice the variance of one. Differences are taken within each seed: those of means over
    n seeds would be smaller by √n.
    """
    steps = _seed_means(table, by, value).diff(axis=1).iloc[:, 1:].to_numpy()
    return math.sqrt(np.nanmean(steps**2) / 2)


def _seed_means(table: pd.DataFrame, by: str, value: str) -> pd.DataFrame:
    """Mean of `value`, one row per seed and one column per group; nan where a seed lacks a group."""
    return table.groupby(["seed", by])[value].mean().unstack()
