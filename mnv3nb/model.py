"""MobileNetV3-Large as the paper draws it: a table of 15 rows, and one network class whose widths can be chosen."""

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.ops.misc import Conv2dNormActivation, SqueezeExcitation

# One row per inverted-residual block, as in Table 5: kernel, width of the expansion, output channels,
# squeeze-and-excitation, activation, stride
BLOCKS = (
    (3, 16, 16, False, "RE", 1),
    (3, 64, 24, False, "RE", 2),
    (3, 72, 24, False, "RE", 1),
    (5, 72, 40, True, "RE", 2),
    (5, 120, 40, True, "RE", 1),
    (5, 120, 40, True, "RE", 1),
    (3, 240, 80, False, "HS", 2),
    (3, 200, 80, False, "HS", 1),
    (3, 184, 80, False, "HS", 1),
    (3, 184, 80, False, "HS", 1),
    (3, 480, 112, True, "HS", 1),
    (3, 672, 112, True, "HS", 1),
    (5, 672, 160, True, "HS", 2),
    (5, 960, 160, True, "HS", 1),
    (5, 960, 160, True, "HS", 1),
)
KERNELS, DENSE_WIDTHS, OUTPUTS, HAS_SE, ACTIVATION_NAMES, STRIDES = zip(*BLOCKS)  # the columns of the table

STEM = 16  # channels of the first convolution
HEAD = 960  # channels of the last convolution
FEATURES = 1280  # outputs of the first linear layer

ACTIVATIONS = {
    "RE": nn.ReLU6,  # section 1: ReLU6 stands where torchvision has ReLU
    "HS": nn.Hardswish,
}
INITIALIZATIONS = ("fan_out", "torch")


class InvertedResidual(nn.Module):
    """One block (Figures 1 and 3): 1×1 expansion, depthwise convolution, squeeze-and-excitation, linear projection.

    `channels`: of the input. `row`: a row of BLOCKS. `width`: channels of the expansion, in place of the row's.
    `se_width`: hidden channels of squeeze-and-excitation, ignored without it.
    """

    def __init__(self, channels: int, row: tuple, width: int, se_width: int):
        super().__init__()
        kernel, _, out, has_se, activation_name, stride = row
        activation = ACTIVATIONS[activation_name]
        self.expand = Conv2dNormActivation(channels, width, 1, activation_layer=activation)
        self.depthwise = Conv2dNormActivation(width, width, kernel, stride, groups=width, activation_layer=activation)
        self.se = SqueezeExcitation(width, se_width, scale_activation=nn.Hardsigmoid) if has_se else nn.Identity()
        self.project = Conv2dNormActivation(width, out, 1, activation_layer=None)
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:  # (N, channels, H, W) -> (N, out, ⌈H/stride⌉, ⌈W/stride⌉)
        y = self.project(self.se(self.depthwise(self.expand(x))))
        return x + y if self.residual else y


class MobileNetV3Large(nn.Module):
    """MobileNetV3-Large of the paper: 4,215,130 parameters for 10 classes (Table 3), 4,330,420 for 100 (Table 6).

    Unlike torchvision's: ReLU6, an expansion in block 0, PyTorch's BatchNorm defaults, no dropout.
    `widths`: 15 expansion widths (None: dense). `squeeze`: 15 SE widths, 0 without SE (None: `se_widths(widths)`).
    `gamma_init`: first γ of every BatchNorm (network slimming: 0.5). `strides`: of the 15 blocks (None: Table 5's).
    `initial`: "fan_out" draws weights as torchvision's MobileNets do, "torch" keeps PyTorch's defaults.
    Input (N, 3, H, W) as from `to_input`, H and W ≥ 32 advised; output (N, num_classes) logits. Raises
    ValueError for an argument out of range or of the wrong length.
    """

    architecture = "mnv3nb/MobileNetV3Large"  # how a stored file names this class

    def __init__(
        self,
        num_classes: int = 10,
        widths: Sequence[int] | None = None,
        squeeze: Sequence[int] | None = None,
        gamma_init: float = 1.0,
        strides: Sequence[int] | None = None,
        initial: str = "fan_out",
    ):
        super().__init__()
        widths = DENSE_WIDTHS if widths is None else tuple(widths)
        _check_integers("widths", widths)
        squeeze = se_widths(widths) if squeeze is None else tuple(squeeze)
        _check_integers("squeeze", squeeze, least=0)
        strides = STRIDES if strides is None else tuple(strides)
        _check_integers("strides", strides)
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f"num_classes must be an integer ≥ 1, got {num_classes!r}")
        wrong = [i for i in range(15) if (squeeze[i] > 0) != HAS_SE[i]]
        if wrong:
            raise ValueError(f"squeeze must be ≥ 1 for blocks with SE and 0 for the others; wrong for blocks {wrong}")
        if initial not in INITIALIZATIONS:
            raise ValueError(f"initial must be one of {', '.join(INITIALIZATIONS)}, got {initial!r}")

        self.stem = Conv2dNormActivation(3, STEM, 3, stride=2, activation_layer=nn.Hardswish)
        self.blocks = nn.ModuleList()
        channels = STEM
        for row, width, se_width, out, stride in zip(BLOCKS, widths, squeeze, OUTPUTS, strides):
            self.blocks.append(InvertedResidual(channels, (*row[:-1], stride), width, se_width))
            channels = out
        self.head = Conv2dNormActivation(channels, HEAD, 1, activation_layer=nn.Hardswish)
        self.classifier = nn.Sequential(nn.Linear(HEAD, FEATURES), nn.Hardswish(), nn.Linear(FEATURES, num_classes))

        on_meta = self.stem[0].weight.is_meta  # shapes only: there is nothing to draw
        if initial == "fan_out" and not on_meta:
            self._draw_weights()
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.constant_(module.weight, gamma_init)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        pooled = self.head(x).mean((2, 3))
        return self.classifier(pooled)

    @property
    def num_classes(self) -> int:
        return self.classifier[-1].out_features

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the 15 expansions."""
        return tuple(block.expand[0].out_channels for block in self.blocks)

    @property
    def squeeze(self) -> tuple[int, ...]:
        """Hidden channels of squeeze-and-excitation in the 15 blocks; 0 where a block has none."""
        return tuple(block.se.fc1.out_channels if has_se else 0 for block, has_se in zip(self.blocks, HAS_SE))

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the 15 depthwise convolutions."""
        return tuple(block.depthwise[0].stride[0] for block in self.blocks)

    def _draw_weights(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)


def se_widths(widths: Sequence[int]) -> tuple[int, ...]:
    """SE width of each block for the 15 expansion `widths`, as the paper rebuilds them; 0 for a block without SE."""
    return tuple(make_divisible(width / 4) if has_se else 0 for width, has_se in zip(widths, HAS_SE, strict=True))


def make_divisible(value: float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to `value`, at least `divisor` and never more than 10 % below `value`."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def _check_integers(name: str, values: tuple, least: int = 1) -> None:
    """Raises ValueError unless `values` are 15 integers ≥ `least`."""
    fit = len(values) == 15
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            fit = False
    if not fit:
        raise ValueError(f"{name} must be 15 integers ≥ {least}, got {values}")
