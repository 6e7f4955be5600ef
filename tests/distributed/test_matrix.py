"""The table of docs/at-scale.md says what tests do."""

import ast
from pathlib import Path

import pytest
from distributed import matrix

TESTS = Path(__file__).resolve().parents[1]
CELLS = [
    (row, column, cell) for row, cells in matrix.ROWS.items() for column, cell in cells.items()
]


@pytest.mark.parametrize("row, column, cell", CELLS)
def test_each_cell_is_tested(row, column, cell):
    assert column in matrix.COLUMNS
    path, _, name = cell.partition("; ")[0].partition("::")
    names = {
        node.name
        for node in ast.walk(ast.parse((TESTS / path).read_text()))
        if isinstance(node, ast.FunctionDef)
    }
    assert name in names


def test_the_page_has_the_table():
    assert matrix.table() in matrix.DOCS.read_text(), "run tests/distributed/matrix.py --write"
