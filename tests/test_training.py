"""The training loop on small real data: exact, resumable, and clear when it fails."""

import re
from dataclasses import replace

import pytest
import torch
from support import TINY, fresh, same_tensors, timeless

from mnv3nb import Dataset, MobileNetV3Large, add_gamma_penalty, evaluate, reestimate_batchnorm, train
from mnv3nb.blocks import batch_norms
from mnv3nb.data.batches import batches, to_input
from mnv3nb.system.speed import RecordedStep
from mnv3nb.system.tensors import load_tensors, save_tensors
from mnv3nb.training import learning_rate

# train


@pytest.mark.parametrize("augment", ["none", "crop_flip"])
def test_training_resumes_bit_for_bit_from_any_stored_epoch(tiny, tmp_path, augment):
    config = replace(TINY, epochs=3, augment=augment)
    model, paths = fresh(), {}

    def keep(state, history):
        paths[len(history) - 1] = tmp_path / f"{len(history)}.safetensors"
        save_tensors(paths[len(history) - 1], state, {"history": history})

    whole = train(model, tiny, config, on_epoch=keep, progress=False)
    for epoch in (1, 2, 3):
        state, metadata = load_tensors(paths[epoch])
        again = fresh(seed=99)  # whatever weights it starts with
        history = train(again, tiny, config, state=state, history=metadata["history"], progress=False)
        assert timeless(history) == timeless(whole)
        assert [*map(list, history)] == [*map(list, whole)]  # columns in one order
        assert same_tensors(again.state_dict(), model.state_dict())


def test_resuming_twice_from_one_state_gives_the_same_bits(tiny):
    """The optimizer counts in tensors of its own, not in the caller's."""
    config = replace(TINY, epochs=2)
    states = []

    def keep(state, history):
        states.append(({name: tensor.clone() for name, tensor in state.items()}, history))

    train(fresh(), tiny, config, on_epoch=keep, progress=False)
    state, history = states[0]
    results = []
    for _ in range(2):
        model = fresh(seed=3)
        train(model, tiny, config, state=state, history=history, progress=False)
        results.append(model.state_dict())
    assert same_tensors(*results)


def test_a_negative_label_is_refused(tiny):
    labels = tiny.test_labels.clone()
    labels[3] = -1
    with pytest.raises(ValueError, match="labels must be ≥ 0, got -1"):
        evaluate(fresh(), tiny.test_images, labels, 8)


def test_the_same_seed_gives_the_same_bits_and_another_seed_does_not(tiny):
    def weights(seed):
        model = fresh()
        train(model, tiny, replace(TINY, epochs=1, seed=seed), progress=False)
        return model.state_dict()

    first = weights(1)
    assert same_tensors(first, weights(1)) and not same_tensors(first, weights(2))


def test_every_epoch_has_its_own_order(tiny):
    """At a learning rate of 0 only the batches differ, and with them their statistics."""
    history = train(fresh(), tiny, replace(TINY, epochs=4, lr=0.0), progress=False)
    assert len({row["train_loss"] for row in history[1:]}) == 4


def test_a_training_does_not_touch_the_global_random_numbers(tiny):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        before = torch.get_rng_state()
        train(fresh(), tiny, replace(TINY, epochs=1), progress=False)
        assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(("count", "steps"), [(16, 1), (17, 1), (18, 2), (33, 2), (48, 3)])
def test_a_last_batch_of_one_is_dropped(tiny, count, steps):
    states = []
    history = train(
        fresh(), tiny.subset(count), replace(TINY, epochs=1), on_epoch=lambda s, _: states.append(s), progress=False
    )
    assert states[-1]["optimizer.classifier.2.bias.step"].item() == steps
    assert history[-1]["lr"] == learning_rate(replace(TINY, epochs=1), steps - 1, steps)  # annealed to its end
    assert 0 <= history[-1]["train_accuracy"] <= 1 and history[-1]["train_loss"] < 3


def test_the_history_has_one_row_per_epoch_and_one_before_the_first_step(tiny):
    history = train(fresh(), tiny, TINY, progress=False)
    assert [row["epoch"] for row in history] == [0, 1, 2]
    assert list(history[0]) == ["epoch", "lr", "train_loss", "train_accuracy", "test_accuracy", "seconds"]
    assert history[0]["train_loss"] is None and all(row["seconds"] > 0 for row in history[1:])
    assert len(train(fresh(), tiny, replace(TINY, epochs=0), progress=False)) == 1


def test_training_learns_and_reestimated_statistics_show_it(digits):
    """So few steps hardly move BatchNorm's running averages: without `reestimate_batchnorm` the network is tested at chance."""
    part, model = digits.subset(160), fresh()
    history = train(model, part, replace(TINY, epochs=4, lam=0.0, image_size=16), progress=False)
    assert history[-1]["train_loss"] < 0.7 * history[1]["train_loss"]
    before = {name: value.clone() for name, value in model.named_parameters()}
    reestimate_batchnorm(model, part.train_images, 16, batch_size=16)
    assert evaluate(model, part.test_images, part.test_labels, 16) > 0.35  # chance is 0.1
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert not model.training and all(bn.momentum == 0.1 for bn in batch_norms(model))


def test_a_larger_lambda_pulls_gamma_closer_to_0(tiny):
    def gammas(**changes):
        model = fresh()
        train(model, tiny, replace(TINY, epochs=4, lr=3e-2, **changes), progress=False)
        return torch.cat([bn.weight.detach() for bn in batch_norms(model)]).abs()

    means = [float(gammas(lam=lam).mean()) for lam in (0.0, 1e-2, 1.0)]
    assert means[0] > means[1] + 0.02 > means[2] + 0.04
    assert (gammas(lam=5.0, penalty="proximal") == 0).float().mean() > 0.5  # exact zeros
    assert float(gammas(lam=1.0, penalty="l2").mean()) < means[0] - 0.02


def test_a_diverging_training_names_its_step_lambda_and_learning_rate(tiny):
    config, stored = replace(TINY, lr=1e30), []
    with pytest.raises(FloatingPointError, match="training diverged: loss or γ not finite in epoch 1, step ") as error:
        train(fresh(), tiny, config, on_epoch=lambda *_: stored.append(1), progress=False)
    step = int(re.search(r"step (\d+)", str(error.value))[1])
    lam, lr = (re.search(rf"{name}=([^,; ]+)", str(error.value))[1] for name in ("λ", "lr"))
    assert step in (0, 1, 2) and lam == f"{config.lam:g}"
    assert lr == f"{learning_rate(config, step, 3):g}"  # of that step, not of the last one, which is almost 0
    assert not stored  # nothing that is not finite is kept


def test_a_run_that_diverges_late_keeps_the_state_before_it(tiny, monkeypatch):
    """From epoch 2 on the images are ruined."""
    config, stored = replace(TINY, epochs=3), []
    model = fresh()

    def ruin(state, history):
        stored.append(all(bool(v.isfinite().all()) for v in state.values()))
        with torch.no_grad():
            model.classifier[2].bias[0] = float("nan")

    with pytest.raises(FloatingPointError, match=r"epoch 2, step 0, with λ=0.001, lr=0.00"):
        train(model, tiny, config, on_epoch=ruin, progress=False)
    assert stored == [True]


# networks and data of other people


def test_other_networks_train_and_resume(tiny, tmp_path):
    def network(affine: bool = True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return torch.nn.Sequential(
                torch.nn.Conv2d(3, 4, 3, 2).requires_grad_(False), torch.nn.BatchNorm2d(4, affine=affine), torch.nn.ReLU(),
                torch.nn.Conv2d(4, 4, 5, padding="same", groups=4, bias=False), torch.nn.AdaptiveAvgPool2d(1),
                torch.nn.Flatten(), torch.nn.Linear(4, 10),
            )  # fmt: skip

    config, states = replace(TINY, epochs=2, lam=1e-3), []
    keep = lambda state, history: states.append(({k: v.clone() for k, v in state.items()}, history))  # noqa: E731
    whole = network()
    history = train(whole, tiny, config, on_epoch=keep, progress=False)
    again = network()
    state, past = states[0]
    assert timeless(train(again, tiny, config, state=state, history=past, progress=False)) == timeless(history)
    assert same_tensors(again.state_dict(), whole.state_dict())
    with pytest.raises(ValueError, match=r"the penalty has nothing to act on"):
        train(network(affine=False), tiny, config, progress=False)
    train(network(affine=False), tiny, replace(config, lam=0.0, epochs=1), progress=False)
    with pytest.raises(ValueError, match="state and history go together"):
        train(network(), tiny, config, state=state, progress=False)


def test_the_penalty_acts_on_batchnorms_of_any_kind():
    model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(fresh())
    gammas = [norm.weight for norm in batch_norms(model)]
    for gamma in gammas:
        gamma.grad = torch.zeros_like(gamma)
    add_gamma_penalty(model, 0.25)
    assert len(gammas) == 47 and all((gamma.grad == 0.25).all() for gamma in gammas)


@pytest.mark.parametrize("lam", [-1e-5, float("nan")])
def test_a_lambda_that_is_negative_or_nan_is_refused(lam):
    with pytest.raises(ValueError, match="lam must be ≥ 0"):
        add_gamma_penalty(fresh(), lam)


def test_a_penalty_on_a_network_without_gamma_is_refused():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4, affine=False))
    with pytest.raises(ValueError, match=r"none of the BatchNorms \(all\) has a trainable γ"):
        add_gamma_penalty(network, 1e-5)


def test_images_and_labels_that_do_not_fit_are_refused(tiny):
    model, images, labels = fresh(), tiny.test_images, tiny.test_labels
    before = images.float().to(memory_format=torch.channels_last)
    floats = before.clone(memory_format=torch.preserve_format)
    for x, y, message in (
        (floats, labels, "images must be uint8"),
        (images[0], labels[:3], "images must be uint8"),
        (images, labels[:, None], "one label per image"),
        (images, labels[:5], "one label per image"),
        (images[:0], labels[:0], "one label per image"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate(model, x, y, 32)
    assert torch.equal(floats, before)
    with pytest.raises(ValueError, match=r"label \d is beyond the network's 2 outputs: give it more num_classes"):
        train(MobileNetV3Large(2), tiny, TINY, progress=False)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for images, size in ((tiny.train_images[:1], 128), (tiny.train_images[:0], 128), (tiny.train_images, 1)):
        with pytest.raises(ValueError, match="at least 2 images"):
            reestimate_batchnorm(model, images, 32, size)
    assert same_tensors(model.state_dict(), state)


def test_a_subset_holds_out_training_images_for_choices(digits):
    part = digits.subset(100, holdout=200)
    assert len(part.train_images) == 100 and torch.equal(part.test_images, digits.train_images[-200:])
    assert torch.equal(part.train_labels, digits.train_labels[:100])
    assert isinstance(part, Dataset)
    for bad in ({"train_images": 0}, {"train_images": 1438}, {"holdout": 1437}, {"train_images": 1300, "holdout": 200}):
        with pytest.raises(ValueError, match="does not fit 1437 training images"):
            digits.subset(**bad)


def test_batchnorm_is_reestimated_on_images_augmented_as_in_training(digits):
    torch.manual_seed(0)
    images, labels = digits.train_images[:40], digits.train_labels[:40]
    data, model = Dataset(images, labels, images, labels, digits.classes), MobileNetV3Large()
    ((seen, _),) = batches(data, 40, torch.Generator().manual_seed(0), "crop_flip")
    reestimate_batchnorm(model, images, 32, batch_size=40, augment="crop_flip")
    stem, norm = model.stem[0], model.stem[1]
    wanted = stem(to_input(seen, 32)).mean((0, 2, 3))
    assert torch.allclose(norm.running_mean, wanted, atol=1e-4)
    assert not torch.allclose(norm.running_mean, stem(to_input(images, 32)).mean((0, 2, 3)), atol=1e-2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("penalty", ["subgradient", "proximal"])
def test_a_recorded_step_trains_as_one_that_is_called(tiny, monkeypatch, penalty):
    config, replays = replace(TINY, epochs=6, lam=1e-2, lr=1e-3, penalty=penalty, augment="crop_flip"), []
    monkeypatch.setattr(torch.cuda.CUDAGraph, "replay", lambda g, f=torch.cuda.CUDAGraph.replay: replays.append(f(g)))
    recorded, called = fresh(), fresh()
    rows = train(recorded, tiny, config, device="cuda", progress=False)
    assert replays
    monkeypatch.setattr(RecordedStep, "WARM_UP", 10**9)
    count = len(replays)
    wanted = train(called, tiny, config, device="cuda", progress=False)
    assert len(replays) == count
    assert [row["lr"] for row in rows] == [row["lr"] for row in wanted]
    for row, other in zip(rows[1:], wanted[1:]):
        assert row["train_loss"] == pytest.approx(other["train_loss"], rel=0.02)
    for mine, theirs in zip(batch_norms(recorded), batch_norms(called)):
        assert (mine.weight - theirs.weight).abs().max() < 2 * config.lr  # of 6 epochs' steps
        assert mine.num_batches_tracked == theirs.num_batches_tracked


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_step_that_waits_for_the_gpu_is_called(tiny, capsys):
    class Waits(MobileNetV3Large):
        def forward(self, x):
            return super().forward(x) * float(x.abs().max() > 0)

    train(Waits(), tiny, replace(TINY, epochs=6), device="cuda", progress=False)
    assert "cannot be recorded as a CUDA graph" in capsys.readouterr().err
