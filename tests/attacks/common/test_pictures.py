from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from fst_lightning.attacks.common import pictures
from fst_lightning.attacks.common.pictures import pictures_in, read_patch, read_picture


def whole(image: Image.Image, mode: str) -> Tensor:
    """The picture at once: what the rows one after the other have to give."""
    planes = np.array(image.convert(mode))
    return torch.from_numpy(planes.reshape(*planes.shape[:2], -1)).permute(2, 0, 1)[None] / 255


def resized(planes: Tensor, height: int, width: int) -> Tensor:
    return functional.interpolate(planes, size=(height, width), mode="bilinear", antialias=True)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1"])
@pytest.mark.parametrize("size", [(1, 1), (9, 5), (50, 37), (97, 128)])
def test_rows_one_after_the_other_give_the_same_bits(
    mode: str, size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "_PIXELS_AT_A_TIME", 300)
    values = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 4), dtype=np.uint8)
    image = Image.fromarray(values)
    path = tmp_path / "a.png"
    (image if mode == "RGBA" else image.convert("RGB").convert(mode)).save(path)
    with Image.open(path) as image:
        for channels, name in ((1, "L"), (3, "RGB")):
            colors, opacity = whole(image, name), whole(image, "RGBA")[:, 3:]
            for height, width in ((8, 8), (64, 33), (1, 1)):
                seen = read_picture(path, channels, height, width)
                assert torch.equal(seen, resized(colors, height, width))
                patch, mask = read_patch(path, channels, height, width)
                assert torch.equal(mask, resized(opacity, height, width))
                weighted = resized(colors * opacity, height, width)
                assert torch.equal(patch, (weighted / mask.clamp_min(1e-6)).clamp(0, 1))


def test_a_picture_that_is_turned_when_it_is_loaded(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    image = Image.fromarray(np.arange(60, dtype=np.uint8).reshape(3, 20))
    image.save(path, tiffinfo={274: 6})  # the orientation: by a quarter
    with Image.open(path) as opened:
        before = opened.size
        turned = whole(opened, "L")
    assert tuple(turned.shape[2:]) == before  # height and width have changed places
    assert torch.equal(read_picture(path, 1, *before), turned)


@pytest.mark.parametrize("size", [(1, 700_000), (700_000, 1)])
def test_a_side_that_is_too_long(size: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("1", size).save(path)
    with pytest.raises(ValueError, match=r"a side is too long\. Choose another"):
        read_picture(path, 3, 32, 32)
    assert read_picture(path, 3, 8, 8).shape == (1, 3, 8, 8)


def test_a_broken_link_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to("gone.png")
    Image.new("L", (2, 2)).save(tmp_path / "b.png")
    assert pictures_in(str(tmp_path)) == [tmp_path / "a.png", tmp_path / "b.png"]
    with pytest.raises(ValueError, match=r"a\.png to be a picture.*No such file"):
        read_picture(tmp_path / "a.png", 3, 8, 8)
