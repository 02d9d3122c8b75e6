"""Structured pruning of MobileNetV3-Large after Liu & Lei (2023): train sparsely, score, prune, fine-tune."""

from .budget import fit_widths, unit_costs
from .checkpoint import export_onnx, export_program, load_model, save_model
from .complexity import count_flops, count_macs, count_parameters, layer_costs
from .data import Dataset, load_dataset
from .importance import CRITERIA, filter_sparsity, score
from .model import DENSE_WIDTHS, BLOCKS, MobileNetV3Large
from .pruning import keep_masks, prune, threshold
from .training import TrainConfig, evaluate, recalibrate, train

__version__ = "0.1.0"
__all__ = [
    "CRITERIA", "DENSE_WIDTHS", "BLOCKS", "Dataset", "MobileNetV3Large", "TrainConfig", "count_flops", "count_macs",
    "count_parameters", "evaluate", "export_onnx", "export_program", "filter_sparsity", "fit_widths", "keep_masks", "layer_costs",
    "load_dataset", "load_model", "prune", "recalibrate", "save_model", "score", "threshold", "train", "unit_costs",
]  # fmt: skip
