"""Exports the purified network to formats of other programs."""

from __future__ import annotations

import copy
import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

FORMATS = {"onnx": "purified.onnx", "torch_export": "purified.pt2"}
"""The formats, and the file of each."""

PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch_export": ()}
_CARD_KEY = "fst_lightning"
_TOLERANCE = 1e-3
_SIZES = (1, 2, 7)


class ImagesToLogits(nn.Module):
    r"""A network with its normalization: :math:`f((x - \mu) / \sigma)`.

    Args:
        net: The classifier; it is not changed.
        mean: Per channel, of images in [0, 1]; None for a network that takes images as they are.
        std: Per channel, greater than 0; None likewise.

    Example:
        >>> net = ImagesToLogits(nn.Flatten(), mean=[0.5], std=[0.25])
        >>> net(torch.ones(1, 1, 1, 1)).tolist()
        [[2.0]]
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, net: nn.Module, mean: Sequence[float] | None, std: Sequence[float] | None
    ) -> None:
        super().__init__()
        self.net = copy.deepcopy(net).cpu().float().to(memory_format=torch.contiguous_format).eval()
        self.requires_grad_(False)
        shift, scale = (0.0,) if mean is None else mean, (1.0,) if std is None else std
        self.register_buffer("mean", torch.tensor(shift).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(scale).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Images ``(N, C, H, W)`` in [0, 1] to logits ``(N, classes)``."""
        logits: Tensor = self.net((images - self.mean) / self.std)
        return logits


def check_formats(formats: object) -> tuple[str, ...]:
    """Refuse an export that is not possible, before anything is trained.

    Args:
        formats: The value of ``export_model``.

    Returns:
        The formats, each once.

    Raises:
        ValueError: If the format is unknown.
        ImportError: If a package is missing; with the command that installs it.
    """
    names = [formats] if isinstance(formats, str) else formats
    if not isinstance(names, Sequence) or not all(name in FORMATS for name in names):
        raise ValueError(
            f"Expected `export_model` to be a list of {', '.join(FORMATS)}, but got {formats!r}."
        )
    for name in names:
        missing = [p for p in PACKAGES[name] if importlib.util.find_spec(p) is None]
        if missing:
            raise ImportError(
                f"export_model={name} needs {', '.join(missing)}: pip install 'fst-lightning[onnx]'"
            )
    return tuple(dict.fromkeys(names))


def export_model(
    net: nn.Module,
    images: Tensor,
    folder: Path,
    formats: Sequence[str],
    *,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    card: str,
) -> dict[str, dict[str, Any]]:
    """Write a network in other formats, and test each file on images.

    The graph takes any number of float32 images in [0, 1], ``(N, C, H, W)``, normalizes them and
    returns logits. A file is kept only if its logits agree with those of the network, for batches
    of several sizes. Errors are recorded and not raised.

    Args:
        net: The purified network.
        images: ``(N, C, H, W)`` in [0, 1], one or more, to compare on.
        folder: The folder to write to.
        formats: Keys of :data:`FORMATS`.
        mean: Per channel, of images in [0, 1]; None for images that are not normalized.
        std: Per channel; None likewise.
        card: Describes the network as JSON, for the file's metadata.

    Returns:
        By format: ``file``, ``bytes`` and ``max_difference`` (of the logits, relative to the
        largest one), or ``error`` with one line.
    """
    ready, images = ImagesToLogits(net, mean, std), images.cpu()
    found: dict[str, dict[str, Any]] = {}
    for name in formats:
        path = folder / FORMATS[name]
        draft = path.with_name(f"draft-{path.name}")
        try:
            with _quiet(), torch.no_grad():
                read = _WRITERS[name](ready, images, draft, {_CARD_KEY: card, **_TOLD})
                difference = _largest_difference(ready, read, images)
            draft.replace(path)
            size = path.stat().st_size
            found[name] = {"file": str(path), "bytes": size, "max_difference": difference}
        except Exception as error:
            lines = str(error).strip().splitlines() or [""]
            found[name] = {"error": f"{type(error).__name__}: {lines[0]}"[:300]}
        finally:
            draft.unlink(missing_ok=True)
    return found


_TOLD = {
    "input": json.dumps(
        {"name": "images", "type": "float32", "shape": "N, C, H, W", "range": [0, 1]}
    ),
    "normalization": "inside",
    "output": json.dumps({"name": "logits", "type": "float32", "shape": "N, classes"}),
}

Reader = Callable[[Tensor], Tensor]


def _program(ready: nn.Module, images: Tensor) -> torch.export.ExportedProgram:
    # Two images, because a batch size of one would become a constant.
    example = images[:1].expand(2, -1, -1, -1).contiguous()
    batch = torch.export.Dim("batch", min=1)
    return torch.export.export(ready, (example,), dynamic_shapes={"images": {0: batch}})


def _write_torch_export(
    ready: nn.Module, images: Tensor, path: Path, told: Mapping[str, str]
) -> Reader:
    # PyTorch requires the suffix .pt2.
    torch.export.save(_program(ready, images), path, extra_files=dict(told))
    read = torch.export.load(path).module()
    return lambda batch: read(batch)


def _write_onnx(ready: nn.Module, images: Tensor, path: Path, told: Mapping[str, str]) -> Reader:
    import onnxruntime

    program = torch.onnx.export(
        _program(ready, images),
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=["logits"],
    )
    if program is None:
        raise RuntimeError("torch.onnx.export returned nothing")
    program.model.metadata_props.update(told)
    program.save(path, external_data=False)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda batch: torch.from_numpy(session.run(["logits"], {"images": batch.numpy()})[0])


_WRITERS: dict[str, Callable[[nn.Module, Tensor, Path, Mapping[str, str]], Reader]] = {
    "onnx": _write_onnx,
    "torch_export": _write_torch_export,
}


def _largest_difference(ready: nn.Module, read: Reader, images: Tensor) -> float:
    """Compare the logits on all images, in batches of several sizes.

    Raises:
        ValueError: If the logits of the file differ from those of the network.
    """
    worst = 0.0
    for size in (*_SIZES, len(images)):
        batch = images[torch.arange(size) % len(images)].contiguous()
        expected, got = ready(batch), read(batch)
        if got.shape != expected.shape:
            raise ValueError(f"its logits are {tuple(got.shape)}, not {tuple(expected.shape)}")
        scale = max(1.0, float(expected.abs().max()))
        difference = float((got - expected).abs().max()) / scale
        # `not <=` refuses NaN too.
        if not difference <= _TOLERANCE:
            raise ValueError(f"its logits differ from the network's by {difference:.2g}")
        worst = max(worst, difference)
    return worst


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporters, and restore the random numbers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
