"""What makes a network fast on its device. Results stay the same up to rounding, so a reader of the method can skip it.

CUDA: bf16, and a training step that is recorded once as a graph. CPU: other kernels for feature maps of a few pixels.
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
    """A context that makes a forward pass faster: bf16 on CUDA, other kernels for small maps on a CPU."""
    if device.type == "cuda":
        return torch.autocast("cuda", torch.bfloat16)
    if device.type == "cpu":
        return SmallMaps(_matmul_pixels())
    return contextlib.nullcontext()


def make_adam(model: nn.Module, lr: float, device: torch.device) -> torch.optim.Adam:
    """The fastest Adam of `device`. On CUDA its learning rate is a tensor, so that a recorded step reads its value."""
    if device.type == "cuda":
        return torch.optim.Adam(model.parameters(), torch.tensor(lr, device=device), fused=True, capturable=True)
    return torch.optim.Adam(model.parameters(), lr, fused=device.type != "mps")


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of an optimizer that `make_adam` made."""
    group = optimizer.param_groups[0]
    if isinstance(group["lr"], Tensor):
        group["lr"].fill_(lr)
    else:
        group["lr"] = lr


class RecordedStep:
    """A training step: `step(*tensors)`, recorded on CUDA as a graph and replayed; on other devices simply called.

    Launching many small kernels takes the CPU longer than running them takes the GPU; replaying a graph launches them
    all at once. Random draws and Python branches are frozen when the graph is recorded. A step that cannot be recorded,
    because it waits for the GPU, is called as it is, and stderr reports it once.
    """

    WARM_UP = 3  # calls before recording, in which the libraries choose and set up their kernels

    def __init__(self, step: Callable[..., None], model: nn.Module, device: torch.device):
        self.step = step
        self.model = model
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self.addresses: list[int] = []  # of the network's tensors when the graph was recorded
        self._forget()

    def begin_epoch(self) -> None:
        """To be called before the first step of an epoch: a graph is valid as long as no tensor of the network moved."""
        addresses = [tensor.data_ptr() for tensor in (*self.model.parameters(), *self.model.buffers())]
        if addresses != self.addresses:
            self.addresses = addresses
            self._forget()

    def __call__(self, *inputs: Tensor) -> None:
        if self.stream is None:
            self.step(*inputs)
            return
        shapes = tuple(given.shape for given in inputs)
        if not self.tried:
            self.calls[shapes] += 1
            if self.calls[shapes] <= self.WARM_UP:
                self._call_on_stream(*inputs)
                return
            self._record(*inputs)
        if self.graph is None or shapes != tuple(mine.shape for mine in self.inputs):
            self.step(*inputs)
            return
        for mine, given in zip(self.inputs, inputs):
            mine.copy_(given)
        self.graph.replay()

    def _forget(self) -> None:
        self.tried = False  # to record
        self.graph: torch.cuda.CUDAGraph | None = None
        self.inputs: tuple[Tensor, ...] = ()  # the tensors that the graph reads
        self.calls: Counter[tuple] = Counter()  # by the inputs' shapes

    def _call_on_stream(self, *inputs: Tensor) -> None:
        """Warm-up has to run on the stream on which the graph will be recorded."""
        usual = torch.cuda.current_stream(self.stream.device)
        self.stream.wait_stream(usual)
        with torch.cuda.stream(self.stream):
            self.step(*inputs)
        usual.wait_stream(self.stream)

    def _record(self, *inputs: Tensor) -> None:
        self.tried = True
        self.inputs = tuple(given.clone() for given in inputs)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self.step(*self.inputs)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            print(
                f"this network's step cannot be recorded as a CUDA graph, so it is slower ({reason})", file=sys.stderr
            )
            return
        self.graph = graph


class SmallMaps(TorchFunctionMode):
    """`with SmallMaps():` a CPU computes convolutions of maps of a few pixels faster; the same up to rounding.

    oneDNN is slow there, and at an image size of 32 pixels two thirds of the layers are of this kind (`make bench`
    shows the gain). 1×1 convolutions of at most `matmul_pixels` pixels become matrix products. Depthwise convolutions
    with a kernel larger than the map get their weight gradient from `_Depthwise`: oneDNN's falls back to a reference
    implementation, on some processors hundreds of times as slow. Everything else runs as usual.
    """

    def __init__(self, matmul_pixels: int = 64):
        super().__init__()
        self.matmul_pixels = matmul_pixels

    def __torch_function__(self, function, types, args=(), kwargs=None):
        # nn.Conv2d calls torch.conv2d with 7 positional arguments; padding is a word for padding="same"
        if function is not torch.conv2d or len(args) != 7 or args[0].dim() != 4 or isinstance(args[4], str):
            return function(*args, **(kwargs or {}))
        x, weight, bias, stride, padding, dilation, groups = args
        pixels = x.shape[2] * x.shape[3]
        kernel = weight.shape[2] * weight.shape[3]
        plain = (*stride, *padding) == (1, 1, 0, 0)
        if kernel == groups == 1 and plain and pixels <= self.matmul_pixels:
            return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)
        depthwise = groups == len(weight) == x.shape[1]
        if depthwise and kernel > pixels and bias is None and dilation == (1, 1):
            return _Depthwise.apply(x, weight, stride, padding)
        return function(*args, **(kwargs or {}))


class _Depthwise(torch.autograd.Function):
    """Depthwise convolution with a weight gradient that is summed kernel element by kernel element.

    Each element is summed over those pixels only that it falls on: few, where the kernel is larger than the map.
    """

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride = stride
        ctx.padding = padding
        return F.conv2d(x, weight, None, stride, padding, groups=len(weight))

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        grad_weight = torch.zeros_like(weight)
        height, width = weight.shape[2:]
        for i in range(height):
            above, below = _pixels_met(i, x.shape[2], grad.shape[2], ctx.stride[0], ctx.padding[0])
            for j in range(width):
                left, right = _pixels_met(j, x.shape[3], grad.shape[3], ctx.stride[1], ctx.padding[1])
                grad_weight[:, 0, i, j] = (x[:, :, above, left] * grad[:, :, below, right]).sum((0, 2, 3))
        of_input_only = (True, False, False)
        grad_x = torch.ops.aten.convolution_backward(
            grad, x, weight, None, ctx.stride, ctx.padding, (1, 1), False, (0, 0), len(weight), of_input_only
        )[0]
        return grad_x, grad_weight, None, None


def _pixels_met(place: int, size: int, out: int, stride: int, padding: int) -> tuple[slice, slice]:
    """Along one side: the input pixels under the kernel element at `place`, and the output pixels they contribute to.

    Output pixel o puts the element on input pixel o·stride + place − padding, which must lie in [0, size).
    """
    first = max(0, -((place - padding) // stride))
    count = min(out, (size - 1 - place + padding) // stride + 1) - first
    if count <= 0:
        return slice(0, 0), slice(first, first)
    start = first * stride + place - padding
    return slice(start, start + (count - 1) * stride + 1, stride), slice(first, first + count)


@cache
def _matmul_pixels() -> int:
    """The largest map, in pixels, for which a 1×1 convolution is faster as a matrix product on this CPU.

    On AMD's processors with AVX-512 that is a single pixel: oneDNN's convolutions use those instructions there, and
    MKL's matrix products do not.
    """
    return 1 if "AMD" in cpu_name() and get_cpu_capability() == "AVX512" else 64
