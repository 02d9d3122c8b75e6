"""Any network of inverted-residual blocks: found by structure, cut exactly, stored and read back."""

import copy
import hashlib

import pytest
import torch
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

FOUND = {
    "mnv3nb/MobileNetV3Large": 15,
    "torchvision/mobilenet_v2": 16,
    "torchvision/mobilenet_v3_small": 10,
    "torchvision/mobilenet_v3_large": 14,
    "torchvision/efficientnet_b0": 15,
    "torchvision/efficientnet_v2_s": 30,
    "torchvision/mnasnet1_0": 16,
}
FROM_TIMM = {
    "timm/mobilenetv3_small_100": 10,
    "timm/mobilenetv3_large_100": 14,
    "timm/mobilenetv2_100": 16,
    "timm/efficientnet_b0": 15,
    "timm/tf_efficientnetv2_s": 30,
    "timm/mnasnet_100": 16,
    "timm/tinynet_e": 9,
    "timm/mobilenetv4_conv_small": 8,
}


def trained_looking(architecture: str) -> nn.Module:
    """A network in 64 bits and eval mode whose BatchNorms have all kinds of parameters and statistics."""
    if architecture.startswith("timm/"):
        pytest.importorskip("timm")
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
    """The dense network with the removed channels zeroed where the projection, or SE, takes them."""
    model = copy.deepcopy(model)
    for block, mask in zip(blocks(model), masks):
        for layer in (block.squeeze, block.project):
            if layer is not None:
                layer.register_forward_pre_hook(lambda _, args, mask=mask: (args[0] * mask[:, None, None],))
    return model


@pytest.mark.parametrize("architecture", [*FOUND, *FROM_TIMM])
def test_a_pruned_network_is_the_dense_one_with_channels_zeroed(architecture, tmp_path):
    """In 64 bits, where rounding cannot hide an error; kept weights are bit-equal, names and class unchanged."""
    model = trained_looking(architecture)
    assert len(blocks(model)) == (FOUND | FROM_TIMM)[architecture]
    masks, before = random_masks(model), copy.deepcopy(model.state_dict())
    small = prune(model, masks, squeeze="keep")
    x = torch.rand(2, 3, 64, 64, dtype=torch.double, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.no_grad():
        torch.testing.assert_close(small(x), zero_removed(model, masks)(x), rtol=1e-9, atol=1e-9)
    assert type(small) is type(model) and list(small.state_dict()) == list(before)
    assert same_tensors(model.state_dict(), before)
    for old, new, mask in zip(blocks(model), blocks(small), masks):
        assert new.width == int(mask.sum()) and new.hidden == old.hidden
        assert torch.equal(new.expand.weight, old.expand.weight[mask])
        assert torch.equal(new.depthwise_bn.bias, old.depthwise_bn.bias[mask])
        assert torch.equal(new.project.weight, old.project.weight[:, mask])
    save_model(small.float(), tmp_path / "small.safetensors", image_size=64)
    again = load_model(tmp_path / "small.safetensors")
    assert type(again) is type(model) and same_tensors(again.state_dict(), small.state_dict())
    with torch.no_grad():
        assert torch.equal(again(x.float()), small(x.float()))


@pytest.mark.parametrize("architecture", ["torchvision/mobilenet_v3_small", "torchvision/efficientnet_b0"])
def test_the_papers_squeeze_rule_works_on_other_networks_and_is_not_their_default(architecture):
    model = trained_looking(architecture)
    masks = keep_masks(score(model), 0.5)
    kept, paper = prune(model, masks), prune(model, masks, squeeze="paper")
    assert [b.hidden for b in blocks(kept)] == [b.hidden for b in blocks(model)]
    for block, old in zip(blocks(paper), blocks(model)):
        assert block.hidden == min(old.hidden, max(8, block.hidden)) and block.hidden <= old.hidden
    assert paper(torch.zeros(1, 3, 64, 64, dtype=torch.double)).shape == (1, 7)


@pytest.mark.parametrize("architecture", FOUND)
def test_every_criterion_scores_every_network(architecture):
    model = build_network(architecture, 10)
    for criterion in ("gamma_sparsity", "l1", "fpgm", "random"):
        assert [len(s) for s in score(model, criterion)] == [block.width for block in blocks(model)]


@settings(max_examples=6)
@given(st.integers(0, 2**31))
def test_pruning_to_single_channels_still_leaves_blocks(seed):
    model = trained_looking("mnv3nb/MobileNetV3Large")
    generator = torch.Generator().manual_seed(seed)
    masks = [torch.arange(b.width) == int(torch.randint(b.width, (), generator=generator)) for b in blocks(model)]
    small = prune(model, masks)
    assert [b.width for b in blocks(small)] == [1] * 15
    assert small.widths == (1,) * 15


@pytest.mark.parametrize("make", ["resnet18", "squeezenet1_0", "regnet_y_400mf", "densenet121", "googlenet"])
def test_networks_without_inverted_residual_blocks_are_refused(make):
    from torchvision.models import get_model

    model = get_model(make, weights=None, **({"init_weights": False} if make == "googlenet" else {}))
    with pytest.raises(ValueError, match="has no inverted-residual block"):
        blocks(model)
    with pytest.raises(ValueError, match="has no inverted-residual block"):
        score(model)


@pytest.mark.parametrize("name", ["lcnet_050", "ghostnet_100", "resnet18"])
def test_timms_networks_without_an_expansion_are_refused(name):
    timm = pytest.importorskip("timm")
    with pytest.raises(ValueError, match="has no inverted-residual block"):
        blocks(timm.create_model(name))


def test_a_network_that_cannot_be_rebuilt_is_not_saved(tmp_path):
    from torchvision.models import mobilenet_v2

    with pytest.raises(ValueError, match="cannot tell how to rebuild a MobileNetV2: make it with build_network"):
        save_model(mobilenet_v2(), tmp_path / "m.safetensors")
    for name in ("torchvision/nothing", "mobilenet_v2", "keras/x"):
        with pytest.raises(ValueError, match=f"unknown architecture '{name}'"):
            build_network(name, 10)
    assert not list(tmp_path.iterdir())


# weights of others


@pytest.fixture
def mine(tmp_path):
    """A .pth file of MobileNetV3-Small with 7 classes."""
    path = tmp_path / "mine.pth"
    torch.save(trained_looking("torchvision/mobilenet_v3_small").float().state_dict(), path)
    return path


@pytest.mark.parametrize("architecture", [name for name in [*FOUND, *FROM_TIMM] if not name.startswith("mnv3nb/")])
def test_from_a_pth_file_through_pruning_to_onnx_runtime(architecture, digits, tmp_path):
    """Load, score, prune, fold, fine-tune three steps, save, load, export: the exported graph computes the network."""
    torch.save(trained_looking(architecture).float().state_dict(), tmp_path / "mine.pth")
    model = load_network(architecture, tmp_path / "mine.pth", 10)
    masks = keep_masks(score(model), 0.5, multiple_of=8)
    small = fold_bias(model, prune(model, masks), masks, 32)
    train(small, digits.subset(24), TrainConfig(epochs=1, batch_size=8), device="cpu", progress=False)
    save_model(small.eval(), tmp_path / "m.safetensors", image_size=32, classes=digits.classes)
    back = load_model(tmp_path / "m.safetensors")
    assert [b.width for b in blocks(back)] == [int(mask.sum()) for mask in masks]
    assert same_tensors(dict(back.state_dict()), dict(small.state_dict())) and back.normalisation == model.normalisation
    x = to_input(digits.test_images[:4], 32)
    graph = to_onnx(back, 32)
    (logits,) = session(graph).run(None, {"images": x.contiguous().numpy()})
    with torch.no_grad():
        wanted = small(x)
    assert torch.allclose(torch.from_numpy(logits), wanted, atol=1e-4, rtol=1e-4) and torch.equal(back(x), wanted)
    assert "normalised inside" in graph.doc_string


def test_a_file_of_weights_is_what_the_network_computes_after_imagenets_normalisation(mine, capsys):
    plain = build_network("torchvision/mobilenet_v3_small", 7)
    plain.load_state_dict(torch.load(mine, weights_only=True))
    model, images = load_network("torchvision/mobilenet_v3_small", mine, 7), torch.rand(2, 3, 32, 32)
    mean, deviation = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normal = (images - mean[:, None, None]) / deviation[:, None, None]
    assert torch.allclose(model.eval()(2 * images - 1), plain.eval()(normal), atol=1e-4)
    assert torch.equal(torch.tensor(model.normalisation), torch.stack([mean, deviation]))
    assert capsys.readouterr().err == ""


def test_a_classifier_of_another_size_is_replaced_and_reported(mine, capsys):
    model = load_network("torchvision/mobilenet_v3_small", mine, 3)
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 3)
    assert "classifier classifier.3 of 7 classes replaced by a random one of 3" in capsys.readouterr().err


def test_the_papers_own_network_gets_as_many_classes_as_are_asked(tmp_path):
    torch.save(lively(1).state_dict(), tmp_path / "m.pth")
    model = load_network("mnv3nb/MobileNetV3Large", tmp_path / "m.pth", 2)
    assert model.num_classes == 2 and model(torch.zeros(2, 3, 32, 32)).shape == (2, 2)


def test_a_network_of_timm_says_how_to_get_timm(monkeypatch):
    monkeypatch.setattr("mnv3nb.networks.zoo.find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r"^timm/x needs timm: pip install timm$"):
        build_network("timm/x", 2)


def test_weights_of_another_architecture_name_the_first_tensors_that_do_not_fit(mine):
    with pytest.raises(
        ValueError, match=r"does not fit torchvision/mobilenet_v2: \d+ tensors differ, first features\.0\.0"
    ):
        load_network("torchvision/mobilenet_v2", mine, 7)
    torch.save({"state_dict": {f"module.{k}": v for k, v in torch.load(mine).items()}}, mine)  # as scripts wrap it
    load_network("torchvision/mobilenet_v3_small", mine, 7)
    for content, message in (({"a": 1}, "holds no state dict"), ([torch.ones(1)], "holds no state dict")):
        torch.save(content, mine)
        with pytest.raises(ValueError, match=message):
            load_network("torchvision/mobilenet_v3_small", mine, 7)
    mine.write_bytes(b"no pickle")
    with pytest.raises(ValueError, match="is not a file of plain tensors"):
        load_network("torchvision/mobilenet_v3_small", mine, 7)
    with pytest.raises(FileNotFoundError, match=r"no file .*give None, 'DEFAULT' or the path"):
        load_network("torchvision/mobilenet_v3_small", mine.with_name("x.pth"), 7)


class Touch:
    """Unpickled, it would make a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_pickle_that_runs_code_is_refused_and_runs_none(tmp_path):
    torch.save({"weight": torch.ones(2), "x": Touch(tmp_path / "proof")}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="is not a file of plain tensors"):
        load_network("torchvision/mobilenet_v3_small", tmp_path / "evil.pth")
    assert not (tmp_path / "proof").exists()


def imagenets(monkeypatch, tmp_path, content: object, name: str | None = None):
    """torchvision's DEFAULT weights come from a local file, under a name with the first 8 digits of its SHA-256."""
    torch.save(content, tmp_path / "w.pth")
    digest = hashlib.sha256((tmp_path / "w.pth").read_bytes()).hexdigest()[:8]
    served = (tmp_path / "w.pth").rename(tmp_path / (name or f"small-{digest}.pth"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(MobileNet_V3_Small_Weights.DEFAULT.value, "url", served.as_uri())


def test_default_weights_are_fetched_verified_and_read_as_plain_tensors(monkeypatch, tmp_path, capsys):
    torch.manual_seed(5)
    dense = build_network("torchvision/mobilenet_v3_small", 1000)
    imagenets(monkeypatch, tmp_path, dense.state_dict())
    model = load_network("torchvision/mobilenet_v3_small", "DEFAULT", 5)
    expected = {name: tensor for name, tensor in dense.state_dict().items() if not name.startswith("classifier.3")}
    assert same_tensors({name: model.state_dict()[name] for name in expected}, expected)
    assert model.classifier[3].out_features == 5 and model.normalisation[0] == [0.485, 0.456, 0.406]
    assert "1000 classes replaced by a random one of 5" in capsys.readouterr().err


@pytest.mark.parametrize("fault", ["another hash", "code", "nowhere"])
def test_default_weights_that_are_not_the_published_ones_are_refused(monkeypatch, tmp_path, fault):
    content = {"x": Touch(tmp_path / "proof")} if fault == "code" else {"x": torch.ones(1)}
    imagenets(monkeypatch, tmp_path, content, "small-00000000.pth" if fault == "another hash" else None)
    if fault == "nowhere":
        monkeypatch.setattr(MobileNet_V3_Small_Weights.DEFAULT.value, "url", (tmp_path / "no-12345678.pth").as_uri())
    with pytest.raises(FileNotFoundError, match=r"could not be downloaded .*give the path of a .pth file instead"):
        load_network("torchvision/mobilenet_v3_small", "DEFAULT")
    assert not (tmp_path / "proof").exists()
    with pytest.raises(ValueError, match="has no pretrained weights"):
        load_network("mnv3nb/MobileNetV3Large", "DEFAULT")


def test_a_network_normalises_its_input_once():
    model = normalise_input(build_network("torchvision/mobilenet_v3_small", 2), [0.5] * 3, [0.25] * 3)
    assert copy.deepcopy(model).to("meta")(torch.empty(2, 3, 32, 32, device="meta")).is_meta  # no tensor stays behind
    assert model.state_dict().keys() == build_network("torchvision/mobilenet_v3_small", 2).state_dict().keys()
    with pytest.raises(ValueError, match="normalises its input already"):
        normalise_input(model, [0.5] * 3, [0.25] * 3)
