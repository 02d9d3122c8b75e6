"""The notebooks' one door: the runs of a profile, its figures and tables, and the paper's numbers beside ours."""

import os
from collections.abc import Iterable
from functools import cached_property
from html import escape
from pathlib import Path

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
from .system.files import CHECKOUT, check_writable, default_home, write_atomically
from .system.tables import number

MAX_ROWS = 40  # displayed of a long table; its file has all of them
MAX_NAMES = 4  # of missing runs, in a message
MAX_KEYS = 6  # of runs, in a caption
LONG_TEXT = 30  # characters from which a table's cell is a sentence


class Lab:
    """The runs, figures and tables of one profile, for `seeds` seeds of which `seed` is the first.

    `lab.p`: the profile, with all its numbers. `lab.runs`: its runs. `lab.data`: its images. `lab.seeds`: a range.
    Raises ValueError for an unknown profile, a `seed` < 0 or `seeds` < 1, and OSError if it cannot save figures.
    """

    def __init__(self, profile: str = "digits", seed: int = 0, seeds: int = 1):
        _check_integer("seed", seed, least=0)
        _check_integer("seeds", seeds, least=1)
        self.p = get_profile(profile)
        self.seeds = range(seed, seed + seeds)
        self.runs = Runs(recorded=_recorded_runs())
        check_writable(default_home() / self._figures_folder)
        plots.use_style()

    @cached_property
    def data(self) -> Dataset:
        """The profile's images."""
        return load_once(self.p.dataset).subset(self.p.train_images)

    def run(
        self, what: str | RunConfig | Iterable[RunConfig], seed: int | None = None, model: bool = False
    ) -> list[Run]:
        """The runs of an experiment (a key of EXPERIMENTS), for all seeds or for `seed`, or the runs of configs.

        Trains the missing ones. In a `recorded` profile it trains none: it displays which are missing and returns the
        others. `model=True`: with their networks, which some recorded runs lack; raises FileNotFoundError for a
        recorded run without its network.
        """
        if isinstance(what, str):
            configs = self._experiment_configs(what, seed, model)
        elif isinstance(what, RunConfig):
            configs = [what]
        else:
            configs = list(what)
        if self.p.recorded:
            return self._find_recorded(configs, model)
        return self._find_or_train(configs, model)

    def show(
        self, result: Figure | pd.DataFrame, name: str, runs: Iterable[Run] = (), digits: int | None = None
    ) -> None:
        """Display a figure or a table with the `runs` behind it. Save it as `name`.png and .svg, or as `name`.csv.

        `python -m mnv3nb figures` saves in figures/PROFILE/. A notebook run by hand saves in runs/figures/PROFILE/, which
        git ignores, or in its folder seed<N>/ if the first seed N is not 0. `digits`: decimals displayed; None: four
        significant digits.
        """
        path = f"{default_home()}/{self._figures_folder}/{name}"
        if isinstance(result, Figure):
            _save_figure(result, path)
            display(Image(f"{path}.png", width=round(80 * result.get_figwidth())))
            ending = ".svg"
        else:
            table = result.reset_index() if result.index.name else result
            _save_table(table, path)
            _display_table(table, digits)
            ending = ".csv"
        _display_caption(f"{self._figures_folder}/{name}{ending}", runs)

    def table(self, name: str) -> pd.DataFrame | None:
        """A table that `show` saved, with these settings or in figures/PROFILE/; None if there is none."""
        for folder in (self._figures_folder, f"figures/{self.p.name}"):
            path = default_home() / folder / f"{name}.csv"
            if path.is_file():
                return pd.read_csv(path)
        return None

    def compare(self, source: str) -> None:
        """Show the report's claims of one `source` ("Table 3", "Figure 6", "§ 3.2.1"): paper, ours, verdict, and why."""
        claims, used = reproduction(self.p, self.runs, self.seeds, source)
        table = readable_table(claims)
        if any(claims.remark):
            table["why"] = claims.remark
        name = source.lower().replace("§", "section").replace(" ", "_")
        self.show(table, f"compare_{name}", used)

    @property
    def _figures_folder(self) -> str:
        """Where `show` saves, below the home folder."""
        if os.environ.get("MNV3NB_HEADLESS") == "1":
            return f"figures/{self.p.name}"
        if self.seeds[0] == 0:
            return f"runs/figures/{self.p.name}"
        return f"runs/figures/{self.p.name}/seed{self.seeds[0]}"

    def _experiment_configs(self, name: str, seed: int | None, model: bool) -> list[RunConfig]:
        """The configs of an experiment; in a recorded profile without those that nobody means to train."""
        seeds = self.seeds if seed is None else [seed]
        configs = []
        for each in seeds:
            configs += self.p.experiment(name, each)
        if model or not self.p.recorded:
            return configs
        # the plan has only a part of an experiment for further seeds: the rest is not missing
        planned = []
        for each in seeds:
            planned += self.p.planned(each)
        return [config for config in configs if config in planned or self.runs.find(config)]

    def _find_or_train(self, configs: list[RunConfig], model: bool) -> list[Run]:
        try:
            runs = run_grid(self.runs, configs)
            if model:  # a run that was recorded without its network is trained again
                runs = [self.runs.run(run.config, model=True) for run in runs]
            return runs
        except KeyboardInterrupt:
            raise Interrupted("Interrupted: run this cell again, and it resumes after the last whole epoch.") from None

    def _find_recorded(self, configs: list[RunConfig], model: bool) -> list[Run]:
        found = []
        missing = []
        for config in dict.fromkeys(configs):  # each once
            run = self.runs.find(config, model)
            if run is None:
                missing.append(config.label)
            else:
                found.append(run)
        if not missing:
            return found
        names = _shortened(missing, MAX_NAMES, separator="; ")
        if model:
            how = "`lab.runs.run(config, model=True)` trains one"
            raise FileNotFoundError(f"results/ and runs/ have no network of {names}; {how}")
        how = f"`python -m mnv3nb grid --profile {self.p.name}` trains what is missing"
        display(Markdown(f"*not recorded yet: {names}* ({how})"))
        return found


class Interrupted(KeyboardInterrupt):
    """A training was interrupted by hand: a notebook shows one line instead of a traceback."""

    def _render_traceback_(self) -> list[str]:  # IPython calls it
        return [str(self)]


def _check_integer(name: str, value: object, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be an integer ≥ {least}, got {value!r}")


def _recorded_runs() -> Path:
    """`results/` of the home folder; if `$MNV3NB_HOME` has none, those that lie beside this package."""
    recorded = default_home() / "results"
    return recorded if recorded.is_dir() else CHECKOUT / "results"


def _save_figure(figure: Figure, path: str) -> None:
    """Without the date and the version of matplotlib, so that the same figure gives the same files."""
    with write_atomically(f"{path}.png") as file:
        figure.savefig(file, format="png", metadata={"Software": None})
    with write_atomically(f"{path}.svg") as file:
        figure.savefig(file, format="svg", metadata={"Date": None})
    plt.close(figure)  # else the notebook shows it a second time


def _save_table(table: pd.DataFrame, path: str) -> None:
    with write_atomically(f"{path}.csv") as file:
        table.to_csv(file, index=False, float_format="%.6g", lineterminator="\n")


def _display_table(table: pd.DataFrame, digits: int | None) -> None:
    texts = table.head(MAX_ROWS).map(number, digits=digits)
    if "criterion" in texts:
        texts["criterion"] = texts.criterion.replace(plots.CRITERION_LABELS)
    texts.columns = [_heading(str(name)) for name in texts]
    with pd.option_context("display.max_colwidth", None):  # else pandas cuts sentences
        plain = texts.to_string(index=False)
        html = texts.map(_cell_html).to_html(index=False, escape=False)
    html = f'<div style="overflow-x: auto">{html}</div>'  # a table wider than the page scrolls by itself
    if len(table) > MAX_ROWS:
        html += f"<p>the first {MAX_ROWS} of {len(table):,} rows</p>"
    display({"text/html": html, "text/plain": plain}, raw=True)


def _heading(name: str) -> str:
    """A column's name in words: `accuracy_pct` is "accuracy (%)", `parameters_m` is "parameters (millions)"."""
    if name in ("parameters_m", "least_m", "most_m"):
        name = name.removesuffix("_m") + " (millions)"
    return name.replace("_pct", " (%)").replace("_", " ")


def _cell_html(text: str) -> str:
    """A notebook aligns cells to the right, which suits numbers; sentences are aligned to the left."""
    if len(text) > LONG_TEXT:
        return f'<div style="text-align: left; min-width: 16em">{escape(text)}</div>'
    return escape(text)


def _display_caption(path: str, runs: Iterable[Run]) -> None:
    """Displays where the file is and which runs are behind it, in words and, for `runs_behind`, as RUNS_MIME."""
    runs_by_key = {run.key: run for run in runs}
    keys = list(runs_by_key)
    text = f"`{path}`"
    if keys:
        seeds = sorted({run.config.train.seed for run in runs_by_key.values()})
        environments = [run.result["environment"] for run in runs_by_key.values()]
        origins = sorted({f"{environment['hardware']}, {environment['date']}" for environment in environments})
        text += f" · {len(keys)} run(s): {_shortened(keys, MAX_KEYS, separator=', ')}"
        text += f" · seed(s) {', '.join(map(str, seeds))} · {'; '.join(origins)}"
    display({"text/markdown": text, "text/plain": text, RUNS_MIME: keys}, raw=True)


def _shortened(texts: list[str], count: int, separator: str) -> str:
    """The first `count` texts, and how many more there are."""
    joined = separator.join(texts[:count])
    if len(texts) > count:
        joined += f" and {len(texts) - count} more"
    return joined
