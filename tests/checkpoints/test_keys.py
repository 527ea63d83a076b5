from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fst_lightning.checkpoints import CheckpointError, match_keys
from tests.checkpoints.samples import equal, make_net

NAMES = list(make_net().state_dict())
COUNTERS = [name for name in NAMES if name.endswith("num_batches_tracked")]

wrappers = st.lists(
    st.sampled_from(["module", "model", "net", "network", "backbone", "_orig_mod"]), max_size=5
).map(lambda parts: "".join(f"{part}." for part in parts))


def foreign(name: str) -> str:
    """The name as BackdoorBench's ResNets write it."""
    return name.replace("downsample", "shortcut").replace("fc.", "linear.")


@given(prefix=wrappers, renamed=st.booleans(), reverse=st.booleans(), counted=st.booleans())
def test_round_trip(prefix: str, renamed: bool, reverse: bool, counted: bool) -> None:
    state = {name: torch.tensor([float(i)]) for i, name in enumerate(NAMES)}
    files = [prefix + (foreign(name) if renamed else name) for name in NAMES]
    if not counted:
        files = [name for name in files if not name.endswith("num_batches_tracked")]
    if reverse:
        files = files[::-1]
    key_map = match_keys(files, NAMES)
    assert key_map.prefix == prefix
    assert key_map.missing == key_map.unexpected == key_map.outside == ()
    restored = key_map.restore(state)
    assert sorted(restored) == sorted(files)
    back = {key_map.to_net[name]: tensor for name, tensor in restored.items()}
    expected = {n: t for n, t in state.items() if counted or n not in COUNTERS}
    assert equal(back, expected)
    assert key_map.to_file == {net: file for file, net in key_map.to_net.items()}


def test_renames_go_both_ways() -> None:
    ours = ["layer1.0.downsample.0.weight", "fc.bias"]
    theirs = [foreign(name) for name in ours]
    assert match_keys(theirs, ours).to_net == dict(zip(theirs, ours, strict=True))
    assert match_keys(ours, theirs).to_net == dict(zip(ours, theirs, strict=True))


def test_a_network_that_has_both_names() -> None:
    names = ["linear.weight", "fc.weight"]
    assert match_keys(names, names).to_net == {name: name for name in names}
    assert match_keys(["linear.weight"], names).missing == ("fc.weight",)


def test_wrappers_inside_names() -> None:
    key_map = match_keys(
        ["features.module.0.weight", "fc._orig_mod.bias"], ["features.0.weight", "fc.bias"]
    )
    assert key_map.prefix == ""
    assert key_map.missing == ()
    compiled = match_keys(["conv.weight"], ["_orig_mod.conv.weight"])
    assert compiled.to_net == {"conv.weight": "_orig_mod.conv.weight"}


def test_any_attribute_name_of_a_lightning_module() -> None:
    files = [f"my_classifier.{name}" for name in NAMES] + ["loss.weight", "my_classifier.extra"]
    key_map = match_keys(files, NAMES)
    assert key_map.prefix == "my_classifier."
    assert key_map.outside == ("loss.weight",)
    assert key_map.unexpected == ("my_classifier.extra",)


def test_a_copy_of_the_network_elsewhere() -> None:
    files = [f"{p}{name}" for p in ("defense.teacher.", "ema.", "net.") for name in NAMES]
    assert match_keys(files, NAMES).prefix == "net."
    with pytest.raises(CheckpointError, match="equally well"):
        match_keys([f"{p}.{name}" for p in ("student", "teacher") for name in NAMES], NAMES)
    with pytest.raises(CheckpointError, match=r"^a\.pt: .*equally well"):
        match_keys(
            [f"{p}.{name}" for p in ("model", "net") for name in NAMES], NAMES, source="a.pt"
        )


def test_collisions() -> None:
    for pair in (
        ["fc.weight", "linear.weight"],
        ["a.shortcut.0", "a.downsample.0"],
        ["a.module.b", "a.b"],
    ):
        with pytest.raises(CheckpointError, match="both mean"):
            match_keys(["x.y", *pair], ["x.y", "fc.weight", "a.downsample.0", "a.b"])


def test_missing_and_unexpected() -> None:
    key_map = match_keys(
        ["a.weight", "c.weight"], ["a.weight", "b.weight", "b.num_batches_tracked"]
    )
    assert key_map.missing == ("b.weight",)
    assert key_map.unexpected == ("c.weight",)
    assert match_keys([], ["a"]).missing == ("a",)
    assert match_keys(["a"], []).unexpected == ("a",)


def test_restore_keeps_the_style() -> None:
    net = ["bn.weight", "bn.num_batches_tracked", "shortcut.weight", "shortcut.num_batches_tracked"]
    some = ["m.bn.weight", "m.bn.num_batches_tracked", "m.downsample.weight"]
    state = {name: torch.zeros(1) for name in net}
    restored = match_keys(some, net).restore(state)
    assert list(restored) == [
        "m.bn.weight",
        "m.bn.num_batches_tracked",
        "m.downsample.weight",
        "m.downsample.num_batches_tracked",
    ]
    assert list(match_keys(some[::2], net).restore(state)) == some[::2]
    assert list(match_keys(some, net).restore({"bn.mask": state["bn.weight"]})) == ["m.bn.mask"]
    with pytest.raises(CheckpointError, match="two belong to"):
        match_keys(["a.module.b"], ["a.b"]).restore(
            {"a.b": torch.zeros(1), "a.module.b": torch.ones(1)}
        )


def test_hostile_names_cost_little() -> None:
    names = [("a." * 400) + str(i) for i in range(2_000)]
    assert match_keys(names, NAMES).missing


def test_a_wrapper_of_the_network_itself() -> None:
    """Names of the network get back what they all begin with, also those that are missing."""
    key_map = match_keys(["conv.weight", "y"], ["a.b.conv.weight", "a.b.fc.bias"])
    assert key_map.to_net == {"conv.weight": "a.b.conv.weight"}
    assert key_map.missing == ("a.b.fc.bias",)
    assert key_map.unexpected == ("y",)
    # Nothing fits inside, either: the network's own names are told.
    assert match_keys(["x"], ["a.b.conv.weight"]).missing == ("a.b.conv.weight",)
    # They share the first part alone.
    assert match_keys(["c.w", "d.w"], ["a.c.w", "a.d.w"]).to_net == {"c.w": "a.c.w", "d.w": "a.d.w"}


def test_one_fit_beats_none() -> None:
    """Parts of the file that fit equally badly are no choice between two."""
    assert match_keys(["a.x", "b.x"], ["y"]).missing == ("y",)
    assert match_keys(["a.x", "b.y"], ["x", "z"]).prefix == "a."
