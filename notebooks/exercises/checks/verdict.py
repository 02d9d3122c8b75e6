"""What the checks of all exercises share: `task` turns a check into a verdict, `diagnose` names a typical mistake."""

import copy
import functools
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields

import pandas as pd
import torch
from torch import Tensor

NOT_SOLVED = "Not solved yet: the function returns nothing."
RAISES = "The function raises an error; its traceback says where."
RIGHT = "Right."


@dataclass(frozen=True)
class Verdict:
    """The value of a check's cell."""

    task: str  # name of the function that the student writes
    points: int  # earned
    out_of: int  # points of the task
    message: str

    def __repr__(self) -> str:
        """The points alone, because nbgrader reads a number as partial credit."""
        return str(self.points)

    def _repr_markdown_(self) -> str:
        return f"**{self.points} of {self.out_of} points** · {self.message}"


class NotSolved(Exception):
    """The solution returns None, or raises NotImplementedError as nbgrader's own empty cell does."""


TASKS: dict[str, int] = {}  # points of every task, by the name of the function to write
verdicts: dict[str, Verdict] = {}  # of the tasks checked in this kernel


def task(points: int):
    """Turn a check into a function that takes the student's solution and returns a Verdict.

    A check takes `ask` and returns None if the solution is right, else a message. `ask(*arguments)` calls the solution.
    Errors in the solution are raised with their traceback, for the student to see.
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

            verdicts[name] = Verdict(name, 0, points, RAISES)  # stays if the next line raises
            try:
                message = check(ask)
            except NotSolved:
                message = NOT_SOLVED
            if message is None:
                verdicts[name] = Verdict(name, points, points, RIGHT)
            else:
                verdicts[name] = Verdict(name, 0, points, message)
            return verdicts[name]

        return judge

    return decorate


def total() -> pd.DataFrame:
    """Points of every task checked so far, and their sum."""
    rows = [asdict(verdict) for verdict in verdicts.values()]
    columns = [field.name for field in fields(Verdict)]
    table = pd.DataFrame(rows, columns=columns).set_index("task")
    table.loc["total"] = [table.points.sum(), table.out_of.sum(), ""]
    return table


def ask_each(ask: Callable, cases: list[tuple]) -> list:
    """The solution's answer to each case. It gets copies, so that it cannot change the cases."""
    return [ask(*copy.deepcopy(case)) for case in cases]


def diagnose(
    answers: list, cases: list[tuple], correct: Callable, mistakes: dict[str, Callable], hint: str
) -> str | None:
    """None if `answers`, one for each case, are right, else what is wrong with them.

    `correct(*case)` gives the right answer. `mistakes` has, by message, functions that give the answers of typical
    mistakes. If none of them fits, the message is about the form of the answer, or else it is the hint.
    """
    expected = [correct(*case) for case in cases]
    if same(answers, expected):
        return None
    for message, mistaken in mistakes.items():
        if same(answers, [mistaken(*case) for case in cases]):
            return message
    return wrong_form(answers[0], expected[0]) or hint


def same(answer, expected) -> bool:
    """Whether numbers, tensors, or lists and dicts of them agree in form and, up to rounding, in value."""
    if isinstance(expected, dict):
        if not isinstance(answer, dict) or answer.keys() != expected.keys():
            return False
        return all(same(answer[key], expected[key]) for key in expected)
    if isinstance(expected, list | tuple):
        items = as_list(answer)
        if not isinstance(items, list | tuple) or len(items) != len(expected):
            return False
        return all(map(same, items, expected))
    try:
        answer = torch.as_tensor(answer, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError):
        return False
    tolerance = 0 if isinstance(expected, int) else 1e-4
    expected = torch.as_tensor(expected, dtype=torch.float64)
    return answer.shape == expected.shape and torch.allclose(answer, expected, rtol=tolerance, atol=tolerance / 1e3)


def wrong_form(answer, expected) -> str | None:
    """What is wrong with the type, the shape or the length of an answer, or None."""
    if isinstance(expected, Tensor):
        if not isinstance(answer, Tensor):
            return f"The function returns a value of type {type(answer).__name__}. Return a tensor."
        if answer.shape != expected.shape:
            return f"The result has the shape {tuple(answer.shape)}. It must have the shape {tuple(expected.shape)}."
    if isinstance(expected, list | tuple):
        items = as_list(answer)
        if not hasattr(items, "__len__") or len(items) != len(expected):
            return f"The function returns {items!r:.60}. Return {len(expected)} values."
    return None


def as_list(answer):
    """A tensor with dimensions as a list; anything else unchanged."""
    return answer.tolist() if isinstance(answer, Tensor) and answer.ndim else answer
