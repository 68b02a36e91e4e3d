"""Contrast of every pair of colours that stands on another (WCAG 2.2, 1.4.3 and 1.4.11), in light and dark."""

from __future__ import annotations

import re

import pytest

from hub.web.assets import FOLDER

# foreground, background, least ratio
PAIRS = [
    *((ink, ground, 4.5) for ink in ("ink", "ink-2", "ink-3") for ground in ("bg", "surface", "surface-2")),
    *((f"{state}", f"{state}-soft", 4.5) for state in ("ok", "warn", "bad", "off", "info", "accent")),
    *(("ink", f"{state}-soft", 4.5) for state in ("ok", "warn", "bad", "info", "accent")),
    *((state, "surface", 4.5) for state in ("accent", "accent-strong", "bad", "warn", "ok", "info")),
    ("accent", "bg", 4.5),
    ("accent-ink", "accent", 4.5),
    ("accent-ink", "accent-strong", 4.5),
    ("surface", "bad", 4.5),
    ("side-ink", "side", 4.5),
    ("side-ink-2", "side", 4.5),
    ("side-ink", "side-2", 4.5),
    ("side-accent", "side", 4.5),
    ("line-strong", "surface", 3.0),
    ("line-strong", "bg", 3.0),
    ("ok", "map-land", 3.0),
    ("off", "map-land", 3.0),
]


def palettes() -> dict[str, dict[str, str]]:
    text = (FOLDER / "palette.css").read_text(encoding="utf-8")
    light, dark = text.split('[data-bs-theme="dark"]')
    found = {}
    for name, part in (("light", light), ("dark", dark)):
        found[name] = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", part))
    return found


def luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_the_measure_itself() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_what_is_read_stands_out(theme: str) -> None:
    colours = palettes()[theme]
    low = [
        f"{ink} on {ground}: {contrast(colours[ink], colours[ground]):.2f}, {least} wanted"
        for ink, ground, least in PAIRS
        if contrast(colours[ink], colours[ground]) < least
    ]
    assert low == []


def test_both_themes_have_the_same_colours() -> None:
    both = palettes()
    assert both["light"].keys() == both["dark"].keys()
