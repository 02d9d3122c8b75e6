"""What a profile is: the runs that each figure and table of the paper is drawn from, at one scale."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ..importance import CRITERIA
from ..model import STRIDES
from ..pruning import SE_RULES
from ..system.files import lookup
from ..training import TrainConfig
from .config import NetworkConfig, PruneConfig, RunConfig

FIVE_PERCENT_STEPS = tuple(round(0.05 * i, 2) for i in range(13))
LONE = TrainConfig(epochs=200, lr=1e-3, lam=1e-5)


@dataclass(frozen=True)
class Latency:
    """How much of notebook 09 is measured."""

    multiple_of: int = 16
    rates: tuple[float, ...] = (0.5, 0.6, 0.7)  # of the aligned networks that are fine-tuned
    image_size: int = 224
    batches: tuple[int, ...] = (1, 32)
    rounds: int = 31
    slow_rounds: int = 5  # for larger batches
    widths: int = 60  # measured of a block
    calibration: int = 128  # images that set the ranges of int8
    images: int = 1000  # that judge accuracy
    recalibration: int = 256  # images that BatchNorm is measured on anew
    targets: tuple[float, ...] = (0.5, 0.55, 0.6, 0.7, 0.8)  # latencies of the blocks aimed at, as shares of dense


@dataclass(frozen=True)
class Profile:
    """One scale at which the whole paper is run.

    `sparse`: training from random weights, before λ is set; `lams`: the five λ of Figure 6; `lam`: the one chosen,
    whose network is pruned; `huge_lam`: one too large. `finetune`: after pruning; `rates`: Table 3's curve,
    `collapse`: beyond it. `repeats`: fine-tunings with different seeds of one parent in Table 4. `second`: the data
    set of Table 6. `pilots`: trainings judged on `holdout` training images, and `tried`, on all images, by which the
    rest was chosen. `plan`: experiments and the seeds they are trained for, the most valuable first. `recorded`: its
    runs take hours, so notebooks draw those that are there, of `seeds` seeds, and train none. `lone`, `lone_steps` per
    epoch, `lone_gammas`: γ that only the penalty moves, with the paper's Adam, λ and epochs; `lone_proximal_lam`: a λ
    at which the proximal step moves them. `judges_accuracy`: whether the paper's accuracies are this profile's targets.
    `minutes`: expected for each notebook on 2 CPU cores.
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
    plan: tuple[tuple[str, tuple[int, ...]], ...] = ()
    recorded: bool = False
    seeds: int = 1
    train_images: int | None = None
    pilots: tuple[dict, ...] = ()
    tried: tuple[dict, ...] = ()
    holdout: int = 0
    lone: TrainConfig = LONE
    lone_steps: int = 100
    lone_gammas: int = 256
    lone_proximal_lam: float = 0.1
    latency: Latency = field(default=Latency(), compare=False)
    judges_accuracy: bool = False
    minutes: dict[int, float] = field(default_factory=dict, compare=False)

    def sparse_config(
        self, lam: float | None = None, seed: int = 0, dataset: str | None = None, **changes
    ) -> RunConfig:
        """Sparse training from random weights at λ = `lam` (None: the chosen one); `changes`: fields of TrainConfig."""
        config = replace(self.sparse, **{"lam": self.lam if lam is None else lam, "seed": seed} | changes)
        return RunConfig(dataset or self.dataset, config, train_images=self.train_images)

    def pruned_config(
        self,
        rate: float,
        seed: int = 0,
        criterion: str = "gamma_sparsity",
        repeat: int = 0,
        dataset: str | None = None,
        **changes,
    ) -> RunConfig:
        """The sparse network of `seed` pruned at `rate` and fine-tuned; `changes`: fields of PruneConfig.

        `repeat` > 0 draws another fine-tuning seed for the same parent. `inherit=False` trains the pruned shape from
        scratch, as long as sparse training and fine-tuning together.
        """
        parent = self.sparse_config(seed=seed, dataset=dataset)
        prune = PruneConfig(rate, criterion, **changes)
        train = replace(self.finetune, seed=seed + 1000 * repeat)
        if not prune.inherit:
            epochs = self.sparse.epochs + self.finetune.epochs
            train = replace(train, epochs=epochs, gamma_init=self.sparse.gamma_init)
        return replace(parent, train=train, parent=parent, prune=prune)

    def experiment(self, name: str, seed: int = 0) -> list[RunConfig]:
        """The runs that the figure or table `name` of the paper is drawn from: a key of EXPERIMENTS."""
        return lookup(EXPERIMENTS, name, "experiment")(self, seed)

    def planned(self, seed: int | None = None) -> list[RunConfig]:
        """Every run of the plan, or of it what `seed` needs, in its order; without a plan, every experiment for seed 0.

        A seed beyond the plan's last one needs what the last one does.
        """
        plan = self.plan or [(",".join(EXPERIMENTS), (0,))]
        if seed is not None:
            like = min(max(seed, 0), max(max(seeds) for _, seeds in plan))
            plan = [(names, (seed,)) for names, seeds in plan if like in seeds]
        parts = [(name, seed) for names, seeds in plan for seed in seeds for name in names.split(",")]
        return [config for name, seed in parts for config in self.experiment(name, seed)]

    def ships_network(self, config: RunConfig) -> bool:
        """Whether `config` is recorded with its network: all sparse ones that others start from, some of seed 0."""
        shipped = [
            self.sparse_config(seed=config.train.seed),
            self.sparse_config(0.0),
            self.sparse_config(self.lams[-2]),
        ]
        shipped += [self.pruned_config(0.0), self.pruned_config(0.5), self.pruned_config(0.5, multiple_of=16)]
        if self.second:
            shipped += [self.sparse_config(dataset=self.second), self.pruned_config(0.5, dataset=self.second)]
        return config in shipped


def _table3(p: Profile, seed: int) -> list[RunConfig]:
    coarse_first = sorted((*p.rates, *p.collapse), key=lambda rate: (round(rate * 100) % 10 > 0, rate))
    return [p.pruned_config(rate, seed) for rate in coarse_first]


def _table4(p: Profile, seed: int) -> list[RunConfig]:
    """Besides all criteria ranked globally, two ranked within each layer, as their authors do."""
    repeats = range(p.repeats)
    runs = [p.pruned_config(0.5, seed, criterion, k) for criterion in p.criteria for k in repeats]
    return runs + [p.pruned_config(0.5, seed, name, k, ranking="layer") for name in ("l1", "fpgm") for k in repeats]


def _table6(p: Profile, seed: int) -> list[RunConfig]:
    if not p.second:
        return []
    pruned = [p.pruned_config(rate, seed, dataset=p.second) for rate in p.second_rates]
    return [p.sparse_config(seed=seed, dataset=p.second), *pruned]


def _gamma_study(p: Profile, seed: int) -> list[RunConfig]:
    """How γ gets to 1e-10: the chosen λ under other schedules and penalties."""
    changes = ({}, {"schedule": "cosine_epoch"}, {"schedule": "constant"}, {"penalty": "proximal"}, {"penalty": "l2"})
    return [p.sparse_config(seed=seed, **c) for c in changes]


def _se_rules(p: Profile, seed: int) -> list[RunConfig]:
    return [p.pruned_config(0.5, seed, repeat=k, squeeze=squeeze) for squeeze in SE_RULES for k in range(p.repeats)]


def _doses(p: Profile, seed: int) -> list[RunConfig]:
    """What makes early filters die: sparse training with one thing changed at a time, in order of what it may tell."""
    last_stride_1 = NetworkConfig(strides=(*STRIDES[:12], 1, *STRIDES[13:]))
    plain = p.sparse_config(seed=seed)
    return [
        p.sparse_config(seed=seed, augment="none"),
        replace(plain, network=last_stride_1),
        p.sparse_config(seed=seed, lam=1e-4, augment="none"),
        p.sparse_config(seed=seed, lam=1e-4),
        p.sparse_config(seed=seed, image_size=32),
        replace(plain, network=NetworkConfig(initial="torch")),
    ]


def _pilot(p: Profile, seed: int) -> list[RunConfig]:
    held = [replace(p.sparse_config(seed=seed, **changes), holdout=p.holdout) for changes in p.pilots]
    return held + [p.sparse_config(seed=seed, **changes) for changes in p.tried]


# in order of value: the first runs are the ones to have when time is short
EXPERIMENTS: dict[str, Callable[[Profile, int], list[RunConfig]]] = {
    "plain_and_sparse": lambda p, seed: [p.sparse_config(lam, seed) for lam in (0.0, p.lam)],
    "half": lambda p, seed: [p.pruned_config(rate, seed) for rate in (0.0, 0.5)],
    "rates": _table3,
    "second": _table6,
    "criteria": _table4,
    "scratch": lambda p, seed: [p.pruned_config(0.5, seed, inherit=False)],
    "aligned": lambda p, seed: [p.pruned_config(r, seed, multiple_of=p.latency.multiple_of) for r in p.latency.rates],
    "lambdas": lambda p, seed: [p.sparse_config(lam, seed) for lam in p.lams],
    "gamma_study": _gamma_study,
    "huge_lambda": lambda p, seed: [p.sparse_config(p.huge_lam, seed)],
    "se_rules": _se_rules,
    "sparse": lambda p, seed: [p.sparse_config(seed=seed)],
    "pruned": lambda p, seed: [p.pruned_config(0.5, seed)],
    "pilots": _pilot,
    "doses": _doses,
    # parts of Tables 3, 4 and 6 for further seeds
    "some_rates": lambda p, seed: [p.pruned_config(rate, seed) for rate in (0.3, 0.6)],
    "some_criteria": lambda p, seed: [p.pruned_config(0.5, seed, name) for name in ("gamma", "sparsity", "l1_gamma")],
    "second_half": lambda p, seed: [p.pruned_config(r, seed, dataset=p.second) for r in (0.0, 0.5)] if p.second else [],
}


# few steps need a larger λ than the paper's, and γ that start at 0.5, as in network slimming, to get to 0 in time
DIGITS = Profile(
    "digits",
    "digits",
    sparse=TrainConfig(epochs=12, batch_size=48, image_size=32, lr=3e-3, gamma_init=0.5),
    finetune=TrainConfig(epochs=4, batch_size=48, image_size=32, lr=1e-3),
    lams=(0.0, 1.4e-5, 1.4e-4, 1.4e-3, 1.4e-2),
    lam=1.4e-3,
    huge_lam=0.2,
    collapse=(0.65, 0.7, 0.8, 0.9),
    repeats=1,
    latency=Latency(rounds=15, slow_rounds=2, calibration=32),
    minutes=dict(enumerate((1.0, 0.3, 2.0, 0.7, 0.7, 2.5, 2.5, 0.8, 0.2, 1.5, 0.5, 0.4, 1.5, 0.5, 1.0, 0.7, 0.8))),
)
_SMOKE_SIZES = {"rates": (0.5,), "image_size": 32, "batches": (1,), "widths": 4}
SMOKE = replace(
    DIGITS,
    name="smoke",
    sparse=replace(DIGITS.sparse, epochs=1, batch_size=64),
    finetune=replace(DIGITS.finetune, epochs=1, batch_size=64),
    rates=(0.0, 0.3, 0.5),
    collapse=(0.7,),
    train_images=128,
    lone=replace(LONE, epochs=20, lr=1e-2),
    latency=replace(DIGITS.latency, **_SMOKE_SIZES, rounds=3),
    minutes={},
)
# batch size and learning rate by the pilots; λ from the dead filters at these two (results/README.md): 26 % where λ times
# the sum of all learning rates is 8.4e-5, 37 % at 12.5e-5, 46 % at 18.8e-5, here
_CIFAR = TrainConfig(epochs=16, batch_size=64, image_size=64, lr=1e-3, augment="crop_flip")
CIFAR = Profile(
    "cifar",
    "cifar10",
    sparse=_CIFAR,
    finetune=replace(_CIFAR, epochs=3, lr=5e-4),
    lams=(0.0, 3e-6, 3e-5, 3e-4, 3e-3),
    lam=3e-5,
    rates=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6),
    collapse=(0.65, 0.7),
    repeats=1,
    second="cifar100",
    plan=(
        ("plain_and_sparse,half", (0,)),
        ("plain_and_sparse,half", (1, 2)),
        ("rates", (0,)),
        ("some_rates", (1, 2)),
        ("second", (0,)),
        ("second_half", (1, 2)),
        ("criteria", (0,)),
        ("some_criteria", (1, 2)),
        ("scratch,aligned,lambdas,se_rules,huge_lambda,gamma_study", (0,)),
    ),
    recorded=True,
    seeds=3,
    # on held-out images: batch size and learning rate at equal epochs, image size at equal CPU time
    pilots=tuple(
        {"epochs": epochs, "batch_size": batch_size, "lr": lr, "image_size": size, "lam": lam}
        for epochs, batch_size, lr, size, lam in (
            (8, 64, 1e-3, 64, 3e-5),
            (8, 128, 1e-3, 64, 3e-5),
            (8, 128, 2e-3, 64, 3e-5),
            (8, 128, 2e-3, 64, 0.0),  # does the penalty help at a large learning rate?
            (5, 128, 2e-3, 80, 3e-5),
            (10, 128, 2e-3, 56, 3e-5),
            (4, 128, 2e-3, 64, 3e-5),
            (4, 64, 2e-3, 64, 3e-5),
        )
    ),
    holdout=5000,
    tried=({"lam": 0.0}, {"lam": 2e-5}),  # which told the share of dead filters
)
# three times as many epochs, and so the paper's own λ: minutes of a GPU for each run; batch size as in PAPER
_GPU = replace(_CIFAR, epochs=50, batch_size=128)
GPU = replace(
    CIFAR,
    name="gpu",
    sparse=_GPU,
    finetune=replace(_GPU, epochs=10, lr=5e-4),
    lams=Profile.lams,
    lam=Profile.lam,
    pilots=(),
    tried=({"lam": 6e-6}, {"lam": 1.6e-5}),
)
# batch size, schedule and augmentation are not in the paper: chosen once, the same for every run
_PAPER = TrainConfig(epochs=200, batch_size=128, image_size=224, lr=1e-3)
PAPER = Profile(
    "paper",
    "cifar10",
    sparse=_PAPER,
    finetune=replace(_PAPER, epochs=150),
    second="cifar100",
    repeats=1,
    judges_accuracy=True,
)
PROFILES = {profile.name: profile for profile in (SMOKE, DIGITS, CIFAR, GPU, PAPER)}


def get_profile(name: str) -> Profile:
    """The profile of that name; raises ValueError, with the nearest name, if there is none."""
    return lookup(PROFILES, name, "profile")
