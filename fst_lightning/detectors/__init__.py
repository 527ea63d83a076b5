"""Decide whether a network is backdoored: one detector per file, plain PyTorch."""

from fst_lightning.detectors.bti_dbf import InvertedGenerator
from fst_lightning.detectors.detector import (
    Detector,
    Evidence,
    Scan,
    check_num_classes,
)
from fst_lightning.detectors.head_weights import HeadWeights
from fst_lightning.detectors.mm_bd import MaximumMargin
from fst_lightning.detectors.nc import SmallestPatch
from fst_lightning.detectors.noise_response import NoiseResponse
from fst_lightning.detectors.outlier import ALARM, outlier_p_value, outlier_threshold
from fst_lightning.detectors.universal import UniversalShift
from fst_lightning.detectors.verdict import FEWEST_REFERENCES, Verdict, combined

__all__ = [
    "ALARM",
    "FEWEST_REFERENCES",
    "Detector",
    "Evidence",
    "HeadWeights",
    "InvertedGenerator",
    "MaximumMargin",
    "NoiseResponse",
    "Scan",
    "SmallestPatch",
    "UniversalShift",
    "Verdict",
    "check_num_classes",
    "combined",
    "outlier_p_value",
    "outlier_threshold",
]
