"""Pictures in one style, and numbers for people."""

from __future__ import annotations

import matplotlib.pyplot as plt

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#999999")
"""Okabe and Ito's palette: told apart by colour-blind readers, on light and dark pages."""


def human_bytes(count: float) -> str:
    """`8.6 GiB`: memory in powers of 1024, as on the GPU page. Measured bandwidths are decimal: GB/s."""
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while abs(count) >= 1023.5 and len(units) > 1:
        count /= 1024
        del units[0]
    return f"{count:.0f} {units[0]}" if abs(count) >= 999.5 else f"{count:.3g} {units[0]}"


def number(value: float) -> str:
    """Three digits, without an exponent where people would rather read none: 54,800 and 0.0012."""
    if 1000 <= abs(value) < 1e7:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"


def _tick(value: float) -> str:
    """A number on an axis: all digits of small whole ones, millions as `4.19M`."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:.3g}M"
    return f"{value:,.0f}" if value == round(value) else f"{value:.3g}"


def axes(title: str, xlabel: str = "", ylabel: str = "", size=(8, 4)):
    """An empty picture with quiet grid lines."""
    _, ax = plt.subplots(figsize=size, layout="constrained")
    ax.set(title=title, xlabel=xlabel, ylabel=ylabel)
    ax.grid(alpha=0.3)
    ax.set_axisbelow(True)
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def bars(values: dict[str, float], title: str, unit: str, log: bool = False) -> None:
    """Horizontal bars, each with its number."""
    ax = axes(title, xlabel=unit, size=(8, 0.9 + 0.45 * len(values)))
    drawn = ax.barh(list(values), list(values.values()), color=COLOURS[0])
    ax.bar_label(drawn, [number(value) for value in values.values()], padding=4)
    ax.invert_yaxis()
    ax.margins(x=0.12)
    if log:
        ax.set_xscale("log")
        ax.xaxis.set_major_formatter(lambda value, _: number(value))
        ax.xaxis.set_minor_formatter(lambda value, _: "")
    plt.show()


def curves(lines: dict[str, tuple], title: str, xlabel: str, ylabel: str, log: str = "x") -> None:
    """Lines with points: label → (x values, y values). `log` names logarithmic axes; others start at 0."""
    ax = axes(title, xlabel, ylabel)
    for (label, (x, y)), colour in zip(lines.items(), COLOURS * 3, strict=False):
        ax.plot(x, y, "o-", label=label, color=colour, markersize=4)
    if "x" in log:
        ax.set_xscale("log", base=2)
        ticks = sorted({value for x, _ in lines.values() for value in x})
        ax.set_xticks(ticks[:: -(-len(ticks) // 12)], minor=False)
    if "y" in log:
        ax.set_yscale("log")
    else:
        ax.set_ylim(bottom=0)
    for axis, scaled in ((ax.xaxis, "x" in log), (ax.yaxis, "y" in log)):
        if scaled:
            axis.set_major_formatter(lambda value, _: _tick(value))
            axis.set_minor_formatter(lambda value, _: "")
    ax.legend(frameon=False)
    plt.show()


def timeline(rows: dict[str, list[tuple]], title: str, unit: str = "ms") -> None:
    """Who was busy when: row → [(start, length, label)]. One colour for each label."""
    ax = axes(title, xlabel=unit, size=(8, 0.9 + 0.5 * len(rows)))
    labels = list(dict.fromkeys(label for spans in rows.values() for *_, label in spans))
    colour = {label: COLOURS[i % len(COLOURS)] for i, label in enumerate(labels)}
    for height, spans in enumerate(rows.values()):
        line = 0.5 if len(spans) < 200 else 0
        for label in labels:
            own = [(start, length) for start, length, its_label in spans if its_label == label]
            ax.broken_barh(own, (height - 0.4, 0.8), color=colour[label], edgecolor="white", linewidth=line)
    for label in labels:
        ax.plot([], [], color=colour[label], linewidth=6, label=label)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.grid(visible=False, axis="y")
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    plt.show()
