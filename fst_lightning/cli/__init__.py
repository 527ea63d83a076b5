"""The commands: compose and check a configuration without importing torch, then run it."""

from fst_lightning.cli.main import detect, purify, train

__all__ = ["detect", "purify", "train"]
