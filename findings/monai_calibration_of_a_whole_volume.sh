#!/usr/bin/env bash
# MONAI 1.6.1 (torch 2.15.0, numpy 2.4.6, Python 3.11): in a volume of 25 million voxels an overconfident segmentation is
# perfectly calibrated.
#
# Expected: CalibrationErrorMetric of a prediction that says 0.99 everywhere and is right in 90 % of the voxels is 0.09,
# however many voxels there are.
# Seen, slices of 512 x 512, 20 bins:
#     slices        1         16        64        96        160
#     voxels        0.26 M    4.2 M     16.8 M    25.2 M    41.9 M
#     error         0.088     0.099     0.100     0         0
#     counted       0.26 M    4.2 M     16.8 M    16.8 M    16.8 M    bin_counts of calibration_binning
# calibration_binning (monai/metrics/calibration.py) adds a 1 for each voxel, and its probability, into float32: the count
# ends at 2 ** 24, and so do the two sums, which puts confidence and accuracy both at 1. Before that the sum of probabilities
# takes 0.99 for 1. The background of one abdominal CT is more than enough. Exit code 1 if this is no longer so.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet monai==1.6.1 torch==2.15.0 numpy==2.4.6
HOME="$place" "$place/venv/bin/python" -W ignore - <<'PROGRAM'
import torch
from monai.metrics import CalibrationErrorMetric
from monai.metrics.calibration import calibration_binning

torch.set_num_threads(1)


def volume(slices):
    truth = torch.ones(1, 1, 512, 512, slices)
    truth.view(-1)[::10] = 0
    return torch.full_like(truth, 0.99), truth


errors, counts = [], []
for slices in (1, 16, 64, 96, 160):
    predicted, truth = volume(slices)
    error = CalibrationErrorMetric(num_bins=20)
    error(y_pred=predicted, y=truth)
    errors.append(error.aggregate().item())
    counts.append(int(calibration_binning(predicted, truth, num_bins=20)[2].sum()))
    print(slices, truth.numel(), round(errors[-1], 4), counts[-1])
assert 0.085 < errors[0] < 0.095
assert all(0.098 < error < 0.101 for error in errors[1:3])
assert errors[3] == errors[4] == 0
assert counts == [262144, 4194304, 2**24, 2**24, 2**24]
PROGRAM
