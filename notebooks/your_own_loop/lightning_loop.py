"""Sparse training with Lightning: python lightning_loop.py digits sparse.safetensors"""

import sys

import lightning
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from mnv3nb import MobileNetV3Large, add_gamma_penalty, load_dataset, save_model
from mnv3nb.data.batches import to_input

EPOCHS = 2
BATCH_SIZE = 32
LR = 0.05
LAM = 2e-3
IMAGE_SIZE = 32


class SparseTraining(lightning.LightningModule):
    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network = network

    def training_step(self, batch, batch_index):
        images, labels = batch
        return F.cross_entropy(self.network(to_input(images, IMAGE_SIZE)), labels)

    def on_before_optimizer_step(self, optimizer):
        # Lightning calls this once per step, also where it accumulates or averages gradients.
        add_gamma_penalty(self.network, LAM)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=LR)


def main(data: str, out: str, **trainer_options) -> None:
    """`trainer_options` are arguments of lightning.Trainer, such as accelerator or devices."""
    torch.manual_seed(0)
    dataset = load_dataset(data)
    model = MobileNetV3Large(len(dataset.classes), gamma_init=0.5)
    images = TensorDataset(dataset.train_images, dataset.train_labels)
    batches = DataLoader(images, BATCH_SIZE, shuffle=True, drop_last=True)
    trainer = lightning.Trainer(max_epochs=EPOCHS, logger=False, enable_checkpointing=False, **trainer_options)
    trainer.fit(SparseTraining(model), batches)
    save_model(model, out, image_size=IMAGE_SIZE, classes=list(dataset.classes))


if __name__ == "__main__":
    main(*sys.argv[1:])
