"""The report: each claim of the paper beside what the runs that are there say, with a verdict."""

import math
from collections.abc import Iterable, Sequence
from functools import cache, partial

import numpy as np
import pandas as pd

from ..runs.config import RunConfig
from ..runs.find_or_train import Runs
from ..runs.folder import Run
from ..runs.profiles import EXPERIMENTS, Profile
from ..system.tables import number
from .claims import Claim, claims, not_cifar
from .statistics import SEEDS, VERDICTS, Interval, mean_interval, prediction_interval, seeds_to_decide, verdict


def reproduction(
    profile: Profile, runs: Runs, seeds: Iterable[int], source: str | None = None
) -> tuple[pd.DataFrame, list[Run]]:
    """The paper's claims (of one `source`, or all) beside ours, and the runs used. Runs are only found, never trained.

    Columns: source, name, kind (see `Claim`), paper, ours (mean over seeds), n (seeds; 0: an exact fact), low and high
    (95 % interval of the mean), verdict (one of VERDICTS), why, remark (of `why`, what the other columns
    do not show; may be empty), missing (list of (experiment, seed)), main.
    """
    return judged([c for c in claims(profile) if source in (None, c.source)], profile, runs, seeds)


def judged(some: Iterable[Claim], profile: Profile, runs: Runs, seeds: Iterable[int]) -> tuple[pd.DataFrame, list[Run]]:
    """`reproduction` of any claims."""
    find, seeds, rows, used = cache(runs.find), list(seeds), [], {}
    names = cache(partial(_experiments, profile))
    for claim in some:
        values, missing = [], {}
        for seed in seeds if claim.runs else []:
            found = {config: find(config, claim.networks) for config in claim.runs(seed)}
            absent = [config for config, run in found.items() if run is None]
            if found and not absent:
                values.append(claim.measure(*found.values()))
                used |= {run.key: run for run in found.values()}
            missing |= {(names(seed).get(config, "none"), seed): None for config in absent if not claim.cannot}
        row = {"source": claim.source, "name": claim.name, "kind": claim.kind, "paper": claim.paper}
        row |= judge(claim, values, not_cifar(profile))
        rows.append(row | {"missing": list(missing), "main": claim.main})
    return pd.DataFrame(rows), list(used.values())


def _experiments(profile: Profile, seed: int) -> dict[RunConfig, str]:
    """The first experiment that trains each config."""
    pairs = [(config, name) for name, make in EXPERIMENTS.items() for config in make(profile, seed)]
    return dict(reversed(pairs))


def judge(claim: Claim, values: Sequence[float], caution: str = "") -> dict:
    """The columns of `reproduction` from ours to remark, from one value per seed (see `statistics` for the rule).

    `caution`: a note on the claims of kind "value" and "log" that can be checked.
    """
    if claim.kind == "exact":
        return _judge_exact(claim)
    log, further = claim.kind == "log", int(claim.kind in ("log", "value"))
    values = [value for value in values if not math.isnan(value)]
    x = np.log10(np.clip(values, 1e-38, None)) if log else np.array(values)
    mean, interval = mean_interval(x), prediction_interval(x) if further else mean_interval(x)
    result, few = verdict(interval, claim.target), not claim.cannot and len(values) < SEEDS
    if claim.cannot:
        result, why = "cannot be checked", claim.cannot
    elif few:
        why = f"fewer than {SEEDS} seeds"
    else:
        why = _place(interval, claim.target, result, log) + " for one more seed" * further
        if result == "undecided":
            enough = seeds_to_decide(x, claim.target, further)
            why += f"; {enough} seeds would decide it" if enough else "; 1,000 seeds would not decide it"
        elif claim.kind == "points" and claim.paper and mean.low < 0 < mean.high:
            why += "; the sign is not shown"
    ours, low, high = (10.0**part if log else part for part in (mean.mean, mean.low, mean.high))
    notes = claim.note, caution if claim.kind in ("value", "log") and not claim.cannot else ""
    row = {"ours": ours, "n": mean.n, "low": low, "high": high, "verdict": result}
    return row | _reasons(why, notes, seen=few)


def _place(interval: Interval, target: tuple[float, float], result: str, log: bool) -> str:
    ends = [10.0**end if log else end for end in (interval.low, interval.high, *target)]
    where = {"reproduced": "inside", "not reproduced": "outside", "undecided": "across an edge of"}[result]
    return "95 % interval {:.4g} to {:.4g} {where} {:.4g} to {:.4g}".format(*ends, where=where)


def _judge_exact(claim: Claim) -> dict:
    ours = claim.measure()
    same = format(ours, claim.form) == format(claim.paper, claim.form)
    why = f"{'equal' if same else 'not equal'} as printed: {ours:{claim.form}}"
    row = {"ours": ours, "n": 0, "low": math.nan, "high": math.nan, "verdict": VERDICTS[not same]}
    return row | _reasons(why, [claim.note], seen=same)


def _reasons(why: str, notes: Iterable[str], seen: bool) -> dict[str, str]:
    """`why` with the notes; and the remark, which lacks what is `seen` in the other columns."""
    texts = [why, *filter(None, notes)]
    return {"why": "; ".join(texts), "remark": "; ".join(texts[seen:])}


def counts(table: pd.DataFrame) -> pd.DataFrame:
    """How many claims of each source got which verdict, with a last row for all."""
    crossed = pd.crosstab(table.source, table.verdict).reindex(
        index=table.source.unique(), columns=VERDICTS, fill_value=0
    )
    crossed.loc["all"] = crossed.sum()
    return crossed


def shown(table: pd.DataFrame) -> pd.DataFrame:
    """The table of `reproduction` as people read it: claim, paper, ours, 95 % interval, seeds, verdict (all text)."""
    signs = table.kind.map({"above": "> ", "below": "< "}).fillna("")
    low, high = table.low.map(number), table.high.map(number)
    return pd.DataFrame(
        {
            "claim": table.source + ": " + table.name,
            "paper": signs + table.paper.map(number),
            "ours": table.ours.map(number),
            "95 % interval": (low + " to " + high).where(table.low.notna(), ""),
            "seeds": table.n.astype(str).where(table.kind != "exact", "exact"),
            "verdict": table.verdict,
        }
    )
