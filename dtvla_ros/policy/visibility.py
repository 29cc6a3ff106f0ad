"""Who sees whom in the hybrid decoder (specification §4).

With P the first row after the prompt and A the row of the last ``<action>``: rows before A see
the whole prompt and, causally, the thought; rows from A on see everything.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

MASKED = -1e9  # finite, so that a row that sees nothing (a pad) yields numbers and not NaN


def visible(rows: Any, columns: Any, prompt_end: Any, action_start: Any) -> Any:
    """Return where ``columns`` may be attended from ``rows`` (bool, broadcast).

    Works on NumPy arrays and torch tensors alike: one formula for training, engines, exports.
    """
    return (columns < prompt_end) | (columns <= rows) | (rows >= action_start)


def new_rows_mask(start: int, count: int, prompt_end: int,
                  action_start: int | None = None) -> NDArray[np.float32]:
    """Return what to add to the scores [1, 1, count, start + count] of rows start, start+1, ...

    ``action_start`` is None while no ``<action>`` row is among them.
    """
    rows, columns = np.arange(start, start + count)[:, None], np.arange(start + count)[None]
    end = start + count if action_start is None else action_start
    seen = visible(rows, columns, prompt_end, end)
    return np.where(seen, 0.0, MASKED).astype(np.float32)[None, None]
