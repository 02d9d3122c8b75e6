"""Every number and claim of the paper, table by table: what is printed, which runs ours comes from, how it is measured."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

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
from .measures import HALF, accuracy
from .statistics import MARGIN

RunsOfSeed = Callable[[int], list[RunConfig]]  # the runs that a claim needs for a seed

# what is compared with the paper's number
KINDS = {
    "exact": "a fact that needs no run, in the form in which the paper prints it",
    "points": "95 % interval of a mean accuracy, or of a mean difference in accuracy; target: paper ± margin",
    "value": "95 % interval of one more seed, since the paper has one run; target: paper ± margin",
    "log": "the same for the number's logarithm; target: paper divided and multiplied by margin",
    "above": "95 % interval of the mean; target: all above the paper's bound",
    "below": "95 % interval of the mean; target: all below the paper's bound",
}


@dataclass(frozen=True)
class Claim:
    """One number or claim of the paper, and how ours is found."""

    source: str  # the table, figure or section of the paper
    name: str  # what is claimed, with its unit
    paper: float  # the printed number; of kinds "above" and "below" the bound
    measure: Callable[..., float]  # takes the runs of one seed, in the order of `runs`; without any for kind "exact"
    runs: RunsOfSeed | None = None  # None: there are none to measure
    minus: RunsOfSeed | None = None  # what `measure` gives for these runs of the same seed is subtracted
    kind: str = "value"  # one of KINDS: what is compared with what
    margin: float = 0.0  # accepted on either side of the paper's number; of kind "log" a factor
    least: float = math.nan  # the paper's number is only known to lie between `least` and `paper`
    form: str = ""  # of kind "exact": format of the number as printed, such as ".2f"
    networks: bool = False  # whether the runs' networks and test images are needed, besides their numbers
    cannot: str = ""  # why the claim cannot be checked; empty if it can
    note: str = ""  # what a reader should know about the comparison
    main: bool = False  # whether it belongs to the summary

    @property
    def target(self) -> tuple[float, float]:
        """The range (low, high) in which our interval must lie; where `in_decades`, of logarithms."""
        if self.kind == "above":
            return self.paper, math.inf
        if self.kind == "below":
            return -math.inf, self.paper
        low = self.paper if math.isnan(self.least) else self.least
        if self.in_decades:
            return math.log10(low / self.margin), math.log10(self.paper * self.margin)
        return low - self.margin, self.paper + self.margin

    @property
    def in_decades(self) -> bool:
        """Whether the logarithms to base 10 are judged."""
        return self.kind == "log"

    @property
    def of_one_more_seed(self) -> bool:
        """Whether the interval of one more seed is judged, not that of the mean."""
        return self.kind in ("value", "log")

    def configs(self, seed: int) -> list[RunConfig]:
        """All runs that the claim needs for a seed."""
        if self.runs is None:
            return []
        if self.minus is None:
            return self.runs(seed)
        return [*self.runs(seed), *self.minus(seed)]

    def value(self, seed: int, runs: dict[RunConfig, Run]) -> float:
        """Ours for a seed, from its finished runs."""
        ours = self.measure(*[runs[config] for config in self.runs(seed)])
        if self.minus is None:
            return ours
        other = self.measure(*[runs[config] for config in self.minus(seed)])
        return round(ours - other, 9)  # equal accuracies differ by 0, not by a rounding error


def claims(p: Profile) -> list[Claim]:
    """Every number and claim of the paper, in its order, as profile `p` checks it."""
    return [
        *_table_1(),
        *_table_2(p),
        *_table_3(p),
        *_table_4(p),
        *_table_5(p),
        *_table_6(p),
        *_figure_6(p),
        *_section_2_3(p),
        *_section_3_2_1(p),
        *_section_3_2_3(p),
        *_section_3_2_5(p),
    ]


def _table_1() -> Iterator[Claim]:
    """The blocks' shares. Leaving out some layers outside of the blocks, which the notes name, gives the paper's."""
    layers = pd.DataFrame(layer_costs(MobileNetV3Large()))
    in_blocks = layers.name.str.startswith("blocks")
    outer_batch_norms = ~in_blocks & (layers.type == "BatchNorm2d")
    linear = layers.type == "Linear"
    yield from _share_claims("parameters", layers, in_blocks, outer_batch_norms, "stem's and head's BatchNorms")
    yield from _share_claims("flops", layers, in_blocks, linear, "linear layers")


def _share_claims(
    column: str, layers: pd.DataFrame, in_blocks: pd.Series, left_out: pd.Series, left_out_name: str
) -> Iterator[Claim]:
    printed = paper.TABLE_1[f"{column}_pct"]
    cost = layers[column]
    share = 100 * cost[in_blocks].sum() / cost.sum()
    share_without = 100 * cost[in_blocks].sum() / cost[~left_out].sum()
    note = f"{share_without:.2f} in the blocks without the {left_out_name}"
    yield exact_claim("Table 1", f"{column} of the blocks, %", printed["blocks"], share, ".2f", note, main=False)
    yield exact_claim("Table 1", f"{column} of the rest, %", printed["rest"], 100 - share, ".2f", note, main=False)


def _table_2(p: Profile) -> Iterator[Claim]:
    """The threshold of m by rate, and the ranges of γ and S between one threshold and the next."""
    previous_threshold = 0.0
    for i, row in paper.TABLE_2.iterrows():
        for column in ("threshold", "gamma_min", "gamma_max", "sparsity_min", "sparsity_max"):
            if column.startswith("sparsity"):
                kind = "value"
                margin = 0.1
            else:
                kind = "log"
                margin = 3
            cannot = ""
            if column.startswith("gamma") and row[column] < previous_threshold:
                before = f"{previous_threshold:.2g}"
                cannot = f"impossible as printed: |γ| ≥ m, and m exceeds the threshold before, {before}"
            yield Claim(
                "Table 2",
                f"{column.replace('_', ' ')} at {row.rate:.0%}",
                paper=row[column],
                measure=partial(measures.table_2_entry, row=i, column=column),
                runs=sparse(p),
                kind=kind,
                margin=margin,
                cannot=cannot,
            )
        previous_threshold = row.threshold
    jump = measures.largest_jump(paper.TABLE_2)
    yield Claim(
        "Table 2",
        "largest jump of the threshold between rates, decades",
        paper=jump.decades,
        measure=measures.jump_decades,
        runs=sparse(p),
        margin=1,
        main=True,
    )
    yield Claim(
        "Table 2",
        "rate after that jump, %",
        paper=jump.rate,
        measure=measures.jump_rate,
        runs=sparse(p),
        margin=5,
        main=True,
    )


class CostColumn(NamedTuple):
    """A column of costs in Tables 3 and 6."""

    label: str
    form: str  # format of its numbers as printed
    margin: float  # 5 % of the dense network's


COST_COLUMNS = {
    "parameters_m": CostColumn("parameters, M", ".2f", 0.211),
    "flops": CostColumn("FLOPs", ".2e", 1.15e7),
    "fewer_parameters_pct": CostColumn("fewer parameters, %", ".1f", 5.0),
    "fewer_flops_pct": CostColumn("fewer FLOPs, %", ".1f", 5.0),
}


def _table_3(p: Profile) -> Iterator[Claim]:
    """CIFAR-10: accuracy and costs by rate."""
    unpruned = paper.TABLE_3.iloc[0]
    yield from _exact_costs("Table 3", "dense network", unpruned, measures.costs(10))
    at_half = paper.TABLE_3.set_index("rate").loc[HALF]
    widths = tuple(paper.TABLE_5.after)
    rule = "the rule for SE's width was taken from this table"
    yield from _exact_costs("Table 3", "network of Table 5's widths", at_half, measures.costs(10, widths), rule)
    yield accuracy_claim(p, "Table 3", "unpruned", printed=unpruned.accuracy_pct, runs=sparse(p, 0.0))
    for row in paper.TABLE_3[1:].itertuples():
        yield accuracy_claim(
            p,
            "Table 3",
            f"{row.rate:.0%} pruned",
            printed=row.accuracy_pct,
            runs=pruned(p, row.rate),
            baseline=plain_network(p),
            main=row.rate == HALF,
        )
        yield from _costs_at_rate("Table 3", row, 10, sparse(p))


def _exact_costs(source: str, name: str, printed: pd.Series, ours: dict, note: str = "") -> Iterator[Claim]:
    """The costs in one row of Table 3 or 6 that follow from the architecture alone."""
    for column, about in COST_COLUMNS.items():
        if printed[column] != 0:  # the dense network saves nothing, which is no claim
            yield exact_claim(source, f"{about.label}, {name}", printed[column], ours[column], about.form, note)


def _costs_at_rate(
    source: str,
    printed: NamedTuple,
    num_classes: int,
    runs: RunsOfSeed | None,
    cannot: str = "",
    cannot_parameters: str = "",
) -> Iterator[Claim]:
    """The costs in one row of Table 3 or 6. They follow from the sparse-trained network's scores, without fine-tuning.

    `cannot_parameters`: why the row's numbers of parameters cannot be checked.
    """
    for column, about in COST_COLUMNS.items():
        reason = cannot
        if not reason and "parameters" in column:
            reason = cannot_parameters
        yield Claim(
            source,
            f"{about.label}, {printed.rate:.0%} pruned",
            paper=getattr(printed, column),
            measure=partial(measures.cost_at_rate, rate=printed.rate, num_classes=num_classes, column=column),
            runs=runs,
            margin=about.margin,
            cannot=reason,
            main=printed.rate == HALF and column.startswith("fewer"),
        )


def _table_4(p: Profile) -> Iterator[Claim]:
    """Criteria compared at 50 %."""
    ours = pruned_by_criterion(p, "gamma_sparsity")
    yield accuracy_claim(
        p, "Table 4", f"m at {HALF:.0%}", printed=paper.TABLE_4_OURS_PCT, runs=ours, baseline=plain_network(p)
    )
    yield difference_claim(
        p,
        "Table 4",
        f"{HALF:.0%} pruned − sparse-trained",
        printed=paper.TABLE_4_GAIN_PCT,
        runs=pruned(p, HALF),
        minus=sparse(p),
        main=True,
    )
    for criterion in ("gamma", "sparsity", "l1", "l1_gamma"):  # the paper's own numbers are missing in our copy
        yield difference_claim(
            p,
            "Table 4",
            f"m − {criterion} at {HALF:.0%}",
            printed=0,
            runs=ours,
            minus=pruned_by_criterion(p, criterion),
            kind="above",
            main=True,
        )


def _table_5(p: Profile) -> Iterator[Claim]:
    """Widths before and after pruning 50 %."""
    agreeing = (paper.TABLE_5.before == DENSE_WIDTHS).sum()
    yield exact_claim("Table 5", "dense widths that agree", len(paper.TABLE_5), agreeing, ".0f", main=False)
    order = torch.randperm(sum(DENSE_WIDTHS), generator=torch.Generator().manual_seed(0))
    distinct_scores = order.double().split(DENSE_WIDTHS)
    kept = sum(int(mask.sum()) for mask in keep_masks(distinct_scores, HALF))
    rule = "the rule m ≤ t was taken from this number"
    yield exact_claim("Table 5", f"filters kept at {HALF:.0%}", paper.TABLE_5.after.sum(), kept, ".0f", rule)
    for row in paper.TABLE_5.itertuples():
        yield Claim(
            "Table 5",
            f"width of block {row.block} after {HALF:.0%}",
            paper=row.after,
            measure=partial(measures.kept_width, rate=HALF, block=row.block),
            runs=sparse(p),
            margin=0.1 * row.before,
        )


def _table_6(p: Profile) -> Iterator[Claim]:
    """CIFAR-100: accuracy and costs by rate."""
    unpruned = paper.TABLE_6.iloc[0]
    yield from _exact_costs("Table 6", "dense network", unpruned, measures.costs(100))
    no_data = "" if p.second else f"profile {p.name} has no second data set"
    # the paper does not say whether its unpruned network is the plain or the sparse-trained one
    dense = sparse(p, dataset=p.second) if p.second else None
    yield accuracy_claim(p, "Table 6", "unpruned", printed=unpruned.accuracy_pct, runs=dense)
    for row in paper.TABLE_6[1:].itertuples():
        yield accuracy_claim(
            p,
            "Table 6",
            f"{row.rate:.0%} pruned",
            printed=row.accuracy_pct,
            runs=pruned(p, row.rate, dataset=p.second) if p.second else None,
            baseline=Baseline("unpruned", unpruned.accuracy_pct, dense),
            cannot=no_data,
            main=row.rate == HALF,
        )
        impossible = ""
        if row.rate == paper.IMPOSSIBLE_RATE:
            impossible = "impossible as printed: whichever filters go, more parameters stay (notebook 08)"
        yield from _costs_at_rate("Table 6", row, 100, dense, no_data, impossible)


def _figure_6(p: Profile) -> Iterator[Claim]:
    """Accuracy after sparse training, by λ."""
    yield accuracy_claim(p, "Figure 6", "λ = 0", printed=_printed_accuracy(0.0), runs=sparse(p, 0.0))
    for printed_lam, our_lam in counterparts(p).items():
        if our_lam is None:
            name = f"λ = {printed_lam:g}"
            runs = None
            cannot = f"profile {p.name} has no λ so far from its own"
        else:
            name = f"λ = {printed_lam:g}" if our_lam == printed_lam else f"λ = {printed_lam:g} (ours: {our_lam:g})"
            runs = sparse(p, our_lam)
            cannot = ""
        yield accuracy_claim(
            p,
            "Figure 6",
            name,
            printed=_printed_accuracy(printed_lam),
            runs=runs,
            baseline=plain_network(p),
            cannot=cannot,
            main=True,
        )


def counterparts(p: Profile) -> dict[float, float | None]:
    """For each λ > 0 of Figure 6 the profile's λ that stands for it, or None if there is none; ascending.

    λ acts through the number of training steps, so equal values do not mean equal training. The chosen λ of the paper
    and that of the profile stand for each other, so do the next larger ones, and so on in both directions.
    """
    printed = sorted(lam for lam in paper.FIGURE_6.lam if lam > 0)
    ours = sorted(lam for lam in p.lams if lam > 0)
    pairs = {}
    for lam in printed:
        steps_from_chosen = printed.index(lam) - printed.index(paper.CHOSEN_LAM)
        place = ours.index(p.lam) + steps_from_chosen
        pairs[lam] = ours[place] if 0 <= place < len(ours) else None
    return pairs


def _printed_accuracy(lam: float) -> float:
    """The paper's accuracy after sparse training at λ = `lam`, in %."""
    return float(paper.FIGURE_6.set_index("lam").accuracy_pct[lam])


def _section_2_3(p: Profile) -> Iterator[Claim]:
    """The threshold of S."""
    yield Claim(
        "§ 2.3",
        f"layer's mean better than filter's own: accuracy after cutting {HALF:.0%}, points",
        paper=0,
        measure=measures.own_mean_gain,
        runs=sparse(p),
        kind="above",
        networks=True,
        main=True,
    )


def _section_3_2_1(p: Profile) -> Iterator[Claim]:
    """What λ does."""
    yield Claim(
        "§ 3.2.1",
        "γ gathers near 0: rank correlation of λ and median |γ|",
        paper=0,
        measure=measures.gamma_gathers,
        runs=sparse_at_all_lams(p),
        kind="below",
        main=True,
    )
    yield Claim(
        "§ 3.2.1",
        "S hardly depends on λ: largest change of its mean, %",
        paper=10,
        measure=measures.sparsity_change,
        runs=sparse_at_all_lams(p),
        kind="below",
        main=True,
    )
    yield Claim(
        "§ 3.2.1",
        f"no convergence at λ = {p.huge_lam:g}: accuracy, %",
        paper=20,
        measure=accuracy,
        runs=sparse(p, p.huge_lam),
        kind="below",
        note="the bound is twice chance; a run may also diverge",
        main=True,
    )


def _section_3_2_3(p: Profile) -> Iterator[Claim]:
    """Pruning up to some rate improves accuracy, and 70 % breaks the network."""
    best = pruned(p, paper.BEST_RATE)
    not_trained = ""
    if paper.BEST_RATE not in p.rates:
        not_trained = data_caution(p) or f"profile {p.name} does not train {paper.BEST_RATE:.0%}"
    yield Claim(
        "§ 3.2.3",
        "best rate, %",
        paper=100 * paper.BEST_RATE,
        measure=accuracy,
        cannot="the paper chose the best of 14 rates on test images; nothing is chosen on them here",
    )
    name = f"{paper.BEST_RATE:.0%} pruned (the paper's best)"
    yield accuracy_claim(p, "§ 3.2.3", name, printed=paper.BEST_ACCURACY_PCT, runs=best, cannot=not_trained)
    yield difference_claim(
        p,
        "§ 3.2.3",
        f"{name} − sparse-trained",
        printed=round(paper.BEST_ACCURACY_PCT - _printed_accuracy(paper.CHOSEN_LAM), 2),
        runs=best,
        minus=sparse(p),
        cannot=not_trained,
    )
    yield difference_claim(
        p,
        "§ 3.2.3",
        f"{name} − plain network",
        printed=round(paper.BEST_ACCURACY_PCT - _printed_accuracy(0.0), 2),
        runs=best,
        minus=sparse(p, 0.0),
        cannot=not_trained,
    )
    yield difference_claim(
        p,
        "§ 3.2.3",
        f"pruning generalises better: {HALF:.0%} − rate 0 fine-tuned as long",
        printed=0,
        runs=pruned(p, HALF),
        minus=pruned(p, 0.0),
        kind="above",
        main=True,
    )
    last_whole = 100 * paper.TABLE_3.rate.max()
    broken = 100 * paper.COLLAPSE_RATE
    yield Claim(
        "§ 3.2.3",
        "rate that empties a block, %",
        paper=broken,
        measure=measures.collapse_rate,
        runs=sparse(p),
        margin=5,
        least=last_whole,
        note=f"the paper's lies between {last_whole:.0f} and {broken:.0f} %",
        main=True,
    )


def _section_3_2_5(p: Profile) -> Iterator[Claim]:
    """What the remaining maps learn in fine-tuning."""
    yield Claim(
        "§ 3.2.5",
        "remaining maps learn more: change of their effective rank in fine-tuning, %",
        paper=0,
        measure=feature_maps.rank_change,
        runs=before_and_after_finetuning(p),
        kind="above",
        networks=True,
        main=True,
    )
    yield Claim(
        "§ 3.2.5",
        "remaining maps learn more: change of their class share in fine-tuning, %",
        paper=0,
        measure=feature_maps.class_share_change,
        runs=before_and_after_finetuning(p),
        kind="above",
        networks=True,
        main=True,
    )


def questions(p: Profile) -> list[Claim]:
    """What a reader asks beyond the paper: "reproduced" answers yes, "not reproduced" no."""
    source = "Beyond the paper"
    return [
        Claim(
            source,
            "share of dead filters, |γ| < 1e-4, between 40 and 50 % as in the paper",
            paper=50,
            measure=measures.dead_share,
            runs=sparse(p),
            least=40,
        ),
        difference_claim(
            p,
            source,
            "rate 0 fine-tuned as long − 50%, no worse than half a point",
            printed=-MARGIN,
            runs=pruned(p, 0.0),
            minus=pruned(p, HALF),
            kind="above",
        ),
        difference_claim(
            p,
            source,
            "the pruned shape from scratch − 50%, no worse than half a point",
            printed=-MARGIN,
            runs=pruned(p, HALF, inherit=False),
            minus=pruned(p, HALF),
            kind="above",
        ),
        difference_claim(
            p,
            source,
            "m − γ alone at 50%, equal to half a point",
            printed=0,
            runs=pruned(p, HALF),
            minus=pruned(p, HALF, criterion="gamma"),
        ),
        Claim(
            source,
            "filters that m and γ alone both keep at 50%, above 95 %",
            paper=95,
            measure=measures.kept_by_both,
            runs=sparse(p),
            kind="above",
        ),
    ]


class Baseline(NamedTuple):
    """What an accuracy is compared with where the profile does not train as the paper does."""

    name: str
    printed: float  # its accuracy in the paper, %
    runs: RunsOfSeed | None


def plain_network(p: Profile) -> Baseline:
    """Training without the penalty."""
    return Baseline("plain network", _printed_accuracy(0.0), sparse(p, 0.0))


def accuracy_claim(
    p: Profile,
    source: str,
    name: str,
    printed: float,
    runs: RunsOfSeed | None,
    baseline: Baseline | None = None,
    cannot: str = "",
    main: bool = False,
) -> Claim:
    """An accuracy in %: itself where the profile trains as the paper does, else its difference to the `baseline`'s.

    The baseline is of the same seed, so that what its runs share (image size, epochs, augmentation) drops out. Without
    one, such a profile cannot check the number.
    """
    if baseline and not p.judges_accuracy:
        difference = round(printed - baseline.printed, 2)
        name = f"{name} − {baseline.name}"
        return difference_claim(
            p, source, name, printed=difference, runs=runs, minus=baseline.runs, cannot=cannot, main=main
        )
    cannot = cannot or data_caution(p) or training_caution(p)
    return Claim(
        source,
        f"accuracy, {name}, %",
        paper=printed,
        measure=accuracy,
        runs=runs,
        kind="points",
        margin=MARGIN,
        cannot=cannot,
        main=main,
    )


def difference_claim(
    p: Profile,
    source: str,
    name: str,
    printed: float,
    runs: RunsOfSeed | None,
    minus: RunsOfSeed | None,
    kind: str = "points",
    cannot: str = "",
    main: bool = False,
) -> Claim:
    """A difference in accuracy, in points, paired by seed: that of `runs` minus that of `minus`."""
    return Claim(
        source,
        f"accuracy, {name}, points",
        paper=printed,
        measure=accuracy,
        runs=runs,
        minus=minus,
        kind=kind,
        margin=MARGIN,
        cannot=cannot or data_caution(p),
        main=main,
    )


def exact_claim(
    source: str, name: str, printed: float, ours: float, form: str, note: str = "", main: bool = True
) -> Claim:
    """A fact that needs no training. `ours` is compared with `printed` in the format `form`."""

    def measure() -> float:
        return float(ours)

    return Claim(source, name, paper=float(printed), measure=measure, kind="exact", form=form, note=note, main=main)


def data_caution(p: Profile) -> str:
    """Why this profile says nothing about the paper's accuracies; empty if it trains on the paper's data."""
    if p.dataset == "cifar10":
        return ""
    return f"profile {p.name} trains on {p.dataset}, not on CIFAR"


def training_caution(p: Profile) -> str:
    """Why the accuracies themselves cannot be compared; empty if the profile trains as the paper does."""
    if p.judges_accuracy:
        return ""
    return f"profile {p.name} does not train as the paper does; differences are compared"


def sparse(p: Profile, lam: float | None = None, dataset: str | None = None) -> RunsOfSeed:
    """The sparse-trained network at λ = `lam`; None: at the chosen λ."""

    def configs(seed: int) -> list[RunConfig]:
        return [p.sparse_config(lam, seed, dataset)]

    return configs


def sparse_at_all_lams(p: Profile) -> RunsOfSeed:
    """The sparse-trained networks at all λ of Figure 6, in order of λ."""

    def configs(seed: int) -> list[RunConfig]:
        return [p.sparse_config(lam, seed) for lam in sorted(p.lams)]

    return configs


def pruned(p: Profile, rate: float, **changes) -> RunsOfSeed:
    """The chosen λ's network pruned at `rate` and fine-tuned; `changes` as for `Profile.pruned_config`."""

    def configs(seed: int) -> list[RunConfig]:
        return [p.pruned_config(rate, seed, **changes)]

    return configs


def pruned_by_criterion(p: Profile, criterion: str) -> RunsOfSeed:
    """Table 4's fine-tunings by one criterion; they count as their mean."""

    def configs(seed: int) -> list[RunConfig]:
        return [p.pruned_config(HALF, seed, criterion, repeat) for repeat in range(p.repeats)]

    return configs


def before_and_after_finetuning(p: Profile) -> RunsOfSeed:
    """The sparse-trained network, and the one pruned from it at HALF and fine-tuned."""

    def configs(seed: int) -> list[RunConfig]:
        return [p.sparse_config(seed=seed), p.pruned_config(HALF, seed)]

    return configs
