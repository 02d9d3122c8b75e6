"""The one visual language: each entity has one colour, one marker and one name in every figure."""

import matplotlib.pyplot as plt
import seaborn as sns

# The stages at which the accuracy of a pruned network is measured: only cut; with the constants of removed channels
# folded in; after fine-tuning. Each is an entity of LOOKS.
STAGES = ("raw", "folded", "fine-tuned")

# Entity: colour and marker. The colours are those of Okabe and Ito (2008), which colour-blind readers can tell apart;
# the markers differ too.
ENTITIES = {
    "dense": ("#4d4d4d", "s"),
    "sparse": ("#56b4e9", "p"),
    "raw": ("#d55e00", "X"),
    "folded": ("#cc79a7", "P"),
    "re-estimated": ("#7f6000", "*"),
    "fine-tuned": ("#0072b2", "o"),
    "fair baseline": ("#332288", "^"),
    "from scratch": ("#117733", "<"),
    "by latency": ("#aa4499", "d"),
    "unaligned": ("#e69f00", "v"),
    "aligned": ("#009e73", "h"),
    "removed": ("#d55e00", "x"),
    "kept": ("#8c9aa8", "o"),
    "ours": ("#0072b2", "o"),
    "paper": ("black", "D"),
}

# Keyword arguments of Axes.plot for each entity.
LOOKS = {name: {"color": color, "marker": marker, "label": name} for name, (color, marker) in ENTITIES.items()}

# The paper's numbers: open marks without a line, in front of everything else.
PAPER = LOOKS["paper"] | {"markerfacecolor": "white", "linestyle": "none", "zorder": 5}

# What a network costs, where two costs share one chart.
COST_LOOKS = {
    "parameters": {"color": "#009e73", "marker": "o"},
    "FLOPs": {"color": "#cc79a7", "marker": "s"},
}

# The two factors of the score, and the score.
SCORE_COLORS = {
    "|γ|": "#0072b2",
    "S": "#e69f00",
    "m = |γ|·S": "#009e73",
}

# Fill colours of layers in drawings: pale enough for black text, and distinguishable in grey.
ROLES = {
    "data": "#f2f2f2",
    "plain": "#ffffff",
    "expand": "#9ecae8",
    "depthwise": "#f6c98f",
    "se": "#d9b8dd",
    "project": "#a8d8b9",
    "removed": "#f0a58a",
}

CRITERION_LABELS = {
    "gamma_sparsity": "m = |γ|·S",
    "gamma": "|γ|",
    "sparsity": "S",
    "l1": "L1 norm",
    "l1_gamma": "L1·|γ|",
    "random": "random",
    "l2": "L2 norm",
    "fpgm": "FPGM",
    "taylor": "Taylor",
}
# Tables name a local ranking "l1 within layers".
CRITERION_LABELS |= {f"{name} within layers": f"{label}, per layer" for name, label in CRITERION_LABELS.items()}

# Axis label of every chart over the rate.
RATE = "pruning rate (% of all filters)"


def use_style() -> None:
    """Set matplotlib to the house style: readable at half a page, and the same SVG for the same data."""
    sns.set_theme(context="notebook", style="ticks", palette="colorblind", font_scale=1.1)
    plt.rcParams |= {
        "figure.figsize": (7.5, 4.2),
        "figure.constrained_layout.use": True,
        "savefig.dpi": 160,
        "savefig.facecolor": "white",  # opaque, for notebooks with a dark theme
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.color": "0.9",
        "axes.titlesize": "medium",
        "lines.markersize": 7,
        "legend.frameon": False,
        "legend.fontsize": "small",
        "svg.hashsalt": "mnv3nb",
    }
    # A notebook loads its inline backend lazily. Once loaded, it displays figures that no window owns.
    plt.switch_backend(plt.get_backend())
