"""Every number of the paper, and how ours is measured: what the reproduction report is made from."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from itertools import product

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from . import paper
from .complexity import count_flops, count_parameters, layer_costs
from .config import RunConfig
from .data import load_once
from .importance import score
from .maps import map_statistics
from .model import DENSE_WIDTHS, MobileNetV3Large
from .profiles import Profile
from .pruning import emptied_at, keep_masks, prune
from .store import Run
from .training import evaluate

COSTS = {"parameters_m": ("parameters, M", ".2f"), "flops": ("FLOPs", ".2e"),
         "fewer_parameters_pct": ("fewer parameters, %", ".1f"), "fewer_flops_pct": ("fewer FLOPs, %", ".1f")}  # fmt: skip
HALF = float(paper.TABLE_3.rate[5])
SOURCES = (*(f"Table {n}" for n in (1, 2, 3, 4, 5, 6)), "Figure 6", *(f"§ {n}" for n in ("2.3", "3.2.1", "3.2.3", "3.2.5")))


@dataclass(frozen=True)
class Item:
    """One number of the paper and how ours is found: `measure` of the runs that `runs(seed)` names (none: an exact fact).

    `part`: which of the numbers that `measure` gives. `kind`: "exact" (equal, printed as `form`), "measured", "log" (judged by
    its logarithm), "above" and "below" (a claim in words, with `paper` the bound), "limit" (the paper's is the first value
    tried beyond ours, `form` the last one before it). `model`: the runs' networks are needed; `cannot`: why it cannot be
    checked; `note`: more about why; `main`: part of the summary.
    """

    source: str
    name: str
    paper: float
    measure: Callable[..., float | Sequence[float]]
    runs: Callable[[int], Sequence[RunConfig]] | None = None
    experiment: str = ""
    part: int | None = None
    kind: str = "measured"
    form: str = ""
    model: bool = False
    cannot: str = ""
    note: str = ""
    main: bool = False


def items(p: Profile) -> list[Item]:
    """Every number of the paper, in the order of SOURCES, as profile `p` measures it."""
    found = [*_facts(), *_figure_6(p), *_table_2(p), *_rates(p, "Table 3"), *_table_4(p), *_table_5(p), *_rates(p, "Table 6")]
    return sorted([*found, *_claims(p)], key=lambda item: SOURCES.index(item.source))


def _facts() -> Iterator[Item]:
    def fact(source, name, printed, ours, form, **more):
        return Item(source, name, float(printed), lambda: float(ours), kind="exact", form=form, **more)

    layers = pd.DataFrame(layer_costs(MobileNetV3Large()))
    units, linear = layers.name.str.startswith("blocks"), layers.type == "Linear"
    outer = ~units & (layers.type == "BatchNorm2d")
    for name, left_out, what in (("parameters", outer, "stem's and head's BatchNorms"), ("flops", linear, "two linear layers")):
        share, without = (100 * layers[name][units].sum() / layers[name][rows].sum() for rows in (slice(None), ~left_out))
        for part, ours, other in (("units", share, without), ("rest", 100 - share, 100 - without)):
            yield fact("Table 1", f"{name} of the {part}, %", paper.TABLE_1[f"{name}_pct"][part], ours, ".2f",
                       note=f"{other:.2f} without the {what}")  # fmt: skip
    rebuilt = tuple(paper.TABLE_5.after)
    networks = (
        ("Table 3", "dense network", paper.TABLE_3.iloc[0], DENSE_WIDTHS, 10),
        ("Table 3", "network of Table 5's widths", paper.TABLE_3.iloc[5], rebuilt, 10),
        ("Table 6", "dense network", paper.TABLE_6.iloc[0], DENSE_WIDTHS, 100),
    )
    for source, name, row, widths, classes in networks:
        for (column, (label, form)), ours in zip(COSTS.items(), _costs(widths, classes)):
            if row[column]:
                note = "the rule for SE's width was taken from this table" if widths == rebuilt else ""
                yield fact(source, f"{label}, {name}", row[column], ours, form, main=True, note=note)
    agree = sum(a == b for a, b in zip(paper.TABLE_5.before, DENSE_WIDTHS))
    yield fact("Table 5", "dense widths that agree", len(paper.TABLE_5), agree, ".0f")
    distinct = torch.rand(sum(DENSE_WIDTHS), generator=torch.Generator().manual_seed(0)).split(list(DENSE_WIDTHS))
    kept = sum(int(mask.sum()) for mask in keep_masks(distinct, HALF))
    yield fact("Table 5", f"filters kept at {HALF:.0%}", paper.TABLE_5.after.sum(), kept, ".0f", main=True,
               note="the rule m ≤ t was taken from this number")  # fmt: skip


def _figure_6(p: Profile) -> Iterator[Item]:
    for lam, (printed, accuracy) in zip(sorted(p.lams), paper.FIGURE_6.sort_values("lam").itertuples(index=False)):
        name = f"accuracy at λ = {printed:g}, %" + (f" (ours: {lam:g})" if lam != printed else "")
        yield Item("Figure 6", name, accuracy, _accuracy, _sparse(p, lam), "fig6", cannot=_other(p))


def _table_2(p: Profile) -> Iterator[Item]:
    common = {"measure": _measure_table_2, "runs": _sparse(p), "experiment": "table2"}
    columns = paper.TABLE_2.columns[1:]
    for n, (k, column) in enumerate(product(paper.TABLE_2.index, columns)):
        value, below = paper.TABLE_2[column][k], paper.TABLE_2.threshold[k - 1] if k else 0.0
        wrong = f"impossible as printed: here |γ| ≥ m > {below:g}" if column.startswith("gamma") and value < below else ""
        yield Item("Table 2", f"{column.replace('_', ' ')} at {paper.TABLE_2.rate[k]:.0%}", value, **common, part=n, cannot=wrong,
                   kind="measured" if column.startswith("sparsity") else "log")  # fmt: skip
    for n, name in enumerate(("largest jump of the threshold between rates, decades", "rate after that jump, %")):
        yield Item("Table 2", name, _jump(paper.TABLE_2)[n], **common, part=n - 2, main=True)


def _rates(p: Profile, source: str) -> Iterator[Item]:
    """Tables 3 and 6: accuracies are of fine-tuned networks; the costs follow from the sparse-trained network's scores."""
    third = source == "Table 3"
    table, dataset, classes = (paper.TABLE_3, None, 10) if third else (paper.TABLE_6, p.second, 100)
    lack = "" if third or p.second else f"profile {p.name} has no second data set"
    sparse = (lambda seed: []) if lack else _sparse(p, None, dataset)
    # Table 3's first row is Figure 6's plain network; of Table 6's it is not said
    first = {"runs": _sparse(p, 0.0), "experiment": "fig6"} if third else {"runs": sparse, "experiment": "table6"}
    yield Item(source, "accuracy, %, unpruned", table.accuracy_pct[0], _accuracy, **first, cannot=lack or _other(p))
    for row in table[1:].itertuples():
        common = {"experiment": source.lower().replace(" ", ""), "main": row.rate == HALF}
        tuned = sparse if lack else _tuned(p, row.rate, dataset=dataset)
        yield Item(source, f"accuracy, %, at {row.rate:.0%}", row.accuracy_pct, _accuracy, tuned, cannot=lack or _other(p),
                   **common)  # fmt: skip
        measure = partial(_costs_at, row.rate, classes)
        for n, (column, (label, _)) in enumerate(COSTS.items()):
            yield Item(source, f"{label}, at {row.rate:.0%}", getattr(row, column), measure, sparse, part=n, cannot=lack,
                       **common)  # fmt: skip


def _table_4(p: Profile) -> Iterator[Item]:
    accuracy = paper.TABLE_4_OURS_PCT
    yield Item("Table 4", f"accuracy, %, m at {HALF:.0%}", accuracy, _accuracy, _tuned(p, HALF), "table4", cannot=_other(p))
    for name in ("gamma", "sparsity", "l1", "l1_gamma"):

        def both(seed, name=name):
            return [p.pruned_run(HALF, seed, c, k) for c in ("gamma_sparsity", name) for k in range(p.repeats)]

        yield Item("Table 4", f"accuracy, %, {name} at {HALF:.0%}", math.nan, _accuracy, _tuned(p, HALF, criterion=name),
                   "table4", cannot="the body of Table 4 is missing in our copy")  # fmt: skip
        yield Item("Table 4", f"m more accurate than {name}, points", 0, _gain_of_first_half, both, "table4",
                   kind="above", cannot=_other(p), main=True)  # fmt: skip


def _table_5(p: Profile) -> Iterator[Item]:
    measure = partial(_widths, HALF)
    for row in paper.TABLE_5.itertuples():
        yield Item("Table 5", f"width of unit {row.unit} after {HALF:.0%}", row.after, measure, _sparse(p), "table2", row.unit)


def _claims(p: Profile) -> Iterator[Item]:
    """What the paper says in words: sections 2.3 and 3.2."""
    printed = paper.FIGURE_6.set_index("lam").accuracy_pct
    best, plain, chosen = paper.BEST_ACCURACY_PCT, printed[0.0], printed[paper.CHOSEN_LAM]
    other, item = _other(p), partial(Item, main=True)

    def lams(seed):
        return [p.sparse_run(lam, seed) for lam in sorted(p.lams)]

    def curve(seed):
        return [p.pruned_run(rate, seed) for rate in p.rates]

    def top(*runs):
        return max(runs, key=_accuracy)

    yield item("§ 3.2.1", "γ gathers near 0: rank correlation of λ and median |γ|", 0, _gathers, lams, "fig6", kind="below")
    yield item("§ 3.2.1", "S hardly depends on λ: largest change of its mean, %", 10, _change, lams, "fig6", kind="below")
    yield item("§ 3.2.1", f"no convergence at λ = {p.huge_lam:g}: accuracy (bound: twice chance), %", 20, _accuracy,
               _sparse(p, p.huge_lam), "huge", kind="below", note="a run that diverges leaves no record")  # fmt: skip
    yield item("§ 3.2.3", "best rate, %", 100 * paper.BEST_RATE, lambda *r: 100 * top(*r).config.prune.rate, curve,
               "table3", cannot=other)  # fmt: skip
    yield item("§ 3.2.3", "best accuracy, %", best, lambda *r: _accuracy(top(*r)), curve, "table3", cannot=other)
    for name, lam, gain in (("sparse-trained", None, best - chosen), ("plain", 0.0, best - plain)):
        yield item("§ 3.2.3", f"best accuracy − {name} network's, points", gain,
                   lambda a, *r: _accuracy(top(*r)) - _accuracy(a),
                   lambda s, lam=lam: [p.sparse_run(lam, s), *curve(s)], "fig6,table3", cannot=other)  # fmt: skip
    yield item("Table 4", f"gain of {HALF:.0%} over the sparse-trained network, points", paper.TABLE_4_GAIN_PCT,
               _gain_of_first_half, lambda s: [p.pruned_run(HALF, s), p.sparse_run(seed=s)], "table5", cannot=other)  # fmt: skip
    yield item("§ 3.2.3", f"pruning generalises better: {HALF:.0%} − unpruned tuned as long, points", 0,
               _gain_of_first_half, _tuned(p, HALF, 0.0), "table3", kind="above", cannot=other)  # fmt: skip
    yield item("§ 3.2.3", "rate that empties a layer, %", 100 * paper.COLLAPSE_RATE, _collapse, _sparse(p), "table2",
               kind="limit", form=f"{100 * paper.TABLE_3.rate.max()}")  # fmt: skip
    yield item("§ 2.3", f"layer's mean better than filter's own: accuracy after cutting {HALF:.0%}, points", 0, _own_mean,
               _sparse(p), "table2", kind="above", model=True)  # fmt: skip
    for n, name in enumerate(("effective rank", "class share")):
        yield item("§ 3.2.5", f"remaining maps learn more: change of their {name} in fine-tuning, %", 0, _learn_more,
                   lambda s: [p.sparse_run(seed=s), p.pruned_run(HALF, s)], "table5", n, "above", model=True)  # fmt: skip


def _other(p: Profile) -> str:
    return "" if p.judges_accuracy else f"profile {p.name} is not the paper's training on CIFAR"


def _sparse(p: Profile, lam: float | None = None, dataset: str | None = None) -> Callable[[int], list[RunConfig]]:
    return lambda seed: [p.sparse_run(lam, seed, dataset)]


def _tuned(p: Profile, *rates: float, **changes) -> Callable[[int], list[RunConfig]]:
    return lambda seed: [p.pruned_run(rate, seed, **changes) for rate in rates]


def _accuracy(run: Run) -> float:
    return 100 * run.accuracy


def _gain_of_first_half(*runs: Run) -> float:
    a = [_accuracy(run) for run in runs]
    return round(float(np.mean(a[: len(a) // 2]) - np.mean(a[len(a) // 2 :])), 9)


def _costs_at(rate: float, classes: int, run: Run) -> tuple[float, ...]:
    return _costs(_widths(rate, run), classes)


def _widths(rate: float, run: Run) -> tuple[int, ...]:
    return tuple(int(mask.sum()) for mask in keep_masks(run.importance, rate))


@cache
def shape_costs(classes: int, *shape: tuple[int, ...]) -> tuple[int, int]:
    """Parameters and the paper's FLOPs of a network of this `shape`: widths, or widths and squeeze, or none for the dense."""
    with torch.device("meta"):
        model = MobileNetV3Large(classes, *shape)
    return count_parameters(model), count_flops(model)


def _costs(widths: tuple[int, ...], classes: int) -> tuple[float, ...]:
    """The columns of COSTS for a network of these widths."""
    dense, small = shape_costs(classes), shape_costs(classes, widths)
    return small[0] / 1e6, small[1], *(100 * (1 - b / a) for a, b in zip(dense, small))


def _measure_table_2(run: Run) -> list[float]:
    """Table 2 row by row, of the filters between the threshold before and this one; then its largest jump."""
    m, gamma, sparsity = (torch.cat(part) for part in (run.importance, run.gamma, run.sparsity))
    order, last, rows = m.argsort(stable=True), 0, []
    for rate in paper.TABLE_2.rate:
        part, last = order[last : int(len(m) * rate) + 1], int(len(m) * rate) + 1
        g, s = gamma[part].abs(), sparsity[part]
        rows.append([rate, *map(float, (m[part[-1]], g.min(), g.max(), s.min(), s.max()))])
    table = pd.DataFrame(rows, columns=paper.TABLE_2.columns)
    return [*table.iloc[:, 1:].to_numpy().flatten(), *_jump(table)]


def _jump(table: pd.DataFrame) -> tuple[float, float]:
    decades = np.diff(np.log10(table.threshold.clip(lower=1e-38)))
    return float(decades.max()), 100 * float(table.rate[decades.argmax() + 1])


def _collapse(run: Run) -> float:
    """The smallest rate, in %, that empties a layer."""
    return 100 * min(emptied_at(run.importance))


def _gathers(*runs: Run) -> float:
    return stats.spearmanr(range(len(runs)), [float(torch.cat(run.gamma).abs().median()) for run in runs]).statistic


def _change(*runs: Run) -> float:
    means = [float(torch.cat(run.sparsity).mean()) for run in runs]
    return 100 * max(abs(mean / means[0] - 1) for mean in means)


def _test_part(run: Run, images: int = 300) -> tuple[Tensor, Tensor, int]:
    data = load_once(run.config.dataset)
    return data.test_images[:images], data.test_labels[:images], run.config.train.image_size


def _own_mean(run: Run) -> float:
    """Accuracy before fine-tuning, cut by |γ|·S with the layer's mean minus with each filter's own mean as threshold."""
    model = run.model()
    weights = [unit.expand[0].weight.detach().abs().flatten(1) for unit in model.blocks]
    own = [g.abs() * (w >= w.mean(1, keepdim=True)).float().mean(1) for g, w in zip(run.gamma, weights)]
    a, b = (evaluate(prune(model, keep_masks(s, HALF)), *_test_part(run, 2000)) for s in (score(model), own))
    return 100 * (a - b)


def _learn_more(sparse: Run, tuned: Run) -> list[float]:
    """Change of the kept channels' rank and class share (see `map_statistics`) in fine-tuning, mean over units, %."""
    masks = keep_masks(sparse.importance, tuned.config.prune.rate)
    before, after = (pd.DataFrame(map_statistics(run.model(), *_test_part(run), keep))
                     for run, keep in ((sparse, masks), (tuned, None)))  # fmt: skip
    ratios = (after / before)[["rank", "class_share"]].replace([0, np.inf], np.nan)
    return [100 * (math.exp(np.log(ratios[name]).mean()) - 1) for name in ratios]
