"""Natural gradient fine-tuning (NGF): tune the head towards a smooth minimum.

Example:
    ``python purify.py attack=blended defense=ngf``
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from fst_lightning.defenses.common.clean_data import CleanData
from fst_lightning.defenses.common.features import vectors
from fst_lightning.defenses.common.head_defense import HeadDefense
from fst_lightning.defenses.common.whole_set import keep_modes
from fst_lightning.models import weight_matrix
from fst_lightning.validate import check_number


class NaturalGradientTuning(HeadDefense):
    r"""Tune only the head, by natural gradients.

    *How it works.* A backdoored network lies in a sharper minimum of the loss than a clean one.
    This defense tunes the last layer on clean images and divides each gradient by the curvature of
    the network's predictions (the Fisher matrix). Steps are thus small along sharp directions and
    large along flat ones, and lead to a smoother minimum. A penalty keeps weights near their old
    values if clean predictions depend on them.

    .. math:: \theta \leftarrow \theta - \eta (F + \lambda I)^{-1} \nabla \Big(\mathrm{CE} +
        \frac{\eta_F}{2} \sum_j \bar F_j (\theta_j - \bar\theta_j)^2\Big), \qquad
        F = \frac1n \sum_i g_i g_i^\top

    with the weight and bias :math:`\theta` of the head, the learning rate :math:`\eta`, the Fisher
    matrix :math:`F`, the damping :math:`\lambda`, the gradients
    :math:`g_i = \nabla_\theta \log p_\theta(\hat y_i | x_i)` for labels :math:`\hat y_i` drawn from
    the network's prediction for image :math:`x_i`, the original head :math:`\bar\theta` and the
    diagonal :math:`\bar F` of its Fisher matrix. :math:`F` is estimated on the clean images before
    each epoch, and never formed: with the :math:`n` rows :math:`g_i` stacked as :math:`G`, in
    float64,

    .. math:: (F + \lambda I)^{-1} g = \big(g - G^\top (n \lambda I + G G^\top)^{-1} G g\big) /
        \lambda

    Args:
        damping: Damping :math:`\lambda`, greater than 0; a natural gradient is at most
            :math:`1 / \lambda` times as long as the gradient.
        ewc_weight: Weight :math:`\eta_F` of the penalty, 0 or more.
        fisher_images: Images to estimate :math:`F` on at most, 1 or more; memory grows with its
            square and time with its cube.
        head: Dotted name of the linear head; None finds it.

    Shape:
        - images: ``(N, C, H, W)`` float, normalized.
        - labels: ``(N,)`` int64.

    Raises:
        ValueError: If an argument is out of its range, or the input of the head is not ``(N, d)``.

    Needs:
        Clean images with true labels, and a linear head with inputs of shape ``(N, d)``.

    Cost:
        Before each epoch, one pass over at most ``fisher_images`` images and a linear system with
        one unknown per image. Memory grows with the square of their number, time with the cube.

    When it fails:
        The features stay as they are, so that the head alone has to undo the backdoor. Clean images
        have no gradient along the direction of a trigger, and most backdoors stay.

    Note:
        All other layers are frozen, and BatchNorm stays in evaluation mode. The labels
        :math:`\hat y_i` are drawn from the predictions, which gives the Fisher matrix itself and
        not the covariance of the training gradients.

    Example:
        >>> net = nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> defense = NaturalGradientTuning()
        >>> defense.prepare(net, torch.Generator())
        >>> [name for name, parameter in net.named_parameters() if parameter.requires_grad]
        ['3.weight', '3.bias']

    References:
        Karim, Al Arafat, Khalid, Guo and Rahnavard, "Efficient backdoor removal through natural
        gradient fine-tuning", 2023, arXiv 2306.17441.

    See Also:
        - :class:`~fst_lightning.defenses.FisherPurification`: its successor, for the whole network.
        - :class:`~fst_lightning.defenses.LinearProbing`: tunes the head by plain gradients.
    """

    features: Tensor
    """The input of the head for each image, ``(n, d)``, with a 1 appended if it has a bias."""

    errors: Tensor
    """The gradient of :math:`\\log p` of the drawn label by the head's output, ``(n, K)``."""

    fisher_diagonal: Tensor
    """:math:`\\bar F`, ``(K, d)`` or ``(K, d + 1)``; empty before :meth:`study`."""

    anchor: Tensor
    """:math:`\\bar\\theta`, of the same shape; empty before :meth:`prepare`."""

    def __init__(
        self,
        damping: float = 0.01,
        ewc_weight: float = 1.0,
        fisher_images: int = 2000,
        head: str | None = None,
    ) -> None:
        super().__init__(reinit="none", project_norm=False, train_features=False, head=head)
        check_number("damping", damping, low_open=True)
        check_number("ewc_weight", ewc_weight)
        check_number("fisher_images", fisher_images, low=1, whole=True)
        self.damping = damping
        self.ewc_weight = ewc_weight
        self.fisher_images = fisher_images
        for name in ("features", "errors", "fisher_diagonal", "anchor"):
            self.register_buffer(name, torch.empty(0))
        self._factor: list[Tensor] = []

    def prepare(self, net: nn.Module, generator: torch.Generator) -> None:
        """Freeze everything but the head, and copy the head."""
        super().prepare(net, generator)
        self.anchor = joined(weight_matrix(self.linear), self.linear.bias).detach().clone()
        self.features = self.errors = self.fisher_diagonal = torch.empty(0)
        self._factor = []

    def study(self, net: nn.Module, clean: CleanData, generator: torch.Generator) -> None:
        """Estimate the diagonal of the Fisher matrix of the original head."""
        features, errors = self.head_gradients(net, clean, generator)
        self.fisher_diagonal = errors.square().T @ features.square() / len(features)

    def begin_epoch(
        self, net: nn.Module, clean: CleanData, epoch: int, generator: torch.Generator
    ) -> None:
        """Estimate the Fisher matrix of the current head."""
        if len(clean) > self.fisher_images:
            rows = torch.randperm(len(clean), generator=generator)[: self.fisher_images]
            clean = clean.subset(rows)
        self.features, self.errors = self.head_gradients(net, clean, generator)
        self._factor = []

    def head_gradients(
        self, net: nn.Module, clean: CleanData, generator: torch.Generator
    ) -> tuple[Tensor, Tensor]:
        r"""The gradients :math:`g_i`, as the two factors of an outer product each.

        Args:
            net: The network.
            clean: The images; their labels are not used.
            generator: Draws the labels :math:`\hat y_i`.

        Returns:
            Features ``(n, d)`` or ``(n, d + 1)``, and errors ``(n, K)``.
        """
        linear = self.linear
        seen: list[tuple[Tensor, Tensor]] = []

        def cut(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            # Layers after the head may scale the logits.
            logits = output.detach().requires_grad_()
            seen.append((vectors(inputs[0].detach()), logits))
            return logits

        features: list[Tensor] = []
        errors: list[Tensor] = []
        with keep_modes(net), linear.register_forward_hook(cut):
            net.eval()
            for images, _ in clean.batches():
                seen.clear()
                logits = net(images)
                if len(seen) != 1 or seen[0][0].dim() != 2:
                    shapes = [tuple(inputs.shape) for inputs, _ in seen]
                    raise ValueError(
                        f"Expected the head to be called once with (N, d) features, but got "
                        f"{shapes}. Use a defense that needs no head, such as ft_sam or fip."
                    )
                answers = logits.detach().float().softmax(1).cpu()
                drawn = torch.multinomial(answers, 1, generator=generator)[:, 0].to(logits.device)
                likelihood = -functional.cross_entropy(logits, drawn, reduction="sum")
                ((inputs, output),) = seen
                errors += map(vectors, torch.autograd.grad(likelihood, output))
                features.append(inputs)
        inputs = torch.cat(features)
        if linear.bias is not None:
            inputs = torch.cat([inputs, torch.ones_like(inputs[:, :1])], 1)
        return inputs, torch.cat(errors)

    def penalty(self) -> Tensor | None:
        r""":math:`\frac{\eta_F}{2} \sum_j \bar F_j (\theta_j - \bar\theta_j)^2`, a scalar."""
        if self.ewc_weight == 0 or not self.fisher_diagonal.numel():
            return None
        moved = joined(weight_matrix(self.linear), self.linear.bias) - self.anchor
        return self.ewc_weight / 2 * (self.fisher_diagonal * moved.square()).sum()

    @torch.no_grad()
    def before_step(self) -> None:
        """Replace the gradient of the head by the natural one."""
        weight, bias = self.linear.weight, self.linear.bias
        if weight.grad is None or not self.features.numel():
            return
        gradient = joined(weight.grad.flatten(1), None if bias is None else bias.grad)
        natural = self.natural(gradient).to(weight.grad.dtype)
        weight.grad.copy_(natural[:, : weight.shape[1]].view_as(weight))
        if bias is not None and bias.grad is not None:
            bias.grad.copy_(natural[:, -1])

    def natural(self, gradient: Tensor) -> Tensor:
        r""":math:`(F + \lambda I)^{-1} g`, float64.

        Args:
            gradient: Gradient :math:`g` of weight and bias side by side, ``(K, d)`` or
                ``(K, d + 1)``.
        """
        features, errors, gradient = (
            precise(values) for values in (self.features, self.errors, gradient)
        )
        if not self._factor:
            # Inner products of outer products are products of inner products.
            gram = (features @ features.T) * (errors @ errors.T)
            gram.diagonal().add_(len(gram) * self.damping)
            self._factor = [torch.linalg.cholesky(gram)]
        along = ((errors @ gradient) * features).sum(1, keepdim=True)
        part = torch.cholesky_solve(along, self._factor[0])
        return (gradient - errors.T @ (part * features)) / self.damping

    def finish(self) -> None:
        """Undo the freezes, and free the memory."""
        super().finish()
        self._factor = []


def joined(weight: Tensor, bias: Tensor | None) -> Tensor:
    """Weight and bias of a linear layer side by side, ``(K, d + 1)``; ``(K, d)`` without bias."""
    return weight if bias is None else torch.cat([weight, bias[:, None]], 1)


def precise(values: Tensor) -> Tensor:
    """In float64; on the CPU if Apple's GPUs have none."""
    return values.detach().to("cpu" if values.device.type == "mps" else values.device).double()
