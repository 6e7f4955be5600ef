"""The executor of PTX itself, and the dialect of the kernels on it."""

import subprocess
from pathlib import Path

import pytest
from ptx import build, mutate_platform


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, fuse", [("selftest", False), ("selftest", True), ("platform", True)]
)
def test_program(name, fuse, tmp_path):
    """Instructions, faults that must be reported; every line of nvcc's branch of platform.h."""
    builder = build.Builder(tmp_path, fuse=fuse)
    builder.nvcc.append(f"-I{build.HERE}")
    objects = [task() for task in builder.kernels(build.HERE / f"{name}.cu")]
    build.run("g++", *objects, builder.runtime(), "-o", tmp_path / name)
    done = subprocess.run([tmp_path / name], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert " 0 failed" in done.stdout
    if name == "selftest":
        assert ("not contracted" not in done.stdout) == fuse


def test_every_line_of_the_dialect_has_a_mutant():
    assert mutate_platform.without_mutants() == []


def test_an_unknown_instruction_ends_the_translation(tmp_path):
    """Better than a guess at what it does."""
    ptx = Path(tmp_path, "a.ptx")
    lines = [".visible .entry a()", "{", ".reg .b32 %r<3>;", "lop3.b32 %r1, %r2, 1;", "}"]
    ptx.write_text("\n".join([*lines, ""]))
    with pytest.raises(
        build.translate.UnknownError, match=r"line 4: lop3.b32 %r1.*opcode lop3.b32"
    ):
        build.translate.translate(ptx, tmp_path / "a")
