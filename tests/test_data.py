"""Data in: the formats it may have, what is refused and in which words, and the download."""

import functools
import hashlib
import http.server
import io
import pickle
import tarfile
import threading

import numpy as np
import pytest
import torch
from torchvision import datasets

from mnv3nb import load_dataset
from mnv3nb.data.batches import SPLITS
from mnv3nb.data.datasets import CHECKSUMS, content_checksum, data_checksum
from mnv3nb.system.files import default_home


def arrays(
    count: int = 12, classes: int = 3, shape: tuple[int, ...] = (8, 8, 3), seed: int = 0
) -> dict[str, np.ndarray]:
    """A data set with MedMNIST's names; the test split is half as large."""
    rng = np.random.default_rng(seed)
    out = {}
    for split, n in (("train", count), ("test", count // 2)):
        out[f"{split}_images"] = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
        out[f"{split}_labels"] = np.arange(n, dtype=np.uint8) % classes
    return out


def write(path, **contents):
    np.savez(path, **contents)
    return path


def by_content(images: torch.Tensor, labels: torch.Tensor) -> list[tuple[bytes, int]]:
    return sorted((image.numpy().tobytes(), int(label)) for image, label in zip(images, labels))


# formats


def test_digits_are_1797_images_and_need_no_network(digits):
    assert digits.train_images.shape == (1437, 3, 8, 8) and digits.test_images.shape == (360, 3, 8, 8)
    assert digits.train_images.dtype == torch.uint8 and digits.train_labels.dtype == torch.int64
    assert digits.classes == tuple("0123456789") and content_checksum(digits) == CHECKSUMS["digits"] == data_checksum(
        "digits"
    )
    assert digits.train_images.max() == 255 and digits.train_images.min() == 0
    assert set(digits.train_labels.tolist()) == set(digits.test_labels.tolist()) == set(range(10))
    train = {image for image, _ in by_content(digits.train_images, digits.train_labels)}
    assert not train & {image for image, _ in by_content(digits.test_images, digits.test_labels)}


def test_digits_are_scikit_learns(digits):
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images = torch.tensor(np.rint(images * 255 / 16), dtype=torch.uint8).reshape(-1, 1, 8, 8).expand(-1, 3, -1, -1)
    every = torch.cat([digits.train_images, digits.test_images]), torch.cat([digits.train_labels, digits.test_labels])
    assert by_content(images, torch.tensor(labels)) == by_content(*every)


def test_colour_images_keep_their_pixels_and_labels(tmp_path):
    contents = arrays()
    data = load_dataset(write(tmp_path / "d.npz", **contents))
    assert data.train_images.shape == (12, 3, 8, 8) and data.test_images.shape == (6, 3, 8, 8)
    expected = torch.tensor(contents["train_images"]).permute(0, 3, 1, 2), torch.tensor(contents["train_labels"])
    assert by_content(data.train_images, data.train_labels) == by_content(*expected)
    assert data.classes == ("0", "1", "2") and data.train_images.is_contiguous()


def test_medmnists_grey_images_and_column_of_labels(tmp_path):
    contents = arrays(shape=(28, 28)) | {
        "val_images": np.zeros((2, 28, 28), np.uint8),
        "val_labels": np.zeros((2, 1), np.uint8),
    }
    column = contents | {key: contents[key][:, None] for key in ("train_labels", "test_labels")}
    flat, medmnist = (load_dataset(write(tmp_path / n, **c)) for n, c in (("flat.npz", contents), ("med.npz", column)))
    assert medmnist.train_images.shape == (12, 3, 28, 28) and medmnist.train_labels.shape == (12,)
    assert torch.equal(medmnist.train_images[:, 0], medmnist.train_images[:, 2])
    assert content_checksum(medmnist) == content_checksum(flat)


def test_classes_named_in_the_file(tmp_path):
    data = load_dataset(write(tmp_path / "d.npz", **arrays(), classes=np.array(["cat", "dog", "owl", "unseen"])))
    assert data.classes == ("cat", "dog", "owl", "unseen")


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64])
def test_labels_of_any_whole_type_are_the_same_data(tmp_path, dtype):
    contents = arrays()
    as_type = contents | {key: contents[key].astype(dtype) for key in ("train_labels", "test_labels")}
    one, two = load_dataset(write(tmp_path / "a.npz", **contents)), load_dataset(write(tmp_path / "b.npz", **as_type))
    assert content_checksum(one) == content_checksum(two)


def test_the_order_in_the_file_does_not_matter(tmp_path):
    """Also with images twice in it, and the same image under two labels."""
    contents = arrays(count=40)
    contents["train_images"][5:8] = contents["train_images"][4]
    rng = np.random.default_rng(1)
    one = load_dataset(write(tmp_path / "one.npz", **contents))
    for trial in range(3):
        shuffled = {}
        for split in ("train", "test"):
            order = rng.permutation(len(contents[f"{split}_labels"]))
            shuffled |= {f"{split}_{what}": contents[f"{split}_{what}"][order] for what in ("images", "labels")}
        two = load_dataset(write(tmp_path / f"{trial}.npz", **shuffled))
        assert all(torch.equal(getattr(one, key), getattr(two, key)) for key in SPLITS)
        assert content_checksum(one) == content_checksum(two)
    assert not np.array_equal(one.train_labels.numpy(), np.sort(one.train_labels.numpy()))  # nor sorted by class


@pytest.mark.parametrize("key", SPLITS)
def test_any_other_content_has_another_checksum(tmp_path, key):
    contents = arrays()
    before = content_checksum(load_dataset(write(tmp_path / "d.npz", **contents)))
    contents[key] = contents[key].copy()
    contents[key].flat[0] = (contents[key].flat[0] + 1) % 3
    write(tmp_path / "d.npz", **contents)
    assert content_checksum(load_dataset(tmp_path / "d.npz")) == data_checksum(tmp_path / "d.npz") != before


# what is refused


def change(key, value):
    return lambda contents: contents | {key: value(contents[key])}


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: {k: c[k] for k in SPLITS[:2]}, r"lacks test_images, test_labels; it has train_images, train_labels"),
        (lambda c: {}, r"lacks train_images, .*; it has nothing"),
        (
            change("train_images", lambda a: a / 255),
            r"train_images must be uint8 N×H×W or N×H×W×3, got float64 \(12, 8, 8, 3\)",
        ),
        (
            change("test_images", lambda a: a.astype(np.int64) + 300),
            r"test_images must be uint8 .* got int64 \(6, 8, 8, 3\)",
        ),
        (change("train_images", lambda a: a[..., :2]), r"train_images must be uint8 .* got uint8 \(12, 8, 8, 2\)"),
        (change("train_images", lambda a: a[0, 0]), r"train_images must be uint8 .* got uint8 \(8, 3\)"),
        (change("train_labels", lambda a: a[:-1]), r"train_labels must be 12 integers, got uint8 \(11,\)"),
        (change("train_labels", lambda a: a + 0.5), r"train_labels must be 12 integers, got float64 \(12,\)"),
        (change("train_labels", lambda a: np.eye(3)[a]), r"train_labels must be 12 integers, got float64 \(12, 3\)"),
        (change("test_labels", lambda a: a.astype(np.int64) - 1), r"labels run from -1 to 1, allowed are 0 to 65535"),
        (change("train_labels", lambda a: a.astype(np.uint64) + 2**63), r"labels run from 9223372036854775808 to"),
        (lambda c: c | {"classes": np.array(["a", "b"])}, r"labels run from 0 to 2, allowed are 0 to 1"),
        (
            lambda c: c | {"test_images": c["test_images"][:0], "test_labels": c["test_labels"][:0]},
            r"test_images must not be empty, got shape \(0, 8, 8, 3\)",
        ),
        (change("test_images", lambda a: a[:, :4]), r"training and test images differ in size"),
        (change("train_images", lambda a: a.astype(object)), r"d\.npz(: train_images.npy claims| is not a whole)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_file_that_is_not_such_a_data_set_is_refused(tmp_path, edit, message):
    with pytest.raises(ValueError, match=message) as error:
        load_dataset(write(tmp_path / "d.npz", **edit(arrays())))
    assert str(tmp_path / "d.npz") in str(error.value) and "\n" not in str(error.value)


def test_truncated_and_foreign_files_are_refused(tmp_path):
    whole = write(tmp_path / "whole.npz", **arrays()).read_bytes()
    for name, data in (
        ("cut.npz", whole[: len(whole) // 2]),
        ("empty.npz", b""),
        ("text.npz", b"hello"),
        ("pickle.npz", pickle.dumps({"a": 1})),
        ("flipped.npz", whole[:300] + b"!" + whole[301:]),
    ):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=rf"{name} is not a whole \.npz"):
            load_dataset(tmp_path / name)


def test_unknown_names_and_missing_files_are_refused(tmp_path):
    for name, near in (("cifar", "cifar10"), ("digit", "digits"), ("mnist", None), ("cifar1000", "cifar100")):
        with pytest.raises(
            ValueError, match=rf"unknown data set '{name}'; .*Allowed: digits, cifar10, cifar100, or the path"
        ):
            load_dataset(name)
        if near:
            with pytest.raises(ValueError, match=rf"did you mean '{near}'\?"):
                load_dataset(name)
    with pytest.raises(
        FileNotFoundError, match=r"no data file .*none\.npz; give the path of an \.npz with train_images"
    ):
        load_dataset(tmp_path / "none.npz")


@pytest.mark.parametrize("size", [0, -5, 32.0, True])
def test_an_image_size_that_is_none_is_refused_before_images_are_read(tmp_path, size):
    with pytest.raises(ValueError, match=f"at least 1 pixel, got {size}"):
        load_dataset(tmp_path, image_size=size)


def test_other_data_under_a_known_name_are_refused(tmp_path):
    write(tmp_path / "cifar10.npz", **arrays(classes=10, shape=(32, 32, 3)))
    with pytest.raises(
        ValueError, match=r"not the images and labels of cifar10 \(checksum \w+, expected 5da736c1276b47e1\)"
    ):
        load_dataset("cifar10", tmp_path)


def test_data_are_looked_for_in_the_argument_then_the_variable_then_the_home(tmp_path, monkeypatch):
    sums = {}
    for number, place in enumerate(("argument", "variable", "home/data")):
        (tmp_path / place).mkdir(parents=True)
        sums[place] = content_checksum(load_dataset(write(tmp_path / place / "cifar10.npz", **arrays(seed=number))))
    monkeypatch.delenv("MNV3NB_DATA", raising=False)
    monkeypatch.setenv("MNV3NB_HOME", str(tmp_path / "home"))
    assert default_home() == tmp_path / "home"
    monkeypatch.setitem(CHECKSUMS, "cifar10", sums["home/data"])
    load_dataset("cifar10")
    monkeypatch.setenv("MNV3NB_DATA", str(tmp_path / "variable"))
    monkeypatch.setitem(CHECKSUMS, "cifar10", sums["variable"])
    load_dataset("cifar10")
    monkeypatch.setitem(CHECKSUMS, "cifar10", sums["argument"])
    load_dataset("cifar10", tmp_path / "argument")


# the download


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A folder that is served on this machine as `$MNV3NB_MIRROR`."""
    folder = tmp_path / "mirror"
    folder.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=folder))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MNV3NB_MIRROR", f"http://127.0.0.1:{server.server_port}/")
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield folder
    server.shutdown()
    server.server_close()


def archive(base: type, contents: dict[str, np.ndarray], classes: list[str], monkeypatch) -> bytes:
    """An archive in CIFAR's format, its MD5 sums taken for the published ones."""
    members = {}
    train_files = [name for name, _ in base.train_list]
    label_key = "labels" if base is datasets.CIFAR10 else "fine_labels"
    pieces = np.array_split(np.arange(len(contents["train_labels"])), len(train_files))
    splits = [(name, "train", index) for name, index in zip(train_files, pieces)]
    for name, split, index in [*splits, (base.test_list[0][0], "test", np.arange(len(contents["test_labels"])))]:
        images = contents[f"{split}_images"][index].transpose(0, 3, 1, 2).reshape(len(index), -1)
        members[name] = pickle.dumps({"data": images, label_key: contents[f"{split}_labels"][index].tolist()})
    members[base.meta["filename"]] = pickle.dumps({base.meta["key"]: classes})
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(f"{base.base_folder}/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    sums = {name: hashlib.md5(data).hexdigest() for name, data in members.items()}
    monkeypatch.setattr(base, "train_list", [[name, sums[name]] for name in train_files])
    monkeypatch.setattr(base, "test_list", [[base.test_list[0][0], sums[base.test_list[0][0]]]])
    monkeypatch.setattr(base, "meta", base.meta | {"md5": sums[base.meta["filename"]]})
    monkeypatch.setattr(base, "tgz_md5", hashlib.md5(packed.getvalue()).hexdigest())
    return packed.getvalue()


@pytest.mark.parametrize(("name", "base"), [("cifar10", datasets.CIFAR10), ("cifar100", datasets.CIFAR100)])
def test_cifar_comes_from_the_mirror_and_is_kept_as_one_npz(mirror, tmp_path, monkeypatch, name, base):
    contents = arrays(count=30, classes=10, shape=(32, 32, 3))
    classes = [f"class {i}" for i in range(10)]
    (mirror / base.filename).write_bytes(archive(base, contents, classes, monkeypatch))
    reference = load_dataset(write(tmp_path / "reference.npz", **contents))
    monkeypatch.setitem(CHECKSUMS, name, content_checksum(reference))
    data = load_dataset(name, tmp_path / "data")
    assert data.classes == tuple(classes) and content_checksum(data) == content_checksum(reference)
    (mirror / base.filename).unlink()
    monkeypatch.setenv("MNV3NB_MIRROR", "http://127.0.0.1:9/")
    again = load_dataset(name, tmp_path / "data")
    assert torch.equal(again.train_images, data.train_images) and again.classes == data.classes


def test_an_archive_with_another_checksum_is_refused_and_nothing_of_it_is_unpickled(mirror, tmp_path, monkeypatch):
    """The real checksum stands: a real-looking archive from a mirror does not have it."""
    with monkeypatch.context() as patch:
        fake = archive(datasets.CIFAR10, arrays(count=30, shape=(32, 32, 3)), ["a"] * 10, patch)
    (mirror / datasets.CIFAR10.filename).write_bytes(fake)
    monkeypatch.setattr(pickle, "load", lambda *_, **__: pytest.fail("unpickled"))
    with pytest.raises(
        FileNotFoundError, match=r"cifar10 is not at .*cifar10\.npz and could not be downloaded from http://127"
    ):
        load_dataset("cifar10", tmp_path / "data")
    assert not (tmp_path / "data" / "cifar10.npz").exists()
    assert not (tmp_path / "data" / datasets.CIFAR10.base_folder).exists()


def test_without_a_network_the_message_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("MNV3NB_MIRROR", "http://127.0.0.1:9/cifar")
    with pytest.raises(
        FileNotFoundError, match=r"from http://127.0.0.1:9/cifar/cifar-100-python.tar.gz .*set MNV3NB_MIRROR"
    ):
        load_dataset("cifar100", tmp_path)
    assert not (tmp_path / "cifar100.npz").exists()
