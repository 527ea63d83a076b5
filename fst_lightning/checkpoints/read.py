"""Read anybody's weights safely."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path

from torch import Tensor

from fst_lightning.checkpoints.card import ModelCard
from fst_lightning.checkpoints.content import Content
from fst_lightning.checkpoints.errors import CheckpointError, Refusal, shown
from fst_lightning.checkpoints.formats.archive import TOTAL_LIMIT
from fst_lightning.checkpoints.formats.hub_folder import open_folder
from fst_lightning.checkpoints.formats.pickle_scan import PICKLE_LIMIT, scan_pickle
from fst_lightning.checkpoints.formats.safetensors_file import (
    looks_like_safetensors,
    read_safetensors,
)
from fst_lightning.checkpoints.formats.torch_file import LEGACY_START, read_torch
from fst_lightning.regular_files import NotRegularError, length, open_regular

__all__ = ["Checkpoint", "read_checkpoint"]

_OLD_PICKLE = re.compile(rb"\(?c[A-Za-z_][\w.]*\n")  # protocol 0 begins with the first name
_VALID = (
    "Give a safetensors file, a state_dict written by torch.save, a Lightning .ckpt or "
    "BackdoorBench's attack_result.pt"
)


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a file holds.

    Args:
        path: The file; in a folder, that of the weights.
        format: `safetensors`, `state_dict`, `lightning` or `backdoorbench`.
        tensors: CPU tensors under the names of the file.
        card: What a file of our own, or a folder of timm's, says about itself; else None.
        extra: BackdoorBench's `model_name`, `num_classes` and `img_size`; a folder's `network` (in
            words) and `labels`; else empty.
        others: Keys under which the file holds further networks.
        digest: SHA-256 of the bytes that were read, 64 hexadecimal digits.
    """

    path: Path
    format: str
    tensors: dict[str, Tensor]
    card: ModelCard | None = None
    extra: dict[str, object] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    digest: str = ""

    @property
    def state_dict(self) -> dict[str, Tensor]:
        """The tensors, in a new dictionary."""
        return dict(self.tensors)


def read_checkpoint(path: str | Path, key: str | None = None, *, plain: bool = False) -> Checkpoint:
    """Read weights from an untrusted file.

    The content tells the format. No pickle is ever executed, memory is bounded by the file's own
    size, and the file is never changed. Values beside the weights, such as the settings of a
    training, may be of any kind: they are never built.

    Args:
        path: A safetensors file, a state_dict (also inside of dictionaries), a Lightning `.ckpt`,
            BackdoorBench's `attack_result.pt`; or a folder of the Hugging Face Hub.
        key: Which of several networks to take: the names of the dictionaries around it, or the
            start of its tensors' names, joined by dots; None chooses.
        plain: Refuse values that `torch.load(weights_only=True)` does not take.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is none of these, is damaged, or is made to harm.
    """
    path = Path(path)
    folder = None
    try:
        if path.is_dir():
            folder = open_folder(path)
            path = folder.weights
        file = open_regular(path)
    except Refusal as refusal:
        raise refusal.about(path) from None
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: there is no such file. Check the path given as `checkpoint`."
        ) from None
    except NotRegularError:
        raise CheckpointError(f"{path}: is no regular file. {_VALID}.") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be opened ({error}). Check the path.") from None
    try:
        with file:
            content = _read(path, file, length(file), key, plain)
            # Of the opened file: another one may have taken its name before somebody asks again.
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        card = _card(content)
    except Refusal as refusal:
        raise refusal.about(path) from None
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error}). Check the file.") from None
    except MemoryError:
        raise CheckpointError(
            f"{path}: needs more memory than there is. Ask for the state_dict alone."
        ) from None
    extra = content.extra
    if folder is not None:
        card, extra = card or folder.card, {**extra, **folder.facts}
    return Checkpoint(path, content.format, content.tensors, card, extra, content.others, digest)


def _read(path: Path, file: BufferedReader, size: int, key: str | None, plain: bool) -> Content:
    if size == 0:
        raise Refusal("is empty", "Copy or download it again")
    if size > TOTAL_LIMIT:
        raise Refusal(f"has {size:,} bytes", f"{TOTAL_LIMIT:,} are the limit")
    start = file.read(len(LEGACY_START))
    if start.startswith(b"PK\x03\x04") or start == LEGACY_START:
        return read_torch(file, size, key, plain=plain)
    if path.suffix == ".safetensors" or looks_like_safetensors(start):
        return read_safetensors(file, size, key)
    if start[:1] == b"\x80" or _OLD_PICKLE.match(start):
        file.seek(0)
        scan_pickle(file.read(PICKLE_LIMIT))  # names what the pickle would run
        raise Refusal("is a bare pickle, which torch.save never writes", _VALID)
    if LEGACY_START.startswith(start):
        raise Refusal("is cut short", "Copy or download the file again")
    raise Refusal(f"begins with {shown(start[:8].hex(' '))}, which no checkpoint does", _VALID)


def _card(content: Content) -> ModelCard | None:
    if content.card is None:
        return None
    try:
        return ModelCard.from_json(content.card)
    except CheckpointError as error:
        raise Refusal(
            f"has an invalid card: {str(error).rstrip('.')}", "Ask for an unaltered file"
        ) from None
