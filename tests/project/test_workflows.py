"""The workflows call what there is, and only an approved job may publish."""

import re

import pytest
from support import ROOT

FOLDER = ROOT / ".github" / "workflows"
WORKFLOWS = sorted(FOLDER.glob("*.yml"))


def targets() -> set[str]:
    """Those of the Makefile."""
    text = (ROOT / "Makefile").read_text()
    return set(re.findall(r"^([a-z][\w-]*):(?!=)", text, re.MULTILINE))


def jobs(text: str) -> dict[str, str]:
    """The jobs of a workflow, by name."""
    parts = re.split(r"^  ([\w-]+):\n", text.partition("\njobs:\n")[2], flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_targets_exist(path):
    text = path.read_text()
    called = set(re.findall(r"run: make ([a-z][\w-]*)", text))
    (matrix,) = re.findall(r"^ +target:\n((?: +- .*\n)+)", text, re.MULTILINE) or [""]
    called |= set(re.findall(r"- ([a-z][\w-]*)", matrix))
    assert called <= targets()
    assert ("make ${{ matrix.target }}" in text) == bool(matrix)


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_actions_are_pinned(path):
    used = re.findall(r"uses: (\S+)", path.read_text())
    assert used
    unpinned = [action for action in used if not re.search(r"@(v\d+|release/v\d+)$", action)]
    assert unpinned == []


def test_only_an_approved_job_publishes():
    text = (FOLDER / "release.yml").read_text()
    found = jobs(text)
    assert found.keys() >= {"sdist", "wheel", "try", "draft", "publish"}
    assert "permissions:\n  contents: read\n" in text.partition("\njobs:\n")[0]
    for name, job in found.items():
        assert ("id-token: write" in job) == ("pypi-publish" in job) == (name == "publish")
        assert ("contents: write" in job) == (name == "draft")
    assert "environment: pypi" in found["publish"]
    assert "secrets." not in text


def test_wheels_are_for_every_architecture():
    """By default and as released, those that the kernels' machine code is looked at for."""
    from build_support import cuda_report
    from gankernels import _library

    (listed,) = re.findall(r'TORCH_CUDA_ARCH_LIST="(.*)"', (ROOT / "Makefile").read_text())
    (default,) = re.findall(r'WHEEL_ARCH_LIST = "(.*)"', (ROOT / "setup.py").read_text())
    assert listed == default == "7.5;8.0;8.6;9.0;10.0;12.0+PTX"
    flags = [f"code=sm_{arch.replace('.', '')}" for arch in re.findall(r"[\d.]+", listed)]
    for arch in [*cuda_report.ARCHITECTURES, "87", "89", "103", "121"]:
        assert _library.covers(flags, (int(arch[:-1]), int(arch[-1]))), arch
