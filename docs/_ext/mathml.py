"""Formulas as MathML, made when the site is built: browsers draw it by themselves, offline."""

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

logger = logging.getLogger(__name__)


def formula_of(node: nodes.Element, **options: str) -> str:
    """MathML; a warning, which is an error of ``make docs``, where a part was not understood."""
    formula: str = convert(node.astext(), **options)
    if ">&<" in formula or "\\" in formula:
        logger.warning("a formula that is not understood: %s", node.astext(), location=node)
    return formula


def visit_inline(self: HTML5Translator, node: nodes.math) -> None:
    self.body.append(formula_of(node))
    raise nodes.SkipNode


def visit_block(self: HTML5Translator, node: nodes.math_block) -> None:
    formula = formula_of(node, display="block")
    self.body.append(f'<div class="formula">{formula}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
