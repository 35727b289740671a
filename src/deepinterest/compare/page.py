"""A comparison as one HTML page that needs nothing else: no network, no scripts, plots inside."""

from __future__ import annotations

import html

from deepinterest.compare import figures
from deepinterest.compare.groups import Block
from deepinterest.compare.scoring import Findings
from deepinterest.compare.tables import Cells, main_table, part_tables, remarks
from deepinterest.errors import visible

STYLE = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0; background: #fff; color: #1d232b; font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word; }
main { max-width: 76rem; margin: 0 auto; padding: 1rem 1rem 3rem; }
h1 { font-size: 1.5rem; margin: .5rem 0 1rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; }
p { max-width: 60rem; }
.apart p { max-width: none; }
.apart { border-left: 4px solid #d55e00; padding: .25rem 1rem; background: #fdf3ec; }
.remarks { color: #4a5563; font-size: .9rem; }
.remarks p { margin: .4rem 0; }
.scroll { overflow-x: auto; border: 1px solid #dde2e8; border-radius: 4px; }
.scroll:focus-visible { outline: 2px solid #0072b2; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .85rem; }
th, td { padding: .4rem .45rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e8ecf0; }
td.words, thead th { white-space: normal; }
td.words { min-width: 6rem; }
td small { display: block; color: #4a5563; }
thead th { background: #f4f6f8; }
tbody tr:last-child > * { border-bottom: 0; }
tbody th, thead th:first-child {
  text-align: left; font-weight: 600; position: sticky; left: 0; background: #fff;
  max-width: 14rem; white-space: normal;
}
thead th:first-child { background: #f4f6f8; }
.chip { display: inline-block; width: 1.5em; height: 0; border-top: .3em; margin-right: .5em; vertical-align: .22em; }
.legend { display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; padding: 0; list-style: none; font-size: .9rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 21rem), 1fr)); gap: 1.25rem; }
figure { margin: 0; }
figcaption { font-weight: 600; font-size: .95rem; margin-bottom: .25rem; }
img { width: 100%; max-width: 28rem; height: auto; display: block; }
@media (max-width: 40rem) {
  main { padding: .75rem .75rem 2rem; }
  th, td { padding: .35rem .5rem; }
  tbody th, thead th:first-child { max-width: 9rem; }
  td.words { min-width: 9rem; }
}
"""


def escape(text: str) -> str:
    """A text that HTML shows as it is, also within an attribute; control characters as `\\x1b`."""
    return html.escape(visible(text), quote=True)


def page(parts: list[tuple[Block, Findings]], apart: list[str]) -> str:
    """The whole page."""
    body = "".join(_block(block, findings) for block, findings in parts)
    runs = sum(len(block.runs) for block, _ in parts)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Comparison of {runs} runs</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>Comparison of {runs} runs</h1>
{_apart(apart)}{body}</main>
</body>
</html>
"""


def _apart(apart: list[str]) -> str:
    if not apart:
        return ""
    lines = "".join(f"<p>{escape(line)}</p>" for line in apart)
    return f'<div class="apart">{lines}</div>\n'


def _block(block: Block, findings: Findings) -> str:
    chips = {group.label: _chip(number) for number, group in enumerate(block.groups)}
    told = "".join(f"<p>{escape(line)}</p>" for line in remarks(block, findings))
    legend = "".join(f"<li>{chip}{escape(label)}</li>" for label, chip in chips.items())
    drawn = "".join(
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<img src="{figures.as_svg(figure)}" alt="{_alt(title, block)}"></figure>\n'
        for title, figure in figures.draw(block, findings).items()
    )
    more = "".join(f"<h3>{escape(cells.title)}</h3>\n{_table(cells, chips)}" for cells in part_tables(block, findings))
    return (
        f"<section>\n<h2>{escape(block.title)}</h2>\n{_table(main_table(block, findings), chips)}"
        f'<div class="remarks">{told}</div>\n<ul class="legend">{legend}</ul>\n<div class="plots">\n{drawn}</div>\n'
        f"{more}</section>\n"
    )


def _chip(number: int) -> str:
    style = {"-": "solid", "--": "dashed", ":": "dotted", "-.": "double"}[figures.dash(number)]
    return f'<span class="chip" style="border-top: .3em {style} {figures.colour(number)}"></span>'


def _alt(title: str, block: Block) -> str:
    return escape(f"{title} of {'; '.join(group.label for group in block.groups)}")


def _table(cells: Cells, chips: dict[str, str]) -> str:
    head = "".join(f'<th scope="col">{escape(name)}</th>' for name in cells.head)
    rows = "".join(
        f'<tr><th scope="row">{chips.get(label, "")}{escape(label)}</th>' + "".join(map(_cell, texts)) + "</tr>\n"
        for label, *texts in cells.rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(cells.title)}">\n'
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n</div>\n"
    )


def _cell(text: str) -> str:
    """A number with its spread or interval below it; words may take several lines."""
    for sign in (" ± ", " ["):
        first, found, rest = text.partition(sign)
        if found:
            return f"<td>{escape(first)}<small>{escape(sign.lstrip() + rest)}</small></td>"
    return f'<td class="words">{escape(text)}</td>' if " " in text else f"<td>{escape(text)}</td>"
