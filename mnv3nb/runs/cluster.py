"""A grid on other machines: what travels to a worker, how a run comes home, and Dask's scheduler. See README.md here."""

import contextlib
import platform
import socket
import tempfile
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from pathlib import Path

import torch

from .. import __version__
from ..system.files import write_file
from .config import FORMAT, RunConfig
from .find_or_train import Runs
from .folder import FILES, Run, lock_run, open_folder, read_run

Files = dict[str, bytes]  # the files of a run, by name


class Courier:
    """Takes runs to an executor's workers and home into the folder of `runs`; who sees `mark` in it sees the folder."""

    def __init__(self, runs: Runs, executor: Executor):
        self.runs = Runs(runs.folder.absolute(), runs.recorded.absolute(), runs.device, progress=False)
        self.executor, self.blind = executor, False  # blind: some worker does not see the folder
        locks = self.runs.folder / ".locks"
        locks.mkdir(parents=True, exist_ok=True)
        self.mark = tempfile.NamedTemporaryFile(prefix="grid-", dir=locks)  # noqa: SIM115, the grid closes it

    def submit(self, config: RunConfig) -> Future:
        parent = _pack(self.runs.run(config.parent, model=True)) if self.blind and config.parent else None
        return self.executor.submit(work, config, config.key, self.runs, Path(self.mark.name), versions(), parent)

    def receive(self, config: RunConfig, result: Run | Files | None) -> Run | None:
        """The run, in the folder of `runs`, from what `work` returned; None: submit it again."""
        if isinstance(result, Run):
            return result
        self.blind = True
        return result and keep(self.runs, config, result)


def work(config: RunConfig, key: str, runs: Runs, mark: Path, wanted: dict, parent: Files | None) -> Run | Files | None:
    """What a worker does: trains or resumes the run in the caller's folder or, not seeing it, in its own: then its files.

    None: the parent's files are needed. Raises ValueError or FileNotFoundError for other versions or data there.
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
        write_file(folder / name, files[name])


def versions() -> dict[str, str | int]:
    """What must be the same everywhere in a grid."""
    python = ".".join(platform.python_version_tuple()[:2])
    return {"mnv3nb": __version__, "format": FORMAT, "torch": torch.__version__.split("+")[0], "Python": python}


def check_versions(found: dict[str, dict | Exception], wanted: dict) -> None:
    """Raises ValueError that names the places in `found` whose versions are not `wanted`, or that cannot tell."""
    faults = []
    for place, there in found.items():
        there = wanted | {"mnv3nb": f"not to be loaded ({there})"} if isinstance(there, Exception) else there
        other = [name for name in wanted if there.get(name) != wanted[name]]
        faults += [f"{place} has {name} {there.get(name)}, here {wanted[name]}" for name in other]
    if faults:
        more = f"; and {len(faults) - 3} more" * (len(faults) > 3)
        raise ValueError(f"versions differ: {'; '.join(faults[:3])}{more}. Install the same ones everywhere")


@contextlib.contextmanager
def connect(address: str) -> Iterator[Executor]:
    """The executor of the Dask scheduler at `address`; raises ConnectionError if none answers, ValueError for versions."""
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
