"""Scans from files and masks to files: NIfTI, FreeSurfer, NRRD, MetaImage and DICOM series."""

from __future__ import annotations

from textseg.scan.check import check_voxels
from textseg.scan.dicom import DicomSource, SeriesInfo, SliceSource, list_series
from textseg.scan.read import LabelMap, derived_kind, read_label_map, read_scan
from textseg.scan.write import mask_ending, write_label_map, write_mask

__all__ = [
    "DicomSource",
    "LabelMap",
    "SeriesInfo",
    "SliceSource",
    "check_voxels",
    "derived_kind",
    "list_series",
    "mask_ending",
    "read_label_map",
    "read_scan",
    "write_label_map",
    "write_mask",
]
