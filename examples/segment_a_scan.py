"""A scan and sentences in, volumes and masks out.

python examples/segment_a_scan.py examples/torso_phantom.nii.gz out "left kidney" liver
"""

from __future__ import annotations

import sys

import textseg


def main(scan: str, folder: str, *prompts: str) -> None:
    result = textseg.segment(scan, prompts)
    for found in result.found:
        print(found)
    for path in result.save(folder, preview=True, overwrite=True):
        print(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
