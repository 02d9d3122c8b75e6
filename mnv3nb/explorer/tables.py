"""What a rate removes, worked out beforehand: for the explorer, and as one HTML file that needs no kernel and no server."""

from collections.abc import Sequence

from torch import nn

from ..costs import count_flops, count_parameters
from ..deploy.widths import block_costs
from ..runs.find_or_train import Runs
from ..runs.profiles import Profile
from .picture import STAGES

ALIGNMENTS = (1, 2, 4, 8, 16)
RATES = range(91)  # in %, of the page
COUNTS = {"parameters": count_parameters, "flops": count_flops}
RESULTS = "accuracy_before", "accuracy_folded", "accuracy"  # of STAGES
CostTable = tuple[int, list[dict[int, int]]]


def cost_tables(model: nn.Module, squeeze: str) -> dict[str, CostTable]:
    """For parameters and flops (at 224 px): what lies outside the blocks, and for each block {width: cost}."""
    tables = {cost: block_costs(model, cost, squeeze=squeeze) for cost in COUNTS}
    inside = {cost: sum(table[max(table)] for table in tables[cost]) for cost in COUNTS}
    return {cost: (count(model) - inside[cost], tables[cost]) for cost, count in COUNTS.items()}


def network_cost(table: CostTable, widths: Sequence[int]) -> int:
    """What COUNTS count of the network pruned to `widths`, from its table: nothing is built."""
    outside, tables = table
    return outside + sum(costs[width] for costs, width in zip(tables, widths, strict=True))


def recorded_accuracies(runs: Runs, profile: Profile, seed: int = 0) -> dict[tuple, dict[str, dict[int, float]]]:
    """{(λ, criterion, multiple_of, squeeze): {stage: {rate in %: accuracy in %}}} of the finished runs; trains nothing."""
    found: dict[tuple, dict[str, dict[int, float]]] = {}
    configs = [c for name in ("rates", "criteria", "aligned", "se_rules") for c in profile.experiment(name, seed)]
    for config in configs:
        p = config.prune
        if config.train.seed == seed and p.ranking == "global" and (run := runs.find(config)):
            setting = config.parent.train.lam, p.criterion, p.multiple_of, p.squeeze
            for stage, name in zip(STAGES, RESULTS):
                if (value := run.result.get(name)) is not None:
                    found.setdefault(setting, {}).setdefault(stage, {})[round(100 * p.rate)] = 100 * value
    return found
