"""What a job leaves: the network, its ONNX graphs in full precision and int8, and a page about them."""

import base64
import io
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import torch
from nbconvert.filters.markdown import markdown2html
from torch import Tensor, nn

from ..blocks import blocks
from ..costs import count_flops, count_parameters
from ..data.batches import Dataset, to_input
from ..deploy.export import onnx_labels, quantized, session, to_onnx
from ..deploy.latency import explain_latency, interleaved, onnx_runner, ratios
from ..networks.checkpoint import save_model
from ..plots.latency import slimmed
from ..system.device import cpu_name
from ..system.files import write_file
from ..system.tables import markdown, number

CALIBRATION = 256  # training images by which the ranges of int8 are set
TOLERANCE = 1e-4  # of the exported graph's logits, relative to the largest where that is above 1
STYLE = """body { font: 1em sans-serif; max-width: 60em; margin: auto } img { width: 100% }
td, th { padding: .2em .8em; text-align: right } .anchor-link { display: none }"""
PAGE = """# {title}

On {tests} test images, by the ONNX files; ONNX Runtime on {cpu}, one thread, batch 1. {about}.

{classes} classes with {counts} training images each{imbalanced}.

{results}

![what is left of the dense network]({picture})

Input: RGB, {size}×{size} pixels (shorter side resized, centre cropped), value / 127.5 − 1; output: one logit per class.

## Where the time goes

A block whose share of the time exceeds its share of the FLOPs is slow; aligned_ratio is the time that the nearest
multiple of 16 would take instead of its width's: all together {gain} % of the network's time less. Where that is much,
`--multiple-of 16` gives it.

{where}
"""


def write_results(out: Path, dense: nn.Module, small: nn.Module, data: Dataset, size: int, about: dict) -> None:
    """Write all files of `slim` once everything is measured; `about`: what the page and the network's metadata tell.

    Raises RuntimeError if ONNX Runtime computes something else than the network.
    """
    graphs = {name: to_onnx(network, size) for name, network in (("dense", dense), ("pruned", small))}
    _check(graphs["pruned"], small, data.test_images[:8], size)
    graphs["int8"] = quantized(graphs["pruned"], data.train_images[:CALIBRATION], size)
    results = measured(graphs, dense, small, data, size)
    widths = pd.DataFrame({"before": [b.width for b in blocks(dense)], "after": [b.width for b in blocks(small)]})
    shares = results.pruned / results.dense
    figure, picture = slimmed(shares[["parameters", "FLOPs", "latency ratio"]].to_dict(), widths), io.BytesIO()
    figure.savefig(picture, format="png", dpi=160)
    page = written(results, widths, explain_latency(small, size), data, size, about)
    inline = f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"
    html = f'<!doctype html><meta charset="utf-8"><style>{STYLE}</style>{markdown2html(page.format(picture=inline))}'
    files = {name: graphs[key].SerializeToString() for name, key in (("network", "pruned"), ("network_int8", "int8"))}
    files = {f"{name}.onnx": content for name, content in files.items()} | {"report.png": picture.getvalue()}
    files |= {"report.md": page.format(picture="report.png"), "report.html": html}
    accuracy = float(results.loc["accuracy", "pruned"])
    save_model(small, out / "network.safetensors", **about, image_size=size, classes=data.classes, accuracy=accuracy)
    for name, content in files.items():
        write_file(out / name, content)


def measured(graphs: dict, dense: nn.Module, small: nn.Module, data: Dataset, size: int) -> pd.DataFrame:
    """One column for each of `graphs` (dense, pruned, int8): accuracy on the test images, costs, latency, of the files."""
    times = ratios(interleaved({name: onnx_runner(graph) for name, graph in graphs.items()}, rounds=15))
    columns = {}
    for name, graph in graphs.items():
        network = dense if name == "dense" else small
        plain, balanced = accuracies(onnx_labels(graph, data.test_images, size), data.test_labels)
        columns[name] = {"accuracy": plain, "balanced accuracy": balanced, "parameters": count_parameters(network)}
        columns[name] |= {"FLOPs": count_flops(network, size), "latency (ms)": times.ms[name]}
        columns[name] |= {"latency ratio": times.ratio[name], "file (MB)": graph.ByteSize() / 1e6}
    return pd.DataFrame(columns, dtype=float)


def accuracies(predicted: Tensor, labels: Tensor) -> tuple[float, float]:
    """Share of all `labels` that are predicted, and its mean over the classes (balanced accuracy), in [0, 1]."""
    right = (predicted == labels).double()
    return float(right.mean()), float(torch.stack([right[labels == c].mean() for c in labels.unique()]).mean())


def written(results, widths, where, data: Dataset, size: int, about: dict) -> str:
    """The page in Markdown, with a place for {picture}."""
    counts = torch.bincount(data.train_labels).tolist()
    uneven = max(counts) > 1.5 * min(counts)
    return PAGE.format(
        title=f"{about['network']}, slimmed",
        about="; ".join(f"{name}: {value}" for name, value in about.items()),
        tests=len(data.test_labels),
        cpu=cpu_name(),
        classes=len(data.classes),
        counts=" to ".join(map(str, sorted({min(counts), max(counts)}))),
        imbalanced=": balanced accuracy, the mean over the classes, tells more than accuracy" if uneven else "",
        results=markdown(results.map(number).rename_axis(" ").reset_index()),
        picture="{picture}",
        size=size,
        gain=f"{100 * (where.time_share * (1 - where.aligned_ratio)).sum():.0f}",
        where=markdown(widths[["before"]].join(where).round(3)),
    )


def _check(graph: onnx.ModelProto, model: nn.Module, images: Tensor, size: int) -> None:
    x = to_input(images, size)
    with torch.no_grad():
        wanted = model.eval()(x).numpy()
    (got,) = session(graph).run(None, {"images": x.contiguous().numpy()})
    off = np.abs(got - wanted).max() / max(1, np.abs(wanted).max())
    if not off <= TOLERANCE:
        raise RuntimeError(f"the exported graph is off by {off:.1e}, more than {TOLERANCE:g}; nothing is written")
