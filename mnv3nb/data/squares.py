"""Photos kept on the disk as equal squares: one folder of plain .npy files per data set, memory-mapped.

The files are `train_images.npy`, `test_images.npy` (uint8, N×H×W×3), `train_labels.npy`, `test_labels.npy` (int64) and
`about.json`: the classes, the side, the broken files, and the hashes that decide whether the folder is still valid.
"""

import hashlib
import json
import shutil
import sys
import warnings
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from ..system.files import sync_folder, write_atomically, write_file
from .batches import SPLITS, Dataset
from .photos import Photo, PhotoSet, find_photos, median_side, read_squares

MAX_DEFAULT_SIDE = 224  # pixels; larger squares are only kept on request


def load_photos(folder: Path, data_dir: Path, image_size: int | None = None, seed: int = 0) -> Dataset:
    """The photos in `folder` as memory-mapped squares of `image_size` pixels (see `load_dataset`).

    The squares are kept in a folder in `data_dir`. They are made again if a photo was added, removed or changed, or if
    the kept files are damaged. Raises ValueError if `find_photos` or `keep_squares` does.
    """
    photos = find_photos(folder, seed)
    fingerprint = _fingerprint(photos)
    kept = data_dir / _kept_name(folder, image_size, seed)
    data_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{kept}.lock"):  # if several processes want these photos, one converts them and the others wait
        if not _is_valid(kept, photos.classes, fingerprint):
            keep_squares(photos, kept, image_size, fingerprint)
        return map_squares(kept)


def keep_squares(photos: PhotoSet, kept: Path, image_size: int | None, fingerprint: str) -> None:
    """Write all photos as squares to the folder `kept`, which appears whole or not at all; report on stderr.

    `image_size` is the side in pixels (None: the median shorter side of the photos, at most 224). Broken files are left
    out and named. Raises ValueError if a class is then without a training image, or the test split without any.
    """
    scratch = kept.with_name(f".{kept.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)  # left by a process that was killed
    try:
        report = _write_files(photos, scratch, image_size, fingerprint)
        if kept.exists():
            # A folder cannot be renamed onto another one. A process killed here leaves none, and the next makes it again.
            shutil.rmtree(kept)
        scratch.rename(kept)
        sync_folder(kept.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    print(f"{kept.name}: {report}", file=sys.stderr)


def map_squares(kept: Path) -> Dataset:
    """The data set in the folder `kept`; its images stay on the disk and are read where they are used."""
    about = json.loads((kept / "about.json").read_text())
    return Dataset(
        train_images=_map_images(kept / "train_images.npy"),
        train_labels=torch.from_numpy(np.load(kept / "train_labels.npy")),
        test_images=_map_images(kept / "test_images.npy"),
        test_labels=torch.from_numpy(np.load(kept / "test_labels.npy")),
        classes=tuple(about["classes"]),
        mapped=True,
    )


def _fingerprint(photos: PhotoSet) -> str:
    """A hash that changes when a photo is added, removed or changed; it takes the files' sizes and times only."""
    files = []
    for split, part in photos.splits.items():
        for path, _ in part:
            stat = path.stat()
            files.append((split, str(path), stat.st_size, stat.st_mtime_ns))
    return hashlib.sha256(repr((photos.classes, files)).encode()).hexdigest()


def _kept_name(folder: Path, image_size: int | None, seed: int) -> str:
    resolved = folder.resolve()
    digest = hashlib.sha256(repr((str(resolved), image_size, seed)).encode()).hexdigest()
    return f"{resolved.name}-{digest[:12]}"


def _is_valid(kept: Path, classes: tuple[str, ...], fingerprint: str) -> bool:
    """Whether the folder `kept` is whole, undamaged, and made from these photos."""
    try:
        about = json.loads((kept / "about.json").read_text())
        same_photos = about["fingerprint"] == fingerprint and about["classes"] == list(classes)
        return same_photos and about["sha256"] == _checksums(kept)
    except (OSError, ValueError, TypeError, KeyError):  # missing, or damaged in whatever way
        return False


def _checksums(folder: Path) -> dict[str, str]:
    """SHA-256 of each .npy file."""
    checksums = {}
    for name in SPLITS:
        with open(folder / f"{name}.npy", "rb") as file:
            checksums[name] = hashlib.file_digest(file, "sha256").hexdigest()
    return checksums


def _write_files(photos: PhotoSet, folder: Path, image_size: int | None, fingerprint: str) -> str:
    """Write all files of a kept folder; returns the report."""
    side = image_size or min(MAX_DEFAULT_SIDE, median_side(photos.splits["train"]) or MAX_DEFAULT_SIDE)
    broken: list[Photo] = []
    labels: dict[str, np.ndarray] = {}
    for split, part in photos.splits.items():
        readable, unreadable = _write_images(folder / f"{split}_images.npy", part, side)
        broken += unreadable
        labels[split] = np.array([photo.label for photo in readable], dtype=np.int64)
        _check_readable(split, labels[split], photos.classes, broken)
        with write_atomically(folder / f"{split}_labels.npy") as file:
            np.save(file, labels[split])
    about = {
        "image_size": side,
        "classes": photos.classes,
        "broken": [_short_name(photo) for photo in broken],
        "fingerprint": fingerprint,
        "sha256": _checksums(folder),
    }
    write_file(folder / "about.json", json.dumps(about, indent=1))
    return _describe(labels, photos.classes, side, broken)


def _write_images(path: Path, photos: list[Photo], side: int) -> tuple[list[Photo], list[Photo]]:
    """Write the squares to the .npy file `path`; returns the photos that are in it and the broken ones."""
    readable = []
    broken = []
    with write_atomically(path, size=len(photos) * side * side * 3) as file:
        # The header states the number of images, which is known after the last one. Until then a header of the same
        # length holds its place: numpy pads headers so that this number can change.
        _write_header(file, 0, side)
        for photo, square in read_squares(photos, side):
            if square is None:
                broken.append(photo)
            else:
                readable.append(photo)
                file.write(square.data)
        file.seek(0)
        _write_header(file, len(readable), side)
    return readable, broken


def _write_header(file: BinaryIO, count: int, side: int) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (count, side, side, 3)}
    np.lib.format.write_array_header_1_0(file, header)


def _check_readable(split: str, labels: np.ndarray, classes: tuple[str, ...], broken: list[Photo]) -> None:
    """Every class needs a training image; the test split needs an image of any class."""
    if split == "test" and len(labels):
        return
    missing = sorted(set(range(len(classes))) - set(labels.tolist()))
    if missing:
        names = ", ".join(classes[label] for label in missing[:5])
        raise ValueError(f"no readable {split} image of {names}; replace the broken files: {_name_first(broken)}")


def _describe(labels: dict[str, np.ndarray], classes: tuple[str, ...], side: int, broken: list[Photo]) -> str:
    counts = np.bincount(labels["train"])
    fewest = counts.argmin()
    most = counts.argmax()
    text = f"{len(labels['train'])} training and {len(labels['test'])} test images, kept as {side}×{side} pixels"
    text += f"; training images per class: {counts[fewest]}"
    if counts[fewest] < counts[most]:
        text += f" ({classes[fewest]}) to {counts[most]} ({classes[most]})"
    if broken:
        text += f"; {len(broken)} broken files left out: {_name_first(broken)}"
    return text


def _name_first(photos: list[Photo]) -> str:
    """The first five of `photos` by name."""
    names = ", ".join(_short_name(photo) for photo in photos[:5])
    return f"{names} ..." if len(photos) > 5 else names


def _short_name(photo: Photo) -> str:
    return f"{photo.path.parent.name}/{photo.path.name}"


def _map_images(path: Path) -> Tensor:
    """The images (N, H, W, 3) of a .npy file as a tensor (N, 3, H, W) that stays on the disk."""
    array = np.load(path, mmap_mode="r")
    with warnings.catch_warnings(action="ignore"):  # torch warns that the array is read-only, as is intended
        return torch.from_numpy(array).permute(0, 3, 1, 2)
