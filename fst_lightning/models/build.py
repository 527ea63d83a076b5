"""Networks by the name of their configuration."""

import inspect
from collections.abc import Callable, Mapping
from typing import get_type_hints

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from fst_lightning.models.airbench import airbench
from fst_lightning.models.channels import set_input_channels
from fst_lightning.models.libraries import timm_model, torchvision_model
from fst_lightning.models.preact_resnet import preact_resnet18
from fst_lightning.models.resnet import resnet18, small_resnet
from fst_lightning.models.vgg import vgg19_bn

MODELS: dict[str, Callable[..., nn.Module]] = {
    "small_resnet": small_resnet,
    "resnet18": resnet18,
    "preact_resnet18": preact_resnet18,
    "vgg19_bn": vgg19_bn,
    "airbench": airbench,
    "torchvision": torchvision_model,
    "timm": timm_model,
}
"""Builders by configuration name; each takes ``num_classes`` and its own arguments."""

LONGEST_NAME = 128
MOST_PARAMETERS = 1_000_000_000


def check_description(
    name: str,
    num_classes: int,
    arguments: Mapping[str, object],
    most: int = MOST_PARAMETERS,
    channels: int = 3,
) -> dict[str, object]:
    """Check a file's description of a network without building the network.

    The file is not trusted. Nothing is downloaded: ``pretrained`` becomes False, because the
    weights of the file follow. A network that is too large is refused before it takes memory.

    Args:
        name: A key of ``MODELS``.
        num_classes: Number of classes, at least 1.
        arguments: Further arguments of the builder; plain numbers, strings and booleans.
        most: Number of parameters that the file holds.
        channels: Channels of its images.

    Returns:
        The arguments, with ``pretrained`` set to False if the network has it.

    Raises:
        ValueError: If no network has this name, an argument is unknown, missing, of the wrong type
            or out of range, or the network has more parameters than `most`.

    Example:
        >>> check_description("small_resnet", 10, {"width": 8})
        {'width': 8}
    """
    builder = _builder(name)
    _check_arguments(name, builder, arguments)
    arguments = dict(arguments)
    if "pretrained" in inspect.signature(builder).parameters:
        arguments["pretrained"] = False
    size = _count_parameters(name, num_classes, arguments, channels)
    if size > most:
        raise ValueError(
            f"Expected a network of at most {most:,} parameters, but the file describes "
            f"`{name}` with {size:,}. Build it yourself and load the weights into it."
        )
    return arguments


def _builder(name: str) -> Callable[..., nn.Module]:
    if not isinstance(name, str) or name not in MODELS:
        raise ValueError(
            f"Expected `model` to be one of {', '.join(MODELS)}, but got {str(name)[:100]!r}. "
            "Other networks of these libraries are `model=torchvision model.name=NAME` and "
            "`model=timm model.name=NAME`."
        )
    return MODELS[name]


class _Outline(TorchFunctionMode):
    """Gives parameters shapes without memory.

    Other tensors keep their values, because some builders compute widths with small tensors.
    """

    def __torch_function__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        device = {"device": "meta"} if func is torch.empty else {}
        return func(*args, **{**(kwargs or {}), **device})


def outline(name: str, num_classes: int, /, **arguments: object) -> nn.Module:
    """Build a network whose parameters have shapes and no memory.

    Args:
        name: A key of ``MODELS``.
        num_classes: Number of classes, at least 1.
        arguments: Further arguments of the builder.

    Example:
        >>> outline("small_resnet", 10).fc.weight.device.type
        'meta'
    """
    with _Outline():
        return _builder(name)(num_classes=num_classes, **arguments)


def _count_parameters(
    name: str, num_classes: int, arguments: Mapping[str, object], channels: int
) -> int:
    net = outline(name, num_classes, **arguments)
    set_input_channels(net, channels)
    return sum(parameter.numel() for parameter in net.parameters())


def _check_arguments(
    name: str, builder: Callable[..., nn.Module], arguments: Mapping[str, object]
) -> None:
    parameters = dict(inspect.signature(builder).parameters)
    del parameters["num_classes"]
    types = get_type_hints(builder)
    valid = ", ".join(f"`{key}`" for key in parameters) or "none"
    for key, value in arguments.items():
        if key not in parameters:
            raise ValueError(
                f"Model `{name}` has no argument {str(key)[:100]!r}; its arguments: {valid}."
            )
        # Exactly this type: `True` is an int in Python, and a subclass may behave in any way.
        if type(value) is not types[key]:
            raise ValueError(
                f"Expected `{key}` of model `{name}` to be {types[key].__name__}, "
                f"but got {str(value)[:100]!r} ({type(value).__name__})."
            )
        if isinstance(value, str) and len(value) > LONGEST_NAME:
            raise ValueError(
                f"Expected `{key}` of model `{name}` to have at most {LONGEST_NAME} characters, "
                f"but got {len(value)}."
            )
    for key, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and key not in arguments:
            raise ValueError(f"Model `{name}` needs `{key}`; its arguments: {valid}.")
