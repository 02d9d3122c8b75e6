"""Every figure draws from minimal data, without warnings; its texts are words and symbols, and stay within its edges."""

import math
import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
import torch
from matplotlib.colors import same_color, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from torchvision.models import mobilenet_v2

from mnv3nb import CRITERIA, DENSE_WIDTHS, blocks, keep_masks, paper, plots, prune, score
from mnv3nb.plots.style import COST_LOOKS, CRITERION_LABELS, LOOKS, STAGES
from mnv3nb.report.statistics import paired_differences

HISTORY = pd.DataFrame({"epoch": [0, 1, 2], "train_loss": [math.nan, 1.0, 0.1], "test_accuracy": [0.1, 0.6, 1.0]})
ACCURACY_COLUMNS = ("accuracy_before_pct", "accuracy_folded_pct", "accuracy_pct")


def scores() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [10 ** (-8 * torch.rand(width, generator=generator)) for width in DENSE_WIDTHS]


def run_table(by: str, groups: list, seeds: int, failing=()) -> pd.DataFrame:
    """One row per group and seed, as from that many runs; groups that are `failing` lose 40 points."""
    noise = np.random.default_rng(0)
    rows = []
    for i, group in enumerate(groups):
        accuracy = 50 if group in failing else 90
        for seed in range(seeds):
            row = {by: group, "seed": seed, "fewer_parameters_pct": 10.0 * i, "fewer_flops_pct": 5.0 * i}
            for column in ACCURACY_COLUMNS:
                row[column] = accuracy + noise.normal()
            rows.append(row)
    return pd.DataFrame(rows)


def draw_method(dense) -> Figure:
    small = prune(dense, keep_masks(score(dense), 0.5))
    return plots.method_drawing(dense, small, 0.5, 1e-3, HISTORY, HISTORY, 0.9)


def draw_cut(dense, number: int) -> Figure:
    masks = keep_masks(score(dense), 0.5)
    return plots.cut_drawing(dense, prune(dense, masks), masks[number], number)


def draw_rates(seeds: int, comparable: bool) -> Figure:
    runs = run_table("rate", [0.0, 0.3, 0.5, 0.7], seeds)
    return plots.rate_curve(runs, paired_differences(runs, "rate", 0.0), paper.TABLE_3, comparable, 0.65)


def draw_criteria(seeds: int) -> Figure:
    criteria = [*CRITERIA, "l1 within layers", "m's shape, from scratch"]
    runs = run_table("criterion", criteria, seeds, failing=("l1", "fpgm"))
    return plots.criteria_chart(runs, paired_differences(runs, "criterion", "gamma_sparsity"))


def draw_feature_maps() -> Figure:
    numbers = (1, 6)
    masks = [torch.arange(width) % 3 > 0 for width in DENSE_WIDTHS]
    whole = [torch.randn(DENSE_WIDTHS[number], 4, 4) for number in numbers]
    whole[0][5] = 0  # a dead channel
    small = [maps[masks[number]] for maps, number in zip(whole, numbers)]
    image = torch.zeros(3, 8, 8, dtype=torch.uint8)
    return plots.feature_maps({"dense": whole, "pruned": small}, masks, scores(), numbers, image)


def draw_latencies() -> Figure:
    networks = ["dense", "raw", "aligned to 16", "Table 5", "Table 5, aligned to 16"]
    rows = []
    for engine in ("PyTorch", "ONNX Runtime int8", "PyTorch GPU"):
        for i, network in enumerate(networks):
            row = {"network": network, "engine": engine, "threads": 2, "batch": 1, "flops": 100 - 10 * i}
            row |= {"ratio": 1 - 0.1 * i, "ratio_low": 0.9 - 0.1 * i, "ratio_high": 1 - 0.1 * i}
            rows.append(row)
    return plots.latency_against_flops(pd.DataFrame(rows), networks[1:])


def draw_slimmed() -> Figure:
    return plots.slimmed({"parameters": 0.5}, pd.DataFrame({"before": [8, 16], "after": [8, 4]}))


# For each public function the figures that these tests draw with it.
FIGURES: dict[Callable, dict[str, Callable[[torch.nn.Module], Figure]]] = {
    plots.block_drawing: {
        "with SE and shortcut": lambda dense: plots.block_drawing(dense),
        "without SE or shortcut": lambda dense: plots.block_drawing(dense, 1),
        "of MobileNetV2": lambda dense: plots.block_drawing(mobilenet_v2(), 2),
    },
    plots.separable_drawing: {"": lambda dense: plots.separable_drawing(dense)},
    plots.bottleneck_drawing: {
        "": lambda dense: plots.bottleneck_drawing(dense),
        "of MobileNetV2": lambda dense: plots.bottleneck_drawing(mobilenet_v2(), 2),
    },
    plots.method_drawing: {"": draw_method},
    plots.cut_drawing: {
        "with SE": lambda dense: draw_cut(dense, 12),
        "without SE": lambda dense: draw_cut(dense, 0),
    },
    plots.gamma_by_lambda: {"": lambda dense: plots.gamma_by_lambda({lam: scores() for lam in (0.0, 1e-5)}, 1e-5)},
    plots.gamma_sparsity_importance: {
        "": lambda dense: plots.gamma_sparsity_importance(scores(), [part.clamp(0, 1) for part in scores()]),
    },
    plots.learning_curves: {
        "": lambda dense: plots.learning_curves({"λ = 0": HISTORY, "fine-tuned": HISTORY.to_dict("records")}),
    },
    plots.widths_chart: {
        "with the paper": lambda dense: plots.widths_chart([width // 2 for width in DENSE_WIDTHS]),
        "without the paper": lambda dense: plots.widths_chart([5, 6], [10, 10], published=None),
    },
    plots.rate_curve: {
        "one seed": lambda dense: draw_rates(1, comparable=False),
        "three seeds": lambda dense: draw_rates(3, comparable=True),
    },
    plots.criteria_chart: {
        "one seed": lambda dense: draw_criteria(1),
        "three seeds": lambda dense: draw_criteria(3),
    },
    plots.feature_maps: {"": lambda dense: draw_feature_maps()},
    plots.latency_against_flops: {"": lambda dense: draw_latencies()},
    plots.slimmed: {"": lambda dense: draw_slimmed()},
}
CASES = [
    pytest.param(draw, id=f"{function.__name__} {case}".strip())
    for function, cases in FIGURES.items()
    for case, draw in cases.items()
]


@pytest.fixture(scope="module", autouse=True)
def style():
    plots.use_style()


def texts_of(fig: Figure) -> list[str]:
    return [text.get_text() for text in fig.findobj(Text)]


@pytest.mark.parametrize("draw", CASES)
def test_a_figure_draws_without_warnings_and_within_its_edges(draw, dense):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fig = draw(dense)
        fig.draw_without_rendering()
    drawn = fig.get_tightbbox()
    assert drawn.x0 > -0.05 and drawn.x1 < fig.get_figwidth() + 0.05
    assert drawn.y0 > -0.05 and drawn.y1 < fig.get_figheight() + 0.05
    assert not [text for text in texts_of(fig) if "_" in text and "$" not in text], "a code name"


@pytest.mark.parametrize("draw", CASES)
def test_an_entity_has_its_colour_and_marker_in_every_figure(draw, dense):
    for line in draw(dense).findobj(Line2D):
        look = LOOKS.get(line.get_label()) or COST_LOOKS.get(line.get_label())
        if look:
            assert same_color(line.get_color(), look["color"])
            assert line.get_marker() in (look["marker"], "None")  # "None": a reference line


def test_every_public_figure_is_drawn_here():
    public = {thing for thing in vars(plots).values() if callable(thing)}
    assert public - {plots.use_style} == set(FIGURES)


def test_the_block_drawing_shows_the_networks_own_numbers(dense):
    block = blocks(dense)[4]
    texts = texts_of(plots.block_drawing(dense, 4, image_size=224))
    assert "input\n40×28×28" in texts
    assert "5×5 depthwise,\nstride 1\nBatchNorm, ReLU6\n120×28×28" in texts
    expansion = block.expand.weight.numel() + 2 * block.width  # BatchNorm has γ and β
    assert f"{expansion:,} parameters" in texts


def test_the_drawing_of_a_block_without_se_or_shortcut_has_neither(dense):
    with_both = " ".join(texts_of(plots.block_drawing(dense, 4)))
    with_neither = " ".join(texts_of(plots.block_drawing(dense, 1)))
    assert "squeeze and excite" in with_both and "shortcut: input" in with_both
    assert "squeeze and excite" not in with_neither and "no shortcut" in with_neither


def test_the_separable_drawing_counts_weights_and_macs(dense):
    block = blocks(dense)[4]
    weights = block.depthwise.weight.numel() + block.project.weight.numel()
    standard = 120 * 40 * 5 * 5
    texts = " ".join(texts_of(plots.separable_drawing(dense, 4, image_size=224)))
    macs = weights * 28 * 28 / 1e6
    assert f"{weights:,} weights, {macs:.2f} M multiply-accumulates ({weights / standard:.1%})" in texts


def test_learning_curves_of_more_labels_than_markers_are_all_drawn():
    fig = plots.learning_curves({f"λ = {i}": HISTORY for i in range(12)})
    assert len(fig.axes[0].lines) == 12


def test_a_failing_criterion_does_not_hide_the_others():
    left = draw_criteria(3).axes[0]
    assert left.get_xlim()[0] > -15
    assert sum("◂" in text.get_text() for text in left.texts) == 2


@pytest.mark.parametrize("comparable", [True, False])
def test_the_papers_accuracies_are_drawn_only_where_they_are_comparable(comparable):
    _, labels = draw_rates(1, comparable).axes[0].get_legend_handles_labels()
    assert ("paper, against its unpruned network" in labels) == comparable


def test_removed_channels_have_the_plain_tint_in_the_network_without_their_maps():
    fig = draw_feature_maps()
    (pruned,) = [ax for ax in fig.axes if ax.get_title() == "pruned"]
    (tiles,) = pruned.images
    last_tile = tiles.get_array()[-10, -10]  # 16 channels are shown, the removed ones last
    assert np.allclose(last_tile, to_rgb(plots.ROLES["removed"]))


def test_entities_are_told_apart_without_colour_or_without_marker():
    looks = [(look["color"], look["marker"]) for name, look in LOOKS.items() if name != "ours"]
    assert len(set(looks)) == len(looks)
    assert LOOKS["ours"]["color"] == LOOKS["fine-tuned"]["color"]


def test_every_stage_is_an_entity():
    assert set(STAGES) <= set(LOOKS)


def test_every_criterion_has_a_readable_name():
    assert set(CRITERIA) <= set(CRITERION_LABELS)
    assert CRITERION_LABELS["l1 within layers"] == "L1 norm, per layer"


def test_drawing_leaves_networks_as_they_are(dense):
    before = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    draw_cut(dense, 12)
    assert all(torch.equal(before[name], tensor) for name, tensor in dense.state_dict().items())
    assert [block.width for block in blocks(dense)] == list(DENSE_WIDTHS)
