#!/usr/bin/env bash
# SimpleITK 2.5.7 (nibabel 5.4.2, numpy 2.4.6, Python 3.11): a displacement field in NIfTI can be read and not written
# again; without its intent it can be written, with two of three components turned round.
#
# Expected: what ReadImage returned WriteImage stores as it was, since a NIfTI of three components per voxel that has
# another intent (1007, vector) makes that round trip unchanged.
# Seen, a field of (1, 2, 3) everywhere, intent 1006 (displacement vector), written by nibabel:
#     ReadImage            (-1, -2, 3), from the file's RAS to LPS, and the key intent_code with 1006
#     WriteImage to .nii   RuntimeError: "RAS conversion requires pixel to be 3-component vector or point"
#     EraseMetaData("intent_code"), then WriteImage: nibabel reads (-1, -2, 3) with intent 1007
# The same happens to every copy that keeps the image's keys. Exit code 1 if any of this is no longer so.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
"${PYTHON:-python3}" -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet simpleitk==2.5.7 nibabel==5.4.2 numpy==2.4.6
PLACE="$place" "$place/venv/bin/python" - <<'PROGRAM'
import os
from pathlib import Path

import nibabel
import numpy as np
import SimpleITK

place = Path(os.environ["PLACE"])


def stored(name):
    image = nibabel.load(place / name)
    return image.header["intent_code"].item(), image.get_fdata()[0, 0, 0, 0].tolist()


def made(name, intent):
    field = np.broadcast_to(np.array([1, 2, 3], np.float32), (2, 3, 4, 1, 3)).copy()
    image = nibabel.Nifti1Image(field, np.eye(4))
    image.header.set_intent(intent)
    nibabel.save(image, place / name)
    return SimpleITK.ReadImage(str(place / name))


vectors = made("vectors.nii", "vector")
SimpleITK.WriteImage(vectors, str(place / "vectors_again.nii"))
print(stored("vectors.nii"), stored("vectors_again.nii"))
assert stored("vectors.nii") == stored("vectors_again.nii") == (1007, [1, 2, 3])

field = made("field.nii", "displacement vector")
print(stored("field.nii"), field.GetPixel(0, 0, 0), field.GetMetaData("intent_code"))
assert stored("field.nii") == (1006, [1, 2, 3])
assert (field.GetPixel(0, 0, 0), field.GetMetaData("intent_code")) == ((-1, -2, 3), "1006")
refused = False
try:
    SimpleITK.WriteImage(field, str(place / "field_again.nii"))
except RuntimeError as error:
    refused = "RAS conversion requires pixel" in str(error)
assert refused

field.EraseMetaData("intent_code")
SimpleITK.WriteImage(field, str(place / "field_again.nii"))
print(stored("field_again.nii"))
assert stored("field_again.nii") == (1007, [-1, -2, 3])
PROGRAM
