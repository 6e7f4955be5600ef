"""The pages of the site: their blocks of Python run, and the reference has every public name.

``make docs`` builds them, with warnings as errors, and checks every link: tools/check_site.py.
"""

import inspect
import re
import sys
from types import ModuleType

import pytest
import torch
from project import documents
from support import ROOT, bad_arguments
from torch import distributed as dist
from torch.distributed.fsdp._fully_shard import _fully_shard

import gankernels
from tools import check_site

sys.path.insert(0, str(ROOT / "docs" / "_ext"))

import homes

DOCS = ROOT / "docs"
PAGES = sorted([*DOCS.glob("*.md"), *DOCS.glob("api/*.rst")])
#: From here on tests/conformance/test_trainers.py trains with the lines of a page.
TRAINED = "<!-- from tests/conformance/trainers.py"
#: Starts a group of processes.
DISTRIBUTED = {"at-scale.md"}
#: What a block that compiles says.
COMPILES = "compile_step("
BLOCKS = [
    pytest.param(
        path.name,
        code,
        id=f"{path.stem}-{i}",
        marks=[pytest.mark.slow] if path.name in DISTRIBUTED or COMPILES in code else [],
    )
    for path in PAGES
    for i, code in enumerate(documents.blocks(path.read_text().partition(TRAINED)[0]))
]


@pytest.fixture
def one_process(tmp_path, monkeypatch):
    """A group of one, for what needs a group; other tests must not find a process that shards."""
    monkeypatch.setattr(_fully_shard, "cls_to_fsdp_cls", {})
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/init", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize("page, code", BLOCKS)
def test_block(page, code, request):
    if page in DISTRIBUTED:
        request.getfixturevalue("one_process")
    documents.run(code, documents.names(), page)
    torch._dynamo.reset()


def test_pages_have_blocks():
    assert {block.values[0] for block in BLOCKS} >= {"start.md", "migrate.md", "at-scale.md"}


def test_every_page_is_in_the_navigation():
    trees = [(DOCS / "index.md").read_text(), (DOCS / "api" / "index.rst").read_text()]
    listed = {re.sub(r".*<(.+)>", r"\1", line.strip()) for x in trees for line in x.splitlines()}
    missing = [path.stem for path in PAGES if path.stem != "index" and path.stem not in listed]
    assert missing == []


# --- the reference --------------------------------------------------------------------------------


def public_modules(module: ModuleType = gankernels) -> set[str]:
    """A module and those that it exports, and so on."""
    found = {module.__name__}
    for name in module.__all__:
        value = getattr(module, name)
        if isinstance(value, ModuleType):
            found |= public_modules(value)
    return found


def test_every_public_module_has_its_page():
    shown = re.findall(
        r"^\.\. public-names:: (\S+)", "".join(p.read_text() for p in PAGES), re.MULTILINE
    )
    assert sorted(shown) == sorted(homes.HOMES)
    # The two are no attributes of their packages: a program, and a module that a function hides.
    assert {*homes.HOMES} == {
        *public_modules(),
        "gankernels.dirac",
        "gankernels.nn.utils.spectral_norm",
    }


@pytest.mark.parametrize("module", homes.HOMES)
def test_public_names_have_docstrings(module):
    """The reference is made of them."""
    for name, value in homes.public(module).items():
        assert homes.home_of(module, name) in homes.HOMES
        if callable(value) and not getattr(value, "__module__", "").startswith("torch."):
            assert (value.__doc__ or "").strip(), f"{module}.{name}"


@pytest.mark.parametrize("name", sorted(bad_arguments.CALLS))
def test_callables_are_in_the_reference(name):
    """Those that the tests of bad arguments go through are all that users call."""
    names = {name for module in homes.HOMES for name in homes.public(module)}
    assert names & set(re.findall(r"\w+", name))


def test_arguments_in_docstrings_are_those_of_signatures():
    """Every entry of ``Args:`` is a parameter, wherever a function has both."""
    wrong = []
    for module in homes.HOMES:
        for name, value in homes.public(module).items():
            if not inspect.isroutine(value):
                continue
            parameters = set(inspect.signature(value).parameters)
            for entry in documented_arguments(inspect.getdoc(value) or ""):
                if entry not in parameters:
                    wrong.append(f"{module}.{name}: {entry}")
    assert wrong == []


def documented_arguments(text: str) -> list[str]:
    part = text.partition("\nArgs:\n")[2]
    part = re.split(r"\n(?=\S)", part)[0]
    part = re.sub(r",\n    (?=\S)", ", ", part)
    entries = re.findall(r"^    ((?:\*{0,2}\w+, )*\*{0,2}\w+):", part, re.MULTILINE)
    return [name.strip("* ") for entry in entries for name in entry.split(",")]


# --- the check of the site ------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setattr(check_site, "undocumented", lambda anchors: [])
    (tmp_path / "style.css").write_text("@import 'other.css'; a { background: url(a.png) }")
    (tmp_path / "a.html").write_text(
        '<h1 id="top"><a href="#top"></a><a href="b.html#end"></a><a href="https://x.org"></a>'
    )
    (tmp_path / "b.html").write_text('<link href="style.css"><p id="end"></p>')
    return tmp_path


def test_a_whole_site_passes(site):
    assert check_site.broken(site) == []


@pytest.mark.parametrize(
    "text, problem",
    [
        ('<a href="c.html">', "does not exist"),
        ('<a href="b.html#nowhere">', "no such anchor"),
        ('<a href="#nowhere">', "no such anchor"),
        ('<img src="c.png">', "does not exist"),
        ('<script src="https://cdn.org/x.js"></script>', "fetches"),
        ('<link href="//fonts.org/x.css">', "fetches"),
    ],
)
def test_faults_of_a_site_are_found(site, text, problem):
    (site / "a.html").write_text(text)
    (found,) = check_site.broken(site)
    assert problem in found


def test_styles_fetch_nothing(site):
    (site / "style.css").write_text("@import 'https://fonts.org/x.css';")
    (found,) = check_site.broken(site)
    assert "fetches" in found


def test_names_without_an_anchor_are_found():
    missing = check_site.undocumented(set())
    assert {"gankernels.r1_penalty", "gankernels.losses.hinge"} <= set(missing)
