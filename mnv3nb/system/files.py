"""Files that appear whole or not at all, where things live, and look-up by name with a helpful error."""

import contextlib
import difflib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

CHECKOUT = Path(__file__).resolve().parent.parent.parent  # where this package lies in a checkout


def write_file(path: str | os.PathLike, content: bytes | str) -> None:
    """Write a whole file by `write_atomically`; text as UTF-8."""
    content = content.encode() if isinstance(content, str) else content
    with write_atomically(path, len(content)) as file:
        file.write(content)


@contextlib.contextmanager
def write_atomically(path: str | os.PathLike, size: int | None = None) -> Iterator[BinaryIO]:
    """A binary file that appears at `path` whole or not at all: temporary in the same folder, fsync, rename, fsync.

    Raises OSError that names the path and, where `size` is given, the bytes needed; what was at `path` is untouched.
    """
    path = Path(path)
    temporary = None
    try:
        _make_folder(path.parent)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        with open(handle, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:
            needed = f" ({size} bytes needed)" if size else ""
            text = f"cannot write {path}{needed}: {os.strerror(error.errno)}; nothing there was changed"
            raise type(error)(error.errno, text) from error
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Waits until names made, renamed or removed in `folder` are on the disk."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def default_home() -> Path:
    """Where `runs/`, `results/`, `figures/` and `data/` are: `$MNV3NB_HOME`, else this checkout, else the working
    folder."""
    if home := os.environ.get("MNV3NB_HOME"):
        return Path(home)
    return CHECKOUT if (CHECKOUT / "notebooks").is_dir() else Path.cwd()


def check_writable(folder: Path) -> None:
    """Raises OSError, which names MNV3NB_HOME, unless files can be made in `folder` or where it would be made."""
    existing = folder
    while not existing.exists():
        existing = existing.parent
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        reason = os.strerror(error.errno)
        text = f"cannot write to {folder} ({reason}); set MNV3NB_HOME to a folder in which you may write"
        raise type(error)(error.errno, text) from None


def lookup(table: Mapping[str, Any], name: str, what: str, more: str = "") -> Any:
    """`table[name]`; raises ValueError that names the nearest name and all that are allowed."""
    if name not in table:
        near = difflib.get_close_matches(str(name), table, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown {what} {name!r}; {hint}Allowed: {', '.join(table)}{more}")
    return table[name]


def check_ending(path: str | os.PathLike, *endings: str) -> None:
    """Raises ValueError unless `path` ends in one of `endings`."""
    if not os.fspath(path).endswith(endings):
        raise ValueError(f"the path must end in {' or '.join(endings)}, got {os.fspath(path)!r}")


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        sync_folder(folder.parent)
