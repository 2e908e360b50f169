"""Draws bars on a logarithmic scale, as an SVG that needs no other program."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_COLOURS = ("#8a93a3", "#d08c3c", "#2f7d4f", "#4a6fb5")
_LEFT, _TOP, _DECADE, _BAR, _GAP, _RIGHT = 110, 58, 140, 16, 12, 110


@dataclass(frozen=True)
class Bar:
    """One bar: as long as *value*, with a thin line on to *high*."""

    kind: str
    value: float
    high: float


@dataclass(frozen=True)
class Row:
    """The bars of one thing, one below the other."""

    label: str
    bars: Sequence[Bar]


def draw(title: str, rows: Sequence[Row]) -> str:
    """Return the SVG; values under 1 stand at the left edge."""
    kinds = list(dict.fromkeys(bar.kind for row in rows for bar in row.bars))
    colour_of = dict(zip(kinds, _COLOURS, strict=False))
    decades = math.ceil(math.log10(max(bar.high for row in rows for bar in row.bars)))
    body: list[str] = []
    y = _TOP
    for row in rows:
        middle = y + len(row.bars) * _BAR / 2 + 4
        body.append(_text(_LEFT - 8, middle, row.label, "end"))
        for bar in row.bars:
            body += _bar(bar, y, colour_of[bar.kind])
            y += _BAR
        y += _GAP
    scale = [part for power in range(decades + 1) for part in _mark(power, y)]
    legend = [part for number, kind in enumerate(kinds) for part in _key(number, kind, colour_of)]
    width, height = _LEFT + decades * _DECADE + _RIGHT, y + 24
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" font-family="sans-serif" font-size="12">',
            f"<title>{escape(title)}</title>",
            f'<rect width="{width}" height="{height}" fill="white"/>',
            _text(_LEFT, 18, title),
            *legend,
            *scale,
            *body,
            "</svg>\n",
        ]
    )


def _x(value: float) -> float:
    return _LEFT + _DECADE * math.log10(max(value, 1.0))


def _bar(bar: Bar, y: float, colour: str) -> list[str]:
    end, far, middle = _x(bar.value), _x(bar.high), y + _BAR / 2 - 1
    return [
        f'<rect x="{_LEFT}" y="{y}" width="{end - _LEFT:.1f}" height="{_BAR - 2}" fill="{colour}"/>',
        f'<line x1="{end:.1f}" y1="{middle}" x2="{far:.1f}" y2="{middle}" stroke="{colour}" stroke-width="2"/>',
        _text(far + 6, middle + 4, f"{bar.value:.1f}" if bar.value < 100 else f"{bar.value:.0f}"),
    ]


def _mark(power: int, bottom: float) -> list[str]:
    x = _x(10**power)
    return [
        f'<line x1="{x:.1f}" y1="{_TOP - 8}" x2="{x:.1f}" y2="{bottom}" stroke="#d9d9d9"/>',
        _text(x, bottom + 14, f"{10**power} ms", "middle"),
    ]


def _key(number: int, kind: str, colour_of: dict[str, str]) -> list[str]:
    x = _LEFT + 80 * number
    return [
        f'<rect x="{x}" y="28" width="12" height="12" fill="{colour_of[kind]}"/>',
        _text(x + 18, 38, kind),
    ]


def _text(x: float, y: float, said: str, anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(said)}</text>'
