"""Feature maps of the expansions: what the channels carry, and what the remaining ones learn (Figure 8, section 3.2.5)."""

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from ..blocks import blocks, inputs_of
from ..data.batches import to_input
from ..pruning import keep_masks
from ..runs.folder import Run
from .measures import test_part


def maps_learn(before: Run, after: Run, images: int = 300) -> dict[str, float]:
    """Change of the kept channels' `map_statistics` from the sparse-trained to the fine-tuned network.

    In %, the (geometric) mean over blocks, by column.
    """
    kept, tables = keep_masks(before.importance, after.config.prune.rate), []
    for run, masks in ((before, kept), (after, None)):
        rows = map_statistics(run.model(), *test_part(run, images), run.config.train.image_size, masks)
        tables.append(pd.DataFrame(rows).drop(columns="block"))
    ratios = (tables[1] / tables[0]).replace([0, np.inf], np.nan)
    return (100 * (np.exp(np.log(ratios).mean()) - 1)).to_dict()


@torch.inference_mode()
def expansion_maps(model: nn.Module, x: Tensor) -> list[Tensor]:
    """Each block's maps after the expansion's activation, (N, C, H, W), for inputs x (N, 3, H, W), in eval mode."""
    return inputs_of([block.depthwise for block in blocks(model)], model.eval(), x)


def map_statistics(
    model: nn.Module, images: Tensor, labels: Tensor, image_size: int, masks: list[Tensor] | None = None
) -> list[dict]:
    """One row per block about the maps of its expansion, over uint8 images (N, 3, H, W) with labels (N,).

    Channels: those that `masks` keep (None: all). `variance`: mean over channels of the variance over images and
    positions; `rank`: `effective_rank` of their covariance; `class_share`: of the variance over images of the channels'
    mean activations, the share that lies between classes, in [0, 1].
    """
    masks = masks or [torch.ones(block.width, dtype=torch.bool) for block in blocks(model)]
    sums: list = [[0.0, 0.0, 0] for _ in masks]  # of the values, of their products, and how many
    means: list[list[Tensor]] = [[] for _ in masks]
    for part in images.split(32):
        for i, maps in enumerate(expansion_maps(model, to_input(part, image_size))):
            kept = maps[:, masks[i]].double()
            flat = kept.movedim(1, 0).flatten(1)  # (C, N·H·W)
            sums[i] = [a + b for a, b in zip(sums[i], (flat.sum(1), flat @ flat.T, flat.shape[1]))]
            means[i].append(kept.mean((2, 3)))
    rows = []
    for i, (total, products, count) in enumerate(sums):
        covariance = products / count - torch.outer(total, total) / count**2
        share = class_share(torch.cat(means[i]), labels)
        variance = float(covariance.diagonal().mean())
        rows.append({"block": i, "variance": variance, "rank": effective_rank(covariance), "class_share": share})
    return rows


def effective_rank(covariance: Tensor) -> float:
    """exp(−Σ q·ln q) of the normalised eigenvalues q of a covariance (C, C): how many features the channels carry.

    In [1, C]: 1 if all channels agree, C if they are uncorrelated and equally strong. 0 for a covariance of zero.
    """
    q = torch.linalg.eigvalsh(covariance.double()).clamp(min=0)
    return float(torch.special.entr(q / q.sum()).sum().exp()) if q.sum() > 0 else 0.0


def class_share(values: Tensor, labels: Tensor) -> float:
    """Share of the variance of `values` (N, C) over images that lies between classes, by `labels` (N,); in [0, 1]."""
    classes, index = labels.unique(return_inverse=True)
    centres = torch.stack([values[index == c].mean(0) for c in range(len(classes))])[index]
    spread = float(values.var(0, correction=0).sum())
    return float(centres.var(0, correction=0).sum()) / spread if spread else 0.0
