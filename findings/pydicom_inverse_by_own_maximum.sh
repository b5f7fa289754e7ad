#!/usr/bin/env bash
# pydicom 3.0.2 (numpy 2.4.6, Python 3.11): a Presentation LUT is stretched over the values that an image happens to have.
#
# Expected: apply_presentation_lut maps one value to one P-value in every image of a series. INVERSE (PS3.3 C.11.6.1.2) of
# 12 bits is 4095 - v, and a table of 4096 entries takes entry v for v, since its input is the full range.
# Seen for value 1000 in two images of 12 bits that differ in one other pixel, an implant or a marker:
#     pixels        INVERSE    table with entry v = v
#     0 1000 2000      1000             2047
#     0 1000 4000      3000             1023
# Both go by the image's own extremes, so the same tissue has another brightness in each radiograph, and a data set of
# MONOCHROME1 images that is turned this way loses their common scale. Exit code 1 if any of this is no longer so.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet pydicom==3.0.2 numpy==2.4.6
"$place/venv/bin/python" - <<'PROGRAM'
import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import apply_presentation_lut

inverse = Dataset()
inverse.BitsStored, inverse.PixelRepresentation = 12, 0
inverse.PresentationLUTShape = "INVERSE"

entry = Dataset()
entry.add_new("LUTDescriptor", "US", [4096, 0, 12])
entry.add_new("LUTData", "US", list(range(4096)))
table = Dataset()
table.BitsStored, table.PixelRepresentation = 12, 0
table.PresentationLUTSequence = [entry]


def of_1000(how, brightest):
    image = np.array([0, 1000, brightest], np.uint16)
    return int(apply_presentation_lut(image, how)[1])


seen = {name: [of_1000(how, top) for top in (2000, 4000)] for name, how in (("inverse", inverse), ("table", table))}
print(seen)
assert seen["inverse"] == [1000, 3000]
assert abs(seen["table"][0] - 2047) <= 1
assert abs(seen["table"][1] - 1023) <= 1
PROGRAM
