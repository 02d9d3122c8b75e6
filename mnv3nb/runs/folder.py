"""A run's folder: what is written, in which order, and what must hold before it is read again."""

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
from ..networks.checkpoint import load_model
from ..system.files import sync_folder, write_file
from ..system.tensors import load_tensors, save_tensors
from .config import FORMAT, RunConfig

FILES = ("config.json", "metrics.csv", "filters.safetensors", "model.safetensors", "result.json")
MAX_JSON = 1 << 20  # bytes of config.json or result.json; ours have a few thousand


@dataclass(frozen=True)
class Run:
    """A finished run: `folder` holds FILES; a recorded one may come without its model.

    `result`: accuracy (last epoch, test), accuracy_before (before the first step), accuracy_folded (before the first
    step, with the constants of removed channels folded in), parameters, widths, squeeze, seconds, images_per_second,
    environment.
    """

    config: RunConfig
    folder: Path
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
        with open(self.folder / "metrics.csv", newline="") as file:
            return [{k: float(v) if v else None for k, v in row.items()} for row in csv.DictReader(file)]

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
        return [g.abs() * s for g, s in zip(self.gamma, self.sparsity)]

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
    """What an interrupted run resumes from: `tensors` and `history` of `train`, and how they were computed."""

    tensors: dict[str, Tensor] | None = None
    history: list[dict] = field(default_factory=list)
    threads: int = field(default_factory=torch.get_num_threads)
    environments: list[dict] = field(default_factory=list)


def read_run(folder: Path, model: bool = False) -> Run:
    """The finished run in `folder`, undamaged; its network is verified only if `model`.

    Raises ValueError or FileNotFoundError if a file is damaged, missing or belongs to another config.
    """
    try:
        stored, result = (_read_json(folder / name) for name in ("config.json", "result.json"))
        config, data, checksum = RunConfig.from_dict(stored["config"]), stored["data"], result.pop("checksum")
        key, known = config.name(data), CHECKSUMS.get(config.dataset, data) == data
        digests = {folder / name: result["sha256"][name] for name in ("config.json", "metrics.csv")}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{folder}: config.json or result.json cannot be read ({error})") from error
    if stored.get("format") != FORMAT or folder.name != key or not known:
        raise ValueError(f"{folder}: its config is named {key} (format {FORMAT}): another version wrote or edited it")
    if checksum != _json_digest(result):
        raise ValueError(f"{folder / 'result.json'}: its checksum does not match; delete or restore {folder}")
    for path, digest in digests.items():
        if not path.is_file() or _file_digest(path) != digest:
            raise ValueError(f"{path} is missing or its checksum does not match; delete or restore {folder}")
    for name in ("filters.safetensors", "model.safetensors") if model else ("filters.safetensors",):
        load_tensors(folder / name)
    return Run(config, folder, result)


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


def lock_run(store: Path, name: str) -> FileLock:
    """The lock of run `name` in `store`, not acquired yet."""
    (store / ".locks").mkdir(parents=True, exist_ok=True)
    return FileLock(store / ".locks" / name)


def move_aside(path: Path) -> None:
    """Renames a damaged file or folder and reports it: nothing is deleted."""
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    os.replace(path, aside)
    sync_folder(path.parent)
    print(f"moved aside: {aside}; the run starts anew", file=sys.stderr)


def open_folder(folder: Path, config: RunConfig) -> None:
    """Makes `folder` ready for a training of `config`; a run that is damaged or lacks a file is moved aside.

    Raises ValueError for a folder that is a link.
    """
    if folder.is_symlink():
        raise ValueError(f"{folder} is a link; runs are written into folders of the store only: remove it")
    ended = any((folder / name).exists() for name in FILES[2:]) and not (folder / "state.safetensors").exists()
    if ended or (folder / "result.json").exists():
        move_aside(folder)
    for leftover in folder.glob(".*.part"):  # of a process killed while it wrote
        leftover.unlink()
    named = {"format": FORMAT, "key": config.key, "data": data_checksum(config.dataset), "config": asdict(config)}
    _write_json(folder / "config.json", named)


def write_state(folder: Path, config: RunConfig, state: State) -> None:
    """Stores what the run of `config` resumes from, and its metrics so far."""
    how = {"threads": state.threads, "environments": state.environments}
    save_tensors(folder / "state.safetensors", state.tensors, how | {"key": config.key, "history": state.history})
    write_metrics(folder, state.history)


def read_state(folder: Path, config: RunConfig, model: nn.Module) -> State:
    """What `write_state` stored; if that is damaged or of another network than `model`, it is moved aside."""
    path = folder / "state.safetensors"
    if not path.exists():
        return State()
    try:
        tensors, metadata = load_tensors(path)
        shapes = {name[6:]: value.shape for name, value in tensors.items() if name.startswith("model.")}
        expected = {name: value.shape for name, value in model.state_dict().items()}
        if metadata.get("key") != config.key or shapes != expected or not 1 <= metadata["threads"] <= 4096:
            raise ValueError(f"{path} is the state of another run or another network")
        return State(tensors, metadata["history"], metadata["threads"], metadata["environments"])
    except (ValueError, OSError) as error:
        print(error, file=sys.stderr)
        move_aside(path)
        return State()


def write_metrics(folder: Path, history: list[dict]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    write_file(folder / "metrics.csv", text.getvalue())


def write_filters(folder: Path, model: nn.Module) -> None:
    """γ and S of every expansion: what figures are drawn from, without the network."""
    tensors = {}
    for i, block in enumerate(blocks(model)):
        tensors[f"gamma.{i}"] = block.expand_bn.weight
        tensors[f"sparsity.{i}"] = filter_sparsity(block.expand.weight.detach().cpu())
    save_tensors(folder / "filters.safetensors", tensors, {})


def write_result(folder: Path, result: dict) -> None:
    """result.json, the last file of a run: its presence shows that the others are whole."""
    result = result | {"sha256": {name: _file_digest(folder / name) for name in ("config.json", "metrics.csv")}}
    _write_json(folder / "result.json", result | {"checksum": _json_digest(result)})


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
