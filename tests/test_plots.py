"""Every figure draws from minimal data, without warnings; what is written on it is words and stays on it."""

import math
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text
from torchvision.models import mobilenet_v2

from mnv3nb import CRITERIA, DENSE_WIDTHS, blocks, keep_masks, paper, plots, prune, score
from mnv3nb.plots.style import CRITERION_LABELS, LOOKS
from mnv3nb.report.statistics import paired_differences

HISTORY = pd.DataFrame({"epoch": [0, 1, 2], "train_loss": [math.nan, 1.0, 0.1], "test_accuracy": [0.1, 0.6, 1.0]})
STAGES = ("accuracy_before_pct", "accuracy_folded_pct", "accuracy_pct")


def scores() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [10 ** (-8 * torch.rand(width, generator=generator)) for width in DENSE_WIDTHS]


def cut(dense):
    masks = keep_masks(score(dense), 0.5)
    return prune(dense, masks), masks


def table(by: str, groups: list, seeds: int, failing=()) -> pd.DataFrame:
    noise = np.random.default_rng(0)
    rows = [
        {by: group, "seed": seed, "fewer_parameters_pct": 10.0 * i, "fewer_flops_pct": 5.0 * i}
        | {stage: 90 - 40 * (group in failing) + noise.normal() for stage in STAGES}
        for i, group in enumerate(groups)
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows)


def rates(seeds: int, comparable: bool) -> Figure:
    runs = table("rate", [0.0, 0.3, 0.5, 0.7], seeds)
    return plots.rate_curve(runs, paired_differences(runs, "rate", 0.0), paper.TABLE_3, comparable, 0.65)


def criteria(seeds: int) -> Figure:
    runs = table("criterion", [*CRITERIA, "l1 within layers", "m's shape, from scratch"], seeds, failing=("l1", "fpgm"))
    return plots.criteria_chart(runs, paired_differences(runs, "criterion", "gamma_sparsity"))


def maps(dense) -> Figure:
    masks = [torch.arange(width) % 3 > 0 for width in DENSE_WIDTHS]
    whole = [torch.randn(DENSE_WIDTHS[i], 4, 4) for i in (1, 6)]
    whole[0][5] = 0  # a dead channel
    small = [m[masks[i]] for m, i in zip(whole, (1, 6))]
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    return plots.feature_maps({"dense": whole, "pruned": small}, masks, scores(), (1, 6), image)


def latencies(dense) -> Figure:
    networks = ["dense", "raw", "aligned to 16", "Table 5", "Table 5, aligned to 16"]
    rows = [
        {"network": network, "engine": engine, "threads": 2, "batch": 1, "flops": 100 - 10 * i, "ratio": 1 - 0.1 * i}
        for engine in ("PyTorch", "ONNX Runtime int8", "PyTorch GPU")
        for i, network in enumerate(networks)
    ]
    found = pd.DataFrame(rows)
    return plots.latency_against_flops(found.assign(ratio_low=found.ratio - 0.1, ratio_high=found.ratio), networks[1:])


FIGURES = {
    "block": lambda dense: plots.block_drawing(dense),
    "block without SE or shortcut": lambda dense: plots.block_drawing(dense, 1),
    "separable": lambda dense: plots.separable_drawing(dense),
    "bottleneck": lambda dense: plots.bottleneck_drawing(dense),
    "bottleneck of MobileNetV2": lambda dense: plots.bottleneck_drawing(mobilenet_v2(), 2),
    "block of MobileNetV2": lambda dense: plots.block_drawing(mobilenet_v2(), 2),
    "method": lambda dense: plots.method_drawing(dense, cut(dense)[0], 0.5, 1e-3, HISTORY, HISTORY, 0.9),
    "cut": lambda dense: plots.cut_drawing(dense, cut(dense)[0], cut(dense)[1][12], 12),
    "cut without SE": lambda dense: plots.cut_drawing(dense, cut(dense)[0], cut(dense)[1][0], 0),
    "Figure 6": lambda dense: plots.gamma_by_lambda({lam: scores() for lam in (0.0, 1e-5, 1e-3)}, 1e-5),
    "Figure 7": lambda dense: plots.gamma_sparsity_importance(scores(), [s.clamp(0, 1) for s in scores()]),
    "learning curves": lambda dense: plots.learning_curves({"λ = 0": HISTORY, "huge": HISTORY.to_dict("records")}),
    "widths": lambda dense: plots.widths_chart(cut(dense)[0].widths),
    "widths without the paper": lambda dense: plots.widths_chart([5, 6], [10, 10], published=None),
    "rates, one seed": lambda dense: rates(1, comparable=False),
    "rates, three seeds": lambda dense: rates(3, comparable=True),
    "criteria, one seed": lambda dense: criteria(1),
    "criteria, three seeds": lambda dense: criteria(3),
    "feature maps": maps,
    "latency": latencies,
    "slimmed": lambda dense: plots.slimmed({"parameters": 0.5}, pd.DataFrame({"before": [8, 16], "after": [8, 4]})),
}


@pytest.fixture(scope="module", autouse=True)
def style():
    plots.use_style()


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_draws_without_warnings_and_within_its_edges(name, dense):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fig = FIGURES[name](dense)
        fig.draw_without_rendering()
    drawn = fig.get_tightbbox()
    assert drawn.x0 > -0.05 and drawn.x1 < fig.get_figwidth() + 0.05
    assert drawn.y0 > -0.05 and drawn.y1 < fig.get_figheight() + 0.05
    texts = [text.get_text() for text in fig.findobj(Text)]
    assert not [text for text in texts if "_" in text and "$" not in text], "a code name"


def test_every_public_figure_is_drawn_here():
    functions = {name for name in dir(plots) if callable(getattr(plots, name))} - {"use_style"}
    drawn = {name for name in functions if f"plots.{name}(" in Path(__file__).read_text()}
    assert functions == drawn


def test_a_failing_criterion_does_not_hide_the_others():
    left = criteria(3).axes[0]
    assert left.get_xlim()[0] > -15
    assert sum("◂" in text.get_text() for text in left.texts) == 2


def test_the_paper_is_drawn_as_differences_only_where_it_is_comparable():
    labels = [rates(1, comparable).axes[0].get_legend_handles_labels()[1] for comparable in (True, False)]
    assert ["paper, against its unpruned network" in found for found in labels] == [True, False]


def test_entities_are_told_apart_without_colour_or_without_marker():
    looks = [(look["color"], look["marker"]) for name, look in LOOKS.items() if name != "ours"]
    assert len(set(looks)) == len(looks)
    assert LOOKS["ours"]["color"] == LOOKS["fine-tuned"]["color"]


def test_every_criterion_has_a_readable_name():
    assert set(CRITERIA) <= set(CRITERION_LABELS)
    assert CRITERION_LABELS["l1 within layers"] == "L1 norm, per layer"


def test_drawing_leaves_networks_as_they_are(dense):
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    FIGURES["cut"](dense)
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.state_dict().items())
    assert [block.width for block in blocks(dense)] == list(DENSE_WIDTHS)
