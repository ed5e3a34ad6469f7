"""`textseg` itself: help, version, and how soon they answer."""

from __future__ import annotations

import subprocess
import sys
from typing import get_args

import pytest

from tests.cli.conftest import Run
from textseg.version import __version__

# Pydantic is left out: typer itself uses it.
HEAVY = ("torch", "numpy", "scipy", "nibabel", "SimpleITK", "pydicom", "tokenizers", "PIL")


@pytest.mark.parametrize("command", ["", "predict", "models", "models show", "train", "doctor"])
def test_help_says_what_there_is(textseg: Run, command: str) -> None:
    result = textseg(*command.split(), "--help")
    assert result.exit_code == 0
    assert "Usage:" in result.output


def test_help_tells_the_exit_codes(textseg: Run) -> None:
    for command in ([], ["predict"]):
        words = " ".join(textseg(*command, "--help").output.split())
        assert "3 no prompt was found" in words


def test_version(textseg: Run) -> None:
    assert textseg("--version").output == f"textseg {__version__}\n"


def test_an_unknown_option_is_bad_input(textseg: Run) -> None:
    assert textseg("predict", "scan.nii.gz", "liver", "--frobnicate").exit_code == 2


@pytest.mark.parametrize("command", [[], ["predict"], ["train"], ["finetune"], ["plan"], ["view"]])
def test_help_imports_nothing_heavy(command: list[str]) -> None:
    """So it answers in half a second on any machine that is not slow."""
    program = (
        "import sys; from typer.testing import CliRunner; from textseg_cli.main import app; "
        f"assert CliRunner().invoke(app, [*{command}, '--help']).exit_code == 0; "
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_choices_on_the_command_line_are_those_of_the_library() -> None:
    from textseg_cli.finetune import What
    from textseg_cli.predict import Device, ModalityChoice

    from textseg.device import DeviceChoice
    from textseg.train.finetune import Tuned
    from textseg.volume import Modality

    assert {choice.value for choice in Device} == set(get_args(DeviceChoice))
    assert {choice.value for choice in ModalityChoice} == {"auto", *get_args(Modality)}
    assert {choice.value for choice in What} == {choice.value for choice in Tuned}
