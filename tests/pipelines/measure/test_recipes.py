"""Results hold the recipes as they were followed, not as they were written."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fst_lightning.commit import code_commit
from fst_lightning.pipelines import Run, run_pipeline

Go = Callable[..., dict[str, Any]]
Start = Callable[..., Run]

QUIET = "report.enabled=false"


def test_the_recipes_of_a_purification(start: Start) -> None:
    run = start(
        "defense=ft",
        "tuning/optimizer=adam",
        "tuning.optimizer.lr=0.003",
        "tuning.recipe_images=1000",
        "tuning.batch_size=64",
        "tuning.max_epochs=2",
        "training.optimizer.lr=0.05",
        "data.crop_padding=1",
        "report.enabled=true",
    )
    results = run_pipeline(run)
    training, tuning = results["training"], results["tuning"]
    adam = {"name": "adam", "class": "torch.optim.Adam", "lr": 0.003, "weight_decay": 0.0}
    assert tuning["optimizer"] == adam
    # 30 images are fewer than 1,000; the command line gives both numbers, so that both stay.
    assert (tuning["batch_size"], tuning["max_epochs"]) == (64, 2)
    assert tuning["scheduler"]["T_max"] == 2
    assert tuning["clean_ratio"] == 0.5
    assert tuning["augmentation"]["crop_padding"] == 1
    assert training["optimizer"]["lr"] == 0.05
    assert training["optimizer"]["name"] == "sgd"
    assert training["max_epochs"] == 1
    assert training["augmentation"] == {
        "crop_padding": 1,
        "horizontal_flip": False,
        "crop_fill": "zeros",
        "alternate_flips": False,
    }
    written = json.loads((run.folder / "results.json").read_text(encoding="utf-8"))
    assert (written["training"], written["tuning"]) == (training, tuning)
    environment = results["environment"]
    assert (environment["commit"], environment["dirty"]) == (
        code_commit().commit,
        code_commit().dirty,
    )
    assert "Recipe of the tuning" in (run.folder / "report.html").read_text(encoding="utf-8")


def test_a_recipe_that_was_fitted_to_few_images(start: Start) -> None:
    run = start("defense=ft", "tuning.recipe_images=1000", "tuning.augment=false", QUIET)
    run.cfg.tuning.batch_size, run.cfg.tuning.max_epochs = 32, 1
    tuning = run_pipeline(run)["tuning"]
    # The smallest batch, and epochs until it makes 200 steps: two of 16 for 30 images.
    assert (tuning["batch_size"], tuning["max_epochs"]) == (16, 100)
    assert tuning["scheduler"]["T_max"] == 100
    assert tuning["augmentation"]["crop_padding"] == 0


def test_recipes_that_nobody_followed_are_null(go: Go, tmp_path: Path) -> None:
    trained = go(QUIET, task="train")
    assert trained["training"]["optimizer"]["name"] == "sgd"
    assert trained["tuning"] is None
    scored = go(
        f"checkpoint={trained['checkpoints']['backdoored']}",
        "defense=none",
        "data.image_size=8",
        QUIET,
    )
    assert (scored["training"], scored["tuning"]) == (None, None)


def test_a_class_on_the_command_line_has_its_own_name(go: Go) -> None:
    own = "tuning.optimizer._target_=torch.optim.ASGD"
    results = go("defense=ft", own, "~tuning.optimizer.momentum", QUIET)
    assert results["tuning"]["optimizer"]["name"] == "ASGD"
