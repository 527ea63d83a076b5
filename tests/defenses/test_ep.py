import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fst_lightning.defenses import EntropyPruning
from fst_lightning.defenses.common.clean_data import CleanData, PoisonedData
from fst_lightning.defenses.ep import histogram_entropy, histograms
from tests.defenses import pruning
from tests.defenses.drive import drive


def numpy_entropy(values: Tensor, width: float) -> float:
    """Of standardized values, with a histogram whose edges are multiples of the width."""
    scaled = values.double().numpy()
    scaled = (scaled - scaled.mean()) / scaled.std()
    first, last = np.floor(scaled.min() / width), np.floor(scaled.max() / width)
    edges = np.arange(first, last + 2) * width
    counts, _ = np.histogram(scaled, bins=edges)
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def test_histograms_against_numpy() -> None:
    values = torch.randn(3, 1000, generator=pruning.seeded())
    found = histograms(values, width=0.3, bins=21)
    edges = (np.arange(-10, 12) * np.float32(0.3)).astype(np.float64)
    for row in range(3):
        inside = values[row].double().numpy().clip(-2.99, 3.29)
        expected, _ = np.histogram(inside, bins=edges)
        assert found[row].tolist() == expected.tolist()
    assert histograms(torch.tensor([[-99.0, 99.0]]), 0.3, 21)[0, [0, 20]].tolist() == [1, 1]


def test_the_entropy_of_equal_bins_is_the_logarithm_of_their_number() -> None:
    counts = torch.tensor([[5, 5, 5, 5], [20, 0, 0, 0]])
    assert histogram_entropy(counts).tolist() == pytest.approx([np.log(4), 0])


@pytest.mark.parametrize("batch_size", [24, 7])
def test_the_scores_of_a_layer_against_numpy(batch_size: int) -> None:
    net, clean = pruning.network(), pruning.clean_data()
    defense = EntropyPruning(bin_width=0.2, batch_size=batch_size)
    defense.prepare(net, pruning.seeded())
    scores = defense.scores(net, clean, pruning.seeded())
    assert set(scores) == {n for n, m in net.named_modules() if isinstance(m, nn.BatchNorm2d)}
    with torch.no_grad():
        output = net.get_submodule("conv1")(clean.normalize(clean.images))
    for channel in range(4):
        expected = -numpy_entropy(output[:, channel].flatten(), 0.2)
        # A value on an edge may fall to either side, as float32 rounds.
        assert float(scores["bn1"][channel]) == pytest.approx(expected, abs=2e-3)


def two_humps(channels: int = 20) -> tuple[nn.Module, CleanData]:
    """A layer of which channel 3 sees far outliers on a tenth of the training set."""
    generator = pruning.seeded(2)
    images = torch.randn(50, channels, 6, 6, generator=generator)
    images[:5, 3] += 40
    labels = torch.zeros(50, dtype=torch.int64)
    poisoned = PoisonedData(images, labels)
    return nn.Sequential(nn.BatchNorm2d(channels)), CleanData(
        images[5:9], labels[5:9], poisoned=poisoned
    )


def test_a_channel_with_two_humps_is_pruned() -> None:
    net, clean = two_humps()
    defense = EntropyPruning(u=3)
    drive(defense, net, clean)
    assert defense.findings()["pruned"] == {"0": [3]}


def test_clean_images_alone_show_nothing() -> None:
    net, clean = two_humps()
    assert clean.poisoned is not None
    clean.poisoned = clean.poisoned.subset(torch.arange(5, 50))
    defense = EntropyPruning(u=3)
    drive(defense, net, clean)
    assert defense.findings()["pruned_channels"] == 0


def test_a_constant_channel_is_left_alone() -> None:
    net, clean = two_humps()
    assert clean.poisoned is not None
    clean.poisoned.images[:, 8] = 2.5
    defense = EntropyPruning(u=3)
    drive(defense, net, clean)
    assert defense.findings()["pruned"] == {"0": [3]}


def test_a_sample_of_the_training_set_is_drawn_from_the_generator() -> None:
    net, clean = two_humps()
    defense = EntropyPruning(max_images=10)
    defense.prepare(net, pruning.seeded())
    first, again, other = (
        defense.scores(net.eval(), clean, pruning.seeded(seed))["0"] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert EntropyPruning.needs_poisoned_set


def test_it_asks_for_the_training_set() -> None:
    net, clean = two_humps()
    clean.poisoned = None
    with pytest.raises(ValueError, match="Expected the training set as it was delivered"):
        drive(EntropyPruning(), net, clean)


@pytest.mark.parametrize(
    "arguments", [{"u": -1}, {"bin_width": 0}, {"max_images": 0}, {"batch_size": 0}]
)
def test_arguments_are_checked(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}`"):
        EntropyPruning(**arguments)
