"""A checkpoint that numbers classes or normalizes images in another way stops before tuning."""

from collections.abc import Sequence

import pytest
import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from torch import Tensor, nn

from fst_lightning.data import BackdoorDataModule, ImageSet
from fst_lightning.pipelines import run_pipeline
from fst_lightning.pipelines.measure.mismatch import USUAL, check_match, override_list
from tests import tiny
from tests.pipelines.conftest import Start

CLASSES = 6


class Brightness(nn.Module):
    """Knows the class of an image by its brightness, if it is normalized as it was trained.

    Args:
        order: the label of each class.
        mean: that it was trained with, for all channels.
        std: likewise.
    """

    def __init__(self, order: Sequence[int], mean: float = 0.5, std: float = 0.5) -> None:
        super().__init__()
        self.head = nn.Linear(3, CLASSES)
        self.register_buffer("order", torch.tensor(order))
        self.mean, self.std = mean, std

    def forward(self, images: Tensor) -> Tensor:
        level = (images.mean((1, 2, 3)) * self.std + self.mean) * CLASSES
        found = level.floor().clamp(0, CLASSES - 1).long()
        assert isinstance(self.order, Tensor)
        return (
            nn.functional.one_hot(self.order[found], CLASSES).float() + 0 * self.head.weight[0, 0]
        )


def defender(mean: float, std: float, per_class: int = 30, channels: int = 3) -> BackdoorDataModule:
    labels = torch.arange(CLASSES).repeat_interleave(per_class)
    levels = ((labels + 0.5) / CLASSES * 255).byte()
    images = levels[:, None, None, None].expand(-1, channels, 8, 8).contiguous()
    rows = ImageSet(images, labels)
    source = tiny.MemorySource(
        rows, rows, CLASSES, mean=[mean] * channels, std=[std] * channels, channels=channels
    )
    data = BackdoorDataModule(source, purpose="purify", clean_ratio=1.0)
    data.setup()
    return data


IDENTITY = tuple(range(CLASSES))
OTHER = (0, 2, 1, 4, 5, 3)


def test_a_checkpoint_that_fits_passes_without_a_word(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    net = Brightness(IDENTITY)
    before = torch.get_rng_state()
    check_match(start("checkpoint=x.pt"), net, defender(0.5, 0.5))
    assert torch.equal(torch.get_rng_state(), before)
    assert net.training
    assert capsys.readouterr().out == ""


def test_another_order_of_the_classes_stops_and_is_told(start: Start) -> None:
    with pytest.raises(ValueError, match="Expected the classes in the order") as caught:
        check_match(start("checkpoint=x.pt"), Brightness(OTHER), defender(0.5, 0.5))
    text = str(caught.value)
    assert "30 of 180 of the defender's clean images right, and 180 of 180" in text
    # Label k belongs to the class that the network gives it to.
    names = [OTHER.index(label) for label in range(CLASSES)]
    listed = ",".join(f'"class {name}"' for name in names)
    assert "one folder for each class, set data=image_folder, and set" in text
    assert f"'data.classes=[{listed}]'" in text
    assert "on_mismatch=warn" in text


@pytest.mark.parametrize("name", ["images in [-1, 1]", "images in [0, 1]", "images in [0, 255]"])
def test_a_usual_normalization_that_is_clearly_better_stops_and_is_told(
    start: Start, name: str
) -> None:
    (mean, *_), (std, *_) = USUAL[name]
    net = Brightness(IDENTITY, mean, std)
    with pytest.raises(ValueError, match="Expected images normalized as the network") as caught:
        check_match(start("checkpoint=x.pt"), net, defender(0.9, 0.05))
    assert f"180 of 180 with the mean and std of {name}" in str(caught.value)
    check_match(start("checkpoint=x.pt"), net, defender(mean, std))
    with pytest.raises(ValueError, match="180 of 180 with the mean and std"):
        check_match(start("checkpoint=x.pt"), net, defender(0.9, 0.05, channels=1))


def test_guessing_another_class_is_no_better_normalization(start: Start) -> None:
    """An untrained network names one class under one normalization, another under the next."""

    class Guesses(Brightness):
        def forward(self, images: Tensor) -> Tensor:
            label = 0 if images.mean() > 20 else 1
            return nn.functional.one_hot(torch.full((len(images),), label), CLASSES).float()

    data = defender(0.5, 0.5)
    kept = torch.cat([torch.arange(120), torch.arange(177, 180)])  # few of the last classes
    data.train_rows = data.train_rows.subset(kept[kept != 31])
    data.train_rows.labels[40:60] = 0
    check_match(start("checkpoint=x.pt"), Guesses(IDENTITY), data)


def test_a_warning_is_asked_for(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    run = start("checkpoint=x.pt", "on_mismatch=warn")
    check_match(run, Brightness(OTHER), defender(0.5, 0.5))
    assert capsys.readouterr().out.startswith("warning  Expected the classes in the order")


def test_an_accuracy_at_chance_is_a_warning(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    check_match(start("checkpoint=x.pt"), Brightness([2] * CLASSES), defender(0.5, 0.5))
    assert "30 of 180 of the defender's clean images right, which may be guessing among 6" in (
        capsys.readouterr().out
    )


def test_few_images_say_nothing(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    """Three images in another order are no proof; that they may be chance is still said."""
    check_match(start("checkpoint=x.pt"), Brightness(OTHER), defender(0.5, 0.5, per_class=1))
    assert "1 of 6" in capsys.readouterr().out


def test_the_key_is_checked(start: Start) -> None:
    with pytest.raises(ValueError, match="`on_mismatch` to be one of stop, warn, but got 'no'"):
        run_pipeline(start("on_mismatch=no"))


@pytest.mark.parametrize(
    "names", [["cat", "dog"], ["10", "2"], ["03", "null"], ["a b", "c,d"], ['"', "\\", "é[1]"]]
)
def test_a_list_of_names_can_be_pasted(names: list[str]) -> None:
    override = OverridesParser.create().parse_override(f"data.classes={override_list(names)}")
    found = override.value()
    assert isinstance(found, list)
    assert [str(name) for name in found] == names
