import torch

from fst_lightning.defenses.common.snapshot import call_with, snapshot
from tests import tiny


def test_a_snapshot_computes_what_the_network_computed_in_evaluation_mode() -> None:
    net = tiny.conv_net(dropout=0.5)
    net(tiny.images(6) / 255)  # moves the running statistics, which belong to it
    images = tiny.images(5, seed=3) / 255
    kept, expected = snapshot(net), net.eval()(images).detach()
    net.train()
    with torch.no_grad():
        for tensor in (*net.parameters(), *net.buffers()):
            tensor.add_(1)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    assert torch.equal(call_with(net, kept, images), expected)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_gradients_reach_the_images_alone() -> None:
    net = tiny.conv_net()
    images = (tiny.images(2) / 255).requires_grad_()
    call_with(net, snapshot(net), images).sum().backward()  # type: ignore[no-untyped-call]
    assert images.grad is not None
    assert bool(images.grad.any())
    assert all(parameter.grad is None for parameter in net.parameters())


def test_a_snapshot_is_called_in_the_memory_format_of_the_network() -> None:
    net = tiny.conv_net().to(memory_format=torch.channels_last)
    kept, layouts = snapshot(net), []
    net.get_submodule("conv2").register_forward_hook(
        lambda conv, *_: layouts.append(
            conv.weight.is_contiguous(memory_format=torch.channels_last)
        )
    )
    images = tiny.images(2) / 255
    assert torch.equal(call_with(net, kept, images), net.eval()(images))
    assert layouts == [True, True]
