"""Structured pruning of MobileNetV3 after Liu & Lei (2023): train sparsely, score, prune, fine-tune."""

import os
import sys

if "torch" not in sys.modules:
    # libgomp reads this when torch is loaded. Its threads then sleep while they wait for each other, instead of spinning:
    # beside one busy process, spinning makes a training many times slower (figures/bench/README.md)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from .blocks import Block, blocks
from .costs import count_flops, count_macs, count_parameters, layer_costs
from .data.batches import Dataset
from .data.datasets import load_dataset
from .importance import CRITERIA, filter_sparsity, rank_within_layers, score
from .model import BLOCKS, DENSE_WIDTHS, MobileNetV3Large
from .networks.checkpoint import load_model, save_model
from .networks.zoo import build_network, load_network
from .pruning import keep_masks, layer_collapse_rates, prune, threshold
from .repair import fold_bias, reestimate_batchnorm
from .training import TrainConfig, add_gamma_penalty, evaluate, train

__version__ = "0.2.0"
__all__ = [
    "BLOCKS",
    "CRITERIA",
    "DENSE_WIDTHS",
    "Block",
    "Dataset",
    "MobileNetV3Large",
    "TrainConfig",
    "add_gamma_penalty",
    "blocks",
    "build_network",
    "count_flops",
    "count_macs",
    "count_parameters",
    "evaluate",
    "filter_sparsity",
    "fold_bias",
    "keep_masks",
    "layer_collapse_rates",
    "layer_costs",
    "load_dataset",
    "load_model",
    "load_network",
    "prune",
    "rank_within_layers",
    "reestimate_batchnorm",
    "save_model",
    "score",
    "threshold",
    "train",
]
