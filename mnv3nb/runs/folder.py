"""One run's folder on disk: what is written, in which order, and what must hold before it is believed."""

import contextlib
import csv
import hashlib
import io
import json
import os
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor, nn

from ..blocks import blocks
from ..data.datasets import CHECKSUMS, data_checksum
from ..importance import filter_sparsity
from ..networks.checkpoint import load_model, save_model
from ..system.files import sync_folder, write_file
from ..system.tensors import load_tensors, save_tensors
from .config import FORMAT, RunConfig

# a finished run, in the order in which it is written; state.safetensors is there as long as a run is unfinished
FILES = ("config.json", "metrics.csv", "filters.safetensors", "model.safetensors", "result.json")
DIGESTED = ("config.json", "metrics.csv")  # have no checksum of their own: result.json holds it
MAX_JSON = 1 << 20  # bytes of config.json or result.json; ours have a few thousand
MAX_THREADS = 4096  # that a stored state may ask for
MALFORMED = (ValueError, KeyError, TypeError, AttributeError, RecursionError)  # what reading any JSON as ours may raise


@dataclass(frozen=True)
class Run:
    """A finished run."""

    config: RunConfig
    folder: Path  # holds FILES; a recorded run may come without its model
    # accuracy (after the last epoch, on the test images or those held out), accuracy_before (before the first step),
    # accuracy_folded (the same with the constants of removed channels folded in), parameters, widths, squeeze, seconds,
    # images_per_second, environment; earlier_environments of a run resumed elsewhere; stored_accuracy and
    # stored_correct_1000 of one recorded with its network
    result: dict

    @property
    def key(self) -> str:
        return self.config.key

    @property
    def accuracy(self) -> float:
        """Test accuracy after the last epoch, in [0, 1]."""
        return self.result["accuracy"]

    @property
    def history(self) -> list[dict]:
        """One dict per epoch, as `train` returns."""
        rows = []
        with open(self.folder / "metrics.csv", newline="") as file:
            for row in csv.DictReader(file):
                rows.append({name: float(text) if text else None for name, text in row.items()})
        return rows

    @property
    def gamma(self) -> list[Tensor]:
        """γ of each expansion after the last epoch, (width,)."""
        return self._filters("gamma")

    @property
    def sparsity(self) -> list[Tensor]:
        """S of each expansion's filters after the last epoch, (width,)."""
        return self._filters("sparsity")

    @property
    def importance(self) -> list[Tensor]:
        """m = |γ|·S (Eq. 5) of each expansion's filters, (width,)."""
        return [gamma.abs() * sparsity for gamma, sparsity in zip(self.gamma, self.sparsity)]

    def model(self) -> nn.Module:
        """The trained network; raises FileNotFoundError if a recorded run came without it."""
        path = self.folder / "model.safetensors"
        if not path.is_file():
            name = f"run {self.key} ({self.config.label})"
            raise FileNotFoundError(f"{name} is recorded without its model; Runs.run(config, model=True) trains it")
        return load_model(path)

    def _filters(self, name: str) -> list[Tensor]:
        tensors, _ = load_tensors(self.folder / "filters.safetensors")
        return [tensors[f"{name}.{i}"] for i in range(len(self.result["widths"]))]


@dataclass
class State:
    """What an interrupted run resumes from. The defaults are the state of a new run."""

    tensors: dict[str, Tensor] | None = None  # of the network and the optimizer, as `train` passes them to on_epoch
    history: list[dict] = field(default_factory=list)  # one dict per completed epoch, as `train` returns
    threads: int = field(default_factory=torch.get_num_threads)  # another number would change the last bits
    environments: list[dict] = field(default_factory=list)  # where it was computed so far, in order


class RunFolder:
    """The folder of one run, named by the run's key. Every file in it appears whole or not at all.

    A training calls `begin`, `save_epoch` after each epoch, and `finish`, while it holds the run's lock (`lock_run`).
    Killed in between, it begins again, and `begin` returns the state after the last completed epoch. result.json is
    written last, so its presence shows that the other files are whole.
    """

    def __init__(self, path: Path):
        self.path = path

    def claims_to_be_finished(self, model: bool = False) -> bool:
        """Whether there is something for `read` to read; if `model`, with its network."""
        if model and not (self.path / "model.safetensors").is_file():
            return False
        return (self.path / "result.json").is_file()

    def read(self, model: bool = False) -> Run:
        """The finished run, undamaged; its network is verified only if `model`.

        Raises ValueError or FileNotFoundError if a file is damaged, missing or belongs to another config.
        """
        config = self._read_config()
        result = self._read_result()
        load_tensors(self.path / "filters.safetensors")  # raises unless the file is whole
        if model:
            load_tensors(self.path / "model.safetensors")
        return Run(config, self.path, result)

    def begin(self, config: RunConfig, model: nn.Module) -> State:
        """Prepares the folder for a training of `config` that starts with `model`; returns what it resumes from.

        A damaged state is moved aside, and so is a finished run that is damaged or lacks a file: then the run starts
        anew. Raises ValueError for a folder that is a link.
        """
        self._prepare(config)
        return self._read_state(model)

    def save_epoch(self, state: State) -> None:
        """Stores what the run resumes from, and its metrics so far."""
        metadata = {
            "threads": state.threads,
            "environments": state.environments,
            "key": self.path.name,
            "history": state.history,
        }
        save_tensors(self.path / "state.safetensors", state.tensors, metadata)
        self._write_metrics(state.history)

    def finish(self, model: nn.Module, history: list[dict], result: dict, **about) -> Run:
        """Stores the trained `model` with the metadata `about`, its `history` and its `result`; returns the finished run."""
        self._write_metrics(history)
        self._write_filters(model)
        save_model(model, self.path / "model.safetensors", run=self.path.name, **about)
        self.write_result(result)
        self.discard_state()
        return self.read()

    def write_result(self, result: dict) -> None:
        """Writes result.json, with checksums of the files that have none of their own, and of itself."""
        digests = {name: _file_digest(self.path / name) for name in DIGESTED}
        result = {**result, "sha256": digests}
        _write_json(self.path / "result.json", {**result, "checksum": _json_digest(result)})

    def discard_state(self) -> None:
        """Removes what the run would resume from: a finished run no longer needs it."""
        (self.path / "state.safetensors").unlink(missing_ok=True)

    def epochs_stored(self) -> int:
        """How many epochs an interrupted run has completed, without reading its large state."""
        if not (self.path / "state.safetensors").is_file():
            return 0
        with contextlib.suppress(OSError):
            lines = (self.path / "metrics.csv").read_bytes().count(b"\n")
            return max(0, lines - 2)  # less the header and epoch 0
        return 0

    def pack(self) -> dict[str, bytes]:
        """The files of a finished run by name, to be sent to another machine."""
        return {name: (self.path / name).read_bytes() for name in FILES}

    def unpack(self, files: dict[str, bytes]) -> None:
        """Writes the files of a finished run, as `pack` returned them: result.json last."""
        for name in FILES:
            write_file(self.path / name, files[name])

    def keep(self, config: RunConfig, files: dict[str, bytes]) -> Run:
        """Stores a run that was trained elsewhere, in place of an unfinished or damaged one; raises as `read` does."""
        self._prepare(config)
        self.unpack(files)
        self.discard_state()
        return self.read(model=True)

    def _prepare(self, config: RunConfig) -> None:
        if self.path.is_symlink():
            raise ValueError(f"{self.path} is a link; runs are written into folders of the store only: remove it")
        interrupted = (self.path / "state.safetensors").exists()
        later_files = any((self.path / name).exists() for name in FILES[2:])  # written after the last epoch
        if (self.path / "result.json").exists() or (later_files and not interrupted):
            move_aside(self.path)
        for leftover in self.path.glob(".*.part"):  # of a process killed while it wrote
            leftover.unlink()
        named = {
            "format": FORMAT,
            "key": config.key,
            "data": data_checksum(config.dataset),
            "config": asdict(config),
        }
        _write_json(self.path / "config.json", named)

    def _read_state(self, model: nn.Module) -> State:
        path = self.path / "state.safetensors"
        if not path.exists():
            return State()
        try:
            tensors, metadata = load_tensors(path)
            shapes = {
                name.removeprefix("model."): value.shape for name, value in tensors.items() if name.startswith("model.")
            }
            expected = {name: value.shape for name, value in model.state_dict().items()}
            belongs_here = metadata.get("key") == self.path.name and shapes == expected
            if not belongs_here or not 1 <= metadata["threads"] <= MAX_THREADS:
                raise ValueError(f"{path} is the state of another run or another network")
            return State(tensors, metadata["history"], metadata["threads"], metadata["environments"])
        except (*MALFORMED, OSError) as error:
            print(f"{path} cannot be resumed from ({error})", file=sys.stderr)
            move_aside(path)
            return State()

    def _write_metrics(self, history: list[dict]) -> None:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(history)
        write_file(self.path / "metrics.csv", text.getvalue())

    def _write_filters(self, model: nn.Module) -> None:
        """γ and S of every expansion: figures are drawn from them, without the network."""
        tensors = {}
        for i, block in enumerate(blocks(model)):
            tensors[f"gamma.{i}"] = block.expand_bn.weight
            tensors[f"sparsity.{i}"] = filter_sparsity(block.expand.weight.detach().cpu())
        save_tensors(self.path / "filters.safetensors", tensors, {})

    def _read_config(self) -> RunConfig:
        path = self.path / "config.json"
        try:
            stored = _read_json(path)
            config = RunConfig.from_dict(stored["config"])
            data = stored["data"]
            key = config.name(data)
            known_data = CHECKSUMS.get(config.dataset, data)
            written_format = stored.get("format")
        except MALFORMED as error:
            raise ValueError(f"{path} cannot be read ({error})") from error
        if written_format != FORMAT or key != self.path.name or data != known_data:
            name = f"its config is named {key} (format {FORMAT})"
            raise ValueError(f"{self.path}: {name}; it was renamed, edited, or written by another version")
        return config

    def _read_result(self) -> dict:
        """result.json, if it and the files whose checksums it holds are whole."""
        path = self.path / "result.json"
        try:
            result = _read_json(path)
            checksum = result.pop("checksum")
            digests = {name: result["sha256"][name] for name in DIGESTED}
        except MALFORMED as error:
            raise ValueError(f"{path} cannot be read ({error})") from error
        if checksum != _json_digest(result):
            raise ValueError(f"{path}: its checksum does not match; delete or restore {self.path}")
        for name, digest in digests.items():
            path = self.path / name
            if not path.is_file() or _file_digest(path) != digest:
                raise ValueError(f"{path} is missing or its checksum does not match; delete or restore {self.path}")
        return result


def lock_run(store: Path, name: str) -> FileLock:
    """The lock of run `name` in the folder `store`, not acquired yet."""
    (store / ".locks").mkdir(parents=True, exist_ok=True)
    return FileLock(store / ".locks" / name)


def move_aside(path: Path) -> None:
    """Renames a damaged file or folder and reports it: nothing is deleted."""
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    os.replace(path, aside)
    sync_folder(path.parent)
    print(f"moved aside: {aside}; the run starts anew", file=sys.stderr)


def other_formats(store: Path) -> list[str]:
    """Names of the run folders in `store` that another version wrote in another format: no config names them."""
    found = []
    for path in sorted(store.glob("*/config.json")):
        try:
            if _read_json(path)["format"] != FORMAT:
                found.append(path.parent.name)
        except (ValueError, KeyError, TypeError, RecursionError):  # no run of any format
            continue
    return found


def _read_json(path: Path) -> dict:
    if not path.is_file() or path.stat().st_size > MAX_JSON:
        raise ValueError(f"{path} is no file of at most {MAX_JSON} bytes")
    return json.loads(path.read_text())


def _write_json(path: Path, value: dict) -> None:
    write_file(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def _json_digest(value: dict) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
