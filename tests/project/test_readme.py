"""What the README and the table of papers show can be run: every line, and the blocks of Python."""

import re

import pytest
import torch
from project import documents
from support import ROOT

import gankernels
from gankernels import losses
from tools import try_wheel

README = (ROOT / "README.md").read_text()
TABLE = (ROOT / "docs" / "papers.md").read_text().partition("\n\nThings that go wrong")[0]
ROWS = [line for line in TABLE.splitlines() if line.startswith("| ") and line.count("|") == 3]
#: What is code to run, not a fragment of it.
CODE = re.compile(r"`((?:gk|losses|regularizers|turned|Adam|latent)\b[^`]*)`")
SHOWN = [code for row in ROWS for code in CODE.findall(row.split("|")[2])]


@pytest.fixture
def names():
    return documents.names()


def test_the_table_was_found():
    assert len(ROWS) >= 35
    assert len(SHOWN) >= 35


@pytest.mark.parametrize("code", SHOWN)
def test_line(names, code):
    if "gk.fuse_spectral_norm" in code or "gk.spectral_norms(D)" in code:
        gankernels.nn.utils.parametrizations.spectral_norm(names["D"].layers[0])
    exec(f"found = {code}", names)
    if isinstance(names["found"], torch.Tensor):
        assert names["found"].isfinite().all()


@pytest.mark.parametrize("code", documents.blocks(README))
def test_block(names, code):
    names["d_loss"] = losses.hinge.discriminator
    documents.run(code, names, "README.md")


def test_the_program_that_tries_a_wheel():
    """But for where it is installed."""
    lines = try_wheel.program_of(README).splitlines()
    program = "\n".join(line for line in lines if "sys.prefix" not in line)
    exec(compile(program, "README.md", "exec"), {})


@pytest.mark.parametrize("name", ["minimax", "hinge", "relativistic"])
def test_penalize(names, name):
    (block,) = [b for b in documents.blocks(README) if "r1_penalty" in b]
    names |= {"d_loss": getattr(losses, name).discriminator, "real": names["real"].detach()}
    documents.run(block, names, "README.md")
    names["loss"].backward()
    assert all(p.grad.isfinite().all() for p in names["discriminator"].parameters())


def test_augment(names):
    page = (ROOT / "docs" / "augmentation.md").read_text()
    (first,) = [b for b in documents.blocks(README) if "ADAPipe" in b]
    documents.run(first, names, "README.md")
    (second,) = documents.blocks(page)
    documents.run(second, names, "docs/augmentation.md")
    assert names["controller"].p is not names["pipe"].p
    assert names["augmented"].shape == names["views"].shape == names["real"].shape
    assert names["masks"].unique().tolist() == [1]
    assert names["pipe"].p == torch.tensor(0.3)
