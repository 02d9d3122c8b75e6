"""MobileNetV3-Large as the paper draws it: a table of 15 rows and one network class whose widths can be chosen."""

from collections.abc import Sequence

from torch import Tensor, nn
from torchvision.ops.misc import Conv2dNormActivation, SqueezeExcitation

# kernel, expansion, out, squeeze-and-excitation, activation, stride: the 15 inverted-residual blocks (widths: Table 5)
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
STEM, HEAD, FEATURES = 16, 960, 1280
_, DENSE_WIDTHS, OUTPUTS, HAS_SE, _, STRIDES = zip(*BLOCKS)  # the columns of the table
Widths = Sequence[int] | None
INITIAL = ("fan_out", "torch")
ACTIVATIONS = {"RE": nn.ReLU6, "HS": nn.Hardswish}  # section 1: ReLU6 stands where plain ReLU would


def make_divisible(value: float, divisor: int = 8) -> int:
    """The multiple of `divisor` nearest to `value`, at least `divisor` and never more than 10 % below `value`."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def se_widths(widths: Sequence[int]) -> tuple[int, ...]:
    """Squeeze width of each block for the 15 expansion `widths`, as the paper rebuilds them; 0 for a block without SE."""
    return tuple(make_divisible(width / 4) if has_se else 0 for width, has_se in zip(widths, HAS_SE, strict=True))


class InvertedResidual(nn.Module):
    """One block (Figures 1 and 3): 1×1 expansion, depthwise convolution, squeeze-and-excitation, linear projection."""

    def __init__(self, channels: int, row: tuple, width: int, squeeze: int):
        super().__init__()
        kernel, _, out, has_se, activation, stride = row
        act = ACTIVATIONS[activation]
        self.expand = Conv2dNormActivation(channels, width, 1, activation_layer=act)
        self.depthwise = Conv2dNormActivation(width, width, kernel, stride, groups=width, activation_layer=act)
        self.se = SqueezeExcitation(width, squeeze, scale_activation=nn.Hardsigmoid) if has_se else nn.Identity()
        self.project = Conv2dNormActivation(width, out, 1, activation_layer=None)
        self.residual = stride == 1 and channels == out

    def forward(self, x: Tensor) -> Tensor:  # (N, channels, H, W) -> (N, out, H/stride, W/stride)
        y = self.project(self.se(self.depthwise(self.expand(x))))
        return x + y if self.residual else y


class MobileNetV3Large(nn.Module):
    """MobileNetV3-Large of the paper: 4 215 130 parameters for 10 classes (Table 3), 4 330 420 for 100 (Table 6).

    `widths`: 15 expansion widths, each ≥ 1 (None: the dense ones, Table 5). `squeeze`: 15 squeeze widths, each ≥ 1
    where the block has SE and 0 elsewhere (None: `se_widths(widths)`). `gamma_init`: initial γ of every
    BatchNorm (network slimming takes 0.5). `strides`: of the 15 blocks (None: Table 5's). `initial`: weights drawn as
    torchvision's MobileNets draw them ("fan_out") or by PyTorch's defaults ("torch"). Input (N, 3, H, W) floats from
    `to_input`, H and W ≥ 32 advised; output (N, num_classes) logits. Raises ValueError for a list of another length or
    a width out of range.
    """

    architecture = "mnv3nb/MobileNetV3Large"

    def __init__(
        self,
        num_classes: int = 10,
        widths: Widths = None,
        squeeze: Widths = None,
        gamma_init: float = 1.0,
        strides: Widths = None,
        initial: str = "fan_out",
    ):
        super().__init__()
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
            raise ValueError(f"num_classes must be an integer ≥ 1, got {num_classes!r}")
        widths = _integers("widths", DENSE_WIDTHS if widths is None else widths, 15)
        squeeze = _integers("squeeze", se_widths(widths) if squeeze is None else squeeze, 15, least=0)
        if wrong := [i for i, (q, has_se) in enumerate(zip(squeeze, HAS_SE)) if (q > 0) != has_se]:
            raise ValueError(f"squeeze must be ≥ 1 for blocks with SE and 0 for the others; wrong for blocks {wrong}")
        strides = _integers("strides", STRIDES if strides is None else strides, 15)
        if initial not in INITIAL:
            raise ValueError(f"initial must be one of {', '.join(INITIAL)}, got {initial!r}")
        channels = (STEM, *OUTPUTS)  # into block i; the last into the head
        self.stem = Conv2dNormActivation(3, STEM, 3, stride=2, activation_layer=nn.Hardswish)
        rows = [(*row[:-1], stride) for row, stride in zip(BLOCKS, strides)]
        self.blocks = nn.ModuleList(map(InvertedResidual, channels[:-1], rows, widths, squeeze))
        self.head = Conv2dNormActivation(channels[-1], HEAD, 1, activation_layer=nn.Hardswish)
        self.classifier = nn.Sequential(nn.Linear(HEAD, FEATURES), nn.Hardswish(), nn.Linear(FEATURES, num_classes))
        if not self.stem[0].weight.is_meta:  # on the meta device there are shapes only
            self._draw_weights(gamma_init, initial)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.classifier(self.head(x).mean((2, 3)))

    @property
    def num_classes(self) -> int:
        return self.classifier[-1].out_features

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of the 15 expansions."""
        return tuple(block.expand[0].out_channels for block in self.blocks)

    @property
    def squeeze(self) -> tuple[int, ...]:
        """Hidden (squeeze) channels of SE in the 15 blocks; 0 where a block has none."""
        return tuple(b.se.fc1.out_channels if isinstance(b.se, SqueezeExcitation) else 0 for b in self.blocks)

    @property
    def strides(self) -> tuple[int, ...]:
        """Strides of the 15 depthwise convolutions."""
        return tuple(block.depthwise[0].stride[0] for block in self.blocks)

    def _draw_weights(self, gamma_init: float, initial: str) -> None:
        for norm in self.modules():
            if isinstance(norm, nn.BatchNorm2d):
                nn.init.constant_(norm.weight, gamma_init)
        if initial == "torch":  # the layers have drawn theirs already
            return
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.01)
            if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)


def _integers(name: str, values: Sequence[int], length: int, least: int = 1) -> tuple[int, ...]:
    values = tuple(values)
    if len(values) != length or any(isinstance(v, bool) or not isinstance(v, int) or v < least for v in values):
        raise ValueError(f"{name} must be {length} integers ≥ {least}, got {values}")
    return values
