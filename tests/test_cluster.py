"""Grids on Dask and other executors: runs come home, a worker is killed, versions or data differ, no scheduler answers."""

import os
import re
import shutil
import signal
import threading
import time
from concurrent.futures import CancelledError, Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import dask
import pytest
from distributed import Client, KilledWorker, Nanny, Scheduler, SpecCluster
from support import TINY, child_of, same_tensors, timeless, tree

from mnv3nb.__main__ import main
from mnv3nb.runs import cluster
from mnv3nb.runs.cluster import RemoteWorkers, check_versions, connect, train_on_worker, versions
from mnv3nb.runs.config import RunConfig
from mnv3nb.runs.find_or_train import Runs
from mnv3nb.runs.folder import FILES, Run, RunFolder
from mnv3nb.runs.grid import run_grid

posix = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kills as POSIX has them")


@pytest.fixture(scope="module")
def homes(tmp_path_factory) -> list[Path]:
    """`$MNV3NB_HOME` of the two workers."""
    return [tmp_path_factory.mktemp(f"worker{i}") for i in range(2)]


@pytest.fixture(scope="module")
def address(homes):
    """A scheduler and two worker processes of one thread, on the loopback interface."""
    local = {"host": "127.0.0.1", "dashboard": False}
    workers = {
        i: {"cls": Nanny, "options": local | {"nthreads": 1, "memory_limit": 0, "env": {"MNV3NB_HOME": str(home)}}}
        for i, home in enumerate(homes)
    }
    scheduler = {"cls": Scheduler, "options": local | {"port": 0}}
    with SpecCluster(workers=workers, scheduler=scheduler) as made:
        yield made.scheduler_address


@pytest.fixture(scope="module")
def configs(tiny_npz) -> list[RunConfig]:
    """A run and its child, and a longer run and its child."""
    one = RunConfig(tiny_npz, replace(TINY, epochs=1))
    long = RunConfig(tiny_npz, replace(TINY, epochs=12, seed=1))
    return [one, child_of(one), long, replace(child_of(long, rate=0.6), train=one.train)]


@pytest.fixture(scope="module")
def reference(configs, tmp_path_factory):
    """The same grid, trained here."""
    folder = tmp_path_factory.mktemp("here")
    return run_grid(Runs(folder, folder / "none", progress=False), configs)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != ".locks")


def kill_once(homes: list[Path], key: str, pids: dict[Path, int], killed: list[Path]) -> None:
    """SIGKILL to the worker that has finished an epoch of run `key`."""
    deadline = time.monotonic() + 120
    while not killed and time.monotonic() < deadline:
        for home in homes:
            if (home / "runs" / key / "state.safetensors").exists():
                os.kill(pids[home], signal.SIGKILL)
                killed.append(home)
        time.sleep(0.01)


@posix
@pytest.mark.slow
def test_runs_come_home_from_workers_with_homes_of_their_own_although_one_is_killed(
    address, homes, configs, reference, tmp_path, capsys
):
    runs = Runs(tmp_path / "runs", tmp_path / "none")
    shutil.copytree(reference[0].folder, runs.folder / configs[0].key)
    before = tree(runs.folder)
    killed = []
    with connect(address) as executor:
        with Client(address) as client:
            found = client.run(lambda: (os.environ["MNV3NB_HOME"], os.getpid()))
            pids = {Path(home): pid for home, pid in found.values()}
        killer = threading.Thread(target=kill_once, args=(homes, configs[2].key, pids, killed))
        killer.start()
        made = run_grid(runs, configs, executor)
        killer.join()
    assert len(killed) == 1 and killed[0] in homes
    assert names(runs.folder) == sorted(config.key for config in configs)
    assert {name: content for name, content in tree(runs.folder).items() if name in before} == before
    for run, other in zip(made, reference):
        assert names(runs.folder / run.key) == sorted(FILES)
        assert same_tensors(run.model().state_dict(), other.model().state_dict())
        assert timeless(run.history) == timeless(other.history)
    assert not any((home / "runs" / configs[0].key).exists() for home in homes)  # the parent came with the child
    assert re.findall(r"run (\d)/3", capsys.readouterr().out) == ["1", "2", "3"]


@pytest.mark.slow
def test_a_worker_with_the_callers_home_resumes_there_and_nothing_is_stored_twice(
    configs, reference, tmp_path, monkeypatch
):
    monkeypatch.setenv("MNV3NB_HOME", str(tmp_path))
    monkeypatch.setattr(RunFolder, "keep", None)  # what comes home is there
    runs = Runs(progress=False)
    long = configs[2]

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolder, "finish", interrupt)
        runs.run(long)
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "save_epoch", None)  # no epoch is left to train
        (run,) = run_grid(runs, [long], Fake(call))
    assert run.folder == tmp_path / "runs" / long.key and names(run.folder) == sorted(FILES)
    assert same_tensors(run.model().state_dict(), reference[2].model().state_dict())


@pytest.mark.slow
def test_the_command_trains_on_a_scheduler(address, homes, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MNV3NB_HOME", str(tmp_path))
    assert main(["grid", "--profile", "smoke", "--only", "plain_and_sparse", "--scheduler", address]) == 0
    assert "run 2/2" in capsys.readouterr().out and len(names(tmp_path / "runs")) == 2


# bad input


def test_other_versions_are_one_message_before_anything_starts(address, monkeypatch, tmp_path, capsys):
    def elsewhere(*_):
        raise ModuleNotFoundError("No module named 'mnv3nb'")

    monkeypatch.setenv("MNV3NB_HOME", str(tmp_path))
    monkeypatch.setattr(cluster, "__version__", "0.0.1")
    monkeypatch.setattr(Client, "run_on_scheduler", elsewhere)  # this one is of this process
    assert main(["grid", "--profile", "smoke", "--only", "plain_and_sparse", "--scheduler", address]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "scheduler cannot load mnv3nb (No module" in error
    assert re.search(r"tcp://127\.0\.0\.1:\d+ has mnv3nb .*, here 0\.0\.1", error) and not names(tmp_path)


def test_places_with_other_versions_or_none_are_named_and_many_are_counted():
    here = versions()
    places = {"scheduler": ModuleNotFoundError("no torch")} | {f"w{i}": here | {"torch": "2.8.0"} for i in range(5)}
    with pytest.raises(ValueError) as caught:
        check_versions(places | {"good": here}, here)
    assert str(caught.value) == (
        f"versions differ: scheduler cannot load mnv3nb (no torch); "
        f"w0 has torch 2.8.0, here {here['torch']}; w1 has torch 2.8.0, here {here['torch']}; and 3 more. "
        "Install the same ones everywhere"
    )


@pytest.mark.parametrize("given", ["tcp://127.0.0.1:1", "nonsense", "http://127.0.0.1:1"])
def test_an_unreachable_scheduler_is_one_line(given, capsys):
    with dask.config.set({"distributed.comm.timeouts.connect": "1s"}):
        assert main(["grid", "--profile", "smoke", "--only", "plain_and_sparse", "--scheduler", given]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and error.startswith(f"mnv3nb grid: no Dask scheduler answers at {given!r}")


def call(function, *args):
    return function(*args)


class Fake(Executor):
    """Fulfils futures with what `answer` returns or raises, in this process."""

    def __init__(self, answer):
        self.answer = answer

    def submit(self, function, *args):
        future = Future()
        try:
            future.set_result(self.answer(function, *args))
        except Exception as error:
            future.set_exception(error)
        return future


def test_a_worker_names_data_that_it_lacks_or_that_differ_and_other_versions(configs, tmp_path):
    absent = replace(configs[0], dataset=str(tmp_path / "absent.npz"))
    with pytest.raises(FileNotFoundError, match=r"worker on .*: no data file .*absent\.npz"):
        train_on_worker(absent, "0123456789ab", None, versions(), None)
    with pytest.raises(ValueError, match="holds other images than where the grid was started"):
        train_on_worker(configs[0], "0123456789ab", None, versions(), None)
    with pytest.raises(ValueError, match=r"versions differ: worker on .* has torch .*, here 1\.0"):
        train_on_worker(configs[0], configs[0].key, None, versions() | {"torch": "1.0"}, None)


@pytest.mark.slow
def test_a_run_whose_workers_keep_dying_does_not_stop_the_others(configs, tmp_path, monkeypatch):
    def answer(function, config, *args):
        if config.key == configs[2].key:
            raise KilledWorker("train_on_worker", SimpleNamespace(address="tcp://w"), 3)
        return function(config, *args)

    monkeypatch.setenv("MNV3NB_HOME", str(tmp_path / "worker"))
    runs = Runs(tmp_path / "runs", tmp_path / "none", progress=False)
    with pytest.raises(RuntimeError, match=r"2 run\(s\) failed:\n.*workers died.*\n.*its parent failed"):
        run_grid(runs, configs, Fake(answer))
    assert names(runs.folder) == sorted(config.key for config in configs[:2])


def test_no_more_runs_are_on_the_way_than_the_limit(configs, tmp_path, monkeypatch):
    class Counting(ThreadPoolExecutor):
        def submit(self, *args):
            future = super().submit(*args)
            futures.append(future)
            open_futures.append(sum(not other.done() for other in futures))
            return future

    futures, open_futures = [], []
    monkeypatch.setenv("MNV3NB_HOME", str(tmp_path / "worker"))
    monkeypatch.setattr(RemoteWorkers, "limit", 2)
    short = [replace(configs[0], train=replace(TINY, epochs=0, seed=seed)) for seed in range(5)]
    with Counting(5) as executor:
        made = run_grid(Runs(tmp_path / "runs", tmp_path / "none", progress=False), short, executor)
    assert [run.config for run in made] == short
    assert len(futures) == 5 and max(open_futures) <= 2


@pytest.mark.slow
def test_a_scheduler_that_ends_is_one_line(configs, tmp_path):
    def answer(*args):
        raise CancelledError

    with pytest.raises(RuntimeError, match="was cancelled, or its scheduler ended"):
        run_grid(Runs(tmp_path, tmp_path / "none"), configs, Fake(answer))


def come_home(runs: Runs, config: RunConfig, files: dict[str, bytes]) -> Run:
    future = Future()
    future.set_result(files)
    return RemoteWorkers(runs, Fake(call)).collect(config, future)


def test_a_run_that_comes_home_replaces_an_unfinished_one_and_is_kept_once(configs, reference, tmp_path):
    runs = Runs(tmp_path, tmp_path / "none")
    files = RunFolder(reference[0].folder).pack()
    (tmp_path / configs[0].key).mkdir()
    (tmp_path / configs[0].key / "state.safetensors").write_bytes(b"of an epoch")
    assert come_home(runs, configs[0], files).folder == tmp_path / configs[0].key
    before = tree(tmp_path)
    assert come_home(runs, configs[0], {}).key == configs[0].key and tree(tmp_path) == before
    assert names(tmp_path) == [configs[0].key] and names(tmp_path / configs[0].key) == sorted(FILES)


def test_a_run_that_was_damaged_on_its_way_is_refused(configs, reference, tmp_path):
    files = RunFolder(reference[0].folder).pack()
    files["model.safetensors"] = files["model.safetensors"][:-1]
    with pytest.raises(ValueError, match=r"model\.safetensors is not a whole safetensors file"):
        come_home(Runs(tmp_path, tmp_path / "none"), configs[0], files)
