"""What makes a network fast on its device. Results stay the same up to rounding: a reader of the method can skip this.

CUDA: bf16, and a training step recorded once as a graph. CPU: other kernels for feature maps of a few pixels.
"""

import contextlib
import sys
from collections import Counter
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.backends.cpu import get_cpu_capability
from torch.overrides import TorchFunctionMode

from .device import cpu_name


def fast_forward(device: torch.device) -> contextlib.AbstractContextManager:
    """What a forward pass gains from on `device`: bf16 on CUDA, better kernels for tiny maps on a CPU."""
    if device.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16)
    return SmallMaps(_matmul_pixels()) if device.type == "cpu" else contextlib.nullcontext()


class Replayed:
    """`step(*tensors)` of `model`, recorded on CUDA as a graph and replayed for inputs of the same shapes; elsewhere just
    called.

    To launch the hundreds of small kernels of a small network takes a CPU longer than they take the GPU. The first
    calls are not recorded, so that the libraries have set up what they need. A step that cannot be recorded, because
    it waits for the GPU, is called. What a network draws or decides in Python, a replay repeats.
    """

    FIRST = 3

    def __init__(self, step: Callable[..., None], model: nn.Module, device: torch.device):
        self.step, self.model, self.places = step, model, None
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def begin(self) -> None:
        """Before the first of some calls: what was recorded holds as long as no tensor of the network has moved."""
        places = [tensor.data_ptr() for tensor in (*self.model.parameters(), *self.model.buffers())]
        if places != self.places:
            self.places, self.graph, self.inputs, self.calls = places, None, (), Counter()

    def __call__(self, *inputs: Tensor) -> None:
        shapes = tuple(given.shape for given in inputs)
        if self.stream and not self.inputs:
            self.calls[shapes] += 1
            if self.calls[shapes] <= self.FIRST:
                return self._apart(*inputs)
            self._record(*inputs)
        if not self.graph or shapes != tuple(mine.shape for mine in self.inputs):
            return self.step(*inputs)
        for mine, given in zip(self.inputs, inputs):
            mine.copy_(given)
        self.graph.replay()

    def _apart(self, *inputs: Tensor) -> None:
        usual = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(usual)
        with torch.cuda.stream(self.stream):
            self.step(*inputs)
        usual.wait_stream(self.stream)

    def _record(self, *inputs: Tensor) -> None:
        self.inputs, graph = tuple(given.clone() for given in inputs), torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self.step(*self.inputs)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            print(
                f"this network's step cannot be recorded as a CUDA graph, so it is slower ({reason})", file=sys.stderr
            )
        else:
            self.graph = graph


def adam(model: nn.Module, lr: float, device: torch.device) -> torch.optim.Adam:
    """Adam as fast as `device` has it; on CUDA its rate is a tensor, which a graph reads where it lies."""
    if device.type == "cuda":
        return torch.optim.Adam(model.parameters(), torch.tensor(lr, device=device), fused=True, capturable=True)
    return torch.optim.Adam(model.parameters(), lr, fused=device.type != "mps")


def set_rate(optimizer: torch.optim.Optimizer, lr: float) -> float:
    """Sets the learning rate, and returns it."""
    group = optimizer.param_groups[0]
    group["lr"] = group["lr"].fill_(lr) if isinstance(group["lr"], Tensor) else lr
    return lr


@cache
def _matmul_pixels() -> int:
    """Of larger maps, a 1×1 convolution gains nothing as a matrix product.

    On AMD's processors with AVX-512 only single pixels do: oneDNN's convolutions use those instructions there, MKL's
    matrix products do not.
    """
    return 1 if "AMD" in cpu_name() and get_cpu_capability() == "AVX512" else 64


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
