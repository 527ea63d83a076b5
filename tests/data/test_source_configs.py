"""The files in conf/data say the same as the constructors."""

import inspect
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fst_lightning.data.sources.cifar import CIFAR10, CIFAR100
from fst_lightning.data.sources.digits import Digits
from fst_lightning.data.sources.fake import Fake
from fst_lightning.data.sources.gtsrb import GTSRB
from fst_lightning.data.sources.image_folder import ImageFolder
from fst_lightning.data.sources.npz import Npz
from fst_lightning.data.sources.source import Source

FOLDER = Path(__file__).parents[2] / "conf" / "data"
SOURCES = {
    "cifar10": CIFAR10,
    "cifar100": CIFAR100,
    "digits": Digits,
    "fake": Fake,
    "gtsrb": GTSRB,
    "image_folder": ImageFolder,
    "npz": Npz,
}


@pytest.mark.parametrize(("name", "kind"), SOURCES.items())
def test_every_argument_with_its_default(name: str, kind: type[Source]) -> None:
    config = OmegaConf.to_container(OmegaConf.load(FOLDER / f"{name}.yaml"))
    assert isinstance(config, dict)
    assert next(iter(config)) == "_target_"
    assert config.pop("_target_") == f"fst_lightning.data.{kind.__name__}"
    parameters = inspect.signature(kind.__init__).parameters
    defaults = {key: value.default for key, value in parameters.items() if key != "self"}
    assert list(config) == list(defaults)
    if "root" in defaults:
        assert defaults.pop("root") is inspect.Parameter.empty
        assert config.pop("root") in ("???", "${paths.data}")
    if "cache_folder" in defaults:  # A run has a place for it, Python code has none.
        assert defaults.pop("cache_folder") is None
        assert config.pop("cache_folder") == "${paths.store}/images"
    for key, default in defaults.items():
        assert config[key] == (list(default) if isinstance(default, tuple) else default)
