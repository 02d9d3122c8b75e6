"""Feature maps of the expansions: what channels carry, and what the kept ones learn (Figure 8, section 3.2.5)."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ..blocks import blocks, inputs_of
from ..data.batches import to_input
from ..pruning import keep_masks
from ..runs.folder import Run
from .measures import first_test_images

BATCH = 32  # images whose maps are in memory at a time


def maps_learn(before: Run, after: Run, images: int = 300) -> dict[str, float]:
    """Change of the kept channels' `map_statistics` from the sparse-trained to the fine-tuned network, in %, by column.

    Each is the geometric mean over the blocks.
    """
    kept = keep_masks(before.importance, after.config.prune.rate)
    old = _statistics_table(before, images, kept)
    new = _statistics_table(after, images, None)  # it has only the kept channels
    ratios = (new / old).replace([0, np.inf], np.nan)  # a block whose channels carry nothing has no ratio
    return (100 * (np.exp(np.log(ratios).mean()) - 1)).to_dict()


def rank_change(before: Run, after: Run) -> float:
    """Change of the kept channels' effective rank in fine-tuning, in %."""
    return maps_learn(before, after)["rank"]


def class_share_change(before: Run, after: Run) -> float:
    """Change of the kept channels' class share in fine-tuning, in %."""
    return maps_learn(before, after)["class_share"]


def _statistics_table(run: Run, images: int, masks: Sequence[Tensor] | None) -> pd.DataFrame:
    test_images, test_labels = first_test_images(run, images)
    rows = map_statistics(run.model(), test_images, test_labels, run.config.train.image_size, masks)
    return pd.DataFrame(rows).drop(columns="block")


@torch.inference_mode()
def expansion_maps(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Each block's maps after the expansion's activation, (N, C, H, W), for inputs x (N, 3, H, W), in eval mode."""
    return inputs_of([block.depthwise for block in blocks(model)], model.eval(), x)


def map_statistics(
    model: nn.Module, images: Tensor, labels: Tensor, image_size: int, masks: Sequence[Tensor] | None = None
) -> list[dict]:
    """One row per block about the maps of its expansion, over uint8 images (N, 3, H, W) with labels (N,).

    Channels are those that `masks` keep (None: all). `variance`: mean over channels of the variance over images and
    positions. `rank`: `effective_rank` of the channels' covariance. `class_share`: `class_share` of the channels' mean
    activations per image, in [0, 1].
    """
    if masks is None:
        masks = [torch.ones(block.width, dtype=torch.bool) for block in blocks(model)]
    sums = [_Sums() for _ in masks]
    for part in images.split(BATCH):
        maps_by_block = expansion_maps(model, to_input(part, image_size))
        for block_sums, maps, mask in zip(sums, maps_by_block, masks):
            block_sums.add(maps[:, mask].double())
    rows = []
    for i, block_sums in enumerate(sums):
        covariance = block_sums.covariance()
        rows.append(
            {
                "block": i,
                "variance": float(covariance.diagonal().mean()),
                "rank": effective_rank(covariance),
                "class_share": class_share(torch.cat(block_sums.image_means), labels),
            }
        )
    return rows


class _Sums:
    """What the statistics of one block's maps follow from, added up so that no more than a batch is in memory."""

    def __init__(self):
        self.values: Tensor | float = 0.0  # sum over images and positions, (C,)
        self.products: Tensor | float = 0.0  # the same of all products of two channels, (C, C)
        self.count = 0  # images × positions
        self.image_means: list[Tensor] = []  # mean over positions, one (N, C) per batch

    def add(self, maps: Tensor) -> None:
        flat = maps.movedim(1, 0).flatten(1)  # (C, N·H·W)
        self.values = self.values + flat.sum(1)
        self.products = self.products + flat @ flat.T
        self.count += flat.shape[1]
        self.image_means.append(maps.mean((2, 3)))

    def covariance(self) -> Tensor:
        """E[x·y] − E[x]·E[y] of every two channels, (C, C)."""
        return self.products / self.count - torch.outer(self.values, self.values) / self.count**2


def effective_rank(covariance: Tensor) -> float:
    """exp(−Σ q·ln q) of the normalised eigenvalues q of a covariance (C, C): how many features the channels carry.

    In [1, C]: 1 if all channels agree, C if they are uncorrelated and equally strong. 0 for a covariance of zero.
    """
    eigenvalues = torch.linalg.eigvalsh(covariance.double()).clamp(min=0)
    if eigenvalues.sum() == 0:
        return 0.0
    q = eigenvalues / eigenvalues.sum()
    return float(torch.special.entr(q).sum().exp())


def class_share(values: Tensor, labels: Tensor) -> float:
    """Share of the variance of `values` (N, C) over images that lies between classes, by `labels` (N,); in [0, 1].

    0 if the values do not vary.
    """
    total = float(values.var(0, correction=0).sum())
    if total == 0:
        return 0.0
    classes, index = labels.unique(return_inverse=True)
    class_means = torch.stack([values[index == c].mean(0) for c in range(len(classes))])
    between = float(class_means[index].var(0, correction=0).sum())
    return between / total
