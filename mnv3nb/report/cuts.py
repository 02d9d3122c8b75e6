"""What a rate would remove and what recorded runs say about it, without building the network: for the explorers."""

from collections.abc import Callable, Iterable, Sequence
from statistics import fmean

from torch import nn

from ..blocks import blocks
from ..complexity import count_flops, count_parameters
from ..deployment.widths import cost_at, cost_factors
from ..experiments.profiles import Profile
from ..experiments.runs import Runs
from ..experiments.store import Run
from ..pruning import hidden_width

ALIGNMENTS = (1, 2, 4, 8, 16)
COUNTS = {"parameters": count_parameters, "flops": count_flops}


def cost_model(model: nn.Module) -> Callable[[Sequence[int], str], dict[str, int]]:
    """A function of widths and `squeeze`: parameters and flops (at 224 px), counted of the network that `prune` makes."""
    found = blocks(model)
    factors = {cost: cost_factors(model, cost) for cost in COUNTS}
    inside = {cost: sum(cost_at(f, b.width, b.hidden) for f, b in zip(factors[cost], found)) for cost in COUNTS}
    outside = {cost: count(model) - inside[cost] for cost, count in COUNTS.items()}
    hidden = [block.hidden for block in found]

    def costs(widths: Sequence[int], squeeze: str) -> dict[str, int]:
        squeezed = [hidden_width(w, h, squeeze) for w, h in zip(widths, hidden, strict=True)]
        return {
            cost: outside[cost] + sum(cost_at(f, w, h) for f, w, h in zip(factors[cost], widths, squeezed))
            for cost in COUNTS
        }

    return costs


def next_to_empty(collapse: Sequence[float], rate: float) -> tuple[int, float] | None:
    """The block that loses its last filter next as the rate grows beyond `rate`, and at which rate; None if all have.

    `collapse`: from `layer_collapse_rates`.
    """
    later = [(at, block) for block, at in enumerate(collapse) if at > rate]
    return min(later)[::-1] if later else None


def finished_cuts(runs: Runs, profile: Profile, seed: int = 0) -> list[Run]:
    """Those runs of Tables 3 and 4, of aligned widths and of both squeezes that are there; trains nothing."""
    names = ("table3", "table4", "aligned", "squeeze")
    configs = {config.key: config for name in names for config in profile.experiment(name, seed)}
    return list(filter(None, map(runs.find, configs.values())))


def accuracies_by_rate(runs: Iterable[Run]) -> dict[tuple, dict[str, dict[int, float]]]:
    """{(λ, criterion, multiple_of, squeeze): {"raw", "folded" or "fine-tuned": {rate in %: mean accuracy in %}}}.

    Of the runs that rank all filters together and inherit the weights.
    """
    stages = {"raw": "accuracy_before", "folded": "accuracy_folded", "fine-tuned": "accuracy"}
    table: dict = {}
    for run in runs:
        p = run.config.prune
        if p and p.inherit and p.ranking == "global":
            setting = run.config.parent.train.lam, p.criterion, p.multiple_of, p.squeeze
            for stage, key in stages.items():
                if run.result.get(key) is not None:
                    rates = table.setdefault(setting, {}).setdefault(stage, {})
                    rates.setdefault(round(100 * p.rate), []).append(100 * run.result[key])
    means = {
        s: {stage: {r: fmean(v) for r, v in rates.items()} for stage, rates in t.items()} for s, t in table.items()
    }
    return means
