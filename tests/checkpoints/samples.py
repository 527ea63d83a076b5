"""Networks and files, good and hostile, that the tests of this folder share."""

from __future__ import annotations

import io
import pickle
import pickletools
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from fst_lightning.checkpoints import ModelCard


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 2, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(2)
        self.downsample = nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.BatchNorm2d(2))


class Net(nn.Module):
    """Names as in torchvision's ResNets; the forward pass is never needed."""

    def __init__(self, num_classes: int = 3) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 2, 3, bias=False)
        self.layer1 = nn.Sequential(Block())
        self.fc = nn.Linear(2, num_classes)


def make_net(num_classes: int = 3, seed: int = 0) -> Net:
    torch.manual_seed(seed)
    return Net(num_classes)


def make_card(**changes: object) -> ModelCard:
    values: dict[str, object] = {
        "model": {"name": "small_resnet", "arguments": {"width": 8, "deep": False, "act": None}},
        "num_classes": 3,
        "classes": ("cat", "dog", "été"),
        "image_size": 32,
        "mean": (0.5, 0.25, 0.125),
        "std": (0.25, 0.5, 1.0),
        "attack": {"name": "badnets", "poison_ratio": 0.1, "position": (1, 2)},
        "head": "fc",
    }
    return ModelCard(**(values | changes))  # type: ignore[arg-type]


def pickled(value: object, protocol: int = 2) -> bytes:
    return pickle.dumps(value, protocol)


def torch_zip(
    path: Path, data: bytes, tensors: Mapping[str, bytes] | None = None, order: str = "little"
) -> Path:
    """Write an archive as `torch.save` does, around any pickle."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/byteorder", order)
        for key, content in (tensors or {}).items():
            archive.writestr(f"archive/data/{key}", content)
        archive.writestr("archive/version", "3\n")
    return path


def save_with(path: Path, value: object, *, legacy: bool = False) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=not legacy)
    return path


def attack_result(net: nn.Module) -> dict[str, object]:
    """What BackdoorBench keeps, with NumPy values where it has them."""
    return {
        "model_name": "resnet18",
        "num_classes": np.int64(3),
        "model": net.state_dict(),
        "data_path": "../data/cifar10",
        "img_size": (32, 32, 3),
        "clean_data": "cifar10",
        "bd_train": {
            "poison_indicator": np.array([0, 1, 1, 0]),
            "original_index_array": np.arange(4, dtype=np.int32),
            "ratio": np.float32(0.5),
            "flags": np.array([[True, False]]),
            "data_dict": {np.int64(1): {"path": "bd_train_dataset/1.png", "other_info": (1, 0)}},
        },
        "bd_test": None,
    }


class Calls:
    """Pickles to a call of any importable function."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self.call


def ops(*parts: bytes | str | int | tuple[str, str]) -> bytes:
    """Assemble a protocol 2 pickle: bytes are instructions, text and numbers are pushed."""
    out = io.BytesIO()
    out.write(b"\x80\x02")
    for part in parts:
        if isinstance(part, bytes):
            out.write(part)
        elif isinstance(part, tuple):
            out.write(f"c{part[0]}\n{part[1]}\n".encode())
        elif isinstance(part, str):
            text = part.encode()
            out.write(b"X" + len(text).to_bytes(4, "little") + text)
        elif 0 <= part < 2**31:
            out.write(b"J" + part.to_bytes(4, "little"))
        else:
            number = part.to_bytes(16, "little", signed=True)
            out.write(b"\x8a" + bytes([len(number)]) + number)
    out.write(b".")
    data = out.getvalue()
    for _ in pickletools.genops(data):
        pass  # well-formed
    return data


def equal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)
