"""One loaded model, several questions: is the left kidney larger than the right one?

python examples/left_and_right.py examples/torso_phantom.nii.gz kidney
"""

from __future__ import annotations

import sys

import textseg


def main(scan: str, organ: str) -> None:
    volume = textseg.read_scan(scan)
    segmenter = textseg.Segmenter()
    left, right = segmenter(volume, [f"left {organ}", f"right {organ}"]).found
    for found in (left, right):
        print(found)
    if left.is_there and right.is_there:
        larger = max(left, right, key=lambda found: found.mask.volume_ml)
        print(f"The {larger.prompt.canonical} is the larger one.")


if __name__ == "__main__":
    main(*sys.argv[1:])
