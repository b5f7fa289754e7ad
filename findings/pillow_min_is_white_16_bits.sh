#!/usr/bin/env bash
# Pillow 13.0.0 (tifffile 2026.3.3, numpy 2.4.6, Python 3.11): whether a TIFF whose lowest value is white comes out as
# it is meant depends on its number of bits.
#
# Expected: PhotometricInterpretation 0 (WhiteIsZero) is either applied to grey images or left to the caller.
# Seen, pixels 0, 1, 200 as stored in such a file, read by PIL.Image.open:
#     8 bits, mode L: 255, 254, 55 (inverted)     16 bits, mode I;16: 0, 1, 200 (as stored)
# Slides and radiographs are exported in both depths: one set holds negatives and positives, and neither mode nor info
# tells; tag 262 does. Exit code 1 if any of this is no longer so.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet pillow==13.0.0 tifffile==2026.3.3 numpy==2.4.6
PLACE="$place" "$place/venv/bin/python" - <<'PROGRAM'
import os
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

pixels = [0, 1, 200]


def read(kind):
    path = Path(os.environ["PLACE"]) / f"{np.dtype(kind).name}.tif"
    tifffile.imwrite(path, np.array([pixels], kind), photometric="miniswhite")
    with Image.open(path) as image:
        assert image.tag_v2[262] == 0
        return image.mode, np.asarray(image)[0].tolist()


seen = [read(np.uint8), read(np.uint16)]
print(seen)
assert seen == [("L", [255 - value for value in pixels]), ("I;16", pixels)]
PROGRAM
