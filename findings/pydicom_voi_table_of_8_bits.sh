#!/usr/bin/env bash
# pydicom 3.0.2 (numpy 2.4.6, Python 3.11): a VOI table of 8 bits per entry is looked up modulo 256.
#
# Expected: a VOI LUT Sequence with 1024 entries of 8 bits (PS3.3 C.11.2) maps stored value v to entry v; in this table
# entry v is v // 4, so that 255 gives 63, 256 gives 64 and 1023 gives 255, the brightest.
# Seen with pydicom.pixels.apply_voi_lut:
#     0 -> 0   255 -> 63   256 -> 0   600 -> 22   1023 -> 63
# The same table with a depth of 10 bits is looked up right: the array of indices has the type of the table's entries,
# and wraps. There is no warning; the picture is dark, with bands. Exit code 1 if any of this is no longer so.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet pydicom==3.0.2 numpy==2.4.6
"$place/venv/bin/python" - <<'PROGRAM'
import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import apply_voi_lut

values = np.array([0, 255, 256, 600, 1023], np.uint16)


def shown(depth):
    table = Dataset()
    table.add_new("LUTDescriptor", "US", [1024, 0, depth])
    table.add_new("LUTData", "US", [entry // 4 for entry in range(1024)])
    image = Dataset()
    image.PhotometricInterpretation = "MONOCHROME2"
    image.BitsStored, image.PixelRepresentation = 10, 0
    image.VOILUTSequence = [table]
    return apply_voi_lut(values, image).tolist()


right = [int(value) // 4 for value in values]
seen = {depth: shown(depth) for depth in (8, 10)}
print(seen)
assert seen[10] == right
assert seen[8] == [int(value) % 256 // 4 for value in values] != right
PROGRAM
