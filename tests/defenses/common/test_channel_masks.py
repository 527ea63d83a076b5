import copy
import math
import re

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fst_lightning.defenses import (
    AdversarialNeuronPruning,
    BatchNormPruning,
    ChannelLipschitzPruning,
    Defense,
    EntropyPruning,
    NeuralMaskFineTuning,
    NeuralPolarizer,
    ReconstructiveNeuronPruning,
    apply,
)
from fst_lightning.defenses.common.channel_masks import (
    ChannelMask,
    attach,
    detach,
    merged_moments,
    outliers,
    prune,
    scaled_batchnorms,
)
from fst_lightning.defenses.common.conv_norm_pairs import conv_batchnorm_pairs
from fst_lightning.models import preact_resnet18, small_resnet, vgg19_bn
from tests.defenses import pruning

BATCHNORM_DEFENSES = [
    AdversarialNeuronPruning,
    BatchNormPruning,
    ChannelLipschitzPruning,
    EntropyPruning,
    NeuralMaskFineTuning,
    NeuralPolarizer,
    ReconstructiveNeuronPruning,
]


def test_a_mask_is_folded_into_the_same_parameter() -> None:
    norm = nn.BatchNorm2d(3)
    weight, place = norm.weight, norm.weight.data_ptr()
    mask = ChannelMask(norm.weight)
    attach(norm, "weight", mask)
    with torch.no_grad():
        mask.mask.copy_(torch.tensor([0.5, 0.0, 1.0]))
    detach(norm, "weight")
    assert norm.weight is weight
    assert norm.weight.data_ptr() == place
    assert norm.weight.tolist() == [0.5, 0.0, 1.0]
    assert list(norm.state_dict()) == list(nn.BatchNorm2d(3).state_dict())
    assert type(norm) is nn.BatchNorm2d
    detach(norm, "weight")


def test_outliers_against_numpy() -> None:
    generator = pruning.seeded()
    for channels, u in ((16, 1.0), (30, 1.5), (64, 2.0)):
        scores = torch.randn(channels, generator=generator) ** 2
        values = scores.numpy().astype(np.float64)
        expected = values > values.mean() + u * values.std(ddof=1)
        assert expected.any()
        assert outliers(scores, u).tolist() == expected.tolist()


def test_a_single_outlier_needs_channels_enough() -> None:
    for channels in range(3, 20):
        scores = torch.ones(channels)
        scores[0] = 1e6
        reachable = (channels - 1) / math.sqrt(channels) > 3
        assert bool(outliers(scores, 3)[0]) == reachable == (channels >= 11)
        assert not outliers(scores, 3)[1:].any()


def test_the_deviation_is_the_unbiased_one() -> None:
    scores = torch.tensor([0.0, 0.0, 1.0])  # 2/3 above the mean; deviations 1/sqrt(3), sqrt(2)/3
    assert outliers(scores, 1.15).tolist() == [False, False, True]
    assert outliers(scores, 1.16).tolist() == [False] * 3


def test_scores_that_are_not_finite_take_no_part() -> None:
    scores = torch.cat([torch.rand(20), torch.tensor([50.0, math.nan, math.inf, -math.inf])])
    assert outliers(scores, 3).nonzero().flatten().tolist() == [20]
    assert not outliers(torch.tensor([math.nan, 1.0]), 3).any()
    assert not outliers(torch.ones(20), 3).any()


def test_a_pruned_channel_gives_zero() -> None:
    norm = nn.BatchNorm2d(4).eval()
    with torch.no_grad():
        norm.bias.fill_(2.0)
    prune(norm, torch.tensor([False, True, False, False]))
    output = norm(torch.randn(2, 4, 3, 3))
    assert not output[:, 1].any()
    assert bool(output[:, 0].any())


def test_moments_are_those_of_all_images_whatever_the_batches() -> None:
    net, clean = pruning.network(), pruning.clean_data(21)
    norms = scaled_batchnorms(net, "this")
    seen: list[Tensor] = []
    handle = norms["layer2.0.bn2"].register_forward_pre_hook(lambda _, i: seen.append(i[0]))
    pruning.logits(net, clean)
    handle.remove()
    values = seen[0].double().transpose(0, 1).flatten(1).numpy()
    for batch_size in (21, 8, 1):
        mean, variance = merged_moments(net, norms, clean.batches(batch_size))["layer2.0.bn2"]
        np.testing.assert_allclose(mean, values.mean(1), atol=1e-6)
        np.testing.assert_allclose(variance, values.var(1), rtol=1e-5)
    assert not any(module._forward_pre_hooks for module in net.modules())


@pytest.mark.parametrize("kind", BATCHNORM_DEFENSES)
def test_networks_without_batchnorm_are_refused(kind: type[Defense]) -> None:
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(400, 4))
    with pytest.raises(ValueError, match=r"Expected a network with BatchNorm .* Sequential"):
        kind().prepare(plain, pruning.seeded())
    bare = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, affine=False), nn.Flatten())
    if kind is not NeuralPolarizer:
        with pytest.raises(ValueError, match="affine=False"):
            kind().prepare(bare, pruning.seeded())


def test_a_cut_prunes_the_largest_set_that_is_cheap() -> None:
    net = pruning.network()
    clean = pruning.clean_data(40).split(0.5, pruning.seeded())
    assert clean.held_out is not None
    # As the network sees them: the unpruned network is always right on the held-out images.
    clean.held_out.labels = pruning.logits(net, clean.held_out).argmax(1)
    plain = copy.deepcopy(net)
    defense = AdversarialNeuronPruning(max_pruning_ca_drop=0.6)
    defense.prepare(net, pruning.seeded())
    generator = pruning.seeded(3)
    values = {
        name: torch.rand(mask.mask.shape, generator=generator) ** 0.25
        for name, mask in defense.masks.items()
    }
    defense.set_masks(values)

    def loss_of_accuracy(threshold: float) -> float:
        cut = copy.deepcopy(plain)
        for name, value in values.items():
            norm = cut.get_submodule(name)
            assert isinstance(norm, nn.BatchNorm2d)
            with torch.no_grad():
                for channel in range(len(value)):
                    if value[channel] < threshold:
                        norm.weight[channel] = 0
        assert clean.held_out is not None
        hits = pruning.logits(cut, clean.held_out).argmax(1) == clean.held_out.labels
        return 1 - float(hits.float().mean())

    cheap = [step / 20 for step in range(1, 19) if loss_of_accuracy(step / 20) <= 0.6 + 1e-9]
    defense.conclude(net, clean, pruning.seeded())
    defense.finish()
    found = defense.findings()
    assert 0 < len(cheap) < 18
    assert found["threshold"] == max(cheap)
    expected = sum(int((value < max(cheap)).sum()) for value in values.values())
    assert found["pruned_channels"] == expected == sum(len(c) for c in found["pruned"].values())
    assert found["held_out_ca"] == pytest.approx([1, 1 - loss_of_accuracy(max(cheap))])
    assert defense.shortfall() is None
    assert found["summary"].startswith(f"Pruned {expected} of ")


def test_no_outlier_is_a_shortfall() -> None:
    net, clean = pruning.network(), pruning.clean_data(8)
    defense = ChannelLipschitzPruning(u=50)
    assert defense.shortfall() is None  # nothing was asked yet
    apply(defense, net, clean, pruning.seeded())
    assert defense.findings()["pruned_channels"] == 0
    assert defense.shortfall() == "Nothing was pruned"
    assert "by more than 50 standard deviations" in defense.findings()["summary"]
    apply(bold := ChannelLipschitzPruning(u=0.5), net, clean, pruning.seeded())
    assert bold.findings()["pruned_channels"] > 0
    assert bold.shortfall() is None


def test_a_cut_that_costs_too_much_prunes_nothing() -> None:
    net = pruning.network()
    clean = pruning.clean_data()
    clean.labels = pruning.logits(net, clean).argmax(1)
    before = copy.deepcopy(net.state_dict())
    defense = AdversarialNeuronPruning(max_pruning_ca_drop=0.0)
    defense.prepare(net, pruning.seeded())
    # Every mask lies below the least threshold: without any channel all images look alike.
    defense.set_masks({name: torch.zeros(len(m.mask)) for name, m in defense.masks.items()})
    assert len(set(clean.labels.tolist())) > 1
    defense.conclude(net, clean, pruning.seeded())
    defense.finish()
    most = int(clean.labels.bincount().max())  # what an answer that is always the same gets right
    cost = 100 * (1 - most / len(clean))
    assert defense.findings()["threshold"] == 0
    assert defense.findings()["pruned_channels"] == 0
    assert defense.shortfall() == "Nothing was pruned"
    found = re.fullmatch(
        r"The least costly threshold, 0.05, prunes (\d+) of \1 channels and costs (.*) points of "
        rf"accuracy on {len(clean)} held-out images; defense.max_pruning_ca_drop allows 0.0.",
        defense.findings()["summary"],
    )
    assert found is not None
    assert float(found[2]) >= round(cost, 1) > 0
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_masks_come_back_from_a_checkpoint() -> None:
    net, clean = pruning.network(), pruning.clean_data()
    first = NeuralMaskFineTuning()
    pruning.after_steps(first, net, clean)
    saved, kept = net.state_dict(), first.state_dict()
    other, second = pruning.network(), NeuralMaskFineTuning()
    second.prepare(other, pruning.seeded())
    other.load_state_dict(saved)
    second.load_state_dict(kept)
    assert torch.equal(pruning.logits(other, clean), pruning.logits(net, clean))
    assert float(second.images_per_class) == len(clean) / pruning.CLASSES
    second.finish()
    assert list(other.state_dict()) == list(pruning.network().state_dict())


def test_the_pairs_of_a_resnet() -> None:
    net = small_resnet(4, width=4)
    pairs = conv_batchnorm_pairs(net)
    assert len(pairs) == sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    assert pairs["bn1"] == "conv1"
    assert pairs["layer2.0.downsample.1"] == "layer2.0.downsample.0"
    assert all(conv == norm.replace("bn", "conv") for norm, conv in pairs.items() if "bn" in norm)


def test_a_batchnorm_that_is_fed_by_a_sum_has_no_partner() -> None:
    net = preact_resnet18(4, width=4)
    pairs = conv_batchnorm_pairs(net)
    # The very first bn1 stands right behind the stem, whose output a shortcut takes as well.
    blocks = [f"layer{stage}.{block}" for stage in range(1, 5) for block in range(2)]
    assert pairs == {f"{block}.bn2": f"{block}.conv1" for block in blocks}


def test_a_network_that_can_not_be_traced_is_paired_by_neighbors() -> None:
    pairs = conv_batchnorm_pairs(vgg19_bn(4))
    assert len(pairs) == 16
    assert pairs["features.1"] == "features.0"


class _Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bn0 = nn.BatchNorm2d(3)
        self.conv1 = nn.Conv2d(3, 8, 3)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(8, 8, 3)
        self.bn2 = nn.BatchNorm2d(8)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-1] < 5:
            raise ValueError("too small")
        output: Tensor = self.bn2(self.conv2(self.conv1(self.bn0(images))))
        return output


def test_neighbors_have_to_agree_in_channels() -> None:
    assert conv_batchnorm_pairs(_Branching()) == {"bn2": "conv2"}


class _Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.bn = nn.BatchNorm2d(3)
        self.other = nn.Conv2d(3, 3, 1)
        self.last = nn.BatchNorm2d(3)

    def forward(self, images: Tensor) -> Tensor:
        images = self.bn(self.conv(self.bn(self.conv(images))))
        output: Tensor = self.last(self.other(images))
        return output


def test_layers_that_are_used_twice_have_no_partner() -> None:
    assert conv_batchnorm_pairs(_Twice()) == {"last": "other"}
