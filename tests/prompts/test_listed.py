from pathlib import Path

import pytest

from textseg.errors import PromptError
from textseg.prompts import read_prompts_file


def test_a_prompts_file_has_one_prompt_a_line_and_comments(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("\ufeffliver\r\n\r\n  # organs of pairs\r\n left kidney  \r\nlésion #2\r\n".encode())
    assert read_prompts_file(path) == ["liver", "left kidney", "lésion #2"]


def test_a_prompts_file_is_utf_8(tmp_path: Path) -> None:
    path = tmp_path / "prompts.txt"
    path.write_bytes("lésion".encode("latin-1"))
    with pytest.raises(PromptError, match="UTF-8"):
        read_prompts_file(path)
    with pytest.raises(PromptError, match="must be readable"):
        read_prompts_file(tmp_path / "none.txt")
