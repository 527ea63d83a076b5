"""What a step of a slow defense costs beside a step of FST, in CPU seconds of the process.

    python benchmarks/defense_steps.py --weights model.safetensors --root DIR

A ResNet-18 with the weights of a file takes steps on 128 images of a folder, after the defense's
work on the whole set. How many passes some defenses take depends on the network's answers, so that
random weights would not do. Seconds of the process and not of the clock: other work beside it
disturbs them less.
"""

from __future__ import annotations

import copy
import sys
import time
from argparse import ArgumentParser
from collections.abc import Callable
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from torch import nn

from benchmarks.machine import environment, write
from benchmarks.setting import MEAN, NUM_CLASSES, STD
from fst_lightning.checkpoints import load_into, read_checkpoint
from fst_lightning.data import ImageFolder
from fst_lightning.defenses import (
    FST,
    AdversarialNeuronPruning,
    CleanData,
    Defense,
    ImplicitUnlearning,
    NeuralPolarizer,
    SharedAdversarialUnlearning,
)
from fst_lightning.models import resnet18

BATCH = 128

DEFENSES: dict[str, tuple[type[Defense], Callable[..., torch.optim.Optimizer], float]] = {
    "fst": (FST, torch.optim.SGD, 0.01),
    "i_bau": (ImplicitUnlearning, torch.optim.Adam, 1e-4),
    "sau": (SharedAdversarialUnlearning, torch.optim.Adam, 1e-4),
    "anp": (AdversarialNeuronPruning, torch.optim.SGD, 0.2),
    "npd": (NeuralPolarizer, torch.optim.SGD, 0.01),
}
"""By option: the class, and the optimizer and the rate that its recipe names."""


def measure(
    net: nn.Module, clean: CleanData, name: str, steps: int, batch_size: int = BATCH
) -> tuple[float, list[float]]:
    """The seconds of the work before the first step, and of each step.

    Args:
        net: The network; a copy is tuned.
        clean: The images.
        name: Of the defense.
        steps: How many are taken.
        batch_size: Images per step.
    """
    kind, optimizer_class, lr = DEFENSES[name]
    defense, net = kind(), copy.deepcopy(net)
    generator = torch.Generator().manual_seed(0)
    defense.prepare(net, generator)
    trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer = optimizer_class(trained, lr=lr)
    before = time.process_time()
    searches = defense.searches_in_bfloat16
    with torch.autocast("cpu", torch.bfloat16, searches, cache_enabled=False):
        net.eval()
        defense.study(net, clean, generator)
        net.train()
        defense.begin_epoch(net, clean, 0, generator)
    whole, seconds = time.process_time() - before, []
    batches = list(clean.batches(batch_size, generator))
    for number in range(steps):
        images, labels = batches[number % len(batches)]
        for module in defense.always_eval():
            module.eval()
        before = time.process_time()
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss, penalty = defense.loss(net, images, labels), defense.penalty()
        torch.autograd.backward(loss if penalty is None else loss + penalty)
        defense.after_backward()
        defense.before_step()
        optimizer.step()
        defense.after_step()
        seconds.append(time.process_time() - before)
    defense.finish()
    return whole, seconds


def main() -> None:
    """Measure, print and write."""
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True, help="of a ResNet-18")
    parser.add_argument("--root", type=Path, required=True, help="folder of images, as data.root")
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--defenses", nargs="+", default=list(DEFENSES), choices=list(DEFENSES))
    parser.add_argument("--json", type=Path, help="write the figures into this file")
    options = parser.parse_args()
    about = environment("cpu", threads=1)
    train = ImageFolder(root=options.root, mean=MEAN, std=STD).load().train
    rows = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(0))[:500]
    clean = CleanData(train.images[rows], train.labels[rows], mean=MEAN, std=STD)
    net = resnet18(NUM_CLASSES, width=options.width).to(memory_format=torch.channels_last)
    load_into(net, read_checkpoint(options.weights), mean=MEAN, std=STD)
    figures: dict[str, dict[str, float]] = {}
    for name in options.defenses:
        whole, seconds = measure(net, clean, name, options.steps)
        step_ms = 1000 * median(seconds[1:] or seconds)
        figures[name] = {"before_s": whole, "step_ms": step_ms}
        print(f"{name:6} before the first step {whole:6.2f} s, step {step_ms:7.1f} ms")
    write(options.json, {"environment": about, "figures": figures})


if __name__ == "__main__":
    main()
