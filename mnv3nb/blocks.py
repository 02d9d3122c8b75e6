"""The inverted-residual blocks of any network, found by what their layers are, and how to narrow a layer."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Block:
    """One inverted-residual block: the network's own layers, not copies. `name` is the submodule's in the network.

    `expand`, `depthwise`, `project`: convolutions and their BatchNorms (`project_bn` may be None); `squeeze`, `excite`:
    the two 1×1 convolutions of SE, or None.
    """

    name: str
    module: nn.Module
    expand: nn.Conv2d
    expand_bn: nn.BatchNorm2d
    depthwise: nn.Conv2d
    depthwise_bn: nn.BatchNorm2d
    squeeze: nn.Conv2d | None
    excite: nn.Conv2d | None
    project: nn.Conv2d
    project_bn: nn.BatchNorm2d | None

    @property
    def width(self) -> int:
        """Channels of the expansion: the filters that pruning removes."""
        return self.expand.out_channels

    @property
    def hidden(self) -> int:
        """Hidden (squeeze) channels of SE, 0 without SE."""
        return self.squeeze.out_channels if self.squeeze else 0


def blocks(model: nn.Module) -> list[Block]:
    """Every inverted-residual block of `model` that has an expansion, in order.

    A block is a smallest submodule whose convolutions are, in order, exactly a 1×1 expansion, a depthwise convolution
    of its channels, perhaps the two 1×1 convolutions of SE, and a 1×1 projection, with a BatchNorm right after the
    first two. So the paper's network, torchvision's and timm's MobileNets, EfficientNets and MNASNets are all
    understood. Raises ValueError if there is none.
    """
    found: list[Block] = []
    for name, module in model.named_modules():  # outer modules first: an inner match replaces its outer one
        if block := _match(name, module):  # the network itself, in which all others lie, is named ''
            found = [b for b in found if b.name and not name.startswith(f"{b.name}.")] + [block]
    if not found:
        lack = f"{type(model).__name__} has no inverted-residual block (1×1 expansion, depthwise, 1×1 projection)"
        raise ValueError(f"{lack}: mnv3nb prunes MobileNetV2 and V3, EfficientNet, MNASNet and their relatives")
    return found


def batch_norms(model: nn.Module) -> Iterator[nn.BatchNorm2d]:
    """All BatchNorm layers, whose γ the penalty of Eq. 1 sums over."""
    return (module for module in model.modules() if isinstance(module, nn.BatchNorm2d))


def narrow_block(block: Block, kept: Tensor, hidden: Tensor) -> None:
    """Keep only the expansion channels `kept` and SE's hidden channels `hidden` (index tensors), in place (Figure 5).

    The expansion's channels are the depthwise channels, the SE channels and the projection's inputs.
    """
    for layer in (block.expand, block.expand_bn, block.depthwise, block.depthwise_bn):
        narrow(layer, outputs=kept)
    narrow(block.project, inputs=kept)
    if block.squeeze:
        narrow(block.squeeze, inputs=kept, outputs=hidden)
        narrow(block.excite, inputs=hidden, outputs=kept)


def narrow(layer: nn.Conv2d | nn.BatchNorm2d, outputs: Tensor | None = None, inputs: Tensor | None = None) -> None:
    """Keep only the channels that the index tensors name, in place; None: all, or as `outputs` (depthwise, BatchNorm)."""
    for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
        if tensor.ndim == 0:  # num_batches_tracked
            continue
        kept = tensor.detach().clone()
        kept = kept if outputs is None else kept[outputs.to(kept.device)]
        kept = kept if inputs is None or tensor.ndim == 1 else kept[:, inputs.to(kept.device)]
        setattr(layer, name, nn.Parameter(kept, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else kept)
    if isinstance(layer, nn.BatchNorm2d):
        layer.num_features = len(outputs)
        return
    depthwise = inputs is None and layer.groups == layer.in_channels == layer.out_channels
    layer.out_channels = layer.weight.shape[0]
    layer.in_channels = layer.out_channels if depthwise else layer.weight.shape[1]
    layer.groups = layer.out_channels if depthwise else 1


def inputs_of(layers: Sequence[nn.Module], model: nn.Module, x: Tensor) -> list[Tensor]:
    """What each of `layers` takes when `model` runs on `x`."""
    seen: dict[nn.Module, Tensor] = {}

    def watch(layer: nn.Module, inputs: tuple[Tensor]) -> None:
        seen[layer] = inputs[0]

    hooks = [layer.register_forward_pre_hook(watch) for layer in layers]
    model(x)
    for hook in hooks:
        hook.remove()
    return [seen[layer] for layer in layers]


def _match(name: str, module: nn.Module) -> Block | None:
    layers = [m for m in module.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    convs = [m for m in layers if isinstance(m, nn.Conv2d)]
    if len(convs) not in (3, 5):
        return None
    expand, depthwise, *se, project = convs
    width = expand.out_channels
    pointwise = all(conv.kernel_size == (1, 1) and conv.groups == 1 for conv in (expand, *se, project))
    grouped = depthwise.groups == depthwise.in_channels == depthwise.out_channels == width == project.in_channels
    squeezed = not se or (se[0].in_channels == se[1].out_channels == width and se[0].out_channels == se[1].in_channels)
    follower = dict(zip(layers, [*layers[1:], None]))
    norms = [n if isinstance(n := follower[conv], nn.BatchNorm2d) else None for conv in (expand, depthwise, project)]
    if not (pointwise and grouped and squeezed and norms[0] and norms[1]):
        return None
    return Block(name, module, expand, norms[0], depthwise, norms[1], *(se or (None, None)), project, norms[2])
