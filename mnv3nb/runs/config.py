"""What a run is: a config of plain numbers and words, and the name that follows from it."""

import hashlib
import json
from dataclasses import MISSING, dataclass, field, fields

import torch

from ..data.datasets import data_checksum
from ..importance import CRITERIA, RANKINGS
from ..model import MobileNetV3Large
from ..pruning import check_pruning
from ..system.files import lookup
from ..training import TrainConfig

FORMAT = 3  # part of every run's name: raise it when the same config would train something else


@dataclass(frozen=True)
class PruneConfig:
    """How a run's network is made from its parent's: see `score`, `keep_masks` and `prune`.

    `ranking`: filters compete in the whole network ("global") or, by their rank, within their layer ("layer").
    `inherit=False` keeps only the pruned shape and draws random weights: does the weight matter, or the shape?
    """

    rate: float = 0.5
    criterion: str = "gamma_sparsity"
    multiple_of: int = 1
    min_width: int = 1
    squeeze: str = "paper"
    inherit: bool = True
    ranking: str = "global"

    def __post_init__(self):
        lookup(CRITERIA, self.criterion, "criterion")
        if self.ranking not in RANKINGS:
            raise ValueError(f"ranking must be one of {', '.join(RANKINGS)}, got {self.ranking!r}")
        check_pruning(self.rate, self.multiple_of, self.min_width, self.squeeze)
        object.__setattr__(self, "rate", float(self.rate))  # 0 and 0.0 are one name


@dataclass(frozen=True)
class NetworkConfig:
    """What a run with random weights changes about the paper's network: arguments of `MobileNetV3Large`."""

    strides: tuple[int, ...] | None = None
    initial: str = "fan_out"

    def __post_init__(self):
        if self.strides is not None:
            object.__setattr__(self, "strides", tuple(self.strides))  # JSON has lists
        with torch.device("meta"):
            MobileNetV3Large(strides=self.strides, initial=self.initial)


@dataclass(frozen=True)
class RunConfig:
    """One training: data, `train`, and either random weights or the network of `parent`, pruned by `prune`.

    `train_images`: use only the first so many. `holdout`: measure accuracy on the last so many training images instead
    of the test set, as for every choice. Raises ValueError for parts that do not fit together.
    """

    dataset: str = "digits"
    train: TrainConfig = field(default_factory=TrainConfig)
    parent: "RunConfig | None" = None
    prune: PruneConfig | None = None
    train_images: int | None = None
    holdout: int = 0
    network: NetworkConfig = NetworkConfig()

    def __post_init__(self):
        if (self.parent is None) != (self.prune is None):
            raise ValueError("parent and prune go together: give both, or neither for a network with random weights")
        if self.parent and self.network != NetworkConfig():
            raise ValueError("a pruned run has the network of its parent: change network there")
        if not isinstance(self.dataset, str):
            raise ValueError(f"dataset must be a name or a path, got {self.dataset!r}")
        for name in ("train_images", "holdout"):
            count = getattr(self, name)
            if (count is not None or name == "holdout") and (type(count) is not int or count < 0):
                raise ValueError(f"{name} must be an integer ≥ 0, got {count!r}")
        if self.parent and self.parent.dataset != self.dataset:
            raise ValueError(
                f"a run and its parent have one data set: got {self.dataset!r}, the parent has {self.parent.dataset!r}"
            )

    @property
    def key(self) -> str:
        """The run's name: 12 hex digits of a hash of its non-default fields, the data's content and the parent."""
        return self.name(data_checksum(self.dataset))

    def name(self, data: str) -> str:
        """The key, given the checksum of the data, without looking at any file."""
        named = _changed(self) | {"format": FORMAT, "data": data}
        if self.parent:
            named["parent"] = self.parent.name(data)
        return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def label(self) -> str:
        """A short description for people."""
        p, t = self.prune, self.train
        parts = [f"{p.criterion} {p.rate:.0%}" if p else f"λ={t.lam:g}"]
        if p and not p.inherit:
            parts.append("from scratch")
        if p and p.ranking == "layer":
            parts.append("within layers")
        if p and p.multiple_of > 1:
            parts.append(f"widths to {p.multiple_of}")
        if p and p.squeeze != PruneConfig.squeeze:
            parts.append(f"squeeze {p.squeeze}")
        parts += [word for word in (t.penalty, t.schedule) if word not in (TrainConfig.penalty, TrainConfig.schedule)]
        if self.network.strides:
            parts.append("other strides")
        if self.network.initial != NetworkConfig.initial:
            parts.append(f"weights as {self.network.initial} draws them")
        return f"{self.dataset} {', '.join(parts)}, seed {t.seed}"

    @classmethod
    def from_dict(cls, values: dict) -> "RunConfig":
        """The config that `asdict` was applied to; raises ValueError for unknown keys."""
        try:
            values = dict(values)
            values["train"] = TrainConfig(**values["train"])
            values["parent"] = values["parent"] and cls.from_dict(values["parent"])
            values["prune"] = values["prune"] and PruneConfig(**values["prune"])
            values["network"] = NetworkConfig(**values.get("network", {}))
            return cls(**values)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a run's config ({error})") from error


def _changed(config) -> dict:
    """Fields that differ from their defaults: a field added later does not rename runs made before it."""
    changed = {}
    for f in fields(config):
        value = getattr(config, f.name)
        default = f.default if f.default is not MISSING else f.default_factory()
        if value != default and f.name not in ("parent", "dataset"):
            changed[f.name] = _changed(value) if isinstance(value, TrainConfig | PruneConfig | NetworkConfig) else value
    return changed
