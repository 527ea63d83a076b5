import io
import math
import random
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

from fst_lightning.attacks import Blended
from tests import tiny

Pixels = npt.NDArray[np.uint8]


def prepared(attack: Blended, images: Tensor) -> Blended:
    attack.prepare(images, torch.zeros(len(images), dtype=torch.int64), 10, seed=0)
    return attack


@settings(deadline=None, max_examples=40)
@given(alpha=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_formula(alpha: float, seed: int) -> None:
    stored = tiny.images(3, seed=seed)
    attack = prepared(Blended(alpha, pattern_seed=seed), stored)
    x = stored.numpy() / 255
    k = attack.pattern.double().numpy()
    blended = (1 - alpha) * x + alpha * k
    assert np.abs(attack.trigger(stored.float() / 255).numpy() - blended).max() < 1e-6
    # Rounding moves a value by half a step at most.
    assert np.abs(attack(stored.float() / 255).numpy() - blended).max() < 0.5 / 255 + 1e-6


@settings(deadline=None, max_examples=20)
@given(alpha=st.floats(0.01, 1), weight=st.floats(0, 1))
def test_linear_in_the_image(alpha: float, weight: float) -> None:
    one, two = tiny.images(1, seed=1).float(), tiny.images(1, seed=2).float()
    attack = prepared(Blended(alpha), tiny.images(1))
    mixed = attack.trigger((weight * one + (1 - weight) * two) / 255)
    apart = weight * attack.trigger(one / 255) + (1 - weight) * attack.trigger(two / 255)
    assert torch.allclose(mixed, apart, atol=1e-6)


def test_opacity_zero_and_one() -> None:
    images = tiny.images(4)
    unit = images.float() / 255
    assert torch.equal(prepared(Blended(0.0), images)(unit), unit)
    opaque = prepared(Blended(1.0), images)
    assert torch.equal(opaque(unit), opaque.pattern.expand_as(unit))


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.7])
def test_mean_change(alpha: float) -> None:
    images = tiny.images(10, size=16)
    attack = prepared(Blended(alpha), images)
    x = images.numpy() / 255
    expected = alpha * np.abs(attack.pattern.numpy().astype(np.float64) - x).mean()
    unit = images.float() / 255
    change = float((attack.trigger(unit).double() - unit.double()).abs().mean())
    assert change == pytest.approx(expected, rel=1e-5)


def test_noise_is_uniform_and_independent_of_the_run() -> None:
    images = tiny.images(2, size=32)
    labels = torch.zeros(2, dtype=torch.int64)
    patterns = []
    for run_seed in (0, 1):
        torch.manual_seed(run_seed)
        attack = Blended(pattern_seed=5)
        attack.prepare(images, labels, 10, seed=run_seed)
        patterns.append(attack.pattern)
    assert torch.equal(*patterns)
    assert not torch.equal(patterns[0], prepared(Blended(pattern_seed=6), images).pattern)
    levels = (patterns[0] * 255).flatten()
    assert torch.allclose(levels, levels.round(), atol=1e-4)
    # 3,072 draws from 0..255: the mean's standard error is 1.3.
    assert float(levels.mean()) == pytest.approx(127.5, abs=6)
    assert float(levels.std()) == pytest.approx(math.sqrt((256**2 - 1) / 12), abs=4)
    channels = patterns[0][0].flatten(1)
    assert float(torch.corrcoef(channels).fill_diagonal_(0).abs().max()) < 0.15


def write_picture(path: Path, mode: str = "RGB", size: tuple[int, int] = (8, 8)) -> Pixels:
    channels = {"RGB": (3,), "RGBA": (4,), "L": ()}[mode]
    pixels = np.random.default_rng(0).integers(0, 256, (*size, *channels), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_a_picture_of_the_user(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture{suffix}"
    pixels = write_picture(path)
    attack = prepared(Blended(0.3, image=str(path)), tiny.images(1, size=8))
    assert np.abs(attack.pattern[0].numpy() - pixels.transpose(2, 0, 1) / 255).max() < 1e-6


def test_a_gray_and_a_transparent_picture(tmp_path: Path) -> None:
    gray = write_picture(tmp_path / "gray.png", "L")
    pattern = prepared(Blended(image=str(tmp_path / "gray.png")), tiny.images(1)).pattern[0]
    for channel in pattern:
        assert np.abs(channel.numpy() - gray / 255).max() < 1e-6
    clear = write_picture(tmp_path / "clear.png", "RGBA")
    pattern = prepared(Blended(image=str(tmp_path / "clear.png")), tiny.images(1)).pattern[0]
    assert np.abs(pattern.numpy() - clear[..., :3].transpose(2, 0, 1) / 255).max() < 1e-6


def test_sixteen_bit_gray_keeps_its_range(tmp_path: Path) -> None:
    levels = (np.arange(64, dtype=np.uint16) * 1024).reshape(8, 8)
    Image.fromarray(levels).save(tmp_path / "deep.png")
    pattern = prepared(Blended(image=str(tmp_path / "deep.png")), tiny.images(1)).pattern[0]
    assert np.abs(pattern[0].numpy() - levels / 65535).max() < 1 / 255


def test_a_picture_is_resized_to_the_images(tmp_path: Path) -> None:
    path = tmp_path / "halves.png"
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, 30:] = 200
    Image.fromarray(pixels).save(path)
    attack = prepared(Blended(1.0, image=str(path)), tiny.images(1, size=16))
    columns = attack.pattern[0].mean(dim=(0, 1))
    assert attack.pattern.shape == (1, 3, 16, 16)
    assert columns[:6].tolist() == pytest.approx([0.0] * 6, abs=1e-6)
    assert columns[10:].tolist() == pytest.approx([200 / 255] * 6, abs=1e-6)
    assert bool((columns.diff() >= -1e-6).all())


def test_a_missing_picture(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"`attack.image`.*no file .*nowhere.png"):
        Blended(image=str(tmp_path / "nowhere.png"))
    with pytest.raises(FileNotFoundError, match="no file"):
        Blended(image=str(tmp_path))


@pytest.mark.parametrize("content", [b"", b"not a picture", b"\x89PNG\r\n\x1a\n" + b"\x00" * 40])
def test_a_file_that_is_no_picture(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.png"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"broken.png to be a picture, but it can't be read"):
        Blended(image=str(path))


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's own, of damaged TIFF tags
@pytest.mark.parametrize("kind", ["png", "jpeg", "gif", "tiff", "webp", "bmp", "ppm"])
def test_a_damaged_picture_is_read_or_refused(tmp_path: Path, kind: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=kind)
    whole = file.getvalue()
    path = tmp_path / f"damaged.{kind}"
    chance = random.Random(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            damaged[chance.randrange(min(len(damaged), 200))] = chance.randrange(256)
        path.write_bytes(damaged[: chance.choice((len(damaged), len(damaged) * 3 // 4))])
        try:
            attack = Blended(image=str(path))
        except ValueError as error:
            assert "can't be read" in str(error)  # noqa: PT017
        else:
            assert 0 <= float(attack.pattern.min()) <= float(attack.pattern.max()) <= 1 + 1e-6


def test_an_error_of_any_kind_from_the_decoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_picture(tmp_path / "picture.png")

    def fail(*_: object) -> None:
        raise SyntaxError("broken PNG file")  # what Pillow raises for a damaged chunk

    monkeypatch.setattr(Image.Image, "convert", fail)
    with pytest.raises(ValueError, match="can't be read: broken PNG file"):
        Blended(image=str(tmp_path / "picture.png"))


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_refuses_an_opacity(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"`blend_alpha` to be a number in \[0, 1\]"):
        Blended(alpha)


def test_images_of_another_shape_than_prepared() -> None:
    attack = Blended()
    attack(torch.zeros(1, 3, 32, 32))
    with pytest.raises(ValueError, match=r"\(3, 32, 32\).*\(3, 16, 16\).*`prepare`"):
        attack(torch.zeros(1, 3, 16, 16))
