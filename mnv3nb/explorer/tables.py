"""What the explorer looks up: the cost of a network at any widths, and the accuracies of finished runs."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import nn

from ..costs import count_flops, count_parameters
from ..deploy.widths import block_costs
from ..runs.find_or_train import Runs
from ..runs.profiles import Profile

ALIGNMENTS = (1, 2, 4, 8, 16)  # multiples of which widths can be
COST_COUNTERS = {"parameters": count_parameters, "flops": count_flops}
RESULT_KEYS = {"raw": "accuracy_before", "folded": "accuracy_folded", "fine-tuned": "accuracy"}  # of STAGES, in a run
EXPERIMENTS_OF_CUTS = ("rates", "criteria", "aligned", "se_rules")


class Setting(NamedTuple):
    """All choices, apart from the rate, that determine a pruned network."""

    lam: float  # λ of the sparse training
    criterion: str  # one of CRITERIA
    multiple_of: int  # one of ALIGNMENTS
    squeeze: str  # one of SE_RULES


class CostTable(NamedTuple):
    """One cost of a network at any widths."""

    outside: int  # of the layers outside the blocks
    blocks: list[dict[int, int]]  # for each block {width: cost}


def cost_tables(model: nn.Module, squeeze: str) -> dict[str, CostTable]:
    """The tables of "parameters" and "flops" (at 224 px) for `model` pruned with the rule `squeeze` for SE."""
    tables = {}
    for cost, count in COST_COUNTERS.items():
        of_blocks = block_costs(model, cost, squeeze=squeeze)
        dense_blocks = sum(table[max(table)] for table in of_blocks)
        tables[cost] = CostTable(count(model) - dense_blocks, of_blocks)
    return tables


def network_cost(table: CostTable, widths: Sequence[int]) -> int:
    """The cost of the network pruned to `widths`, without building it."""
    return table.outside + sum(costs[width] for costs, width in zip(table.blocks, widths, strict=True))


def recorded_accuracies(runs: Runs, profile: Profile, seed: int = 0) -> dict[Setting, dict[str, dict[int, float]]]:
    """{setting: {stage: {rate in %: accuracy in %}}} of the finished runs of a profile; trains nothing."""
    found: dict[Setting, dict[str, dict[int, float]]] = {}
    configs = [config for name in EXPERIMENTS_OF_CUTS for config in profile.experiment(name, seed)]
    for config in configs:
        cut = config.prune
        if config.train.seed != seed or cut.ranking != "global":
            continue
        run = runs.find(config)
        if run is None:
            continue
        setting = Setting(config.parent.train.lam, cut.criterion, cut.multiple_of, cut.squeeze)
        curves = found.setdefault(setting, {})
        for stage, key in RESULT_KEYS.items():
            accuracy = run.result.get(key)
            if accuracy is not None:
                curves.setdefault(stage, {})[round(100 * cut.rate)] = 100 * accuracy
    return found
