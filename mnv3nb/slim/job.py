"""What a job of `slim` is asked to do, and the files that its stages leave."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ..data.batches import Dataset
from ..data.datasets import content_checksum
from ..importance import CRITERIA, NEEDS_DATA
from ..pruning import check_pruning
from ..system.files import lookup, write_file
from ..training import TrainConfig

TARGETS = ("rate", "max_drop", "latency", "parameters")


def _option(help: str, default=None):
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Job:
    """One call of `slim`; the command's options have the same names and defaults. Raises ValueError for a wrong value."""

    network: str = _option("such as torchvision/mobilenet_v3_large", "")
    data: str = _option("a folder of class folders, an .npz, digits or cifar10", "")
    out: str = _option("the folder for the results", "")
    weights: str | None = _option("a .pth file with a state dict, DEFAULT (pretrained), or nothing: random")
    criterion: str | None = _option("prune the given weights by this, without sparse training before")
    rate: float | None = _option("share of filters removed, in [0, 1); 0.5 if there is no other target")
    max_drop: float | None = _option("points of accuracy on held-out training images that may be lost")
    latency: float | None = _option("share of the dense network's latency to reach")
    parameters: float | None = _option("parameters to reach, such as 2.3e6")
    multiple_of: int = _option("widths that fast kernels take; 16 is a good choice", 1)
    epochs: int = _option("of sparse training, and again of fine-tuning", 10)
    image_size: int | None = _option("pixels; default: of the stored images, at least 32")
    batch_size: int = _option("images per step", 32)
    lr: float = _option("learning rate of Adam, annealed to 0", 1e-3)
    lam: float | None = _option("λ of the sparsity penalty; default: 0.5 / steps")
    augment: str = _option("none, crop or crop_flip", "crop_flip")
    seed: int = _option("of order, augmentation and new layers", 0)

    def __post_init__(self):
        targets = [name for name in TARGETS if getattr(self, name) is not None]
        if len(targets) > 1:
            raise ValueError(f"give one of the targets {', '.join(TARGETS)}; got {' and '.join(targets)}")
        if targets and targets != ["rate"] and not getattr(self, targets[0]) > 0:
            raise ValueError(f"{targets[0]} must be above 0, got {getattr(self, targets[0])!r}")
        check_pruning(self.rate or 0, self.multiple_of)
        self.training(32)
        if self.criterion is not None:
            lookup({name: None for name in CRITERIA if name not in NEEDS_DATA}, self.criterion, "criterion")
            if self.weights in (None, "DEFAULT"):
                raise ValueError("a criterion prunes trained weights: give weights for these classes, or no criterion")

    @property
    def target(self) -> str:
        return next((name for name in TARGETS if getattr(self, name) is not None), "rate")

    def training(self, image_size: int, lam: float = 0.0) -> TrainConfig:
        """Sparse training at λ = `lam`, or fine-tuning at 0."""
        how = {name: getattr(self, name) for name in ("epochs", "batch_size", "lr", "augment", "seed")}
        return TrainConfig(image_size=image_size, lam=lam, **how)

    def stage(self, name: str) -> Path:
        """The file that a stage leaves; what is there is not computed again."""
        return Path(self.out, "stages", name)

    def claim_folder(self, data: Dataset) -> None:
        """Makes `out` this job's folder; raises ValueError if stages of another job or of other images are in it."""
        mine, path = asdict(self) | {"data": content_checksum(data), "out": None}, self.stage("job.json")
        if self.weights not in (None, "DEFAULT"):
            mine["weights"] = hashlib.sha256(Path(self.weights).read_bytes()).hexdigest()
        theirs = json.loads(path.read_text()) if path.is_file() else mine
        if other := [name for name in mine if theirs.get(name) != mine[name]]:
            text = f"{self.out} holds a job with another {', '.join(other)}"
            raise ValueError(f"{text}: give another folder, or remove {path.parent} to start anew")
        write_file(path, json.dumps(mine, indent=1))
