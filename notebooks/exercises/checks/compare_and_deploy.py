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
    IMAGE_SIZE,
    block_flops,
    criterion_accuracies,
    digits,
    expansions_of,
    random_criteria,
    small_network,
    sparse_network,
)
from .verdict import ask_each, diagnose, same, task

MARGIN = 30  # points of accuracy by which a criterion must be better than noise


@task(points=3)
def my_step(ask):
    lam = 0.05
    images = to_input(digits().train_images[:64], IMAGE_SIZE)
    labels = digits().train_labels[:64]
    start = small_network(4).train()
    for bn in batch_norms(start):
        generator = torch.Generator().manual_seed(len(bn.weight))
        bn.weight.data.uniform_(-0.5, 0.5, generator=generator)

    def parameters_after(step) -> dict[str, Tensor]:
        """The parameters after two of these steps."""
        model = copy.deepcopy(start)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for x, y in zip(images.split(32), labels.split(32)):
            step(model, optimizer, x, y, lam)
        return {name: parameter.detach() for name, parameter in model.named_parameters()}

    def with_penalty(add_penalty, zero_grad=True):
        """The parameters after two steps whose penalty is added by `add_penalty(model)`."""

        def step(model, optimizer, x, y, lam):
            if zero_grad:
                optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            add_penalty(model)
            optimizer.step()

        return parameters_after(step)

    def on_gamma(model):
        mnv3nb.add_gamma_penalty(model, lam)

    def no_penalty(model):
        pass

    def away_from_zero(model):
        for bn in batch_norms(model):
            bn.weight.grad -= lam * bn.weight.detach().sign()

    def l2(model):
        mnv3nb.add_gamma_penalty(model, lam, "l2")

    def on_all_parameters(model):
        for parameter in model.parameters():
            parameter.grad += lam * parameter.detach().sign()

    def on_expansions_only(model):
        mnv3nb.add_gamma_penalty(model, lam, penalized="expansion")

    mistakes = {
        "γ moves as without a penalty. Its gradient must be added after backward() and before step().": (
            lambda: with_penalty(no_penalty)
        ),
        "γ is pushed away from 0. The gradient of λ·|γ| is +λ·sign(γ).": lambda: with_penalty(away_from_zero),
        "This is the gradient of λ/2·γ², which dies out near 0. The gradient of λ·|γ| is λ·sign(γ).": (
            lambda: with_penalty(l2)
        ),
        "Convolutions and biases are penalised as well. Penalise only the γ of BatchNorms.": (
            lambda: with_penalty(on_all_parameters)
        ),
        "You penalise only some BatchNorms. Eq. 1 sums over all γ.": lambda: with_penalty(on_expansions_only),
        "The gradients of the step before are still there. Call zero_grad().": (
            lambda: with_penalty(on_gamma, zero_grad=False)
        ),
    }
    hint = (
        "The parameters differ from those of the right step: zero_grad, loss, backward, then the gradient of the "
        "penalty on every γ, then step."
    )
    answer = parameters_after(ask)
    if same(answer, {name: parameter.detach() for name, parameter in start.named_parameters()}):
        return "The step changes nothing: no parameter moves. Call optimizer.step()."
    return diagnose([answer], [()], lambda: with_penalty(on_gamma), mistakes, hint)


@task(points=3)
def my_criterion(ask):
    expansions = expansions_of(sparse_network())
    scores = [ask(expansion) for expansion in expansions]
    for expansion, score in zip(expansions, scores):
        shape = tuple(expansion.gamma.shape)
        if not isinstance(score, Tensor):
            return f"The function returns a value of type {type(score).__name__}. Return a tensor of shape {shape}."
        if tuple(score.shape) != shape:
            return f"The scores have the shape {tuple(score.shape)}. Return one score per filter, shape {shape}."

    scores = [score.detach().double() for score in scores]
    if not all(score.isfinite().all() for score in scores):
        return "Some scores are not finite. Return finite numbers."
    if any((score == score[0]).all() for score in scores):
        return "All filters of a block get the same score, so nothing tells them apart."
    if not same([ask(expansion) for expansion in expansions], scores):
        return "Two calls give different scores. A criterion must not be random: noise is what it has to beat."

    ranking = torch.cat(scores).argsort(stable=True)
    for name in sorted(set(mnv3nb.CRITERIA) - {"random", "taylor"}):
        if ranking.equal(torch.cat(mnv3nb.score(sparse_network(), name)).argsort(stable=True)):
            return f"This ranks exactly as {name!r} does, which is in the comparison already. Write one of your own."

    noise = max(criterion_accuracies(random_scores)["folded_pct"] for random_scores in random_criteria())
    accuracy = criterion_accuracies(scores)["folded_pct"]
    if accuracy >= noise + MARGIN:
        return None
    if criterion_accuracies([-score for score in scores])["folded_pct"] >= noise + MARGIN:
        return "Your scores are upside down. Filters that matter more must score higher, because the lowest scores go."
    return (
        f"Your folded accuracy is {accuracy:.1f} %, and noise reaches {noise:.1f} %. You need {MARGIN} points more than "
        "noise: which part of an expansion marks a dead filter?"
    )


@task(points=2)
def my_choice(ask):
    columns = ("rate", "fine_tuned", "mflops", "held_out_pct", "test_pct")
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
    second = [(rate / 2, tuned, mflops, held_out - 20, test - 20) for rate, tuned, mflops, held_out, test in first]
    second.insert(5, (0.24, True, 170, 69.2, 69.3))  # removes more filters than the row before and costs more
    cases = []
    for table in (first, second):
        cases.append(([dict(zip(columns, row)) for row in table],))

    def allowed(rows, accuracy="held_out_pct", fine_tuned=True):
        """The rows that lose at most a point against rate 0."""
        (baseline,) = (row[accuracy] for row in rows if row["rate"] == 0 and row["fine_tuned"] is fine_tuned)
        return [row for row in rows if row[accuracy] >= baseline - 1]

    def cheapest(rows):
        return min(rows, key=lambda row: row["mflops"])["rate"]

    mistakes = {
        "The baseline must be fine-tuned as long as the others: take rate 0 with fine_tuned.": (
            lambda rows: cheapest(allowed(rows, fine_tuned=False))
        ),
        "You choose on test images. A choice made on test images makes their accuracy worthless: use held-out images.": (
            lambda rows: cheapest(allowed(rows, "test_pct"))
        ),
        "You take the largest rate, which is not always the cheapest network. Compare FLOPs.": (
            lambda rows: max(row["rate"] for row in allowed(rows))
        ),
        "This is the most accurate network. Return the cheapest one within a point of the baseline.": (
            lambda rows: max(rows, key=lambda row: row["held_out_pct"])["rate"]
        ),
        "This is the cheapest network of all, which has lost more than a point.": cheapest,
    }
    hint = (
        "This is not the rate. Which row is the baseline, which rows lie within a point of it, and which of those has "
        "the fewest FLOPs?"
    )
    return diagnose(ask_each(ask, cases), cases, lambda rows: cheapest(allowed(rows)), mistakes, hint)


@task(points=2)
def my_slow_share(ask):
    dense = paper.TABLE_5.before.tolist()
    pruned = paper.TABLE_5.after.tolist()
    cases = [
        (pruned, block_flops(tuple(pruned)), 8),
        (dense, block_flops(tuple(dense)), 16),
        (pruned, block_flops(tuple(pruned)), 16),
        (dense, block_flops(tuple(dense)), 8),
    ]

    def slow_flops(widths, flops, k):
        return sum(cost for width, cost in zip(widths, flops) if width % k)

    def correct(widths, flops, k):
        return slow_flops(widths, flops, k) / sum(flops)

    def share_of_blocks(widths, flops, k):
        return sum(width % k > 0 for width in widths) / len(widths)

    def aligned_share(widths, flops, k):
        return 1 - correct(widths, flops, k)

    def odd_share(widths, flops, k):
        return correct(widths, flops, 2)

    mistakes = {
        "This is a share of the blocks. Weigh each block by its FLOPs.": share_of_blocks,
        "This is the share at multiples of k. Return the rest.": aligned_share,
        "A share lies in [0, 1]: divide by the FLOPs of all blocks.": slow_flops,
        "You look for odd widths. An even width is not enough: 540 is not a multiple of 8.": odd_share,
    }
    hint = (
        "This is not the share. Add up the FLOPs of the blocks with width % k ≠ 0, and divide by the FLOPs of all "
        "blocks."
    )
    return diagnose(ask_each(ask, cases), cases, correct, mistakes, hint)


@task(points=2)
def my_aligned(ask):
    dense = paper.TABLE_5.before.tolist()
    pruned = paper.TABLE_5.after.tolist()
    cases = [(pruned, dense, 16), (pruned, dense, 8), ([3, 40, 60, 70], [64, 64, 72, 72], 16)]

    def each_width(rule):
        """A function of a case that applies `rule(width, dense_width, k)` to every width."""
        return lambda widths, dense, k: [rule(w, d, k) for w, d in zip(widths, dense)]

    def nearest(w, k):
        return int(w / k + 0.5) * k

    def down(w, k):
        return w // k * k

    def up(w, k):
        return -(-w // k) * k

    mistakes = {
        "You round down. The nearest multiple is asked for: 223 is nearer to 224 than to 208.": each_width(
            lambda w, d, k: max(k, down(w, k))
        ),
        "You round down, to 0 where the width is below k. Take the nearest multiple, and at least k.": each_width(
            lambda w, d, k: down(w, k)
        ),
        "You round up. The nearest multiple is asked for: 49 is nearer to 48 than to 64.": each_width(
            lambda w, d, k: min(up(w, k), down(d, k))
        ),
        "You round up, and some blocks become wider than the dense network. Take the nearest multiple.": each_width(
            lambda w, d, k: up(w, k)
        ),
        "A block cannot be wider than it was: take at most the largest multiple within the dense width.": each_width(
            lambda w, d, k: max(k, nearest(w, k))
        ),
        "A block needs at least k channels: 3 becomes 16, not 0.": each_width(
            lambda w, d, k: min(nearest(w, k), down(d, k))
        ),
        "Python's round(2.5) is 2, but at a tie the larger multiple is asked for.": each_width(
            lambda w, d, k: min(max(k, round(w / k) * k), down(d, k))
        ),
    }
    hint = (
        "These are not the widths. Take the nearest multiple, then at least k, then at most the largest multiple within "
        "the dense width."
    )
    return diagnose(ask_each(ask, cases), cases, _aligned_by_keep_masks, mistakes, hint)


def _aligned_by_keep_masks(widths: list[int], dense: list[int], k: int) -> list[int]:
    """The widths that `keep_masks` aligns, from scores with which the rate alone would keep exactly `widths`."""
    scores = []
    for width, dense_width in zip(widths, dense):
        is_kept = torch.arange(dense_width) < width
        scores.append(is_kept + torch.rand(dense_width) / 2)  # kept filters score above 1, all others below
    rate = (sum(dense) - sum(widths) - 0.5) / sum(dense)
    return [int(mask.sum()) for mask in mnv3nb.keep_masks(scores, rate, multiple_of=k)]
