"""The page of one scan of a cohort: what to look at, its preview, where it came from, and every measure."""

from __future__ import annotations

from html import escape

from textseg.measure import UNITS
from textseg.report.page import INDEX, CohortScan, data_url, file_link, page, shown

# Of every row; the rest are measures and the manifest's own columns.
OF_SCAN = ("id", "state", "reason", "scan", "modality", "model")
OF_MASK = ("prompt", "understood_as", "side", "presence", "found", "file", "present")


def scan_page(title: str, scan: CohortScan, before: CohortScan | None, after: CohortScan | None) -> str:
    links = [f'<a href="../{INDEX}">{escape(title)}</a>']
    links += [f'<a href="{file_link(before.id)}">← {escape(before.id)}</a>'] if before else []
    links += [f'<a href="{file_link(after.id)}">{escape(after.id)} →</a>'] if after else []
    parts = [
        f"<header><nav>{''.join(links)}</nav><h1>{escape(scan.id)}</h1></header><main>",
        _reasons(scan),
        _whole_picture(scan),
        _facts(scan),
        _measures(scan),
        "</main>",
    ]
    return page(f"{scan.id} – {title}", "".join(parts))


def _reasons(scan: CohortScan) -> str:
    reasons = [
        f'<p><b>{shown(row.get("prompt"))}</b> <span class="flag">{flag.kind}</span>'
        f'<span class="why">{escape(flag.why)}</span></p>'
        for row, flags in zip(scan.rows, scan.flags, strict=True)
        for flag in flags
    ]
    return f"<h2>To look at</h2>{''.join(reasons)}" if reasons else ""


def _whole_picture(scan: CohortScan) -> str:
    if scan.picture is None:
        return ""
    try:
        content = scan.picture.read_bytes()
    except OSError:
        return ""
    return f'<img class="preview" alt="Planes through {escape(scan.id)}" src="{data_url("png", content)}">'


def _facts(scan: CohortScan) -> str:
    """What is the same in all rows of a scan: where it came from, and a manifest's own columns."""
    first = scan.rows[0]
    common = [
        name
        for name in first
        if name not in (*OF_MASK, "id", "state")
        and first[name] not in (None, "")
        and (name in OF_SCAN or not _is_measure(name))
        and all(row.get(name) == first[name] for row in scan.rows)
    ]
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{shown(first[name])}</td></tr>' for name in common
    )
    return f'<h2>Scan</h2><div class="table"><table><tbody>{rows}</tbody></table></div>' if rows else ""


def _measures(scan: CohortScan) -> str:
    rows = [row for row in scan.rows if row.get("prompt")]
    if not rows:
        return ""
    names = dict.fromkeys(name for row in rows for name in row if name in OF_MASK or _is_measure(name))
    head = "".join(f'<th scope="col" class="number">{shown(row["prompt"])}</th>' for row in rows)
    lines = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f'<td class="number">{shown(row.get(name))}</td>' for row in rows)
        + "</tr>"
        for name in names
        if name != "prompt"
    )
    return (
        '<h2>Measures</h2><div class="table"><table><thead><tr><th scope="col">Measure</th>'
        f"{head}</tr></thead><tbody>{lines}</tbody></table></div>"
    )


def _is_measure(name: str) -> bool:
    endings = ("_mm", "_mm2", "_ml", *(f"_{unit}" for unit in UNITS))
    return name.endswith(endings) or name in ("voxels", "components", "touches_border", "border_sides")
