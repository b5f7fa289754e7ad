#!/usr/bin/env bash
# SimpleITK 2.5.7 (numpy 2.4.6, Python 3.11): the median of an organ depends on a voxel outside it.
#
# Expected: LabelStatisticsImageFilter and LabelIntensityStatisticsImageFilter give the median of the voxels that have the
# label, as they give their mean, and the same one.
# Seen, a CT of int16 whose organ has 600 voxels around 60 HU, of which the median is 60 and the mean 59.82:
#     outside the organ                   LabelStatistics   LabelIntensityStatistics   mean of both
#     0 HU alone                                59.93              60.10                  59.82
#     air, -1024, and a clip, 3000              52.73              60.59                  59.82
#     air, -1024, and metal, 30000               6.09              66.69                  59.82
# Both read it off a histogram over the range of the whole image, of 256 bins and 128 bins: with metal a bin is 121 or 242
# HU wide. ITK itself takes a bin for each value of 16 bits since pull request 2514; SimpleITK's LabelIntensityStatistics
# still sets its NumberOfBins to 128, and its description has no word of it. Exit code 1 if this is no longer so.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet simpleitk==2.5.7 numpy==2.4.6
"$place/venv/bin/python" - <<'PROGRAM'
import numpy as np
import SimpleITK

organ = np.zeros((10, 20, 20), np.uint8)
organ[2:8, 5:15, 5:15] = 1
mask = SimpleITK.GetImageFromArray(organ)
inside = np.random.default_rng(0).normal(60, 8, int(organ.sum())).round()


def medians(outside):
    values = np.zeros(organ.shape, np.int16)
    values[0, 0, : len(outside)] = outside
    values[organ > 0] = inside
    image = SimpleITK.GetImageFromArray(values)
    of_image, of_label = SimpleITK.LabelStatisticsImageFilter(), SimpleITK.LabelIntensityStatisticsImageFilter()
    of_image.Execute(image, mask)
    of_label.Execute(mask, image)
    assert abs(of_image.GetMean(1) - inside.mean()) < 1e-9 and abs(of_label.GetMean(1) - inside.mean()) < 1e-9
    return round(of_image.GetMedian(1), 2), round(of_label.GetMedian(1), 2)


seen = [medians(outside) for outside in ([], [-1024, 3000], [-1024, 30000])]
print("right:", np.median(inside), round(inside.mean(), 2), "seen:", seen)
assert all(abs(median - np.median(inside)) < 1 for median in seen[0])
assert seen[1][0] < 55
assert seen[2][0] < 10 and seen[2][1] > 65
PROGRAM
