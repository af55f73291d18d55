"""Several short texts in one row: batches of one shape, almost without padding.

Batches of like length vary in how many tokens they hold; packed ones all have as many rows, and hold as many texts as
those rows have room for. Where a budget counts forward passes of a given size, packing is what fills them.
"""

from typing import TypedDict

import numpy as np
from jaxtyping import Bool, Float32, Int, Int32

__all__ = ["PackedBatch", "balanced", "packed"]


class PackedBatch(TypedDict):
    """Texts side by side in rows. Text k has the columns where `segment` is k; padding has segment `texts`.

    `label`, `weight` and `id` are as in `pipeline.Batch`, one a text and not one a row.
    """

    tokens: Int32[np.ndarray, "rows width"]
    mask: Bool[np.ndarray, "rows width"]
    segment: Int32[np.ndarray, "rows width"]
    label: Int32[np.ndarray, "texts"]
    weight: Float32[np.ndarray, "texts"]
    id: Int32[np.ndarray, "texts"]


def balanced(lengths: Int[np.ndarray, "batches texts"]) -> Int[np.ndarray, "batches texts"]:
    """How to deal out the texts of some batches, column by column, so that all batches have about as many tokens.

    The longest text of a column goes to the batch that has the fewest tokens yet, the next longest to the next, and so
    on. A column stays a column, so batches that had one text from each stratum still have (ours).

    Args:
      lengths: tokens of each text.

    Returns:
      Row numbers r, so that lengths[r[b, k], k] is the length of text k of the new batch b.

    Example:
      >>> lengths = np.array([[1, 1], [9, 9]])
      >>> np.take_along_axis(lengths, balanced(lengths), axis=0)
      array([[9, 1],
             [1, 9]])
    """
    chosen = np.empty(lengths.shape, np.int64)
    totals = np.zeros(len(lengths), np.int64)
    for column, of_column in enumerate(lengths.T):
        emptiest = np.argsort(totals, kind="stable")
        chosen[emptiest, column] = np.argsort(-of_column, kind="stable")
        totals += of_column[chosen[:, column]]
    return chosen


def packed(lengths: Int[np.ndarray, "texts"], *, rows: int, width: int) -> Int[np.ndarray, "texts 2"]:
    """Places for texts in rows: the longest first, each in the first row that has room for it.

    Args:
      lengths: tokens of each text.
      rows: rows of the batch.
      width: tokens of a row.

    Returns:
      (row, first column) of each text.

    Raises:
      ValueError: if the texts do not fit in so many rows.

    Example:
      >>> packed(np.array([3, 5, 2, 4]), rows=2, width=8).tolist()
      [[0, 5], [0, 0], [1, 4], [1, 0]]
    """
    used = np.zeros(rows, np.int64)
    places = np.empty((len(lengths), 2), np.int64)
    for text in np.argsort(-lengths, kind="stable"):
        row = int(np.argmax(used + lengths[text] <= width))
        if used[row] + lengths[text] > width:
            raise ValueError(
                f"{len(lengths)} texts of {lengths.sum()} tokens do not fit into packed_rows={rows} rows of {width}; "
                "take more rows, or batches of fewer texts"
            )
        places[text] = row, used[row]
        used[row] += lengths[text]
    return places
