"""Finished runs copied to `results/`, small enough to ship with the repository."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from ..networks.checkpoint import load_model, save_model
from ..system.device import pick_device
from ..system.files import write_atomically
from ..training import evaluate
from .config import RunConfig
from .find_or_train import Runs, dataset_of
from .folder import Run, RunFolder, lock_run, move_aside
from .profiles import Profile


def record(runs: Runs, config: RunConfig, model: bool = False) -> Run:
    """Copies a run, trained if it is missing, to `runs.recorded`: without its network or, with `model=True`, with it.

    Networks are stored in half precision. With its network, result.json also holds what the stored half-precision
    file reaches: stored_accuracy on all images that judge the run, and stored_correct_1000, how many of the first
    1,000 it classifies correctly.
    """
    place = runs.recorded / config.key
    with lock_run(runs.folder, f"record-{config.key}"):
        run = runs.run(config, model)
        if run.folder == place:
            return run
        runs.recorded.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=runs.recorded) as scratch:
            copy = Path(scratch, config.key)
            _copy(run, copy)
            result = dict(run.result)
            if model:
                result |= _store_network(runs, run, copy / "model.safetensors")
            RunFolder(copy).write_result(result)
            before = runs.find(config)
            if before and before.folder == place and not (place / "model.safetensors").exists():
                os.replace(place, Path(scratch, "before"))  # the same run without its network
            elif place.exists():
                move_aside(place)
            os.replace(copy, place)
        return RunFolder(place).read(model)


def recorder(runs: Runs, profile: Profile, configs: Iterable[RunConfig]) -> Callable[[Run], Run]:
    """Records those of `configs` and their parents that are finished; the function it returns records the others."""

    def record_config(config: RunConfig) -> Run:
        return record(runs, config, profile.ships_network(config))

    def is_finished(config: RunConfig) -> bool:
        return runs.find(config, profile.ships_network(config)) is not None

    for config in configs:
        if config.parent and is_finished(config.parent):
            record_config(config.parent)
        if is_finished(config):
            record_config(config)
    return lambda run: record_config(run.config)


def _copy(run: Run, folder: Path) -> None:
    for name in ("config.json", "metrics.csv", "filters.safetensors"):
        with open(run.folder / name, "rb") as source, write_atomically(folder / name) as target:
            shutil.copyfileobj(source, target)


def _store_network(runs: Runs, run: Run, path: Path) -> dict:
    """Stores the network in half precision; what the stored file reaches."""
    network = run.model()
    save_model(network, path, half=True, **network.metadata)
    stored = load_model(path).to(pick_device(runs.device))
    data = dataset_of(run.config)
    image_size = run.config.train.image_size
    first_images = data.test_images[:1000]
    first_labels = data.test_labels[:1000]
    share_of_first = evaluate(stored, first_images, first_labels, image_size)
    return {
        "stored_accuracy": evaluate(stored, data.test_images, data.test_labels, image_size),
        "stored_correct_1000": round(share_of_first * len(first_labels)),
    }
