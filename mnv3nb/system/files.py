"""Files that appear whole or not at all, the folder where everything is kept, and look-up by name."""

import contextlib
import difflib
import os
import secrets
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

CHECKOUT = Path(__file__).resolve().parent.parent.parent  # the checkout, if this package lies in one


def write_file(path: str | os.PathLike, content: bytes | str) -> None:
    """Write `content` to `path` with `write_atomically`; text is encoded as UTF-8."""
    data = content.encode() if isinstance(content, str) else content
    with write_atomically(path, len(data)) as file:
        file.write(data)


@contextlib.contextmanager
def write_atomically(path: str | os.PathLike, size: int | None = None) -> Iterator[BinaryIO]:
    """Open a binary file that appears at `path` whole or not at all. Missing folders are made.

    The content goes to a temporary file in the same folder, which is synced to the disk and then renamed. The umask
    decides who may read the file. `size` is the expected number of bytes; it is only used in the error message.
    Raises OSError that names the path and the size; whatever was at `path` before is then untouched.
    """
    path = Path(path)
    temporary = path.parent / f".{path.name}.{secrets.token_hex(8)}.part"
    try:
        _make_folder(path.parent)
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):  # the first error is the one to report
            temporary.unlink()
        if isinstance(error, OSError) and error.errno:
            needed = f" ({size} bytes needed)" if size else ""
            message = f"cannot write {path}{needed}: {os.strerror(error.errno)}; nothing there was changed"
            raise type(error)(error.errno, message) from error
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Wait until all names that were made, renamed or removed in `folder` are on the disk."""
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def default_home() -> Path:
    """The folder of `runs/`, `results/`, `figures/` and `data/`.

    `$MNV3NB_HOME` if it is set, otherwise the checkout, otherwise (for an installed package) the working folder.
    """
    home = os.environ.get("MNV3NB_HOME")
    if home:
        return Path(home)
    if (CHECKOUT / "notebooks").is_dir():
        return CHECKOUT
    return Path.cwd()


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


def lookup(table: Mapping[str, Any], name: str, what: str) -> Any:
    """`table[name]`; raises ValueError with the nearest name and all allowed ones. `what` is the kind of thing it names."""
    if name not in table:
        raise unknown_name(table, name, what)
    return table[name]


def unknown_name(allowed: Iterable[str], name: str, what: str, more: str = "") -> ValueError:
    """The error to raise for a name that is not allowed; `more` is appended to the list of allowed names."""
    allowed = list(allowed)
    nearest = difflib.get_close_matches(str(name), allowed, 1)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    return ValueError(f"unknown {what} {name!r}; {hint}Allowed: {', '.join(allowed)}{more}")


def check_ending(path: str | os.PathLike, *endings: str) -> None:
    """Raise ValueError unless `path` ends in one of `endings`."""
    if not os.fspath(path).endswith(endings):
        raise ValueError(f"the path must end in {' or '.join(endings)}, got {os.fspath(path)!r}")


def _make_folder(folder: Path) -> None:
    """Make `folder` and its missing parents, each synced to the disk, which `mkdir(parents=True)` does not do."""
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)
