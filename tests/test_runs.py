"""Runs on disk and grids of them: found again, trained once, resumed exactly, recorded; damage is named."""

import json
import math
import os
import shutil
import signal
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from support import FORK, TINY, child_of, fresh, same_tensors, timeless, train_run, tree, write_npz

from mnv3nb import DENSE_WIDTHS, Dataset, blocks, keep_masks, load_dataset, prune, score, train
from mnv3nb.data.batches import SPLITS
from mnv3nb.model import STRIDES
from mnv3nb.runs import grid
from mnv3nb.runs.config import NetworkConfig, PruneConfig, RunConfig
from mnv3nb.runs.find_or_train import Runs
from mnv3nb.runs.folder import FILES, RunFolder, State, lock_run, other_formats
from mnv3nb.runs.grid import Pace, plan, run_grid, work_left
from mnv3nb.runs.profiles import EXPERIMENTS, LATENCY, LONE_GAMMAS, PROFILES, TRIALS, get_profile
from mnv3nb.runs.record import record
from mnv3nb.system.device import environment

TRAIN = "mnv3nb.runs.find_or_train.train"


@pytest.fixture(scope="module")
def config(tiny_npz) -> RunConfig:
    return RunConfig(tiny_npz, TINY)


@pytest.fixture(scope="module")
def finished(config, tmp_path_factory):
    """The only run of a folder, trained without interruption."""
    folder = tmp_path_factory.mktemp("store")
    return Runs(folder, folder / "none").run(config)


@pytest.fixture
def runs(finished, tmp_path) -> Runs:
    """A copy of that folder, which a test may change."""
    shutil.copytree(finished.folder.parent, tmp_path / "runs", ignore=shutil.ignore_patterns(".locks"))
    return Runs(tmp_path / "runs", tmp_path / "recorded")


@pytest.fixture
def recorded(runs, config):
    """The finished run's folder among the recorded ones, and nothing elsewhere."""
    runs.recorded.mkdir()
    return (runs.folder / config.key).rename(runs.recorded / config.key)


def same_network(run, other) -> bool:
    return same_tensors(run.model().state_dict(), other.model().state_dict())


def visible(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".locks")


# names


def test_the_names_of_runs_never_change():
    """A changed name would hide old runs, or find others in their place. Raise FORMAT instead."""
    assert get_profile("cifar").sparse_config().key == "eca80e4fd4d3"
    assert get_profile("cifar").pruned_config(0.5).key == "f200cb8d5150"
    assert get_profile("gpu").sparse_config().key == "a03fc651d62a"
    assert get_profile("digits").sparse_config().key == "8c701577c409"


def test_a_network_as_in_the_paper_does_not_change_the_name(config):
    assert replace(config, network=NetworkConfig()).key == config.key
    assert replace(config, network=NetworkConfig(initial="torch")).key != config.key
    assert replace(config, network=NetworkConfig(strides=STRIDES)).key != config.key


@pytest.mark.parametrize("name", PROFILES)
def test_every_experiment_of_a_profile_is_a_list_of_runs(name):
    profile = PROFILES[name]
    may_be_empty = ("second", "second_half", "pilots")
    for experiment in EXPERIMENTS:
        configs = profile.experiment(experiment, 1)
        assert configs or experiment in may_be_empty
        assert all(config.train.seed % 1000 == 1 for config in configs)
        assert profile.experiment(experiment, 1) == configs
        assert not configs or configs != profile.experiment(experiment, 2)


def test_every_profile_has_all_of_its_numbers():
    assert set(LATENCY) == set(TRIALS) == set(LONE_GAMMAS) == set(PROFILES)
    assert all(profile.name == name for name, profile in PROFILES.items())


def test_every_experiment_describes_itself():
    assert all(make.__doc__ for make in EXPERIMENTS.values())


def test_a_plan_trains_its_experiments_for_its_seeds_in_its_order():
    p = get_profile("cifar")
    planned = p.planned()
    first = [*p.experiment("plain_and_sparse"), *p.experiment("half"), *p.experiment("plain_and_sparse", 1)]
    assert planned[: len(first)] == first
    assert p.planned(1) == [config for config in planned if config.train.seed == 1]
    assert [config.train.seed for config in p.planned(7)] == [7] * len(p.planned(2))


def test_some_runs_are_shipped_with_their_networks():
    p = get_profile("cifar")
    with_network = [
        p.sparse_config(),
        p.sparse_config(seed=2),
        p.sparse_config(0.0),
        p.sparse_config(3e-4),  # kills most filters at no loss
        p.sparse_config(dataset="cifar100"),
        p.pruned_config(0.0),
        p.pruned_config(0.5),
        p.pruned_config(0.5, multiple_of=16),
    ]
    assert all(map(p.ships_network, with_network))
    without = [
        p.sparse_config(0.0, seed=1),
        p.pruned_config(0.5, seed=1),
        p.pruned_config(0.3),
        p.sparse_config(p.huge_lam),
    ]
    assert not any(map(p.ships_network, without))


# one run


def test_a_finished_run_has_all_its_files_and_describes_itself(finished, config):
    run = Runs(finished.folder.parent, finished.folder.parent / "none").find(config)
    assert sorted(path.name for path in run.folder.iterdir()) == sorted(FILES)
    assert run.folder.name == run.key == config.key
    assert run.config == config and run.accuracy == run.history[-1]["test_accuracy"]
    assert run.result["accuracy_before"] == run.history[0]["test_accuracy"] and run.result["accuracy_folded"] is None
    assert (run.result["parameters"], tuple(run.result["widths"])) == (4_215_130, DENSE_WIDTHS)
    assert set(run.result["environment"]) == {
        *("hardware", "threads", "python", "torch", "torchvision", "commit", "date"),
    }
    assert run.result["environment"]["threads"] == 1
    model = run.model()
    assert model.metadata["run"] == run.key and model.metadata["image_size"] == 8
    assert model.metadata["accuracy"] == run.accuracy and len(model.metadata["classes"]) == 10
    assert all(torch.equal(block.expand_bn.weight, gamma) for block, gamma in zip(blocks(model), run.gamma))
    assert all(torch.equal(a, b) for a, b in zip(run.importance, score(model)))
    for row in run.history:  # shares of the 24 test images
        assert math.isclose(row["test_accuracy"] * 24, round(row["test_accuracy"] * 24), abs_tol=1e-9)


def test_a_run_is_the_training_it_names(finished, config):
    model = fresh(config.train.seed)
    history = train(model, load_dataset(config.dataset), config.train, progress=False)
    assert timeless(history) == timeless(finished.history)
    assert same_tensors(model.state_dict(), finished.model().state_dict())


def test_a_finished_run_is_not_trained_again(runs, config, monkeypatch):
    monkeypatch.setattr(TRAIN, None)
    before = tree(runs.folder)
    assert runs.run(config).key == config.key and plan(runs, [config]) == []
    assert tree(runs.folder) == before


def test_a_recorded_run_is_read_first_and_never_written(runs, finished, config, monkeypatch):
    monkeypatch.setattr(TRAIN, None)
    shutil.copytree(finished.folder, runs.recorded / config.key)
    before = tree(runs.recorded)
    for folder in (runs.folder, runs.folder.parent / "empty"):
        found = Runs(folder, runs.recorded).run(config, model=True)
        assert found.folder == runs.recorded / config.key and same_network(found, finished)
    assert tree(runs.recorded) == before and not (runs.folder.parent / "empty").exists()


def test_a_damaged_recorded_run_is_trained_anew_elsewhere(runs, recorded, config, capsys):
    (recorded / "metrics.csv").write_text("epoch\n")
    before = tree(runs.recorded)
    assert runs.run(config).folder == runs.folder / config.key
    assert "skipping a damaged run" in capsys.readouterr().err and tree(runs.recorded) == before


def test_a_recorded_run_without_its_model_says_how_to_make_it(runs, recorded, config):
    (recorded / "model.safetensors").unlink()
    found = runs.run(config)
    assert found.folder == recorded and len(found.importance) == 15
    with pytest.raises(FileNotFoundError, match=r"recorded without its model; Runs.run\(config, model=True\) trains"):
        found.model()
    assert runs.run(config, model=True).folder.parent == runs.folder


def test_a_run_whose_model_is_gone_is_unfinished_while_it_is_trained_again(runs, finished, config, monkeypatch, capsys):
    """Its old result.json would call the files that are being written damaged."""
    (runs.folder / config.key / "model.safetensors").unlink()
    seen = []

    def spy(*args, on_epoch, **kwargs):
        def look(state, history):
            on_epoch(state, history)
            seen.append(runs.find(config))

        return train(*args, on_epoch=look, **kwargs)

    monkeypatch.setattr(TRAIN, spy)
    again = runs.run(config, model=True)
    (aside,) = runs.folder.glob(f"{config.key}.damaged-*")
    assert seen == [None, None] and capsys.readouterr().err == f"moved aside: {aside}; the run starts anew\n"
    assert (aside / "result.json").exists()  # what there was is kept
    assert same_network(again, finished) and visible(runs.folder) == [config.key, aside.name]


@pytest.mark.parametrize("name", ["metrics.csv", "model.safetensors"])
def test_a_damaged_run_is_moved_aside_and_trained_anew(runs, finished, config, capsys, name):
    path = runs.folder / config.key / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    damaged = tree(runs.folder / config.key)
    again = runs.run(config, model=True)
    assert timeless(again.history) == timeless(finished.history) and same_network(again, finished)
    error = capsys.readouterr().err
    (aside,) = runs.folder.glob(f"{config.key}.damaged-*")
    assert "skipping a damaged run" in error and str(path) in error and f"moved aside: {aside}" in error
    assert tree(aside) == damaged


def test_an_accuracy_that_was_edited_is_not_believed(runs, config, capsys):
    path = runs.folder / config.key / "result.json"
    result = json.loads(path.read_text())
    path.write_text(json.dumps(result | {"accuracy": result["accuracy"] + 0.1}))
    assert runs.find(config) is None and "result.json: its checksum does not match" in capsys.readouterr().err


def test_reading_a_run_leaves_its_network_alone_until_it_is_needed(runs, config):
    path = runs.folder / config.key / "model.safetensors"
    path.write_bytes(b"damaged")
    assert runs.find(config) and runs.find(config, model=True) is None
    with pytest.raises(ValueError, match=r"model\.safetensors is not a whole safetensors file"):
        runs.find(config).model()


@pytest.mark.parametrize("what", ["no state", "another run's", "a network", "another network's", "a folder"])
def test_a_state_of_something_else_is_moved_aside_and_the_run_starts_anew(finished, config, tmp_path, capsys, what):
    state = tmp_path / config.key / "state.safetensors"
    state.parent.mkdir()
    tensors = {f"model.{name}": value for name, value in fresh().state_dict().items()}
    if what == "no state":
        state.write_bytes(b"not a state")
    elif what == "another run's":
        other = RunFolder(tmp_path / child_of(config).key)
        other.save_epoch(State(tensors, finished.history))
        shutil.copy(other.path / "state.safetensors", state)
    elif what == "another network's":
        narrow = {name: value[:1] if value.ndim else value for name, value in tensors.items()}
        RunFolder(state.parent).save_epoch(State(narrow, finished.history))
    elif what == "a network":
        shutil.copy(finished.folder / "model.safetensors", state)
    else:
        state.mkdir()
    run = Runs(tmp_path, tmp_path / "none").run(config)
    assert "moved aside" in capsys.readouterr().err and len(list(run.folder.glob("state.safetensors.damaged-*"))) == 1
    assert same_network(run, finished)


def test_a_pruned_run_starts_from_its_parents_network(runs, config):
    parent = runs.run(config).model()
    for changes in (
        {"rate": 0.5},
        {"rate": 0.3, "criterion": "l1", "squeeze": "keep"},
        {"rate": 0.6, "multiple_of": 8},
    ):
        child = child_of(config, **changes)
        p = child.prune
        expected = prune(parent, keep_masks(score(parent, p.criterion), p.rate, p.multiple_of), p.squeeze)
        assert same_tensors(runs.network(child).state_dict(), expected.state_dict())
    scratch, same_shape = runs.network(child_of(config, inherit=False)), runs.network(child_of(config))
    assert scratch.widths == same_shape.widths and scratch.squeeze == same_shape.squeeze
    assert same_tensors(scratch.state_dict(), fresh(config.train.seed, widths=scratch.widths).state_dict())
    assert same_tensors(runs.network(child_of(config, rate=0.0)).state_dict(), parent.state_dict())


def test_filters_can_compete_within_their_layers(runs, config):
    child = child_of(config, rate=0.5, ranking="layer")
    shares = [width / dense for width, dense in zip(runs.network(child).widths, DENSE_WIDTHS)]
    assert all(abs(share - 0.5) < 0.07 for share in shares)


def test_a_changed_data_file_makes_another_run(digits, tmp_path):
    runs, path = Runs(tmp_path / "runs", tmp_path / "none"), tmp_path / "d.npz"
    config = RunConfig(str(path), replace(TINY, epochs=1))
    found = []
    for start in (0, 20):
        write_npz(path, Dataset(*(getattr(digits, key)[start : start + 20] for key in SPLITS), digits.classes))
        found.append(runs.run(config))
    model = fresh(config.train.seed)
    history = train(model, load_dataset(path), config.train, progress=False)
    assert found[0].folder != found[1].folder == runs.folder / config.key
    assert timeless(history) == timeless(found[1].history) != timeless(found[0].history)


def test_a_run_is_found_after_its_data_have_moved_but_not_for_other_classes(digits, tmp_path):
    runs = Runs(tmp_path / "runs", tmp_path / "none")
    one, two, three = (str(tmp_path / f"{name}.npz") for name in ("one", "two", "three"))
    small = Dataset(*(getattr(digits, key)[:20] for key in SPLITS), digits.classes)
    write_npz(one, small)
    first = runs.run(RunConfig(one, replace(TINY, epochs=1)))
    os.rename(one, two)
    second = runs.run(replace(first.config, dataset=two))
    assert second.folder == first.folder and second.config.dataset == two
    assert runs.network(child_of(second.config)).num_classes == 10
    write_npz(three, replace(small, classes=(*digits.classes, "none of them")))
    assert replace(first.config, dataset=three).key != second.key


def test_a_run_resumes_with_the_number_of_threads_that_it_began_with(finished, config, tmp_path, monkeypatch):
    """Another number would change the last bits."""
    runs, begun = Runs(tmp_path, tmp_path / "none"), []

    def stop(*args, on_epoch, **kwargs):
        def after(state, history):
            on_epoch(state, history)
            raise KeyboardInterrupt

        return train(*args, on_epoch=after, **kwargs)

    def spy(*args, **kwargs):
        begun.append(torch.get_num_threads())
        return train(*args, **kwargs)

    monkeypatch.setattr(TRAIN, stop)
    with pytest.raises(KeyboardInterrupt):
        runs.run(config)
    assert work_left(runs, config) == (48 + 24 // 3) * 8**2  # one epoch of two
    monkeypatch.setattr(TRAIN, spy)
    torch.set_num_threads(3)
    try:
        run = runs.run(config)
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(1)
    assert begun == [1] == [run.result["environment"]["threads"]]
    assert same_network(run, finished)


def test_a_run_resumed_elsewhere_names_both_environments(config, tmp_path, monkeypatch):
    runs = Runs(tmp_path, tmp_path / "none")
    save_epoch = RunFolder.save_epoch

    def stop(folder, state):
        save_epoch(folder, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolder, "save_epoch", stop)
        there = {"hardware": "another machine"}
        patch.setattr("mnv3nb.runs.find_or_train.environment", lambda device: environment(device) | there)
        runs.run(config)
    result = runs.run(config).result
    (earlier,) = result["earlier_environments"]
    assert "another machine" in earlier["hardware"] and "another machine" not in result["environment"]["hardware"]


def test_a_run_with_other_strides_and_initial_weights_is_trained_stored_and_found(config, tmp_path):
    strides = (*STRIDES[:12], 1, *STRIDES[13:])  # the last block of stride 2 gets stride 1
    network = NetworkConfig(strides=strides, initial="torch")
    changed = replace(config, train=replace(config.train, epochs=1), network=network)
    runs = Runs(tmp_path, tmp_path / "none")
    run = runs.run(changed)
    assert run.model().strides == strides != STRIDES
    assert RunFolder(run.folder).read().config == runs.find(changed, model=True).config == changed
    expected = fresh(config.train.seed, strides=strides, initial="torch")
    assert same_tensors(runs.network(changed).state_dict(), expected.state_dict())
    assert not same_tensors(runs.network(changed).state_dict(), runs.network(config).state_dict())
    for inherit in (True, False):  # a pruned run has its parent's strides
        child = RunConfig(config.dataset, changed.train, changed, PruneConfig(0.5, inherit=inherit))
        assert runs.network(child).strides == strides


# recording


def test_recording_replaces_a_run_without_its_network_and_moves_a_damaged_one_aside(runs, finished, config, capsys):
    place = runs.recorded / config.key
    for model in (False, True, False):
        assert record(runs, config, model).folder == place
    result = runs.find(config, model=True).result
    assert result["stored_correct_1000"] == round(24 * result["stored_accuracy"])
    assert (place / "model.safetensors").stat().st_size < 0.55 * (finished.folder / "model.safetensors").stat().st_size
    assert visible(runs.recorded) == [config.key]
    (place / "metrics.csv").write_text("epoch\n")
    record(runs, config)
    (aside,) = runs.recorded.glob(f"{config.key}.damaged-*")
    assert (aside / "model.safetensors").exists() and f"moved aside: {aside}" in capsys.readouterr().err
    assert Runs(runs.folder.parent / "empty", runs.recorded).find(config)


def test_runs_of_another_format_are_named_and_those_of_this_format_are_not(runs, config):
    other = runs.folder / "0123456789ab"
    shutil.copytree(runs.folder / config.key, other)
    assert other_formats(runs.folder) == []
    stored = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(stored | {"format": 2}))
    (runs.folder / "notes").mkdir()
    (runs.folder / "notes" / "config.json").write_text("[]")
    assert other_formats(runs.folder) == ["0123456789ab"] and other_formats(runs.folder / "none") == []


# grids


def test_a_grid_trains_parents_first_and_every_run_once(runs, config, monkeypatch):
    short = replace(config, train=replace(config.train, epochs=1))
    middle = child_of(replace(short, train=replace(short.train, seed=7)))
    last = replace(middle, parent=middle, prune=PruneConfig(rate=0.1))
    wanted = [last, config, middle, last]
    planned = plan(runs, wanted)
    assert planned == [middle.parent, middle, last]
    trained, finished = [], []
    monkeypatch.setattr(TRAIN, lambda *args, **more: trained.append(args[2]) or train(*args, **more))
    made = run_grid(runs, wanted, done=lambda run: finished.append(run.config))
    assert [run.config for run in made] == wanted
    assert trained == [c.train for c in planned] and finished == planned
    assert sum(made[0].result["widths"]) < sum(made[2].result["widths"]) < 5016
    assert isinstance(made[0].result["accuracy_folded"], float)


def test_a_run_that_diverges_does_not_stop_the_grid_and_its_children_are_named(runs, config):
    bad = replace(config, train=replace(config.train, lr=1e30, epochs=1))
    good = replace(config, train=replace(config.train, epochs=1))
    message = r"2 run\(s\) failed:\n.*training diverged.*λ=0.001, lr=.*\n.*parent failed"
    with pytest.raises(RuntimeError, match=message):
        run_grid(runs, [bad, child_of(bad), good])
    assert runs.find(good) and not runs.find(bad)
    assert not (runs.folder / bad.key / "state.safetensors").exists()


def test_any_executor_trains_the_same_runs(config, tmp_path, monkeypatch):
    monkeypatch.setenv("MNV3NB_HOME", str(tmp_path / "worker"))
    one = replace(config, train=replace(config.train, epochs=1))
    configs = [one, child_of(one)]
    with ProcessPoolExecutor(2, mp_context=FORK) as executor:
        found = run_grid(Runs(tmp_path / "a", tmp_path / "none"), configs, executor)
    here = run_grid(Runs(tmp_path / "b", tmp_path / "none"), configs)
    assert all(same_network(a, b) for a, b in zip(found, here))


def test_with_few_workers_the_most_valuable_runs_start_first(config, monkeypatch):
    """A child comes before the roots that are listed after it, as soon as its parent is there."""
    first, second = config, replace(config, train=replace(config.train, seed=5))
    child = child_of(first)
    waiting = {c.key: c for c in (first, child, second)}
    assert grid._ready(waiting, []) == [first, second]
    del waiting[first.key]
    assert grid._ready(waiting, [first]) == [second]
    assert grid._ready(waiting, []) == [child, second]


def test_time_left_is_estimated_from_the_runs_that_have_finished():
    """Three equal runs of 10 s, and one of 20 s, on two workers: 25 s in all."""
    pace = Pace({"a": 100, "b": 100, "c": 100, "d": 200}, workers=2)
    pace.begin("a", 0.0)
    pace.begin("b", 0.0)
    assert pace.seconds_left(["c", "d"], ["a", "b"], 9.0) is None  # nothing to say before the first has finished
    pace.end("a", 10.0)
    assert pace.seconds_left(["c", "d"], ["b"], 10.0) == 20.0  # b ends now; d alone takes 20 s
    pace.begin("d", 10.0)
    pace.end("b", 10.0)
    assert pace.seconds_left(["c"], ["d"], 10.0) == 20.0
    pace.begin("c", 10.0)
    assert pace.seconds_left([], ["c", "d"], 18.0) == 12.0
    pace.end("c", 20.0)
    pace.end("d", 30.0)
    assert pace.seconds_left([], [], 30.0) is None


def test_time_left_is_shared_by_the_workers():
    pace = Pace({str(i): 50 for i in range(9)}, workers=4)
    pace.begin("0", 100.0)
    pace.end("0", 105.0)
    assert pace.seconds_left([str(i) for i in range(1, 9)], [], 105.0) == 10.0


def test_a_grid_tells_the_time_left_after_all_but_the_last_run(config, tmp_path, capsys):
    seeds = [replace(config, train=replace(config.train, epochs=0, seed=seed)) for seed in range(3)]
    run_grid(Runs(tmp_path, tmp_path / "none"), seeds)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("run ")]
    assert [line.startswith(f"run {number}/3 ") for number, line in enumerate(lines, 1)] == [True] * 3
    assert ["left" in line for line in lines] == [True, True, False]


def test_threads_draw_the_same_networks_as_one_after_another(runs, config):
    """All threads of a process share the random number generator, and Dask's workers are threads."""
    configs = [replace(config, train=replace(config.train, seed=seed)) for seed in range(8)]
    with ThreadPoolExecutor(4) as executor:
        together = list(executor.map(runs.network, configs))
    for config, model in zip(configs, together):
        assert same_tensors(model.state_dict(), fresh(config.train.seed).state_dict())


def test_a_grid_first_trains_the_parents_that_were_recorded_without_their_networks(runs, recorded, config, capsys):
    (recorded / "model.safetensors").unlink()
    children = [child_of(config, rate=rate) for rate in (0.3, 0.6)]
    assert plan(runs, children) == [config, *children]
    run_grid(runs, children[:1])
    assert "run 1/2" in capsys.readouterr().out
    assert runs.run(config, model=True).folder == runs.folder / config.key and runs.run(config).folder == recorded


def test_a_wrong_number_of_workers_is_refused(runs, config, monkeypatch):
    for value in ("abc", "0", "-1", ""):
        monkeypatch.setenv("MNV3NB_WORKERS", value)
        with pytest.raises(ValueError, match="MNV3NB_WORKERS must be an integer ≥ 1"):
            run_grid(runs, [config])


# other processes


posix = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills as POSIX has them")


@posix
def test_of_two_processes_on_one_run_one_waits_and_both_find_the_same_result(config, tmp_path):
    long = replace(config, train=replace(config.train, epochs=4))
    processes = [FORK.Process(target=train_run, args=(tmp_path, long, tmp_path / f"errors{i}")) for i in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    texts = sorted((tmp_path / f"errors{i}").read_text() for i in range(2))
    assert texts == ["", f"run {long.key} ({long.label}): another process works on it; waiting\n"]
    run = Runs(tmp_path, tmp_path / "none").run(long)
    assert len(run.history) == 5 and sorted(path.name for path in run.folder.iterdir()) == sorted(FILES)
    assert json.loads((run.folder / "config.json").read_text())["key"] == long.key
    assert not list(tmp_path.glob("*.damaged-*"))


def test_a_locked_run_is_left_to_its_process(runs, config, tmp_path):
    """A damaged run is moved aside by the process that trains it anew, and by nobody else."""
    (runs.folder / config.key / "metrics.csv").write_text("")
    with lock_run(runs.folder, config.key):
        assert runs.find(config) is None and (runs.folder / config.key).is_dir()


def test_a_run_cannot_hold_out_images_that_its_parent_trained_on():
    parent = RunConfig("digits")
    with pytest.raises(ValueError, match="the parent trained on images that this run holds out"):
        RunConfig("digits", parent=parent, prune=PruneConfig(), holdout=100)


def test_a_shape_trained_from_scratch_draws_its_weights_as_its_parent_did(tiny_npz, tmp_path):
    runs = Runs(tmp_path, tmp_path / "none")
    parent = RunConfig(tiny_npz, replace(TINY, epochs=0), network=NetworkConfig(initial="torch"))
    cut = PruneConfig(rate=0.0, inherit=False)
    child = replace(parent, parent=parent, prune=cut, network=NetworkConfig())
    assert same_tensors(runs.network(child).state_dict(), runs.network(parent).state_dict())
