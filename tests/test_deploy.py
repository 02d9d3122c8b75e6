"""Choosing widths within a budget, keeping what removed channels emit, and measuring what a network costs."""

import itertools

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import lively, same_tensors

from mnv3nb import (
    DENSE_WIDTHS,
    MobileNetV3Large,
    count_flops,
    count_parameters,
    fit_widths,
    keep_masks,
    prune,
    recalibrate,
    save_model,
    score,
    unit_costs,
)  # fmt: skip
from mnv3nb import deploy as d
from mnv3nb.__main__ import main
from mnv3nb.budget import COSTS, map_sides
from mnv3nb.data import to_input
from mnv3nb.model import batch_norms
from mnv3nb.pruning import top_masks


def total(cost, widths, **options):
    return sum(table[w] for table, w in zip(unit_costs(cost, **options), widths))


@pytest.mark.parametrize("size", [32, 224])
def test_unit_costs_differ_between_networks_as_the_counts_do(dense, table5, size):
    small = MobileNetV3Large(widths=table5)
    for cost, count in (("parameters", count_parameters), ("flops", lambda m: count_flops(m, size))):
        saved = total(cost, DENSE_WIDTHS, image_size=size) - total(cost, table5, image_size=size)
        assert saved == count(dense) - count(small)


def test_map_sides_are_those_of_the_network(dense):
    sides = []
    for unit in dense.blocks:
        unit.register_forward_pre_hook(lambda _, x: sides.append(x[0].shape[-1]))
    dense(torch.zeros(1, 3, 75, 75))
    for unit in dense.blocks:
        unit._forward_pre_hooks.clear()
    assert map_sides(75) == [*sides, 3]


def test_a_budget_of_filters_without_alignment_is_the_global_ranking(dense):
    scores = score(dense)
    widths = [int(mask.sum()) for mask in keep_masks(scores, 0.5)]
    assert fit_widths(scores, unit_costs("filters"), sum(widths)) == widths


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("k", [1, 8, 16, 32])
def test_aligned_widths_stay_within_the_budget_and_use_it(dense, cost, k):
    scores = score(dense)
    plain, aligned = ([int(m.sum()) for m in keep_masks(scores, 0.5, multiple_of=k, budget=b)] for b in (None, cost))
    raw = total(cost, [int(m.sum()) for m in keep_masks(scores, 0.5)])
    assert all(w % k == 0 or w == n for w, n in zip(aligned, DENSE_WIDTHS))
    assert 0.97 * raw <= total(cost, aligned) <= raw
    if total(cost, plain) <= raw:
        assert sum(s[m].sum() for s, m in zip(scores, top_masks(scores, aligned))) >= 0.999 * sum(
            s[m].sum() for s, m in zip(scores, top_masks(scores, plain))
        )


@given(st.integers(0, 10_000), st.integers(4, 60))
def test_fit_widths_finds_the_best_of_all_choices(seed, budget):
    rng = np.random.default_rng(seed)
    scores = [torch.from_numpy(rng.random(n)) for n in (2, 3, 4)]
    costs = [{w: int(rng.integers(1, 30)) for w in range(1, len(s) + 1)} for s in scores]
    kept = [s.sort(descending=True).values.cumsum(0) for s in scores]
    values = {
        c: float(sum(k[w - 1] for k, w in zip(kept, c)))
        for c in itertools.product(*costs)
        if sum(t[w] for t, w in zip(costs, c)) <= budget
    }
    if values:
        assert values[tuple(fit_widths(scores, costs, budget))] == pytest.approx(max(values.values()))
        floats = [{w: c + 0.0 for w, c in t.items()} for t in costs]
        assert tuple(fit_widths(scores, floats, float(budget))) in values
    else:
        with pytest.raises(ValueError, match="the smallest network costs"):
            fit_widths(scores, costs, budget)


def test_what_cannot_be_aligned_or_afforded_is_refused(dense):
    scores = score(dense)
    with pytest.raises(ValueError, match=r"multiple_of=961 is larger than every layer: the widest has 960 filters"):
        keep_masks(scores, 0.5, multiple_of=961)
    with pytest.raises(ValueError, match=r"no widths meet a budget of .* the smallest network costs .* widths \[16, 64"):
        keep_masks(scores, 0.99, multiple_of=240, budget="filters")
    with pytest.raises(ValueError, match=r"one of filters, parameters, flops.*'time'"):
        keep_masks(scores, 0.5, budget="time")


def silent(seed: int, units: range = range(15)) -> tuple[MobileNetV3Large, list[torch.Tensor]]:
    """A network in which every third expansion channel of `units` has γ = 0, and the masks that remove those channels.

    In float64, and with half of its γ: a lively network amplifies rounding, and small shifts, from unit to unit.
    """
    model, masks = lively(seed).double(), []
    for bn in batch_norms(model):
        bn.weight.data *= 0.5
    for i, unit in enumerate(model.blocks):
        mask = torch.arange(DENSE_WIDTHS[i]) % 3 != 0 if i in units else torch.ones(DENSE_WIDTHS[i], dtype=torch.bool)
        unit.expand[1].weight.data[~mask] = 0
        masks.append(mask)
    return model, masks


@pytest.mark.parametrize("unit", [0, 1, 2, 6, 8])  # those without SE
def test_folding_keeps_the_mean_of_the_projection_exactly(unit):
    model, masks = silent(0, range(unit, unit + 1))
    small = prune(model, masks, fold_bias=True, image_size=64)
    bare = prune(model, masks)
    side = map_sides(64)[unit]
    x = torch.randn(4, model.blocks[unit].expand[0].in_channels, side, side, dtype=torch.double)
    want, got, without = (m.blocks[unit](x) for m in (model, small, bare))
    assert torch.allclose(got.mean((2, 3)), want.mean((2, 3)), atol=1e-5)
    assert not torch.allclose(without.mean((2, 3)), want.mean((2, 3)), atol=1e-2)


def test_folding_is_exact_at_every_pixel_where_the_border_does_not_reach():
    model, masks = silent(1, range(7, 8))
    kernel = model.blocks[7].depthwise[0].weight
    with torch.no_grad():
        centre = torch.zeros_like(kernel)
        centre[:, :, 1, 1] = kernel[:, :, 1, 1]
        kernel[~masks[7]] = centre[~masks[7]]  # these look at no neighbour, so that zero padding changes nothing
    x = torch.randn(2, 3, 64, 64, dtype=torch.double)
    assert torch.allclose(prune(model, masks, fold_bias=True, image_size=64)(x), model(x), atol=1e-5)
    model, masks = silent(2, range(7, 8))
    x = torch.randn(2, 3, 16, 16, dtype=torch.double)  # maps of one pixel: the border is all there is
    assert torch.allclose(prune(model, masks, fold_bias=True, image_size=16)(x), model(x), atol=1e-5)


def test_folding_keeps_the_input_of_squeeze_and_excitation_exactly():
    model, masks = silent(3, range(3, 4))
    small = prune(model, masks, "keep", fold_bias=True, image_size=64)
    x = torch.randn(2, 24, 16, 16, dtype=torch.double)
    want, got = (u.se.fc1(u.se.avgpool(u.depthwise(u.expand(x)))) for u in (model.blocks[3], small.blocks[3]))
    assert torch.allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("squeeze", ["paper", "keep"])
def test_folding_brings_the_logits_nearer(squeeze):
    model, masks = silent(4)
    x = torch.randn(8, 3, 64, 64, dtype=torch.double)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    far, near = ((prune(model, masks, squeeze, fold_bias=f, image_size=64)(x) - model(x)).abs().mean() for f in (False, True))
    assert near < 0.5 * far
    assert same_tensors(before, model.state_dict())
    everything = [torch.ones(w, dtype=torch.bool) for w in model.widths]
    assert torch.allclose(prune(model, everything, squeeze, fold_bias=True, image_size=64)(x), model(x), atol=1e-5)


def test_recalibration_measures_the_mean_and_variance_of_what_comes_in(digits):
    model = lively(5)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    images = digits.train_images[:257]
    recalibrate(model, images, 32, batch_size=64)
    first = model.stem[0](to_input(images[:256], 32))
    assert torch.allclose(model.stem[1].running_mean, first.mean((0, 2, 3)), atol=1e-4)
    assert torch.allclose(model.stem[1].running_var, first.var((0, 2, 3)), rtol=0.05)
    assert same_tensors(weights, {name: p.detach() for name, p in model.named_parameters()})
    assert not model.training and all(bn.momentum == 0.1 for bn in model.modules() if isinstance(bn, torch.nn.BatchNorm2d))


@pytest.fixture(scope="module")
def template() -> onnx.ModelProto:
    return d.onnx_template(10, 32)


def test_the_template_with_other_weights_computes_what_pytorch_does(template, table5):
    x = torch.randn(3, 3, 32, 32)
    for widths in (DENSE_WIDTHS, table5):
        model = lively(6, widths=widths).requires_grad_(False)
        got = d.session(d.with_weights(template, d.fused(model))).run(None, {"images": x.numpy()})[0]
        assert torch.allclose(torch.from_numpy(got), model(x), atol=1e-4 * float(model(x).abs().max()))


def test_int8_keeps_most_answers(template, digits):
    graph = d.with_weights(template, d.fused(MobileNetV3Large()))
    labels = torch.from_numpy(d.session(graph).run(None, {"images": to_input(digits.test_images, 32).numpy()})[0].argmax(1))
    small = d.quantized(graph, digits.train_images[:64], 32)
    assert d.onnx_accuracy(graph, digits.test_images, labels, 32) == 1
    assert 0 <= d.onnx_accuracy(small, digits.test_images, labels, 32) <= 1
    assert small.ByteSize() < 0.4 * graph.ByteSize()


def test_latencies_of_units_come_for_every_width_asked(template):
    widths = [[w, max(1, w // 2)] for w in DENSE_WIDTHS]
    table = d.unit_latencies(template, widths, rounds=2)
    assert list(zip(table.unit, table.width)) == [(i, w) for i, pair in enumerate(widths) for w in pair]
    assert (table.ms > 0).all() and (table.groupby("unit").ratio.first() == 1).all()


def test_interleaved_gives_every_runner_its_turn_in_every_round():
    order = []
    times = d.interleaved({name: lambda name=name: order.append(name) for name in "abc"}, rounds=3, least_ms=0)
    assert times.shape == (3, 3) and list(times) == ["a", "b", "c"]
    assert "".join(order[6:]) == "abcbcacab"
    assert d.ratios(times, to="a").loc["a"].tolist()[:3] == [1, 1, 1]


def test_prune_checks_the_ending_of_out_before_it_works(tmp_path, capsys):
    assert main(["prune", str(tmp_path / "none.safetensors"), "--rate", "0.5", "--out", str(tmp_path / "small.pt")]) == 2
    assert "must end in .safetensors" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "none.safetensors"), str(tmp_path / "small.pt")]) == 2
    assert "must end in .onnx" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_prune_folds_and_aligns(tmp_path, capsys):
    from mnv3nb import load_model

    save_model(lively(7), tmp_path / "dense.safetensors", image_size=32)
    command = ["prune", str(tmp_path / "dense.safetensors"), "--rate", "0.5", "--out", str(tmp_path / "small.safetensors")]
    assert main([*command, "--multiple-of", "16", "--budget", "parameters", "--fold-bias"]) == 0
    small = load_model(tmp_path / "small.safetensors")
    assert all(w % 16 == 0 or w == n for w, n in zip(small.widths, DENSE_WIDTHS))
    masks = keep_masks(score(lively(7)), 0.5, 16, budget="parameters")
    same = prune(lively(7), masks, fold_bias=True, image_size=32)
    assert same_tensors(same.state_dict(), small.state_dict())
    assert main([*command, "--multiple-of", "1000"]) == 2
    assert "larger than every layer" in capsys.readouterr().err
