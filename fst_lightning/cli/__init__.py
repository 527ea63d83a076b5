"""The commands; composing and checking a configuration imports no torch."""

from fst_lightning.cli.main import detect, purify, train

__all__ = ["detect", "purify", "train"]
