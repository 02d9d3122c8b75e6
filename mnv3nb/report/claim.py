"""What a claim of the paper is, and the runs that claims are about."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from ..experiments.config import RunConfig
from ..experiments.profile import Profile
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
    return lambda seed: [p.sparse_run(lam, seed, dataset) for lam in lams or [p.lam]]


def pruned(p: Profile, *rates: float, **changes) -> RunsOfSeed:
    """The chosen λ's network pruned at these rates and fine-tuned; `changes` as of `Profile.pruned_run`."""
    return lambda seed: [p.pruned_run(rate, seed, **changes) for rate in rates]


def by_criterion(p: Profile, criterion: str) -> RunsOfSeed:
    """Table 4's fine-tunings by one criterion, which count as their mean."""
    return lambda seed: [p.pruned_run(HALF, seed, criterion, repeat) for repeat in range(p.repeats)]


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
