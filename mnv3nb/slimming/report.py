"""What a job leaves: the network, its ONNX graphs in full precision and int8, and a page about them."""

import io
from html import escape
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import torch
from torch import Tensor, nn

from .._device import cpu_name
from .._files import write_atomically
from ..blocks import blocks
from ..checkpoint import save_model
from ..complexity import count_flops, count_parameters
from ..data import Dataset, to_input
from ..deployment.explain import explain_latency
from ..deployment.export import onnx_labels, quantized, session, to_onnx
from ..deployment.latency import interleaved, onnx_runner, ratios
from ..plots.latency import slimmed
from .job import Job

CALIBRATION = 256  # training images by which the ranges of int8 are set
TOLERANCE = 1e-4  # of the exported graph's logits, relative to the largest where that is above 1


def write_results(job: Job, dense: nn.Module, small: nn.Module, data: Dataset, about: dict) -> None:
    """Write all files of `slim`, after everything is measured; `about`: image_size, and what the page tells besides."""
    size, out = about["image_size"], Path(job.out)
    graphs = {name: to_onnx(network, size) for name, network in (("dense", dense), ("pruned", small))}
    _check(graphs["pruned"], small, data.test_images[:8], size)
    graphs["int8"] = quantized(graphs["pruned"], data.train_images[:CALIBRATION], size)
    results = measured(graphs, dense, small, data, size)
    widths = pd.DataFrame({"before": [b.width for b in blocks(dense)], "after": [b.width for b in blocks(small)]})
    page = Page(job.network, results, widths, explain_latency(small, size), data, about)
    accuracy = float(results.loc["accuracy (%)", "pruned"]) / 100
    save_model(small, out / "network.safetensors", **about, classes=data.classes, accuracy=accuracy)
    files = {
        "network.onnx": graphs["pruned"].SerializeToString(),
        "network_int8.onnx": graphs["int8"].SerializeToString(),
    }
    files |= {"report.png": page.picture("png"), "report.md": page.markdown(), "report.html": page.html()}
    for name, content in files.items():
        with write_atomically(out / name, len(content)) as file:
            file.write(content)


def measured(graphs: dict, dense: nn.Module, small: nn.Module, data: Dataset, size: int) -> pd.DataFrame:
    """One column for each of `graphs` (dense, pruned, int8): accuracy on the test images and costs, of the files."""
    times = ratios(interleaved({name: onnx_runner(graph) for name, graph in graphs.items()}, rounds=15))
    columns = {}
    for name, graph in graphs.items():
        network = dense if name == "dense" else small
        plain, balanced = accuracies(onnx_labels(graph, data.test_images, size), data.test_labels)
        columns[name] = {
            "accuracy (%)": f"{100 * plain:.2f}",
            "balanced accuracy (%)": f"{100 * balanced:.2f}",
            "parameters": f"{count_parameters(network):,}",
            f"FLOPs at {size} px": f"{count_flops(network, size):,}",
            "latency (ms)": f"{times.ms[name]:.3g}",
            "latency / dense": f"{times.ratio[name]:.2f}",
            "file (MB)": f"{graph.ByteSize() / 1e6:.2f}",
        }
    return pd.DataFrame(columns)


def accuracies(predicted: Tensor, labels: Tensor) -> tuple[float, float]:
    """Share of all `labels` that are predicted, and its mean over the classes (balanced accuracy), in [0, 1]."""
    right = (predicted == labels).double()
    return float(right.mean()), float(torch.stack([right[labels == c].mean() for c in labels.unique()]).mean())


class Page:
    """The report, as Markdown beside a picture and as HTML with the picture inside."""

    def __init__(self, network, results, widths, blocks_table, data: Dataset, about: dict):
        counts = pd.DataFrame({"class": data.classes})
        for split in ("train", "test"):
            labels = getattr(data, f"{split}_labels")
            counts[f"{split} images"] = torch.bincount(labels, minlength=len(counts)).tolist()
        few, most = counts["train images"].min(), counts["train images"].max()
        self.results, self.widths = results, widths
        self.title = f"{network}, slimmed: {', '.join(f'{k} {v:g}' for k, v in about.items() if isinstance(v, float))}"
        size = about["image_size"]
        self.parts = [
            f"Accuracy on {len(data.test_labels)} test images, of the ONNX files. Latency: ONNX Runtime, one thread, batch 1, "
            f"{cpu_name()}. Criterion: {about['criterion']}. int8 is calibrated on {CALIBRATION} training images at most.",
            results.rename_axis(" ").reset_index(),
            "picture",
            f"Input: RGB, {size}×{size} pixels (shorter side resized, centre cropped), value / 127.5 − 1, so in [−1, 1]; "
            "the network normalises further by itself. Output: one logit per class.",
            "## Where the time goes",
            "A block whose share of the time exceeds its share of the FLOPs is slow; aligned ratio is what the nearest multiple "
            "of 16 would take instead. If many are below 1, run again with `--multiple-of 16`.",
            widths[["before"]].join(blocks_table).round(3),
            "## Classes",
            f"From {few} to {most} training images per class"
            + (": imbalanced, look at the balanced accuracy first." if most > 1.5 * few else "."),
            counts.head(50),
        ]

    def picture(self, kind: str) -> bytes:
        file = io.BytesIO()
        shares = {name: self._share(name) for name in self.results.index[2:4]} | {
            "latency": self._share("latency (ms)")
        }
        slimmed(shares, self.widths).savefig(file, format=kind, metadata={"Date": None} if kind == "svg" else None)
        return file.getvalue()

    def markdown(self) -> bytes:
        blocks = {"picture": "![What was removed](report.png)"}
        texts = [_table(p) if isinstance(p, pd.DataFrame) else blocks.get(p, p) for p in self.parts]
        return "\n\n".join([f"# {self.title}", *texts, ""]).encode()

    def html(self) -> bytes:
        texts = []
        for part in self.parts:
            if isinstance(part, pd.DataFrame):
                texts.append(part.to_html(index=False, border=0))
            elif part == "picture":
                texts.append("<svg" + self.picture("svg").decode().partition("<svg")[2])
            else:
                tag = "h2" if part.startswith("## ") else "p"
                texts.append(f"<{tag}>{escape(part.removeprefix('## '))}</{tag}>")
        style = "body{font:16px sans-serif;max-width:60em;margin:auto}td,th{padding:.2em .8em;text-align:right}svg{width:100%}"
        head = f'<meta charset="utf-8"><title>{escape(self.title)}</title><style>{style}</style>'
        return "\n".join(["<!doctype html>", head, f"<h1>{escape(self.title)}</h1>", *texts, ""]).encode()

    def _share(self, row: str) -> float:
        dense, pruned = (float(self.results.loc[row, name].replace(",", "")) for name in ("dense", "pruned"))
        return pruned / dense


def _table(table: pd.DataFrame) -> str:
    rows = [list(table), ["---"] * table.shape[1], *table.astype(object).to_numpy().tolist()]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def _check(graph: onnx.ModelProto, model: nn.Module, images: Tensor, size: int) -> None:
    """Raises RuntimeError unless ONNX Runtime computes what `model` does."""
    x = to_input(images, size)
    with torch.no_grad():
        wanted = model.cpu().eval()(x).numpy()
    (got,) = session(graph).run(None, {"images": x.contiguous().numpy()})
    off = np.abs(got - wanted).max() / max(1, np.abs(wanted).max())
    if not off <= TOLERANCE:
        raise RuntimeError(
            f"the exported graph differs from the network by {off:.1e} (allowed: {TOLERANCE:g}); nothing written"
        )
