"""`slim`: from a network and folders of photos to a smaller network, its files and a report."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from support import ROOT, same_tensors

from mnv3nb import TrainConfig, blocks, build_network, load_dataset, load_model, load_network, save_model, train
from mnv3nb.__main__ import main
from mnv3nb.data.batches import SPLITS, read_ahead
from mnv3nb.data.datasets import content_checksum, data_checksum
from mnv3nb.deploy.export import onnx_labels, to_onnx
from mnv3nb.slim import page, stages
from mnv3nb.slim.job import Job
from mnv3nb.slim.page import accuracy, balanced_accuracy

NETWORK = "torchvision/mobilenet_v3_small"


def write_photos(folder, images, labels, size=lambda i: (12, 12)) -> None:
    """Write each image into the folder of its class: grey or coloured, PNG or JPEG, of size(i) = (width, height)."""
    for i, (image, label) in enumerate(zip(images, labels.tolist())):
        ending = "jpg" if i % 2 else "png"
        path = folder / f"digit {label}" / f"{i:03}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        photo = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(size(i))
        if i % 3:
            photo = photo.convert("L")
        photo.save(path)


@pytest.fixture(scope="module")
def photos(tmp_path_factory, digits):
    """160 training and 40 test images of ten classes, of unequal sizes, and two broken files."""
    folder = tmp_path_factory.mktemp("photos")
    write_photos(folder / "train", digits.train_images[:160], digits.train_labels[:160], lambda i: (10 + i % 5, 12))
    write_photos(folder / "test", digits.test_images[:40], digits.test_labels[:40], lambda i: (12, 14 + i % 2))
    (folder / "train" / "digit 3" / "cut.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    (folder / "train" / "digit 4" / "empty.png").touch()
    (folder / "train" / "digit 4" / "notes.txt").write_text("no image")
    return folder


@pytest.fixture(scope="module")
def weights(photos, tmp_path_factory):
    """MobileNetV3-Small trained for two epochs on these photos, as a .pth file."""
    torch.manual_seed(0)
    model = build_network(NETWORK, 10)
    path = tmp_path_factory.mktemp("weights") / "mine.pth"
    config = TrainConfig(epochs=2, batch_size=16, image_size=32, lr=3e-3)
    train(model, load_dataset(photos), config, device="cpu", progress=False)
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture
def job(photos, weights, tmp_path) -> Job:
    return Job(
        NETWORK,
        str(photos),
        str(tmp_path / "small"),
        str(weights),
        rate=0.5,
        multiple_of=8,
        epochs=3,
        lr=3e-3,
        augment="crop",
    )


def command(values: dict) -> list[str]:
    """The command line of a job with these fields."""
    arguments = ["slim"]
    for name, value in values.items():
        if value is not None:
            arguments += [f"--{name.replace('_', '-')}", str(value)]
    return arguments


# folders of photos


def test_photos_of_all_kinds_become_equal_squares_and_broken_ones_are_named(photos, tmp_path, capsys):
    data = load_dataset(photos, tmp_path)
    assert data.train_images.shape == (160, 3, 12, 12) and data.test_images.shape == (40, 3, 12, 12)
    assert data.train_images.dtype == torch.uint8 and data.mapped
    assert data.classes == tuple(f"digit {i}" for i in range(10))
    err = capsys.readouterr().err
    for words in ("kept as 12×12 pixels", "2 broken files left out", "cut.jpg", "empty.png"):
        assert words in err
    counts = np.bincount(data.train_labels)
    assert re.search(rf"training images per class: {counts.min()} \(digit \d\) to {counts.max()} \(digit \d\)", err)
    about = json.loads((kept_folder(tmp_path) / "about.json").read_text())
    assert len(about["broken"]) == 2 and about["image_size"] == 12


def kept_folder(data_dir: Path) -> Path:
    """The only folder in `data_dir`: what is kept of a folder of photos."""
    (folder,) = (path for path in data_dir.iterdir() if path.is_dir())
    return folder


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="asks Linux which files are mapped")
def test_no_file_is_mapped_when_it_is_removed(photos, tmp_path, monkeypatch):
    """Windows refuses to remove a mapped file."""

    rmtree = shutil.rmtree
    removed = []

    def checked_rmtree(folder, **options):
        assert str(folder) not in Path("/proc/self/maps").read_text()
        removed.append(folder)
        rmtree(folder, **options)

    monkeypatch.setattr("mnv3nb.data.squares.shutil.rmtree", checked_rmtree)
    load_dataset(photos, tmp_path)
    kept = kept_folder(tmp_path)
    (kept / "about.json").unlink()
    load_dataset(photos, tmp_path)
    assert kept in removed


def test_what_is_kept_of_a_folder_are_plain_npy_files(photos, tmp_path):
    data = load_dataset(photos, tmp_path)
    kept = kept_folder(tmp_path)
    assert torch.equal(torch.from_numpy(np.load(kept / "train_labels.npy")), data.train_labels)
    assert torch.equal(torch.from_numpy(np.load(kept / "test_labels.npy")), data.test_labels)
    for name in ("train_images", "test_images"):
        stored = torch.from_numpy(np.load(kept / f"{name}.npy"))  # (N, H, W, 3)
        assert torch.equal(stored.permute(0, 3, 1, 2), getattr(data, name))


def test_photos_are_read_again_only_if_a_file_has_changed_or_what_is_kept_is_damaged(photos, tmp_path, capsys):
    folder = shutil.copytree(photos, tmp_path / "p")
    data_dir = tmp_path / "kept"
    first = content_checksum(load_dataset(folder, data_dir))
    assert "kept as" in capsys.readouterr().err
    assert content_checksum(load_dataset(folder, data_dir)) == first
    assert capsys.readouterr().err == ""

    kept = kept_folder(data_dir)
    whole = {path.name: path.read_bytes() for path in kept.iterdir()}
    for name, content in whole.items():
        one_bit_changed = bytearray(content)
        one_bit_changed[-9] ^= 1
        for damaged in (content[:-100], one_bit_changed, b"", None):
            (kept / name).unlink()
            if damaged is not None:
                (kept / name).write_bytes(damaged)
            assert content_checksum(load_dataset(folder, data_dir)) == first
            assert "kept as" in capsys.readouterr().err
            assert {path.name: path.read_bytes() for path in kept.iterdir()} == whole

    next((folder / "train" / "digit 1").glob("*.png")).unlink()
    assert len(load_dataset(folder, data_dir).train_images) == 159
    assert [path for path in data_dir.iterdir() if path.suffix != ".lock"] == [kept]


def test_without_a_test_folder_a_fifth_of_each_class_is_held_out_by_seed(photos, tmp_path, capsys):
    data = load_dataset(photos / "train", tmp_path, seed=0)
    held_out = np.bincount(data.test_labels, minlength=10)
    total = np.bincount(data.train_labels, minlength=10) + held_out
    assert (np.abs(held_out - 0.2 * total) <= 1).all() and total.sum() == 160
    assert "a fifth of each class is held out" in capsys.readouterr().err
    by_default = load_dataset(photos / "train", tmp_path)
    other = load_dataset(photos / "train", tmp_path, seed=1)
    assert content_checksum(data) == content_checksum(by_default) != content_checksum(other)


def test_sideways_16_bit_transparent_and_palette_photos(tmp_path):
    ramp = np.tile(np.arange(16, dtype=np.uint8) * 16, (16, 1))
    for name in "ab":
        (tmp_path / "p" / name).mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by a quarter clockwise
    Image.fromarray(ramp).save(tmp_path / "p" / "a" / "0.png", exif=exif)
    Image.fromarray(ramp.astype(np.uint16) * 257).save(tmp_path / "p" / "a" / "1.png")
    Image.fromarray(np.dstack([ramp] * 4)).save(tmp_path / "p" / "b" / "0.png")
    Image.fromarray(ramp).convert("P").save(tmp_path / "p" / "b" / "2.png")
    Image.fromarray(ramp).save(tmp_path / "p" / "b" / "1.bmp")
    data = load_dataset(tmp_path / "p", tmp_path / "kept")
    upright = torch.from_numpy(ramp)
    images = torch.cat([data.train_images, data.test_images])[:, 0]
    turned = [image for image in images if torch.equal(image, upright.T)]
    assert len(images) == 5 and len(turned) == 1
    assert sum(torch.equal(image, upright) for image in images) == 4


def test_the_middle_of_a_wide_photo_is_kept(tmp_path):
    wide = np.zeros((8, 24, 3), np.uint8)
    wide[:, 8:16] = 200
    for i, name in enumerate(("a/0.png", "a/1.png", "b/0.png", "b/1.png")):
        path = tmp_path / "p" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(wide + np.uint8(i)).save(path)
    assert (load_dataset(tmp_path / "p", tmp_path, image_size=8).train_images >= 200).all()


def make_folder(folder: Path, *names: str) -> Path:
    """A folder with an image at each of these paths."""
    folder.mkdir()
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(folder / name)
    return folder


def refused_folder(folder: Path, kept: Path, message: str) -> None:
    """`load_dataset` refuses `folder` and leaves nothing in `kept`."""
    with pytest.raises(ValueError, match=message):
        load_dataset(folder, kept)
    assert all(path.suffix == ".lock" for path in kept.glob("*"))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ([], "has no class folders; give a folder with one folder of images per class"),
        (["0.png"], "has no class folders"),
        (
            ["a/0.png", "b/0.png", "b/1.png"],
            "each class needs at least two images, one of them to test on; add images to a$",
        ),
        (
            ["test/a/0.png", "a/0.png", "b/0.png"],
            "class folders in test/ but no train/; name the folder beside it train",
        ),
        (["train/a/0.png", "train/c/0.png", "test/b/0.png"], "test has classes that .*train lacks: b"),
        (["a/b/0.png", "a/c/0.png"], "has only one class folder, a; give"),
    ],
)
def test_folders_that_are_not_a_data_set_are_refused_and_leave_nothing(tmp_path, names, message):
    refused_folder(make_folder(tmp_path / "p", *names), tmp_path / "kept", message)


def test_a_class_of_broken_images_is_refused_and_leaves_nothing(tmp_path):
    folder = make_folder(tmp_path / "p", "a/0.png", "a/1.png", "b/0.png", "b/1.png")
    for path in (folder / "b").iterdir():
        path.write_bytes(b"")
    refused_folder(folder, tmp_path / "kept", "no readable train image of b; replace the broken files: b/.*png")


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"unknown data set .*or of a folder of class folders"):
        load_dataset(tmp_path / "nothing")


# data larger than memory


def test_training_on_mapped_images_is_bit_equal_to_training_in_memory(photos, tmp_path):
    mapped = load_dataset(photos, tmp_path)
    tensors = {name: getattr(mapped, name).clone() for name in SPLITS}
    in_memory = replace(mapped, mapped=False, **tensors)

    def trained_on(data):
        torch.manual_seed(1)
        network = build_network("torchvision/mobilenet_v2", 10)
        config = TrainConfig(epochs=1, batch_size=32, image_size=16, augment="crop_flip")
        train(network, data.subset(64), config, device="cpu", progress=False)
        return network.state_dict()

    assert same_tensors(trained_on(mapped), trained_on(in_memory))
    assert mapped.to(torch.device("meta")).train_images.device.type == "cpu"
    assert data_checksum(photos) == content_checksum(in_memory)


def test_reading_ahead_keeps_the_order_and_passes_errors_on():
    assert list(read_ahead(iter(range(1, 8)))) == list(range(1, 8))
    assert list(read_ahead(iter([]))) == []

    def failing():
        yield 1
        raise OSError("the disk is gone")

    with pytest.raises(OSError, match="the disk is gone"):
        list(read_ahead(failing()))


# the whole job


def test_a_job_killed_while_it_trains_resumes_and_ends_as_one_never_killed(job, photos, monkeypatch, capfd):
    """SIGKILL comes after the first epoch of fine-tuning."""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, "-m", "mnv3nb", *command(vars(job))], env=environment, stdout=subprocess.DEVNULL
    )
    state = job.stage_file("2_finetuned_0.5.state.safetensors")
    deadline = time.monotonic() + 300
    while not state.is_file() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    out = Path(job.out)
    assert state.is_file() and not (out / "network.safetensors").exists()

    assert main(command(vars(job))) == 0
    assert {path.name for path in out.iterdir()} == {
        "network.onnx",
        "network.safetensors",
        "network_int8.onnx",
        "report.html",
        "report.md",
        "report.png",
        "stages",
    }
    assert not list(out.glob("stages/*.state.*")) and not list(out.glob(".*"))
    printed = capfd.readouterr()
    assert re.search(r"2_finetuned_0.5, epochs [23] to 3", printed.err) and "open" in printed.out

    monkeypatch.setattr(stages, "write_results", lambda *_: None)
    never_killed = replace(job, out=f"{job.out}2")
    stages.slim(never_killed)
    expected = load_model(never_killed.stage_file("2_finetuned_0.5.safetensors")).state_dict()
    assert same_tensors(expected, load_model(job.stage_file("2_finetuned_0.5.safetensors")).state_dict())
    assert same_tensors(expected, load_model(out / "network.safetensors").state_dict())
    check_results(out, load_dataset(photos))


def check_results(out: Path, data) -> None:
    """The files hold what the report says."""
    network = load_model(out / "network.safetensors")
    assert all(block.width % 8 == 0 for block in blocks(network))
    about = network.metadata
    assert about["rate"] == 0.5 and about["image_size"] == 32 and about["classes"] == list(data.classes)

    report = (out / "report.md").read_text()
    for words in ("balanced accuracy", "latency ratio", "aligned_ratio", "10 classes with", "report.png"):
        assert words in report
    labels_of = {}
    for name in ("network.onnx", "network_int8.onnx"):
        labels = onnx_labels(onnx.load(out / name), data.test_images, 32)
        assert f"{accuracy(labels, data.test_labels):.4g}" in report
        assert f"{balanced_accuracy(labels, data.test_labels):.4g}" in report
        labels_of[name] = labels
    assert about["accuracy"] == accuracy(labels_of["network.onnx"], data.test_labels)

    int8 = onnx.load(out / "network_int8.onnx")
    assert any(node.op_type == "QuantizeLinear" for node in int8.graph.node)
    assert (out / "network_int8.onnx").stat().st_size < 0.4 * (out / "network.onnx").stat().st_size
    html = (out / "report.html").read_text()
    assert "<table>" in html and "data:image/png;base64," in html and "http" not in html.replace("http-equiv", "")


def test_a_folder_with_another_job_is_left_alone(job, monkeypatch):
    monkeypatch.setattr(stages, "write_results", lambda *_: None)
    first = replace(job, criterion="l1", epochs=0)
    stages.slim(first)
    before = job.stage_file("job.json").read_bytes()
    with pytest.raises(ValueError, match=r"holds a job with another criterion, epochs: give another folder, or remove"):
        stages.slim(job)
    assert job.stage_file("job.json").read_bytes() == before
    assert not job.stage_file("1_sparse.safetensors").exists()


def test_a_job_may_be_moved_with_its_images_and_weights(job, photos, weights, tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "write_results", lambda *_: None)
    first = replace(job, criterion="l1", epochs=0)
    stages.slim(first)
    moved = replace(
        first,
        data=str(shutil.copytree(photos, tmp_path / "moved photos")),
        weights=str(shutil.copy(weights, tmp_path / "moved.pth")),
        out=str(shutil.move(first.out, tmp_path / "moved")),
    )
    assert stages.slim(moved) == tmp_path / "moved"


def test_a_graph_that_computes_something_else_is_not_written(weights, digits, tmp_path, monkeypatch):
    network = load_network(NETWORK, weights, 10).eval()
    other = to_onnx(build_network(NETWORK, 10), 32)
    monkeypatch.setattr(page, "to_onnx", lambda *_: other)
    with pytest.raises(RuntimeError, match=r"logits of the exported graph differ .*nothing was written"):
        page.write_results(tmp_path, network, network, digits, 32, {"network": NETWORK})
    assert not list(tmp_path.iterdir())


def test_balanced_accuracy_is_the_mean_over_the_classes_there_are():
    labels = torch.tensor([0] * 8 + [2, 2])
    predicted = torch.zeros(10, dtype=torch.int64)
    assert accuracy(predicted, labels) == 0.8
    assert balanced_accuracy(predicted, labels) == 0.5


# targets


def fake_pruning(job: Job, **functions):
    """Has the values that a target is judged by, as functions of the rate."""
    return SimpleNamespace(job=job, **functions)


def test_a_job_without_a_target_removes_half_of_the_filters():
    assert Job(NETWORK, "digits", "out").target == ("rate", 0.5)
    assert Job(NETWORK, "digits", "out", latency=0.6).target == ("latency", 0.6)


def test_a_target_of_parameters_takes_the_lowest_rate_that_is_small_enough(job, weights, digits):
    job = replace(job, rate=None, parameters=1.2e6)
    pruning = stages.Pruning(job, load_network(NETWORK, weights, 10), digits, 32)
    rate = stages.choose_rate(pruning)
    assert pruning.parameters(rate) <= 1.2e6 < pruning.parameters(round(rate - 0.01, 2))
    assert json.loads(job.stage_file("rate.json").read_text()) == rate == stages.choose_rate(pruning)


def test_a_target_of_latency_takes_the_lowest_rate_that_is_fast_enough(job):
    pruning = fake_pruning(replace(job, rate=None, latency=0.6), latency=lambda rate: 1 - 0.9 * rate)
    assert stages.choose_rate(pruning) == 0.45


@pytest.mark.parametrize(("max_drop", "expected"), [(0.2, 0.05), (1.0, 0.25), (3.79, 0.9), (100.0, 0.95)])
def test_a_target_of_accuracy_takes_the_highest_rate_that_loses_little_enough(job, max_drop, expected):
    """And it fine-tunes at few rates."""
    tried = []

    def drop(rate):
        tried.append(rate)
        return 4 * rate

    pruning = fake_pruning(replace(job, rate=None, max_drop=max_drop), drop=drop)
    assert stages.choose_rate(pruning) == expected
    assert len(set(tried)) <= 7


@pytest.mark.parametrize(
    ("target", "functions", "message"),
    [
        (
            {"latency": 0.1},
            {"latency": lambda rate: 1 - 0.5 * rate},
            "latency 0.1 cannot be met: the nearest is 0.525, at rate 0.95",
        ),
        (
            {"latency": 0.1},
            {"latency": lambda rate: 0.2 + abs(rate - 0.6)},
            "latency 0.1 cannot be met: the nearest is 0.2, at rate 0.6",
        ),
        (
            {"max_drop": 1.0},
            {"drop": lambda rate: 2 + rate},
            "max_drop 1 cannot be met: the nearest is 2.05, at rate 0.05",
        ),
        (
            {"parameters": 10.0},
            {"parameters": lambda rate: 700 - 100 * rate},
            "nearest is 601, at rate 0.99 with multiples of 8",
        ),
    ],
)
def test_targets_that_cannot_be_met_name_the_nearest_that_can(job, target, functions, message):
    pruning = fake_pruning(replace(job, rate=None, **target), **functions)
    with pytest.raises(ValueError, match=message):
        stages.choose_rate(pruning)
    assert not job.stage_file("rate.json").exists()


def test_a_choice_by_accuracy_is_made_on_training_images_that_are_not_trained_on(job, photos, monkeypatch, capsys):
    """And the accuracy on test images is never asked for."""
    seen = []
    written = []

    def train_stage(job, name, model, data, config):
        seen.append(data)
        return model.eval()

    monkeypatch.setattr(stages, "train_stage", train_stage)
    monkeypatch.setattr(stages, "write_results", lambda *arguments: written.append(arguments))
    stages.slim(replace(job, rate=None, max_drop=100.0))
    data = load_dataset(photos)
    assert seen
    for part in seen:
        assert torch.equal(part.train_images, data.train_images[:144])
        assert torch.equal(part.test_images, data.train_images[144:])
    ((_, _, _, reported_on, _, about),) = written
    assert about["target"] == "max_drop 100" and torch.equal(reported_on.test_images, data.test_images)
    assert "16 training images are held out" in capsys.readouterr().err


def test_a_drop_is_judged_on_training_images_however_few_there_are(job, digits, monkeypatch, tmp_path):
    photos = tmp_path / "few"
    write_photos(photos / "train", digits.train_images[:9], torch.arange(9) % 2)
    write_photos(photos / "test", digits.test_images[:4], torch.arange(4) % 2)
    seen = []

    def train_stage(job, name, model, data, config):
        seen.append(data)
        raise InterruptedError("seen enough")

    monkeypatch.setattr(stages, "train_stage", train_stage)
    with pytest.raises(InterruptedError, match="seen enough"):
        stages.slim(replace(job, data=str(photos), weights=None, rate=None, max_drop=1.0))
    assert len(seen[0].test_images) == 1 and len(seen[0].train_images) == 8


# bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"network": "torchvision/resnet18", "weights": None}, "ResNet has no inverted-residual block"),
        ({"network": "torchvision/mobilenet_v2"}, "does not fit torchvision/mobilenet_v2: .* tensors differ, first"),
        ({"network": "torchvision/nothing"}, "unknown architecture 'torchvision/nothing'"),
        ({"weights": "no.pth"}, "no file no.pth"),
        ({"data": "photoz/"}, "unknown data set 'photoz/'"),
        ({"rate": 1.5}, r"rate must be in \[0, 1\), got 1.5"),
        ({"latency": 0.5}, "give one of the targets rate, max_drop, latency, parameters; got rate and latency"),
        ({"rate": None, "max_drop": 0.0}, "max_drop must be above 0, got 0.0"),
        ({"rate": None, "latency": "nan"}, "latency must be above 0, got nan"),
        ({"multiple_of": 0}, "multiple_of must be an integer ≥ 1"),
        ({"epochs": -1}, "epochs must be an integer ≥ 0"),
        ({"image_size": 0}, "image_size must be an integer ≥ 1, got 0"),
        ({"lam": -0.1}, "lam must be a finite number ≥ 0, got -0.1"),
        ({"criterion": "gama"}, "unknown criterion 'gama'; did you mean 'gamma'"),
        ({"criterion": "l1", "weights": None}, "a criterion prunes trained weights"),
    ],
)
def test_bad_jobs_are_refused_in_one_line_and_leave_nothing(job, change, message, capfd):
    refused_job(job, change, message, capfd)


def refused_job(job: Job, change: dict, message: str, capfd) -> None:
    assert main(command(vars(job) | change)) == 2
    last_line = capfd.readouterr().err.strip().splitlines()[-1]
    assert re.search(message, last_line) and last_line.startswith("mnv3nb slim: "), last_line
    assert not os.path.exists(job.out)


def test_folders_without_enough_classes_or_images_are_refused(job, tmp_path, capfd):
    one_each = make_folder(tmp_path / "one_each", "a/0.png", "b/0.png")
    too_few = "each class needs at least two images, one of them to test on; add images to a, b"
    refused_job(job, {"data": str(one_each)}, too_few, capfd)
    one_class = make_folder(tmp_path / "one_class", "a/b/0.png")
    refused_job(job, {"data": str(one_class)}, "has only one class folder, a; give a folder with one folder", capfd)


def test_a_network_that_normalises_its_input_comes_back_from_its_file_with_it(weights, tmp_path):
    model = load_network(NETWORK, weights, 10).eval()
    save_model(model, tmp_path / "m.safetensors")
    x = torch.rand(1, 3, 32, 32)
    assert torch.equal(load_model(tmp_path / "m.safetensors")(x), model(x))
