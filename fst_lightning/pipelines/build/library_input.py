"""The image size and normalization that a torchvision or timm network declares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from omegaconf import OmegaConf

from fst_lightning.configuration import conf_folder
from fst_lightning.models import LibraryInput, timm_input, torchvision_input
from fst_lightning.pipelines.build.run import Run
from fst_lightning.pipelines.runtime.processes import is_first_process

_BRINGS: dict[str, Callable[[str, bool], LibraryInput]] = {
    "fst_lightning.models.torchvision_model": torchvision_input,
    "fst_lightning.models.timm_model": timm_input,
}
_ANY_SIZE = "image_folder"  # Its images may have any size.


def library_input(run: Run) -> LibraryInput | None:
    """The declared input of this run's network; None if it comes from no library.

    Raises:
        ValueError: If the library has no network of this name.
        ImportError: If the library is not installed.
    """
    model = run.cfg.model
    brings = _BRINGS.get(str(model.get("_target_")))
    return None if brings is None else brings(model.name, bool(model.get("pretrained")))


def adopt_library_input(run: Run) -> Run:
    """Adopt the input that a library network declares, unless something else is set.

    The image size is adopted if the network takes no other, if its pretrained weights are used, or
    if the images are resized anyway. Mean and standard deviation are adopted if pretrained weights
    are used, or if they would be computed from the images otherwise. The command line, a recipe,
    and data with its own size and statistics win.

    Args:
        run: The run.

    Raises:
        ValueError: If the configuration asks for a size that the network does not take.
    """
    brought = library_input(run)
    if brought is None:
        return run
    data, pretrained = run.cfg.data, bool(run.cfg.model.get("pretrained"))
    found: dict[str, Any] = {}
    wants_size = brought.fixed or pretrained or run.choices["data"] == _ANY_SIZE
    if wants_size and _is_open(run, "image_size"):
        found["image_size"] = brought.size
    size = found.get("image_size", data.get("image_size"))
    if brought.fixed and size not in (None, brought.size):
        raise ValueError(
            f"Expected data.image_size={brought.size} for model.name={run.cfg.model.name}, which "
            f"takes no other size, but got {size}."
        )
    both = _is_open(run, "mean") and _is_open(run, "std")
    if (
        both
        and data.get("channels", 3) == len(brought.mean)
        and (pretrained or (data.mean is None and data.std is None))
    ):
        found |= {"mean": list(brought.mean), "std": list(brought.std)}
    if not found:
        return run
    cfg = run.cfg.copy()
    for key, value in found.items():
        cfg.data[key] = value
    if is_first_process():
        told = " ".join(f"data.{key}={value}".replace(" ", "") for key, value in found.items())
        print(
            f"model: {run.cfg.model.name} brings {told}; set others on the command line",
            flush=True,
        )
    return replace(run, cfg=cfg)


def _is_open(run: Run, key: str) -> bool:
    """Whether a key of the data still has the value of its YAML file."""
    if key not in run.cfg.data or run.given(f"data.{key}"):
        return False
    value = run.cfg.data[key]
    file = conf_folder() / "data" / f"{run.choices['data']}.yaml"
    return value is None or (
        file.is_file() and OmegaConf.select(OmegaConf.load(file), key) == value
    )
