"""A cohort as one HTML page, and a page for each scan: nothing is fetched, everything is in the files."""

from __future__ import annotations

import io
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from textseg.atomic import write_bytes
from textseg.errors import OutputError
from textseg.measure import UNITS
from textseg.report.histogram import histogram
from textseg.report.outliers import KINDS, Flag, find_outliers
from textseg.report.page import (
    INDEX,
    NOTHING,
    PAGES,
    CohortScan,
    Row,
    chips,
    data_url,
    is_number,
    page,
    page_link,
    resource,
    shown,
)
from textseg.report.scan_page import scan_page

THUMBNAIL_WIDTH, THUMBNAIL_QUALITY = 420, 72


@dataclass(frozen=True)
class Column:
    """A column of the table of masks: its heading, the measure it shows, and digits after the point."""

    heading: str
    name: str
    digits: int


COLUMNS = (
    Column("Volume, ml", "volume_ml", 2),
    Column("Presence", "presence", 2),
    Column("Longest, mm", "longest_axial_mm", 1),
    Column("Across, mm", "short_axis_mm", 1),
    Column("In 3D, mm", "longest_3d_mm", 1),
    Column("Parts", "components", 0),
)


def write_cohort_report(
    out: Path,
    rows: Sequence[Row],
    *,
    title: str = "Cohort",
    picture: Callable[[str], Path | None] | None = None,
) -> list[Path]:
    """Write `report.html` and `report/<id>.html` for each finished scan; gives their paths, the first first.

    Each page stands alone. The first has numbers, a histogram of volumes for each prompt, a table of masks
    that can be sorted and filtered with mouse or keyboard, and small pictures of the scans. Older pages of
    scans that are finished no more are taken away.

    Args:
        out: the cohort's folder.
        rows: one a mask, with `id` and, unless done, `state` and `reason`; `prompt` and the columns of
            `measure_segmentation`; any others are shown on the scan's page. All text is escaped.
        title: stands above the page.
        picture: a scan's preview by its id, or None; by default `out/<id>/preview.png` if it is there.

    Raises:
        OutputError: a page can't be written.
    """
    scans = _scans(rows, picture or (lambda name: _picture_in(out, name)))
    done = [scan for scan in scans if scan.is_done]
    paths = [out / INDEX]
    for before, scan, after in zip([None, *done], done, [*done[1:], None], strict=False):
        paths.append(_write(out / PAGES / f"{scan.id}.html", scan_page(title, scan, before, after)))
    # After them, so that whatever it links to is there.
    _write(paths[0], _index_page(title, scans))
    for old in set((out / PAGES).glob("*.html")) - set(paths):
        # Whoever opens it, or hands the report on, would take it for a result.
        old.unlink(missing_ok=True)
    return paths


def _scans(rows: Sequence[Row], picture: Callable[[str], Path | None]) -> list[CohortScan]:
    of_scan: dict[str, list[tuple[Row, tuple[Flag, ...]]]] = defaultdict(list)
    for row, flags in zip(rows, find_outliers(rows), strict=True):
        of_scan[str(row["id"])].append((row, flags))
    return [
        CohortScan(name, tuple(row for row, _ in pairs), tuple(flags for _, flags in pairs), picture(name))
        for name, pairs in of_scan.items()
    ]


def _picture_in(out: Path, name: str) -> Path | None:
    path = out / name / "preview.png"
    return path if path.is_file() else None


def _write(path: Path, content: str) -> Path:
    try:
        write_bytes(path, content.encode())
    except OSError as error:
        raise OutputError(f"{path} can't be written: {error.strerror or error}.") from error
    return path


# ---- the cohort's page ----


def _index_page(title: str, scans: Sequence[CohortScan]) -> str:
    done = [scan for scan in scans if scan.is_done]
    masks = [
        pair for scan in done for pair in zip(scan.rows, scan.flags, strict=True) if pair[0].get("prompt")
    ]
    parts = [
        '<a class="skip" href="#masks">To the table of masks</a>',
        f"<header><h1>{escape(title)}</h1>{_tiles(scans, masks)}</header><main>",
        _failures([scan for scan in scans if not scan.is_done]),
        _histograms(masks),
        _mask_table(masks),
        _gallery(done),
        f"</main><script>{resource('cohort_page.js')}</script>",
    ]
    return page(title, "".join(parts))


def _tiles(scans: Sequence[CohortScan], masks: Sequence[tuple[Row, tuple[Flag, ...]]]) -> str:
    states = Counter(str(scan.rows[0].get("state", "done")) for scan in scans)
    tiles = [("scans done", states.pop("done", 0), False), ("masks", len(masks), False)]
    tiles.append(("masks to look at", sum(bool(flags) for _, flags in masks), True))
    tiles += [(f"scans {state}", count, state == "failed") for state, count in sorted(states.items())]
    items = (
        f"<li{' class=alarm' if alarm and count else ''}><b>{count}</b>{escape(name)}</li>"
        for name, count, alarm in tiles
    )
    return f'<ul class="tiles">{"".join(items)}</ul>'


def _failures(scans: Sequence[CohortScan]) -> str:
    if not scans:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(scan.id)}</th><td>{shown(scan.rows[0].get("state"))}</td>'
        f"<td>{shown(scan.rows[0].get('reason'))}</td></tr>"
        for scan in scans
    )
    head = (
        '<thead><tr><th scope="col">Scan</th><th scope="col">State</th><th scope="col">Why</th></tr></thead>'
    )
    return (
        f'<h2>Not done</h2><div class="table"><table id="failures">{head}<tbody>{rows}</tbody></table></div>'
    )


def _histograms(masks: Sequence[tuple[Row, tuple[Flag, ...]]]) -> str:
    volumes: dict[str, list[tuple[float, bool]]] = defaultdict(list)
    absent: Counter[str] = Counter()
    for row, flags in masks:
        prompt = str(row["prompt"])
        if row.get("present"):
            volumes[prompt].append((float(row["volume_ml"]), bool(flags)))
        else:
            absent[prompt] += 1
    cards = []
    for prompt in dict.fromkeys(str(row["prompt"]) for row, _ in masks):
        picture = histogram(prompt, volumes[prompt]) if volumes[prompt] else "<p>Found in no scan.</p>"
        missing = f", not found in {absent[prompt]}" if absent[prompt] else ""
        found = f'<p class="faint">found in {len(volumes[prompt])}{missing}</p>'
        cards.append(f'<figure class="card"><h3>{escape(prompt)}</h3>{found}{picture}</figure>')
    return f'<h2>Volumes</h2><div class="cards">{"".join(cards)}</div>' if cards else ""


def _mask_table(masks: Sequence[tuple[Row, tuple[Flag, ...]]]) -> str:
    counts = Counter(flag.kind for _, flags in masks for flag in flags)
    buttons = "".join(
        f'<button type="button" data-flag="{kind}" aria-pressed="false">{kind} {counts[kind]}</button>'
        for kind in KINDS
        if counts[kind]
    )
    numbers = [*(column.heading for column in COLUMNS), "Mean"]
    head = "".join(
        f'<th scope="col"{kind}><button type="button">{escape(heading)}</button></th>'
        for headings, kind in ((("Scan", "Prompt", "To look at"), ""), (numbers, ' class="number"'))
        for heading in headings
    )
    rows = "".join(_mask_row(row, flags) for row, flags in masks)
    return (
        '<h2 id="table">Masks</h2><div class="tools"><label>Search <input type="search" id="words"></label>'
        f'{buttons}<span class="faint" id="shown" role="status">{len(masks)} masks</span></div>'
        f'<div class="table" tabindex="0" role="region" aria-labelledby="table"><table id="masks">'
        f"<thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _mask_row(row: Row, flags: Sequence[Flag]) -> str:
    name = str(row["id"])
    cells = [
        f'<th scope="row"><a href="{page_link(name)}">{escape(name)}</a></th>',
        f"<td>{shown(row['prompt'])}</td>",
    ]
    why = "".join(f'<span class="flag" title="{escape(flag.why)}">{flag.kind}</span>' for flag in flags)
    cells.append(f'<td data-number="{len(flags) or ""}">{why}</td>')
    cells += [_number_cell(row.get(column.name), column.digits) for column in COLUMNS]
    cells.append(_mean_cell(row))
    return f'<tr data-flags="{"|".join(flag.kind for flag in flags)}">{"".join(cells)}</tr>'


def _number_cell(value: Any, digits: int, unit: str = "") -> str:
    if not is_number(value):
        return f'<td class="number faint" data-number="">{NOTHING}</td>'
    text = f"{value:,.{digits}f}".replace(",", " ") + (f" {unit}" if unit else "")
    return f'<td class="number" data-number="{value!r}">{text}</td>'


def _mean_cell(row: Row) -> str:
    for name, unit in UNITS.items():
        if is_number(row.get(f"mean_{name}")):
            return _number_cell(row[f"mean_{name}"], 1, unit)
    return _number_cell(None, 1)


def _gallery(scans: Sequence[CohortScan]) -> str:
    if not scans:
        return ""
    cards = "".join(
        f'<a class="card scan" href="{page_link(scan.id)}">{_thumbnail(scan)}'
        f'<span class="name">{escape(scan.id)}</span><span class="flags">{chips(scan.kinds)}</span></a>'
        # Those to look at first.
        for scan in sorted(scans, key=lambda scan: not scan.kinds)
    )
    return f'<h2>Scans</h2><div class="cards">{cards}</div>'


def _thumbnail(scan: CohortScan) -> str:
    """A small copy of the preview within the page; a damaged one counts as none."""
    if scan.picture is not None:
        try:
            with Image.open(scan.picture) as picture:
                small = picture.convert("RGB")
        except (OSError, ValueError):
            return '<span class="none">picture damaged</span>'
        small.thumbnail((THUMBNAIL_WIDTH, 2 * THUMBNAIL_WIDTH))
        stream = io.BytesIO()
        small.save(stream, format="JPEG", quality=THUMBNAIL_QUALITY, optimize=True)
        return f'<img alt="Planes through {escape(scan.id)}" src="{data_url("jpeg", stream.getvalue())}">'
    return '<span class="none">no picture</span>'
