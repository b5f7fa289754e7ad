"""What every reader of the clinic's formats gives: frames with values as they were measured, and what is known of them.

N frames of a scan, H rows, W columns.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[Any]
Shares = npt.NDArray[np.float32]


class OwnWindow(NamedTuple):
    """What a file says about how its values are shown: ``shown`` maps values to shares of white, 0 to 1."""

    name: str
    shown: Callable[[Values], Shares]


@dataclass(frozen=True)
class Frame:
    """One picture. ``values``: floating-point (H, W) as measured, in the unit of the file; or uint8, (H, W) or
    (H, W, 3) RGB, which are shown as they are. ``spacing``: mm between rows, and between columns. Where ``is_inverted``
    the lowest value is white, once a window is laid over it. ``padding`` (H, W): where nothing was measured.
    """

    values: Values
    spacing: tuple[float, float] | None = None
    own_window: OwnWindow | None = None
    is_inverted: bool = False
    padding: npt.NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Scan:
    """A file: ``frame(n)`` reads one of ``num_frames``. ``between``: mm between frames that lie side by side.

    ``ids`` are as in the file, and must not be written: patient, study, series, site. ``modality`` such as CT, or "".
    """

    num_frames: int
    frame: Callable[[int], Frame]
    between: float | None = None
    modality: str = ""
    ids: dict[str, str] = field(default_factory=dict)
    has_names_in_pixels: bool = False
