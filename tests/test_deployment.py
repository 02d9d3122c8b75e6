"""Compensation for removed channels, widths within a budget, exported files and latency, for any network."""

import itertools

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import lively, same_tensors
from torch import nn

from mnv3nb import (
    DENSE_WIDTHS,
    MobileNetV3Large,
    blocks,
    build_network,
    count_flops,
    count_parameters,
    keep_masks,
    prune,
    score,
)
from mnv3nb.blocks import Block, batch_norms
from mnv3nb.data.batches import to_input
from mnv3nb.deploy import export, latency, widths
from mnv3nb.deploy.template import fused, onnx_template, with_weights
from mnv3nb.pruning import top_masks
from mnv3nb.repair import fold_bias

OURS = "mnv3nb/MobileNetV3Large"
NETWORKS = [
    OURS,
    "torchvision/mobilenet_v2",
    "torchvision/mobilenet_v3_small",
    "torchvision/efficientnet_b0",
    "torchvision/mnasnet1_0",
]
WITHOUT_SE = ["torchvision/mobilenet_v2", "torchvision/mnasnet1_0"]


def with_statistics(architecture: str, seed: int = 0) -> nn.Module:
    """A network in eval mode; its BatchNorms have moderate γ, random β and the statistics of their inputs."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = build_network(architecture, num_classes=10)
        for bn in batch_norms(model):
            bn.weight.uniform_(0.3, 0.7)
            bn.bias.normal_(std=0.2)
            bn.momentum = None  # the next forward pass sets the statistics
        model(torch.randn(16, 3, 64, 64))
    return model.eval()


def every_third(model: nn.Module) -> list[torch.Tensor]:
    """Masks that remove the first of every three channels."""
    return [torch.arange(block.width) % 3 != 0 for block in blocks(model)]


def silence(block: Block, gone: torch.Tensor) -> None:
    """Set γ of the expansion's channels `gone` to 0, so that they are act(β) for any input."""
    block.expand_bn.weight.data[gone] = 0


# compensation for removed channels


def one_silent_block(index: int, seed: int = 0) -> tuple[nn.Module, list[torch.Tensor]]:
    """The paper's network in float64 with a third of one block's channels silent, and the masks that remove them."""
    model = lively(seed).double()
    masks = [torch.ones(width, dtype=torch.bool) for width in model.widths]
    masks[index] = every_third(model)[index]
    silence(blocks(model)[index], ~masks[index])
    return model, masks


# blocks without SE, and the side of their input map for images of 64 pixels
@pytest.mark.parametrize("index, side", [(0, 32), (1, 32), (2, 16), (6, 8), (8, 4)])
def test_folding_keeps_the_mean_of_the_projection_exactly(index, side):
    model, masks = one_silent_block(index)
    pruned = prune(model, masks)
    folded = fold_bias(model, pruned, masks, 64)
    expand = blocks(model)[index].expand
    x = torch.randn(4, expand.in_channels, side, side, dtype=torch.double)
    expected = model.blocks[index](x).mean((2, 3))
    torch.testing.assert_close(folded.blocks[index](x).mean((2, 3)), expected, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(pruned.blocks[index](x).mean((2, 3)), expected, atol=1e-2)


def test_folding_keeps_the_input_of_squeeze_and_excitation_exactly():
    model, masks = one_silent_block(3)
    folded = fold_bias(model, prune(model, masks, "keep"), masks, 64)
    x = torch.randn(2, 24, 16, 16, dtype=torch.double)

    def hidden_channels(block):
        return block.se.fc1(block.se.avgpool(block.depthwise(block.expand(x))))

    expected = hidden_channels(model.blocks[3])
    torch.testing.assert_close(hidden_channels(folded.blocks[3]), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("architecture", WITHOUT_SE)
def test_folding_is_exact_for_a_whole_network_if_removed_channels_do_not_see_the_border(architecture):
    """The depthwise kernels of the removed channels look at no neighbour, so zero padding changes nothing."""
    model = with_statistics(architecture).double()
    masks = every_third(model)
    for block, mask in zip(blocks(model), masks):
        silence(block, ~mask)
        centre = block.depthwise.kernel_size[0] // 2
        kernel = torch.zeros_like(block.depthwise.weight)
        kernel[:, :, centre, centre] = 1
        block.depthwise.weight.data[~mask] *= kernel[~mask]
    x = torch.randn(2, 3, 64, 64, dtype=torch.double)
    folded = fold_bias(model, prune(model, masks), masks, 64)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-6, atol=1e-6)


def test_folding_is_exact_on_maps_of_one_pixel():
    model, masks = one_silent_block(7)
    x = torch.randn(2, 3, 16, 16, dtype=torch.double)
    folded = fold_bias(model, prune(model, masks), masks, 16)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("squeeze", ["paper", "keep"])
@pytest.mark.parametrize("architecture", NETWORKS)
def test_folding_brings_the_logits_nearer_and_touches_no_input(architecture, squeeze):
    model = with_statistics(architecture).double()
    masks = every_third(model)
    for block, mask in zip(blocks(model), masks):
        silence(block, ~mask)
    pruned = prune(model, masks, squeeze)
    before = {key: value.clone() for key, value in (model.state_dict() | pruned.state_dict()).items()}
    folded = fold_bias(model, pruned, masks, 64)
    assert same_tensors(before, model.state_dict() | pruned.state_dict())
    assert type(folded) is type(model) and not folded.training
    x = torch.randn(8, 3, 64, 64, dtype=torch.double)
    with torch.no_grad():
        expected = model(x)
        error_of_pruned = (pruned(x) - expected).abs().mean()
        error_of_folded = (folded(x) - expected).abs().mean()
    assert error_of_folded < 0.5 * error_of_pruned


def test_folding_nothing_changes_nothing(dense):
    everything = [torch.ones(width, dtype=torch.bool) for width in dense.widths]
    assert same_tensors(fold_bias(dense, prune(dense, everything), everything, 32).state_dict(), dense.state_dict())


# widths within a budget


def total(tables: list[dict[int, int]], chosen: list[int]) -> int:
    """The cost of the chosen widths."""
    return sum(table[width] for table, width in zip(tables, chosen, strict=True))


def kept_score(scores: list[torch.Tensor], masks: list[torch.Tensor]) -> float:
    return float(sum(block_scores[mask].sum() for block_scores, mask in zip(scores, masks)))


@pytest.mark.parametrize("architecture", NETWORKS)
def test_block_costs_differ_between_networks_as_the_counts_do(architecture):
    model = build_network(architecture, 10)
    small = prune(model, every_third(model))
    dense_widths = [block.width for block in blocks(model)]
    small_widths = [block.width for block in blocks(small)]

    parameters = widths.block_costs(model, "parameters")
    difference = count_parameters(model) - count_parameters(small)
    assert total(parameters, dense_widths) - total(parameters, small_widths) == difference

    flops = widths.block_costs(model, "flops", image_size=75)
    difference = count_flops(model, 75) - count_flops(small, 75)
    assert total(flops, dense_widths) - total(flops, small_widths) == difference


@pytest.mark.parametrize("cost", widths.COST_NAMES)
@pytest.mark.parametrize("architecture", NETWORKS)
def test_the_cost_at_its_own_width_is_what_a_block_costs(architecture, cost):
    """At every width of one pruned network, with the hidden channels of SE that pruning leaves there."""
    model = build_network(architecture, 10)
    small = prune(model, every_third(model))
    tables = widths.block_costs(model, cost, image_size=64)
    expected = widths.current_costs(small, cost, image_size=64)
    assert [table[block.width] for table, block in zip(tables, blocks(small))] == expected


def test_a_block_narrower_than_the_multiple_keeps_its_width(dense):
    tables = widths.block_costs(dense, "filters", multiple_of=100)
    assert list(tables[0]) == [16] and list(tables[-1]) == [100, 200, 300, 400, 500, 600, 700, 800, 900]


def test_a_budget_of_filters_without_alignment_is_the_global_ranking(dense):
    scores = score(dense)
    ranked = [int(mask.sum()) for mask in keep_masks(scores, 0.5)]
    assert widths.fit_widths(scores, widths.block_costs(dense, "filters"), sum(ranked)) == ranked


@pytest.mark.parametrize("cost", widths.COST_NAMES)
@pytest.mark.parametrize("k", [1, 16])
def test_aligned_widths_stay_within_the_budget_and_use_it(dense, cost, k):
    scores = score(dense)
    tables = widths.block_costs(dense, cost)

    def cost_of(masks):
        return total(tables, [int(mask.sum()) for mask in masks])

    budget = cost_of(keep_masks(scores, 0.5))
    nearest = keep_masks(scores, 0.5, k)
    fitted = widths.fit_masks(dense, scores, 0.5, k, cost)
    assert all(mask.sum() % k == 0 or mask.all() for mask in fitted)
    assert 0.97 * budget <= cost_of(fitted) <= budget
    if cost_of(nearest) <= budget:
        assert kept_score(scores, fitted) >= 0.999 * kept_score(scores, nearest)


def test_widths_of_another_network_fit_a_budget_of_its_own_flops():
    model = with_statistics("torchvision/mobilenet_v3_small")
    scores = score(model)
    small = prune(model, widths.fit_masks(model, scores, 0.4, 16, "flops"))
    assert all(block.width % 16 == 0 for block in blocks(small))
    assert count_flops(small) <= count_flops(prune(model, keep_masks(scores, 0.4)))


@given(st.integers(0, 10_000), st.integers(4, 60))
def test_fit_widths_finds_the_best_of_all_choices(seed, budget):
    rng = np.random.default_rng(seed)
    scores = [torch.from_numpy(rng.random(n)) for n in (2, 3, 4)]
    costs = []
    for block_scores in scores:
        costs.append({width: int(rng.integers(1, 30)) for width in range(1, len(block_scores) + 1)})
    choices = [chosen for chosen in itertools.product(*costs) if total(costs, chosen) <= budget]
    if not choices:
        with pytest.raises(ValueError, match="the smallest network costs"):
            widths.fit_widths(scores, costs, budget)
        return

    def value(chosen):
        return kept_score(scores, top_masks(scores, chosen))

    best = widths.fit_widths(scores, costs, budget)
    assert tuple(best) in choices and value(best) == pytest.approx(max(map(value, choices)))

    float_costs = [{width: float(cost) for width, cost in table.items()} for table in costs]
    assert tuple(widths.fit_widths(scores, float_costs, float(budget))) in choices


def test_a_budget_that_cannot_be_met_is_refused(dense):
    scores = score(dense)
    with pytest.raises(ValueError, match=r"no widths meet a budget of .* the smallest network costs .* \[16, 64"):
        widths.fit_masks(dense, scores, 0.99, 240, "filters")
    with pytest.raises(ValueError, match=r"one of filters, parameters, flops, got 'time'"):
        widths.fit_masks(dense, scores, 0.5, 1, "time")
    with pytest.raises(ValueError, match="multiple_of must be an integer ≥ 1, got 0"):
        widths.block_costs(dense, "filters", 0)


# files for other programs


@pytest.fixture(scope="module")
def template() -> onnx.ModelProto:
    return onnx_template(MobileNetV3Large(), 32)


@pytest.mark.parametrize("architecture", NETWORKS)
def test_one_template_gives_the_graph_of_every_pruned_network(architecture):
    model = with_statistics(architecture)
    template = onnx_template(model, 32)
    x = torch.randn(3, 3, 32, 32)
    width_1 = [torch.arange(block.width) < 1 for block in blocks(model)]
    for network in (model, prune(model, every_third(model)), prune(model, width_1)):
        graph = with_weights(template, fused(network).state_dict())
        (logits,) = export.session(graph).run(None, {"images": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), network(x).detach(), rtol=1e-4, atol=1e-4)


def test_an_exported_network_computes_what_pytorch_does_and_stays_in_training(tmp_path):
    model = with_statistics("torchvision/mobilenet_v3_small")
    x = torch.randn(3, 3, 32, 32)
    expected = model(x).detach()
    model.train()
    export.export_onnx(model, tmp_path / "m.onnx", 32)
    export.export_program(model, tmp_path / "m.pt2", 32)
    assert model.training
    (from_onnx,) = export.session(onnx.load(tmp_path / "m.onnx")).run(None, {"images": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(from_onnx), expected, rtol=1e-4, atol=1e-4)
    from_program = torch.export.load(tmp_path / "m.pt2").module()(x)
    torch.testing.assert_close(from_program.detach(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("write", [export.export_onnx, export.export_program])
def test_another_ending_is_refused_before_any_work(write, tmp_path):
    with pytest.raises(ValueError, match=r"the path must end in \.(onnx|pt2), got"):
        write(None, tmp_path / "m.bin", 32)


@pytest.fixture(scope="module")
def graph(template) -> onnx.ModelProto:
    return with_weights(template, fused(MobileNetV3Large()).state_dict())


def test_onnx_labels_are_the_largest_logits(graph, digits):
    inputs = {"images": to_input(digits.test_images, 32).contiguous().numpy()}
    (logits,) = export.session(graph).run(None, inputs)
    assert torch.equal(export.onnx_labels(graph, digits.test_images, 32), torch.from_numpy(logits.argmax(1)))


def test_an_int8_graph_labels_images_and_has_a_quarter_of_the_bytes(graph, digits):
    int8 = export.quantize(graph, digits.train_images[:64], 32)
    labels = export.onnx_labels(int8, digits.test_images, 32)
    assert labels.shape == digits.test_labels.shape and ((labels >= 0) & (labels < 10)).all()
    assert int8.ByteSize() < 0.4 * graph.ByteSize()


# latency


def test_interleaved_gives_every_runner_its_turn_in_every_round():
    order = []
    runners = {
        "a": lambda: order.append("a"),
        "b": lambda: order.append("b"),
        "c": lambda: order.append("c"),
    }
    times = latency.interleaved(runners, rounds=3, least_ms=0)
    assert times.shape == (3, 3) and list(times) == ["a", "b", "c"]
    calls_before_the_rounds = 6  # two of each
    assert "".join(order[calls_before_the_rounds:]) == "abc" + "bca" + "cab"


def test_ratios_are_medians_and_quartiles_of_what_is_divided_round_by_round():
    times = pd.DataFrame({"dense": [1.0, 2.0, 4.0, 8.0, 16.0], "small": [0.5, 1.2, 3.2, 2.4, 1.6]})
    table = latency.ratios(times)
    assert table.loc["dense"].tolist() == [1, 1, 1, 4]
    assert table.loc["small"].tolist() == pytest.approx([0.5, 0.3, 0.6, 1.6])  # of 0.1, 0.3, 0.5, 0.6, 0.8
    assert list(table) == ["ratio", "ratio_low", "ratio_high", "ms"]


def test_block_latencies_has_a_row_for_each_block_and_width(template):
    asked = [[width, max(1, width // 2)] for width in DENSE_WIDTHS]
    table = latency.block_latencies(template, MobileNetV3Large(), asked, rounds=2)
    assert table.groupby("block").width.apply(list).tolist() == asked
    assert (table.ms > 0).all() and (table.share > 0).all()
    assert (table.groupby("block").ratio.first() == 1).all()


def test_a_block_is_measured_with_the_hidden_channels_it_has(template, monkeypatch):
    model = MobileNetV3Large()
    small = prune(model, every_third(model), "keep")
    assert small.squeeze != prune(model, every_third(model)).squeeze
    measured = []

    def block_weights(block, width, hidden):
        measured.append(hidden)
        return {}

    monkeypatch.setattr(latency, "_block_weights", block_weights)
    monkeypatch.setattr(latency, "with_weights", lambda part, weights: part)
    monkeypatch.setattr(latency, "onnx_runner", lambda graph: lambda: None)
    latency.block_latencies(template, small, [[width] for width in small.widths], rounds=1)
    assert tuple(measured) == small.squeeze


def test_explain_latency_has_one_row_per_block():
    model = with_statistics("torchvision/mobilenet_v3_small")
    pruned = prune(model, every_third(model))
    table = latency.explain_latency(pruned, image_size=32, rounds=2)
    assert table.block.tolist() == [block.name for block in blocks(model)]
    assert table.width.tolist() == [block.width for block in blocks(pruned)]
    assert 0.3 < table.flops_share.sum() < 1 and (table.time_share > 0).all()
    for row in table.itertuples():
        assert row.width % row.multiple_of == 0 and row.multiple_of in (1, 4, 8, 16)
        assert row.aligned_width % 16 == 0 and abs(row.aligned_width - row.width) <= max(8, 16 - row.width)
        assert row.aligned_ratio == 1 or row.aligned_width != row.width
