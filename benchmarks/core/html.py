"""What the pages of both reports share: their look, light, dark and on a phone, and tables."""

from __future__ import annotations

from html import escape

CSS = """
:root { color-scheme: light dark; --ink: #20262e; --dim: #5d6774; --back: #f6f7f9; --card: #fff;
  --line: #e0e4e9; --blue: #1769c7; --good: #15803d; --bad: #c2410c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ed; --dim: #9ea8b4; --back: #14171b;
  --card: #1d2126; --line: #333a43; --blue: #6db1f7; --good: #4ade80; --bad: #fb923c; } }
body { font: 15px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--back);
  margin: 0; overflow-wrap: anywhere; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 24px 80px; }
h1 { font-size: 28px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 40px 0 8px; }
h3 { font-size: 15px; margin: 12px 0 4px; } a { color: var(--blue); }
p { max-width: 78ch; } .dim, figcaption { color: var(--dim); }
nav ul { columns: 18em; padding-left: 18px; } nav li { break-inside: avoid; }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 16px; margin: 12px 0; }
.card svg { max-width: 100%; height: auto; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 20px 0; }
.tile { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 12px 18px; }
.tile b { display: block; font-size: 24px; color: var(--blue); }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
th, td { padding: 4px 8px; text-align: right; border-bottom: 1px solid var(--line);
  vertical-align: top; overflow-wrap: break-word; }
th { color: var(--dim); font-weight: 600; } th.l, td.l { text-align: left; }
.yes { color: var(--good); font-weight: 600; } .no { color: var(--bad); font-weight: 600; }
details summary { cursor: pointer; margin: 8px 0; }
@media (max-width: 700px) { main { padding: 20px 12px 60px; } .card { padding: 10px; }
  tr:first-child:has(th) { display: none; } tr { display: block; padding: 6px 0;
    border-bottom: 1px solid var(--line); }
  td, td.l { display: flex; justify-content: space-between; gap: 16px; border: 0; padding: 1px 0;
    text-align: right; overflow-wrap: anywhere; }
  td:empty { display: none; }
  td::before { content: attr(data-name); color: var(--dim); text-align: left; flex: none;
    max-width: 50%; } }
"""


def table(header: list[str], body: list[list[str]], left: int) -> str:
    """A table whose first `left` columns are flush left; `body` is HTML already.

    Each cell knows its column's name: on a phone a row stands as a list.
    """

    def cell(tag: str, column: int, text: str, more: str = "") -> str:
        return f"<{tag}{' class=l' if column < left else ''}{more}>{text}</{tag}>"

    names = [f' data-name="{escape(name)}"' if name else "" for name in header]
    head = "".join(cell("th", i, escape(text)) for i, text in enumerate(header))
    lines = ["".join(cell("td", i, text, names[i]) for i, text in enumerate(row)) for row in body]
    rows = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<div class=card><table><tr>{head}</tr>{rows}</table></div>"
