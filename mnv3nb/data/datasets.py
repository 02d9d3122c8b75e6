"""Named data sets, files and folders of images: digits, CIFAR, any .npz, a folder for each class."""

import hashlib
import json
import math
import os
import zipfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock

from ..system.files import default_home, lookup, write_atomically, write_file
from . import photos
from .batches import SPLITS, Dataset

CHECKSUMS = {"digits": "4d42c5f9864d6187", "cifar10": "5da736c1276b47e1", "cifar100": "e970310d97a10a61"}
NAMES = tuple(CHECKSUMS)
MAX_CLASSES = 1 << 16
MAX_BYTES = 16 << 30  # an .npz that claims to unpack to more is refused before memory is taken
MAX_HEADER = 10_000  # bytes of an array's header; ours have 128


def load_dataset(
    name_or_path: str | os.PathLike,
    data_dir: str | os.PathLike | None = None,
    image_size: int | None = None,
    seed: int = 0,
) -> Dataset:
    """`digits` (needs no download), `cifar10`, `cifar100`, an `.npz` of uint8 images, or a folder of class photos.

    An .npz has train_images, train_labels, test_images, test_labels (MedMNIST's names; N×H×W or N×H×W×3). CIFAR is
    downloaded once, from `$MNV3NB_MIRROR` or its home, into `data_dir` (None: `$MNV3NB_DATA`, else `data/`). Of a folder
    without test/, a fifth of each class, drawn by `seed`, is for testing; images become squares of `image_size` pixels
    (None: the median shorter side, at most 224), kept as a memory-mapped .npz in `data_dir`; broken files are named.
    Raises FileNotFoundError or ValueError that says what is wrong.
    """
    if image_size is not None:
        check_size(image_size)
    # images are put into an order of their own content: the same data give the same runs wherever the file came from
    name = os.fspath(name_or_path)
    if name == "digits":
        return _verified(name, _digits())
    folder = Path(data_dir or os.environ.get("MNV3NB_DATA") or default_home() / "data")
    if name not in NAMES and os.path.isdir(name):
        return _read_folder(Path(name), folder, image_size, seed)
    path = Path(name) if name.endswith(".npz") else folder / f"{name}.npz"
    if not name.endswith(".npz"):
        lookup(CHECKSUMS, name, "data set", ", or the path of an .npz file or of a folder of class folders")
    if not path.exists():
        if name not in NAMES:
            raise FileNotFoundError(f"no data file {path}; give the path of an .npz with {', '.join(SPLITS)}")
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):  # of several processes one downloads
            if not path.exists():
                _download_cifar(name, path)
    if name not in NAMES:
        return _read_npz(path)
    try:
        return _verified(name, _read_npz(path))
    except ValueError as error:
        raise ValueError(f"{error}; remove {path}, and it is fetched again") from error


def check_size(size: int) -> int:
    """`size`; raises ValueError unless it is a number of pixels, since a stranger's file may hold anything."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"the image size must be an integer of at least 1 pixel, got {size!r}")
    return size


def data_checksum(name_or_path: str | os.PathLike) -> str:
    """What names a data set's content, 16 hex digits; for the named ones it is known without having the data."""
    name = os.fspath(name_or_path)
    return CHECKSUMS.get(name) or content_checksum(load_once(name))


def content_checksum(dataset: Dataset) -> str:
    """SHA-256 (first 16 hex digits) of all images and labels and the number of classes."""
    digest = hashlib.sha256(f"{len(dataset.classes)}".encode())
    for name in SPLITS:
        for part in getattr(dataset, name).split(1024):  # mapped data need not fit into memory
            digest.update(np.ascontiguousarray(part.numpy()).data)
    return digest.hexdigest()[:16]


def load_once(name: str) -> Dataset:
    """`load_dataset`, remembered as long as the file does not change."""
    path = Path(name)
    return _remembered(name, path.stat().st_mtime_ns if path.is_file() else 0)


@lru_cache(maxsize=3)
def _remembered(name: str, changed: int) -> Dataset:
    return load_dataset(name)


def _digits() -> Dataset:
    """scikit-learn's 1 797 handwritten digits, 8×8 grey; every fifth image is a test image."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ModuleNotFoundError("the digits data set needs scikit-learn: pip install scikit-learn") from None
    images, labels = load_digits(return_X_y=True)
    images = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    test = np.arange(len(images)) % 5 == 0
    arrays = (images[~test], labels[~test], images[test], labels[test])
    return _dataset("digits", dict(zip(SPLITS, arrays)), tuple("0123456789"))


def _read_folder(folder: Path, cache: Path, image_size: int | None, seed: int) -> Dataset:
    classes, splits = photos.find_images(folder, seed)
    stats = [(split, str(path), path.stat()) for split, images in splits.items() for path, _ in images]
    files = [(split, path, stat.st_size, stat.st_mtime_ns) for split, path, stat in stats]
    fingerprint = hashlib.sha256(repr((classes, files)).encode()).hexdigest()
    named = hashlib.sha256(repr((str(folder.resolve()), image_size, seed)).encode()).hexdigest()[:12]
    path = cache / f"{folder.resolve().name}-{named}.npz"
    beside = path.with_suffix(".json")
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):  # of several processes one reads the images
        about = json.loads(beside.read_text()) if beside.is_file() and path.is_file() else {}
        if about.get("fingerprint") != fingerprint or _mapped_checksum(path) != about.get("checksum"):
            about = photos.store_images(classes, splits, path, image_size) | {"fingerprint": fingerprint}
            about["checksum"] = _mapped_checksum(path)
            write_file(beside, json.dumps(about, indent=1))
    return photos.map_images(path)


def _mapped_checksum(path: Path) -> str | None:
    try:
        return content_checksum(photos.map_images(path))
    except Exception:  # damaged, in whatever way
        return None


def _verified(name: str, dataset: Dataset) -> Dataset:
    if (checksum := content_checksum(dataset)) != CHECKSUMS[name]:
        raise ValueError(
            f"these are not the images and labels of {name} (checksum {checksum}, expected {CHECKSUMS[name]})"
        )
    return dataset


def _download_cifar(name: str, path: Path) -> None:
    from torchvision import datasets

    base = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    mirror = os.environ.get("MNV3NB_MIRROR")
    url = f"{mirror.rstrip('/')}/{base.filename}" if mirror else base.url
    source = type(base.__name__, (base,), {"url": url})
    try:
        splits = [source(path.parent, train=train, download=True) for train in (True, False)]
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"{name} is not at {path} and could not be downloaded from {url} ({error}); "
            "set MNV3NB_MIRROR to the address of a folder that has the archive, or put the .npz there"
        ) from error
    arrays = [a for s in splits for a in (s.data, np.array(s.targets, dtype=np.uint8))]
    with write_atomically(path) as file:
        np.savez(file, classes=np.array(splits[0].classes), **dict(zip(SPLITS, arrays)))


def _read_npz(path: Path) -> Dataset:
    try:
        _check_sizes(path)
        with np.load(path, allow_pickle=False) as archive:
            arrays = {key: archive[key] for key in (*SPLITS, "classes") if key in archive.files}
            present = ", ".join(archive.files) or "nothing"
    except Exception as error:  # whatever zip, its compressions, numpy's headers and Python's tokenizer raise
        raise ValueError(f"{path} is not a whole .npz of plain arrays ({error}); fetch or make it again") from error
    if missing := [key for key in SPLITS if key not in arrays]:
        raise ValueError(f"{path} lacks {', '.join(missing)}; it has {present}")
    names = arrays.pop("classes", None)
    if names is not None and (names.ndim != 1 or len(names) > MAX_CLASSES):
        raise ValueError(f"{path}: classes must be a list of at most {MAX_CLASSES} names, got shape {names.shape}")
    return _dataset(str(path), arrays, None if names is None else tuple(map(str, names)))


def _check_sizes(path: Path) -> None:
    """Refuses an .npz that claims to unpack to more than MAX_BYTES, or whose arrays claim more than their files
    hold."""
    with zipfile.ZipFile(path) as archive:
        if (size := sum(member.file_size for member in archive.infolist())) > MAX_BYTES:
            raise ValueError(f"it claims to unpack to {size} bytes; at most {MAX_BYTES} are allowed")
        for member in archive.infolist():
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{member.filename} is compressed in another way than numpy does")
            with archive.open(member) as file:
                start = file.read(12)
            if int.from_bytes(start[8 : 10 if start[6:7] == b"\x01" else 12], "little") > MAX_HEADER:
                raise ValueError(f"{member.filename} has a header of more than {MAX_HEADER} bytes")
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, _, dtype = read(file)
            if math.prod(shape) * max(1, dtype.itemsize) > member.file_size:
                raise ValueError(f"{member.filename} claims shape {shape} but holds {member.file_size} bytes")


def _dataset(source: str, arrays: dict[str, np.ndarray], classes: tuple[str, ...] | None) -> Dataset:
    tensors = {}
    for split in ("train", "test"):
        images, labels = arrays[f"{split}_images"], arrays[f"{split}_labels"]
        labels = labels.squeeze(-1) if labels.ndim == 2 and labels.shape[1] == 1 else labels
        if images.dtype != np.uint8 or not (images.ndim == 3 or (images.ndim == 4 and images.shape[-1] == 3)):
            raise ValueError(
                f"{source}: {split}_images must be uint8 N×H×W or N×H×W×3, got {images.dtype} {images.shape}"
            )
        if labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
            raise ValueError(
                f"{source}: {split}_labels must be {len(images)} integers, got {labels.dtype} {labels.shape}"
            )
        if 0 in images.shape:
            raise ValueError(f"{source}: the {split} split is empty")
        allowed = MAX_CLASSES if classes is None else len(classes)
        if labels.min() < 0 or labels.max() >= allowed:
            raise ValueError(
                f"{source}: labels run from {labels.min()} to {labels.max()}, allowed are 0 to {allowed - 1}"
            )
        labels = labels.astype(np.int64)
        pairs = (
            image.tobytes() + bytes(int(label)) for image, label in zip(images, labels)
        )  # a label: so many zero bytes
        order = np.argsort([hashlib.blake2b(pair, digest_size=8).digest() for pair in pairs])
        images = images[order]
        images = np.repeat(images[:, None], 3, axis=1) if images.ndim == 3 else images.transpose(0, 3, 1, 2)
        tensors[f"{split}_images"] = torch.from_numpy(np.ascontiguousarray(images))
        tensors[f"{split}_labels"] = torch.from_numpy(labels[order])
    if tensors["train_images"].shape[1:] != tensors["test_images"].shape[1:]:
        raise ValueError(f"{source}: training and test images differ in size")
    if classes is None:
        classes = tuple(str(i) for i in range(max(int(tensors[f"{s}_labels"].max()) for s in ("train", "test")) + 1))
    return Dataset(**tensors, classes=classes)
