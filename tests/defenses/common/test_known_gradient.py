"""Losses with known gradients, against the backward pass through the graph."""

import torch

from fst_lightning.defenses.common.known_gradient import gradients, settled, with_gradients


def test_a_settled_loss_has_the_gradient_of_its_graph_and_no_other() -> None:
    weight, image = (torch.randn(5, requires_grad=True) for _ in range(2))
    loss = (weight * image).square().sum()
    known = settled(loss, [weight])
    assert torch.equal(known, loss)
    (0.3 * known).backward()  # type: ignore[no-untyped-call]
    torch.testing.assert_close(weight.grad, 0.6 * weight.detach() * image.detach().square())
    assert image.grad is None


def test_small_gradients_do_not_vanish_in_half_precision() -> None:
    """The gradient of the product in between is half the least number above 0 in float16."""
    weight = torch.ones(1, requires_grad=True)
    half = weight.half()
    loss = (half * 1.0).float().sum() * 2.0**-25
    assert float(torch.autograd.grad(loss, weight, retain_graph=True)[0]) == 0
    (slope,) = gradients(loss, [weight])
    assert slope is not None
    assert float(slope) == 2.0**-25


def test_an_input_without_influence_gets_no_gradient() -> None:
    used, unused = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    loss = used.sum()
    known = gradients(loss, [used, unused])
    assert known[1] is None
    with_gradients(loss, [used, unused], known).backward()  # type: ignore[no-untyped-call]
    assert unused.grad is None
