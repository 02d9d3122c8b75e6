"""Every number of the paper beside ours, with a verdict: reproduced, not reproduced, too few seeds, cannot be checked."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial

import numpy as np
import pandas as pd
from scipy import stats

from . import paper
from .config import RunConfig
from .evidence import HALF, Item, items
from .profiles import PROFILES, Profile
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
    head = f"Profile `{profile}`, {seeds} seed(s): {len(table)} numbers and claims of the paper."
    if not PROFILES[profile].judges_accuracy:
        head += " It does not train as the paper does: a measured number that it misses is no evidence against the paper."
    return "\n".join([
        head, "", *_markdown(counts), "", *_markdown(shown), "",
        *(f"- cannot be checked, {n}: {why}" for why, n in reasons.items()),
        *(f"- missing: `{command}`" for command in missing_commands(table)), "",
    ])  # fmt: skip


def accuracies(p: Profile, runs: Runs, seeds: Iterable[int]) -> tuple[pd.DataFrame, list[Run]]:
    """The paper's accuracies beside ours, of the runs that are there, in %, and those runs.

    Columns: source, network, paper, ours (mean over seeds), ours_half (half its 95 % interval; nan for one seed), gain and
    gain_half (of a pruned network over rate 0 fine-tuned as long, paired by seed, in points), before (mean before
    fine-tuning), parameters_m, seeds. Several fine-tunings of one parent count as their mean.
    """
    rows, used, find = [], {}, cache(runs.find)
    for source, network, printed, configs in _networks(p):
        found = {seed: [run for config in configs(seed) if (run := find(config))] for seed in seeds}
        used |= {run.key: run for group in found.values() for run in group}
        ours = {seed: 100 * np.mean([run.accuracy for run in group]) for seed, group in found.items() if group}
        if not ours:
            continue
        everyone = [run for group in found.values() for run in group]
        pruned, dataset = [run for run in everyone if run.config.prune], everyone[0].config.dataset
        whole = {seed: find(p.pruned_run(0.0, seed, dataset=dataset)) for seed in ours} if pruned else {}
        gains = [ours[seed] - 100 * run.accuracy for seed, run in whole.items() if run and run not in found[seed]]
        rows.append({
            "source": source, "network": network, "paper": printed, **_mean("ours", list(ours.values())), **_mean("gain", gains),
            "before": 100 * np.mean([run.result["accuracy_before"] for run in pruned]) if pruned else math.nan,
            "parameters_m": np.mean([run.result["parameters"] for run in everyone]) / 1e6, "seeds": len(ours),
        })  # fmt: skip
    return pd.DataFrame(rows), list(used.values())


def _mean(name: str, values: Sequence[float]) -> dict[str, float]:
    """The mean as `name` and half its 95 % interval as `name`_half; nan where there are too few values."""
    low, high = interval(values)
    return {name: np.mean(values) if values else math.nan, f"{name}_half": (high - low) / 2}


def _networks(p: Profile) -> Iterator[tuple[str, str, float, Callable[[int], list[RunConfig]]]]:
    """Table or figure, network, the paper's accuracy in % (nan: not printed) and a seed's runs."""
    for lam, row in zip(sorted(p.lams), paper.FIGURE_6.sort_values("lam").itertuples()):
        theirs = [f"paper: {row.lam:g}"] * (lam != row.lam) + ["the paper's choice"] * (row.lam == paper.CHOSEN_LAM)
        name = f"λ = {lam:g}{', our choice' * (lam == p.lam)}" + (f" ({', '.join(theirs)})" if theirs else "")
        yield "Figure 6", name, row.accuracy_pct, lambda seed, lam=lam: [p.sparse_run(lam, seed)]
    yield from _curve("Table 3", paper.TABLE_3, (*p.rates, *p.collapse), lambda rate, seed: [p.pruned_run(rate, seed)])
    for name in p.criteria:
        printed = paper.TABLE_4_OURS_PCT if name == "gamma_sparsity" else math.nan
        tuned = lambda seed, name=name: [p.pruned_run(HALF, seed, name, k) for k in range(p.repeats)]  # noqa: E731
        yield "Table 4", f"{HALF:.0%} by {name}", printed, tuned
    yield "Table 4", f"{HALF:.0%}, its shape from scratch", math.nan, partial(p.experiment, "scratch")
    for place, rate in enumerate(p.latency["rates"]):
        name = f"{rate:.0%} pruned, widths to {p.latency['multiple_of']}"
        yield "Notebook 09", name, math.nan, lambda seed, place=place: [p.experiment("aligned", seed)[place]]
    if p.second:
        yield "Table 6", f"λ = {p.lam:g}, unpruned", paper.TABLE_6.accuracy_pct[0], lambda s: [p.sparse_run(None, s, p.second)]
        second = lambda rate, seed: [p.pruned_run(rate, seed, dataset=p.second)]  # noqa: E731
        yield from _curve("Table 6", paper.TABLE_6, p.second_rates, second)


def _curve(source: str, table: pd.DataFrame, rates: Iterable[float], runs: Callable[[float, int], list[RunConfig]]):
    printed = dict(zip(table.rate[1:], table.accuracy_pct[1:]))  # the first row is of the unpruned network
    for rate in rates:
        name = f"{rate:.0%} pruned" if rate else "not pruned, fine-tuned as long"
        yield source, name, printed.get(rate, math.nan), partial(runs, rate)


def accuracies_page(table: pd.DataFrame) -> str:
    """The table of `accuracies` as markdown."""
    halves = {c: table[f"{c}_half"].map(lambda half: "" if math.isnan(half) else f" ± {half:.2f}") for c in ("ours", "gain")}
    gain = table.gain.map("{:+.2f}".format) + halves["gain"]
    shown = pd.DataFrame({
        "paper, %": table.paper.map(_show), "here, %": table.ours.map("{:.2f}".format) + halves["ours"],
        "against rate 0, points": gain.where(table.gain.notna(), "–"), "before fine-tuning, %": table.before.map(_show),
        "parameters, M": table.parameters_m.map("{:.2f}".format), "seeds": table.seeds,
    }).set_index(table.source + ": " + table.network)  # fmt: skip
    return "\n".join(_markdown(shown)) + "\n"


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
