"""Purify networks and training sets: one defense per file, plain PyTorch."""

from fst_lightning.defenses.abl import AntiBackdoorLearning
from fst_lightning.defenses.ac import ActivationClustering
from fst_lightning.defenses.anp import AdversarialNeuronPruning
from fst_lightning.defenses.auto import AutoPurification
from fst_lightning.defenses.bnp import BatchNormPruning
from fst_lightning.defenses.bti_dbf import BTIDBF
from fst_lightning.defenses.clp import ChannelLipschitzPruning
from fst_lightning.defenses.common.clean_data import CleanData, PoisonedData
from fst_lightning.defenses.common.dataset_defense import DatasetDefense
from fst_lightning.defenses.common.defense import Defense, apply
from fst_lightning.defenses.common.head_defense import HeadDefense, Reinit
from fst_lightning.defenses.common.patch_inversion import Triggers, anomaly_index, invert_triggers
from fst_lightning.defenses.dbd import DecouplingDefense
from fst_lightning.defenses.ep import EntropyPruning
from fst_lightning.defenses.fe_tuning import FeatureExtractorTuning
from fst_lightning.defenses.fip import FisherPurification
from fst_lightning.defenses.flare import FLARE
from fst_lightning.defenses.fp import FinePruning
from fst_lightning.defenses.fst import FST
from fst_lightning.defenses.ft import FineTuning
from fst_lightning.defenses.ft_init import FineTuningInit
from fst_lightning.defenses.ft_sam import FineTuningSAM
from fst_lightning.defenses.i_bau import ImplicitUnlearning
from fst_lightning.defenses.lp import LinearProbing
from fst_lightning.defenses.mcr import ModeConnectivityRepair
from fst_lightning.defenses.nad import NeuralAttentionDistillation
from fst_lightning.defenses.nc import NeuralCleanse
from fst_lightning.defenses.nft import NeuralMaskFineTuning
from fst_lightning.defenses.ngf import NaturalGradientTuning
from fst_lightning.defenses.none import NoDefense
from fst_lightning.defenses.npd import NeuralPolarizer
from fst_lightning.defenses.pam import PathAwareMinimization
from fst_lightning.defenses.rnp import ReconstructiveNeuronPruning
from fst_lightning.defenses.sau import SharedAdversarialUnlearning
from fst_lightning.defenses.spectral import SpectralSignatures

__all__ = [
    "BTIDBF",
    "FLARE",
    "FST",
    "ActivationClustering",
    "AdversarialNeuronPruning",
    "AntiBackdoorLearning",
    "AutoPurification",
    "BatchNormPruning",
    "ChannelLipschitzPruning",
    "CleanData",
    "DatasetDefense",
    "DecouplingDefense",
    "Defense",
    "EntropyPruning",
    "FeatureExtractorTuning",
    "FinePruning",
    "FineTuning",
    "FineTuningInit",
    "FineTuningSAM",
    "FisherPurification",
    "HeadDefense",
    "ImplicitUnlearning",
    "LinearProbing",
    "ModeConnectivityRepair",
    "NaturalGradientTuning",
    "NeuralAttentionDistillation",
    "NeuralCleanse",
    "NeuralMaskFineTuning",
    "NeuralPolarizer",
    "NoDefense",
    "PathAwareMinimization",
    "PoisonedData",
    "ReconstructiveNeuronPruning",
    "Reinit",
    "SharedAdversarialUnlearning",
    "SpectralSignatures",
    "Triggers",
    "anomaly_index",
    "apply",
    "invert_triggers",
]
