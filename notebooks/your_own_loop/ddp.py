"""Sparse training under torchrun: torchrun --nproc-per-node 2 ddp.py digits sparse.safetensors"""

import os
import sys

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from mnv3nb import MobileNetV3Large, add_gamma_penalty, load_dataset, save_model
from mnv3nb.data.batches import to_input

EPOCHS = 2
BATCH_SIZE = 32  # of all processes together
LR = 0.05
LAM = 2e-3
IMAGE_SIZE = 32


def main(data: str, out: str) -> None:
    dist.init_process_group()
    rank = dist.get_rank()
    processes = dist.get_world_size()
    device = torch.device(f"cuda:{os.environ['LOCAL_RANK']}" if torch.cuda.is_available() else "cpu")

    torch.manual_seed(0)  # the same network and the same order of images in every process
    dataset = load_dataset(data)
    model = MobileNetV3Large(len(dataset.classes), gamma_init=0.5).to(device)
    network = DistributedDataParallel(model)
    optimizer = torch.optim.SGD(network.parameters(), lr=LR)

    for _ in range(EPOCHS):
        order = torch.randperm(len(dataset.train_images))
        whole_batches = len(order) // BATCH_SIZE * BATCH_SIZE
        for batch in order[:whole_batches].split(BATCH_SIZE):
            own_part = batch[rank::processes]
            images = dataset.train_images[own_part].to(device)
            labels = dataset.train_labels[own_part].to(device)
            loss = F.cross_entropy(network(to_input(images, IMAGE_SIZE)), labels)
            optimizer.zero_grad()
            loss.backward()  # DDP averages the gradients over the processes here
            add_gamma_penalty(network, LAM)  # after the average, so every process adds the same penalty once
            optimizer.step()

    if rank == 0:
        save_model(model, out, image_size=IMAGE_SIZE, classes=list(dataset.classes))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
