"""What augmentations and regularizers refuse, in the name of the function that was called."""

import math
import re
import warnings
from functools import partial

import pytest
import torch
from torch._subclasses import FakeTensorMode

import gankernels
from gankernels import ops, regularizers
from gankernels._checks import kind
from gankernels.augment import ADAController, ADAPipe, ADASchedule, DiffAugment, Transform
from gankernels.augment.draws import draw_compat
from gankernels.ops.ada_parameters import NORMALS, UNIFORMS, AdaConstants, AdaMultipliers

IMAGE = torch.ones(1, 3, 8, 8)
MAPS = torch.eye(2, 3)[None]


def refused(error, name, call, said=""):
    with pytest.raises(error, match=f"^{re.escape(name)}: expected .*{said}"):
        call()


NO_BOOLS = ("no", 1, 0, None, 1.0, torch.tensor(True))


@pytest.mark.parametrize("value", NO_BOOLS, ids=str)
def test_options_are_true_or_false(value):
    said = "to be True or False, got"
    for name in ("affine_resample", "affine_resample_transpose", "affine_augment"):
        call = partial(getattr(ops, name), IMAGE, MAPS, lossless_blits=value)
        refused(TypeError, name, call, said)
    refused(
        TypeError, "maps_from_theta", lambda: gankernels.maps_from_theta(MAPS, (2, 2), value), said
    )
    for option in ("lossless_blits", "seed_compat"):
        refused(TypeError, "ADAPipe", partial(ADAPipe, "bgc", **{option: value}), said)
    state = ADAPipe("bgc").sample(1).state_dict() | {"lossless_blits": value}
    refused(TypeError, "Transform.from_state_dict", lambda: Transform.from_state_dict(state), said)


SIZES = [
    (TypeError, (2.5, 2)),
    (TypeError, (math.nan, 2)),
    (TypeError, ("2", "2")),
    (TypeError, (True, 2)),
    (TypeError, (torch.tensor(2.0), 2)),
    (ValueError, "22"),
    (ValueError, 2),
    (ValueError, (2,)),
    (ValueError, {2, 3}),
    (ValueError, (0, 2)),
    (ValueError, (2, -1)),
    (ValueError, (2**63, 2)),
    (ValueError, (2, 10**30)),
]


@pytest.mark.parametrize(("error", "size"), SIZES, ids=str)
def test_sizes_are_two_positive_integers(error, size):
    for name, call in {
        "maps_from_theta": lambda: gankernels.maps_from_theta(MAPS, size),
        "affine_resample": lambda: ops.affine_resample(IMAGE, MAPS, output_size=size),
        "affine_resample_transpose": lambda: ops.affine_resample_transpose(
            IMAGE, MAPS, input_size=size
        ),
    }.items():
        refused(error, name, call, r"size to be \(height, width\)")
    call = partial(gankernels.maps_from_theta, MAPS, (2, 2), output_size=size)
    refused(error, "maps_from_theta", call, "output_size")


@pytest.mark.parametrize("maps", [None, "x", 5, [[1.0]], MAPS.to_sparse(), MAPS.int()], ids=kind)
def test_maps_are_real_tensors(maps):
    for name in ("affine_resample", "affine_resample_transpose", "affine_augment"):
        if maps is not None or name != "affine_augment":
            refused(TypeError, name, partial(getattr(ops, name), IMAGE, maps), "inverse_maps")
    if not isinstance(maps, torch.Tensor):
        refused(
            ValueError, "maps_from_theta", lambda: gankernels.maps_from_theta(maps, (2, 2)), "theta"
        )
    refused(TypeError, "maps_from_theta", lambda: gankernels.maps_from_theta(MAPS.cfloat(), (2, 2)))


OTHERS = {
    "sparse": IMAGE.to_sparse(),
    "mkldnn": IMAGE.to_mkldnn(),
    "nested": torch.nested.nested_tensor([torch.ones(3, 4, 4)], layout=torch.jagged),
    "float8": IMAGE.to(torch.float8_e4m3fn),
    "complex": IMAGE.cfloat(),
    "integer": IMAGE.byte(),
    "generator": (x for x in [IMAGE]),
    "nothing": None,
}
CALLS = {
    "affine_resample": lambda x: ops.affine_resample(x, MAPS),
    "affine_resample_transpose": lambda x: ops.affine_resample_transpose(x, MAPS),
    "affine_augment": lambda x: ops.affine_augment(x, MAPS),
    "image_filter": lambda x: ops.image_filter(x, torch.ones(1, 4)),
    "image_filter_transpose": lambda x: ops.image_filter_transpose(x, torch.ones(1, 4)),
    "rotate_batch": regularizers.rotate_batch,
    "minibatch_stddev": regularizers.minibatch_stddev,
    "MinibatchDiscrimination": regularizers.MinibatchDiscrimination(8),
    "InstanceNoise": regularizers.InstanceNoise(0.1, "constant"),
    "ADAController.update": ADAController().update,
    "ADASchedule.update": ADASchedule(p=0.1, kimg=1).update,
    "ADAPipe": ADAPipe("bgc"),
    "DiffAugment": DiffAugment(),
}


@pytest.mark.parametrize("other", OTHERS)
@pytest.mark.parametrize("name", CALLS)
def test_images_and_scores_are_dense_real_tensors(name, other):
    # To the controller, None is a missing argument.
    refused((TypeError, ValueError), name, lambda: CALLS[name](OTHERS[other]))


@pytest.mark.parametrize("generator", ["x", 5, torch.ones(2)], ids=kind)
def test_generators(generator):
    said = "generator to be a torch.Generator or None"
    for name, call in {
        "ADAPipe": lambda: ADAPipe("bgc")(IMAGE, generator=generator),
        "ADAPipe.sample": lambda: ADAPipe("bgc").sample(2, generator=generator),
        "DiffAugment": lambda: DiffAugment()(IMAGE, generator=generator),
        "InstanceNoise": lambda: CALLS["InstanceNoise"](IMAGE, generator),
        "draw_compat": lambda: draw_compat(2, AdaMultipliers(xflip=1.0), generator),
    }.items():
        refused(TypeError, name, call, said)
    call = partial(ADAPipe("bgc").sample, 2, percentile=0.3, generator=generator)
    refused(TypeError, "ADAPipe.sample", call, said)


@pytest.mark.parametrize("number", [2**63, 10**400], ids=["int64", "float64"])
def test_integers_that_no_tensor_holds(number):
    for name, call in {
        "ADAPipe": lambda: ADAPipe(xflip=number),
        "ADAPipe.sample": lambda: ADAPipe("bgc").sample(number),
        "ADAController": lambda: ADAController(kimg=number),
        "InstanceNoise": lambda: regularizers.InstanceNoise(steps=number),
        "MinibatchStdDev": lambda: regularizers.MinibatchStdDev(number),
        "rotation_loss": lambda: regularizers.rotation_loss(
            torch.ones(1, 4), torch.zeros(1, dtype=torch.int64), weight=number
        ),
    }.items():
        refused(ValueError, name, call, r"at most 2\^63 - 1")


def test_strengths_that_overflow():
    uniforms, normals = (torch.zeros(2, n, dtype=torch.float64) for n in (UNIFORMS, NORMALS))
    for constants, said in (
        (AdaConstants(scale_std=1e30), "scale_std to be at most 8"),
        (AdaConstants(imgfilter_std=8.5), "imgfilter_std to be at most 8"),
        (AdaConstants(noise_std=2e6), "noise_std to be at most"),
        (AdaConstants(hue_max="1"), "hue_max to be a number"),
    ):
        for backend in ("native", "reference"):
            with gankernels.backend(backend):
                refused(
                    (TypeError, ValueError),
                    "ada_parameters",
                    lambda c=constants: ops.ada_parameters(
                        torch.tensor(1.0),
                        AdaMultipliers(scale=1.0),
                        uniforms=uniforms,
                        normals=normals,
                        constants=c,
                    ),
                    said,
                )


def test_channels_are_integers():
    color = torch.ones(1, 1, 2)
    for channels in (5, "0", (0.0,), (True,)):
        options = {"color": color, "color_channels": channels}
        call = partial(ops.affine_augment, IMAGE, MAPS, **options)
        refused(TypeError, "affine_augment", call, "color_channels")


# --- images in 0 to 255 ---------------------------------------------------------------------------

BYTES = 255 * torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
COLORED = {
    "bgc": lambda: ADAPipe("bgc", p=0.0),
    "noise": lambda: ADAPipe("noise", p=0.5),
    "diff": lambda: DiffAugment("color"),
}
RANGE = r"expected images in \[-1, 1\], .* got values up to 25\d"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", COLORED)
@pytest.mark.parametrize("views", [False, True], ids=["images", "views"])
def test_images_in_0_to_255_are_told_once(name, views, dtype):
    pipe, images = COLORED[name](), BYTES.to(dtype)
    given = [images, images[..., ::2, ::2]] if views else images
    with pytest.warns(UserWarning, match=RANGE) as found:
        pipe(given)
    assert len(found) == 1
    assert found[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe(given)
        COLORED[name]()(given)


def test_clips_in_0_to_255_are_told():
    with pytest.warns(UserWarning, match=RANGE):
        ADAPipe("bgc", p=0.0)(BYTES.unsqueeze(2))


@pytest.mark.parametrize(
    "images",
    [IMAGE, 3 * IMAGE, -15 * IMAGE, IMAGE[:0], IMAGE * math.nan],
    ids=["ones", "standardized", "wild", "empty", "nan"],
)
@pytest.mark.parametrize("name", COLORED)
def test_other_images_are_not(name, images, recwarn):
    COLORED[name]()(images)
    assert list(recwarn) == []


def test_transforms_that_know_no_range_say_nothing(recwarn):
    for pipe in (ADAPipe("bg", p=0.5), ADAPipe("filter"), DiffAugment("translation,cutout")):
        pipe(BYTES)
    assert list(recwarn) == []


def test_a_later_call_tells_as_well(recwarn):
    """The first images of a run may be black."""
    pipe = ADAPipe("bgc", p=0.0)
    pipe(torch.zeros_like(BYTES))
    pipe(BYTES)
    assert len(recwarn) == 1


def test_traced_and_mapped_images_are_not_looked_at(recwarn):
    pipe = ADAPipe("bgc", p=0.0)
    torch.func.vmap(pipe, randomness="different")(BYTES[None])
    with FakeTensorMode(allow_non_fake_inputs=True):
        pipe(torch.empty(2, 3, 8, 8))
    torch.compile(lambda x: pipe(x), backend="eager")(BYTES)
    assert list(recwarn) == []


# --- (B, H, W, C) ---------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "pipe", [lambda: ADAPipe("bg", p=0.0), lambda: DiffAugment("translation")], ids=["ada", "diff"]
)
def test_channels_at_the_end_are_told_of(pipe, channels, recwarn):
    pipe()(torch.ones(2, channels, 8, 8))
    pipe()(torch.ones(2, 4, 8, channels))  # a map of few rows
    assert list(recwarn) == []
    with pytest.warns(UserWarning, match=r"look like \(B, H, W, C\); take images.permute"):
        pipe()(torch.ones(2, 8, 8, channels))


def test_channels_at_the_end_are_no_color_channels():
    with pytest.warns(UserWarning, match="B, H, W, C"):
        refused(
            ValueError,
            "ADAPipe",
            lambda: ADAPipe("bgc")(torch.ones(2, 8, 8, 3)),
            r"got 8; where they are \(B, H, W, C\), take images.permute\(0, 3, 1, 2\)",
        )
