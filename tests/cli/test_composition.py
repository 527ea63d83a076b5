"""The configuration is the one that Hydra composes, and it is composed once for all values."""

from collections.abc import Iterator

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from fst_lightning.cli import composition
from fst_lightning.cli.composition import composed, without_values
from fst_lightning.configuration import conf_folder


@pytest.fixture(autouse=True)
def initialized() -> Iterator[None]:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        yield


def own_part(cfg: DictConfig) -> str:
    return OmegaConf.to_yaml(
        OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    )


@pytest.mark.parametrize(
    ("task", "overrides"),
    [
        ("purify", []),
        ("train", []),
        ("detect", ["detector=[mm_bd,nc]", "detector.nc.steps=3", "seed=1"]),
        ("purify", ["seed=3", "defense=ft", "tuning.optimizer.lr=0.5", "data=fake"]),
        ("purify", ["tuning.optimizer.lr=0.5", "tuning/optimizer=adam", "defense=i_bau"]),
        ("purify", ["robustness=[retuning]", "val_images=null"]),
        ("train", ["+model.depth=3", "++model.width=5", "model._target_=a.B"]),
        ("purify", ["~tuning.scheduler", "~defense.alpha", "+defense.alpha=2"]),
        ("train", ["+callbacks.mine._target_=a.B", "+callbacks.mine.list=[1,{a:2}]"]),
        ("train", ["attack=none", "~logger", "training.batch_size=7", "training.max_epochs=3"]),
        ("train", ["data=image_folder", 'data.root="a=b, c"', "paths.store=${oc.env:HOME}/x"]),
        ("train", ["hydra.run.dir=a", "hydra.mode=MULTIRUN", "hydra/launcher=basic", "seed=2"]),
        ("train", ["model={_target_:a.B}", "data.crop_padding=2"]),
    ],
)
def test_it_is_what_hydra_composes(task: str, overrides: list[str]) -> None:
    expected = compose(task, overrides, return_hydra_config=True)
    found = composed(task, overrides)
    assert own_part(found) == own_part(expected)
    assert OmegaConf.is_struct(found)
    for cfg in (found, expected):
        cfg.hydra.overrides.task, cfg.hydra.job.override_dirname = [], ""
    assert OmegaConf.to_yaml(found.hydra) == OmegaConf.to_yaml(expected.hydra)


@pytest.mark.parametrize(
    "overrides",
    [
        ["defense.alfa=1"],
        ["defense=fsst"],
        ["sed=1", "defense=ft"],
        ["+seed=1"],
        ["~defense.nope"],
        ["seed.a=1"],
    ],
)
def test_it_fails_as_hydra_does(overrides: list[str]) -> None:
    with pytest.raises(HydraException) as expected:
        compose("purify", overrides)
    with pytest.raises(HydraException) as found:
        composed("purify", overrides)
    assert str(found.value) == str(expected.value)
    assert type(found.value) is type(expected.value)


def test_values_compose_nothing_again(monkeypatch: pytest.MonkeyPatch) -> None:
    first = composed("purify", ["defense=fst", "seed=1"])
    monkeypatch.setattr(composition, "compose", lambda *_, **__: pytest.fail("it composes again"))
    first.seed = 2
    first.defense.alpha = 7
    second = composed("purify", ["defense=fst", "tuning.max_epochs=2"])
    assert (second.seed, second.tuning.max_epochs) == (0, 2)
    assert second.defense.alpha == without_values("purify", ["seed=5", "defense=fst"]).defense.alpha
    assert second.defense.alpha != 7
