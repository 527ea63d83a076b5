"""Adopts the settings that the card of a checkpoint declares."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict
from torch import Tensor

from fst_lightning.attacks import Attack
from fst_lightning.checkpoints import Checkpoint
from fst_lightning.configuration import conf_folder, groups
from fst_lightning.models import check_description
from fst_lightning.pipelines.build.run import Run

# The words that a file may set: the name of a choice, or of a timm network. Paths are excluded,
# because a file must not name files, and so is ${...}, which OmegaConf would evaluate. Escaping it
# would not help, because Hydra resolves a part before it makes it.
_WORDS = {"attack": re.compile(r"\w*", re.ASCII), "model": re.compile(r"[\w.-]*", re.ASCII)}

# A number in a file may be at most this many times the option's own, because epochs and widths cost
# time and memory.
_PROPORTION = 100
_PROPORTION_OF_WIDTHS = 16  # a network grows with the square of its width

ATTACK_FILE = "attack.safetensors"
"""The trigger beside a model, if it is fitted or learned."""

_LARGEST_IMAGE = 512
"""The largest image size in pixels that a file may ask for."""

_MOST_MEMORY = 2 * 2**30
"""The most bytes that an attack described by a file may take."""


def adopt_card(run: Run, checkpoint: Checkpoint) -> Run:
    """Fill in from a checkpoint's card what the command line leaves open.

    These are the network, the image size, the normalization and the attack. The file is not
    trusted: its card may choose among the options of this project's configuration and set keys
    that these options have, and no more. No ``_target_`` is taken from it.

    Args:
        run: As composed.
        checkpoint: The checkpoint; a foreign one has no card.

    Raises:
        ValueError: If a file without a card comes without ``model=``, or a card names an option
            that does not exist, or a network that can't be built or is larger than its weights.
    """
    card = checkpoint.card
    if card is None:
        if not run.chosen("model"):
            told = checkpoint.extra.get("network")
            says = f"is of {told}" if told else "does not name its network"
            raise ValueError(
                f"Expected `model=` beside a checkpoint that {says}. "
                f"Valid: {', '.join(groups()['model'])}; or model._target_=package.module.Class, "
                "your own class."
            )
        return run if run.chosen("attack") else _with(run, "attack", "none", {})
    if not run.chosen("model"):
        name, arguments = card.model["name"], card.model["arguments"]
        if name not in groups()["model"]:
            raise ValueError(
                f"Expected `model=` or `model._target_=package.module.Class` beside "
                f"{checkpoint.path}, because no network here is called {name[:100]!r}, and no "
                f"class is taken from a file. Valid: {', '.join(groups()['model'])}."
            )
        numbers = sum(tensor.numel() for tensor in checkpoint.tensors.values())
        checked = check_description(
            name, card.num_classes, arguments, numbers, channels=len(card.mean)
        )
        run = _with(run, "model", name, checked)
    if not run.chosen("attack"):
        attack: dict[str, Any] = dict(card.attack or {"name": "none"})
        run = _with(run, "attack", attack.pop("name"), attack)
    if card.image_size > _LARGEST_IMAGE and not run.given("data.image_size"):
        raise ValueError(
            f"Expected the checkpoint's `image_size` to be at most {_LARGEST_IMAGE}, because of "
            f"memory, but got {card.image_size}. Set data.image_size={card.image_size} on the "
            "command line to use it."
        )
    for key, value in (
        ("image_size", card.image_size),
        ("channels", len(card.mean)),
        ("mean", list(card.mean)),
        ("std", list(card.std)),
    ):
        if key in run.cfg.data and not run.given(f"data.{key}"):
            run.cfg.data[key] = value
    return run


def check_adopted(
    run: Run, checkpoint: Checkpoint, attack: Attack, images: Tensor, num_classes: int
) -> None:
    """Refuse an attack that takes more memory than a file may ask for; call before `prepare`.

    Args:
        run: As `adopt_card` returned it.
        checkpoint: Its card may describe the attack.
        attack: The attack, not prepared yet.
        images: ``(N, C, H, W)`` uint8, the clean training images.
        num_classes: Of the data.

    Raises:
        ValueError: If it takes more than 2 GiB and the command line does not choose the attack.
    """
    fitted = attack.needs_fit and checkpoint.path.with_name(ATTACK_FILE).is_file()
    if run.chosen("attack") or checkpoint.card is None or fitted:
        return
    needed = attack.memory(images, num_classes)
    if needed > _MOST_MEMORY:
        name, (height, width) = run.choices["attack"], images.shape[2:]
        raise ValueError(
            f"Expected the checkpoint to describe an attack that takes at most "
            f"{_MOST_MEMORY / 2**30:.0f} GiB of memory, but {name} takes about "
            f"{needed / 2**30:.1f} GiB on images of {height}x{width} pixels. Set attack={name} "
            "and its keys on the command line to use it."
        )


def _with(run: Run, group: str, option: Any, arguments: dict[str, Any]) -> Run:
    """The same run with another option of a group; single keys of the command line stay."""
    valid = groups()[group]
    if option not in valid:
        raise ValueError(
            f"Expected the checkpoint to name one of the options of {group}="
            f"{', '.join(valid)}, but got {option!r}. Set {group}= on the command line."
        )
    part = OmegaConf.to_container(OmegaConf.load(conf_folder() / group / f"{option}.yaml"))
    if not isinstance(part, dict):
        raise ValueError(f"Expected {group}/{option}.yaml to hold keys, but got {part!r}.")
    for name, value in arguments.items():
        if name in part and not name.startswith("_") and not run.given(f"{group}.{name}"):
            part[name] = _checked(group, name, value, part[name])
    for name in filter(lambda name: run.given(f"{group}.{name}"), run.cfg[group]):
        if name not in part:
            raise ValueError(
                f"Expected `{group}.{name}` to fit {group}={option}, which the checkpoint asks for "
                f"(its keys: {', '.join(list(part)[1:]) or 'none'}). Remove it, or set {group}=."
            )
        part[name] = run.cfg[group][name]
    cfg: DictConfig = run.cfg.copy()
    with open_dict(cfg):
        cfg[group] = OmegaConf.create(part)
    OmegaConf.set_struct(cfg[group], True)
    return replace(run, cfg=cfg, choices={**run.choices, group: str(option)})


def _checked(group: str, name: str, value: Any, own: Any) -> Any:
    """Return the value that a file sets in place of an option's own.

    Raises:
        ValueError: If it is not a number, a word or a list of these, or is far larger than the
            option's own.
    """
    if isinstance(value, list | tuple) and (own is None or isinstance(own, list)):
        items = [*own, *[own[-1]] * len(value)] if own else [None] * len(value)
        return [_checked(group, f"{name}[{i}]", v, items[i]) for i, v in enumerate(value)]
    valid = None
    if not (value is None or isinstance(value, bool | int | float | str)):
        valid = "a number or a word"
    elif isinstance(value, str) and not isinstance(own, str):
        # If the option has no text, a text may be the name of a file.
        valid = "a number" if isinstance(own, int | float) else "no text"
    elif isinstance(value, str) and not _WORDS[group].fullmatch(value):
        valid = "plain words"
    elif type(own) is int and own > 0 and isinstance(value, int | float):
        most = (_PROPORTION_OF_WIDTHS if name.endswith("width") else _PROPORTION) * own
        valid = None if value <= most else f"at most {most}"
    if valid is None:
        return value
    raise ValueError(
        f"Expected the checkpoint's `{name}` to be {valid}, but got {value!r}; "
        f"set {group}.{name.partition('[')[0]}= on the command line."
    )
