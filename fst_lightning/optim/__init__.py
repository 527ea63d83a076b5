"""Optimizers and a schedule that torch does not have; plain PyTorch."""

from fst_lightning.optim.lookahead_sgd import LookaheadSGD
from fst_lightning.optim.muon_sgd import MuonSGD
from fst_lightning.optim.triangle import triangle

__all__ = ["LookaheadSGD", "MuonSGD", "triangle"]
