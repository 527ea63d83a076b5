import pytest
from torch import nn

from fst_lightning.models import is_head
from fst_lightning.models.chain import last_layers


def modules(**children: nn.Module) -> nn.Module:
    parent = nn.Module()
    for name, child in children.items():
        parent.add_module(name, child)
    return parent


def is_linear(layer: nn.Module) -> bool:
    return is_head(layer) and isinstance(layer, nn.Linear)


def ends(net: nn.Module) -> list[str]:
    """The names of the linear layers that nothing follows."""
    linears = {name: layer for name, layer in net.named_modules() if is_linear(layer)}
    last = last_layers(net, linears.values())
    return [name for name, layer in linears.items() if layer in last]


fc = nn.Linear


@pytest.mark.parametrize(
    ("net", "names"),
    [
        (nn.Sequential(fc(2, 7), fc(3, 5)), ["1"]),  # a chain, whatever its sizes
        (modules(a=fc(2, 3), b=fc(3, 5)), ["b"]),
        (modules(a=fc(2, 3), b=fc(4, 5)), ["a", "b"]),
        (modules(a=fc(2, 3), b=fc(2, 4), c=fc(7, 5)), ["c"]),  # concatenated
        (modules(a=fc(2, 3), b=fc(2, 4), c=fc(8, 5)), ["a", "b", "c"]),
        (modules(a=fc(8, 4), b=nn.Conv2d(4, 3, 3)), ["a"]),  # which reads images
        (modules(a=fc(8, 9), b=nn.Conv2d(9, 3, 3)), []),
        (modules(a=fc(8, 4), b=nn.BatchNorm1d(4)), ["a"]),  # logits may be normalized
        (modules(a=fc(8, 4), b=nn.LSTM(4, 6, bidirectional=True), c=fc(12, 2)), ["c"]),
        (modules(a=fc(8, 4), b=nn.LSTM(4, 6), c=fc(12, 2)), ["c"]),  # all of its steps
        (modules(a=nn.Embedding(9, 4), b=fc(4, 2)), ["b"]),
        (modules(a=modules(x=fc(2, 9), y=fc(3, 4)), b=fc(4, 2)), ["b"]),  # as a whole
        (modules(blocks=nn.ModuleList([fc(4, 4), fc(4, 4)]), b=fc(4, 2)), ["b"]),
        (modules(layer=nn.TransformerEncoderLayer(8, 2, 16), b=fc(8, 2)), ["b"]),
    ],
)
def test_what_nothing_follows(net: nn.Module, names: list[str]) -> None:
    assert ends(net) == names


def test_branches_that_are_concatenated_inside() -> None:
    inception = modules(a=modules(squeeze=fc(6, 3), conv=nn.Conv2d(6, 8, 3)), b=nn.Conv2d(6, 4, 5))
    assert ends(modules(body=inception, fc=fc(12 * 3 * 3, 5))) == ["fc"]


def test_only_rivals_count() -> None:
    first, second, third = fc(8, 5), fc(5, 3), fc(3, 5)
    net = modules(a=first, b=second)
    assert last_layers(net, [first]) == []
    assert last_layers(net, [first], rivals_only=True) == [first]
    deep = modules(a=first, b=second, c=third)
    assert last_layers(deep, [first, third], rivals_only=True) == [third]


def test_layers_without_a_size_yet() -> None:
    net = nn.Sequential(nn.LazyConv2d(4, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(3))
    assert ends(net) == ["3"]
    assert ends(modules(**{f"layer{i}": layer for i, layer in enumerate(net)})) == ["layer3"]
