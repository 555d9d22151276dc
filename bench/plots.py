"""The report's plots, as SVG written by hand: readable in light and in dark, with the spread of every bar."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING, NamedTuple

import msgspec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from bench.results import Figure

WIDTH = 820
_LABELS = 290
_VALUES = 130
_ROW = 24
_BAR = 14
_STYLE = """
  text { font: 13px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328; }
  .back { fill: #ffffff; } .title { font-weight: 600; } .faint { fill: #59636e; font-size: 12px; }
  .turnlog { fill: #1f6feb; stroke: #1f6feb; } .ceiling { fill: #8c959f; stroke: #8c959f; }
  .textbook { fill: #bc4c00; stroke: #bc4c00; } .raw { fill: #6e4fb5; stroke: #6e4fb5; }
  .spread { stroke: #1f2328; stroke-width: 1.5; }
  .ring { fill: #ffffff; stroke-width: 2; } .axis { stroke: #d1d9e0; stroke-width: 1; }
  @media (prefers-color-scheme: dark) {
    text { fill: #e6edf3; } .back { fill: #0d1117; } .faint { fill: #9198a1; } .spread { stroke: #e6edf3; }
    .turnlog { fill: #4493f8; stroke: #4493f8; } .ceiling { fill: #6e7681; stroke: #6e7681; }
    .textbook { fill: #f0883e; stroke: #f0883e; } .raw { fill: #ab7df8; stroke: #ab7df8; }
    .ring { fill: #0d1117; } .axis { stroke: #3d444d; }
  }
"""


class Bar(NamedTuple):
    """``kind`` is its colour: turnlog, ceiling, textbook, raw."""

    label: str
    kind: str
    figure: Figure


class Panel(NamedTuple):
    """Bars on one scale, which begins at zero."""

    title: str
    unit: str
    bars: Sequence[Bar]


def kind(contestant: str) -> str:
    """A contestant's colour."""
    known = {"empty": "ceiling", "textbook": "textbook", "raw": "raw"}
    return known.get(contestant.partition("-")[0], "turnlog")


def _document(title: str, height: float, parts: Iterable[str]) -> str:
    size = f'width="{WIDTH}" height="{height:.0f}"'
    body = "\n".join(parts)
    about = f'viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title)}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {about}>\n<style>{_STYLE}</style>\n'
        f'<rect class="back" {size} rx="6"/>\n{body}\n</svg>\n'
    )


def _text(x: float, y: float, text: str, classes: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{classes}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, classes: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{classes}"/>'


def number(value: float) -> str:
    """As many digits as say something."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def bars(title: str, panels: Iterable[Panel]) -> str:
    """Bars with their medians, and lines from the lowest round to the highest."""
    parts, y = [_text(16, 28, title, "title")], 36.0
    for panel in panels:
        if not panel.bars:
            continue
        y += 28
        parts.append(_text(16, y, panel.title))
        parts.append(_text(WIDTH - 16, y, panel.unit, "faint", "end"))
        y += 10
        most = max(bar.figure.highest for bar in panel.bars)
        scale = (WIDTH - _LABELS - _VALUES) / most
        for bar in panel.bars:
            parts += _bar(bar, y + _ROW / 2, scale)
            y += _ROW
        parts.append(_line(_LABELS, y - _ROW * len(panel.bars), _LABELS, y, "axis"))
    return _document(title, y + 18, parts)


def _bar(bar: Bar, middle: float, scale: float) -> list[str]:
    end, low, high = (_LABELS + value * scale for value in msgspec.structs.astuple(bar.figure))
    place = f'x="{_LABELS}" y="{middle - _BAR / 2:.1f}" width="{max(1.0, end - _LABELS):.1f}" height="{_BAR}"'
    return [
        _text(_LABELS - 10, middle + 4.5, bar.label, "faint", "end"),
        f'<rect {place} class="{bar.kind}" stroke-width="0"/>',
        _line(low, middle, high, middle, "spread"),
        *(_line(x, middle - 4, x, middle + 4, "spread") for x in (low, high)),
        _text(max(end, high) + 8, middle + 4.5, number(bar.figure.median)),
    ]


class Percentiles(NamedTuple):
    """A row: what it is of, its colour, and p50, p99 and p99.9 in milliseconds."""

    label: str
    kind: str
    values: tuple[float, float, float]


def latencies(title: str, groups: Sequence[tuple[str, Sequence[Percentiles]]]) -> str:
    """A line per row on a scale of powers of ten, from p50 (dot) over p99 (ring) to p99.9 (bar)."""
    every = [value for _, rows in groups for row in rows for value in row.values]
    low, high = math.floor(math.log10(min(every))), math.ceil(math.log10(max(every)))
    left, right = 180.0, WIDTH - 230.0

    def place(value: float) -> float:
        return left + (math.log10(value) - low) / max(1, high - low) * (right - left)

    rows_parts: list[str] = []
    y = top = 84.0
    for name, rows in groups:
        y += 24
        rows_parts.append(_text(16, y, name))
        for row in rows:
            y += _ROW
            p50, p99, p999 = map(place, row.values)
            shown = ", ".join(map(number, row.values))
            rows_parts += [
                _text(left - 14, y + 4.5, row.label, "faint", "end"),
                _line(p50, y, p999, y, row.kind),
                f'<circle cx="{p50:.1f}" cy="{y:.1f}" r="5" class="{row.kind}"/>',
                f'<circle cx="{p99:.1f}" cy="{y:.1f}" r="5" class="{row.kind} ring"/>',
                f'<rect x="{p999 - 1.5:.1f}" y="{y - 7:.1f}" width="3" height="14" class="{row.kind}"/>',
                _text(p999 + 12, y + 4.5, f"{shown} ms"),
            ]
        y += 8
    scale = []
    for power in range(low, high + 1):
        x = place(10.0**power)
        scale += [_line(x, top, x, y + 8, "axis"), _text(x, top - 6, f"{10.0**power:g} ms", "faint", "middle")]
    legend = _text(16, 52, "dot: p50; ring: p99; bar: p99.9; each the median of the rounds", "faint")
    return _document(title, y + 26, [_text(16, 28, title, "title"), legend, *scale, *rows_parts])
