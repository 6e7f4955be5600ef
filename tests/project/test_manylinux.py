"""What is linked with build_support.manylinux asks for nothing newer than the wheels' tag says."""

import ctypes
import os
import re
import shutil
import subprocess

import pytest

from build_support import manylinux

TABLE = """
   483: 0000000000012b90   121 FUNC    GLOBAL DEFAULT   17 hypot@GLIBC_2.2.5
   484: 0000000000027ae0   932 FUNC    GLOBAL DEFAULT   17 hypot@@GLIBC_2.35
   485: 0000000000027ae0   932 FUNC    GLOBAL DEFAULT   17 lgamma@@GLIBC_2.23
   486: 0000000000027ae0   932 FUNC    WEAK   DEFAULT   17 lgamma@GLIBC_2.2.5
   669: 00000000000f77e0    18 FUNC    WEAK   DEFAULT   16 stat@@GLIBC_2.33
   876: 0000000000000010     4 TLS     GLOBAL DEFAULT   24 errno@@GLIBC_PRIVATE
   877: 00000000001db320     8 OBJECT  WEAK   DEFAULT   34 environ@@GLIBC_2.2.5
   878: 0000000000000000     0 FUNC    GLOBAL DEFAULT  UND free@GLIBC_2.2.5 (2)
  1434: 0000000000089380  3821 FUNC    GLOBAL DEFAULT   16 pthread_create@@GLIBC_2.34
  1435: 0000000000089380  3821 FUNC    GLOBAL DEFAULT   16 pthread_create@GLIBC_2.2.5
  2075: 00000000000855b0   185 FUNC    GLOBAL DEFAULT   16 dlsym@GLIBC_2.2.5
"""

#: Each of these asks for something newer where there is such: hypot for glibc 2.35, exp2 for 2.29,
#: dlsym and pthread_create for 2.34, a shared pointer's count for 2.32, streams for GLIBCXX_3.4.29.
SOURCE = """
#include <cmath>
#include <dlfcn.h>
#include <memory>
#include <pthread.h>
#include <sstream>
#include <stdexcept>
#include <string>

static void* nothing(void* given) { return given; }

extern "C" double use(double a, double b) {
  std::ostringstream text;
  text << std::hypot(a, b) << " " << std::exp2(a);
  auto shared = std::make_shared<std::string>(text.str());
  auto again = shared;
  pthread_t thread;
  if (dlsym(RTLD_DEFAULT, "malloc") == nullptr) return -1;
  if (pthread_create(&thread, nullptr, nothing, nullptr) != 0) return -2;
  pthread_join(thread, nullptr);
  try {
    throw std::runtime_error(std::move(text).str());
  } catch (const std::exception& error) {
    return *again == error.what() ? std::stod(*again) : -3;
  }
}
"""


def test_newest_version_that_is_allowed():
    found = manylinux.allowed(TABLE)
    assert found == {
        "hypot": (121, "FUNC", "GLIBC_2.2.5"),
        "lgamma": (932, "FUNC", "GLIBC_2.23"),
        "environ": (8, "OBJECT", "GLIBC_2.2.5"),
        "pthread_create": (3821, "FUNC", "GLIBC_2.2.5"),
        "dlsym": (185, "FUNC", "GLIBC_2.2.5"),
    }
    parts = {library: set(symbols) for library, symbols in manylinux.split(found).items()}
    assert parts["libpthread.so.0"] == {"pthread_create"}
    assert parts["libdl.so.2"] == {"dlsym"}
    assert parts["librt.so.1"] == set()


@pytest.mark.slow
def test_library_asks_for_nothing_newer(tmp_path):
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None or shutil.which("readelf") is None:
        pytest.skip("a compiler or readelf (binutils) is not installed")
    flags = manylinux.write(tmp_path / "libraries")
    (tmp_path / "use.cpp").write_text(SOURCE)
    library = tmp_path / "libuse.so"
    subprocess.run(
        [
            *[compiler, "-std=c++20", "-O2", "-fPIC", "-shared", "-Wl,-z,defs"],
            *[tmp_path / "use.cpp", *flags, "-o", library],
        ],
        check=True,
    )
    assert newer(library) == []
    use = ctypes.CDLL(str(library)).use
    use.argtypes, use.restype = [ctypes.c_double, ctypes.c_double], ctypes.c_double
    assert use(3.0, 4.0) == 5.0


def newer(library) -> list[str]:
    """The versions of symbols that a library asks for and the tag does not allow."""
    listed = subprocess.run(
        ["readelf", "--version-info", "--wide", library], capture_output=True, text=True, check=True
    ).stdout
    asked = re.findall(r"Name: (\w+)_([\d.]+) ", listed)
    assert asked
    return [
        f"{family}_{version}"
        for family, version in asked
        if family in manylinux.NEWEST
        and tuple(map(int, version.split("."))) > manylinux.NEWEST[family]
    ]
