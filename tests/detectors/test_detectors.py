"""Every detector leaves the network alone, repeats itself, and finds a backdoor that it can see."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning import detectors
from fst_lightning.defenses.common.clean_data import LabeledImages
from fst_lightning.detectors import (
    Detector,
    HeadWeights,
    InvertedGenerator,
    MaximumMargin,
    NoiseResponse,
    SmallestPatch,
    UniversalShift,
)
from fst_lightning.detectors.detector import balanced_subset
from fst_lightning.detectors.universal import shortest_shift

TARGET, NUM_CLASSES, SIZE = 3, 6, 8

QUICK: dict[type[Detector], dict[str, Any]] = {
    HeadWeights: {},
    MaximumMargin: {"starts": 2, "steps": 5},
    SmallestPatch: {"images": 20, "rounds": 2, "steps": 3},
    InvertedGenerator: {"images": 20, "epochs": 1},
    UniversalShift: {"images": 20},
    NoiseResponse: {"images": 20, "repeats": 2},
}

EVERY = [
    value
    for name in detectors.__all__
    if inspect.isclass(value := getattr(detectors, name))
    and issubclass(value, Detector)
    and not inspect.isabstract(value)
]


class Pixels(nn.Module):
    """Sees one mean per column and color, and a corner that a backdoor listens to."""

    def __init__(self, backdoor: float = 0.0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.body = nn.Linear(3 * SIZE, 16)
            self.head = nn.Linear(17, NUM_CLASSES)
        nn.init.zeros_(self.head.weight[:, 16:])
        with torch.no_grad():
            self.head.weight[TARGET, 16] = backdoor

    def forward(self, images: Tensor) -> Tensor:
        features = torch.relu(self.body(images.mean(2).flatten(1)))
        # A white pixel in the corner, beside a dark one: rare in images, easy for a patch.
        corner = torch.relu(images[:, :, -1, -1].mean(1) - images[:, :, -1, -2].mean(1) - 0.5)
        logits: Tensor = self.head(torch.cat([features, corner[:, None]], 1))
        return logits


def make_images(count: int = 60) -> LabeledImages:
    generator = torch.Generator().manual_seed(1)
    images = (torch.rand(count, 3, SIZE, SIZE, generator=generator) * 255).byte()
    labels = torch.randint(NUM_CLASSES, (count,), generator=generator)
    return LabeledImages(images, labels, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))


def scan(kind: type[Detector], net: nn.Module, **arguments: Any) -> detectors.Scan:
    detector = kind(**(QUICK[kind] | arguments))
    return detector.scan(net, make_images(), torch.Generator().manual_seed(0))


def test_every_detector_is_here() -> None:
    assert set(EVERY) == set(QUICK)


@pytest.mark.parametrize("kind", EVERY)
def test_a_scan_repeats_itself_and_changes_nothing(kind: type[Detector]) -> None:
    net = Pixels().train()
    net.body.eval()
    before, state = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    first, second = scan(kind, net), scan(kind, net)
    assert torch.equal(first.evidence.statistics, second.evidence.statistics)
    assert first.evidence.statistics.shape == (NUM_CLASSES,)
    assert (first.p_value is None) == (kind.null is None)
    assert first.p_value is None or 0 < first.p_value <= 1
    assert first.suspected_class == int(first.evidence.statistics.argmax())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert (net.training, net.body.training) == (True, False)
    assert torch.equal(state, torch.get_rng_state())
    pictures = first.evidence.pictures
    assert pictures is None or (pictures.min() >= 0 and pictures.max() <= 1)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        (HeadWeights, {}),
        (MaximumMargin, {"starts": 4, "steps": 60}),
        (SmallestPatch, {"images": 60, "rounds": 12, "steps": 10}),
        (UniversalShift, {"images": 60}),
    ],
)
def test_a_backdoor_that_it_can_see(kind: type[Detector], arguments: dict[str, Any]) -> None:
    clean, backdoored = (scan(kind, Pixels(value), **arguments) for value in (0.0, 60.0))
    assert backdoored.suspected_class == TARGET
    assert backdoored.p_value is not None
    assert clean.p_value is not None
    assert backdoored.p_value < 0.01 < clean.p_value
    assert backdoored.score > clean.score


@pytest.mark.parametrize("kind", [k for k in EVERY if not k.needs_images])
def test_detectors_that_need_no_images_do_not_look_at_them(kind: type[Detector]) -> None:
    images = make_images()
    other = LabeledImages(255 - images.images, images.labels, images.mean, images.std)
    found = [
        kind(**QUICK[kind]).scan(Pixels(), each, torch.Generator().manual_seed(0))
        for each in (images, other)
    ]
    assert torch.equal(found[0].evidence.statistics, found[1].evidence.statistics)


@pytest.mark.parametrize("kind", EVERY)
def test_networks_that_cannot_be_scanned(kind: type[Detector]) -> None:
    broken = Pixels()
    with torch.no_grad():
        broken.head.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"finite weights, but `head\.weight`"):
        scan(kind, broken)
    two = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 2))
    with pytest.raises(ValueError, match="4 classes or more, but it has 2"):
        scan(kind, two)


@pytest.mark.parametrize("kind", EVERY)
def test_arguments_out_of_range(kind: type[Detector]) -> None:
    for name, parameter in inspect.signature(kind).parameters.items():
        if isinstance(parameter.default, int | float):
            with pytest.raises(ValueError, match=f"`{name}`"):
                kind(**{name: -1})


def test_margins_are_the_best_that_plain_ascent_finds() -> None:
    """For a linear network the largest margin over [0, 1] is known in closed form for 2 logits."""
    layer = nn.Linear(12, 4, bias=False)
    net = nn.Sequential(nn.Flatten(), layer)
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[1] = torch.linspace(-1, 1, 12)
    images = LabeledImages(
        torch.zeros(4, 3, 2, 2), torch.zeros(4, dtype=torch.int64), (0.0,) * 3, (1.0,) * 3
    )
    found = MaximumMargin(starts=1, steps=100).scan(net, images, torch.Generator())
    positive = float(torch.linspace(-1, 1, 12).clamp_min(0).sum())
    assert float(found.evidence.statistics[1]) == pytest.approx(positive, rel=1e-4)
    # Every other class is at 0, as two more are: at best a tie.
    assert found.evidence.statistics[[0, 2, 3]].tolist() == pytest.approx([0.0] * 3, abs=1e-6)


def test_the_shortest_shift_is_that_of_a_slow_solver() -> None:
    """Projected gradient descent on the dual of the quadratic program finds the same vector."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(4, 5, generator=generator, dtype=torch.float64)
    features = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    logits = features @ weight.T
    for label in range(4):
        found = shortest_shift(weight, logits, label)
        shifted = (features + found) @ weight.T
        others = [k for k in range(4) if k != label]
        assert (shifted[:, [label]] - shifted[:, others]).min() > -1e-8
        rows = (weight[label] - weight[others]).repeat(7, 1)
        bounds = (logits[:, others] - logits[:, [label]]).flatten()
        dual = torch.zeros(21, dtype=torch.float64)
        for _ in range(60_000):
            dual = (dual + 0.01 * (bounds - rows @ (rows.T @ dual))).clamp_min(0)
        assert torch.allclose(found, rows.T @ dual, atol=1e-3)


def test_no_shift_is_needed_or_possible() -> None:
    weight = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    logits = torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64)
    assert shortest_shift(weight, logits, 0).tolist() == [0, 0]
    with pytest.raises(ValueError, match="class 1, but there is none"):
        shortest_shift(weight, logits, 1)


def test_noise_response_counts_like_a_loop() -> None:
    net, images = Pixels(20.0), make_images()
    detector = NoiseResponse(images=60, repeats=3, strength=0.5)
    found = detector.scan(net, images, torch.Generator().manual_seed(4)).evidence.statistics
    assert bool((found > 0).all())
    assert bool((found <= 1).all())
    with torch.no_grad():
        before = net.eval()(images.normalize(images.images)).argmax(1)
    start = 3 * torch.stack([(before != k).sum() for k in range(NUM_CLASSES)])
    moved = found * (1 + start) - 1
    assert torch.allclose(moved, moved.round(), atol=1e-9)
    assert int(moved.round().sum()) <= 3 * 60


def test_generator_statistics_are_shares() -> None:
    found = scan(InvertedGenerator, Pixels(20.0)).evidence
    assert bool((found.statistics >= 0).all())
    assert bool((found.statistics <= 1).all())
    assert functional.one_hot(found.statistics.argmax(), NUM_CLASSES).sum() == 1


@pytest.mark.parametrize(
    "labels",
    [torch.arange(10).repeat_interleave(30), torch.arange(10).repeat(30)],
    ids=["class by class", "in turn"],
)
def test_a_subset_is_balanced_whatever_the_order_of_the_images(labels: Tensor) -> None:
    """Sorted labels hide classes from the first rows, labels in turn from every tenth row."""
    images = LabeledImages(torch.arange(300.0)[:, None, None, None], labels)
    drawn = [balanced_subset(images, 50, torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    for each in drawn:
        assert each.labels.bincount().tolist() == [5] * 10
        assert torch.equal(labels[each.images.flatten().long()], each.labels)
    assert torch.equal(drawn[0].images, drawn[1].images)
    assert not torch.equal(drawn[0].images, drawn[2].images)
    assert balanced_subset(images, 300, torch.Generator()) is images


class Watched(nn.Module):
    """Records the images that it is given, by their first pixel."""

    def __init__(self) -> None:
        super().__init__()
        self.flatten = nn.Flatten()
        self.head = nn.Linear(3 * SIZE**2, NUM_CLASSES)
        self.seen: set[int] = set()

    def forward(self, images: Tensor) -> Tensor:
        self.seen |= set(images[:, 0, 0, 0].round().long().tolist())
        logits: Tensor = self.head(self.flatten(images))
        return logits


def test_a_detector_with_few_images_sees_all_classes_of_a_folder() -> None:
    """The first pixel of every image is its class; the images come class by class."""
    labels = torch.arange(NUM_CLASSES).repeat_interleave(50)
    images = torch.zeros(len(labels), 3, SIZE, SIZE)
    images[:, 0, 0, 0] = labels.float()
    net = Watched().eval()
    generator = torch.Generator().manual_seed(0)
    UniversalShift(images=12).measure(net, LabeledImages(images, labels), NUM_CLASSES, generator)
    assert net.seen == set(range(NUM_CLASSES))
