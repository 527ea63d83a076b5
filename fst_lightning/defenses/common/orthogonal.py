"""A new head weight that is orthogonal to the old one."""

from __future__ import annotations

import torch
from torch import Tensor


def orthogonal_to(original: Tensor, generator: torch.Generator) -> Tensor:
    r"""Draw a weight :math:`W` with the norm of :math:`W_0`, as orthogonal to it as possible.

    - :math:`\|W\|_F = \|W_0\|_F` and :math:`\langle W, W_0 \rangle = 0`.
    - The rows of W are orthonormal up to one common factor; the columns are if there are fewer
      features d than classes C.
    - If there are enough features (d >= 2C suffices), each row of W is orthogonal to each row of
      :math:`W_0`. Otherwise :math:`\|W W_0^\top\|_F` is as small as the orthonormal
      rows allow: they span the directions in which :math:`W_0` is weakest.

    Args:
        original: ``(C, d)``, the old weight, not zero.
        generator: A CPU generator; the only source of randomness.

    Returns:
        ``(C, d)`` on the CPU, float64.

    Raises:
        ValueError: If the weight has rank 0, values that are not finite, or a single element.

    Example:
        >>> old = torch.randn(10, 64)
        >>> new = orthogonal_to(old, torch.Generator().manual_seed(0))
        >>> bool((new @ old.double().T).abs().max() < 1e-9)
        True
    """
    weight = original.detach().to("cpu", torch.float64)
    if not bool(torch.isfinite(weight).all()):
        raise ValueError("Expected the head's weight to be finite, but it has NaN or infinity.")
    if not bool(weight.any()):
        raise ValueError(
            "Expected the head's weight to have a direction to shift away from, but it is all "
            "zeros (rank 0); is this a trained network?"
        )
    if weight.numel() == 1:
        raise ValueError("Expected the head's weight to be more than one number, but got (1, 1).")
    num_classes, num_features = weight.shape
    if num_features < num_classes:
        return orthogonal_to(weight.T, generator).T
    rows = _rows_away_from(weight, generator)
    scaled: Tensor = rows * (weight.norm() / rows.norm())
    return scaled


def _rows_away_from(weight: Tensor, generator: torch.Generator) -> Tensor:
    """C orthonormal rows, as orthogonal as possible to the rows of ``weight`` (C, d), C <= d."""
    num_classes, num_features = weight.shape
    _, singular, right = torch.linalg.svd(weight, full_matrices=False)
    rank = int((singular > singular[0] * num_features * torch.finfo(weight.dtype).eps).sum())
    if num_features - rank >= num_classes:
        # The orthogonal complement of the old rows has room for all the new ones: the QR
        # decomposition of [old row space | noise] keeps its later columns out of the former.
        noise = torch.randn(
            num_features, num_classes, generator=generator, dtype=weight.dtype, device="cpu"
        )
        basis, upper = torch.linalg.qr(torch.cat([right[:rank].T, noise], dim=1))
        # The signs of Q that LAPACK returns depend on the data. Those that make the diagonal of R
        # positive are unique and prefer no direction.
        complement: Tensor = (basis * upper.diagonal().sign())[:, rank:].T
        return complement
    # Too few features: span the C directions in which the old weight is weakest, then turn the new
    # rows within that span so that the inner product of the two matrices vanishes.
    _, _, all_right = torch.linalg.svd(weight, full_matrices=True)
    weakest = all_right[num_features - num_classes :]
    rows: Tensor = _traceless_rotation(weight @ weakest.T, generator) @ weakest
    return rows


def _traceless_rotation(matrix: Tensor, generator: torch.Generator) -> Tensor:
    """A random orthogonal R with <R, matrix> = 0, for a square matrix of 2 or more rows.

    With the singular value decomposition ``matrix = U S V^T`` and ``R = U P V^T`` the inner product
    is ``sum(P_ii S_i)``: a signed permutation P without a fixed point makes every term zero.
    """
    size = len(matrix)
    left, _, right = torch.linalg.svd(matrix)
    order = torch.randperm(size, generator=generator)
    signs = torch.randint(0, 2, (size,), generator=generator).to(matrix.dtype) * 2 - 1
    permutation = torch.zeros_like(matrix)
    permutation[order, order.roll(1)] = signs
    rotation: Tensor = left @ permutation @ right
    return rotation
