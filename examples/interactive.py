"""Say it, correct it, keep it: words first, then a click where they are wrong, each answered at once.

python examples/interactive.py examples/torso_phantom.nii.gz left_kidney.nii.gz "left kidney"
"""

from __future__ import annotations

import sys

import textseg


def main(scan: str, output: str, words: str) -> None:
    session = textseg.Session(progress=lambda stage, done, of: None)
    session.set_scan(scan)
    answer = session.say(words)
    print(f"{words}: {answer.volume_ml:.1f} ml (presence {answer.presence:.2f})")
    session.save(f"{output}.session")

    # A click in the middle of the scan, in world millimetres, says that this is not it.
    middle = session.geometry.to_world([(n - 1) / 2 for n in session.geometry.shape])
    answer = session.add_point(middle, positive=False)
    print(f"after a click: {answer.volume_ml:.1f} ml")
    session.undo()

    kept = session.accept()
    print(f"kept: {kept.name}, {kept.volume_ml:.1f} ml")
    textseg.write_mask(output, kept.mask, session.volume)


if __name__ == "__main__":
    main(*sys.argv[1:])
