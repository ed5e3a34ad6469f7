"""Pictures of what the default model makes of four real scans: a head, an abdomen, a sarcoma, a hippocampus.

    python tests/benchmarks/gallery.py DATA [--model default] [--work FOLDER] [-o docs/gallery.jpg]

None of the four was trained on. Each is segmented as `textseg predict` does, drawn as its preview, and put
below the one before; masks that were not found are named in the legend as such.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from textseg.inference import Segmenter
from textseg.report.preview import render_preview

WIDTH_PIXELS = 1000


@dataclass(frozen=True)
class Exhibit:
    """A scan, what is asked for, and how the picture is titled, with whom to thank for the scan."""

    scan: str
    prompts: tuple[str, ...]
    title: str


EXHIBITS = (
    Exhibit(
        "validation/brain_t1_image.nii.gz",
        (
            "left cerebral white matter",
            "right cerebral white matter",
            "left cerebral cortex",
            "right cerebral cortex",
            "left thalamus",
            "right thalamus",
            "brainstem",
            "left lateral ventricle",
            "right lateral ventricle",
        ),
        "Head, T1 (BSD-2-Clause)",
    ),
    Exhibit(
        "Dataset004_PartlyLabelledCT/imagesTr/abdomen_portal_0000.nii.gz",
        ("liver", "spleen", "left kidney", "right kidney", "aorta", "vertebral column"),
        "Abdomen, CT in the portal phase (CC BY)",
    ),
    Exhibit(
        "Dataset002_Sarcoma/imagesTr/{sarcoma}_MR_T1_0000.nii.gz",
        ("soft tissue sarcoma",),
        "Soft tissue sarcoma, MR T1 (TCIA, Vallières 2015, CC BY 3.0)",
    ),
    Exhibit(
        "Dataset001_Hippocampus/imagesTr/{hippocampus}_0000.nii.gz",
        ("anterior hippocampus", "posterior hippocampus"),
        "Hippocampus, T1 (Medical Segmentation Decathlon, CC BY-SA 4.0)",
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", default="default")
    parser.add_argument("--sarcoma", required=True, help="a patient that was held back, STS_005")
    parser.add_argument("--hippocampus", required=True, help="a crop that was held back, hippocampus_001")
    parser.add_argument("-o", "--out", type=Path, default=Path("docs/gallery.jpg"))
    asked = parser.parse_args()
    segmenter = Segmenter(asked.model)
    with tempfile.TemporaryDirectory(prefix="textseg-") as folder:
        pictures = [_picture(segmenter, exhibit, asked, Path(folder)) for exhibit in EXHIBITS]
    height = sum(picture.height for picture in pictures)
    page = Image.new("RGB", (WIDTH_PIXELS, height))
    top = 0
    for picture in pictures:
        page.paste(picture, (0, top))
        top += picture.height
    # Not as PNG, which would be three times as large: it travels with the repository.
    page.save(asked.out, quality=88)


def _picture(segmenter: Segmenter, exhibit: Exhibit, asked: argparse.Namespace, folder: Path) -> Image.Image:
    scan = asked.data / exhibit.scan.format(sarcoma=asked.sarcoma, hippocampus=asked.hippocampus)
    result = segmenter(scan, list(exhibit.prompts))
    sys.stdout.write(f"{exhibit.title}: {result.seconds:.1f} s\n")
    path = folder / f"{len(list(folder.iterdir()))}.png"
    image = result.volume.voxels[0]
    render_preview(image, result.masks, result.geometry, exhibit.title, path, exhibit.prompts)
    with Image.open(path) as picture:
        shown = picture.convert("RGB")
    return shown.resize((WIDTH_PIXELS, round(shown.height * WIDTH_PIXELS / shown.width)), Image.LANCZOS)


if __name__ == "__main__":
    main()
