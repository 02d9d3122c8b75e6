"""Writes what the README says of measured results, from the files that commands have made of them: python tests/readme.py"""

import re
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats

from mnv3nb.profiles import get_profile
from mnv3nb.report import accuracies, accuracies_page
from mnv3nb.runs import Runs

ROOT = Path(__file__).parent.parent
CPU, RECORDED, SEEDS = get_profile("cpu"), Runs(ROOT / "none", ROOT / "results"), range(3)


def gamma() -> str:
    """What the sparse networks' γ, S and m are like, over all seeds."""
    runs = [RECORDED.find(CPU.sparse_run(seed=seed)) for seed in SEEDS]
    pooled = (torch.cat([torch.cat(getattr(run, name)) for run in runs]) for name in ("gamma", "sparsity", "importance"))
    g, s, m = (values.abs().numpy() for values in pooled)
    spread_s, spread_g = (np.quantile(x, 0.95) / np.quantile(x, 0.05) for x in (s, g))
    return (
        f"- At λ = {CPU.lam:g}, {100 * (g < 1e-6).mean():.0f} % of the expansions' |γ| are below 1e-6.\n"
        f"- m = |γ|·S ranks like |γ| alone (rank correlation {stats.spearmanr(m, g).statistic:.3f}): from the 5 % to the 95 % "
        f"quantile S grows by a factor of {spread_s:.1f}, |γ| by 1e{np.log10(spread_g):.0f}."
    )


def deployed() -> str:
    """The fine-tuned networks of notebook 09, with their latency."""
    lines = ["| widths | filters | accuracy, % | latency | quartiles |", "| --- | --: | --: | --: | --: |"]
    for row in pd.read_csv(ROOT / "figures/cpu/latency_accuracy.csv").itertuples():
        name = row.kind if row.kind == "dense" else f"{row.kind}, {row.rate:.0%} pruned"
        cells = (name, row.filters, f"{row.accuracy_pct:.2f}", f"{row.ratio:.2f}", f"{row.ratio_low:.2f} to {row.ratio_high:.2f}")
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def file(name: str):
    return (ROOT / "figures" / name).read_text


BLOCKS = {
    "accuracies": lambda: accuracies_page(accuracies(CPU, RECORDED, SEEDS)[0]),
    "gamma": gamma,
    "report": file("digits/report.md"),
    "speed": file("bench/speed.md"),
    "growth": file("bench/growth.md"),
    "deployed": deployed,
}


def filled(text: str) -> str:
    """The README with each block `<!-- name -->...<!-- end -->` as the measured files have it now."""
    blocks = re.compile(r"(<!-- (\w+) -->\n).*?(\n<!-- end -->)", re.DOTALL)
    assert [found[2] for found in blocks.finditer(text)] == list(BLOCKS)
    return blocks.sub(lambda found: found[1] + BLOCKS[found[2]]().strip() + found[3], text)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(filled(readme.read_text()))
