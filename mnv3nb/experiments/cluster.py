"""A grid on other machines: what travels to a worker, how a run comes home, and Dask's scheduler. See README.md here."""

import contextlib
import platform
import socket
import tempfile
import uuid
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from pathlib import Path

import torch

from .. import __version__
from .._files import write_atomically
from .config import FORMAT, RunConfig
from .runs import Runs
from .store import FILES, Run, lock_run, open_folder, read_run

Files = dict[str, bytes]  # the files of a run, by name


class Courier:
    """Takes runs to an executor's workers and brings them home into `runs`, over the executor where they must.

    `mark`: see `marked`. `blind`: whether a worker was met that does not see the folder of `runs`.
    """

    def __init__(self, runs: Runs, executor: Executor, mark: Path):
        self.executor, self.mark, self.blind = executor, mark, False
        self.runs = Runs(runs.folder.absolute(), runs.recorded.absolute(), runs.device, progress=False)

    def submit(self, config: RunConfig) -> Future:
        take_parent = self.blind and config.parent
        parent = _pack(self.runs.run(config.parent, model=True)) if take_parent else None
        return self.executor.submit(work, config, config.key, self.runs, self.mark, versions(), parent)

    def receive(self, config: RunConfig, result: Run | Files | None) -> Run | None:
        """The run, in the folder of `runs`, from what `work` returned; None: submit it again."""
        if isinstance(result, Run):
            return result
        self.blind = True
        return result and keep(self.runs, config, result)


def work(
    config: RunConfig, key: str, runs: Runs, mark: Path, wanted: dict[str, str], parent: Files | None
) -> Run | Files | None:
    """What a worker does: trains or resumes the run in the caller's folder, or in its own and returns the files.

    None: it does not see the caller's folder, and needs the parent's files. Raises ValueError or FileNotFoundError for
    other versions or data than the caller's.
    """
    place = f"worker on {socket.gethostname()}"
    check_versions({place: versions()}, wanted)
    try:
        if config.key != key:
            raise ValueError(f"{place}: {config.dataset} holds other images than where the grid was started; copy it")
        if mark.is_file():
            return runs.run(config, model=True)
        if config.parent and not parent:
            return None
        with tempfile.TemporaryDirectory() as sent:  # looked in first: the very network that the caller has
            if parent:
                _unpack(Path(sent, config.parent.key), parent)
            return _pack(Runs(None, sent, runs.device, progress=False).run(config, model=True))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{place}: {error}") from error


def keep(runs: Runs, config: RunConfig, files: Files) -> Run:
    """Stores a run that was made elsewhere, unless it is there by now."""
    folder = runs.folder / config.key
    with lock_run(runs.folder, config.key):
        if found := runs.find(config, model=True):
            return found
        open_folder(folder, config)
        _unpack(folder, files)
        (folder / "state.safetensors").unlink(missing_ok=True)
        return read_run(folder, model=True)


def _pack(run: Run) -> Files:
    return {name: (run.folder / name).read_bytes() for name in FILES}


def _unpack(folder: Path, files: Files) -> None:
    for name in FILES:  # result.json last: it shows that the others are whole
        with write_atomically(folder / name, len(files[name])) as file:
            file.write(files[name])


@contextlib.contextmanager
def marked(folder: Path) -> Iterator[Path]:
    """A file of a new name in `folder`: a worker that sees it sees the folder, and not another one of that path."""
    mark = folder.absolute() / ".locks" / f"grid-{uuid.uuid4().hex}"
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()
    try:
        yield mark
    finally:
        mark.unlink(missing_ok=True)


def versions() -> dict[str, str]:
    """What must be the same everywhere in a grid."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {
        "mnv3nb": __version__,
        "run format": f"{FORMAT}",
        "torch": torch.__version__.split("+")[0],
        "Python": python,
    }


def check_versions(found: dict[str, dict[str, str] | Exception], wanted: dict[str, str]) -> None:
    """Raises ValueError that names the places in `found` whose versions are not `wanted`, or that have no mnv3nb."""
    places: dict[str, list[str]] = {}
    for place, there in found.items():
        if isinstance(there, Exception):
            places.setdefault(f"mnv3nb cannot be loaded ({there})", []).append(place)
        elif other := {name: there.get(name) for name in wanted if there.get(name) != wanted[name]}:
            text = ", ".join(f"{name} {value}, here {wanted[name]}" for name, value in other.items())
            places.setdefault(text, []).append(place)
    if places:
        each = (f"{text} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})" for text, names in places.items())
        raise ValueError(f"versions differ: {'; '.join(each)}. Install the same ones on the scheduler and all workers")


@contextlib.contextmanager
def connect(address: str) -> Iterator[Executor]:
    """The executor of the Dask scheduler at `address`, such as tcp://host:8786, its versions checked.

    Raises ConnectionError if none answers, ValueError if versions differ.
    """
    import dask
    from distributed import Client

    dask.config.set({"distributed.admin.large-graph-warning-threshold": "1GB"})  # a parent's files have some 17 MB
    try:
        client = Client(address)
    except (OSError, ValueError, TypeError) as error:
        how = "start one with `dask scheduler`, and give the address that it prints"
        raise ConnectionError(f"no Dask scheduler answers at {address!r} ({error}); {how}") from error
    with client:
        found = client.run(versions, on_error="return")
        try:
            found["scheduler"] = client.run_on_scheduler(versions)
        except Exception as error:  # whatever it raised there
            found["scheduler"] = error
        check_versions(found, versions())
        yield client.get_executor()
