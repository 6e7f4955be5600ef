"""What the pages of both reports share: their look, and tables."""

from __future__ import annotations

from html import escape

CSS = """
body { font: 15px/1.55 system-ui, sans-serif; color: #20262e; background: #f6f7f9; margin: 0; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 24px 80px; }
h1 { font-size: 28px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 40px 0 8px; }
p { max-width: 78ch; } .dim { color: #66707d; }
.card { background: #fff; border: 1px solid #e3e7ec; border-radius: 10px; padding: 16px;
  overflow-x: auto; }
.card svg { max-width: 100%; height: auto; }
.tiles { display: flex; flex-wrap: wrap; gap: 12px; margin: 20px 0; }
.tile { background: #fff; border: 1px solid #e3e7ec; border-radius: 10px; padding: 12px 18px; }
.tile b { display: block; font-size: 24px; color: #1769c7; }
table { border-collapse: collapse; width: 100%; font-size: 13px; }
th, td { padding: 4px 10px; text-align: right; border-bottom: 1px solid #eef0f3;
  white-space: nowrap; }
th { color: #66707d; font-weight: 600; } th.l, td.l { text-align: left; }
.yes { color: #15803d; font-weight: 600; } .no { color: #c2410c; font-weight: 600; }
details summary { cursor: pointer; margin: 8px 0; }
"""


def table(header: list[str], body: list[list[str]], left: int) -> str:
    """A table whose first `left` columns are flush left; `body` is HTML already."""

    def cell(tag: str, column: int, text: str) -> str:
        return f"<{tag}{' class=l' if column < left else ''}>{text}</{tag}>"

    head = "".join(cell("th", i, escape(text)) for i, text in enumerate(header))
    lines = ["".join(cell("td", i, text) for i, text in enumerate(row)) for row in body]
    rows = "".join(f"<tr>{line}</tr>" for line in lines)
    return f"<div class=card><table><tr>{head}</tr>{rows}</table></div>"
