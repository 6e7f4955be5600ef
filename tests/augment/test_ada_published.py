"""ADAPipe in the mode "stylegan2-ada" against the published pipeline, step by step in float64."""

import pytest
import torch

from benchmarks.published import stylegan2_ada as _ada
from gankernels import ops
from gankernels.augment import PRESETS, ADAPipe
from gankernels.reference._noise import normal_noise

SIZES = [
    *((3, 16, 16), (3, 24, 40), (1, 33, 27), (3, 5, 7), (1, 3, 3), (3, 2, 9)),
    *((1, 1, 4), (1, 1, 1), (3, 1, 1), (3, 1, 5), (3, 7, 1), (3, 2, 2), (3, 2, 3)),
]
STRENGTHS = (0.15, 0.6, 1.0)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def parameters_of(t, preset, size):
    return ops.ada_parameters(
        None,
        PRESETS[preset],
        values=t.values,
        seed=t.seed,
        height=size[1],
        width=size[2],
        color_channels=size[0] if PRESETS[preset].color(size[0]) else 0,
        dtype=torch.float64,
    )


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("preset", PRESETS)
def test_equals_the_published_pipeline(preset, size):
    noisy = PRESETS[preset].noise > 0
    for p in STRENGTHS:
        pipe = ADAPipe(preset, p=p, mode="stylegan2-ada")
        for seed in range(3):
            x = 2 * torch.rand(3, *size, dtype=torch.float64, generator=seeded(seed)) - 1
            found = pipe(x, generator=seeded(seed + 50))
            t = pipe.sample(3, channels=size[0], generator=seeded(seed + 50))
            q = parameters_of(t, preset, size)
            noise = normal_noise(t.seed, x.shape[1:], torch.float64) if noisy else None
            expected = _ada.augment(x, q.maps, q.color, q.gains, q.sigma, noise, q.box)
            # Noise is made in float32, whatever the images.
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 if noisy else 1e-10)
            assert torch.equal(t(x), found)


def test_margins_are_clamped_in_some_cases_and_not_in_others():
    """Those of the test above: else it would not see what clamping does."""
    clamped = {"bgc": set(), "geom": set()}
    for preset, found in clamped.items():
        for size in SIZES:
            for p in STRENGTHS:
                pipe = ADAPipe(preset, p=p, mode="stylegan2-ada")
                maps = parameters_of(pipe.sample(3, generator=seeded(50)), preset, size).maps
                margins = _ada.geometry_margins(maps, *size[1:])
                limits = torch.tensor([size[2] - 1] * 2 + [size[1] - 1] * 2)
                found.update((margins == limits)[limits > 6].tolist())
        assert found == {True, False}


@pytest.mark.parametrize("preset", ["bg", "bgc"])
def test_the_ideal_mode_is_another_one(preset):
    """A comparison that can fail: margins that do not suffice show."""
    x = 2 * torch.rand(4, 3, 24, 40, dtype=torch.float64, generator=seeded(0)) - 1
    pipes = [
        ADAPipe(preset, mode=mode, lossless_blits=False) for mode in ("ideal", "stylegan2-ada")
    ]
    found = [pipe(x, generator=seeded(50)) for pipe in pipes]
    assert (found[0] - found[1]).abs().max() > 1e-7
