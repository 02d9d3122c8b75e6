"""Shared fixtures. One thread and the CPU, so that the same seeds give the same bits; nothing is written to the checkout."""

import os
import signal
from dataclasses import replace

import pytest
import torch
from hypothesis import settings
from support import lively, write_npz

from mnv3nb import Dataset, MobileNetV3Large, load_dataset, paper

# a shell's background jobs, and all they start, would ignore it
signal.signal(signal.SIGINT, signal.default_int_handler)
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "OMP_WAIT_POLICY": "PASSIVE",
    "MNV3NB_DEVICE": "cpu",
    "MNV3NB_HEADLESS": "1",
    "MNV3NB_WORKERS": "1",
}
os.environ.pop("MNV3NB_MIRROR", None)
torch.set_num_threads(1)
settings.register_profile("quick", max_examples=20, deadline=None, derandomize=True, print_blob=True)
# pytest --hypothesis-profile=explore
settings.register_profile("explore", max_examples=1000, deadline=None, print_blob=True)
settings.load_profile("quick")


def pytest_collection_modifyitems(items):
    """The notebooks first: they take half of the time, and the other workers do everything else meanwhile."""
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")


@pytest.fixture(scope="session", autouse=True)
def home(tmp_path_factory):
    """`$MNV3NB_HOME` of all tests and of the processes that they start."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MNV3NB_HOME", str(folder))
        yield folder


@pytest.fixture(scope="session")
def dense() -> MobileNetV3Large:
    return lively()


@pytest.fixture(scope="session")
def digits() -> Dataset:
    return load_dataset("digits")


@pytest.fixture(scope="session")
def tiny(digits) -> Dataset:
    """48 images to train on, 24 to test on."""
    part = digits.subset(48)
    return replace(part, test_images=part.test_images[:24], test_labels=part.test_labels[:24])


@pytest.fixture(scope="session")
def tiny_npz(tiny, tmp_path_factory) -> str:
    """The same as a file, which a new process reads without scikit-learn."""
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    write_npz(path, tiny)
    return str(path)


@pytest.fixture(scope="session")
def table5() -> tuple[int, ...]:
    return tuple(paper.TABLE_5.after.tolist())
