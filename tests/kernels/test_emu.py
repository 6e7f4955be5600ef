"""The emulator of the CUDA kernels finds what it is made to find; what the kernels cost on it."""

import math
import re

import pytest
import torch
from ptx.count import maps_of
from support.backends import emulator, native_ops
from support.tensors import drawer, dtype_name
from support.weights import LAYOUTS

from benchmarks.suites import workloads
from build_support import cuda_report, sass
from gankernels import ops

#: Threads of a block of spectral normalization.
BLOCK = sass.rules(cuda_report.ROOT / "csrc" / "cuda" / "spectral_norm.cu").threads["product"]
ORDERS = ("ascending", "descending", "random", "switching")
#: Of planted faults: what the report must say.
FAULTS = {
    "missing barrier, read after write": "shared tile before it was written|race on tile",
    "missing barrier, write after read": "race on tile",
    "missing warp barrier": "shared tile before it was written|race on tile",
    "missing fence before the ticket": "race on partial: thread 1 of another block wrote",
    "missing fence after the ticket": "race on partial: thread 1 of another block wrote",
    "missing barrier before the ticket": "race on partial: thread 1 of another block wrote",
    "two blocks write one place": "race on out: thread 0 of another block wrote",
    "barrier after some threads returned": "63 threads wait at a barrier .* 1 have returned",
    "barrier at different lines": "32 threads wait at a barrier .* 32 threads wait at a barrier",
    "lane in the mask that never arrives": "names lane 7, which is not there",
    "warp operations at different lines": "warp operation while other lanes are at another one",
    "uninitialized shared read": "shared tile before it was written",
    "uninitialized scratch read": "read of partial before anything was written",
    "shared out of bounds": "access to shared memory out of bounds",
    "too much shared memory": "more than 48 KiB of shared memory, at the array tile",
    "global read out of bounds": "read of 4 bytes out of bounds",
    "global write out of bounds": "write of 4 bytes out of bounds, near out of 256 bytes",
    "write to an input": "write to the input in",
    "misaligned vector": "not aligned to 16",
    "misaligned shared vector": "misaligned access to the shared tile",
    "too many threads": "1025 threads, beyond the limits",
    "too many blocks": "2147483648 blocks .* beyond the limits",
    "float atomic": "atomic sum of floats",
    "missing wait for a copy": "shared tile before a copy has arrived",
    "missing barrier after a copy": "tile before (it was written|a copy has)|race on tile",
    "missing barrier before a shared atomic": "shared counts before it was written|race on counts",
}


@pytest.fixture
def panel():
    """The emulator, counting from zero, in ascending order; left in order."""
    panel = emulator()
    panel.set_order(panel.Order.ascending)
    panel.reset_counters()
    yield panel
    panel.set_profiling(False)
    panel.set_executing(True)


# --- what it finds --------------------------------------------------------------------------------


def test_every_fault_is_expected(panel):
    assert set(panel.faults()) == set(FAULTS)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("fault", FAULTS)
def test_fault(panel, fault, order):
    for seed in range(5):
        panel.set_order(getattr(panel.Order, order), seed)
        assert panel.run_fault(fault, planted=False) is None
        found = panel.run_fault(fault, planted=True)
        assert found is not None, "not found"
        assert re.search(FAULTS[fault], found), found
        if "beyond the limits" not in found and "48 KiB" not in found:
            assert "faults.cpp:" in found
            assert "block" in found


def test_an_error_reaches_python_and_the_engine_goes_on(panel, monkeypatch):
    """A view of memory that ends too early: the kernel's own words, then a right result."""
    with pytest.raises(ValueError, match="no such fault"):
        panel.run_fault("none", planted=True)
    assert panel.run_fault("global write out of bounds", planted=True)
    w = drawer(0)(33, 31)
    packed = call(w, "power_iteration_", 1, 1e-12, True, None)
    assert torch.isfinite(packed).all()


# --- bank conflicts -------------------------------------------------------------------------------


def ways_of(panel, stride, words):
    """By verb: accesses of warps, the mean and the most turns."""
    panel.reset_counters()
    panel.set_profiling(True)
    panel.run_strided(stride, words)
    panel.set_profiling(False)
    sites = panel.counters()["banks"]["strided"]
    assert all("faults.cpp:" in site for site in sites)
    return {site.split()[0]: ways for site, ways in sites.items()}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "stride, words, ways",
    [
        (1, 1, 1),
        (2, 1, 2),
        (3, 1, 1),
        (16, 1, 16),
        (32, 1, 32),
        (31, 1, 1),
        (0, 1, 1),  # the same word for all
        (2, 2, 1),
        (4, 2, 2),
        (16, 2, 8),
        (32, 2, 16),  # halves of a warp
        (4, 4, 1),
        (8, 4, 2),
        (12, 4, 1),
        (32, 4, 8),  # quarters
        (8, 8, 2),  # two pieces of 16 bytes
    ],
)
def test_bank_conflicts(panel, order, stride, words, ways):
    panel.set_order(getattr(panel.Order, order), 1)
    found = ways_of(panel, stride, words)
    assert found["read"] == (1, ways, ways)
    if words == 1:
        assert found["atomic"] == ((1, ways, ways) if stride else (1, 32, 32))
        assert found["write"] == (33, 1, 1)
    else:
        assert found["write"] == (1, ways, ways)


@pytest.mark.parametrize("order", ORDERS)
def test_accesses_on_two_sides_of_a_barrier_are_not_one(panel, order):
    panel.set_order(getattr(panel.Order, order), 1)
    assert ways_of(panel, 0, 0)["read"] == (2, 1, 1)


def test_bank_conflicts_are_off_and_forgotten(panel):
    panel.run_strided(2, 1)
    assert panel.counters()["banks"] == {}
    assert ways_of(panel, 2, 1)["read"] == (1, 2, 2)
    panel.reset_counters()
    assert panel.counters()["banks"] == {}


# --- how fast it is -------------------------------------------------------------------------------


def test_speed(panel):
    """Far below what it does when nothing else runs; less would make the tests too slow."""
    threads = 2_000 * 256 / panel.speed(blocks=2_000, threads=256, barriers=0)
    barriers = 200 * 256 * 16 / panel.speed(blocks=200, threads=256, barriers=16)
    print(f"{threads / 1e6:.1f} M threads/s, {barriers / 1e6:.1f} M thread-barriers/s")
    assert threads > 2e6
    assert barriers > 2e6


# --- what the kernels cost ------------------------------------------------------------------------


def vectors_of(w):
    draw = drawer(1, w.dtype)
    return [draw(w.shape[0])], [draw(w.numel() // w.shape[0])]


def call(w, name, *options):
    u, v = vectors_of(w)
    return getattr(torch.ops.gankernels_emu, name)([w], u, v, *options)


def network(count, draw):
    """Layers of very different sizes and of every layout, `count` of them."""
    makers = list(LAYOUTS.values())
    return [
        w if w.is_contiguous() or w.dim() > 1 else w.contiguous()
        for w in (makers[i % len(makers)](draw) for i in range(count))
    ]


@pytest.mark.parametrize("count", [1, 2, 8, 9, 30, 64, 65])
@pytest.mark.parametrize("backend", ["emu"], indirect=True)
def test_launches(panel, backend, count):
    """Whatever the number of layers up to 64, then per 64; the promise of csrc/spectral_norm.h."""
    groups = math.ceil(count / 64)
    weights = [w.requires_grad_() for w in network(count, drawer(0))]
    u = [drawer(1)(w.shape[0]) for w in weights]
    v = [drawer(2)(w.numel() // w.shape[0]) for w in weights]

    def launches(f):
        panel.reset_counters()
        result = f()
        counted = panel.counters()["launches"]
        return result, {name: number / groups for name, number in counted.items()}

    for order in ("u_first", "v_first"):
        (out, sigma), forward = launches(
            lambda order=order: ops.spectral_norm(weights, u, v, 1, order=order)
        )
        assert forward == {"fill": 1, "product": 2, "finish": 1}
    _, three = launches(lambda: ops.spectral_norm(weights, u, v, 3))
    assert sum(three.values()) <= 4 + 3 * 2
    assert three == {"fill": 1, "product": 6, "finish": 1}
    ones = [torch.ones_like(w).requires_grad_() for w in weights]
    first, backward = launches(
        lambda: torch.autograd.grad(
            [*out, sigma], weights, [*ones, torch.ones_like(sigma)], create_graph=True
        )
    )
    assert backward == {"add_tiles": 1, "backward": 1}
    _, second = launches(
        lambda: torch.autograd.grad(first, weights, [torch.ones_like(g) for g in first])
    )
    assert second == {"add_tiles": 1, "double_backward": 1}
    _, evaluation = launches(lambda: ops.spectral_normalize([w.detach() for w in weights], u, v))
    assert evaluation == {"add_tiles": 1, "normalize": 1}
    _, known = launches(
        lambda: ops.spectral_normalize([w.detach() for w in weights], u, v, sigma.detach())
    )
    assert known == {"normalize": 1}


SHAPES = {
    "linear": lambda draw: draw(256, 1024),
    "linear_odd": lambda draw: draw(257, 1023),
    "linear_transposed": lambda draw: draw(1024, 256).t(),
    "conv_channels_last": lambda draw: draw(128, 64, 4, 4).contiguous(
        memory_format=torch.channels_last
    ),
    "conv_transpose": lambda draw: draw(64, 128, 4, 4).movedim(1, 0),
    "large": lambda draw: draw(2048, 2048),
    "large_transposed": lambda draw: draw(2048, 2048).t(),
    "large_conv_transpose": lambda draw: draw(512, 512, 4, 4).movedim(1, 0),
}


def expected_bytes(w, name):
    """What csrc/cuda/spectral_norm_*.cuh state: by buffer, bytes read and bytes written."""
    size = w.numel() * w.element_size()
    return {
        "forward": {"w": (3 * size, 0), "out": (0, size)},
        "normalize": {"w": (2 * size, 0), "out": (0, size)},
        "backward": {"w": (size, 0), "g": (2 * size, 0), "out": (0, size)},
        "double_backward": {
            "w": (2 * size, 0),
            "g": (2 * size, 0),
            "h": (2 * size, 0),
            "out": (0, size),
            "second": (0, size),
        },
    }[name]


def passes_over(weights, g, h):
    """Every pass of spectral normalization over all of the weights, by name."""
    u, v = zip(*((x[0] for x in vectors_of(w)) for w in weights), strict=True)
    u, v = list(u), list(v)
    parts = ops.power_iteration_(weights, u, v)
    space = native_ops()
    return {
        "forward": lambda: space.spectral_norm_(weights, u, v, 1, 1e-12, True, None, None),
        "normalize": lambda: space.spectral_normalize(
            weights, *parts[:2], None, None, False, False
        ),
        "backward": lambda: space.spectral_normalize_backward(g, weights, *parts, None, None),
        "double_backward": lambda: space.spectral_normalize_double_backward(
            h, g, weights, *parts, None, None
        ),
    }


def vector_bytes(w, name):
    """The least of u and v, their copies and the raw results, in float32: read, and written."""
    rows, cols = w.shape[0], w.numel() // w.shape[0]
    given = rows + cols
    return 4 * given * {"forward": 5}.get(name, 1)


def check_bytes(panel, weights, g, h, bound, vectors=False):
    for name, run in passes_over(weights, g, h).items():
        panel.reset_counters()
        run()
        buffers = {k: tuple(map(int, x)) for k, x in panel.counters()["buffers"].items()}
        total = sum(map(sum, buffers.values()))
        stated = [expected_bytes(w, name) for w in weights]
        for buffer in stated[0]:
            moved = tuple(sum(each[buffer][i] for each in stated) for i in (0, 1))
            assert buffers[buffer] == moved, f"{name} {buffer}"
        least = sum(sum(map(sum, each.values())) for each in stated)
        if vectors:
            least += sum(vector_bytes(w, name) for w in weights)
        assert total <= bound * least, f"{name}, {total / least:.3f}: {buffers}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", ["emu"], indirect=True)
def test_bytes(panel, backend, shape, dtype):
    """Weight-sized memory is moved as stated, to the byte, and the rest is small.

    At most 5 % from 16 MiB on; 10 % for transposed convolutions, whose tiles read 16 entries of v
    for 128 elements. Below, tiles are small, so that there are enough of them to fill a GPU, and
    their partial sums and norms, which caches hold, are at most 25 %.
    """
    if shape.startswith("large") and dtype != torch.float32:
        pytest.skip("one dtype will do for what takes seconds")
    bound = {"large_conv_transpose": 1.1}.get(shape, 1.05 if shape.startswith("large") else 1.25)
    draw = drawer(0, dtype)
    check_bytes(panel, *([SHAPES[shape](draw)] for _ in range(3)), bound)


#: Real networks, of 4 to 17 MiB: larger ones have larger tiles, and take minutes.
SMALL_NETWORKS = sorted(
    name for name, network in workloads.load().items() if 4 << 20 <= network.nbytes <= 17 << 20
)


@pytest.mark.slow
@pytest.mark.parametrize("network", SMALL_NETWORKS)
@pytest.mark.parametrize("backend", ["emu"], indirect=True)
def test_bytes_of_networks(panel, backend, network):
    """From 4 MiB on, all that is neither weights nor the vectors themselves is at most 5 %."""
    draw = drawer(0)
    shapes = workloads.load()[network].weights
    check_bytes(panel, *([draw(*shape) for shape in shapes] for _ in range(3)), 1.05, vectors=True)


#: Architectures and their multiprocessors: an H100 and an A100.
MULTIPROCESSORS = {"90": 132, "80": 108}
NETWORKS = sorted(name for name, network in workloads.load().items() if network.nbytes >= 4 << 20)


def blocks_of_all_passes(panel, weights):
    """The blocks of every launch of spectral normalization, none of which runs."""
    acc = torch.float32
    u = [torch.empty(w.shape[0], dtype=w.dtype) for w in weights]
    v = [torch.empty(w.numel() // w.shape[0], dtype=w.dtype) for w in weights]
    u_acc, v_acc = [x.to(acc) for x in u], [x.to(acc) for x in v]
    sigma = torch.ones(len(weights), dtype=acc)
    space = native_ops()
    passes = {
        "forward": lambda: space.spectral_norm_(weights, u, v, 1, 1e-12, True, None, None),
        "normalize": lambda: space.spectral_normalize(
            weights, u_acc, v_acc, None, None, False, False
        ),
        "backward": lambda: space.spectral_normalize_backward(
            weights, weights, u_acc, v_acc, sigma, None, None
        ),
        "double_backward": lambda: space.spectral_normalize_double_backward(
            weights, weights, weights, u_acc, v_acc, sigma, None, None
        ),
    }
    panel.set_executing(False)
    for name, run in passes.items():
        panel.reset_counters()
        run()
        for kernel, launches in panel.counters()["blocks"].items():
            for blocks in launches:
                yield f"{name}: {kernel}", kernel, blocks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("backend", ["emu"], indirect=True)
def test_waves(panel, backend, network, dtype):
    """One wave, and a full one: all blocks are resident, at least 95 % of an even share on each.

    The time of a wave is that of the multiprocessor with most blocks. From 4 MiB on.
    """
    shapes = workloads.load()[network].weights
    weights = [torch.empty(shape, dtype=dtype) for shape in shapes]
    if sum(w.numel() * w.element_size() for w in weights) < 4 << 20:
        pytest.skip("less than 4 MiB")
    _, figures = cuda_report.load(cuda_report.FIGURES.read_text())
    name = {torch.float32: "float", torch.bfloat16: "BFloat16"}[dtype]
    for what, kernel, blocks in blocks_of_all_passes(panel, weights):
        for arch, multiprocessors in MULTIPROCESSORS.items():
            percent = min(
                known.occupancy
                for (instance, at), known in figures.items()
                if at == arch and re.fullmatch(rf"spectral_norm: {kernel}<{name}\b.*>", instance)
            )
            threads, *_ = cuda_report.DEVICES[arch]
            resident = round(percent * threads / 100 / BLOCK)
            assert blocks <= resident * multiprocessors, f"{what} on sm_{arch}: two waves"
            full = blocks / (multiprocessors * math.ceil(blocks / multiprocessors))
            assert full >= 0.95, f"{what} on sm_{arch}: {blocks} blocks"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("backend", ["emu"], indirect=True)
def test_sectors(panel, backend, dtype):
    """Accesses to weights fill the 32-byte sectors that they touch."""
    draw = drawer(0, dtype)
    # A row of odd length begins anywhere, and a warp reads 32 of its elements at a time.
    # Tiles end within rows, too.
    odd = {torch.float32: 0.75, torch.bfloat16: 0.55}[dtype]
    for shape, least in (("linear", 0.99), ("linear_transposed", 0.99), ("linear_odd", odd)):
        w = SHAPES[shape](draw)
        panel.reset_counters()
        panel.set_profiling(True)
        call(w, "spectral_norm_", 1, 1e-12, True, None, None)
        panel.set_profiling(False)
        sites = panel.counters()["sites"]
        largest = max(int(moved) for _, moved, _ in sites.values())
        for place, (accesses, moved, sectors) in sites.items():
            if moved * 4 >= largest:  # those of weights
                assert moved / (32 * sectors) >= least, f"{place}: {accesses} accesses"


@pytest.mark.parametrize("backend", ["emu"], indirect=True)
def test_shared_memory(panel, backend):
    """What blocks use is below 48 KiB by far, and what ptxas says is no more."""
    draw = drawer(0, torch.float64)
    weights = network(40, draw)
    u = [drawer(1, torch.float64)(w.shape[0]) for w in weights]
    v = [drawer(2, torch.float64)(w.numel() // w.shape[0]) for w in weights]
    gradient = draw(3, 40).requires_grad_()
    _, figures = cuda_report.load(cuda_report.FIGURES.read_text())
    for source, kernels, run in (
        ("spectral_norm", {"product", "finish"}, lambda: ops.spectral_norm(weights, u, v)),
        ("gradient_penalty", {"products", "finish"}, lambda: ops.gradient_penalty(gradient)),
    ):
        panel.reset_counters()
        run()
        used = panel.counters()["shared"]
        assert set(used) >= kernels
        assert max(used.values()) <= 20 << 10
        for name, size in used.items():
            sizes = [
                known.shared
                for (kernel, _), known in figures.items()
                if re.fullmatch(rf"{source}: {name}<double\b.*>", kernel)
            ]
            assert max(sizes) <= size


# --- gradient penalties ---------------------------------------------------------------------------


@pytest.mark.parametrize("per_tensor", [False, True], ids=["joint", "per_tensor"])
@pytest.mark.parametrize("count", [1, 2, 8, 9, 30, 64, 65, 130])
@pytest.mark.parametrize("backend", ["emu"], indirect=True)
def test_launches_of_penalties(panel, backend, count, per_tensor):
    """Whatever the number of gradients up to 64, then per 64; the promise of csrc's contract."""
    tables = math.ceil(count / 64)
    rows = tables if per_tensor else 1  # one norm for all is finished once
    grads = [drawer(k)(3, 1 + k * 7 % 40).requires_grad_() for k in range(count)]
    weight = drawer(1)(3).requires_grad_()

    def launches(f):
        panel.reset_counters()
        return f(), panel.counters()["launches"]

    for sample_weight in (None, weight):
        value, forward = launches(
            lambda w=sample_weight: ops.gradient_penalty(
                grads, center=1.0, sample_weight=w, per_tensor=per_tensor
            )
        )
        assert forward == {"products": tables, "finish": rows}
        inputs = grads if sample_weight is None else [*grads, weight]
        first, backward = launches(
            lambda value=value, x=inputs: torch.autograd.grad(value.sum(), x, create_graph=True)
        )
        assert backward == {"backward": tables}
        ones = [torch.ones_like(x) for x in first]
        _, second = launches(
            lambda first=first, x=inputs, ones=ones: torch.autograd.grad(first, x, ones)
        )
        assert second == {"products": tables, "finish_double": rows, "double_backward": tables}


def penalty_calls(grads):
    """Each pass, with every input that it can have."""
    batch = grads[0].shape[0]
    acc = torch.float64 if grads[0].dtype == torch.float64 else torch.float32
    number = drawer(1, acc)
    sample_weight, inv_scale, seed, e = number(batch), number(1), number(1)[0], number(batch)
    h = [torch.ones_like(g) for g in grads]
    options = (sample_weight, inv_scale, 1.0, False, 1.0, False, 1)
    space = native_ops()
    _, norms = space.gradient_penalty(grads, *options)
    return {
        "forward": lambda: space.gradient_penalty(grads, *options),
        "backward": lambda: space.gradient_penalty_backward(seed, grads, norms, *options),
        "double_backward": lambda: space.gradient_penalty_double_backward(
            h, e, seed, grads, norms, *options
        ),
    }


#: What csrc/cuda/gradient_penalty.cuh states: how often every byte is read and written.
PENALTY_BYTES = {
    "forward": {"g": (1, 0)},
    "backward": {"g": (1, 0), "out": (0, 1)},
    "double_backward": {"g": (2, 0), "h": (2, 0), "out": (0, 1)},
}
GRADIENTS = {
    "images": lambda draw: [draw(16, 3, 32, 32)],
    "odd": lambda draw: [draw(7, 3, 31, 33)],
    "features": lambda draw: [draw(16, 1000), draw(16, 64, 8, 8), draw(16, 3)],
    "large": lambda draw: [draw(16, 3, 296, 296)],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("shape", GRADIENTS)
@pytest.mark.parametrize("backend", ["emu"], indirect=True)
def test_bytes_of_penalties(panel, backend, shape, dtype):
    """Gradients are moved as stated, to the byte."""
    if shape == "large" and dtype != torch.float32:
        pytest.skip("one dtype will do for what takes seconds")
    grads = GRADIENTS[shape](drawer(0, dtype))
    size = sum(g.numel() * g.element_size() for g in grads)
    for name, run in penalty_calls(grads).items():
        panel.reset_counters()
        run()
        buffers = panel.counters()["buffers"]
        for buffer, times in PENALTY_BYTES[name].items():
            assert tuple(buffers[buffer]) == tuple(n * size for n in times), f"{name} {buffer}"


@pytest.mark.parametrize("shape, bound", [("images", 1.15), ("large", 1.04)])
@pytest.mark.parametrize("backend", ["emu"], indirect=True)
def test_sectors_of_penalties(panel, backend, shape, bound):
    """Gradients fill the 32-byte sectors that they touch; those of all the rest are few.

    Every warp reads the numbers of its sample, up to six, a sector each, which the first-level
    cache has for all but the first. Where chunks have 4 KiB, the least, that is at most 15 %.
    """
    grads = GRADIENTS[shape](drawer(0))
    size = sum(g.numel() * g.element_size() for g in grads)
    for name, run in penalty_calls(grads).items():
        panel.reset_counters()
        panel.set_profiling(True)
        run()
        panel.set_profiling(False)
        stated = size * sum(map(sum, PENALTY_BYTES[name].values()))
        sites = panel.counters()["sites"]
        total = 0
        for place, (accesses, moved, sectors) in sites.items():
            total += 32 * sectors
            if 32 * sectors >= size:  # those of gradients
                assert moved == 32 * sectors, f"{place}: {accesses} accesses"
        assert stated <= total <= bound * stated, f"{name}: {total / stated}"


@pytest.mark.parametrize("backend", ["emu"], indirect=True)
def test_bank_conflicts_of_resampling(panel, backend):
    """Lanes of a warp go to different banks, or to few places in one: 2.6 of them in the mean.

    Two are what eight lanes take that store 16 bytes each, 32 apart; the places of points are the
    map's, and the pitches of planes keep them from meeting for whole warps.
    """
    maps, x = maps_of(6, 48), drawer(0)(6, 1, 48, 48)
    panel.reset_counters()
    panel.set_profiling(True)
    ops.affine_resample(x, maps)
    ops.affine_resample_transpose(x, maps, input_size=(48, 48))
    panel.set_profiling(False)
    banks = panel.counters()["banks"]
    assert {"resample", "gather"} <= banks.keys()
    for kernel, sites in banks.items():
        for place, (_, mean, most) in sites.items():
            assert mean <= 2.7, f"{kernel}: {place}"
            assert most <= 6, f"{kernel}: {place}"


# --- weight normalization -------------------------------------------------------------------------


@pytest.mark.parametrize("long", [False, True])
@pytest.mark.parametrize("count", [1, 2, 8, 9, 30, 64, 65, 130])
@pytest.mark.parametrize("backend", ["emu"], indirect=True)
def test_launches_of_weight_norm(panel, backend, count, long):
    """One for every 64 weights, and one more where rows are longer than 64 KiB: csrc's contract."""
    tables = math.ceil(count / 64)
    v = [drawer(k)(3, 1 + k * 7 % 40).requires_grad_() for k in range(count)]
    if long:
        v[0] = drawer(0)(2, (64 << 8) + 1).requires_grad_()
        v[-1] = drawer(0)(1, (64 << 8) + 4).requires_grad_()
    g = [drawer(k)(len(x)).requires_grad_() for k, x in enumerate(v)]
    # With 130 the weights in between have a table of their own.
    expected = {"scale_rows": tables}
    if long:
        expected["row_sums"] = min(tables, 2)

    def launches(f):
        panel.reset_counters()
        return f(), panel.counters()["launches"]

    w, forward = launches(lambda: ops.weight_norm(v, g))
    assert forward == expected
    ones = [torch.ones_like(x).requires_grad_() for x in w]
    first, backward = launches(lambda: torch.autograd.grad(w, [*v, *g], ones))
    assert backward == expected
    _, norms = native_ops().weight_norm([x.detach() for x in v], [x.detach() for x in g])
    tensors = [[x.detach() for x in each] for each in (first[:count], first[count:], w, v, g)]
    _, second = launches(lambda: native_ops().weight_norm_double_backward(*tensors, norms))
    assert second == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("size", [64, 1030, "64 KiB", "more", "much more"])
@pytest.mark.parametrize("backend", ["emu"], indirect=True)
def test_bytes_of_weight_norm(panel, backend, size, dtype):
    """What csrc/cuda/weight_norm.cuh states, to the byte: every element is read twice, the second
    time out of the caches where a block has the row to itself; results are written once.
    """
    row = (64 << 10) // dtype.itemsize
    n = {"64 KiB": row, "more": row + 16, "much more": 5 * row}.get(size, size)
    draw = drawer(0, dtype)
    v, x, h = (draw(3, n) for _ in range(3))
    g, e = draw(3), draw(3)
    space = native_ops()
    _, norms = space.weight_norm([v], [g])
    nbytes, of_rows = v.nbytes, 3 * dtype.itemsize
    chunks = math.ceil(n / row) if n > row else 0
    passes = {
        "forward": (lambda: space.weight_norm([v], [g]), "v", {"out": nbytes}, 1),
        "backward": (
            lambda: space.weight_norm_backward([x], [v], [g], norms),
            "vx",
            {"out": nbytes, "d_g": of_rows},
            1,
        ),
        "double_backward": (
            lambda: space.weight_norm_double_backward([h], [e], [x], [v], [g], norms),
            "vxh",
            {"out": nbytes, "d_v": nbytes, "d_g": of_rows},
            3,
        ),
    }
    for name, (run, read, written, sums) in passes.items():
        panel.reset_counters()
        run()
        buffers = {k: tuple(map(int, x)) for k, x in panel.counters()["buffers"].items()}
        for tensor in read:
            assert buffers[tensor] == (2 * nbytes, 0), f"{name} {tensor}"
        for tensor, count in written.items():
            assert buffers[tensor] == (0, count), f"{name} {tensor}"
        if chunks:
            partial = 3 * chunks * sums * norms.element_size()
            assert buffers["partial"][1] == partial, name
        else:
            assert "partial" not in buffers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=dtype_name)
@pytest.mark.parametrize("backend", ["emu"], indirect=True)
def test_sectors_of_weight_norm(panel, backend, dtype):
    """Accesses to aligned weights fill the 32-byte sectors that they touch."""
    draw = drawer(0, dtype)
    v, x, g = draw(16, 2048), draw(16, 2048), draw(16)
    _, norms = native_ops().weight_norm([v], [g])
    panel.reset_counters()
    panel.set_profiling(True)
    native_ops().weight_norm([v], [g])
    native_ops().weight_norm_backward([x], [v], [g], norms)
    panel.set_profiling(False)
    sites = panel.counters()["sites"]
    largest = max(int(moved) for _, moved, _ in sites.values())
    for place, (accesses, moved, sectors) in sites.items():
        if moved * 4 >= largest:
            assert moved / (32 * sectors) >= 0.99, f"{place}: {accesses} accesses"
