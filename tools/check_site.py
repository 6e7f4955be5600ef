"""Checks the site that `make docs` has built: ``python tools/check_site.py build/docs``.

Every link within it leads somewhere, to its anchor too; nothing is fetched from elsewhere to show a
page; every public name of the package has an anchor.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs" / "_ext")]

#: Attributes that make a browser fetch something by itself.
FETCHED = {
    ("script", "src"),
    ("img", "src"),
    ("link", "href"),
    ("iframe", "src"),
    ("source", "src"),
}


class Page(HTMLParser):
    """The anchors of a page and what it refers to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.anchors.add(value)
            elif (tag, name) in FETCHED and value:
                self.fetched.append(value)
            elif (tag, name) == ("a", "href") and value:
                self.links.append(value)


def broken(site: Path) -> list[str]:
    """What is wrong, a line each."""
    pages = {path: Page(path) for path in sorted(site.rglob("*.html"))}
    problems = []
    for path, page in pages.items():
        name = path.relative_to(site)
        for link in page.fetched + page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                if link in page.fetched and parts.scheme != "data":
                    problems.append(f"{name}: fetches {link}")
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            anchor = unquote(parts.fragment)
            if not target.exists():
                problems.append(f"{name}: {link} does not exist")
            elif anchor and target in pages and anchor not in pages[target].anchors:
                problems.append(f"{name}: {link}: no such anchor")
    for path in site.rglob("*.css"):
        for link in re.findall(
            r"url\(['\"]?(?!data:)([^'\")]+)|@import ['\"]([^'\"]+)", path.read_text()
        ):
            if urlsplit("".join(link)).netloc:
                problems.append(f"{path.relative_to(site)}: fetches {''.join(link)}")
    anchors = set().union(*(page.anchors for page in pages.values()))
    return problems + [f"{name}: not in the reference" for name in undocumented(anchors)]


def undocumented(anchors: set[str]) -> list[str]:
    from homes import HOMES, anchor_of, public

    names = [(module, name) for module in HOMES for name in public(module)]
    return [f"{m}.{name}" for m, name in names if anchor_of(m, name) not in anchors]


def main() -> int:
    site = Path(sys.argv[1]).resolve()
    if not (site / "index.html").exists():
        print(f"check_site: expected a site in {site}, got none; run make docs", file=sys.stderr)
        return 1
    problems = broken(site)
    print("\n".join(problems), end="\n" if problems else "")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
