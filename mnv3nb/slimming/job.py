"""What a job of `slim` is asked to do, and the names of what it leaves."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from .._files import lookup, write_atomically
from ..data import Dataset
from ..datasets import content_checksum
from ..importance import CRITERIA
from ..pruning import check_pruning
from ..training import TrainConfig

TARGETS = ("rate", "max_drop", "latency", "parameters")


def _option(help: str, default=None):
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True)
class Job:
    """One call of `slim`; the command's options have the same names and defaults.

    At most one of `rate`, `max_drop`, `latency` and `parameters` says how much is removed; none of them: rate 0.5.
    Raises ValueError for a value that is not allowed.
    """

    network: str = _option("such as torchvision/mobilenet_v3_large", "")
    data: str = _option("a folder of class folders, an .npz, digits or cifar10", "")
    out: str = _option("the folder for the results", "")
    weights: str | None = _option("a .pth file with a state dict, DEFAULT (pretrained), or nothing: random")
    criterion: str | None = _option("prune the given weights by this, without sparse training before")
    rate: float | None = _option("share of filters removed, in [0, 1)")
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
    mean: tuple[float, ...] | None = _option(
        "of red, green and blue in [0, 1] that the weights expect; default: the library's"
    )
    std: tuple[float, ...] | None = _option("deviation beside --mean")
    seed: int = _option("of order, augmentation and new layers", 0)

    def __post_init__(self):
        for name in ("network", "data", "out"):
            if not getattr(self, name):
                raise ValueError(f"slim needs {name}: {Job.__dataclass_fields__[name].metadata['help']}")
        given = [name for name in TARGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"give one target of {', '.join(TARGETS)}; got {' and '.join(given)}")
        for name in TARGETS[1:]:
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ValueError(f"{name} must be above 0, got {value!r}")
        check_pruning(self.rate or 0, self.multiple_of)
        self.training()
        if self.criterion is not None:
            lookup(CRITERIA, self.criterion, "criterion")
            if self.weights in (None, "DEFAULT"):
                text = (
                    "with --criterion nothing is trained before pruning: give --weights of a network for these classes"
                )
                raise ValueError(f"{text}, or leave --criterion out")
        if (self.mean is None) != (self.std is None) or any(len(v) != 3 for v in (self.mean, self.std) if v):
            raise ValueError(f"mean and std are three numbers each, both or neither; got {self.mean} and {self.std}")

    def training(self, lam: float = 0.0, image_size: int = 32) -> TrainConfig:
        """Sparse training at λ = `lam`, or fine-tuning at 0."""
        how = {"batch_size": self.batch_size, "lr": self.lr, "augment": self.augment, "seed": self.seed}
        return TrainConfig(epochs=self.epochs, image_size=self.image_size or image_size, lam=lam, **how)

    def stage(self, name: str) -> Path:
        """The file that a stage leaves; what is there is not computed again."""
        return Path(self.out, "stages", name)

    def claim_folder(self, data: Dataset) -> None:
        """Makes `out` this job's folder; raises ValueError if stages of another job or of other images are in it."""
        mine = asdict(self) | {"data": content_checksum(data)}
        if mine["weights"] not in (None, "DEFAULT"):
            mine["weights"] = hashlib.sha256(Path(self.weights).read_bytes()).hexdigest()
        mine, path = json.loads(json.dumps(mine | {"out": None})), self.stage("job.json")
        theirs = json.loads(path.read_text()) if path.is_file() else mine
        if other := [name for name in mine if theirs.get(name) != mine[name]]:
            text = f"{self.out} holds a job with another {', '.join(other)}"
            raise ValueError(f"{text}: give another --out, or remove {path.parent} to start anew")
        with write_atomically(path) as file:
            file.write(json.dumps(mine, indent=1).encode())
