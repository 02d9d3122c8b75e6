"""How each quantity is measured, once, for the report and the notebooks. Accuracies, shares and rates are in %."""

import math
from collections.abc import Iterable, Sequence
from functools import cache

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

DEAD = 1e-4  # |γ| below it: the filter is dead
HALF = 0.5  # the rate of Tables 4 and 5


def accuracy(*runs: Run) -> float:
    """Mean test accuracy after the last epoch."""
    return 100 * float(np.mean([run.accuracy for run in runs]))


def gain(*runs: Run, first: int) -> float:
    """Mean accuracy of the `first` runs minus that of the others, in points, on the same test images."""
    return round(accuracy(*runs[:first]) - accuracy(*runs[first:]), 9)


def dead_share(run: Run) -> float:
    """Share of the expansions' filters with |γ| < DEAD."""
    return 100 * float((torch.cat(run.gamma).abs() < DEAD).double().mean())


def table_2(run: Run) -> pd.DataFrame:
    """Table 2's columns: each row is of the filters between the threshold before and its own."""
    m, gamma, sparsity = (torch.cat(part).double() for part in (run.importance, run.gamma, run.sparsity))
    order, start, rows = m.argsort(stable=True), 0, []
    for rate in paper.TABLE_2.rate:
        end = int(len(m) * rate) + 1
        part, start = order[start:end], end
        row = m[part[-1]], *gamma[part].abs().aminmax(), *sparsity[part].aminmax()
        rows.append([rate, *map(float, row)])
    return pd.DataFrame(rows, columns=paper.TABLE_2.columns)


def largest_jump(table: pd.DataFrame) -> tuple[float, float]:
    """The threshold's largest step between neighbouring rates of Table 2: in decades, and the rate after it."""
    decades = np.diff(np.log10(table.threshold.clip(lower=1e-38)))
    return float(decades.max()), 100 * float(table.rate[decades.argmax() + 1])


def collapse(run: Run) -> tuple[float, int]:
    """The smallest rate that empties a block, and that block."""
    rates = layer_collapse_rates(run.importance)
    return 100 * min(rates), int(np.argmin(rates))


def kept_widths(run: Run, rate: float) -> tuple[int, ...]:
    """Widths of the blocks after pruning by m = |γ|·S at `rate` (Table 5)."""
    return tuple(int(mask.sum()) for mask in keep_masks(run.importance, rate))


def costs(
    num_classes: int, widths: Sequence[int] | None = None, squeeze: Sequence[int] | None = None
) -> dict[str, float]:
    """The cost columns of Tables 3 and 6 for a network of these widths (None: the dense network), at 224 px."""
    (dense, dense_flops), (parameters, flops) = _count(num_classes), _count(num_classes, widths, squeeze)
    return {
        "parameters_m": parameters / 1e6,
        "flops": flops,
        "fewer_parameters_pct": 100 * (1 - parameters / dense),
        "fewer_flops_pct": 100 * (1 - flops / dense_flops),
    }


@cache
def _count(num_classes: int, *shape: tuple[int, ...] | None) -> tuple[int, int]:
    with torch.device("meta"):
        model = MobileNetV3Large(num_classes, *shape)
    return count_parameters(model), count_flops(model)


def run_table(runs: Iterable[Run]) -> pd.DataFrame:
    """One row per run: what it is, its accuracies and costs; `rate` and `criterion` are missing for unpruned training.

    `seed` is the sparse-trained network's, `tuning_seed` the fine-tuning's. `accuracy_before_pct` is measured before
    the first step, `accuracy_folded_pct` as well, with removed channels compensated for; all on so many held-out
    training images as `holdout` names, or, if that is 0, on the test set.
    """
    rows = []
    for run in runs:
        root, cut, train = run.config.parent or run.config, run.config.prune, run.config.train
        shape = tuple(run.result["widths"]), tuple(run.result["squeeze"])
        row = {"label": run.config.label, "key": run.key, "dataset": run.config.dataset, "lam": root.train.lam}
        row |= {"criterion": cut and cut.criterion + " within layers" * (cut.ranking == "layer")}
        row |= {"rate": cut.rate if cut else math.nan, "seed": root.train.seed, "tuning_seed": train.seed}
        row |= {"accuracy_before_pct": 100 * run.result["accuracy_before"], "accuracy_pct": accuracy(run)}
        row |= {"accuracy_folded_pct": 100 * (run.result.get("accuracy_folded") or math.nan)}
        more = run.result["parameters"] - _count(10, *shape)[0]  # FEATURES weights and a bias for each further class
        row |= costs(10 + more // (FEATURES + 1), *shape)
        row |= {"dead_pct": dead_share(run), "epochs": train.epochs, "hours": run.result["seconds"] / 3600}
        row |= {"holdout": run.config.holdout}
        rows.append(row)
    return pd.DataFrame(rows)


def gamma_gathers(*runs: Run) -> float:
    """Rank correlation of the runs' order (growing λ) with the median |γ|."""
    medians = [float(torch.cat(run.gamma).abs().median()) for run in runs]
    return float(stats.spearmanr(range(len(runs)), medians).statistic)


def sparsity_change(*runs: Run) -> float:
    """Largest change of the mean S against the first run's."""
    means = [float(torch.cat(run.sparsity).mean()) for run in runs]
    return 100 * max(abs(mean / means[0] - 1) for mean in means)


def kept_by_both(run: Run, rate: float = HALF) -> float:
    """Share of the filters kept by m = |γ|·S that γ alone keeps as well."""
    by_m, by_gamma = (torch.cat(keep_masks(s, rate)) for s in (run.importance, [gamma.abs() for gamma in run.gamma]))
    return 100 * float((by_m & by_gamma).sum() / by_m.sum())


def own_mean_sparsity(weight: Tensor) -> Tensor:
    """S with each filter's own mean magnitude as threshold (section 2.3): (N, C, H, W) to (N,), in [0, 1]."""
    magnitude = weight.abs()
    return (magnitude >= magnitude.mean(dim=(1, 2, 3), keepdim=True)).float().mean(dim=(1, 2, 3))


def own_mean_gain(run: Run, images: int = 2000) -> float:
    """Accuracy at HALF without fine-tuning, by S with the layer's mean minus by S with the filter's own, in points."""
    model, accuracies = run.model(), []
    own = [b.expand_bn.weight.detach().abs() * own_mean_sparsity(b.expand.weight.detach()) for b in blocks(model)]
    for scores in (score(model), own):
        pruned = prune(model, keep_masks(scores, HALF))
        accuracies.append(evaluate(pruned, *test_part(run, images), run.config.train.image_size))
    return 100 * (accuracies[0] - accuracies[1])


def test_part(run: Run, images: int) -> tuple[Tensor, Tensor]:
    data = load_once(run.config.dataset)
    return data.test_images[:images], data.test_labels[:images]
