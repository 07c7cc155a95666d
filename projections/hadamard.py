"""The Walsh-Hadamard transform by two matrix products.

Letters: ``n`` rows, ``b`` their length, a power of two.

``H_b`` is the Kronecker product of ``H_f`` and ``H_e`` with ``b = f e``, so that a row
written as a matrix ``f e`` is multiplied from both sides: ``2 (f + e)`` operations an
entry. With ``f`` and ``e`` near the root of ``b`` that is quicker than ``log2 b`` passes
of additions over the memory, on a CPU as on a GPU.
"""

from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor


def walsh_hadamard(rows: Float[Tensor, "n b"]) -> Float[Tensor, "n b"]:
    """Return each row times the matrix of Hadamard, whose entries are 1 and -1.

    The matrix is symmetric, ``H @ H = b I``, and in the order of Sylvester: entry
    ``(i, j)`` is -1 to the number of bits that ``i`` and ``j`` have in common.

    Args:
        rows: Rows whose length is a power of two.

    Example:
        >>> walsh_hadamard(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
        tensor([[10., -2., -4.,  0.]])
    """
    count, length = rows.shape
    right = 1 << (length.bit_length() // 2)
    left = length // right
    device = str(rows.device)
    products = rows.reshape(count * left, right) @ hadamard(right, device).to(rows.dtype)
    if left == 1:
        return products
    blocks = products.view(count, left, right)
    return torch.matmul(hadamard(left, device).to(rows.dtype), blocks).view(count, length)


def next_power_of_two(number: int) -> int:
    """Return the smallest power of two that is not below a number."""
    return 1 << (number - 1).bit_length()


@cache
def hadamard(size: int, device: str) -> Float[Tensor, "b b"]:
    """Return the matrix itself, for a small power of two."""
    matrix = torch.ones(1, 1)
    while len(matrix) < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix.to(device)
