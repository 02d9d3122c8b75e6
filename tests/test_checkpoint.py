"""Networks on disk: what half precision keeps, what is read back, what is refused, what a failed write leaves."""

import copy
import errno
import json
import math
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from support import lively, same_tensors, tree

from mnv3nb import DENSE_WIDTHS, MobileNetV3Large, filter_sparsity, keep_masks, load_model, prune, save_model, score
from mnv3nb.networks.checkpoint import halve_expansion
from mnv3nb.system.files import write_atomically, write_file
from mnv3nb.system.tensors import METADATA_KEY, load_tensors, save_tensors

RATES = (0.1, 0.3, 0.45, 0.5, 0.7)


@pytest.fixture(scope="module")
def sparse() -> MobileNetV3Large:
    """A network as sparse training leaves it: half of its γ dead, with magnitudes from 1e-13 to 1e-9 and both signs."""
    model = lively(8)
    generator = torch.Generator().manual_seed(8)
    with torch.no_grad():
        for block in model.blocks:
            gamma = block.expand[1].weight
            dead = torch.rand(len(gamma), generator=generator) < 0.5
            gamma[dead] *= 10.0 ** (-13 + 4 * torch.rand(int(dead.sum()), generator=generator))
    return model


@pytest.fixture(scope="module")
def saved(sparse, tmp_path_factory):
    path = tmp_path_factory.mktemp("saved") / "m.safetensors"
    save_model(prune(sparse, [torch.arange(width) < 4 for width in DENSE_WIDTHS]), path, image_size=32)
    return path


# half precision


def gammas_of(model: MobileNetV3Large) -> torch.Tensor:
    return torch.cat([block.expand[1].weight.detach() for block in model.blocks])


def test_half_precision_keeps_every_gamma(sparse, tmp_path):
    save_model(sparse, tmp_path / "half.safetensors", half=True)
    stored = load_model(tmp_path / "half.safetensors")
    assert torch.equal(gammas_of(stored), gammas_of(sparse))
    assert gammas_of(sparse).half().eq(0).sum() > 2000  # that many would be lost in fp16


def test_half_precision_keeps_all_masks(sparse, tmp_path):
    save_model(sparse, tmp_path / "half.safetensors", half=True)
    before = score(sparse)
    after = score(load_model(tmp_path / "half.safetensors"))
    assert all(torch.equal(a, b) for a, b in zip(after, before))
    for rate in RATES:
        assert all(torch.equal(a, b) for a, b in zip(keep_masks(after, rate), keep_masks(before, rate)))


def test_a_half_precision_file_is_half_as_large_and_almost_the_same_network(sparse, tmp_path):
    full_path = tmp_path / "full.safetensors"
    half_path = tmp_path / "half.safetensors"
    save_model(sparse, full_path)
    save_model(sparse, half_path, half=True)
    assert half_path.stat().st_size < 0.52 * full_path.stat().st_size
    x = torch.randn(4, 3, 32, 32)
    full = load_model(full_path)(x).detach()
    half = load_model(half_path)(x).detach()
    assert torch.equal(full, sparse(x))
    assert (half - full).abs().max() < 0.02 * full.abs().max()


@given(
    filters=st.integers(1, 40),
    channels=st.integers(1, 40),
    exponent=st.floats(-4, 2),
    seed=st.integers(0, 2**31),
    kind=st.sampled_from(["normal", "heavy-tailed", "half zeros"]),
)
def test_half_precision_keeps_every_s(filters, channels, exponent, seed, kind):
    """Eq. 3 compares with the layer's mean, so rounding must not take a weight across it."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(filters, channels, 1, 1, generator=generator) * 10**exponent
    if kind == "heavy-tailed":
        weight = weight.sign() * weight.abs() ** 1.5
    if kind == "half zeros":
        weight *= torch.rand(weight.shape, generator=generator) < 0.5
    half = halve_expansion(weight)
    assert half.dtype == torch.float16
    assert torch.equal(filter_sparsity(half.float()), filter_sparsity(weight))
    steps = half.view(torch.int16).int() - weight.half().view(torch.int16).int()
    assert steps.abs().max() <= 16


TOO_MUCH_FOR_FP16 = {
    "all magnitudes equal to the mean": torch.full((8, 16, 1, 1), 0.1),
    "too small": torch.randn(8, 16, 1, 1) * 1e-9,
    "too large": torch.randn(8, 16, 1, 1) * 1e6,
}


@pytest.mark.parametrize("weight", TOO_MUCH_FOR_FP16.values(), ids=TOO_MUCH_FOR_FP16)
def test_an_expansion_that_fp16_cannot_hold_keeps_its_s_as_well(sparse, tmp_path, weight):
    model = prune(sparse, [torch.arange(width) < 8 for width in DENSE_WIDTHS])
    with torch.no_grad():
        model.blocks[0].expand[0].weight.copy_(weight)
    save_model(model, tmp_path / "m.safetensors", half=True)
    stored = load_model(tmp_path / "m.safetensors").blocks[0].expand[0].weight.detach()
    assert torch.equal(filter_sparsity(stored), filter_sparsity(weight))
    torch.testing.assert_close(stored, weight, rtol=1e-2, atol=0)


def test_saving_in_half_precision_leaves_a_half_precision_network_untouched(sparse, tmp_path):
    model = copy.deepcopy(sparse).half()
    before = copy.deepcopy(model.state_dict())
    save_model(model, tmp_path / "m.safetensors", half=True)
    assert same_tensors(model.state_dict(), before)


# what is read back


def test_an_equal_network_is_an_equal_file(sparse, tmp_path):
    metadata = {"image_size": 32, "classes": ["x"], "accuracy": 0.1}
    for name in ("a", "b"):
        save_model(copy.deepcopy(sparse), tmp_path / f"{name}.safetensors", **metadata)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_stored_network_gives_the_same_bits_whatever_metadata_is_stored_with_it(sparse, tmp_path):
    """The metadata's length moves the tensors in the file. On a CPU the last bits depend on a tensor's address."""
    x = torch.randn(3, 3, 32, 32)
    for length in range(0, 64, 7):
        save_model(sparse, tmp_path / "m.safetensors", note="n" * length)
        again = load_model(tmp_path / "m.safetensors")
        assert all(value.data_ptr() % 64 == 0 for value in again.state_dict().values())
        assert torch.equal(again(x), sparse(x))


DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint8]
NAMES = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=8)
SHAPES = st.lists(st.integers(0, 4), max_size=4)
JSON_VALUES = st.recursive(st.none() | st.floats() | st.text(), st.lists, max_leaves=4)


@settings(max_examples=15)
@given(
    described=st.dictionaries(NAMES, st.tuples(st.sampled_from(DTYPES), SHAPES), max_size=5),
    metadata=st.dictionaries(st.text(max_size=5), JSON_VALUES, max_size=3),
)
def test_tensors_and_metadata_are_read_back_unchanged(tmp_path_factory, described, metadata):
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, (dtype, shape) in described.items():
        tensors[name] = (torch.randn(shape, generator=generator) * 9).to(dtype)
    path = tmp_path_factory.mktemp("t") / "t.safetensors"
    save_tensors(path, tensors, metadata)
    stored, stored_metadata = load_tensors(path)
    assert stored.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert stored[name].dtype == tensor.dtype
        assert stored[name].shape == tensor.shape
        assert stored[name].reshape(-1).view(torch.uint8).equal(tensor.reshape(-1).view(torch.uint8))
    assert json.dumps(stored_metadata, sort_keys=True) == json.dumps(metadata, sort_keys=True)


def test_other_strides_are_read_back(tmp_path):
    strides = (1,) * 15
    save_model(MobileNetV3Large(strides=strides), tmp_path / "m.safetensors")
    assert load_model(tmp_path / "m.safetensors").strides == strides


# what is refused


@settings(max_examples=60)
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255), st.booleans())
def test_a_changed_byte_is_found(saved, tmp_path_factory, place, flip, in_header):
    data = bytearray(saved.read_bytes())
    length = int.from_bytes(data[:8], "little")
    offset = int(place * (8 + length if in_header else len(data)))
    data[offset] ^= flip
    path = tmp_path_factory.mktemp("changed") / "m.safetensors"
    path.write_bytes(data)
    try:
        model = load_model(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:  # only white space in the header's padding may differ
        assert offset < 8 + length and chr(data[offset]) in " \n\r\t"
        assert same_tensors(model.state_dict(), load_model(saved).state_dict())


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 100, "10 %", "50 %", "99 %", -1])
def test_a_truncated_file_is_refused(saved, tmp_path, kept):
    data = saved.read_bytes()
    if isinstance(kept, str):
        kept = len(data) * int(kept.removesuffix(" %")) // 100
    path = tmp_path / "m.safetensors"
    path.write_bytes(data[:kept])
    with pytest.raises(ValueError, match=r"m\.safetensors is not a whole safetensors file .*; copy or make it again"):
        load_model(path)


def test_foreign_and_missing_files_are_refused(sparse, tmp_path):
    save_file({"a": torch.zeros(3)}, tmp_path / "foreign.safetensors")
    save_file({"a": torch.zeros(3)}, tmp_path / "other.safetensors", {"format": "pt"})
    torch.save(sparse.state_dict(), tmp_path / "torch.safetensors")
    np.save(tmp_path / "numpy.npy", np.zeros(3))
    (tmp_path / "text.safetensors").write_text("not a network")
    for name in ("foreign.safetensors", "other.safetensors"):
        with pytest.raises(ValueError, match=f"{name} was not written by mnv3nb"):
            load_model(tmp_path / name)
    for name in ("torch.safetensors", "numpy.npy", "text.safetensors"):
        with pytest.raises(ValueError, match=f"{name} is not a whole safetensors file"):
            load_model(tmp_path / name)
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"no file .*; give a \.safetensors file that mnv3nb wrote"):
            load_model(path)


def test_a_training_checkpoint_is_not_a_model(tmp_path):
    save_tensors(tmp_path / "state.safetensors", {"model.a": torch.zeros(1)}, {"history": []})
    with pytest.raises(ValueError, match="is a training checkpoint, not a model"):
        load_model(tmp_path / "state.safetensors")


@pytest.mark.parametrize(
    "change",
    [
        {"widths": [8] * 15},
        {"widths": [4] * 14},
        {"num_classes": 9},
        {"squeeze": [0] * 15},
        {"widths": [10**9] * 15},
        {"widths": ["4"] * 15},
        {"widths": None},
        {"depth": 3},
    ],
)
def test_widths_that_do_not_fit_the_tensors_are_refused(saved, tmp_path, change):
    tensors, metadata = load_tensors(saved)
    metadata["model"] |= change
    save_tensors(tmp_path / "m.safetensors", tensors, metadata)
    with pytest.raises(ValueError, match=r"m\.safetensors: the network it describes cannot be rebuilt: "):
        load_model(tmp_path / "m.safetensors")


def test_missing_and_surplus_tensors_are_refused(saved, tmp_path):
    tensors, metadata = load_tensors(saved)
    surplus = {**tensors, "extra": torch.zeros(1)}
    missing = dict(list(tensors.items())[1:])
    for changed in (surplus, missing):
        save_tensors(tmp_path / "m.safetensors", changed, metadata)
        with pytest.raises(ValueError, match="cannot be rebuilt"):
            load_model(tmp_path / "m.safetensors")


def test_other_endings_are_refused_before_anything_is_written(sparse, tmp_path):
    with pytest.raises(ValueError, match=r"the path must end in \.safetensors, got .*m\.pt"):
        save_model(sparse, tmp_path / "m.pt")
    assert not list(tmp_path.iterdir())


# what a failed write leaves


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), Interrupted()])
def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, error):
    (tmp_path / "f").write_bytes(b"old")
    with pytest.raises(type(error)), write_atomically(tmp_path / "f") as file:
        file.write(b"half of the n")
        raise error
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
    assert (tmp_path / "f").read_bytes() == b"old"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_names_path_and_size_and_leaves_the_old_file(sparse, tmp_path, monkeypatch, call):
    path = tmp_path / "deep" / "m.safetensors"
    save_model(sparse, path)
    before = tree(tmp_path)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(OSError, match=r"cannot write .*m\.safetensors \(\d+ bytes needed\): No space left") as caught:
        save_model(sparse, path, accuracy=1.0)
    assert caught.value.errno == errno.ENOSPC
    assert tree(tmp_path) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="permissions do not hold for root")
def test_no_permission_is_one_clear_error(sparse, tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError, match=r"cannot write .*m\.safetensors .*Permission denied"):
        save_model(sparse, tmp_path / "m.safetensors")
    tmp_path.chmod(0o700)


def test_a_file_appears_only_when_it_is_whole(tmp_path):
    path = tmp_path / "new" / "folder" / "f"
    with write_atomically(path) as file:
        file.write(b"all")
        assert not path.exists()
    assert path.read_bytes() == b"all"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.skipif(os.name != "posix", reason="Windows has no umask")
@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077, 0o002])
def test_the_umask_decides_who_may_read_a_file(tmp_path, umask):
    before = os.umask(umask)
    try:
        write_file(tmp_path / "f", "text")
        write_file(tmp_path / "f", "replaced")
    finally:
        os.umask(before)
    assert (tmp_path / "f").stat().st_mode & 0o777 == 0o666 & ~umask


def test_a_model_file_can_be_read_by_safetensors_alone(saved):
    from safetensors import safe_open

    with safe_open(saved, "np") as file:
        assert list(file.metadata()) == [METADATA_KEY]
        assert math.prod(file.get_tensor("stem.0.weight").shape) == 432
