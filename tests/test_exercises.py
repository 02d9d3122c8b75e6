"""The exercises run as they are, know a right answer from a wrong one, and can be solved by what they tell."""

import nbformat
import pytest
import torch
from support import ROOT

SOLUTIONS = {
    "my_sparsity": "def my_sparsity(w): return (w.abs() >= w.abs().mean()).float().mean((1, 2, 3))",
    "my_scores": "def my_scores(model): return [u.expand[1].weight.detach().abs() * my_sparsity(u.expand[0].weight.detach()) "
                 "for u in model.blocks]",
    "my_masks": "def my_masks(scores, rate):\n    s = torch.cat(scores).sort().values\n"
                "    return [score > s[int(len(s) * rate)] for score in scores]",
    "my_cut": """
def my_cut(unit, mask):
    for conv, bn, _ in (unit.expand, unit.depthwise):
        conv.weight.data = conv.weight.data[mask]
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(bn, name).data = getattr(bn, name).data[mask]
    unit.depthwise[0].groups = int(mask.sum())
    unit.project[0].weight.data = unit.project[0].weight.data[:, mask]
    return unit""",
    "my_flops": "def my_flops(c, n, size): return size * size * n * (c + 3)",
}  # fmt: skip
WRONG = {
    "my_sparsity": "def my_sparsity(w): return (w.abs() >= w.abs().mean((1, 2, 3), keepdim=True)).float().mean((1, 2, 3))",
    "my_scores": "def my_scores(model): return [u.expand[1].weight.detach().abs() for u in model.blocks]",
    "my_masks": "def my_masks(scores, rate): return [score > rate for score in scores]",
    "my_cut": "def my_cut(unit, mask): return unit",
    "my_flops": "def my_flops(c, n, size): return size * size * n * c",
}


@pytest.mark.parametrize(("answers", "verdict"), [({}, "not solved yet"), (SOLUTIONS, "right"), (WRONG, "not yet. Hint: ")])
def test_the_method_written_by_hand(answers, verdict, capsys):
    notebook, names = nbformat.read(ROOT / "notebooks" / "exercises" / "write_the_method.ipynb", as_version=4), {}
    with torch.random.fork_rng(devices=[]):
        for cell in notebook.cells:
            if cell.cell_type != "code":
                continue
            source = cell.source
            if "exercise" in cell.metadata.get("tags", []) and answers:
                stub, check = source.split("\n\n\n", 1)
                source = answers[stub.split("(")[0].removeprefix("def ")] + "\n\n\n" + check
            exec(source, names)
    lines = capsys.readouterr().out.splitlines()
    assert [line[0] for line in lines] == list("12345")
    assert all(line[3:].startswith(verdict) for line in lines), lines
