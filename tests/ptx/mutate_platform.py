"""Breaks nvcc's branch of csrc/common/platform.h a line at a time.

``python tests/ptx/mutate_platform.py``: platform.cu says what every line must do; nvcc compiles it
with a header that has one mutation, for sm_90 and, for what older GPUs do instead, sm_75, and the
executor runs it. A mutation is killed where the program fails, or where the PTX lacks what PTX
demands. The exit status is 1 where one survives.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from ptx import build, translate  # noqa: E402

HEADER = ROOT / "csrc/common/platform.h"
SOURCE = Path(__file__).with_name("platform.cu")
ARCHITECTURES = ("90", "75")

#: A line of the header, the n-th where it occurs several times, and what it becomes.
MUTANTS: list[tuple[str, str] | tuple[str, str, int]] = [
    ("__launch_bounds__(threads, blocks)", "__launch_bounds__(threads)"),
    ("__launch_bounds__(threads, blocks)", "__launch_bounds__(2 * threads, blocks)"),
    ("KERNEL_FOR(threads, 3)", "KERNEL_FOR(threads, 1)"),
    ("#define PRAGMA(text) _Pragma(#text)", "#define PRAGMA(text)"),
    ("PRAGMA(unroll n)", "PRAGMA(unroll)"),
    ("__shared__ __align__(32) T name[n]", "__shared__ T name[n]"),
    ("threadIdx.x", "threadIdx.y"),
    ("blockIdx.x", "blockIdx.y"),
    ("return *p;", "return p[1];"),
    ("return *reinterpret_cast<const Vector<T, N>*>(p);", "return {*p};", 1),
    ("return *reinterpret_cast<const Vector<T, N>*>(p);", "return {*p};", 2),
    ("*p = x;", ""),
    ("sizeof(x) == 16", "sizeof(x) >= 16"),
    (
        "__stwb(reinterpret_cast<uint4*>(p), *reinterpret_cast<const uint4*>(&x));",
        "*p = x.at[0];",
    ),
    ("*reinterpret_cast<Vector<T, N>*>(p) = x;", "*p = x.at[0];", 1),
    ("*reinterpret_cast<Vector<T, N>*>(p) = x;", "*p = x.at[0];", 2),
    ("return reinterpret_cast<U*>(p);", "return reinterpret_cast<U*>(p) + 1;"),
    ('asm volatile("cp.async.ca.shared.global [%0], [%1], %2;"', 'asm volatile("// %0 %1 %2"'),
    ("__cvta_generic_to_shared(to)", "__cvta_generic_to_shared(to + 1)"),
    ('"l"(from)', '"l"(from + 1)'),
    ('"n"(sizeof(T))', '"n"(4)'),
    ("*to = *from;", ""),
    ('asm volatile("cp.async.wait_all;" ::: "memory");', ""),
    ("__CUDA_ARCH__ >= 800", "__CUDA_ARCH__ < 800", 1),
    ("__CUDA_ARCH__ >= 800", "__CUDA_ARCH__ < 800", 2),
    ("__syncthreads();", ""),
    ("__shfl_xor_sync(0xffffffffu, x, lanes)", "__shfl_xor_sync(0xffffu, x, lanes)"),
    ("__shfl_xor_sync(0xffffffffu, x, lanes)", "__shfl_xor_sync(0xffffffffu, x, lanes, 16 - 12)"),
    ("__threadfence();", ""),
    ("__threadfence();", "__threadfence_block();"),
    ("return atomicAdd(p, x);", "return atomicExch(p, x);"),
    ("static_cast<unsigned long long>(x)));", "static_cast<unsigned>(x)));"),
    ("return atomicOr(p, x);", "return atomicXor(p, x + x);"),
    ("return atomicMax(p, x);", "return atomicMin(p, x);"),
    ("return __mulhi(a, b);", "return static_cast<int>(__umulhi(a, b));"),
    ("return __float2int_rn(x);", "return __float2int_rz(x);"),
    ("return __float2int_rn(x);", "return __float2int_ru(x);"),
    ("return __double2ll_rn(x);", "return __double2ll_rz(x);"),
    ("return __double2ll_rn(x);", "return __double2int_rn(x);"),
    ("DEVICE float widen(float x) {\n  return x;", "DEVICE float widen(float x) {\n  return -x;"),
    (
        "DEVICE double widen(double x) {\n  return x;",
        "DEVICE double widen(double x) {\n  return -x;",
    ),
    ("__half2float(__ushort_as_half(x.bits))", "float(x.bits)"),
    ("__bfloat162float(__ushort_as_bfloat16(x.bits))", "float(x.bits)"),
    (
        "DEVICE T narrow(Accumulation<T> x) {\n  return x;",
        "DEVICE T narrow(Accumulation<T> x) {\n  return -x;",
    ),
    ("__float2half_rn(x)", "__float2half_rz(x)"),
    ("__float2half_rn(x)", "__float2half_ru(x)"),
    ("__float2bfloat16_rn(x)", "__float2bfloat16_rz(x)"),
    ("__float2bfloat16_rn(x)", "__float2bfloat16_ru(x)"),
    ("const cudaError_t error = cudaGetLastError();", "const cudaError_t error = cudaSuccess;"),
    (
        "const cudaError_t error = cudaGetLastError();",
        "const cudaError_t error = cudaPeekAtLastError();",
    ),
    ("error == cudaSuccess ? nullptr", "error != cudaSuccess ? nullptr"),
    ("cudaGetErrorString(error)", "nullptr"),
    ('if (blocks > INT32_MAX) return "too many blocks for one launch";', ""),
    ("kernel<<<static_cast<unsigned>(blocks), threads, 0,", "kernel<<<1, threads, 0,"),
    (
        "kernel<<<static_cast<unsigned>(blocks), threads, 0,",
        "kernel<<<static_cast<unsigned>(blocks), 32, 0,",
    ),
    ("static_cast<cudaStream_t>(stream)>>>(", "nullptr>>>("),
    ("return status();", "return nullptr;", 1),
    ("return status();", "return nullptr;", 2),
    ("(void)cudaMemsetAsync(p, 0, bytes,", "(void)cudaMemsetAsync(p, 1, bytes,"),
    ("(void)cudaMemsetAsync(p, 0, bytes,", "(void)cudaMemsetAsync(p, 0, bytes / 2,"),
    ("bytes, static_cast<cudaStream_t>(stream));", "bytes, nullptr);"),
]

#: Lines that no program can tell from their mutants, or that say nothing by themselves.
EXEMPT = {
    r"#(include|if|else|endif).*": "asks who compiles",
    r"#define DEVICE .*": "all functions are inlined with it and without",
    r"#define TABLE.*": "nvcc reads constant arguments where they lie without the attribute, too",
    r"(template|using|class|namespace|public:|inline|DEVICE|const char\* launch).*": "declares",
    r"const Arguments&\.\.\. arguments\) \{|void\* stream.*|arguments\.\.\.\);": "declares",
    r"void (in|out|scratch)\(.*\) \{\}": "known to the emulator only",
    r"[{}; ]*|else|: \"memory\"\);|\}  // namespace \w+": "closes",
    r"return static_cast<T>\(.*|return static_cast<int64_t>\(": "goes on in the next line",
}

#: What the PTX of platform.cu must contain, by kernel, and how often at least.
PTX = {
    "tabulated": {r"\.maxntid 64": 1, r"\.minnctapersm 3": 1, r"\.pragma \"nounroll\"": 1},
    "unrolled": {r"\.minnctapersm 2": 1, r"ld\.global\.f32": 8},
    "ticket": {r"membar\.gl": 2, r"bar\.sync": 3},
}


def branch() -> tuple[int, int]:
    """Where nvcc's branch begins and ends in the header's text."""
    text = HEADER.read_text()
    return text.index("#if defined(__CUDACC__)"), text.rindex("#else")


def place(mutant: tuple[str, str] | tuple[str, str, int]) -> int:
    """Where a mutant's text is in the header; it must be there as often as the mutants say."""
    old, number = mutant[0], mutant[2] if len(mutant) == 3 else 0
    begin, end = branch()
    text = HEADER.read_text()
    found = [m.start() for m in re.finditer(re.escape(old), text) if begin <= m.start() < end]
    expected = max([other[2] if len(other) == 3 else 1 for other in MUTANTS if other[0] == old])
    if len(found) != expected:
        raise ValueError(f"platform.h: expected {expected} times, not {len(found)}: {old}")
    return found[max(number - 1, 0)]


def without_mutants() -> list[str]:
    """Lines of the branch that none breaks and that are not exempt."""
    text = HEADER.read_text()
    begin, end = branch()
    touched: set[int] = set()
    for mutant in MUTANTS:
        first = place(mutant)
        lines = range(text.count("\n", 0, first), text.count("\n", 0, first + len(mutant[0])) + 1)
        touched |= set(lines)
    left = []
    for number, line in enumerate(text.split("\n")):
        within = text.count("\n", 0, begin) <= number < text.count("\n", 0, end)
        code = line.partition("//")[0].strip()
        exempt = any(re.fullmatch(pattern, code) for pattern in EXEMPT)
        if within and number not in touched and not exempt:
            left.append(f"{number + 1}: {line}")
    return left


def lacking(ptx: Path) -> str | None:
    """What the text should contain and does not."""
    parts = re.split(r"\.entry ", ptx.read_text())
    for kernel, patterns in PTX.items():
        text = next(part for part in parts if re.match(rf"[\w$]*\d{kernel}E", part))
        for pattern, least in patterns.items():
            if len(re.findall(pattern, text)) < least:
                return f"{kernel}: not {least} times {pattern}"
    return None


def attempt(folder: Path, runtime: Path, arch: str, header: str | None = None) -> str | None:
    """What is wrong with platform.cu with this header: None where nothing is."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        builder = build.Builder(folder, arch, objects=runtime.parent / "objects")
        if header is not None:
            (folder / "common").mkdir(exist_ok=True)
            (folder / "common/platform.h").write_text(header)
            builder.nvcc.insert(1, f"-I{folder}")
        builder.nvcc.append(f"-I{SOURCE.parent}")
        objects = [task() for task in builder.kernels(SOURCE)]
        program = folder / "platform"
        build.run("g++", *objects, runtime, "-o", program)
    except (build.BuildError, translate.UnknownError) as error:
        lines = [line for line in str(error).splitlines() if "error" in line.lower()]
        return (lines or str(error).splitlines())[0][-160:]
    done = subprocess.run([program], capture_output=True, text=True, timeout=60)
    if done.returncode:
        return (done.stdout + done.stderr).splitlines()[0]
    return lacking(folder / "platform.ptx") if arch == ARCHITECTURES[0] else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "build/ptx/platform")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    out = args.out.resolve()
    if left := without_mutants():
        sys.exit("lines that no mutant breaks:\n" + "\n".join(left))
    runtime = build.Builder(out).runtime()
    for arch in ARCHITECTURES:
        if wrong := attempt(out / arch, runtime, arch):
            sys.exit(f"platform.cu for sm_{arch}: {wrong}")

    def run(number: int) -> str | None:
        text, mutant = HEADER.read_text(), MUTANTS[number]
        begin = place(mutant)
        broken = text[:begin] + mutant[1] + text[begin + len(mutant[0]) :]
        for arch in ARCHITECTURES:
            if killed := attempt(out / f"{number}.{arch}", runtime, arch, broken):
                return f"{killed} (sm_{arch})"
        return None

    survivors = 0
    with ThreadPoolExecutor(args.jobs) as pool:
        results = pool.map(run, range(len(MUTANTS)))
        for mutant, killed in zip(MUTANTS, results, strict=True):
            survivors += killed is None
            print(
                f"{'killed' if killed else 'SURVIVED'}: {mutant[0]} -> {mutant[1]}: {killed}",
                flush=True,
            )
    print(f"{len(MUTANTS)} mutants, {survivors} survived")
    sys.exit(survivors > 0)


if __name__ == "__main__":
    main()
