"""A tuning on few images makes enough steps; a published recipe stays as it is."""

import math
from typing import Any

import pytest
import yaml

from fst_lightning.configuration import conf_folder
from fst_lightning.pipelines import Run, run_pipeline
from fst_lightning.pipelines.build.recipe import fit_recipe, fitted
from tests.pipelines.conftest import Start, defender


def count_steps(count: int, batch_size: int, epochs: int) -> int:
    made = 0
    for _ in range(epochs):
        left = count
        while left > 0:
            left -= batch_size
            made += 1
    return made


@pytest.mark.parametrize("count", [1, 15, 16, 17, 60, 240, 500, 999])
@pytest.mark.parametrize("recipe", [(128, 10), (128, 50), (32, 5), (8, 2)])
def test_few_images_get_about_200_steps(count: int, recipe: tuple[int, int]) -> None:
    batch_size, epochs = fitted(count, *recipe)
    made = count_steps(count, batch_size, epochs)
    assert made >= 200
    assert batch_size <= recipe[0]
    assert epochs >= recipe[1]
    assert batch_size >= min(16, recipe[0])
    if epochs > recipe[1]:  # one epoch less would not do
        assert count_steps(count, batch_size, epochs - 1) < 200
        assert batch_size // 2 < 16  # smaller batches come first
    elif batch_size < recipe[0]:  # larger batches would not do
        assert count_steps(count, 2 * batch_size, epochs) < 200


def test_what_is_fixed_stays() -> None:
    assert fitted(240, 128, 10, fix_batch_size=True) == (128, 100)
    assert fitted(240, 128, 10, fix_max_epochs=True) == (16, 10)
    assert fitted(240, 128, 10, fix_batch_size=True, fix_max_epochs=True) == (128, 10)


def recipe_after(run: Run, **recipe: Any) -> tuple[int, int]:
    """The batch size and the epochs that 30 clean images are tuned by."""
    run.cfg.tuning.update(recipe)
    data = defender(run)
    fit_recipe(run, data)
    if data.batch_size != 8:  # as the data module was made
        assert data.batch_size == run.cfg.tuning.batch_size
    return run.cfg.tuning.batch_size, run.cfg.tuning.max_epochs


PUBLISHED = {"batch_size": 128, "max_epochs": 10}


@pytest.mark.parametrize(
    ("images", "overrides", "expected"),
    [
        (1000, [], (16, 100)),
        (30, [], (128, 10)),  # as many images as the recipe is for
        (None, [], (128, 10)),
        (1000, ["tuning.batch_size=128"], (128, 200)),
        (1000, ["tuning.max_epochs=10"], (16, 10)),
        (1000, ["tuning.max_epochs=10", "tuning.batch_size=128"], (128, 10)),
    ],
)
def test_the_command_line_wins_and_a_recipe_says_what_it_is_for(
    images: int | None,
    overrides: list[str],
    expected: tuple[int, int],
    start: Start,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = start(*overrides)
    assert recipe_after(run, recipe_images=images, **PUBLISHED) == expected
    said = capsys.readouterr().out
    changed = expected != (128, 10)
    assert len(said.splitlines()) == changed
    if changed:
        made = math.ceil(30 / expected[0]) * expected[1]
        assert said.startswith("purify: 30 clean images are fewer than the 1,000 of the recipe: ")
        assert f"batch_size={expected[0]} tuning.max_epochs={expected[1]}, {made} steps" in said


def test_a_run_tunes_by_what_was_chosen(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    run = start("tuning.recipe_images=1000", "tuning.max_epochs=2", "defense=ft")
    run.cfg.tuning.batch_size = 30
    run_pipeline(run)
    assert "batch_size=15" not in capsys.readouterr().out  # halves of 30 are below 16
    run = start("tuning.recipe_images=1000", "tuning.max_epochs=2", "defense=ft")
    run.cfg.tuning.batch_size = 64
    run_pipeline(run)
    assert "batch_size=16 tuning.max_epochs=2, 4 steps" in capsys.readouterr().out
    written = yaml.safe_load((run.folder / "config.yaml").read_text("utf-8"))
    assert written["tuning"]["batch_size"] == 16


@pytest.mark.parametrize(
    ("option", "images"), [("cifar100", 2500), ("gtsrb", 784), ("digits", 287), ("fake", 60)]
)
def test_published_and_small_recipes_are_for_their_number_of_images(
    option: str, images: int
) -> None:
    default, own = (
        yaml.safe_load((conf_folder() / name).read_text("utf-8"))
        for name in ("tuning/default.yaml", f"recipe/data/{option}.yaml")
    )
    found = (default | own["tuning"])["recipe_images"]
    assert found is None or found <= images


@pytest.mark.parametrize("images", ["0", "many", "1.5"])
def test_another_number_is_refused(images: str, start: Start) -> None:
    with pytest.raises(ValueError, match=r"`tuning\.recipe_images` to be a whole number of 1"):
        run_pipeline(start(f"tuning.recipe_images={images}"))
