"""The exercises: three copies of each sheet from one source, checks that tell a right answer from typical wrong ones."""

import ast
import copy
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


@pytest.fixture(autouse=True)
def path(monkeypatch):
    """A sheet adds the folder above the working folder to Python's path: not for the tests after these."""
    monkeypatch.setattr(sys, "path", list(sys.path))


SHEETS = sorted(path.stem for path in (EXERCISES / "source").glob("*.ipynb"))
each_sheet = pytest.mark.parametrize("sheet", SHEETS)
NBGRADER = {"grade": bool, "grade_id": str, "locked": bool, "schema_version": int, "solution": bool, "task": bool}


def code_cells(*path: str) -> list:
    return [cell for cell in nbformat.read(EXERCISES.joinpath(*path), 4).cells if cell.cell_type == "code"]


def run(*path: str) -> None:
    """Run a sheet from its first cell to its last."""
    names = {}
    checks.verdicts.clear()
    for cell in code_cells(*path):
        exec(cell.source, names)


# one source, three copies


def test_there_are_at_most_four_sheets_and_no_other_copies():
    assert 1 <= len(SHEETS) <= 4
    for folder in (EXERCISES, EXERCISES / "solutions"):
        assert sorted(path.stem for path in folder.glob("*.ipynb")) == SHEETS


def test_the_committed_copies_are_what_the_builder_makes():
    for path, text in build.copies().items():
        assert path.read_text(encoding="utf-8") == text, f"{path.name} differs from its source: make exercises"


@each_sheet
def test_no_solution_is_in_the_students_copy_and_no_mark_in_the_solved_one(sheet):
    for solution in (
        c for c in code_cells("source", f"{sheet}.ipynb") if c.metadata.get("nbgrader", {}).get("solution")
    ):
        assert solution.source.count("### BEGIN SOLUTION") == solution.source.count("### END SOLUTION") == 1
    for folder, stubs in ((".", True), ("solutions", False)):
        text = (EXERCISES / folder / f"{sheet}.ipynb").read_text(encoding="utf-8")
        assert "SOLUTION" not in text and ("# your code" in text) == stubs


@each_sheet
@pytest.mark.parametrize("folder", ["source", ".", "solutions"])
def test_a_copy_is_valid_has_no_outputs_short_cells_and_links_that_lead_somewhere(folder, sheet):
    notebook = nbformat.read(EXERCISES / folder / f"{sheet}.ipynb", 4)
    nbformat.validate(notebook)
    assert len([cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]) == 1
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert cell.outputs == [] and cell.execution_count is None and "print(" not in cell.source
            assert len([line for line in cell.source.splitlines() if line.strip() and "###" not in line]) <= 15
        for link in re.findall(r"\]\(([^)#]+\.ipynb)\)", cell.source):
            assert (EXERCISES / folder / link).is_file(), link


# the graded copy


@each_sheet
def test_the_source_has_what_nbgrader_asks_of_a_cell(sheet):
    """Schema 3: six fields everywhere, points where a cell is graded, ids that are unique and plain."""
    cells = nbformat.read(EXERCISES / "source" / f"{sheet}.ipynb", 4).cells
    found = [cell.metadata.nbgrader for cell in cells if "nbgrader" in cell.metadata]
    for marks in found:
        assert {name: type(marks[name]) for name in NBGRADER} == NBGRADER
        assert set(marks) - set(NBGRADER) == ({"points"} if marks.grade else set())
        assert marks.schema_version == 3 and not marks.task
        assert re.fullmatch(r"[a-zA-Z0-9_\-]+", marks.grade_id)
        assert not (marks.solution and marks.locked) and (marks.locked or not marks.grade)
    assert len({marks.grade_id for marks in found}) == len(found)


@each_sheet
def test_every_task_has_a_goal_a_hint_points_and_a_check_without_the_answer(sheet):
    cells = nbformat.read(EXERCISES / "source" / f"{sheet}.ipynb", 4).cells
    solutions = [i for i, cell in enumerate(cells) if cell.metadata.get("nbgrader", {}).get("solution")]
    total = 0
    for number, i in enumerate(solutions, 1):
        text = next(c.source for c in reversed(cells[:i]) if c.cell_type == "markdown" and c.source.startswith("## "))
        name, check = cells[i].metadata.nbgrader.grade_id, cells[i + 1]
        points = int(re.match(rf"## {number}\. .+ · (\d) points?\n", text)[1])
        assert "**Goal**" in text and "<summary>Hint</summary>" in text
        assert ast.parse(cells[i].source).body[0].name == name
        assert check.source == f"checks.{name}({name})"
        assert check.metadata.nbgrader.points == points == checks.TASKS[name]
        total += points
    assert f"**Points**: {total}." in cells[0].source


def test_every_check_belongs_to_one_task():
    names = [
        c.metadata.nbgrader.grade_id
        for s in SHEETS
        for c in code_cells("source", f"{s}.ipynb")
        if "nbgrader" in c.metadata
    ]
    assert sorted(name for name in names if name.startswith("my_")) == sorted(checks.TASKS)


def test_the_page_about_the_sheets_has_their_numbers():
    text = (EXERCISES / "README.md").read_text(encoding="utf-8")
    assert f"{len(SHEETS)} sheets, {len(checks.TASKS)} tasks, {sum(checks.TASKS.values())} points" in text.replace(
        "Four", "4"
    )
    for link in re.findall(r"\]\((?!https)([^)]+)\)", text):
        assert (EXERCISES / link).exists(), link


# verdicts


@each_sheet
def test_an_empty_sheet_runs_and_nothing_is_solved(sheet):
    run(f"{sheet}.ipynb")
    assert checks.verdicts and all(v.message.startswith("not solved yet") for v in checks.verdicts.values())
    assert checks.total().points["total"] == 0


@each_sheet
def test_a_solved_sheet_has_all_points(sheet):
    run("solutions", f"{sheet}.ipynb")
    assert {v.message for v in checks.verdicts.values()} == {"right"}
    table = checks.total()
    assert table.points["total"] == table.out_of["total"] == sum(checks.TASKS[name] for name in checks.verdicts)


def test_nbgraders_own_empty_cell_is_not_solved_and_an_error_is_the_students_to_see():
    def empty(*_):
        raise NotImplementedError

    verdict = checks.my_flops(empty)
    assert verdict.message.startswith("not solved yet") and float(repr(verdict)) == 0
    assert float(repr(checks.my_flops(lambda c, n, size: size * size * n * (c + 3)))) == 1
    with pytest.raises(ZeroDivisionError):
        checks.my_flops(lambda c, n, size: 1 / 0)
    assert checks.verdicts["my_flops"].points == 0


def wrong_cut(change):
    """`change(block, mask)` in a block whose other tensors are cut rightly."""

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


def forget(part, name):
    return lambda block, before, mask: setattr(getattr(block, part), name, getattr(getattr(before, part), name))


def estimated(mode="train", reset=True, momentum=None, back=True, learn=False):
    def my_reestimate(model, batches):
        for bn in batch_norms(model):
            bn.momentum = momentum
            if reset:
                bn.reset_running_stats()
            if learn:
                bn.weight.data += 0.1
        getattr(model, mode)()
        with torch.no_grad():
            for x in batches:
                model(x)
        return model.eval() if back else model

    return my_reestimate


def stepping(order="zero backward penalty step", pull=torch.sign, chosen=batch_norms, sign=1):
    def my_step(model, optimizer, images, labels, lam):
        loss = F.cross_entropy(model(images), labels)
        for part in order.split():
            if part == "zero":
                optimizer.zero_grad()
            elif part == "backward":
                loss.backward()
            elif part == "penalty":
                for bn in chosen(model):
                    bn.weight.grad = (0 if bn.weight.grad is None else bn.weight.grad) + sign * lam * pull(
                        bn.weight.detach()
                    )
            else:
                optimizer.step()
        return loss

    return my_step


def ranked(scores):
    return torch.cat(scores).sort().values


def choose(rows, column="held_out_pct", tuned=True, points=1, key=lambda row: row["mflops"]):
    (baseline,) = (row[column] for row in rows if row["rate"] == 0 and row["fine_tuned"] is tuned)
    return min((row for row in rows if row[column] >= baseline - points), key=key)["rate"]


def constants(block, mask):
    return block.project.weight.detach()[:, ~mask, 0, 0] @ block.depthwise_bn.bias.detach().clamp(0, 6)[~mask]


AXES = (1, 2, 3)
# for each task typical wrong answers, each under a part of the message that it must get
WRONG = {
    "my_parameters": {
        "BatchNorms are missing": lambda c, n, out, k, h: c * n + k * k * n + n * out + (2 * n * h + n + h) * (h > 0),
        "sees one channel": lambda c, n, out, k, h: (
            c * n + k * k * n * n + n * out + 4 * n + 2 * out + (2 * n * h + n + h) * (h > 0)
        ),
        "have biases": lambda c, n, out, k, h: c * n + k * k * n + n * out + 4 * n + 2 * out + 2 * n * h,
        "squeeze-and-excitation is missing": lambda c, n, out, k, h: c * n + k * k * n + n * out + 4 * n + 2 * out,
    },
    "my_block_flops": {
        "multiply-accumulates alone": lambda c, n, out, k, size, s: (
            size**2 * c * n + (size // s) ** 2 * (k * k * n + n * out)
        ),
        "the map is smaller": lambda c, n, out, k, size, s: size**2 * (n * (c + 3) + n * (k * k + 3) + out * (n + 2)),
        "comes before the stride": lambda c, n, out, k, size, s: (
            (size // s) ** 2 * (n * (c + 3) + n * (k * k + 3) + out * (n + 2))
        ),
        "no activation follows": lambda c, n, out, k, size, s: (
            size**2 * n * (c + 3) + (size // s) ** 2 * (n * (k * k + 3) + out * (n + 3))
        ),
    },
    "my_shares": {
        "a weight that equals the mean counts": lambda: [1 / 3, 0],
        "take magnitudes": lambda: [2 / 3, 0],
        "not over the filter": lambda: [1 / 3, 2 / 3],
        "divide by": lambda: [2, 1],
        "2 values are asked for": lambda: 0.5,
    },
    "my_threshold": {
        "no interpolation": lambda scores, rate: torch.cat(scores).quantile(rate),
        "sort ascending": lambda scores, rate: ranked(scores).flip(0)[int(rate * sum(map(len, scores)))],
        "counted from 0": lambda scores, rate: ranked(scores)[int(rate * sum(map(len, scores))) - 1],
        "for all layers together": lambda scores, rate: sum(mnv3nb.threshold([s], rate) for s in scores) / len(scores),
    },
    "my_widths": {
        "filters removed": lambda scores, rate: [int((s <= mnv3nb.threshold(scores, rate)).sum()) for s in scores],
        "keep m > t": lambda scores, rate: [int((s >= mnv3nb.threshold(scores, rate)).sum()) for s in scores],
        "the same share of every layer": lambda scores, rate: [round(len(s) * (1 - rate)) for s in scores],
        "4 values are asked for": lambda scores, rate: sum(int((s > rate).sum()) for s in scores),
    },
    "my_shapes": {
        "one input channel": lambda c, n, out, k, kept: [(kept, c, 1, 1), (kept, kept, k, k), (out, kept, 1, 1)],
        "its outputs feed the next block": lambda c, n, out, k, kept: [
            (kept, c, 1, 1),
            (kept, 1, k, k),
            (kept, n, 1, 1),
        ],
        "number that stays": lambda c, n, out, k, kept: [
            (n - kept, c, 1, 1),
            (n - kept, 1, k, k),
            (out, n - kept, 1, 1),
        ],
        "those of removed filters are gone": lambda c, n, out, k, kept: [
            (kept, c, 1, 1),
            (kept, 1, k, k),
            (out, n, 1, 1),
        ],
    },
    "my_sparsity": {
        "not the filter's": lambda k: (k.abs() >= k.abs().mean(AXES, keepdim=True)).float().mean(AXES),
        "equal the mean count": lambda k: (k.abs() > k.abs().mean()).float().mean(AXES),
        "compare magnitudes": lambda k: (k >= k.abs().mean()).float().mean(AXES),
        "divide by": lambda k: (k.abs() >= k.abs().mean()).float().sum(AXES),
        "must have the shape (2,)": lambda k: (k.abs() >= k.abs().mean()).float(),
    },
    "my_scores": {
        "S is missing": lambda model: mnv3nb.score(model, "gamma"),
        "|γ| is missing": lambda model: mnv3nb.score(model, "sparsity"),
        "γ can be negative": lambda model: [
            b.expand_bn.weight * mnv3nb.filter_sparsity(b.expand.weight) for b in mnv3nb.blocks(model)
        ],
        "one tensor per block": lambda model: mnv3nb.score(model, "l1"),
    },
    "my_masks": {
        "keep m > t": lambda scores, rate: [s >= mnv3nb.threshold(scores, rate) for s in scores],
        "True is kept": lambda scores, rate: [s <= mnv3nb.threshold(scores, rate) for s in scores],
        "not one for each": lambda scores, rate: [s > mnv3nb.threshold([s], rate) for s in scores],
        "not the threshold": lambda scores, rate: [s > rate for s in scores],
        "bool tensors": lambda scores, rate: [(s > mnv3nb.threshold(scores, rate)).float() for s in scores],
    },
    "my_cut": {
        "nothing is smaller": lambda block, mask: block,
        "not yet in depthwise_bn.running_var": wrong_cut(forget("depthwise_bn", "running_var")),
        "slice its second dimension": wrong_cut(forget("project", "weight")),
        "64 groups": wrong_cut(forget("depthwise", "groups")),
        "the values are not": wrong_cut(
            lambda block, before, mask: setattr(
                block.expand_bn.bias, "data", before.expand_bn.bias.data[: int(mask.sum())]
            )
        ),
    },
    "my_flops": {
        "the convolution alone": lambda c, n, size: size * size * n * c,
        "there are size·size": lambda c, n, size: n * (c + 3),
        "ReLU6 is missing": lambda c, n, size: size * size * n * (c + 2),
        "work on every pixel": lambda c, n, size: size * size * n * c + 3 * n,
    },
    "my_collapse": {
        "its first filter": lambda scores: [
            int((torch.cat(scores) < s.min()).sum()) / sum(map(len, scores)) for s in scores
        ],
        "rank all filters of the network": lambda scores: [(len(s) - 1) / len(s) for s in scores],
        "one place too far": lambda scores: [
            int((torch.cat(scores) <= s.max()).sum()) / sum(map(len, scores)) for s in scores
        ],
        "divide the place": lambda scores: [int((torch.cat(scores) < s.max()).sum()) for s in scores],
        "values are asked for": lambda scores: min(mnv3nb.layer_collapse_rates(scores)),
    },
    "my_constants": {
        "still adds β": lambda beta: (torch.zeros(len(beta)), torch.zeros(len(beta))),
        "goes through the activation": lambda beta: (beta, beta),
        "ends at 6": lambda beta: (beta.relu(), F.hardswish(beta)),
        "not x·sigmoid(x)": lambda beta: (F.relu6(beta), F.silu(beta)),
        "it is not ReLU6": lambda beta: (F.relu6(beta), F.relu6(beta)),
    },
    "my_running_mean": {
        "the wrong sign": lambda block, mask: block.project_bn.running_mean + constants(block, mask),
        "not of those that stay": lambda block, mask: block.project_bn.running_mean - constants(block, ~mask),
        "the change alone": lambda block, mask: -constants(block, mask),
        "nothing is folded": lambda block, mask: block.project_bn.running_mean.clone(),
        "return a new tensor": lambda block, mask: block.project_bn.running_mean.sub_(constants(block, mask)),
    },
    "my_reestimate": {
        "the old ones": estimated(mode="eval", reset=False),
        "nothing was measured": estimated(mode="eval"),
        "still partly the old": estimated(reset=False, momentum=0.1),
        "forgets the first batches": estimated(momentum=0.1),
        "in eval mode when it comes back": estimated(back=False),
        "must stay as they are": estimated(learn=True),
    },
    "my_step": {
        "as without a penalty": stepping("zero backward step penalty"),
        "pushed away from 0": stepping(sign=-1),
        "dies out near 0": stepping(pull=lambda gamma: gamma),
        "only some BatchNorms": stepping(chosen=lambda model: [b.expand_bn for b in mnv3nb.blocks(model)]),
        "gradients of the step before": stepping("backward penalty step"),
        "no parameter moves": stepping("zero backward penalty"),
    },
    "my_criterion": {
        "upside down": lambda e: -e.gamma.abs() * e.weight.flatten(1).norm(dim=1),
        "nothing tells them apart": lambda e: torch.ones(len(e.gamma)),
        "one score per filter": lambda e: e.weight.abs(),
        "two calls": lambda e: torch.rand(len(e.gamma)),
        "'l1_gamma'": lambda e: l1(e) * e.gamma.abs(),
        "noise reaches": lambda e: e.weight.flatten(1).std(dim=1),
    },
    "my_choice": {
        "fine-tuned as long": lambda rows: choose(rows, tuned=False),
        "made on test images": lambda rows: choose(rows, "test_pct"),
        "compare FLOPs": lambda rows: choose(rows, key=lambda row: -row["rate"]),
        "the most accurate": lambda rows: max(rows, key=lambda row: row["held_out_pct"])["rate"],
        "lost more than a point": lambda rows: choose(rows, points=100),
    },
    "my_slow_share": {
        "weigh each block": lambda widths, flops, k: sum(w % k > 0 for w in widths) / len(widths),
        "asked is the rest": lambda widths, flops, k: sum(f for w, f in zip(widths, flops) if w % k == 0) / sum(flops),
        "divide by the FLOPs": lambda widths, flops, k: sum(f for w, f in zip(widths, flops) if w % k),
        "even is not enough": lambda widths, flops, k: sum(f for w, f in zip(widths, flops) if w % 2) / sum(flops),
    },
    "my_aligned": {
        "rounded down": lambda widths, dense, k: [max(k, w // k * k) for w in widths],
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
def test_typical_wrong_answers_get_a_message_each(name):
    messages = {}
    for part, solution in WRONG[name].items():
        verdict = getattr(checks, name)(solution)
        assert part in verdict.message, verdict.message
        assert verdict.points == 0 and float(repr(verdict)) == 0
        messages[verdict.message] = part
    assert len(messages) == len(WRONG[name]) >= 3


def penalty_in_the_loss(model, optimizer, images, labels, lam):
    optimizer.zero_grad()
    loss = F.cross_entropy(model(images), labels) + lam * sum(bn.weight.abs().sum() for bn in batch_norms(model))
    loss.backward()
    optimizer.step()
    return loss


def by_torch(model, batches):
    update_bn(batches, model)
    return model.eval()


def by_narrowing(block, mask):
    narrow_block(block, mask.nonzero().flatten(), torch.arange(0))
    return block


@pytest.mark.parametrize(
    ("name", "solution"),
    [
        ("my_step", penalty_in_the_loss),
        ("my_reestimate", by_torch),
        ("my_cut", by_narrowing),
        ("my_masks", mnv3nb.keep_masks),
        ("my_sparsity", lambda k: (k.double().abs() >= k.abs().mean()).flatten(1).double().mean(1)),
        ("my_flops", lambda c, n, size: torch.tensor(float(size * size * n * (c + 3)))),
        ("my_shares", lambda: (0.6667, 0.3333)),
        ("my_collapse", lambda scores: torch.tensor(mnv3nb.layer_collapse_rates(scores))),
        ("my_criterion", lambda e: e.gamma.abs() * (1 + e.weight.flatten(1).std(dim=1))),
    ],
)
def test_another_way_to_a_right_answer_is_right(name, solution):
    assert getattr(checks, name)(solution).message == "right"


def test_the_total_of_nothing_is_0():
    checks.verdicts.clear()
    assert checks.total().points["total"] == 0
