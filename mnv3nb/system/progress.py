"""How far a training is: a bar for whoever watches, one line per epoch where the output goes to a file."""

import os
import sys
import time
from typing import TextIO

from tqdm import tqdm

# What a notebook keeps of a finished bar. An output cannot be taken back, but it can be empty; plain text alone would
# stay as a blank line.
EMPTY = {"text/html": "", "text/plain": ""}


class Progress:
    """Shows the progress of one training; use it in a `with` statement.

    In a terminal or a live notebook it is a bar that moves with every step and disappears at the end. Elsewhere it is
    one printed line per epoch.
    """

    def __init__(self, label: str, epochs: int, steps: int, done: int, shown: bool):
        """`steps`: per epoch. `done`: epochs that an earlier, interrupted training completed."""
        self.label = label
        self.epochs = epochs
        self.done = done
        self.started = time.perf_counter()
        output = _live_output() if shown else None
        self.prints_lines = shown and output is None
        self.bar = tqdm(
            total=epochs * steps,
            initial=done * steps,
            desc=label,
            unit="step",
            leave=False,
            file=output,
            disable=output is None,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.close()

    def step_done(self) -> None:
        self.bar.update()

    def epoch_done(self, row: dict) -> None:
        """Shows the results of an epoch: a row of the history that `train` returns."""
        epoch = f"{row['epoch']}/{self.epochs}"
        results = f"loss {row['train_loss']:.4f}, test accuracy {100 * row['test_accuracy']:.2f} %"
        self.bar.set_postfix_str(f"epoch {epoch}, {results}", refresh=False)
        if self.prints_lines:
            label = self.label or "epoch"
            print(f"{label} {epoch}: {results}, {row['seconds']:.1f} s{self._time_left(row['epoch'])}", flush=True)

    def _time_left(self, epoch: int) -> str:
        """The end of an epoch's line: an estimate from the epochs that this process has trained."""
        if epoch == self.epochs:
            return ""
        seconds_per_epoch = (time.perf_counter() - self.started) / (epoch - self.done)
        return f", about {duration(seconds_per_epoch * (self.epochs - epoch))} left"


def duration(seconds: float) -> str:
    """A time in the unit that people would use: "42 s", "7 min", "3.2 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 100 * 60:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


class NotebookLine:
    """A text file for tqdm that a notebook shows as one line: each write replaces the line before.

    The widget of tqdm.auto leaves "Error displaying widget" in the saved notebook, and a bar on the standard error stream
    leaves every state that it went through.
    """

    encoding = "utf-8"  # tqdm draws with blocks instead of # where the file has one

    def __init__(self):
        from IPython.display import display  # late: the package does without IPython outside notebooks

        self.handle = display(EMPTY, raw=True, display_id=True)

    def write(self, text: str) -> None:
        line = text.strip()
        self.handle.update({"text/plain": line} if line else EMPTY, raw=True)

    def flush(self) -> None:
        """Does nothing: `write` has shown the line already."""


def _live_output() -> TextIO | NotebookLine | None:
    """Where a bar can move: a notebook that is not executed headless, or a terminal; None elsewhere."""
    if "ipykernel" in sys.modules:
        is_headless = os.environ.get("MNV3NB_HEADLESS") == "1"
        return None if is_headless else NotebookLine()
    return sys.stderr if sys.stderr.isatty() else None
