"""The report: the paper's claims, their measures, and the verdicts of made-up runs with known answers."""

import json
import math
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import pages
import pandas as pd
import pytest
import torch

from mnv3nb import DENSE_WIDTHS, MobileNetV3Large, count_parameters, paper
from mnv3nb.data.batches import to_input
from mnv3nb.report import feature_maps, measures
from mnv3nb.report.claims import KINDS, claims, questions
from mnv3nb.report.statistics import VERDICTS
from mnv3nb.report.verdicts import count_verdicts, judge, judge_claims, readable_table, reproduction
from mnv3nb.runs.config import RunConfig
from mnv3nb.runs.profiles import EXPERIMENTS, PROFILES, get_profile

ROOT = Path(__file__).parent.parent
CIFAR = get_profile("cifar")
SQUEEZE = MobileNetV3Large().squeeze
NOISE = {0: 0.05, 1: -0.02, 2: -0.03}  # points that a seed adds to the gain of pruning


@dataclass(frozen=True)
class FakeRun:
    """What the report reads of a run: γ of which 45 % are dead, S, and an accuracy that `points` gives, in %."""

    config: RunConfig
    points: float
    network: torch.nn.Module | None = None

    @property
    def key(self) -> str:
        return f"{hash(self.config):x}"

    @property
    def accuracy(self) -> float:
        return self.points / 100

    @property
    def history(self) -> list[dict]:
        return [{"train_accuracy": self.accuracy}]

    @property
    def gamma(self) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        size = torch.rand(sum(DENSE_WIDTHS), generator=generator, dtype=torch.double) + 0.1
        dead = torch.rand(len(size), generator=generator) < 0.45
        alive = 0.5 / (1 + self.config.train.lam)
        return list(torch.where(dead, 1e-10 * size, alive * size).split(DENSE_WIDTHS))

    @property
    def sparsity(self) -> list[torch.Tensor]:
        return [torch.linspace(0.1, 0.6, width).double() for width in DENSE_WIDTHS]

    @property
    def importance(self) -> list[torch.Tensor]:
        return [gamma * s for gamma, s in zip(self.gamma, self.sparsity)]

    def model(self) -> torch.nn.Module:
        return self.network

    @property
    def result(self) -> dict:
        return {
            "accuracy_before": 0.5,
            "parameters": 4_215_130,
            "widths": DENSE_WIDTHS,
            "squeeze": SQUEEZE,
            "seconds": 60,
        }


class FakeRuns:
    """Finds every run without its network: pruning costs nothing, S alone 20 points, λ = 0 half a point."""

    def __init__(self, seeds: int = 3):
        self.seeds = seeds

    def find(self, config: RunConfig, model: bool = False) -> FakeRun | None:
        root = config.parent or config
        if model or root.train.seed >= self.seeds:
            return None
        points = 80 + root.train.seed  # seeds differ more than rates do
        if config.prune:
            points += 0.4 + NOISE[root.train.seed] - 20 * (config.prune.criterion == "sparsity")
        elif config.train.lam == 0:
            points -= 0.5
        return FakeRun(config, points)


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return reproduction(CIFAR, FakeRuns(), range(3))[0].set_index("name")


@pytest.mark.parametrize("name", PROFILES)
def test_the_paper_makes_146_numbers_and_claims(name):
    found = pd.Series([claim.source for claim in claims(get_profile(name))]).value_counts()
    assert found.to_dict() == {
        "Table 1": 4,
        "Table 2": 32,
        "Table 3": 37,
        "Table 4": 6,
        "Table 5": 17,
        "Table 6": 33,
        "Figure 6": 5,
        "§ 2.3": 1,
        "§ 3.2.1": 3,
        "§ 3.2.3": 6,
        "§ 3.2.5": 2,
    }


@pytest.mark.parametrize("name", PROFILES)
def test_every_claim_is_of_a_known_kind_and_named_once(name):
    profile = get_profile(name)
    every = [*claims(profile), *questions(profile)]
    assert {claim.kind for claim in every} <= set(KINDS)
    assert len({(claim.source, claim.name) for claim in every}) == len(every)


@pytest.mark.parametrize("name", ["cifar", "gpu", "paper"])
def test_the_runs_of_every_claim_that_can_be_checked_are_planned(name):
    p = get_profile(name)
    planned = {config for make in EXPERIMENTS.values() for config in make(p, 1)}
    for claim in [*claims(p), *questions(p)]:
        assert claim.cannot or set(claim.configs(1)) <= planned, claim.name


def test_exact_facts_are_equal_as_printed_except_those_of_table_1(table):
    exact = table[table.kind == "exact"]
    assert len(exact) == 14 and set(exact[exact.verdict != "reproduced"].source) == {"Table 1"}
    assert table.ours["parameters, M, dense network"].tolist() == [4.215130, 4.330420]  # Tables 3 and 6
    assert table.ours["filters kept at 50%"] == 2507
    for name in ("parameters of the blocks, %", "flops of the blocks, %"):  # without what the paper may have left out
        assert abs(float(table.why[name].split("; ")[1].split()[0]) - table.paper[name]) < 0.011


def test_accuracies_are_compared_as_differences_paired_by_seed(table):
    row = table.loc["accuracy, 50% pruned − plain network, points"]
    assert row.paper == 0.27 and row.ours == pytest.approx(0.9) and row.n == 3
    assert row.high - row.low < 0.3  # the seeds' own differences of a point drop out
    assert row.verdict == "not reproduced"  # half a point above 0.27 at the most
    assert table.paper["accuracy, 50% pruned − sparse-trained, points"] == 0.40
    assert table.verdict["accuracy, 50% pruned − sparse-trained, points"] == "reproduced"
    assert table.paper["accuracy, 10% pruned − plain network, points"] == -0.42
    assert table.verdict["accuracy, 10% pruned − plain network, points"] == "not reproduced"
    assert table.paper["accuracy, 50% pruned − unpruned, points"] == -0.25  # CIFAR-100


def test_figure_6_pairs_lambdas_by_their_order_and_names_both(table):
    names = [name for name in table.index if name.startswith("accuracy, λ =") and "−" in name]
    assert names[0] == "accuracy, λ = 1e-06 (ours: 3e-06) − plain network, points"
    assert table.paper[names].tolist() == [-0.13, -0.13, -1.06, -2.78]


def test_the_chosen_lambdas_are_paired_and_a_lambda_without_a_counterpart_needs_no_run():
    digits = get_profile("digits")  # its chosen λ stands one place further than the paper's
    every = {claim.name: claim for claim in claims(digits) if claim.source == "Figure 6"}
    assert "accuracy, λ = 1e-05 (ours: 0.0014) − plain network, points" in every
    alone = every["accuracy, λ = 0.001 − plain network, points"]
    assert alone.cannot and alone.configs(0) == []


def test_repeats_count_as_their_mean():
    (claim,) = [c for c in claims(replace(CIFAR, repeats=3)) if c.name == "accuracy, m at 50% − plain network, points"]
    runs = [SimpleNamespace(accuracy=accuracy) for accuracy in (0.9, 0.9, 0.9, 0.8)]
    configs = claim.configs(0)
    assert len(configs) == 4 and claim.value(0, dict(zip(configs, runs))) == pytest.approx(10)


@pytest.mark.parametrize("classes", [2, 10, 1000])
def test_the_costs_of_a_run_are_those_of_its_own_number_of_classes(classes, monkeypatch):
    run = FakeRun(CIFAR.sparse_config(), 80)
    about = run.result | {"parameters": count_parameters(MobileNetV3Large(classes))}
    monkeypatch.setattr(FakeRun, "result", about)
    (row,) = measures.run_table([run]).itertuples()
    assert 1e6 * row.parameters_m == about["parameters"] and row.fewer_parameters_pct == 0


def test_each_criterion_is_judged_by_its_own_differences(table):
    clear, tie = (table.loc[f"accuracy, m − {name} at 50%, points"] for name in ("sparsity", "gamma"))
    assert clear.verdict == "reproduced" and clear.low == clear.high == pytest.approx(20)
    assert tie.verdict == "undecided" and tie.ours == 0  # the interval contains its bound


def test_a_claim_is_undecided_where_the_interval_contains_its_bound_and_costs_are_measured(table):
    name = "accuracy, pruning generalises better: 50% − rate 0 fine-tuned as long, points"
    assert table.verdict[name] == "undecided" and table.ours[name] == 0
    assert 2.0 < table.ours["parameters, M, 50% pruned"].iloc[0] < 3.0
    assert table.ours["rate after that jump, %"] == 50
    assert table.verdict["largest jump of the threshold between rates, decades"] == "reproduced"


def test_missing_runs_are_named_by_experiment_and_seed(table):
    assert table.missing["accuracy, 50% pruned − plain network, points"] == []
    one = reproduction(CIFAR, FakeRuns(1), range(2), "Table 3")[0].set_index("name")
    row = one.loc["accuracy, 50% pruned − plain network, points"]
    assert row.missing == [("half", 1), ("plain_and_sparse", 1)] and row.verdict == "undecided" and row.n == 1
    assert math.isnan(row.low) and row.why == "fewer than 3 seeds"
    assert set(one.source) == {"Table 3"}


def test_networks_that_are_not_recorded_leave_a_claim_undecided(table):
    row = table[table.source == "§ 2.3"].iloc[0]
    assert row.verdict == "undecided" and row.n == 0 and row.missing


@pytest.mark.parametrize("name", ["smoke", "digits"])
def test_accuracies_of_digits_cannot_be_checked(name):
    found = reproduction(get_profile(name), FakeRuns(0), range(3))[0]
    accuracies = found[found.name.str.startswith("accuracy") & (found.kind == "points")]
    assert set(accuracies.verdict) == {"cannot be checked"} and len(accuracies) > 15


def test_the_papers_own_profile_compares_the_accuracies_themselves():
    found = reproduction(get_profile("paper"), FakeRuns(0), [], "Table 3")[0].set_index("name")
    assert found.paper["accuracy, 50% pruned, %"] == 88.55 and found.verdict["accuracy, unpruned, %"] == "undecided"


def test_counts_and_the_readable_table(table):
    frame = table.reset_index()
    assert count_verdicts(frame).loc["all"].sum() == len(frame) and list(count_verdicts(frame)) == list(VERDICTS)
    text = readable_table(frame).set_index("claim")
    assert text.paper["Table 4: accuracy, m − gamma at 50%, points"] == "> 0"
    assert text.seeds["Table 5: filters kept at 50%"] == "exact"


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([0.070, 0.071, 0.069], "reproduced"),  # within a factor of three of 0.0700
        ([0.007, 0.0071, 0.0069], "not reproduced"),
        ([0.5, 0.07, 0.01], "undecided"),
    ],
)
def test_thresholds_are_judged_by_factors(values, verdict):
    (claim,) = [claim for claim in claims(CIFAR) if claim.name == "threshold at 50%"]
    row = judge(claim, values)
    assert row["verdict"] == verdict
    assert row["ours"] == pytest.approx(math.prod(values) ** (1 / 3))  # the mean of the logarithms


def test_table_2_slices_the_ranking_and_its_jump_is_found():
    found = measures.table_2(FakeRuns().find(CIFAR.sparse_config()))
    assert found.rate.tolist() == paper.TABLE_2.rate.tolist() and found.threshold.is_monotonic_increasing
    assert (found.gamma_max[:4] < 1e-9).all() and found.gamma_min[5] > 0.01
    assert measures.largest_jump(paper.TABLE_2) == pytest.approx((8.948, 50), abs=1e-3)


def test_45_percent_of_the_filters_are_dead_and_both_rankings_keep_nearly_the_same():
    run = FakeRuns().find(CIFAR.sparse_config())
    assert measures.dead_share(run) == pytest.approx(45, abs=2)
    assert 90 < measures.kept_by_both(run) <= 100


def test_effective_rank_counts_different_features():
    assert feature_maps.effective_rank(torch.eye(4)) == pytest.approx(4)
    assert feature_maps.effective_rank(torch.ones(4, 4)) == pytest.approx(1)
    assert feature_maps.effective_rank(torch.zeros(2, 2)) == 0


def test_class_share_is_1_where_classes_explain_everything_and_0_where_they_explain_nothing():
    labels = torch.tensor([0, 0, 1, 1])
    assert feature_maps.class_share(torch.tensor([[1.0], [1.0], [3.0], [3.0]]), labels) == pytest.approx(1)
    assert feature_maps.class_share(torch.tensor([[1.0], [3.0], [1.0], [3.0]]), labels) == pytest.approx(0)


def test_map_statistics_of_kept_channels_are_those_of_a_plain_loop(dense, digits):
    images, labels = digits.test_images[:40], digits.test_labels[:40]
    masks = [torch.arange(width) % 2 == 0 for width in DENSE_WIDTHS]
    row = feature_maps.map_statistics(dense, images, labels, 32, masks)[3]
    maps = feature_maps.expansion_maps(dense, to_input(images, 32))[3][:, masks[3]]
    flat = maps.movedim(1, 0).flatten(1).double()
    assert row["variance"] == pytest.approx(float(flat.var(1, correction=0).mean()), rel=1e-4)
    assert row["rank"] == pytest.approx(feature_maps.effective_rank(torch.cov(flat, correction=0)), rel=1e-4)


def test_both_accuracies_of_the_own_mean_come_from_the_same_images(dense, monkeypatch):
    seen = []

    def evaluate(model, images, labels, image_size):
        seen.append((images.data_ptr(), len(images), len(labels), image_size, sum(model.widths)))
        return 0.9 - 0.2 * (len(seen) > 1)

    monkeypatch.setattr(measures, "evaluate", evaluate)
    run = FakeRun(get_profile("digits").sparse_config(), 90.0, dense)
    assert measures.own_mean_gain(run, images=50) == pytest.approx(20)
    assert seen[0] == seen[1] and seen[0][1:] == (50, 50, 32, 2507)


def test_own_mean_sparsity_ignores_the_size_of_a_filter():
    weight = torch.tensor([[0.9, -0.8, 0.5, 0.1], [0.09, -0.08, 0.05, 0.01]])[..., None, None]
    assert measures.own_mean_sparsity(weight).tolist() == [0.5, 0.5]


def test_maps_that_do_not_change_learn_nothing(dense):
    p = get_profile("digits")
    before, after = FakeRun(p.sparse_config(), 90.0, dense), FakeRun(p.pruned_config(0.0), 90.0, dense)
    found = feature_maps.maps_learn(before, after, images=40)
    assert found == pytest.approx({"variance": 0, "rank": 0, "class_share": 0}, abs=1e-6)


@pytest.mark.parametrize("seeds", [3, 1, 0])
def test_page_parts_hold_for_all_some_and_no_runs(seeds, tmp_path, monkeypatch):
    runs = FakeRuns(seeds)
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(pages, "recorded", lambda root: runs)
    monkeypatch.setattr(pages, "PAGES", ())
    monkeypatch.setattr(pages, "default_home", lambda: tmp_path)
    pages.main()
    text = {name: block(tmp_path) for name, block in pages.PARTS.items() if name != "gallery"}
    assert "nan" not in " ".join(text.values())
    for name in ("rates", "rates_cifar100", "criteria", "lambdas", "gpu_rates"):
        assert (text[name] == "Not recorded yet.") == (seeds == 0)
    assert (text["missing"] == "Nothing is missing.") == (seeds == 3) and ("--seed 1" in text["missing"]) == (seeds < 3)
    assert ("not recorded yet" in text["claims"]) and ("(3 seeds)" in text["claims"]) == (seeds == 3)
    assert len(text["regime"].splitlines()) == 3 + 2 * seeds  # both data sets


def test_the_gallery_names_notebook_and_heading(tmp_path):
    (tmp_path / "figures/digits").mkdir(parents=True)
    (tmp_path / "notebooks").mkdir()
    cells = [("markdown", "## Figure 6: five λ"), ("code", 'lab.show(fig, "fig6", runs)')]
    notebook = {"cells": [{"cell_type": kind, "source": [source]} for kind, source in cells]}
    (tmp_path / "notebooks/02_sparse.ipynb").write_text(json.dumps(notebook))
    for name in ("fig6", "old"):
        (tmp_path / f"figures/digits/{name}.png").touch()
    text = pages.gallery(tmp_path)
    assert "`fig6`: Figure 6: five λ ([02_sparse](../notebooks/02_sparse.ipynb))" in text
    assert "`old`: no notebook makes it any more" in text


def test_page_parts_are_filled_and_unknown_ones_are_refused(tmp_path):
    text = "a\n<!-- speed -->\nold\n<!-- end -->\nb"
    assert pages.fill_parts(text, tmp_path) == "a\n<!-- speed -->\nNot recorded yet.\n<!-- end -->\nb"
    with pytest.raises(ValueError, match="unknown page part 'sped'; did you mean 'speed'"):
        pages.fill_parts(text.replace("speed", "sped"), tmp_path)


def test_integers_of_a_measured_table_have_separators_and_decimals_stay(tmp_path):
    (tmp_path / "figures/bench").mkdir(parents=True)
    (tmp_path / "figures/bench/speed.csv").write_text("images,sizes,ratio,date\n66433,512 1024,0.70,2026-11-23\n")
    lines = pages.PARTS["speed"](tmp_path).splitlines()
    assert lines[2] == "| 66,433 | 512 1,024 | 0.70 |" and lines[-1] == "(date 2026-11-23)"


def test_the_pages_are_current():
    for page in pages.PAGES:
        text = (ROOT / page).read_text()
        assert pages.fill_parts(text, ROOT) == text, f"{page}: make readme"


@pytest.mark.parametrize("profile", pages.REPORTS)
def test_the_stored_report_is_that_of_the_recorded_runs(profile):
    """Claims that need networks and images are left out."""
    stored = [claim for claim in claims(get_profile(profile)) if not claim.networks]
    table = judge_claims(stored, get_profile(profile), pages.recorded(ROOT), pages.ALL_SEEDS)[0]
    written = (
        pd.read_csv(ROOT / pages.REPORTS[profile])
        .set_index(["source", "name"])
        .loc[list(zip(table.source, table.name))]
    )
    assert written.n.tolist() == table.n.tolist() and written.verdict.tolist() == table.verdict.tolist(), "make readme"
    assert written.ours.tolist() == pytest.approx(table.ours.tolist(), nan_ok=True), "make readme"
