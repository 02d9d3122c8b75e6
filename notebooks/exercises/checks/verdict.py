"""What every check of the exercises does: asks a solution, compares, and returns points with a message that helps."""

import functools
from collections.abc import Callable
from dataclasses import astuple, dataclass, fields

import pandas as pd
import torch
from torch import Tensor

NOT_SOLVED = "not solved yet: the function returns nothing"


@dataclass(frozen=True)
class Verdict:
    """The value of a check's cell. As plain text it is the points: a number is what nbgrader reads as partial credit."""

    task: str
    points: int
    out_of: int
    message: str

    def __repr__(self) -> str:
        return str(self.points)

    def _repr_markdown_(self) -> str:
        return f"**{self.points} of {self.out_of} points** · {self.message}"


class NotSolved(Exception):
    """The solution returns None, or raises NotImplementedError as nbgrader's own empty cell does."""


TASKS: dict[str, int] = {}  # name of the function to write: points
verdicts: dict[str, Verdict] = {}  # of the tasks checked in this kernel


def task(points: int):
    """Makes `check(ask)`, which returns None or what is wrong, a function of the solution that returns a Verdict.

    `ask(*arguments)` calls the solution. Other errors than "not solved" are the student's to see, with their traceback.
    """

    def decorate(check: Callable) -> Callable:
        name = check.__name__
        TASKS[name] = points

        @functools.wraps(check)
        def judge(solution: Callable) -> Verdict:
            def ask(*arguments):
                try:
                    answer = solution(*arguments)
                except NotImplementedError:
                    raise NotSolved from None
                if answer is None:
                    raise NotSolved
                return answer

            verdicts[name] = Verdict(name, 0, points, "the function raises an error")
            try:
                wrong = check(ask)
            except NotSolved:
                wrong = NOT_SOLVED
            earned, message = (0, wrong) if wrong else (points, "right")
            verdicts[name] = Verdict(name, earned, points, message)
            return verdicts[name]

        return judge

    return decorate


def total() -> pd.DataFrame:
    """Points of every task checked so far, and their sum."""
    columns = [field.name for field in fields(Verdict)]
    table = pd.DataFrame([astuple(verdict) for verdict in verdicts.values()], columns=columns).set_index("task")
    table.loc["total"] = [table.points.sum(), table.out_of.sum(), ""]
    return table


def same(got, expected) -> bool:
    """Whether numbers, tensors, or lists and dicts of them agree, in form and up to rounding."""
    if isinstance(expected, dict):
        return isinstance(got, dict) and got.keys() == expected.keys() and all(same(got[k], expected[k]) for k in got)
    if isinstance(expected, list | tuple):
        got = got.tolist() if isinstance(got, Tensor) and got.ndim else got
        return isinstance(got, list | tuple) and len(got) == len(expected) and all(map(same, got, expected))
    rounding = 0 if isinstance(expected, int) else 1e-4
    try:
        got, expected = (torch.as_tensor(x, dtype=torch.float64) for x in (got, expected))
    except (TypeError, ValueError, RuntimeError):
        return False
    return got.shape == expected.shape and torch.allclose(got, expected, rtol=rounding, atol=rounding / 1e3)


def mistake(got: list, right: list, known: dict[str, list], otherwise: str) -> str | None:
    """None if the answers `got` (one per case) are `right`; else the message of the known mistake that gives them."""
    if same(got, right):
        return None
    wrong_form = form(got[0], right[0])
    return next((message for message, answers in known.items() if same(got, answers)), wrong_form or otherwise)


def form(got, expected) -> str | None:
    """What is wrong with the form of an answer, if anything is."""
    if isinstance(expected, Tensor) and not isinstance(got, Tensor):
        return f"a tensor is asked for, the function returns {type(got).__name__}"
    if isinstance(expected, Tensor) and got.shape != expected.shape:
        return f"the result must have the shape {tuple(expected.shape)}, it has {tuple(got.shape)}"
    got = got.tolist() if isinstance(got, Tensor) else got
    if isinstance(expected, list | tuple) and (not hasattr(got, "__len__") or len(got) != len(expected)):
        return f"{len(expected)} values are asked for, the function returns {got!r:.60}"
    return None
