"""One loop for plain training, sparse training and fine-tuning. Stopped after any epoch, it resumes exactly."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import batch_norms, blocks
from .data.batches import AUGMENTATIONS, Dataset, batches, steps_per_epoch, to_input
from .system.device import pick_device
from .system.progress import Progress
from .system.speed import RecordedStep, fast_forward, make_adam, set_learning_rate

SCHEDULES = ("cosine", "cosine_epoch", "constant")
PENALTIES = ("subgradient", "proximal", "l2")
PENALIZED = ("all", "expansion")


@dataclass(frozen=True)
class TrainConfig:
    """All settings of a training; defaults as in the paper where it gives them (section 3.1, Eq. 1).

    Raises ValueError for a value out of range.
    """

    epochs: int = 25
    batch_size: int = 32  # at least 2, for BatchNorm
    image_size: int = 32  # pixels; images are resized
    lr: float = 1e-3  # of Adam, at the first step
    schedule: str = "cosine"  # half a cosine from lr to 0, by step; "cosine_epoch": by epoch; "constant": lr throughout
    lam: float = 0.0  # λ of the sparsity penalty on γ, 0 = off
    # "subgradient": λ·sign(γ) is added to the gradient (network slimming); "proximal": |γ| shrinks by lr·λ after the
    # step; "l2": λ·γ is added to the gradient (Adam's weight_decay)
    penalty: str = "subgradient"
    penalized: str = "all"  # whose γ the penalty acts on: "all" BatchNorms, or those after each "expansion"
    gamma_init: float = 1.0  # of the network that a run (mnv3nb.runs) builds; `train` does not read it
    augment: str = "none"  # see mnv3nb.data.batches
    seed: int = 0  # of the order of the images and of augmentation

    def __post_init__(self):
        choices = {"schedule": SCHEDULES, "penalty": PENALTIES, "penalized": PENALIZED, "augment": AUGMENTATIONS}
        for name, allowed in choices.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        for name, least in {"epochs": 0, "batch_size": 2, "image_size": 1, "seed": 0}.items():
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer ≥ {least}, got {value!r}")
        for name in ("lr", "lam", "gamma_init"):
            value = getattr(self, name)
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} must be a finite number ≥ 0, got {value!r}")
            object.__setattr__(self, name, float(value))  # configs with 1 and with 1.0 are equal


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
    """Train `model`, any network, in place on the training images. Returns the history, one dict per epoch.

    Its keys: epoch, lr (of the last step), train_loss (cross-entropy), train_accuracy, test_accuracy (in [0, 1]),
    seconds. Row 0 is measured before the first step. `on_epoch(state, history)` is called after each epoch: store both
    at once (the tensors keep changing), give them back as `state` and `history`, and training resumes there, bit for
    bit (CPU, same threads). Raises FloatingPointError when an epoch ends in which a loss or γ was not finite.
    """
    if (state is not None) != bool(history):
        raise ValueError("state and history go together: give both, as on_epoch received them, or neither")
    if config.lam:
        penalized_gammas(model, config.penalized)  # raises ValueError if λ would act on nothing

    device = pick_device(device)
    model.to(device, memory_format=torch.channels_last)
    data = dataset.to(device)
    optimizer = make_adam(model, config.lr, device)
    # sums over an epoch; they stay on the device, since reading them would wait for it
    loss_sum = torch.zeros((), device=device)
    correct = torch.zeros((), device=device)
    finite_steps = torch.zeros((), device=device)  # steps before the first loss that is not finite

    def train_step(images: Tensor, labels: Tensor) -> None:
        with fast_forward(device):
            logits = model(to_input(images, config.image_size))
            loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if config.lam and config.penalty != "proximal":
            add_gamma_penalty(model, config.lam, config.penalty, config.penalized)
        optimizer.step()
        if config.lam and config.penalty == "proximal":
            shrink_gammas(model, optimizer.param_groups[0]["lr"] * config.lam, config.penalized)
        with torch.no_grad():
            loss_sum.add_(loss * len(labels))
            correct.add_((logits.argmax(1) == labels).sum())
            finite_steps.add_(loss_sum.isfinite())  # a sum stays nan or inf after the first bad loss

    run_step = RecordedStep(train_step, model, device)  # faster on CUDA; elsewhere it just calls train_step

    def test_accuracy() -> float:
        return evaluate(model, data.test_images, data.test_labels, config.image_size)

    if state is not None:
        restore(model, optimizer, state)
        history = list(history)
    else:
        before = {"epoch": 0, "lr": 0.0, "train_loss": None, "train_accuracy": None}
        history = [{**before, "test_accuracy": test_accuracy(), "seconds": 0.0}]

    steps = steps_per_epoch(data, config.batch_size)
    seen = min(len(data.train_images), steps * config.batch_size)  # images per epoch
    with Progress(label, config.epochs, steps, len(history) - 1, progress) as bar:
        for epoch in range(len(history), config.epochs + 1):
            began = time.perf_counter()
            # one generator per epoch makes resuming exact; the factor keeps the seeds' sequences apart
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
            for total in (loss_sum, correct, finite_steps):
                total.zero_()
            model.train()
            run_step.begin_epoch()
            for number, (images, labels) in enumerate(batches(data, config.batch_size, generator, config.augment)):
                lr = learning_rate(config, (epoch - 1) * steps + number, steps)
                set_learning_rate(optimizer, lr)
                run_step(images.to(device), labels)
                bar.step_done()
            check_finite(model, config, epoch, steps, int(finite_steps))
            row = {
                "epoch": epoch,
                "lr": lr,
                "train_loss": float(loss_sum) / seen,
                "train_accuracy": float(correct) / seen,
                "test_accuracy": test_accuracy(),
                "seconds": time.perf_counter() - began,
            }
            history.append(row)
            if on_epoch:
                on_epoch(snapshot(model, optimizer), list(history))
            bar.epoch_done(row)
    return history


@torch.no_grad()
def add_gamma_penalty(model: nn.Module, lam: float, penalty: str = "subgradient", penalized: str = "all") -> None:
    """Add the gradient of the sparsity penalty to the γ's gradients (Eq. 1): call it between backward() and step().

    For any network and any training loop. "subgradient": λ·sign(γ), the derivative of the paper's λ·Σ|γ|. "l2": λ·γ,
    that of λ/2·Σγ². `penalized`: "all" BatchNorms, or those of each block's "expansion". With distributed data
    parallelism, call it in every process. Raises ValueError for a λ that is negative or nan, an unknown word, or a
    network without a trainable γ to act on.
    """
    if not lam >= 0 or penalty not in ("subgradient", "l2") or penalized not in PENALIZED:
        allowed = "lam must be ≥ 0, penalty 'subgradient' or 'l2', penalized 'all' or 'expansion'"
        raise ValueError(f"{allowed}; got {lam!r}, {penalty!r}, {penalized!r}")
    gammas = [gamma for gamma in penalized_gammas(model, penalized) if gamma.grad is not None]
    if not gammas:
        return  # before the first backward() there is no gradient to add to
    # _foreach: one kernel for all γ instead of one per layer
    direction = torch._foreach_sign(gammas) if penalty == "subgradient" else gammas
    torch._foreach_add_([gamma.grad for gamma in gammas], direction, alpha=lam)


@torch.no_grad()
def shrink_gammas(model: nn.Module, amount: float | Tensor, penalized: str = "all") -> None:
    """Move every penalized γ towards 0 by `amount`, and no further: the proximal step of λ·Σ|γ| for amount = lr·λ."""
    for gamma in penalized_gammas(model, penalized):
        gamma -= gamma.clamp(-amount, amount)


def penalized_gammas(model: nn.Module, penalized: str) -> list[nn.Parameter]:
    """The trainable γ that the penalty acts on; `penalized`: one of PENALIZED. Raises ValueError if there is none."""
    norms = [block.expand_bn for block in blocks(model)] if penalized == "expansion" else batch_norms(model)
    gammas = [norm.weight for norm in norms if norm.weight is not None and norm.weight.requires_grad]
    if not gammas:
        raise ValueError(f"the penalty has nothing to act on: none of the BatchNorms ({penalized}) has a trainable γ")
    return gammas


@torch.no_grad()  # not inference_mode: weights laid out anew in it could not be trained afterwards
def evaluate(model: nn.Module, images: Tensor, labels: Tensor, image_size: int, batch_size: int = 500) -> float:
    """Share of `images` (uint8 (N, 3, H, W)) that `model` classifies correctly, in [0, 1].

    Leaves the model in eval mode, channels_last. Raises ValueError unless each image has a label and each label an
    output.
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
    smallest, largest = int(labels.min()), int(labels.max())
    if smallest < 0:
        raise ValueError(f"labels must be ≥ 0, got {smallest}")
    if largest >= logits.shape[1]:
        raise ValueError(f"label {largest} is beyond the network's {logits.shape[1]} outputs: give it more num_classes")
    return int(correct) / len(images)


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Learning rate of global `step` (from 0) with `steps` steps per epoch.

    At the last step of "cosine" it is about lr·(π/(2T))² for T = epochs·steps. A γ that only the penalty moves ends
    within a hundred times this value of 0 (measured, notebook 12): the tiny thresholds of Table 2.
    """
    if config.schedule == "constant":
        return config.lr
    if config.schedule == "cosine_epoch":
        return config.lr * _half_cosine((step // steps) / config.epochs)
    return config.lr * _half_cosine(step / (config.epochs * steps))


def _half_cosine(done: float) -> float:
    """From 1 at `done` = 0 to 0 at `done` = 1."""
    return 0.5 * (1 + math.cos(math.pi * done))


def check_finite(model: nn.Module, config: TrainConfig, epoch: int, steps: int, finite_steps: int) -> None:
    """Raises FloatingPointError if a loss of `epoch` or a γ is not finite; names the step, λ and learning rate."""
    gammas = [norm.weight for norm in batch_norms(model) if norm.weight is not None]
    if finite_steps == steps and all(bool(gamma.isfinite().all()) for gamma in gammas):
        return
    step = min(finite_steps, steps - 1)
    lr = learning_rate(config, (epoch - 1) * steps + step, steps)
    where = f"in epoch {epoch}, step {step}, with λ={config.lam:g}, lr={lr:g}"
    raise FloatingPointError(f"training diverged: loss or γ not finite {where}; use a smaller λ or learning rate")


def snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of a training: the tensors of the network and of Adam by name, not copied."""
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, tensor in optimizer.state[parameter].items():
            state[f"optimizer.{name}.{key}"] = tensor
    return state


def restore(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    """Load a `snapshot` into `model` and `optimizer`; `state` is copied."""
    prefix = "model."
    model.load_state_dict({key.removeprefix(prefix): state[key] for key in state if key.startswith(prefix)})
    for name, parameter in model.named_parameters():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            tensor = state.get(f"optimizer.{name}.{key}")
            if tensor is None:  # a frozen parameter
                continue
            tensor = tensor.to(parameter.device, copy=True)  # Adam counts in it: the caller's must not change
            if key != "step":
                tensor = torch.empty_like(parameter).copy_(tensor)  # laid out as the parameter, channels_last
            optimizer.state[parameter][key] = tensor
