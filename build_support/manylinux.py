"""Has a linker make what runs on an older Linux: ``python -m build_support.manylinux DIR``.

A wheel of the tag manylinux_2_28 may ask the system for glibc 2.28 and the libstdc++ of its time.
Linked against newer ones, a library asks for newer versions of symbols that were there all along:
hypot of glibc 2.35, where 2.2.5 has one too. So DIR gets libraries of symbols without code, each in
its newest version of those that the tag allows; the flags that are printed, for LDFLAGS, have the
linker take these. What libstdc++ had not then comes from libstdc++.a, as the compilers of manylinux
do it. What glibc had not stays undefined, which tests/project/test_packaging.py looks for.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

#: The newest that the tag allows, as auditwheel has them. Versions of other names are internal.
NEWEST = {"GLIBC": (2, 28), "GLIBCXX": (3, 4, 24), "CXXABI": (1, 3, 11)}
#: glibc 2.34 moved these into libc; before, they were in libraries of their own.
MOVED = {
    "libpthread.so.0": r"_*pthread_\w+|sem_\w+",
    "libdl.so.2": r"dl(open|close|sym|error|addr1?|vsym|mopen|info)",
    "librt.so.1": r"(shm|timer|mq|aio|lio)_\w+",
}
#: Headers ask it since glibc 2.32 whether reference counts may do without atomics. They may not.
SINCE = 'char __libc_single_threaded __attribute__((visibility("hidden"))) = 0;\n'
#: Of the symbols' types, as readelf names them: the section, and the assembler's name.
PLACES = {
    "FUNC": ('.section .text,"ax"', "function"),
    "IFUNC": ('.section .text,"ax"', "function"),
    "OBJECT": ('.section .bss,"aw",%nobits', "object"),
    "TLS": ('.section .tbss,"awT",%nobits', "tls_object"),
}
DEFINED = re.compile(
    rf"^ *\d+: \w+ +(\d+) ({'|'.join(PLACES)}) +(?:GLOBAL|WEAK|UNIQUE) +DEFAULT +\d+"
    rf" (\w+)@@?({'|'.join(NEWEST)})_([\d.]+)$",
    re.MULTILINE,
)
#: A symbol is its size, its type, and its version.
Symbols = dict[str, tuple[int, str, str]]


def allowed(table: str) -> Symbols:
    """The symbols that ``readelf --dyn-syms --wide`` prints of a library, as the tag has them."""
    found: dict[str, tuple[tuple[int, ...], int, str, str]] = {}
    for size, kind, name, family, dotted in DEFINED.findall(table):
        version = tuple(map(int, dotted.split(".")))
        if version <= NEWEST[family] and version >= found.get(name, (version,))[0]:
            found[name] = (version, int(size), kind, f"{family}_{dotted}")
    return {name: symbol[1:] for name, symbol in found.items()}


def split(libc: Symbols) -> dict[str, Symbols]:
    """The symbols of libc by the libraries that had them in glibc 2.28."""
    parts: dict[str, Symbols] = {"libc.so.6": {}, **{library: {} for library in MOVED}}
    for name, symbol in libc.items():
        homes = [library for library, names in MOVED.items() if re.fullmatch(names, name)]
        parts[homes[0] if homes else "libc.so.6"][name] = symbol
    return parts


def write(folder: Path) -> list[str]:
    """Writes the libraries, and the linker's scripts that name them; returns the linker's flags."""
    compiler = os.environ.get("CC", "cc")
    folder.mkdir(parents=True, exist_ok=True)

    def found(name: str) -> Path:
        return Path(_run(compiler, f"-print-file-name={name}")).resolve()

    def symbols(name: str) -> Symbols:
        return allowed(_run("readelf", "--dyn-syms", "--wide", str(found(name))))

    (folder / "since.c").write_text(SINCE)
    _run(compiler, "-c", "-fPIC", str(folder / "since.c"), "-o", str(folder / "since.o"))
    _run("ar", "rcs", str(folder / "libsince.a"), str(folder / "since.o"))
    libraries = {"libm.so.6": symbols("libm.so.6"), "libstdc++.so.6": symbols("libstdc++.so.6")}
    libraries |= split(symbols("libc.so.6"))
    for soname, held in libraries.items():
        _link(compiler, folder, soname, held)
        name = soname.partition(".so")[0]
        also: list[str | Path] = []
        if name == "libc":
            (loader,) = re.findall(r"\S*/ld-linux\S*", found("libc.so").read_text())
            also = [folder / "libsince.a", found("libc_nonshared.a"), loader]
            also += [folder / library for library in MOVED]
        elif name == "libstdc++":
            also = [found("libstdc++.a")]
        files = " ".join(str(path) for path in [folder / soname, *also])
        (folder / f"{name}.so").write_text(f"GROUP ( AS_NEEDED ( {files} ) )\n")
    return [f"-L{folder}", "-Wl,--exclude-libs,libstdc++.a"]


def _link(compiler: str, folder: Path, soname: str, symbols: Symbols) -> None:
    versions = defaultdict(list)
    source = []
    for name, (size, kind, version) in sorted(symbols.items()):
        section, word = PLACES[kind]
        source += [section, f".globl {name}", f".type {name},%{word}", f".size {name},{size}"]
        source += [f"{name}:", f".zero {size if word != 'function' else 0}"]
        versions[version].append(name)
    assembler, script = folder / f"{soname}.s", folder / f"{soname}.map"
    assembler.write_text("\n".join(source) + "\n")
    nodes = [f"{version} {{ {'; '.join(names)}; }};\n" for version, names in versions.items()]
    script.write_text("".join(nodes))
    _run(
        *[
            compiler,
            "-shared",
            "-nostdlib",
            f"-Wl,-soname,{soname}",
            f"-Wl,--version-script={script}",
        ],
        *[str(assembler), "-o", str(folder / soname)],
    )


def _run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{command[0]} failed:\n{done.stderr}")
    return done.stdout.strip()


if __name__ == "__main__":
    glibc = tuple(map(int, platform.libc_ver()[1].split(".")))
    if glibc > NEWEST["GLIBC"]:  # else, as in the containers of manylinux, all is as it should be
        print(*write(Path(sys.argv[1]).resolve()))
