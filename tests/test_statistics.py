"""Each statistic on made-up data with a known answer, and the mistakes that are easily made."""

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mnv3nb.report.statistics import (
    Interval,
    mean_interval,
    paired_differences,
    paired_images,
    prediction_interval,
    scatter,
    seeds_to_decide,
    verdict,
)


def frame(cells: dict[str, list[float]], by: str = "criterion") -> pd.DataFrame:
    """One row per run from the values of each group, one per seed."""
    rows = [(name, seed, value) for name, values in cells.items() for seed, value in enumerate(values)]
    return pd.DataFrame(rows, columns=[by, "seed", "accuracy_pct"])


def test_the_interval_of_the_mean_of_three_is_2_484_standard_deviations_wide_each_way():
    found = mean_interval([87.0, 88.0, 89.0])  # mean 88, sd 1; t of 2 degrees of freedom is 4.302653
    assert found.mean == 88 and found.n == 3
    assert found.half == pytest.approx(4.302653 / math.sqrt(3), rel=1e-6)
    assert (found.low, found.high) == pytest.approx((88 - 2.484138, 88 + 2.484138), rel=1e-6)


def test_the_interval_of_one_more_value_is_twice_as_wide_for_three():
    assert prediction_interval([87.0, 88.0, 89.0]).half == pytest.approx(2 * 4.302653 / math.sqrt(3), rel=1e-6)


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12))
def test_the_interval_of_the_mean_is_that_of_scipy(values):
    expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values) or 1e-300)
    found = mean_interval(values)
    assert (found.low, found.high) == pytest.approx(expected, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("values", [[], [1.0]])
def test_fewer_than_two_values_have_no_interval(values):
    found = mean_interval(values)
    assert math.isnan(found.low) and math.isnan(found.high) and found.n == len(values)


def test_95_of_100_intervals_contain_the_mean_and_95_of_100_predictions_the_next_value():
    draws = np.random.default_rng(0).normal(size=(4000, 4))
    means = [mean_interval(row[:3]) for row in draws]
    nexts = [prediction_interval(row[:3]) for row in draws]
    assert np.mean([i.low < 0 < i.high for i in means]) == pytest.approx(0.95, abs=0.012)
    assert np.mean([i.low < row[3] < i.high for i, row in zip(nexts, draws)]) == pytest.approx(0.95, abs=0.012)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0.1, 0.7, "reproduced"),
        (1.0, 1.2, "not reproduced"),
        (-2.0, -0.2, "not reproduced"),
        (0.1, 1.0, "undecided"),  # across an edge
        (-3.0, 3.0, "undecided"),  # contains the paper's number, and much that contradicts it
        (-0.1, 0.7, "undecided"),  # touches the edge
    ],
)
def test_a_difference_is_reproduced_only_inside_the_margin(low, high, expected):
    assert verdict(Interval((low + high) / 2, low, high, 3), (0.4 - 0.5, 0.4 + 0.5)) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.01, 2.0, "reproduced"), (-2.0, -0.01, "not reproduced"), (-0.01, 2.0, "undecided"), (0.0, 0.0, "undecided")],
)
def test_a_claim_whose_interval_contains_its_bound_is_undecided(low, high, expected):
    assert verdict(Interval((low + high) / 2, low, high, 3), (0.0, math.inf)) == expected


def test_fewer_than_three_seeds_are_undecided():
    assert verdict(Interval(0.4, 0.39, 0.41, 2), (-0.1, 0.9)) == "undecided"
    assert verdict(mean_interval([0.4]), (-0.1, 0.9)) == "undecided"


def test_differences_are_paired_by_seed():
    table = frame({"m": [70.0, 80.0, 90.0], "gamma": [70.1, 80.0, 90.2]})
    row = paired_differences(table, "criterion", "m").set_index("criterion").loc["gamma"]
    assert row.difference == pytest.approx(0.1) and row.n == 3
    assert row.each == pytest.approx([0.1, 0.0, 0.2])
    assert row.half == pytest.approx(4.302653 * 0.1 / math.sqrt(3), rel=1e-4)  # not the seeds' own ten points


def test_a_criterion_that_fails_by_20_points_widens_no_others_interval():
    close, failing = [70.1, 80.0, 90.2], [50.0, 75.0, 40.0]
    alone = paired_differences(frame({"m": [70.0, 80.0, 90.0], "gamma": close}), "criterion", "m")
    both = paired_differences(frame({"m": [70.0, 80.0, 90.0], "gamma": close, "l1": failing}), "criterion", "m")
    pick = [t.set_index("criterion").loc["gamma", ["low", "high"]].tolist() for t in (alone, both)]
    assert pick[0] == pick[1]


def test_repetitions_within_a_seed_are_no_further_seeds():
    once = frame({"m": [70.0, 80.0, 90.0], "gamma": [70.1, 80.0, 90.2]})
    thrice = pd.concat([once.assign(accuracy_pct=once.accuracy_pct + shift) for shift in (-0.3, 0.0, 0.3)])
    found = [paired_differences(t, "criterion", "m").set_index("criterion").loc["gamma"] for t in (once, thrice)]
    assert found[0].n == found[1].n == 3 and found[0].half == pytest.approx(found[1].half)


def test_only_seeds_that_have_both_count():
    table = frame({"m": [70.0, 80.0], "gamma": [71.0]})
    row = paired_differences(table, "criterion", "m").set_index("criterion").loc["gamma"]
    assert row.difference == 1 and row.n == 1 and math.isnan(row.half)


def test_an_unknown_baseline_is_named():
    with pytest.raises(ValueError, match="'l2' is not in column 'criterion': gamma, m"):
        paired_differences(frame({"m": [70.0], "gamma": [71.0]}), "criterion", "l2")


def test_the_noise_of_a_pruning_is_a_single_runs_not_the_means_of_three_seeds():
    cells = np.random.default_rng(0).normal(80, 0.4, size=(300, 3))  # 300 rates, 3 seeds
    table = frame({rate: list(row) for rate, row in enumerate(cells)}, "rate")
    assert scatter(table) == pytest.approx(0.4, rel=0.1)
    means = cells.mean(axis=1)  # differences of means over three seeds give √3 times less
    assert math.sqrt(np.mean(np.diff(means) ** 2) / 2) == pytest.approx(0.4 / math.sqrt(3), rel=0.1)


def test_two_networks_on_the_same_images_differ_only_where_they_disagree():
    right, other = np.zeros(1000, dtype=bool), np.zeros(1000, dtype=bool)
    right[:500], other[:500], right[500:530], other[530:540] = True, True, True, True  # 40 disagreements, 30 to 10
    found = paired_images(right, other)
    assert found.mean == pytest.approx(2.0) and found.n == 1000
    assert found.half == pytest.approx(1.96 * 100 * math.sqrt(40 / 1000 - 0.02**2) / math.sqrt(1000), rel=1e-3)


def test_how_many_seeds_would_decide():
    values = [0.15, 0.40, 0.65]  # sd 0.25
    needed = seeds_to_decide(values, (0.0, math.inf))
    half = [stats.t.ppf(0.975, n - 1) * 0.25 / math.sqrt(n) for n in (needed - 1, needed)]
    assert needed == 4 and half[1] < 0.40 < half[0]
    assert seeds_to_decide([0.4], (0.0, math.inf)) is None  # no standard deviation
    assert seeds_to_decide([-1.0, 0.0, 1.0], (0.0, math.inf)) is None  # the mean is the bound
    assert (
        seeds_to_decide([0.0, 10.0, 20.0], (9.0, 11.0), one_more=True) is None
    )  # single values scatter more than that
