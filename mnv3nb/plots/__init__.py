"""Figures: functions of tensors, models and data frames. Each returns a matplotlib Figure."""

# ruff: noqa: F401
from .architecture import block_drawing, bottleneck_drawing, separable_drawing
from .latency import latency_against_flops, slimmed
from .method import cut_drawing, gamma_sparsity_importance, method_drawing, widths_chart
from .results import criteria_chart, feature_maps, gamma_by_lambda, learning_curves, rate_curve
from .style import CRITERION_LABELS, LOOKS, PAPER, RATE, ROLES, use_style
