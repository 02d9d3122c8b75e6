"""Every number and claim of the paper: what is printed, which runs ours comes from, how it is measured."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import pandas as pd
import torch

from .. import paper
from ..costs import layer_costs
from ..model import DENSE_WIDTHS, MobileNetV3Large
from ..pruning import keep_masks
from ..runs.config import RunConfig
from ..runs.folder import Run
from ..runs.profiles import Profile
from . import feature_maps, measures
from .measures import HALF, accuracy, gain
from .statistics import MARGIN

RunsOfSeed = Callable[[int], list[RunConfig]]


@dataclass(frozen=True)
class Claim:
    """One number or claim of the paper, and how ours is found: `measure` of the runs that `runs` names for a seed.

    `kind`: "exact" (a fact without runs, compared as printed by `form`); "points" (accuracies and their differences:
    the interval of our mean against paper ± `margin`); "value" (the interval of one more seed against paper ±
    `margin`); "log" (the same within a factor of `margin`); "above" and "below" (`paper` is the bound). `least`: the
    paper's number is only known to lie between it and `paper`. `networks`: the runs' networks and test images are
    needed. `cannot`: why it cannot be checked. `note`: what a reader should know. `main`: part of the summary.
    """

    source: str
    name: str
    paper: float
    measure: Callable[..., float]
    runs: RunsOfSeed | None = None
    kind: str = "value"
    margin: float = 0.0
    least: float = math.nan
    form: str = ""
    networks: bool = False
    cannot: str = ""
    note: str = ""
    main: bool = False

    @property
    def target(self) -> tuple[float, float]:
        """The range in which our interval must lie (of kind "log": in decades)."""
        if self.kind in ("above", "below"):
            return (self.paper, math.inf) if self.kind == "above" else (-math.inf, self.paper)
        low = self.paper if math.isnan(self.least) else self.least
        if self.kind == "log":
            return math.log10(low / self.margin), math.log10(self.paper * self.margin)
        return low - self.margin, self.paper + self.margin


def sparse(p: Profile, *lams: float, dataset: str | None = None) -> RunsOfSeed:
    """The sparse-trained networks at these λ; without any, at the chosen one."""
    return lambda seed: [p.sparse_config(lam, seed, dataset) for lam in lams or [p.lam]]


def pruned(p: Profile, *rates: float, **changes) -> RunsOfSeed:
    """The chosen λ's network pruned at these rates and fine-tuned; `changes` as of `Profile.pruned_config`."""
    return lambda seed: [p.pruned_config(rate, seed, **changes) for rate in rates]


def by_criterion(p: Profile, criterion: str) -> RunsOfSeed:
    """Table 4's fine-tunings by one criterion, which count as their mean."""
    return lambda seed: [p.pruned_config(HALF, seed, criterion, repeat) for repeat in range(p.repeats)]


def gain_claim(p: Profile, source: str, name: str, paper: float, runs: RunsOfSeed, minus: RunsOfSeed, **more) -> Claim:
    """A difference in accuracy, in points, paired by seed: `runs` minus `minus`."""
    more = {"kind": "points", "margin": MARGIN, "cannot": not_cifar(p)} | more
    measure = partial(gain, first=len(runs(0)))
    return Claim(source, f"accuracy, {name}, points", paper, measure, lambda seed: [*runs(seed), *minus(seed)], **more)


def accuracy_claim(
    p: Profile, source: str, name: str, printed: float, runs: RunsOfSeed, base: tuple = (), **more
) -> Claim:
    """An accuracy in %: itself where the profile trains as the paper does, else minus that of `base`.

    `base` (name, printed, runs) is of the same seed, so that what its runs share (image size, epochs, augmentation)
    drops out; without one the number cannot be checked by such a profile.
    """
    if base and not p.judges_accuracy:
        base_name, base_printed, base_runs = base
        return gain_claim(p, source, f"{name} − {base_name}", round(printed - base_printed, 2), runs, base_runs, **more)
    other = "" if p.judges_accuracy else f"profile {p.name} does not train as the paper does; differences are compared"
    more["cannot"] = more.get("cannot") or not_cifar(p) or other
    return Claim(source, f"accuracy, {name}, %", printed, accuracy, runs, "points", MARGIN, **more)


def not_cifar(p: Profile) -> str:
    """Why this profile says nothing about the paper's accuracies; empty if it does."""
    return "" if p.dataset == "cifar10" else f"profile {p.name} trains on {p.dataset}, not on CIFAR"


SECTIONS = ("§ 2.3", "§ 3.2.1", "§ 3.2.3", "§ 3.2.5")
SOURCES = ("Table 1", "Table 2", "Table 3", "Table 4", "Table 5", "Table 6", "Figure 6", *SECTIONS)
COSTS = {  # columns of Tables 3 and 6: label, as printed, margin: 5 % of the dense network's
    "parameters_m": ("parameters, M", ".2f", 0.211),
    "flops": ("FLOPs", ".2e", 1.15e7),
    "fewer_parameters_pct": ("fewer parameters, %", ".1f", 5.0),
    "fewer_flops_pct": ("fewer FLOPs, %", ".1f", 5.0),
}


def claims(p: Profile) -> list[Claim]:
    """Every number and claim of the paper, in the order of SOURCES, as profile `p` checks it."""
    groups = (_table_1, _exact_costs, _filters_kept, _table_2, _table_3, _table_4, _table_5, _table_6)
    groups += (_figure_6, _gammas, _generalisation, _criterion)
    return sorted((claim for group in groups for claim in group(p)), key=lambda claim: SOURCES.index(claim.source))


def questions(p: Profile) -> list[Claim]:
    """What a reader asks beyond the paper: "reproduced" answers yes, "not reproduced" no."""
    longer, half, scratch = pruned(p, 0.0), pruned(p, HALF), pruned(p, HALF, inherit=False)
    slimming = pruned(p, HALF, criterion="gamma")
    ask, compare = partial(Claim, "Beyond the paper"), partial(gain_claim, p, "Beyond the paper")
    least = {"kind": "above", "paper": -MARGIN}
    dead = "share of dead filters, |γ| < 1e-4, between 40 and 50 % as in the paper"
    return [
        ask(dead, 50, measures.dead_share, sparse(p), least=40),
        compare("rate 0 fine-tuned as long − 50%, no worse than half a point", runs=longer, minus=half, **least),
        compare("the pruned shape from scratch − 50%, no worse than half a point", runs=scratch, minus=half, **least),
        compare("m − γ alone at 50%, equal to half a point", 0, half, slimming),
        ask("filters that m and γ alone both keep at 50%, above 95 %", 95, measures.kept_by_both, sparse(p), "above"),
    ]


def _exact(source: str, name: str, printed: float, ours: float, form: str, note: str = "", main: bool = True) -> Claim:
    return Claim(source, name, float(printed), lambda: float(ours), kind="exact", form=form, note=note, main=main)


def _table_1(p: Profile) -> Iterator[Claim]:
    layers = pd.DataFrame(layer_costs(MobileNetV3Large()))
    inside = layers.name.str.startswith("blocks")
    outer = ~inside & (layers.type == "BatchNorm2d")
    for column, part, what in (
        ("parameters", ~outer, "stem's and head's BatchNorms"),
        ("flops", layers.type != "Linear", "linear layers"),
    ):
        cost, printed = layers[column], paper.TABLE_1[f"{column}_pct"]
        share, without = (100 * cost[inside].sum() / cost[rows].sum() for rows in (cost.index, part))
        note = f"{without:.2f} in the blocks without the {what}"
        yield _exact("Table 1", f"{column} of the blocks, %", printed["blocks"], share, ".2f", note, main=False)
        yield _exact("Table 1", f"{column} of the rest, %", printed["rest"], 100 - share, ".2f", note, main=False)


def _exact_costs(p: Profile) -> Iterator[Claim]:
    rule = "the rule for SE's width was taken from this table"
    for source, name, row, network, note in (
        ("Table 3", "dense network", paper.TABLE_3.iloc[0], (10,), ""),
        ("Table 3", "network of Table 5's widths", paper.TABLE_3.iloc[5], (10, tuple(paper.TABLE_5.after)), rule),
        ("Table 6", "dense network", paper.TABLE_6.iloc[0], (100,), ""),
    ):
        for column, (label, form, _) in COSTS.items():
            if row[column]:
                yield _exact(source, f"{label}, {name}", row[column], measures.costs(*network)[column], form, note)


def _filters_kept(p: Profile) -> Iterator[Claim]:
    agree = (paper.TABLE_5.before == DENSE_WIDTHS).sum()
    yield _exact("Table 5", "dense widths that agree", len(paper.TABLE_5), agree, ".0f", main=False)
    order = torch.randperm(sum(DENSE_WIDTHS), generator=torch.Generator().manual_seed(0))
    distinct = order.double().split(DENSE_WIDTHS)
    kept = sum(int(mask.sum()) for mask in keep_masks(distinct, HALF))
    rule = "the rule m ≤ t was taken from this number"
    yield _exact("Table 5", f"filters kept at {HALF:.0%}", paper.TABLE_5.after.sum(), kept, ".0f", rule)


def _figure_6(p: Profile) -> Iterator[Claim]:
    printed = paper.FIGURE_6.sort_values("lam")
    yield accuracy_claim(p, "Figure 6", "λ = 0", printed.accuracy_pct.iloc[0], sparse(p, 0.0))
    ours = sorted(p.lams)
    shift = ours.index(p.lam) - printed.lam.tolist().index(paper.CHOSEN_LAM)  # pairs both chosen ones
    for place, row in enumerate(printed[1:].itertuples(), 1 + shift):
        name, claim = f"λ = {row.lam:g}", partial(accuracy_claim, p, "Figure 6", main=True)
        if 0 < place < len(ours):
            name += f" (ours: {ours[place]:g})" if ours[place] != row.lam else ""
            yield claim(name, row.accuracy_pct, sparse(p, ours[place]), _plain(p))
        else:
            base, lack = (*_plain(p)[:2], _no_runs), f"profile {p.name} has no λ so far from its own"
            yield claim(name, row.accuracy_pct, _no_runs, base, cannot=lack)


def _plain(p: Profile) -> tuple[str, float, RunsOfSeed]:
    return "plain network", paper.FIGURE_6.accuracy_pct[0], sparse(p, 0.0)


def _table_2(p: Profile) -> Iterator[Claim]:
    claim, networks = partial(Claim, "Table 2"), sparse(p)
    for i, row in paper.TABLE_2.iterrows():
        previous = paper.TABLE_2.threshold[i - 1] if i else 0.0
        for column in paper.TABLE_2.columns[1:]:
            judged = {"margin": 0.1} if column.startswith("sparsity") else {"kind": "log", "margin": 3}
            if column.startswith("gamma") and row[column] < previous:
                judged["cannot"] = f"impossible as printed: |γ| ≥ m, and m exceeds the threshold before, {previous:.2g}"
            name = f"{column.replace('_', ' ')} at {row.rate:.0%}"
            yield claim(name, row[column], partial(_table_2_entry, i, column), networks, **judged)
    decades, rate = measures.largest_jump(paper.TABLE_2)
    name = "largest jump of the threshold between rates, decades"
    yield claim(
        name, decades, lambda run: measures.largest_jump(measures.table_2(run))[0], networks, margin=1, main=True
    )
    name = "rate after that jump, %"
    yield claim(name, rate, lambda run: measures.largest_jump(measures.table_2(run))[1], networks, margin=5, main=True)


def _table_2_entry(row: int, column: str, run: Run) -> float:
    return float(measures.table_2(run)[column][row])


def _table_3(p: Profile) -> Iterator[Claim]:
    yield accuracy_claim(p, "Table 3", "unpruned", paper.TABLE_3.accuracy_pct[0], sparse(p, 0.0))
    for row in paper.TABLE_3[1:].itertuples():
        name, main = f"{row.rate:.0%} pruned", row.rate == HALF
        yield accuracy_claim(p, "Table 3", name, row.accuracy_pct, pruned(p, row.rate), _plain(p), main=main)
        yield from _costs("Table 3", row, 10, sparse(p), "")


def _table_6(p: Profile) -> Iterator[Claim]:
    lack = "" if p.second else f"profile {p.name} has no second data set"
    dense, cannot = sparse(p, dataset=p.second) if p.second else _no_runs, lack or not_cifar(p)
    first = ("unpruned", paper.TABLE_6.accuracy_pct[0], dense)  # plain or sparse-trained: it is not said
    yield accuracy_claim(p, "Table 6", *first)
    for row in paper.TABLE_6[1:].itertuples():
        more = {"cannot": cannot, "main": row.rate == HALF}
        runs = pruned(p, row.rate, dataset=p.second) if p.second else _no_runs
        yield accuracy_claim(p, "Table 6", f"{row.rate:.0%} pruned", row.accuracy_pct, runs, first, **more)
        impossible = "impossible as printed: whichever filters go, more parameters stay (notebook 08)"
        yield from _costs("Table 6", row, 100, dense, lack, impossible if row.rate == paper.IMPOSSIBLE_RATE else "")


def _no_runs(seed: int) -> list[RunConfig]:
    return []


def _costs(source: str, row, num_classes: int, runs: RunsOfSeed, lack: str, impossible: str = "") -> Iterator[Claim]:
    """The costs at one rate: they follow from the sparse-trained network's scores, without fine-tuning.

    `impossible`: why the row's numbers of parameters cannot be.
    """
    for column, (label, _, margin) in COSTS.items():
        main = row.rate == HALF and column.startswith("fewer")
        measure = partial(_cost, column, num_classes, row.rate)
        name, cannot = f"{label}, {row.rate:.0%} pruned", lack or impossible * ("parameters" in column)
        yield Claim(source, name, getattr(row, column), measure, runs, margin=margin, cannot=cannot, main=main)


def _cost(column: str, num_classes: int, rate: float, run: Run) -> float:
    return measures.costs(num_classes, measures.kept_widths(run, rate))[column]


def _table_4(p: Profile) -> Iterator[Claim]:
    ours = by_criterion(p, "gamma_sparsity")
    yield accuracy_claim(p, "Table 4", f"m at {HALF:.0%}", paper.TABLE_4_OURS_PCT, ours, _plain(p))
    claim = partial(gain_claim, p, "Table 4", main=True)
    yield claim(f"{HALF:.0%} pruned − sparse-trained", paper.TABLE_4_GAIN_PCT, pruned(p, HALF), sparse(p))
    for name in ("gamma", "sparsity", "l1", "l1_gamma"):  # the paper's own numbers are missing in our copy
        yield claim(f"m − {name} at {HALF:.0%}", 0, ours, by_criterion(p, name), kind="above")


def _table_5(p: Profile) -> Iterator[Claim]:
    for row in paper.TABLE_5.itertuples():
        name, tenth = f"width of block {row.block} after {HALF:.0%}", 0.1 * row.before
        yield Claim("Table 5", name, row.after, partial(_width, row.block), sparse(p), margin=tenth)


def _width(block: int, run: Run) -> float:
    return measures.kept_widths(run, HALF)[block]


def _gammas(p: Profile) -> Iterator[Claim]:
    """Section 3.2.1: what λ does."""
    claim, lams = partial(Claim, "§ 3.2.1", main=True), sparse(p, *sorted(p.lams))
    yield claim("γ gathers near 0: rank correlation of λ and median |γ|", 0, measures.gamma_gathers, lams, "below")
    yield claim("S hardly depends on λ: largest change of its mean, %", 10, measures.sparsity_change, lams, "below")
    name, note = (
        f"no convergence at λ = {p.huge_lam:g}: accuracy, %",
        "the bound is twice chance; a run may also diverge",
    )
    yield claim(name, 20, measures.accuracy, sparse(p, p.huge_lam), "below", note=note)


def _generalisation(p: Profile) -> Iterator[Claim]:
    """Section 3.2.3: pruning up to some rate improves accuracy, and 70 % breaks the network."""
    claim, best, runs = partial(Claim, "§ 3.2.3"), paper.BEST_ACCURACY_PCT, pruned(p, paper.BEST_RATE)
    chosen = "the paper chose the best of 14 rates on test images; nothing is chosen on them here"
    yield claim("best rate, %", 100 * paper.BEST_RATE, measures.accuracy, cannot=chosen)
    absent = "" if paper.BEST_RATE in p.rates else f"profile {p.name} does not train {paper.BEST_RATE:.0%}"
    more, name = {"cannot": not_cifar(p) or absent}, f"{paper.BEST_RATE:.0%} pruned (the paper's best)"
    yield accuracy_claim(p, "§ 3.2.3", name, best, runs, (), **more)
    for what, lam, base in (("sparse-trained", paper.CHOSEN_LAM, sparse(p)), ("plain network", 0.0, sparse(p, 0.0))):
        printed = paper.FIGURE_6.set_index("lam").accuracy_pct[lam]
        yield gain_claim(p, "§ 3.2.3", f"{name} − {what}", round(best - printed, 2), runs, base, **more)
    name = f"pruning generalises better: {HALF:.0%} − rate 0 fine-tuned as long"
    yield gain_claim(p, "§ 3.2.3", name, 0, pruned(p, HALF), pruned(p, 0.0), kind="above", main=True)
    last, first = 100 * paper.TABLE_3.rate.max(), 100 * paper.COLLAPSE_RATE
    more = {"least": last, "margin": 5, "note": f"the paper's lies between {last:.0f} and {first:.0f} %", "main": True}
    yield claim("rate that empties a block, %", first, lambda run: measures.collapse(run)[0], sparse(p), **more)


def _criterion(p: Profile) -> Iterator[Claim]:
    """Section 2.3, the threshold of S, and section 3.2.5, what the remaining maps learn."""
    more = {"kind": "above", "networks": True, "main": True}
    name = f"layer's mean better than filter's own: accuracy after cutting {HALF:.0%}, points"
    yield Claim("§ 2.3", name, 0, measures.own_mean_gain, sparse(p), **more)
    for name, column in (("effective rank", "rank"), ("class share", "class_share")):
        name, measure = f"remaining maps learn more: change of their {name} in fine-tuning, %", partial(_learn, column)
        yield Claim(
            "§ 3.2.5", name, 0, measure, lambda seed: [p.sparse_config(seed=seed), p.pruned_config(HALF, seed)], **more
        )


def _learn(column: str, before: Run, after: Run) -> float:
    return feature_maps.maps_learn(before, after)[column]
