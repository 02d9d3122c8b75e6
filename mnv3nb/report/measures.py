"""How each quantity is measured, once, for the report and the notebooks. Accuracies, shares and rates are in %."""

import math
from collections.abc import Iterable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from .. import paper
from ..blocks import blocks
from ..costs import count_flops, count_parameters
from ..data.datasets import load_once
from ..importance import score
from ..model import FEATURES, MobileNetV3Large
from ..pruning import keep_masks, layer_collapse_rates, prune
from ..runs.folder import Run
from ..training import evaluate

DEAD = 1e-4  # a filter with |γ| below it is dead
HALF = 0.5  # the rate of Tables 4 and 5
SMALLEST = 1e-38  # stands for a threshold of 0, which has no logarithm


class Jump(NamedTuple):
    """The largest step of the threshold between neighbouring rates of Table 2."""

    decades: float
    rate: float  # the rate after the step, in %


class Collapse(NamedTuple):
    """Where pruning empties a block first."""

    rate: float  # the smallest rate that empties a block, in %
    block: int


def accuracy(*runs: Run) -> float:
    """Mean test accuracy after the last epoch."""
    return 100 * float(np.mean([run.accuracy for run in runs]))


def run_table(runs: Iterable[Run]) -> pd.DataFrame:
    """One row per run: its config in short, its accuracies and its costs.

    `rate` and `criterion` are missing for a run without pruning. `seed` is that of the sparse-trained network,
    `tuning_seed` that of the fine-tuning. `accuracy_before_pct` is measured before the first step, and so is
    `accuracy_folded_pct`, with removed channels compensated for. Accuracies are those on the test set, or, where
    `holdout` is not 0, on that many held-out training images.
    """
    return pd.DataFrame([_run_row(run) for run in runs])


def _run_row(run: Run) -> dict:
    config = run.config
    sparse = config.parent or config
    return {
        "label": config.label,
        "key": run.key,
        "dataset": config.dataset,
        "lam": sparse.train.lam,
        "criterion": _criterion_label(run),
        "rate": config.prune.rate if config.prune else math.nan,
        "seed": sparse.train.seed,
        "tuning_seed": config.train.seed,
        "accuracy_before_pct": 100 * run.result["accuracy_before"],
        "accuracy_pct": accuracy(run),
        "accuracy_folded_pct": 100 * (run.result.get("accuracy_folded") or math.nan),
        **_run_costs(run),
        "dead_pct": dead_share(run),
        "epochs": config.train.epochs,
        "hours": run.result["seconds"] / 3600,
        "holdout": config.holdout,
    }


def _criterion_label(run: Run) -> str | None:
    cut = run.config.prune
    if cut is None:
        return None
    if cut.ranking == "layer":
        return f"{cut.criterion} within layers"
    return cut.criterion


def _run_costs(run: Run) -> dict[str, float]:
    """`costs` of the run's network, with its own number of classes.

    Each class beyond 10 adds FEATURES weights and one bias, so the count of parameters tells how many classes there are.
    """
    widths = tuple(run.result["widths"])
    se_widths = tuple(run.result["squeeze"])
    parameters, _ = _count(10, widths, se_widths)
    further_classes = (run.result["parameters"] - parameters) // (FEATURES + 1)
    return costs(10 + further_classes, widths, se_widths)


def costs(
    num_classes: int, widths: Sequence[int] | None = None, squeeze: Sequence[int] | None = None
) -> dict[str, float]:
    """The cost columns of Tables 3 and 6 at 224 px: parameters_m, flops, fewer_parameters_pct, fewer_flops_pct.

    `widths` of the blocks, None for the dense network's; `squeeze`: hidden channels of SE, None for those that follow
    from the widths.
    """
    dense_parameters, dense_flops = _count(num_classes, None, None)
    parameters, flops = _count(num_classes, widths, squeeze)
    return {
        "parameters_m": parameters / 1e6,
        "flops": flops,
        "fewer_parameters_pct": 100 * (1 - parameters / dense_parameters),
        "fewer_flops_pct": 100 * (1 - flops / dense_flops),
    }


@cache
def _count(num_classes: int, widths: tuple[int, ...] | None, se_widths: tuple[int, ...] | None) -> tuple[int, int]:
    """Parameters and FLOPs. The network is built without memory for its weights."""
    with torch.device("meta"):
        model = MobileNetV3Large(num_classes, widths, se_widths)
    return count_parameters(model), count_flops(model)


def cost_at_rate(run: Run, rate: float, num_classes: int, column: str) -> float:
    """One column of `costs` after pruning by m = |γ|·S at `rate`. Fine-tuning does not change it."""
    return costs(num_classes, kept_widths(run, rate))[column]


def dead_share(run: Run) -> float:
    """Share of the expansion filters with |γ| < DEAD."""
    gamma = torch.cat(run.gamma)
    return 100 * float((gamma.abs() < DEAD).double().mean())


def table_2(run: Run) -> pd.DataFrame:
    """Table 2's columns. Each row describes the filters between the previous row's threshold and its own."""
    m = torch.cat(run.importance).double()
    gamma = torch.cat(run.gamma).double().abs()
    sparsity = torch.cat(run.sparsity).double()
    order = m.argsort(stable=True)
    rows = []
    start = 0
    for rate in paper.TABLE_2.rate:
        end = int(len(m) * rate) + 1  # as many filters as `keep_masks` removes
        part = order[start:end]
        rows.append(
            {
                "rate": rate,
                "threshold": float(m[part[-1]]),
                "gamma_min": float(gamma[part].min()),
                "gamma_max": float(gamma[part].max()),
                "sparsity_min": float(sparsity[part].min()),
                "sparsity_max": float(sparsity[part].max()),
            }
        )
        start = end
    return pd.DataFrame(rows)


def table_2_entry(run: Run, row: int, column: str) -> float:
    """One number of `table_2`."""
    return float(table_2(run)[column][row])


def largest_jump(table: pd.DataFrame) -> Jump:
    """The largest step of the threshold in a table like Table 2."""
    decades = np.diff(np.log10(table.threshold.clip(lower=SMALLEST)))
    return Jump(float(decades.max()), 100 * float(table.rate[decades.argmax() + 1]))


def jump_decades(run: Run) -> float:
    """The largest step of the run's threshold, in decades."""
    return largest_jump(table_2(run)).decades


def jump_rate(run: Run) -> float:
    """The rate after the largest step of the run's threshold."""
    return largest_jump(table_2(run)).rate


def kept_widths(run: Run, rate: float) -> tuple[int, ...]:
    """Widths of the blocks after pruning by m = |γ|·S at `rate` (Table 5)."""
    return tuple(int(mask.sum()) for mask in keep_masks(run.importance, rate))


def kept_width(run: Run, rate: float, block: int) -> int:
    """Width of one block after pruning by m = |γ|·S at `rate`."""
    return kept_widths(run, rate)[block]


def collapse(run: Run) -> Collapse:
    """Where pruning by m = |γ|·S empties a block first."""
    rates = layer_collapse_rates(run.importance)
    return Collapse(100 * min(rates), int(np.argmin(rates)))


def collapse_rate(run: Run) -> float:
    """The smallest rate that empties a block."""
    return collapse(run).rate


def kept_by_both(run: Run, rate: float = HALF) -> float:
    """Share of the filters kept by m = |γ|·S that γ alone keeps as well."""
    by_m = torch.cat(keep_masks(run.importance, rate))
    by_gamma = torch.cat(keep_masks([gamma.abs() for gamma in run.gamma], rate))
    return 100 * float((by_m & by_gamma).sum() / by_m.sum())


def gamma_gathers(*runs: Run) -> float:
    """Rank correlation of λ with the median |γ|. The runs are in order of λ."""
    medians = [float(torch.cat(run.gamma).abs().median()) for run in runs]
    return float(stats.spearmanr(range(len(runs)), medians).statistic)


def sparsity_change(*runs: Run) -> float:
    """Largest change of the mean S against the first run's."""
    means = [float(torch.cat(run.sparsity).mean()) for run in runs]
    return 100 * max(abs(mean / means[0] - 1) for mean in means)


def own_mean_sparsity(weight: Tensor) -> Tensor:
    """S with each filter's own mean magnitude as its threshold: weight (N, C, H, W) to (N,), in [0, 1]."""
    magnitude = weight.abs()
    own_mean = magnitude.mean(dim=(1, 2, 3), keepdim=True)
    return (magnitude >= own_mean).float().mean(dim=(1, 2, 3))


def own_mean_gain(run: Run, images: int = 2000) -> float:
    """Accuracy at HALF with the layer's mean as the threshold of S, minus that with the filter's own mean, in points.

    Nothing is fine-tuned. Both accuracies are those on the first `images` test images.
    """
    model = run.model()
    by_layer_mean = score(model)
    by_own_mean = []
    for block in blocks(model):
        gamma = block.expand_bn.weight.detach()
        by_own_mean.append(gamma.abs() * own_mean_sparsity(block.expand.weight.detach()))
    test_images, test_labels = first_test_images(run, images)
    accuracies = []
    for scores in (by_layer_mean, by_own_mean):
        pruned = prune(model, keep_masks(scores, HALF))
        accuracies.append(evaluate(pruned, test_images, test_labels, run.config.train.image_size))
    return 100 * (accuracies[0] - accuracies[1])


def first_test_images(run: Run, images: int) -> tuple[Tensor, Tensor]:
    """The first `images` test images of the run's data set, uint8 (N, 3, H, W), and their labels (N,)."""
    data = load_once(run.config.dataset)
    return data.test_images[:images], data.test_labels[:images]
