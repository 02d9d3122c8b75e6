"""The whole job in stages that each leave a file: train sparsely, choose the rate, prune, fine-tune, export."""

import json
import os
import sys
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from ..blocks import blocks
from ..costs import count_parameters
from ..data.batches import Dataset, steps_per_epoch
from ..data.datasets import load_dataset
from ..deploy.latency import interleaved, onnx_runner, ratios
from ..deploy.template import fused, onnx_template, with_weights
from ..importance import score
from ..networks.checkpoint import load_model, save_model
from ..networks.zoo import build_network, load_network
from ..pruning import keep_masks, prune
from ..repair import fold_bias, reestimate_batchnorm
from ..system.device import with_threads
from ..system.files import write_file
from ..system.tensors import load_tensors, save_tensors
from ..training import TrainConfig, evaluate, train
from .job import Job
from .page import LATENCY_ROUNDS, write_results

# the rates that a target chooses from
FINE_RATES = [percent / 100 for percent in range(1, 100)]  # if counting parameters is enough to judge a rate
COARSE_RATES = [percent / 100 for percent in range(5, 100, 5)]  # if each needs a measurement or a training
RECALIBRATION_IMAGES = 1024  # training images on which BatchNorm is measured anew after each training


@torch.random.fork_rng(devices=[])
def slim(job: Job) -> Path:
    """Do `job` and return its folder: network.safetensors, network.onnx, network_int8.onnx, report.html, .md and .png.

    The stages are sparse training (left out if the job names a criterion), the choice of the rate, pruning with
    compensation, fine-tuning, and export. `stages/` keeps each stage's network. An interrupted job resumes after its
    last completed epoch and ends with the same network (on a CPU). For the target `max_drop`, a tenth of the training
    images is held out to judge the drop. Test images decide nothing. Raises ValueError or FileNotFoundError for bad
    input, and ValueError for a target that no rate meets, with the nearest value that one does.
    """
    blocks(build_network(job.network, num_classes=2))  # refuses a network without blocks before any photo is read

    torch.manual_seed(job.seed)
    data = load_dataset(job.data, image_size=job.image_size)
    image_size = job.image_size or max(32, *data.train_images.shape[2:])
    network = load_network(job.network, job.weights, len(data.classes))
    target, wanted = job.target
    training_data = hold_out_a_tenth(data) if target == "max_drop" else data
    job.claim_folder(data)

    about = {"network": job.network, "criterion": job.criterion or "gamma_sparsity"}
    if job.weights not in (None, "DEFAULT") and not job.criterion:  # pretrained classes are not these
        accuracy = evaluate(network, data.test_images, data.test_labels, image_size)
        about["accuracy as given"] = round(accuracy, 4)
    if not job.criterion:
        network = train_sparsely(job, network, training_data, image_size)
    pruning = Pruning(job, network.eval(), training_data, image_size)
    rate = choose_rate(pruning)
    small = pruning.finetune(rate)

    print("slim: measuring and writing", file=sys.stderr)
    if target != "rate":
        about["target"] = f"{target} {wanted:g}"
    about["rate"] = rate
    write_results(Path(job.out), pruning.dense, small, data, image_size, about)
    return Path(job.out)


def hold_out_a_tenth(data: Dataset) -> Dataset:
    """`data` with the last tenth of the training images as test images."""
    count = max(1, len(data.train_images) // 10)
    held_out = data.subset(holdout=count)
    print(
        f"slim: {count} training images are held out to judge the drop, {100 / count:.2g} points per image; "
        "accuracies are measured on them until the end",
        file=sys.stderr,
    )
    return held_out


def train_sparsely(job: Job, network: nn.Module, data: Dataset, image_size: int) -> nn.Module:
    """`network` after training with the penalty on γ (Eq. 1)."""
    lam = job.lam
    if lam is None:
        steps = max(1, job.epochs * steps_per_epoch(data, job.batch_size))
        lam = 0.5 / steps
    return train_stage(job, "1_sparse", network, data, job.train_config(image_size, lam))


def train_stage(job: Job, name: str, model: nn.Module, data: Dataset, config: TrainConfig) -> nn.Module:
    """`model` after the training `config`: read from the stage's file if it exists, otherwise trained and stored.

    Resumes an interrupted training after its last completed epoch.
    """
    path = job.stage_file(f"{name}.safetensors")
    if path.is_file():
        return load_model(path)

    state_path = job.stage_file(f"{name}.state.safetensors")
    state = None
    history = []
    threads = torch.get_num_threads()
    if state_path.is_file():
        try:
            state, metadata = load_tensors(state_path)
        except ValueError as error:
            raise ValueError(f"{error}; remove {state_path} to start this stage again") from error
        history = metadata["history"]
        threads = metadata["threads"]
    first_epoch = max(1, len(history))  # row 0 of a history is the state before the first epoch
    print(f"slim: {name}, epochs {first_epoch} to {config.epochs}", file=sys.stderr)

    def seed_dropout(epoch: int) -> None:
        """Dropout in an epoch draws the same whether the training was interrupted before it or not."""
        torch.manual_seed(job.seed + epoch)

    def store_epoch(tensors: dict[str, Tensor], rows: list[dict]) -> None:
        save_tensors(state_path, tensors, {"history": rows, "threads": threads})
        seed_dropout(len(rows))  # the number of the next epoch

    seed_dropout(first_epoch)
    shown = os.environ.get("MNV3NB_HEADLESS") != "1"
    with with_threads(threads):  # another number of threads would change the last bits
        train(model, data, config, state=state, history=history, on_epoch=store_epoch, progress=shown, label=name)

    # a training of few steps ends before the running averages have caught up, so accuracy often jumps here
    images = data.train_images[:RECALIBRATION_IMAGES]
    reestimate_batchnorm(model, images, config.image_size, augment=config.augment)
    if shown:
        accuracy = evaluate(model, data.test_images, data.test_labels, config.image_size)
        print(f"slim: {name}, BatchNorm re-estimated: test accuracy {accuracy:.2%}", file=sys.stderr)
    save_model(model, path, image_size=config.image_size, classes=data.classes)
    state_path.unlink(missing_ok=True)
    return load_model(path)  # not `model`: so the next stage gets the same network as when it finds the file


class Pruning:
    """The dense network of a job, and what is left of it at each rate."""

    def __init__(self, job: Job, dense: nn.Module, data: Dataset, image_size: int):
        self.job = job
        self.dense = dense
        self.data = data
        self.image_size = image_size
        self.scores = score(dense, job.criterion or "gamma_sparsity", seed=job.seed)

    def masks(self, rate: float) -> list[Tensor]:
        """The filters that stay at `rate`, with the job's rounding of widths."""
        return keep_masks(self.scores, rate, self.job.multiple_of)

    def small_network(self, rate: float) -> nn.Module:
        """The network pruned at `rate`, neither compensated nor fine-tuned: enough to count and to time."""
        return prune(self.dense, self.masks(rate))

    def finetune(self, rate: float) -> nn.Module:
        """The network pruned at `rate`, compensated and fine-tuned."""
        small = self.small_network(rate)
        if not self.job.criterion:  # after sparse training the removed channels are constants, which folding restores
            small = fold_bias(self.dense, small, self.masks(rate), self.image_size)
        config = self.job.train_config(self.image_size)
        return train_stage(self.job, f"2_finetuned_{rate:g}", small, self.data, config)

    def parameters(self, rate: float) -> int:
        """Parameters left."""
        return count_parameters(self.small_network(rate))

    def latency(self, rate: float) -> float:
        """Latency divided by the dense network's, for one of COARSE_RATES."""
        return self._latencies[rate]

    def drop(self, rate: float) -> float:
        """Percentage points of accuracy lost on the held-out images, after fine-tuning."""
        return 100 * (self._accuracy(self.dense) - self._accuracy(self.finetune(rate)))

    @cached_property
    def _latencies(self) -> dict[float, float]:
        """Latency ratio by rate, measured for all rates together: ONNX Runtime, one thread, batch 1."""
        networks = {"dense": self.dense}
        for rate in COARSE_RATES:
            networks[rate] = self.small_network(rate)
        template = onnx_template(self.dense, self.image_size)
        runners = {}
        for name, network in networks.items():
            graph = with_weights(template, fused(network).state_dict())
            runners[name] = onnx_runner(graph)
        times = interleaved(runners, LATENCY_ROUNDS)
        return ratios(times).ratio.drop("dense").to_dict()

    def _accuracy(self, model: nn.Module) -> float:
        return evaluate(model, self.data.test_images, self.data.test_labels, self.image_size)


def choose_rate(pruning: Pruning) -> float:
    """The rate that the job's target asks for, decided once and kept in a file.

    Raises ValueError for a target that no rate meets, with the nearest value that one does.
    """
    target, wanted = pruning.job.target
    if target == "rate":
        return wanted
    path = pruning.job.stage_file("rate.json")
    if path.is_file():
        return json.loads(path.read_text())
    if target == "parameters":
        rate = rate_for_parameters(pruning, wanted)
    elif target == "latency":
        rate = rate_for_latency(pruning, wanted)
    else:
        rate = rate_for_drop(pruning, wanted)
    write_file(path, json.dumps(rate))
    return rate


def rate_for_parameters(pruning: Pruning, wanted: float) -> float:
    """The lowest rate that leaves at most `wanted` parameters."""
    for rate in FINE_RATES:
        if pruning.parameters(rate) <= wanted:
            return rate
    highest = FINE_RATES[-1]
    raise unreachable(pruning.job, nearest=pruning.parameters(highest), rate=highest)


def rate_for_latency(pruning: Pruning, wanted: float) -> float:
    """The lowest rate at which the latency ratio is at most `wanted`."""
    for rate in COARSE_RATES:
        if pruning.latency(rate) <= wanted:
            return rate
    fastest = min(COARSE_RATES, key=pruning.latency)  # not always the highest: some widths are slow
    raise unreachable(pruning.job, nearest=pruning.latency(fastest), rate=fastest)


def rate_for_drop(pruning: Pruning, wanted: float) -> float:
    """The highest rate at which at most `wanted` percentage points are lost.

    Each trial is a fine-tuning, so this is a bisection: it takes for granted that a higher rate loses more.
    """
    lowest = COARSE_RATES[0]
    drop = pruning.drop(lowest)
    if drop > wanted:
        raise unreachable(pruning.job, nearest=drop, rate=lowest)

    low = 0  # rates before this place lose little enough
    high = len(COARSE_RATES)  # rates from this place on lose too much
    while low < high:
        middle = (low + high) // 2
        rate = COARSE_RATES[middle]
        drop = pruning.drop(rate)
        print(f"slim: rate {rate:g} loses {drop:.2f} points, at most {wanted:g} may be lost", file=sys.stderr)
        if drop <= wanted:
            low = middle + 1
        else:
            high = middle
    return COARSE_RATES[low - 1]


def unreachable(job: Job, nearest: float, rate: float) -> ValueError:
    """The error for a target that no rate meets."""
    target, wanted = job.target
    return ValueError(
        f"the target {target} {wanted:g} cannot be met: "
        f"the nearest is {nearest:.8g}, at rate {rate:g} with multiples of {job.multiple_of}"
    )
