"""The exercises run unsolved, tell a right answer from a wrong one, and can be solved by what they say."""

import nbformat
import pytest
import torch
from support import ROOT

SOLUTIONS = {
    "my_sparsity": """
def my_sparsity(weight):
    return (weight.abs() >= weight.abs().mean()).float().mean((1, 2, 3))""",
    "my_scores": """
def my_scores(model):
    found = mnv3nb.blocks(model)
    return [b.expand_bn.weight.detach().abs() * my_sparsity(b.expand.weight.detach()) for b in found]""",
    "my_masks": """
def my_masks(scores, rate):
    ranked = torch.cat(scores).sort().values
    return [score > ranked[int(len(ranked) * rate)] for score in scores]""",
    "my_cut": """
def my_cut(block, mask):
    for conv in (block.expand, block.depthwise):
        conv.weight.data = conv.weight.data[mask]
    for bn in (block.expand_bn, block.depthwise_bn):
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(bn, name).data = getattr(bn, name).data[mask]
    block.depthwise.groups = int(mask.sum())
    block.project.weight.data = block.project.weight.data[:, mask]
    return block""",
    "my_flops": """
def my_flops(c, n, size):
    return size * size * n * (c + 3)""",
}
WRONG = {
    "my_sparsity": """
def my_sparsity(weight):
    return (weight.abs() >= weight.abs().mean((1, 2, 3), keepdim=True)).float().mean((1, 2, 3))""",
    "my_scores": """
def my_scores(model):
    return [b.expand_bn.weight.detach().abs() for b in mnv3nb.blocks(model)]""",
    "my_masks": """
def my_masks(scores, rate):
    return [score > rate for score in scores]""",
    "my_cut": """
def my_cut(block, mask):
    return block""",
    "my_flops": """
def my_flops(c, n, size):
    return size * size * n * c""",
}


@pytest.mark.parametrize(
    ("answers", "verdict"), [({}, "not solved yet"), (SOLUTIONS, "right"), (WRONG, "not yet. Hint: ")]
)
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
