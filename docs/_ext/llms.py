"""llms.txt at the root of the site: that of the repository, whose links lead to pages."""

import re
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.errors import ExtensionError

SOURCE = "https://github.com/gankernels/gankernels/blob/main/"


def on_site(text: str, pages: set[str]) -> str:
    """Links to files of docs/ as those of the site's pages, others to the repository."""

    def link(match: re.Match[str]) -> str:
        path = match[1]
        name = re.sub(r"^docs/", "", path).removesuffix(".md")
        if path == "examples/README.rst":
            name = "examples/index"
        if name in pages:
            return f"]({name}.html)"
        if path.startswith("docs/"):
            raise ExtensionError(f"llms.txt: expected a page of the site, got {path}")
        return f"]({SOURCE}{path})"

    return re.sub(r"\]\(([^):]+)\)", link, text)


def write(app: Sphinx, exception: Exception | None) -> None:
    if exception is None and app.builder.format == "html":
        text = (Path(app.srcdir).parent / "llms.txt").read_text()
        (Path(app.outdir) / "llms.txt").write_text(on_site(text, set(app.env.found_docs)))


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("build-finished", write)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
