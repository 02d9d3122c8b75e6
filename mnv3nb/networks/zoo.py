"""Networks by name: the paper's, torchvision's and timm's, with random, pretrained or one's own weights."""

import os
import pickle
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

from ..model import MobileNetV3Large


def build_network(architecture: str, num_classes: int, **arguments) -> nn.Module:
    """A dense network with random weights: "mnv3nb/MobileNetV3Large", "torchvision/NAME" or, with timm, "timm/NAME".

    Its `.architecture` is what `save_model` stores. Raises ValueError for an unknown name.
    """
    library, _, name = architecture.partition("/")
    if architecture == MobileNetV3Large.architecture:
        return MobileNetV3Large(num_classes)
    if library == "timm" and not find_spec("timm"):
        raise ModuleNotFoundError(f"{architecture} needs timm: pip install timm")
    if library == "torchvision" and name in torchvision.models.list_models(torchvision.models):
        model = torchvision.models.get_model(name, **{"weights": None, "num_classes": num_classes} | arguments)
    elif library == "timm" and name in (timm := import_module("timm")).list_models():
        model = timm.create_model(name, num_classes=num_classes, **arguments)
    else:
        raise ValueError(
            f"unknown architecture {architecture!r}; allowed: {MobileNetV3Large.architecture}, torchvision/NAME "
            "(such as torchvision/mobilenet_v3_small), timm/NAME"
        )
    model.architecture = architecture
    return model


def load_network(architecture: str, weights: str | os.PathLike | None = None, num_classes: int = 10) -> nn.Module:
    """A network of torchvision, timm or the paper, ready to be trained or pruned on `num_classes` classes.

    `weights`: None = random; "DEFAULT" = the library's pretrained ones (downloaded); or a .pth file with a state dict,
    read with `weights_only=True`. A classifier of another size is replaced by a random one, and stderr reports it.
    Networks with weights expect images normalised as the library's pretrained ones do, mostly with ImageNet's mean and
    deviation, and do it themselves: see `normalise_input`. Random weights and the paper's network do not.
    Raises ValueError for an unknown name or weights that do not fit, naming the first tensors; FileNotFoundError.
    """
    if weights is None:
        return build_network(architecture, num_classes)
    model = _pretrained(architecture) if weights == "DEFAULT" else _filled(architecture, Path(weights))
    model = _with_classes(model, num_classes)
    if architecture == MobileNetV3Large.architecture:
        return model
    return normalise_input(model, *_normalisation_of(model))


def normalise_input(model: nn.Module, mean: Sequence[float], deviation: Sequence[float]) -> nn.Module:
    """Make `model`, in place, take images in [-1, 1], as `to_input` makes them, and normalise them itself.

    `mean`, `deviation`: per channel, of images in [0, 1]. They are kept as `.normalisation`, stored by `save_model`, and
    part of every exported graph. Raises ValueError for a network that does it already.
    """
    if hasattr(model, "normalisation"):
        raise ValueError(
            f"this network normalises its input already, by {model.normalisation}; load it anew for another"
        )
    with torch.device("cpu"):  # not meta, where load_model lays networks out
        scale = torch.tensor([0.5 / d for d in deviation])[:, None, None]
        shift = torch.tensor([(0.5 - m) / d for m, d in zip(mean, deviation, strict=True)])[:, None, None]
    model.normalisation = [list(mean), list(deviation)]
    for name, tensor in (("input_scale", scale), ("input_shift", shift)):
        model.register_buffer(name, tensor, persistent=False)
    model.register_forward_pre_hook(lambda net, args: (args[0] * net.input_scale + net.input_shift, *args[1:]))
    return model


def classifier_of(model: nn.Module) -> tuple[str, nn.Linear]:
    """Name and layer of the last linear layer, whose outputs are the classes."""
    return [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear)][-1]


def _pretrained(architecture: str) -> nn.Module:
    library, _, name = architecture.partition("/")
    if library not in ("torchvision", "timm"):
        raise ValueError(f"{architecture} has no pretrained weights; give None or the path of a .pth file")
    try:
        if library == "timm":
            return build_network(architecture, 1000, pretrained=True)
        model = build_network(architecture, 1000)
        weights = torchvision.models.get_model_weights(name).DEFAULT
        model.load_state_dict(weights.get_state_dict(progress=True, check_hash=True, weights_only=True))
        return model
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(
            f"the weights of {architecture} could not be downloaded ({reason}); give the path of a .pth file instead"
        ) from error


def _filled(architecture: str, path: Path) -> nn.Module:
    """The network with the tensors of a .pth file and as many classes as they are for."""
    state = _read_state_dict(path)
    model = build_network(architecture, _classes_in(state, architecture))
    expected = model.state_dict()
    every = {**expected, **state}
    wrong = [k for k in every if k not in expected or k not in state or expected[k].shape != state[k].shape]
    if wrong:
        names = ", ".join(wrong[:3])
        raise ValueError(f"{path} does not fit {architecture}: {len(wrong)} tensors differ, first {names}")
    for key, tensor in expected.items():
        tensor.copy_(state[key])
    return model


def _normalisation_of(model: nn.Module) -> tuple[Sequence[float], Sequence[float]]:
    """What the library's pretrained weights of this network expect."""
    library, _, name = model.architecture.partition("/")
    if library == "timm":
        return model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    return preset.mean, preset.std


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; give None, 'DEFAULT' or the path of a .pth file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is not a file of plain tensors ({str(error).splitlines()[0]})") from error
    for key in ("state_dict", "model"):  # as training scripts wrap it
        state = state.get(key, state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not state or not all(isinstance(t, Tensor) for t in state.values()):
        raise ValueError(
            f"{path} holds no state dict (a dict of tensors); save it with torch.save(model.state_dict(), ...)"
        )
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _classes_in(state: dict[str, Tensor], architecture: str) -> int:
    with torch.device("meta"):
        name, _ = classifier_of(build_network(architecture, 10))
    return len(state[f"{name}.weight"]) if f"{name}.weight" in state else 10


def _with_classes(model: nn.Module, num_classes: int) -> nn.Module:
    name, old = classifier_of(model)
    if old.out_features == num_classes:
        return model
    print(f"classifier {name} of {old.out_features} classes replaced by a random one of {num_classes}", file=sys.stderr)
    parent, _, last = name.rpartition(".")
    setattr(model.get_submodule(parent), last, nn.Linear(old.in_features, num_classes))
    if not isinstance(model, MobileNetV3Large):  # which looks it up
        model.num_classes = num_classes
    return model
