"""Networks for small images, library networks, and the search for the head."""

from fst_lightning.models.airbench import Airbench, airbench
from fst_lightning.models.build import MODELS, check_description
from fst_lightning.models.channels import set_input_channels
from fst_lightning.models.find_head import find_head
from fst_lightning.models.head import Head, apply_head, is_head, num_inputs, weight_matrix
from fst_lightning.models.hooks import inputs_of
from fst_lightning.models.libraries import (
    LibraryInput,
    timm_input,
    timm_model,
    torchvision_input,
    torchvision_model,
)
from fst_lightning.models.memory_format import use_fastest_layout
from fst_lightning.models.outputs import logits_of
from fst_lightning.models.preact_resnet import PreActResNet, preact_resnet18
from fst_lightning.models.resnet import SmallImageResNet, resnet18, small_resnet
from fst_lightning.models.softmax import logits_taken, return_as_before, take_logits, takes_logits
from fst_lightning.models.vgg import SmallImageVGG, vgg19_bn

__all__ = [
    "MODELS",
    "Airbench",
    "Head",
    "LibraryInput",
    "PreActResNet",
    "SmallImageResNet",
    "SmallImageVGG",
    "airbench",
    "apply_head",
    "check_description",
    "find_head",
    "inputs_of",
    "is_head",
    "logits_of",
    "logits_taken",
    "num_inputs",
    "preact_resnet18",
    "resnet18",
    "return_as_before",
    "set_input_channels",
    "small_resnet",
    "take_logits",
    "takes_logits",
    "timm_input",
    "timm_model",
    "torchvision_input",
    "torchvision_model",
    "use_fastest_layout",
    "vgg19_bn",
    "weight_matrix",
]
