"""How often a recovered trigger works, against a slow loop."""

import torch
from torch import Tensor, nn

from fst_lightning.defenses.common.clean_data import LabeledImages
from fst_lightning.detectors import Evidence, Scan, SmallestPatch
from fst_lightning.metrics import wilson_interval
from fst_lightning.pipelines.measure.recovered import Success, stamped, success, trigger_block

MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


class Backdoored(nn.Module):
    """Says 0 if the first pixel is white, else what the brightness says."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("white", (1 - torch.tensor(MEAN)) / torch.tensor(STD))

    def forward(self, images: Tensor) -> Tensor:
        assert isinstance(self.white, Tensor)
        logits = torch.stack([images.mean((1, 2, 3)), *images.flatten(1)[:, 5:8].T], 1)
        hit = (images[:, :, 0, 0] - self.white).abs().amax(1) < 0.05
        return logits + 50 * hit[:, None] * nn.functional.one_hot(torch.tensor([0]), 4)


def images(count: int = 60) -> LabeledImages:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 200, (count, 3, 6, 6), generator=generator, dtype=torch.uint8)
    return LabeledImages(pixels, torch.arange(count) % 4, MEAN, STD)


def white_pixel(batch: Tensor) -> Tensor:
    stamped = batch.clone()
    stamped[:, :, 0, 0] = (1 - torch.tensor(MEAN)) / torch.tensor(STD)
    return stamped


def found(trigger: object = white_pixel) -> Scan:
    evidence = Evidence(torch.tensor([9.0, 1, 1, 1]), trigger=trigger)  # type: ignore[arg-type]
    return Scan(evidence, 3.0, 0.001, 0)


def test_the_counts_are_those_of_a_slow_loop() -> None:
    net, data = Backdoored().eval(), images()
    hits = control = total = 0
    for image, label in zip(data.images, data.labels, strict=True):
        if label == 0:
            continue
        pixels = image.float() / 255
        normalized = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        total += 1
        control += int(net(normalized[None]).argmax() == 0)
        pixels[:, 0, 0] = 1
        normalized = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        hits += int(net(normalized[None]).argmax() == 0)
    counted = success(net, found(), data)
    assert counted == Success(hits, control, total)
    assert hits == total == 45
    assert control < hits


def test_without_a_trigger_or_images_nothing_is_counted() -> None:
    net, data = Backdoored().eval(), images()
    assert success(net, found(None), data) is None
    assert success(net, found(), data.subset(data.labels == 0)) is None
    assert trigger_block(None) is None


def test_the_block_holds_both_networks() -> None:
    block = trigger_block(Success(19, 1, 20), Success(2, 1, 20))
    assert block is not None
    assert (block["success"], block["success_after"]) == (0.95, 0.1)
    assert (block["control"], block["control_after"]) == (0.05, 0.05)
    assert block["ci95"] == list(wilson_interval(19, 20))
    assert block["ci95_after"] == list(wilson_interval(2, 20))
    alone = trigger_block(Success(19, 1, 20))
    assert alone is not None
    assert (alone["success_after"], alone["ci95_after"], alone["control_after"]) == (None,) * 3


def test_the_patch_that_a_scan_recovers_is_put_on_images_by_hand() -> None:
    data = images()
    net = nn.Sequential(nn.Flatten(), nn.Linear(108, 4))
    scan = SmallestPatch(rounds=2, steps=3).scan(net, data, torch.Generator().manual_seed(1))
    shown = stamped(scan, data, 5)
    assert shown is not None
    clean, changed = shown
    others = data.images[data.labels != scan.suspected_class][[0, 11, 22, 33, 44]].float() / 255
    torch.testing.assert_close(clean, others, atol=1e-5, rtol=0)
    # The picture of the class is gray where the mask leaves the image as it is.
    assert scan.evidence.pictures is not None
    picture = scan.evidence.pictures[scan.suspected_class]
    # x' = (1 - m) x + m p and picture = (1 - m) / 2 + m p, so that their difference is known
    # where the image is gray.
    gray = LabeledImages(torch.full((1, 3, 6, 6), 0.5), torch.tensor([3]), MEAN, STD)
    assert scan.evidence.trigger is not None
    result = gray.pixels(scan.evidence.trigger(gray.normalize(gray.images)))
    torch.testing.assert_close(result[0], picture, atol=1e-5, rtol=0)
    assert not torch.equal(clean, changed)


def test_nothing_to_show() -> None:
    assert stamped(found(None), images(), 3) is None
