"""Whether the input of a head depends on what trains, and what a graph's leaves are."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fst_lightning.defenses.common.feature_watch import FeatureWatch
from fst_lightning.defenses.common.graph import leaves

BODY, OTHER, HEAD = nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(3, 2)


def frozen(images: Tensor) -> Tensor:
    BODY.requires_grad_(False)
    features: Tensor = BODY(images)
    BODY.requires_grad_(True)
    return features


@pytest.mark.parametrize(
    ("features", "trains"),
    [
        (BODY, True),
        (lambda images: BODY(images).detach(), False),
        (frozen, False),
        (OTHER, False),  # it asks for gradients, but no optimizer trains it
        (lambda images: BODY(images) + OTHER(images), True),
        (lambda images: frozen(images.requires_grad_()), False),  # an adversarial image
        (lambda images: checkpoint(BODY, images, use_reentrant=False), True),
        # Reentrant checkpoints hide the parameters: nothing is known, and nothing refused.
        (lambda images: checkpoint(BODY, images.requires_grad_(), use_reentrant=True), True),
    ],
)
def test_features(features: Callable[[Tensor], Tensor], trains: bool) -> None:
    watch = FeatureWatch(HEAD, BODY.parameters())
    HEAD(features(torch.ones(2, 4)))
    watch.remove()
    assert watch.seen
    assert watch.trains is trains


def test_passes_without_gradients_say_nothing() -> None:
    watch = FeatureWatch(HEAD, BODY.parameters())
    with torch.no_grad():
        HEAD(BODY(torch.ones(2, 4)))
    assert not watch.seen
    HEAD(input=BODY(torch.ones(2, 4)))
    assert watch.trains
    watch.remove()
    assert not HEAD._forward_pre_hooks


def test_leaves_are_the_tensors_that_a_backward_pass_fills() -> None:
    inputs = torch.ones(2, 4, requires_grad=True)
    loss = (HEAD(BODY(inputs)) * OTHER(inputs).detach()[:, :2]).sum()
    for layer in (BODY, OTHER, HEAD):
        layer.zero_grad()
    torch.autograd.backward(loss)
    everything = [inputs, *BODY.parameters(), *OTHER.parameters(), *HEAD.parameters()]
    filled = {id(tensor) for tensor in everything if tensor.grad is not None}
    assert {id(leaf) for leaf in leaves(loss)} == filled
    assert leaves(torch.ones(2)) == []
