"""From prompts to DICOM objects: codes of the lexicon, the same bytes for the same masks, all or nothing."""

from __future__ import annotations

from datetime import datetime

import numpy as np
import pydicom
import pytest

from textseg.dicom_output import segment_of, write_dicom_masks
from textseg.errors import OutputError
from textseg.prompts import understand
from textseg.scan import read_label_map, read_scan
from textseg.scan.dicom_derived import Code, Segment
from textseg.scan.dicom_seg import read_dicom_seg
from textseg.scan.rtstruct import read_rtstruct

pytest.importorskip("highdicom", reason="Needs highdicom, of the extra dicom.")
pytest.importorskip("skimage", reason="Needs scikit-image, of the extra dicom.")
PROMPTS = [understand("Left Kidney tumor"), understand("liver")]
MOMENT = datetime(2026, 3, 4, 5, 6, 7)


@pytest.fixture
def scan(voxels, tilted, write_series):
    return read_scan(write_series(voxels, tilted)[0].parent)


@pytest.fixture
def masks(voxels):
    masks = np.zeros((2, *voxels.shape), dtype=bool)
    masks[0, 1:4, 2:7, 1] = masks[1, 4:6, 5, 3] = True
    return masks


@pytest.mark.parametrize(
    ("text", "segment"),
    [
        ("liver", Segment("liver", Code("10200004", "liver"))),
        ("L kidney", Segment("L kidney", Code("64033007", "kidney"), side="left")),
        (
            "right kidney tumour",
            Segment("right kidney tumour", Code("64033007", "kidney"), Code("108369006", "tumor"), "right"),
        ),
        (
            "ascites",
            Segment("ascites", Code("83670000", "peritoneum"), Code("ascites", "ascites", "99TEXTSEG")),
        ),
        ("left tumor", Segment("left tumor", None, Code("108369006", "tumor"), "left")),
        ("spaghetti", Segment("spaghetti")),
    ],
)
def test_prompts_have_the_codes_of_the_lexicon(text, segment):
    assert segment_of(understand(text)) == segment


@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
def test_masks_of_prompts_read_back_with_their_words(kind, scan, masks, tmp_path):
    write_dicom_masks(tmp_path / "out.dcm", kind, masks, PROMPTS, scan)
    back = read_label_map(tmp_path / "out.dcm", grid=scan.geometry)
    assert np.array_equal(back.labels, masks[0] + 2 * masks[1])
    assert back.names == {1: "Left Kidney tumor", 2: "liver"}
    assert [path.name for path in tmp_path.glob("*out*")] == ["out.dcm"]


@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
def test_the_same_masks_at_the_same_moment_are_the_same_bytes(kind, scan, masks, tmp_path):
    for name in ("one.dcm", "two.dcm"):
        write_dicom_masks(tmp_path / name, kind, masks, PROMPTS, scan, written_at=MOMENT)
    assert (tmp_path / "one.dcm").read_bytes() == (tmp_path / "two.dcm").read_bytes()
    dataset = pydicom.dcmread(tmp_path / "one.dcm")
    assert dataset.get("ContentTime", dataset.get("StructureSetTime")) == "050607"


@pytest.mark.parametrize("kind", ["seg", "rtstruct"])
def test_what_can_not_be_written_leaves_nothing(kind, scan, masks, tmp_path):
    with pytest.raises(OutputError, match="can't be written"):
        write_dicom_masks(tmp_path / "nowhere" / "out.dcm", kind, masks, PROMPTS, scan)
    (tmp_path / "out.dcm").write_text("older")
    with pytest.raises(OutputError, match="one mask"):
        write_dicom_masks(tmp_path / "out.dcm", kind, masks[:1], PROMPTS, scan)
    assert (tmp_path / "out.dcm").read_text(encoding="utf-8") == "older"


def test_masks_of_a_real_series_come_back_voxel_for_voxel(shared_data, tmp_path):
    """A chest CT from which names and most UIDs were taken out, compressed, its files in no order."""
    scan = read_scan(shared_data / "scans" / "dicom_chest_ct")
    x, y, z = np.ogrid[tuple(map(slice, scan.geometry.shape))]
    away = ((x - 190) / 60) ** 2 + ((y - 250) / 50) ** 2 + ((z - 11) / 5) ** 2
    # What is no air within: outlines with holes and islands.
    masks = np.stack([(away < 1) & (scan.voxels[0] > -300), away < 0.2])
    for kind in ("seg", "rtstruct"):
        write_dicom_masks(tmp_path / kind, kind, masks, PROMPTS, scan)
        read = read_dicom_seg if kind == "seg" else read_rtstruct
        assert np.array_equal(read(tmp_path / kind, scan.geometry).masks, masks)
