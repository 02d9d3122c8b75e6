"""Data sets by name (digits, CIFAR) and by path (an .npz, a folder of photos), and the checksum of their content."""

import hashlib
import io
import math
import os
import zipfile
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor

from ..system.files import default_home, unknown_name, write_atomically
from .batches import SPLITS, Dataset
from .squares import load_photos

CHECKSUMS = {"digits": "4d42c5f9864d6187", "cifar10": "5da736c1276b47e1", "cifar100": "e970310d97a10a61"}
MAX_CLASSES = 1 << 16
MAX_BYTES = 16 << 30  # that an .npz may unpack to
MAX_HEADER = 10_000  # bytes that an array's header in an .npz may take; usual are 128


def load_dataset(
    name_or_path: str | os.PathLike,
    data_dir: str | os.PathLike | None = None,
    image_size: int | None = None,
    seed: int = 0,
) -> Dataset:
    """Load `digits` (needs no download), `cifar10`, `cifar100`, an `.npz` of uint8 images, or a folder of class folders.

    An .npz has MedMNIST's names: train_images, train_labels, test_images, test_labels; images are N×H×W or N×H×W×3.
    CIFAR is downloaded once to `data_dir` (None: `$MNV3NB_DATA`, else `data/`), from `$MNV3NB_MIRROR` if that is set.
    Photos in folders become squares of `image_size` pixels (None: their median shorter side, at most 224), which are
    kept in `data_dir` and memory-mapped. Without a folder test/, `seed` draws a fifth of each class for testing.
    Raises FileNotFoundError or ValueError.
    """
    if image_size is not None:
        check_size(image_size)
    source = os.fspath(name_or_path)
    folder = Path(data_dir or os.environ.get("MNV3NB_DATA") or default_home() / "data")
    if source == "digits":
        return _load_digits()
    if source in CHECKSUMS:
        return _load_cifar(source, folder)
    if os.path.isdir(source):
        return load_photos(Path(source), folder, image_size, seed)
    if source.endswith(".npz"):
        return _load_npz(Path(source))
    raise unknown_name(CHECKSUMS, source, "data set", ", or the path of an .npz file or of a folder of class folders")


def check_size(size: int) -> int:
    """Return `size`; raises ValueError unless it is a number of pixels. A file's metadata may hold anything."""
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"the image size must be an integer of at least 1 pixel, got {size!r}")
    return size


def data_checksum(name_or_path: str | os.PathLike) -> str:
    """`content_checksum` of a data set; those with a name are not loaded for it."""
    source = os.fspath(name_or_path)
    if source in CHECKSUMS:
        return CHECKSUMS[source]
    return content_checksum(load_once(source))


def content_checksum(dataset: Dataset) -> str:
    """SHA-256 (its first 16 hex digits) of the number of classes and of all images and labels."""
    digest = hashlib.sha256(str(len(dataset.classes)).encode())
    for name in SPLITS:
        for part in getattr(dataset, name).split(1024):  # memory-mapped images may not fit into memory
            digest.update(np.ascontiguousarray(part.numpy()).data)
    return digest.hexdigest()[:16]


def load_once(name: str) -> Dataset:
    """`load_dataset`, which remembers the last three data sets; a changed .npz is loaded again."""
    path = Path(name)
    changed = path.stat().st_mtime_ns if path.is_file() else 0
    return _load_and_remember(name, changed)


@lru_cache(maxsize=3)
def _load_and_remember(name: str, changed: int) -> Dataset:  # `changed` is part of the key and has no other use
    return load_dataset(name)


def _load_digits() -> Dataset:
    """scikit-learn's 1,797 handwritten digits, 8×8 grey; every fifth image is a test image."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise ModuleNotFoundError("the digits data set needs scikit-learn: pip install scikit-learn") from None
    values, labels = load_digits(return_X_y=True)  # values from 0 to 16
    images = np.rint(values.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    is_test = np.arange(len(images)) % 5 == 0
    arrays = {
        "train_images": images[~is_test],
        "train_labels": labels[~is_test],
        "test_images": images[is_test],
        "test_labels": labels[is_test],
    }
    dataset = _make_dataset("digits", arrays, tuple("0123456789"))
    _check_content("digits", dataset)
    return dataset


def _load_cifar(name: str, folder: Path) -> Dataset:
    path = folder / f"{name}.npz"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):  # if several processes want it, one downloads and the others wait
            if not path.exists():
                _download_cifar(name, path)
    try:
        dataset = _load_npz(path)
        _check_content(name, dataset)
    except ValueError as error:
        raise ValueError(f"{error}; remove {path}, and it is fetched again") from error
    return dataset


def _check_content(name: str, dataset: Dataset) -> None:
    checksum = content_checksum(dataset)
    if checksum != CHECKSUMS[name]:
        raise ValueError(
            f"these are not the images and labels of {name} (checksum {checksum}, expected {CHECKSUMS[name]})"
        )


def _download_cifar(name: str, path: Path) -> None:
    """Download CIFAR's archive, verify it (torchvision does both), and write its images to the .npz `path`."""
    from torchvision import datasets

    original = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    mirror = os.environ.get("MNV3NB_MIRROR")
    address = f"{mirror.rstrip('/')}/{original.filename}" if mirror else original.url

    class Cifar(original):
        url = address

    try:
        train = Cifar(path.parent, train=True, download=True)
        test = Cifar(path.parent, train=False, download=True)
    except (OSError, RuntimeError) as error:
        raise FileNotFoundError(
            f"{name} is not at {path} and could not be downloaded from {address} ({error}); "
            "set MNV3NB_MIRROR to the address of a folder that has the archive, or put the .npz there"
        ) from error
    with write_atomically(path) as file:
        np.savez(
            file,
            classes=np.array(train.classes),
            train_images=train.data,
            train_labels=np.array(train.targets, dtype=np.uint8),
            test_images=test.data,
            test_labels=np.array(test.targets, dtype=np.uint8),
        )


def _load_npz(path: Path) -> Dataset:
    if not path.exists():
        raise FileNotFoundError(f"no data file {path}; give the path of an .npz with {', '.join(SPLITS)}")
    arrays, present = _read_arrays(path)
    missing = [name for name in SPLITS if name not in arrays]
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)}; it has {', '.join(present) or 'nothing'}")
    classes = arrays.get("classes")
    if classes is None:
        return _make_dataset(str(path), arrays, None)
    if classes.ndim != 1 or len(classes) > MAX_CLASSES:
        raise ValueError(f"{path}: classes must be a list of at most {MAX_CLASSES} names, got shape {classes.shape}")
    return _make_dataset(str(path), arrays, tuple(str(name) for name in classes))


def _read_arrays(path: Path) -> tuple[dict[str, np.ndarray], list[str]]:
    """The arrays of an .npz that we use, and the names of all arrays in it."""
    try:
        _check_sizes(path)
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files if name in (*SPLITS, "classes")}
            return arrays, archive.files
    except Exception as error:  # zipfile, its compressions and numpy's parser of headers raise errors of many types
        raise ValueError(f"{path} is not a whole .npz of plain arrays ({error}); fetch or make it again") from error


def _check_sizes(path: Path) -> None:
    """Raise ValueError, before memory is taken, for an .npz whose arrays are too large or claim more than is there."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
        total = sum(member.file_size for member in members)
        if total > MAX_BYTES:
            raise ValueError(f"it claims to unpack to {total} bytes; at most {MAX_BYTES} are allowed")
        for member in members:
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ValueError(f"{member.filename} is compressed in another way than numpy does")
            with archive.open(member) as file:
                start = file.read(MAX_HEADER)  # a longer header is cut off here, and numpy refuses it
            shape, dtype = _read_header(start)
            if math.prod(shape) * max(1, dtype.itemsize) > member.file_size:
                raise ValueError(f"{member.filename} claims shape {shape} but holds {member.file_size} bytes")


def _read_header(start: bytes) -> tuple[tuple[int, ...], np.dtype]:
    file = io.BytesIO(start)
    if np.lib.format.read_magic(file) == (1, 0):
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    else:
        shape, _, dtype = np.lib.format.read_array_header_2_0(file)
    return shape, dtype


def _make_dataset(source: str, arrays: dict[str, np.ndarray], classes: tuple[str, ...] | None) -> Dataset:
    """Check the arrays of both splits and put them into an order of their own; without `classes`, labels name them.

    `source` is what error messages name.
    """
    num_classes = MAX_CLASSES if classes is None else len(classes)
    tensors: dict[str, Tensor] = {}
    for split in ("train", "test"):
        images = arrays[f"{split}_images"]
        labels = arrays[f"{split}_labels"]
        if labels.ndim == 2 and labels.shape[1] == 1:  # MedMNIST's labels are a column
            labels = labels[:, 0]
        _check_images(f"{source}: {split}_images", images)
        _check_labels(f"{source}: {split}_labels", labels, len(images), num_classes)
        labels = labels.astype(np.int64)
        order = _order_by_content(images, labels)
        tensors[f"{split}_images"] = _to_nchw(images[order])
        tensors[f"{split}_labels"] = torch.from_numpy(labels[order])

    if tensors["train_images"].shape[1:] != tensors["test_images"].shape[1:]:
        raise ValueError(f"{source}: training and test images differ in size")
    if classes is None:
        highest = max(tensors["train_labels"].max(), tensors["test_labels"].max())
        classes = tuple(str(label) for label in range(int(highest) + 1))
    return Dataset(**tensors, classes=classes)


def _check_images(what: str, images: np.ndarray) -> None:
    grey = images.ndim == 3
    colour = images.ndim == 4 and images.shape[-1] == 3
    if images.dtype != np.uint8 or not (grey or colour):
        raise ValueError(f"{what} must be uint8 N×H×W or N×H×W×3, got {images.dtype} {images.shape}")
    if images.size == 0:
        raise ValueError(f"{what} must not be empty, got shape {images.shape}")


def _check_labels(what: str, labels: np.ndarray, count: int, num_classes: int) -> None:
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"{what} must be {count} integers, got {labels.dtype} {labels.shape}")
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"{what} run from {labels.min()} to {labels.max()}, allowed are 0 to {num_classes - 1}")


def _order_by_content(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """An order that depends on the content only: the same images and labels give the same runs from any file."""
    digests = []
    for image, label in zip(images, labels):
        content = image.tobytes() + bytes(int(label))  # the label as that many zero bytes
        digests.append(hashlib.blake2b(content, digest_size=8).digest())
    return np.argsort(digests)


def _to_nchw(images: np.ndarray) -> Tensor:
    """Images N×H×W or N×H×W×3 as a contiguous tensor (N, 3, H, W); grey images get three equal channels."""
    if images.ndim == 3:
        images = np.repeat(images[..., None], 3, axis=-1)
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
