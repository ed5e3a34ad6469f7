"""Words in pictures: a font that can write them, and words cut to the room that there is."""

from __future__ import annotations

import unicodedata
from functools import cache

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

# Pillow's own font has ASCII only; a text in another language borrows a font of the system.
SYSTEM_FONTS = ("DejaVuSans.ttf", "Arial Unicode.ttf", "Arial.ttf", "arial.ttf", "Helvetica.ttc")
DOTS = "..."


def font_for(pixels: int, text: str = "") -> Font:
    """Pillow's own font in this size, or one of the system's for a text that it can't write."""
    name = None if text.isascii() else _system_font()
    return ImageFont.truetype(name, pixels) if name else ImageFont.load_default(pixels)


def drawable(text: str) -> str:
    """The text, without its accents and foreign letters where no font can write them."""
    if text.isascii() or _system_font():
        return text
    plain = (letter for letter in unicodedata.normalize("NFKD", text) if not unicodedata.combining(letter))
    return "".join(plain).encode("ascii", "replace").decode("ascii")


def shortened(text: str, font: Font, width_pixels: float) -> str:
    """The text, or as much of it as fits this width, with dots at the end."""
    if font.getlength(text) <= width_pixels:
        return text
    while text and font.getlength(f"{text} {DOTS}") > width_pixels:
        text = text[:-1]
    return f"{text} {DOTS}"


@cache
def _system_font() -> str | None:
    for name in SYSTEM_FONTS:
        try:
            ImageFont.truetype(name, 12)
        except OSError:
            continue
        return name
    return None
