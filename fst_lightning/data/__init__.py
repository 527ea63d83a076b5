"""Sources of images, and the data modules that feed them to a run."""

from fst_lightning.data.datamodule import BackdoorDataModule
from fst_lightning.data.defender_images import clean_rows, reserve, with_training_images
from fst_lightning.data.images import ImageData, ImageSet
from fst_lightning.data.sources.cifar import CIFAR10, CIFAR100
from fst_lightning.data.sources.digits import Digits
from fst_lightning.data.sources.fake import Fake
from fst_lightning.data.sources.gtsrb import GTSRB
from fst_lightning.data.sources.image_folder import ImageFolder
from fst_lightning.data.sources.npz import Npz
from fst_lightning.data.sources.source import Source

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "GTSRB",
    "BackdoorDataModule",
    "Digits",
    "Fake",
    "ImageData",
    "ImageFolder",
    "ImageSet",
    "Npz",
    "Source",
    "clean_rows",
    "reserve",
    "with_training_images",
]
