"""What a profile is: the runs that each figure and table of the paper is drawn from, at one scale."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from ..importance import CRITERIA
from ..model import STRIDES
from ..pruning import SE_RULES
from ..system.files import lookup
from ..training import TrainConfig
from .config import NetworkConfig, PruneConfig, RunConfig

PAPER_LAMS = (0.0, 1e-6, 1e-5, 1e-4, 1e-3)  # the five λ of Figure 6
RECALIBRATION_IMAGES = 256  # on which notebooks measure BatchNorm's statistics anew
JUDGING_IMAGES = 1000  # the first test images: notebooks judge many networks by them
FIVE_PERCENT_STEPS = tuple(round(0.05 * i, 2) for i in range(13))  # the rates of Table 3: 0 to 60 %


def get_profile(name: str) -> "Profile":
    """The profile of that name; raises ValueError, with the nearest name, if there is none."""
    return lookup(PROFILES, name, "profile")


@dataclass(frozen=True)
class PlanStep:
    """A part of a profile's plan: every experiment is trained for every seed."""

    experiments: tuple[str, ...]  # keys of EXPERIMENTS
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Profile:
    """One scale at which the whole paper is run.

    Further numbers of a profile stand in dicts by its name: LATENCY, TRIALS, LONE_GAMMAS.
    """

    name: str
    dataset: str
    sparse: TrainConfig  # training from random weights; its λ and seed are set by `sparse_config`
    finetune: TrainConfig  # training after pruning; its seed is set by `pruned_config`
    lams: tuple[float, ...] = PAPER_LAMS  # Figure 6
    lam: float = 1e-5  # the chosen λ: its network is pruned
    huge_lam: float = 1e-1  # a λ that is too large
    rates: tuple[float, ...] = FIVE_PERCENT_STEPS  # Table 3's curve
    collapse: tuple[float, ...] = (0.65, 0.70)  # further rates, where the network breaks
    criteria: tuple[str, ...] = tuple(CRITERIA)  # Table 4
    repeats: int = 3  # Table 4: fine-tunings of the same parent with different seeds
    second: str | None = None  # the data set of Table 6; None: the profile has none
    second_rates: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)  # Table 6
    plan: tuple[PlanStep, ...] = ()  # what is trained, the most valuable first; empty: every experiment for seed 0
    recorded: bool = False  # its runs take hours: notebooks draw those that are there and train none
    seeds: int = 1  # number of seeds that notebooks draw
    train_images: int | None = None  # train on the first so many images only; None: on all
    judges_accuracy: bool = False  # whether the paper's accuracies are this profile's targets
    minutes: dict[int, float] = field(default_factory=dict, compare=False)  # by notebook, expected on 2 CPU cores

    def sparse_config(
        self, lam: float | None = None, seed: int = 0, dataset: str | None = None, **changes
    ) -> RunConfig:
        """Sparse training from random weights at λ = `lam` (None: the chosen one); `changes`: fields of TrainConfig."""
        fields = {"lam": self.lam if lam is None else lam, "seed": seed, **changes}
        train = replace(self.sparse, **fields)
        return RunConfig(dataset or self.dataset, train, train_images=self.train_images)

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
        scratch, as long as sparse training and fine-tuning together, at the learning rate of fine-tuning and λ = 0.
        """
        parent = self.sparse_config(seed=seed, dataset=dataset)
        prune = PruneConfig(rate, criterion, **changes)
        train = replace(self.finetune, seed=seed + 1000 * repeat)
        if not prune.inherit:
            epochs = self.sparse.epochs + self.finetune.epochs
            train = replace(train, epochs=epochs, gamma_init=self.sparse.gamma_init)
        return replace(parent, train=train, parent=parent, prune=prune)

    def experiment(self, name: str, seed: int = 0) -> list[RunConfig]:
        """The runs of the experiment `name`, a key of EXPERIMENTS, for one seed."""
        return lookup(EXPERIMENTS, name, "experiment")(self, seed)

    def planned(self, seed: int | None = None) -> list[RunConfig]:
        """The runs of the whole plan, in its order; with `seed`: those that the plan has for this seed.

        A seed outside the plan gets the runs of the plan's last seed, trained with its own.
        """
        steps = self.plan or (PlanStep(tuple(EXPERIMENTS), seeds=(0,)),)
        if seed is not None:
            last_seed = max(max(step.seeds) for step in steps)
            planned_seed = min(max(seed, 0), last_seed)  # a negative one is refused by TrainConfig
            steps = [PlanStep(step.experiments, seeds=(seed,)) for step in steps if planned_seed in step.seeds]
        configs = []
        for step in steps:
            for step_seed in step.seeds:
                for name in step.experiments:
                    configs += self.experiment(name, step_seed)
        return configs

    def ships_network(self, config: RunConfig) -> bool:
        """Whether `config` is recorded with its network: those that others start from or that users get."""
        shipped = [
            self.sparse_config(
                seed=config.train.seed
            ),  # the parents of pruned runs on the first data set, of every seed
            self.sparse_config(0.0),  # the plain network
            self.sparse_config(self.lams[-2]),  # a λ that kills most filters at no loss
            self.pruned_config(0.0),
            self.pruned_config(0.5),
            self.pruned_config(0.5, multiple_of=16),  # to deploy
        ]
        if self.second:
            shipped.append(self.sparse_config(dataset=self.second))
            shipped.append(self.pruned_config(0.5, dataset=self.second))
        return config in shipped


# The experiments: a profile and a seed in, the runs to train out, the most valuable first.


def _plain_and_sparse(p: Profile, seed: int) -> list[RunConfig]:
    """Table 3, its two baselines: what does the penalty alone cost or gain?"""
    return [p.sparse_config(0.0, seed), p.sparse_config(p.lam, seed)]


def _half(p: Profile, seed: int) -> list[RunConfig]:
    """The paper's main claim: half of the filters removed, against the whole network fine-tuned alike."""
    return [p.pruned_config(0.0, seed), p.pruned_config(0.5, seed)]


def _rates(p: Profile, seed: int) -> list[RunConfig]:
    """Table 3: accuracy by pruning rate, and the rates beyond it at which the network breaks."""
    rates = sorted((*p.rates, *p.collapse))
    tens = [rate for rate in rates if round(rate * 100) % 10 == 0]
    between = [rate for rate in rates if rate not in tens]
    return [p.pruned_config(rate, seed) for rate in (*tens, *between)]  # a coarse curve comes first


def _second(p: Profile, seed: int) -> list[RunConfig]:
    """Table 6: accuracy by pruning rate on the second data set."""
    if not p.second:
        return []
    sparse = p.sparse_config(seed=seed, dataset=p.second)
    return [sparse, *(p.pruned_config(rate, seed, dataset=p.second) for rate in p.second_rates)]


def _criteria(p: Profile, seed: int) -> list[RunConfig]:
    """Table 4: half of the filters removed by every criterion; two of them also within each layer, as their authors do."""
    configs = []
    for criterion in p.criteria:
        for repeat in range(p.repeats):
            configs.append(p.pruned_config(0.5, seed, criterion, repeat))
    for criterion in ("l1", "fpgm"):
        for repeat in range(p.repeats):
            configs.append(p.pruned_config(0.5, seed, criterion, repeat, ranking="layer"))
    return configs


def _scratch(p: Profile, seed: int) -> list[RunConfig]:
    """Beside Table 4: the pruned shape from random weights. Does the network need its inherited weights?"""
    return [p.pruned_config(0.5, seed, inherit=False)]


def _aligned(p: Profile, seed: int) -> list[RunConfig]:
    """Notebook 09: widths rounded for fast kernels, against those that the threshold gives."""
    latency = LATENCY[p.name]
    return [p.pruned_config(rate, seed, multiple_of=latency.multiple_of) for rate in latency.rates]


def _lambdas(p: Profile, seed: int) -> list[RunConfig]:
    """Figure 6: the distribution of γ at five λ."""
    return [p.sparse_config(lam, seed) for lam in p.lams]


def _gamma_study(p: Profile, seed: int) -> list[RunConfig]:
    """Notebook 12: how γ gets to 1e-10. The chosen λ under other schedules and penalties."""
    return [
        p.sparse_config(seed=seed),
        p.sparse_config(seed=seed, schedule="cosine_epoch"),
        p.sparse_config(seed=seed, schedule="constant"),
        p.sparse_config(seed=seed, penalty="proximal"),
        p.sparse_config(seed=seed, penalty="l2"),
    ]


def _huge_lambda(p: Profile, seed: int) -> list[RunConfig]:
    """Section 3.2.1 and notebook 02: a λ that is too large."""
    return [p.sparse_config(p.huge_lam, seed)]


def _se_rules(p: Profile, seed: int) -> list[RunConfig]:
    """Beside Table 5: squeeze-and-excitation pruned by each rule. Which one is the paper's, and does it matter?"""
    configs = []
    for rule in SE_RULES:
        for repeat in range(p.repeats):
            configs.append(p.pruned_config(0.5, seed, repeat=repeat, squeeze=rule))
    return configs


def _sparse(p: Profile, seed: int) -> list[RunConfig]:
    """Table 2 and Figure 7: the network of the chosen λ, whose filters are scored."""
    return [p.sparse_config(seed=seed)]


def _pruned(p: Profile, seed: int) -> list[RunConfig]:
    """Table 5 and Figure 8: the network with half of its filters."""
    return [p.pruned_config(0.5, seed)]


def _pilots(p: Profile, seed: int) -> list[RunConfig]:
    """The trainings by which the profile's own numbers were chosen."""
    trials = TRIALS[p.name]
    held_out = [replace(p.sparse_config(seed=seed, **changes), holdout=trials.holdout) for changes in trials.held_out]
    return held_out + [p.sparse_config(seed=seed, **changes) for changes in trials.on_all_images]


def _doses(p: Profile, seed: int) -> list[RunConfig]:
    """What makes early filters die: sparse training with one thing changed at a time, the most telling first."""
    plain = p.sparse_config(seed=seed)
    last_stride_1 = NetworkConfig(strides=(*STRIDES[:12], 1, *STRIDES[13:]))
    return [
        p.sparse_config(seed=seed, augment="none"),
        replace(plain, network=last_stride_1),
        p.sparse_config(seed=seed, lam=1e-4, augment="none"),
        p.sparse_config(seed=seed, lam=1e-4),
        p.sparse_config(seed=seed, image_size=32),
        replace(plain, network=NetworkConfig(initial="torch")),
    ]


def _some_rates(p: Profile, seed: int) -> list[RunConfig]:
    """The part of Table 3 that further seeds train."""
    return [p.pruned_config(0.3, seed), p.pruned_config(0.6, seed)]


def _some_criteria(p: Profile, seed: int) -> list[RunConfig]:
    """The part of Table 4 that further seeds train."""
    return [p.pruned_config(0.5, seed, criterion) for criterion in ("gamma", "sparsity", "l1_gamma")]


def _second_half(p: Profile, seed: int) -> list[RunConfig]:
    """The part of Table 6 that further seeds train."""
    if not p.second:
        return []
    return [p.pruned_config(0.0, seed, dataset=p.second), p.pruned_config(0.5, seed, dataset=p.second)]


# in order of value: the first runs are the ones to have when time is short
EXPERIMENTS: dict[str, Callable[[Profile, int], list[RunConfig]]] = {
    "plain_and_sparse": _plain_and_sparse,
    "half": _half,
    "rates": _rates,
    "second": _second,
    "criteria": _criteria,
    "scratch": _scratch,
    "aligned": _aligned,
    "lambdas": _lambdas,
    "gamma_study": _gamma_study,
    "huge_lambda": _huge_lambda,
    "se_rules": _se_rules,
    "sparse": _sparse,
    "pruned": _pruned,
    "pilots": _pilots,
    "doses": _doses,
    "some_rates": _some_rates,
    "some_criteria": _some_criteria,
    "second_half": _second_half,
}


# The profiles: from here on, nothing but numbers.

DIGITS = Profile(
    "digits",
    "digits",
    # γ starts at 0.5, as in network slimming: so few steps would not bring it from 1 to 0
    sparse=TrainConfig(epochs=12, batch_size=48, image_size=32, lr=3e-3, gamma_init=0.5),
    finetune=TrainConfig(epochs=4, batch_size=48, image_size=32, lr=1e-3),
    lams=(0.0, 1.4e-5, 1.4e-4, 1.4e-3, 1.4e-2),
    lam=1.4e-3,  # larger than the paper's for the same reason: few steps
    huge_lam=0.2,
    collapse=(0.65, 0.7, 0.8, 0.9),  # on so easy a task the network breaks late
    repeats=1,
    minutes={
        0: 1.0,
        1: 0.3,
        2: 2.0,
        3: 0.7,
        4: 0.7,
        5: 2.5,
        6: 2.5,
        7: 0.8,
        8: 0.2,
        9: 1.5,
        10: 0.5,
        11: 0.4,
        12: 1.5,
        13: 0.5,
        14: 1.0,
        15: 0.7,
        16: 0.8,
    },
)

# as digits, but one epoch of a few images: whether everything runs, not what comes out
SMOKE = replace(
    DIGITS,
    name="smoke",
    sparse=replace(DIGITS.sparse, epochs=1, batch_size=64),
    finetune=replace(DIGITS.finetune, epochs=1, batch_size=64),
    rates=(0.0, 0.3, 0.5),
    collapse=(0.7,),
    train_images=128,
    minutes={},
)

_CIFAR_SPARSE = TrainConfig(
    epochs=16,  # what two CPU cores afford for some 60 runs
    batch_size=64,  # this and the learning rate: the pilots' best at equal size and epochs
    image_size=64,  # the paper's 224 px take twelve times as long
    lr=1e-3,
    augment="crop_flip",
)
CIFAR = Profile(
    "cifar",
    "cifar10",
    sparse=_CIFAR_SPARSE,
    finetune=replace(_CIFAR_SPARSE, epochs=3, lr=5e-4),
    lams=(0.0, 3e-6, 3e-5, 3e-4, 3e-3),
    # λ is to kill 40 to 50 % of the filters, as in the paper. At this batch size and learning rate, the share of dead
    # filters goes with λ times the sum of all learning rates: 26 % at 8.4e-5, 37 % at 12.5e-5, and 46 % at 18.8e-5,
    # which is this λ (results/README.md has the runs)
    lam=3e-5,
    rates=(0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6),  # every second of the paper's
    repeats=1,
    second="cifar100",
    plan=(
        PlanStep(("plain_and_sparse", "half"), seeds=(0,)),
        PlanStep(("plain_and_sparse", "half"), seeds=(1, 2)),
        PlanStep(("rates",), seeds=(0,)),
        PlanStep(("some_rates",), seeds=(1, 2)),
        PlanStep(("second",), seeds=(0,)),
        PlanStep(("second_half",), seeds=(1, 2)),
        PlanStep(("criteria",), seeds=(0,)),
        PlanStep(("some_criteria",), seeds=(1, 2)),
        PlanStep(("scratch", "aligned", "lambdas", "se_rules", "huge_lambda", "gamma_study"), seeds=(0,)),
    ),
    recorded=True,
    seeds=3,
)

# three times as many epochs, and so the paper's own λ and batch size: minutes of a GPU per run
_GPU_SPARSE = replace(_CIFAR_SPARSE, epochs=50, batch_size=128)
GPU = replace(
    CIFAR,
    name="gpu",
    sparse=_GPU_SPARSE,
    finetune=replace(_GPU_SPARSE, epochs=10, lr=5e-4),
    lams=PAPER_LAMS,
    lam=1e-5,
)

_PAPER_SPARSE = TrainConfig(
    epochs=200,
    batch_size=128,  # not in the paper, as schedule and augmentation: chosen once, the same for every run
    image_size=224,
    lr=1e-3,
)
PAPER = Profile(
    "paper",
    "cifar10",
    sparse=_PAPER_SPARSE,
    finetune=replace(_PAPER_SPARSE, epochs=150),
    repeats=1,
    second="cifar100",
    judges_accuracy=True,
)

PROFILES = {profile.name: profile for profile in (SMOKE, DIGITS, CIFAR, GPU, PAPER)}


@dataclass(frozen=True)
class Latency:
    """How much is measured in the notebooks on deployment (09 and 14 to 16), and what is cut for it."""

    multiple_of: int = 16  # widths are rounded to multiples of this
    rates: tuple[float, ...] = (0.5, 0.6, 0.7)  # of the networks with such widths that are fine-tuned
    targets: tuple[float, ...] = (0.5, 0.55, 0.6, 0.7, 0.8)  # latencies aimed at, as shares of the dense blocks'
    image_size: int = 224  # at which time is measured: the size that these networks were designed for
    batches: tuple[int, ...] = (1, 32)  # images per call
    rounds: int = 31  # measurements of each network; odd, so that the median is one of them
    slow_rounds: int = 5  # the same for larger batches
    widths: int = 60  # measured per block
    calibration: int = 128  # images that set the ranges of int8


# digits measures less, to be done in a minute, and smoke as little as possible
_DIGITS_LATENCY = Latency(rounds=15, slow_rounds=2, calibration=32)
LATENCY = {
    "smoke": replace(_DIGITS_LATENCY, rates=(0.5,), image_size=32, batches=(1,), widths=4, rounds=3),
    "digits": _DIGITS_LATENCY,
    "cifar": Latency(),
    "gpu": Latency(),
    "paper": Latency(),
}


@dataclass(frozen=True)
class Trials:
    """The trainings by which a profile's numbers were chosen, as changes of its sparse training."""

    held_out: tuple[dict, ...] = ()  # judged by their accuracy on held-out images
    holdout: int = 0  # so many training images are held out
    on_all_images: tuple[dict, ...] = ()  # tell the share of dead filters, which needs no held-out images


TRIALS = {
    "smoke": Trials(),
    "digits": Trials(),
    "cifar": Trials(
        held_out=(
            # batch size and learning rate, at equal epochs
            {"epochs": 8, "batch_size": 64, "lr": 1e-3, "image_size": 64, "lam": 3e-5},
            {"epochs": 8, "batch_size": 128, "lr": 1e-3, "image_size": 64, "lam": 3e-5},
            {"epochs": 8, "batch_size": 128, "lr": 2e-3, "image_size": 64, "lam": 3e-5},
            # does the penalty help at a large learning rate?
            {"epochs": 8, "batch_size": 128, "lr": 2e-3, "image_size": 64, "lam": 0.0},
            # image size, at equal CPU time
            {"epochs": 5, "batch_size": 128, "lr": 2e-3, "image_size": 80, "lam": 3e-5},
            {"epochs": 10, "batch_size": 128, "lr": 2e-3, "image_size": 56, "lam": 3e-5},
            # batch size once more, at half of the epochs
            {"epochs": 4, "batch_size": 128, "lr": 2e-3, "image_size": 64, "lam": 3e-5},
            {"epochs": 4, "batch_size": 64, "lr": 2e-3, "image_size": 64, "lam": 3e-5},
        ),
        holdout=5000,
        on_all_images=({"lam": 0.0}, {"lam": 2e-5}),
    ),
    "gpu": Trials(on_all_images=({"lam": 6e-6}, {"lam": 1.6e-5})),
    "paper": Trials(),
}


_PAPER_LONE = TrainConfig(epochs=200, lr=1e-3, lam=1e-5)  # the paper's Adam, λ and epochs


@dataclass(frozen=True)
class LoneGammas:
    """Notebook 12: γ that only the penalty moves, without network or data, as the paper trains."""

    train: TrainConfig = _PAPER_LONE
    steps: int = 100  # per epoch
    count: int = 256  # number of γ
    proximal_lam: float = 0.1  # a λ at which the proximal step moves them within these steps


LONE_GAMMAS = {
    "smoke": LoneGammas(train=replace(_PAPER_LONE, epochs=20, lr=1e-2)),  # a tenth of the steps, ten times the rate
    "digits": LoneGammas(),
    "cifar": LoneGammas(),
    "gpu": LoneGammas(),
    "paper": LoneGammas(),
}
