"""What a job leaves: the network, its ONNX graphs in full precision and in int8, and a page about them."""

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
from ..deploy.export import onnx_labels, quantize, session, to_onnx
from ..deploy.latency import explain_latency, interleaved, onnx_runner, ratios
from ..networks.checkpoint import save_model
from ..plots.latency import slimmed
from ..system.device import cpu_name
from ..system.files import write_file
from ..system.tables import markdown, number

CALIBRATION_IMAGES = 256  # training images that set the ranges of int8
LATENCY_ROUNDS = 15  # in which the networks take turns
# allowed difference between the logits of graph and network, relative to the largest logit where that is above 1
TOLERANCE = 1e-4

PAGE = """# {network}, slimmed

Accuracy is that of the ONNX files on {tests} test images. Latency is measured with ONNX Runtime on {cpu}, one thread,
batch 1. {about}.

The training set has {classes} classes with {counts} images each.{imbalance}

{results}

![The pruned network's costs and widths beside the dense network's]({picture})

Input: RGB, {size}×{size} pixels (shorter side resized, centre cropped), value / 127.5 − 1. Output: one logit per class.

## Where the time goes

A block is slow if its share of the time exceeds its share of the FLOPs. aligned_ratio is the time that the block takes
at the nearest multiple of 16, divided by its time at its own width. With such widths in all blocks, the network's time
would change by {change} %. If that is a gain worth having, give `--multiple-of 16`.

{blocks}
"""
IMBALANCE = """
The classes differ in size. Balanced accuracy, the mean over the classes, tells more than accuracy here."""
STYLE = """
body { font: 1em sans-serif; max-width: 60em; margin: auto }
img { width: 100% }
td, th { padding: .2em .8em; text-align: right }
.anchor-link { display: none }
"""
HTML = """<!doctype html>
<meta charset="utf-8">
<style>{style}</style>
{body}"""


def write_results(out: Path, dense: nn.Module, small: nn.Module, data: Dataset, image_size: int, about: dict) -> None:
    """Measure the networks, then write all files of `slim`; `about`: what the page and the stored network tell.

    Raises RuntimeError, before anything is written, if ONNX Runtime computes something else than the network.
    """
    dense_graph = to_onnx(dense, image_size)
    pruned_graph = to_onnx(small, image_size)
    check_graph(pruned_graph, small, data.test_images[:8], image_size)
    int8_graph = quantize(pruned_graph, data.train_images[:CALIBRATION_IMAGES], image_size)

    networks = {"dense": dense, "pruned": small, "int8": small}
    graphs = {"dense": dense_graph, "pruned": pruned_graph, "int8": int8_graph}
    results = measure(networks, graphs, data, image_size)
    widths = pd.DataFrame(
        {
            "before": [block.width for block in blocks(dense)],
            "after": [block.width for block in blocks(small)],
        }
    )
    block_latency = explain_latency(small, image_size)
    picture = draw_picture(results, widths)
    picture_in_html = f"data:image/png;base64,{base64.b64encode(picture).decode()}"
    report = render_report(results, widths, block_latency, data, image_size, about, "report.png")
    report_in_html = render_report(results, widths, block_latency, data, image_size, about, picture_in_html)

    accuracy_of_small = float(results.loc["accuracy", "pruned"])
    metadata = {**about, "image_size": image_size, "classes": data.classes, "accuracy": accuracy_of_small}
    save_model(small, out / "network.safetensors", **metadata)
    write_file(out / "network.onnx", pruned_graph.SerializeToString())
    write_file(out / "network_int8.onnx", int8_graph.SerializeToString())
    write_file(out / "report.png", picture)
    write_file(out / "report.md", report)
    write_file(out / "report.html", HTML.format(style=STYLE, body=markdown2html(report_in_html)))


def check_graph(graph: onnx.ModelProto, model: nn.Module, images: Tensor, image_size: int) -> None:
    """Raise RuntimeError unless `graph` computes the logits of `model` for `images`."""
    x = to_input(images, image_size)
    with torch.no_grad():
        expected = model.eval()(x).numpy()
    (logits,) = session(graph).run(None, {"images": x.contiguous().numpy()})
    difference = np.abs(logits - expected).max() / max(1, np.abs(expected).max())
    if not difference <= TOLERANCE:  # so that NaN is refused as well
        raise RuntimeError(
            f"the logits of the exported graph differ from the network's by {difference:.1e}, "
            f"allowed is {TOLERANCE:g}; nothing was written"
        )


def measure(networks: dict[str, nn.Module], graphs: dict, data: Dataset, image_size: int) -> pd.DataFrame:
    """Accuracy on the test images, costs and latency: one column per name (dense, pruned, int8), one row per quantity.

    `graphs`: the ONNX graph of each network, of which accuracy, latency and file size are measured.
    """
    runners = {name: onnx_runner(graph) for name, graph in graphs.items()}
    times = ratios(interleaved(runners, LATENCY_ROUNDS))
    columns = {}
    for name, graph in graphs.items():
        predicted = onnx_labels(graph, data.test_images, image_size)
        columns[name] = {
            "accuracy": accuracy(predicted, data.test_labels),
            "balanced accuracy": balanced_accuracy(predicted, data.test_labels),
            "parameters": count_parameters(networks[name]),
            "FLOPs": count_flops(networks[name], image_size),
            "latency (ms)": times.ms[name],
            "latency ratio": times.ratio[name],
            "file (MB)": graph.ByteSize() / 1e6,
        }
    return pd.DataFrame(columns, dtype=float)


def accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Share of `labels` that are predicted, in [0, 1]."""
    return float((predicted == labels).double().mean())


def balanced_accuracy(predicted: Tensor, labels: Tensor) -> float:
    """Mean over the classes in `labels` of the share that is predicted, in [0, 1]."""
    correct = (predicted == labels).double()
    shares = [correct[labels == label].mean() for label in labels.unique()]
    return float(torch.stack(shares).mean())


def draw_picture(results: pd.DataFrame, widths: pd.DataFrame) -> bytes:
    """A PNG image of what the pruned network has left."""
    shares = results.pruned / results.dense
    figure = slimmed(shares[["parameters", "FLOPs", "latency ratio"]].to_dict(), widths)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=160)
    return file.getvalue()


def render_report(
    results: pd.DataFrame,
    widths: pd.DataFrame,
    block_latency: pd.DataFrame,
    data: Dataset,
    image_size: int,
    about: dict,
    picture: str,
) -> str:
    """The page in Markdown. `block_latency`: from `explain_latency`; `picture`: a file name or a data URL."""
    counts = torch.bincount(data.train_labels).tolist()
    fewest = min(counts)
    most = max(counts)
    change = 100 * (block_latency.time_share * (block_latency.aligned_ratio - 1)).sum()
    return PAGE.format(
        network=about["network"],
        tests=len(data.test_labels),
        cpu=cpu_name(),
        about="; ".join(f"{name}: {value}" for name, value in about.items()),
        classes=len(data.classes),
        counts=fewest if fewest == most else f"{fewest} to {most}",
        imbalance=IMBALANCE if most > 1.5 * fewest else "",
        results=markdown(results.map(number).rename_axis(" ").reset_index()),
        picture=picture,
        size=image_size,
        change=f"{change:+.0f}",
        blocks=markdown(widths[["before"]].join(block_latency).round(3)),
    )
