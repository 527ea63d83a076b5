import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader

from fst_lightning.data import ImageSet, decode
from fst_lightning.data.decode import UnreadableImageError, decode_images
from fst_lightning.data.rows import Rows, as_gathered
from fst_lightning.data.stream import StreamedImages

SIZE, COUNT = 4, 9


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    pixels = np.random.default_rng(0).integers(0, 256, (COUNT, 7, 6, 3), dtype=np.uint8)
    paths = [tmp_path / f"bild ü {row}.png" for row in range(COUNT)]
    for path, image in zip(paths, pixels, strict=True):
        Image.fromarray(image).save(path)
    return paths


KEYS = [
    0,
    -1,
    slice(None),
    slice(2, 20, 3),
    slice(0, 0),
    [3, 3, 0],
    torch.tensor([8, 1, 1]),
    torch.tensor([], dtype=torch.int64),
    torch.tensor(5),
    torch.arange(COUNT) % 2 == 0,
]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_rows_are_those_of_the_tensor(key: Any, files: list[Path]) -> None:
    held, streamed = decode_images(files, SIZE), StreamedImages(files, SIZE)
    assert torch.equal(streamed[key], held[key])
    rows = torch.tensor([8, 2, 2, 0, 5, 4, 3, 1, 7])
    assert torch.equal(streamed.only(rows)[key], held[rows][key])


def test_it_looks_like_the_tensor(files: list[Path]) -> None:
    held, streamed = decode_images(files, SIZE), StreamedImages(files, SIZE)
    for name in ("shape", "dtype", "device", "nbytes"):
        assert getattr(streamed, name) == getattr(held, name)
    assert (len(streamed), streamed.dim()) == (len(held), held.dim())
    assert list(streamed.paths()) == files
    with pytest.raises(IndexError):
        streamed[COUNT]


@pytest.mark.parametrize(
    ("use", "name"),
    [
        (lambda images: images.clone(), "clone"),
        (lambda images: images.float() / 255, "float"),
        (lambda images: torch.split(images, 2), "torch.split"),
        (lambda images: torch.cat([images, images]), "torch.cat"),
        (lambda images: torch.equal(torch.zeros(1), images), "torch.equal"),
    ],
)
def test_what_would_take_all_of_them_is_refused(
    use: Callable[[Any], object], name: str, files: list[Path]
) -> None:
    with pytest.raises(AttributeError, match=f"in memory for `{name}`, but .* images\\[rows\\]"):
        use(StreamedImages(files, SIZE))


def test_only_the_rows_that_are_asked_for_are_decoded(files: list[Path]) -> None:
    images = ImageSet(StreamedImages(files, SIZE).as_tensor(), torch.arange(COUNT))
    files[4].unlink()
    subset = images.subset([0, 4, 8])
    assert subset.streamed
    assert subset.labels.tolist() == [0, 4, 8]
    assert torch.equal(subset.images[[0, 2]], decode_images([files[0], files[8]], SIZE))
    with pytest.raises(UnreadableImageError, match=r"bild ü 4\.png: .*No such file"):
        subset.in_memory()


def loader(images: StreamedImages, **options: Any) -> DataLoader[Any]:
    data = ImageSet(images.as_tensor(), torch.zeros(len(images), dtype=torch.int64))
    rows = Rows(data, torch.zeros(len(images), dtype=torch.bool))
    return DataLoader(rows, batch_size=4, collate_fn=as_gathered, **options)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"num_workers": 2},
        pytest.param(
            {"num_workers": 1, "multiprocessing_context": "spawn"}, marks=pytest.mark.slow
        ),
    ],
    ids=str,
)
def test_batches_are_the_same_from_any_process(options: dict[str, Any], files: list[Path]) -> None:
    found = torch.cat([images for images, *_ in loader(StreamedImages(files, SIZE), **options)])
    assert torch.equal(found, decode_images(files, SIZE))


def test_another_process_gets_the_same(files: list[Path]) -> None:
    streamed = StreamedImages(files, SIZE).only(torch.tensor([3, 1]))
    again = pickle.loads(pickle.dumps(streamed))
    assert torch.equal(again[:], streamed[:])


def test_a_damaged_file_is_one_line_from_any_process(files: list[Path]) -> None:
    files[8].write_bytes(files[8].read_bytes()[:60])
    with pytest.raises(UnreadableImageError) as here:
        StreamedImages(files, SIZE)[:]
    try:
        raise here.value
    except UnreadableImageError:
        # What a DataLoader does; after an error it waits five seconds for its processes.
        beside: Any = cast(Any, ExceptionWrapper)(where="in DataLoader worker process 0")
    with pytest.raises(UnreadableImageError) as there:
        beside.reraise()
    assert str(there.value) == str(here.value)
    assert str(here.value).startswith(f"Could not read the image {files[8]}: ")


def test_a_bomb_is_refused_when_it_is_its_turn(
    files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fst_lightning.image_files.MAX_PIXELS", 100)
    Image.new("RGB", (11, 10)).save(files[2])
    images = StreamedImages(files, SIZE)
    assert len(images[:2]) == 2
    with pytest.raises(UnreadableImageError, match=r"declares 11x10 pixels, and the limit is 100"):
        images[2]


def test_workers_share_cores_and_memory(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    pools, budgets = [], []

    class Pool(ThreadPoolExecutor):
        def __init__(self, threads: int) -> None:
            pools.append(threads)
            super().__init__(threads)

    class Budget(decode._Budget):
        def __init__(self, most: int) -> None:
            budgets.append(most)
            super().__init__(most)

    monkeypatch.setattr(decode, "ThreadPoolExecutor", Pool)
    monkeypatch.setattr(decode, "_Budget", Budget)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    images: list[Tensor] = []
    for workers in (None, 3, 20):
        info = None if workers is None else type("Info", (), {"num_workers": workers})
        monkeypatch.setattr("fst_lightning.data.stream.get_worker_info", lambda info=info: info)
        images.append(StreamedImages(files, SIZE)[:])
    assert pools == [8, 2, 1]
    opened, decoded = budgets[::2], budgets[1::2]
    assert decoded == [1_000_000_000, 333_333_333, 50_000_000]
    assert opened == [500_000_000, 166_666_666, 25_000_000]
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])
