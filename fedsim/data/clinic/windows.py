"""Windows: which values become black and which white.

A window has a centre and a width, in the unit of the values: Hounsfield units of a CT.
"""

import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from fedsim.data.clinic.scan import Frame, OwnWindow, Shares, Values
from fedsim.errors import UserError

Form = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]

#: CT windows as radiologists name them (centre, width in HU), after Radiopaedia's article "Windowing (CT)".
PRESETS = {
    "abdomen": (50.0, 400.0),
    "bone": (400.0, 1800.0),
    "brain": (40.0, 80.0),
    "liver": (30.0, 150.0),
    "lung": (-600.0, 1500.0),
    "mediastinum": (50.0, 350.0),
    "stroke": (40.0, 40.0),
    "subdural": (75.0, 215.0),
    "temporal_bone": (600.0, 2800.0),
}
OF_THE_FILE = "file"
NUMBER = r"[-+]?[0-9]+(?:\.[0-9]*)?"
CENTRE_WIDTH = re.compile(f"({NUMBER})/({NUMBER})")
PERCENTILES = re.compile(f"({NUMBER})%-({NUMBER})%")
EXPECTED = f"file, {', '.join(PRESETS)}, CENTRE/WIDTH, LOW%-HIGH%, or file,OTHER for files that have none"


class Window(NamedTuple):
    """A window by centre and width, in one of the forms of DICOM (PS3.3 C.11.2.1.2 and C.11.2.1.3)."""

    centre: float
    width: float
    form: Form = "LINEAR_EXACT"

    def shown(self, values: Values) -> Shares:
        """Return the shares of white, 0 to 1, of values of any shape."""
        if self.form == "SIGMOID":
            distance = np.clip((values - self.centre) / self.width, -20, 20)
            return np.asarray(1 / (1 + np.exp(-4 * distance)), np.float32)
        # LINEAR counts the width in values of a step of 1, from the middle of the first to the middle of the last.
        shift, less = (0.5, 1.0) if self.form == "LINEAR" else (0.0, 0.0)
        if self.width == less:
            return np.asarray(values > self.centre - shift, np.float32)
        shares = (values - (self.centre - shift)) / (self.width - less) + 0.5
        return np.asarray(np.clip(shares, 0, 1), np.float32)

    @property
    def name(self) -> str:
        """As it stands in a manifest."""
        return f"{self.centre:g}/{self.width:g}" + ("" if self.form == "LINEAR_EXACT" else f" {self.form}")

    def as_own(self) -> OwnWindow:
        """The same as a file's own window."""
        return OwnWindow(self.name, self.shown)


def whole_range(lowest: float, highest: float) -> OwnWindow:
    """Return the window from the lowest to the highest value that can be stored."""
    return Window((lowest + highest) / 2, highest - lowest).as_own()


class Request(NamedTuple):
    """What ``--window`` asks for: the file's own window, and what else where it has none or none is asked for."""

    takes_own: bool
    preset: str | None = None
    window: Window | None = None
    percentiles: tuple[float, float] | None = None


def parse_window(text: str) -> Request:
    """Read the value of ``--window``; UserError for anything else than ``EXPECTED``."""
    words = [word.strip() for word in text.split(",")]
    takes_own = words[0] == OF_THE_FILE
    rest = words[1:] if takes_own else words
    if not rest:
        return Request(takes_own=True)
    if len(rest) == 1:
        (word,) = rest
        if word in PRESETS:
            return Request(takes_own, preset=word, window=Window(*PRESETS[word]))
        if (found := CENTRE_WIDTH.fullmatch(word)) and float(found[2]) > 0:
            return Request(takes_own, window=Window(float(found[1]), float(found[2])))
        if (found := PERCENTILES.fullmatch(word)) and 0 <= float(found[1]) < float(found[2]) <= 100:
            return Request(takes_own, percentiles=(float(found[1]), float(found[2])))
    raise UserError("--window", repr(text), EXPECTED)


def windows_of(where: str, frames: Sequence[Frame], request: Request, modality: str) -> list[OwnWindow]:
    """Return the window of each of a scan's frames; percentiles are those of all ``frames`` together.

    UserError for a file without a window of its own where none is asked for, and for a preset on what is known to be no
    CT.
    """
    if request.takes_own:
        own = [frame.own_window for frame in frames if frame.own_window is not None]
        if len(own) == len(frames):
            return own
    if request.window is not None:
        if request.preset is not None and modality not in ("", "CT"):
            raise UserError(where, f"modality {modality} with --window {request.preset}", "CT, or another --window")
        return [request.window.as_own()] * len(frames)
    if request.percentiles is None:
        raise UserError(where, "no window in the file", f"--window {EXPECTED}")
    low, high = np.percentile(np.concatenate([_measured(frame) for frame in frames]), request.percentiles)
    if not low < high:
        low, high = low - 0.5, low + 0.5  # all the same value: grey
    return [whole_range(float(low), float(high))] * len(frames)


def _measured(frame: Frame) -> Values:
    """Return a frame's values without what pads it, unless there is nothing else."""
    if frame.padding is None or frame.padding.all():
        return frame.values.ravel()
    return np.asarray(frame.values[~frame.padding])


def shown(frame: Frame, window: OwnWindow) -> Shares:
    """Return the shares of white (H, W) of a frame's values: inverted after the window, where the frame says so."""
    shares = window.shown(frame.values)
    if frame.is_inverted:
        shares = 1 - shares
    if frame.padding is not None:
        shares[frame.padding] = 0
    return shares


def levels_of(shares: Shares, bits: int) -> Values:
    """Return the nearest of the levels of 8 or 16 bits."""
    white = 2**bits - 1
    levels: Values = np.rint(np.clip(shares, 0, 1) * np.float32(white))
    return levels.astype(np.uint8) if bits == 8 else levels.astype(np.uint16)
