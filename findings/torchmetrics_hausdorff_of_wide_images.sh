#!/usr/bin/env bash
# torchmetrics 1.9.0 (torch 2.15.0, scipy 1.17.1, numpy 2.4.6, Python 3.11): the Hausdorff distance of two masks depends on
# how wide the image is that they lie in, and is right in square ones alone.
#
# Expected: background that is added beside two masks leaves the distance between them as it is.
# Seen, boxes of 4 x 7 and 4 x 19 pixels that begin at the same corner, whose distance is 12:
#     image                 30 x 30    30 x 36    30 x 48    30 x 64    30 x 100    256 x 320    320 x 256
#     HausdorffDistance       12         26         32         32         21.2         204       IndexError
# The error of images with more rows than columns is known (issue 3300, which takes wide ones to work). distance_transform
# (torchmetrics/functional/segmentation/utils.py) finds the distances and writes them to row * height + column of the flat
# image, for row * width + column, so that in a wide image they belong to other pixels. Nothing is raised or said.
# Exit code 1 if this is no longer so.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet torchmetrics==1.9.0 torch==2.15.0 scipy==1.17.1 numpy==2.4.6
HOME="$place" "$place/venv/bin/python" -W ignore - <<'PROGRAM'
import numpy as np
import torch
from scipy.spatial.distance import directed_hausdorff
from torchmetrics.segmentation import HausdorffDistance

torch.set_num_threads(1)


def boxes(rows, columns):
    short, long = np.zeros((rows, columns), np.int64), np.zeros((rows, columns), np.int64)
    short[2:6, 3:10] = 1
    long[2:6, 3:22] = 1
    return short, long


def right(rows, columns):
    short, long = (np.argwhere(mask) for mask in boxes(rows, columns))
    return max(directed_hausdorff(long, short)[0], directed_hausdorff(short, long)[0])


def seen(rows, columns):
    short, long = (torch.from_numpy(mask)[None] for mask in boxes(rows, columns))
    metric = HausdorffDistance(num_classes=2, include_background=False, input_format="index")
    return round(metric(long, short).item(), 1)


SIZES = (30, 30), (30, 36), (30, 48), (30, 64), (30, 100), (256, 320)
distances = [seen(*size) for size in SIZES]
print("right", [right(*size) for size in SIZES], "seen", distances)
assert all(right(*size) == 12 for size in SIZES)
assert distances == [12, 26, 32, 32, 21.2, 204]
try:
    seen(320, 256)
except IndexError:
    pass
else:
    raise AssertionError("images with more rows than columns have a distance")
PROGRAM
