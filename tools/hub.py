"""The layout of the Hugging Face kernels hub, of a wheel; and loads it as the hub's users do.

    DIR/build.toml                                             what kind of kernels these are
    DIR/build/torch-stable-abi211-<backend>-<machine>-linux/   the package, a folder a build
    DIR/README.md                                              the card

The hub gives every build a name of its own, so that several versions can live in one process. It is
that of the package, which its modules import each other by, and of the namespace of its operators:
in C++ compiled with ``-Dgankernels=NAME``. By torch's stable interface a folder serves torch 2.11
and later.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import tokenize
import venv
import zipfile
from pathlib import Path
from typing import Any

import torch

from gankernels._library import architectures

ROOT = Path(__file__).resolve().parent.parent
NAME = "gankernels"
SOURCE = "https://github.com/gankernels/gankernels"
LICENSE = "Apache-2.0"
VERSION = 1  # of the interface, as the hub counts: a new one where something goes
#: What a build is made of.
SOURCES = ("csrc/**/*", "gankernels/**/*.py", "setup.py")

Facts = dict[str, Any]


def unique_name(backend: str) -> str:
    """What the package and its operators are called on the hub: other sources, another name."""
    digest = hashlib.sha256()
    files = {path for pattern in SOURCES for path in ROOT.glob(pattern) if path.is_file()}
    for path in sorted(files):
        if path.name != "_build_info.py":
            digest.update(f"{path.relative_to(ROOT)}\0".encode() + path.read_bytes())
    return f"_{NAME}_{backend}_{digest.hexdigest()[:12]}"


def renamed(source: str, name: str) -> str:
    """A module with the package's name replaced, where it is a name and not words."""
    lines = source.splitlines(keepends=True)
    tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    for token in reversed(tokens):
        if token.type == tokenize.NAME and token.string == NAME:
            (row, begin), (_, end) = token.start, token.end
            lines[row - 1] = lines[row - 1][:begin] + name + lines[row - 1][end:]
    return "".join(lines)


def unpack(wheel: Path, name: str, folder: Path) -> Facts:
    """The package of a wheel in a folder, under its name; returns how it was compiled."""
    prefix = f"{NAME}/"
    with zipfile.ZipFile(wheel) as archive:
        for info in archive.infolist():
            if not info.filename.startswith(prefix) or info.is_dir():
                continue
            path = folder / info.filename.removeprefix(prefix)
            path.parent.mkdir(parents=True, exist_ok=True)
            content = archive.read(info)
            if path.suffix == ".py":
                content = renamed(content.decode(), name).encode()
            elif path.suffix == ".so" and name.encode() not in content:
                sys.exit(f"hub: expected {path.name} to be compiled with -Dgankernels={name}")
            path.write_bytes(content)
        (license_file,) = (n for n in archive.namelist() if n.endswith("licenses/LICENSE"))
        (folder / "LICENSE").write_bytes(archive.read(license_file))
    module = ast.parse((folder / "_build_info.py").read_text()).body[-1]
    assert isinstance(module, ast.Assign)
    facts: Facts = ast.literal_eval(module.value)
    return facts


def metadata(name: str, facts: Facts) -> Facts:
    """What the hub's loader reads of a build."""
    backend: Facts = {"type": "cpu"}
    if "arch_flags" in facts["cuda"]:
        backend = {"type": "cuda", "archs": architectures(facts["cuda"]["arch_flags"])}
    return {
        "id": name,
        "name": NAME,
        "version": VERSION,
        "license": LICENSE,
        "upstream": SOURCE,
        "python-depends": [],
        "backend": backend,
    }


def variant(facts: Facts) -> str:
    """The folder of a build, by which the loader knows whom it serves."""
    of = facts["cuda"]
    backend = "cu" + of["nvcc"].replace(".", "") if "arch_flags" in of else "cpu"
    abi = facts["torch_target"].replace(".", "")
    return f"torch-stable-abi{abi}-{backend}-{platform.machine()}-linux"


BUILD = f"""# Builds are made by `make hub` of the sources, {SOURCE}.
[general]
edition = 5
name = "{NAME}"
version = {VERSION}
license = "{LICENSE}"
backends = ["cpu", "cuda"]

[torch]
stable-abi = "2.11"
src = []
"""
CARD = f"""---
license: {LICENSE.lower()}
tags: [kernels]
---

# {NAME}

The stabilizers of GAN training as fused kernels: {SOURCE}.

```python
from kernels import get_kernel

{NAME} = get_kernel("{NAME}/{NAME}", version={VERSION})
penalty = {NAME}.r1_penalty(real_logits, real, gamma=10.0)
```
"""


def make(wheel: Path, folder: Path) -> Path:
    """Adds the build that is in a wheel; returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        cuda = any("/_C_cuda." in member for member in archive.namelist())
    new = folder / "new"
    shutil.rmtree(new, ignore_errors=True)
    name = unique_name("cuda" if cuda else "cpu")
    facts = unpack(wheel, name, new)
    (new / "metadata.json").write_text(json.dumps(metadata(name, facts), indent=2) + "\n")
    place = folder / "build" / variant(facts)
    shutil.rmtree(place, ignore_errors=True)
    place.parent.mkdir(exist_ok=True)
    new.rename(place)
    (folder / "build.toml").write_text(BUILD)
    (folder / "README.md").write_text(CARD)
    return place


#: Beside the package itself, in one process: both work, each by operators of its own.
PROGRAM = """
import importlib, sys
from pathlib import Path
import torch
from kernels import get_local_kernel
from kernels._rust import Build
import gankernels

Build.open(sys.argv[1])  # build.toml is as the hub's builder wants it
hub = get_local_kernel(Path(sys.argv[1]), backend="cpu")
info = importlib.import_module(hub.__name__ + ".info")
facts = info.collect()
print(hub.__name__, facts["extensions"]["_C"]["path"])
assert facts["healthy"], facts["missing"]
assert hub.r1_penalty is not gankernels.r1_penalty

def step(package):
    torch.manual_seed(0)
    critic = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.SiLU(), torch.nn.Linear(64, 1))
    for layer in (critic[0], critic[2]):
        package.nn.utils.parametrizations.spectral_norm(layer)
    package.fuse_spectral_norm(critic)
    real = torch.randn(8, 64, requires_grad=True)
    scores = critic(real)
    loss = package.losses.hinge.discriminator(scores, -scores)
    (loss + package.r1_penalty(scores, real, gamma=10.0)).backward()
    return [p.grad for p in critic.parameters()]

with hub._library.fallbacks() as found:
    assert all(map(torch.equal, step(hub), step(gankernels)))
assert not found, found
print("loaded beside gankernels, the same numbers")
"""


def use(folder: Path) -> None:
    """Loads a build by the package ``kernels``, in an environment of its own."""
    with tempfile.TemporaryDirectory(prefix="hub-") as name:
        place = Path(name)
        venv.create(place / "venv", with_pip=True)
        python = place / "venv" / "bin" / "python"
        pip = f"{python} -m pip --disable-pip-version-check install -q kernels"
        subprocess.run(pip.split(), check=True)
        path = os.pathsep.join(map(str, (ROOT, Path(torch.__file__).parent.parent)))
        environ = {"HOME": name, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""}
        subprocess.run(
            [python, "-c", PROGRAM, str(folder.resolve())], check=True, cwd=place, env=environ
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, dest="command")
    commands.add_parser("name", help="what a build is called").add_argument(
        "backend", choices=("cpu", "cuda")
    )
    making = commands.add_parser("make", help="add the build of a wheel")
    making.add_argument("wheel", type=Path)
    making.add_argument("folder", type=Path)
    commands.add_parser("use", help="load it").add_argument("folder", type=Path)
    chosen = parser.parse_args()
    if chosen.command == "name":
        print(unique_name(chosen.backend))
    elif chosen.command == "make":
        print(make(chosen.wheel, chosen.folder))
    else:
        use(chosen.folder)


if __name__ == "__main__":
    main()
