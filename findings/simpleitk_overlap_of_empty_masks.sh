#!/usr/bin/env bash
# SimpleITK 2.5.7 (numpy 2.4.6, Python 3.11): where mask and prediction are both empty, Dice is infinite and Jaccard is
# the largest float, which counts as finite; of a label that both lack Dice is 0.
#
# Expected: one answer to 0 / 0, be it 1, 0 or nan, from every measure of LabelOverlapMeasuresImageFilter.
# Seen, two images without a voxel of an organ:
#     GetDiceCoefficient()     inf
#     GetJaccardCoefficient()  1.797e308    so do GetFalseNegativeError() and GetFalsePositiveError()
# and two equal images in which label 1 occurs and label 2 does not:
#     GetDiceCoefficient(1)  1      GetDiceCoefficient(2)  0, with a warning on the error stream
# So nanmean and isfinite let the Jaccard of one scan without the organ through, and the mean over the scans is 1e306 or
# so; asked by label, the same agreement is the worst there is. Exit code 1 if any of this is no longer so.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet simpleitk==2.5.7 numpy==2.4.6
"$place/venv/bin/python" - <<'PROGRAM'
import math

import numpy as np
import SimpleITK


def overlap(labels):
    image = SimpleITK.GetImageFromArray(np.array([labels], np.uint8))
    measures = SimpleITK.LabelOverlapMeasuresImageFilter()
    measures.Execute(image, image)
    return measures


empty, one = overlap([0, 0, 0]), overlap([0, 1, 1])
names = ("GetDiceCoefficient", "GetJaccardCoefficient", "GetFalseNegativeError", "GetFalsePositiveError")
seen = [getattr(empty, name)() for name in names]
print(dict(zip(names, seen)), [one.GetDiceCoefficient(label) for label in (1, 2)])
assert seen[0] == math.inf
assert seen[1:] == [np.finfo(np.float64).max] * 3
assert np.isfinite(np.nanmean([seen[1]] + [0.8] * 99))
assert [one.GetDiceCoefficient(label) for label in (1, 2)] == [1, 0]
PROGRAM
