"""What a run is: a config of plain numbers and words, and the name that follows from it."""

import hashlib
import json
from dataclasses import MISSING, dataclass, field, fields

from .data import data_checksum, lookup
from .importance import CRITERIA, RANKINGS
from .pruning import check_words
from .training import TrainConfig

FORMAT = 3  # part of every run's name: raise it when the same config would train something else


@dataclass(frozen=True)
class PruneConfig:
    """How a run's network comes out of its parent's: see `score`, `keep_masks` and `prune`.

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
        check_words(self.rate, self.multiple_of, self.min_width, self.squeeze)
        object.__setattr__(self, "rate", float(self.rate))  # 0 and 0.0 are one name


@dataclass(frozen=True)
class RunConfig:
    """One training: data, `train`, and either random weights or the network of `parent`, pruned as `prune` says.

    `train_images`: only the first so many; `holdout`: accuracy is measured on the last so many training images, as it is
    for every choice, instead of on the test set.
    """

    dataset: str = "digits"
    train: TrainConfig = field(default_factory=TrainConfig)
    parent: "RunConfig | None" = None
    prune: PruneConfig | None = None
    train_images: int | None = None
    holdout: int = 0

    def __post_init__(self):
        if (self.parent is None) != (self.prune is None):
            raise ValueError("parent and prune go together: give both, or neither for a network with random weights")
        counts = [self.holdout] + ([] if self.train_images is None else [self.train_images])
        if not isinstance(self.dataset, str) or any(isinstance(n, bool) or not isinstance(n, int) or n < 0 for n in counts):
            raise ValueError(
                "dataset must be a name or a path, train_images and holdout whole numbers ≥ 0; "
                f"got {self.dataset!r}, {self.train_images!r} and {self.holdout!r}"
            )
        if self.parent and self.parent.dataset != self.dataset:
            raise ValueError(f"a run has its parent's data set: got {self.dataset!r}, the parent has {self.parent.dataset!r}")

    @property
    def key(self) -> str:
        """The run's name: 12 hex digits of a hash of what differs from the defaults, the data's content and the parent."""
        return self.name(data_checksum(self.dataset))

    def name(self, data: str) -> str:
        """The key, given the checksum of the data, without looking at any file."""
        named = _changed(self) | {"format": FORMAT, "data": data}
        named |= {"parent": self.parent.name(data)} if self.parent else {}
        return hashlib.sha256(json.dumps(named, sort_keys=True).encode()).hexdigest()[:12]

    @property
    def label(self) -> str:
        """A short description for people."""
        p, t = self.prune, self.train
        what = f"λ={t.lam:g}" if not p else f"{p.criterion} {p.rate:.0%}" + ("" if p.inherit else " from scratch")
        what += f" within layers" if p and p.ranking == "layer" else ""
        what += f", widths to {p.multiple_of}" if p and p.multiple_of > 1 else ""
        what += f", squeeze {p.squeeze}" if p and p.squeeze != PruneConfig.squeeze else ""
        defaults = TrainConfig()
        what += "".join(f" {v}" for v, d in ((t.penalty, defaults.penalty), (t.schedule, defaults.schedule)) if v != d)
        return f"{self.dataset} {what}, seed {t.seed}"

    @classmethod
    def from_dict(cls, values: dict) -> "RunConfig":
        """The config that `asdict` of it gave; raises ValueError for unknown keys."""
        try:
            values = dict(values)
            values["train"] = TrainConfig(**values["train"])
            values["parent"] = values["parent"] and cls.from_dict(values["parent"])
            values["prune"] = values["prune"] and PruneConfig(**values["prune"])
            return cls(**values)
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"not a run's config ({error})") from error


def _changed(config) -> dict:
    """Fields that differ from their defaults: a field added later does not rename the runs that never knew it."""
    out = {}
    for f in fields(config):
        value = getattr(config, f.name)
        default = f.default if f.default is not MISSING else f.default_factory()
        if value != default and f.name not in ("parent", "dataset"):
            out[f.name] = _changed(value) if isinstance(value, TrainConfig | PruneConfig) else value
    return out
