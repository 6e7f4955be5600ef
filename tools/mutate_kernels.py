"""Breaks the CUDA kernels in one place at a time and sees whether an emulated test fails.

    python tools/mutate_kernels.py [--list] [--only N ...] [--timeout SECONDS]

It removes every barrier and every fence, relaxes every bounds check, and breaks a few other lines
of the kernels and of what they share, in copies of the sources in a temporary folder. Each mutation
is compiled and tested, two at a time, in some 40 minutes altogether. Prints which test killed it,
and with what. The exit status is 1 if one survived that is not known to change nothing
(``equivalent``, the reason), if one of those was killed, or if one is not C++.

``tests/mutants/<stem>.toml`` has the mutations of an operator: its ``files``; the ``program`` of
tests/cpp that tests them, or the ``tests`` as arguments of pytest, below a minute where nothing is
broken, those that find most first; and for each mutant its ``name``, ``file``, ``text`` and what
that ``becomes``. The text must occur exactly once, but for white space, which is the formatter's:
where the kernels have changed, the script says which mutant has to follow.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Queue

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # pytest needs it, too

ROOT = Path(__file__).resolve().parent.parent
MUTANTS = ROOT / "tests" / "mutants"
WORKERS = 2

#: Every file has them removed, wherever they are.
REMOVED = ("sync_threads();", "fence();")


@dataclass(frozen=True)
class Mutation:
    name: str
    file: str
    begin: int  # of what is replaced, in the file's text
    end: int
    replacement: str
    program: str | None  # that tests it, of tests/cpp
    tests: tuple[str, ...]  # without one: arguments of pytest
    equivalent: str | None = None  # why no test can tell

    def apply(self, text: str) -> str:
        return text[: self.begin] + self.replacement + text[self.end :]


def function_at(text: str, position: int) -> str:
    """The function or class that a position is in: the last declared before, at a line's begin."""
    declared = r"^(?:DEVICE [\w:<> ]+? )?(\w+)\((?:const\b|TABLE|T\b|int\*)|^struct (\w+) {"
    return "".join(re.findall(declared, text[:position], re.MULTILINE)[-1])


def pattern_of(code: str) -> str:
    """A regular expression of this code with any white space between its tokens."""
    tokens = re.findall(r"\w+|[^\w\s]", code)
    pattern = ""
    for before, token in zip(["", *tokens], tokens, strict=False):
        words = before[-1:].isidentifier() and token[0].isidentifier()
        pattern += (r"\s+" if words else r"\s*" if before else "") + re.escape(token)
    return rf"(?<!\w){pattern}" + (r"(?!\w)" if tokens[-1][-1].isalnum() else "")


def find_mutations(root: Path) -> list[Mutation]:
    found = []
    for path in sorted(MUTANTS.glob("*.toml")):
        table = tomllib.loads(path.read_text())
        program, tests = table.get("program"), tuple(table.get("tests", ()))
        texts = {file: (root / file).read_text() for file in table["files"]}
        for removed in REMOVED:
            for file, text in texts.items():
                for match in re.finditer(rf"\b{re.escape(removed)}", text):
                    line = text.count("\n", 0, match.start()) + 1
                    where = f"{function_at(text, match.start())}: no {removed[:-1]} at line {line}"
                    found.append(Mutation(where, file, *match.span(), ";", program, tests))
        for mutant in table["mutants"]:
            file = mutant.get("file", table["files"][0])
            places = list(re.finditer(pattern_of(mutant["text"]), texts[file]))
            if len(places) != 1:
                sys.exit(
                    f"{path.name}, {mutant['name']!r}: expected once, in {file}, not {len(places)} "
                    f"times:\n{mutant['text']}"
                )
            place = places[0].span()
            found.append(
                Mutation(
                    mutant["name"],
                    file,
                    *place,
                    mutant["becomes"],
                    program,
                    tests,
                    mutant.get("equivalent"),
                )
            )
    return found


class Copy:
    """What is needed to build and test, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        ignored = shutil.ignore_patterns("__pycache__", "results")
        for name in ("csrc", "tests", "gankernels"):
            shutil.copytree(ROOT / name, folder / name, ignore=ignored)
        for name in ("CMakeLists.txt", "pyproject.toml"):
            shutil.copy(ROOT / name, folder / name)

    def run(self, *command: str, timeout: float | None = None) -> subprocess.CompletedProcess[str]:
        tools = str(Path(sys.executable).parent)  # cmake, where it is installed next to Python
        environment = {
            **os.environ,
            "PATH": f"{tools}:{os.environ['PATH']}",
            "GANKERNELS_EMU": str(self.folder / "build/emu"),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "1000",
        }
        return subprocess.run(
            command,
            cwd=self.folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )

    def configure(self) -> None:
        options = (
            "-DGANKERNELS_EMU_MODULE=ON",
            f"-DPython_EXECUTABLE={sys.executable}",
            "-DCMAKE_CXX_FLAGS_RELWITHDEBINFO=-O1",  # half the time of the default
        )
        done = self.run("cmake", "-S", ".", "-B", "build/emu", *options)
        if done.returncode:
            sys.exit(done.stdout)

    def build(self, program: str | None) -> str | None:
        """What the compiler said, if it refused."""
        target = program or "gankernels_emu"
        done = self.run("cmake", "--build", "build/emu", "--target", target)
        return done.stdout if done.returncode else None

    def test(self, program: str | None, tests: tuple[str, ...], timeout: float) -> str | None:
        """The first test that failed and its error, or None."""
        if program:
            return self.test_program(program, timeout)
        options = ("-x", "-q", "--tb=short", "-p", "no:cacheprovider")
        try:
            done = self.run(sys.executable, "-m", "pytest", *options, *tests, timeout=timeout)
        except subprocess.TimeoutExpired:
            return f"does not end within {timeout:.0f} s"
        if done.returncode == 0:
            return None
        failed = re.search(r"^(?:FAILED|ERROR) (?:tests/)?(.*)", done.stdout, re.MULTILINE)
        if not failed:
            return f"exit {done.returncode}: {done.stdout[-300:]}"
        return re.sub(r"RuntimeError: check_status, \S+, ", "", failed[1])

    def test_program(self, program: str, timeout: float) -> str | None:
        try:
            done = self.run(f"build/emu/{program}", timeout=timeout)
        except subprocess.TimeoutExpired:
            return f"does not end within {timeout:.0f} s"
        if done.returncode == 0:
            return None
        return f"{program}: {done.stdout.partition(chr(10))[0] or f'exit {done.returncode}'}"

    def try_out(self, mutation: Mutation, timeout: float) -> str | None:
        """What killed it, or None."""
        file = self.folder / mutation.file
        text = file.read_text()
        file.write_text(mutation.apply(text))
        try:
            if refused := self.build(mutation.program):
                return f"NOT C++\n{refused}"
            return self.test(mutation.program, mutation.tests, timeout)
        finally:
            file.write_text(text)


def copies(
    folder: Path, targets: set[tuple[str | None, tuple[str, ...]]], timeout: float
) -> Iterator[Copy]:
    """Built copies, in which nothing fails yet."""
    found = [Copy(folder / f"copy{i}") for i in range(WORKERS)]

    def prepare(copy: Copy) -> str | None:
        copy.configure()
        for program, tests in targets:
            if failed := copy.build(program) or copy.test(program, tests, timeout):
                return failed
        return None

    with ThreadPoolExecutor(WORKERS) as pool:
        for copy, failed in zip(found, pool.map(prepare, found), strict=True):
            if failed:
                sys.exit(f"without a mutation: {failed}")
            yield copy


def judge(mutation: Mutation, killed: str | None) -> tuple[bool, str]:
    """Whether it is as it should be, and a line that says so."""
    reason = mutation.equivalent
    if killed is None:
        return reason is not None, f"equivalent: {reason}" if reason else "SURVIVED"
    if killed.startswith("NOT C++"):
        return False, killed
    return reason is None, killed if reason is None else f"NOT EQUIVALENT: {killed}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--list", action="store_true", help="print the mutations and end")
    parser.add_argument("--only", type=int, nargs="+", metavar="N", help="those of these numbers")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for the tests of one")
    args = parser.parse_args()

    mutations = find_mutations(ROOT)
    chosen = [(i, m) for i, m in enumerate(mutations) if args.only is None or i in args.only]
    if args.list:
        for i, mutation in chosen:
            print(f"{i:3}  {mutation.name}")
        return 0

    with tempfile.TemporaryDirectory(prefix="mutate_kernels") as folder:
        free: Queue[Copy] = Queue()
        targets = {(mutation.program, mutation.tests) for _, mutation in chosen}
        for copy in copies(Path(folder), targets, args.timeout):
            free.put(copy)
        print("without a mutation: all passed", flush=True)

        def run(numbered: tuple[int, Mutation]) -> bool:
            number, mutation = numbered
            copy = free.get()
            good, said = judge(mutation, copy.try_out(mutation, args.timeout))
            free.put(copy)
            print(f"{number:3}  {mutation.name:48}  {said}", flush=True)
            return good

        with ThreadPoolExecutor(WORKERS) as pool:
            good = list(pool.map(run, chosen))
    print(f"{good.count(True)} of {len(good)} as they should be")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
