"""A plain training loop with `add_gamma_penalty` in it: torchrun --nproc-per-node 2 distributed_gammas.py OUT"""

import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from mnv3nb import MobileNetV3Large, add_gamma_penalty
from mnv3nb.blocks import batch_norms

STEPS, BATCH, LAM = 4, 16, 0.01


def gammas_after_training(rank: int, processes: int) -> torch.Tensor:
    """γ of all layers after a few steps on this process's share of each batch; SGD, BatchNorms in eval mode."""
    torch.manual_seed(0)
    model = MobileNetV3Large()
    images, labels = torch.randn(STEPS, BATCH, 3, 32, 32), torch.randint(10, (STEPS, BATCH))
    network = DistributedDataParallel(model) if processes > 1 else model
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    network.eval()  # in training mode each process would normalise by its own half of the batch
    for x, y in zip(images, labels):
        loss = F.cross_entropy(network(x[rank::processes]), y[rank::processes])
        optimizer.zero_grad()
        loss.backward()
        add_gamma_penalty(network, LAM)
        optimizer.step()
    return torch.cat([bn.weight.detach() for bn in batch_norms(model)])


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    found = gammas_after_training(dist.get_rank(), dist.get_world_size())
    if dist.get_rank() == 0:
        torch.save(found, sys.argv[1])
    dist.destroy_process_group()
