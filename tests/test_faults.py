"""Faults injected for real: kills, full disks, damage, hostile files, divergence, two at once."""

import contextlib
import json
import os
import pickle
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import FORK

from mnv3nb import MobileNetV3Large, TrainConfig, load_dataset, load_model, save_model
from mnv3nb.__main__ import main
from mnv3nb.data.batches import SPLITS
from mnv3nb.runs import grid
from mnv3nb.runs.config import PruneConfig, RunConfig
from mnv3nb.runs.find_or_train import Runs
from mnv3nb.runs.folder import FILES, RunFolder
from mnv3nb.runs.grid import run_grid
from mnv3nb.runs.profiles import get_profile
from mnv3nb.system.files import write_atomically
from mnv3nb.system.tensors import load_tensors, save_tensors

GRID = int(os.environ.get("MNV3NB_GRID", "9"))
KILLS = int(os.environ.get("MNV3NB_KILLS", "25"))
SYSTEM_CALLS = ("open", "fsync", "replace", "chmod", "unlink", "close", "mkdir")
posix = pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    """A data set of 16 + 8 images, so that a run of several epochs takes a second."""
    path = tmp_path_factory.mktemp("data") / "tiny.npz"
    rng = np.random.default_rng(0)
    train, test = (rng.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8) for count in (16, 8))
    np.savez(path, train_images=train, test_images=test, train_labels=np.arange(16) % 2, test_labels=np.arange(8) % 2)
    return str(path)


@pytest.fixture(scope="module")
def config(tiny) -> RunConfig:
    parent = RunConfig(tiny, TrainConfig(epochs=2, batch_size=8, lam=1e-3, augment="crop_flip"))
    return RunConfig(tiny, TrainConfig(epochs=2, batch_size=8), parent, PruneConfig(0.9))


@pytest.fixture(scope="module")
def reference(config, tmp_path_factory):
    """The undisturbed pruned run, beside its parent, trained in the same kind of process as the disturbed ones."""
    store = tmp_path_factory.mktemp("reference")
    assert _child(store, config) == 0
    return Runs(store, store / "none").find(config)


def _assert_same(store: Path, config: RunConfig, reference) -> None:
    for c in (config.parent, config):
        run = Runs(store, store / "none").find(c)
        other = RunFolder(reference.folder.parent / c.key).read()
        assert (run.folder / "model.safetensors").read_bytes() == (other.folder / "model.safetensors").read_bytes()
        assert [row["test_accuracy"] for row in run.history] == [row["test_accuracy"] for row in other.history]
        assert sorted(path.name for path in run.folder.iterdir()) == sorted(FILES)


def _train(store: Path, config: RunConfig, die_at: int | None = None, file_limit: int | None = None) -> None:
    torch.set_num_threads(1)
    if die_at is not None:
        _kill_at_system_call(die_at)
    if file_limit is not None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    Runs(store, store / "none", progress=False).run(config)


def _kill_at_system_call(number: int) -> None:
    """SIGKILL this process just before its `number`-th call that touches the file system in a save."""
    calls = iter(range(number))

    def wrap(function):
        def counted(*args, **kwargs):
            if next(calls, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return counted

    for name in SYSTEM_CALLS:
        setattr(os, name, wrap(getattr(os, name)))


def _child(*args, kill_after: float | None = None) -> int:
    process = FORK.Process(target=_train, args=args)
    process.start()
    process.join(kill_after)
    if process.is_alive():
        process.kill()
    process.join()
    return process.exitcode


def _wait_for(path: Path, pattern: str | None = None) -> None:
    deadline = time.monotonic() + 60
    while not (any(path.glob(pattern)) if pattern else path.exists()):
        assert time.monotonic() < deadline, f"{path} did not appear"
        time.sleep(0.02)


def _assert_clean(folder: Path) -> None:
    """Whatever was killed, each file under its own name is whole."""
    for path in folder.glob("*.safetensors"):
        load_tensors(path)
    if (folder / "config.json").exists():
        json.loads((folder / "config.json").read_text())
    if (folder / "result.json").exists():
        RunFolder(folder).read()


@posix
@pytest.mark.slow
def test_killed_at_any_instant_a_run_resumes_and_ends_bit_identical(config, reference, tmp_path):
    rng, kills, finished = random.Random(0), 0, 0
    start = time.monotonic()
    assert _child(tmp_path / "undisturbed", config) == 0
    whole = time.monotonic() - start  # on a slow or busy machine kills must come later, or no epoch would ever end
    while kills < KILLS:
        store = tmp_path / str(finished)
        while True:
            timed = rng.random() < 0.5
            kill_after = rng.uniform(0.02, 1.0) * whole if timed else None
            code = _child(store, config, None if timed else rng.randrange(75), kill_after=kill_after)
            for folder in store.glob("*/"):
                _assert_clean(folder)
            kills += code == -signal.SIGKILL
            if code == 0:
                break
        _assert_same(store, config, reference)
        finished += 1
        shutil.rmtree(store)


@posix
def test_a_disk_quota_hit_in_a_save_leaves_the_old_state_and_the_run_resumes(config, reference, tmp_path):
    store = tmp_path / "store"
    state = store / config.parent.key / "state.safetensors"
    for number in range(12, 80, 4):  # until it is stopped after the first epoch
        assert _child(store, config, number) == -signal.SIGKILL
        if state.exists():
            break
    before = state.read_bytes()
    assert _child(store, config, None, 1_000_000) == 1
    assert state.read_bytes() == before
    assert not list(state.parent.glob("*.part")) and not list(state.parent.glob(".*.part"))
    assert _child(store, config) == 0
    _assert_same(store, config, reference)


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    if (
        not mount
        or subprocess.run([mount, "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode
    ):
        pytest.skip("mounting a small tmpfs needs root")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_one_clear_error_and_keeps_the_file_that_was_there(small_disk):
    path = small_disk / "t.safetensors"
    save_tensors(path, {"a": torch.zeros(10)}, {"n": 1})
    with pytest.raises(OSError, match=r"cannot write .*t\.safetensors \(\d+ bytes needed\): No space left on device"):
        save_tensors(path, {"a": torch.zeros(1_000_000)}, {"n": 2})
    assert load_tensors(path)[1] == {"n": 1}
    assert [p.name for p in small_disk.iterdir()] == ["t.safetensors"]


def test_a_folder_that_cannot_be_written_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with (
        pytest.raises(OSError, match=r"cannot write .*: (Not a directory|File exists)"),
        write_atomically(tmp_path / "file" / "x"),
    ):
        pass
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_full_disk_pauses_the_grid_with_one_line_and_loses_nothing(small_disk, monkeypatch, capsys):
    subprocess.run(["mount", "-o", "remount,size=60m", small_disk], check=True)  # two states, or one and a network
    monkeypatch.setenv("MNV3NB_HOME", str(small_disk))
    ballast = small_disk / "ballast"
    command, profile = ["grid", "--profile", "smoke", "--only", "half"], get_profile("smoke")
    ballast.write_bytes(bytes(40_000_000))
    assert main(command) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"mnv3nb grid: .*cannot write .*No space left on device.*the same command resumes\n", error)
    ballast.unlink()
    for folder in small_disk.glob("runs/*/"):
        _assert_clean(folder)
    subprocess.run(["mount", "-o", "remount,size=200m", small_disk], check=True)
    assert main(command) == 0 and all(Runs().find(config) for config in profile.experiment("half"))


def test_a_read_only_disk_is_read_from_and_never_half_written(small_disk, tmp_path, capsys):
    config = RunConfig("digits", TrainConfig(epochs=0, batch_size=2), train_images=4)
    save_tensors(small_disk / "t.safetensors", {"a": torch.zeros(10)}, {"n": 1})
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(OSError, match=r"cannot write .*t\.safetensors .*: Read-only file system"):
        save_tensors(small_disk / "t.safetensors", {"a": torch.ones(10)}, {"n": 2})
    with pytest.raises(OSError, match="Read-only file system"):
        Runs(small_disk / "runs", tmp_path / "none").run(config)
    assert Runs(tmp_path / "runs", small_disk).find(config) is None
    assert load_tensors(small_disk / "t.safetensors")[1] == {"n": 1}
    assert [path.name for path in small_disk.iterdir()] == ["t.safetensors"]


@pytest.fixture(scope="module")
def long(config, tmp_path_factory):
    """A run of 12 short epochs, and its undisturbed folder."""
    store = tmp_path_factory.mktemp("long")
    long = replace(config.parent, train=replace(config.parent.train, epochs=12))
    assert _child(store, long) == 0
    return long, store / long.key


CELLS = (
    """
from pathlib import Path
from mnv3nb import TrainConfig
from mnv3nb.runs.config import NetworkConfig, RunConfig
from mnv3nb.runs.find_or_train import Runs
runs = Runs({store!r}, "none", progress=False)
""",
    "run = runs.run({config!r})",
)
HANG = """
import itertools, os, time
real, calls = os.replace, itertools.count()
os.replace = lambda *a: time.sleep(600) if stuck and next(calls) == 9 else real(*a)
"""


@posix
@pytest.mark.slow
def test_a_kernel_interrupted_in_a_run_resumes_when_the_cell_is_run_again(long, tmp_path):
    from jupyter_client.manager import (
        start_new_kernel,  # here, since every process that is to be killed imports this file
    )

    config, reference = long
    setup, train = (cell.format(store=str(tmp_path), config=config) for cell in CELLS)
    manager, client = start_new_kernel()
    try:
        assert client.execute_interactive(setup, timeout=120)["content"]["status"] == "ok"
        request = client.execute(train)
        _wait_for(tmp_path / config.key / "state.safetensors")
        manager.interrupt_kernel()
        reply = client.get_shell_msg(timeout=60)
        assert reply["parent_header"]["msg_id"] == request and reply["content"]["ename"] == "KeyboardInterrupt"
        _assert_clean(tmp_path / config.key)
        assert not (tmp_path / config.key / "result.json").exists()
        assert client.execute_interactive(train, timeout=120)["content"]["status"] == "ok"
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    assert (tmp_path / config.key / "model.safetensors").read_bytes() == (reference / "model.safetensors").read_bytes()


@posix
@pytest.mark.slow
def test_a_notebook_that_runs_out_of_time_loses_at_most_the_epoch_in_flight(long, tmp_path, monkeypatch):
    import nbformat

    from mnv3nb.runs.notebooks import run_notebooks

    config, reference = long
    monkeypatch.setenv("MNV3NB_HOME", str(tmp_path))
    setup, train = (cell.format(store=str(tmp_path), config=config) for cell in CELLS)
    kernel = {"name": "python3", "display_name": "", "language": "python"}
    notebook = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    notebook.cells = [nbformat.v4.new_code_cell(cell) for cell in ("profile = ''\nstuck = False", setup, HANG, train)]
    notebook.cells[0].metadata["tags"] = ["parameters"]
    nbformat.write(notebook, tmp_path / "00_train.ipynb")
    (failure,) = run_notebooks(None, 45, tmp_path, profile="smoke", stuck=True)
    assert "00_train.ipynb" in failure
    _assert_clean(tmp_path / config.key)
    assert load_tensors(tmp_path / config.key / "state.safetensors")[1]["history"][-1]["epoch"] >= 3
    assert run_notebooks(None, 120, tmp_path, profile="smoke") == []
    assert (tmp_path / config.key / "model.safetensors").read_bytes() == (reference / "model.safetensors").read_bytes()


@posix
def test_three_processes_on_one_grid_train_every_run_once(config, reference, tmp_path):
    processes = [FORK.Process(target=_train, args=(tmp_path, config)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    folders = [path.name for path in tmp_path.iterdir() if path.name not in (".locks", "none")]
    assert sorted(folders) == sorted([config.key, config.parent.key])
    _assert_same(tmp_path, config, reference)


@posix
def test_the_lock_of_a_dead_process_is_taken_over(config, tmp_path):
    assert _child(tmp_path, config, kill_after=0.8) in (-signal.SIGKILL, 0)
    start = time.monotonic()
    assert _child(tmp_path, config) == 0
    assert time.monotonic() - start < 60


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte_is_found_and_named(reference, config, tmp_path, capsys, name):
    rng, store = random.Random(name), tmp_path / "store"
    shutil.copytree(reference.folder, store / config.key)
    whole = (reference.folder / name).read_bytes()
    for _ in range(4):
        data = bytearray(whole)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        (store / config.key / name).write_bytes(data)
        assert Runs(store, store / "none").find(config, model=True) is None
        assert config.key in capsys.readouterr().err


@pytest.mark.parametrize("name", FILES[:3])
def test_a_missing_empty_or_truncated_file_is_found(reference, config, tmp_path, capsys, name):
    shutil.copytree(reference.folder, tmp_path / config.key)
    path = tmp_path / config.key / name
    data = path.read_bytes()
    for damaged in (data[: len(data) // 2], b"", None):
        path.unlink()
        if damaged is not None:
            path.write_bytes(damaged)
        assert Runs(tmp_path, tmp_path / "none").find(config) is None
        assert config.key in capsys.readouterr().err


def test_a_run_without_its_result_is_moved_aside_and_trained_anew(reference, config, tmp_path, capsys):
    shutil.copytree(reference.folder.parent, tmp_path, dirs_exist_ok=True)
    (tmp_path / config.key / "result.json").unlink()
    _train(tmp_path, config)
    assert f"moved aside: {tmp_path / config.key}.damaged-" in capsys.readouterr().err
    _assert_same(tmp_path, config, reference)


@posix
def test_a_linked_run_folder_is_not_written_into(config, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / ".notes.part").write_text("mine")
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / config.key).symlink_to(outside)
    with pytest.raises(ValueError, match=r"is a link.*remove it"):
        Runs(tmp_path / "runs", tmp_path / "none").run(config)
    assert [path.name for path in outside.iterdir()] == [".notes.part"]


@posix
@pytest.mark.parametrize("hostile", ["pipe", "huge", "wrong words"])
def test_a_strangers_run_folder_neither_hangs_nor_bloats_nor_ends_a_search(
    reference, config, tmp_path, capsys, hostile
):
    shutil.copytree(reference.folder, tmp_path / config.key)
    path = tmp_path / config.key / "config.json"
    stored = json.loads(path.read_text())
    path.unlink()
    if hostile == "pipe":
        os.mkfifo(path)
    elif hostile == "huge":
        with open(path, "wb") as file:
            file.truncate(1 << 32)
    else:
        path.write_text(json.dumps(stored | {"config": stored["config"] | {"dataset": []}}))
    assert Runs(tmp_path, tmp_path / "none").find(config) is None
    assert "skipping a damaged run" in capsys.readouterr().err


def test_a_run_under_another_name_is_refused(reference, tmp_path):
    shutil.copytree(reference.folder, tmp_path / "0123456789ab")
    with pytest.raises(ValueError, match="it was renamed, edited, or written by another version"):
        RunFolder(tmp_path / "0123456789ab").read()


class Bomb:
    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


def test_nothing_is_unpickled(tmp_path, reference, config):
    target = tmp_path / "exploded"
    bomb = pickle.dumps(Bomb(target))
    pickle.loads(bomb)
    assert target.exists()  # the bomb works
    target.unlink()
    (tmp_path / "model.safetensors").write_bytes(bomb)
    torch.save(Bomb(target), tmp_path / "torch.safetensors")
    np.savez(tmp_path / "data.npz", **{name: np.array([Bomb(target)], dtype=object) for name in SPLITS})
    for name in ("model.safetensors", "torch.safetensors"):
        with pytest.raises(ValueError, match=r"not a whole safetensors file|not written by mnv3nb"):
            load_model(tmp_path / name)
    with pytest.raises(ValueError, match=r"data\.npz"):
        load_dataset(tmp_path / "data.npz")
    for name in FILES:
        folder = tmp_path / "store" / name / config.key
        shutil.copytree(reference.folder, folder)
        (folder / name).write_bytes(bomb)
        assert Runs(folder.parent, tmp_path / "none").find(config, model=True) is None
    assert not target.exists()


def test_an_npz_that_claims_more_than_it_holds_takes_no_memory(tmp_path):
    header = b"{'descr': '|u1', 'fortran_order': False, 'shape': (1099511627776, 32, 32), }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    with zipfile.ZipFile(tmp_path / "big.npz", "w") as archive:
        for name in SPLITS:
            version = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little")
            archive.writestr(f"{name}.npy", version + header + b"\0" * 64)
    with pytest.raises(ValueError, match="claims"):
        load_dataset(tmp_path / "big.npz")


@pytest.mark.parametrize(
    ("descr", "shape", "more"),
    [
        ("'|V0'", "(5000000,)", ""),
        ("'|u1'", f"({'-' * 8000}1,)", ""),
        ("(", "(1,)", ""),
        ("'|u1'", "()", ""),
        ("{[]: 2}", "(1,)", ""),
        ("'|u1'", "(0, 10**99)", ""),
        ("'|u1'", "(16,)", " " * 300_000),
    ],
)
def test_hostile_headers_give_one_clear_error(tmp_path, tiny, descr, shape, more):
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}{more}".encode()
    version = b"\x93NUMPY\x02\x00" + len(header).to_bytes(4, "little")
    with zipfile.ZipFile(tiny) as good, zipfile.ZipFile(tmp_path / "bad.npz", "w", zipfile.ZIP_DEFLATED) as bad:
        for name in good.namelist():
            bad.writestr(name, good.read(name))
        bad.writestr("classes.npy", version + header + b"\0" * 64)
    with pytest.raises(ValueError, match=r"bad\.npz"):
        load_dataset(tmp_path / "bad.npz")


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressions_that_numpy_does_not_write_are_refused(tmp_path, tiny, method):
    with zipfile.ZipFile(tiny) as good, zipfile.ZipFile(tmp_path / "bad.npz", "w", method) as bad:
        for name in good.namelist():
            bad.writestr(name, good.read(name))
    with pytest.raises(ValueError, match="compressed in another way"):
        load_dataset(tmp_path / "bad.npz")


def shape_of(model: MobileNetV3Large) -> dict:
    return {"architecture": model.architecture, "num_classes": 2, "widths": model.widths, "squeeze": model.squeeze}


@pytest.mark.parametrize(
    "change",
    [
        {"widths": [10**400] * 15},
        {"num_classes": "2"},
        {"architecture": "os/system"},
        {"architecture": None},
        {"more": 1},
    ],
)
def test_models_of_wrong_shapes_are_refused(tmp_path, change):
    model = MobileNetV3Large(2, widths=[1] * 15)
    save_tensors(tmp_path / "m.safetensors", model.state_dict(), {"model": shape_of(model) | change})
    with pytest.raises(ValueError, match=r"m\.safetensors"):
        load_model(tmp_path / "m.safetensors")


@pytest.mark.parametrize("dtype", [torch.int64, torch.complex64])
def test_models_of_wrong_types_are_refused(tmp_path, dtype):
    model = MobileNetV3Large(2, widths=[1] * 15)
    tensors = {key: t.to(dtype) if key.endswith("running_var") else t for key, t in model.state_dict().items()}
    save_tensors(tmp_path / "m.safetensors", tensors, {"model": shape_of(model)})
    with pytest.raises(ValueError, match=r"m\.safetensors"):
        load_model(tmp_path / "m.safetensors")


def test_widths_that_a_file_only_claims_take_no_memory(tmp_path):
    model = MobileNetV3Large(2)
    huge = {"widths": [10**9] * 15, "squeeze": [10**9 if width else 0 for width in model.squeeze]}
    save_tensors(tmp_path / "m.safetensors", {"a": torch.zeros(1)}, {"model": shape_of(model) | huge})
    with pytest.raises(ValueError, match="cannot be rebuilt"):
        load_model(tmp_path / "m.safetensors")


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("fuzz")
    save_model(MobileNetV3Large(2, widths=[1] * 15), folder / "m.safetensors", half=True)
    return {"model": folder / "m.safetensors", "npz": Path(tiny)}


@settings(max_examples=60, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["model", "npz"]))
def test_fuzzed_files_give_only_the_documented_errors(files, tmp_path_factory, data, kind):
    good = files[kind].read_bytes()
    edits = data.draw(st.lists(st.tuples(st.integers(0, len(good) - 1), st.integers(0, 255)), min_size=1, max_size=8))
    near_start = data.draw(st.booleans())  # headers are where parsers break
    bad = bytearray(good)
    for offset, value in edits:
        bad[offset % 400 if near_start else offset] = value
    bad = bad[: data.draw(st.sampled_from([len(bad), len(bad) // 2, 7]))]
    path = tmp_path_factory.mktemp("bad") / ("m.safetensors" if kind == "model" else "d.npz")
    path.write_bytes(bad)
    try:
        (load_model if kind == "model" else load_dataset)(path)
    except ValueError as error:
        assert str(path) in str(error)


WORDS = st.sampled_from(["dataset", "train", "parent", "prune", "epochs", "lr", "rate"])


@settings(max_examples=100, deadline=None)
@given(
    values=st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(max_size=5), lambda s: st.dictionaries(WORDS, s)
    )
)
def test_fuzzed_configs_give_only_value_errors(values):
    with contextlib.suppress(ValueError):
        RunConfig.from_dict(values)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="reads /proc")
def test_a_long_grid_neither_grows_nor_leaks(config, tmp_path):
    def usage() -> tuple[int, int]:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * resource.getpagesize(), len(list(Path("/proc/self/fd").iterdir()))

    runs = Runs(tmp_path, tmp_path / "none", progress=False)
    configs = [replace(config, train=replace(config.train, epochs=1, seed=seed)) for seed in range(GRID)]
    run_grid(runs, configs[: GRID // 3])
    memory, handles = usage()
    run_grid(runs, configs)
    assert usage()[0] - memory < 100e6
    assert usage()[1] <= handles


def _grid(home: str, workers: str) -> None:
    os.environ |= {"MNV3NB_HOME": home, "MNV3NB_WORKERS": workers}
    grid.WORTH_PROCESSES = 0
    torch.set_num_threads(1)
    sys.stderr = open(Path(home) / "stderr", "w", buffering=1)  # noqa: SIM115
    sys.exit(main(["grid", "--profile", "smoke", "--only", "half"]))


@posix
@pytest.mark.slow
def test_a_grid_killed_again_and_again_ends_with_the_same_results_and_leaves_no_process(tmp_path):
    def run(home: Path, workers: int, kill_after: float | None = None) -> int:
        home.mkdir(exist_ok=True)
        process = FORK.Process(target=_grid, args=(str(home), str(workers)))
        process.start()
        process.join(kill_after)
        left = psutil.Process(process.pid).children(recursive=True) if process.is_alive() else []
        process.kill()
        process.join()
        assert not psutil.wait_procs(left, timeout=30)[1]
        return process.exitcode

    def networks(home: Path) -> dict[str, bytes]:
        return {path.parent.name: path.read_bytes() for path in home.glob("runs/*/model.safetensors")}

    start = time.monotonic()
    assert run(tmp_path / "undisturbed", 1) == 0
    whole, expected = time.monotonic() - start, networks(tmp_path / "undisturbed")
    rng, kills, home = random.Random(0), 0, tmp_path / "killed"
    while kills < max(2, KILLS // 50):
        code = run(home, 1 + kills % 2, rng.uniform(0.1, 1) * whole)
        kills += code == -signal.SIGKILL
        for folder in home.glob("runs/*/"):
            _assert_clean(folder)
        if code == 0:
            assert networks(home) == expected
            shutil.rmtree(home)
    assert run(home, 2) == 0 and networks(home) == expected and len(expected) == 3


@posix
@pytest.mark.slow
@pytest.mark.parametrize(("number", "code", "workers"), [(signal.SIGINT, 130, "1"), (signal.SIGTERM, 143, "2")])
def test_an_interrupted_grid_ends_with_one_line_and_can_be_resumed(tmp_path, number, code, workers):
    process = FORK.Process(target=_grid, args=(str(tmp_path), workers))
    process.start()
    _wait_for(tmp_path, "runs/*/config.json")
    os.kill(process.pid, number)
    process.join()
    assert process.exitcode == code
    assert (tmp_path / "stderr").read_text().strip().splitlines()[-1].endswith("the same command resumes")
    for folder in tmp_path.glob("runs/*/"):
        _assert_clean(folder)
