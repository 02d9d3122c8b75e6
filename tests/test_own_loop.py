"""The examples of notebooks/your_own_loop reach the γ of a plain loop of a few lines."""

import importlib.util
import os
import runpy
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from support import ROOT

from mnv3nb import MobileNetV3Large, add_gamma_penalty, load_dataset, load_model
from mnv3nb.blocks import batch_norms
from mnv3nb.data.batches import to_input

EXAMPLES = ROOT / "notebooks" / "your_own_loop"


def gammas(model) -> torch.Tensor:
    return torch.cat([bn.weight.detach() for bn in batch_norms(model)])


def gammas_after(steps, parts: int) -> torch.Tensor:
    """γ after SGD on `steps` of (images, labels). BatchNorm normalises each of the `parts` of a step by itself."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MobileNetV3Large(gamma_init=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for images, labels in steps:
        optimizer.zero_grad()
        for part in range(parts):
            logits = model(to_input(images[part::parts], 32))
            loss = F.cross_entropy(logits, labels[part::parts])
            (loss / parts).backward()
        add_gamma_penalty(model, 2e-3)
        optimizer.step()
    largest_move = (gammas(model) - 0.5).abs().max()
    assert largest_move > 1e-3, "γ hardly moved, so equal γ would prove nothing"
    return gammas(model)


def test_two_processes_of_torchrun_reach_the_gammas_of_one(tiny_npz, tmp_path):
    out = tmp_path / "two.safetensors"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [*torchrun, str(EXAMPLES / "ddp.py"), tiny_npz, str(out)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]

    data = load_dataset(tiny_npz)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        MobileNetV3Large()  # draws its weights before the images are shuffled
        orders = [torch.randperm(48)[:32] for _ in range(2)]
    steps = [(data.train_images[order], data.train_labels[order]) for order in orders]
    torch.testing.assert_close(gammas(load_model(out)), gammas_after(steps, parts=2), rtol=0, atol=1e-4)


@pytest.mark.skipif(not importlib.util.find_spec("lightning"), reason="pip install lightning to test its example")
def test_lightning_reaches_the_gammas_of_a_plain_loop(tiny_npz, tmp_path):
    out = tmp_path / "m.safetensors"
    example = runpy.run_path(str(EXAMPLES / "lightning_loop.py"))
    batches_seen = []
    original_step = example["SparseTraining"].training_step

    def recorded_step(self, batch, batch_index):
        batches_seen.append(batch)
        return original_step(self, batch, batch_index)

    example["SparseTraining"].training_step = recorded_step
    with torch.random.fork_rng(devices=[]):
        example["main"](tiny_npz, str(out), accelerator="cpu", enable_progress_bar=False)
    assert len(batches_seen) == 2
    torch.testing.assert_close(gammas(load_model(out)), gammas_after(batches_seen, parts=1), rtol=0, atol=1e-4)


def test_the_page_about_own_loops_shows_each_example():
    page = (ROOT / "mnv3nb" / "runs" / "README.md").read_text()
    for path in EXAMPLES.glob("*.py"):
        assert path.name in page
