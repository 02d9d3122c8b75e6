"""The same answers from code that is not ours: Torch-Pruning, PyTorch's FLOP counter, its autograd and Adam, ONNX
Runtime."""

import contextlib
import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from support import lively, random_masks

from mnv3nb import BLOCKS, DENSE_WIDTHS, MobileNetV3Large, count_macs, evaluate, filter_sparsity, prune, score, train
from mnv3nb.blocks import batch_norms
from mnv3nb.data.batches import to_input
from mnv3nb.system.device import pick_device
from mnv3nb.system.speed import SmallMaps
from mnv3nb.training import SCHEDULES, TrainConfig, learning_rate

CUT = (3, [0.5, 0.9, 0.1] * 5)


def test_torch_pruning_removing_the_same_channels_gives_the_same_function():
    torch_pruning = pytest.importorskip("torch_pruning")
    model, masks = lively(1).double(), random_masks(CUT)
    small = prune(model, masks, squeeze="keep")
    x = torch.randn(4, 3, 32, 32, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    graph = torch_pruning.DependencyGraph().build_dependency(model, example_inputs=x)
    for block, mask in zip(model.blocks, masks):
        gone = (~mask).nonzero().flatten().tolist()
        if gone:
            graph.get_pruning_group(block.expand[0], torch_pruning.prune_conv_out_channels, idxs=gone).prune()
    assert {n: p.shape for n, p in model.named_parameters()} == {n: p.shape for n, p in small.named_parameters()}
    with torch.no_grad():
        torch.testing.assert_close(small(x), model.eval()(x))


@pytest.mark.parametrize("image_size", [32, 65, 224])
def test_macs_are_half_of_what_torchs_flop_counter_counts(dense, table5, image_size):
    from torch.utils.flop_counter import FlopCounterMode

    for model in (dense, MobileNetV3Large(100, table5).eval()):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(torch.zeros(1, 3, image_size, image_size))
        assert 2 * count_macs(model, image_size) == counter.get_total_flops()


def test_the_forward_pass_is_that_of_plain_functions_row_by_row():
    """The table of blocks once more, with `torch.nn.functional` and the state dict alone."""
    model = lively(7, num_classes=3).double()
    w = model.state_dict()

    def conv_bn(x, name, groups=1, stride=1):
        kernel = w[f"{name}.0.weight"]
        x = F.conv2d(x, kernel, None, stride, kernel.shape[-1] // 2, 1, groups)
        mean, var, gamma, beta = (w[f"{name}.1.{key}"] for key in ("running_mean", "running_var", "weight", "bias"))
        x = (x - mean[:, None, None]) / (var[:, None, None] + 1e-5).sqrt()  # Eq. 2
        return x * gamma[:, None, None] + beta[:, None, None]

    def h_swish(x):
        return x * (x + 3).clamp(0, 6) / 6

    x = images = torch.randn(2, 3, 48, 48, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    x = h_swish(conv_bn(x, "stem", stride=2))
    for i, (_, width, out, has_se, activation, stride) in enumerate(BLOCKS):
        act = h_swish if activation == "HS" else lambda x: x.clamp(0, 6)
        y = act(conv_bn(x, f"blocks.{i}.expand"))
        y = act(conv_bn(y, f"blocks.{i}.depthwise", groups=width, stride=stride))
        if has_se:
            q = y.mean((2, 3), keepdim=True)
            q = F.conv2d(q, w[f"blocks.{i}.se.fc1.weight"], w[f"blocks.{i}.se.fc1.bias"]).clamp(min=0)
            q = F.conv2d(q, w[f"blocks.{i}.se.fc2.weight"], w[f"blocks.{i}.se.fc2.bias"])
            y = y * (q + 3).clamp(0, 6) / 6
        y = conv_bn(y, f"blocks.{i}.project")
        x = x + y if stride == 1 and x.shape[1] == out else y
    x = h_swish(conv_bn(x, "head")).mean((2, 3))
    x = h_swish(x @ w["classifier.0.weight"].T + w["classifier.0.bias"])
    x = x @ w["classifier.2.weight"].T + w["classifier.2.bias"]
    torch.testing.assert_close(model(images).detach(), x, rtol=1e-10, atol=1e-10)


def test_taylor_scores_are_the_change_of_the_loss_if_a_channel_is_scaled(tiny):
    """Multiply one channel's BatchNorm output by c: Molchanov's |γ·∂L/∂γ + β·∂L/∂β| is |∂L/∂c| at c = 1, here by
    differences."""
    model = lively(2).double()
    images, labels = to_input(tiny.train_images[:8], 32).double(), tiny.train_labels[:8]
    batches = [(images[:4], labels[:4]), (images[4:], labels[4:])]
    scores = score(model, "taylor", batches)
    assert all(p.grad is None for p in model.parameters())
    frozen = score(lively(2).double().requires_grad_(False), "taylor", batches)
    assert all(map(torch.equal, frozen, scores))
    for place in (0, 7, 14):
        channel, bn = int(scores[place].argmax()), model.blocks[place].expand[1]
        gamma, beta = bn.weight[channel].item(), bn.bias[channel].item()

        def loss(c, bn=bn, channel=channel, gamma=gamma, beta=beta):
            with torch.no_grad():
                bn.weight[channel], bn.bias[channel] = c * gamma, c * beta
                return float(F.cross_entropy(model(images), labels))

        slope = (loss(1 + 1e-7) - loss(1 - 1e-7)) / 2e-7
        assert float(scores[place][channel]) == pytest.approx(abs(slope), rel=1e-3) and abs(slope) > 0.01
        loss(1.0)


# learning rate


@given(st.data())
def test_convolutions_of_small_maps_and_their_gradients_are_those_in_float64(data):
    draw = lambda least, most: data.draw(st.integers(least, most))  # noqa: E731
    kernel, height, width, stride, channels = draw(1, 7), draw(1, 9), draw(1, 9), draw(1, 3), draw(1, 4)
    padding = data.draw(st.integers(max(0, (kernel - min(height, width) + 1) // 2), kernel // 2 + 1))
    groups = channels if data.draw(st.booleans()) else 1
    torch.manual_seed(draw(0, 99))
    conv = torch.nn.Conv2d(
        channels,
        channels * draw(1, 2) if groups == 1 else channels,
        kernel,
        stride,
        padding,
        groups=groups,
        bias=data.draw(st.booleans()),
    )
    x = torch.randn(3, channels, height, width).to(memory_format=torch.channels_last).requires_grad_()
    whole, whole_x = copy.deepcopy(conv).double(), x.detach().double().requires_grad_()
    with SmallMaps():
        y = conv(x)
    want = whole(whole_x)
    grad = torch.randn_like(y)
    y.backward(grad)
    want.backward(grad.double())
    assert torch.allclose(y.double(), want, atol=1e-5)
    assert torch.allclose(x.grad.double(), whole_x.grad, atol=1e-5)
    for ours, theirs in zip(conv.parameters(), whole.parameters()):
        assert torch.allclose(ours.grad.double(), theirs.grad, atol=1e-4)


@pytest.mark.parametrize("image_size", [32, 96])
def test_the_networks_gradients_are_the_same_with_and_without_small_maps(image_size):
    torch.manual_seed(0)
    model = lively().double().train()
    images, labels = torch.rand(8, 3, image_size, image_size, dtype=torch.float64) * 2 - 1, torch.arange(8)
    gradients = []
    for context in (contextlib.nullcontext(), SmallMaps()):
        with context:
            loss = F.cross_entropy(model(images.to(memory_format=torch.channels_last)), labels)
        gradients.append(torch.autograd.grad(loss, list(model.parameters())))
    assert all(torch.allclose(a, b, rtol=1e-6, atol=1e-10) for a, b in zip(*gradients))
    assert sum(not torch.equal(a, b) for a, b in zip(*gradients)) > 10  # it did something


@given(st.sampled_from(SCHEDULES), st.integers(1, 20), st.integers(1, 20), st.floats(1e-6, 1))
def test_the_learning_rate_is_that_of_torchs_schedulers(schedule, epochs, steps, lr):
    config = TrainConfig(epochs=epochs, lr=lr, schedule=schedule)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    period = {"cosine": epochs * steps, "cosine_epoch": epochs, "constant": 10**9}[schedule]
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=period)
    for step in range(epochs * steps):
        assert learning_rate(config, step, steps) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-6, abs=1e-12)
        optimizer.step()
        if schedule != "cosine_epoch" or (step + 1) % steps == 0:
            scheduler.step()


def test_the_last_step_of_cosine_has_the_size_of_table_2s_dead_band():
    config = TrainConfig(epochs=200, lr=1e-3)
    last = learning_rate(config, 200 * 100 - 1, 100)
    assert last == pytest.approx(1e-3 * (math.pi / (2 * 200 * 100)) ** 2, rel=1e-6)
    assert 1e-12 < last < 1e-10


# one step of training, seen through Adam's memory: after the first step exp_avg is a tenth of the gradient


SIZE = 8  # pixels; the fewer activations, the fewer sit on a kink of ReLU6 where rounding turns the gradient


def start() -> MobileNetV3Large:
    """Random weights, γ of both signs and some exactly 0."""
    model = lively(3)
    with torch.no_grad():
        for bn in batch_norms(model):
            bn.weight[::5] = 0
    return model


def one_step(tiny, **changes) -> tuple[MobileNetV3Large, dict[str, torch.Tensor]]:
    """The network after one step on all 48 images, and the gradient that this step used."""
    model, states = start(), []
    train(
        model,
        tiny,
        TrainConfig(**{"epochs": 1, "batch_size": 48, "image_size": SIZE, "lr": 1e-2} | changes),
        progress=False,
        on_epoch=lambda state, _: states.append({k: v.clone() for k, v in state.items()}),
    )
    assert len(states) == 1 and float(states[0]["optimizer.stem.0.weight.step"]) == 1
    grads = {name: 10 * states[0][f"optimizer.{name}.exp_avg"] for name, _ in model.named_parameters()}
    return model, grads


def full_loss_gradient(tiny, penalty) -> dict[str, torch.Tensor]:
    """torch's own derivative, in 64 bits, of the cross-entropy plus `penalty(model)`."""
    model = start().double().train()
    loss = F.cross_entropy(model(to_input(tiny.train_images, SIZE).double()), tiny.train_labels) + penalty(model)
    return dict(zip((n for n, _ in model.named_parameters()), torch.autograd.grad(loss, list(model.parameters()))))


LAM = 0.03
PENALTIES = {
    "nothing": ({}, lambda model: 0.0),
    "Eq. 1": ({"lam": LAM}, lambda model: LAM * sum(bn.weight.abs().sum() for bn in batch_norms(model))),
    "Eq. 1 on the expansions": (
        {"lam": LAM, "penalized": "expansion"},
        lambda model: LAM * sum(u.expand[1].weight.abs().sum() for u in model.blocks),
    ),
    "weight decay": (
        {"lam": LAM, "penalty": "l2"},
        lambda model: LAM / 2 * sum(bn.weight.square().sum() for bn in batch_norms(model)),
    ),
}


@pytest.mark.parametrize("name", PENALTIES)
def test_a_steps_gradient_is_autograds_of_the_full_loss(tiny, name):
    changes, penalty = PENALTIES[name]
    _, grads = one_step(tiny, **changes)
    for name, expected in full_loss_gradient(tiny, penalty).items():
        error, size = float((grads[name] - expected).abs().max()), float(expected.abs().max())
        assert error < 2e-4 + 2e-3 * size, name


def test_a_step_is_torchs_adam_on_the_full_loss(tiny):
    """The weights themselves; where the gradient is tiny its sign is rounding's, and Adam's first step is that sign."""
    changes, penalty = PENALTIES["Eq. 1"]
    model, _ = one_step(tiny, **changes)
    grads = full_loss_gradient(tiny, penalty)
    other = start().double()
    for name, parameter in other.named_parameters():
        parameter.grad = grads[name]
    torch.optim.Adam(other.parameters(), lr=1e-2).step()
    for (name, mine), reference in zip(model.named_parameters(), other.parameters()):
        clear = grads[name].abs() > 1e-3 + 1e-2 * grads[name].abs().max()
        torch.testing.assert_close(mine.detach().double()[clear], reference.detach()[clear], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("penalized", ["all", "expansion"])
def test_a_proximal_step_is_the_plain_step_and_then_the_soft_threshold(tiny, penalized):
    lam, lr = 20.0, 1e-2  # γ is about 1 and shrinks by 0.2
    plain, _ = one_step(tiny)
    found, _ = one_step(tiny, lam=lam, penalty="proximal", penalized=penalized)
    shrunk = {f"blocks.{i}.expand.1.weight" for i in range(15)}
    if penalized == "all":
        shrunk = {f"{name}.weight" for name, m in plain.named_modules() if isinstance(m, torch.nn.BatchNorm2d)}
    zeros = 0
    for (name, after), before in zip(found.named_parameters(), plain.parameters()):
        if name not in shrunk:
            assert torch.equal(after, before), name
            continue
        expected = [math.copysign(max(abs(float(g)) - lr * lam, 0.0), float(g)) for g in before.detach().double()]
        torch.testing.assert_close(
            after.detach().double(), torch.tensor(expected, dtype=torch.double), rtol=1e-6, atol=1e-7
        )
        zeros += int((after == 0).sum())
    assert zeros > 100  # exact zeros are what a proximal step is for


def test_no_penalty_means_no_penalty(tiny):
    plain, _ = one_step(tiny)
    for penalty in ("proximal", "l2"):
        same, _ = one_step(tiny, lam=0.0, penalty=penalty)
        assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), same.parameters()))


def test_reported_numbers_are_those_of_a_plain_loop(tiny):
    """Train loss and accuracy are means over the images seen in training mode; test accuracy is of the network
    afterwards."""
    model = start()
    history = train(model, tiny, TrainConfig(epochs=1, batch_size=48, image_size=SIZE, lr=0.0), progress=False)
    reference = start().train()
    logits = reference(to_input(tiny.train_images, SIZE))
    assert history[1]["train_loss"] == pytest.approx(F.cross_entropy(logits, tiny.train_labels).item(), rel=1e-4)
    assert history[1]["train_accuracy"] == pytest.approx(float((logits.argmax(1) == tiny.train_labels).float().mean()))
    right = (reference.eval()(to_input(tiny.test_images, SIZE)).argmax(1) == tiny.test_labels).float().mean()
    assert history[1]["test_accuracy"] == pytest.approx(float(right))
    assert evaluate(model, tiny.test_images, tiny.test_labels, SIZE, batch_size=7) == history[1]["test_accuracy"]


def test_a_network_can_be_trained_after_it_was_evaluated(tiny):
    model = lively(4)
    evaluate(model, tiny.test_images, tiny.test_labels, 8)
    train(model, tiny, TrainConfig(epochs=1, image_size=8), progress=False)


def test_the_device_can_be_named(monkeypatch):
    assert pick_device().type == "cpu" and pick_device("meta").type == "meta"
    monkeypatch.setenv("MNV3NB_DEVICE", "meta")
    assert pick_device().type == "meta" and pick_device("cpu").type == "cpu"
    for absent in ("cuda:99", "no such thing"):
        with pytest.raises(ValueError, match=f"no device '{absent}' here; there is .*cpu"):
            pick_device(absent)


# scores


def test_scores_do_not_change_the_network_and_follow_the_formulas_on_it():
    model = lively(6)
    before = copy.deepcopy(model.state_dict())
    for criterion in ("gamma_sparsity", "l2", "fpgm", "random"):
        scores = score(model, criterion, seed=1)
        assert [s.shape for s in scores] == [(width,) for width in DENSE_WIDTHS]
    assert all(torch.equal(a, before[k]) for k, a in model.state_dict().items())
    assert not torch.equal(score(model, "random", seed=1)[0], score(model, "random", seed=2)[0])
    block = model.blocks[4]
    weight = block.expand[0].weight.detach().flatten(1).double().numpy()
    distances = [sum(np.linalg.norm(a - b) for b in weight) for a in weight]
    np.testing.assert_allclose(score(model, "fpgm")[4].numpy(), distances, rtol=1e-4)
    assert torch.equal(score(model, "sparsity")[4], filter_sparsity(block.expand[0].weight.detach()))


def test_scores_that_cannot_be_had_are_refused(dense):
    with pytest.raises(
        ValueError, match=r"unknown criterion 'gama'; did you mean 'gamma'\? Allowed: gamma_sparsity, gamma"
    ):
        score(dense, "gama")
    with pytest.raises(ValueError, match=r"'taylor' needs gradients: give batches"):
        score(dense, "taylor")
    with pytest.raises(ValueError, match="batches is empty"):
        score(dense, "taylor", [])


@pytest.mark.parametrize("criterion", ["gamma_sparsity", "gamma", "sparsity", "l1", "random"])
@pytest.mark.parametrize("layer, part", [(0, "weight"), (1, "weight"), (1, "bias")])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_every_criterion(dense, criterion, layer, part, value):
    """One of them would set all S of its layer to 0."""
    broken = copy.deepcopy(dense)
    with torch.no_grad():
        getattr(broken.blocks[2].expand[layer], part).flatten()[3] = value
    with pytest.raises(
        ValueError, match=r"^blocks\.2: (weight|gamma|beta) of the expansion is not finite: has training"
    ):
        score(broken, criterion)
