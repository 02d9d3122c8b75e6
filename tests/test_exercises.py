"""The exercises: two copies of each sheet come from one source; checks tell right answers from typical mistakes."""

import ast
import copy
import itertools
import re
import sys

import nbformat
import pytest
import torch
import torch.nn.functional as F
from support import ROOT
from torch.optim.swa_utils import update_bn

import mnv3nb
from mnv3nb.blocks import batch_norms, narrow_block
from mnv3nb.importance import l1

EXERCISES = ROOT / "notebooks" / "exercises"
sys.path.append(str(EXERCISES))
import build  # noqa: E402
import checks  # noqa: E402
from checks.verdict import RIGHT  # noqa: E402

SHEETS = sorted(path.stem for path in (EXERCISES / "source").glob("*.ipynb"))
each_sheet = pytest.mark.parametrize("sheet", SHEETS)
NBGRADER = {"grade": bool, "grade_id": str, "locked": bool, "schema_version": int, "solution": bool, "task": bool}


@pytest.fixture(autouse=True)
def restored_path(monkeypatch):
    """A sheet adds the folder above the working folder to Python's path. Later tests must not see it."""
    monkeypatch.setattr(sys, "path", list(sys.path))


def code_cells(*path: str) -> list:
    notebook = nbformat.read(EXERCISES.joinpath(*path), 4)
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def graded_cells(sheet: str) -> list:
    """The cells of a source that nbgrader knows."""
    return [cell for cell in code_cells("source", f"{sheet}.ipynb") if "nbgrader" in cell.metadata]


def run_sheet(*path: str) -> None:
    """Run a sheet from its first cell to its last."""
    names = {}
    checks.verdicts.clear()
    for cell in code_cells(*path):
        exec(cell.source, names)


# one source, two copies


def test_there_are_at_most_four_sheets_and_no_other_copies():
    assert 1 <= len(SHEETS) <= 4
    for folder in (EXERCISES, EXERCISES / "solutions"):
        assert sorted(path.stem for path in folder.glob("*.ipynb")) == SHEETS


def test_the_committed_copies_are_what_the_builder_makes():
    for path, text in build.copies().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} differs from its source: make exercises"


@each_sheet
def test_each_solution_in_a_source_is_marked_once(sheet):
    solutions = [cell for cell in graded_cells(sheet) if cell.metadata.nbgrader.solution]
    for cell in solutions:
        assert cell.source.count("### BEGIN SOLUTION") == 1
        assert cell.source.count("### END SOLUTION") == 1


@each_sheet
def test_the_students_copy_has_no_solution_and_the_solved_copy_has_no_marks(sheet):
    students = (EXERCISES / f"{sheet}.ipynb").read_text(encoding="utf-8")
    solved = (EXERCISES / "solutions" / f"{sheet}.ipynb").read_text(encoding="utf-8")
    assert "# your code" in students
    assert "# your code" not in solved
    assert "SOLUTION" not in students + solved


@each_sheet
@pytest.mark.parametrize("folder", ["source", ".", "solutions"])
def test_a_copy_is_valid_has_no_outputs_short_cells_and_links_that_lead_somewhere(folder, sheet):
    notebook = nbformat.read(EXERCISES / folder / f"{sheet}.ipynb", 4)
    nbformat.validate(notebook)
    parameter_cells = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(parameter_cells) == 1
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
            assert "print(" not in cell.source
            lines = [line for line in cell.source.splitlines() if line.strip() and "###" not in line]
            assert len(lines) <= 15
        for link in re.findall(r"\]\(([^)#]+\.ipynb)\)", cell.source):
            assert (EXERCISES / folder / link).is_file(), link


# the graded copy


@each_sheet
def test_the_source_has_what_nbgrader_asks_of_a_cell(sheet):
    """Schema 3: six fields everywhere, points where a cell is graded, ids that are unique and plain."""
    found = [cell.metadata.nbgrader for cell in graded_cells(sheet)]
    for marks in found:
        assert {name: type(marks[name]) for name in NBGRADER} == NBGRADER
        further_fields = set(marks) - set(NBGRADER)
        assert further_fields == ({"points"} if marks.grade else set())
        assert marks.schema_version == 3
        assert not marks.task
        assert re.fullmatch(r"[a-zA-Z0-9_\-]+", marks.grade_id)
        assert not (marks.solution and marks.locked)
        assert marks.locked or not marks.grade
    assert len({marks.grade_id for marks in found}) == len(found)


@each_sheet
def test_every_task_has_a_goal_a_hint_points_and_a_check_without_the_answer(sheet):
    cells = nbformat.read(EXERCISES / "source" / f"{sheet}.ipynb", 4).cells
    number = 0
    total = 0
    task_text = ""
    for cell, next_cell in itertools.pairwise(cells):
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            task_text = cell.source
        if not cell.metadata.get("nbgrader", {}).get("solution"):
            continue
        number += 1
        points = int(re.match(rf"## {number}\. .+ · (\d) points?\n", task_text)[1])
        total += points
        assert "**Goal**" in task_text
        assert "<summary>Hint</summary>" in task_text
        name = cell.metadata.nbgrader.grade_id
        assert ast.parse(cell.source).body[0].name == name
        assert next_cell.source == f"checks.{name}({name})"
        assert next_cell.metadata.nbgrader.points == points == checks.TASKS[name]
    assert f"**Points**: {total}." in cells[0].source


def test_every_check_belongs_to_one_task():
    names = []
    for sheet in SHEETS:
        names += [cell.metadata.nbgrader.grade_id for cell in graded_cells(sheet)]
    assert sorted(name for name in names if name.startswith("my_")) == sorted(checks.TASKS)


def test_the_page_about_the_sheets_has_their_numbers():
    text = (EXERCISES / "README.md").read_text(encoding="utf-8")
    assert len(SHEETS) == 4
    assert f"Four sheets, {len(checks.TASKS)} tasks, {sum(checks.TASKS.values())} points" in text


# verdicts


@each_sheet
def test_an_empty_sheet_runs_and_nothing_is_solved(sheet):
    run_sheet(f"{sheet}.ipynb")
    assert checks.verdicts
    for verdict in checks.verdicts.values():
        assert verdict.message.startswith("Not solved yet")
    assert checks.total().points["total"] == 0


@each_sheet
def test_a_solved_sheet_has_all_points(sheet):
    run_sheet("solutions", f"{sheet}.ipynb")
    assert {verdict.message for verdict in checks.verdicts.values()} == {RIGHT}
    table = checks.total()
    possible = sum(checks.TASKS[name] for name in checks.verdicts)
    assert table.points["total"] == table.out_of["total"] == possible


def test_nbgraders_own_empty_cell_is_not_solved():
    def empty(*_):
        raise NotImplementedError

    verdict = checks.my_flops(empty)
    assert verdict.message.startswith("Not solved yet")
    assert float(repr(verdict)) == 0


def test_a_verdict_prints_as_its_points():
    assert float(repr(checks.my_flops(lambda c, n, size: size * size * n * (c + 3)))) == 1


def test_an_error_is_the_students_to_see_and_gives_no_points():
    with pytest.raises(ZeroDivisionError):
        checks.my_flops(lambda c, n, size: 1 / 0)
    assert checks.verdicts["my_flops"].points == 0


def test_a_solution_that_changes_its_arguments_does_not_change_the_right_answer():
    def my_widths(scores, rate):
        for layer in scores:
            layer.zero_()
        return [0 for _ in scores]

    assert checks.my_widths(my_widths).points == 0


# typical wrong answers


def wrong_cut(change):
    """A cut that is right but for what `change(block, block_before, mask)` does to it."""

    def my_cut(block, mask):
        (before,) = mnv3nb.blocks(copy.deepcopy(block.module))
        block.expand.weight.data = block.expand.weight.data[mask]
        block.depthwise.weight.data = block.depthwise.weight.data[mask]
        for bn in (block.expand_bn, block.depthwise_bn):
            for name in ("weight", "bias", "running_mean", "running_var"):
                getattr(bn, name).data = getattr(bn, name).data[mask]
        block.depthwise.groups = int(mask.sum())
        block.project.weight.data = block.project.weight.data[:, mask]
        change(block, before, mask)
        return block

    return my_cut


def forget_running_var(block, before, mask):
    block.depthwise_bn.running_var = before.depthwise_bn.running_var


def forget_projection(block, before, mask):
    block.project.weight = before.project.weight


def forget_groups(block, before, mask):
    block.depthwise.groups = before.depthwise.groups


def keep_the_wrong_biases(block, before, mask):
    block.expand_bn.bias.data = before.expand_bn.bias.data[: int(mask.sum())]


def reestimation(train=True, reset=True, momentum=None, back_to_eval=True, change_gamma=False):
    """A re-estimation of BatchNorm, right with the default arguments."""

    def my_reestimate(model, batches):
        for bn in batch_norms(model):
            bn.momentum = momentum
            if reset:
                bn.reset_running_stats()
            if change_gamma:
                bn.weight.data += 0.1
        model.train(train)
        with torch.no_grad():
            for batch in batches:
                model(batch)
        return model.eval() if back_to_eval else model

    return my_reestimate


def stepping(order="zero backward penalty step", pull=torch.sign, chosen=batch_norms, sign=1):
    """A training step, right with the default arguments."""

    def my_step(model, optimizer, images, labels, lam):
        loss = F.cross_entropy(model(images), labels)
        for part in order.split():
            if part == "zero":
                optimizer.zero_grad()
            elif part == "backward":
                loss.backward()
            elif part == "penalty":
                for bn in chosen(model):
                    if bn.weight.grad is None:
                        bn.weight.grad = torch.zeros_like(bn.weight)
                    bn.weight.grad += sign * lam * pull(bn.weight.detach())
            else:
                optimizer.step()
        return loss

    return my_step


def convolutions(c, n, out, k):
    return c * n + k * k * n + n * out


def se_parameters(n, hidden):
    return 2 * n * hidden + n + hidden if hidden else 0


def ranking(scores):
    return torch.cat(scores).sort().values


def filters(scores):
    return sum(map(len, scores))


def folding(block, mask):
    """The constants of the removed channels, behind the projection."""
    constants = block.depthwise_bn.bias.detach().clamp(0, 6)
    return block.project.weight.detach()[:, ~mask, 0, 0] @ constants[~mask]


def allowed(rows, accuracy="held_out_pct", fine_tuned=True, points=1):
    (baseline,) = (row[accuracy] for row in rows if row["rate"] == 0 and row["fine_tuned"] is fine_tuned)
    return [row for row in rows if row[accuracy] >= baseline - points]


def cheapest(rows):
    return min(rows, key=lambda row: row["mflops"])["rate"]


def slow_flops(widths, flops, k):
    return sum(cost for width, cost in zip(widths, flops) if width % k)


AXES = (1, 2, 3)
# for each task typical wrong answers, each under a part of the message that it must get
WRONG = {
    "my_parameters": {
        "BatchNorms are missing": lambda c, n, out, k, hidden: convolutions(c, n, out, k) + se_parameters(n, hidden),
        "sees one channel": lambda c, n, out, k, hidden: (
            c * n + k * k * n * n + n * out + 4 * n + 2 * out + se_parameters(n, hidden)
        ),
        "have biases": lambda c, n, out, k, hidden: convolutions(c, n, out, k) + 4 * n + 2 * out + 2 * n * hidden,
        "squeeze-and-excitation are missing": lambda c, n, out, k, hidden: convolutions(c, n, out, k) + 4 * n + 2 * out,
    },
    "my_block_flops": {
        "multiply-accumulates alone": lambda c, n, out, k, size, stride: (
            size**2 * c * n + (size // stride) ** 2 * (k * k * n + n * out)
        ),
        "the map is smaller": lambda c, n, out, k, size, stride: (
            size**2 * (n * (c + 3) + n * (k * k + 3) + out * (n + 2))
        ),
        "comes before the stride": lambda c, n, out, k, size, stride: (
            (size // stride) ** 2 * (n * (c + 3) + n * (k * k + 3) + out * (n + 2))
        ),
        "no activation follows": lambda c, n, out, k, size, stride: (
            size**2 * n * (c + 3) + (size // stride) ** 2 * (n * (k * k + 3) + out * (n + 3))
        ),
    },
    "my_shares": {
        "equals the mean counts": lambda: [1 / 3, 0],
        "Compare magnitudes": lambda: [2 / 3, 0],
        "not over each filter": lambda: [1 / 3, 2 / 3],
        "divide by": lambda: [2, 1],
        "Return 2 values": lambda: 0.5,
    },
    "my_threshold": {
        "do not interpolate": lambda scores, rate: torch.cat(scores).quantile(rate),
        "Sort ascending": lambda scores, rate: ranking(scores).flip(0)[int(rate * filters(scores))],
        "counted from 0": lambda scores, rate: ranking(scores)[int(rate * filters(scores)) - 1],
        "for all layers together": lambda scores, rate: sum(mnv3nb.threshold([s], rate) for s in scores) / len(scores),
    },
    "my_widths": {
        "filters removed": lambda scores, rate: [int((s <= mnv3nb.threshold(scores, rate)).sum()) for s in scores],
        "keep m > t": lambda scores, rate: [int((s >= mnv3nb.threshold(scores, rate)).sum()) for s in scores],
        "the same share of every layer": lambda scores, rate: [round(len(s) * (1 - rate)) for s in scores],
        "Return 4 values": lambda scores, rate: sum(int((s > rate).sum()) for s in scores),
    },
    "my_shapes": {
        "one input channel": lambda c, n, out, k, kept: [(kept, c, 1, 1), (kept, kept, k, k), (out, kept, 1, 1)],
        "feed the next block": lambda c, n, out, k, kept: [(kept, c, 1, 1), (kept, 1, k, k), (kept, n, 1, 1)],
        "filters that stay": lambda c, n, out, k, kept: [
            (n - kept, c, 1, 1),
            (n - kept, 1, k, k),
            (out, n - kept, 1, 1),
        ],
        "removed filters are gone": lambda c, n, out, k, kept: [(kept, c, 1, 1), (kept, 1, k, k), (out, n, 1, 1)],
    },
    "my_sparsity": {
        "not the filter's": lambda k: (k.abs() >= k.abs().mean(AXES, keepdim=True)).float().mean(AXES),
        "equal the mean count": lambda k: (k.abs() > k.abs().mean()).float().mean(AXES),
        "Compare magnitudes": lambda k: (k >= k.abs().mean()).float().mean(AXES),
        "divide by": lambda k: (k.abs() >= k.abs().mean()).float().sum(AXES),
        "must have the shape (2,)": lambda k: (k.abs() >= k.abs().mean()).float(),
    },
    "my_scores": {
        "S is missing": lambda model: mnv3nb.score(model, "gamma"),
        "|γ| is missing": lambda model: mnv3nb.score(model, "sparsity"),
        "γ can be negative": lambda model: [
            block.expand_bn.weight * mnv3nb.filter_sparsity(block.expand.weight) for block in mnv3nb.blocks(model)
        ],
        "one tensor per block": lambda model: mnv3nb.score(model, "l1"),
    },
    "my_masks": {
        "keep m > t": lambda scores, rate: [s >= mnv3nb.threshold(scores, rate) for s in scores],
        "upside down": lambda scores, rate: [s <= mnv3nb.threshold(scores, rate) for s in scores],
        "not one for each": lambda scores, rate: [s > mnv3nb.threshold([s], rate) for s in scores],
        "not the threshold": lambda scores, rate: [s > rate for s in scores],
        "bool tensors": lambda scores, rate: [(s > mnv3nb.threshold(scores, rate)).float() for s in scores],
    },
    "my_cut": {
        "Nothing is smaller": lambda block, mask: block,
        "not yet in depthwise_bn.running_var": wrong_cut(forget_running_var),
        "slice its second dimension": wrong_cut(forget_projection),
        "64 groups": wrong_cut(forget_groups),
        "the values are not": wrong_cut(keep_the_wrong_biases),
    },
    "my_flops": {
        "the convolution alone": lambda c, n, size: size * size * n * c,
        "there are size·size": lambda c, n, size: n * (c + 3),
        "ReLU6 is missing": lambda c, n, size: size * size * n * (c + 2),
        "work on every pixel": lambda c, n, size: size * size * n * c + 3 * n,
    },
    "my_collapse": {
        "its first filter": lambda scores: [int((torch.cat(scores) < s.min()).sum()) / filters(scores) for s in scores],
        "Rank all filters of the network": lambda scores: [(len(s) - 1) / len(s) for s in scores],
        "one place too far": lambda scores: [
            int((torch.cat(scores) <= s.max()).sum()) / filters(scores) for s in scores
        ],
        "divide the place": lambda scores: [int((torch.cat(scores) < s.max()).sum()) for s in scores],
        "Return 4 values": lambda scores: min(mnv3nb.layer_collapse_rates(scores)),
    },
    "my_constants": {
        "still adds β": lambda beta: (torch.zeros(len(beta)), torch.zeros(len(beta))),
        "goes through the activation": lambda beta: (beta, beta),
        "ends at 6": lambda beta: (beta.relu(), F.hardswish(beta)),
        "not x·sigmoid(x)": lambda beta: (F.relu6(beta), F.silu(beta)),
        "it is not ReLU6": lambda beta: (F.relu6(beta), F.relu6(beta)),
    },
    "my_running_mean": {
        "the wrong sign": lambda block, mask: block.project_bn.running_mean + folding(block, mask),
        "not of those that stay": lambda block, mask: block.project_bn.running_mean - folding(block, ~mask),
        "the change alone": lambda block, mask: -folding(block, mask),
        "nothing is folded": lambda block, mask: block.project_bn.running_mean.clone(),
        "Return a new tensor": lambda block, mask: block.project_bn.running_mean.sub_(folding(block, mask)),
    },
    "my_reestimate": {
        "the old ones: in eval mode": reestimation(train=False, reset=False),
        "nothing was measured": reestimation(train=False),
        "still partly the old": reestimation(reset=False, momentum=0.1),
        "forgets the first batches": reestimation(momentum=0.1),
        "in eval mode when it comes back": reestimation(back_to_eval=False),
        "must stay as they are": reestimation(change_gamma=True),
    },
    "my_step": {
        "as without a penalty": stepping("zero backward step penalty"),
        "pushed away from 0": stepping(sign=-1),
        "dies out near 0": stepping(pull=lambda gamma: gamma),
        "only some BatchNorms": stepping(chosen=lambda model: [block.expand_bn for block in mnv3nb.blocks(model)]),
        "gradients of the step before": stepping("backward penalty step"),
        "no parameter moves": stepping("zero backward penalty"),
    },
    "my_criterion": {
        "upside down": lambda e: -e.gamma.abs() * e.weight.flatten(1).norm(dim=1),
        "nothing tells them apart": lambda e: torch.ones(len(e.gamma)),
        "one score per filter": lambda e: e.weight.abs(),
        "Two calls": lambda e: torch.rand(len(e.gamma)),
        "'l1_gamma'": lambda e: l1(e) * e.gamma.abs(),
        "noise reaches": lambda e: e.weight.flatten(1).std(dim=1),
    },
    "my_choice": {
        "fine-tuned as long": lambda rows: cheapest(allowed(rows, fine_tuned=False)),
        "made on test images": lambda rows: cheapest(allowed(rows, "test_pct")),
        "Compare FLOPs": lambda rows: max(row["rate"] for row in allowed(rows)),
        "the most accurate": lambda rows: max(rows, key=lambda row: row["held_out_pct"])["rate"],
        "lost more than a point": lambda rows: cheapest(allowed(rows, points=100)),
    },
    "my_slow_share": {
        "Weigh each block": lambda widths, flops, k: sum(width % k > 0 for width in widths) / len(widths),
        "Return the rest": lambda widths, flops, k: 1 - slow_flops(widths, flops, k) / sum(flops),
        "divide by the FLOPs": slow_flops,
        "is not enough": lambda widths, flops, k: slow_flops(widths, flops, 2) / sum(flops),
    },
    "my_aligned": {
        "round down": lambda widths, dense, k: [max(k, w // k * k) for w in widths],
        "wider than the dense": lambda widths, dense, k: [-(-w // k) * k for w in widths],
        "cannot be wider": lambda widths, dense, k: [max(k, int(w / k + 0.5) * k) for w in widths],
        "3 becomes 16": lambda widths, dense, k: [min(int(w / k + 0.5) * k, d // k * k) for w, d in zip(widths, dense)],
        "round(2.5) is 2": lambda widths, dense, k: [
            min(max(k, round(w / k) * k), d // k * k) for w, d in zip(widths, dense)
        ],
    },
}


def test_wrong_answers_are_known_for_every_task():
    assert sorted(WRONG) == sorted(checks.TASKS)


@pytest.mark.parametrize("name", WRONG)
def test_each_typical_wrong_answer_gets_a_message_of_its_own(name):
    messages = set()
    for part, solution in WRONG[name].items():
        verdict = getattr(checks, name)(solution)
        assert part in verdict.message, verdict.message
        assert verdict.points == 0
        assert float(repr(verdict)) == 0
        messages.add(verdict.message)
    assert len(messages) == len(WRONG[name]) >= 3


# other right answers


def penalty_in_the_loss(model, optimizer, images, labels, lam):
    optimizer.zero_grad()
    penalty = sum(bn.weight.abs().sum() for bn in batch_norms(model))
    loss = F.cross_entropy(model(images), labels) + lam * penalty
    loss.backward()
    optimizer.step()
    return loss


def update_by_torch(model, batches):
    update_bn(batches, model)
    return model.eval()


def cut_by_narrowing(block, mask):
    narrow_block(block, mask.nonzero().flatten(), torch.arange(0))
    return block


@pytest.mark.parametrize(
    ("name", "solution"),
    [
        ("my_step", penalty_in_the_loss),
        ("my_reestimate", update_by_torch),
        ("my_cut", cut_by_narrowing),
        ("my_masks", mnv3nb.keep_masks),
        ("my_sparsity", lambda k: (k.double().abs() >= k.abs().mean()).flatten(1).double().mean(1)),
        ("my_flops", lambda c, n, size: torch.tensor(float(size * size * n * (c + 3)))),
        ("my_shares", lambda: (0.6667, 0.3333)),
        ("my_collapse", lambda scores: torch.tensor(mnv3nb.layer_collapse_rates(scores))),
        ("my_criterion", lambda e: e.gamma.abs() * (1 + e.weight.flatten(1).std(dim=1))),
    ],
)
def test_another_way_to_a_right_answer_is_right(name, solution):
    assert getattr(checks, name)(solution).message == RIGHT


def test_the_total_of_nothing_is_0():
    checks.verdicts.clear()
    assert checks.total().points["total"] == 0
