"""Two processes (gloo, CPU) against one process, or against a loop over two shards."""

import itertools
import time
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn import functional

from fst_lightning.attacks import BadNets
from tests.forks import forks
from tests.modules.two_processes import (
    ALPHA,
    BATCH_SIZE,
    MODES,
    NUM_ROWS,
    SIZES,
    WAYS,
    Numbered,
    all_cases,
    make_attack,
    make_net,
    make_tensors,
    worker,
)

pytestmark = [
    pytest.mark.ddp,
    pytest.mark.skipif(not distributed.is_available(), reason="torch without distributed"),
]

SECONDS = 60


@pytest.fixture(scope="module")
def one() -> dict[str, Any]:
    return all_cases(1, rank=0)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of both processes; what hangs is ended."""
    folder = tmp_path_factory.mktemp("ddp")
    processes = [forks().Process(target=worker, args=(rank, str(folder))) for rank in range(2)]
    for process in processes:
        process.start()
    # Starting is slow on a busy machine; once started, the cases are given a minute.
    deadline, started = time.monotonic() + 2 * SECONDS, False
    while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
        if any(process.exitcode for process in processes):
            break  # the other one would wait for it for ever
        if not started and (folder / "rendezvous").exists():
            deadline, started = time.monotonic() + SECONDS, True
        time.sleep(0.05)
    for process in processes:
        if process.is_alive():
            process.kill()
        process.join()
    errors = "\n".join(path.read_text() for path in sorted(folder.glob("*.txt")))
    assert [process.exitcode for process in processes] == [0, 0], errors or "timed out"
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def same(left: dict[str, Tensor], right: dict[str, Tensor], tolerance: float) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        difference = float((value.double() - right[name].double()).abs().max())
        assert difference <= tolerance, f"{name}: {difference}"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("mode", [*MODES, "probing"])
def test_two_batches_are_one_of_twice_the_size(
    one: dict[str, Any], two: list[dict[str, Any]], way: str, mode: str
) -> None:
    """Without BatchNorm, or with one that stands still."""
    key = f"{way}, {mode}"
    same(two[0][key], two[1][key], 0)
    same(two[0][key], one[key], 1e-5)
    assert float((one[key]["head.bias"] - make_net(batch_norm=False)[-1].bias).abs().max()) > 1e-2


def test_a_trigger_is_learned_alike_by_two(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    """Each process has a gradient of its own; and none once the trigger is frozen."""
    found, other, alone = (results["learned trigger"] for results in (*two, one))
    same(found, other, 0)
    same(found, alone, 1e-5)
    assert float(alone["attack.shift"].abs().min()) > 0.05


@pytest.mark.parametrize("mode", [*MODES, "probing", "norm"])
def test_callback_equals_module(two: list[dict[str, Any]], mode: str) -> None:
    same(two[0][f"module, {mode}"], two[0][f"callback, {mode}"], 1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_batch_norm_sees_its_own_shard(
    one: dict[str, Any], two: list[dict[str, Any]], way: str
) -> None:
    """Statistics of a shard each, averaged gradients, running statistics of the first process."""
    net = make_net(batch_norm=True)
    original = net.state_dict()["head.weight"].clone()
    start = first_step_state(net)
    shadow = make_net(batch_norm=True)
    images, labels = make_tensors()
    pixels = images.float() / 255
    optimizer = torch.optim.SGD(start.parameters(), lr=0.1, momentum=0.9)
    head = start.get_submodule("head")
    assert isinstance(head, nn.Linear)
    for _ in range(2):
        for rows in torch.split(torch.arange(NUM_ROWS), 2 * BATCH_SIZE):
            shadow.load_state_dict(start.state_dict())
            for net_of_rank, shard in ((start, rows[0::2]), (shadow, rows[1::2])):
                net_of_rank.train()
                net_of_rank.zero_grad()
                loss = functional.cross_entropy(net_of_rank(pixels[shard]), labels[shard])
                weight = net_of_rank.get_submodule("head").get_parameter("weight")
                (loss + ALPHA * (weight * original).sum()).backward()
            for mine, other in zip(start.parameters(), shadow.parameters(), strict=True):
                assert mine.grad is not None
                assert other.grad is not None
                mine.grad = (mine.grad + other.grad) / 2
            optimizer.step()
            with torch.no_grad():
                head.weight *= original.norm() / head.weight.norm()
    same(two[0][f"{way}, norm"], start.state_dict(), 1e-5)
    # Another thing than one process with large batches.
    gap = two[0][f"{way}, norm"]["norm.running_mean"] - one[f"{way}, norm"]["norm.running_mean"]
    assert float(gap.abs().max()) > 1e-5


def first_step_state(net: nn.Sequential) -> nn.Sequential:
    """The network with its new head, drawn by the defense itself in one process."""
    from fst_lightning.defenses import FST

    FST(ALPHA).prepare(net, torch.Generator().manual_seed(0))
    return net


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("when", ["first", "last"])
def test_heads_are_equal_though_seeds_differ(
    one: dict[str, Any], two: list[dict[str, Any]], way: str, when: str
) -> None:
    key = f"{way}, {when}"
    assert torch.equal(two[0]["heads"][key], two[1]["heads"][key])
    if when == "first":  # the first process decides, and draws as it would alone
        assert torch.equal(two[0]["heads"][key], one["heads"][key])


def test_work_on_all_images_ends_alike_everywhere(
    one: dict[str, Any], two: list[dict[str, Any]]
) -> None:
    """What the first process found counts; each has seen all of them, and not its share."""
    same(two[0]["all images"], two[1]["all images"], 0)
    same(two[0]["all images"], one["all images"], 1e-5)
    assert torch.equal(one["all images"]["seen"].sort().values, make_tensors()[1].sort().values)


def slow_counts(weights: dict[str, Tensor], num_test: int) -> dict[str, tuple[int, int]]:
    """Row by row."""
    net = make_net(batch_norm=True)
    net.load_state_dict(weights)
    net.eval()
    attack: BadNets = make_attack()
    data = Numbered(num_test).load()
    hits: dict[str, list[bool]] = {"ca": [], "asr": [], "ra": [], "control": []}
    for image, label in zip(data.test.images, data.test.labels.tolist(), strict=True):
        pixels = image[None].float() / 255
        clean, triggered = (int(net((x - 0.4) / 0.3).argmax()) for x in (pixels, attack(pixels)))
        hits["ca"].append(clean == label)
        if label != 0:
            hits["asr"].append(triggered == 0)
            hits["ra"].append(triggered == label)
            hits["control"].append(clean == 0)
    return {name: (sum(values), len(values)) for name, values in hits.items()}


@pytest.mark.parametrize(("num_test", "batch_size"), SIZES)
def test_every_row_counts_once(
    one: dict[str, Any], two: list[dict[str, Any]], num_test: int, batch_size: int
) -> None:
    key = f"evaluate {num_test} by {batch_size}"
    assert two[0][key]["counts"] == two[1][key]["counts"] == one[key]["counts"]
    counts = two[0][key]["counts"]
    assert counts["ca"][1] == num_test
    assert counts == slow_counts(two[0][key]["net"], num_test)
    for name, (right, total) in counts.items():
        for results in (*two, one) if name != "control" else ():  # reported, not logged
            assert results[key]["logged"][f"val/{name}"] == pytest.approx(right / total)


def test_batch_norm_buffers_are_equal_after_validation(two: list[dict[str, Any]]) -> None:
    for num_test, batch_size in SIZES:
        key = f"evaluate {num_test} by {batch_size}"
        same(two[0][key]["net"], two[1][key]["net"], 0)


def seen(*epochs: list[list[int]]) -> list[int]:
    return sorted(itertools.chain.from_iterable(itertools.chain.from_iterable(epochs)))


def test_order_of_training_rows(one: dict[str, Any], two: list[dict[str, Any]]) -> None:
    """Together they see each row once an epoch, in another order every epoch."""
    for epoch in range(2):
        assert seen(*(results["order"][epoch] for results in two)) == list(range(NUM_ROWS))
        assert seen(one["order"][epoch]) == list(range(NUM_ROWS))
        assert {len(batch) for batch in two[0]["order"][epoch]} == {BATCH_SIZE}
    for results in (*two, one):
        assert results["order"][0] != results["order"][1]


def test_metrics_callback_sums_over_processes(
    one: dict[str, Any], two: list[dict[str, Any]]
) -> None:
    assert one["metrics"].keys() >= {"val/ca", "val/asr", "val/ra"}
    for name, value in one["metrics"].items():
        assert two[0]["metrics"][name] == two[1]["metrics"][name] == pytest.approx(value)
    assert 0 < one["metrics"]["val/ca"] < 1
