"""The table of docs/support.md says what happens."""

import pytest
from project import precision


@pytest.mark.slow
def test_the_page_has_the_table():
    assert precision.table() in precision.DOCS.read_text(), "tests/project/precision.py --write"


@pytest.mark.parametrize("op", ["gradient_penalty", "spectral_normalize", "weight_norm"])
def test_a_row_is_what_happens(op):
    """Of those that take no time."""
    assert f"| `{op}` | {' | '.join(precision.row(op))} |" in precision.DOCS.read_text()
