"""DICOM files as scanners write them, made with pydicom."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

CT_IMAGE, ENHANCED_CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.2.1"
PATIENT = {"PatientName": "Doe^Jane", "PatientID": "4711", "PatientBirthDate": "19500101", "StudyDate": "20240229"}


def make_dicom(stored: Any, bits: int = 16, **tags: Any) -> Dataset:
    """A file of one frame (H, W) or several (N, H, W) with these stored values."""
    stored = np.asarray(stored)
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    is_enhanced = "PerFrameFunctionalGroupsSequence" in tags
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = ENHANCED_CT_IMAGE if is_enhanced else CT_IMAGE
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    words = {
        **PATIENT,
        "StudyInstanceUID": "1.2.3",
        "SeriesInstanceUID": "1.2.3.4",
        "InstitutionName": "North General",
        "Modality": "CT",
        "PhotometricInterpretation": "MONOCHROME2",
        "SamplesPerPixel": 1,
        "BitsAllocated": 8 * stored.itemsize,
        "BitsStored": bits,
        "HighBit": bits - 1,
        "PixelRepresentation": int(stored.dtype.kind == "i"),
        "Rows": stored.shape[-2],
        "Columns": stored.shape[-1],
        **({"NumberOfFrames": stored.shape[0]} if stored.ndim == 3 else {}),
        **tags,
    }
    for name, value in words.items():
        setattr(data, name, value)
    data.PixelData = stored.tobytes()
    return data


def save_dicom(path: Path, stored: Any, bits: int = 16, **tags: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    make_dicom(stored, bits, **tags).save_as(path, enforce_file_format=True)
    return path


def item(**words: Any) -> Dataset:
    """An item of a sequence; a list of items makes a sequence inside it."""
    data = Dataset()
    for name, value in words.items():
        setattr(data, name, value)
    return data


def per_frame(slopes: Sequence[float], intercepts: Sequence[float]) -> list[Dataset]:
    """Functional groups in which every frame has a slope and an intercept of its own."""
    return [
        item(PixelValueTransformationSequence=[item(RescaleSlope=slope, RescaleIntercept=intercept, RescaleType="HU")])
        for slope, intercept in zip(slopes, intercepts, strict=True)
    ]
