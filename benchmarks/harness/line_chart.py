"""Line charts of shares over sizes as one SVG: enough for the figures in docs/, without a plotting library."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import log

_WIDTH, _HEIGHT = 460, 300  # size of a panel in pixels
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 80, 36, 48  # margins around its plot
_COLOURS = ("#1b6ca8", "#d1495b", "#66914f", "#8d6cab", "#e09f3e", "#4d4d4d")


@dataclass(frozen=True)
class Panel:
    """One chart: each series has a share, 0 to 1, for every tick of the logarithmic horizontal axis."""

    title: str
    axis: str
    ticks: Sequence[int]
    """Ascending, at least two."""
    series: Mapping[str, Sequence[float]]


def draw(panels: Sequence[Panel], columns: int = 2) -> str:
    """The panels as an SVG document, in rows of some columns."""
    rows = -(-len(panels) // columns)
    size = f"{columns * _WIDTH} {rows * _HEIGHT}"
    body = "".join(
        f'<g transform="translate({index % columns * _WIDTH} {index // columns * _HEIGHT})">{_panel(panel)}</g>\n'
        for index, panel in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" font-family="sans-serif" font-size="11">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{body}</svg>\n'
    )


def _panel(panel: Panel) -> str:
    width, height = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
    first, last = log(panel.ticks[0]), log(panel.ticks[-1])
    xs = [_LEFT + (log(tick) - first) / (last - first) * width for tick in panel.ticks]
    parts = [_text(_LEFT, 20, panel.title, "start", ' font-size="13" font-weight="bold"')]
    for share in (0, 0.25, 0.5, 0.75, 1):
        y = _y(share, height)
        parts.append(f'<path d="M{_LEFT} {y:.1f}h{width}" stroke="#ddd"/>')
        parts.append(_text(_LEFT - 6, y + 4, f"{share:.0%}", "end"))
    for x, tick in zip(xs, panel.ticks, strict=True):
        parts.append(_text(x, _HEIGHT - _BOTTOM + 16, f"{tick}", "middle"))
    parts.append(_text(_LEFT + width / 2, _HEIGHT - _BOTTOM + 34, panel.axis, "middle"))
    lowest_first = sorted(panel.series.items(), key=lambda item: item[1][-1])
    label = float("inf")
    for name, shares in reversed(lowest_first):
        colour = _COLOURS[list(panel.series).index(name) % len(_COLOURS)]
        points = " ".join(f"{x:.1f},{_y(share, height):.1f}" for x, share in zip(xs, shares, strict=True))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>')
        y = _y(shares[-1], height) + 4
        label = y if label == float("inf") else max(y, label + 12)  # labels one below the other, never on top
        parts.append(_text(_LEFT + width + 6, label, name, "start", f' fill="{colour}"'))
    return "".join(parts)


def _y(share: float, height: int) -> float:
    return _TOP + (1 - share) * height


def _text(x: float, y: float, content: str, anchor: str, style: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{style}>{escape(content)}</text>'
