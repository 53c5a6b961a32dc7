"""The picture of docs/speed.md: read by `bench/.venv/ansible/bin/python bench/plot.py` from standard input, as SVG on standard output.

In: {"title": …, "places": ["1 host, 0 ms", …], "series": {"Groundwork": [2.1, null, …], …}}
"""

import json
import sys

import pygal
from pygal.style import Style

STYLE = Style(
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


def draw(given: dict) -> bytes:
    """Bars side by side, seconds on a logarithmic axis. No script: it is looked at as a picture."""
    chart = pygal.Bar(
        style=STYLE, title=given["title"], logarithmic=True, js=[], width=1000, height=520, legend_at_bottom=True,
        legend_at_bottom_columns=3, print_values=True, show_y_guides=True, y_title="seconds", human_readable=True,
        x_label_rotation=0, spacing=10, margin=20, value_formatter=lambda value: f"{value:.3g}" if value else "",
    )  # fmt: skip
    chart.x_labels = given["places"]
    for name, values in given["series"].items():
        chart.add(name, values)
    return chart.render()


if __name__ == "__main__":
    sys.stdout.buffer.write(draw(json.load(sys.stdin)))
