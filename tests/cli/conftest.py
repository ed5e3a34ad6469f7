"""The command line on a tiny model, and on a stub network with a known answer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from click.testing import Result
from numpy.typing import NDArray
from torch import Tensor
from typer.testing import CliRunner

from tests.tiny_model import write_tiny_model
from textseg.sliding import Answer
from textseg_cli.main import app

Run = Callable[..., Result]

# A bright box off the centre of a scan with three different sides and spacings.
BOX = (slice(4, 10), slice(12, 20), slice(7, 12))
SPACING_MM = (2.0, 2.5, 3.0)
