"""diff_augment_parameters: what DiffAugment does to each sample, in one launch."""

import math

import pytest
import torch
from support.backends import emulator, native_ops
from torch._subclasses.fake_tensor import FakeTensorMode

from gankernels import ops, reference
from gankernels.ops.diff_augment import UNIFORMS, DiffParameters

F64 = torch.float64
SIZES = [(32, 32), (1, 1), (7, 250), (33, 2), (5, 6)]


def uniforms_on(device, batch, seed=0):
    return torch.rand(batch, UNIFORMS, dtype=F64, generator=torch.Generator().manual_seed(seed)).to(
        device
    )


def both(uniforms, size, **options):
    calls = ops.diff_augment_parameters, reference.diff_augment_parameters
    return [function(uniforms, *size, **options) for function in calls]


@pytest.mark.parametrize("before, after", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, F64, torch.bfloat16])
def test_values(backend, dtype, size, before, after):
    for batch in (0, 1, 31, 33):
        for channels in (0, 1, 3):
            found, expected = both(
                uniforms_on(backend, batch, batch),
                size,
                color_channels=channels,
                mix=True,
                before=before,
                after=after,
                dtype=dtype,
            )
            assert torch.equal(found.maps, expected.maps)  # whole pixels
            for x, y in zip(found, expected, strict=True):
                assert (x is None) == (y is None)
                if x is not None:
                    assert x.dtype == y.dtype
                    rounding = 4 * torch.finfo(x.dtype).eps
                    torch.testing.assert_close(x, y, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("translation, cutout", [(0.125, 0.2), (0.3, 0.5), (0.0, 0.0), (1, 1.0)])
@pytest.mark.parametrize("before, after", [(False, False), (True, False), (False, True)])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_other_ratios(backend, size, before, after, translation, cutout):
    u = uniforms_on(backend, 33)
    options = {"before": before, "after": after}
    ratios = {"translation": translation, "cutout": cutout}
    everything = {"color_channels": 3, "mix": True}
    found, expected = both(u, size, **options, **ratios, **everything)
    usual = ops.diff_augment_parameters(u, *size, **options, **everything)
    for name in ("maps", "box"):
        assert torch.equal(getattr(found, name), getattr(expected, name))
    for name in ("color", "mix", "shade"):  # as of any ratios
        assert torch.equal(getattr(found, name), getattr(usual, name))
    reach = found.maps[:, :, 2].abs().amax(0).tolist()
    assert all(r <= int(n * translation + 0.5) for r, n in zip(reach, size[::-1], strict=True))
    assert (found.box[:, 2] == cutout).all()
    alone = ops.diff_augment_parameters(u, *size, maps=False, **options, **ratios)
    assert alone.maps is alone.color is alone.mix is None
    assert torch.equal(alone.box, found.box)
    none = ops.diff_augment_parameters(u, *size, maps=False, box=False, **everything, **ratios)
    assert none.maps is none.box is None


@pytest.mark.parametrize("name", ["translation", "cutout"])
@pytest.mark.parametrize(
    "error, value, said",
    [
        (ValueError, 1.01, "at most 1, a fraction of each side, got 1.01"),
        (ValueError, -0.1, "finite and not negative, got -0.1"),
        (ValueError, math.nan, "finite and not negative, got nan"),
        (TypeError, "0.5", "a number, got str"),
        (TypeError, True, "a number, got bool"),
    ],
)
def test_bad_ratios(name, error, value, said):
    with pytest.raises(error, match=f"^diff_augment_parameters: expected {name} to be {said}"):
        ops.diff_augment_parameters(uniforms_on("cpu", 2), 8, 8, **{name: value})


@pytest.mark.parametrize("edge", [0.0, 0.5, 1 - 2.0**-53])
def test_edges(backend, edge):
    """The ends of what is drawn stay within an eighth, and on pixels."""
    found, expected = both(torch.full((2, UNIFORMS), edge, dtype=F64, device=backend), (25, 42))
    assert torch.equal(found.maps, expected.maps)
    assert torch.equal(found.box, expected.box)
    assert found.maps[0, :, 2].abs().cpu().le(torch.tensor([5, 3])).all()


def test_by_hand(backend):
    row = torch.tensor([[0.75, 0.25, 0.5, 0.99, 0.0, 0.5, 0.0]], dtype=F64, device=backend)
    found = ops.diff_augment_parameters(row, 16, 24, color_channels=1, mix=True, dtype=F64)
    assert found.maps.tolist() == [[[1, 0, 3], [0, 1, -2]]]
    assert found.box.tolist() == [[12 / 24, 0, 0.5]]
    assert found.mix.tolist() == [[0.5, 0.5, 0, 0.25]]
    assert found.color.tolist() == [[[1, 0.25]]]
    before = ops.diff_augment_parameters(row, 16, 24, before=True)
    assert before.box.tolist() == [[15 / 24, -2 / 16, 0.5]]
    assert before.mix is before.color is before.shade is None
    after = ops.diff_augment_parameters(row, 16, 24, after=True)
    assert after.box.tolist() == [[9 / 24, 2 / 16, 0.5]]
    assert found.shade.tolist() == [0]
    with pytest.raises(ValueError, match="expected before or after, got both"):
        ops.diff_augment_parameters(row, 16, 24, before=True, after=True)


def test_the_mean_of_an_image_stays_where_brightness_puts_it(backend):
    """Saturation and contrast are about it: c S(y) + b has the mean m + b."""
    mix = ops.diff_augment_parameters(uniforms_on(backend, 50), 8, 8, mix=True, dtype=F64).mix
    pixel, gray, mean, offset = mix.unbind(1)
    m = 0.7
    moved = (pixel + gray) * (1 + mean) * m + offset
    torch.testing.assert_close(moved - offset, torch.full_like(moved, m))


def test_shade_is_what_color_makes_of_the_mean(backend):
    u = uniforms_on(backend, 50)
    found = ops.diff_augment_parameters(u, 8, 8, color_channels=3, mix=True, dtype=F64)
    rows = found.color[:, :, :3].sum(2) * found.mix[:, 2:3]
    torch.testing.assert_close(rows, found.shade[:, None].expand(-1, 3))


@pytest.mark.parametrize("backend", ["emu"], indirect=True)
def test_one_launch(backend):
    panel = emulator()
    panel.reset_counters()
    ops.diff_augment_parameters(uniforms_on(backend, 70), 24, 40, color_channels=3, mix=True)
    counted = panel.counters()
    assert counted["launches"] == {"diff_augment": 1}
    moved = {name: tuple(int(x) for x in both) for name, both in counted["buffers"].items()}
    assert moved == {
        "uniforms": (70 * 56, 0),
        "maps": (0, 70 * 48),
        "box": (0, 70 * 24),
        "color": (0, 70 * 48),
        "mix": (0, 70 * 16),
        "shade": (0, 70 * 4),
    }
    panel.reset_counters()
    ops.diff_augment_parameters(uniforms_on(backend, 0), 24, 40)
    assert panel.counters()["launches"] == {}


def test_opcheck(backend):
    op = native_ops().diff_augment_parameters.default
    u = uniforms_on(backend, 5)
    for options in (
        (True, True, 3, True, False, False, False),
        (False, True, 0, False, True, False, True),
    ):
        torch.library.opcheck(op, (u, 9, 14, *options))


def test_the_operator_itself_refuses(backend):
    op = native_ops().diff_augment_parameters
    good = [uniforms_on(backend, 5), 9, 14, True, True, 3, True, False, False, False]
    op(*good)
    for place, wrong in (
        (0, good[0].float()),
        (0, good[0][:, :6]),
        (0, good[0].t().contiguous().t()),
        (0, good[0][0]),
        (1, 0),
        (2, -1),
        (5, 2),
    ):
        arguments = list(good)
        arguments[place] = wrong
        with pytest.raises(RuntimeError, match="diff_augment_parameters: expected"):
            op(*arguments)


def test_fake_tensors():
    with FakeTensorMode():
        u = torch.rand(4, UNIFORMS, dtype=F64)
        found = ops.diff_augment_parameters(u, 9, 14, color_channels=3, mix=True)
    assert [tuple(x.shape) for x in found] == [(4, 2, 3), (4, 3), (4, 3, 4), (4, 4), (4,)]
    assert isinstance(found, DiffParameters)


def test_nothing_is_differentiable(backend):
    u = uniforms_on(backend, 3).requires_grad_()
    for found in both(u, (8, 8), color_channels=3, mix=True):
        assert not any(x.requires_grad for x in found)


@pytest.mark.parametrize(
    ("error", "said", "changed"),
    [
        (TypeError, "uniforms to be a tensor, got list", {"uniforms": [0.5] * 7}),
        (ValueError, r"uniforms of float64 and shape \(B, 7\)", {"uniforms": torch.rand(4, 7)}),
        (ValueError, "uniforms of float64", {"uniforms": torch.rand(4, 6, dtype=F64)}),
        (ValueError, "height to be at least 1", {"height": 0}),
        (TypeError, "width to be an integer", {"width": 8.0}),
        (ValueError, "0, 1 or 3 color_channels, got 2", {"color_channels": 2}),
        (TypeError, "maps to be True or False", {"maps": 1}),
        (TypeError, "before to be True or False", {"before": math.nan}),
        (ValueError, "dtype float32, float64", {"dtype": torch.int64}),
    ],
)
def test_errors(error, said, changed):
    arguments = {"uniforms": uniforms_on("cpu", 4), "height": 8, "width": 8} | changed
    with pytest.raises(error, match=f"^diff_augment_parameters: expected {said}"):
        ops.diff_augment_parameters(**arguments)
