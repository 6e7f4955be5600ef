"""What is read from the compiler's output, and that a kernel that got worse is reported."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from build_support import cuda, cuda_report, sass
from build_support.cuda_report import ReportError, Row

MANGLED = "_ZN10gankernels13spectral_norm4cuda7productIfEEvNS1_12ProductTableE"
PTXAS = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function '{name}' for 'sm_90'
ptxas info    : Function properties for {name}
    {stack} bytes stack frame, {spill} bytes spill stores, 0 bytes spill loads
ptxas info    : Used 72 registers, used 1 barriers, 8260 bytes smem
"""
SASS = """
.text.{name}:
	//## File "{file}", line 3 inlined at "{file}", line 14
	//## File "{file}", line 14
        /*0010*/                   LDG.E.128 R4, [R2] ;
        /*0020*/              @!P0 LDG.E R4, [R2] ;
	//## File "{file}", line 7
        /*0030*/               @P1 STG.E.128 [R2], R4 ;
        /*0040*/                   {operation} R4, R6, R8 ;
        /*0050*/                   EXIT ;
$__internal_0_$__cuda_sm20_dblrcp_rn_slowpath_v3:
        /*0060*/                   DSETP.GTU.AND P0, PT, |R14|, +INF , PT ;
"""
ROW = Row("op: product<float>", "90", 72, 8260, 37, 4, 2, 4, 10)


def ptxas(stack=0, spill=0):
    return PTXAS.format(name=MANGLED, stack=stack, spill=spill)


# --- reading --------------------------------------------------------------------------------------


def test_ptxas():
    assert cuda_report.parse_ptxas(ptxas()) == {MANGLED: (72, 8260)}
    assert cuda_report.readable(MANGLED) == "product<float>"


@pytest.mark.parametrize("numbers", [{"stack": 8}, {"spill": 4}])
def test_spills_and_local_memory_are_refused(numbers):
    with pytest.raises(ReportError, match=r"product<float>.* bytes stack frame"):
        cuda_report.parse_ptxas(ptxas(**numbers))


def test_warnings_are_refused():
    with pytest.raises(ReportError, match="odd"):
        cuda_report.parse_ptxas("ptxas warning : odd\n" + ptxas())


LINES = (
    "// Adds. double: a sum of squares\n"
    "double add(double a, double b) {\n"
    "  return a + b;\n"
    "}\n"
    "// Multiplies.\n"
    "float multiply(float a, float b) {\n"
    "  return a * b;\n"
    "}\n"
    "// Adds up. 16-byte accesses: loads, stores\n"
    "// double: its squares\n"
    "template <class T>\n"
    "KERNEL(kThreads)\n"
    "product(float* x) {\n"
    "  x[0] = multiply(add(x[0], x[1]), x[2]);\n"
    "}\n"
)
ADD, MULTIPLY, PRODUCT = 3, 7, 14  # lines of the bodies


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "op.cu"
    path.write_text(LINES)
    return path


@pytest.mark.parametrize("operation", ["FFMA", "DFMA", "LDL"])
def test_machine_code(source, operation):
    text = SASS.format(name=MANGLED, file=source, operation=operation)
    (code,) = sass.parse(text).values()
    assert (code.loads16, code.stores16) == (1, 1)
    assert code.local == (operation == "LDL")
    rules = sass.rules(source)
    assert rules.loads16 == rules.stores16 == {"product"}
    broken = list(rules.broken("product<float>", code))
    expected = {"FFMA": [], "DFMA": ["DFMA from op.cu:7"], "LDL": ["1 accesses to local memory"]}
    assert len(broken) == len(expected[operation])
    assert all(text.startswith(e) for text, e in zip(broken, expected[operation], strict=True))
    if operation == "DFMA":  # computing in double is what these are for
        assert list(rules.broken("product<double>", code)) == []


@pytest.mark.parametrize(
    "text, marked",
    [
        ("// Adds. double: it\nint f(double x) {\n  // why\n  return x;\n}\n", "function"),
        ("// Adds. double: it\n// More.\nint f(double x) {\n\n  return x;\n", "function"),
        ("// Adds.\n// double: it\nKERNEL(1)\nf(double x) {\n  return x;\n", "kernel"),
        ("// Adds.\nint f(double x) {\n  // double: of another\n  return x;\n}\n", None),
        ("// double: of another\nint g() {\n}\nint f(double x) {\n  return x;\n", None),
        ("// double: of another\nint g();\nint f(double x) {\n  return x;\n", None),
        ("// double: a section\n\n// Adds.\nint f(double x) {\n  return x;\n", None),
    ],
)
def test_a_mark_above_a_function_holds_for_all_of_it(tmp_path, text, marked):
    path = tmp_path / "op.cuh"
    path.write_text(text)
    line = 1 + [line.strip() for line in text.splitlines()].index("return x;")
    assert sass.marked_function(str(path), line) == marked


@pytest.mark.parametrize(
    "lines, allowed",
    [
        ([ADD], True),
        ([ADD, PRODUCT], True),
        ([PRODUCT], True),
        ([MULTIPLY], False),
        ([MULTIPLY, ADD, PRODUCT], True),  # inlined into what is marked
        ([MULTIPLY, PRODUCT], False),  # a kernel's mark is for its own lines
    ],
)
def test_what_may_be_double(source, lines, allowed):
    places = [(str(source), line) for line in lines]
    assert sass.may_be_double(places) == allowed
    for path in ("/usr/local/cuda/include/crt/math_functions.hpp", "/x/csrc/common/platform.h"):
        assert sass.may_be_double([(path, 1), *places]) == allowed


def test_sources_that_may_be_double_exist():
    for name in sass.DOUBLE_SOURCES:
        path = str(cuda_report.ROOT / "csrc" / name)
        assert Path(path).exists(), f"{name} is gone: take it out of DOUBLE_SOURCES"
        assert sass.may_be_double([(path, 1)])
    assert not sass.may_be_double([(str(cuda_report.ROOT / "csrc/cuda/walk.cuh"), 1)])


@pytest.mark.parametrize(
    "operation, double",
    [
        ("DADD", True),
        ("DFMA.RZ", True),
        ("MUFU.RSQ64H", True),
        ("F2F.F32.F64", True),
        ("F2F.F64.F32", True),
        ("F2I.S64.F64.TRUNC", True),
        ("DEPBAR.LE", False),
        ("F2F.F16.F32", False),
        ("CALL.REL.NOINC", False),
        ("CALL.REL.NOINC `($__internal_0_$__cuda_sm20_dsqrt_rn_f64_mediumpath_v1)", True),
        ("CALL.REL.NOINC `($__internal_1_$__cuda_sm3x_div_rn_noftz_f32_slowpath)", False),
    ],
)
def test_what_counts_as_double(source, operation, double):
    text = SASS.format(name=MANGLED, file=source, operation=operation)
    (code,) = sass.parse(text).values()
    assert len(code.doubles) == 1 + double  # one is in the compiler's subroutine
    broken = list(sass.rules(source).broken("product<float>", code))
    assert len(broken) == double


def test_a_mark_does_not_serve_the_next_place(source):
    """Two places with no instruction between them: only the second is that of what follows."""
    text = f""".text.{MANGLED}:
	//## File "{source}", line {ADD}
	//## File "{source}", line {MULTIPLY}
        /*0010*/                   DADD R4, R6, R8 ;
"""
    (code,) = sass.parse(text).values()
    assert len(list(sass.rules(source).broken("other<float>", code))) == 1


def test_promised_16_byte_accesses_must_be_there(source):
    text = SASS.format(name=MANGLED, file=source, operation="FFMA").replace(".E.128", ".E.64")
    (code,) = sass.parse(text).values()
    broken = list(sass.rules(source).broken("product<float>", code))
    assert [text.partition(",")[0] for text in broken] == [
        "its comment says 16-byte loads",
        "its comment says 16-byte stores",
    ]
    assert list(sass.rules(source).broken("other<float>", code)) == []


#: Instructions before, in and after a loop.
STREAM = """
        LDG.E.128 R4, [R2] ;
        @!P0 BRA `(.L_x_2) ;
.L_x_1:
        LDG.E.128 R8, desc[UR4][R2.64] ;
    @P1 LDG.E.128 R12, desc[UR4][R2.64+0x1000] ;
        LDG.E.128.CONSTANT R16, desc[UR4][R2.64+0x2000] ;
        LDG.E R24, [R2+0x3000] ;
        {between} ;
        LDG.E.128 R20, desc[UR4][R2.64+0x4000] ;
        FADD R0, R0, R8 ;
        LDG.E.128 R28, [R2+0x5000] ;
        {last} ;
        @!P2 BRA `(.L_x_1) ;
.L_x_2:
        {after} ;
        EXIT ;
"""


def stream(between="NOP", last="FADD R0, R0, R28", after="NOP"):
    lines = STREAM.format(between=between, last=last, after=after).strip().splitlines()
    text = "".join(
        f"{line.strip()}\n" if ":" in line else f"        /*{i:04x}*/ {line.strip()}\n"
        for i, line in enumerate(lines)
    )
    (code,) = sass.parse(f".text.{MANGLED}:\n{text}").values()
    return code


@pytest.mark.parametrize(
    "between, expected",
    [
        ("NOP", 4),
        ("FADD R0, R24, R24", 4),  # of a load of 4 bytes
        ("FADD R0, R11, R0", 3),  # the last register of the first load
        ("STG.E.128 [R2], R16", 3),
        ("FADD R0, R7, R0", 4),  # of a load before the loop
    ],
)
def test_loads_in_flight(between, expected):
    assert stream(between).in_flight == expected


def test_loads_in_flight_are_those_of_the_worst_loop():
    one = "\n".join(
        [".L_x_9:", "LDG.E.128 R4, [R2] ;", "FADD R0, R0, R4 ;", "@P0 BRA `(.L_x_9) ;", "EXIT ;"]
    )
    lines = [*stream().lines[:-1], *one.splitlines()]
    assert sass.Code(lines=lines).in_flight == 1
    # used in the next turn, before the next load
    turned = [".L_x_9:", "FADD R0, R0, R4 ;", "LDG.E.128 R4, [R2] ;", "@P0 BRA `(.L_x_9) ;"]
    assert sass.Code(lines=turned).in_flight == 1
    assert sass.Code(lines=["LDG.E.128 R4, [R2] ;", "LDG.E.128 R8, [R2] ;"]).in_flight == 2
    assert sass.Code(lines=["FADD R0, R0, R4 ;"]).in_flight == 0


def test_a_loop_is_what_leads_back_to_itself():
    """Not what stands between a branch back and its target: code for once stands anywhere."""
    lines = [
        "BRA `(.L_x_3) ;",
        ".L_x_1:",  # runs once, and ends
        "DADD R4, R4, R6 ;",
        "EXIT ;",
        ".L_x_3:",
        ".L_x_4:",
        "NOP ;",
        ".L_x_5:",
        "FADD R0, R0, R1 ;",
        "@P1 BRA `(.L_x_5) ;",
        "@P0 BRA `(.L_x_4) ;",
        "BRA `(.L_x_1) ;",
    ]
    assert sorted(sass.loops(lines), key=len) == [(7, 8, 9), (5, 6, 7, 8, 9, 10)]


PROMISE = LINES.replace("loads, stores", "loads (5 in flight)").replace("double: its", "its")


@pytest.mark.parametrize(
    "changes, expected",
    [
        ({}, []),
        ({"after": "DADD R4, R4, R6"}, []),
        ({"last": "DADD R4, R4, R6"}, ["double arithmetic in a loop: DADD"]),
        ({"last": "I2F.U32.RP R4, R6"}, ["an integer division in a loop over tensors: I2F.U32.RP"]),
        ({"between": "FADD R0, R8, R0"}, ["its comment says 4 loads in flight, and a loop has 3"]),
    ],
)
def test_promised_loads_in_flight_must_be_there(source, changes, expected):
    source.write_text(PROMISE.replace("(5 in flight)", "(4 in flight)"))
    rules = sass.rules(source)
    assert rules.in_flight == {"product": 4}
    code = stream(**changes)
    code.doubles.clear()  # another rule's
    assert list(rules.broken("product<float>", code)) == expected
    if "double" in "".join(expected):
        assert list(rules.broken("product<double>", code)) == []
    source.write_text(PROMISE)
    (broken,) = sass.rules(source).broken("product<float>", stream())
    assert broken == "its comment says 5 loads in flight, and a loop has 4"


def test_threads_are_those_that_a_kernel_names(tmp_path):
    folder = tmp_path / "cuda"
    folder.mkdir()
    (folder / "walk.cuh").write_text("constexpr int kBlock = 128, kWarps = kBlock / 32;\n")
    source = folder / "op.cu"
    source.write_text(
        '#include "cuda/walk.cuh"\nconstexpr int kMany = 1024;\n'
        "KERNEL(kThreads)\na(int) {}\nKERNEL_FOR(kBlock, 5)\nb(int) {}\n"
        "KERNEL_FOR(kMany, 1)\nc(int) {}\nKERNEL(64)\nd(int) {}\n"
    )
    assert sass.rules(source).threads == {"a": 256, "b": 128, "c": 1024, "d": 64}


#: Kernels that read a few numbers of every sample, single pixels, or what other blocks have left.
NOT_OVER_TENSORS = {
    "ada_control": {"control"},
    "ada_parameters": {"compute", "compute_with_margins"},
    "diff_augment": {"parameters"},
    "image_filter": {"filter"},
    "affine_resample": {
        "prepare",
        "resample",
        "resample_plainly",
        "gather",
        "gather_plainly",
    },
    "gradient_penalty": {"finish", "finish_double"},
    "spectral_norm": {"repair"},
}


#: Operators that go through tensors from end to end: nothing but memory is to limit them.
STREAMING = {"gradient_penalty", "spectral_norm", "weight_norm"}


def test_every_kernel_over_tensors_promises_16_byte_loads():
    for source in map(Path, cuda.sources()):
        path = cuda_report.ROOT / source
        header = "".join(header.read_text() for header in sass.headers(path))
        kernels = set(re.findall(r"^KERNEL(?:_FOR)?\([\w, <>]+\)\s+(\w+)", header, re.MULTILINE))
        assert kernels - sass.rules(path).loads16 == NOT_OVER_TENSORS.get(source.stem, set())
        assert len(kernels) == header.count("\nKERNEL")
        if source.stem in STREAMING:
            in_flight = sass.rules(path).in_flight
            assert set(in_flight) == sass.rules(path).loads16
            assert min(in_flight.values()) >= 4


# --- comparing ------------------------------------------------------------------------------------


def test_figures_can_be_read_back():
    rows = [ROW, replace(ROW, kernel="op: add_tiles<Half, (Sums)1>", doubles=0)]
    rows += [replace(row, arch="120") for row in rows]
    rows[2] = replace(rows[2], occupancy=50)
    text = cuda_report.dump(rows, "13.0")
    assert cuda_report.load(text) == ("13.0", {row.key: row.figures for row in rows})
    assert '"op: product<float>": {"shared": 8260, "occupancy": [37, 50], "loads16": true' in text
    lines = text.splitlines()
    assert sum('"op: ' in line for line in lines) == 2
    assert '"doubles"' not in next(line for line in lines if "add_tiles" in line)


def test_the_summary_names_the_worst():
    other = replace(
        ROW, kernel="op: finish<float>", arch="120", registers=99, occupancy=25, loads16=0
    )
    text = cuda_report.summary([ROW, other], "13.0", 256)
    (line,) = [line for line in text.splitlines() if line.startswith("| op ")]
    assert "| 99 (finish<float>, sm_120) |" in line
    assert "| 25 (finish<float>, sm_120) |" in line
    assert "| 1, 2 of 2 |" in line


def test_the_committed_summary_is_of_the_committed_figures():
    """One screen, and of the same compiler, architectures and kernels."""
    version, figures = cuda_report.load(cuda_report.FIGURES.read_text())
    text = cuda_report.SUMMARY.read_text()
    assert len(text.splitlines()) <= 60
    assert {arch for _, arch in figures} == set(cuda_report.ARCHITECTURES)
    kernels = {kernel for kernel, _ in figures}
    architectures = ", ".join(cuda_report.ARCHITECTURES)
    assert f"nvcc {version} for sm_{architectures}, " in text
    assert f"{len(kernels)} instances" in text
    for (kernel, _), known in figures.items():
        line = next(x for x in text.splitlines() if x.startswith(f"| {kernel.partition(':')[0]} "))
        most_shared, least_occupancy = re.findall(r"\| (\d+)", line)[1:3]
        assert known.shared <= int(most_shared)
        assert known.occupancy >= int(least_occupancy)


def worse(before, now, same):
    return list(cuda_report.worse({row.key: row.figures for row in before}, now, same))


@pytest.mark.parametrize("same", [True, False])
@pytest.mark.parametrize(
    "change, text",
    [
        ({"occupancy": 25}, "occupancy was 37 and is 25"),
        ({"shared": 12000}, "shared was 8260 and is 12000"),
        ({"doubles": 20}, "doubles was 10 and is 20"),
        ({"in_flight": 3}, "in_flight was 4 and is 3"),
        ({"loads16": 0}, "loads16 was True and is False"),
        ({"stores16": 0}, "stores16 was True and is False"),
    ],
)
def test_worse(change, text, same):
    (found,) = worse([ROW], [replace(ROW, **change)], same)
    assert found == f"op: product<float> on sm_90: {text}"


def test_better_or_equal_is_not_worse():
    better = replace(ROW, registers=60, shared=4000, occupancy=50, doubles=8, loads16=2)
    assert worse([ROW], [ROW], True) == []
    assert worse([ROW], [better], True) == []
    slightly = replace(ROW, doubles=12, occupancy=30)
    assert len(worse([ROW], [slightly], True)) == 2
    assert worse([ROW], [slightly], False) == []


def test_kernels_that_come_and_go():
    other = replace(ROW, kernel="op: finish<float>")
    assert worse([ROW], [other], True) == [
        "op: product<float> on sm_90 is gone",
        "op: finish<float> on sm_90 is not in tests/kernels/cuda_report.json",
    ]


# --- compiling ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tools():
    return cuda_report.toolkit()


def test_occupancy(tools, tmp_path):
    """Known cases of the occupancy calculator."""
    kernels = [(256, 32, 0), (256, 33, 0), (256, 80, 8192), (1024, 64, 0), (256, 32, 48 << 10)]
    assert cuda_report.occupancies(tools, "90", kernels, tmp_path) == [100, 75, 37, 50, 50]
    assert cuda_report.occupancies(tools, "75", kernels[:1], tmp_path) == [100]


BAD = {
    "a warning": (
        "__global__ void kernel(float* x) { int unused; x[0] = 1; }",
        "never referenced",
    ),
    "local memory": (
        "__global__ void kernel(float* x, int n) { float y[64]; for (int i = 0; i < 64; ++i) "
        "y[i] = x[i]; for (int i = 0; i < n; ++i) x[i] = y[int(x[i]) & 63]; }",
        "[Ll]ocal memory|stack frame",
    ),
    "spills": (
        "__global__ void __launch_bounds__(1024, 2) kernel(float* x) { float y[80]; "
        "for (int i = 0; i < 80; ++i) y[i] = x[i * 32]; __syncthreads(); "
        "for (int i = 0; i < 80; ++i) x[i * 32] = y[79 - i] * y[(i * 7) % 80]; }",
        "spill|stack frame",
    ),
    "unmarked double": (
        "__global__ void kernel(float* x) { x[0] = float(double(x[1]) * x[2] + x[3]); }",
        "where no comment above the function has `double: why`",
    ),
    "no vectors": (
        "#define KERNEL(n) __global__ void\n// 16-byte accesses: loads\n"
        "KERNEL(kThreads) kernel(float* x) { x[0] = x[1]; }",
        "its comment says 16-byte loads, and there are none",
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", BAD)
def test_bad_kernels_are_refused(tools, tmp_path, fault):
    text, expected = BAD[fault]
    source = tmp_path / "bad.cu"
    source.write_text(text + "\n")
    with pytest.raises(ReportError, match=expected):
        cuda_report.measure(tools, "90", [str(source)], tmp_path)
