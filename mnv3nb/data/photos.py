"""A folder of photos with one folder per class: its classes, its two splits, and each photo as a square."""

import hashlib
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps
from torchvision.datasets.folder import IMG_EXTENSIONS
from tqdm import tqdm  # not tqdm.auto: a notebook's widget bar stays at 0 % in saved copies

TEST_FOLDERS = ("test", "val", "valid", "validation")  # the first one that has class folders is taken
TEST_SHARE = 0.2  # of each class, where there is no such folder
CHUNK = 256  # squares that are in memory at the same time


class Photo(NamedTuple):
    path: Path
    label: int  # index into the classes


@dataclass(frozen=True)
class PhotoSet:
    classes: tuple[str, ...]  # in alphabetical order, as in torchvision's ImageFolder
    splits: dict[str, list[Photo]]  # "train" and "test", each in an order that the seed draws


def find_photos(folder: Path, seed: int = 0) -> PhotoSet:
    """Find the photos below `folder`, or below its train/ and its test folder if it has them.

    `seed` draws the order, and the test photos where there is no test folder. Raises ValueError if there are fewer
    than two class folders, if a class has too few photos, or if the test folder has a class that train/ lacks.
    """
    train_folder = folder / "train" if (folder / "train").is_dir() else folder
    test_folder = _find_test_folder(folder)
    classes = _class_names(train_folder)
    _check_classes(folder, train_folder, test_folder, classes)

    train: list[Photo] = []
    test: list[Photo] = []
    too_few = []
    for label, name in enumerate(classes):
        train_paths = _image_paths(train_folder / name, seed)
        if test_folder:
            test_paths = _image_paths(test_folder / name, seed)
        else:
            held_out = max(1, round(TEST_SHARE * len(train_paths)))
            test_paths = train_paths[:held_out]
            train_paths = train_paths[held_out:]
        if not train_paths:
            too_few.append(name)
        train += [Photo(path, label) for path in train_paths]
        test += [Photo(path, label) for path in test_paths]

    if too_few:
        needed = "one image" if test_folder else "two images, one of them to test on"
        raise ValueError(f"{train_folder}: each class needs at least {needed}; add images to {', '.join(too_few[:5])}")
    if not test_folder:
        print(
            f"{folder.name}: without a test folder, a fifth of each class is held out for testing; "
            "a network that was trained on these photos before has seen that fifth",
            file=sys.stderr,
        )
    for photos in (train, test):
        photos.sort(key=lambda photo: _place(photo.path, seed))
    return PhotoSet(classes, {"train": train, "test": test})


def median_side(photos: list[Photo]) -> int | None:
    """The median of the shorter sides in pixels, of 1000 photos at most; None if all of these are broken."""
    sides = []
    for path, _ in photos[:1000]:
        try:
            with Image.open(path) as image:
                sides.append(min(image.size))
        except Exception:  # a broken file is named when it is read as a square
            continue
    return int(np.median(sides)) if sides else None


def read_squares(photos: list[Photo], side: int) -> Iterator[tuple[Photo, np.ndarray | None]]:
    """Each photo with its square, uint8 (side, side, 3), or None for a broken file; shows a progress bar."""
    with ThreadPoolExecutor() as pool, tqdm(total=len(photos), desc="images", disable=None) as bar:
        for start in range(0, len(photos), CHUNK):
            chunk = photos[start : start + CHUNK]
            squares = pool.map(_read_square, [photo.path for photo in chunk], repeat(side))
            yield from zip(chunk, squares)
            bar.update(len(chunk))


def _find_test_folder(folder: Path) -> Path | None:
    for name in TEST_FOLDERS:
        if _class_names(folder / name):
            return folder / name
    return None


def _class_names(folder: Path) -> tuple[str, ...]:
    names = [path.name for path in folder.glob("*") if path.is_dir()]
    return tuple(sorted(name for name in names if not name.startswith((".", "__"))))


def _check_classes(folder: Path, train_folder: Path, test_folder: Path | None, classes: tuple[str, ...]) -> None:
    if test_folder and train_folder == folder:
        raise ValueError(
            f"{folder} has class folders in {test_folder.name}/ but no train/; name the folder beside it train"
        )
    if len(classes) < 2:
        found = f"only one class folder, {classes[0]}" if classes else "no class folders"
        raise ValueError(f"{train_folder} has {found}; give a folder with one folder of images per class")
    if test_folder:
        unknown = sorted(set(_class_names(test_folder)) - set(classes))
        if unknown:
            raise ValueError(
                f"{test_folder} has classes that {train_folder} lacks: {', '.join(unknown[:5])}; "
                "add training images of them or remove these folders"
            )


def _image_paths(folder: Path, seed: int) -> list[Path]:
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in IMG_EXTENSIONS and path.is_file()]
    return sorted(paths, key=lambda path: (_place(path, seed), path))


def _place(path: Path, seed: int) -> bytes:
    """A photo's place in the order; it depends on its name and class only, so a folder can be moved."""
    name = f"{seed} {path.parent.name}/{path.name}"
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


def _read_square(path: Path, side: int) -> np.ndarray | None:
    """The photo upright, in RGB, its shorter side resized to `side` and its centre cropped; None for a broken file."""
    try:
        with Image.open(path) as image:
            image.draft("RGB", (side, side))  # decodes a much larger JPEG at a fraction of its size
            upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith("I"):
            upright = _to_8_bits(upright)
        square = ImageOps.fit(upright.convert("RGB"), (side, side), Image.Resampling.BILINEAR)
    except Exception:  # each image format raises errors of its own
        return None
    return np.asarray(square)


def _to_8_bits(image: Image.Image) -> Image.Image:
    """A 16-bit grey image reduced to its upper 8 bits; Pillow's own conversion clips the values instead."""
    values = np.asarray(image) >> 8
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))
