from typing import Any

import torch

from fst_lightning.defenses import BTIDBF, CleanData, PathAwareMinimization
from fst_lightning.defenses.common.trigger_generator import benign_mask
from tests import tiny
from tests.defenses.drive import drive

SMALL: dict[str, Any] = {"rounds": 1, "mask_steps": 3, "generator_epochs": 1, "generator_width": 4}


def weights(net: torch.nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in net.parameters()])


def test_the_move_has_length_rho_towards_the_backdoored_weights_and_is_taken_back() -> None:
    net = tiny.conv_net().to(memory_format=torch.channels_last)
    defense = PathAwareMinimization(rho=0.3)
    defense.prepare(net, torch.Generator().manual_seed(0))
    backdoored = weights(net)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    tuned = weights(net)
    defense.move()
    moved = weights(net)
    gap = backdoored - tuned
    assert torch.allclose(moved, tuned + 0.3 * gap / gap.norm(), atol=1e-6)
    assert abs(float((moved - tuned).norm()) - 0.3) < 1e-5
    defense.after_backward()
    assert torch.equal(weights(net), tuned)


def test_at_the_backdoored_weights_there_is_nowhere_to_move() -> None:
    net = tiny.conv_net()
    defense = PathAwareMinimization(rho=0.5)
    defense.prepare(net, torch.Generator().manual_seed(0))
    before = weights(net)
    defense.move()
    assert torch.equal(weights(net), before)


def test_the_mask_keeps_the_feature_that_the_clean_task_needs() -> None:
    """Two classes, told apart by feature 0; feature 1 is another's doing."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(40) % 2
    features = torch.stack([labels * 2.0 - 1, torch.ones(40)], dim=1)
    features += 0.1 * torch.randn(40, 2, generator=generator)
    head = torch.nn.Linear(2, 2)
    with torch.no_grad():
        head.weight.copy_(torch.tensor([[-4.0, 3.0], [4.0, -3.0]]))
        head.bias.zero_()
    mask = benign_mask(head, features, labels, steps=200)
    assert float(mask[0]) > 0.9
    assert float(mask[0] - mask[1]) > 0.2


def test_both_defenses_run_and_leave_the_keys_alone() -> None:
    data = tiny.rows(24)
    clean = CleanData(data.images, data.labels, mean=[0.5] * 3, std=[0.25] * 3)
    for defense in (BTIDBF(**SMALL), PathAwareMinimization(**SMALL)):
        net = tiny.conv_net().to(memory_format=torch.channels_last)
        keys, before = list(net.state_dict()), weights(net)
        losses = drive(defense, net, clean, epochs=2, lr=0.01)
        assert losses
        assert list(net.state_dict()) == keys
        assert bool(torch.isfinite(weights(net)).all())
        assert not torch.equal(weights(net), before)
