"""What `import textseg` offers, and what it must not cost."""

from __future__ import annotations

import subprocess
import sys

import pytest

import textseg
from textseg import errors


def test_there_are_about_twenty_public_names_in_order():
    assert 15 <= len(textseg.__all__) <= 25
    assert textseg.__all__ == sorted(textseg.__all__)
    assert dir(textseg) == textseg.__all__


@pytest.mark.parametrize("name", sorted(set(textseg.__all__) - {"__version__"}))
def test_every_public_name_is_there_and_explains_itself(name):
    thing = getattr(textseg, name)
    assert thing.__doc__
    assert thing.__name__ == name


def test_the_version_is_one_of_numbers():
    major, minor, patch = textseg.__version__.split(".")
    assert (major + minor + patch[0]).isdigit()


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'segmentt'"):
        _ = textseg.segmentt


@pytest.mark.parametrize(
    "command",
    [
        "import textseg",
        "import textseg; dir(textseg); textseg.__version__",
        "import textseg; textseg.Geometry; textseg.Volume; textseg.PlanError; textseg.read_plan",
        "import textseg; textseg.Prompt; textseg.understand('liver')",
        "import textseg; textseg.read_scan; textseg.write_mask; textseg.find_model",
    ],
)
def test_names_that_need_no_torch_load_none(command):
    check = f"{command}; import sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_every_error_is_a_textseg_error():
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type)]
    assert len(kinds) > 8
    assert all(issubclass(kind, errors.TextsegError) and kind.__doc__ for kind in kinds)
