"""The report of `run.py` as a picture: a panel for each rate and RTT, bars for each loss and contender."""

from html import escape

COLOURS = ("#9aa5b1", "#5f6c7b", "#2f80ed", "#27ae60", "#eb5757", "#f2994a")
PANEL_WIDTH, PANEL_HEIGHT, LEFT, TOP, GAP = 290, 150, 46, 64, 44


def bars(report):
    """SVG text."""
    names = report["contenders"]
    panels = {}
    for cell, found in report["cells"].items():
        rate, rtt, loss = cell.split(",")
        panels.setdefault((rtt, rate), []).append((loss, found))
    columns = sorted({rate for _, rate in panels}, key=lambda rate: float(rate[:-1]))
    rows = sorted({rtt for rtt, _ in panels}, key=lambda rtt: float(rtt[:-2]))
    width = LEFT + len(columns) * (PANEL_WIDTH + GAP)
    height = TOP + len(rows) * (PANEL_HEIGHT + GAP + 10)
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
        f'<text x="{LEFT}" y="18" font-size="14">Goodput, % of the link (MTU 1500); dashed line: what headers leave</text>',
    ]
    for number, name in enumerate(names):
        x = LEFT + number * 105
        out.append(f'<rect x="{x}" y="28" width="11" height="11" fill="{COLOURS[number % len(COLOURS)]}"/>')
        out.append(f'<text x="{x + 15}" y="38">{escape(name)}</text>')
    for (rtt, rate), groups in panels.items():
        x = LEFT + columns.index(rate) * (PANEL_WIDTH + GAP)
        y = TOP + rows.index(rtt) * (PANEL_HEIGHT + GAP + 10)
        out.append(f'<text x="{x}" y="{y - 4}" font-weight="bold">{rate[:-1]} Gb/s, RTT {rtt[:-2]} ms</text>')
        out += panel(x, y, groups, names)
    return "\n".join([*out, "</svg>", ""])


def panel(x, y, groups, names):
    def height(share):
        return share * PANEL_HEIGHT

    out = []
    for percent in (0, 50, 100):
        at = y + PANEL_HEIGHT - height(percent / 100)
        out.append(f'<line x1="{x}" y1="{at:.1f}" x2="{x + PANEL_WIDTH}" y2="{at:.1f}" stroke="#dddddd"/>')
        out.append(f'<text x="{x - 5}" y="{at + 4:.1f}" text-anchor="end" fill="#666666">{percent}</text>')
    ceiling = y + PANEL_HEIGHT - height(0.956)
    out.append(
        f'<line x1="{x}" y1="{ceiling:.1f}" x2="{x + PANEL_WIDTH}" y2="{ceiling:.1f}" stroke="#888888" stroke-dasharray="3 3"/>'
    )
    group_width = PANEL_WIDTH / len(groups)
    bar_width = min(28.0, group_width * 0.86 / len(names))
    for place, (loss, found) in enumerate(groups):
        left = x + place * group_width + (group_width - bar_width * len(names)) / 2
        for number, name in enumerate(names):
            share = found.get(name, {}).get("share")
            if share is None:
                continue
            bar, at = height(share), left + number * bar_width
            colour = COLOURS[number % len(COLOURS)]
            marks = found[name].get("marks", "")
            title = escape(f"{name}, loss {loss}: {share:.1%} {marks}".strip())
            out.append(
                f'<rect x="{at:.1f}" y="{y + PANEL_HEIGHT - bar:.1f}" width="{bar_width - 1:.1f}" height="{bar:.1f}" '
                f'fill="{colour}"><title>{title}</title></rect>'
            )
            if marks:
                middle = at + bar_width / 2
                out.append(
                    f'<text x="{middle:.1f}" y="{y + PANEL_HEIGHT - bar - 2:.1f}" font-size="9" text-anchor="middle" '
                    f'fill="#666666">{marks}</text>'
                )
        centre = x + (place + 0.5) * group_width
        out.append(f'<text x="{centre:.1f}" y="{y + PANEL_HEIGHT + 15}" text-anchor="middle">loss {loss}</text>')
    return out
