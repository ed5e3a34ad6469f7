"""What the pages of a cohort share: the scans they show, and HTML that needs nothing but itself."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import quote

from textseg.report.outliers import KINDS, Flag

Row = Mapping[str, Any]

INDEX, PAGES = "report.html", "report"
# Pages refer to each other and to nothing else: a browser is told to fetch nothing, should anything ask.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
NOTHING = "–"


@dataclass(frozen=True)
class CohortScan:
    """One scan of the cohort: its rows, their flags, and where its picture lies if there is one."""

    id: str
    rows: tuple[Row, ...]
    flags: tuple[tuple[Flag, ...], ...]
    picture: Path | None

    @property
    def is_done(self) -> bool:
        return bool(self.rows[0].get("state", "done") == "done")

    @property
    def kinds(self) -> list[str]:
        found = {flag.kind for flags in self.flags for flag in flags}
        return [kind for kind in KINDS if kind in found]


def chips(kinds: Iterable[str]) -> str:
    return "".join(f'<span class="flag">{kind}</span>' for kind in kinds)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def shown(value: Any) -> str:
    if value is None or value == "":
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    return escape(f"{value:.6g}" if isinstance(value, float) else str(value))


def file_link(name: str) -> str:
    """A scan's page as a link from another scan's."""
    return escape(quote(f"{name}.html"))


def page_link(name: str) -> str:
    return f"{PAGES}/{file_link(name)}"


def data_url(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def resource(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def page(title: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{resource('cohort_page.css')}</style></head>"
        f"<body>{body}</body></html>\n"
    )
