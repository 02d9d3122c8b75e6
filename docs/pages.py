"""The generated parts of README and of the pages in results/ and figures/: python docs/pages.py writes them.

They say what the recorded runs of a profile say, and are true for any of them, or none.
"""

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd

from mnv3nb import paper
from mnv3nb.report.claims import questions
from mnv3nb.report.measures import HALF, accuracy, collapse, dead_share, kept_widths, largest_jump, run_table, table_2
from mnv3nb.report.statistics import VERDICTS, paired_differences
from mnv3nb.report.verdicts import counts, judged, reproduction, shown
from mnv3nb.runs.find_or_train import Runs
from mnv3nb.runs.folder import Run, read_run
from mnv3nb.runs.profiles import CIFAR, EXPERIMENTS, GPU, Profile
from mnv3nb.system.files import default_home, lookup, write_file
from mnv3nb.system.tables import markdown, number

PAGES = ("README.md", "README.zh-CN.md", "results/README.md", "figures/README.md", "figures/bench/README.md")
REPORTS = {CIFAR.name: "results/report.csv", GPU.name: "results/report_gpu.csv"}
ALL_SEEDS = range(10)  # of which recorded runs are looked for
NOTHING = "Not recorded yet."
ACCURACIES = {
    "accuracy_before_pct": "before fine-tuning, %",
    "accuracy_folded_pct": "the same, folded, %",
    "accuracy_pct": "fine-tuned, %",
}
PRUNED = ACCURACIES | {"parameters_m": "parameters, M"}
TRAINED = {"accuracy_pct": "accuracy, %", "dead_pct": "dead filters, %"}
MACHINE = ["hardware", "threads", "python", "torch", "torchvision", "commit", "date", "cores", "system"]


def main() -> None:
    """Writes REPORTS (with CIFAR-10's test images, for what stored networks are asked), then every block of PAGES."""
    root = default_home()
    for profile in (CIFAR, GPU):
        table, _ = reproduction(profile, recorded(root), ALL_SEEDS)
        table.drop(columns=["missing", "remark"]).to_csv(root / REPORTS[profile.name], index=False)
    for page in PAGES:
        write_file(root / page, filled((root / page).read_text(encoding="utf-8"), root))


def filled(text: str, root: Path) -> str:
    """`text` with every block `<!-- name -->...<!-- end -->` as the files under `root` have it now."""
    block = re.compile(r"(<!-- (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
    return block.sub(lambda m: f"{m[1]}{lookup(BLOCKS, m[2], 'block')(root)}\n{m[3]}", text)


def recorded(root: Path) -> Runs:
    """The runs shipped in results/, and no others."""
    return Runs(root / "results", root / "results")


def half(root: Path) -> str:
    """The one table of README and its translation: the paper against ours at 50 %."""
    table = pd.read_csv(root / REPORTS[CIFAR.name])
    return markdown(shown(table[table.main & table.name.str.contains("50%|Table 5's")]))


def verdict_counts(profile: Profile, root: Path) -> str:
    return markdown(counts(pd.read_csv(root / REPORTS[profile.name])).reset_index(names=""))


def claims_seen(profile: Profile, root: Path) -> str:
    """The main claims, a sentence each, by verdict; all others are in the profile's report."""
    table, lines = pd.read_csv(root / REPORTS[profile.name]), []
    for verdict in VERDICTS[:3]:
        rows = table[table.main & (table.verdict == verdict)]
        found = [*map(_sentence, rows.itertuples())] or ["None."]
        lines += [f"### {verdict.capitalize()}", "", *found, ""]
    reasons = table[table.verdict == VERDICTS[3]].why.value_counts(sort=False)
    lines += [f"### {VERDICTS[3].capitalize()}", "", *(f"- {count}: {why}" for why, count in reasons.items())]
    return "\n".join(lines)


def _sentence(row) -> str:
    sign = {"above": "more than ", "below": "less than "}.get(row.kind, "")
    seeds = "" if row.kind == "exact" else f" ({row.n} seed{'s' * (row.n != 1)})"
    ours = "not recorded yet" if pd.isna(row.ours) else f"here {number(row.ours)}{seeds}; {row.why}"
    return f"- {row.source}: {row.name}: paper {sign}{number(row.paper)}, {ours}."


def questions_seen(profile: Profile, root: Path) -> str:
    """What a reader asks beyond the paper, answered by intervals."""
    table, _ = judged(questions(profile), profile, recorded(root), ALL_SEEDS)
    text = shown(table).drop(columns=["paper", "claim", "verdict"])
    text.insert(0, "is it so?", table.name)
    answers = dict(zip(VERDICTS, ("yes", "no", "undecided", "cannot be checked")))
    return markdown(text.assign(answer=table.verdict.map(answers), why=table.why))


def regime(profile: Profile, root: Path) -> str:
    """λ's regime, per seed: how many filters are dead, where the threshold jumps, where the network breaks."""
    rows = [("paper", "40 to 50", *map(number, largest_jump(paper.TABLE_2)), "60 to 70", "not said")]
    for run in _sparse_trained(profile, root):
        jump, (rate, block) = largest_jump(table_2(run)), collapse(run)
        rows.append((run.config.label, number(dead_share(run)), *map(number, jump), number(rate), block))
    columns = ["", "dead filters, %", "jump, decades", "at rate, %", "first block empty at, %", "which block"]
    return markdown(pd.DataFrame(rows, columns=columns))


def widths_left(profile: Profile, root: Path) -> str:
    """Table 5 of every sparse-trained network: the widths that pruning half of its filters leaves."""
    table = paper.TABLE_5.rename(columns={"before": "dense", "after": "paper"})
    return markdown(
        table.assign(**{run.config.label: kept_widths(run, HALF) for run in _sparse_trained(profile, root)})
    )


def _sparse_trained(profile: Profile, root: Path) -> list[Run]:
    """The recorded networks that the profile's λ has made sparse, of both data sets."""
    return [run for name in ("sparse", "second") for run in _found(profile, root, name) if run.config.prune is None]


def pilots(profile: Profile, root: Path) -> str:
    """The trainings by which batch size, learning rate and λ were chosen."""
    rows = []
    for run in _found(profile, root, "pilots"):
        train, jump = run.config.train, largest_jump(table_2(run))
        row = {"epochs": train.epochs, "batch": train.batch_size, "rate of Adam": train.lr, "px": train.image_size}
        judges = f"{run.config.holdout:,} held out" if run.config.holdout else "test"
        row |= {"λ": train.lam, "images that judge": judges}
        row |= {"accuracy, %": accuracy(run), "of training images, %": 100 * run.history[-1]["train_accuracy"]}
        row |= {"dead filters, %": dead_share(run), "jump, decades": jump[0]}
        rows.append(row | {"at rate, %": jump[1], "run": run.key})
    table = pd.DataFrame(rows)
    return markdown(table.map(lambda cell: number(cell) if isinstance(cell, float) else cell)) if rows else NOTHING


def differences(
    profile: Profile, root: Path, experiment: str, by: str, baseline: float | str, columns: dict[str, str]
) -> str:
    """The runs of an experiment by groups of column `by`, and each group against the baseline's runs of the same seed."""
    table = run_table(_found(profile, root, experiment))
    if table.empty or baseline not in set(table[by]):
        return NOTHING
    found = paired_differences(table, by, baseline).set_index(by)
    text = table.groupby(by)[list(columns)].mean().loc[found.index].map(number).rename(columns=columns)
    text["difference, points"] = found.difference.map("{:+.2f}".format)
    text["± (95 %)"] = found.half.map(number)
    text["by seed"] = found.each.map(lambda values: " ".join(f"{value:+.2f}" for value in values))
    text["beyond noise"] = ((found.low > 0) | (found.high < 0)).map({True: "yes", False: "no"}).where(found.n > 1, "–")
    if by == "rate":
        text.index = text.index.map("{:.0%}".format)
    return markdown(text.rename_axis(by).reset_index())


def missing(profile: Profile, root: Path) -> str:
    """The commands that train what the profile plans and nobody has recorded, in the plan's order."""
    runs, lines = recorded(root), []
    for names, seed in ((names.split(","), seed) for names, seeds in profile.plan for seed in seeds):
        names = [name for name in names if not all(map(runs.find, profile.experiment(name, seed)))]
        if names:
            lines.append(f"    python -m mnv3nb grid --profile {profile.name} --only {','.join(names)} --seed {seed}")
    return "\n".join(lines) or "Nothing is missing."


def all_runs(root: Path) -> str:
    """Every recorded run; folders that cannot be read are named on stderr and skipped."""
    runs = []
    for path in sorted((root / "results").glob("*/result.json")):
        try:
            runs.append(read_run(path.parent))
        except (ValueError, OSError) as error:
            print(f"skipping: {error}", file=sys.stderr)
    if not runs:
        return NOTHING
    names = ["label", "key", "epochs", *ACCURACIES, "holdout", "parameters_m", "dead_pct", "hours"]
    table = run_table(runs).sort_values(["dataset", "label", "epochs"])[names]
    return markdown(table.map(lambda cell: number(cell) if isinstance(cell, float) else cell))


def _found(profile: Profile, root: Path, experiment: str) -> list[Run]:
    """The recorded runs of an experiment, all seeds."""
    configs = [config for seed in ALL_SEEDS for config in EXPERIMENTS[experiment](profile, seed)]
    return [run for config in dict.fromkeys(configs) if (run := recorded(root).find(config))]


def gallery(root: Path) -> str:
    """Every figure, with the notebook that saves it and the heading above that cell."""
    places, lines = _saved_names(root / "notebooks"), []
    for folder in sorted({path.parent for path in (root / "figures").glob("*/*.png")}):
        lines += [f"## Profile `{folder.name}`", ""]
        for path in sorted(folder.glob("*.png")):
            notebook, heading = places.get(path.stem, ("", "no notebook makes it any more"))
            link = f" ([{notebook}](../notebooks/{notebook}.ipynb))" if notebook else ""
            lines += [f"![{heading}]({folder.name}/{path.name})", "", f"`{path.stem}`: {heading}{link}", ""]
    return "\n".join(lines).strip() or NOTHING


def _saved_names(folder: Path) -> dict[str, tuple[str, str]]:
    """Notebook and heading of every quoted name in a code cell, the figures' names among them."""
    found: dict[str, tuple[str, str]] = {}
    for path in sorted(folder.glob("*.ipynb")):
        heading = path.stem
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "code":
                found = {name: (path.stem, heading) for name in re.findall(r'"(\w+)"', source)} | found
            elif headings := re.findall(r"^#+ (.+)$", source, re.MULTILINE):
                heading = headings[-1]
    return found


def csv_table(name: str, root: Path) -> str:
    """A CSV of figures/ as a table; the machine it was measured on stands below."""
    path = root / "figures" / name
    if not path.is_file():
        return NOTHING
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    machine = ", ".join(f"{column} {table[column].iloc[0]}" for column in MACHINE if column in table)
    return markdown(table.drop(columns=MACHINE, errors="ignore")) + f"\n\n({machine})" * bool(machine)


OF_A_PROFILE: dict[str, Callable[[Profile, Path], str]] = {
    "counts": verdict_counts,
    "claims": claims_seen,
    "questions": questions_seen,
    "regime": regime,
    "widths": widths_left,
    "rates": partial(differences, experiment="rates", by="rate", baseline=0.0, columns=PRUNED),
    "rates_cifar100": partial(differences, experiment="second", by="rate", baseline=0.0, columns=PRUNED),
    "criteria": partial(differences, experiment="criteria", by="criterion", baseline="gamma_sparsity", columns=PRUNED),
    "lambdas": partial(differences, experiment="lambdas", by="lam", baseline=0.0, columns=TRAINED),
    "pilots": pilots,
    "missing": missing,
}
BLOCKS: dict[str, Callable[[Path], str]] = {
    "half": half,
    "runs": all_runs,
    "gallery": gallery,
    "deployed": partial(csv_table, "cifar/latency_accuracy.csv"),
}
BLOCKS |= {name: partial(block, CIFAR) for name, block in OF_A_PROFILE.items()}
BLOCKS |= {f"gpu_{name}": partial(block, GPU) for name, block in OF_A_PROFILE.items()}
BLOCKS |= {
    name: partial(csv_table, f"bench/{name}.csv")
    for name in ("speed", "growth", "step", "grids", "large_data", "torchvision")
}

if __name__ == "__main__":
    main()
