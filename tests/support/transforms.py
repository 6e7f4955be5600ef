"""torch.func and forward-mode AD: every operator goes to the reference there, and is right."""

from collections.abc import Callable

import torch
from torch import Tensor

from gankernels import _library


class Transforms:
    """The tests of one function of a tensor to a scalar; a test class inherits them.

    ``op`` is the operator's name, ``ours`` the function with it and ``plain`` the same in PyTorch,
    ``at`` and ``direction`` two points in float64.
    """

    op: str
    at: Tensor
    direction: Tensor
    ours: Callable[[Tensor], Tensor]
    plain: Callable[[Tensor], Tensor]

    def check(self, transform):
        got, want = transform(self.ours), transform(self.plain)
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b)
            assert b.abs().max() > 0
        assert any(op == self.op for op, _ in _library._fallbacks)

    def test_grad(self):
        self.check(lambda f: [torch.func.grad(f)(self.at)])

    def test_grad_of_grad(self):
        self.check(
            lambda f: [torch.func.grad(lambda x: torch.func.grad(f)(x).pow(2).sum())(self.at)]
        )

    def test_vjp(self):
        self.check(lambda f: torch.func.vjp(f, self.at)[1](torch.ones((), dtype=torch.float64)))

    def test_jvp(self):
        self.check(lambda f: torch.func.jvp(f, (self.at,), (self.direction,)))

    def test_vmap(self):
        batch = torch.stack([self.at, self.direction, 2 * self.at])
        self.check(lambda f: [torch.func.vmap(f)(batch)])

    def test_hessian(self):
        self.check(lambda f: [torch.func.hessian(f)(self.at)])

    def test_forward_mode(self):
        def tangent(f):
            with torch.autograd.forward_ad.dual_level():
                dual = torch.autograd.forward_ad.make_dual(self.at, self.direction)
                return [torch.autograd.forward_ad.unpack_dual(f(dual)).tangent]

        self.check(tangent)
