"""The report: each claim of the paper beside what the finished runs give, with a verdict."""

import math
from collections.abc import Iterable, Sequence
from functools import cache

import numpy as np
import pandas as pd

from ..runs.config import RunConfig
from ..runs.find_or_train import Runs
from ..runs.folder import Run
from ..runs.profiles import EXPERIMENTS, Profile
from ..system.tables import number
from .claims import Claim, claims, data_caution
from .statistics import (
    CANNOT_BE_CHECKED,
    MOST_SEEDS,
    NOT_REPRODUCED,
    REPRODUCED,
    SEEDS_NEEDED,
    UNDECIDED,
    VERDICTS,
    Interval,
    mean_interval,
    prediction_interval,
    seeds_to_decide,
    verdict,
)

SMALLEST = 1e-38  # stands for 0 in claims of kind "log"


def reproduction(
    profile: Profile, runs: Runs, seeds: Iterable[int], source: str | None = None
) -> tuple[pd.DataFrame, list[Run]]:
    """The paper's claims (of one `source`, or all) beside ours, and the runs used. Runs are only found, never trained.

    Columns: source, name, kind (see `Claim`), paper, ours (mean over seeds), n (number of seeds; 0 for an exact fact),
    low and high (95 % interval of the mean), verdict (one of VERDICTS), why, remark (the part of `why` that the other
    columns do not show; may be empty), missing (list of (experiment, seed)), main.
    """
    some = [claim for claim in claims(profile) if source is None or claim.source == source]
    return judge_claims(some, profile, runs, seeds)


def judge_claims(
    some: Iterable[Claim], profile: Profile, runs: Runs, seeds: Iterable[int]
) -> tuple[pd.DataFrame, list[Run]]:
    """Judge `some` claims; returns what `reproduction` returns."""
    experiments = {seed: _first_experiments(profile, seed) for seed in seeds}
    find = cache(runs.find)
    rows = []
    used = {}
    for claim in some:
        values = []
        missing = []
        for seed, experiment_of in experiments.items():
            configs = claim.configs(seed)
            found = {config: find(config, claim.networks) for config in configs}
            absent = [config for config in configs if found[config] is None]
            missing += [(experiment_of.get(config, "none"), seed) for config in absent]
            if configs and not absent:
                values.append(claim.value(seed, found))
                used.update({run.key: run for run in found.values()})
        rows.append(
            {
                "source": claim.source,
                "name": claim.name,
                "kind": claim.kind,
                "paper": claim.paper,
                **judge(claim, values, data_caution(profile)),
                "missing": [] if claim.cannot else list(dict.fromkeys(missing)),
                "main": claim.main,
            }
        )
    return pd.DataFrame(rows), list(used.values())


def _first_experiments(profile: Profile, seed: int) -> dict[RunConfig, str]:
    """For each run of any experiment, the first experiment, in EXPERIMENTS' order, that trains it."""
    first = {}
    for name in EXPERIMENTS:
        for config in profile.experiment(name, seed):
            first.setdefault(config, name)
    return first


def judge(claim: Claim, values: Sequence[float], caution: str = "") -> dict:
    """Columns ours, n, low, high, verdict, why and remark of `reproduction`, from one value per seed.

    `caution`: a note for claims of kind "value" and "log", which are judged even on other data than the paper's.
    """
    if claim.kind == "exact":
        return _judge_exact(claim)
    return _judge_measured(claim, [value for value in values if not math.isnan(value)], caution)


def _judge_exact(claim: Claim) -> dict:
    ours = claim.measure()
    as_printed = format(ours, claim.form)
    rounded = number(float(as_printed))
    if as_printed == format(claim.paper, claim.form):
        result = REPRODUCED
        why = _join(f"equal as printed: {rounded}", claim.note)
        remark = claim.note  # the verdict shows that they are equal
    else:
        result = NOT_REPRODUCED
        why = _join(f"not equal as printed: {rounded}", claim.note)
        remark = why
    return {
        "ours": ours,
        "n": 0,
        "low": math.nan,
        "high": math.nan,
        "verdict": result,
        "why": why,
        "remark": remark,
    }


def _judge_measured(claim: Claim, values: Sequence[float], caution: str) -> dict:
    x = np.log10(np.clip(values, SMALLEST, None)) if claim.in_decades else np.array(values)
    mean = mean_interval(x)
    notes = _join(claim.note, caution) if claim.of_one_more_seed else claim.note
    if claim.cannot:
        result = CANNOT_BE_CHECKED
        why = _join(claim.cannot, claim.note)
        remark = why
    elif len(values) < SEEDS_NEEDED:
        result = UNDECIDED
        why = _join(f"fewer than {SEEDS_NEEDED} seeds", notes)
        remark = notes  # column n shows how many there are
    else:
        interval = prediction_interval(x) if claim.of_one_more_seed else mean
        result = verdict(interval, claim.target)
        why = _join(_place(claim, interval, result), _outlook(claim, x, mean, result), notes)
        remark = why
    return {
        "ours": _value(claim, mean.mean),
        "n": mean.n,
        "low": _value(claim, mean.low),
        "high": _value(claim, mean.high),
        "verdict": result,
        "why": why,
        "remark": remark,
    }


def _place(claim: Claim, interval: Interval, result: str) -> str:
    """Where the interval lies against the target."""
    where = {REPRODUCED: "inside", NOT_REPRODUCED: "outside", UNDECIDED: "across an edge of"}[result]
    ends = (interval.low, interval.high, *claim.target)
    low, high, target_low, target_high = (number(_value(claim, end)) for end in ends)
    text = f"95 % interval {low} to {high} {where} {target_low} to {target_high}"
    if claim.of_one_more_seed:
        text += " for one more seed"
    return text


def _outlook(claim: Claim, x: np.ndarray, mean: Interval, result: str) -> str:
    """What would decide the claim, or what a decided one leaves open; may be empty."""
    if result == UNDECIDED:
        seeds = seeds_to_decide(x, claim.target, claim.of_one_more_seed)
        if seeds is None:
            return f"{MOST_SEEDS:,} seeds would not decide it"
        return f"{seeds:,} seeds would decide it"
    if claim.kind == "points" and claim.paper != 0 and mean.low < 0 < mean.high:
        return "the sign is not shown"
    return ""


def _value(claim: Claim, x: float) -> float:
    """A number on the scale on which the claim is judged, as a number of the claim."""
    return 10.0**x if claim.in_decades else x


def _join(*texts: str) -> str:
    return "; ".join(text for text in texts if text)


def count_verdicts(table: pd.DataFrame) -> pd.DataFrame:
    """Number of claims by source and verdict, for the table of `reproduction`; the last row counts all sources."""
    counts = pd.crosstab(table.source, table.verdict)
    counts = counts.reindex(index=table.source.unique(), columns=VERDICTS, fill_value=0)
    counts.loc["all"] = counts.sum()
    return counts


def readable_table(table: pd.DataFrame) -> pd.DataFrame:
    """The table of `reproduction` as text: claim, paper, ours, 95 % interval, seeds, verdict."""
    signs = table.kind.map({"above": "> ", "below": "< "}).fillna("")
    interval = table.low.map(number) + " to " + table.high.map(number)
    return pd.DataFrame(
        {
            "claim": table.source + ": " + table.name,
            "paper": signs + table.paper.map(number),
            "ours": table.ours.map(number),
            "95 % interval": interval.where(table.low.notna(), ""),
            "seeds": table.n.astype(str).where(table.kind != "exact", "exact"),
            "verdict": table.verdict,
        }
    )
