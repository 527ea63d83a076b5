import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from fst_lightning.defenses import BatchNormPruning
from fst_lightning.defenses.bnp import gaussian_kl
from tests.defenses import pruning
from tests.defenses.drive import drive


def test_the_divergence_against_torch_distributions() -> None:
    generator = pruning.seeded()
    mean, other_mean = torch.randn(2, 50, generator=generator).double()
    variance, other_variance = (torch.rand(2, 50, generator=generator) + 0.05).double()
    found = gaussian_kl(mean, variance, other_mean, other_variance)
    expected = kl_divergence(
        Normal(mean, variance.sqrt()), Normal(other_mean, other_variance.sqrt())
    )
    torch.testing.assert_close(found, expected)
    assert not torch.allclose(
        found,
        kl_divergence(Normal(other_mean, other_variance.sqrt()), Normal(mean, variance.sqrt())),
    )


def test_the_scores_of_a_layer_by_hand() -> None:
    net, clean = pruning.network(), pruning.clean_data()
    defense = BatchNormPruning(batch_size=7)
    defense.prepare(net, pruning.seeded())
    scores = defense.scores(net, clean, pruning.seeded())
    norm, conv = net.get_submodule("bn1"), net.get_submodule("conv1")
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    with torch.no_grad():
        values = conv(clean.normalize(clean.images)).transpose(0, 1).flatten(1)
    for channel in range(4):
        clean_images = Normal(values[channel].mean(), (values[channel].var() + 1e-5).sqrt())
        running = Normal(norm.running_mean[channel], (norm.running_var[channel] + 1e-5).sqrt())
        expected = float(kl_divergence(clean_images, running))
        assert float(scores["bn1"][channel]) == pytest.approx(expected, rel=2e-3)


def test_channels_with_other_running_statistics_are_pruned() -> None:
    net, clean = pruning.network(width=16), pruning.clean_data()
    defense = BatchNormPruning(u=3)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # Average: after one pass the statistics are the clean ones.
            module.reset_running_stats()
    with torch.no_grad():
        net.train()(clean.normalize(clean.images))
        net.eval()
        suspect = net.get_submodule("layer3.0.bn1")
        assert isinstance(suspect, nn.BatchNorm2d)
        assert suspect.running_mean is not None
        suspect.running_mean[5] += 20 * suspect.running_var[5].sqrt()  # type: ignore[index]
    drive(defense, net, clean)
    assert defense.findings()["pruned"]["layer3.0.bn1"] == [5]
    assert suspect.weight[5] == suspect.bias[5] == 0
    assert int((suspect.weight == 0).sum()) == 1


def test_batchnorm_without_running_statistics_is_refused() -> None:
    net = nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False), nn.Flatten())
    with pytest.raises(ValueError, match="Expected BatchNorm layers with running statistics"):
        BatchNormPruning().prepare(net, pruning.seeded())


@pytest.mark.parametrize("arguments", [{"u": 0}, {"batch_size": 0}])
def test_arguments_are_checked(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}`"):
        BatchNormPruning(**arguments)
