"""Files in and out: what half precision keeps, what is refused, what is left behind."""

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
from mnv3nb.system.files import write_atomically
from mnv3nb.system.tensors import METADATA_KEY, load_tensors, save_tensors

RATES = (0.1, 0.3, 0.45, 0.5, 0.7)


@pytest.fixture(scope="module")
def sparse() -> MobileNetV3Large:
    """A network as sparse training leaves it: half of its γ dead, at sizes from 1e-13 to 1e-9, some of them
    negative."""
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


def test_half_precision_keeps_dead_gammas_apart_and_all_masks(sparse, tmp_path):
    save_model(sparse, tmp_path / "half.safetensors", half=True)
    stored = load_model(tmp_path / "half.safetensors")
    gammas = torch.cat([block.expand[1].weight.detach() for block in stored.blocks])
    assert torch.equal(gammas, torch.cat([block.expand[1].weight.detach() for block in sparse.blocks]))
    assert (gammas.abs() < 6e-8).sum() > 2000 and gammas.half().eq(0).sum() > 2000  # all of them 0 if stored in fp16
    assert all(torch.equal(a, b) for a, b in zip(score(stored), score(sparse)))
    for rate in RATES:
        assert all(torch.equal(a, b) for a, b in zip(keep_masks(score(stored), rate), keep_masks(score(sparse), rate)))


def test_a_half_precision_file_is_half_as_large_and_almost_the_same_network(sparse, tmp_path):
    for name, half in (("half", True), ("full", False)):
        save_model(sparse, tmp_path / f"{name}.safetensors", half=half)
    sizes = {path.stem: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes["half"] < 0.52 * sizes["full"]
    x = torch.randn(4, 3, 32, 32)
    full, half = (load_model(tmp_path / f"{name}.safetensors")(x).detach() for name in ("full", "half"))
    assert torch.equal(full, sparse(x))
    assert float((half - full).abs().max()) < 0.02 * float(full.abs().max())


@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.floats(-4, 2),
    st.integers(0, 2**31),
    st.sampled_from(["normal", "heavy", "zeros"]),
)
def test_half_precision_keeps_every_s(filters, channels, exponent, seed, kind):
    """Eq. 3 compares with the layer's mean: a weight near it must not change sides by rounding."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(filters, channels, 1, 1, generator=generator) * 10**exponent
    if kind == "heavy":
        weight = weight.sign() * weight.abs() ** 1.5
    if kind == "zeros":
        weight *= torch.rand(weight.shape, generator=generator) < 0.5
    half = halve_expansion(weight)
    assert half.dtype == torch.float16
    assert torch.equal(filter_sparsity(half.float()), filter_sparsity(weight))
    steps = (half.view(torch.int16).int() - weight.half().view(torch.int16).int()).abs()
    assert steps.max() <= 16


@pytest.mark.parametrize(
    "weight", [torch.full((8, 16, 1, 1), 0.1), torch.randn(8, 16, 1, 1) * 1e-9, torch.randn(8, 16, 1, 1) * 1e6]
)
def test_an_expansion_that_fp16_cannot_hold_keeps_its_s_all_the_same(sparse, tmp_path, weight):
    model = prune(sparse, [torch.arange(width) < 8 for width in DENSE_WIDTHS])
    with torch.no_grad():
        model.blocks[0].expand[0].weight.copy_(weight)
    save_model(model, tmp_path / "m.safetensors", half=True)
    stored = load_model(tmp_path / "m.safetensors").blocks[0].expand[0].weight.detach()
    assert torch.equal(filter_sparsity(stored), filter_sparsity(weight))
    torch.testing.assert_close(stored, weight, rtol=1e-2, atol=0)


# what comes back


def test_an_equal_network_is_an_equal_file(sparse, tmp_path):
    for name in ("a", "b"):
        save_model(copy.deepcopy(sparse), tmp_path / f"{name}.safetensors", image_size=32, classes=["x"], accuracy=0.1)
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_stored_network_computes_to_the_same_bits_whatever_is_stored_with_it(sparse, tmp_path):
    """Tensors that begin at odd addresses of a file do not: on a CPU the last bits depend on the address."""
    x = torch.randn(3, 3, 32, 32)
    for length in range(0, 64, 7):
        save_model(sparse, tmp_path / "m.safetensors", note="n" * length)
        again = load_model(tmp_path / "m.safetensors")
        assert all(value.data_ptr() % 64 == 0 for value in again.state_dict().values())
        assert torch.equal(again(x), sparse(x))


@settings(max_examples=15)
@given(
    st.dictionaries(
        st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=8),
        st.tuples(
            st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool, torch.uint8]),
            st.lists(st.integers(0, 4), max_size=4),
        ),
        max_size=5,
    ),
    st.dictionaries(
        st.text(max_size=5), st.recursive(st.none() | st.floats() | st.text(), st.lists, max_leaves=4), max_size=3
    ),
)
def test_tensors_and_metadata_come_back_as_they_went(tmp_path_factory, shapes, metadata):
    generator = torch.Generator().manual_seed(0)
    tensors = {n: (torch.randn(shape, generator=generator) * 9).to(dtype) for n, (dtype, shape) in shapes.items()}
    path = tmp_path_factory.mktemp("t") / "t.safetensors"
    save_tensors(path, tensors, metadata)
    again, kept = load_tensors(path)
    assert again.keys() == tensors.keys()
    assert all(a.dtype == tensors[n].dtype and a.shape == tensors[n].shape for n, a in again.items())
    assert all(
        a.view(torch.uint8).equal(tensors[n].view(torch.uint8)) for n, a in again.items() if a.ndim and a.numel()
    )
    assert json.dumps(kept, sort_keys=True) == json.dumps(metadata, sort_keys=True)


# what is refused


@settings(max_examples=60)
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255), st.booleans())
def test_a_flipped_byte_is_found(saved, tmp_path_factory, place, flip, in_header):
    data = bytearray(saved.read_bytes())
    length = int.from_bytes(data[:8], "little")
    offset = int(place * (8 + length if in_header else len(data)))
    data[offset] ^= flip
    path = tmp_path_factory.mktemp("flipped") / "m.safetensors"
    path.write_bytes(data)
    try:
        model = load_model(path)
    except ValueError as error:
        assert str(path) in str(error)
    else:  # white space of the header's padding, and nothing else
        assert offset < 8 + length and chr(data[offset]) in " \n\r\t"
        assert same_tensors(model.state_dict(), load_model(saved).state_dict())


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 100, 0.1, 0.5, 0.99, -1])
def test_a_truncated_file_is_refused(saved, tmp_path, kept):
    data = saved.read_bytes()
    path = tmp_path / "m.safetensors"
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
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


def test_the_state_of_a_training_is_not_a_model(tmp_path):
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
    for changed in (tensors | {"extra": torch.zeros(1)}, dict(list(tensors.items())[1:])):
        save_tensors(tmp_path / "m.safetensors", changed, metadata)
        with pytest.raises(ValueError, match="cannot be rebuilt"):
            load_model(tmp_path / "m.safetensors")


def test_other_endings_are_refused_before_anything_is_written(sparse, tmp_path):
    with pytest.raises(ValueError, match=r"the path must end in \.safetensors, got .*m\.pt"):
        save_model(sparse, tmp_path / "m.pt")
    assert not list(tmp_path.iterdir())


# what is left behind


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt(), Interrupted()])
def test_an_error_while_writing_leaves_the_old_file_and_nothing_else(tmp_path, error):
    (tmp_path / "f").write_bytes(b"old")
    with pytest.raises(type(error)), write_atomically(tmp_path / "f") as file:
        file.write(b"half of the n")
        raise error
    assert {name: data for name, (data, _) in tree(tmp_path).items()} == {"f": b"old"}


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


def test_a_file_appears_only_when_it_is_whole_and_everyone_may_read_it(tmp_path):
    path = tmp_path / "new" / "folder" / "f"
    with write_atomically(path) as file:
        file.write(b"all")
        assert not path.exists()
    assert path.read_bytes() == b"all" and path.stat().st_mode & 0o444 == 0o444
    assert [p.name for p in path.parent.iterdir()] == ["f"]


def test_a_file_is_one_safetensors_file_that_others_can_read(saved):
    from safetensors import safe_open

    with safe_open(saved, "np") as file:
        assert list(file.metadata()) == [METADATA_KEY]
        assert math.prod(file.get_tensor("stem.0.weight").shape) == 432
