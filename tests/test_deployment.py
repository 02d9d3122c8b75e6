"""Compensating for removed channels, widths within a budget, exporting, and measuring latency: for any network."""

import itertools

import numpy as np
import onnx
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
    """A network in eval mode whose BatchNorms have moderate γ, any β and the statistics of what reaches them."""
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
    """Sets γ of the expansion's channels `gone` to 0: they are act(β), whatever the input."""
    block.expand_bn.weight.data[gone] = 0


# compensation for removed channels


def one_silent_block(index: int, seed: int = 0) -> tuple[nn.Module, list[torch.Tensor]]:
    """The paper's network in float64 with a third of one block's channels silent, and the masks that remove those."""
    model = lively(seed).double()
    masks = [torch.ones(width, dtype=torch.bool) for width in model.widths]
    masks[index] = every_third(model)[index]
    silence(blocks(model)[index], ~masks[index])
    return model, masks


# blocks without SE, and the side of the map that they take of an image of 64 pixels
@pytest.mark.parametrize("index, side", [(0, 32), (1, 32), (2, 16), (6, 8), (8, 4)])
def test_folding_keeps_the_mean_of_the_projection_exactly(index, side):
    model, masks = one_silent_block(index)
    pruned = prune(model, masks)
    folded = fold_bias(model, pruned, masks, 64)
    expand = blocks(model)[index].expand
    x = torch.randn(4, expand.in_channels, side, side, dtype=torch.double)
    wanted, got, without = (m.blocks[index](x).mean((2, 3)) for m in (model, folded, pruned))
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(without, wanted, atol=1e-2)


def test_folding_keeps_the_input_of_squeeze_and_excitation_exactly():
    model, masks = one_silent_block(3)
    folded = fold_bias(model, prune(model, masks, "keep"), masks, 64)
    x = torch.randn(2, 24, 16, 16, dtype=torch.double)
    wanted, got = (b.se.fc1(b.se.avgpool(b.depthwise(b.expand(x)))) for b in (model.blocks[3], folded.blocks[3]))
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("architecture", WITHOUT_SE)
def test_folding_is_exact_for_a_whole_network_where_the_border_does_not_reach(architecture):
    """The removed channels' depthwise kernels look at no neighbour, so that zero padding changes nothing."""
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
        far, near = ((m(x) - model(x)).abs().mean() for m in (pruned, folded))
    assert near < 0.5 * far


def test_folding_nothing_changes_nothing(dense):
    everything = [torch.ones(width, dtype=torch.bool) for width in dense.widths]
    assert same_tensors(fold_bias(dense, prune(dense, everything), everything, 32).state_dict(), dense.state_dict())


# widths within a budget


def total(tables: list[dict[int, int]], chosen: list[int]) -> int:
    return sum(table[width] for table, width in zip(tables, chosen, strict=True))


@pytest.mark.parametrize("architecture", NETWORKS)
def test_block_costs_differ_between_networks_as_the_counts_do(architecture):
    model = build_network(architecture, 10)
    small = prune(model, every_third(model))
    for cost, count in (("parameters", count_parameters), ("flops", lambda network: count_flops(network, 75))):
        tables = widths.block_costs(model, cost, image_size=75)
        before, after = (total(tables, [block.width for block in blocks(network)]) for network in (model, small))
        assert before - after == count(model) - count(small)


def test_a_budget_of_filters_without_alignment_is_the_global_ranking(dense):
    scores = score(dense)
    ranked = [int(mask.sum()) for mask in keep_masks(scores, 0.5)]
    assert widths.fit_widths(scores, widths.block_costs(dense, "filters"), sum(ranked)) == ranked


@pytest.mark.parametrize("cost", widths.COSTS)
@pytest.mark.parametrize("k", [1, 16])
def test_aligned_widths_stay_within_the_budget_and_use_it(dense, cost, k):
    scores, tables = score(dense), widths.block_costs(dense, cost)
    asked, nearest = (keep_masks(scores, 0.5, multiple_of) for multiple_of in (1, k))
    fitted = widths.fit_masks(dense, scores, 0.5, k, cost)
    limit, plain, chosen = (total(tables, [int(m.sum()) for m in masks]) for masks in (asked, nearest, fitted))
    assert all(m.sum() % k == 0 or m.all() for m in fitted)
    assert 0.97 * limit <= chosen <= limit
    if plain <= limit:
        kept = [sum(s[m].sum() for s, m in zip(scores, masks)) for masks in (fitted, nearest)]
        assert kept[0] >= 0.999 * kept[1]


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
    costs = [{w: int(rng.integers(1, 30)) for w in range(1, len(s) + 1)} for s in scores]
    choices = [c for c in itertools.product(*costs) if total(costs, c) <= budget]
    if not choices:
        with pytest.raises(ValueError, match="the smallest network costs"):
            widths.fit_widths(scores, costs, budget)
        return

    def value(chosen):
        return float(sum(s[mask].sum() for s, mask in zip(scores, top_masks(scores, chosen))))

    best = widths.fit_widths(scores, costs, budget)
    assert tuple(best) in choices and value(best) == pytest.approx(max(map(value, choices)))
    floats = [{w: c + 0.0 for w, c in table.items()} for table in costs]
    assert tuple(widths.fit_widths(scores, floats, float(budget))) in choices


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
    return latency.onnx_template(MobileNetV3Large(), 32)


@pytest.mark.parametrize("architecture", NETWORKS)
def test_one_template_gives_the_graph_of_every_pruned_network(architecture):
    model = with_statistics(architecture)
    template, x = latency.onnx_template(model, 32), torch.randn(3, 3, 32, 32)
    narrow = [torch.arange(block.width) < 1 for block in blocks(model)]
    for network in (model, prune(model, every_third(model)), prune(model, narrow)):
        graph = latency.with_weights(template, latency.fused(network).state_dict())
        got = torch.from_numpy(export.session(graph).run(None, {"images": x.numpy()})[0])
        torch.testing.assert_close(got, network(x).detach(), rtol=1e-4, atol=1e-4)


def test_an_exported_network_computes_what_pytorch_does_and_stays_in_training(tmp_path):
    model = with_statistics("torchvision/mobilenet_v3_small")
    x = torch.randn(3, 3, 32, 32)
    wanted = model(x).detach()
    model.train()
    export.export_onnx(model, tmp_path / "m.onnx", 32)
    export.export_program(model, tmp_path / "m.pt2", 32)
    assert model.training
    got = export.session(onnx.load(tmp_path / "m.onnx")).run(None, {"images": x.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(got), wanted, rtol=1e-4, atol=1e-4)
    again = torch.export.load(tmp_path / "m.pt2").module()(x)
    torch.testing.assert_close(again.detach(), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("write", [export.export_onnx, export.export_program])
def test_another_ending_is_refused_before_any_work(write, tmp_path):
    with pytest.raises(ValueError, match=r"the path must end in \.(onnx|pt2), got"):
        write(None, tmp_path / "m.bin", 32)


def test_int8_keeps_most_answers(template, digits):
    graph = latency.with_weights(template, latency.fused(MobileNetV3Large()).state_dict())
    feed = {"images": to_input(digits.test_images, 32).contiguous().numpy()}
    labels = torch.from_numpy(export.session(graph).run(None, feed)[0].argmax(1))
    small = export.quantized(graph, digits.train_images[:64], 32)
    assert torch.equal(export.onnx_labels(graph, digits.test_images, 32), labels)
    int8 = export.onnx_labels(small, digits.test_images, 32)
    assert int8.shape == labels.shape and ((int8 >= 0) & (int8 < 10)).all()
    assert small.ByteSize() < 0.4 * graph.ByteSize()


# latency


def test_interleaved_gives_every_runner_its_turn_in_every_round():
    order = []
    times = latency.interleaved({name: lambda name=name: order.append(name) for name in "abc"}, rounds=3, least_ms=0)
    assert times.shape == (3, 3) and list(times) == ["a", "b", "c"]
    assert "".join(order[6:]) == "abcbcacab"
    assert latency.ratios(times, to="a").loc["a"].tolist()[:3] == [1, 1, 1]


def test_latencies_of_blocks_come_for_every_width_asked(template):
    asked = [[width, max(1, width // 2)] for width in DENSE_WIDTHS]
    table = latency.block_latencies(template, MobileNetV3Large(), asked, rounds=2)
    assert list(zip(table.block, table.width)) == [(i, width) for i, pair in enumerate(asked) for width in pair]
    assert (table.ms > 0).all() and (table.share > 0).all()
    assert (table.groupby("block").ratio.first() == 1).all()


def test_a_block_is_measured_with_the_hidden_channels_it_has(template, monkeypatch):
    model, seen = MobileNetV3Large(), []
    small = prune(model, every_third(model), "keep")
    monkeypatch.setattr(
        latency, "_weights", lambda block, width, hidden: seen.append(hidden) or block.module.state_dict()
    )
    monkeypatch.setattr(latency, "with_weights", lambda part, weights: part)
    monkeypatch.setattr(latency, "onnx_runner", lambda graph: lambda: None)
    latency.block_latencies(template, small, [[width] for width in small.widths], rounds=1)
    assert tuple(seen) == small.squeeze != prune(model, every_third(model)).squeeze


def test_explain_latency_has_one_row_per_block():
    model = with_statistics("torchvision/mobilenet_v3_small")
    pruned = prune(model, every_third(model))
    table = latency.explain_latency(pruned, image_size=32, rounds=2)
    assert table.block.tolist() == [block.name for block in blocks(model)]
    assert table.width.tolist() == [block.width for block in blocks(pruned)]
    assert 0.3 < table.flops_share.sum() < 1 and (table.time_share > 0).all()
    for _, row in table.iterrows():
        assert row.width % row.multiple_of == 0 and row.multiple_of in (1, 4, 8, 16)
        assert row.aligned_width % 16 == 0 and abs(row.aligned_width - row.width) <= max(8, 16 - row.width)
        assert row.aligned_ratio == 1 or row.aligned_width != row.width
