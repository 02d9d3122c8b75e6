"""What a rate removes, worked out beforehand: for the explorer, and as one HTML file that needs no kernel and no server."""

import argparse
import json
from collections.abc import Sequence
from importlib.resources import files

import numpy as np
import torch
from torch import nn

from .. import paper
from .._files import write_file
from ..complexity import count_flops, count_parameters
from ..deployment.widths import block_costs
from ..experiments.profiles import PROFILES, Profile
from ..experiments.runs import Runs
from ..importance import NEEDS_DATA, score
from ..plots import CRITERION_LABELS, LOOKS
from ..plots.picture import STAGES, score_bins
from ..pruning import keep_masks, layer_collapse_rates, threshold

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
    configs = [c for name in ("table3", "table4", "aligned", "squeeze") for c in profile.experiment(name, seed)]
    for config in configs:
        p = config.prune
        if config.train.seed == seed and p.ranking == "global" and (run := runs.find(config)):
            setting = config.parent.train.lam, p.criterion, p.multiple_of, p.squeeze
            for stage, name in zip(STAGES, RESULTS):
                if (value := run.result.get(name)) is not None:
                    found.setdefault(setting, {}).setdefault(stage, {})[round(100 * p.rate)] = 100 * value
    return found


def explorer_data(runs: Runs, profile: Profile, seed: int = 0) -> dict:
    """What the page shows of the sparse-trained network of `profile`, which is trained if it is not there.

    For each criterion that needs no images: its scores, and `cuts[multiple_of][rate in %]`, each [widths, parameters,
    FLOPs at 224 px].
    """
    sparse = runs.run(profile.sparse_run(seed=seed), model=True)
    model, accuracies, criteria = sparse.model(), recorded_accuracies(runs, profile, seed), {}
    tables = cost_tables(model, "paper").values()
    for criterion in (name for name in profile.criteria if name not in NEEDS_DATA):
        scores = score(model, criterion, seed=seed)
        (edges, log), flat = score_bins(torch.cat(scores).numpy()), torch.cat(scores).numpy()
        chosen = {"label": CRITERION_LABELS[criterion], "log": log, "edges": edges.tolist(), "cuts": {}}
        chosen["counts"] = np.histogram(flat.clip(edges[0], edges[-1]), edges)[0].tolist()
        chosen["thresholds"] = [threshold(scores, rate / 100) for rate in RATES]
        chosen["collapse"] = layer_collapse_rates(scores)
        for k in ALIGNMENTS:
            widths = [[int(mask.sum()) for mask in keep_masks(scores, rate / 100, k)] for rate in RATES]
            chosen["cuts"][k] = [[some, *(network_cost(table, some) for table in tables)] for some in widths]
        chosen["accuracies"] = {k: accuracies.get((profile.lam, criterion, k, "paper"), {}) for k in ALIGNMENTS}
        criteria[criterion] = chosen
    about = {"network": sparse.config.label, "dense": model.widths, "paper": paper.TABLE_5["after"].tolist()}
    return about | {"colors": {name: look["color"] for name, look in LOOKS.items()}, "criteria": criteria}


def explorer_page(runs: Runs, profile: Profile, seed: int = 0) -> str:
    """The page, some 2 MB with its plotting library in it; `explorer_data` stands in the element #data as JSON."""
    from bokeh.resources import Resources  # late: the notebook's explorer does without

    template = files(__package__).joinpath("explorer_page.html").read_text(encoding="utf-8")
    library = Resources(mode="inline", components=["bokeh", "bokeh-api"]).render_js()
    data = json.dumps(explorer_data(runs, profile, seed), separators=(",", ":")).replace("</", "<\\/")
    return template.replace("<!-- bokeh -->", library).replace("<!-- data -->", data)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="write the explorer as one HTML file")
    parser.add_argument(
        "--profile", default="cifar", choices=PROFILES, help="default: the recorded one, nothing is trained"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="explorer.html")
    options = parser.parse_args()
    write_file(options.out, explorer_page(Runs(), PROFILES[options.profile], options.seed))
