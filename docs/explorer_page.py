"""The explorer as one HTML file that needs no kernel and no server: every cut is computed beforehand."""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mnv3nb import keep_masks, layer_collapse_rates, paper, score, threshold
from mnv3nb.explorer.picture import score_bins
from mnv3nb.explorer.tables import ALIGNMENTS, CostTable, Setting, cost_tables, network_cost, recorded_accuracies
from mnv3nb.importance import NEEDS_DATA
from mnv3nb.plots import CRITERION_LABELS, LOOKS
from mnv3nb.runs.find_or_train import Runs
from mnv3nb.runs.profiles import PROFILES, Profile
from mnv3nb.system.files import write_file

PERCENT = range(91)  # the rates that the page offers, in %


def explorer_page(runs: Runs, profile: Profile, seed: int = 0) -> str:
    """The page, some 2 MB with its plotting library in it; `explorer_data` stands in the element #data as JSON."""
    from bokeh.resources import Resources  # late: the notebook's explorer does without

    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    library = Resources(mode="inline", components=["bokeh", "bokeh-api"]).render_js()
    data = json.dumps(explorer_data(runs, profile, seed), separators=(",", ":"))
    data = data.replace("</", "<\\/")  # or a text could end the element
    return template.replace("<!-- bokeh -->", library).replace("<!-- data -->", data)


def explorer_data(runs: Runs, profile: Profile, seed: int = 0) -> dict:
    """What the page shows of the profile's sparse-trained network, which is trained if it is not there.

    `criteria`: `_criterion_data` of each criterion that needs no images.
    """
    sparse = runs.run(profile.sparse_config(seed=seed), model=True)
    model = sparse.model()
    tables = cost_tables(model, "paper")
    recorded = recorded_accuracies(runs, profile, seed)
    criteria = {}
    for criterion in profile.criteria:
        if criterion in NEEDS_DATA:
            continue
        accuracies = {k: recorded.get(Setting(profile.lam, criterion, k, "paper"), {}) for k in ALIGNMENTS}
        criteria[criterion] = {
            "label": CRITERION_LABELS[criterion],
            "accuracies": accuracies,
            **_criterion_data(score(model, criterion, seed=seed), tables),
        }
    return {
        "network": sparse.config.label,
        "dense": model.widths,
        "paper": paper.TABLE_5["after"].tolist(),
        "colors": {name: look["color"] for name, look in LOOKS.items()},
        "criteria": criteria,
    }


def _criterion_data(scores: list[Tensor], tables: dict[str, CostTable]) -> dict:
    """A histogram of the scores, the threshold and the cut at each rate, and the rate at which each block is empty.

    `cuts[multiple_of][rate in %]` is [widths, parameters, FLOPs at 224 px].
    """
    every_score = torch.cat(scores).numpy()
    edges, log = score_bins(every_score)
    counts, _ = np.histogram(every_score.clip(edges[0], edges[-1]), edges)
    return {
        "log": log,
        "edges": edges.tolist(),
        "counts": counts.tolist(),
        "thresholds": [threshold(scores, percent / 100) for percent in PERCENT],
        "collapse": layer_collapse_rates(scores),
        "cuts": {k: [_cut(scores, percent / 100, k, tables) for percent in PERCENT] for k in ALIGNMENTS},
    }


def _cut(scores: list[Tensor], rate: float, multiple_of: int, tables: dict[str, CostTable]) -> list:
    widths = [int(mask.sum()) for mask in keep_masks(scores, rate, multiple_of)]
    return [widths, network_cost(tables["parameters"], widths), network_cost(tables["flops"], widths)]


def main() -> None:
    parser = argparse.ArgumentParser(description="write the explorer as one HTML file")
    parser.add_argument(
        "--profile", default="cifar", choices=PROFILES, help="default: the recorded one, for which nothing is trained"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="explorer.html")
    options = parser.parse_args()
    page = explorer_page(Runs(), PROFILES[options.profile], options.seed)
    write_file(options.out, page)


if __name__ == "__main__":
    main()
