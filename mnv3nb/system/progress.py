"""How far a training is."""

import sys

from tqdm.auto import tqdm


class Progress:
    """A bar in terminals and live notebooks that moves with every step; one line per epoch where output goes to a
    file."""

    def __init__(self, label: str, epochs: int, steps: int, done: int, shown: bool):
        self.label, self.epochs, self.shown = label, epochs, shown
        self.live = shown and (sys.stderr.isatty() or "ipykernel" in sys.modules)
        size = {"total": epochs * steps, "initial": done * steps}
        self.bar = tqdm(**size, desc=label, unit="step", leave=False, disable=not self.live)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.bar.total = self.bar.n  # else a notebook keeps the bar of a training that was interrupted
        self.bar.close()

    def step_done(self) -> None:
        self.bar.update()

    def epoch_done(self, row: dict) -> None:
        text = f"loss {row['train_loss']:.4f}, test accuracy {100 * row['test_accuracy']:.2f} %"
        self.bar.set_postfix_str(f"epoch {row['epoch']}/{self.epochs}, {text}", refresh=False)
        if self.shown and not self.live:
            left = f"{row['seconds']:.1f} s, {row['seconds'] * (self.epochs - row['epoch']) / 60:.1f} min left"
            print(f"{self.label or 'epoch'} {row['epoch']}/{self.epochs}: {text}, {left}", flush=True)
