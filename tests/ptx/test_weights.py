"""The cost of an instruction of PTX is what ptxas makes of it."""

import pytest
from ptx import weights


def test_costs_are_what_ptxas_says():
    assert weights.measure() == weights.MEASURED


@pytest.mark.parametrize(
    "opcode, instructions, double",
    [
        ("setp.geu.f64", 1, 1),
        ("setp.ne.u64", 2, 0),
        ("selp.f64", 2, 0),
        ("mad.lo.u64", 5, 0),
        ("shr.b64", 2, 0),
        ("mul.hi.u64", 7, 0),
        ("cvt.rn.f64.u32", 1, 1),
        ("ld.global.v2.f64", 1, 0),
        ("ld.param.f64", 0, 0),
        ("mov.f64", 0, 0),
        ("bar.sync", 1, 0),
        ("atom.shared.add.u64", 9, 0),
        ("atom.shared.add.u32", 1, 0),
    ],
)
def test_kinds(opcode, instructions, double):
    """What is not measured itself costs what its kind does."""
    assert weights.weigh(opcode) == (instructions, double)
