"""The whole job in stages, each of which leaves a file: train sparsely, choose the rate, prune, fine-tune, export."""

import bisect
import json
import os
import sys
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from ..blocks import blocks
from ..costs import count_parameters
from ..data.batches import Dataset
from ..data.datasets import load_dataset
from ..deploy.latency import fused, interleaved, onnx_runner, onnx_template, ratios, with_weights
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
from .page import write_results

RATES = [i / 100 for i in range(1, 100)]  # that a target chooses from
COARSE = RATES[4::5]  # where each costs a measurement or a training
RECALIBRATION = 1024  # training images: running averages lag behind at the end of a training of few steps


@torch.random.fork_rng(devices=[])
def slim(job: Job) -> Path:
    """Does `job` and returns its folder: network.safetensors, network.onnx, network_int8.onnx, report.html and .md.

    Sparse training (or, with a criterion, the given weights as they are), the rate that the target asks for, pruning
    with compensation, fine-tuning, export. `stages/` keeps each stage's network: a job that was killed resumes after
    its last epoch, and ends the same (CPU). `max_drop` is judged on a tenth of the training images, which are not
    trained on then; test images decide nothing. Raises ValueError or FileNotFoundError for what does not fit or a
    target that cannot be met, naming the nearest that can.
    """
    blocks(build_network(job.network, 2))  # raises ValueError before photos are read
    torch.manual_seed(job.seed)
    data = load_dataset(job.data, image_size=job.image_size)
    size = job.image_size or max(32, *data.train_images.shape[2:])
    start = load_network(job.network, job.weights, len(data.classes))
    part = data.subset(holdout=max(1, len(data.train_images) // 10)) if job.max_drop else data
    job.claim_folder(data)
    if job.max_drop:
        count = len(part.test_images)
        text = f"slim: {count} training images are held out; accuracies until the end are theirs"
        print(f"{text}, {100 / count:.2g} points an image", file=sys.stderr)
    about = {"network": job.network, "criterion": job.criterion or "gamma_sparsity"}
    if job.weights and not job.criterion:
        accuracy = evaluate(start, data.test_images, data.test_labels, size)
        about["accuracy as given"] = round(accuracy, 4)
    if not job.criterion:
        steps = max(1, job.epochs * len(part.train_images) // job.batch_size)
        lam = 0.5 / steps if job.lam is None else job.lam
        start = trained(job, "1_sparse", start, part, job.training(size, lam))
    pruning = Pruning(job, start.eval(), part, size)
    rate = chosen_rate(pruning)
    small = pruning.finetuned(rate)
    if job.target != "rate":
        about["target"] = f"{job.target} {getattr(job, job.target):g}"
    print("slim: measuring and writing", file=sys.stderr)
    write_results(Path(job.out), pruning.dense, small, data, size, about | {"rate": rate})
    return Path(job.out)


def trained(job: Job, name: str, model: nn.Module, data: Dataset, config: TrainConfig) -> nn.Module:
    """`model` after the training `config`: from the stage's file, or trained, resuming after its last epoch."""
    path, state = job.stage(f"{name}.safetensors"), job.stage(f"{name}.state.safetensors")
    if path.is_file():
        return load_model(path)
    before = {"history": [], "threads": torch.get_num_threads()}
    tensors, before = load_tensors(state) if state.is_file() else (None, before)
    history, threads = before["history"], before["threads"]
    print(f"slim: {name}, epochs {max(1, len(history))} to {config.epochs}", file=sys.stderr)

    def keep(tensors: dict[str, Tensor], history: list[dict]) -> None:
        save_tensors(state, tensors, {"history": history, "threads": threads})
        torch.manual_seed(job.seed + len(history))  # of dropout in the next epoch, resumed or not

    torch.manual_seed(job.seed + max(1, len(history)))
    with with_threads(threads):  # another number would change the last bits
        shown = os.environ.get("MNV3NB_HEADLESS") != "1"
        train(model, data, config, state=tensors, history=history, on_epoch=keep, progress=shown, label=name)
    reestimate_batchnorm(model, data.train_images[:RECALIBRATION], config.image_size, augment=config.augment)
    if shown:  # it often jumps here: the lines above were of averages that lagged behind
        accuracy = evaluate(model, data.test_images, data.test_labels, config.image_size)
        print(f"slim: {name}, BatchNorm re-estimated: test accuracy {accuracy:.2%}", file=sys.stderr)
    save_model(model, path, image_size=config.image_size, classes=data.classes)
    state.unlink(missing_ok=True)
    return load_model(path)


class Pruning:
    """The dense network of a job and what is left of it at a rate."""

    def __init__(self, job: Job, dense: nn.Module, data: Dataset, size: int):
        self.job, self.dense, self.data, self.size = job, dense, data, size
        self.scores = score(dense, job.criterion or "gamma_sparsity", seed=job.seed)

    def masks(self, rate: float) -> list[Tensor]:
        return keep_masks(self.scores, rate, self.job.multiple_of)

    def finetuned(self, rate: float) -> nn.Module:
        masks = self.masks(rate)
        small = prune(self.dense, masks)
        if not self.job.criterion:  # sparse training made constants of the removed channels
            small = fold_bias(self.dense, small, masks, self.size)
        return trained(self.job, f"2_finetuned_{rate:g}", small, self.data, self.job.training(self.size))

    def max_drop(self, rate: float) -> float:
        """Points of accuracy lost on the held-out images, after fine-tuning."""
        held = self.data.test_images, self.data.test_labels, self.size
        return 100 * (evaluate(self.dense, *held) - evaluate(self.finetuned(rate), *held))

    def parameters(self, rate: float) -> int:
        return count_parameters(prune(self.dense, self.masks(rate)))

    def latency(self, rate: float) -> float:
        """Latency divided by the dense network's, in ONNX Runtime, one thread, batch 1."""
        return self._latencies[rate]

    @cached_property
    def _latencies(self) -> dict[float, float]:
        template = onnx_template(self.dense, self.size)
        networks = {"dense": self.dense} | {rate: prune(self.dense, self.masks(rate)) for rate in COARSE}
        runners = {n: onnx_runner(with_weights(template, fused(net).state_dict())) for n, net in networks.items()}
        return ratios(interleaved(runners, rounds=15)).ratio.drop("dense").to_dict()


def chosen_rate(p: Pruning) -> float:
    """The rate that the job's target asks for: the least that is small enough, or the largest that is accurate enough.

    Decided once, and kept. Raises ValueError for a target that no rate meets, with the nearest that one does.
    """
    job, path = p.job, p.job.stage("rate.json")
    if job.target == "rate":
        return 0.5 if job.rate is None else job.rate
    if path.is_file():
        return json.loads(path.read_text())
    wanted, rates = getattr(job, job.target), RATES if job.target == "parameters" else COARSE
    value = getattr(p, job.target)
    best = {"max_drop": rates[0], "parameters": rates[-1]}.get(job.target) or min(rates, key=value)
    if (nearest := value(best)) > wanted:
        text = f"the nearest is {nearest:.8g}, at rate {best:g} with multiples of {job.multiple_of}"
        raise ValueError(f"the target {job.target} {wanted:g} cannot be met: {text}")
    if job.target == "max_drop":
        rate = rates[bisect.bisect_left(rates, True, key=lambda rate: value(rate) > wanted) - 1]
    else:
        rate = next(rate for rate in rates if value(rate) <= wanted)
    write_file(path, json.dumps(rate))
    return rate
