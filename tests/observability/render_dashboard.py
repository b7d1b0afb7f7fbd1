"""Draws the dashboard as a picture: every panel's data as its queries give them after a real run, in
its place on Grafana's grid. Not Grafana's own drawing, but the same figures.

Usage: render_dashboard.py BIN_DIR OUT.png [SCALE]; SCALE 1 runs about ten seconds.
Needs Debian's packages prometheus, python3-matplotlib and python3-yaml.
"""

import math
import re
import sys
from datetime import datetime

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402
from matplotlib.ticker import FuncFormatter, MaxNLocator, MultipleLocator  # noqa: E402
from PIL import Image  # noqa: E402

import dashboard_file  # noqa: E402
from observed_run import ObservedRun  # noqa: E402

RATE_S = 5
COLUMN, LINE, GAP = 64, 36, 6  # pixels of the grid's cells, and between panels
DPI = 100
HEADER = 30  # of a panel: its title
PAPER, CARD, INK, DIM = "#f4f5f5", "#ffffff", "#24292e", "#6e7781"
COLORS = {
    "text": INK,
    "green": "#3d9a50",
    "yellow": "#e0b400",
    "orange": "#e8743b",
    "red": "#d03b3b",
    "dark-red": "#8c1d1d",
    "blue": "#3273c8",
    "purple": "#8f52b5",
}
PALETTE = ["#3d9a50", "#e0b400", "#3273c8", "#e8743b", "#d03b3b", "#8f52b5", "#3aa6a6", "#8c6d46", "#9aa0a6"]


def scaled(value, steps, suffix=""):
    for size, unit in steps:
        if abs(value) >= size:
            return f"{value / size:.3g} {unit}{suffix}"
    size, unit = steps[-1]
    return f"{value / size:.3g} {unit}{suffix}" if value else "0"


def formatted(value, unit):
    if math.isnan(value):
        return "-"
    if unit == "percentunit":
        return f"{100 * value:.3g} %"
    if unit == "s":
        return scaled(value, [(60, "min"), (1, "s"), (1e-3, "ms"), (1e-6, "µs")])
    if unit == "bytes":
        return scaled(value, [(2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"), (1, "B")])
    if unit == "Bps":
        return scaled(value, [(1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")], "/s")
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def legend(target, metric):
    return re.sub(r"{{(\w+)}}", lambda m: metric.get(m[1], ""), target["legendFormat"])


def threshold_color(panel, value):
    chosen = "text"
    for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]:
        if step["value"] is None or value >= step["value"]:
            chosen = step["color"]
    return COLORS[chosen]


def override(panel, name, prop):
    """The value that the panel's overrides give a series, or None."""
    for rule in panel["fieldConfig"]["overrides"]:
        pattern = rule["matcher"]["options"]
        by_name = rule["matcher"]["id"] == "byName"
        if pattern == name if by_name else re.search(pattern.strip("/"), name):
            for one in rule["properties"]:
                if one["id"] == prop:
                    return one["value"]
    return None


class Picture:
    def __init__(self, run, dashboard):
        self.run = run
        self.panels = dashboard["panels"]
        self.rows = max(p["gridPos"]["y"] + p["gridPos"]["h"] for p in self.panels)
        self.width, self.height = 24 * COLUMN, self.rows * LINE + 2 * GAP
        self.figure = plt.figure(figsize=(self.width / DPI, self.height / DPI), dpi=DPI, facecolor=PAPER)

    def axes(self, panel, left=0, bottom=0, right=0, top=0):
        """The panel's card, less so many pixels on each side."""
        place = panel["gridPos"]
        x = place["x"] * COLUMN + GAP / 2 + left
        y = place["y"] * LINE + GAP / 2 + top + GAP
        width = place["w"] * COLUMN - GAP - left - right
        height = place["h"] * LINE - GAP - top - bottom
        return self.figure.add_axes(
            [x / self.width, 1 - (y + height) / self.height, width / self.width, height / self.height]
        )

    def card(self, panel, color=CARD):
        axes = self.axes(panel)
        axes.set_facecolor(color)
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_color("#d8dee4")
        return axes

    def title(self, panel, axes, color=INK):
        height = panel["gridPos"]["h"] * LINE - GAP
        axes.text(
            10 / (panel["gridPos"]["w"] * COLUMN - GAP),
            1 - 17 / height,
            panel["title"],
            transform=axes.transAxes,
            fontsize=9,
            weight="bold",
            color=color,
            va="center",
        )

    def instant(self, target):
        return self.run.prometheus.query(dashboard_file.expand(target["expr"], RATE_S), at=self.run.end)

    def series(self, panel):
        """(legend, [(second of the run, value)]) of every series of a panel."""
        for target in panel["targets"]:
            expression = dashboard_file.expand(target["expr"], RATE_S)
            for one in self.run.prometheus.range(expression, self.run.start, self.run.end):
                points = [(float(t), float(v)) for t, v in one["values"]]
                yield legend(target, one["metric"]), points

    def draw(self):
        for panel in self.panels:
            getattr(self, "draw_" + panel["type"])(panel)
        return self.figure

    def draw_row(self, panel):
        axes = self.axes(panel)
        axes.axis("off")
        axes.text(0.004, 0.4, panel["title"], fontsize=13, weight="bold", color=INK, va="center")

    def draw_stat(self, panel):
        defaults = panel["fieldConfig"]["defaults"]
        target = panel["targets"][0]
        points = []
        if target["instant"]:
            value = float(self.instant(target)[0]["value"][1])
        else:
            points = next(self.series(panel))[1]
            value = points[-1][1]
        color = threshold_color(panel, value)
        filled = panel["options"]["colorMode"] == "background_solid"
        axes = self.card(panel, color if filled else CARD)
        text = formatted(value, defaults["unit"])
        for mapping in defaults["mappings"]:
            text = mapping["options"].get(f"{value:.0f}", {"text": text})["text"]
        self.title(panel, axes, "white" if filled else INK)
        axes.text(
            0.5, 0.4, text, transform=axes.transAxes, ha="center", va="center", fontsize=24,
            weight="bold", color="white" if filled else color,
        )  # fmt: skip
        if points:
            spark = self.axes(panel, left=1, right=1, bottom=1, top=80)
            spark.axis("off")
            spark.fill_between(*zip(*points), color=color, alpha=0.15)
            spark.margins(0)
            spark.set_ylim(bottom=0)

    def draw_timeseries(self, panel):
        axes = self.card(panel)
        self.title(panel, axes)
        defaults = panel["fieldConfig"]["defaults"]
        series = list(self.series(panel))
        lines = max(1, len(series))
        plot = self.axes(panel, left=72, right=16, top=HEADER + 4, bottom=30 + 13 * min(lines, 9))
        grid = sorted({t for _, points in series for t, _ in points})
        base = dict.fromkeys(grid, 0.0)
        names = []
        for i, (name, points) in enumerate(series):
            fixed = override(panel, name, "color")
            color = COLORS[fixed["fixedColor"]] if fixed else PALETTE[i % len(PALETTE)]
            dash = override(panel, name, "custom.lineStyle")
            stacked = defaults["custom"]["stacking"]["mode"] == "normal" and not dash
            times = [t for t, _ in points]
            if stacked:
                values = dict(points)
                low = [base[t] for t in grid]
                for t in grid:
                    value = values.get(t, 0)
                    base[t] += 0 if math.isnan(value) else value
                plot.fill_between(grid, low, [base[t] for t in grid], color=color, alpha=0.75, lw=0)
            else:
                plot.plot(times, [v for _, v in points], color=color, lw=1.3, ls=(0, (5, 3)) if dash else "-")
            real = [v for _, v in points if not math.isnan(v)]
            unit = defaults["unit"]
            summary = ("-", "-") if not real else (formatted(sum(real) / len(real), unit), formatted(max(real), unit))
            names.append((color, name, *summary))
        for step in defaults["thresholds"]["steps"]:
            if defaults["custom"]["thresholdsStyle"]["mode"] == "line" and step["value"] is not None:
                plot.axhline(step["value"], color=COLORS[step["color"]], lw=0.8, ls=(0, (2, 2)))
        plot.set_xlim(self.run.start, self.run.end)
        plot.set_ylim(bottom=0, top=defaults.get("max"))
        if plot.get_ylim()[1] <= 0.06:  # everything is 0: an empty axis, not one of noise
            if all(v == 0 or math.isnan(v) for _, points in series for _, v in points):
                plot.set_ylim(0, 1)
        self.dress(plot, defaults["unit"])
        self.table_below(panel, axes, names[:9])

    def dress(self, plot, unit):
        plot.set_facecolor(CARD)
        plot.grid(color="#e6e8eb", lw=0.6)
        plot.set_axisbelow(True)
        for spine in plot.spines.values():
            spine.set_visible(False)
        plot.tick_params(colors=DIM, labelsize=7, length=0)
        plot.yaxis.set_major_locator(MaxNLocator(5))
        if unit == "bytes":  # round numbers of MiB, not of millions
            top = plot.get_ylim()[1]
            plot.yaxis.set_major_locator(MultipleLocator(2 ** math.floor(math.log2(top / 3))))
        plot.yaxis.set_major_formatter(FuncFormatter(lambda v, _: formatted(v, unit)))
        plot.xaxis.set_major_locator(MaxNLocator(6))
        clock = FuncFormatter(lambda v, _: datetime.fromtimestamp(v).strftime("%H:%M:%S"))
        plot.xaxis.set_major_formatter(clock)

    def table_below(self, panel, axes, names):
        height = panel["gridPos"]["h"] * LINE - GAP
        for i, (color, name, mean, most) in enumerate(reversed(names)):
            y = (11 + 13 * i) / height
            style = {"transform": axes.transAxes, "fontsize": 7, "va": "center", "color": INK}
            axes.text(0.02, y, "■", **{**style, "color": color, "weight": "bold"})
            axes.text(0.055, y, name, **style)
            axes.text(0.8, y, f"mean {mean}", **style, ha="right")
            axes.text(0.98, y, f"max {most}", **style, ha="right")

    def draw_bargauge(self, panel):
        axes = self.card(panel)
        self.title(panel, axes)
        defaults = panel["fieldConfig"]["defaults"]
        bars = [
            (legend(target, one["metric"]), float(one["value"][1]))
            for target in panel["targets"]
            for one in self.instant(target)
        ]
        plot = self.axes(panel, left=110, right=80, top=HEADER + 8, bottom=16)
        plot.set_facecolor(CARD)
        most = defaults.get("max") or max(value for _, value in bars) or 1
        for i, (name, value) in enumerate(reversed(bars)):
            plot.barh(i, most, color="#eef0f2", height=0.6)
            plot.barh(i, value, color=threshold_color(panel, value), height=0.6)
            plot.text(-0.02 * most, i, name, ha="right", va="center", fontsize=8, color=INK)
            text = formatted(value, defaults["unit"])
            plot.text(1.02 * most, i, text, ha="left", va="center", fontsize=9, weight="bold", color=INK)
        plot.set_xlim(0, most)
        plot.axis("off")

    def draw_table(self, panel):
        axes = self.card(panel)
        self.title(panel, axes)
        columns = panel["transformations"][0]["options"]["renameByName"]
        rows = [list(columns.values())]
        for one in self.instant(panel["targets"][0]):
            rows.append([one["metric"].get(label, "") for label in columns])
        height = panel["gridPos"]["h"] * LINE - GAP
        longest = [max(len(row[c]) for row in rows) + 2 for c in range(len(columns))]
        starts = [0.02 + 0.96 * sum(longest[:c]) / sum(longest) for c in range(len(columns))]
        for i, cells in enumerate(rows):
            y = 1 - (HEADER + 16 + 24 * i) / height
            for x, cell in zip(starts, cells):
                axes.text(
                    x, y, cell, transform=axes.transAxes, fontsize=8, va="center",
                    color=DIM if i == 0 else INK,
                )  # fmt: skip


def main():
    bin_dir, out = sys.argv[1:3]
    scale = float(sys.argv[3]) if len(sys.argv) > 3 else 1
    with ObservedRun(bin_dir) as run:
        run.load(scale)
        figure = Picture(run, dashboard_file.read()).draw()
    figure.canvas.draw()
    picture = Image.frombytes("RGBA", figure.canvas.get_width_height(), bytes(figure.canvas.buffer_rgba()))
    picture.convert("RGB").quantize(96, dither=Image.Dither.NONE).save(out, optimize=True)
    print(f"{out}: {run.end - run.start:.0f} s")


if __name__ == "__main__":
    main()
