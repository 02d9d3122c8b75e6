"""The paper's numbers, exactly where the paper is exact."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchvision.models import mobilenet_v3_large

from mnv3nb import (
    BLOCKS,
    DENSE_WIDTHS,
    MobileNetV3Large,
    count_flops,
    count_parameters,
    filter_sparsity,
    keep_masks,
    layer_costs,
    paper,
    prune,
    score,
    threshold,
)
from mnv3nb.deploy.widths import block_costs
from mnv3nb.importance import CRITERIA, Expansion
from mnv3nb.model import se_widths
from mnv3nb.pruning import top_masks

MILLION = 1e6


def shuffled_scores(seed: int = 0) -> list[torch.Tensor]:
    """5 016 distinct scores, as the filters of the dense network would have them."""
    order = torch.randperm(sum(DENSE_WIDTHS), generator=torch.Generator().manual_seed(seed))
    return list(order.double().split(DENSE_WIDTHS))


@pytest.mark.parametrize(("num_classes", "parameters"), [(10, 4_215_130), (100, 4_330_420)])
def test_the_dense_network_has_the_parameters_of_tables_3_and_6(num_classes, parameters):
    assert count_parameters(MobileNetV3Large(num_classes)) == parameters


def test_without_the_first_expansion_it_is_torchvisions_network_of_4_214_842_parameters(dense):
    shapes = [p.shape for name, p in dense.named_parameters() if not name.startswith("blocks.0.expand")]
    assert shapes == [p.shape for p in mobilenet_v3_large(num_classes=10).parameters()]
    assert sum(shape.numel() for shape in shapes) == 4_214_842


def test_re_is_relu6_and_hs_is_hardswish(dense):
    for block, (*_, activation, stride) in zip(dense.blocks, BLOCKS):
        kind = {"RE": nn.ReLU6, "HS": nn.Hardswish}[activation]
        assert type(block.expand[2]) is type(block.depthwise[2]) is kind
        assert block.depthwise[0].stride == (stride, stride) and len(block.project) == 2  # the bottleneck is linear


def test_the_dense_network_takes_230_250_944_flops(dense):
    assert count_flops(dense) == 230_250_944
    assert count_flops(dense, image_size=224) == sum(row["flops"] for row in layer_costs(dense))


def test_table5_network_has_2_339_846_parameters_and_138_065_815_flops(table5):
    small = MobileNetV3Large(widths=table5)
    assert count_parameters(small) == 2_339_846
    assert count_flops(small) == 138_065_815


def test_table5_network_with_the_dense_squeeze_has_2_622_246_parameters(table5):
    assert count_parameters(MobileNetV3Large(widths=table5, squeeze=se_widths(DENSE_WIDTHS))) == 2_622_246


def test_pruning_to_table5_gives_table5s_network(dense, table5):
    small = prune(dense, top_masks(score(dense), table5))
    assert small.widths == table5
    assert (count_parameters(small), count_flops(small)) == (2_339_846, 138_065_815)
    assert count_parameters(prune(dense, top_masks(score(dense), table5), squeeze="keep")) == 2_622_246


def test_squeeze_widths_of_the_dense_network_are_those_of_mobilenetv3():
    assert [q for q in se_widths(DENSE_WIDTHS) if q] == [24, 32, 32, 120, 168, 168, 240, 240]


def test_of_5016_filters_2507_stay_at_50_percent():
    masks = keep_masks(shuffled_scores(), 0.5)
    assert (sum(len(m) for m in masks), sum(int(m.sum()) for m in masks)) == (5016, 2507)


def test_rate_0_keeps_every_filter_and_its_network_is_the_old_one(dense):
    masks = keep_masks(shuffled_scores(), 0.0)
    assert all(m.all() for m in masks)
    x = torch.randn(2, 3, 32, 32)
    for squeeze in ("paper", "keep"):
        small = prune(dense, masks, squeeze)
        assert small.widths == DENSE_WIDTHS and small.squeeze == dense.squeeze
        torch.testing.assert_close(small(x), dense(x))


def test_half_of_equal_scores_goes_by_block_and_then_by_index():
    scores = [
        torch.arange(width) % 3.0 for width in DENSE_WIDTHS
    ]  # a third of the scores are 0, 1 and 2 in every block
    ranked = sorted((float(s), i, j) for i, part in enumerate(scores) for j, s in enumerate(part))
    gone = {(i, j) for _, i, j in ranked[:2509]}
    masks = keep_masks(scores, 0.5)
    assert {(i, j) for i, m in enumerate(masks) for j in range(len(m)) if not m[j]} == gone
    assert sum(int(m.sum()) for m in masks) == 2507


def test_for_distinct_scores_the_rule_is_keep_above_the_threshold():
    scores = shuffled_scores(1)
    for rate in paper.TABLE_3.rate[1:]:
        t = threshold(scores, rate)
        assert t == int(5016 * rate)  # the scores are 0 to 5 015
        assert all(torch.equal(mask, s > t) for mask, s in zip(keep_masks(scores, rate), scores))


def test_an_emptied_layer_is_an_error_that_names_it_unless_a_least_width_is_kept():
    scores = shuffled_scores()
    scores[3] = torch.full((72,), -1.0)
    with pytest.raises(ValueError, match=r"rate 0.5 removes every filter of block\(s\) \[3\]"):
        keep_masks(scores, 0.5, min_width=0)
    scores[3][40] = -0.5
    assert keep_masks(scores, 0.5)[3].nonzero().tolist() == [[40]]


def test_s_of_a_hand_made_filter_bank():
    weight = torch.tensor([[1.0, -2.0], [3.0, -6.0], [3.0, -3.0]]).reshape(3, 2, 1, 1)  # mean magnitude 3
    assert filter_sparsity(weight).tolist() == [0.0, 1.0, 1.0]
    weight = torch.tensor([0.0, 4.0, -4.0, 1.0, 1.0, 2.0, -3.0, 1.0]).reshape(2, 1, 2, 2)  # mean magnitude 2
    assert filter_sparsity(weight).tolist() == [0.5, 0.5]


def slow_sparsity(weight: torch.Tensor) -> list[float]:
    """Eq. 3-4, number by number in Python's floats (64 bits)."""
    rows = [[abs(float(k)) for k in row] for row in weight.flatten(1)]
    mean = sum(map(sum, rows)) / (len(rows) * len(rows[0]))
    return [sum(k >= mean for k in row) / len(row) for row in rows]


@given(st.integers(1, 12), st.integers(1, 9), st.sampled_from([(1, 1), (3, 3), (2, 5)]), st.data())
def test_s_is_that_of_a_slow_reference(filters, channels, kernel, data):
    count = filters * channels * kernel[0] * kernel[1]
    eighths = data.draw(st.lists(st.integers(-9, 9), min_size=count, max_size=count))  # often equal to their mean
    weight = torch.tensor(eighths).reshape(filters, channels, *kernel) / 8
    assert filter_sparsity(weight).tolist() == pytest.approx(slow_sparsity(weight), abs=1e-6)


def test_s_of_real_expansions_is_that_of_a_slow_reference(dense):
    for block in dense.blocks:
        weight = block.expand[0].weight.detach()
        assert filter_sparsity(weight).tolist() == pytest.approx(slow_sparsity(weight), abs=1e-6)


def test_every_criterion_is_its_formula():
    """On two filters of two weights: |k| = (3, 4) and (0, 1), mean 2, S = (1, 0)."""
    expansion = Expansion(
        weight=torch.tensor([[3.0, -4.0], [0.0, 1.0]]).reshape(2, 2, 1, 1),
        gamma=torch.tensor([-2.0, 0.5]),
        beta=torch.tensor([1.0, -1.0]),
        gamma_grad=torch.tensor([3.0, 4.0]),
        beta_grad=torch.tensor([2.0, 5.0]),
        generator=torch.Generator().manual_seed(7),
    )
    expected = {
        "gamma_sparsity": [2.0, 0.0],
        "gamma": [2.0, 0.5],
        "sparsity": [1.0, 0.0],
        "l1": [7.0, 1.0],
        "l1_gamma": [14.0, 0.5],
        "l2": [5.0, 1.0],
        "fpgm": [34**0.5, 34**0.5],
        "taylor": [4.0, 3.0],
        "random": torch.rand(2, generator=torch.Generator().manual_seed(7)).tolist(),
    }
    assert {name: criterion(expansion).tolist() for name, criterion in CRITERIA.items()} == {
        name: pytest.approx(values) for name, values in expected.items()
    }


def test_m_is_gamma_times_s_for_all_5016_filters(dense):
    m = torch.cat(score(dense))
    gammas = torch.cat([block.expand[1].weight.detach() for block in dense.blocks])
    s = torch.cat([filter_sparsity(block.expand[0].weight.detach()) for block in dense.blocks])
    assert len(m) == 5016 and torch.equal(m, gammas.abs() * s)
    assert (gammas < 0).any()


def test_table_1_shares_of_the_blocks(dense):
    """Parameters: without the stem's and head's BatchNorms; FLOPs: without the two linear layers."""
    rows = layer_costs(dense)
    outer_bn = [r for r in rows if r["type"] == "BatchNorm2d" and not r["name"].startswith("blocks")]
    linear = [r for r in rows if r["type"] == "Linear"]
    for column, left_out, paper_share, tolerance in (
        ("parameters", outer_bn, paper.TABLE_1.parameters_pct["blocks"], 0.005),
        ("flops", linear, paper.TABLE_1.flops_pct["blocks"], 0.015),  # 94.13 by this count, 94.14 printed
    ):
        inside = sum(r[column] for r in rows if r["name"].startswith("blocks"))
        total = sum(r[column] for r in rows) - sum(r[column] for r in left_out)
        assert abs(100 * inside / total - paper_share) < tolerance


def test_printed_costs_of_tables_3_and_6_are_the_counts_at_printed_precision(table5):
    t3, t6 = paper.TABLE_3.set_index("rate"), paper.TABLE_6.set_index("rate")
    dense, pruned = MobileNetV3Large(), MobileNetV3Large(widths=table5)
    for row, model in ((t3.loc[0.0], dense), (t3.loc[0.5], pruned), (t6.loc[0.0], MobileNetV3Large(100))):
        assert round(count_parameters(model) / MILLION, 2) == row.parameters_m
        assert float(f"{count_flops(model):.2e}") == row.flops
    assert round(100 * (1 - count_parameters(pruned) / count_parameters(dense)), 1) == t3.loc[0.5].fewer_parameters_pct
    assert round(100 * (1 - count_flops(pruned) / count_flops(dense)), 1) == t3.loc[0.5].fewer_flops_pct


@pytest.mark.parametrize("table", [paper.TABLE_3, paper.TABLE_6], ids=["table 3", "table 6"])
def test_printed_percentages_follow_from_the_printed_costs(table):
    """Each, within what rounding leaves open: a wrong digit in either column shows."""
    flops_step = [10.0 ** (len(str(int(f))) - 3) for f in table.flops]
    steps = (("parameters_m", [0.01] * len(table), "fewer_parameters_pct"), ("flops", flops_step, "fewer_flops_pct"))
    for column, step, percent in steps:
        values, first = table[column], table[column][0]
        for value, size, printed in zip(values[1:], step[1:], table[percent][1:]):
            low = 100 * (1 - (value + size / 2) / (first - step[0] / 2)) - 0.1
            high = 100 * (1 - (value - size / 2) / (first + step[0] / 2)) + 0.1
            assert low < printed < high


def test_table_5_starts_from_the_dense_widths_and_keeps_2507():
    assert tuple(paper.TABLE_5.before) == DENSE_WIDTHS
    assert (paper.TABLE_5.before.sum(), paper.TABLE_5.after.sum()) == (5016, 2507)
    assert (paper.TABLE_5.after <= paper.TABLE_5.before).all()


def test_every_s_bound_of_table_2_is_a_share_of_an_expansions_input_channels(dense):
    channels = {block.expand[0].in_channels for block in dense.blocks}
    shares = {k / c for c in channels for k in range(c + 1)}
    printed = {*paper.TABLE_2.sparsity_min, *paper.TABLE_2.sparsity_max}
    assert len(printed) == 11 and len(shares) < 500  # so that a number of four digits is seldom one of them by chance
    assert all(any(abs(s - share) < 0.000051 for share in shares) for s in printed)


def test_only_the_gamma_minimum_at_20_percent_contradicts_table_2s_own_threshold():
    """m = |γ|·S ≤ |γ|, so a filter above the previous threshold has |γ| above it too."""
    rows = paper.TABLE_2
    impossible = rows.rate[1:][rows.gamma_min[1:].to_numpy() < rows.threshold[:-1].to_numpy()]
    assert impossible.tolist() == [0.2]


def test_of_all_rows_one_has_fewer_parameters_than_any_choice_of_filters_leaves():
    total, impossible = sum(DENSE_WIDTHS), []
    for table, classes in ((paper.TABLE_3, 10), (paper.TABLE_6, 100)):
        model = MobileNetV3Large(classes)
        costs = block_costs(model, "parameters", squeeze="paper")
        least = np.zeros(1)  # entry n: the fewest parameters of all blocks so far with n filters
        for cost in costs:
            grown = np.full(len(least) + max(cost), np.inf)
            for width, c in cost.items():
                part = grown[width : width + len(least)]
                np.minimum(part, least + c, out=part)
            least = grown
        outside = count_parameters(model) - sum(cost[max(cost)] for cost in costs)
        for row in table.itertuples():
            kept = total - (int(total * row.rate) + 1 if row.rate else 0)
            if row.parameters_m + 0.005 < (outside + least[kept]) / 1e6:
                impossible.append((classes, row.rate))
    assert impossible == [(100, paper.IMPOSSIBLE_RATE)]


def test_figure_6_and_the_text_agree_with_table_3():
    by_lam = paper.FIGURE_6.set_index("lam").accuracy_pct
    assert by_lam[0.0] == paper.TABLE_3.accuracy_pct[0]
    assert paper.TABLE_3.set_index("rate").accuracy_pct[0.5] == paper.TABLE_4_OURS_PCT
    assert paper.TABLE_4_OURS_PCT - by_lam[paper.CHOSEN_LAM] == pytest.approx(paper.TABLE_4_GAIN_PCT)
    assert paper.BEST_ACCURACY_PCT - by_lam[paper.CHOSEN_LAM] == pytest.approx(0.67)  # section 3.2.3
    assert paper.BEST_ACCURACY_PCT - by_lam[0.0] == pytest.approx(0.54)
