"""The commands; composing and checking a configuration imports no torch."""

from fst_lightning.cli.main import purify, train

__all__ = ["purify", "train"]
