"""The picture of docs/speed.md: read by `bench/.venv/ansible/bin/python bench/plot.py` from standard input, as SVG on standard output.

In: {"title": …, "places": ["1 host, 0 ms", …], "series": {"Groundwork": [2.1, null, …], …}}
"""

import json
import re
import sys

import pygal
from pygal.style import Style

MARKS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
STYLE = Style(
    guide_stroke_color="#dddddd",
    major_guide_stroke_color="#dddddd",
    guide_stroke_dasharray="none",
    major_guide_stroke_dasharray="none",
    opacity="0.9",
    background="white",
    plot_background="white",
    font_family="sans-serif",
    colors=("#1b7f4b", "#7fc8a0", "#b0b0b0", "#3b6fb6", "#e39a2d", "#c23b3b"),
    label_font_size=13,
    major_label_font_size=13,
    value_font_size=11,
    legend_font_size=13,
    title_font_size=16,
)


def _label(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def draw(given: dict) -> bytes:
    """Bars side by side, seconds on a logarithmic axis. No script: it is looked at as a picture."""
    top = max(value for values in given["series"].values() for value in [1, *values] if value) * 1.3
    chart = pygal.Bar(
        style=STYLE, title=given["title"], logarithmic=True, js=[], width=1000, height=520, legend_at_bottom=True,
        legend_at_bottom_columns=3, print_values=True, show_y_guides=True, y_title="seconds", human_readable=True,
        print_values_position="top", margin=20, range=(MARKS[0], top), zero=MARKS[0], value_formatter=_label,
    )  # fmt: skip
    chart.y_labels = [mark for mark in MARKS if mark <= top]
    chart.x_labels = given["places"]
    for name, values in given["series"].items():
        chart.add(name, values)
    return re.sub(rb"<script.*?</script>", b"", chart.render(), flags=re.DOTALL)


if __name__ == "__main__":
    sys.stdout.buffer.write(draw(json.load(sys.stdin)))
