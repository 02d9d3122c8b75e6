"""An epoch of training on a machine that does something else as well: what the threads' way of waiting costs."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

THREADS = 2
ROUNDS = 5
# read when torch is loaded, so each is measured in a process of its own, which loads torch before mnv3nb can set anything
SETTINGS = {
    "libgomp's default": {},
    "OMP_WAIT_POLICY=PASSIVE (the package's choice)": {"OMP_WAIT_POLICY": "PASSIVE"},
    "GOMP_SPINCOUNT=1000": {"GOMP_SPINCOUNT": "1000"},
    "one thread (other bits)": {"OMP_NUM_THREADS": "1"},
}
EPOCHS = """
import json, os, sys, time
import torch
torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", sys.argv[2])))
from mnv3nb import MobileNetV3Large, TrainConfig, load_dataset, train
data = load_dataset("digits").subset(480)
config = TrainConfig(epochs=int(sys.argv[1]) + 1, batch_size=48, lr=3e-3, lam=1.4e-3)
history = train(MobileNetV3Large(gamma_init=0.5), data, config, device="cpu", progress=False)
print(json.dumps([row["seconds"] for row in history[2:]]))  # the first epoch warms up
"""
BUSY = "import os\nos.nice(5)\nwhile True: pass"


def seconds_per_epoch(setting: dict[str, str], cores: set[int] | None = None) -> list[float]:
    """Of ROUNDS epochs of 480 digits in a new process, on these cores only if any are named."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    environment = inherited | {"MNV3NB_HEADLESS": "1"} | setting
    pin = None if cores is None else lambda: os.sched_setaffinity(0, cores)
    command = [sys.executable, "-c", EPOCHS, str(ROUNDS), str(THREADS)]
    done = subprocess.run(command, env=environment, preexec_fn=pin, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="needs Linux")
@pytest.mark.parametrize("name", SETTINGS)
def test_an_epoch_beside_other_work(name, record):
    """`quiet`; `busy`: beside one other process of nice 5; `one core`: both threads on one core."""
    quiet = seconds_per_epoch(SETTINGS[name])
    other = subprocess.Popen([sys.executable, "-c", BUSY])
    try:
        busy = seconds_per_epoch(SETTINGS[name])
    finally:
        other.kill()
        other.wait()
    one_core = seconds_per_epoch(SETTINGS[name], {min(os.sched_getaffinity(0))})
    row = {"setting": name}
    for where, seconds in (("quiet", quiet), ("busy", busy), ("one_core", one_core)):
        low, median, high = np.quantile(seconds, [0.25, 0.5, 0.75]).round(2)
        row |= {f"{where}_s": median, f"{where}_low": low, f"{where}_high": high}
    record("busy", **row)
