"""Profiles: every number of every experiment, and the runs that each figure and table of the paper is drawn from."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from .config import PruneConfig, RunConfig
from .data import lookup
from .importance import CRITERIA
from .pruning import SQUEEZES
from .training import TrainConfig

FIVE_PERCENT_STEPS = tuple(round(0.05 * i, 2) for i in range(13))
_LONE = TrainConfig(epochs=200, lr=1e-3, lam=1e-5)

# notebook 09: rates of the aligned networks that are fine-tuned (the raw ones are Table 3's); pixels; batch sizes; rounds of a
# comparison (slow: larger batches); widths measured of a unit, and neighbours of so many of them; networks in int8; images that
# calibrate them, judge accuracy, recalibrate BatchNorm; units' times aimed at, as shares of dense; seconds for compiling
_LATENCY = {
    "multiple_of": 16, "rates": (0.5, 0.6, 0.7), "image_size": 224, "batches": (1, 32), "rounds": 31, "slow_rounds": 5,
    "widths": 60, "neighbours": 8, "quantized": 9, "calibration": 128, "images": 1000, "recalibration": 256,
    "targets": (0.5, 0.55, 0.6, 0.7, 0.8), "compile_seconds": 600,
}  # fmt: skip
_LATENCY_DIGITS = _LATENCY | {"rounds": 15, "slow_rounds": 2, "quantized": 3, "calibration": 32, "compile_seconds": 90}
_LATENCY_SMOKE = _LATENCY_DIGITS | {
    "rates": (0.5,), "image_size": 32, "batches": (1,), "rounds": 3, "widths": 4, "neighbours": 2, "quantized": 2,
    "compile_seconds": 0,
}  # fmt: skip


@dataclass(frozen=True)
class Profile:
    """One scale at which the whole paper is run.

    `sparse`: training from random weights, before λ is set; `lams`: the five λ of Figure 6; `lam`: the one chosen, whose
    network is pruned; `huge_lam`: one too large. `finetune`: after pruning; `rates`: Table 3's curve, `collapse`: beyond
    it. `repeats`: fine-tunings with different seeds of one parent in Table 4. `second`: the data set of Table 6.
    `lone`, `lone_steps` an epoch, `lone_gammas`: γ that only the penalty moves, with the paper's Adam, λ and epochs;
    `lone_proximal_lam`: a λ at which the proximal step gets somewhere.
    `judges_accuracy`: whether the paper's accuracies are this profile's targets. `minutes`: expected on 2 CPU cores.
    """

    name: str
    dataset: str
    sparse: TrainConfig
    finetune: TrainConfig
    lams: tuple[float, ...] = (0.0, 1e-6, 1e-5, 1e-4, 1e-3)
    lam: float = 1e-5
    huge_lam: float = 1e-1
    rates: tuple[float, ...] = FIVE_PERCENT_STEPS
    collapse: tuple[float, ...] = (0.65, 0.70)
    criteria: tuple[str, ...] = tuple(CRITERIA)
    repeats: int = 3
    second: str | None = None
    second_rates: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
    train_images: int | None = None
    pilots: tuple[dict, ...] = ()
    holdout: int = 0
    lone: TrainConfig = _LONE
    lone_steps: int = 100
    lone_gammas: int = 256
    lone_proximal_lam: float = 0.1
    latency: dict = field(default_factory=lambda: _LATENCY, compare=False)
    judges_accuracy: bool = False
    minutes: dict[str, float] = field(default_factory=dict, compare=False)

    def sparse_run(self, lam: float | None = None, seed: int = 0, dataset: str | None = None, **changes) -> RunConfig:
        """Sparse training from random weights at λ = `lam` (None: the chosen one); `changes` are fields of TrainConfig."""
        config = replace(self.sparse, **{"lam": self.lam if lam is None else lam, "seed": seed} | changes)
        return RunConfig(dataset or self.dataset, config, train_images=self.train_images)

    def pruned_run(self, rate: float, seed: int = 0, criterion: str = "gamma_sparsity", repeat: int = 0,
                   dataset: str | None = None, inherit: bool = True, squeeze: str = "paper",
                   multiple_of: int = 1) -> RunConfig:  # fmt: skip
        """The sparse network of `seed` pruned at `rate` and fine-tuned; `inherit=False` trains its shape from scratch.

        `repeat` > 0 draws another fine-tuning seed for the same parent.
        """
        parent = self.sparse_run(seed=seed, dataset=dataset)
        tune = self.finetune if inherit else replace(self.finetune, epochs=self.sparse.epochs + self.finetune.epochs,
                                                     gamma_init=self.sparse.gamma_init)  # fmt: skip
        tune = replace(tune, seed=seed + 1000 * repeat)
        prune = PruneConfig(rate, criterion, multiple_of, squeeze=squeeze, inherit=inherit)
        return replace(parent, train=tune, parent=parent, prune=prune)

    def experiment(self, name: str, seed: int = 0) -> list[RunConfig]:
        """The runs that the figure or table `name` of the paper is drawn from: a key of EXPERIMENTS."""
        return lookup(EXPERIMENTS, name, "experiment")(self, seed)


def get_profile(name: str) -> Profile:
    """The profile of that name; raises ValueError, with the nearest name, if there is none."""
    return lookup(PROFILES, name, "profile")


def _gamma_study(p: Profile, seed: int) -> list[RunConfig]:
    """How γ gets to 1e-10: the chosen λ under other schedules and penalties."""
    changes = ({}, {"schedule": "cosine_epoch"}, {"schedule": "constant"}, {"penalty": "proximal"}, {"penalty": "l2"})
    return [p.sparse_run(seed=seed, **c) for c in changes]


def _table6(p: Profile, seed: int) -> list[RunConfig]:
    if not p.second:
        return []
    return [p.sparse_run(seed=seed, dataset=p.second)] + [p.pruned_run(r, seed, dataset=p.second) for r in p.second_rates]


# in order of value: the first runs are the ones to have when time is short
EXPERIMENTS: dict[str, Callable[[Profile, int], list[RunConfig]]] = {
    "baseline": lambda p, s: [p.sparse_run(lam, s) for lam in (0.0, p.lam)],
    "fig6": lambda p, s: [p.sparse_run(lam, s) for lam in p.lams],
    "table2": lambda p, s: [p.sparse_run(seed=s)],
    "table5": lambda p, s: [p.pruned_run(0.5, s)],
    "table3": lambda p, s: [
        p.pruned_run(r, s) for r in sorted((*p.rates, *p.collapse), key=lambda r: (round(r * 100) % 10 > 0, r))
    ],
    "table4": lambda p, s: [p.pruned_run(0.5, s, c, k) for c in p.criteria for k in range(p.repeats)],
    "squeeze": lambda p, s: [p.pruned_run(0.5, s, repeat=k, squeeze=q) for q in SQUEEZES for k in range(p.repeats)],
    "scratch": lambda p, s: [p.pruned_run(0.5, s, inherit=False)],
    "aligned": lambda p, s: [p.pruned_run(r, s, multiple_of=p.latency["multiple_of"]) for r in p.latency["rates"]],
    "table6": _table6,
    "gamma": _gamma_study,
    "pilot": lambda p, s: [replace(p.sparse_run(seed=s, **changes), holdout=p.holdout) for changes in p.pilots],
    "huge": lambda p, s: [p.sparse_run(p.huge_lam, s)],
}

# γ starts at 0.5, as in network slimming: within so few steps Adam cannot take it from 1 to 0
_DIGITS = TrainConfig(epochs=12, batch_size=48, image_size=32, lr=3e-3, gamma_init=0.5)
_DIGITS_TUNE = TrainConfig(epochs=4, batch_size=48, image_size=32, lr=1e-3)
_CIFAR = TrainConfig(epochs=20, batch_size=128, image_size=64, lr=2e-3, augment="crop_flip")
# batch size, schedule and augmentation are not in the paper: chosen once, the same for every run
_PAPER = TrainConfig(epochs=200, batch_size=128, image_size=224, lr=1e-3)
# on held-out images, at equal CPU time: which learning rate, batch, image size and λ
_PILOTS = (
    {"epochs": 4, "batch_size": 64, "lr": 2e-3, "lam": 3e-5},
    {"epochs": 4, "batch_size": 128, "lr": 2e-3, "lam": 3e-5},
    {"epochs": 4, "batch_size": 64, "lr": 1e-3, "lam": 3e-5},
    {"epochs": 4, "batch_size": 64, "lr": 2e-3, "lam": 0.0},
    {"epochs": 5, "batch_size": 64, "lr": 2e-3, "lam": 3e-5, "image_size": 56},
)
_LAMS = (0.0, 2e-5, 2e-4, 2e-3, 2e-2)  # few steps and Adam's memory of the first gradients need a larger λ than the paper's
# of each notebook when nothing is trained yet, for the time left
_DIGITS_MINUTES = {"00": 1.5, "01": 0.3, "02": 5.5, "03": 0.5, "04": 1.0, "05": 2.5, "06": 4.0, "07": 0.6, "08": 0.3, "09": 3.5,
                   "10": 0.4, "11": 0.5}  # fmt: skip
_LOCAL = {"lams": _LAMS, "lam": 2e-3, "huge_lam": 0.2}
_TENS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)
_SMOKE = {"epochs": 1, "batch_size": 64}
_ALL = (
    Profile("smoke", "digits", replace(_DIGITS, **_SMOKE), replace(_DIGITS_TUNE, **_SMOKE), **_LOCAL,
            rates=(0.0, 0.3, 0.5), collapse=(0.7,), repeats=1, train_images=128,
            lone=replace(_LONE, epochs=20, lr=1e-2), latency=_LATENCY_SMOKE),
    Profile("digits", "digits", _DIGITS, _DIGITS_TUNE, **_LOCAL, collapse=(0.65, 0.7, 0.8, 0.9), latency=_LATENCY_DIGITS,
            minutes=_DIGITS_MINUTES),
    Profile("cifar", "cifar10", _CIFAR, replace(_CIFAR, epochs=4, lr=1e-3), lams=(0.0, 3e-6, 3e-5, 3e-4, 3e-3), lam=3e-5,
            rates=_TENS, collapse=(0.65, 0.7), repeats=1, second="cifar100",
            pilots=_PILOTS, holdout=5000),
    Profile("paper", "cifar10", _PAPER, replace(_PAPER, epochs=150), second="cifar100", repeats=1, judges_accuracy=True),
)  # fmt: skip
PROFILES = {p.name: p for p in _ALL}
