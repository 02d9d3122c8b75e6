"""Networks of inverted-residual blocks: found by structure, pruned exactly, stored and read back; weights of files."""

import copy
import hashlib

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from support import lively, same_tensors
from torch import nn
from torchvision.models import MobileNet_V3_Small_Weights

from mnv3nb import (
    TrainConfig,
    blocks,
    build_network,
    fold_bias,
    keep_masks,
    load_model,
    load_network,
    prune,
    save_model,
    score,
    train,
)
from mnv3nb.data.batches import to_input
from mnv3nb.deploy.export import session, to_onnx
from mnv3nb.networks.zoo import normalise_input

BLOCKS_FOUND = {
    "mnv3nb/MobileNetV3Large": 15,
    "torchvision/mobilenet_v2": 16,
    "torchvision/mobilenet_v3_small": 10,
    "torchvision/mobilenet_v3_large": 14,
    "torchvision/efficientnet_b0": 15,
    "torchvision/efficientnet_v2_s": 30,
    "torchvision/mnasnet1_0": 16,
}
BLOCKS_FOUND_IN_TIMM = {
    "timm/mobilenetv3_small_100": 10,
    "timm/mobilenetv3_large_100": 14,
    "timm/mobilenetv2_100": 16,
    "timm/efficientnet_b0": 15,
    "timm/tf_efficientnetv2_s": 30,
    "timm/mnasnet_100": 16,
    "timm/tinynet_e": 9,
    "timm/mobilenetv4_conv_small": 8,
}


def skip_without_timm(architecture: str) -> None:
    if architecture.startswith("timm/"):
        pytest.importorskip("timm")


def trained_looking(architecture: str) -> nn.Module:
    """A network in 64 bits and eval mode whose BatchNorms have parameters and statistics of all sizes."""
    skip_without_timm(architecture)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(3)
        model = build_network(architecture, num_classes=7)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.2)
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.8, 1.2)
    return model.double().eval()


def random_masks(model: nn.Module, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    masks = [torch.rand(block.width, generator=generator) < 0.6 for block in blocks(model)]
    for mask in masks:
        mask[0] = True
    return masks


def zero_removed(model: nn.Module, masks: list[torch.Tensor]) -> nn.Module:
    """The dense network with the removed channels zeroed in the inputs of SE and of the projection."""

    def zero_inputs(mask: torch.Tensor):
        return lambda layer, inputs: (inputs[0] * mask[:, None, None],)

    model = copy.deepcopy(model)
    for block, mask in zip(blocks(model), masks):
        block.project.register_forward_pre_hook(zero_inputs(mask))
        if block.squeeze is not None:
            block.squeeze.register_forward_pre_hook(zero_inputs(mask))
    return model


@pytest.mark.parametrize("architecture", [*BLOCKS_FOUND, *BLOCKS_FOUND_IN_TIMM])
def test_a_pruned_network_computes_the_dense_one_with_channels_zeroed(architecture, tmp_path):
    """In 64 bits, where rounding cannot hide an error; kept weights are bit-equal, names and class unchanged."""
    model = trained_looking(architecture)
    assert len(blocks(model)) == {**BLOCKS_FOUND, **BLOCKS_FOUND_IN_TIMM}[architecture]
    masks = random_masks(model)
    before = copy.deepcopy(model.state_dict())
    small = prune(model, masks, squeeze="keep")
    x = torch.rand(2, 3, 64, 64, dtype=torch.double, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(small(x), zero_removed(model, masks)(x), rtol=1e-9, atol=1e-9)
    assert type(small) is type(model)
    assert list(small.state_dict()) == list(before)
    assert same_tensors(model.state_dict(), before)
    for old, new, mask in zip(blocks(model), blocks(small), masks):
        assert new.width == int(mask.sum())
        assert new.hidden == old.hidden
        assert torch.equal(new.expand.weight, old.expand.weight[mask])
        assert torch.equal(new.depthwise_bn.bias, old.depthwise_bn.bias[mask])
        assert torch.equal(new.project.weight, old.project.weight[:, mask])

    save_model(small.float(), tmp_path / "small.safetensors", image_size=64)
    stored = load_model(tmp_path / "small.safetensors")
    assert type(stored) is type(model)
    assert same_tensors(stored.state_dict(), small.state_dict())
    with torch.no_grad():
        assert torch.equal(stored(x.float()), small(x.float()))


@pytest.mark.parametrize("architecture", ["torchvision/mobilenet_v3_small", "torchvision/efficientnet_b0"])
def test_the_papers_squeeze_rule_works_on_other_networks_but_is_not_their_default(architecture):
    model = trained_looking(architecture)
    masks = keep_masks(score(model), 0.5)
    default = prune(model, masks)
    paper = prune(model, masks, squeeze="paper")
    assert [block.hidden for block in blocks(default)] == [block.hidden for block in blocks(model)]
    for new, old in zip(blocks(paper), blocks(model)):
        assert min(8, old.hidden) <= new.hidden <= old.hidden
    assert paper(torch.zeros(1, 3, 64, 64, dtype=torch.double)).shape == (1, 7)


@pytest.mark.parametrize("architecture", BLOCKS_FOUND)
def test_every_criterion_scores_every_network(architecture):
    model = build_network(architecture, 10)
    for criterion in ("gamma_sparsity", "l1", "fpgm", "random"):
        widths = [len(scores) for scores in score(model, criterion)]
        assert widths == [block.width for block in blocks(model)]


@settings(max_examples=6)
@given(st.integers(0, 2**31))
def test_blocks_pruned_to_a_single_channel_are_still_found(seed):
    model = trained_looking("mnv3nb/MobileNetV3Large")
    generator = torch.Generator().manual_seed(seed)
    masks = []
    for block in blocks(model):
        kept = torch.randint(block.width, (), generator=generator)
        masks.append(torch.arange(block.width) == kept)
    small = prune(model, masks)
    assert [b.width for b in blocks(small)] == [1] * 15
    assert small.widths == (1,) * 15


@pytest.mark.parametrize("name", ["resnet18", "squeezenet1_0", "regnet_y_400mf", "densenet121", "googlenet"])
def test_networks_without_inverted_residual_blocks_are_refused(name):
    options = {"init_weights": False} if name == "googlenet" else {}  # drawing its weights takes long
    model = torchvision.models.get_model(name, weights=None, **options)
    with pytest.raises(ValueError, match="has no inverted-residual block"):
        blocks(model)
    with pytest.raises(ValueError, match="has no inverted-residual block"):
        score(model)


@pytest.mark.parametrize("name", ["lcnet_050", "ghostnet_100", "resnet18"])
def test_networks_of_timm_without_an_expansion_are_refused(name):
    timm = pytest.importorskip("timm")
    with pytest.raises(ValueError, match="has no inverted-residual block"):
        blocks(timm.create_model(name))


def test_a_network_that_cannot_be_rebuilt_is_not_saved(tmp_path):
    model = torchvision.models.mobilenet_v2()
    with pytest.raises(ValueError, match="cannot tell how to rebuild a MobileNetV2: make it with build_network"):
        save_model(model, tmp_path / "m.safetensors")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["torchvision/nothing", "torchvision", "mobilenet_v2", "keras/x", "mnv3nb/x", ""])
def test_an_unknown_architecture_is_refused(name):
    with pytest.raises(
        ValueError, match=f"unknown architecture '{name}'; allowed: mnv3nb/MobileNetV3Large, torchvision"
    ):
        build_network(name, 10)


# weights of files


@pytest.fixture
def mine(tmp_path):
    """A .pth file of MobileNetV3-Small with 7 classes."""
    path = tmp_path / "mine.pth"
    torch.save(trained_looking("torchvision/mobilenet_v3_small").float().state_dict(), path)
    return path


@pytest.mark.parametrize("architecture", [*list(BLOCKS_FOUND)[1:], *BLOCKS_FOUND_IN_TIMM])
def test_from_a_pth_file_through_pruning_to_onnx_runtime(architecture, digits, tmp_path):
    """Load, score, prune, fold, fine-tune for three steps, save, load, export: the graph computes the network."""
    torch.save(trained_looking(architecture).float().state_dict(), tmp_path / "mine.pth")
    model = load_network(architecture, tmp_path / "mine.pth", 10)
    masks = keep_masks(score(model), 0.5, multiple_of=8)
    small = fold_bias(model, prune(model, masks), masks, 32)
    train(small, digits.subset(24), TrainConfig(epochs=1, batch_size=8), device="cpu", progress=False)
    save_model(small.eval(), tmp_path / "m.safetensors", image_size=32, classes=digits.classes)
    stored = load_model(tmp_path / "m.safetensors")
    assert [block.width for block in blocks(stored)] == [int(mask.sum()) for mask in masks]
    assert same_tensors(dict(stored.state_dict()), dict(small.state_dict()))
    assert stored.normalisation == model.normalisation

    x = to_input(digits.test_images[:4], 32)
    graph = to_onnx(stored, 32)
    (logits,) = session(graph).run(None, {"images": x.contiguous().numpy()})
    with torch.no_grad():
        expected = small(x)
        assert torch.equal(stored(x), expected)
    torch.testing.assert_close(torch.from_numpy(logits), expected, atol=1e-4, rtol=1e-4)
    assert "normalised inside" in graph.doc_string


def test_a_network_with_weights_of_a_file_normalises_its_input_by_imagenet(mine, capsys):
    plain = build_network("torchvision/mobilenet_v3_small", 7).eval()
    plain.load_state_dict(torch.load(mine, weights_only=True))
    model = load_network("torchvision/mobilenet_v3_small", mine, 7).eval()
    images = torch.rand(2, 3, 32, 32)
    mean = torch.tensor([0.485, 0.456, 0.406])
    deviation = torch.tensor([0.229, 0.224, 0.225])
    normalised = (images - mean[:, None, None]) / deviation[:, None, None]
    assert torch.allclose(model(2 * images - 1), plain(normalised), atol=1e-4)
    assert torch.equal(torch.tensor(model.normalisation), torch.stack([mean, deviation]))
    assert capsys.readouterr().err == ""


def test_a_classifier_of_another_size_is_replaced_and_reported(mine, capsys):
    model = load_network("torchvision/mobilenet_v3_small", mine, 3)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    assert "classifier classifier.3 of 7 classes replaced by a random one of 3" in capsys.readouterr().err


def test_the_classifier_of_the_papers_network_is_replaced_as_well(tmp_path):
    torch.save(lively(1).state_dict(), tmp_path / "m.pth")
    model = load_network("mnv3nb/MobileNetV3Large", tmp_path / "m.pth", 2)
    assert model.num_classes == 2
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 2)


def test_a_network_of_timm_is_answered_with_how_to_install_timm(monkeypatch):
    monkeypatch.setattr("mnv3nb.networks.zoo.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"^timm/x needs timm: pip install timm$"):
        build_network("timm/x", 2)


def test_weights_of_another_architecture_are_refused_with_the_first_tensors_that_differ(mine):
    message = r"does not fit torchvision/mobilenet_v2: \d+ tensors differ, first features\.0\.0"
    with pytest.raises(ValueError, match=message):
        load_network("torchvision/mobilenet_v2", mine, 7)


@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_weights_may_be_wrapped_as_training_scripts_do(mine, key):
    state = torch.load(mine, weights_only=True)
    torch.save({key: {f"module.{name}": tensor for name, tensor in state.items()}, "epoch": 3}, mine)
    assert same_tensors(dict(load_network("torchvision/mobilenet_v3_small", mine, 7).state_dict()), dict(state))


@pytest.mark.parametrize("content", [{"a": 1}, {}, [torch.ones(1)], torch.ones(1)], ids=str)
def test_a_file_without_a_state_dict_is_refused(mine, content):
    torch.save(content, mine)
    with pytest.raises(ValueError, match=r"holds no state dict .*; save it with torch\.save\(model\.state_dict"):
        load_network("torchvision/mobilenet_v3_small", mine, 7)


def test_a_foreign_or_missing_file_of_weights_is_refused(mine):
    mine.write_bytes(b"no pickle")
    with pytest.raises(ValueError, match=r"mine\.pth is not a file of plain tensors"):
        load_network("torchvision/mobilenet_v3_small", mine, 7)
    with pytest.raises(FileNotFoundError, match=r"no file .*give None, 'DEFAULT' or the path"):
        load_network("torchvision/mobilenet_v3_small", mine.with_name("x.pth"), 7)


class Touch:
    """Makes a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_with_code_is_refused_and_its_code_never_runs(tmp_path):
    torch.save({"weight": torch.ones(2), "x": Touch(tmp_path / "proof")}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="is not a file of plain tensors"):
        load_network("torchvision/mobilenet_v3_small", tmp_path / "evil.pth")
    assert not (tmp_path / "proof").exists()


def serve_as_default(monkeypatch, tmp_path, content: object, name: str | None = None) -> None:
    """Let torchvision take its DEFAULT weights from a local file, by default under a name with the right checksum."""
    torch.save(content, tmp_path / "w.pth")
    if name is None:
        digest = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()
        name = f"small-{digest[:8]}.pth"
    served = (tmp_path / "w.pth").rename(tmp_path / name)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(MobileNet_V3_Small_Weights.DEFAULT.value, "url", served.as_uri())


def test_default_weights_are_downloaded_and_verified(monkeypatch, tmp_path, capsys):
    torch.manual_seed(5)
    dense = build_network("torchvision/mobilenet_v3_small", 1000)
    serve_as_default(monkeypatch, tmp_path, dense.state_dict())
    model = load_network("torchvision/mobilenet_v3_small", "DEFAULT", 5)
    state = model.state_dict()
    for name, tensor in dense.state_dict().items():
        if not name.startswith("classifier.3"):
            assert torch.equal(state[name], tensor)
    assert model.classifier[3].out_features == 5
    assert model.normalisation[0] == [0.485, 0.456, 0.406]
    assert "1000 classes replaced by a random one of 5" in capsys.readouterr().err


def test_default_weights_with_another_checksum_are_refused(monkeypatch, tmp_path):
    serve_as_default(monkeypatch, tmp_path, {"x": torch.ones(1)}, "small-00000000.pth")
    assert_default_is_refused()


def test_default_weights_with_code_are_refused_and_their_code_never_runs(monkeypatch, tmp_path):
    serve_as_default(monkeypatch, tmp_path, {"x": Touch(tmp_path / "proof")})
    assert_default_is_refused()
    assert not (tmp_path / "proof").exists()


def test_default_weights_that_cannot_be_reached_are_refused(monkeypatch, tmp_path):
    serve_as_default(monkeypatch, tmp_path, {"x": torch.ones(1)})
    missing = (tmp_path / "no-12345678.pth").as_uri()
    monkeypatch.setattr(MobileNet_V3_Small_Weights.DEFAULT.value, "url", missing)
    assert_default_is_refused()


def assert_default_is_refused() -> None:
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded .*give the path of a .pth file instead"):
        load_network("torchvision/mobilenet_v3_small", "DEFAULT")


def test_the_papers_network_has_no_default_weights():
    with pytest.raises(ValueError, match="has no pretrained weights"):
        load_network("mnv3nb/MobileNetV3Large", "DEFAULT")


def test_a_network_is_normalised_only_once():
    model = normalise_input(build_network("torchvision/mobilenet_v3_small", 2), [0.5] * 3, [0.25] * 3)
    with pytest.raises(ValueError, match=r"normalises its input already, by \[\[0.5, .*; load it again"):
        normalise_input(model, [0.5] * 3, [0.25] * 3)


def test_normalisation_moves_with_the_network_and_is_not_in_its_state_dict():
    plain = build_network("torchvision/mobilenet_v3_small", 2)
    model = normalise_input(copy.deepcopy(plain), [0.5] * 3, [0.25] * 3)
    assert model.state_dict().keys() == plain.state_dict().keys()
    moved = copy.deepcopy(model).to("meta")
    assert moved(torch.empty(2, 3, 32, 32, device="meta")).is_meta
