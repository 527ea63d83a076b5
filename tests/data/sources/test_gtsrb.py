import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fst_lightning.data.sources.gtsrb import GTSRB


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A few training and two test images, laid out as torchvision unpacks them."""
    base = tmp_path / "gtsrb"
    generator = np.random.default_rng(0)

    def write(path: Path, width: int, height: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)

    write(base / "GTSRB/Training/00000/00000_00000.ppm", 40, 30)
    for label in range(43):
        write(base / f"GTSRB/Training/{label:05}/00000_00001.ppm", 15, 15)
    write(base / "GTSRB/Final_Test/Images/00000.ppm", 32, 32)
    write(base / "GTSRB/Final_Test/Images/00001.ppm", 33, 31)
    (base / "GT-final_test.csv").write_text(
        "Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId\n"
        "00000.ppm;32;32;5;5;30;30;42\n00001.ppm;33;31;5;5;30;30;7\n"
    )
    return tmp_path


@pytest.mark.filterwarnings("ignore:GTSRB in")
@pytest.mark.parametrize("download", [True, False])
def test_reads_what_torchvision_unpacks(root: Path, download: bool) -> None:
    data = GTSRB(root=root, download=download).load()
    assert data.image_shape == (3, 32, 32)
    assert data.num_classes == 43
    assert sorted(data.train.labels.tolist()) == [0, *range(43)]
    assert data.test.labels.tolist() == [42, 7]
    native = np.asarray(Image.open(root / "gtsrb/GTSRB/Final_Test/Images/00000.ppm"))
    assert np.array_equal(data.test.images[0].permute(1, 2, 0).numpy(), native)
    with Image.open(root / "gtsrb/GTSRB/Training/00000/00000_00000.ppm") as image:
        squeezed = np.asarray(image.resize((32, 32), Image.Resampling.BILINEAR))
    assert any(
        np.array_equal(found.permute(1, 2, 0).numpy(), squeezed) for found in data.train.images
    )
    assert (data.mean, data.std) == ((0.0,) * 3, (1.0,) * 3)


@pytest.mark.filterwarnings("ignore:.*2 test images")
def test_warns_of_a_part(root: Path) -> None:
    with pytest.warns(UserWarning, match="44 train images instead of 26,640"):
        GTSRB(root=root).load()


@pytest.mark.filterwarnings("ignore:GTSRB in")
def test_a_missing_class_is_not_a_shift_of_the_labels(root: Path) -> None:
    shutil.rmtree(root / "gtsrb/GTSRB/Training/00005")
    with pytest.raises(FileNotFoundError, match=r"Expected 43 class folders.*found 42"):
        GTSRB(root=root).load()


def test_missing_files_say_where_they_belong(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"by hand: get GTSRB-Training_fixed\.zip.*gtsrb"):
        GTSRB(root=tmp_path, download=False).load()
