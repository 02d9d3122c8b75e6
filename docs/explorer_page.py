"""The explorer as one HTML file that needs no kernel and no server: what each rate removes is worked out beforehand."""

import argparse
import json
from pathlib import Path

import numpy as np
import torch

from mnv3nb import keep_masks, layer_collapse_rates, paper, score, threshold
from mnv3nb.explorer.picture import score_bins
from mnv3nb.explorer.tables import ALIGNMENTS, cost_tables, network_cost, recorded_accuracies
from mnv3nb.importance import NEEDS_DATA
from mnv3nb.plots import CRITERION_LABELS, LOOKS
from mnv3nb.runs.find_or_train import Runs
from mnv3nb.runs.profiles import PROFILES, Profile
from mnv3nb.system.files import write_file

RATES = range(91)  # in %, of the page


def explorer_data(runs: Runs, profile: Profile, seed: int = 0) -> dict:
    """What the page shows of the sparse-trained network of `profile`, which is trained if it is not there.

    For each criterion that needs no images: its scores, and `cuts[multiple_of][rate in %]`, each [widths, parameters,
    FLOPs at 224 px].
    """
    sparse = runs.run(profile.sparse_config(seed=seed), model=True)
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

    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
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
