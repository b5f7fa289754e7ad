"""NIfTI volumes as slices that are seen as a radiologist sees them.

X, Y, Z voxels along the axes of a volume, D slices.
"""

import math
from pathlib import Path

import numpy as np

from fedsim.data.clinic.scan import Frame, OwnWindow, Scan
from fedsim.data.clinic.windows import whole_range
from fedsim.data.volumes import Volume, open_volume, read_stored, values_of

#: As axial slices of DICOM lie: columns run to the patient's left, rows to the back; slices run upwards.
VIEW = "LPS"


def read_nifti(path: Path) -> Scan:
    """Read a NIfTI volume, whose frames are its axial slices from below, in whatever order it is stored.

    Slope and intercept of the header are applied, except with slope 0, which says that there are none. UserError as in
    ``open_volume`` and ``read_stored``.
    """
    volume = open_volume(path)
    stored_XYZ, grid = read_stored(volume, VIEW)
    columns, rows, between = (float(size) for size in np.linalg.norm(grid.affine[:3, :3], axis=0))
    own = _own_window(volume)

    def frame(index: int) -> Frame:
        values_YX = values_of(volume, stored_XYZ[:, :, index]).T.astype(np.float32)
        return Frame(np.ascontiguousarray(values_YX), (rows, columns), own)

    return Scan(num_frames=stored_XYZ.shape[2], frame=frame, between=between)


def _own_window(volume: Volume) -> OwnWindow | None:
    """Return the header's range of display; else, of 8 bits that no slope changes, the whole range."""
    header = volume.image.header
    low, high = float(header["cal_min"]), float(header["cal_max"])
    if math.isfinite(low) and math.isfinite(high) and low < high:
        return whole_range(low, high)
    slope, intercept = volume.image.dataobj.slope, volume.image.dataobj.inter
    return whole_range(0, 255) if volume.image.get_data_dtype() == np.uint8 and (slope, intercept) == (1, 0) else None
