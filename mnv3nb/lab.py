"""The notebooks' one door: the runs of a profile, its figures and tables, and the paper's numbers beside ours."""

import os
import re
from collections.abc import Iterable
from functools import cached_property, partial
from html import escape
from numbers import Integral, Real

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Image, Markdown, display
from matplotlib.figure import Figure

from . import plots
from .data.batches import Dataset
from .data.datasets import load_once
from .report.verdicts import readable_table, reproduction
from .runs.config import RunConfig
from .runs.find_or_train import Runs
from .runs.folder import Run
from .runs.grid import run_grid
from .runs.notebooks import RUNS_MIME
from .runs.profiles import get_profile
from .system.files import default_home, write_atomically

ROWS = 40  # of a long table that are displayed; its file has all


class Interrupted(KeyboardInterrupt):
    """A training that was interrupted by hand: a notebook shows one line and no traceback."""

    def _render_traceback_(self) -> list[str]:  # IPython asks for it
        return [str(self)]


class Lab:
    """One `profile`: `.p`, its numbers; `.runs`; `.data`. `seed`: the first of so many `seeds`."""

    def __init__(self, profile: str = "digits", seed: int = 0, seeds: int = 1):
        self.p, self.runs, self.seeds = get_profile(profile), Runs(), range(seed, seed + seeds)
        plots.use_style()

    @cached_property
    def data(self) -> Dataset:
        """The profile's images."""
        return load_once(self.p.dataset).subset(self.p.train_images)

    def run(
        self, what: str | RunConfig | Iterable[RunConfig], seed: int | None = None, model: bool = False
    ) -> list[Run]:
        """The runs of an experiment (a key of EXPERIMENTS) for every seed or for `seed`, or of configs.

        Trains only what is missing; of a `recorded` profile nothing: a line displayed names what is absent
        (of an experiment: and planned). `model=True`: with their networks, which a recorded run may come without; raises
        FileNotFoundError if one of them is not there.
        """
        if isinstance(what, str):
            seeds = self.seeds if seed is None else [seed]
            what = [config for s in seeds for config in self.p.experiment(what, s)]
            if self.p.recorded and not model:  # further seeds have a part of it, and nobody means to train the rest
                planned = [config for s in seeds for config in self.p.planned(s)]
                what = [config for config in what if config in planned or self.runs.find(config)]
        configs = [what] if isinstance(what, RunConfig) else list(what)
        if self.p.recorded:
            return self._find(configs, model)
        try:
            found = run_grid(self.runs, configs)
            return [self.runs.run(run.config, model=True) for run in found] if model else found
        except KeyboardInterrupt:
            raise Interrupted("Interrupted: run this cell again, and it resumes after the last whole epoch.") from None

    def _find(self, configs: list[RunConfig], model: bool) -> list[Run]:
        found = {config: self.runs.find(config, model) for config in configs}
        if missing := [config for config, run in found.items() if run is None]:
            text = "; ".join(config.label for config in missing[:4])
            text += f" and {len(missing) - 4} more" if len(missing) > 4 else ""
            if model:
                how = "`lab.runs.run(config, model=True)` trains one"
                raise FileNotFoundError(f"no network is stored in results/ or runs/ of {text}; {how}")
            text = f"not recorded yet: {text}"
            display(Markdown(f"*{text}* (`python -m mnv3nb grid --profile {self.p.name}` trains what is missing)"))
        return [run for run in found.values() if run]

    def show(
        self, result: Figure | pd.DataFrame, name: str, runs: Iterable[Run] = (), digits: int | None = None
    ) -> None:
        """Display a figure or a table with the `runs` behind it, and save it: `name`.png and .svg, or .csv.

        `python -m mnv3nb figures` fills figures/PROFILE/; by hand it is runs/figures/PROFILE/, which git ignores.
        `digits`: decimals displayed; None: four significant digits.
        """
        place = "figures" if os.environ.get("MNV3NB_HEADLESS") == "1" else "runs/figures"
        path = f"{place}/{self.p.name}/{name}"
        show = _show_figure if isinstance(result, Figure) else partial(_show_table, digits=digits)
        _caption(path + show(result, f"{default_home()}/{path}"), list({run.key: run for run in runs}.values()))

    def table(self, name: str) -> pd.DataFrame | None:
        """A table that `show` has saved, by hand or in figures/; None if it has not."""
        paths = [f"{default_home()}/{place}/{self.p.name}/{name}.csv" for place in ("runs/figures", "figures")]
        return next((pd.read_csv(path) for path in paths if os.path.isfile(path)), None)

    def compare(self, source: str) -> None:
        """The report's own claims of one `source` ("Table 3", "Figure 6", "§ 3.2.1"): paper, ours, verdict, and why."""
        table, used = reproduction(self.p, self.runs, self.seeds, source)
        name, why = source.lower().replace("§", "section").replace(" ", "_"), table.remark
        self.show(readable_table(table).assign(**{"why": why} if any(why) else {}), f"compare_{name}", used)


def _show_figure(fig: Figure, path: str) -> str:
    for ending, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        with write_atomically(f"{path}.{ending}") as file:
            fig.savefig(file, format=ending, metadata=metadata)
    plt.close(fig)
    display(Image(f"{path}.png", width=round(80 * fig.get_figwidth())))
    return ".svg"


def _show_table(table: pd.DataFrame, path: str, digits: int | None) -> str:
    table = table.reset_index() if table.index.name else table
    with write_atomically(f"{path}.csv") as file:
        table.to_csv(file, index=False, float_format="%.6g", lineterminator="\n")
    text = table.head(ROWS).map(_cell, digits=digits)
    if "criterion" in text:
        text["criterion"] = text.criterion.replace(plots.CRITERION_LABELS)
    names = [re.sub("^(parameters|least|most)_m$", r"\1 (millions)", str(name)) for name in text]
    text.columns = [name.replace("_pct", " (%)").replace("_", " ") for name in names]
    with pd.option_context("display.max_colwidth", None):
        plain, html = text.to_string(index=False), text.map(_left).to_html(index=False, escape=False)
    html = f'<div style="overflow-x: auto">{html}</div>'  # never wider than the page
    html += f"<p>the first {ROWS} of {len(table)} rows</p>" if len(table) > ROWS else ""
    display({"text/html": html, "text/plain": plain}, raw=True)
    return ".csv"


def _cell(value: object, digits: int | None) -> str:
    """As displayed: thousands separators, four significant digits or `digits` decimals, a dash for nothing."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return "–" if value is None else str(value)
    if isinstance(value, Integral):
        return f"{value:,}"
    if pd.isna(value):
        return "–"
    if digits is None:
        return f"{value:,.0f}" if 1e4 <= abs(value) < 1e12 else f"{value:.4g}"
    return f"{value:,.{digits}f}"


def _left(text: str) -> str:
    """A cell as HTML; sentences, which notebooks would align to the right, start at the left."""
    sentence = len(text) > 30
    return f'<div style="text-align: left; min-width: 16em">{escape(text)}</div>' if sentence else escape(text)


def _caption(path: str, runs: list[Run]) -> None:
    """Display where the file is and which runs are behind it, also as RUNS_MIME, by which staleness is found."""
    text = f"`{path}`"
    if runs:
        seeds = sorted({run.config.train.seed for run in runs})
        made = [run.result["environment"] for run in runs]
        places = sorted({f"{where['hardware']}, {where['date']}" for where in made})
        keys = ", ".join(run.key for run in runs[:6]) + (f" and {len(runs) - 6} more" if len(runs) > 6 else "")
        text += f" · {len(runs)} run(s): {keys} · seed(s) {', '.join(map(str, seeds))} · {'; '.join(places)}"
    display({"text/markdown": text, "text/plain": text, RUNS_MIME: [run.key for run in runs]}, raw=True)
