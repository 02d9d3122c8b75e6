"""One loop for plain training, sparse training and fine-tuning; it can be stopped after any epoch and go on exactly."""

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm.auto import tqdm

from .data import AUGMENTATIONS, Dataset, batches, to_input
from .model import batch_norms
from .small_maps import SmallMaps

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
        for name, allowed in (
            ("schedule", SCHEDULES),
            ("penalty", PENALTIES),
            ("penalized", PENALIZED),
            ("augment", AUGMENTATIONS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name, least in (("epochs", 0), ("batch_size", 2), ("image_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be a whole number ≥ {least}, got {value!r}")
        for name in ("lr", "lam", "gamma_init"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be a finite number ≥ 0, got {value!r}")
            object.__setattr__(self, name, float(value))  # 1 and 1.0 are one name


def pick_device(name: str | None = None) -> torch.device:
    """The device named, else `$MNV3NB_DEVICE`, else cuda, else mps, else cpu."""
    name = name or os.environ.get("MNV3NB_DEVICE")
    if not name:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.device(name)
    except RuntimeError:
        raise ValueError(f"unknown device {name!r}; cuda, mps and cpu are usual") from None


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

    Returns the history, one dict an epoch: epoch, lr, train_loss (cross-entropy), train_accuracy, test_accuracy (both in
    [0, 1]), seconds. `on_epoch(state, history)` is called after each epoch; stored then (the tensors go on changing) and
    given back as `state` and `history`, the training goes on from there, bit for bit (CPU, same number of threads). bf16
    autocast on CUDA, no host sync inside an epoch. Any network will do; λ acts on its BatchNorms.
    Raises FloatingPointError at the end of the first epoch whose loss or γ was not finite.
    """
    if (state is None) != (not history):
        raise ValueError("state and history go together: give both, as on_epoch got them, or neither")
    device = pick_device(device)
    model.to(device, memory_format=torch.channels_last)
    images, labels = dataset.train_images.to(device), dataset.train_labels.to(device)
    test_images, test_labels = dataset.test_images.to(device), dataset.test_labels.to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, fused=device.type != "mps")
    history = list(history or [])
    if state is not None:
        _restore(model, optimizer, state)
    elif not history:
        accuracy = evaluate(model, test_images, test_labels, config.image_size)
        history = [{"epoch": 0, "lr": 0.0, "train_loss": None, "train_accuracy": None, "test_accuracy": accuracy, "seconds": 0.0}]
    layers = [unit.expand[1] for unit in model.blocks] if config.penalized == "expansion" else batch_norms(model)
    gammas = [bn.weight for bn in layers if bn.weight is not None and bn.weight.requires_grad]
    if config.lam and not gammas:
        raise ValueError(f"λ={config.lam:g} has nothing to act on: no BatchNorm2d of this network has a trainable γ")
    full, rest = divmod(len(images), config.batch_size)
    steps = max(1, full + (rest > 1))
    bar = _progress_bar(config.epochs, len(history) - 1, label) if progress else None
    for epoch in range(len(history), config.epochs + 1):
        start = time.perf_counter()
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        total, correct = torch.zeros(2, device=device)
        bad = torch.full((), steps, device=device)
        model.train()
        epoch_batches = batches(images, labels, config.batch_size, generator=generator, augment=config.augment)
        for step, (x, y) in enumerate(epoch_batches):
            lr = learning_rate(config, (epoch - 1) * steps + step, steps)
            optimizer.param_groups[0]["lr"] = lr
            with _fast(device):
                logits = model(to_input(x, config.image_size))
                loss = F.cross_entropy(logits, y)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            if config.lam and config.penalty != "proximal":
                with torch.no_grad():
                    pull = torch._foreach_sign(gammas) if config.penalty == "subgradient" else gammas
                    torch._foreach_add_([g.grad for g in gammas], pull, alpha=config.lam)
            optimizer.step()
            if config.lam and config.penalty == "proximal":
                _soft_threshold(gammas, lr * config.lam)
            with torch.no_grad():
                total += loss * len(y)
                correct += (logits.argmax(1) == y).sum()
                bad = torch.where(torch.isfinite(loss), bad, torch.clamp(bad, max=step))
        if (first := int(bad)) < steps or not all(bool(g.isfinite().all()) for g in gammas):
            step = min(first, steps - 1)
            lr = learning_rate(config, (epoch - 1) * steps + step, steps)
            raise FloatingPointError(
                f"training diverged: loss or γ not finite in epoch {epoch}, step {step}, "
                f"with λ={config.lam:g}, lr={lr:g}; take a smaller λ or learning rate"
            )
        seen = min(len(images), steps * config.batch_size)
        history.append({
            "epoch": epoch, "lr": lr, "train_loss": float(total) / seen, "train_accuracy": float(correct) / seen,
            "test_accuracy": evaluate(model, test_images, test_labels, config.image_size),
            "seconds": time.perf_counter() - start,
        })  # fmt: skip
        if on_epoch:
            on_epoch(_snapshot(model, optimizer), list(history))
        if bar is not None:
            bar(history[-1])
    return history


@torch.no_grad()  # not inference_mode: weights laid out anew in it could not be trained afterwards
def evaluate(model: nn.Module, images: Tensor, labels: Tensor, image_size: int, batch_size: int = 500) -> float:
    """Share of `images` (uint8 (N, 3, H, W)) that `model` labels right, in [0, 1]; leaves it in eval mode, channels_last.

    Raises ValueError unless there is one label (N,) an image.
    """
    if not len(images) or labels.shape != (len(images),):
        raise ValueError(f"give one label an image: {len(images)} images, labels of shape {tuple(labels.shape)}")
    parameter = next(model.parameters())
    model.to(memory_format=torch.channels_last).eval()
    correct = torch.zeros((), device=parameter.device)
    for start in range(0, len(images), batch_size):
        x, y = (t[start : start + batch_size].to(parameter.device) for t in (images, labels))
        with _fast(parameter.device):
            correct += (model(to_input(x, image_size)).argmax(1) == y).sum()
    return int(correct) / len(images)


@torch.no_grad()
def recalibrate(model: nn.Module, images: Tensor, image_size: int, batch_size: int = 128) -> None:
    """Measure the running mean and variance of every BatchNorm of `model` anew, in place: averages over batches of `images`.

    The cheap repair after pruning, no labels and no gradients; weights, γ and β stay. `images`: uint8 (N, 3, H, W), a few
    hundred training images; a last batch of one is left out. Leaves the network in eval mode.
    Raises ValueError if no batch has two images.
    """
    if min(len(images), batch_size) < 2:
        raise ValueError(f"BatchNorm measures batches of at least 2 images, got {len(images)} in batches of {batch_size}")
    layers = list(batch_norms(model))
    momenta = [bn.momentum for bn in layers]
    for bn in layers:
        bn.reset_running_stats()
        bn.momentum = None  # a plain average
    model.train()
    device = next(model.parameters()).device
    try:
        for part in images.split(batch_size):
            if len(part) > 1:
                model(to_input(part.to(device), image_size))
    finally:
        for bn, momentum in zip(layers, momenta):
            bn.momentum = momentum
        model.eval()


def learning_rate(config: TrainConfig, step: int, steps: int) -> float:
    """Learning rate of global `step` (from 0) with `steps` steps an epoch.

    The last step of "cosine" has lr·(π/2T)², T = epochs·steps, and a γ that only the penalty moves comes to rest
    within a hundred times that: the dead band of Table 2.
    """
    if config.schedule == "constant":
        return config.lr
    done = step / (config.epochs * steps) if config.schedule == "cosine" else step // steps / config.epochs
    return config.lr * 0.5 * (1 + math.cos(math.pi * done))


def _fast(device: torch.device) -> contextlib.AbstractContextManager:
    """What a forward pass gains from on `device`: bf16 on CUDA, better kernels for tiny maps on a CPU."""
    if device.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16)
    return SmallMaps() if device.type == "cpu" else contextlib.nullcontext()


@torch.no_grad()
def _soft_threshold(gammas: list[Tensor], amount: float) -> None:
    magnitude = torch._foreach_abs(gammas)
    torch._foreach_sub_(magnitude, amount)
    torch._foreach_clamp_min_(magnitude, 0.0)
    sign = torch._foreach_sign(gammas)
    torch._foreach_mul_(sign, magnitude)
    torch._foreach_copy_(gammas, sign)


def _snapshot(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        state |= {f"optimizer.{name}.{key}": value for key, value in optimizer.state[parameter].items()}
    return state


def _restore(model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    model.load_state_dict({key[6:]: value for key, value in state.items() if key.startswith("model.")})
    for name, parameter in model.named_parameters():
        for key in ("step", "exp_avg", "exp_avg_sq"):
            if (value := state.get(f"optimizer.{name}.{key}")) is None:  # a frozen parameter
                continue
            value = value.to(parameter.device)
            optimizer.state[parameter][key] = value if key == "step" else torch.empty_like(parameter).copy_(value)


def _progress_bar(epochs: int, done: int, label: str) -> Callable[[dict], None]:
    """A bar in terminals and live notebooks, one line an epoch where output goes to a file."""
    live = sys.stderr.isatty() or "ipykernel" in sys.modules
    bar = tqdm(total=epochs, initial=done, desc=label, unit="epoch", leave=False, disable=not live)

    def update(row: dict) -> None:
        text = f"loss {row['train_loss']:.4f}, test accuracy {100 * row['test_accuracy']:.2f} %"
        bar.set_postfix_str(text, refresh=False)
        bar.update()
        if not live:
            print(f"{label or 'epoch'} {row['epoch']}/{epochs}: {text}, {row['seconds']:.1f} s", flush=True)
        if row["epoch"] == epochs:
            bar.close()

    return update
