"""Folders of images of all sizes and colours, kept as one .npz of equal squares that is memory-mapped."""

import hashlib
import sys
import tempfile
import warnings
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm  # not a notebook's bar, which stays at 0 in saved copies

from ..system.files import write_atomically
from .batches import SPLITS, Dataset

TEST_FOLDERS = ("test", "val", "valid", "validation")
TEST_SHARE = 0.2
LARGEST = 224  # pixels of the stored square's side, where none is asked for
Images = list[tuple[Path, int]]  # path and label
T = TypeVar("T")


def find_images(folder: Path, seed: int = 0) -> tuple[tuple[str, ...], dict[str, Images]]:
    """Classes, numbered as by torchvision's ImageFolder, and images to "train" and "test", in an order drawn by `seed`.

    See `load_dataset`. Raises ValueError for no class folders, a class that has too few images, or one only to test.
    """
    train = folder / "train" if (folder / "train").is_dir() else folder
    test = next((folder / name for name in TEST_FOLDERS if _classes(folder / name)), None)
    classes = _classes(train)
    if test and train == folder:
        raise ValueError(f"{folder} has class folders in {test.name}/ but no train/; name the folder beside it train")
    if len(classes) < 2:
        names = f"one class folder only, {classes[0]}" if classes else "no class folders"
        raise ValueError(f"{train} has {names}; give a folder with one folder of images for each class")
    if test and (unknown := set(_classes(test)) - set(classes)):
        raise ValueError(f"{test} has classes that {train} lacks: {', '.join(sorted(unknown)[:5])}")
    files = [_images(train / name, seed) for name in classes]
    if test:
        tests = [_images(test / name, seed) for name in classes]
    else:
        tests = [part[: max(1, round(TEST_SHARE * len(part)))] for part in files]
        files = [part[len(held) :] for part, held in zip(files, tests)]
    if few := [name for name, f in zip(classes, files) if not f]:
        needed = "an image" if test else "two images, one of them to test on"
        raise ValueError(f"{train}: each class needs at least {needed}; too few have {', '.join(few[:5])}")
    if not test:
        text = "without a test folder, a fifth of each class is held out: a network trained on these photos has seen it"
        print(f"{folder.name}: {text}", file=sys.stderr)
    splits = {"train": files, "test": tests}
    pairs = {split: [(path, i) for i, part in enumerate(splits[split]) for path in part] for split in splits}
    return classes, {split: sorted(part, key=lambda pair: _place(pair[0], seed)) for split, part in pairs.items()}


def store_images(classes: tuple[str, ...], splits: dict[str, Images], path: Path, size: int | None) -> dict:
    """Write the images as squares of `size` pixels to the .npz `path`; report on stderr what was done, and return it.

    Needs memory for 256 images. Raises ValueError if broken files leave a class, or the tests, without an image.
    """
    about, arrays = {"image_size": size or _usual_side(splits["train"]), "broken": []}, {}
    side = about["image_size"]
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as scratch:
        for split, images in splits.items():
            labels, raw = [], Path(scratch, split)
            with open(raw, "wb") as file:
                for pixels, (source, label) in _squares(images, side):
                    if pixels is None:
                        about["broken"].append(f"{source.parent.name}/{source.name}")
                    else:
                        file.write(pixels.data)
                        labels.append(label)
            gone = sorted(set(range(len(classes))) - set(labels)) if split == "train" or not labels else []
            if gone:
                names = ", ".join(classes[i] for i in gone[:5])
                raise ValueError(f"no readable {split} image of {names}; broken are {', '.join(about['broken'][:5])}")
            arrays[f"{split}_images"] = np.memmap(raw, np.uint8, "r", shape=(len(labels), side, side, 3))
            arrays[f"{split}_labels"] = np.array(labels)
        with write_atomically(path, sum(array.nbytes for array in arrays.values())) as file:
            np.savez(file, classes=np.array(classes), **arrays)
        counts = np.bincount(arrays["train_labels"])
        arrays.clear()  # Windows deletes no file that is mapped
    few, most = counts.argmin(), counts.argmax()
    text = f"{counts.sum()} training and {len(labels)} test images, kept as {side}×{side} pixels in {path.name}; "
    text += f"training images per class: {counts[few]}"
    if counts[few] < counts[most]:
        text += f" ({classes[few]}) to {counts[most]} ({classes[most]})"
    if broken := about["broken"]:
        text += f"; {len(broken)} broken files left out: {', '.join(broken[:5])}{' ...' * (len(broken) > 5)}"
    print(text, file=sys.stderr)
    return about


def map_images(path: Path) -> Dataset:
    """The data set that `store_images` wrote: its images stay on the disk and are read where they are used."""
    with np.load(path, allow_pickle=False) as archive:
        tensors = {name: torch.from_numpy(archive[name]) for name in SPLITS if name.endswith("labels")}
        classes = tuple(map(str, archive["classes"]))
    tensors |= {name: _mapped(path, f"{name}.npy").permute(0, 3, 1, 2) for name in SPLITS if name.endswith("images")}
    return Dataset(**tensors, classes=classes, mapped=True)


def _classes(folder: Path) -> tuple[str, ...]:
    names = (path.name for path in folder.glob("*") if path.is_dir())
    return tuple(sorted(name for name in names if not name.startswith((".", "__"))))


def _images(folder: Path, seed: int) -> list[Path]:
    found = [path for path in folder.rglob("*") if path.suffix.lower() in IMG_EXTENSIONS and path.is_file()]
    return sorted(found, key=lambda path: (_place(path, seed), path))


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


def _squares(images: Images, side: int) -> Iterator[tuple[np.ndarray | None, tuple[Path, int]]]:
    with ThreadPoolExecutor() as pool, tqdm(total=len(images), desc="images", disable=None) as bar:
        for start in range(0, len(images), 256):
            part = images[start : start + 256]
            yield from zip(pool.map(lambda pair: _square(pair[0], side), part), part)
            bar.update(len(part))


def _square(path: Path, side: int) -> np.ndarray | None:
    """The image as RGB, its shorter side resized to `side` and its centre cropped; None if the file is broken."""
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
        file.seek(start + 30 + sum(np.frombuffer(file.read(4), "<u2").tolist()))
        np.lib.format.read_magic(file)
        shape, _, _ = np.lib.format.read_array_header_1_0(file)
        array = np.memmap(path, np.uint8, "r", offset=file.tell(), shape=shape)
    with warnings.catch_warnings(action="ignore"):  # that it is read-only
        return torch.from_numpy(array)
