"""`add_gamma_penalty` in loops of one's own: the examples of notebooks/your_own_loop against a loop of a few lines."""

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
    """γ after SGD on `steps` of (images, labels), each in so many parts that BatchNorm normalises one by one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MobileNetV3Large(gamma_init=0.5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    for images, labels in steps:
        optimizer.zero_grad()
        for part in range(parts):
            logits = model(to_input(images[part::parts], 32))
            (F.cross_entropy(logits, labels[part::parts]) / parts).backward()
        add_gamma_penalty(model, 2e-3)
        optimizer.step()
    assert (gammas(model) - 0.5).abs().max() > 1e-3  # they moved
    return gammas(model)


def test_two_processes_of_torchrun_reach_the_gammas_of_one(tiny_npz, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command += [str(EXAMPLES / "ddp.py"), tiny_npz, str(tmp_path / "two.safetensors")]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    data = load_dataset(tiny_npz)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        MobileNetV3Large()  # draws its weights before the images are shuffled
        orders = [torch.randperm(48)[:32] for _ in range(2)]
    expected = gammas_after([(data.train_images[order], data.train_labels[order]) for order in orders], parts=2)
    torch.testing.assert_close(gammas(load_model(tmp_path / "two.safetensors")), expected, rtol=0, atol=1e-4)


@pytest.mark.skipif(not importlib.util.find_spec("lightning"), reason="pip install lightning to test its example")
def test_lightning_reaches_the_gammas_of_a_plain_loop(tiny_npz, tmp_path):
    example, seen = runpy.run_path(str(EXAMPLES / "lightning_loop.py")), []
    training, step = example["SparseTraining"], example["SparseTraining"].training_step
    training.training_step = lambda self, batch, index: seen.append(batch) or step(self, batch, index)
    with torch.random.fork_rng(devices=[]):
        example["main"](tiny_npz, str(tmp_path / "m.safetensors"), accelerator="cpu", enable_progress_bar=False)
    assert len(seen) == 2
    found = gammas(load_model(tmp_path / "m.safetensors"))
    torch.testing.assert_close(found, gammas_after(seen, parts=1), rtol=0, atol=1e-4)


def test_each_example_fits_on_a_screen_and_is_shown():
    page = (ROOT / "mnv3nb" / "runs" / "README.md").read_text()
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 60 and path.name in page
