"""Networks by name: the paper's, torchvision's and timm's, with random weights, pretrained ones or those of a file."""

import os
import pickle
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

from ..model import MobileNetV3Large

PRETRAINED_CLASSES = 1000  # ImageNet's


def build_network(architecture: str, num_classes: int, **arguments) -> nn.Module:
    """A dense network with random weights.

    `architecture`: "mnv3nb/MobileNetV3Large", "torchvision/NAME" or, if timm is installed, "timm/NAME". It is kept as
    `.architecture` and stored by `save_model`. `arguments` go to the library's builder. Raises ValueError for an
    unknown name.
    """
    library = architecture.partition("/")[0]
    if architecture == MobileNetV3Large.architecture:
        return MobileNetV3Large(num_classes, **arguments)
    if library == "torchvision":
        return _build_torchvision(architecture, num_classes, **arguments)
    if library == "timm":
        return _build_timm(architecture, num_classes, **arguments)
    raise _unknown_architecture(architecture)


def load_network(architecture: str, weights: str | os.PathLike | None = None, num_classes: int = 10) -> nn.Module:
    """A network by name with the given weights, ready to be trained or pruned on `num_classes` classes.

    `weights`: None (random), "DEFAULT" (the library's pretrained weights, downloaded) or a .pth file with a state dict,
    which is read with `weights_only=True`. If the weights are for another number of classes, the classifier is replaced
    by a random one, and stderr reports it. With weights, torchvision's and timm's networks normalise their input as their
    pretrained weights expect (see `normalise_input`). Raises FileNotFoundError, or ValueError for an unknown name or
    for weights that do not fit.
    """
    if weights is None:
        return build_network(architecture, num_classes)
    model = _load_pretrained(architecture) if weights == "DEFAULT" else _load_weights_file(architecture, Path(weights))
    _set_num_classes(model, num_classes)
    if architecture != MobileNetV3Large.architecture:
        mean, deviation = _get_normalisation(model)
        normalise_input(model, mean, deviation)
    return model


def normalise_input(model: nn.Module, mean: Sequence[float], deviation: Sequence[float]) -> nn.Module:
    """Let `model`, in place, take images in [-1, 1], as `to_input` makes them, and normalise them itself.

    `mean` and `deviation` (standard deviation) are per channel, of images in [0, 1]. They are kept as `.normalisation`,
    stored by `save_model`, and part of every exported graph. Raises ValueError if the network normalises already.
    """
    if hasattr(model, "normalisation"):
        raise ValueError(
            f"this network normalises its input already, by {model.normalisation}; load it again to use another"
        )
    # An image x in [-1, 1] is (x + 1) / 2 in [0, 1]. So ((x + 1) / 2 - mean) / deviation = x · scale + shift.
    scale = [0.5 / d for d in deviation]
    shift = [(0.5 - m) / d for m, d in zip(mean, deviation, strict=True)]
    model.normalisation = [list(mean), list(deviation)]
    with torch.device("cpu"):  # load_model rebuilds networks on the meta device, but no file holds these two
        model.register_buffer("input_scale", torch.tensor(scale)[:, None, None], persistent=False)
        model.register_buffer("input_shift", torch.tensor(shift)[:, None, None], persistent=False)
    model.register_forward_pre_hook(_normalise)
    return model


def find_classifier(model: nn.Module) -> tuple[str, nn.Linear]:
    """The name and the layer of the last linear layer, whose outputs are the classes; ValueError if there is none."""
    linear_layers = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear_layers:
        raise ValueError(f"{type(model).__name__} has no linear layer that could be its classifier")
    return linear_layers[-1]


def _normalise(model: nn.Module, inputs: tuple) -> tuple:
    images, *others = inputs
    return (images * model.input_scale + model.input_shift, *others)


def _build_torchvision(architecture: str, num_classes: int, **arguments) -> nn.Module:
    name = architecture.removeprefix("torchvision/")
    if name not in torchvision.models.list_models(torchvision.models):
        raise _unknown_architecture(architecture)
    model = torchvision.models.get_model(name, **{"weights": None, "num_classes": num_classes, **arguments})
    model.architecture = architecture
    return model


def _build_timm(architecture: str, num_classes: int, **arguments) -> nn.Module:
    if not find_spec("timm"):
        raise ModuleNotFoundError(f"{architecture} needs timm: pip install timm")
    import timm

    name = architecture.removeprefix("timm/")
    if name not in timm.list_models():
        raise _unknown_architecture(architecture)
    model = timm.create_model(name, num_classes=num_classes, **arguments)
    model.architecture = architecture
    return model


def _unknown_architecture(architecture: str) -> ValueError:
    return ValueError(
        f"unknown architecture {architecture!r}; allowed: {MobileNetV3Large.architecture}, torchvision/NAME "
        "(such as torchvision/mobilenet_v3_small), timm/NAME"
    )


def _load_pretrained(architecture: str) -> nn.Module:
    """The network with its library's pretrained weights, for ImageNet's classes."""
    library, _, name = architecture.partition("/")
    if library not in ("torchvision", "timm"):
        raise ValueError(f"{architecture} has no pretrained weights; give None or the path of a .pth file")
    try:
        if library == "timm":
            return _build_timm(architecture, PRETRAINED_CLASSES, pretrained=True)
        model = _build_torchvision(architecture, PRETRAINED_CLASSES)
        weights = torchvision.models.get_model_weights(name).DEFAULT
        state = weights.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(
            f"the weights of {architecture} could not be downloaded ({reason}); give the path of a .pth file instead"
        ) from error
    model.load_state_dict(state)
    return model


def _load_weights_file(architecture: str, path: Path) -> nn.Module:
    """The network with the tensors of a .pth file, for as many classes as the file has."""
    state = _read_state_dict(path)
    model = build_network(architecture, _count_classes(architecture, state))
    expected = model.state_dict()
    wrong = []
    for name in {**expected, **state}:
        if name not in expected or name not in state or expected[name].shape != state[name].shape:
            wrong.append(name)
    if wrong:
        names = ", ".join(wrong[:3])
        raise ValueError(f"{path} does not fit {architecture}: {len(wrong)} tensors differ, first {names}")
    # Not load_state_dict: MNASNet's asks for a version that a plain dict does not carry.
    for name, tensor in expected.items():
        tensor.copy_(state[name])
    return model


def _read_state_dict(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}; give None, 'DEFAULT' or the path of a .pth file")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise ValueError(f"{path} is not a file of plain tensors ({str(error).splitlines()[0]})") from error
    state = _unwrap(content)
    if not isinstance(state, dict) or not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(
            f"{path} holds no state dict (a dict of tensors); save it with torch.save(model.state_dict(), ...)"
        )
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}  # DataParallel adds the prefix


def _unwrap(content: Any) -> Any:
    """The state dict inside `content`, where training scripts store it under a key beside other things."""
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and key in content:
            content = content[key]
    return content


def _count_classes(architecture: str, state: dict[str, Tensor]) -> int:
    """The number of classes that `state` is for; any number if it has no such classifier and does not fit anyway."""
    with torch.device("meta"):
        name, _ = find_classifier(build_network(architecture, num_classes=10))
    if f"{name}.weight" not in state:
        return 10
    return len(state[f"{name}.weight"])


def _set_num_classes(model: nn.Module, num_classes: int) -> None:
    """Replace the classifier, in place, by a random one if it has another number of classes."""
    name, old = find_classifier(model)
    if old.out_features == num_classes:
        return
    print(f"classifier {name} of {old.out_features} classes replaced by a random one of {num_classes}", file=sys.stderr)
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, nn.Linear(old.in_features, num_classes))
    if not isinstance(model, MobileNetV3Large):  # there it is a property
        model.num_classes = num_classes


def _get_normalisation(model: nn.Module) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and standard deviation, per channel, that the library's pretrained weights of this network expect."""
    library, _, name = model.architecture.partition("/")
    if library == "timm":
        return model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
    preset = torchvision.models.get_model_weights(name).DEFAULT.transforms()
    return preset.mean, preset.std
