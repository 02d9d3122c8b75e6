"""What a run is: a config of plain numbers and words, and the key that follows from it."""

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

FORMAT = 3  # part of every run's key: raise it when the same config would train something else


@dataclass(frozen=True)
class PruneConfig:
    """How a run's network is made from its parent's: see `score`, `keep_masks` and `prune`."""

    rate: float = 0.5  # share of filters removed, in [0, 1)
    criterion: str = "gamma_sparsity"  # a key of CRITERIA
    multiple_of: int = 1  # each width is moved to the nearest multiple of this, for fast kernels
    min_width: int = 1  # each layer keeps at least so many filters; 0: an empty layer is an error
    squeeze: str = "paper"  # how squeeze-and-excitation shrinks: one of SE_RULES
    inherit: bool = True  # False: random weights in the pruned shape. Does the weight matter, or the shape?
    ranking: str = "global"  # filters compete in the whole network; "layer": by their rank within their layer

    def __post_init__(self):
        lookup(CRITERIA, self.criterion, "criterion")
        if self.ranking not in RANKINGS:
            raise ValueError(f"ranking must be one of {', '.join(RANKINGS)}, got {self.ranking!r}")
        check_pruning(self.rate, self.multiple_of, self.min_width, self.squeeze)
        object.__setattr__(self, "rate", float(self.rate))  # 0 and 0.0 get the same key


@dataclass(frozen=True)
class NetworkConfig:
    """What a run with random weights changes about the paper's network: arguments of `MobileNetV3Large`."""

    strides: tuple[int, ...] | None = None  # one per block; None: the paper's (Table 1)
    initial: str = "fan_out"  # how the weights are drawn

    def __post_init__(self):
        if self.strides is not None:
            object.__setattr__(self, "strides", tuple(self.strides))  # JSON has lists
        if self.strides is None and self.initial == "fan_out":
            return  # every config has this default: no network needs to be built to know that it is allowed
        with torch.device("meta"):  # the network itself knows which values are allowed
            MobileNetV3Large(strides=self.strides, initial=self.initial)


@dataclass(frozen=True)
class RunConfig:
    """One training: its data, and a network with random weights or the pruned network of another run.

    Raises ValueError for parts that do not fit together.
    """

    dataset: str = "digits"  # a name or a path that `load_dataset` takes
    train: TrainConfig = field(default_factory=TrainConfig)  # how the network is trained
    parent: "RunConfig | None" = None  # the run whose network is pruned; None: random weights
    prune: PruneConfig | None = None  # how the parent's network is pruned; given exactly if there is a parent
    train_images: int | None = None  # train on only the first N images; None: on all
    holdout: int = 0  # measure accuracy on the last N training images, as for every choice; 0: on the test images
    network: NetworkConfig = NetworkConfig()  # of a run with random weights; a pruned run has its parent's network

    def __post_init__(self):
        if (self.parent is None) != (self.prune is None):
            raise ValueError("parent and prune go together: give both, or neither for a network with random weights")
        if self.parent and self.network != NetworkConfig():
            raise ValueError("a pruned run has the network of its parent: change network there")
        if not isinstance(self.dataset, str):
            raise ValueError(f"dataset must be a name or a path, got {self.dataset!r}")
        if self.train_images is not None:
            _check_count("train_images", self.train_images, least=1)
        _check_count("holdout", self.holdout)
        if self.parent and self.parent.holdout < self.holdout:
            held = f"the parent holds out {self.parent.holdout} images, this run {self.holdout}"
            raise ValueError(f"the parent trained on images that this run holds out: {held}")
        if self.parent and self.parent.dataset != self.dataset:
            raise ValueError(
                f"a run and its parent have one data set: got {self.dataset!r}, the parent has {self.parent.dataset!r}"
            )

    @property
    def key(self) -> str:
        """The run's name: 12 hex digits of a hash of its non-default fields, the data's content, the parent and FORMAT."""
        return self.name(data_checksum(self.dataset))

    def name(self, data: str) -> str:
        """The key, given the checksum of the data: looks at no file."""
        named = _changed_fields(self)
        named["format"] = FORMAT
        named["data"] = data
        if self.parent:
            named["parent"] = self.parent.name(data)
        text = json.dumps(named, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @property
    def label(self) -> str:
        """A short description for people; different runs may share one."""
        parts = _describe_pruning(self.prune) if self.prune else [f"λ={self.train.lam:g}"]
        if self.train.penalty != TrainConfig.penalty:
            parts.append(self.train.penalty)
        if self.train.schedule != TrainConfig.schedule:
            parts.append(self.train.schedule)
        if self.network.strides:
            parts.append("other strides")
        if self.network.initial != NetworkConfig.initial:
            parts.append(f"{self.network.initial} initial weights")
        return f"{self.dataset} {', '.join(parts)}, seed {self.train.seed}"

    @classmethod
    def from_dict(cls, values: dict) -> "RunConfig":
        """The config that `asdict` was applied to; raises ValueError for unknown keys."""
        try:
            values = dict(values)
            values["train"] = TrainConfig(**values["train"])
            if values["parent"] is not None:
                values["parent"] = cls.from_dict(values["parent"])
            if values["prune"] is not None:
                values["prune"] = PruneConfig(**values["prune"])
            values["network"] = NetworkConfig(**values.get("network", {}))  # older files have no such entry
            return cls(**values)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a run's config ({error})") from error


def _check_count(name: str, count: object, least: int = 0) -> None:
    if type(count) is not int or count < least:  # True is an int, too, but no count
        raise ValueError(f"{name} must be an integer ≥ {least}, got {count!r}")


def _changed_fields(config) -> dict:
    """The fields that differ from their defaults: a field added later does not rename runs made before it.

    The data set and the parent are left out, because `name` adds their content in place of their names.
    """
    changed = {}
    for f in fields(config):
        if f.name in ("dataset", "parent"):
            continue
        value = getattr(config, f.name)
        default = f.default if f.default is not MISSING else f.default_factory()
        if value == default:
            continue
        is_config = isinstance(value, TrainConfig | PruneConfig | NetworkConfig)
        changed[f.name] = _changed_fields(value) if is_config else value
    return changed


def _describe_pruning(config: PruneConfig) -> list[str]:
    parts = [f"{config.criterion} {config.rate:.0%}"]
    if not config.inherit:
        parts.append("from scratch")
    if config.ranking == "layer":
        parts.append("within layers")
    if config.multiple_of > 1:
        parts.append(f"widths to {config.multiple_of}")
    if config.squeeze != PruneConfig.squeeze:
        parts.append(f"squeeze {config.squeeze}")
    return parts
