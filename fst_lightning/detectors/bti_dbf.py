"""BTI-DBF as a detector: where a generator that spares the benign features sends all images.

Example:
    ``python detect.py checkpoint=FILE 'detector=[bti_dbf]' detector_reference=DIR``
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import nn

from fst_lightning.defenses.common.clean_data import CleanData, LabeledImages
from fst_lightning.defenses.common.trigger_generator import InvertingDefense
from fst_lightning.detectors.detector import Detector, Evidence, balanced_subset
from fst_lightning.detectors.outlier import Null
from fst_lightning.models import find_head
from fst_lightning.validate import check_number


class InvertedGenerator(Detector):
    r"""Look for a class that a recovered trigger generator sends images of other classes to.

    *How it works.* A mask splits the features into those that the clean task needs and the rest. A
    small network then learns to change images a little so that the rest moves and the benign
    features stay. On a backdoored network the images go to the target class. The cost does not
    depend on the number of classes.

    .. math:: s_k = \frac{|\{i : y_i \ne k,\; \arg\max f(g(x_i)) = k\}|}{|\{i : y_i \ne k\}|}

    with the network :math:`f` and the generator :math:`g`.

    Args:
        images: Clean images to invert with, at most, 1 or more.
        epochs: Passes of the generator over them, 1 or more.
        head: Dotted name of the head; None finds it.

    Shape:
        - images: ``(N, C, H, W)`` float, normalized, with labels ``(N,)``.
        - statistics: ``(K,)``, one per class.

    Raises:
        ValueError: If an argument is out of its range, or no head is found.

    Needs:
        Clean images with true labels and a linear head. A p-value needs reference networks.

    Cost:
        One inversion, whatever the number of classes, for the network and for each reference.

    When it fails:
        On a clean network the generator also sends the images somewhere, so that there is no
        p-value without ``detector_reference``. All-to-all backdoors have no single class that
        images go to.

    Note:
        Sees patches, blended, sample-specific and warping triggers.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(48, 6), nn.ReLU(), nn.Linear(6, 5))
        >>> images = LabeledImages(torch.rand(8, 3, 4, 4), torch.zeros(8, dtype=torch.int64))
        >>> scan = InvertedGenerator(epochs=1).scan(net, images, torch.Generator())
        >>> scan.p_value is None, len(scan.evidence.statistics)
        (True, 5)

    References:
        Xu, Huang, Li, Wang, Hu, Cui and Liu, "Towards reliable and efficient backdoor trigger
        inversion via decoupling benign features", ICLR 2024,
        https://openreview.net/forum?id=Tw9wemV6cb

    See Also:
        - :class:`~fst_lightning.defenses.BTIDBF`: unlearns what this inversion finds.
        - :class:`~fst_lightning.detectors.SmallestPatch`: inverts one patch per class.
    """

    null: ClassVar[Null | None] = None

    def __init__(self, images: int = 300, epochs: int = 15, head: str | None = None) -> None:
        check_number("images", images, low=1, whole=True)
        check_number("epochs", epochs, low=1, whole=True)
        self.images = images
        self.epochs = epochs
        self.head = head

    def measure(
        self,
        net: nn.Module,
        images: LabeledImages,
        num_classes: int,
        generator: torch.Generator,
    ) -> Evidence:
        """Invert, and count where the images go."""
        some = balanced_subset(images, self.images, generator)
        clean = CleanData(some.images, some.labels, mean=some.mean, std=some.std)
        head, _ = find_head(net, self.head, num_classes)
        inversion = InvertingDefense(generator_epochs=self.epochs, head=head)
        inversion.prepare(net, generator)
        inversion.to(images.device)
        inversion.invert(net, clean, generator)
        rates = inversion.rates[-1]
        inversion.finish()
        details = {"success": [round(float(rate), 4) for rate in rates]}
        return Evidence(rates, details, trigger=inversion.triggered)
