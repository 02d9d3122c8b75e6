"""Folding constants in networks with unusual maps and layers."""

import pytest
import torch
from support import lively
from torch import nn

from mnv3nb import blocks, fold_bias, prune


def test_folding_is_exact_in_the_mean_on_maps_that_are_not_square():
    model = lively().double()
    model.stem[0].stride = (2, 1)  # a spectrogram's network: all maps are twice as wide as high
    masks = [torch.ones(width, dtype=torch.bool) for width in model.widths]
    masks[0] = torch.arange(16) % 3 > 0
    with torch.no_grad():
        blocks(model)[0].expand_bn.weight[~masks[0]] = 0
    pruned = prune(model, masks)
    folded = fold_bias(model, pruned, masks, 64)
    x = torch.randn(4, 16, 32, 64, dtype=torch.double)
    wanted, got, raw = (network.blocks[0](x).mean((2, 3)) for network in (model, folded, pruned))
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(raw, wanted, atol=1e-2)


def test_folding_into_a_projection_without_batchnorm_and_bias_is_refused(dense):
    model = lively()
    model.blocks[3].project = nn.Sequential(nn.Conv2d(72, 40, 1, bias=False))
    masks = [torch.ones(width, dtype=torch.bool) for width in model.widths]
    with pytest.raises(ValueError, match=r"projection of blocks\.3 has neither BatchNorm nor bias"):
        fold_bias(model, prune(model, masks), masks, 32)
