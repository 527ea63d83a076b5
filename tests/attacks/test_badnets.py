import itertools
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from fst_lightning.attacks import BadNets
from fst_lightning.attacks.badnets import Corner, Patch
from tests import tiny

WHITE, BLACK = 1.0, 0.0


def slowly_stamped(
    image: Tensor, patch: Patch, size: int, corner: Corner, margin: int
) -> list[list[list[float]]]:
    """Pixel by pixel, from the distance of a pixel to the corner that the patch is in."""
    channels, height, width = image.shape
    pixels: list[list[list[float]]] = image.tolist()
    for channel, row, column in itertools.product(range(channels), range(height), range(width)):
        down = height - 1 - row if corner.startswith("bottom") else row
        across = width - 1 - column if corner.endswith("right") else column
        if not (margin <= down < margin + size and margin <= across < margin + size):
            continue
        # Rows and columns within the patch, counted from its top left cell, which is white.
        cell_row = size - 1 - (down - margin) if corner.startswith("bottom") else down - margin
        cell_column = size - 1 - (across - margin) if corner.endswith("right") else across - margin
        white = patch == "square" or (cell_row + cell_column) % 2 == 0
        pixels[channel][row][column] = WHITE if white else BLACK
    return pixels


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("margin", [0, 1, 4])
@pytest.mark.parametrize("corner", get_args(Corner))
@pytest.mark.parametrize("patch", get_args(Patch))
def test_every_pixel(patch: Patch, corner: Corner, margin: int, size: int) -> None:
    attack = BadNets(patch, patch_size=size, corner=corner, margin=margin)
    images = tiny.images(2, size=32).float() / 255
    stamped = attack(images)
    for image, result in zip(images, stamped, strict=True):
        expected = torch.tensor(slowly_stamped(image, patch, size, corner, margin))
        assert torch.equal(result, expected)


def test_black_cells_are_written_on_white_images() -> None:
    stamped = BadNets("checkerboard", patch_size=3, corner="top_left")(torch.ones(1, 3, 32, 32))
    for channel in stamped[0]:
        assert channel[:3, :3].tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
        assert float(channel.sum()) == 32 * 32 - 4


def test_white_cells_are_written_on_black_images() -> None:
    stamped = BadNets("checkerboard", patch_size=3)(torch.zeros(1, 3, 32, 32))
    assert stamped[0, 0, 29:, 29:].tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    assert float(stamped.sum()) == 3 * 5


@pytest.mark.parametrize(
    ("image_size", "patch_size", "margin", "side", "gap"),
    [
        (32, 3, 1, 3, 1),
        (64, 3, 1, 6, 2),
        (16, 4, 2, 2, 1),
        (48, 2, 2, 3, 3),
        (8, 4, 4, 1, 1),
        (8, 1, 0, 1, 0),  # never below one pixel
        (4, 3, 1, 1, 0),
    ],
)
def test_patch_and_margin_grow_with_the_image(
    image_size: int, patch_size: int, margin: int, side: int, gap: int
) -> None:
    attack = BadNets(patch_size=patch_size, margin=margin, corner="bottom_left")
    images = torch.zeros(2, 3, image_size, image_size, dtype=torch.uint8)
    attack.prepare(images, torch.zeros(2, dtype=torch.int64), 10, seed=0)
    stamped = attack(images.float())
    expected = torch.zeros(2, 3, image_size, image_size)
    bottom = image_size - gap
    expected[:, :, bottom - side : bottom, gap : gap + side] = 1
    assert torch.equal(stamped, expected)


def test_images_that_are_not_square() -> None:
    attack = BadNets(patch_size=2, corner="bottom_right")
    images = torch.zeros(1, 3, 32, 40, dtype=torch.uint8)
    attack.prepare(images, torch.zeros(1, dtype=torch.int64), 10, seed=0)
    assert attack(images.float()).nonzero()[:, 2:].unique(dim=0).tolist() == [
        [30, 38],
        [30, 39],
        [31, 38],
        [31, 39],
    ]


def test_images_of_another_size_than_prepared() -> None:
    with pytest.raises(ValueError, match=r"images of 32 x 32 pixels.*16 x 16.*`prepare`"):
        BadNets()(torch.zeros(1, 3, 16, 16))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"patch": "cross"}, "square, checkerboard, but got 'cross'"),
        ({"corner": "middle"}, "top_left, top_right, bottom_left, bottom_right, but got 'middle'"),
        ({"patch_size": 0}, "`patch_size` to be 1 or more"),
        ({"margin": -1}, "`margin` 0 or more"),
        ({"patch_size": 30, "margin": 3}, "fit into 32 x 32 pixels"),
    ],
)
def test_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BadNets(**arguments)


def test_the_largest_patch_covers_the_image() -> None:
    assert bool((BadNets(patch_size=32)(torch.zeros(1, 3, 32, 32)) == 1).all())
