"""The paper's printed numbers as data frames: Liu & Lei 2023, doi 10.16183/j.cnki.jsjtu.2022.077."""

import pandas as pd

# Table 1, as printed: share of the 15 blocks and of the rest, %
TABLE_1 = pd.DataFrame({"parameters_pct": [66.84, 33.16], "flops_pct": [94.14, 5.87]}, index=["blocks", "rest"])

# Figure 6 and section 3.2.1: λ and accuracy after sparse training, before pruning, CIFAR-10, %
FIGURE_6 = pd.DataFrame({"lam": [0.0, 1e-3, 1e-4, 1e-5, 1e-6], "accuracy_pct": [88.28, 85.50, 87.22, 88.15, 88.15]})
CHOSEN_LAM = 1e-5

# Table 2, as printed: rate, threshold of m, ranges of γ and of S between the previous threshold and this one, λ = 1e-5
TABLE_2 = pd.DataFrame(
    [
        (0.1, 2.3064e-12, 4.0039e-12, 4.9225e-10, 0.0000, 0.6518),
        (0.2, 1.0721e-11, 8.3696e-17, 5.2892e-10, 0.0063, 0.7054),
        (0.3, 2.9047e-11, 1.8149e-11, 4.9828e-10, 0.0357, 0.6812),
        (0.4, 7.8888e-11, 4.6540e-11, 5.2805e-10, 0.0625, 0.8304),
        (0.5, 0.0700, 1.1880e-10, 2.8041e-01, 0.0714, 0.7946),
        (0.6, 0.1466, 0.0875, 0.5838, 0.1875, 0.8304),
    ],
    columns=["rate", "threshold", "gamma_min", "gamma_max", "sparsity_min", "sparsity_max"],
)

_COST_COLUMNS = ["rate", "accuracy_pct", "parameters_m", "flops", "fewer_parameters_pct", "fewer_flops_pct"]
# Table 3: CIFAR-10
TABLE_3 = pd.DataFrame(
    [
        (0.0, 88.28, 4.22, 2.30e8, 0.0, 0.0),
        (0.1, 87.86, 3.68, 2.17e8, 12.8, 5.7),
        (0.2, 88.26, 3.26, 2.00e8, 22.7, 13.0),
        (0.3, 88.23, 2.89, 1.81e8, 31.5, 21.3),
        (0.4, 88.69, 2.61, 1.61e8, 38.2, 30.0),
        (0.5, 88.55, 2.34, 1.38e8, 44.5, 40.0),
        (0.6, 87.99, 2.16, 9.87e7, 48.8, 57.1),
    ],
    columns=_COST_COLUMNS,
)
BEST_RATE = 0.45  # section 3.2.3: the best of 14 rates
BEST_ACCURACY_PCT = 88.82
COLLAPSE_RATE = 0.7  # section 3.2.3: a layer loses every filter

# Table 4: our copy of the paper lacks the rows of the other criteria; the text gives two numbers
TABLE_4_OURS_PCT = 88.55  # this method at 50 %, the same as in Table 3
TABLE_4_GAIN_PCT = 0.40  # over the sparse-trained network of Figure 6

# Table 5: expansion widths of the 15 blocks before and after pruning half of all filters
TABLE_5 = pd.DataFrame(
    {
        "block": range(15),
        "before": [16, 64, 72, 72, 120, 120, 240, 200, 184, 184, 480, 672, 672, 960, 960],
        "after": [9, 49, 42, 72, 102, 89, 223, 144, 139, 112, 209, 38, 540, 484, 255],
    }
)

# Table 6: CIFAR-100
TABLE_6 = pd.DataFrame(
    [
        (0.0, 61.47, 4.33, 2.30e8, 0.0, 0.0),
        (0.1, 60.81, 3.59, 2.18e8, 17.1, 5.2),
        (0.2, 61.25, 3.29, 2.07e8, 24.0, 10.0),
        (0.3, 61.51, 2.93, 1.90e8, 32.3, 17.4),
        (0.4, 60.92, 2.62, 1.70e8, 39.5, 26.1),
        (0.5, 61.22, 2.38, 1.52e8, 45.0, 33.9),
        (0.6, 61.16, 2.16, 1.18e8, 50.1, 48.7),
    ],
    columns=_COST_COLUMNS,
)
IMPOSSIBLE_RATE = 0.1  # of Table 6: whichever tenth of the filters is removed, more parameters remain (notebook 08)
