"""What an object shows of the arguments that it was made with."""

import copy
import pickle
from typing import Any

from torch import nn

from fst_lightning.argument_repr import ShowsArguments
from fst_lightning.attacks import BadNets, Blended
from fst_lightning.defenses import FST, Defense, FineTuning


class Shown(ShowsArguments, nn.Module):
    def __init__(
        self, first: int, second: Any = (1, 2), *rest: int, third: str = "x", **more: int
    ) -> None:
        super().__init__()
        self.third = third


def test_every_argument_is_shown_also_a_default() -> None:
    assert repr(Shown(1)) == "Shown(first=1, second=(1, 2), third='x')"
    assert repr(Shown(1, [3], 4, 5, fourth=6)) == "Shown(first=1, second=[3], third='x', fourth=6)"


def test_a_setting_that_was_changed_shows() -> None:
    shown = Shown(1)
    shown.third = "y"
    assert repr(shown) == "Shown(first=1, second=(1, 2), third='y')"


def test_copies_show_the_same() -> None:
    defense = FST(alpha=0.3)
    text = repr(defense)
    assert text.startswith("FST(alpha=0.3, reinit='orthogonal', project_norm=True, head=None")
    assert repr(copy.deepcopy(defense)) == text
    assert repr(pickle.loads(pickle.dumps(defense))) == text


def test_attacks_and_defenses_of_other_packages_show_theirs() -> None:
    class Mine(Defense):
        def __init__(self, strength: float = 1.0) -> None:
            super().__init__()
            self._strength = strength

    class Nothing(Defense):
        pass

    assert repr(Mine(0.5)) == "Mine(strength=0.5)"
    assert repr(Nothing()) == "Nothing()"
    assert repr(FineTuning()).startswith("FineTuning(")
    assert "blend_alpha=0.1" in repr(Blended(blend_alpha=0.1))
    assert "target_label=3" in repr(BadNets(target_label=3))
