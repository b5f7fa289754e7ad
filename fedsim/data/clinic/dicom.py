"""DICOM files by pydicom: values in the unit of the modality, frame by frame.

N frames, H rows, W columns. A functional group is where a multi-frame file of the enhanced kind says something for one
frame ("per frame") or for all of them ("shared").
"""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fedsim.data.clinic.scan import Frame, OwnWindow, Scan, Shares, Values
from fedsim.data.clinic.windows import Form, Window, whole_range
from fedsim.errors import UserError, reading

WHOLE = "a whole DICOM file with a picture"
MONOCHROME = ("MONOCHROME1", "MONOCHROME2")
COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "PALETTE COLOR")
#: Pictures that are computed of others; their values are no measurement of a patient.
DERIVED = ("RTDOSE", "SEG")
FORMS: tuple[Form, ...] = ("LINEAR", "LINEAR_EXACT", "SIGMOID")
COMPRESSIONS = "none, or one that pydicom knows: JPEG, JPEG-LS, JPEG 2000 or RLE"
JPEG_EXTENDED = "1.2.840.10008.1.2.4.51"
#: What may decode, the first that can. Not gdcm, which ends the whole process over some damaged files.
PLUGINS = ("pillow", "pydicom", "pylibjpeg")
PACKAGES = ("pylibjpeg", "pylibjpeg-libjpeg", "pylibjpeg-openjpeg")
SPACINGS = ("PixelSpacing", "ImagerPixelSpacing", "NominalScannedPixelSpacing")


def read_dicom(path: Path) -> Scan:
    """Read a DICOM file; its frames are decoded as they are asked for.

    Reports, plans, dose maps and the like have no frame. Values are after the modality's table or slope and intercept,
    each frame's own where there are such. Colours are RGB in 8 bits, whatever they are stored as. UserError for a file
    that is damaged, and for a compression that no installed package reads.
    """
    from pydicom import dcmread  # late: it takes a third of a second

    with reading(str(path), WHOLE):
        data: Any = dcmread(path)
        kind, modality = str(data.get("PhotometricInterpretation", "")), _text(data, "Modality")
        if modality in DERIVED or ("PixelData" not in data and "Rows" not in data and not _is_image(data)):
            return Scan(num_frames=0, frame=_no_frame, modality=modality)
        if "PixelData" not in data:
            raise UserError(str(path), f"no pixels ({modality or 'no modality'})", WHOLE)
        if kind not in (*MONOCHROME, *COLOURS):
            raise UserError(str(path), f"pixels of kind {kind!r}", f"one of {', '.join((*MONOCHROME, *COLOURS))}")
        decode = _decoder_of(path, data)
        ids = {
            "patient": _text(data, "PatientID"),
            "study": _text(data, "StudyInstanceUID"),
            "series": _text(data, "SeriesInstanceUID"),
            "site": _text(data, "InstitutionName"),
        }
        return Scan(
            num_frames=int(data.get("NumberOfFrames") or 1),
            frame=partial(_frame, path, data, decode),
            between=_millimetres(_group(_places(data, 0), "PixelMeasuresSequence").get("SpacingBetweenSlices")),
            modality=modality,
            ids=ids,
            has_names_in_pixels=_text(data, "BurnedInAnnotation") == "YES",
        )


def _is_image(data: Any) -> bool:
    """Whether a file is of a kind that has a picture (PS3.6: CT Image Storage and the like), or does not tell."""
    kind = data.get("SOPClassUID") or data.file_meta.get("MediaStorageSOPClassUID")
    return kind is None or "Image" in kind.name


def _no_frame(index: int) -> Frame:
    raise IndexError(index)


def _text(data: Any, name: str) -> str:
    return str(data.get(name) or "").strip()


def _decoder_of(path: Path, data: Any) -> Callable[[int], Values]:
    """Return what decodes one frame of the file.

    UserError where no installed package reads its compression, and for values that are not in the lowest bits, of which
    pydicom takes those all the same.
    """
    from pydicom.pixels import get_decoder

    syntax, bits = data.file_meta.TransferSyntaxUID, data.get("BitsStored") or 0
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        raise UserError(str(path), f"pixels compressed as {syntax.name}", COMPRESSIONS) from None
    plugin = ""
    if not syntax.is_encapsulated and data.get("HighBit", bits - 1) != bits - 1:
        raise UserError(str(path), f"{bits} bits up to bit {data.HighBit}", f"the lowest bits, up to {bits - 1}")
    if syntax.is_encapsulated:
        is_beyond_pillow = bits > 8 and (syntax == JPEG_EXTENDED or data.get("SamplesPerPixel") != 1)
        usable = [name for name in PLUGINS[is_beyond_pillow:] if name in decoder.available_plugins]
        if not usable:
            found = f"pixels compressed as {syntax.name}, {bits} bits"
            raise UserError(str(path), found, f"pip install {' '.join(PACKAGES)}, which read them")
        plugin = usable[0]
    return lambda index: decoder.as_array(data, index=index, decoding_plugin=plugin)[0]


def _places(data: Any, index: int) -> list[Any]:
    """Return where a frame's values may stand: its functional groups, those of all frames, and the file itself."""
    per_frame = data.get("PerFrameFunctionalGroupsSequence")
    shared = data.get("SharedFunctionalGroupsSequence")
    return [*([per_frame[index]] if per_frame else []), *(shared or []), data]


def _group(places: list[Any], name: str) -> Any:
    """Return where a frame's values of one functional group stand; in a file without groups that is the file itself."""
    for place in places[:-1]:
        if found := place.get(name):
            return found[0]
    return places[-1]


def _frame(path: Path, data: Any, decode: Callable[[int], Values], index: int) -> Frame:
    """Decode one frame."""
    from pydicom.pixels import apply_modality_lut

    with reading(str(path), WHOLE):
        stored = decode(index)
        places, kind = _places(data, index), data.PhotometricInterpretation
        spacing = _spacing(places)
        if kind == "PALETTE COLOR":
            return Frame(_of_palette(data, stored), spacing)
        bits = int(data.BitsStored)
        if stored.ndim == 3:
            return Frame(_eight_bits(stored, bits), spacing)
        rescale = _group(places, "PixelValueTransformationSequence")
        line = [float(rescale.get(name, 1)) for name in ("RescaleSlope", "RescaleIntercept")]
        if line[0] == 0 or not np.isfinite(line).all():
            raise ValueError(f"slope and intercept {line[0]:g} and {line[1]:g}")
        # In the pixels' own type a signed value far beyond the table's end would wrap to its beginning.
        wide = stored.astype(np.int64) if "ModalityLUTSequence" in rescale else stored
        values: Values = apply_modality_lut(wide, rescale)
        return Frame(
            values=values.astype(np.float32 if stored.itemsize <= 2 else np.float64),
            spacing=spacing,
            own_window=_own_window(data, places) or _range_of_8_bits(stored, values, bits),
            is_inverted=kind == "MONOCHROME1",
            padding=_padding(data, stored),
        )


def _of_palette(data: Any, stored: Values) -> Values:
    """Return the colours of a palette; indices beyond its ends have those of its ends."""
    from pydicom.pixels import apply_color_lut

    num_entries, first, bits = data.RedPaletteColorLookupTableDescriptor
    num_entries = num_entries or 2**16
    # pydicom's wraps around where an entry, and so what it takes for an index, has 8 bits.
    colours: Values = apply_color_lut(np.clip(stored.astype(np.int64), first, first + num_entries - 1), data)[..., :3]
    if colours.itemsize == 1 and num_entries > 256:
        raise ValueError(f"a palette of {num_entries} entries of 8 bits")
    return _eight_bits(colours, bits)


def _eight_bits(colours: Values, bits: int) -> Values:
    """Return colours of more bits by their upper 8; colours have no window, their range is what can be stored."""
    return np.ascontiguousarray(colours >> max(0, bits - 8), np.uint8)


def _spacing(places: list[Any]) -> tuple[float, float] | None:
    measures = _group(places, "PixelMeasuresSequence")
    found = next(filter(None, (measures.get(name) for name in SPACINGS)), None)
    if found is None or len(found) != 2:
        return None
    rows, columns = map(_millimetres, found)
    return None if rows is None or columns is None else (rows, columns)


def _millimetres(value: Any) -> float | None:
    """Return a distance; None for what is none, such as 0."""
    number = math.nan if value in (None, "") else float(value)
    return number if math.isfinite(number) and number > 0 else None


def _range_of_8_bits(stored: Values, values: Values, bits: int) -> OwnWindow | None:
    """Return the whole range for values of up to 8 bits that no slope has changed: they are shown as they are."""
    is_plain = bits <= 8 and stored.dtype.kind == "u" and np.array_equal(values, stored)
    return whole_range(0, 2**bits - 1) if is_plain else None


def _padding(data: Any, stored: Values) -> Any:
    """Return where a frame is filled up with the value that the file names for that (PS3.3 C.7.5.1.1.2)."""
    value, limit = data.get("PixelPaddingValue"), data.get("PixelPaddingRangeLimit")
    if not isinstance(value, int):
        return None
    low, high = sorted((value, limit if isinstance(limit, int) else value))
    padding = (stored >= low) & (stored <= high)
    return padding if padding.any() else None


def _own_window(data: Any, places: list[Any]) -> OwnWindow | None:
    """Return how the file wants a frame to be shown, the first way if it names several; None if it names none."""
    place = _group(places, "FrameVOILUTSequence")
    if tables := place.get("VOILUTSequence"):
        return OwnWindow("table of the file", _table(data, tables[0]))
    centres, widths = (_numbers(place.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if not centres or not widths:
        return None
    form = str(place.get("VOILUTFunction") or "LINEAR").upper()
    known = next((one for one in FORMS if one == form), None)
    if known is None:
        raise ValueError(f"a window of the form {form}")
    if not math.isfinite(centres[0]) or not (widths[0] >= 1 if known == "LINEAR" else widths[0] > 0):
        raise ValueError(f"a window {centres[0]:g}/{widths[0]:g} {form}")
    return Window(centres[0], widths[0], known).as_own()


def _numbers(value: Any) -> list[float]:
    if value in (None, ""):
        return []
    return [float(part) for part in ([value] if isinstance(value, int | float) else value)]


def _table(data: Any, item: Any) -> Any:
    """Return the mapping of a VOI table. Own code: pydicom's wraps around at 256 entries where these have 8 bits."""
    num_entries, first, bits = item.LUTDescriptor[0] or 2**16, item.LUTDescriptor[1], item.LUTDescriptor[2]
    content = item.LUTData
    if isinstance(content, bytes):
        order = "<" if data.original_encoding[1] else ">"
        content = np.frombuffer(content, f"{order}u2" if len(content) >= 2 * num_entries else "u1")
    table = np.asarray(content, np.float32)[:num_entries] / (2**bits - 1)
    if len(table) != num_entries:
        raise ValueError(f"a table of {len(table)} entries in place of {num_entries}")

    def shown(values: Values) -> Shares:
        return np.asarray(table[np.clip(np.rint(values - first), 0, num_entries - 1).astype(np.int64)], np.float32)

    return shown
