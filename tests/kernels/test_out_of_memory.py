"""A failed allocation on a GPU keeps torch's type, whichever operator it happens in."""

import ast

import pytest
import torch
from support import ROOT
from support.waits import standing_in

from gankernels import ops
from gankernels.ops import _operator
from gankernels.ops._operator import EXAMPLES

#: In the words of torch 2.13 and later, and before.
WORDS = {
    "2.13": "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.10 "
    'GiB (originally from torch_call_dispatcher( "aten::new_empty", "", stack.data(), '
    "TORCH_ABI_VERSION) API call failed at torch/include/torch/csrc/stable/ops.h, line 961)",
    "2.11": 'torch_call_dispatcher( "aten::empty_like", "", stack.data(), TORCH_ABI_VERSION) API '
    "call failed at torch/include/torch/csrc/stable/ops.h, line 46",
    "2.12": "aoti_torch_aten_new_empty( self.get(), size.data(), &ret0) API call failed at "
    "torch/include/torch/csrc/stable/ops.h, line 143",
    "launch": "image_filter: out of memory",
}
OTHERS = {
    "sticky": "CUDA error: an illegal memory access was encountered (originally from "
    'torch_call_dispatcher( "aten::new_empty") API call failed at ops.h, line 961)',
    "check": "image_filter: expected an image (B, C, H, W) on a CUDA device",
    "copy": 'torch_call_dispatcher( "aten::copy_", "") API call failed at ops.h, line 12',
}


class Failing:
    """A namespace of operators that all fail with this text."""

    def __init__(self, text):
        self.text = text

    def __getattr__(self, name):
        def call(*args):
            raise RuntimeError(self.text)

        return call


def call(name):
    with standing_in():
        arguments = EXAMPLES[name](lambda *shape: torch.randn(shape))
        getattr(ops, name)(**arguments)


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("text", WORDS)
@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_out_of_memory(monkeypatch, name, text, grad):
    monkeypatch.setattr(_operator, "kernels", Failing(WORDS[text]))
    with torch.set_grad_enabled(grad), pytest.raises(torch.OutOfMemoryError) as raised:
        call(name)
    assert WORDS[text] in str(raised.value)


@pytest.mark.parametrize("text", OTHERS)
@pytest.mark.parametrize("name", sorted(EXAMPLES))
def test_other_errors(monkeypatch, name, text):
    monkeypatch.setattr(_operator, "kernels", Failing(OTHERS[text]))
    with pytest.raises(RuntimeError) as raised:
        call(name)
    assert type(raised.value) is RuntimeError


def test_out_of_memory_in_a_backward(monkeypatch):
    with standing_in():
        x = torch.randn(2, 3, 24, 24, requires_grad=True)
        gains = torch.ones(2, 4)
        losses = [
            ops.image_filter(x, gains).sum(),
            ops.affine_augment(x, torch.eye(2, 3).repeat(2, 1, 1)).sum(),
            ops.gradient_penalty(x),
            ops.spectral_normalize([x], [torch.ones(2)], [torch.ones(3 * 24 * 24)])[0][0].sum(),
            ops.weight_norm(x, torch.ones(2)).sum(),
        ]
        monkeypatch.setattr(_operator, "kernels", Failing(WORDS["2.13"]))
        for loss in losses:
            with pytest.raises(torch.OutOfMemoryError):
                torch.autograd.grad(loss, x)


def test_out_of_memory_on_the_cpu_is_torchs_own():
    x = torch.zeros(1, 1, 4, 4)
    maps = torch.eye(2, 3)[None]
    for enormous in (
        lambda: torch.empty(2**50),
        lambda: ops.affine_resample(x, maps, output_size=(2**24, 2**24)),
    ):
        with pytest.raises(RuntimeError) as raised:
            enormous()
        assert type(raised.value) is RuntimeError


def relative(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", sorted((ROOT / "gankernels").rglob("*.py")), ids=relative)
def test_every_operator_is_called_through_run(path):
    """``run(_operator.kernels.X, ...)`` or a function that does so, never ``kernels.X(...)``."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            called = ast.unparse(node.func)
            assert "kernels." not in called or called.startswith("self."), called
