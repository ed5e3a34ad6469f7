"""A picture of masks on their scan: three planes through them, laid out as a radiologist expects it."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import binary_dilation, binary_erosion

from textseg.destination import save_png
from textseg.errors import GeometryError
from textseg.geometry import WORLD_ENDS, AxisOrder, Box, Geometry, Scalar, bounding_box
from textseg.lettering import DOTS, Font, drawable, font_for, shortened
from textseg.packed import PackedMasks, within
from textseg.volume import guess_modality

Bools = NDArray[np.bool_]
Bytes = NDArray[np.uint8]
Colour = tuple[int, int, int]
Voxel = tuple[int, int, int]

PICTURE_PIXELS = 520  # the longest side of the field of view; all three pictures have one scale
MARGIN_PIXELS = 30  # around each picture, for letters and ticks: nothing is written over the anatomy
GAP_PIXELS = 10
TEXT_PIXELS = 17
LINE_PIXELS = 24
LONGEST_TITLE = 3  # lines

# A whole-body scan at full length leaves its organs too small to judge.
FIELD_OF_VIEW_MM = 500.0

BACKGROUND: Colour = (16, 17, 20)
INK: Colour = (232, 232, 226)
FAINT: Colour = (150, 152, 158)
FRAME: Colour = (60, 62, 68)
FILL_OPACITY = 0.24
# Told apart by colour-blind readers too, and far from the grey of the scan; after Okabe and Ito.
COLOURS: tuple[Colour, ...] = (
    (255, 96, 64),
    (64, 190, 255),
    (250, 225, 60),
    (40, 205, 130),
    (240, 120, 210),
    (255, 165, 40),
    (130, 130, 255),
    (190, 240, 230),
)

# A CT is shown as for soft tissue, in HU.
CT_WINDOW = (-160.0, 240.0)


@dataclass(frozen=True)
class Plane:
    """A cut across one axis of a canonical grid, seen from the patient's feet, front or left.

    The patient's right (or front, in a sagittal plane) is on the viewer's left, the head or front is up. In a
    grid whose axes run to the right, front and head, every one of these pictures runs against its two axes.
    """

    name: str
    across: int

    @property
    def along(self) -> tuple[int, int]:
        """The picture's horizontal and vertical axis in the grid."""
        horizontal, vertical = (axis for axis in range(3) if axis != self.across)
        return horizontal, vertical

    @property
    def edges(self) -> tuple[str, str, str, str]:
        """Letters of the left, right, top and bottom edge."""
        (right, left), (bottom, top) = (WORLD_ENDS[axis] for axis in self.along)
        return left, right, top, bottom

    def cut(self, voxels: NDArray[Scalar], centre: Voxel) -> NDArray[Scalar]:
        """The plane through this voxel as a picture (rows, columns), top left first."""
        cut: NDArray[Scalar] = np.take(voxels, centre[self.across], axis=self.across)
        return cut.T[::-1, ::-1]


PLANES = (Plane("Axial", 2), Plane("Coronal", 1), Plane("Sagittal", 0))


def render_preview(
    image: NDArray[np.floating],
    mask: Bools | PackedMasks,
    geometry: Geometry,
    title: str,
    path: Path,
    names: Sequence[str] | None = None,
) -> None:
    """Write a PNG of the axial, coronal and sagittal plane through the middle of what was found.

    Planes are those of the scan's grid, named for the patient's axes that they come closest to: an oblique
    scan is shown as it was acquired and its tilt is written above. Empty masks give the middle of the scan.

    Args:
        image: (x, y, z) float, in the scan's own axis order and units (Hounsfield for CT).
        mask: (x, y, z) or (prompts, x, y, z) bool, on the grid of the image; packed ones are unpacked one by
            one.
        geometry: the grid of both.
        title: what stands above the pictures; see `preview_title`.
        path: where the PNG goes; the file appears whole or not at all.
        names: one for each mask, for the legend; numbers when there are several masks and no names.

    Raises:
        GeometryError: image, mask and geometry do not have one shape.
        OutputError: the file can't be written.
    """
    masks = mask[None] if mask.ndim == 3 else mask
    _check(image, masks, geometry)
    labels = _labels(len(masks), names)

    order = geometry.canonical_order()
    image, geometry = order.apply(image), geometry.reordered(order)
    anywhere: Bools = np.zeros(geometry.shape, dtype=bool)
    for index in range(len(masks)):
        part = _part(masks, index, order)
        if part is not None:
            anywhere[part[0].slices] |= part[1]
    found = bounding_box(anywhere)
    centre = _middle_of(geometry.shape) if found is None else _centre_of(anywhere, found, geometry)
    view = _field_of_view(geometry, centre, found)

    scale = PICTURE_PIXELS / max(n * mm for n, mm in zip(view.shape, geometry.spacing_mm, strict=True))
    sizes = [_picture_size(plane, view, geometry, scale) for plane in PLANES]
    cuts_of_planes: list[list[Bools]] = [[] for _ in PLANES]
    legend = []
    for index, label in enumerate(labels):
        part = _part(masks, index, order)
        for plane, size, cuts in zip(PLANES, sizes, cuts_of_planes, strict=True):
            cuts.append(_stretched(_mask_cut(plane, part, centre, view), size))
        # The view holds all that is marked.
        legend.append(_entry(label, part is not None, any(cuts[-1].any() for cuts in cuts_of_planes)))

    window, tiles = _window(image), []
    for plane, size, cuts in zip(PLANES, sizes, cuts_of_planes, strict=True):
        grey = _grey(plane.cut(image[view.slices], _inside(centre, view)), window, size)
        tiles.append(_tile(_coloured(grey, cuts), plane, geometry, centre, view))

    page = _page(tiles, drawable(title), [drawable(entry) for entry in legend], scale)
    save_png(page, Path(path), "preview")


def preview_title(scan: str, prompt: str, presence: float | None, volume_ml: float) -> str:
    """One line that says what the picture shows: scan, prompt, presence from 0 to 1, and volume in mL."""
    parts = [scan, prompt]
    if presence is not None:
        parts.append(f"presence {presence:.2f}")
    parts.append(f"{volume_ml:.2f} mL" if volume_ml < 10 else f"{volume_ml:.0f} mL")
    return "  |  ".join(parts)


def _check(image: NDArray[np.floating], masks: Bools | PackedMasks, geometry: Geometry) -> None:
    if image.shape != geometry.shape or masks.shape[1:] != geometry.shape:
        raise GeometryError(
            f"Image and mask must lie on the grid {geometry.shape}, got {image.shape} and {masks.shape[1:]}. "
            "Was the mask restored to the scan's own grid?"
        )


def _labels(count: int, names: Sequence[str] | None) -> Sequence[str]:
    if names is None:
        return [str(number + 1) for number in range(count)] if count > 1 else [""] * count
    if len(names) != count:
        raise ValueError(f"There must be one name for each mask, got {len(names)} names for {count} masks.")
    return names


def _entry(label: str, is_there: bool, seen: bool) -> str:
    """A mask's line in the legend, which says so when it can't be seen."""
    if seen:
        return label
    return f"{label} (not in these planes)" if is_there else f"{label} (nothing marked)".lstrip()


def _part(masks: Bools | PackedMasks, index: int, order: AxisOrder) -> tuple[Box, Bools] | None:
    """A mask's box in canonical axes and what lies in it; None for an empty one."""
    found = within(masks, index)
    if found is None:
        return None
    box, inside = found
    return box.reordered(order, masks.shape[1:]), order.apply(inside)


# ---- where to look ----


def _middle_of(shape: Voxel) -> Voxel:
    x, y, z = (n // 2 for n in shape)
    return x, y, z


def _centre_of(mask: Bools, box: Box, geometry: Geometry) -> Voxel:
    """The voxel of the mask that is nearest to its centre of mass: of two kidneys, a place in one of them.

    Args:
        box: that holds all of the mask.
    """
    mask, away_mm2 = mask[box.slices], []
    for axis, spacing_mm in enumerate(geometry.spacing_mm):
        counts = mask.sum(axis=tuple(other for other in range(3) if other != axis))
        index = np.arange(counts.size)
        away_mm2.append(((index - (counts @ index) / counts.sum()) * spacing_mm) ** 2)
    in_plane = away_mm2[1][:, None] + away_mm2[2]
    # One plane at a time: a list of all the voxels of a large mask takes gigabytes.
    nearest, best = (0, 0, 0), np.inf
    for x in np.flatnonzero(mask.any(axis=(1, 2))):
        distance = np.where(mask[x], in_plane, np.inf) + away_mm2[0][x]
        y, z = np.unravel_index(distance.argmin(), distance.shape)
        if distance[y, z] < best:
            nearest, best = (int(x), int(y), int(z)), distance[y, z]
    across, up, along = (at + start for at, start in zip(nearest, box.start, strict=True))
    return across, up, along


def _field_of_view(geometry: Geometry, centre: Voxel, found: Box | None) -> Box:
    """The part of the grid that is shown: all of it, or as much of a long scan as holds what was found."""
    start, stop = [], []
    for axis, (n, spacing_mm) in enumerate(zip(geometry.shape, geometry.spacing_mm, strict=True)):
        length = min(n, int(np.ceil(FIELD_OF_VIEW_MM / spacing_mm)))
        first = min(max(centre[axis] - length // 2, 0), n - length)
        last = first + length
        if found is not None:
            first, last = min(first, found.start[axis]), max(last, found.stop[axis])
        start.append(first)
        stop.append(last)
    return Box((start[0], start[1], start[2]), (stop[0], stop[1], stop[2]))


def _inside(centre: Voxel, view: Box) -> Voxel:
    x, y, z = (at - start for at, start in zip(centre, view.start, strict=True))
    return x, y, z


def _picture_size(plane: Plane, view: Box, geometry: Geometry, scale: float) -> tuple[int, int]:
    """Width and height in pixels, by millimetres."""
    width, height = (
        max(1, round(view.shape[axis] * geometry.spacing_mm[axis] * scale)) for axis in plane.along
    )
    return width, height


# ---- what a picture shows ----


def _window(image: NDArray[np.floating]) -> tuple[float, float]:
    """The values shown as black and as white."""
    step = max(1, round((image.size / 2e6) ** (1 / 3)))
    sample = image[::step, ::step, ::step]
    sample = sample[np.isfinite(sample)]
    if sample.size == 0:
        return 0.0, 1.0
    if guess_modality(sample) == "ct":
        return CT_WINDOW
    low, high = np.percentile(sample, (1, 99))
    return float(low), float(high)


def _grey(cut: NDArray[np.floating], window: tuple[float, float], size: tuple[int, int]) -> Bytes:
    """The picture (rows, columns) of this size in shades of grey; values that are not finite are black."""
    low, high = window
    shades = (np.nan_to_num(cut.astype(np.float64), nan=low) - low) / max(high - low, 1e-12)
    picture = Image.fromarray((np.clip(shades, 0, 1) * 255).astype(np.uint8))
    return np.asarray(picture.resize(size, Image.Resampling.BICUBIC))


def _mask_cut(plane: Plane, part: tuple[Box, Bools] | None, centre: Voxel, view: Box) -> Bools:
    """A mask in the plane through a voxel, as much as is shown, as a picture (rows, columns)."""
    across, at = plane.across, centre[plane.across]
    flat = [n if axis != across else 1 for axis, n in enumerate(view.shape)]
    shown: Bools = np.zeros(flat, dtype=bool)
    if part is not None and part[0].start[across] <= at < part[0].stop[across]:
        box, inside = part
        place = list(box.moved([-start for start in view.start]).slices)
        place[across] = slice(0, 1)
        shown[tuple(place)] = inside.take([at - box.start[across]], axis=across)
    return plane.cut(shown, (0, 0, 0))


def _stretched(mask: Bools, size: tuple[int, int]) -> Bools:
    """The mask's cut (rows, columns) at this size, smooth where voxels are large, and no voxel of it lost."""
    width, height = size
    for axis, pixels in ((0, height), (1, width)):
        # Below two pixels a voxel, smoothing would swallow what is one voxel wide.
        if pixels < 2 * mask.shape[axis]:
            mask = _repeated_or_joined(mask, axis, pixels)
    smooth = Image.fromarray(mask.astype(np.uint8) * 255).resize(size, Image.Resampling.BILINEAR)
    found: Bools = np.asarray(smooth) >= 128
    return found


def _repeated_or_joined(mask: Bools, axis: int, pixels: int) -> Bools:
    """The mask with this many pixels along an axis; a pixel over several voxels is set if any of them is."""
    n = mask.shape[axis]
    first = np.arange(pixels) * n // pixels
    joined: Bools
    if pixels >= n:
        joined = np.take(mask, first, axis=axis)
    else:
        joined = np.logical_or.reduceat(mask, first, axis=axis)
    return joined


def _coloured(grey: Bytes, cuts: Sequence[Bools]) -> Image.Image:
    """The grey picture with each mask filled so that the anatomy shows through, and outlined on top."""
    rgb = np.repeat(grey[..., None], 3, axis=2).astype(np.float64)
    for cut, colour in zip(cuts, _colours(), strict=False):
        rgb[cut] += FILL_OPACITY * (np.array(colour) - rgb[cut])
    for cut, colour in zip(cuts, _colours(), strict=False):
        marked = bounding_box(cut[None])
        if marked is not None:
            # With a pixel around it for the outline.
            _, rows, columns = marked.grown((0, 1, 1)).within((1, *cut.shape)).slices
            inside = cut[rows, columns]
            rgb[rows, columns][binary_dilation(inside) & ~binary_erosion(inside)] = colour
    return Image.fromarray(rgb.round().astype(np.uint8))


def _colours() -> Iterator[Colour]:
    """Colours without end; past the chosen ones, hues by the golden ratio."""
    yield from COLOURS
    hue = 0.07
    while True:
        hue = (hue + 0.61803398875) % 1
        red, green, blue = (round(255 * part) for part in colorsys.hsv_to_rgb(hue, 0.65, 1.0))
        yield red, green, blue


# ---- letters, ticks, page ----


def _tile(picture: Image.Image, plane: Plane, geometry: Geometry, centre: Voxel, view: Box) -> Image.Image:
    """The picture in its margin: caption above, edges by letter, ticks where the other two planes cut it."""
    margin, (width, height) = MARGIN_PIXELS, picture.size
    tile = Image.new("RGB", (width + 2 * margin, height + 2 * margin + LINE_PIXELS), BACKGROUND)
    left, top = margin, margin + LINE_PIXELS
    right, bottom = left + width, top + height
    tile.paste(picture, (left, top))
    draw = ImageDraw.Draw(tile)
    draw.rectangle((left - 1, top - 1, right, bottom), outline=FRAME)

    font, middle_x, middle_y = font_for(TEXT_PIXELS), left + width // 2, top + height // 2
    places = [(margin // 3, middle_y), (right + 2 * margin // 3, middle_y)]
    places += [(middle_x, top - 2 * margin // 3), (middle_x, bottom + 2 * margin // 3)]
    for letter, place in zip(plane.edges, places, strict=True):
        draw.text(place, letter, font=font, fill=INK, anchor="mm")

    horizontal, vertical = plane.along
    x = left + round(width * (view.stop[horizontal] - centre[horizontal] - 0.5) / view.shape[horizontal])
    y = top + round(height * (view.stop[vertical] - centre[vertical] - 0.5) / view.shape[vertical])
    for near, far in ((top - 7, top - 2), (bottom + 1, bottom + 6)):
        draw.line((x, near, x, far), fill=FAINT)
    for near, far in ((left - 7, left - 2), (right + 1, right + 6)):
        draw.line((near, y, far, y), fill=FAINT)

    draw.text((left, LINE_PIXELS // 2), _caption(plane, geometry, centre), font=font, fill=FAINT, anchor="lm")
    return tile


def _caption(plane: Plane, geometry: Geometry, centre: Voxel) -> str:
    """The plane, where it lies in the world, and by how much it is tilted if it is."""
    # Rounded twice: copies of a scan in another axis order differ in the last digits, and must look the same.
    position_mm = round(float(geometry.to_world(centre)[plane.across]), 3)
    end = WORLD_ENDS[plane.across][int(position_mm >= 0)]
    tilt = round(np.degrees(np.arccos(min(1.0, geometry.directions[plane.across, plane.across]))))
    tilted = f", tilted {tilt} deg" if tilt >= 2 else ""
    return f"{plane.name} {end} {abs(position_mm):.0f} mm{tilted}"


def _page(tiles: Sequence[Image.Image], title: str, legend: Sequence[str], scale: float) -> Image.Image:
    gaps = GAP_PIXELS * (len(tiles) - 1)
    width = max(sum(tile.width for tile in tiles) + gaps, 720)
    inner = width - 2 * MARGIN_PIXELS
    title_font, font = font_for(TEXT_PIXELS + 3, title), font_for(TEXT_PIXELS, "".join(legend))
    lines = _wrapped(title, title_font, inner)
    bar_mm, bar_text = _scale_bar(inner / 3 / scale)
    bar_right = MARGIN_PIXELS + round(bar_mm * scale)
    legend_left = bar_right + MARGIN_PIXELS + round(font.getlength(bar_text)) + MARGIN_PIXELS
    entries = _legend_places(legend, font, legend_left, width - MARGIN_PIXELS)

    tiles_top = MARGIN_PIXELS // 2 + LINE_PIXELS * len(lines) + GAP_PIXELS
    tallest = max(tile.height for tile in tiles)
    foot_top = tiles_top + tallest
    rows = 1 + max((row for _, row in entries), default=0)
    page = Image.new("RGB", (width, foot_top + LINE_PIXELS * rows + MARGIN_PIXELS // 2), BACKGROUND)
    draw = ImageDraw.Draw(page)

    for number, line in enumerate(lines):
        y = MARGIN_PIXELS // 2 + LINE_PIXELS * number + LINE_PIXELS // 2
        draw.text((MARGIN_PIXELS, y), line, font=title_font, fill=INK, anchor="lm")
    left = (width - sum(tile.width for tile in tiles) - gaps) // 2
    for tile in tiles:
        page.paste(tile, (left, tiles_top + (tallest - tile.height) // 2))
        left += tile.width + GAP_PIXELS

    y = foot_top + LINE_PIXELS // 2
    draw.line((MARGIN_PIXELS, y, bar_right, y), fill=INK, width=2)
    for end in (MARGIN_PIXELS, bar_right):
        draw.line((end, y - 5, end, y + 5), fill=INK, width=2)
    draw.text((bar_right + MARGIN_PIXELS // 3, y), bar_text, font=font, fill=INK, anchor="lm")
    for name, (x, row), colour in zip(legend, entries, _colours(), strict=False):
        if name:
            at = y + LINE_PIXELS * row
            draw.rectangle((x, at - 6, x + 12, at + 6), fill=colour)
            draw.text((x + 20, at), name, font=font, fill=INK, anchor="lm")
    return page


def _scale_bar(longest_mm: float) -> tuple[float, str]:
    """Five centimetres, or less where a scan is too small for that."""
    bars = ((50.0, "5 cm"), (10.0, "1 cm"), (1.0, "1 mm"))
    return next((bar for bar in bars if bar[0] <= longest_mm), bars[-1])


def _legend_places(legend: Sequence[str], font: Font, left: int, right: int) -> list[tuple[int, int]]:
    """Where each entry starts (pixels) and in which row, filling rows from left to right."""
    places, x, row = [], left, 0
    for name in legend:
        length = 20 + round(font.getlength(name)) + MARGIN_PIXELS
        if x > left and x + length > right:
            x, row = left, row + 1
        places.append((x, row))
        x += length
    return places


def _wrapped(text: str, font: Font, width: int) -> list[str]:
    """The text in lines that fit; a long one ends in dots."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    if len(lines) > LONGEST_TITLE:
        lines = [*lines[: LONGEST_TITLE - 1], f"{lines[LONGEST_TITLE - 1]} {DOTS}"]
    return [shortened(line, font, width) for line in lines]
