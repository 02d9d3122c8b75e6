"""Small real trainings: they go on exactly, are found again, are made once, and say so when they fail."""

import json
import math
import os
import random
import re
import shutil
import signal
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from support import FORK, TINY, same_tensors, train_run, tree, write_npz

from mnv3nb import DENSE_WIDTHS, Dataset, MobileNetV3Large, evaluate, keep_masks, load_dataset, prune, score, train
from mnv3nb.checkpoint import load_tensors, save_tensors
from mnv3nb.config import PruneConfig, RunConfig
from mnv3nb.data import KEYS
from mnv3nb.model import batch_norms
from mnv3nb.runs import Runs
from mnv3nb.store import FILES, write_metrics, write_state
from mnv3nb.training import learning_rate, recalibrate

NAMES = sorted([*FILES, "result.json"])


def child_of(parent: RunConfig, **changes) -> RunConfig:
    return replace(parent, parent=parent, prune=PruneConfig(**changes))


def timeless(history: list[dict]) -> list[dict]:
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


@pytest.fixture(scope="module")
def config(tiny_npz) -> RunConfig:
    return RunConfig(tiny_npz, TINY)


@pytest.fixture(scope="module")
def store(config, tmp_path_factory):
    """A folder with one finished run, made without a pause."""
    folder = tmp_path_factory.mktemp("store")
    Runs(folder, folder / "none").run(config)
    return folder


@pytest.fixture
def runs(store, tmp_path) -> Runs:
    """A copy of it to do with what one likes."""
    shutil.copytree(store, tmp_path / "runs", ignore=shutil.ignore_patterns(".locks"))
    return Runs(tmp_path / "runs", tmp_path / "recorded")


def fresh(seed: int = 0, **arguments) -> MobileNetV3Large:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MobileNetV3Large(gamma_init=0.5, **arguments)


# train


@pytest.mark.parametrize("augment", ["none", "crop_flip"])
def test_a_training_goes_on_bit_for_bit_from_any_stored_epoch(tiny, tmp_path, augment):
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
        assert same_tensors(again.state_dict(), model.state_dict())


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
    history = train(fresh(), tiny.subset(count), replace(TINY, epochs=1), on_epoch=lambda s, _: states.append(s), progress=False)
    assert states[-1]["optimizer.classifier.2.bias.step"].item() == steps
    assert history[-1]["lr"] == learning_rate(replace(TINY, epochs=1), steps - 1, steps)  # annealed to its end
    assert 0 <= history[-1]["train_accuracy"] <= 1 and history[-1]["train_loss"] < 3


def test_the_history_has_a_row_an_epoch_and_one_before_the_first_step(tiny):
    history = train(fresh(), tiny, TINY, progress=False)
    assert [row["epoch"] for row in history] == [0, 1, 2]
    assert list(history[0]) == ["epoch", "lr", "train_loss", "train_accuracy", "test_accuracy", "seconds"]
    assert history[0]["train_loss"] is None and all(row["seconds"] > 0 for row in history[1:])
    assert len(train(fresh(), tiny, replace(TINY, epochs=0), progress=False)) == 1


def test_training_learns_and_measuring_the_running_statistics_anew_shows_it(digits):
    """So few steps hardly move BatchNorm's running averages: without `recalibrate` the network is tested at chance."""
    part, model = digits.subset(160), fresh()
    history = train(model, part, replace(TINY, epochs=4, lam=0.0, image_size=16), progress=False)
    assert history[-1]["train_loss"] < 0.7 * history[1]["train_loss"]
    before = {name: value.clone() for name, value in model.named_parameters()}
    recalibrate(model, part.train_images, 16, batch_size=16)
    assert evaluate(model, part.test_images, part.test_labels, 16) > 0.35  # chance is 0.1
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    assert not model.training and all(bn.momentum == 0.1 for bn in batch_norms(model))


def test_the_penalty_pulls_gamma_to_0_and_the_more_the_larger_lambda_is(tiny):
    def gammas(**changes):
        model = fresh()
        train(model, tiny, replace(TINY, epochs=4, lr=3e-2, **changes), progress=False)
        return torch.cat([bn.weight.detach() for bn in batch_norms(model)]).abs()

    means = [float(gammas(lam=lam).mean()) for lam in (0.0, 1e-2, 1.0)]
    assert means[0] > means[1] + 0.02 > means[2] + 0.04
    assert (gammas(lam=5.0, penalty="proximal") == 0).float().mean() > 0.5  # exact zeros
    assert float(gammas(lam=1.0, penalty="l2").mean()) < means[0] - 0.02


def test_a_diverging_training_says_where_and_with_what(tiny):
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


def test_other_networks_train_and_go_on_with_what_they_have(tiny, tmp_path):
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
    with pytest.raises(ValueError, match=r"λ=0\.001 has nothing to act on"):
        train(network(affine=False), tiny, config, progress=False)
    train(network(affine=False), tiny, replace(config, lam=0.0, epochs=1), progress=False)
    with pytest.raises(ValueError, match="state and history go together"):
        train(network(), tiny, config, state=state, progress=False)


def test_images_and_labels_that_do_not_fit_are_refused(tiny):
    model, images, labels = fresh(), tiny.test_images, tiny.test_labels
    before = images.float().to(memory_format=torch.channels_last)
    floats = before.clone(memory_format=torch.preserve_format)
    for x, y, message in (
        (floats, labels, "images must be uint8"), (images[0], labels[:3], "images must be uint8"),
        (images, labels[:, None], "one label an image"), (images, labels[:5], "one label an image"),
        (images[:0], labels[:0], "one label an image"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            evaluate(model, x, y, 32)
    assert torch.equal(floats, before)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for images, size in ((tiny.train_images[:1], 128), (tiny.train_images[:0], 128), (tiny.train_images, 1)):
        with pytest.raises(ValueError, match="at least 2 images"):
            recalibrate(model, images, 32, size)
    assert same_tensors(model.state_dict(), state)


# runs


def test_a_finished_run_has_all_its_files_and_says_what_it_is(store, config):
    run = Runs(store, store / "none").find(config)
    assert sorted(path.name for path in run.folder.iterdir()) == NAMES
    assert run.folder.name == run.key == config.key
    assert run.config == config and run.accuracy == run.history[-1]["test_accuracy"]
    assert run.result["accuracy_before"] == run.history[0]["test_accuracy"]
    assert (run.result["parameters"], tuple(run.result["widths"])) == (4_215_130, DENSE_WIDTHS)
    assert set(run.result["environment"]) == {"hardware", "threads", "python", "torch", "torchvision", "commit", "date"}
    assert run.result["environment"]["threads"] == 1
    model = run.model()
    assert model.metadata["run"] == run.key and model.metadata["image_size"] == 8
    assert model.metadata["accuracy"] == run.accuracy and len(model.metadata["classes"]) == 10
    for unit, gamma in zip(model.blocks, run.gamma):
        assert torch.equal(unit.expand[1].weight, gamma)
    assert all(torch.equal(a, b) for a, b in zip(run.importance, score(model)))


def test_a_run_is_the_training_it_names(store, config):
    run, model = Runs(store, store / "none").find(config), fresh(config.train.seed)
    history = train(model, load_dataset(config.dataset), config.train, progress=False)
    assert timeless(history) == timeless(run.history)
    assert same_tensors(model.state_dict(), run.model().state_dict())


def test_a_finished_run_is_not_trained_again(runs, config, monkeypatch):
    monkeypatch.setattr("mnv3nb.runs.train", None)
    before = tree(runs.folder)
    assert runs.run(config).key == config.key and runs.plan([config]) == []
    assert {n: f for n, f in tree(runs.folder).items() if not n.startswith(".locks")} == before


def test_a_recorded_run_is_read_first_and_never_written(runs, store, config, monkeypatch):
    monkeypatch.setattr("mnv3nb.runs.train", None)
    shutil.copytree(store / config.key, runs.recorded / config.key)
    before = tree(runs.recorded)
    for folder in (runs.folder, runs.folder.parent / "empty"):
        found = Runs(folder, runs.recorded).run(config, model=True)
        assert found.folder == runs.recorded / config.key
        assert same_tensors(found.model().state_dict(), runs.find(config).model().state_dict())
    assert tree(runs.recorded) == before and not (runs.folder.parent / "empty").exists()


def test_a_damaged_recorded_run_is_trained_anew_elsewhere(runs, store, config, capsys):
    shutil.copytree(store / config.key, runs.recorded / config.key)
    (runs.recorded / config.key / "metrics.csv").write_text("epoch\n")
    before = tree(runs.recorded)
    other = Runs(runs.folder.parent / "empty", runs.recorded)
    assert other.run(config).folder == other.folder / config.key
    assert "skipping a damaged run" in capsys.readouterr().err and tree(runs.recorded) == before


def test_a_recorded_run_without_its_model_says_how_to_make_it(runs, store, config):
    shutil.copytree(store / config.key, runs.recorded / config.key)
    (runs.recorded / config.key / "model.safetensors").unlink()
    found = runs.run(config)
    assert found.folder.parent == runs.recorded and len(found.importance) == 15
    with pytest.raises(FileNotFoundError, match=r"recorded without its model; Runs.run\(config, model=True\) trains it"):
        found.model()
    assert runs.run(config, model=True).folder.parent == runs.folder


def test_recording_replaces_a_run_without_its_network_and_moves_a_damaged_one_aside(runs, config, capsys):
    place = runs.recorded / config.key
    assert runs.record(config).folder == place and not (place / "model.safetensors").exists()
    assert runs.record(config, model=True).folder == place and (place / "model.safetensors").exists()
    assert runs.record(config).folder == place and (place / "model.safetensors").exists()
    assert [path.name for path in runs.recorded.iterdir()] == [config.key]
    (place / "metrics.csv").write_text("epoch\n")
    runs.record(config)
    (aside,) = runs.recorded.glob(f"{config.key}.damaged-*")
    assert (aside / "model.safetensors").exists() and f"moved aside: {aside}" in capsys.readouterr().err
    assert Runs(runs.folder.parent / "empty", runs.recorded).find(config)


def test_a_run_whose_model_is_gone_is_unfinished_while_it_is_made_again(runs, store, config, monkeypatch, capsys):
    """Its old result.json would call the files that are being written damaged, and move them away."""
    (runs.folder / config.key / "model.safetensors").unlink()
    seen = []

    def spy(*args, on_epoch, **kwargs):
        def look(state, history):
            on_epoch(state, history)
            seen.append(runs.find(config))

        return train(*args, on_epoch=look, **kwargs)

    monkeypatch.setattr("mnv3nb.runs.train", spy)
    again = runs.run(config, model=True)
    (aside,) = runs.folder.glob(f"{config.key}.damaged-*")
    assert seen == [None, None] and capsys.readouterr().err == f"moved aside: {aside}; the run starts anew\n"
    assert (aside / "result.json").exists()  # what there was is kept
    assert same_tensors(again.model().state_dict(), Runs(store, store / "none").find(config).model().state_dict())
    assert sorted(path.name for path in runs.folder.iterdir()) == [".locks", config.key, aside.name]


@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_run_is_moved_aside_and_trained_anew(runs, store, config, capsys, name):
    path = runs.folder / config.key / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    damaged = {n.split("/", 1)[1]: content for n, (content, _) in tree(runs.folder).items()}
    if name != "model.safetensors":  # once is enough for the training itself
        assert runs.find(config) is None
    else:
        again, first = runs.run(config), Runs(store, store / "none").find(config)
        assert timeless(again.history) == timeless(first.history)
        assert (again.folder / name).read_bytes() == (first.folder / name).read_bytes()
    error = capsys.readouterr().err
    assert "skipping a damaged run" in error and config.key in error
    (aside,) = runs.folder.glob(f"{config.key}.damaged-*")
    assert {n: content for n, (content, _) in tree(aside).items()} == damaged


def test_an_accuracy_that_was_edited_is_not_believed(runs, config, capsys):
    path = runs.folder / config.key / "result.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps(result | {"accuracy": result["accuracy"] + 0.1}))
    assert runs.find(config) is None and "result.json: its checksum does not match" in capsys.readouterr().err


def test_a_damaged_state_is_moved_aside_and_the_run_starts_anew(store, config, tmp_path, capsys):
    (tmp_path / config.key).mkdir()
    (tmp_path / config.key / "state.safetensors").write_bytes(b"not a state")
    run = Runs(tmp_path, tmp_path / "none").run(config)
    assert "state.safetensors is not a whole safetensors file" in capsys.readouterr().err
    assert same_tensors(run.model().state_dict(), Runs(store, store / "none").find(config).model().state_dict())
    (aside,) = run.folder.glob("state.safetensors.damaged-*")
    assert aside.read_bytes() == b"not a state"


@pytest.mark.parametrize("what", ["another run's", "a network", "a folder", "too long"])
def test_a_state_of_something_else_is_moved_aside_and_the_run_starts_anew(store, config, tmp_path, capsys, monkeypatch, what):
    other, states = replace(config, train=replace(config.train, seed=config.train.seed + 1)), []
    monkeypatch.setattr(
        "mnv3nb.runs.write_state", lambda path, *args, **more: states.append(args) or write_state(path, *args, **more)
    )
    Runs(tmp_path / "other", store / "none").run(other)
    state = tmp_path / config.key / "state.safetensors"
    state.parent.mkdir()
    if what == "another run's":
        write_state(state, *states[0], threads=1, environments=[])
    elif what == "too long":
        rows = [row | {"epoch": epoch} for epoch, row in enumerate(states[0][2] * 9)]
        write_state(state, config, states[0][1], rows, threads=1, environments=[])
    elif what == "a network":
        shutil.copy(store / config.key / "model.safetensors", state)
    else:
        state.mkdir()
    run = Runs(tmp_path, tmp_path / "none").run(config)
    assert "moved aside" in capsys.readouterr().err and len(list(run.folder.glob("state.safetensors.damaged-*"))) == 1
    assert same_tensors(run.model().state_dict(), Runs(store, store / "none").find(config).model().state_dict())


def test_a_pruned_run_starts_from_its_parents_network(runs, config):
    for changes in ({"rate": 0.5}, {"rate": 0.3, "criterion": "l1", "squeeze": "keep"}, {"rate": 0.6, "multiple_of": 8}):
        child = child_of(config, **changes)
        p, parent = child.prune, runs.run(config).model()
        expected = prune(parent, keep_masks(score(parent, p.criterion), p.rate, p.multiple_of, p.min_width), p.squeeze)
        assert same_tensors(runs.network(child).state_dict(), expected.state_dict())
    scratch = runs.network(child_of(config, inherit=False))
    same_shape = runs.network(child_of(config))
    assert scratch.widths == same_shape.widths and scratch.squeeze == same_shape.squeeze
    assert same_tensors(scratch.state_dict(), fresh(config.train.seed, widths=scratch.widths).state_dict())
    assert same_tensors(runs.network(child_of(config, rate=0.0)).state_dict(), runs.run(config).model().state_dict())


def test_the_grid_makes_parents_first_and_every_run_once(runs, config, monkeypatch):
    short = replace(config, train=replace(config.train, epochs=1))
    middle = child_of(replace(short, train=replace(short.train, seed=7)))
    last = replace(middle, parent=middle, prune=PruneConfig(rate=0.1))
    plan = runs.plan([last, config, middle, last])
    assert plan == [middle.parent, middle, last]
    trained = []
    real = train
    monkeypatch.setattr("mnv3nb.runs.train", lambda *a, **k: trained.append(a[2]) or real(*a, **k))
    done = runs.run_grid([last, config, middle, last])
    assert [run.config for run in done] == [last, config, middle, last]
    assert trained == [c.train for c in plan]
    assert sum(done[0].result["widths"]) < sum(done[2].result["widths"]) < 5016


def test_a_run_that_diverges_does_not_stop_the_grid_and_its_children_are_named(runs, config):
    bad = replace(config, train=replace(config.train, lr=1e30, epochs=1))
    good = replace(config, train=replace(config.train, epochs=1))
    with pytest.raises(RuntimeError, match=r"2 run\(s\) failed:\n.*training diverged.*\n.*parent failed"):
        runs.run_grid([bad, child_of(bad), good])
    assert runs.find(good) and not runs.find(bad)
    assert not (runs.folder / bad.key / "state.safetensors").exists()


def test_the_time_left_counts_the_epochs_that_are_left(runs, config, monkeypatch):
    config, calls = replace(config, train=replace(config.train, epochs=4)), []
    whole = runs._work(config)

    def two_epochs(*args):
        calls.append(write_metrics(*args))
        if len(calls) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr("mnv3nb.runs.write_metrics", two_epochs)
    with pytest.raises(KeyboardInterrupt):
        runs.run(config)
    assert runs._work(config) == whole / 2


def test_any_executor_makes_the_same_runs(store, config, tmp_path):
    one = replace(config, train=replace(config.train, epochs=1))
    configs = [one, child_of(one)]
    runs = Runs(tmp_path / "a", tmp_path / "none")
    with ProcessPoolExecutor(2, mp_context=FORK) as executor:
        found = runs.run_grid(configs, executor)
    here = Runs(tmp_path / "b", tmp_path / "none").run_grid(configs)
    for a, b in zip(found, here):
        assert same_tensors(a.model().state_dict(), b.model().state_dict())


def test_threads_draw_the_same_networks_as_one_after_another(runs, config):
    """The random number generator is shared by all threads of a process, and Dask's workers are threads."""
    configs = [replace(config, train=replace(config.train, seed=seed)) for seed in range(12)]
    with ThreadPoolExecutor(4) as executor:
        together = list(executor.map(runs.network, configs))
    for config, model in zip(configs, together):
        assert same_tensors(model.state_dict(), fresh(config.train.seed).state_dict())


def test_a_changed_data_file_is_another_run_on_other_data(digits, tmp_path):
    runs, path = Runs(tmp_path / "runs", tmp_path / "none"), tmp_path / "d.npz"
    config = RunConfig(str(path), replace(TINY, epochs=1))
    found = []
    for start in (0, 20):
        write_npz(path, Dataset(*(getattr(digits, key)[start : start + 20] for key in KEYS), digits.classes))
        found.append(runs.run(config))
    model = fresh(config.train.seed)
    history = train(model, load_dataset(path), config.train, progress=False)
    assert found[0].folder != found[1].folder == runs.folder / config.key
    assert timeless(history) == timeless(found[1].history) != timeless(found[0].history)


def test_moved_data_are_the_same_run_and_other_classes_are_not(digits, tmp_path):
    runs = Runs(tmp_path / "runs", tmp_path / "none")
    one, two, three = (str(tmp_path / f"{name}.npz") for name in ("one", "two", "three"))
    small = Dataset(*(getattr(digits, key)[:20] for key in KEYS), digits.classes)
    write_npz(one, small)
    first = runs.run(RunConfig(one, replace(TINY, epochs=1)))
    os.rename(one, two)
    second = runs.run(replace(first.config, dataset=two))
    assert second.folder == first.folder and second.config.dataset == two
    assert runs.network(replace(second.config, parent=second.config, prune=PruneConfig(0.5))).num_classes == 10
    write_npz(three, replace(small, classes=(*digits.classes, "none of them")))
    assert replace(first.config, dataset=three).key != second.key


def test_a_run_goes_on_with_the_number_of_threads_that_it_began_with(store, config, runs, monkeypatch):
    """Another number would change the last bits."""
    shutil.rmtree(runs.folder)
    real, begun = train, []

    def stop(*args, on_epoch, **kwargs):
        def after(state, history):
            on_epoch(state, history)
            raise KeyboardInterrupt

        return real(*args, on_epoch=after, **kwargs)

    def spy(*args, **kwargs):
        begun.append(torch.get_num_threads())
        return real(*args, **kwargs)

    monkeypatch.setattr("mnv3nb.runs.train", stop)
    with pytest.raises(KeyboardInterrupt):
        runs.run(config)
    monkeypatch.setattr("mnv3nb.runs.train", spy)
    torch.set_num_threads(3)
    try:
        run = runs.run(config)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)
    assert begun == [1] == [run.result["environment"]["threads"]]
    assert same_tensors(run.model().state_dict(), Runs(store, store / "none").find(config).model().state_dict())


def test_a_damaged_run_stays_where_it_is_while_a_process_is_at_work_in_it(runs, config, capsys):
    (runs.folder / config.key / "metrics.csv").write_text("")
    with runs._lock(config.key):
        assert runs.find(config) is None and (runs.folder / config.key).is_dir()
    assert runs.find(config) is None and not (runs.folder / config.key).is_dir()
    assert len(list(runs.folder.glob(f"{config.key}.damaged-*"))) == 1


def test_a_grid_first_trains_the_parents_that_were_recorded_without_their_networks(runs, store, config, monkeypatch):
    shutil.copytree(store / config.key, runs.recorded / config.key)
    (runs.recorded / config.key / "model.safetensors").unlink()
    shutil.rmtree(runs.folder)
    done, real = [], Runs.run
    monkeypatch.setattr(Runs, "run", lambda self, c, model=False: done.append((c.key, model)) or real(self, c, model))
    children = [child_of(config, rate=rate) for rate in (0.3, 0.6)]
    runs.run_grid(children)
    assert done[0] == (config.key, True)
    assert real(runs, config, True).folder == runs.folder / config.key


def test_a_number_of_workers_that_is_none_is_refused(runs, config, monkeypatch):
    for value in ("abc", "0", "-1", ""):
        monkeypatch.setenv("MNV3NB_WORKERS", value)
        with pytest.raises(ValueError, match="MNV3NB_WORKERS must be a whole number ≥ 1"):
            runs.run_grid([config])


# other processes


posix = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills as POSIX has them")


@posix
def test_killed_in_random_epochs_parent_and_child_end_with_the_same_bits(config, tmp_path):
    parent = replace(config, train=replace(config.train, epochs=4, augment="crop"))
    child = child_of(parent, rate=0.4)
    clean, killed = tmp_path / "clean", tmp_path / "killed"
    whole = FORK.Process(target=train_run, args=(clean, child, tmp_path / "errors"))
    whole.start()
    rng, kills, epochs = random.Random(3), 0, set()
    while True:
        victim = FORK.Process(target=train_run, args=(killed, child, tmp_path / "errors"))
        victim.start()
        if kills < 5:
            # let it come one or two epochs further, then a random moment more: no attempt is in vain
            goal, deadline = progress(killed, parent, child) + rng.randint(1, 2), time.monotonic() + 60
            while victim.is_alive() and progress(killed, parent, child) < goal and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.3))
            victim.kill()
        victim.join()
        if victim.exitcode == 0:
            break
        assert victim.exitcode == -signal.SIGKILL
        kills += 1
        epochs.add(progress(killed, parent, child))
    whole.join()
    assert whole.exitcode == 0 and kills >= 4 and len(epochs) >= 4
    for config in (parent, child):
        one, two = (Runs(folder, folder / "none").find(config) for folder in (clean, killed))
        assert timeless(one.history) == timeless(two.history)
        assert (one.folder / "model.safetensors").read_bytes() == (two.folder / "model.safetensors").read_bytes()
        assert sorted(path.name for path in two.folder.iterdir()) == NAMES


def progress(folder, *configs: RunConfig) -> int:
    """Epochs that the metrics of these runs list."""
    files = [folder / config.key / "metrics.csv" for config in configs]
    return sum(len(file.read_text().splitlines()) - 2 for file in files if file.exists())


@posix
def test_of_two_processes_on_one_run_one_waits_and_both_find_the_same_result(config, tmp_path):
    long = replace(config, train=replace(config.train, epochs=4))
    processes = [FORK.Process(target=train_run, args=(tmp_path, long, tmp_path / f"errors{i}")) for i in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    said = sorted((tmp_path / f"errors{i}").read_text() for i in range(2))
    assert said[0] == "" and said[1] == f"run {long.key} ({long.label}): another process works on it; waiting\n"
    run = Runs(tmp_path, tmp_path / "none").find(long)
    assert len(run.history) == 5 and sorted(path.name for path in run.folder.iterdir()) == NAMES
    assert json.loads((run.folder / "config.json").read_text())["key"] == long.key
    assert not list(tmp_path.glob("*.damaged-*"))


def test_accuracies_are_shares_of_whole_test_images(store, config):
    run = Runs(store, store / "none").find(config)
    for row in run.history:
        assert math.isclose(row["test_accuracy"] * 24, round(row["test_accuracy"] * 24), abs_tol=1e-9)


def test_a_subset_holds_out_training_images_for_choices(digits):
    part = digits.subset(100, holdout=200)
    assert len(part.train_images) == 100 and torch.equal(part.test_images, digits.train_images[-200:])
    assert torch.equal(part.train_labels, digits.train_labels[:100])
    assert isinstance(part, Dataset) and part.checksum != digits.checksum
    for bad in ({"train_images": 0}, {"train_images": 1438}, {"holdout": 1437}, {"train_images": 1300, "holdout": 200}):
        with pytest.raises(ValueError, match="does not fit 1437 training images"):
            digits.subset(**bad)
