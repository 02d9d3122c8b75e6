"""A run's folder: what is written, in which order, and what must be true before it is believed again."""

import csv
import hashlib
import io
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import torch
import torchvision
from torch import Tensor
from torch.backends.cpu import get_cpu_capability

from .checkpoint import load_model, load_tensors, save_tensors, sync_folder, write_atomically
from .config import FORMAT, RunConfig
from .data import CHECKSUMS
from .model import MobileNetV3Large

FILES = ("config.json", "metrics.csv", "filters.safetensors", "model.safetensors")
MAX_JSON = 1 << 20  # bytes of config.json or result.json; ours have a few thousand


@dataclass(frozen=True)
class Run:
    """A finished run: `folder` with config.json, metrics.csv, filters.safetensors, model.safetensors and result.json.

    `result`: accuracy (last epoch, test), accuracy_before (before the first step), parameters, widths, squeeze, seconds,
    images_per_second, environment. A recorded run may come without its model.
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
        """One dict an epoch, as `train` returns."""
        with open(self.folder / "metrics.csv", newline="") as file:
            return [{k: float(v) if v else None for k, v in row.items()} for row in csv.DictReader(file)]

    @property
    def gamma(self) -> list[Tensor]:
        """γ of the 15 expansions after the last epoch, each (width,)."""
        return self._filters("gamma")

    @property
    def sparsity(self) -> list[Tensor]:
        """S of the 15 expansions' filters after the last epoch, each (width,)."""
        return self._filters("sparsity")

    @property
    def importance(self) -> list[Tensor]:
        """m = |γ|·S (Eq. 5), each (width,)."""
        return [g.abs() * s for g, s in zip(self.gamma, self.sparsity)]

    def model(self) -> MobileNetV3Large:
        """The trained network; raises FileNotFoundError, saying how to make it, if a recorded run came without it."""
        path = self.folder / "model.safetensors"
        if not path.is_file():
            raise FileNotFoundError(
                f"run {self.key} ({self.config.label}) is recorded without its model; Runs.run(config, model=True) trains it"
            )
        return load_model(path)

    def _filters(self, name: str) -> list[Tensor]:
        tensors, _ = load_tensors(self.folder / "filters.safetensors")
        return [tensors[f"{name}.{i}"] for i in range(len(self.result["widths"]))]


def read_run(folder: Path) -> Run:
    """The finished run in `folder`; raises ValueError if a file is damaged, missing or belongs to another config."""
    try:
        stored, result = (_read_json(folder / name) for name in ("config.json", "result.json"))
        config = RunConfig.from_dict(stored["config"])
        key, digests, checksum = config.name(stored["data"]), dict(result["sha256"]), result.pop("checksum")
        known = CHECKSUMS.get(config.dataset, stored["data"]) == stored["data"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        raise ValueError(f"{folder}: config.json or result.json cannot be read ({error})") from error
    if stored.get("format") != FORMAT or folder.name != key or not known:
        raise ValueError(f"{folder}: its config is named {key} (format {FORMAT}), so it is from another version or was edited")
    if checksum != _json_digest(result):
        raise ValueError(f"{folder / 'result.json'}: its checksum does not match; delete or restore {folder}")
    for name in FILES:
        path, digest = folder / name, digests.get(name)
        if name == "model.safetensors" and not path.exists():
            continue
        if not path.is_file() or _file_digest(path) != digest:
            raise ValueError(f"{path} is missing or its checksum does not match; delete or restore {folder}")
    return Run(config, folder, result)


def is_whole(folder: Path) -> bool:
    """Whether `folder` holds a finished, undamaged run."""
    try:
        return bool(read_run(folder))
    except (ValueError, OSError):
        return False


def move_aside(path: Path) -> None:
    """Renames a damaged file or folder and says so: nothing is deleted."""
    aside = path.with_name(f"{path.name}.damaged-{time.time_ns()}")
    os.replace(path, aside)
    sync_folder(path.parent)
    print(f"moved aside: {aside}; the run starts anew", file=sys.stderr)


def _read_json(path: Path) -> dict:
    if not path.is_file() or path.stat().st_size > MAX_JSON:
        raise ValueError(f"{path} is no file of at most {MAX_JSON} bytes")
    return json.loads(path.read_text())


def write_state(path: Path, config: RunConfig, state: dict[str, Tensor], history: list[dict], **metadata) -> None:
    """What a run of `config` goes on from; `metadata`: threads and environments."""
    save_tensors(path, state, metadata | {"key": config.key, "history": history})


def read_state(path: Path, config: RunConfig, model: MobileNetV3Large) -> tuple[dict[str, Tensor], dict]:
    """What `write_state` wrote; raises ValueError unless it is whole and of this run and this network."""
    try:
        state, metadata = load_tensors(path)
        history, threads = metadata["history"], metadata["threads"]
        numbers = isinstance(threads, int) and all(v is None or isinstance(v, int | float) for r in history for v in r.values())
        epochs = [row["epoch"] for row in history] == list(range(len(history))) and 2 <= len(history) <= config.train.epochs + 1
        ours = metadata["key"] == config.key and isinstance(metadata["environments"], list)
        shapes = {f"model.{name}": value.shape for name, value in model.state_dict().items()}
        for name, p in model.named_parameters():
            shapes |= {f"optimizer.{name}.{key}": p.shape if key != "step" else () for key in ("step", "exp_avg", "exp_avg_sq")}
        if not (ours and numbers and epochs and threads in range(1, 4097) and shapes == {k: v.shape for k, v in state.items()}):
            raise ValueError(f"{path} is the state of another run or another network")
        return state, metadata
    except (KeyError, TypeError, AttributeError, OSError) as error:
        raise ValueError(f"{path} is not the state of a training ({error})") from error


def write_metrics(path: Path, history: list[dict]) -> None:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    _write(path, text.getvalue())


def write_json(path: Path, value: dict) -> None:
    _write(path, json.dumps(value, indent=1, sort_keys=True) + "\n")


def _write(path: Path, text: str) -> None:
    payload = text.encode()
    with write_atomically(path, len(payload)) as file:
        file.write(payload)


def write_result(folder: Path, result: dict) -> None:
    """result.json, the last file of a run: its presence says that the others are whole, its checksums that they stay so."""
    result = result | {"sha256": {name: _file_digest(folder / name) for name in FILES if (folder / name).exists()}}
    write_json(folder / "result.json", result | {"checksum": _json_digest(result)})


def environment(device: torch.device) -> dict:
    """Hardware (of a CPU with the instructions that torch uses: they decide the last bits), versions, commit and date."""
    root = Path(__file__).resolve().parent.parent
    try:
        command = ["git", f"--git-dir={root / '.git'}", f"--work-tree={root}", "describe", "--always", "--dirty"]
        commit = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        commit = None
    hardware = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{_cpu_name()} {get_cpu_capability()}"
    return {
        "hardware": hardware, "threads": torch.get_num_threads(), "python": platform.python_version(),
        "torch": torch.__version__, "torchvision": torchvision.__version__, "commit": commit,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
    }  # fmt: skip


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _json_digest(value: dict) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _file_digest(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
