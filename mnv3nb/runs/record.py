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
from .folder import Run, lock_run, move_aside, read_run, write_result
from .profiles import Profile


def record(runs: Runs, config: RunConfig, model: bool = False) -> Run:
    """Copy a finished run to `runs.recorded`: without its network or, with `model=True`, half as large.

    Then result.json holds what the stored half-precision file reaches: stored_accuracy on all test images, and
    stored_correct_1000, how many of the first 1,000.
    """
    place = runs.recorded / config.key
    with lock_run(runs.folder, f"record-{config.key}"):
        run = runs.run(config, model)
        if run.folder == place:
            return run
        runs.recorded.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=runs.recorded) as scratch:
            _copy(runs, run, Path(scratch, config.key), model)
            before = runs.find(config)
            if before and before.folder == place and not (place / "model.safetensors").exists():
                os.replace(place, Path(scratch, "before"))  # the same run without its network
            elif place.exists():
                move_aside(place)
            os.replace(Path(scratch, config.key), place)
        return read_run(place, model)


def recorder(runs: Runs, profile: Profile, configs: Iterable[RunConfig]) -> Callable[[Run], Run]:
    """Records those of `configs` and their parents that are finished; the function it returns records the others."""

    def keep(config: RunConfig) -> Run:
        return record(runs, config, profile.ships_network(config))

    for config in configs:
        for finished in filter(runs.find, filter(None, (config.parent, config))):
            keep(finished)
    return lambda run: keep(run.config)


def _copy(runs: Runs, run: Run, folder: Path, model: bool) -> None:
    for name in ("config.json", "metrics.csv", "filters.safetensors"):
        with open(run.folder / name, "rb") as source, write_atomically(folder / name) as target:
            shutil.copyfileobj(source, target)
    result = dict(run.result)
    if model:
        original, data, size = run.model(), dataset_of(run.config), run.config.train.image_size
        save_model(original, folder / "model.safetensors", half=True, **original.metadata)
        stored = load_model(folder / "model.safetensors").to(pick_device(runs.device))
        result["stored_accuracy"] = evaluate(stored, data.test_images, data.test_labels, size)
        images, labels = data.test_images[:1000], data.test_labels[:1000]
        result["stored_correct_1000"] = round(evaluate(stored, images, labels, size) * len(labels))
    write_result(folder, result)
