"""How rows are kept on disk: float32, float16, bfloat16, or int8 with a scale a row.

Letters: ``n`` rows, ``k`` dimensions of a row.

NumPy has no bfloat16, so its 16 bits are kept as they are in a column of ``uint16``.
"""

import numpy as np
import torch
from jaxtyping import Float, Num
from torch import Tensor

from projections.errors import NonFiniteError

ROW_TYPES = ("float32", "float16", "bfloat16", "int8")
ROWS = "sketch"  # the column with the projected gradients
SCALES = "row_scale"  # what int8 rows are multiplied by
INT8_MOST = 127
NUM_NAMED = 10  # ids that a message lists


def narrow(
    rows: Float[np.ndarray, "n k"], dtype: str, ids: np.ndarray
) -> dict[str, Num[np.ndarray, "n *k"]]:
    """Return the columns that keep rows in a type: the rows, and for int8 their scales.

    Args:
        rows: The rows.
        dtype: One of `ROW_TYPES`.
        ids: Their ids, for messages.

    Raises:
        OverflowError: A row does not fit the type.
        NonFiniteError: A row is not finite.
    """
    bad = ~np.isfinite(rows).all(axis=1)
    if bad.any():
        raise NonFiniteError(
            f"rows must be finite. Those with the ids {ids[bad][:NUM_NAMED].tolist()} are not."
        )
    if dtype == "int8":
        largest = np.abs(rows).max(axis=1, initial=0)
        scales = (np.where(largest > 0, largest, 1) / INT8_MOST).astype(np.float32)
        return {ROWS: np.rint(rows / scales[:, None]).astype(np.int8), SCALES: scales}
    kept = torch.from_numpy(np.ascontiguousarray(rows)).to(getattr(torch, dtype))
    overflow = ~kept.isfinite().all(1).numpy()
    if overflow.any():
        raise OverflowError(
            f"rows must fit into {dtype}. Those with the ids "
            f"{ids[overflow][:NUM_NAMED].tolist()} reach {np.abs(rows[overflow]).max():.3g}. Use "
            "dtype='float32'."
        )
    if dtype == "bfloat16":
        return {ROWS: kept.view(torch.int16).numpy().view(np.uint16)}
    return {ROWS: kept.numpy()}


def as_tensor(rows: Num[np.ndarray, "n k"]) -> Num[Tensor, "n k"]:
    """Return kept rows as a tensor of their own type, without a copy; int8 unscaled."""
    if rows.dtype == np.uint16:
        return torch.from_numpy(rows.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(rows)


def widen(
    rows: Num[np.ndarray, "n k"], scales: Float[np.ndarray, " n"] | None
) -> Float[np.ndarray, "n k"]:
    """Return kept rows as float32."""
    wide = as_tensor(rows).float().numpy()
    return wide if scales is None else wide * scales[:, None]
