"""The five profiles: every number of every experiment."""

from dataclasses import replace

from .._files import lookup
from ..training import TrainConfig
from .profile import LONE, Latency, Profile

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
        ("baseline,half", (0,)),
        ("baseline,half", (1, 2)),
        ("table3", (0,)),
        ("rates", (1, 2)),
        ("table6", (0,)),
        ("half6", (1, 2)),
        ("table4", (0,)),
        ("criteria", (1, 2)),
        ("scratch,aligned,fig6,squeeze,huge,gamma", (0,)),
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
