"""Every number of the paper beside ours, with a verdict: reproduced, not reproduced, too few seeds, cannot be checked."""

import math
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
import pandas as pd
from scipy import stats

from .evidence import Item, items
from .profiles import Profile
from .runs import Runs
from .store import Run

VERDICTS = ("reproduced", "not reproduced", "too few seeds", "cannot be checked")


def reproduction(p: Profile, runs: Runs, seeds: Iterable[int]) -> tuple[pd.DataFrame, list[Run]]:
    """Every number of the paper beside ours, and the runs that ours come from. Runs are only found, never trained.

    Columns: source, item, kind (see `Item`), paper, ours (mean over seeds), n (seeds), low and high (its 95 % interval),
    difference, verdict (one of VERDICTS), why, missing (the commands that train what is missing), main (part of the summary).
    """
    rows, used, seeds, find = [], {}, list(seeds), cache(runs.find)
    measured = {}  # several items are parts of one measurement
    for item in items(p):
        values, missing = [] if item.runs else [item.measure()], []
        for seed in seeds if item.runs else []:
            configs = item.runs(seed)
            found = [find(config, item.model) for config in configs]
            if not found or None in found:
                recorded = found and all(find(config) for config in configs)
                missing.append("recorded without networks, Runs().run(config, model=True) trains them" if recorded else
                               f"python -m mnv3nb grid --profile {p.name} --only {item.experiment} --seed {seed}")  # fmt: skip
                continue
            name = (item.measure, *(run.key for run in found))
            if name not in measured:
                measured[name] = item.measure(*found)
            value = measured[name] if item.part is None else measured[name][item.part]
            values += [] if math.isnan(value) else [value]
            used |= {run.key: run for run in found}
        row = {"source": item.source, "item": item.name, "kind": item.kind, "paper": item.paper} | judge(item, values)
        if not p.judges_accuracy and item.kind in ("measured", "log", "limit") and not item.cannot:
            row["why"] += f"; on {p.dataset}, not by the paper's training"
        rows.append(row | {"missing": "" if item.cannot else "; ".join(missing), "main": item.main})
    return pd.DataFrame(rows), list(used.values())


def judge(item: Item, values: Sequence[float]) -> dict:
    """Ours (mean), n, its 95 % interval (low, high), difference, verdict and why; fewer than three seeds are not judged.

    A measured number is reproduced if the paper's lies in the 95 % prediction interval of one more seed; a claim in words
    if the whole interval of the mean lies on its side of the bound.
    """
    n, log = len(values), item.kind == "log" and min(values, default=0) > 0
    x, back = (np.log10(values), lambda v: 10**v) if log else (np.array(values, dtype=float), float)
    ours = float(back(x.mean())) if n else math.nan
    (low, high), (first, last) = ([float(back(v)) for v in interval(x, more)] for more in (0, 1))
    row = {"ours": ours, "n": n if item.runs else None, "low": low, "high": high, "difference": ours - item.paper}
    if item.cannot:
        verdict, why = "cannot be checked", item.cannot
    elif item.kind == "exact":
        same = format(ours, item.form) == format(item.paper, item.form)
        verdict, why = VERDICTS[not same], f"{'equal' if same else 'not equal'} as printed: {ours:{item.form}}"
    elif n < 3:
        verdict, why = "too few seeds", f"{n} of at least 3 seeds"
    elif item.kind in ("above", "below"):
        holds = low > item.paper if item.kind == "above" else high < item.paper
        verdict, why = VERDICTS[not holds], f"95 % interval {low:.3g} to {high:.3g}, to be {item.kind} {item.paper:g}"
    else:
        least = float(item.form) if item.kind == "limit" else item.paper
        inside = first <= item.paper and least <= last
        verdict, why = VERDICTS[not inside], f"95 % prediction interval {first:.4g} to {last:.4g}"
    return row | {"verdict": verdict, "why": why + (f"; {item.note}" if item.note else "")}


def interval(values: Sequence[float], more: int = 0) -> tuple[float, float]:
    """mean ± t·s·√(more + 1/n), 95 %: for the mean (more=0) or for one further value (more=1); nan for fewer than two."""
    n = len(values)
    half = stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) * math.sqrt(more + 1 / n) if n > 1 else math.nan
    return (np.mean(values) - half, np.mean(values) + half) if n > 1 else (math.nan, math.nan)


def summary(table: pd.DataFrame, profile: str, seeds: int) -> str:
    """The report on one page of markdown: verdicts counted, the main items that can be checked, what cannot or is missing."""
    counts = pd.crosstab(table.source, table.verdict).reindex(index=table.source.unique(), columns=VERDICTS, fill_value=0)
    counts.loc["**all**"] = counts.sum()
    main = table[table.main & (table.verdict != "cannot be checked")]
    signs = main.kind.map({"above": "> ", "below": "< ", "limit": "≤ "}).fillna("")
    low, high = (main[column].map(_show) for column in ("low", "high"))
    shown = pd.DataFrame({
        "paper": signs + main.paper.map(_show), "ours": main.ours.map(_show),
        "95 % interval": (low + " to " + high).where(main.low.notna(), ""),
        "seeds": main.n.map("{:.0f}".format).where(main.kind != "exact", "exact"), "verdict": main.verdict,
    }).set_index(main.source + ": " + main.item)  # fmt: skip
    reasons = table[table.verdict == "cannot be checked"].why.value_counts(sort=False)
    head = f"Profile `{profile}`, {seeds} seed(s): {len(table)} numbers of the paper."
    return "\n".join([
        head, "", *_markdown(counts), "", *_markdown(shown), "",
        *(f"- cannot be checked, {n}: {why}" for why, n in reasons.items()),
        *(f"- missing: `{command}`" for command in missing_commands(table)), "",
    ])  # fmt: skip


def missing_commands(table: pd.DataFrame) -> list[str]:
    """One command for each seed whose runs are missing in the table of `reproduction`."""
    names: dict[tuple[int, str], set[str]] = {}
    for command in {c for cell in table.missing for c in cell.split("; ") if c.startswith("python")}:
        head, name, seed = command.replace(" --seed ", " --only ").split(" --only ")
        names.setdefault((int(seed), head), set()).update(name.split(","))
    return [f"{head} --only {','.join(sorted(names))} --seed {seed}" for (seed, head), names in sorted(names.items())]


def _show(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.4g}"


def _markdown(table: pd.DataFrame) -> list[str]:
    rows = [("", *table.columns), ("---", *["--:"] * len(table.columns)), *table.itertuples()]
    return ["| " + " | ".join(str(cell).replace("|", "\\|") for cell in row) + " |" for row in rows]
