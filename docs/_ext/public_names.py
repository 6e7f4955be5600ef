"""The reference of a module: its docstring, then every name of its ``__all__``.

``.. public-names:: gankernels.losses``. A name that another page of the reference has already, such
as ``gankernels.gradient_penalty``, is listed with a link. ``:as: gankernels`` documents the names
as those of that module, from which users take them.
"""

import builtins
import importlib
import inspect
import re
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from docutils.statemachine import StringList
from homes import anchor_of, home_of, public
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

logger = logging.getLogger(__name__)

#: Stars of arguments, and not of emphasis, or of a product.
STARS = re.compile(r"(?<![\w`*\\])\*{1,2}(?=[A-Za-z_]\w*(?![\w*]))")


def entry(module: str, shown_as: str, name: str, value: Any) -> list[str]:
    """The directive that documents one name."""
    # With colons: nn.utils.spectral_norm is a module and a function.
    path = f"{shown_as}::{name}"
    if inspect.isclass(value):
        return [f".. autoclass:: {path}", "   :members:", ""]
    if callable(value) and hasattr(value, "__name__"):
        return [f".. autofunction:: {path}", ""]
    if hasattr(value, "discriminator"):  # a loss: an object with methods
        members = [x for x in ("discriminator", "real", "fake", "generator") if hasattr(value, x)]
        text = inspect.cleandoc(type(value).__doc__ or "").splitlines()
        lines = [f".. py:data:: {name}", f"   :module: {shown_as}", "", *("   " + x for x in text)]
        for member in members:
            method = getattr(type(value), member)
            parameters = list(inspect.signature(method).parameters.values())[1:]
            signature = inspect.Signature(
                [p.replace(annotation=inspect.Parameter.empty) for p in parameters]
            )
            lines += ["", f"   .. py:method:: {name}.{member}{signature}", ""]
            lines += [f"   {x}" for x in loss_docstring(method)]
        return [*lines, ""]
    comment = comment_of(module, name)
    return [
        f".. py:data:: {name}",
        f"   :module: {shown_as}",
        "",
        *("   " + x for x in comment),
        "",
    ]


def comment_of(module: str, name: str) -> list[str]:
    """What ``#:`` above a constant says, in whichever file of the module it is."""
    folder = Path(importlib.import_module(module).__file__ or "")
    files = folder.parent.glob("*.py") if folder.name == "__init__.py" else [folder]
    for file in sorted(files):
        found = ModuleAnalyzer.for_file(file, file.stem).find_attr_docs()
        if ("", name) in found:
            return found["", name]
    raise ExtensionError(f"{module}.{name}: expected a comment with #: above it")


def loss_docstring(method: Any) -> list[str]:
    text = for_napoleon(inspect.cleandoc(method.__doc__ or "").splitlines())
    return [
        "   " + x
        for x in GoogleDocstring("\n".join(text), Config(napoleon_use_param=False)).lines()
    ]


def for_napoleon(lines: list[str]) -> list[str]:
    """A docstring as napoleon and reST want it: names that share a description in one line, stars
    of ``*args`` escaped. Literal blocks stay what they are.
    """
    joined: list[str] = []
    literal: int | None = None  # the indentation of the line that announced one
    for line in lines:
        indentation = len(line) - len(line.lstrip())
        if literal is not None and line.strip() and indentation <= literal:
            literal = None
        if literal is not None:
            joined.append(line)
            continue
        if line.rstrip().endswith("::"):
            literal = indentation
        goes_on = joined and re.fullmatch(r" *(\*{0,2}\w+, )*\*{0,2}\w+,", joined[-1])
        if goes_on and re.match(r" *(\*{0,2}\w+, )*\*{0,2}\w+:", line):
            joined[-1] += " " + line.strip()
        else:
            joined.append(line)
    return [escape_stars(line) for line in joined]


def escape_stars(line: str) -> str:
    """Stars of arguments, outside of literals."""
    parts = line.split("``")
    parts[::2] = [STARS.sub(lambda m: "\\*" * len(m[0]), part) for part in parts[::2]]
    return "``".join(parts)


class PublicNames(SphinxDirective):
    required_arguments = 1
    option_spec: ClassVar = {"as": directives.unchanged}

    def run(self) -> list[nodes.Node]:
        module = self.arguments[0]
        shown_as = self.options.get("as", module)
        here, elsewhere = [], []
        for name, value in public(module).items():
            if home_of(module, name) == module:
                here.append((name, value))
            else:
                elsewhere.append(f":py:obj:`{name} <{anchor_of(module, name)}>`")
        lines = [f".. py:module:: {module}", "", *docstring(module), ""]
        if "." in module and inspect.isfunction(import_object(module)):  # it shadows the module
            lines.insert(1, "   :no-index:")
        if elsewhere:
            lines += [f"Also here, from their own pages: {', '.join(elsewhere)}.", ""]
        for name, value in here:
            lines += entry(module, shown_as, name, value)
        text = StringList(lines, source=f"public-names:{module}")
        container = nodes.Element()
        self.state.nested_parse(text, 0, container, match_titles=1)
        return container.children


def docstring(module: str) -> list[str]:
    return inspect.cleandoc(importlib.import_module(module).__doc__ or "").splitlines()


def import_object(path: str) -> Any:
    package, _, name = path.rpartition(".")
    return getattr(importlib.import_module(package), name)


def resolve(app: Sphinx, env: Any, node: Any, contnode: nodes.Node) -> nodes.Node | None:
    """A reference by a short name, as docstrings have them: to the public object of that name."""
    if node.get("refdomain") != "py":
        return None
    target = node["reftarget"].removeprefix("gankernels.penalties.")
    module, _, name = target.rpartition(".")
    if module == "gankernels" and name in public(module):  # of another page
        target = anchor_of(module, name)
    found = [x for x in env.domains["py"].objects.items() if f".{x[0]}".endswith(f".{target}")]
    found = [(name, entry) for name, entry in found if not entry.aliased]
    if not found:
        # Not the types of attributes, which no docstring mentions.
        written = "._" not in target and node["reftype"] in ("func", "class", "meth", "mod", "attr")
        if written and not target.startswith("torch.") and not hasattr(builtins, target):
            logger.warning("no public name %r", target, location=node)
        return None
    name, entry = min(found, key=lambda x: len(x[0]))
    return make_refnode(
        app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, title=name
    )


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_directive("public-names", PublicNames)
    app.connect("missing-reference", resolve)
    # Before and after napoleon's 500.
    app.connect("autodoc-process-docstring", _prepare, priority=100)
    app.connect("autodoc-process-docstring", _restore, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


#: Comments of attributes, which are no docstrings to napoleon: it would take "this: that" apart.
_comments: dict[str, list[str]] = {}


def _prepare(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = for_napoleon(lines)
    if what in ("attribute", "data"):
        _comments[name] = list(lines)


def _restore(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    if what in ("attribute", "data"):
        lines[:] = _comments.pop(name)
