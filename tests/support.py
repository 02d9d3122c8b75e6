"""What several test files share: networks with a past, random masks, and work done in other processes."""

import multiprocessing
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st

from mnv3nb import DENSE_WIDTHS, Dataset, MobileNetV3Large, TrainConfig, reestimate_batchnorm
from mnv3nb.blocks import batch_norms
from mnv3nb.data.batches import SPLITS
from mnv3nb.runs.config import PruneConfig, RunConfig
from mnv3nb.runs.find_or_train import Runs

ROOT = Path(__file__).resolve().parent.parent
# processes that start in milliseconds, forked from a server which has torch loaded and has trained nothing
FORK = multiprocessing.get_context("forkserver" if sys.platform != "win32" else "spawn")
if sys.platform != "win32":
    FORK.set_forkserver_preload(["mnv3nb.runs.grid"])
# 3 steps per epoch on 8×8 images: a real training that takes a third of a second per epoch
TINY = TrainConfig(epochs=2, batch_size=16, image_size=8, lr=3e-3, lam=1e-3, gamma_init=0.5)


def write_npz(path: Path, data: Dataset) -> None:
    """`data`, grey, with MedMNIST's names."""
    arrays = {key: getattr(data, key).numpy() for key in SPLITS}
    np.savez(path, classes=np.array(data.classes), **{k: a[:, 0] if a.ndim == 4 else a for k, a in arrays.items()})


def fresh(seed: int = 0, **arguments) -> MobileNetV3Large:
    """The network with which a run of `seed` starts."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MobileNetV3Large(gamma_init=0.5, **arguments)


def lively(seed: int = 0, **arguments) -> MobileNetV3Large:
    """A network in eval mode as after a training: no parameter at its starting value, BatchNorms with statistics."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = MobileNetV3Large(**arguments)
        for bn in batch_norms(model):
            bn.weight.normal_()
            bn.bias.normal_(std=0.3)
        for name, parameter in model.named_parameters():
            if name.endswith("bias") and ("se." in name or "classifier" in name):
                parameter.normal_(std=0.3)
        reestimate_batchnorm(model, torch.randint(256, (16, 3, 32, 32), dtype=torch.uint8), 32)
    return model


# what `random_masks` takes: a seed and, for each block, the share of filters that stay
cuts = st.tuples(st.integers(0, 2**31), st.lists(st.sampled_from((0.0, 0.1, 0.5, 0.9, 1.0)), min_size=15, max_size=15))


def random_masks(cut: tuple[int, list[float]], widths: tuple[int, ...] = DENSE_WIDTHS) -> list[torch.Tensor]:
    """Random keep masks, one per block, from a single filter left to all of them."""
    generator = torch.Generator().manual_seed(cut[0])
    masks = [torch.rand(width, generator=generator) < share for width, share in zip(widths, cut[1])]
    for mask in masks:
        mask[int(torch.randint(len(mask), (), generator=generator))] = True
    return masks


def same_tensors(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    """Whether two state dicts are equal bit for bit."""
    return one.keys() == two.keys() and all(
        a.dtype == two[k].dtype and a.shape == two[k].shape and a.numpy().tobytes() == two[k].numpy().tobytes()
        for k, a in one.items()
    )


def timeless(history: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


def tree(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Content and time of change of every file below `folder`, without locks."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and ".locks" not in path.parts)
    return {str(path.relative_to(folder)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def child_of(parent: RunConfig, **changes) -> RunConfig:
    """The run that prunes `parent`'s network, `changes` being fields of PruneConfig, and trains as `parent` did."""
    return replace(parent, parent=parent, prune=PruneConfig(**changes))


def train_run(folder: Path, config: RunConfig, errors: Path) -> None:
    """What such a process does: one run; its stderr is kept in `errors`."""
    torch.set_num_threads(1)
    with open(errors, "a", buffering=1) as sys.stderr:
        Runs(folder, folder / "none").run(config)
