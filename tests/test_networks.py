"""Any network of inverted-residual blocks: found by structure, cut exactly, stored and read back."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import same_tensors
from torch import nn

from mnv3nb import blocks, build_network, keep_masks, load_model, prune, save_model, score

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
