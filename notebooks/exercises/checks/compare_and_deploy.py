"""Checks of the sheet compare_and_deploy."""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor

import mnv3nb
from mnv3nb import paper
from mnv3nb.blocks import batch_norms
from mnv3nb.data.batches import to_input

from .networks import (
    SIDE,
    block_flops,
    criterion_accuracies,
    digits,
    expansions_of,
    random_criteria,
    small_network,
    sparse_network,
)
from .verdict import mistake, same, task

MARGIN = 30  # points by which a criterion must be better than noise


@task(points=3)
def my_step(ask):
    images, labels, lam = to_input(digits().train_images[:64], SIDE), digits().train_labels[:64], 0.05
    start = small_network(4).train()
    for bn in batch_norms(start):
        bn.weight.data.uniform_(-0.5, 0.5, generator=torch.Generator().manual_seed(len(bn.weight)))

    def two_steps(step) -> dict[str, Tensor]:
        model = copy.deepcopy(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for x, y in zip(images.split(32), labels.split(32)):
            step(model, optimizer, x, y, lam)
        return {name: p.detach() for name, p in model.named_parameters()}

    def by_hand(pull, zero=True):
        def step(model, optimizer, x, y, lam):
            if zero:
                optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            pull(model, lam)
            optimizer.step()

        return two_steps(step)

    def all_weights(model, lam, parameters=None):
        for p in parameters or model.parameters():
            p.grad += lam * p.detach().sign()

    def away(model, lam):
        all_weights(model, -lam, [bn.weight for bn in batch_norms(model)])

    add = mnv3nb.add_gamma_penalty
    known = {
        "γ moves as without a penalty: it must be in the gradients after backward() and before step()": (
            lambda *_: None,
            True,
        ),
        "γ is pushed away from 0: the gradient of λ·|γ| is +λ·sign(γ)": (away, True),
        "that is the gradient of λ/2·γ², which dies out near 0: λ·|γ| has λ·sign(γ)": (
            lambda model, lam: add(model, lam, "l2"),
            True,
        ),
        "convolutions and biases are penalised as well: only the γ of BatchNorms are": (all_weights, True),
        "only some BatchNorms are penalised: Eq. 1 sums over all γ": (
            lambda m, lam: add(m, lam, penalized="expansion"),
            True,
        ),
        "gradients of the step before are still there: zero_grad()": (add, False),
    }
    got, right = two_steps(ask), by_hand(add)
    if same(got, {name: p.detach() for name, p in start.named_parameters()}):
        return "no parameter moves: the optimizer must step"
    found = {message: [by_hand(*change)] for message, change in known.items()}
    return mistake(
        [got], [right], found, "zero_grad, loss, backward, then the penalty's gradient on every γ, then step"
    )


@task(points=3)
def my_criterion(ask):
    expansions = expansions_of(sparse_network())
    scores = [ask(e) for e in expansions]
    for e, s in zip(expansions, scores):
        if not isinstance(s, Tensor) or s.shape != e.gamma.shape:
            return (
                f"one score per filter: a tensor of shape {tuple(e.gamma.shape)}, not {tuple(getattr(s, 'shape', ()))}"
            )
    scores = [s.detach().double() for s in scores]
    if not all(s.isfinite().all() for s in scores):
        return "some scores are not finite"
    if any((s == s[0]).all() for s in scores):
        return "all filters of a block get the same score: nothing tells them apart"
    if not same([ask(e) for e in expansions], scores):
        return "two calls give different scores: noise is the bar, not a criterion"
    order = torch.cat(scores).argsort(stable=True)
    for name in sorted(set(mnv3nb.CRITERIA) - {"random", "taylor"}):
        if order.equal(torch.cat(mnv3nb.score(sparse_network(), name)).argsort(stable=True)):
            return f"this ranks exactly as {name!r} does: the comparison has it already, write one of your own"
    bar = max(folded for _, folded in map(criterion_accuracies, random_criteria()))
    yours, upside_down = (criterion_accuracies(part)[1] for part in (scores, [-s for s in scores]))
    if yours >= bar + MARGIN:
        return None
    if upside_down >= bar + MARGIN:
        return "upside down: the score must be larger for filters that matter more, the smallest go"
    least = f"{bar:.1f} %, and {MARGIN} points more are asked for"
    return f"folded accuracy {yours:.1f} %; noise reaches {least}: which part of an expansion marks a dead filter?"


@task(points=2)
def my_choice(ask):
    names = ("rate", "fine_tuned", "mflops", "held_out_pct", "test_pct")
    first = [
        (0.0, False, 230, 88.0, 88.3),
        (0.0, True, 230, 90.0, 89.9),
        (0.1, True, 217, 90.2, 90.0),
        (0.3, True, 181, 89.6, 89.5),
        (0.4, True, 161, 89.1, 88.6),
        (0.5, True, 138, 88.4, 88.0),
        (0.6, True, 99, 87.1, 86.5),
        (0.7, True, 60, 60.0, 61.0),
    ]
    second = [(rate / 2, tuned, cost, held - 20, test - 20) for rate, tuned, cost, held, test in first]
    second.insert(5, (0.24, True, 170, 69.2, 69.3))  # more filters removed than in the row before, and more expensive
    cases = [[dict(zip(names, row)) for row in table] for table in (first, second)]

    def cheapest(rows, column="held_out_pct", tuned=True, key=lambda row: row["mflops"]):
        baseline = next(row[column] for row in rows if row["rate"] == 0 and row["fine_tuned"] is tuned)
        return min((row for row in rows if row[column] >= baseline - 1), key=key)["rate"]

    known = {
        "the baseline must be fine-tuned as long: rate 0 with fine_tuned": [
            cheapest(rows, tuned=False) for rows in cases
        ],
        "a choice made on test images makes their accuracy worthless: choose on held-out images": [
            cheapest(rows, "test_pct") for rows in cases
        ],
        "the largest rate is not always the cheapest network: compare FLOPs": [
            cheapest(rows, key=lambda row: -row["rate"]) for rows in cases
        ],
        "the most accurate one: asked is the cheapest within a point of the baseline": [
            max(rows, key=lambda row: row["held_out_pct"])["rate"] for rows in cases
        ],
        "the cheapest of all has lost more than a point": [
            min(rows, key=lambda r: r["mflops"])["rate"] for rows in cases
        ],
    }
    hint = "which row is the baseline, which rows lie within a point of it, which of those has the fewest FLOPs?"
    return mistake([ask(rows) for rows in cases], [cheapest(rows) for rows in cases], known, hint)


@task(points=2)
def my_slow_share(ask):
    dense, cut = paper.TABLE_5.before.tolist(), paper.TABLE_5.after.tolist()
    cases = [(widths, block_flops(tuple(widths)), k) for widths, k in ((cut, 8), (dense, 16), (cut, 16), (dense, 8))]
    slow = [[bool(width % k) for width in widths] for widths, _, k in cases]
    sums = [sum(cost for cost, s in zip(flops, marks) if s) for (_, flops, _), marks in zip(cases, slow)]
    right = [part / sum(flops) for part, (_, flops, _) in zip(sums, cases)]
    odd = [sum(cost for w, cost in zip(widths, flops) if w % 2) / sum(flops) for widths, flops, _ in cases]
    known = {
        "a share of the blocks: weigh each block by its FLOPs": [sum(marks) / len(marks) for marks in slow],
        "that is the aligned share: asked is the rest": [1 - share for share in right],
        "a share, in [0, 1]: divide by the FLOPs of all blocks": sums,
        "even is not enough: 540 is no multiple of 8": odd,
    }
    got = [ask(*case) for case in cases]
    return mistake(
        got, right, known, "add up the FLOPs of the blocks with width % k ≠ 0, divide by those of all blocks"
    )


@task(points=2)
def my_aligned(ask):
    dense, cut = paper.TABLE_5.before.tolist(), paper.TABLE_5.after.tolist()
    cases = [(cut, dense, 16), (cut, dense, 8), ([3, 40, 60, 70], [64, 64, 72, 72], 16)]
    right = [_aligned_by_keep_masks(*case) for case in cases]

    def each(rule):
        return [[rule(w, d, k) for w, d in zip(widths, dense)] for widths, dense, k in cases]

    def nearest(w, k):
        return int(w / k + 0.5) * k

    known = {
        "rounded down: 223 is nearer to 224 than to 208": each(lambda w, d, k: max(k, w // k * k)),
        "rounded down, to 0 where the width is below k": each(lambda w, d, k: w // k * k),
        "rounded up: 49 is nearer to 48 than to 64": each(lambda w, d, k: min(-(-w // k) * k, d // k * k)),
        "rounded up, and wider than the dense network": each(lambda w, d, k: -(-w // k) * k),
        "a block cannot be wider than it was: at most the largest multiple within the dense width": each(
            lambda w, d, k: max(k, nearest(w, k))
        ),
        "a block needs at least k channels: 3 becomes 16, not 0": each(lambda w, d, k: min(nearest(w, k), d // k * k)),
        "Python's round(2.5) is 2: at a tie take the larger multiple": each(
            lambda w, d, k: min(max(k, round(w / k) * k), d // k * k)
        ),
    }
    got = [ask(*case) for case in cases]
    return mistake(
        got, right, known, "the nearest multiple; then at least k; then at most the largest multiple within dense"
    )


def _aligned_by_keep_masks(widths: list[int], dense: list[int], k: int) -> list[int]:
    """What `keep_masks` makes of scores with which a rate alone would keep just `widths`."""
    scores = [(torch.arange(d) < w) + torch.rand(d) / 2 for w, d in zip(widths, dense)]
    rate = (sum(dense) - sum(widths) - 0.5) / sum(dense)
    return [int(mask.sum()) for mask in mnv3nb.keep_masks(scores, rate, multiple_of=k)]
