"""One loop for plain and sparse training and fine-tuning; stopped after any epoch, it resumes exactly."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import batch_norms, blocks
from .data.batches import AUGMENTATIONS, Dataset, batches, read_ahead, to_input
from .system.device import pick_device
from .system.progress import Progress
from .system.speed import Replayed, adam, fast_forward, set_rate

SCHEDULES = ("cosine", "cosine_epoch", "constant")
PENALTIES = ("subgradient", "proximal", "l2")
PENALIZED = ("all", "expansion")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training, the paper's where it says (section 3.1: Adam, lr 0.001; Eq. 1: λ).

    `lam`: λ ≥ 0 on the γ of `penalized` BatchNorms ("all" or "expansion"), 0 = off. `penalty`: "subgradient" adds
    λ·sign(γ) to the gradient (network slimming), "proximal" shrinks |γ| by lr·λ after the step, "l2" adds λ·γ (Adam's
    weight_decay). `schedule`: "cosine" anneals `lr` to 0 by step, "cosine_epoch" by epoch, "constant" not at all.
    `gamma_init`: of the network that a run starts with, see `MobileNetV3Large`. `augment`: see `mnv3nb.data.batches`.
    """

    epochs: int = 25
    batch_size: int = 32
    image_size: int = 32
    lr: float = 1e-3
    schedule: str = "cosine"
    lam: float = 0.0
    penalty: str = "subgradient"
    penalized: str = "all"
    gamma_init: float = 1.0
    augment: str = "none"
    seed: int = 0

    def __post_init__(self):
        words = {"schedule": SCHEDULES, "penalty": PENALTIES, "penalized": PENALIZED, "augment": AUGMENTATIONS}
        for name, allowed in words.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name, least in {"epochs": 0, "batch_size": 2, "image_size": 1, "seed": 0}.items():
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be an integer ≥ {least}, got {value!r}")
        for name in ("lr", "lam", "gamma_init"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number ≥ 0, got {value!r}")
            object.__setattr__(self, name, float(value))  # 1 and 1.0 are one name


def train(
    model: nn.Module,
    dataset: Dataset,
    config: TrainConfig,
    *,
    device: str | None = None,
    state: dict[str, Tensor] | None = None,
    history: list[dict] | None = None,
    on_epoch: Callable[[dict[str, Tensor], list[dict]], None] | None = None,
    progress: bool = True,
    label: str = "",
) -> list[dict]:
    """Train `model` in place on the training images; test accuracy after every epoch (row 0: before the first step).

    Any network will do. Returns the history, one dict per epoch: epoch, lr, train_loss (cross-entropy), train_accuracy,
    test_accuracy (in [0, 1]), seconds. `on_epoch(state, history)` is called after each epoch; stored then (the tensors
    keep changing) and given back as `state` and `history`, training resumes from there, bit for bit (CPU, same number
    of threads). Raises FloatingPointError at the end of the first epoch whose loss or γ was not finite.
    """
    if (state is not None) != bool(history):
        raise ValueError("state and history go together: give both, as on_epoch received them, or neither")
    if config.lam and not _penalized_gammas(model, config.penalized):
        raise ValueError(f"λ={config.lam:g} has nothing to act on: no BatchNorm2d of this network has a trainable γ")
    device = pick_device(device)
    model.to(device, memory_format=torch.channels_last)
    data = dataset.to(device)
    optimizer = adam(model, config.lr, device)
    totals, history = torch.zeros(3, device=device), list(history or [])  # totals: see _step
    step = Replayed(partial(_step, model, optimizer, config, totals), model, device)
    if state is not None:
        restore(model, optimizer, state)
    else:
        accuracy = evaluate(model, data.test_images, data.test_labels, config.image_size)
        row = {"epoch": 0, "lr": 0.0, "train_loss": None, "train_accuracy": None, "test_accuracy": accuracy}
        history = [row | {"seconds": 0.0}]
    with Progress(label, config.epochs, _steps(data, config), len(history) - 1, progress) as bar:
        for epoch in range(len(history), config.epochs + 1):
            began = time.perf_counter()
            row = _train_epoch(step, totals, model, optimizer, data, config, epoch, bar)
            row["test_accuracy"] = evaluate(model, data.test_images, data.test_labels, config.image_size)
            history.append(row | {"seconds": time.perf_counter() - began})
            if on_epoch:
                on_epoch(snapshot(model, optimizer), list(history))
            bar.epoch_done(history[-1])
    return history


def _train_epoch(step, totals: Tensor, model, optimizer, data: Dataset, config: TrainConfig, epoch: int, bar) -> dict:
    steps, generator = _steps(data, config), torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
    model.train()
    step.begin()
    source = batches(data, config.batch_size, generator, config.augment)
    for number, (images, labels) in enumerate(read_ahead(source) if data.mapped else source):
        lr = set_rate(optimizer, learning_rate(config, (epoch - 1) * steps + number, steps))
        step(images.to(totals.device), labels)
        bar.step_done()
    loss, correct, good = totals.tolist()
    totals.zero_()
    _check_finite(model, config, epoch, steps, int(good))
    seen = min(len(data.train_images), steps * config.batch_size)
    return {"epoch": epoch, "lr": lr, "train_loss": loss / seen, "train_accuracy": correct / seen}


def _step(model, optimizer, config: TrainConfig, totals: Tensor, images: Tensor, labels: Tensor) -> None:
    """Adds to `totals`: loss, images classified correctly, and 1 as long as no loss was bad; no step waits for the GPU."""
    with fast_forward(images.device):
        logits = model(to_input(images, config.image_size))
        loss = F.cross_entropy(logits, labels)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    if config.lam and config.penalty != "proximal":
        add_gamma_penalty(model, config.lam, config.penalty, config.penalized)
    optimizer.step()
    with torch.no_grad():
        if config.lam and config.penalty == "proximal":
            amount = optimizer.param_groups[0]["lr"] * config.lam
            for gamma in _penalized_gammas(model, config.penalized):
                gamma -= gamma.clamp(-amount, amount)
        totals[:2] += torch.stack((loss * len(labels), (logits.argmax(1) == labels).sum()))
        totals[2] += totals[0].isfinite()


@torch.no_grad()
def add_gamma_penalty(model: nn.Module, lam: float, penalty: str = "subgradient", penalized: str = "all") -> None:
    """Add the gradient of the sparsity penalty to the γ's gradients (Eq. 1): call it between backward() and step().

    For any network and any training loop. "subgradient" is the derivative of λ·Σ|γ|, λ·sign(γ) (the paper's); "l2" of
    λ/2·Σγ². `penalized`: "all" BatchNorms, or those of each block's "expansion". With distributed data parallelism,
    call it on every process. Raises ValueError for a λ < 0 or an unknown word.
    """
    if lam < 0 or penalty not in ("subgradient", "l2") or penalized not in PENALIZED:
        allowed = "lam must be ≥ 0, penalty 'subgradient' or 'l2', penalized 'all' or 'expansion'"
        raise ValueError(f"{allowed}; got {lam!r}, {penalty!r}, {penalized!r}")
    gammas = [gamma for gamma in _penalized_gammas(model, penalized) if gamma.grad is not None]
    if gammas:
        pull = torch._foreach_sign(gammas) if penalty == "subgradient" else gammas
        torch._foreach_add_([gamma.grad for gamma in gammas], pull, alpha=lam)


@torch.no_grad()  # not inference_mode: weights laid out anew in it could not be trained afterwards
def evaluate(model: nn.Module, images: Tensor, labels: Tensor, image_size: int, batch_size: int = 500) -> float:
    """Share of `images` (uint8 (N, 3, H, W)) that `model` classifies correctly, in [0, 1].

    Leaves the model in eval mode, channels_last. Raises ValueError unless each image has a label and each label an output.
    """
    if not len(images) or labels.shape != (len(images),):
        raise ValueError(f"give one label per image: {len(images)} images, labels of shape {tuple(labels.shape)}")
    device = next(model.parameters()).device
    model.to(memory_format=torch.channels_last).eval()
    correct = torch.zeros((), device=device)
    for x, y in zip(images.split(batch_size), labels.split(batch_size)):
        with fast_forward(device):
            logits = model(to_input(x.to(device), image_size))
        correct += (logits.argmax(1) == y.to(device)).sum()
    if (largest := int(labels.max())) >= logits.shape[1]:
        raise ValueError(f"label {largest} is beyond the network's {logits.shape[1]} outputs: give it more num_classes")
    return int(correct) / len(images)


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Learning rate of global `step` (from 0) with `steps` steps per epoch.

    The last step of "cosine" has lr·(π/2T)², T = epochs·steps, and a γ that only the penalty moves comes to rest
    within a hundred times that: the dead band of Table 2.
    """
    if config.schedule == "constant":
        return config.lr
    done = step / (config.epochs * steps) if config.schedule == "cosine" else (step // steps) / config.epochs
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))


def _steps(data: Dataset, config: TrainConfig) -> int:
    full, rest = divmod(len(data.train_images), config.batch_size)
    return max(1, full + (rest > 1))


def _penalized_gammas(model: nn.Module, penalized: str) -> list[nn.Parameter]:
    layers = [b.expand_bn for b in blocks(model)] if penalized == "expansion" else batch_norms(model)
    return [bn.weight for bn in layers if bn.weight is not None and bn.weight.requires_grad]


def _check_finite(model: nn.Module, config: TrainConfig, epoch: int, steps: int, good: int) -> None:
    gammas = [bn.weight for bn in batch_norms(model) if bn.weight is not None]
    if good < steps or not all(bool(gamma.isfinite().all()) for gamma in gammas):
        lr = learning_rate(config, (epoch - 1) * steps + (step := min(good, steps - 1)), steps)
        where = f"in epoch {epoch}, step {step}, with λ={config.lam:g}, lr={lr:g}"
        raise FloatingPointError(f"training diverged: loss or γ not finite {where}; use a smaller λ or learning rate")


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        state |= {f"optimizer.{name}.{key}": value for key, value in optimizer.state[parameter].items()}
    return state


def restore(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    model.load_state_dict({key[6:]: value for key, value in state.items() if key.startswith("model.")})
    for name, parameter in model.named_parameters():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            if (value := state.get(f"optimizer.{name}.{key}")) is None:  # a frozen parameter
                continue
            value = value.to(parameter.device)
            optimizer.state[parameter][key] = value if key == "step" else torch.empty_like(parameter).copy_(value)
