"""A run is a config and the folder it names: found again, or trained once, its parents first."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from filelock import Timeout
from torch import Tensor, nn

from ..costs import count_parameters
from ..data.batches import Dataset, to_input
from ..data.datasets import load_once
from ..importance import NEEDS_DATA, rank_within_layers, score
from ..model import MobileNetV3Large
from ..networks.checkpoint import save_model
from ..pruning import keep_masks, prune
from ..repair import fold_bias
from ..system.device import environment, pick_device, with_threads
from ..system.files import default_home
from ..training import TrainConfig, evaluate, train
from . import folder as store
from .config import RunConfig
from .folder import Run, State

_DRAW = threading.Lock()  # the random generator is the process's, and some executors run threads


class Runs:
    """The runs under `folder` (default `$MNV3NB_HOME/runs`) and, looked in first, the `recorded` ones (results/)."""

    def __init__(self, folder=None, recorded=None, device: str | None = None, progress: bool = True):
        self.folder = Path(folder or default_home() / "runs")
        self.recorded = Path(recorded or default_home() / "results")
        self.device, self.progress = device, progress

    def find(self, config: RunConfig, model: bool = False) -> Run | None:
        """The finished run of `config` if it is there and undamaged (with its network, if `model`), else None."""
        for folder in (self.recorded / config.key, self.folder / config.key):
            needed = ("result.json", "model.safetensors") if model else ("result.json",)
            if all((folder / name).is_file() for name in needed):
                try:
                    return replace(store.read_run(folder, model), config=config)  # its data may have moved
                except (ValueError, OSError) as error:
                    print(f"skipping a damaged run: {error}", file=sys.stderr)
        return None

    def run(self, config: RunConfig, model: bool = False) -> Run:
        """The run of `config`: found, or trained (its parents first) and stored. `model=True`: with its network.

        Resumes an interrupted run after its last completed epoch. If another process works on it, this one reports it
        and waits.
        """
        if found := self.find(config, model):
            if found.folder.parent == self.folder:  # its process may have been killed before it removed the state
                with contextlib.suppress(OSError):
                    (found.folder / "state.safetensors").unlink()
            return found
        lock = store.lock_run(self.folder, config.key)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"run {config.key} ({config.label}): another process works on it; waiting", file=sys.stderr)
            lock.acquire()
        try:
            return self.find(config, model) or self._train(config)
        finally:
            lock.release()

    def network(self, config: RunConfig) -> nn.Module:
        """The network with which `config`'s training starts: random weights, or the parent's network pruned."""
        return self._start(config)[0]

    def scores(self, config: RunConfig) -> list[Tensor]:
        """The scores of the parent's filters by which `config` prunes: one tensor (width,) per block."""
        return self._score(config, self._parent(config))

    def _parent(self, config: RunConfig) -> nn.Module:
        return self.run(config.parent, model=True).model()

    def _score(self, config: RunConfig, parent: nn.Module) -> list[Tensor]:
        batches = None
        if config.prune.criterion in NEEDS_DATA:
            batches = first_batches(dataset_of(config), config.parent.train.image_size)
        scores = score(parent, config.prune.criterion, batches, seed=config.train.seed)
        return rank_within_layers(scores) if config.prune.ranking == "layer" else scores

    def _start(self, config: RunConfig) -> tuple[nn.Module, nn.Module | None]:
        """`network` and, where it inherits weights, the same with the constants of removed channels folded in."""
        if config.parent is None:
            changes = {"strides": config.network.strides, "initial": config.network.initial}
            return _random_network(config.train, len(dataset_of(config).classes), **changes), None
        parent, p = self._parent(config), config.prune
        masks = keep_masks(self._score(config, parent), p.rate, p.multiple_of, p.min_width)
        pruned = prune(parent, masks, p.squeeze)
        if not p.inherit:
            shape = {"widths": pruned.widths, "squeeze": pruned.squeeze, "strides": pruned.strides}
            return _random_network(config.train, pruned.num_classes, **shape), None
        return pruned, fold_bias(parent, pruned, masks, config.train.image_size)

    def _train(self, config: RunConfig) -> Run:
        folder, device, data = self.folder / config.key, pick_device(self.device), dataset_of(config)
        store.open_folder(folder, config)
        model, folded = self._start(config)
        state = store.read_state(folder, config, model)
        here = environment(device) | {"threads": state.threads}
        earlier = [other for other in state.environments if other != here]

        def save(tensors: dict[str, Tensor], history: list[dict]) -> None:
            store.write_state(folder, config, State(tensors, history, state.threads, [*earlier, here]))

        before = {"state": state.tensors, "history": state.history}
        shown = {"progress": self.progress and os.environ.get("MNV3NB_HEADLESS") != "1", "label": config.label}
        with with_threads(state.threads):  # another number would change the last bits
            history = train(model, data, config.train, device=str(device), **before, on_epoch=save, **shown)
        store.write_metrics(folder, history)
        store.write_filters(folder, model)
        about = {"run": config.key, "image_size": config.train.image_size, "classes": data.classes}
        save_model(model, folder / "model.safetensors", **about, accuracy=history[-1]["test_accuracy"])
        environments = {"environment": here} | ({"earlier_environments": earlier} if earlier else {})
        test = data.test_images, data.test_labels, config.train.image_size
        measured = _measured(model, history, len(data.train_images))
        measured["accuracy_folded"] = None if folded is None else evaluate(folded.to(device), *test)
        store.write_result(folder, measured | environments)
        (folder / "state.safetensors").unlink(missing_ok=True)
        return store.read_run(folder)


def dataset_of(config: RunConfig) -> Dataset:
    """The images that `config` trains and is measured on."""
    return load_once(config.dataset).subset(config.train_images, config.holdout)


def first_batches(data: Dataset, image_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and labels of 512 training images in batches of 64, for criteria in NEEDS_DATA."""
    parts = zip(data.train_images[:512].split(64), data.train_labels[:512].split(64))
    return ((to_input(images, image_size), labels) for images, labels in parts)


def _measured(model: nn.Module, history: list[dict], images: int) -> dict:
    seconds = sum(row["seconds"] for row in history)
    return {
        "accuracy": history[-1]["test_accuracy"],
        "accuracy_before": history[0]["test_accuracy"],
        "parameters": count_parameters(model),
        "widths": model.widths,
        "squeeze": model.squeeze,
        "seconds": seconds,
        "images_per_second": (len(history) - 1) * images / seconds if seconds else None,
    }


def _random_network(config: TrainConfig, num_classes: int, **arguments) -> MobileNetV3Large:
    with _DRAW, torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return MobileNetV3Large(num_classes, gamma_init=config.gamma_init, **arguments)
