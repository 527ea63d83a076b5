"""Where images come from, and how they reach a training run."""

from fst_lightning.data.cifar import CIFAR10, CIFAR100
from fst_lightning.data.datamodule import BackdoorDataModule
from fst_lightning.data.digits import Digits
from fst_lightning.data.fake import Fake
from fst_lightning.data.gtsrb import GTSRB
from fst_lightning.data.image_folder import ImageFolder
from fst_lightning.data.images import ImageData, ImageSet
from fst_lightning.data.npz import Npz
from fst_lightning.data.protocol import clean_rows, reserve, with_training_images
from fst_lightning.data.source import Source

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
