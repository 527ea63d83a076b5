"""Read a folder of weights as the Hugging Face Hub holds them: ``config.json`` beside a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from fst_lightning.checkpoints.card import ModelCard
from fst_lightning.checkpoints.errors import CheckpointError, Refusal, shown
from fst_lightning.text_files import read_text

__all__ = ["HubFolder", "open_folder"]

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_JSON_LIMIT = 1_000_000
_MOST_LABELS = 100_000
# timm always writes these; a pooling that changes the names of the weights is detected.
_USUAL = {"in_chans": (3,), "global_pool": ("avg", "token")}


@dataclass(frozen=True)
class HubFolder:
    """The description in a folder.

    Args:
        weights: The file with the tensors.
        card: What the network is, if timm builds it by its name.
        facts: `network`, a description in words, and `labels`, the names of the classes, as far as
            the folder tells.
    """

    weights: Path
    card: ModelCard | None = None
    facts: Mapping[str, object] = field(default_factory=dict)


def open_folder(folder: Path) -> HubFolder:
    """Find the weights in a folder, and read its ``config.json`` as text.

    Names in it choose among the networks of this project. No class is taken from it.

    Args:
        folder: From the Hub, or written by `save_pretrained` or timm's `save_for_hf`.

    Raises:
        Refusal: If there are no weights, or the text is damaged.
    """
    weights = next((folder / name for name in _WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        split = any((folder / f"{name}.index.json").is_file() for name in _WEIGHTS)
        raise Refusal(
            "is a folder whose weights lie in several files" if split else "is a folder",
            "Save them in one file: model.save_pretrained(folder, max_shard_size='20GB')"
            if split
            else f"Give a file, or a folder that holds {' or '.join(_WEIGHTS)} and config.json",
        )
    config = _config(folder / "config.json")
    if isinstance(config.get("architecture"), str):
        return _timm(weights, config)
    names = config.get("architectures")
    facts: dict[str, object] = {}
    if isinstance(names, list) and names and isinstance(names[0], str):
        facts["network"] = f"the transformers network {shown(names[0])}"
    labels = config.get("id2label")
    if isinstance(labels, dict) and len(labels) <= _MOST_LABELS:
        found = tuple(labels.get(str(number)) for number in range(len(labels)))
        if all(isinstance(label, str) for label in found):
            facts["labels"] = found
    return HubFolder(weights, None, facts)


def _config(path: Path) -> dict[str, object]:
    try:
        config = json.loads(read_text(path, _JSON_LIMIT))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise Refusal(
            f"has a config.json that cannot be read: {error.strerror}",
            "Give the file of weights itself",
        ) from None
    except (ValueError, RecursionError):
        config = None
    if not isinstance(config, dict):
        raise Refusal("has a config.json that is no JSON object", "Give the file of weights itself")
    return config


def _timm(weights: Path, config: dict[str, object]) -> HubFolder:
    name, classes = config["architecture"], config.get("num_classes")
    facts: dict[str, object] = {"network": f"the timm network {shown(name)}"}
    labels = config.get("label_names")
    known = isinstance(labels, list) and len(labels) == classes
    if known:
        facts["labels"] = tuple(labels)  # type: ignore[arg-type]
    further = config.get("model_args") or {}
    unusual = [
        key
        for key, value in (further.items() if isinstance(further, dict) else ())
        if key != "num_classes" and value not in _USUAL.get(key, ())
    ]
    if unusual:
        facts["network"] = f"{facts['network']} with {', '.join(map(shown, unusual[:3]))}"
        return HubFolder(weights, None, facts)
    training = config.get("pretrained_cfg")
    training = training if isinstance(training, dict) else {}
    size = training.get("input_size")
    try:
        card = ModelCard(
            model={"name": "timm", "arguments": {"name": name}},  # type: ignore[dict-item]
            num_classes=classes,  # type: ignore[arg-type]
            classes=labels if known else tuple(map(str, range(_count(classes)))),  # type: ignore[arg-type]
            image_size=size[-1] if isinstance(size, list) and size else None,  # type: ignore[arg-type]
            mean=training.get("mean"),  # type: ignore[arg-type]
            std=training.get("std"),  # type: ignore[arg-type]
            attack=None,
            head=_text(training.get("classifier")),
        )
    except CheckpointError as error:
        raise Refusal(
            f"has a config.json that timm does not write: {str(error).rstrip('.')}",
            "Give the file of weights itself, with model=timm model.name=NAME",
        ) from None
    return HubFolder(weights, card, facts)


def _count(classes: object) -> int:
    return classes if type(classes) is int and 0 <= classes <= _MOST_LABELS else 0


def _text(classifier: object) -> str:
    first = classifier[0] if isinstance(classifier, list) and classifier else classifier
    return first if isinstance(first, str) else "head"
