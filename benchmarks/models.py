"""Which networks of torchvision and timm build, have a head, and take a step: ``docs/models.md``.

    python -m benchmarks.models [NAME ...]  # all, or some: torchvision/resnet18 timm/vgg

For every classification network of torchvision and for the smallest network of every file of timm,
the script looks for the head and takes one step of a training, of FST and of fine-tuning, on two
random images of the smallest size that the network takes. Rows are appended to ``--rows``, so that
a run that is stopped goes on; ``--page`` writes the page from them.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
import torchvision
from torch import nn
from torch.nn import functional

from fst_lightning.defenses import FST, Defense, FineTuning
from fst_lightning.models import find_head, timm_model, torchvision_model

NUM_CLASSES = 7
SIZES = (32, 64, 96, 128, 160, 224, 240, 256, 299, 384, 512)
_MOST_COMPARED = 12  # networks of a file of timm, of which the smallest is tried
_LEARNING_RATE = 1e-4


@dataclasses.dataclass(frozen=True)
class Row:
    """What one network does.

    Attributes:
        network: library and name.
        size: height and width of the images, in pixels; 0 if no size was taken.
        head: dotted name of its head; None without one.
        train: whether a step of a training works.
        fst: whether a step of FST works.
        ft: whether a step of fine-tuning works.
        note: why something does not, in one line.
    """

    network: str
    size: int = 0
    head: str | None = None
    train: bool = False
    fst: bool = False
    ft: bool = False
    note: str = ""


def networks() -> list[str]:
    """All classification networks of torchvision, and the smallest one of every file of timm."""
    names = torchvision.models.list_models(module=torchvision.models)
    return [*(f"torchvision/{name}" for name in names), *(f"timm/{name}" for name in families())]


def families() -> list[str]:
    """The smallest of up to twelve networks of every file of timm, evenly spread over the names."""
    import timm

    chosen = []
    for file in timm.list_modules():
        names = timm.list_models(module=file)
        step = max(1, -(-len(names) // _MOST_COMPARED))
        sizes = {}
        for name in names[::step]:
            try:
                with torch.device("meta"):
                    net = timm.create_model(name, num_classes=NUM_CLASSES)
            except Exception:
                continue  # Some compute with tensors while they are built.
            sizes[name] = sum(parameter.numel() for parameter in net.parameters())
        if names:
            chosen.append(min(sizes, key=lambda name: sizes[name]) if sizes else names[0])
    return chosen


def try_network(network: str) -> Row:
    """Build a network and take the three steps."""
    library, _, name = network.partition("/")
    row = Row(network)
    try:
        torch.manual_seed(0)
        build = torchvision_model if library == "torchvision" else timm_model
        net = build(name, NUM_CLASSES)
        row = dataclasses.replace(row, size=_smallest_size(net))
    except Exception as error:
        return dataclasses.replace(row, note=one_line(error))
    try:
        row = dataclasses.replace(row, head=find_head(net, num_classes=NUM_CLASSES)[0])
    except ValueError as error:
        # The listing that follows is long.
        row = dataclasses.replace(row, note=one_line(error).partition(" Name the head")[0])
    done: dict[str, bool] = {}
    note = row.note
    for key, defense in (("train", Defense()), ("fst", FST(head=row.head)), ("ft", FineTuning())):
        if key == "fst" and row.head is None:
            continue
        try:
            take_step(net, defense, row.size)
        except Exception as error:
            note = one_line(error)
        else:
            done[key] = True
    return dataclasses.replace(
        row,
        train=done.get("train", False),
        fst=done.get("fst", False),
        ft=done.get("ft", False),
        note=note,
    )


def take_step(net: nn.Module, defense: Defense, size: int) -> None:
    """Take one step of SGD the way a defense says, on two random images.

    Raises:
        ValueError: If the network does not return finite logits, or no weight changes.
    """
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(2, 3, size, size, generator=generator)
    labels = torch.tensor([0, 1])
    defense.prepare(net, generator)
    before = [parameter.detach().clone() for parameter in _some(net.parameters())]
    try:
        optimizer = torch.optim.SGD(net.parameters(), lr=_LEARNING_RATE)
        net.train()
        loss = defense.loss(net, images, labels)
        penalty = defense.penalty()
        total = loss if penalty is None else loss + penalty
        if not bool(torch.isfinite(total)):
            raise ValueError(f"Expected a finite loss, but got {float(total.detach())}.")
        torch.autograd.backward(total)
        # The statistics of two images make the first gradients of some networks huge.
        nn.utils.clip_grad_value_(net.parameters(), 1.0)
        optimizer.step()
        defense.after_step()
    finally:
        defense.finish()
        net.zero_grad(set_to_none=True)
    after = _some(net.parameters())
    if all(torch.equal(old, new) for old, new in zip(before, after, strict=True)):
        raise ValueError("Expected the step to change the weights, but they are as before.")


def _some(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    """The last few: of a large network, copies of all would take too much memory."""
    return list(parameters)[-4:]


def _smallest_size(net: nn.Module) -> int:
    """The smallest of the sizes that a network takes, in training and in evaluation.

    Raises:
        ValueError: If it takes none of them.
    """
    reason = ""
    for size in SIZES:
        try:
            with torch.no_grad():
                logits = net.train()(torch.zeros(2, 3, size, size))
                if logits.shape != (2, NUM_CLASSES):
                    raise ValueError(f"Expected logits (2, 7), but got {tuple(logits.shape)}.")
                functional.cross_entropy(net.eval()(torch.zeros(2, 3, size, size)), labels_of(2))
            return size
        except Exception as error:
            reason = one_line(error)
    raise ValueError(reason)


def labels_of(count: int) -> torch.Tensor:
    """Some labels, ``(count,)``."""
    return torch.arange(count) % NUM_CLASSES


def one_line(error: Exception) -> str:
    """The first line of an error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def read_rows(file: Path) -> dict[str, Row]:
    """The rows that a file holds, by network."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    rows = [Row(**json.loads(line)) for line in lines]
    return {row.network: row for row in rows}


def table(rows: Iterable[Row]) -> Iterator[str]:
    """The lines of a Markdown table."""
    yield "| network | pixels | head | training | FST | `ft` |"
    yield "|---|---|---|---|---|---|"
    for row in rows:
        steps = ("yes" if done else "no" for done in (row.train, row.fst, row.ft))
        head = "none" if row.head is None else f"`{row.head}`"
        cells = (f"`{row.network.partition('/')[2]}`", str(row.size or ""), head, *steps)
        yield f"| {' | '.join(cells)} |"


def summary(rows: list[Row]) -> str:
    """How many networks do what, in one sentence."""
    counts = {key: sum(bool(getattr(row, key)) for row in rows) for key in ("train", "fst", "ft")}
    return (
        f"{len(rows)} networks: a training step works for {counts['train']}, a step of `ft` for "
        f"{counts['ft']}, a step of FST for {counts['fst']}."
    )


def sections(rows: dict[str, Row]) -> str:
    """The measured part of the page."""
    parts = []
    for library, title in (("torchvision", "torchvision"), ("timm", "timm, one per file")):
        own = [row for row in rows.values() if row.network.startswith(f"{library}/")]
        notes = [f"- `{row.network.partition('/')[2]}`: {row.note}" for row in own if row.note]
        lines = [f"## {title}", "", summary(own), "", *table(own)]
        if notes:
            lines += ["", "What does not work, and why:", "", *notes]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Try the networks that are not in the file of rows yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", help="library/name; all if left out")
    parser.add_argument("--rows", type=Path, default=Path("build/models.jsonl"))
    parser.add_argument(
        "--page", type=Path, help="print the tables into this page, below its marker"
    )
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    arguments.rows.parent.mkdir(parents=True, exist_ok=True)
    known = read_rows(arguments.rows)
    wanted = arguments.names or networks()
    for network in wanted:
        if network in known:
            continue
        row = known[network] = try_network(network)
        with arguments.rows.open("a", encoding="utf-8") as file:
            file.write(json.dumps(dataclasses.asdict(row)) + "\n")
        print(network, row.size, row.head, row.train, row.fst, row.ft, row.note, flush=True)
        gc.collect()
    if arguments.page is not None:
        text = arguments.page.read_text(encoding="utf-8")
        kept = text.partition(MARKER)[0]
        arguments.page.write_text(
            f"{kept}{MARKER}\n\n{sections({name: known[name] for name in wanted})}",
            encoding="utf-8",
        )


MARKER = "<!-- python -m benchmarks.models --page docs/models.md -->"

if __name__ == "__main__":
    main()
