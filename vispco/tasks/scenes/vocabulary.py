"""What scenes are made of: names, colours, places, and the fonts of each split."""

from __future__ import annotations

COLORS = {
    "red": (214, 40, 40),
    "orange": (245, 140, 20),
    "yellow": (245, 220, 40),
    "green": (40, 160, 60),
    "cyan": (50, 205, 215),
    "blue": (40, 80, 215),
    "purple": (130, 50, 170),
    "pink": (250, 140, 190),
}
SHAPES = ("circle", "square", "triangle", "star", "heart", "cross", "moon", "arrow")
WORDS = (
    *("lamp", "tree", "fish", "bird", "door", "book", "cup", "hat", "key", "milk", "rain", "road"),
    *("ship", "snow", "wolf", "wind", "bell", "coin", "corn", "gold", "bus", "egg", "box", "frog"),
)
NUMBERS = tuple("0123456789")
# Rows of a 3 x 3 grid, in reading order.
PLACES = ("top left", "top", "top right", "left", "center", "right", "bottom left", "bottom", "bottom right")

# Files of matplotlib's own fonts; no font serves two splits.
FONTS = {
    "train": (
        *("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSansMono-BoldOblique", "DejaVuSerif"),
        *("DejaVuSerif-BoldItalic", "STIXGeneralItalic", "STIXGeneralBolIta", "cmr10", "cmb10"),
    ),
    "calibration": ("DejaVuSansMono-Oblique", "cmti10"),
    "search": ("DejaVuSans-BoldOblique", "DejaVuSerif-Italic", "STIXGeneralBol"),
    "held_out": ("DejaVuSans-Oblique", "DejaVuSansMono-Bold", "DejaVuSerif-Bold", "STIXGeneral", "cmss10"),
}
