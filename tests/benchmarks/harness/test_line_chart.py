from __future__ import annotations

from xml.etree import ElementTree

import pytest

from benchmarks.harness.line_chart import Panel, draw

SVG = "{http://www.w3.org/2000/svg}"


def test_chart_is_xml_with_a_line_for_each_series() -> None:
    panel = Panel("a < b", "axis", [1, 2, 8], {"up": [0, 0.5, 1], "flat": [0.5, 0.5, 0.5]})
    root = ElementTree.fromstring(draw([panel, panel, panel]))
    lines = [line.attrib["points"].split() for line in root.iter(f"{SVG}polyline")]
    assert [len(points) for points in lines] == [3] * 6
    left, middle, right = (float(point.split(",")[0]) for point in lines[0])
    assert right - left == pytest.approx(3 * (middle - left), abs=0.5)
    assert {text.text for text in root.iter(f"{SVG}text")} >= {"a < b", "axis", "1", "2", "8", "up", "flat", "50%"}


def test_higher_shares_are_drawn_higher() -> None:
    root = ElementTree.fromstring(draw([Panel("", "", [1, 2], {"up": [0.1, 0.9]})]))
    points = next(root.iter(f"{SVG}polyline")).attrib["points"].split()
    assert float(points[0].split(",")[1]) > float(points[1].split(",")[1])
