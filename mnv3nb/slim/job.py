"""What a job of `slim` is asked to do, and the folder that it works in."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ..data.batches import Dataset
from ..data.datasets import content_checksum
from ..importance import CRITERIA, NEEDS_DATA
from ..pruning import check_pruning
from ..system.files import lookup, write_file
from ..training import TrainConfig


@dataclass(frozen=True)
class Job:
    """What `slim` is asked to do; the options of `python -m mnv3nb slim` have the same names and defaults.

    At most one of the four targets (rate, max_drop, latency, parameters) may be given; without one, the rate is 0.5.
    Raises ValueError for a value that is not allowed.
    """

    network: str  # a name that `build_network` knows, such as torchvision/mobilenet_v3_large
    data: str  # what `load_dataset` reads: a folder of class folders, an .npz file, digits or cifar10
    out: str  # folder for the results
    weights: str | None = None  # .pth file with a state dict, "DEFAULT" (the library's pretrained ones), None: random
    criterion: str | None = None  # prunes the given weights as they are; None: sparse training first

    # the target: at most one of these four
    rate: float | None = None  # share of the filters to remove, in [0, 1)
    max_drop: float | None = None  # percentage points of accuracy on held-out training images that may be lost
    latency: float | None = None  # latency to reach, as a share of the dense network's
    parameters: float | None = None  # number of parameters to reach

    multiple_of: int = 1  # round widths to multiples of this; 16 suits most CPUs
    epochs: int = 10  # of sparse training, and as many of fine-tuning
    image_size: int | None = None  # side of the network's input in pixels; None: the stored images', at least 32
    batch_size: int = 32  # images per training step
    lr: float = 1e-3  # learning rate of Adam, annealed to 0
    lam: float | None = None  # λ of the sparsity penalty; None: 0.5 / steps, because its effect adds up over the steps
    augment: str = "crop_flip"  # augmentation: "none", "crop" or "crop_flip"
    seed: int = 0  # of the images' order, the augmentation and new layers

    def __post_init__(self):
        targets = self._targets()
        if len(targets) > 1:
            given = " and ".join(targets)
            raise ValueError(f"give one of the targets rate, max_drop, latency, parameters; got {given}")
        for name, value in targets.items():
            if name != "rate" and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value!r}")
        check_pruning(0 if self.rate is None else self.rate, self.multiple_of)
        self.train_config(
            image_size=32 if self.image_size is None else self.image_size,
            lam=0.0 if self.lam is None else self.lam,
        )
        if self.criterion is not None:
            usable = {name: None for name in CRITERIA if name not in NEEDS_DATA}
            lookup(usable, self.criterion, "criterion")
            if self.weights in (None, "DEFAULT"):
                raise ValueError("a criterion prunes trained weights: give weights for these classes, or no criterion")

    @property
    def target(self) -> tuple[str, float]:
        """The target's name and its value: ("rate", 0.5) if none is given."""
        targets = self._targets()
        if not targets:
            return "rate", 0.5
        (target,) = targets.items()
        return target

    def _targets(self) -> dict[str, float]:
        """The targets that are given, by name."""
        targets = {
            "rate": self.rate,
            "max_drop": self.max_drop,
            "latency": self.latency,
            "parameters": self.parameters,
        }
        return {name: value for name, value in targets.items() if value is not None}

    def train_config(self, image_size: int, lam: float = 0.0) -> TrainConfig:
        """Sparse training at λ = `lam`; fine-tuning at λ = 0."""
        return TrainConfig(
            epochs=self.epochs,
            batch_size=self.batch_size,
            image_size=image_size,
            lr=self.lr,
            lam=lam,
            augment=self.augment,
            seed=self.seed,
        )

    def stage_file(self, name: str) -> Path:
        """Where a stage leaves file `name`. What is there is not computed again."""
        return Path(self.out, "stages", name)

    def claim_folder(self, data: Dataset) -> None:
        """Make `out` this job's folder. Raises ValueError if it holds stages of another job or of other images."""
        mine = asdict(self)
        mine["data"] = content_checksum(
            data
        )  # images are known by their content and weights by theirs: paths may change
        mine["out"] = None
        if self.weights not in (None, "DEFAULT"):
            mine["weights"] = hashlib.sha256(Path(self.weights).read_bytes()).hexdigest()

        path = self.stage_file("job.json")
        stored = json.loads(path.read_text()) if path.is_file() else mine
        different = [name for name in mine if stored.get(name) != mine[name]]
        if different:
            raise ValueError(
                f"{self.out} holds a job with another {', '.join(different)}: "
                f"give another folder, or remove {path.parent} to start anew"
            )
        write_file(path, json.dumps(mine, indent=1))
