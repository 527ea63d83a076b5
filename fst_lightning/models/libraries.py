"""Classification networks of torchvision and timm, by name."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torchvision
from torch import nn

from fst_lightning.models.bounds import check_bounds
from fst_lightning.models.find_head import find_head

WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")
"""torchvision networks that may return several outputs in training."""

NO_AUXILIARY_HEADS = {"aux_logits": False, "init_weights": True}


def torchvision_model(name: str, num_classes: int, pretrained: bool = False) -> nn.Module:
    """Build a classification network of torchvision.

    Auxiliary heads (GoogLeNet, Inception v3) are left out: the network returns logits only.

    Args:
        name: A name of ``torchvision.models.list_models(module=torchvision.models)``.
        num_classes: Number of classes, at least 1.
        pretrained: Whether to download torchvision's default weights and give the network a new
            head; otherwise all weights are random.

    Raises:
        ValueError: If no classification network has this name, or ``num_classes`` is out of range.

    Example:
        >>> torchvision_model("resnet18", num_classes=7).fc.out_features
        7
    """
    check_bounds(num_classes=num_classes)
    models = torchvision.models
    valid = models.list_models(module=models)
    if name not in valid:
        raise ValueError(_unknown_name(name, "torchvision", valid))
    if pretrained:
        net: nn.Module = models.get_model(name, weights="DEFAULT")
        if isinstance(net, models.Inception3):
            # GoogLeNet drops its auxiliary heads after loading, Inception v3 keeps its own.
            net.aux_logits = False
            net.AuxLogits = None
        _replace_head(net, num_classes)
        return net
    arguments = dict(NO_AUXILIARY_HEADS) if name in WITH_AUXILIARY_HEADS else {}
    net = models.get_model(name, weights=None, num_classes=num_classes, **arguments)
    return net


def timm_model(name: str, num_classes: int, pretrained: bool = False) -> nn.Module:
    """Build a network of timm (PyTorch Image Models).

    Args:
        name: A name of ``timm.list_models()``, with or without a pretrained tag
            (``vit_tiny_patch16_224``, ``resnet18.a1_in1k``). Hub and folder addresses are refused.
        num_classes: Number of classes, at least 1.
        pretrained: Whether to download the weights and give the network a new head.

    Raises:
        ImportError: If timm is not installed.
        ValueError: If no network has this name, or ``num_classes`` is out of range.
    """
    check_bounds(num_classes=num_classes)
    timm = _import_timm(name)
    net: nn.Module = timm.create_model(name, pretrained=pretrained, num_classes=num_classes)
    return net


@dataclass(frozen=True)
class LibraryInput:
    """The input images that a library network expects.

    Attributes:
        size: Height and width, in pixels.
        mean: Per channel, of images in [0, 1].
        std: Per channel, of images in [0, 1].
        fixed: Whether the network accepts this size only.
    """

    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    fixed: bool


def torchvision_input(name: str, pretrained: bool = False) -> LibraryInput:
    """Return the input that the weights of a torchvision network declare.

    Args:
        name: As for :func:`torchvision_model`.
        pretrained: Whether its weights are used; some expect larger images than the network.

    Raises:
        ValueError: If no classification network has this name.

    Example:
        >>> torchvision_input("inception_v3").size, torchvision_input("vit_b_16").fixed
        (299, True)
    """
    models = torchvision.models
    valid = models.list_models(module=models)
    if name not in valid:
        raise ValueError(_unknown_name(name, "torchvision", valid))
    declared = models.get_model_weights(name).DEFAULT.transforms()
    fixed = name.startswith(("vit_", "maxvit_"))
    size = 224 if fixed and not pretrained else declared.crop_size[0]
    return LibraryInput(size, tuple(declared.mean), tuple(declared.std), fixed)


def timm_input(name: str, pretrained: bool = False) -> LibraryInput:
    """Return the input that the configuration of a timm network declares.

    Args:
        name: As for :func:`timm_model`.
        pretrained: Not used; a tag in the name selects the weights.

    Raises:
        ImportError: If timm is not installed.
        ValueError: If no network has this name.
    """
    timm = _import_timm(name)
    declared = timm.get_pretrained_cfg(name)
    size = declared.input_size[-1]
    return LibraryInput(
        size, tuple(declared.mean), tuple(declared.std), bool(declared.fixed_input_size)
    )


def _import_timm(name: str) -> Any:
    try:
        import timm
    except ImportError as error:
        raise ImportError(
            "`model=timm` needs timm, which is not installed. "
            "Install it with: pip install 'fst-lightning[timm]'"
        ) from error
    # A name may also be an address ("hf-hub:...") for timm, and names may come from a file.
    if not isinstance(name, str) or not timm.is_model(name.partition(".")[0]):
        raise ValueError(_unknown_name(name, "timm", timm.list_models()))
    return timm


def _replace_head(net: nn.Module, num_classes: int) -> None:
    path, head = find_head(net)
    parent, _, child = path.rpartition(".")
    bias = head.bias is not None
    new = (
        nn.Conv2d(head.in_channels, num_classes, 1, bias=bias)
        if isinstance(head, nn.Conv2d)
        else nn.Linear(head.in_features, num_classes, bias=bias)
    )
    setattr(net.get_submodule(parent), child, new)


def _unknown_name(name: object, library: str, valid: Iterable[str]) -> str:
    close = get_close_matches(str(name)[:100].lower(), valid, n=5, cutoff=0.4)
    nearest = f" The nearest names: {', '.join(close)}." if close else ""
    listing = {
        "torchvision": "torchvision.models.list_models(module=torchvision.models)",
        "timm": "timm.list_models()",
    }[library]
    return (
        f"Expected `name` to be a classification network of {library}, but got "
        f"{str(name)[:100]!r}.{nearest} `{listing}` lists all."
    )
