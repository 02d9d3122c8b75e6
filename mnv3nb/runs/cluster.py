"""A grid on workers elsewhere: what is sent to them, how a run comes home, and Dask's scheduler. See README.md here.

A worker trains in its own `$MNV3NB_HOME/runs`, and the finished folder, its files by name, is the job's result. Where
that is the caller's folder, on a shared file system, the run is already at home.
"""

import contextlib
import gc
import platform
import socket
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor, Future
from pathlib import Path

import torch

from .. import __version__
from .config import FORMAT, RunConfig
from .find_or_train import Runs
from .folder import Run, RunFolder, lock_run

Files = dict[str, bytes]  # the files of a finished run, by name
Versions = dict[str, str | int]


@contextlib.contextmanager
def connect(address: str) -> Iterator[Executor]:
    """The executor of the Dask scheduler at `address`.

    Raises ConnectionError if none answers, and ValueError if versions differ there or on a worker.
    """
    import dask
    from distributed import Client

    dask.config.set({"distributed.admin.large-graph-warning-threshold": "1GB"})  # a parent's files have some 17 MB
    client = None
    reason = ""
    try:
        client = Client(address)
    except (OSError, ValueError, TypeError) as error:
        reason = str(error)
    if client is None:
        # the client that failed is closed when it is collected; later, inside another client's lock, that can deadlock
        gc.collect()
        how = "start one with `dask scheduler`, and give the address that it prints"
        raise ConnectionError(f"no Dask scheduler answers at {address!r} ({reason}); {how}")
    with client:
        found = client.run(versions, on_error="return")
        try:
            found["scheduler"] = client.run_on_scheduler(versions)
        except Exception as error:  # any that was raised there is raised here
            found["scheduler"] = error
        check_versions(found, versions())
        yield client.get_executor()


class RemoteWorkers:
    """The workers of an executor: each trains in its own folder, and its finished runs are stored under `runs`."""

    limit = 100  # runs on the way at a time: each takes its parent's network along, some 17 MB

    def __init__(self, runs: Runs, executor: Executor):
        self.runs = runs
        self.executor = executor

    def start(self, config: RunConfig) -> Future:
        """Sends a run to a worker, with the files of its finished parent."""
        parent_files = None
        if config.parent:
            parent = self.runs.run(config.parent, model=True)
            parent_files = RunFolder(parent.folder).pack()
        return self.executor.submit(train_on_worker, config, config.key, parent_files, versions(), self.runs.device)

    def collect(self, config: RunConfig, future: Future) -> Run:
        """Stores the run of a completed future, unless it is there already, as on a shared file system."""
        files = future.result()
        with lock_run(self.runs.folder, config.key):
            found = self.runs.find(config, model=True)
            return found or RunFolder(self.runs.folder / config.key).keep(config, files)

    def seconds_left(self, waiting: Iterable[RunConfig], running: Iterable[RunConfig]) -> None:
        """Unknown: an executor does not tell how many runs it trains at a time."""
        return None


def train_on_worker(
    config: RunConfig, key: str, parent_files: Files | None, wanted: Versions, device: str | None
) -> Files:
    """What a worker does: finds, resumes or trains the run in its own `$MNV3NB_HOME/runs`; returns its files.

    Raises ValueError if the worker has other versions or other data, FileNotFoundError if it has no data.
    """
    place = f"worker on {socket.gethostname()}"
    check_versions({place: versions()}, wanted)
    try:
        if config.key != key:  # the checksum of the data is part of it
            raise ValueError(f"{place}: {config.dataset} holds other images than where the grid was started; copy it")
        with tempfile.TemporaryDirectory() as sent:
            if parent_files:
                RunFolder(Path(sent, config.parent.key)).unpack(parent_files)
            runs = Runs(recorded=sent, device=device, progress=False)  # looks in `sent` first: the caller's own parent
            run = runs.run(config, model=True)
            return RunFolder(run.folder).pack()
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{place}: {error}") from error


def versions() -> Versions:
    """What must be equal everywhere in a grid."""
    major, minor, _ = platform.python_version_tuple()
    return {
        "mnv3nb": __version__,
        "format": FORMAT,
        "torch": torch.__version__.split("+")[0],  # less the kind of build, such as +cpu
        "Python": f"{major}.{minor}",
    }


def check_versions(found: dict[str, Versions | Exception], wanted: Versions) -> None:
    """Raises ValueError that names the places in `found` whose versions are not `wanted`, or that cannot tell."""
    faults = []
    for place, there in found.items():
        if isinstance(there, Exception):
            faults.append(f"{place} cannot load mnv3nb ({there})")
            continue
        for name, version in wanted.items():
            if there.get(name) != version:
                faults.append(f"{place} has {name} {there.get(name)}, here {version}")
    if not faults:
        return
    text = "; ".join(faults[:3])
    if len(faults) > 3:
        text += f"; and {len(faults) - 3} more"
    raise ValueError(f"versions differ: {text}. Install the same ones everywhere")
