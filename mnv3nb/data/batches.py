"""Images and labels as tensors; batches, augmentation and resizing on the device, a batch at a time."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

SPLITS = ("train_images", "train_labels", "test_images", "test_labels")
AUGMENTATIONS = ("none", "crop", "crop_flip")


@dataclass(frozen=True)
class Dataset:
    """Images to train on and to test on, with their labels."""

    train_images: Tensor  # uint8 (N, 3, H, W)
    train_labels: Tensor  # int64 (N,), indexes of classes
    test_images: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]
    mapped: bool = False  # images are memory-mapped and stay on the disk

    def subset(self, train_images: int | None = None, holdout: int = 0) -> "Dataset":
        """The first `train_images` (None: all but the holdout). The last `holdout` > 0 of all replace the test images.

        Raises ValueError for numbers that do not fit.
        """
        total = len(self.train_images)
        available = total - holdout
        count = available if train_images is None else train_images
        if not (0 <= holdout < total and 1 <= count <= available):
            raise ValueError(f"train_images={train_images} with holdout={holdout} does not fit {total} training images")
        part = replace(self, train_images=self.train_images[:count], train_labels=self.train_labels[:count])
        if holdout == 0:
            return part
        held_images = self.train_images[available:]
        held_labels = self.train_labels[available:]
        return replace(part, test_images=held_images, test_labels=held_labels)

    def to(self, device: torch.device) -> "Dataset":
        """The same data set on `device`; mapped images stay where they are."""
        moved = [name for name in SPLITS if not (self.mapped and name.endswith("images"))]
        return replace(self, **{name: getattr(self, name).to(device) for name in moved})


def to_input(images: Tensor, image_size: int) -> Tensor:
    """uint8 (N, 3, H, W) -> float32 in [-1, 1], resized bilinearly to `image_size` pixels, channels_last."""
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise ValueError(f"images must be uint8 (N, 3, H, W), got {images.dtype} {tuple(images.shape)}")
    x = images.to(torch.float32, memory_format=torch.channels_last).div_(127.5).sub_(1)
    if x.shape[-2:] != (image_size, image_size):
        x = F.interpolate(x, size=(image_size, image_size), mode="bilinear", align_corners=False)
    return x


def batches(
    data: Dataset, batch_size: int, generator: torch.Generator, augment: str = "none"
) -> Iterator[tuple[Tensor, Tensor]]:
    """One shuffled epoch of training images, uint8, and labels; `generator` (CPU) alone decides order and augmentation.

    `augment`: "none", "crop" (shift by up to an eighth of the side, zero border), "crop_flip" (and mirrored half of
    the time). A last batch of one image is dropped, because BatchNorm cannot train on it, unless it is the only one.
    """
    made = _batches(data, batch_size, generator, augment)
    return read_ahead(made) if data.mapped else made


def steps_per_epoch(data: Dataset, batch_size: int) -> int:
    """How many batches `batches` gives."""
    full, rest = divmod(len(data.train_images), batch_size)
    return max(1, full + (1 if rest > 1 else 0))


def read_ahead(items: Iterator[tuple], count: int = 2) -> Iterator[tuple]:
    """The same `items` in the same order; a thread makes the next `count` meanwhile."""
    with ThreadPoolExecutor(1) as reader:
        coming = deque(reader.submit(next, items, None) for _ in range(count))
        while True:
            item = coming.popleft().result()
            if item is None:
                return
            coming.append(reader.submit(next, items, None))
            yield item


def _batches(data: Dataset, batch_size: int, generator: torch.Generator, augment: str) -> Iterator[tuple]:
    images = data.train_images
    labels = data.train_labels
    count = len(images)
    pad = max(1, images.shape[-1] // 8)
    order = torch.randperm(count, generator=generator).to(images.device)
    if augment != "none":
        shift = torch.randint(0, 2 * pad + 1, (2, count), generator=generator).to(images.device)
        flip = torch.rand(count, generator=generator) < (0.5 if augment == "crop_flip" else 0)
        flip = flip.to(images.device)
    for index in order.split(batch_size):
        if len(index) == 1 and count > 1:
            continue
        x = images[index]
        if augment != "none":
            x = _crop(x, shift[:, index], flip[index], pad)
        yield x, labels[index]


def _crop(x: Tensor, shift: Tensor, flip: Tensor, pad: int) -> Tensor:
    """Images padded by `pad` zeros, cut back to H×W at their own offset `shift` (2, N), then mirrored where `flip` (N,)."""
    height, width = x.shape[-2:]
    columns = torch.arange(width, device=x.device)
    # mirrored images take their columns from right to left
    columns = torch.where(flip[:, None], columns.flip(0), columns) + shift[1][:, None]
    rows = torch.arange(height, device=x.device) + shift[0][:, None]
    image = torch.arange(len(x), device=x.device)[:, None, None]
    bordered = F.pad(x, (pad,) * 4).movedim(1, -1)  # channels last, so that one index picks rows and columns
    return bordered[image, rows[:, :, None], columns[:, None, :]].movedim(-1, 1)
