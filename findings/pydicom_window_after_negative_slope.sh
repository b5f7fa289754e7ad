#!/usr/bin/env bash
# pydicom 3.0.2 (numpy 2.4.6, Python 3.11): after a negative rescale slope a window turns the grey scale round.
#
# Expected: apply_windowing of what apply_modality_lut returned keeps the order of its values, as the LINEAR function of
# PS3.3 C.11.2.1.2 does, from the lowest shown value to the highest, whatever the sign of the slope was.
# Seen, 12 bits unsigned, slope -1, intercept 1000, so that stored 0, 500, 1000, 1500, 2000 mean 1000, 500, 0, -500, -1000;
# window from -1000 to 1000, with each of the functions:
#     LINEAR, LINEAR_EXACT, SIGMOID: 1000 comes out darkest and -1000 brightest
# The same five values with slope 1 and intercept -1000 come out in their order. The range of the output is made of the
# lowest and the highest stored value times the slope, and nobody asks which of the two is larger then. No warning.
# Exit code 1 if any of this is no longer so.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet pydicom==3.0.2 numpy==2.4.6
"$place/venv/bin/python" - <<'PROGRAM'
import numpy as np
from pydicom.dataset import Dataset
from pydicom.pixels import apply_modality_lut, apply_windowing

stored = np.array([0, 500, 1000, 1500, 2000], np.uint16)


def shown(function, slope, intercept):
    image = Dataset()
    image.PhotometricInterpretation = "MONOCHROME2"
    image.BitsStored, image.PixelRepresentation = 12, 0
    image.RescaleSlope, image.RescaleIntercept = slope, intercept
    image.WindowCenter, image.WindowWidth, image.VOILUTFunction = 0, 2000, function
    values = apply_modality_lut(stored, image)
    greys = apply_windowing(values, image)
    return greys[np.argsort(values)]


for function in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
    up, down = shown(function, 1, -1000), shown(function, -1, 1000)
    print(function, up.round().tolist(), down.round().tolist())
    assert (np.diff(up) > 0).all()
    assert (np.diff(down) < 0).all()
PROGRAM
