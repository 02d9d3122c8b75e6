"""The inverted-residual blocks of any network: how they are found, narrowed and watched."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


@dataclass(frozen=True)
class Block:
    """One inverted-residual block: the network's own layers, not copies."""

    name: str  # of the submodule in the network
    module: nn.Module
    expand: nn.Conv2d  # 1×1; its filters are what pruning removes
    expand_bn: nn.BatchNorm2d
    depthwise: nn.Conv2d
    depthwise_bn: nn.BatchNorm2d
    squeeze: nn.Conv2d | None  # the two 1×1 convolutions of squeeze-and-excitation
    excite: nn.Conv2d | None
    project: nn.Conv2d  # 1×1, linear
    project_bn: nn.BatchNorm2d | None

    @property
    def width(self) -> int:
        """Channels of the expansion."""
        return self.expand.out_channels

    @property
    def hidden(self) -> int:
        """Hidden channels of squeeze-and-excitation, 0 without it."""
        return 0 if self.squeeze is None else self.squeeze.out_channels


def blocks(model: nn.Module) -> list[Block]:
    """Every inverted-residual block of `model` that has an expansion, in order.

    A block is a smallest submodule whose convolutions are, in the order of registration: a 1×1 expansion, a depthwise
    convolution of its channels, optionally the two 1×1 convolutions of squeeze-and-excitation, and a 1×1 projection. A
    BatchNorm follows each of the first two. So are the paper's network and torchvision's and timm's MobileNetV2 and V3,
    EfficientNets and MNASNets; of MobileNetV4 the blocks that begin with the expansion. Raises ValueError if there is none.
    """
    found: list[Block] = []
    for name, module in model.named_modules():  # a module comes before the modules inside it
        block = _match(name, module)
        if block is None:
            continue
        while found and _contains(found[-1].name, name):  # the smallest match counts
            found.pop()
        found.append(block)
    if not found:
        lack = f"{type(model).__name__} has no inverted-residual block (1×1 expansion, depthwise, 1×1 projection)"
        raise ValueError(f"{lack}: mnv3nb prunes MobileNetV2 and V3, EfficientNet, MNASNet and their relatives")
    return found


def batch_norms(model: nn.Module) -> Iterator[_BatchNorm]:
    """All BatchNorm layers of any kind, SyncBatchNorm included. The penalty of Eq. 1 sums over their γ."""
    return (module for module in model.modules() if isinstance(module, _BatchNorm))


def narrow_block(block: Block, kept: Tensor, hidden: Tensor) -> None:
    """Keep only the expansion channels `kept` and the SE channels `hidden` (index tensors), in place (Figure 5)."""
    # the depthwise convolution keeps channels apart, so filter i of the expansion, channel i of the depthwise
    # convolution and of SE, and input i of the projection are removed together
    narrow(block.expand, outputs=kept)
    narrow(block.expand_bn, outputs=kept)
    narrow(block.depthwise, outputs=kept)
    narrow(block.depthwise_bn, outputs=kept)
    if block.squeeze is not None:
        narrow(block.squeeze, inputs=kept, outputs=hidden)
        narrow(block.excite, inputs=hidden, outputs=kept)
    narrow(block.project, inputs=kept)


def narrow(layer: nn.Conv2d | nn.BatchNorm2d, outputs: Tensor | None = None, inputs: Tensor | None = None) -> None:
    """Keep only the output and input channels that the index tensors name, in place; None keeps all.

    A depthwise convolution and a BatchNorm take `outputs` alone: their inputs are the same channels.
    """
    for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
        if tensor.ndim == 0:  # num_batches_tracked
            continue
        values = tensor.detach().clone()
        if outputs is not None:
            values = values[outputs.to(values.device)]
        if inputs is not None and tensor.ndim > 1:  # a bias has no inputs
            values = values[:, inputs.to(values.device)]
        if isinstance(tensor, nn.Parameter):
            values = nn.Parameter(values, tensor.requires_grad)
        setattr(layer, name, values)

    if isinstance(layer, nn.BatchNorm2d):
        layer.num_features = layer.num_features if outputs is None else len(outputs)
    elif _is_depthwise(layer):
        layer.in_channels = layer.out_channels = layer.groups = layer.weight.shape[0]
    else:
        layer.out_channels, layer.in_channels = layer.weight.shape[:2]


def inputs_of(layers: Sequence[nn.Module], model: nn.Module, x: Tensor) -> list[Tensor]:
    """The input of each of `layers` when `model` runs on `x`; of a layer that runs twice, the last one."""
    seen: dict[nn.Module, Tensor] = {}

    def watch(layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen[layer] = inputs[0]

    hooks = [layer.register_forward_pre_hook(watch) for layer in layers]
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return [seen[layer] for layer in layers]


def _match(name: str, module: nn.Module) -> Block | None:
    """`module` as a Block, or None if its layers are not those of an inverted-residual block."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Conv2d | nn.BatchNorm2d)]
    convolutions = [layer for layer in layers if isinstance(layer, nn.Conv2d)]
    if len(convolutions) == 3:
        expand, depthwise, project = convolutions
        squeeze = excite = None
    elif len(convolutions) == 5:
        expand, depthwise, squeeze, excite, project = convolutions
    else:
        return None

    width = expand.out_channels
    if not _is_pointwise(expand) or not _is_pointwise(project):
        return None
    if not _is_depthwise(depthwise) or depthwise.out_channels != width:
        return None
    if project.in_channels != width:
        return None
    if squeeze is not None and not _is_squeeze_and_excite(squeeze, excite, width):
        return None

    expand_bn = _norm_after(expand, layers)
    depthwise_bn = _norm_after(depthwise, layers)
    project_bn = _norm_after(project, layers)
    if expand_bn is None or depthwise_bn is None:
        return None
    return Block(name, module, expand, expand_bn, depthwise, depthwise_bn, squeeze, excite, project, project_bn)


def _is_pointwise(convolution: nn.Conv2d) -> bool:
    return convolution.kernel_size == (1, 1) and convolution.groups == 1


def _is_depthwise(convolution: nn.Conv2d) -> bool:
    return convolution.groups == convolution.in_channels == convolution.out_channels


def _is_squeeze_and_excite(squeeze: nn.Conv2d, excite: nn.Conv2d, width: int) -> bool:
    """Whether these are two 1×1 convolutions from `width` channels to some hidden ones and back."""
    if not _is_pointwise(squeeze) or not _is_pointwise(excite):
        return False
    from_and_to_width = squeeze.in_channels == excite.out_channels == width
    return from_and_to_width and squeeze.out_channels == excite.in_channels


def _norm_after(convolution: nn.Conv2d, layers: Sequence[nn.Module]) -> nn.BatchNorm2d | None:
    """The BatchNorm registered right after `convolution`, None if a convolution or nothing follows."""
    place = next(i for i, layer in enumerate(layers) if layer is convolution)
    if place + 1 < len(layers) and isinstance(layers[place + 1], nn.BatchNorm2d):
        return layers[place + 1]
    return None


def _contains(outer: str, inner: str) -> bool:
    """Whether the module named `inner` lies inside the one named `outer`; the network itself is named ''."""
    return outer == "" or inner.startswith(f"{outer}.")
