#!/usr/bin/env bash
# MONAI 1.6.1 (torch 2.15.0, numpy 2.4.6, Python 3.11): NormalizeIntensityd normalises the images of a Dataset in place, and
# each epoch once more.
#
# Expected: a Dataset leaves its items as they are and gives the same image each time that it is asked. With other intensity
# transforms it does, and with NormalizeIntensityd too where neither channel_wise nor nonzero is set.
# Seen, an image of 64 x 64 in memory around 300, subtrahend 300, divisor 50, mean of the image in three epochs:
#                                            1         2         3        the image itself, afterwards
#     neither                               -0.02     -0.02     -0.02     299
#     channel_wise=True                     -0.02     -6.00     -6.12     -6.12
#     nonzero=True                          -0.02     -6.00     -6.12     -6.12
#     ScaleIntensityRanged                   0.30      0.30      0.30     299
# So for arrays of float32 and for tensors, behind EnsureTyped too; whole numbers are copied. Behind RandSpatialCropd only the
# patch that was cut is changed, and the image becomes patchwork. NormalizeIntensity (monai/transforms/intensity/array.py)
# writes into what it is given, which may be a view. CacheDataset hides it, and so do workers that are started anew for each
# epoch; a DataLoader without workers, or with persistent ones, does not. Exit code 1 if this is no longer so.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet monai==1.6.1 torch==2.15.0 numpy==2.4.6
HOME="$place" "$place/venv/bin/python" -W ignore - <<'PROGRAM'
import numpy as np
import torch
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, EnsureTyped, NormalizeIntensityd, RandSpatialCropd, ScaleIntensityRanged


def course(transforms, convert=np.asarray):
    image = convert(np.random.default_rng(0).normal(300, 50, (1, 64, 64)).astype(np.float32))
    loader = DataLoader(Dataset([{"image": image}], Compose(transforms)), num_workers=0)
    epochs = [batch["image"].mean().item() for _ in range(3) for batch in loader]
    return np.round([*epochs, float(image.mean())], 2).tolist(), np.asarray(image)


neither = NormalizeIntensityd("image", subtrahend=300.0, divisor=50.0)
by_channel = NormalizeIntensityd("image", subtrahend=[300.0], divisor=[50.0], channel_wise=True)
nonzero = NormalizeIntensityd("image", subtrahend=300.0, divisor=50.0, nonzero=True)
scaled = ScaleIntensityRanged("image", 0, 1000, 0, 1)
right, wrong = [-0.02, -0.02, -0.02, 299.19], [-0.02, -6.0, -6.12, -6.12]
for name, transforms in (("neither", [neither]), ("channel_wise", [by_channel]), ("nonzero", [nonzero]), ("scaled", [scaled])):
    print(name, course(transforms)[0])
assert course([neither])[0] == right
assert course([scaled])[0][:3] == [0.3, 0.3, 0.3]
for transforms in ([by_channel], [nonzero], [EnsureTyped("image"), by_channel]):
    assert course(transforms)[0] == course(transforms, torch.as_tensor)[0] == wrong

crop = RandSpatialCropd("image", (32, 32), random_size=False)
_, image = course([crop, by_channel])
patches = np.mean(image < 50)
print("patchwork", patches)
assert 0.2 < patches < 0.8
PROGRAM
