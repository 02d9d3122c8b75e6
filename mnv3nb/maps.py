"""What feature maps carry, in numbers: section 3.2.5 says that the maps that remain learn more, and shows pictures."""

import torch
from torch import Tensor

from .data import to_input
from .model import MobileNetV3Large


def effective_rank(covariance: Tensor) -> float:
    """exp(−Σ q·ln q) of the normalised eigenvalues q of a covariance (C, C): how many different features C channels carry.

    In [1, C]: 1 = all channels say the same, C = uncorrelated and equally strong. 0 for a covariance of zero.
    """
    q = torch.linalg.eigvalsh(covariance.double()).clamp(min=0)
    return float(torch.special.entr(q / q.sum()).sum().exp()) if q.sum() > 0 else 0.0


@torch.inference_mode()
def map_statistics(
    model: MobileNetV3Large, images: Tensor, labels: Tensor, image_size: int, masks: list[Tensor] | None = None
) -> list[dict]:
    """One row a unit about its expansion's maps (after the activation) over uint8 `images` (N, 3, H, W) with `labels` (N,).

    Channels: those that `masks` keep (None: all). `variance`: mean over channels of the variance over images and
    positions; `rank`: `effective_rank` of their covariance; `class_share`: of the variance of the channels' mean
    activations over images, the share that lies between classes, in [0, 1].
    """
    masks = masks or [torch.ones(width, dtype=torch.bool) for width in model.widths]
    sums = [0.0] * len(masks)
    means: list[list[Tensor]] = [[] for _ in masks]

    def watch(i):
        def hook(_, __, out):
            x = out.float()[:, masks[i]]
            flat = torch.cat([x.movedim(1, 0).flatten(1), torch.ones(1, x[:, 0].numel())]).double()
            sums[i] = sums[i] + flat @ flat.T  # the row of ones adds the channels' sums and the count
            means[i].append(x.mean((2, 3)))

        return hook

    hooks = [unit.expand.register_forward_hook(watch(i)) for i, unit in enumerate(model.blocks)]
    for part in images.split(32):
        model.eval()(to_input(part, image_size))
    for hook in hooks:
        hook.remove()
    rows = []
    for unit, (total, mean) in enumerate(zip(sums, map(torch.cat, means))):
        average = total[-1, :-1] / total[-1, -1]
        covariance = total[:-1, :-1] / total[-1, -1] - torch.outer(average, average)
        centres = torch.stack([mean[labels == c].mean(0) for c in labels.unique()])[labels.unique(return_inverse=True)[1]]
        spread = float(mean.var(0, correction=0).sum())
        rows.append({
            "unit": unit, "variance": float(covariance.diagonal().mean()), "rank": effective_rank(covariance),
            "class_share": float(centres.var(0, correction=0).sum()) / spread if spread else 0.0,
        })  # fmt: skip
    return rows
