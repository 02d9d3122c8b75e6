"""Folders of images of all sizes and colours: found, made squares, kept as one .npz that is memory-mapped."""

import hashlib
import sys
import tempfile
import warnings
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm.auto import tqdm

from ._files import write_atomically
from .data import SPLITS, Dataset

TEST_FOLDERS = ("test", "val", "valid", "validation")
TEST_SHARE = 0.2
LARGEST = 224  # pixels of the stored square's side, where none is asked for
Images = list[tuple[Path, int]]  # path and label


@dataclass(frozen=True)
class Found:
    """The images of `folder`, training and test, in an order drawn by a seed; classes numbered as by ImageFolder."""

    folder: Path
    classes: tuple[str, ...]
    train: Images
    test: Images

    def fingerprint(self) -> str:
        """What changes when a file is added, removed or changed, or the split is another; no file is read."""
        stats = [(str(path), path.stat()) for path, _ in self.train + self.test]
        files = [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]
        return hashlib.sha256(repr((self.classes, len(self.train), files)).encode()).hexdigest()


def find_images(folder: Path, seed: int = 0) -> Found:
    """The images of a folder of class folders, see `load_dataset`.

    Raises ValueError for a folder without class folders, a class without two images (one where there is a test
    folder) or a class that only the test folder has.
    """
    test = next((folder / name for name in TEST_FOLDERS if (folder / name).is_dir()), None)
    train = folder / "train" if (folder / "train").is_dir() else folder
    test = test if train != folder else None
    classes = tuple(path.name for path in _folders(train))
    if not classes:
        raise ValueError(f"{train} has no class folders; give a folder with one folder of images for each class")
    files, least = [_images(train / name, seed) for name in classes], 1 if test else 2
    if few := [f"{name} ({len(f)})" for name, f in zip(classes, files) if len(f) < least]:
        raise ValueError(f"{train}: each class needs at least {least} images; too few have {', '.join(few[:5])}")
    if test:
        if unknown := {path.name for path in _folders(test)} - set(classes):
            raise ValueError(f"{test} has classes that {train} lacks: {', '.join(sorted(unknown)[:5])}")
        return Found(
            folder, classes, _shuffled(files, seed), _shuffled([_images(test / c, seed) for c in classes], seed)
        )
    text = (
        "without a test folder, a fifth of each class is held out for testing: a network trained on these has seen them"
    )
    print(f"{folder}: {text}", file=sys.stderr)
    cuts = [max(1, round(TEST_SHARE * len(f))) for f in files]
    held_out = _shuffled([f[:cut] for f, cut in zip(files, cuts)], seed)
    return Found(folder, classes, _shuffled([f[cut:] for f, cut in zip(files, cuts)], seed), held_out)


def store_images(found: Found, path: Path, image_size: int | None) -> tuple[int, list[str]]:
    """Write the images as squares to the .npz `path`; the side in pixels, and the names of broken files.

    Takes memory for a thousand images only. stderr tells the size, the classes' balance and the broken files. Raises
    ValueError if a class is left without a training image, or the test images are none.
    """
    side, broken, arrays = image_size or _usual_side(found.train), [], {}
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
        for split in ("train", "test"):
            labels, raw = [], Path(scratch, split)
            with open(raw, "wb") as file:
                for pixels, (source, label) in _squares(getattr(found, split), side, found.folder.name):
                    if pixels is None:
                        broken.append(str(source.relative_to(found.folder)))
                    else:
                        file.write(pixels.data)
                        labels.append(label)
            gone = set(range(len(found.classes))) - set(labels) if split == "train" else set()
            if gone or not labels:
                names = ", ".join(found.classes[i] for i in sorted(gone)[:5]) or "of all classes"
                raise ValueError(f"{found.folder}: no readable {split} image {names}; broken: {', '.join(broken[:5])}")
            arrays[f"{split}_images"] = np.memmap(raw, np.uint8, "r", shape=(len(labels), side, side, 3))
            arrays[f"{split}_labels"] = np.array(labels)
        with write_atomically(path, sum(array.nbytes for array in arrays.values())) as file:
            np.savez(file, classes=np.array(found.classes), **arrays)
        counts = np.bincount(arrays["train_labels"])
    few, most = found.classes[counts.argmin()], found.classes[counts.argmax()]
    text = f"{found.folder}: {counts.sum()} training and {len(labels)} test images of {len(counts)} classes, from "
    text += f"{counts.min()} ({few}) to {counts.max()} ({most}) per class, kept as {side}×{side} pixels in {path}"
    if broken:
        text += f"; {len(broken)} broken files left out: {', '.join(broken[:5])}{' ...' if len(broken) > 5 else ''}"
    print(text, file=sys.stderr)
    return side, broken


def map_images(path: Path) -> Dataset:
    """The data set that `store_images` wrote: its images stay on the disk and are read where they are used."""
    with np.load(path, allow_pickle=False) as archive:
        labels = {name: torch.from_numpy(archive[name]) for name in SPLITS if name.endswith("labels")}
        classes = tuple(map(str, archive["classes"]))
    images = {name: _mapped(path, f"{name}.npy").permute(0, 3, 1, 2) for name in SPLITS if name.endswith("images")}
    return Dataset(**images, **labels, classes=classes, mapped=True)


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "__")))


def _images(folder: Path, seed: int) -> list[Path]:
    """All images below `folder`, in an order drawn by `seed` from their names."""
    found = [path for path in folder.rglob("*") if path.suffix.lower() in IMG_EXTENSIONS and path.is_file()]
    return sorted(found, key=lambda path: _place(path, seed))


def _shuffled(files: list[list[Path]], seed: int) -> Images:
    pairs = [(path, label) for label, part in enumerate(files) for path in part]
    return sorted(pairs, key=lambda pair: _place(pair[0], seed))


def _place(path: Path, seed: int) -> bytes:
    name = f"{seed} {path.parent.name}/{path.name}"  # wherever the folder is
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


def _usual_side(images: Images) -> int:
    """The median shorter side, of a thousand images at most."""
    sides = []
    for path, _ in images[:1000]:
        try:
            with Image.open(path) as image:
                sides.append(min(image.size))
        except Exception:  # broken: named when it is read
            continue
    return min(LARGEST, int(np.median(sides))) if sides else LARGEST


def _squares(images: Images, side: int, label: str):
    """(pixels or None if broken, (path, label)) of each image in order, so many at once."""
    with ThreadPoolExecutor() as pool, tqdm(total=len(images), desc=label, unit="image", disable=None) as bar:
        for start in range(0, len(images), 256):
            part = images[start : start + 256]
            yield from zip(pool.map(lambda pair: _square(pair[0], side), part), part)
            bar.update(len(part))


def _square(path: Path, side: int) -> np.ndarray | None:
    try:
        with Image.open(path) as image:
            image.draft("RGB", (side, side))  # a JPEG much larger is decoded at a fraction of its size
            image = ImageOps.exif_transpose(image)
            if image.mode.startswith("I"):  # 16 bits
                image = Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))
            return np.asarray(ImageOps.fit(image.convert("RGB"), (side, side), Image.Resampling.BILINEAR))
    except Exception:  # each format has errors of its own
        return None


def _mapped(path: Path, name: str) -> Tensor:
    """The uint8 array `name` of an uncompressed .npz, read-only."""
    with zipfile.ZipFile(path) as archive, open(path, "rb") as file:
        start = archive.getinfo(name).header_offset
        file.seek(start + 26)  # of the member's own header: the lengths of its name and its extra field
        start += 30 + sum(np.frombuffer(file.read(4), "<u2").tolist())
        file.seek(start)
        np.lib.format.read_magic(file)
        shape, _, _ = np.lib.format.read_array_header_1_0(file)
        array = np.memmap(path, np.uint8, "r", offset=file.tell(), shape=shape)
    with warnings.catch_warnings(action="ignore"):  # that it is read-only
        return torch.from_numpy(array)
