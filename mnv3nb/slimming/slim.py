"""The whole job in stages, each of which leaves a file: train sparsely, choose the rate, prune, fine-tune, export."""

import bisect
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from .._files import write_atomically
from .._tensors import load_tensors, save_tensors
from ..blocks import blocks
from ..checkpoint import load_model, save_model
from ..complexity import count_parameters
from ..data import Dataset, to_input
from ..datasets import load_dataset
from ..deployment.bias import fold_bias
from ..deployment.latency import fused, interleaved, onnx_runner, onnx_template, ratios, with_weights
from ..importance import NEEDS_DATA, score
from ..networks import load_network
from ..pruning import keep_masks, prune
from ..training import TrainConfig, evaluate, train
from .job import Job
from .report import write_results

RATES = [round(0.05 * i, 2) for i in range(1, 20)]  # that a target of accuracy or latency chooses from
FINE_RATES = [i / 100 for i in range(1, 100)]
HOLDOUT = 10  # a tenth of the training images, for choices


def slim(job: Job) -> Path:
    """Does `job` and returns its folder: network.safetensors, network.onnx, network_int8.onnx, report.html and .md.

    Sparse training (or, with a criterion, the given weights as they are), the rate that the target asks for, pruning
    with compensation, fine-tuning, export. `stages/` keeps each stage's network: a job that was killed resumes after
    its last epoch, and ends the same (CPU). A target of accuracy is judged on held-out training images, which are not
    trained on then; test images decide nothing. Raises ValueError or FileNotFoundError for what does not fit or a
    target that cannot be met, naming the nearest that can.
    """
    with _as_alone():
        data = load_dataset(job.data, image_size=job.image_size)
        size = job.image_size or max(32, *data.train_images.shape[2:])
        torch.manual_seed(job.seed)
        start = load_network(job.network, job.weights, len(data.classes), job.mean and (job.mean, job.std))
        blocks(start)
        part = data.subset(holdout=len(data.train_images) // HOLDOUT) if job.max_drop else data
        job.claim_folder(data)
        about = {"image_size": size}
        if job.weights and not job.criterion:
            about["accuracy as given"] = evaluate(start, data.test_images, data.test_labels, size)
        if job.criterion:
            dense = start.eval()
        else:
            steps = max(1, job.epochs * len(part.train_images) // job.batch_size)
            lam = 0.5 / steps if job.lam is None else job.lam
            dense = trained(job, "1_sparse", start, part, job.training(lam, size))
        pruning = Pruning(job, dense, part, size)
        rate = chosen_rate(pruning)
        small = pruning.finetuned(rate)
        _say(f"writing {job.out}")
        write_results(job, dense, small, data, about | {"rate": rate, "criterion": pruning.criterion})
        return Path(job.out)


def trained(job: Job, name: str, model: nn.Module, data: Dataset, config: TrainConfig) -> nn.Module:
    """`model` after the training `config`: from the stage's file, or trained, resuming after its last epoch."""
    path, state = job.stage(f"{name}.safetensors"), job.stage(f"{name}.state.safetensors")
    if not path.is_file():
        tensors, kept = load_tensors(state) if state.is_file() else (None, {"history": [], "threads": 0})
        history, threads = kept["history"], kept["threads"] or torch.get_num_threads()
        torch.set_num_threads(threads)  # another number would change the last bits
        _say(f"{name}: epochs {max(1, len(history))} to {config.epochs}, {len(data.train_images)} images")

        def keep(tensors: dict[str, Tensor], history: list[dict]) -> None:
            save_tensors(state, tensors, {"history": history, "threads": threads})
            torch.manual_seed(job.seed + len(history))  # of dropout in the next epoch, resumed or not

        torch.manual_seed(job.seed + max(1, len(history)))
        history = train(model, data, config, state=tensors, history=history, on_epoch=keep, label=name)
        about = {"image_size": config.image_size, "classes": data.classes}
        save_model(model, path, **about, accuracy=history[-1]["test_accuracy"])
        state.unlink(missing_ok=True)
    return load_model(path)


class Pruning:
    """The dense network of a job and what is left of it at a rate."""

    def __init__(self, job: Job, dense: nn.Module, data: Dataset, size: int):
        self.job, self.dense, self.data, self.size = job, dense, data, size
        self.criterion, batches = job.criterion or "gamma_sparsity", None
        if self.criterion in NEEDS_DATA:
            parts = zip(data.train_images[:512].split(64), data.train_labels[:512].split(64))
            batches = [(to_input(images, size), labels) for images, labels in parts]
        self.scores = score(dense, self.criterion, batches, job.seed)

    def at(self, rate: float) -> nn.Module:
        """Pruned; after sparse training the removed channels are constants, which are folded in."""
        masks = keep_masks(self.scores, rate, self.job.multiple_of)
        small = prune(self.dense, masks)
        return small if self.job.criterion else fold_bias(self.dense, small, masks, self.size)

    def finetuned(self, rate: float) -> nn.Module:
        config = self.job.training(image_size=self.size)
        return trained(self.job, f"2_finetuned_{rate:g}", self.at(rate), self.data, config)

    def drop(self, rate: float) -> float:
        """Points of accuracy lost on the held-out images, after fine-tuning."""
        held = self.data.test_images, self.data.test_labels, self.size
        return 100 * (evaluate(self.dense, *held) - evaluate(self.finetuned(rate), *held))


def chosen_rate(p: Pruning) -> float:
    """The rate that the job's target asks for; decided once, and kept.

    Raises ValueError for a target that no rate meets, with the nearest that one does.
    """
    job, path = p.job, p.job.stage("rate.json")
    if job.rate is not None or not (job.max_drop or job.latency or job.parameters):
        return 0.5 if job.rate is None else job.rate
    if path.is_file():
        return json.loads(path.read_text())
    if job.max_drop:
        place = bisect.bisect_left(RATES, True, key=lambda rate: p.drop(rate) > job.max_drop)
        if not place:
            text = f"at the smallest rate, {RATES[0]}, {p.drop(RATES[0]):.2f} points are lost on held-out images"
            raise ValueError(f"--max-drop {job.max_drop:g} cannot be met: {text}; ask for that, or train longer")
        rate = RATES[place - 1]
    else:
        wanted = job.latency or job.parameters
        values = _latencies(p) if job.latency else {r: count_parameters(p.at(r)) for r in (0.0, *FINE_RATES)}
        fitting = [rate for rate, value in values.items() if value <= wanted]
        if not fitting:
            nearest = min(values, key=values.get)
            text = f"the nearest is {values[nearest]:.8g}, at rate {nearest:g} with multiples of {job.multiple_of}"
            raise ValueError(f"--{'latency' if job.latency else 'parameters'} {wanted:g} cannot be met: {text}")
        rate = min(fitting)
    with write_atomically(path) as file:
        file.write(json.dumps(rate).encode())
    return rate


def _latencies(p: Pruning) -> dict[float, float]:
    """Latency at each rate divided by the dense network's, in ONNX Runtime, one thread, batch 1."""
    template = onnx_template(p.dense, p.size)
    networks = {"dense": p.dense} | {rate: p.at(rate) for rate in RATES}
    runners = {n: onnx_runner(with_weights(template, fused(net).state_dict())) for n, net in networks.items()}
    return ratios(interleaved(runners, rounds=15)).ratio.drop("dense").to_dict()


@contextmanager
def _as_alone() -> Iterator[None]:
    """Afterwards the process's random numbers and threads are as they were."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            torch.set_num_threads(threads)


def _say(text: str) -> None:
    print(f"slim: {text}", file=sys.stderr, flush=True)
