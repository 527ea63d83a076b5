import copy

import pytest
import torch
from torch import nn

from fst_lightning.defenses import FinePruning
from fst_lightning.defenses.common.clean_data import CleanData
from tests.defenses import pruning
from tests.defenses.drive import drive


def fc(net: nn.Module) -> nn.Linear:
    head = net.get_submodule("fc")
    assert isinstance(head, nn.Linear)
    return head


def slow_ranking(net: nn.Module, clean: CleanData) -> list[int]:
    """Channels of the last stage's output, the least active first; image by image."""
    sums = [0.0] * fc(net).in_features
    seen: list[torch.Tensor] = []
    handle = net.get_submodule("layer4").register_forward_hook(lambda *a: seen.append(a[2]))
    with torch.no_grad():
        for row in range(len(clean)):
            net(clean.normalize(clean.images[row : row + 1]))
            for channel in range(len(sums)):
                sums[channel] += float(seen[-1][0, channel].mean())
    handle.remove()
    return sorted(range(len(sums)), key=lambda channel: sums[channel])


def judged() -> tuple[nn.Module, CleanData]:
    """A network, and held-out images that it classifies without a mistake."""
    net = pruning.network()
    clean = pruning.clean_data(60).split(0.4, pruning.seeded())
    assert clean.held_out is not None
    clean.held_out.labels = pruning.logits(net, clean.held_out).argmax(1)
    return net, clean


def test_the_least_active_channels_go_first_until_one_too_many() -> None:
    net, clean = judged()
    assert clean.held_out is not None
    order = slow_ranking(net, clean)
    defense = FinePruning(max_pruning_ca_drop=0.2, step=0.03)
    defense.prepare(net, pruning.seeded())
    plain = copy.deepcopy(net)
    defense.study(net, clean, pruning.seeded())

    kept = 0
    for count in range(1, 32):
        cut = copy.deepcopy(plain)
        with torch.no_grad():
            for channel in order[:count]:
                fc(cut).weight[:, channel] = 0
        hits = pruning.logits(cut, clean.held_out).argmax(1) == clean.held_out.labels
        if float(hits.float().mean()) < 0.8 - 1e-9:
            break
        kept = count
    assert 0 < kept < 31
    assert sorted(order[:kept]) == defense.findings()["pruned"]
    assert defense.findings()["pruned_channels"] == kept
    assert defense.findings()["held_out_ca"][0] == 1
    assert defense.findings()["held_out_ca"][1] >= 0.8
    assert not fc(net).weight[:, order[:kept]].any()


def test_steps_are_shares_of_the_channels() -> None:
    net, clean = judged()
    defense = FinePruning(max_pruning_ca_drop=1.0, step=0.25)
    drive(defense, net, clean, epochs=0)
    assert defense.findings()["pruned_channels"] == 24  # of 32: 8, 16, 24, and never all


def test_pruned_channels_stay_at_zero_while_the_rest_is_tuned() -> None:
    net, clean = judged()
    before = copy.deepcopy(net.state_dict())
    defense = FinePruning(max_pruning_ca_drop=0.3)
    losses = drive(defense, net, clean, epochs=2)
    pruned = torch.zeros(32, dtype=torch.bool)
    pruned[defense.findings()["pruned"]] = True
    assert pruned.any()
    assert not fc(net).weight[:, pruned].any()
    assert bool((fc(net).weight[:, ~pruned] != before["fc.weight"][:, ~pruned]).all())
    assert not torch.equal(net.state_dict()["conv1.weight"], before["conv1.weight"])
    assert list(net.state_dict()) == list(before)
    assert len(losses) == 2 * 5


def test_a_drop_of_0_prunes_only_what_costs_nothing() -> None:
    net, clean = judged()
    assert clean.held_out is not None
    defense = FinePruning(max_pruning_ca_drop=0.0)
    drive(defense, net, clean, epochs=0)
    assert defense.findings()["held_out_ca"] == [1, 1]
    assert bool((pruning.logits(net, clean.held_out).argmax(1) == clean.held_out.labels).all())


def test_pruning_nothing_is_a_shortfall() -> None:
    net, clean = judged()
    assert clean.held_out is not None
    order = slow_ranking(net, clean)
    plain = copy.deepcopy(net)
    defense = FinePruning(max_pruning_ca_drop=0.0, step=0.5)
    drive(defense, net, clean, epochs=0)
    found = defense.findings()
    assert found["pruned_channels"] == 0
    assert defense.shortfall() == "Nothing was pruned"
    with torch.no_grad():
        for channel in order[:16]:
            fc(plain).weight[:, channel] = 0
    hits = pruning.logits(plain, clean.held_out).argmax(1) == clean.held_out.labels
    cost = 100 * (1 - float(hits.float().mean()))
    assert f"The 16 least active of 32 features cost {cost:.1f} points" in found["summary"]
    drive(some := FinePruning(max_pruning_ca_drop=1.0), net, clean, epochs=0)
    assert some.shortfall() is None


def test_what_was_pruned_comes_back_from_a_checkpoint() -> None:
    net, clean = judged()
    first = FinePruning(max_pruning_ca_drop=0.3)
    first.prepare(net, pruning.seeded())
    first.study(net, clean, pruning.seeded())
    second = FinePruning(max_pruning_ca_drop=0.3)
    second.prepare(net, pruning.seeded())
    second.load_state_dict(first.state_dict())
    with torch.no_grad():
        fc(net).weight.fill_(1)
    second.after_step()
    assert torch.equal(fc(net).weight[0] == 0, first.pruned)
    assert second.findings() == first.findings()


def test_a_head_that_is_not_the_classifier_is_refused() -> None:
    net = nn.Sequential(nn.Linear(12, 5), nn.Flatten(), nn.Linear(5 * 36, 4))
    clean = pruning.clean_data(8)
    defense = FinePruning(head="0")
    defense.prepare(net, pruning.seeded())
    with pytest.raises(ValueError, match=r"called once with features \(N, d\)"):
        defense.study(net, clean, pruning.seeded())


@pytest.mark.parametrize("arguments", [{"max_pruning_ca_drop": 2}, {"step": 0}, {"step": 0.9}])
def test_arguments_are_checked(arguments: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(arguments))}`"):
        FinePruning(**arguments)  # type: ignore[arg-type]
