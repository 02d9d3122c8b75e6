"""The checks of the exercises, one per task: `checks.my_sparsity(my_sparsity)`.

`mnv3nb` gives the right answers. A wrong answer is compared with those of typical mistakes, so that the message can
name the mistake.
"""

from .compare_and_deploy import my_aligned, my_choice, my_criterion, my_slow_share, my_step
from .count_and_predict import my_block_flops, my_parameters, my_shapes, my_shares, my_threshold, my_widths
from .cut_and_repair import my_collapse, my_constants, my_reestimate, my_running_mean
from .networks import block_flops, comparison, digits, lively_network, small_network
from .verdict import TASKS, total, verdicts
from .write_the_method import my_cut, my_flops, my_masks, my_scores, my_sparsity

__all__ = [
    "TASKS",
    "block_flops",
    "comparison",
    "digits",
    "lively_network",
    "my_aligned",
    "my_block_flops",
    "my_choice",
    "my_collapse",
    "my_constants",
    "my_criterion",
    "my_cut",
    "my_flops",
    "my_masks",
    "my_parameters",
    "my_reestimate",
    "my_running_mean",
    "my_scores",
    "my_shapes",
    "my_shares",
    "my_slow_share",
    "my_sparsity",
    "my_step",
    "my_threshold",
    "my_widths",
    "small_network",
    "total",
    "verdicts",
]
