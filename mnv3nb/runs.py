"""A run is a config and the folder it names: trained once, found again, continued after a kill, parents before children."""

import contextlib
import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import asdict, replace
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from .checkpoint import load_model, save_model, save_tensors, write_atomically
from .complexity import count_parameters
from .config import FORMAT, RunConfig
from .data import Dataset, data_checksum, default_home, load_once, to_input
from .importance import NEEDS_DATA, filter_sparsity, rank_within_layers, score
from .model import MobileNetV3Large
from .pruning import keep_masks, prune
from .store import (
    FILES,
    Run,
    environment,
    is_whole,
    move_aside,
    read_run,
    read_state,
    write_json,
    write_metrics,
    write_result,
    write_state,
)  # fmt: skip
from .training import TrainConfig, evaluate, pick_device, train
from .workers import count_workers, processes, threads

WORTH_A_PROCESS = 20_000  # images to train on; below, starting processes takes longer than the work
_ONE_DRAWS = threading.Lock()  # the generator is the process's, and some executors run threads


class Runs:
    """The runs under `folder` (default `$MNV3NB_HOME/runs`) and, read-only and looked in first, `recorded` (`results/`)."""

    def __init__(
        self,
        folder: str | os.PathLike | None = None,
        recorded: str | os.PathLike | None = None,
        device: str | None = None,
        progress: bool = True,
    ):
        self.folder = Path(folder or default_home() / "runs")
        self.recorded = Path(recorded or default_home() / "results")
        self.device, self.progress = device, progress

    def find(self, config: RunConfig, model: bool = False) -> Run | None:
        """The finished run of `config` if it is there, whole and undamaged (and with its model, if `model`), else None."""
        for store in (self.recorded, self.folder):
            folder = store / config.key
            if not (folder / "result.json").is_file():
                continue
            try:
                run = replace(read_run(folder), config=config)  # its data may have moved
            except (ValueError, OSError) as error:
                print(f"skipping a damaged run: {error}", file=sys.stderr)
                if store == self.folder:
                    self._set_aside(folder)
                continue
            if not model or (folder / "model.safetensors").is_file():
                return run
        return None

    def run(self, config: RunConfig, model: bool = False) -> Run:
        """The run of `config`: found, or trained (its parents first) and stored. `model=True`: with its network.

        A run that was killed goes on from its last epoch. If another process works on it, this one waits and says so.
        """
        if found := self.find(config, model):
            state = found.folder / "state.safetensors"
            if found.folder.parent == self.folder and state.exists():  # of a process killed just before it would have removed it
                with contextlib.suppress(OSError):
                    state.unlink()
            return found
        lock = self._lock(config.key)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"run {config.key} ({config.label}): another process works on it; waiting", file=sys.stderr, flush=True)
            lock.acquire()
        try:
            return self.find(config, model) or self._train(config, self.folder / config.key)
        finally:
            lock.release()

    def _lock(self, key: str) -> FileLock:
        (self.folder / ".locks").mkdir(parents=True, exist_ok=True)
        return FileLock(self.folder / ".locks" / key)

    def _set_aside(self, folder: Path) -> None:
        """Renames a damaged run's folder, unless a process is at work in it (Timeout, an OSError) or nothing may be written."""
        with contextlib.suppress(OSError), self._lock(folder.name).acquire(timeout=0):
            if (folder / "result.json").is_file() and not is_whole(folder):
                move_aside(folder)

    def run_grid(self, configs: Iterable[RunConfig], executor: Executor | None = None) -> list[Run]:
        """`run` for each config, in order; parents come first, every run is trained once.

        `executor`: any `concurrent.futures.Executor` (processes, Dask, a cluster) that sees the same folders. None: here,
        one after another, or in `$MNV3NB_WORKERS` processes of one thread each, which on a CPU is faster than one
        process of many threads. A run that diverges does not stop the rest: RuntimeError at the end lists all that failed.
        """
        configs = list(configs)
        missing = self._missing(configs)
        plan = [config for config, _ in missing.values()]
        workers = count_workers(len(plan))
        with contextlib.ExitStack() as stack:
            if executor is None and workers > 1 and sum(map(self._work, plan)) > WORTH_A_PROCESS:
                executor = stack.enter_context(processes(workers))
            failed = self._work_through(missing, executor)
        if failed:
            raise RuntimeError(f"{len(failed)} run(s) failed:\n" + "\n".join(failed.values()))
        return [self.run(c) for c in configs]

    def _work_through(self, missing: dict[str, tuple[RunConfig, bool]], executor: Executor | None) -> dict[str, str]:
        waiting, running, failed = {key: config for key, (config, _) in missing.items()}, {}, {}
        start, done, work = time.perf_counter(), 0, {key: self._work(config) for key, config in waiting.items()}
        while waiting or running:
            busy = {c.key for c in running.values()} | set(waiting)
            for config in list(waiting.values()):
                parent = config.parent.key if config.parent else None
                if parent in failed:
                    failed[config.key] = f"{config.label}: its parent failed"
                    del waiting[config.key]
                elif parent not in busy and (executor or not running):
                    running[self._submit(*missing[config.key], executor)] = waiting.pop(config.key)
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                config = running.pop(future)
                done += work[config.key]
                try:
                    run = future.result()
                except FloatingPointError as error:
                    failed[config.key] = f"{config.label}: {error}"
                    continue
                if self.progress:
                    left = (time.perf_counter() - start) * (sum(work.values()) / done - 1)
                    number = len(missing) - len(waiting) - len(running)
                    text = f"{run.key} {config.label}: {run.accuracy:.2%}, {run.result['seconds']:.0f} s"
                    print(f"run {number}/{len(missing)} {text}; about {left:.0f} s left", flush=True)
        return failed

    def _submit(self, config: RunConfig, model: bool, executor: Executor | None) -> Future:
        if executor:
            return executor.submit(_run_elsewhere, self, config, model)
        future = Future()
        try:
            future.set_result(self.run(config, model))
        except FloatingPointError as error:
            future.set_exception(error)
        return future

    def plan(self, configs: Iterable[RunConfig]) -> list[RunConfig]:
        """The runs still to train for `configs`, each once, parents before children."""
        return [config for config, _ in self._missing(configs).values()]

    def _missing(self, configs: Iterable[RunConfig]) -> dict[str, tuple[RunConfig, bool]]:
        """By key: the config, and whether its network is needed, of a parent that was recorded without it, say."""
        missing: dict[str, tuple[RunConfig, bool]] = {}

        def add(config: RunConfig, model: bool = False) -> None:
            if config.key not in missing and not self.find(config, model):
                if config.parent:
                    add(config.parent, model=True)
                missing[config.key] = config, model

        for config in configs:
            add(config)
        return missing

    def expected_seconds(self, configs: Iterable[RunConfig]) -> float:
        """How long the missing runs among `configs` will take here, reckoned from a few real steps of the first of them."""
        plan = self.plan(configs)
        if not plan:
            return 0.0
        first, data = plan[0].train, _data(plan[0])
        count = min(len(data.train_images), 4 * first.batch_size)
        few = replace(data.subset(count), test_images=data.test_images[:2], test_labels=data.test_labels[:2])
        model, workers = _fresh(first, len(data.classes)), count_workers(len(plan))
        with threads(1 if workers > 1 else torch.get_num_threads()):  # as they have
            for _ in range(2):  # the first time warms up
                row = train(model, few, replace(first, epochs=1), device=self.device, progress=False)[-1]
        return sum(map(self._work, plan)) * row["seconds"] / count / (1 + 0.5 * (workers - 1))

    def record(self, config: RunConfig, model: bool = False) -> Run:
        """Copy a finished run to `recorded`, for shipping: without its network or, with `model=True`, half as large.

        Then result.json says what the stored half-precision file reaches: stored_accuracy on all test images, and
        stored_correct_1000, how many of the first 1 000.
        """
        run, place = self.run(config, model), self.recorded / config.key
        with self._lock(f"record-{config.key}"):
            if run.folder == place or ((found := self.find(config, model)) and found.folder == place):
                return read_run(place)
            self.recorded.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".", dir=self.recorded) as scratch:
                self._copy(run, Path(scratch, config.key), model)
                if place.exists():
                    os.replace(place, Path(scratch, "before")) if is_whole(place) else move_aside(place)
                os.replace(Path(scratch, config.key), place)
            return read_run(place)

    def _copy(self, run: Run, folder: Path, model: bool) -> None:
        config = run.config
        for name in FILES[:3]:
            content = (run.folder / name).read_bytes()
            with write_atomically(folder / name, len(content)) as file:
                file.write(content)
        result = {key: value for key, value in run.result.items() if key != "sha256"}
        if model:
            original, data, size = run.model(), _data(config), config.train.image_size
            save_model(original, folder / "model.safetensors", half=True, **original.metadata)
            stored = load_model(folder / "model.safetensors").to(pick_device(self.device))
            result["stored_accuracy"] = evaluate(stored, data.test_images, data.test_labels, size)
            first = evaluate(stored, data.test_images[:1000], data.test_labels[:1000], size)
            result["stored_correct_1000"] = round(first * len(data.test_images[:1000]))
        write_result(folder, result)

    def network(self, config: RunConfig, fold_bias: bool = False) -> MobileNetV3Large:
        """The network with which `config`'s training starts: random weights, or the parent's network pruned."""
        if config.parent is None:
            return _fresh(config.train, len(_data(config).classes))
        model, p = self.run(config.parent, model=True).model(), config.prune
        masks = keep_masks(self.scores(config), p.rate, p.multiple_of, p.min_width)
        small = prune(model, masks, p.squeeze, fold_bias, config.train.image_size) if p.rate or p.multiple_of > 1 else model
        return small if p.inherit else _fresh(config.train, small.num_classes, small.widths, small.squeeze)

    def scores(self, config: RunConfig) -> list[Tensor]:
        """The scores of the parent's filters by which `config` prunes, as `score` returns them."""
        batches = None
        if config.prune.criterion in NEEDS_DATA:
            data, size = _data(config), config.parent.train.image_size
            batches = [(to_input(data.train_images[i : i + 64], size), data.train_labels[i : i + 64]) for i in range(0, 512, 64)]
        found = score(self.run(config.parent, model=True).model(), config.prune.criterion, batches, seed=config.train.seed)
        return rank_within_layers(found) if config.prune.ranking == "layer" else found

    def _train(self, config: RunConfig, folder: Path) -> Run:
        device = pick_device(self.device)
        stored = folder / "state.safetensors"
        if folder.is_symlink():
            raise ValueError(f"{folder} is a link; runs are written into folders of the store only: remove it")
        ends = any((folder / name).exists() for name in FILES[2:]) and not stored.exists()
        if ends or (folder / "result.json").exists():  # its network is missing, or the result that says that all is whole
            move_aside(folder)
        write_json(folder / "config.json", {
            "format": FORMAT, "key": config.key, "data": data_checksum(config.dataset), "config": asdict(config),
        })  # fmt: skip
        model = self.network(config)
        for leftover in folder.glob(".*.part"):  # of a process killed while it wrote
            leftover.unlink()
        state, history, count, before = None, None, torch.get_num_threads(), []
        if stored.exists():
            try:
                state, metadata = read_state(stored, config, model)
                history, count, before = (metadata[key] for key in ("history", "threads", "environments"))
            except ValueError as error:
                print(error, file=sys.stderr)
                move_aside(stored)
        here = environment(device) | {"threads": count}
        before = [other for other in before if other != here]

        def save(state: dict[str, Tensor], history: list[dict]) -> None:
            write_state(stored, config, state, history, threads=count, environments=[*before, here])
            write_metrics(folder / "metrics.csv", history)

        progress = self.progress and os.environ.get("MNV3NB_HEADLESS") != "1"
        with threads(count):  # with another number the last bits would differ
            history = train(model, _data(config), config.train, device=str(device), state=state, history=history,
                            on_epoch=save, progress=progress, label=config.label)  # fmt: skip
        write_metrics(folder / "metrics.csv", history)
        save_model(model, folder / "model.safetensors", run=config.key, image_size=config.train.image_size,
                   classes=_data(config).classes, accuracy=history[-1]["test_accuracy"])  # fmt: skip
        weights = [unit.expand[0].weight.detach().cpu() for unit in model.blocks]
        gammas = {f"gamma.{i}": unit.expand[1].weight for i, unit in enumerate(model.blocks)}
        save_tensors(
            folder / "filters.safetensors", gammas | {f"sparsity.{i}": filter_sparsity(w) for i, w in enumerate(weights)}, {}
        )
        seconds = sum(row["seconds"] for row in history)
        images = (len(history) - 1) * len(_data(config).train_images)
        folded, data = None, _data(config)
        if config.prune and config.prune.inherit:
            folded = evaluate(self.network(config, fold_bias=True).to(device), data.test_images, data.test_labels,
                              config.train.image_size)  # fmt: skip
        write_result(folder, {
            "accuracy_folded": folded,
            "accuracy": history[-1]["test_accuracy"], "accuracy_before": history[0]["test_accuracy"],
            "parameters": count_parameters(model), "widths": model.widths, "squeeze": model.squeeze,
            "seconds": seconds, "images_per_second": images / seconds if seconds else None,
            "environment": here, **({"earlier_environments": before} if before else {}),
        })  # fmt: skip
        stored.unlink(missing_ok=True)
        return read_run(folder)

    def _work(self, config: RunConfig) -> int:
        """Images left to train on, one to test on counted as a third: what the time left is reckoned by."""
        data, folder, stored = _data(config), self.folder / config.key, 0
        with contextlib.suppress(OSError):
            if (folder / "state.safetensors").is_file():
                stored = (folder / "metrics.csv").read_bytes().count(b"\n") - 2  # less the names and epoch 0
        return max(1, config.train.epochs - stored) * (len(data.train_images) + len(data.test_images) // 3)


def _data(config: RunConfig) -> Dataset:
    return load_once(config.dataset).subset(config.train_images, config.holdout)


def _fresh(config: TrainConfig, num_classes: int, widths: Sequence[int] | None = None, squeeze: Sequence[int] | None = None):
    with _ONE_DRAWS, torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return MobileNetV3Large(num_classes, widths, squeeze, config.gamma_init)


def _run_elsewhere(runs: Runs, config: RunConfig, model: bool) -> Run:
    return Runs(runs.folder, runs.recorded, runs.device, progress=False).run(config, model)
