"""The C++ fuzzers draw sizes around every constant of the CPU kernels: none is forgotten."""

import re

from support import ROOT

SOURCES = [*(ROOT / "csrc/cpu").rglob("*.*"), *(ROOT / "csrc").glob("*.h")]
#: Constants that no size of an input meets.
NO_SIZES = {
    *("kPatience", "kSums", "kGroups", "kBands", "kHalfBandUnit", "kHalfBandReach"),
    *("kMemory", "kLeastBound"),
}


def number(expression: str) -> int:
    assert re.fullmatch(r"[\d\s<*()]+", expression), expression
    return int(eval(expression))


def constants() -> set[tuple[str, str, int]]:
    """(file, name, value) of all constants that are a plain number."""
    found = set()
    for path in SOURCES:
        for line in re.findall(r"constexpr (?:int|int64_t|size_t) (k[^;]*);", path.read_text()):
            for name, value in re.findall(r"(k\w+) = ([\d\s<*()]+)(?:,|$)", line):
                found.add((path.name, name, number(value)))
    return {c for c in found if c[1] not in NO_SIZES}


def listed() -> set[tuple[str, str, int]]:
    text = (ROOT / "tests/cpp/fuzz_sizes.h").read_text()
    rows = re.findall(r'\{"([\w.]+)", "(\w+)", ([^,]+), Of::', text)
    return {(file, name, number(value)) for file, name, value in rows}


def test_the_fuzzers_know_every_constant():
    assert len(constants()) > 20
    missing = constants() - listed()
    assert not missing, f"new or changed in csrc/: put them into tests/cpp/fuzz_sizes.h: {missing}"


def test_the_fuzzers_know_no_constant_that_is_gone():
    gone = listed() - constants()
    assert not gone, f"not in csrc/ any more: take them out of tests/cpp/fuzz_sizes.h: {gone}"
