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
from ..pruning import keep_masks, prune
from ..repair import fold_bias
from ..system.device import environment, pick_device, with_threads
from ..system.files import default_home
from ..training import TrainConfig, evaluate, train
from .config import RunConfig
from .folder import Run, RunFolder, State, lock_run

_DRAWING = threading.Lock()  # the random generator belongs to the process, and some executors run threads


class Runs:
    """The runs under `folder` (default `$MNV3NB_HOME/runs`) and, looked in first, the `recorded` ones (results/)."""

    def __init__(self, folder=None, recorded=None, device: str | None = None, progress: bool = True):
        self.folder = Path(folder or default_home() / "runs")
        self.recorded = Path(recorded or default_home() / "results")
        self.device = device
        self.progress = progress

    def find(self, config: RunConfig, model: bool = False) -> Run | None:
        """The finished run of `config` if it is there and undamaged (with its network, if `model`), else None."""
        for store in (self.recorded, self.folder):
            folder = RunFolder(store / config.key)
            if not folder.claims_to_be_finished(model):
                continue
            try:
                run = folder.read(model)
            except (ValueError, OSError) as error:
                print(f"skipping a damaged run: {error}", file=sys.stderr)
                continue
            return replace(run, config=config)  # the path of its data may have changed
        return None

    def run(self, config: RunConfig, model: bool = False) -> Run:
        """The run of `config`: found, or trained (its parents first) and stored. `model=True`: with its network.

        Resumes an interrupted run after its last completed epoch. If another process works on it, this one reports it
        and waits.
        """
        if found := self.find(config, model):
            if found.folder.parent == self.folder:  # its process may have been killed before it discarded the state
                with contextlib.suppress(OSError):
                    RunFolder(found.folder).discard_state()
            return found
        with self._locked(config):
            return self.find(config, model) or self._train(config)

    def network(self, config: RunConfig) -> nn.Module:
        """The network with which `config`'s training starts: random weights, or the parent's network pruned."""
        network, _ = self._start(config)
        return network

    def scores(self, config: RunConfig) -> list[Tensor]:
        """The scores of the parent's filters by which `config` prunes: one tensor (width,) per block."""
        return self._score(config, self._parent(config))

    @contextlib.contextmanager
    def _locked(self, config: RunConfig) -> Iterator[None]:
        lock = lock_run(self.folder, config.key)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"run {config.key} ({config.label}): another process works on it; waiting", file=sys.stderr)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def _train(self, config: RunConfig) -> Run:
        device = pick_device(self.device)
        data = dataset_of(config)
        model, folded = self._start(config)
        folder = RunFolder(self.folder / config.key)
        state = folder.begin(config, model)
        here = environment(device)
        here["threads"] = state.threads
        earlier = [other for other in state.environments if other != here]

        def save_epoch(tensors: dict[str, Tensor], history: list[dict]) -> None:
            folder.save_epoch(State(tensors, history, state.threads, [*earlier, here]))

        with with_threads(state.threads):
            history = train(
                model,
                data,
                config.train,
                device=str(device),
                state=state.tensors,
                history=state.history,
                on_epoch=save_epoch,
                progress=self.progress and os.environ.get("MNV3NB_HEADLESS") != "1",
                label=config.label,
            )
        result = _measure(model, folded, history, data, config.train.image_size)
        result["environment"] = here
        if earlier:
            result["earlier_environments"] = earlier
        return folder.finish(
            model,
            history,
            result,
            image_size=config.train.image_size,
            classes=data.classes,
            accuracy=result["accuracy"],
        )

    def _start(self, config: RunConfig) -> tuple[nn.Module, nn.Module | None]:
        """The network that training starts from and, if it inherits weights, a copy with removed constants folded in."""
        if config.parent is None:
            network = _draw_network(
                config.train,
                len(dataset_of(config).classes),
                strides=config.network.strides,
                initial=config.network.initial,
            )
            return network, None
        parent = self._parent(config)
        how = config.prune
        masks = keep_masks(self._score(config, parent), how.rate, how.multiple_of, how.min_width)
        pruned = prune(parent, masks, how.squeeze)
        if not how.inherit:
            network = _draw_network(
                config.train,
                pruned.num_classes,
                widths=pruned.widths,
                squeeze=pruned.squeeze,
                strides=pruned.strides,
                initial=config.parent.network.initial,
            )
            return network, None
        return pruned, fold_bias(parent, pruned, masks, config.train.image_size)

    def _parent(self, config: RunConfig) -> nn.Module:
        return self.run(config.parent, model=True).model()

    def _score(self, config: RunConfig, parent: nn.Module) -> list[Tensor]:
        criterion = config.prune.criterion
        batches = None
        if criterion in NEEDS_DATA:
            batches = first_batches(dataset_of(config), config.parent.train.image_size)
        scores = score(parent, criterion, batches, seed=config.train.seed)
        if config.prune.ranking == "layer":
            return rank_within_layers(scores)
        return scores


def dataset_of(config: RunConfig) -> Dataset:
    """The images that `config` trains and is measured on."""
    return load_once(config.dataset).subset(config.train_images, config.holdout)


def first_batches(data: Dataset, image_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and labels of 512 training images in batches of 64, for criteria in NEEDS_DATA."""
    images = data.train_images[:512].split(64)
    labels = data.train_labels[:512].split(64)
    return ((to_input(some_images, image_size), some_labels) for some_images, some_labels in zip(images, labels))


def _draw_network(config: TrainConfig, num_classes: int, **arguments) -> MobileNetV3Large:
    """A network with random weights drawn by the config's seed; `arguments` as of `MobileNetV3Large`."""
    with _DRAWING, torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return MobileNetV3Large(num_classes, gamma_init=config.gamma_init, **arguments)


def _measure(
    model: nn.Module, folded: nn.Module | None, history: list[dict], data: Dataset, image_size: int
) -> dict[str, object]:
    """The numbers of a finished training, see `Run.result`; `folded`: see `Runs._start`."""
    epochs = len(history) - 1  # row 0 is before the first step
    seconds = sum(row["seconds"] for row in history)
    accuracy_folded = None
    if folded is not None:
        folded.to(next(model.parameters()).device)
        accuracy_folded = evaluate(folded, data.test_images, data.test_labels, image_size)
    return {
        "accuracy": history[-1]["test_accuracy"],
        "accuracy_before": history[0]["test_accuracy"],
        "accuracy_folded": accuracy_folded,
        "parameters": count_parameters(model),
        "widths": model.widths,
        "squeeze": model.squeeze,
        "seconds": seconds,
        "images_per_second": epochs * len(data.train_images) / seconds if seconds else None,
    }
