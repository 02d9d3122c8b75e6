"""Loading data: the formats, what is refused and in which words, the CIFAR download, and photos kept on the disk."""

import functools
import hashlib
import http.server
import io
import itertools
import os
import pickle
import shutil
import tarfile
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import FORK
from torchvision import datasets

from mnv3nb import load_dataset
from mnv3nb.data import photos as photos_module
from mnv3nb.data.batches import SPLITS
from mnv3nb.data.datasets import CHECKSUMS, content_checksum, data_checksum
from mnv3nb.system.files import default_home


def arrays(
    count: int = 12, classes: int = 3, shape: tuple[int, ...] = (8, 8, 3), seed: int = 0
) -> dict[str, np.ndarray]:
    """A data set with MedMNIST's names; the test split is half as large."""
    rng = np.random.default_rng(seed)
    return {
        "train_images": rng.integers(0, 256, (count, *shape), dtype=np.uint8),
        "train_labels": np.arange(count, dtype=np.uint8) % classes,
        "test_images": rng.integers(0, 256, (count // 2, *shape), dtype=np.uint8),
        "test_labels": np.arange(count // 2, dtype=np.uint8) % classes,
    }


def write(path, **contents):
    np.savez(path, **contents)
    return path


def by_content(images: torch.Tensor, labels: torch.Tensor) -> list[tuple[bytes, int]]:
    """Images and labels in an order that does not depend on theirs."""
    return sorted((image.numpy().tobytes(), int(label)) for image, label in zip(images, labels))


# formats


def test_digits_are_1797_images_and_need_no_download(digits):
    assert digits.train_images.shape == (1437, 3, 8, 8)
    assert digits.test_images.shape == (360, 3, 8, 8)
    assert digits.train_images.dtype == torch.uint8
    assert digits.train_labels.dtype == torch.int64
    assert digits.train_images.min() == 0
    assert digits.train_images.max() == 255
    assert digits.classes == tuple("0123456789")
    assert set(digits.train_labels.tolist()) == set(digits.test_labels.tolist()) == set(range(10))
    assert content_checksum(digits) == CHECKSUMS["digits"] == data_checksum("digits")


def test_no_digit_is_in_both_splits(digits):
    train = {image for image, _ in by_content(digits.train_images, digits.train_labels)}
    test = {image for image, _ in by_content(digits.test_images, digits.test_labels)}
    assert not train & test


def test_digits_are_those_of_scikit_learn(digits):
    from sklearn.datasets import load_digits

    values, labels = load_digits(return_X_y=True)
    images = torch.tensor(np.rint(values * 255 / 16), dtype=torch.uint8).reshape(-1, 1, 8, 8).expand(-1, 3, -1, -1)
    our_images = torch.cat([digits.train_images, digits.test_images])
    our_labels = torch.cat([digits.train_labels, digits.test_labels])
    assert by_content(our_images, our_labels) == by_content(images, torch.tensor(labels))


def test_colour_images_keep_their_pixels_and_labels(tmp_path):
    contents = arrays()
    data = load_dataset(write(tmp_path / "d.npz", **contents))
    assert data.train_images.shape == (12, 3, 8, 8)
    assert data.test_images.shape == (6, 3, 8, 8)
    assert data.train_images.is_contiguous()
    images = torch.tensor(contents["train_images"]).permute(0, 3, 1, 2)
    labels = torch.tensor(contents["train_labels"])
    assert by_content(data.train_images, data.train_labels) == by_content(images, labels)


def test_grey_images_and_a_column_of_labels_are_read_as_in_medmnist(tmp_path):
    grey = arrays(shape=(28, 28))
    medmnist = {
        **grey,
        "train_labels": grey["train_labels"][:, None],
        "test_labels": grey["test_labels"][:, None],
        "val_images": np.zeros((2, 28, 28), np.uint8),
        "val_labels": np.zeros((2, 1), np.uint8),
    }
    expected = load_dataset(write(tmp_path / "grey.npz", **grey))
    data = load_dataset(write(tmp_path / "medmnist.npz", **medmnist))
    assert data.train_images.shape == (12, 3, 28, 28)
    assert data.train_labels.shape == (12,)
    assert torch.equal(data.train_images[:, 0], data.train_images[:, 1])
    assert torch.equal(data.train_images[:, 0], data.train_images[:, 2])
    assert content_checksum(data) == content_checksum(expected)


def test_classes_have_the_names_in_the_file(tmp_path):
    names = ("cat", "dog", "owl", "unseen")
    data = load_dataset(write(tmp_path / "d.npz", **arrays(), classes=np.array(names)))
    assert data.classes == names


def test_classes_without_names_are_numbered(tmp_path):
    assert load_dataset(write(tmp_path / "d.npz", **arrays())).classes == ("0", "1", "2")


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64])
def test_the_type_of_integer_labels_does_not_matter(tmp_path, dtype):
    contents = arrays()
    converted = {
        **contents,
        "train_labels": contents["train_labels"].astype(dtype),
        "test_labels": contents["test_labels"].astype(dtype),
    }
    one = load_dataset(write(tmp_path / "a.npz", **contents))
    two = load_dataset(write(tmp_path / "b.npz", **converted))
    assert content_checksum(one) == content_checksum(two)


def test_the_order_in_the_file_does_not_matter(tmp_path):
    """Not even if an image is in it several times, with the same label or with another one."""
    contents = arrays(count=40)
    contents["train_images"][5:8] = contents["train_images"][4]
    one = load_dataset(write(tmp_path / "one.npz", **contents))
    rng = np.random.default_rng(1)
    for trial in range(3):
        shuffled = {}
        for split in ("train", "test"):
            order = rng.permutation(len(contents[f"{split}_labels"]))
            shuffled[f"{split}_images"] = contents[f"{split}_images"][order]
            shuffled[f"{split}_labels"] = contents[f"{split}_labels"][order]
        two = load_dataset(write(tmp_path / f"{trial}.npz", **shuffled))
        assert all(torch.equal(getattr(one, name), getattr(two, name)) for name in SPLITS)
        assert content_checksum(one) == content_checksum(two)


def test_images_are_not_sorted_by_class(tmp_path):
    labels = load_dataset(write(tmp_path / "d.npz", **arrays(count=40))).train_labels
    assert not torch.equal(labels, labels.sort().values)


@pytest.mark.parametrize("name", SPLITS)
def test_other_content_has_another_checksum(tmp_path, name):
    contents = arrays()
    before = content_checksum(load_dataset(write(tmp_path / "d.npz", **contents)))
    contents[name].flat[0] = (contents[name].flat[0] + 1) % 3
    write(tmp_path / "d.npz", **contents)
    after = content_checksum(load_dataset(tmp_path / "d.npz"))
    assert after != before
    assert data_checksum(tmp_path / "d.npz") == after


# what is refused


def changed(name, value):
    """An edit of `arrays()`: `value` applied to the array `name`."""

    def edit(contents):
        return {**contents, name: value(contents[name])}

    return edit


REFUSED = {
    "a split is missing": (
        lambda contents: {name: contents[name] for name in SPLITS[:2]},
        r"lacks test_images, test_labels; it has train_images, train_labels",
    ),
    "other names": (
        lambda contents: {"x": contents["train_images"]},
        r"lacks train_images, train_labels, test_images, test_labels; it has x",
    ),
    "no arrays": (lambda contents: {}, r"lacks train_images, .*; it has nothing"),
    "float images": (
        changed("train_images", lambda images: images / 255),
        r"train_images must be uint8 N×H×W or N×H×W×3, got float64 \(12, 8, 8, 3\)",
    ),
    "images out of range": (
        changed("test_images", lambda images: images.astype(np.int64) + 300),
        r"test_images must be uint8 .* got int64 \(6, 8, 8, 3\)",
    ),
    "two channels": (
        changed("train_images", lambda images: images[..., :2]),
        r"train_images must be uint8 .* got uint8 \(12, 8, 8, 2\)",
    ),
    "a single row": (
        changed("train_images", lambda images: images[0, 0]),
        r"train_images must be uint8 .* got uint8 \(8, 3\)",
    ),
    "objects": (
        changed("train_images", lambda images: images.astype(object)),
        r"d\.npz is not a whole \.npz of plain arrays",
    ),
    "empty split": (
        lambda contents: {
            **contents,
            "test_images": contents["test_images"][:0],
            "test_labels": contents["test_labels"][:0],
        },
        r"test_images must not be empty, got shape \(0, 8, 8, 3\)",
    ),
    "splits of two sizes": (
        changed("test_images", lambda images: images[:, :4]),
        r"training and test images differ in size",
    ),
    "a label too few": (
        changed("train_labels", lambda labels: labels[:-1]),
        r"train_labels must be 12 integers, got uint8 \(11,\)",
    ),
    "float labels": (
        changed("train_labels", lambda labels: labels + 0.5),
        r"train_labels must be 12 integers, got float64 \(12,\)",
    ),
    "one-hot labels": (
        changed("train_labels", lambda labels: np.eye(3)[labels]),
        r"train_labels must be 12 integers, got float64 \(12, 3\)",
    ),
    "negative labels": (
        changed("test_labels", lambda labels: labels.astype(np.int64) - 1),
        r"test_labels run from -1 to 1, allowed are 0 to 65535",
    ),
    "huge labels": (
        changed("train_labels", lambda labels: labels.astype(np.uint64) + 2**63),
        r"train_labels run from 9223372036854775808 to",
    ),
    "a label without a name": (
        lambda contents: {**contents, "classes": np.array(["a", "b"])},
        r"train_labels run from 0 to 2, allowed are 0 to 1",
    ),
    "a table of names": (
        lambda contents: {**contents, "classes": np.array([["a", "b", "c"]])},
        r"classes must be a list of at most 65536 names, got shape \(1, 3\)",
    ),
}


@pytest.mark.parametrize(("edit", "message"), REFUSED.values(), ids=REFUSED)
def test_a_file_that_holds_no_such_data_set_is_refused(tmp_path, edit, message):
    path = write(tmp_path / "d.npz", **edit(arrays()))
    with pytest.raises(ValueError, match=message) as error:
        load_dataset(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_truncated_and_foreign_files_are_refused(tmp_path):
    whole = write(tmp_path / "whole.npz", **arrays()).read_bytes()
    contents = {
        "cut.npz": whole[: len(whole) // 2],
        "empty.npz": b"",
        "text.npz": b"hello",
        "pickle.npz": pickle.dumps({"a": 1}),
        "flipped.npz": whole[:300] + b"!" + whole[301:],
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name} is not a whole \.npz of plain arrays .*fetch or make it again"):
            load_dataset(tmp_path / name)


def test_an_npz_of_more_than_16_gib_is_refused_before_it_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("mnv3nb.data.datasets.MAX_BYTES", 2000)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("read"))
    with pytest.raises(ValueError, match=r"claims to unpack to \d+ bytes; at most 2000 are allowed"):
        load_dataset(write(tmp_path / "d.npz", **arrays()))


@pytest.mark.parametrize("name", ["cifar", "digit", "mnist", "cifar1000"])
def test_an_unknown_name_is_refused_with_all_that_are_allowed(name):
    message = (
        rf"unknown data set '{name}'; .*Allowed: digits, cifar10, cifar100, or the path of an \.npz file or of a folder"
    )
    with pytest.raises(ValueError, match=message):
        load_dataset(name)


@pytest.mark.parametrize(("name", "nearest"), [("cifar", "cifar10"), ("digit", "digits"), ("cifar1000", "cifar100")])
def test_an_unknown_name_is_answered_with_the_nearest_one(name, nearest):
    with pytest.raises(ValueError, match=rf"did you mean '{nearest}'\?"):
        load_dataset(name)


def test_a_missing_file_is_refused(tmp_path):
    message = r"no data file .*none\.npz; give the path of an \.npz with train_images, train_labels"
    with pytest.raises(FileNotFoundError, match=message):
        load_dataset(tmp_path / "none.npz")


@pytest.mark.parametrize("size", [0, -5, 32.0, True])
def test_an_image_size_that_is_no_number_of_pixels_is_refused(tmp_path, size):
    with pytest.raises(ValueError, match=f"at least 1 pixel, got {size}"):
        load_dataset(tmp_path, image_size=size)


def test_other_data_under_a_known_name_are_refused(tmp_path):
    write(tmp_path / "cifar10.npz", **arrays(classes=10, shape=(32, 32, 3)))
    message = (
        r"not the images and labels of cifar10 \(checksum \w+, expected 5da736c1276b47e1\); "
        r"remove .*cifar10\.npz, and it is fetched again"
    )
    with pytest.raises(ValueError, match=message):
        load_dataset("cifar10", tmp_path)


def test_data_are_looked_for_in_the_argument_then_the_variable_then_the_home(tmp_path, monkeypatch):
    checksums = {}
    for seed, place in enumerate(("argument", "variable", "home/data")):
        (tmp_path / place).mkdir(parents=True)
        path = write(tmp_path / place / "cifar10.npz", **arrays(seed=seed))
        checksums[place] = content_checksum(load_dataset(path))

    monkeypatch.delenv("MNV3NB_DATA", raising=False)
    monkeypatch.setenv("MNV3NB_HOME", str(tmp_path / "home"))
    assert default_home() == tmp_path / "home"
    monkeypatch.setitem(CHECKSUMS, "cifar10", checksums["home/data"])
    load_dataset("cifar10")

    monkeypatch.setenv("MNV3NB_DATA", str(tmp_path / "variable"))
    monkeypatch.setitem(CHECKSUMS, "cifar10", checksums["variable"])
    load_dataset("cifar10")

    monkeypatch.setitem(CHECKSUMS, "cifar10", checksums["argument"])
    load_dataset("cifar10", tmp_path / "argument")


# the download


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A folder that is served on this machine as `$MNV3NB_MIRROR`."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(QuietHandler, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MNV3NB_MIRROR", f"http://127.0.0.1:{server.server_port}/")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield folder
    server.shutdown()
    server.server_close()


def archive(base: type, contents: dict[str, np.ndarray], classes: list[str], monkeypatch) -> bytes:
    """An archive in CIFAR's format; its MD5 sums replace the published ones in torchvision."""
    label_key = "labels" if base is datasets.CIFAR10 else "fine_labels"

    def batch(split: str, index: np.ndarray) -> bytes:
        images = contents[f"{split}_images"][index].transpose(0, 3, 1, 2).reshape(len(index), -1)
        labels = contents[f"{split}_labels"][index].tolist()
        return pickle.dumps({"data": images, label_key: labels})

    train_files = [name for name, _ in base.train_list]
    (test_file,) = [name for name, _ in base.test_list]
    meta_file = base.meta["filename"]
    members = {
        test_file: batch("test", np.arange(len(contents["test_labels"]))),
        meta_file: pickle.dumps({base.meta["key"]: classes}),
    }
    pieces = np.array_split(np.arange(len(contents["train_labels"])), len(train_files))
    for name, index in zip(train_files, pieces):
        members[name] = batch("train", index)

    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(f"{base.base_folder}/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))

    sums = {name: hashlib.md5(data).hexdigest() for name, data in members.items()}
    monkeypatch.setattr(base, "train_list", [[name, sums[name]] for name in train_files])
    monkeypatch.setattr(base, "test_list", [[test_file, sums[test_file]]])
    monkeypatch.setattr(base, "meta", {**base.meta, "md5": sums[meta_file]})
    monkeypatch.setattr(base, "tgz_md5", hashlib.md5(packed.getvalue()).hexdigest())
    return packed.getvalue()


@pytest.mark.parametrize(("name", "base"), [("cifar10", datasets.CIFAR10), ("cifar100", datasets.CIFAR100)])
def test_cifar_is_downloaded_from_the_mirror_once(mirror, tmp_path, monkeypatch, name, base):
    contents = arrays(count=30, classes=10, shape=(32, 32, 3))
    classes = [f"class {i}" for i in range(10)]
    (mirror / base.filename).write_bytes(archive(base, contents, classes, monkeypatch))
    reference = load_dataset(write(tmp_path / "reference.npz", **contents))
    monkeypatch.setitem(CHECKSUMS, name, content_checksum(reference))

    data = load_dataset(name, tmp_path / "data")
    assert data.classes == tuple(classes)
    assert content_checksum(data) == content_checksum(reference)

    (mirror / base.filename).unlink()
    monkeypatch.setenv("MNV3NB_MIRROR", "http://127.0.0.1:9/")
    again = load_dataset(name, tmp_path / "data")
    assert torch.equal(again.train_images, data.train_images)
    assert again.classes == data.classes


def test_an_archive_with_another_checksum_is_refused_and_never_unpickled(mirror, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:  # afterwards torchvision's checksums are the published ones again
        fake = archive(datasets.CIFAR10, arrays(count=30, shape=(32, 32, 3)), ["a"] * 10, patch)
    (mirror / datasets.CIFAR10.filename).write_bytes(fake)
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("unpickled"))
    message = r"cifar10 is not at .*cifar10\.npz and could not be downloaded from http://127"
    with pytest.raises(FileNotFoundError, match=message):
        load_dataset("cifar10", tmp_path / "data")
    assert not (tmp_path / "data" / "cifar10.npz").exists()
    assert not (tmp_path / "data" / datasets.CIFAR10.base_folder).exists()


def test_a_failed_download_is_answered_with_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("MNV3NB_MIRROR", "http://127.0.0.1:9/cifar")
    message = r"from http://127.0.0.1:9/cifar/cifar-100-python.tar.gz .*set MNV3NB_MIRROR"
    with pytest.raises(FileNotFoundError, match=message):
        load_dataset("cifar100", tmp_path)
    assert not (tmp_path / "cifar100.npz").exists()


# photos kept on the disk (how they are found and read: test_slim.py)


@pytest.fixture
def photos(tmp_path):
    """Two classes of four grey photos each; their test split is one photo of each class."""
    folder = tmp_path / "photos"
    for number in range(8):
        path = folder / ("cat", "dog")[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (9, 7), number).save(path)
    return folder


def kept_files(data_dir: Path) -> list[str]:
    """What lies in the data folder, without locks."""
    return sorted(str(path.relative_to(data_dir)) for path in data_dir.rglob("*") if path.suffix != ".lock")


def convert_and_die(folder: Path, data_dir: Path) -> None:
    """Load `folder` in a process that ends at its seventh photo, the first test photo, without cleaning up."""
    read_square = photos_module._read_square
    calls = itertools.count()

    def read_or_die(path, side):
        if next(calls) == 6:
            os._exit(9)
        return read_square(path, side)

    photos_module._read_square = read_or_die
    load_dataset(folder, data_dir)


def test_a_killed_conversion_leaves_one_scratch_folder_and_the_next_start_removes_it(photos, tmp_path):
    data_dir = tmp_path / "data"
    for _ in range(3):
        process = FORK.Process(target=convert_and_die, args=(photos, data_dir))
        process.start()
        process.join()
        assert process.exitcode == 9
        (scratch,) = [path for path in data_dir.iterdir() if path.is_dir()]
        assert scratch.name.startswith(".")
    assert len(load_dataset(photos, data_dir).train_images) == 6
    (kept,) = [path for path in data_dir.iterdir() if path.is_dir()]
    files = ["about.json", "test_images.npy", "test_labels.npy", "train_images.npy", "train_labels.npy"]
    assert kept_files(data_dir) == [kept.name, *(f"{kept.name}/{name}" for name in files)]


def test_a_failed_conversion_leaves_what_was_kept_before(photos, tmp_path):
    load_dataset(photos, tmp_path / "data")
    before = kept_files(tmp_path / "data")
    for path in (photos / "dog").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(ValueError, match="no readable train image of dog"):
        load_dataset(photos, tmp_path / "data")
    assert kept_files(tmp_path / "data") == before


def test_photos_that_an_earlier_version_kept_as_npz_are_kept_again(photos, tmp_path, capsys):
    first = load_dataset(photos, tmp_path / "data")
    (kept,) = [path for path in (tmp_path / "data").iterdir() if path.is_dir()]
    about = (kept / "about.json").read_text()
    shutil.rmtree(kept)
    write(kept.with_suffix(".npz"), **arrays())
    kept.with_suffix(".json").write_text(about)
    capsys.readouterr()
    assert content_checksum(load_dataset(photos, tmp_path / "data")) == content_checksum(first)
    assert "kept as 7×7 pixels" in capsys.readouterr().err


def test_a_changed_class_name_in_what_is_kept_is_damage(photos, tmp_path):
    load_dataset(photos, tmp_path / "data")
    (about,) = (tmp_path / "data").glob("*/about.json")
    about.write_text(about.read_text().replace("cat", "cow"))
    assert load_dataset(photos, tmp_path / "data").classes == ("cat", "dog")
