"""The style and layout of all plots. They are drawn without the global state of ``matplotlib.pyplot``."""

import base64
import io
import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["COLOURS", "GREY", "LIGHT", "blank", "embedded", "panels", "plain_ticks", "tidy", "uri"]

COLOURS = (
    "#1f77b4", "#e6550d", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#17a2b8",
    "#a6a61f", "#4b4b9f", "#c58a1c", "#00695c", "#ad1457", "#6d8a2f", "#546e7a", "#000000",
    "#5dade2", "#f5a9b8", "#7fbf7b", "#b39ddb",
)  # fmt: skip
GREY, LIGHT = "#777777", "#bdbdbd"
DPI = 150


def uri(png: bytes) -> str:
    """A PNG image as a data URI, for the ``src`` of an image in a page."""
    return "data:image/png;base64," + base64.b64encode(png).decode()


def blank(width: float, height: float, layout: Any = "constrained") -> "Figure":
    """An empty matplotlib figure, ``width`` by ``height`` inches."""
    from matplotlib.figure import Figure

    return Figure((width, height), dpi=DPI, layout=layout)


def embedded(figure: "Figure") -> str:
    """A matplotlib figure as a PNG image in a data URI."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor="white", metadata={"Software": None})
    return uri(buffer.getvalue())


def tidy(axes: "Axes", title: str = "", ink: str = "black") -> None:
    """Style the axes: small grey ticks, no spines at the top and right, the title on the left in the colour ``ink``."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(labelsize=7, color=GREY, labelcolor="#444444")
    axes.set_title(title, fontsize=9, color=ink, loc="left")


def plain_ticks(axes: "Axes", which: str) -> None:
    """Write 0.5, 1, 2, 5 and so on beside a logarithmic axis, in place of powers of ten. ``which`` is x, y or both."""
    from matplotlib.ticker import LogLocator, NullFormatter

    for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        if which in (name, "both"):
            axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_formatter(NullFormatter())


def panels(count: int, columns: int, width: float, height: float, **shared: Any) -> tuple["Figure", list["Axes"]]:
    """A matplotlib figure with ``count`` panels, ``columns`` in each row, and the list of the panels.

    Each panel is ``width`` by ``height`` inches. ``shared`` has further arguments of ``Figure.subplots``.
    """
    rows = math.ceil(count / columns)
    figure = blank(width * columns, height * rows)
    every = figure.subplots(rows, columns, squeeze=False, **shared).flatten().tolist()
    for axes in every[count:]:
        axes.set_visible(False)
    for axes in every[max(0, count - columns) : count]:
        axes.tick_params(labelbottom=True)
    return figure, every[:count]
