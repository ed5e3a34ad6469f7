"""The pages of a cohort: what is odd is flagged, and a real browser sorts, filters and fetches nothing."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from textseg.errors import OutputError
from textseg.report.cohort_page import write_cohort_report
from textseg.report.histogram import histogram
from textseg.report.outliers import find_outliers

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
HEADLESS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)
EVIL = '"><img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'


def mask_row(name, prompt="liver", **measures):
    usual = {
        "id": name, "state": "done", "reason": None, "scan": f"{name}.nii.gz", "modality": "ct",
        "prompt": prompt, "understood_as": prompt, "side": None, "presence": 0.9, "found": True,
        "present": True, "voxels": 5000, "volume_ml": 100.0, "longest_axial_mm": 80.25,
        "short_axis_mm": 40.0, "longest_3d_mm": 90.0, "components": 1, "touches_border": False,
        "border_sides": "", "midline_offset_mm": 30.0, "mean_hu": 55.5,
    }  # fmt: skip
    return usual | measures


def cohort():
    """Eight scans with a liver and a left kidney each, the kidney on the left; one failed, one not run."""
    rows = []
    for number in range(8):
        volume = 100.0 + 3 * number
        rows.append(mask_row(f"case-{number}", volume_ml=volume * 10))
        rows.append(
            mask_row(f"case-{number}", "left kidney", side="left", midline_offset_mm=-40.0, volume_ml=volume)
        )
    return rows


def kinds(rows):
    return [[flag.kind for flag in flags] for flags in find_outliers(rows)]


# ---- what is odd ----


def test_a_cohort_of_like_masks_has_nothing_odd():
    assert kinds(cohort()) == [[]] * 16


@pytest.mark.parametrize(
    ("measures", "kind", "why"),
    [
        ({"present": False, "found": False, "voxels": 0, "volume_ml": 0.0}, "empty", "nothing was found"),
        ({"voxels": 7}, "tiny", "7 voxels"),
        ({"components": 14}, "many parts", "14 parts, 1 as a rule"),
        ({"midline_offset_mm": 25.4}, "wrong side", "25 mm to the right of the body's middle"),
        ({"side": "right", "midline_offset_mm": -25.4}, "wrong side", "25 mm to the left of"),
        ({"touches_border": True, "border_sides": "IS"}, "cut off", r"\(I, S\)"),
        ({"volume_ml": 260.0}, "unusual volume", r"2\.3 × the median volume \(robust z \+"),
        ({"volume_ml": 60.0}, "unusual volume", r"0\.54 × the median volume \(robust z -"),
    ],
)
def test_each_oddity_is_flagged_with_its_reason(measures, kind, why):
    rows = cohort()
    rows[5] |= measures
    flags = find_outliers(rows)
    assert [flag.kind for flag in flags[5]] == [kind]
    assert re.search(why, flags[5][0].why)
    assert not any(found for index, found in enumerate(flags) if index != 5)


def test_a_twentieth_of_the_median_is_tiny_and_unusual():
    rows = cohort()
    rows[5]["volume_ml"] = 4.0
    assert kinds(rows)[5] == ["tiny", "unusual volume"]


def test_the_middle_and_a_little_beyond_is_no_wrong_side():
    rows = cohort()
    rows[5]["midline_offset_mm"] = 9.0
    rows[4]["midline_offset_mm"] = -80.0
    assert kinds(rows) == [[]] * 16


def test_what_most_masks_of_a_prompt_do_is_not_odd():
    rows = cohort()
    for row in rows[::2]:
        row |= {"touches_border": True, "border_sides": "I", "components": 20}
    assert kinds(rows) == [[]] * 16


def test_fewer_than_five_masks_have_no_usual_volume():
    rows = cohort()[:6]
    rows[1]["volume_ml"] = 1.0
    assert kinds(rows) == [[]] * 6


def test_rows_without_a_mask_have_no_flags():
    assert kinds([{"id": "one", "state": "failed", "reason": "damaged"}]) == [[]]


# ---- histograms ----


def heights(svg):
    return [float(height) for height in re.findall(r'class="bar"[^>]* height="([\d.]+)"', svg)]


def test_a_histogram_counts_every_mask_and_marks_the_odd_ones():
    svg = histogram("liver <b>", [(float(volume), volume == 90) for volume in [10, 11, 12, 12, 50, 90]])
    counts = [int(count) for count in re.findall(r"ml: (\d+)</title>", svg)]
    assert sum(counts) == 6
    assert heights(svg) == [84 * count / max(counts) for count in counts]
    assert svg.count('class="odd"') == 1
    assert "liver &lt;b&gt;" in svg
    assert "log scale" not in svg


def test_widely_spread_volumes_have_a_logarithmic_axis():
    assert "median 10 ml, log scale" in histogram("lesion", [(0.1, False), (10.0, False), (900.0, False)])


def test_equal_volumes_are_one_bar():
    assert heights(histogram("liver", [(5.0, False)] * 4)) == [84.0]


# ---- the files ----


def test_every_finished_scan_has_a_page_and_the_first_links_to_it(tmp_path):
    rows = [*cohort(), {"id": "broken", "state": "failed", "reason": "It is damaged."}]
    paths = write_cohort_report(tmp_path, rows)
    assert paths == [tmp_path / "report.html", *(tmp_path / "report" / f"case-{n}.html" for n in range(8))]
    index = paths[0].read_text(encoding="utf-8")
    for path in paths[1:]:
        assert f'href="report/{path.name}"' in index
        assert 'href="../report.html"' in path.read_text(encoding="utf-8")
    assert "It is damaged." in index


def test_pages_are_the_same_when_written_again(tmp_path):
    contents = [path.read_bytes() for path in write_cohort_report(tmp_path, cohort())]
    assert [path.read_bytes() for path in write_cohort_report(tmp_path, cohort())] == contents


def test_the_page_of_a_scan_that_is_there_no_more_goes(tmp_path):
    write_cohort_report(tmp_path, cohort())
    (tmp_path / "report" / "notes.txt").write_text("somebody's own")
    write_cohort_report(tmp_path, [row for row in cohort() if row["id"] != "case-3"])
    assert not (tmp_path / "report" / "case-3.html").exists()
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        *(f"case-{number}.html" for number in range(8) if number != 3),
        "notes.txt",
    ]


def test_a_scans_page_has_all_measures_and_the_manifests_columns(tmp_path):
    rows = [row | {"age": 61, "site": "Basel"} for row in cohort()]
    rows[1]["midline_offset_mm"] = 33.0
    page = write_cohort_report(tmp_path, rows)[1].read_text(encoding="utf-8")
    text = re.sub(r"<[^>]+>", " ", re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL))
    for words in ("age 61", "site Basel", "longest_3d_mm 90 90", "volume_ml 1000 100", "wrong side 33 mm"):
        assert words in re.sub(r"\s+", " ", text)


def test_a_damaged_picture_is_no_reason_to_fail(tmp_path):
    (tmp_path / "case-0").mkdir()
    (tmp_path / "case-0" / "preview.png").write_bytes(b"no picture")
    assert "picture damaged" in write_cohort_report(tmp_path, cohort())[0].read_text(encoding="utf-8")


def test_a_place_that_can_not_be_written_is_told(tmp_path):
    (tmp_path / "report").write_text("a file")
    with pytest.raises(OutputError, match="can't be written"):
        write_cohort_report(tmp_path, cohort())
    assert not (tmp_path / "report.html").exists()


def test_an_empty_cohort_has_a_page(tmp_path):
    assert write_cohort_report(tmp_path, []) == [tmp_path / "report.html"]


# ---- in a browser ----

# Works the page as a person would, and writes down what there is to see.
SCRIPT = """
addEventListener("load", () => {
const seen = {};
const all = (selector) => Array.from(document.querySelectorAll(selector));
const visible = () => all("#masks tbody tr").filter((row) => row.offsetParent);
const names = () => visible().map((row) => row.cells[0].textContent + " " + row.cells[1].textContent);
const heading = (words) => all("#masks th button").find((button) => button.textContent === words);
const flag = (kind) => document.querySelector(`button[data-flag="${kind}"]`);
seen.first = names();
heading("Volume, ml").click();
seen.ascending = names();
seen.sorted = heading("Volume, ml").parentElement.getAttribute("aria-sort");
heading("Volume, ml").click();
seen.descending = names();
heading("Longest, mm").click();
heading("Longest, mm").click();
seen.missing_last = names().at(-1);
heading("Scan").click();
seen.by_name = names();
flag("wrong side").click();
seen.wrong = names();
flag("empty").click();
seen.wrong_or_empty = names();
seen.status = document.getElementById("shown").textContent;
flag("wrong side").click(); flag("empty").click();
const words = document.getElementById("words");
words.value = "CASE-3 kidney"; words.dispatchEvent(new Event("input"));
seen.searched = names();
words.value = ""; words.dispatchEvent(new Event("input"));
seen.all = names().length;
const controls = all("th button, button[data-flag], #words, a");
seen.by_keyboard = controls.every((one) => { one.focus(); return document.activeElement === one; });
seen.pictures = Array.from(document.images).map((image) => image.complete && image.naturalWidth);
const fetched = performance.getEntriesByType("resource").map((one) => one.name);
seen.fetched = fetched.filter((name) => !name.startsWith("data:"));
seen.hacked = window.hacked === 1;
seen.chips = all("#masks .flag").map((one) => one.textContent + ": " + one.title);
seen.wide = document.documentElement.scrollWidth > window.innerWidth;
const out = document.createElement("pre");
out.id = "seen"; out.textContent = JSON.stringify(seen);
document.body.append(out);
});
"""


def opened(page, script, profile):
    """What a real browser sees on a page: the document that the script puts together once it is loaded."""
    browser = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"Needs a browser to open the page in: one of {', '.join(BROWSERS)}.")
    content = page.read_text(encoding="utf-8")
    page.write_text(content.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    places = (f"--user-data-dir={profile}", "--window-size=1400,900", "--dump-dom", page.as_uri())
    done = subprocess.run(
        [browser, *HEADLESS, *places], capture_output=True, text=True, timeout=120, check=True
    )
    found = re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, flags=re.DOTALL)
    assert found, done.stdout[-500:] + done.stderr[-500:]
    return json.loads(html.unescape(found.group(1)))


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    """What a real browser sees on the page of a cohort with three odd masks, in numbers and words."""
    out = tmp_path_factory.mktemp("cohort")
    rows = cohort()
    rows[3]["midline_offset_mm"] = 44.0
    rows[7] |= {"present": False, "found": False, "voxels": 0, "volume_ml": 0.0, "longest_axial_mm": None}
    rows[9] |= {"components": 30, "prompt": EVIL, "understood_as": "left kidney"}
    rows.append({"id": "failed", "state": "failed", "reason": EVIL})
    (out / "case-0").mkdir()
    Image.fromarray(np.full((300, 800, 3), 90, np.uint8)).save(out / "case-0" / "preview.png")
    page = write_cohort_report(out, rows, title=f"Livers {EVIL}")[0]
    return opened(page, SCRIPT, tmp_path_factory.mktemp("profile"))


SCAN_SCRIPT = """
addEventListener("load", () => {
const seen = {};
const all = (selector) => Array.from(document.querySelectorAll(selector));
seen.heading = document.querySelector("h1").textContent;
seen.links = all("nav a").map((one) => one.getAttribute("href"));
seen.reasons = all("main > p").map((one) => one.textContent);
const words = (row) => Array.from(row.cells).map((one) => one.textContent);
seen.measured = Object.fromEntries(all("tbody tr").map(words).map(([name, ...values]) => [name, values]));
seen.pictures = Array.from(document.images).map((image) => image.complete && image.naturalWidth);
seen.fetched = performance.getEntriesByType("resource").map((one) => one.name)
  .filter((name) => !name.startsWith("data:"));
seen.hacked = window.hacked === 1;
seen.wide = document.documentElement.scrollWidth > window.innerWidth;
const out = document.createElement("pre");
out.id = "seen"; out.textContent = JSON.stringify(seen);
document.body.append(out);
});
"""


def test_the_page_of_a_scan_shows_picture_reasons_and_measures(tmp_path):
    rows = [row | {"site": EVIL} for row in cohort()]
    rows[9] |= {"components": 30, "prompt": EVIL, "understood_as": "left kidney"}
    (tmp_path / "case-4").mkdir()
    Image.fromarray(np.full((300, 800, 3), 90, np.uint8)).save(tmp_path / "case-4" / "preview.png")
    page = write_cohort_report(tmp_path, rows, title=f"Livers {EVIL}")[5]
    seen = opened(page, SCAN_SCRIPT, tmp_path / "profile")
    assert seen["heading"] == "case-4"
    assert seen["links"] == ["../report.html", "case-3.html", "case-5.html"]
    assert seen["reasons"] == [f"{EVIL} many parts30 parts, 1 as a rule"]
    assert seen["pictures"] == [800]
    assert seen["measured"]["volume_ml"] == ["1120", "112"]
    assert seen["measured"]["site"] == [EVIL]
    assert (seen["fetched"], seen["hacked"], seen["wide"]) == ([], False, False)


def test_a_click_on_a_heading_sorts_and_another_turns_it_round(seen):
    by_volume = [0.0, *(100.0 + 3 * n for n in range(8) if n != 3), *(1000.0 + 30 * n for n in range(8))]
    assert len(by_volume) == 16
    kidneys = [f"case-{n} " + (EVIL if n == 4 else "left kidney") for n in range(8) if n != 3]
    livers = [f"case-{n} liver" for n in range(8)]
    assert seen["ascending"] == ["case-3 left kidney", *kidneys, *livers]
    assert seen["descending"] == seen["ascending"][::-1]
    assert seen["sorted"] == "ascending"
    assert seen["first"][:2] == ["case-0 liver", "case-0 left kidney"]


def test_rows_without_a_value_stay_last_both_ways(seen):
    assert seen["missing_last"] == "case-3 left kidney"


def test_flags_are_shown_with_reasons_and_filter_the_table(seen):
    assert seen["chips"] == [
        "wrong side: 44 mm to the right of the body's middle",
        "empty: nothing was found",
        "many parts: 30 parts, 1 as a rule",
    ]
    assert seen["wrong"] == ["case-1 left kidney"]
    assert seen["wrong_or_empty"] == ["case-1 left kidney", "case-3 left kidney"]
    assert seen["status"] == "2 of 16 masks"


def test_words_search_the_table(seen):
    assert seen["searched"] == ["case-3 left kidney"]
    assert seen["all"] == 16


def test_everything_can_be_reached_by_keyboard(seen):
    assert seen["by_keyboard"] is True


def test_text_is_only_text_and_nothing_is_fetched(seen):
    assert seen["hacked"] is False
    assert seen["fetched"] == []


def test_pictures_are_in_the_page(seen):
    assert seen["pictures"] == [420]


def test_the_page_is_no_wider_than_its_window(seen):
    assert seen["wide"] is False
