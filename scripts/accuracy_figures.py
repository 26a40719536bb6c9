#!/usr/bin/env python3
"""The figures of docs/accuracy.md, drawn from the results in docs/accuracy and written beside them
as SVG that follows the reader's light or dark colours. Called by scripts/accuracy; needs nothing
but Python's standard library. The same results give the same bytes.
    scripts/accuracy_figures.py
"""

import json
import math
import pathlib
from xml.sax.saxutils import escape

RESULTS = pathlib.Path(__file__).resolve().parent.parent / "docs" / "accuracy"
SHARES = ["0", "0.5", "0.875"]
FORMATS = ["bf16", "int8", "int4"]
MINUS = "\u2212"

STYLE = """
text{font:12px -apple-system,"Segoe UI","Noto Sans","Liberation Sans",Helvetica,Arial,sans-serif}
.label{paint-order:stroke;stroke-width:4px;stroke-linejoin:round}
.bold{font-weight:600}
line,path{fill:none;stroke-width:1}
path{stroke-width:2;stroke-linejoin:round}
circle{stroke-width:2}
line.dense{stroke-dasharray:5 4}
.fine{stroke-dasharray:2 3}
"""
COLOURS = {  # what it is drawn in: light, dark
    "paper": ("#ffffff", "#0d1117"),
    "ink": ("#1f2328", "#e6edf3"),
    "quiet": ("#59636e", "#9aa4af"),
    "grid": ("#e3e7eb", "#262c34"),
    "dense": ("#6e7781", "#9aa4af"),
    "sketch": ("#1f66b8", "#6cb0f5"),
    "minmax": ("#b4531c", "#ec9a62"),
}
LOSS = ("#c2571a", "#d9743a")
GAIN = ("#2f77c4", "#4a93e0")


def rules(mode):
    """Style rules of the light (0) or dark (1) colours."""
    text = f".paper{{fill:{COLOURS['paper'][mode]}}}.label{{stroke:{COLOURS['paper'][mode]}}}"
    for name, colours in COLOURS.items():
        if name != "paper":
            text += (f"text.{name},circle.{name}{{fill:{colours[mode]}}}"
                     f"line.{name},path.{name},circle.{name}{{stroke:{colours[mode]}}}")
    text += f"circle.hollow{{fill:{COLOURS['paper'][mode]}}}"
    text += f".none{{fill:{COLOURS['grid'][mode]}}}"
    text += f".loss{{fill:{LOSS[mode]}}}.gain{{fill:{GAIN[mode]}}}"
    return text


class Svg:
    """Collects the elements of one picture."""

    def __init__(self, width, height, title):
        dark = f"@media (prefers-color-scheme:dark){{{rules(1)}}}"
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
            f'width="{width}" height="{height}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}{rules(0)}\n{dark}\n</style>",
            f'<rect class="paper" width="{width}" height="{height}"/>',
        ]

    def text(self, x, y, words, style="ink", anchor="start", turned=False):
        turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" '
                          f'class="{style}"{turn}>{escape(words)}</text>')

    def line(self, x1, y1, x2, y2, style):
        self.parts.append(
            f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{style}"/>')

    def path(self, points, style):
        steps = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self.parts.append(f'<path d="M{steps}" class="{style}"/>')

    def dot(self, x, y, style):
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" class="{style}"/>')

    def cell(self, x, y, width, height, style, opacity=1.0):
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width}" height="{height}" '
                          f'rx="2" class="{style}" opacity="{opacity:.2f}"/>')

    def write(self, name):
        (RESULTS / name).write_text("\n".join(self.parts) + "\n</svg>\n", encoding="utf-8")


class Panel:
    """Axes of one chart: x logarithmic, y linear, data to picture by X and Y."""

    def __init__(self, svg, box, x_range, y_range):
        self.svg = svg
        self.left, self.top, self.right, self.bottom = box
        self.x_range, self.y_range = x_range, y_range

    def X(self, x):
        low, high = map(math.log, self.x_range)
        return self.left + (math.log(x) - low) / (high - low) * (self.right - self.left)

    def Y(self, y):
        low, high = self.y_range
        return self.bottom - (y - low) / (high - low) * (self.bottom - self.top)

    def axes(self, x_ticks, y_ticks, x_labels=True, y_labels=True):
        """Ticks are (value, words)."""
        for y, words in y_ticks:
            self.svg.line(self.left, self.Y(y), self.right, self.Y(y), "grid")
            if y_labels:
                self.svg.text(self.left - 8, self.Y(y) + 4, words, "quiet", "end")
        for x, words in x_ticks:
            self.svg.line(self.X(x), self.bottom, self.X(x), self.bottom + 4, "quiet")
            if x_labels:
                self.svg.text(self.X(x), self.bottom + 18, words, "quiet", "middle")
        self.svg.line(self.left, self.bottom, self.right, self.bottom, "quiet")

    def level(self, y, style):
        self.svg.line(self.left, self.Y(y), self.right, self.Y(y), style)

    def series(self, points, style, line_style="", dot_style=""):
        places = [(self.X(x), self.Y(y)) for x, y in points]
        if len(places) > 1:
            self.svg.path(places, f"{style} {line_style}".strip())
        for x, y in places:
            self.svg.dot(x, y, f"{style} {dot_style}".strip())

    def key(self, x, y, words, style, dot_style=""):
        """A sample of a dot, and what it means."""
        self.svg.dot(self.X(x), self.Y(y), f"{style} {dot_style}".strip())
        self.label(x, y, words, style, dx=9)

    def label(self, x, y, words, style, anchor="start", dx=0, dy=4):
        self.svg.text(self.X(x) + dx, self.Y(y) + dy, words, f"{style} label", anchor)


# ---- Results


def runs(name):
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["runs"]


def run_of(name, unit, budget, reuse="1"):
    """The only run of a file with this selection."""
    [run] = [run for run in runs(name)
             if (run["settings"]["selection_unit"], run["settings"]["token_budget"],
                 str(run["settings"]["reuse_interval"])) == (unit, budget, reuse)]
    return run


def right(run):
    return run["overall"]["right"]


def made(run):
    """Percent of the lists read that were made for the row that read them."""
    return 100 * run["selection"]["lists_made"] / run["selection"]["lists_used"]


[DENSE] = runs("dense")
ANSWERS = DENSE["overall"]["total"]
COUNT_TICKS = [(count, str(count)) for count in range(0, ANSWERS, 100)]

# ---- Figures

# Three panels side by side, a streaming share each.
PANEL_WIDTH, PANEL_STEP, FIRST_LEFT = 244, 262, 58
FIGURE_WIDTH = FIRST_LEFT + 2 * PANEL_STEP + PANEL_WIDTH + 18


def share_title(svg, left, share):
    words = {"0": "every head retrieves", "0.5": "half of the heads stream",
             "0.875": "seven of eight stream"}[share]
    svg.text(left + PANEL_WIDTH / 2, 20, f"share {share}: {words}", "ink bold", "middle")


def budget_figure():
    svg = Svg(FIGURE_WIDTH, 312, f"Right answers of {ANSWERS} against the token budget")
    budgets = [256, 512, 1024, 2048, 4096]
    for i, share in enumerate(SHARES):
        left = FIRST_LEFT + i * PANEL_STEP
        box = (left, 34, left + PANEL_WIDTH, 260)
        panel = Panel(svg, box, (210, 5000), (0, ANSWERS))
        panel.axes([(budget, str(budget)) for budget in budgets], COUNT_TICKS, y_labels=i == 0)
        share_title(svg, left, share)
        panel.level(right(DENSE), "dense")
        for unit, line_style in [(64, ""), (16, "fine")]:
            panel.series([(b, right(run_of(f"share-{share}-minmax", unit, b))) for b in budgets],
                         "minmax", line_style)
        for unit, line_style, tried in [(16, "fine", budgets[:3]), (64, "", budgets[4:])]:
            panel.series([(b, right(run_of(f"share-{share}-sketch", unit, b))) for b in tried],
                         "sketch", line_style)
        if i == 0:
            panel.label(5000, right(DENSE), f"dense: {right(DENSE)}", "dense", "end", dy=-8)
            panel.label(230, right(DENSE), "sketch", "sketch bold", dy=-10)
            panel.label(440, 392, "unit 16", "minmax", "end")
            panel.label(1150, 325, "unit 64", "minmax")
            panel.label(1150, 280, "minmax", "minmax bold")
    svg.text(16, 147, f"right answers of {ANSWERS}", "quiet", "middle", turned=True)
    svg.text(FIRST_LEFT + PANEL_STEP + PANEL_WIDTH / 2, 302,
             "token budget of a retrieval head in decode, tokens (logarithmic)", "quiet", "middle")
    svg.write("budget.svg")


def reuse_figure():
    svg = Svg(FIGURE_WIDTH, 504, f"Right answers of {ANSWERS} against the share of lists made")
    intervals, distances = ["16", "8", "4", "2", "1"], ["1.1", "0.9", "0.7", "0.5"]
    for row, (score, unit, budget) in enumerate([("sketch", 16, 512), ("minmax", 64, 4096)]):
        top = 56 + row * 214
        svg.text(FIRST_LEFT, top - 10, f"{score}, unit {unit}, budget {budget}", f"{score} bold")
        for i, share in enumerate(SHARES):
            left = FIRST_LEFT + i * PANEL_STEP
            panel = Panel(svg, (left, top, left + PANEL_WIDTH, top + 176), (7, 112), (0, ANSWERS))
            panel.axes([(x, f"{x} %") for x in [10, 20, 50, 100]], COUNT_TICKS,
                       x_labels=row == 1, y_labels=i == 0)
            if row == 0:
                share_title(svg, left, share)
            panel.level(right(DENSE), "dense")

            def points(reuses):
                found = [run_of(f"share-{share}-{score}", unit, budget, reuse) for reuse in reuses]
                return [(made(run), right(run)) for run in found]

            fixed = points(intervals)
            panel.series(fixed, score)
            for interval, (x, y) in zip(intervals[:-1], fixed):
                panel.label(x, y, interval, score, "middle", dy=18 if y > 80 else -10)
            auto = points(f"auto:{distance}" for distance in distances)
            panel.series(auto, score, "fine", "hollow")
            for distance, (x, _) in zip(distances[:2], auto):
                panel.label(x, right(DENSE), distance, score, "middle", dy=-7)
            if i == 0:
                panel.label(auto[0][0], right(DENSE), "auto", score, "end", dx=-16, dy=-7)
                panel.label(7.4, right(DENSE), f"dense: {right(DENSE)}", "dense", dy=14)
                panel.key(25, 150, "every n-th row", score)
                panel.key(25, 95, "auto, by the query", score, "hollow")
    svg.text(16, 251, f"right answers of {ANSWERS}", "quiet", "middle", turned=True)
    svg.text(FIRST_LEFT + PANEL_STEP + PANEL_WIDTH / 2, 490,
             "lists made, percent of the lists that decode rows read (logarithmic)", "quiet",
             "middle")
    svg.write("reuse.svg")


def kind_length_figure():
    maps = [
        ("default: minmax, unit 64, budget 4096, share 0.5", run_of("share-0.5-minmax", 64, 4096)),
        ("sketch, unit 16, budget 512, share 0.875", run_of("share-0.875-sketch", 16, 512)),
    ]

    def by_cell(run):
        return {(c["kind"], c["length"]): c for c in run["by_kind_length"]}

    dense = by_cell(DENSE)
    kinds = ["niah", "code", "person", "pair", "chain"]
    lengths = sorted({length for _, length in dense})
    width, height, left, top, step = 54, 30, 66, 48, 410
    bottom = top + len(kinds) * height
    svg = Svg(FIGURE_WIDTH, bottom + 52, "Answers lost and gained by question kind and length")
    for i, (title, run) in enumerate(maps):
        sparse = by_cell(run)
        x0 = left + i * step
        svg.text(x0, 20, title, "ink bold")
        svg.text(x0, 36, f"{right(run)} right, dense {right(DENSE)}", "quiet")
        for column, length in enumerate(lengths):
            words = f"{round(length / 1000)}K" if length == 65000 else f"{length // 1024}K"
            svg.text(x0 + (column + 0.5) * width, bottom + 18, words, "quiet", "middle")
        for row, kind in enumerate(kinds):
            y = top + row * height
            if i == 0:
                svg.text(x0 - 10, y + height / 2 + 4, kind, "quiet", "end")
            for column, length in enumerate(lengths):
                total = dense[kind, length]["total"]
                change = sparse[kind, length]["right"] - dense[kind, length]["right"]
                x = x0 + column * width
                svg.cell(x + 1, y + 1, width - 2, height - 2, "none")
                if change != 0:
                    svg.cell(x + 1, y + 1, width - 2, height - 2,
                             "loss" if change < 0 else "gain", min(0.7, 4 * abs(change) / total))
                words = str(change).replace("-", MINUS) if change <= 0 else f"+{change}"
                svg.text(x + width / 2, y + height / 2 + 4, words,
                         "ink bold" if change else "quiet", "middle")
        svg.text(x0 + len(lengths) * width / 2, bottom + 40, "document, tokens", "quiet", "middle")
    svg.write("kind-length.svg")


def cache_bytes(share, cache, tokens):
    """Bytes of a sequence's pages in both lanes (kv_layout.h), as `lserve inspect` counts them:
    24 KV heads of 64 dimensions, 128 sink and 256 local tokens, sketch where there is a budget."""
    heads, dim, page = 24, 64, 64
    streaming = math.floor(share * heads + 0.5)
    full = 2 * dim * 2  # key and value of a token in 16 bits
    box = 2 * dim * 2 / page  # a page's lo and hi, a token's part
    grid = 4
    token = {"bf16": full + (dim / 4 + box if share > 0 else 0),
             "int8": 2 * dim + box + grid,
             "int4": dim + box + grid}[cache]
    open_tokens = (tokens - 1) % page + 1
    ring_pages = math.ceil(128 / page) + math.ceil(255 / page) + 1
    return ((heads - streaming) * ((tokens - open_tokens) * token + page * full) +
            streaming * ring_pages * page * full)


def cache_run(share, cache):
    name = "dense" if share == 0 else f"share-{share}-sketch"
    name += "" if cache == "bf16" else f"-{cache}"
    return runs(name)[0] if share == 0 else run_of(name, 16, 512)


def cache_figure():
    tokens, above, below = 65536, -10, 19
    svg = Svg(620, 330, f"Right answers of {ANSWERS} against the size of the KV cache")
    panel = Panel(svg, (58, 20, 596, 270), (200, 8192), (455, 470))
    panel.axes([(2**i, f"{2**i:,}") for i in range(8, 14)],
               [(count, str(count)) for count in range(455, 471, 5)])
    # Two points of dense lie beside two of share 0.5: their labels go to the other side.
    for share, style, sides in [(0, "dense", [above, above, below]),
                                (0.5, "sketch", [below, above, below]),
                                (0.875, "sketch", [below, below, below])]:
        points = [(cache_bytes(share, cache, tokens) / tokens, right(cache_run(share, cache)))
                  for cache in FORMATS]
        panel.series(points, style)
        for cache, (x, y), side in zip(FORMATS, points, sides):
            panel.label(x, y, cache, style, "middle", dy=side)
    panel.label(4600, right(DENSE), "dense", "dense bold", "middle", dy=below)
    panel.label(850, 465, "share 0.5", "sketch bold", "end", dx=-8)
    panel.label(445, 462, "share 0.875", "sketch bold", "middle", dy=above)
    svg.text(16, 145, f"right answers of {ANSWERS}", "quiet", "middle", turned=True)
    svg.text(327, 316, f"KV cache of {tokens:,} tokens in both lanes, bytes a token (logarithmic)",
             "quiet", "middle")
    svg.write("cache-bytes.svg")


if __name__ == "__main__":
    budget_figure()
    reuse_figure()
    kind_length_figure()
    cache_figure()
