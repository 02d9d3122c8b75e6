"""The explorer as one HTML file that needs neither kernel nor server: every cut is worked out beforehand."""

import argparse
import json
from importlib.resources import files

import numpy as np
import torch
from bokeh.resources import Resources

from .. import paper
from .._files import write_atomically
from ..experiments.profiles import Profile, get_profile
from ..experiments.runs import Runs
from ..plots import CRITERION_LABELS, LOOKS
from ..plots.picture import STAGES, score_bins
from ..pruning import keep_masks, layer_collapse_rates, threshold
from .cuts import ALIGNMENTS, accuracies_by_rate, cost_model, finished_cuts

RATES = range(91)  # in %


def explorer_page(runs: Runs, profile: Profile, seed: int = 0) -> str:
    """The page for the sparse-trained network of `profile`, which is trained if it is not there; some 2 MB, plots included.

    Accuracies are those of finished runs. `explorer_data` is in it as JSON, in the element with id "data".
    """
    template = files(__package__).joinpath("explorer_page.html").read_text(encoding="utf-8")
    library = Resources(mode="inline", components=["bokeh", "bokeh-api"], minified=True).render_js()
    data = json.dumps(explorer_data(runs, profile, seed), separators=(",", ":")).replace("</", "<\\/")
    return template.replace("<!-- bokeh -->", library).replace("<!-- data -->", data)


def explorer_data(runs: Runs, profile: Profile, seed: int = 0) -> dict:
    """What the page shows: for each criterion its scores, and widths, parameters and FLOPs at each alignment and rate."""
    sparse = runs.run(profile.sparse_run(seed=seed), model=True)
    model, accuracies = sparse.model(), accuracies_by_rate(finished_cuts(runs, profile, seed))
    costs, criteria = cost_model(model), {}
    for criterion in profile.criteria:
        scores = runs.scores(profile.pruned_run(0.5, seed, criterion))
        flat = torch.cat(scores).numpy()
        edges, log = score_bins(flat)
        cuts = {k: [_cut(keep_masks(scores, rate / 100, k), costs) for rate in RATES] for k in ALIGNMENTS}
        stages = {k: accuracies.get((profile.lam, criterion, k, "paper"), {}) for k in ALIGNMENTS}
        criteria[criterion] = {
            "label": CRITERION_LABELS[criterion],
            "edges": edges.tolist(),
            "log": log,
            "counts": np.histogram(np.clip(flat, edges[0], edges[-1]), edges)[0].tolist(),
            "thresholds": [threshold(scores, rate / 100) for rate in RATES],
            "collapse": layer_collapse_rates(scores),
            "cuts": cuts,
            "accuracies": stages,
        }
    colors = {name: LOOKS[name]["color"] for name in (*STAGES, "kept", "removed")}
    about = {"network": sparse.config.label, "paper": paper.TABLE_5["after"].tolist(), "colors": colors}
    return about | {"dense": list(model.widths), "criteria": criteria}


def _cut(masks: list[torch.Tensor], costs) -> list:
    """Widths, parameters, FLOPs."""
    widths = [int(mask.sum()) for mask in masks]
    return [widths, *costs(widths, "paper").values()]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--profile", default="digits")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", default="explorer.html")
    options = parser.parse_args()
    with write_atomically(options.out) as page:
        page.write(explorer_page(Runs(), get_profile(options.profile), options.seed).encode())
