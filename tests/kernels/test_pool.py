"""The CPU kernels' output buffers: what is served again, what goes back, and how memory ends.

A full count takes minutes: ``GANKERNELS_MEMORY_ITERATIONS=20000`` in the environment.
"""

import gc
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from support.tensors import drawer

import gankernels
from gankernels import ops

_C = pytest.importorskip("gankernels._C")
MIB = 1 << 20


@pytest.fixture(autouse=True)
def empty():
    gc.collect()
    gankernels.empty_cache()


def normalize(*shape: int) -> torch.Tensor:
    """An output of the pool."""
    w, u, v = torch.ones(shape), torch.ones(shape[0]), torch.ones(shape[1])
    (out,), _ = ops.spectral_normalize([w], [u], [v])
    return out


def test_a_steady_state_is_served_again():
    """Outputs and gradients of a network, all of them alive at once, step after step."""
    draw = drawer(0)
    weights = [draw(n, 512).requires_grad_() for n in (512, 1024, 2048, 512, 300)]
    u = [draw(w.shape[0]) for w in weights]
    v = [draw(w.shape[1]) for w in weights]
    for step in range(4):
        before = _C.pool_stats()
        outputs, _ = ops.spectral_norm(weights, u, v)
        torch.autograd.grad(sum(x.sum() for x in outputs), weights)
        del outputs
        after = _C.pool_stats()
        if step > 0:
            assert after["fresh"] == before["fresh"], f"step {step}"
        assert after["takes"] > before["takes"]
        assert after["used"] == 0


def test_two_networks_in_turn_are_served_again():
    sizes = {"discriminator": [(n, 1024) for n in range(1024, 3072, 256)]}
    sizes["generator"] = [(n, 1000) for n in range(1024, 3072, 256)]
    for step in range(3):
        before = _C.pool_stats()["fresh"]
        for shapes in sizes.values():
            held = [normalize(*shape) for shape in shapes]
            del held
        if step > 0:
            assert _C.pool_stats()["fresh"] == before, f"step {step}"


def test_sizes_that_do_not_come_again_go_back():
    """The bound is twice what was used at once, or 32 MiB."""
    for n in range(150):
        normalize(1024 + 16 * n, 1024)
        stats = _C.pool_stats()
        assert stats["used"] == 0
        assert stats["kept"] <= stats["bound"]
    assert stats["bound"] == 32 * MIB
    assert stats["kept"] > 16 * MIB


def test_the_least_recently_used_go_first():
    old = normalize(1024, 1024)
    del old
    for n in range(1, 12):
        normalize(1024 + 16 * n, 1024)
    before = _C.pool_stats()["fresh"]
    normalize(1024 + 16 * 11, 1024)
    assert _C.pool_stats()["fresh"] == before
    normalize(1024, 1024)
    assert _C.pool_stats()["fresh"] == before + 1


def test_what_was_used_at_once_is_forgotten():
    """After a large network's end, a small one takes its blocks' place."""
    held = [normalize(2048, 2048) for _ in range(6)]
    del held
    assert _C.pool_stats()["kept"] >= 96 * MIB
    small = drawer(0)(160, 160)
    u, v = small[0].clone(), small[1].clone()
    takes = _C.pool_stats()["takes"]
    while _C.pool_stats()["takes"] < takes + 9000:
        ops.spectral_normalize([small], [u], [v])
    assert _C.pool_stats()["kept"] <= MIB


def test_empty_cache():
    out = normalize(1024, 1024)
    kept = normalize(1000, 1024)
    del kept
    assert gankernels.empty_cache() >= 4000 * 1024
    assert gankernels.empty_cache() == 0
    assert _C.pool_stats()["used"] >= 4 * MIB
    assert out.isfinite().all()
    del out
    assert gankernels.empty_cache() >= 4 * MIB


def test_threads():
    """Blocks that one thread takes and another gives back, with the cache emptied meanwhile."""
    errors: list[str] = []
    shared: list[torch.Tensor] = []

    def work(index: int) -> None:
        draw = drawer(index)
        for n in range(60):
            w = draw(256 + 16 * (n % 7), 256)
            (out,), sigma = ops.spectral_normalize([w], [draw(w.shape[0])], [draw(256)])
            if not torch.allclose(out * sigma, w, rtol=1e-4, atol=1e-5):
                errors.append(f"thread {index}, {n}")
            shared.append(out)
            if len(shared) > 8:
                shared.pop(0)
            if n % 20 == index:
                gankernels.empty_cache()

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    shared.clear()
    assert _C.pool_stats()["used"] == 0


#: One iteration of each operator: other sizes every time, forward and backward.
OPERATORS = {
    "spectral_norm": """
        w = randn(size(200), size(400)).requires_grad_()
        (out,), _ = ops.spectral_norm([w], [randn(w.shape[0])], [randn(w.shape[1])])
        out.sum().backward()""",
    "spectral_norm_half": """
        w = randn(size(200), size(400)).bfloat16().requires_grad_()
        u, v = randn(w.shape[0]).bfloat16(), randn(w.shape[1]).bfloat16()
        (out,), _ = ops.spectral_norm([w], [u], [v])
        out.sum().backward()""",
    "gradient_penalty": """
        x = randn(size(8), size(9000)).requires_grad_()
        (g,) = torch.autograd.grad(x.square().sum(), x, create_graph=True)
        ops.gradient_penalty(g, center=1.0).backward()""",
    "weight_norm": """
        v = randn(size(200), size(4), size(100)).requires_grad_()
        dim = size(3) - 1
        w = ops.weight_norm(v, randn(v.shape[dim]).requires_grad_(), dim=dim)
        (g,) = torch.autograd.grad(w.sum(), v, create_graph=True)
        g.square().sum().backward()""",
    "affine_resample": """
        x = randn(size(4), 3, size(64), size(64)).requires_grad_()
        maps = torch.eye(2, 3).repeat(len(x), 1, 1) + 0.1 * randn(len(x), 2, 3)
        gankernels.affine_resample(x, maps).sum().backward()""",
    "image_filter": """
        x = randn(size(4), 3, size(64), size(64)).requires_grad_()
        ops.image_filter(x, randn(len(x), 4).abs()).sum().backward()""",
    "ada_pipe": """
        pipe(randn(size(3), 3, 32, 32).requires_grad_()).sum().backward()""",
}

MEMORY = """
import json, os, random, sys, textwrap, torch, gankernels
from gankernels import ops
torch.set_num_threads(1)
operators, first, last = json.loads(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
randn, rng = torch.randn, random.Random(0)
size = lambda most: rng.randint(1, most)
pipe = gankernels.augment.ADAPipe("bgcfnc", p=0.8)
def rss():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
for name, body in operators.items():
    code = compile(textwrap.dedent(body), name, "exec")
    for i in range(1, last + 1):
        exec(code)
        if i == first: before = rss()
    print(name, before, rss())
"""


def test_memory_of_changing_sizes():
    """In a process of their own, it ends near where it was after some: 64 MiB for a full count."""
    count = os.environ.get("GANKERNELS_MEMORY_ITERATIONS")
    first, last, most = (int(count) // 10, int(count), 64) if count else (100, 400, 4)
    root = str(Path(gankernels.__file__).parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, json.dumps(OPERATORS), str(first), str(last)],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    grown = {}
    for operator, *figures in map(str.split, done.stdout.splitlines()):
        before, after = map(float, figures)
        print(f"{operator}: {before:.1f} MiB after {first}, {after:.1f} MiB after {last}")
        grown[operator] = after - before
    assert grown.keys() == OPERATORS.keys()
    assert max(grown.values()) < most, grown
