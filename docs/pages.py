"""Writes the generated parts of README and of the pages in results/ and figures/: python docs/pages.py

A part stands between <!-- its name --> and <!-- end -->. It reports what is recorded and holds for any set of runs.
"""

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from numbers import Real
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from mnv3nb import paper
from mnv3nb.report.claims import questions
from mnv3nb.report.measures import (
    HALF,
    accuracy,
    collapse,
    dead_share,
    kept_widths,
    largest_jump,
    run_table,
    table_2,
)
from mnv3nb.report.statistics import (
    CANNOT_BE_CHECKED,
    NOT_REPRODUCED,
    REPRODUCED,
    UNDECIDED,
    paired_differences,
)
from mnv3nb.report.verdicts import count_verdicts, judge_claims, readable_table, reproduction
from mnv3nb.runs.find_or_train import Runs
from mnv3nb.runs.folder import Run, RunFolder
from mnv3nb.runs.profiles import CIFAR, GPU, Profile
from mnv3nb.system.files import default_home, lookup, write_file
from mnv3nb.system.tables import markdown, number

PAGES = ("README.md", "README.zh-CN.md", "results/README.md", "figures/README.md", "figures/bench/README.md")
REPORTS = {CIFAR.name: "results/report.csv", GPU.name: "results/report_gpu.csv"}
ALL_SEEDS = range(10)  # recorded runs of these are looked for
NOTHING = "Not recorded yet."

ACCURACY_HEADINGS = {
    "accuracy_before_pct": "before fine-tuning, %",
    "accuracy_folded_pct": "the same, folded, %",
    "accuracy_pct": "fine-tuned, %",
}
PRUNED_HEADINGS = {**ACCURACY_HEADINGS, "parameters_m": "parameters, M"}
SPARSE_HEADINGS = {"accuracy_pct": "accuracy, %", "dead_pct": "dead filters, %"}

# columns of a measured table that describe the machine and are the same in all rows
MACHINE = ["hardware", "threads", "python", "torch", "torchvision", "commit", "date", "cores", "system"]


def main() -> None:
    """Writes REPORTS, then every part of PAGES. Claims about stored networks need CIFAR-10's test images."""
    root = default_home()
    for profile in (CIFAR, GPU):
        table, _ = reproduction(profile, recorded(root), ALL_SEEDS)
        table.drop(columns=["missing", "remark"]).to_csv(root / REPORTS[profile.name], index=False)
    for page in PAGES:
        text = (root / page).read_text(encoding="utf-8")
        write_file(root / page, fill_parts(text, root))


def fill_parts(text: str, root: Path) -> str:
    """`text` with every part written anew from the files under `root`. Raises ValueError for an unknown part."""

    def fill(match: re.Match) -> str:
        part = lookup(PARTS, match["name"], "page part")
        return f"{match['start']}{part(root)}\n{match['end']}"

    return re.sub(r"(?P<start><!-- (?P<name>\w+) -->\n).*?(?P<end><!-- end -->)", fill, text, flags=re.DOTALL)


def recorded(root: Path) -> Runs:
    """The runs shipped in results/, and no others."""
    return Runs(root / "results", root / "results")


def half(root: Path) -> str:
    """README's table: the paper against ours at 50 %."""
    table = pd.read_csv(root / REPORTS[CIFAR.name])
    at_half = table.name.str.contains("50%|Table 5's")
    return markdown(readable_table(table[table.main & at_half]))


def verdict_counts(profile: Profile, root: Path) -> str:
    """Number of claims by source and verdict."""
    table = pd.read_csv(root / REPORTS[profile.name])
    return markdown(count_verdicts(table).reset_index(names=""))


def main_claims(profile: Profile, root: Path) -> str:
    """The main claims by verdict, one sentence each; all others are in the profile's report."""
    table = pd.read_csv(root / REPORTS[profile.name])
    lines = []
    for verdict in (REPRODUCED, NOT_REPRODUCED, UNDECIDED):
        rows = table[table.main & (table.verdict == verdict)]
        lines += [f"### {verdict.capitalize()}", ""]
        lines += [_claim_sentence(row) for row in rows.itertuples()] or ["None."]
        lines.append("")
    lines += [f"### {CANNOT_BE_CHECKED.capitalize()}", ""]
    reasons = table[table.verdict == CANNOT_BE_CHECKED].why.value_counts(sort=False)
    lines += [f"- {count}: {why}" for why, count in reasons.items()]
    return "\n".join(lines)


def _claim_sentence(row: NamedTuple) -> str:
    bounds = {"above": "more than ", "below": "less than "}
    start = f"- {row.source}: {row.name}: paper {bounds.get(row.kind, '')}{number(row.paper)}"
    if pd.isna(row.ours):
        return f"{start}, not recorded yet."
    ours = f"here {number(row.ours)}"
    if row.kind != "exact":
        ours += " (1 seed)" if row.n == 1 else f" ({row.n} seeds)"
    return f"{start}, {ours}; {row.why}."


def answered_questions(profile: Profile, root: Path) -> str:
    """The questions beyond the paper, answered by intervals."""
    table, _ = judge_claims(questions(profile), profile, recorded(root), ALL_SEEDS)
    answers = {REPRODUCED: "yes", NOT_REPRODUCED: "no", UNDECIDED: "undecided", CANNOT_BE_CHECKED: "cannot be checked"}
    text = readable_table(table)
    columns = {
        "is it so?": table.name,
        "ours": text.ours,
        "95 % interval": text["95 % interval"],
        "seeds": text.seeds,
        "answer": table.verdict.map(answers),
        "why": table.why,
    }
    return markdown(pd.DataFrame(columns))


def regime(profile: Profile, root: Path) -> str:
    """What λ did to each seed: the share of dead filters, the jump of the threshold, the rate that empties a block."""
    printed = largest_jump(paper.TABLE_2)
    rows = [
        {
            "": "paper",
            "dead filters, %": "40 to 50",
            "jump, decades": number(printed.decades),
            "at rate, %": number(printed.rate),
            "first block empty at, %": "60 to 70",
            "which block": "not said",
        }
    ]
    for run in _sparse_runs(profile, root):
        jump = largest_jump(table_2(run))
        empty = collapse(run)
        rows.append(
            {
                "": run.config.label,
                "dead filters, %": number(dead_share(run)),
                "jump, decades": number(jump.decades),
                "at rate, %": number(jump.rate),
                "first block empty at, %": number(empty.rate),
                "which block": empty.block,
            }
        )
    return markdown(pd.DataFrame(rows))


def widths_at_half(profile: Profile, root: Path) -> str:
    """Table 5 of every sparse-trained network: the widths left after pruning half of its filters."""
    table = paper.TABLE_5.rename(columns={"before": "dense", "after": "paper"})
    for run in _sparse_runs(profile, root):
        table[run.config.label] = kept_widths(run, HALF)
    return markdown(table)


def _sparse_runs(profile: Profile, root: Path) -> list[Run]:
    """The recorded networks trained at the profile's λ, of both data sets."""
    found = _recorded_runs(profile, root, "sparse") + _recorded_runs(profile, root, "second")
    return [run for run in found if run.config.prune is None]


def rates(profile: Profile, root: Path) -> str:
    """Table 3 against rate 0 fine-tuned as long."""
    return _differences(profile, root, "rates", "rate", 0.0, PRUNED_HEADINGS)


def rates_cifar100(profile: Profile, root: Path) -> str:
    """Table 6 against rate 0 fine-tuned as long."""
    return _differences(profile, root, "second", "rate", 0.0, PRUNED_HEADINGS)


def criteria(profile: Profile, root: Path) -> str:
    """Table 4 against m = |γ|·S."""
    return _differences(profile, root, "criteria", "criterion", "gamma_sparsity", PRUNED_HEADINGS)


def lambdas(profile: Profile, root: Path) -> str:
    """Figure 6 against the plain network."""
    return _differences(profile, root, "lambdas", "lam", 0.0, SPARSE_HEADINGS)


def _differences(
    profile: Profile, root: Path, experiment: str, by: str, baseline: float | str, headings: dict[str, str]
) -> str:
    """Means of an experiment's runs by column `by`, and each group's difference to `baseline`, paired by seed.

    `headings`: columns of `run_table`, and what stands above them.
    """
    table = run_table(_recorded_runs(profile, root, experiment))
    if table.empty or baseline not in set(table[by]):
        return NOTHING
    differences = paired_differences(table, by, baseline)
    means = table.groupby(by)[list(headings)].mean()
    rows = []
    for found in differences.itertuples():
        group = getattr(found, by)
        row = {_heading(by): _group_name(group, by)}
        for column, heading in headings.items():
            row[heading] = number(means.loc[group, column])
        row["difference, points"] = f"{found.difference:+.2f}"
        row["± (95 %)"] = number(found.half)
        row["by seed"] = " ".join(f"{difference:+.2f}" for difference in found.each)
        row["beyond noise"] = _beyond_noise(found.low, found.high)
        rows.append(row)
    return markdown(pd.DataFrame(rows))


def _heading(by: str) -> str:
    return "λ" if by == "lam" else by


def _group_name(group: float | str, by: str) -> str:
    if by == "rate":
        return f"{group:.0%}"
    if by == "lam":
        return number(group)
    return group


def _beyond_noise(low: float, high: float) -> str:
    """Whether an interval excludes 0; a dash where a single seed has no interval."""
    if pd.isna(low):
        return "–"
    return "yes" if low > 0 or high < 0 else "no"


def pilots(profile: Profile, root: Path) -> str:
    """The trainings by which batch size, learning rate and λ were chosen."""
    rows = []
    for run in _recorded_runs(profile, root, "pilots"):
        train = run.config.train
        jump = largest_jump(table_2(run))
        rows.append(
            {
                "epochs": train.epochs,
                "batch": train.batch_size,
                "learning rate": train.lr,
                "px": train.image_size,
                "λ": train.lam,
                "judged on": f"{run.config.holdout:,} held-out images" if run.config.holdout else "test images",
                "accuracy, %": accuracy(run),
                "training accuracy, %": 100 * run.history[-1]["train_accuracy"],
                "dead filters, %": dead_share(run),
                "jump, decades": jump.decades,
                "at rate, %": jump.rate,
                "run": run.key,
            }
        )
    return markdown(_numbers_as_text(pd.DataFrame(rows))) if rows else NOTHING


def missing(profile: Profile, root: Path) -> str:
    """The commands that train the runs of the profile's plan that are not recorded, in the plan's order."""
    runs = recorded(root)
    lines = []
    for step in profile.plan:
        for seed in step.seeds:
            absent = [name for name in step.experiments if not _is_recorded(runs, profile, name, seed)]
            if absent:
                only = ",".join(absent)
                lines.append(f"    python -m mnv3nb grid --profile {profile.name} --only {only} --seed {seed}")
    return "\n".join(lines) or "Nothing is missing."


def _is_recorded(runs: Runs, profile: Profile, experiment: str, seed: int) -> bool:
    return all(runs.find(config) for config in profile.experiment(experiment, seed))


def _recorded_runs(profile: Profile, root: Path, experiment: str) -> list[Run]:
    """The recorded runs of an experiment, of all seeds, each once."""
    runs = recorded(root)
    configs = [config for seed in ALL_SEEDS for config in profile.experiment(experiment, seed)]
    found = [runs.find(config) for config in dict.fromkeys(configs)]
    return [run for run in found if run is not None]


def all_runs(root: Path) -> str:
    """Every recorded run. Folders that cannot be read are named on stderr and skipped."""
    runs = []
    for path in sorted((root / "results").glob("*/result.json")):
        try:
            runs.append(RunFolder(path.parent).read())
        except (ValueError, OSError) as error:
            print(f"skipping: {error}", file=sys.stderr)
    if not runs:
        return NOTHING
    table = run_table(runs).sort_values(["dataset", "label", "epochs"])
    columns = ["label", "key", "epochs", *ACCURACY_HEADINGS, "holdout", "parameters_m", "dead_pct", "hours"]
    return markdown(_numbers_as_text(table[columns]))


def gallery(root: Path) -> str:
    """Every figure, with the notebook that saves it and the heading above the cell that does."""
    places = _places_of_names(root / "notebooks")
    folders = {path.parent for path in (root / "figures").glob("*/*.png")}
    lines = []
    for folder in sorted(folders):
        lines += [f"## Profile `{folder.name}`", ""]
        for path in sorted(folder.glob("*.png")):
            lines += _figure_lines(path, places.get(path.stem))
    return "\n".join(lines).strip() or NOTHING


class Place(NamedTuple):
    """Where a notebook saves a figure."""

    notebook: str
    heading: str  # the last one above the cell


def _figure_lines(path: Path, place: Place | None) -> list[str]:
    if place is None:
        heading = "no notebook makes it any more"
        caption = f"`{path.stem}`: {heading}"
    else:
        heading = place.heading
        caption = f"`{path.stem}`: {heading} ([{place.notebook}](../notebooks/{place.notebook}.ipynb))"
    return [f"![{heading}]({path.parent.name}/{path.name})", "", caption, ""]


def _places_of_names(folder: Path) -> dict[str, Place]:
    """The first place of every quoted name in the notebooks' code cells; names of figures are among them."""
    places: dict[str, Place] = {}
    for path in sorted(folder.glob("*.ipynb")):
        heading = path.stem
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "code":
                for name in re.findall(r'"(\w+)"', source):
                    places.setdefault(name, Place(path.stem, heading))
            else:
                headings = re.findall(r"^#+ (.+)$", source, re.MULTILINE)
                heading = headings[-1] if headings else heading
    return places


def deployed(root: Path) -> str:
    """Latency and accuracy of the networks that notebook 09 exports."""
    return csv_table("cifar/latency_accuracy", root)


def csv_table(name: str, root: Path) -> str:
    """The table figures/`name`.csv; the machine on which it was measured stands below."""
    path = root / "figures" / f"{name}.csv"
    if not path.is_file():
        return NOTHING
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    text = markdown(table.drop(columns=MACHINE, errors="ignore").map(_with_separators))
    machine = [f"{column} {table[column].iloc[0]}" for column in MACHINE if column in table]
    if machine:
        text += f"\n\n({', '.join(machine)})"
    return text


def _with_separators(cell: str) -> str:
    """A cell of a CSV file with its integers as on all pages: 4,215,130. Decimals stay as they were measured."""
    words = [f"{int(word):,}" if word.isdecimal() else word for word in cell.split(" ")]
    return " ".join(words)


def _numbers_as_text(table: pd.DataFrame) -> pd.DataFrame:
    return table.map(lambda cell: number(cell) if isinstance(cell, Real) else cell)


PARTS: dict[str, Callable[[Path], str]] = {
    "half": half,
    "runs": all_runs,
    "gallery": gallery,
    "deployed": deployed,
}
for _name in ("speed", "growth", "step", "grids", "large_data", "torchvision"):
    PARTS[_name] = partial(csv_table, f"bench/{_name}")

PROFILE_PARTS: dict[str, Callable[[Profile, Path], str]] = {
    "counts": verdict_counts,
    "claims": main_claims,
    "questions": answered_questions,
    "regime": regime,
    "widths": widths_at_half,
    "rates": rates,
    "rates_cifar100": rates_cifar100,
    "criteria": criteria,
    "lambdas": lambdas,
    "pilots": pilots,
    "missing": missing,
}
for _name, _part in PROFILE_PARTS.items():
    PARTS[_name] = partial(_part, CIFAR)
    PARTS[f"gpu_{_name}"] = partial(_part, GPU)

if __name__ == "__main__":
    main()
