"""`add_gamma_penalty` in a loop of one's own, on several processes."""

import os
import subprocess
import sys

import torch
from distributed_gammas import gammas_after_training
from support import ROOT


def test_two_processes_reach_the_gammas_of_one_at_the_same_global_batch(tmp_path):
    script = ROOT / "tests" / "distributed_gammas.py"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    environ = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, str(tmp_path / "two.pt")], env=environ, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    one, two = gammas_after_training(0, 1), torch.load(tmp_path / "two.pt", weights_only=True)
    torch.testing.assert_close(two, one, rtol=0, atol=1e-4)
    assert (one - 1).abs().max() > 1e-3  # they moved
