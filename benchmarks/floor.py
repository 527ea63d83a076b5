"""The floor: the best loop that we could write by hand for this network.

No Lightning, no logging, no attack but this one: uint8 images on the device, one gather a batch,
crop and flip as one gather, bf16 autocast where the hardware has it, channels_last, fused SGD, and
nothing that makes the host wait. On a GPU the whole step, from the gather to the new weights, is
one CUDA graph.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.setting import (
    ALPHA,
    CROP_PADDING,
    MEAN,
    OPACITY,
    STD,
    TARGET,
    WARM_UP,
    Clock,
    Setting,
    head_of,
    now,
    pattern,
    poisoned_rows,
)
from fst_lightning.pipelines.build.precision import resolve_precision

EVAL_BATCH = {"cpu": 128, "cuda": 1000}


def train(setting: Setting) -> float:
    """Train on poisoned images; images per second."""
    return _fit(setting, None)


def tune(setting: Setting) -> float:
    """Tune by FST on clean images; images per second."""
    return _fit(setting, ALPHA)


@torch.inference_mode()
def evaluate(setting: Setting) -> float:
    """Count hits on all clean and all triggered test images; images per second."""
    clean, others = setting.test_images()
    net = setting.network().to(memory_format=torch.channels_last).to(setting.device).eval()
    prepare = _Inputs(setting)
    size = EVAL_BATCH[setting.device]
    started = now(setting.device)
    for images, triggered in ((clean, False), (others, True)):
        hits = torch.zeros((), dtype=torch.int64, device=setting.device)
        pixels, labels = images.images.to(setting.device), images.labels.to(setting.device)
        for start in range(0, len(images), size):
            batch = pixels[start : start + size].float() / 255
            if triggered:
                batch = prepare.stamp(batch)
            with _autocast(setting):
                logits = net(prepare.normalize(batch))
            hits += (logits.argmax(1) == labels[start : start + size]).sum()
        hits.item()
    return (len(clean) + len(others)) / (now(setting.device) - started)


def _fit(setting: Setting, alpha: float | None) -> float:
    data = setting.images().train
    net = setting.network().to(memory_format=torch.channels_last).to(setting.device)
    head = head_of(net)
    original, norm = head.weight.detach().clone(), head.weight.detach().norm()
    if alpha is not None:
        head.reset_parameters()
    optimizer = torch.optim.SGD(
        net.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, fused=True
    )
    pixels, labels = data.images.to(setting.device), data.labels.to(setting.device)
    poisoned = poisoned_rows(len(data)).to(setting.device)
    prepare = _Inputs(setting)
    clock = Clock(setting)
    order = torch.randperm(len(data), device=setting.device)
    net.train()

    def step(rows: Tensor) -> None:
        batch, targets = pixels[rows].float() / 255, labels[rows]
        if alpha is None:
            stamped = poisoned[rows]
            batch = torch.where(stamped[:, None, None, None], prepare.stamp(batch), batch)
            targets = torch.where(stamped, TARGET, targets)
        with _autocast(setting):
            logits = net(prepare.normalize(prepare.augment(batch)))
            loss = functional.cross_entropy(logits, targets)
        if alpha is not None:
            loss = loss + alpha * (head.weight * original).sum()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        if alpha is not None:
            with torch.no_grad():
                head.weight.mul_(norm / head.weight.norm())

    batches = torch.split(order, setting.batch_size)
    act = _captured(step, batches[0]) if setting.device == "cuda" else step
    for rows in batches:
        act(rows)
        clock.step()
    return clock.rate


def _captured(step: Callable[[Tensor], None], rows: Tensor) -> Callable[[Tensor], None]:
    """The step as one graph, for batches as large as this one."""
    here, aside = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    aside.wait_stream(here)
    with torch.cuda.stream(aside):
        for _ in range(WARM_UP):
            step(rows)
    here.wait_stream(aside)
    static, graph = rows.clone(), torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(static)

    def replay(rows: Tensor) -> None:
        static.copy_(rows)
        graph.replay()

    return replay


class _Inputs:
    """What happens to a batch of images in [0, 1] before the network."""

    def __init__(self, setting: Setting) -> None:
        self.pattern = pattern((3, 32, 32)).to(setting.device)
        self.mean = torch.tensor(MEAN, device=setting.device)[:, None, None]
        self.inverse = 1 / torch.tensor(STD, device=setting.device)[:, None, None]

    def stamp(self, images: Tensor) -> Tensor:
        return torch.lerp(images, self.pattern, OPACITY).mul_(255).round_().div_(255)

    def normalize(self, images: Tensor) -> Tensor:
        images = (images - self.mean) * self.inverse
        return images.contiguous(memory_format=torch.channels_last)

    def augment(self, images: Tensor) -> Tensor:
        count, _, height, width = images.shape
        device, pad = images.device, CROP_PADDING
        windows = functional.pad(images, [pad] * 4).unfold(2, height, 1).unfold(3, width, 1)
        top, left = torch.randint(2 * pad + 1, (2, count), device=device)
        images = windows[torch.arange(count, device=device), :, top, left]
        mirrored = torch.rand(count, device=device) < 0.5
        return torch.where(mirrored[:, None, None, None], images.flip(3), images)


def _autocast(setting: Setting) -> torch.autocast:
    precision = resolve_precision("auto", "gpu" if setting.device == "cuda" else "cpu")
    return torch.autocast(
        setting.device,
        torch.bfloat16,
        enabled=precision == "bf16-mixed",
        cache_enabled=setting.device == "cpu",  # A graph must not hold casts of older weights.
    )
