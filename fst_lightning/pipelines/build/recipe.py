"""Fits the batch size and the epochs of a tuning recipe to the number of clean images."""

from __future__ import annotations

import math

from fst_lightning.data import BackdoorDataModule
from fst_lightning.pipelines.build.run import Run
from fst_lightning.pipelines.runtime.processes import is_first_process

FEWEST_STEPS = 200
"""The fewest steps of a tuning on few images."""

SMALLEST_BATCH = 16
"""The smallest batch size that is chosen, because BatchNorm estimates statistics on it."""

_BATCH_SIZE, _MAX_EPOCHS = "tuning.batch_size", "tuning.max_epochs"


def fit_recipe(run: Run, data: BackdoorDataModule) -> None:
    """Give a tuning on few images enough steps, and print one line about it.

    A published recipe fits the number of clean images in its paper: ten epochs of 240 images in
    batches of 128 are 20 steps, which change little. If there are fewer images than
    ``tuning.recipe_images``, the batch size is halved, and then the epochs are raised, until the
    recipe has :data:`FEWEST_STEPS` steps. Values of the command line stay.

    Args:
        run: The run; the numbers are written into its configuration.
        data: The defender's images; its batch size is set.
    """
    tuning, count = run.cfg.tuning, len(data.train_rows)
    if tuning.recipe_images is None or count >= tuning.recipe_images:
        return
    batch_size, max_epochs = fitted(
        count,
        tuning.batch_size,
        tuning.max_epochs,
        fix_batch_size=run.given(_BATCH_SIZE),
        fix_max_epochs=run.given(_MAX_EPOCHS),
    )
    if (batch_size, max_epochs) == (tuning.batch_size, tuning.max_epochs):
        return
    tuning.batch_size = data.batch_size = batch_size
    tuning.max_epochs = max_epochs
    if is_first_process():
        print(
            f"purify: {count:,} clean images are fewer than the {tuning.recipe_images:,} of the "
            f"recipe: {_BATCH_SIZE}={batch_size} {_MAX_EPOCHS}={max_epochs}, "
            f"{steps(count, batch_size, max_epochs):,} steps (tuning.recipe_images=null: as it is)",
            flush=True,
        )


def fitted(
    count: int,
    batch_size: int,
    max_epochs: int,
    *,
    fix_batch_size: bool = False,
    fix_max_epochs: bool = False,
) -> tuple[int, int]:
    """Choose the batch size and the epochs for few images.

    Args:
        count: Number of images, 1 or more.
        batch_size: Batch size of the recipe, 1 or more.
        max_epochs: Epochs of the recipe, 1 or more.
        fix_batch_size: Whether to keep the batch size.
        fix_max_epochs: Whether to keep the epochs.

    Returns:
        The largest batch size, halved down to :data:`SMALLEST_BATCH` at most, that gives
        :data:`FEWEST_STEPS` steps, and the epochs, which are raised only if that is not enough.

    Example:
        >>> fitted(240, 128, 10), fitted(240, 128, 10, fix_batch_size=True), fitted(240, 32, 50)
        ((16, 14), (128, 100), (32, 50))
    """
    while (
        not fix_batch_size
        and steps(count, batch_size, max_epochs) < FEWEST_STEPS
        and batch_size // 2 >= SMALLEST_BATCH
    ):
        batch_size //= 2
    if not fix_max_epochs:
        max_epochs = max(max_epochs, math.ceil(FEWEST_STEPS / steps(count, batch_size, 1)))
    return batch_size, max_epochs


def steps(count: int, batch_size: int, max_epochs: int) -> int:
    """The number of steps of a tuning.

    Example:
        >>> steps(240, 128, 10)
        20
    """
    return math.ceil(count / batch_size) * max_epochs
