import itertools
import math
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from fst_lightning.attacks import BadNets, Blended, NoAttack
from fst_lightning.data.rows import Rows, as_gathered
from fst_lightning.defenses import FineTuning
from fst_lightning.modules import BackdoorModule, InputPipeline, PurificationModule
from fst_lightning.modules.inputs import CropFill, random_crop
from tests import tiny

MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.2, 0.3)


def badnets(size: int = tiny.SIZE) -> BadNets:
    attack = BadNets(patch_size=8, corner="top_left")  # 2 x 2 pixels of an 8-pixel image
    attack.prepare(tiny.images(1, size), tiny.labels(1), 10, seed=0)
    return attack


def windows(image: Tensor, padding: int) -> dict[tuple[int, int], Tensor]:
    """Every window of the zero-padded image, pixel by pixel."""
    channels, height, width = image.shape
    found = {}
    for top, left in itertools.product(range(2 * padding + 1), repeat=2):
        window = torch.zeros_like(image)
        for row, column in itertools.product(range(height), range(width)):
            y, x = row + top - padding, column + left - padding
            if 0 <= y < height and 0 <= x < width:
                for channel in range(channels):
                    window[channel, row, column] = image[channel, y, x]
        found[top, left] = window
    return found


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 999), size=st.integers(1, 9))
def test_scaling_and_normalizing_agree_with_torchvision(seed: int, size: int) -> None:
    images = tiny.images(3, size, seed)
    reference = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    inputs = InputPipeline(mean=MEAN, std=STD)(images)
    assert inputs.dtype == torch.float32
    assert torch.allclose(inputs, reference(images), rtol=0, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 999), augment=st.booleans(), blended=st.booleans())
def test_stored_and_float_images_are_the_same(seed: int, augment: bool, blended: bool) -> None:
    attack = Blended() if blended else BadNets()
    images = tiny.images(4, 32, seed)
    pipeline = InputPipeline(attack, MEAN, STD, crop_padding=2, horizontal_flip=True)
    triggered = torch.tensor([True, False, True, False])
    results = []
    for given_images in (images, images.float() / 255):
        torch.manual_seed(seed)
        results.append(pipeline(given_images, triggered, augment=augment))
    assert torch.equal(*results)


def test_only_the_marked_rows_get_the_trigger() -> None:
    attack = badnets()
    pipeline = InputPipeline(attack)
    images = tiny.images(6)
    unit = images.float() / 255
    mask = torch.tensor([True, False, False, True, True, False])
    result = pipeline(images, mask)
    for row, marked in enumerate(mask.tolist()):
        expected = attack(unit[row : row + 1])[0] if marked else unit[row]
        assert torch.equal(result[row], expected)
    assert torch.equal(pipeline(images, True), attack(unit))
    assert torch.equal(pipeline(images, False), unit)
    assert torch.equal(pipeline(images), unit)
    assert torch.equal(pipeline(images, torch.zeros(6, dtype=torch.bool)), unit)
    assert torch.equal(InputPipeline()(images, mask), unit)


def test_trigger_then_crop_then_flip_then_normalization() -> None:
    padding, count = 2, 40
    image = tiny.images(1)
    stamped = image[0].float() / 255
    stamped[:, :2, :2] = 1  # the white patch
    candidates = {
        (*place, mirrored): window.flip(2) if mirrored else window
        for place, window in windows(stamped, padding).items()
        for mirrored in (False, True)
    }
    pipeline = InputPipeline(badnets(), MEAN, STD, crop_padding=padding, horizontal_flip=True)
    torch.manual_seed(0)
    results = pipeline(image.repeat(count, 1, 1, 1), True, augment=True)
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    seen = set()
    for result in results:
        # The padding is black before normalization, not after.
        close = [
            place
            for place, window in candidates.items()
            if torch.allclose(result, (window - mean) / std, atol=1e-6)
        ]
        assert len(close) == 1
        seen.add(close[0])
    assert len(seen) > 20
    assert {mirrored for *_, mirrored in seen} == {False, True}


class Peek(nn.Module):
    """Keeps what it sees, and answers with logits that have a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, tiny.NUM_CLASSES)
        self.seen: dict[bool, list[Tensor]] = {True: [], False: []}

    def forward(self, images: Tensor) -> Tensor:
        self.seen[self.training].append(images.clone())
        logits: Tensor = self.head(images.mean(dim=(2, 3)))
        return logits


@pytest.mark.parametrize("purify", [True, False])
def test_training_augments_and_evaluation_does_not(tmp_path: Path, purify: bool) -> None:
    net, rows = Peek(), tiny.rows(20)
    options: dict[str, Any] = {"crop_padding": 2, "horizontal_flip": True, "seed": 0}
    module: L.LightningModule = (
        PurificationModule(net, FineTuning(), **options)
        if purify
        else BackdoorModule(net, NoAttack(), **options)
    )
    poisoned = torch.zeros(20, dtype=torch.bool)
    loader: DataLoader[Any] = DataLoader(
        Rows(rows, poisoned), batch_size=20, collate_fn=as_gathered
    )
    tiny.trainer(tmp_path).fit(module, loader, loader)
    (trained,), (evaluated,) = net.seen[True], net.seen[False]
    unit = rows.images.float() / 255
    assert torch.equal(evaluated, unit)
    moved = 0
    for image, seen in zip(unit, trained, strict=True):
        candidates = [w for window in windows(image, 2).values() for w in (window, window.flip(2))]
        assert any(torch.equal(seen, candidate) for candidate in candidates)
        moved += not torch.equal(seen, image)
    assert moved > 10


def test_nothing_is_augmented_unless_asked() -> None:
    pipeline = InputPipeline(crop_padding=4, horizontal_flip=True)
    images = tiny.images(8)
    assert torch.equal(pipeline(images), images.float() / 255)


@pytest.mark.parametrize("padding", [1, 2, 3])
@pytest.mark.parametrize("shape", [(3, 5, 5), (1, 4, 6)])
def test_every_crop_is_a_window_and_every_window_comes(
    padding: int, shape: tuple[int, int, int]
) -> None:
    count, places = 2000, (2 * padding + 1) ** 2
    image = torch.rand(shape, generator=torch.Generator().manual_seed(0)) + 0.1
    torch.manual_seed(0)
    crops = random_crop(image.expand(count, *shape), padding)
    hits = torch.stack(
        [(crops == window).flatten(1).all(dim=1) for window in windows(image, padding).values()]
    )
    assert crops.shape == (count, *shape)
    assert bool((hits.sum(dim=0) == 1).all())  # every crop is exactly one of the windows
    expected = count / places
    deviation = math.sqrt(count / places * (1 - 1 / places))
    assert float((hits.sum(dim=1) - expected).abs().max()) < 5 * deviation


def test_every_image_is_cropped_on_its_own() -> None:
    images = torch.rand(30, 3, 6, 6, generator=torch.Generator().manual_seed(0)) + 0.1
    torch.manual_seed(3)
    places = set()
    for image, crop in zip(images, random_crop(images, 1), strict=True):
        found = [place for place, window in windows(image, 1).items() if torch.equal(crop, window)]
        assert len(found) == 1
        places.add(found[0])
    assert len(places) > 4


def test_half_of_the_images_are_mirrored() -> None:
    images = tiny.images(400)
    pipeline = InputPipeline(horizontal_flip=True)
    torch.manual_seed(0)
    results = pipeline(images, augment=True)
    unit = images.float() / 255
    kept = (results == unit).flatten(1).all(dim=1)
    mirrored = (results == unit.flip(3)).flatten(1).all(dim=1)
    assert bool((kept ^ mirrored).all())
    assert int(mirrored.sum()) == pytest.approx(200, abs=50)


def test_alternating_flips_show_every_image_from_both_sides_in_two_epochs() -> None:
    images = tiny.images(400)
    unit = images.float() / 255
    pipeline = InputPipeline(horizontal_flip=True, alternate_flips=True)
    odd = images.long().sum((1, 2, 3)) % 2 == 1
    assert 150 < int(odd.sum()) < 250
    for epoch in range(4):
        pipeline.epoch = epoch
        results = pipeline(images, augment=True)
        for image, result, is_odd in zip(unit, results, odd.tolist(), strict=True):
            mirrored = is_odd != (epoch % 2 == 1)
            assert torch.equal(result, image.flip(2) if mirrored else image)


def test_the_module_tells_the_epoch_to_alternating_flips(tmp_path: Path) -> None:
    net, rows = Peek(), tiny.rows(20)
    module = BackdoorModule(net, NoAttack(), horizontal_flip=True, alternate_flips=True)
    poisoned = torch.zeros(20, dtype=torch.bool)
    loader: DataLoader[Any] = DataLoader(
        Rows(rows, poisoned), batch_size=20, collate_fn=as_gathered
    )
    tiny.trainer(tmp_path, max_epochs=2).fit(module, loader)
    first, second = net.seen[True]
    assert torch.equal(first, second.flip(3))


@pytest.mark.parametrize("fill", ["zeros", "reflect"])
def test_the_gradient_of_crops_against_differences(fill: CropFill) -> None:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(3, 2, 4, 5, generator=generator, dtype=torch.float64, requires_grad=True)

    def crops(images: Tensor) -> Tensor:
        torch.manual_seed(4)
        return random_crop(images, 2, fill)

    assert torch.autograd.gradcheck(crops, images)
    assert torch.autograd.gradgradcheck(crops, images)


def test_the_gradient_of_a_crop_needs_no_more_than_a_few_images() -> None:
    """That of a view of all windows is as large as all of them: here 81 times the images."""
    images = torch.rand(8, 3, 16, 16, requires_grad=True)
    crops = random_crop(images, 4)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        crops.sum().backward()  # type: ignore[no-untyped-call]
    largest = max(event.self_cpu_memory_usage for event in record.events())
    assert largest <= 4 * 4 * images.numel()  # The sides grow by 2 * 4 twice, which is 4 times.


@pytest.mark.parametrize("padding", [1, 3])
def test_reflected_crops_are_windows_of_the_reflected_image(padding: int) -> None:
    images = torch.rand(40, 3, 5, 6, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(1)
    crops = random_crop(images, padding, "reflect")
    for image, crop in zip(images, crops, strict=True):
        edges = [(0, 0), (padding, padding), (padding, padding)]
        padded = torch.from_numpy(np.pad(image.numpy(), edges, mode="reflect"))
        places = [
            torch.equal(crop, padded[:, top : top + 5, left : left + 6])
            for top in range(2 * padding + 1)
            for left in range(2 * padding + 1)
        ]
        assert sum(places) == 1


def test_the_fast_path_equals_one_image_at_a_time() -> None:
    """Trigger, crop, flip and normalization of a batch, against NumPy and PIL image by image."""
    count, size, padding = 64, 12, 3
    images = torch.randint(
        0,
        256,
        (count, 3, size, size),
        dtype=torch.uint8,
        generator=torch.Generator().manual_seed(0),
    )
    triggered = torch.arange(count) % 3 == 0
    attack = Blended(blend_alpha=1 / 3)  # no value is half-way between two gray levels
    attack.prepare(images, torch.zeros(count, dtype=torch.int64), 10, 0)
    pipeline = InputPipeline(attack, MEAN, STD, padding, horizontal_flip=True)
    torch.manual_seed(4)
    results = pipeline(images, triggered, augment=True)
    # The same draws, in the order in which they are made.
    torch.manual_seed(4)
    tops, lefts = torch.randint(2 * padding + 1, (2, count)).tolist()
    mirrored = (torch.rand(count) < 0.5).tolist()
    noise = attack.pattern.reshape(3, size, size).permute(1, 2, 0).double().numpy()
    for row in range(count):
        pixels = images[row].permute(1, 2, 0).numpy()
        if triggered[row]:
            pixels = np.rint((2 * pixels.astype(int) + 255 * noise) / 3).astype(np.uint8)
        box = (lefts[row] - padding, tops[row] - padding)
        picture = Image.fromarray(pixels).crop((*box, box[0] + size, box[1] + size))
        if mirrored[row]:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        expected = (np.asarray(picture) / 255 - np.array(MEAN)) / np.array(STD)
        found = results[row].permute(1, 2, 0).numpy()
        assert np.abs(found - expected).max() < 1e-5


def test_the_seed_makes_it_reproducible() -> None:
    pipeline = InputPipeline(crop_padding=2, horizontal_flip=True)
    images = tiny.images(16)
    results = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        results.append(pipeline(images, augment=True))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


def test_the_input_stays_as_it_was() -> None:
    pipeline = InputPipeline(badnets(), MEAN, STD, crop_padding=2, horizontal_flip=True)
    images = tiny.images(4).float() / 255
    before = images.clone()
    pipeline(images, True, augment=True).zero_()
    assert torch.equal(images, before)


def test_normalization_is_no_part_of_the_state() -> None:
    assert not InputPipeline(mean=MEAN, std=STD).state_dict()
    assert set(InputPipeline(BadNets()).state_dict()) == {"attack.mask", "attack.pattern"}


def test_every_tensor_follows_the_module() -> None:
    pipeline = InputPipeline(BadNets(), MEAN, STD).to("meta")
    assert len(list(pipeline.buffers())) == 4
    assert all(buffer.device.type == "meta" for buffer in pipeline.buffers())


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_inputs_have_the_default_type(dtype: torch.dtype) -> None:
    """Which Lightning sets where the weights are kept in another one (bf16-true, 64-true)."""
    pipeline = InputPipeline(badnets(), MEAN, STD)
    expected = pipeline(tiny.images(2), True)
    torch.set_default_dtype(dtype)
    try:
        result = pipeline(tiny.images(2), True)
    finally:
        torch.set_default_dtype(torch.float32)
    assert result.dtype == dtype
    assert torch.equal(result, expected.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_float_images_keep_their_type(dtype: torch.dtype) -> None:
    assert InputPipeline(mean=MEAN, std=STD)(tiny.images(2).to(dtype) / 255).dtype == dtype


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mean": MEAN}, "`mean` and `std` both or neither"),
        ({"std": STD}, "`mean` and `std` both or neither"),
        ({"mean": MEAN, "std": (0.1, 0.0, 0.1)}, "`std` to be positive"),
        ({"mean": MEAN, "std": (0.1, -1, 0.1)}, "`std` to be positive"),
        ({"mean": MEAN, "std": (0.1, math.nan, 0.1)}, "`std` to be positive"),
        ({"crop_padding": -1}, "`crop_padding` to be a whole number of 0 or more"),
    ],
)
def test_refuses(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        InputPipeline(**arguments)


@pytest.mark.parametrize(
    "options",
    [
        {"attack": BadNets()},
        {"mean": [0.5] * 3, "std": [0.5] * 3},
    ],
    ids=["trigger", "normalization"],
)
def test_the_first_batch_of_floats_has_to_be_in_the_unit_range(options: dict[str, Any]) -> None:
    inputs = InputPipeline(**options)
    normalized = torch.randn(2, 3, 32, 32)
    with pytest.raises(
        ValueError, match=r"Expected images in \[0, 1\].*images are normalized here"
    ):
        inputs(normalized, triggered=True, augment=True)
    inputs = InputPipeline(**options)
    inputs(torch.rand(2, 3, 32, 32), triggered=True, augment=True)
    inputs(normalized, triggered=True, augment=True)  # No later step waits for the device.
    inputs.check_next_batch()
    with pytest.raises(ValueError, match=r"Expected images in \[0, 1\]"):
        inputs(normalized, triggered=True, augment=True)


def test_images_that_are_normalized_already_pass_where_nothing_is_done_to_them() -> None:
    normalized = torch.randn(2, 3, 32, 32)
    assert torch.equal(InputPipeline(BadNets())(normalized), normalized)


def test_as_many_channels_as_statistics() -> None:
    inputs = InputPipeline(mean=[0.5] * 3, std=[0.5] * 3)
    with pytest.raises(ValueError, match=r"Expected images with 3 channels.*but got 1"):
        inputs(torch.rand(2, 1, 8, 8))


def test_denormalized_undoes_the_normalization() -> None:
    inputs = InputPipeline(mean=[0.5, 0.4, 0.3], std=[0.2, 0.3, 0.4])
    images = torch.rand(2, 3, 8, 8)
    torch.testing.assert_close(inputs.denormalized(inputs(images)), images)
