"""Convolutions of feature maps of a few pixels, at which oneDNN is slow: two thirds of the layers at 32 pixels."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class SmallMaps(TorchFunctionMode):
    """`with SmallMaps():` a CPU computes the same convolutions and gradients, up to rounding, faster (`make bench`:
    how much).

    1×1 convolutions of at most `matmul_pixels` pixels become matrix products. Depthwise convolutions whose kernel is
    larger than the map get their weight gradient from here: oneDNN's falls back to a reference, on some processors
    hundreds of times as slow. All else, and the network itself, stays as it is.
    """

    def __init__(self, matmul_pixels: int = 64):
        super().__init__()
        self.matmul_pixels = matmul_pixels

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.conv2d and len(args) == 7 and args[0].dim() == 4 and not isinstance(args[4], str):
            x, weight, bias, stride, padding, dilation, groups = args
            pixels, kernel = x.shape[2] * x.shape[3], weight.shape[2] * weight.shape[3]
            if kernel == groups == 1 and pixels <= self.matmul_pixels and (*stride, *padding) == (1, 1, 0, 0):
                return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
            if kernel > pixels and groups == len(weight) == x.shape[1] and bias is None and dilation == (1, 1):
                return _Depthwise.apply(x, weight, stride, padding)
        return function(*args, **(kwargs or {}))


class _Depthwise(torch.autograd.Function):
    """Depthwise convolution whose weight gradient is summed tap by tap, over those pixels only that the tap meets."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.arguments = (stride, padding)
        return F.conv2d(x, weight, None, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        stride, padding = ctx.arguments
        sides = zip(weight.shape[2:], x.shape[2:], grad.shape[2:], stride, padding)
        rows, columns = ([_meeting(tap, *side) for tap in range(kernel)] for kernel, *side in sides)
        grad_weight = torch.zeros_like(weight)
        for i, (above, below) in enumerate(rows):
            for j, (left, right) in enumerate(columns):
                grad_weight[:, 0, i, j] = (x[:, :, above, left] * grad[:, :, below, right]).sum((0, 2, 3))
        whole = torch.ops.aten.convolution_backward
        of_x = (True, False, False)
        grad_x = whole(grad, x, weight, None, stride, padding, (1, 1), False, (0, 0), len(weight), of_x)[0]
        return grad_x, grad_weight, None, None


def _meeting(tap: int, size: int, out: int, stride: int, padding: int) -> tuple[slice, slice]:
    """The input pixels along one side that a kernel's `tap` falls on, and the output pixels they go into."""
    first = max(0, -((tap - padding) // stride))
    count = max(0, min(out, (size - 1 - tap + padding) // stride + 1) - first)
    begin = first * stride + tap - padding
    return slice(begin, begin + (count - 1) * stride + 1, stride) if count else slice(0, 0), slice(first, first + count)
