"""Installs a wheel in an environment of its own and uses it: tools/try_wheel.py WHEEL [TORCH ...]

A TORCH is a version that pip installs, "newest", or "here", that of this interpreter, the default.
No compiler is on PATH, no GPU is visible, and the current folder is an empty one. What runs is the
self-test of `python -m gankernels.info` and what the README shows under "Use".
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

#: What the blocks of the README use and do not define.
BEFORE = """
import sys
import torch
from torch import nn
import gankernels
from gankernels import _library, losses
from gankernels.nn.utils.parametrizations import spectral_norm

assert gankernels.__file__.startswith(sys.prefix), gankernels.__file__
assert _library.EXTENSIONS["_C"].loaded, _library.EXTENSIONS["_C"]
torch.manual_seed(0)
discriminator = nn.Sequential(
    spectral_norm(nn.Conv2d(3, 8, 3, stride=2)), nn.SiLU(), nn.Flatten(), nn.Linear(392, 1)
)
real, fake = torch.randn(4, 3, 16, 16), torch.randn(4, 3, 16, 16)
d_loss = losses.hinge.discriminator
"""
AFTER = """
    loss.backward()
assert all(p.grad.isfinite().all() for p in discriminator.parameters())
assert not found, found
print("what the README shows runs under torch", torch.__version__)
"""


def program_of(readme: str) -> str:
    """A program of the README's blocks of Python; none may take the reference."""
    section = readme.partition("\n## Use\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    if len(blocks) < 3:
        raise ValueError(f"README.md: expected 3 blocks of Python under Use, got {len(blocks)}")
    lines = "".join(blocks).splitlines()
    body = "\n".join(f"    {line}" for line in ["", *lines])
    return f"{BEFORE}\nwith _library.fallbacks() as found:{body}{AFTER}"


def try_wheel(wheel: Path, version: str) -> None:
    """Installs the wheel beside this torch and uses both; whatever fails raises."""
    with tempfile.TemporaryDirectory(prefix="try-wheel-") as name:
        folder = Path(name)
        venv.create(folder / "venv", with_pip=True)
        python = folder / "venv" / "bin" / "python"
        install = [python, "-m", "pip", "--disable-pip-version-check", "install", "-q"]
        if version == "here":
            # Before torch is seen: beside it may be another gankernels.
            _run([*install, "--no-deps", wheel])
            (site,) = (folder / "venv" / "lib").glob("python*/site-packages")
            (found,) = importlib.util.find_spec("torch").submodule_search_locations
            (site / "torch.pth").write_text(f"{Path(found).parent}\n")
        else:
            _run([*install, "torch" if version == "newest" else f"torch=={version}", wheel])
        (folder / "empty").mkdir()
        environ = {
            "PATH": str(folder / "empty"),
            "HOME": str(folder),
            "CUDA_VISIBLE_DEVICES": "",
        }
        program = program_of((ROOT / "README.md").read_text())
        for arguments in (["-m", "gankernels.info"], ["-c", program]):
            _run([python, *arguments], cwd=folder / "empty", env=environ)


def _run(command: list, **keywords) -> None:
    done = subprocess.run([str(part) for part in command], **keywords)
    if done.returncode != 0:
        sys.exit(f"try_wheel: expected the exit status 0, got {done.returncode}: {command[:4]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("wheel", type=Path)
    parser.add_argument("torch", nargs="*", default=["here"])
    chosen = parser.parse_args()
    for version in chosen.torch:
        try_wheel(chosen.wheel.resolve(), version)


if __name__ == "__main__":
    main()
