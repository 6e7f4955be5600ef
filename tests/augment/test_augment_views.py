"""Augmentations of lists, of clips, and what they say of images of other types."""

import re

import pytest
import torch

from gankernels.augment import APA, ADAPipe, DiffAugment
from gankernels.regularizers import InstanceNoise, consistency_regularization

SIZES = ((16, 16), (8, 12), (1, 5))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def views_of(batch=4, channels=3, dtype=torch.float32):
    draw = seeded(1)
    return [torch.randn(batch, channels, *size, generator=draw).to(dtype) for size in SIZES]


# --- lists ---------------------------------------------------------------------------------------

AUGMENTATIONS = {
    "bg": ADAPipe("bg", p=0.7),
    "bgcfnc": ADAPipe("bgcfnc", p=0.7),
    "stylegan2-ada": ADAPipe("bgc", p=0.7, mode="stylegan2-ada", seed_compat=True),
    "preview": lambda x, generator: ADAPipe("bgcfnc").preview(x, 0.7, generator=generator),
    "transform": lambda x, generator: ADAPipe("bgcfnc", p=0.7).sample(4, generator=generator)(x),
    "geometry": lambda x, generator: (
        ADAPipe("bg", p=0.7).sample(4, generator=generator).geometry(x, "bilinear")
    ),
    "DiffAugment": DiffAugment(),
    "DiffAugment in another order": DiffAugment("cutout,color"),
}


@pytest.mark.parametrize("of", [list, tuple])
@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_a_list_has_one_transform_a_sample(name, of):
    """What each size alone gets from the same state of the generator; of all the same draws."""
    augment, views = AUGMENTATIONS[name], views_of()
    generator = seeded()
    found = augment(of(views), generator=generator)
    assert isinstance(found, list)
    for x, y in zip(views, found, strict=True):
        alone = seeded()
        assert torch.equal(y, augment(x, generator=alone))
        assert torch.equal(generator.get_state(), alone.get_state())
    assert not torch.equal(found[0], views[0])


def test_scales_of_an_image_go_the_same_way():
    """Nearest neighbors of twice the size, flipped and turned, are those of the transformed."""
    small = torch.randn(8, 3, 8, 8, generator=seeded(2))
    large = small.repeat_interleave(2, 2).repeat_interleave(2, 3)
    found = ADAPipe(xflip=1, rotate90=1)([small, large], generator=seeded())
    assert torch.equal(found[1], found[0].repeat_interleave(2, 2).repeat_interleave(2, 3))
    assert not torch.equal(found[0], small)


def test_lists_may_mix_dtypes_and_channels():
    images = torch.randn(3, 3, 8, 8, generator=seeded())
    mixed = [images.double(), images.bfloat16(), images[:, :1]]
    found = ADAPipe("bgc")(mixed, generator=seeded())
    assert [(x.dtype, x.shape) for x in found] == [(x.dtype, x.shape) for x in mixed]


def test_apa_replaces_a_sample_in_all_sizes():
    real = [torch.zeros(200, 1, 2, 2), torch.zeros(200, 3)]
    fake = [torch.ones_like(x).requires_grad_() for x in real]
    first, second = APA(0.4)(real, fake, generator=seeded())
    assert torch.equal(first[:, 0, 0, 0], second[:, 0])
    assert 0.3 < second.mean() < 0.5
    assert not first.requires_grad
    assert torch.equal(first, APA(0.4)(real[0], fake[0], generator=seeded()))


def test_instance_noise_of_a_list_is_independent():
    module = InstanceNoise(0.5, "constant")
    x = torch.zeros(4, 3)
    generator = seeded()
    found = module([x, x.double()], generator)
    assert [y.dtype for y in found] == [torch.float32, torch.float64]
    generator = seeded()
    assert torch.equal(found[0], module(x, generator))
    assert torch.equal(found[1], module(x.double(), generator))
    assert not torch.allclose(found[0].double(), found[1])
    assert module.eval()([x])[0] is x


@pytest.mark.parametrize("augment", [ADAPipe("bg"), DiffAugment(), InstanceNoise(0.1, "constant")])
def test_consistency_of_several_scales(augment):
    weight = torch.ones((), requires_grad=True)

    def critic(scales):
        return sum((weight * x).flatten(1).square().mean(1) for x in scales)

    consistency_regularization(critic, views_of(), augment).backward()
    assert weight.grad.isfinite()
    assert weight.grad > 0


@pytest.mark.parametrize(
    ("error", "said", "views"),
    [
        (ValueError, "of at least one size, got none", []),
        (ValueError, r"same samples, got images of shapes \(4, 3, 8, 8\), \(3, 3, 8, 8\)", (4, 3)),
        (TypeError, "a tensor or a list of them, got list with list in it", [[torch.ones(1)]]),
        (TypeError, "a tensor or a list of them, got generator", (x for x in views_of())),
        (TypeError, "a tensor or a list of them, got dict", {"a": torch.ones(1, 3, 8, 8)}),
        (TypeError, "a tensor or a list of them, got NoneType", None),
        (TypeError, r"got torch.uint8; bring", [torch.ones(1, 3, 8, 8, dtype=torch.uint8)]),
        (ValueError, r"shape \(B, C, H, W\) with pixels, got \(4,\)", [torch.ones(4)]),
    ],
)
def test_bad_lists(error, said, views):
    if isinstance(views, tuple):
        views = [torch.ones(n, 3, 8, 8) for n in views]
    pipe = ADAPipe("bgc")
    calls = {
        "ADAPipe": pipe,
        "Transform": pipe.sample(4),
        "Transform.geometry": pipe.sample(4).geometry,
        "ADAPipe.preview": lambda x: pipe.preview(x, 0.5),
        "DiffAugment": DiffAugment(),
    }
    state = torch.get_rng_state()
    for name, call in calls.items():
        if name == "Transform.geometry" and "uint8" in said:
            continue
        with pytest.raises(error, match=f"^{name}: expected .*{said}"):
            call(views)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("error", "said", "pair"),
    [
        (TypeError, "real to be a tensor, got list", ([torch.ones(2)], torch.ones(2))),
        (TypeError, "fake to be a tensor, got list", (torch.ones(2), [torch.ones(2)])),
        (ValueError, "of one length, got 2 and 1", ([torch.ones(2)] * 2, [torch.ones(2)])),
        (ValueError, "of one shape and dtype", ([torch.ones(2)], [torch.ones(2, 1)])),
        (ValueError, "same samples, got real of shapes", ([torch.ones(2), torch.ones(3)],) * 2),
    ],
)
def test_bad_pairs_of_lists(error, said, pair):
    with pytest.raises(error, match=f"^APA: expected .*{said}"):
        APA(0.5)(*pair)


# --- clips ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["pipe", "transform", "geometry", "preview", "DiffAugment"])
def test_the_cure_for_clips_is_one_transform_a_clip(name):
    """The error's text, executed: frames that are alike stay alike, and clips differ."""
    pipe, augment = ADAPipe("bgc"), DiffAugment()
    t = pipe.sample(3, generator=seeded())
    calls = {
        "pipe": pipe,
        "transform": t,
        "geometry": t.geometry,
        "preview": lambda x: pipe.preview(x, 0.7),
        "DiffAugment": augment,
    }
    clips = torch.randn(1, 3, 1, 16, 12, generator=seeded(1)).repeat(3, 1, 5, 1, 1)
    with pytest.raises(ValueError, match=r"expected images of shape \(B, C, H, W\)") as raised:
        calls[name](clips)
    *before, last = str(raised.value).partition(" alike: ")[2].split("; ")
    given = {"clips": clips, "pipe": pipe, "t": t, "augment": augment, "torch": torch}
    given["percentile"] = 0.7
    exec("\n".join(before), given)
    found = eval(last, given)
    assert found.shape == clips.shape
    assert torch.equal(found, found[:, :, :1].expand_as(found))
    assert not torch.equal(found[0], clips[0])
    assert torch.equal(found[0], found[1]) == (name == "preview")


# --- images of other types -----------------------------------------------------------------------

PIXELS = {
    torch.uint8: [0, 128, 2**8 - 1],
    torch.uint16: [0, 2**15, 2**16 - 1],
    torch.uint32: [0, 2**31, 2**32 - 1],
    torch.uint64: [0, 2**63, 2**64 - 1],
    torch.int8: [-(2**7), 0, 2**7 - 1],
    torch.int16: [-(2**15), 0, 2**15 - 1],
    torch.int32: [-(2**31), 0, 2**31 - 1],
    torch.int64: [-(2**63), 0, 2**63 - 1],
}


@pytest.mark.parametrize("augment", [ADAPipe("bgc"), ADAPipe("bgc").sample(1), DiffAugment()])
@pytest.mark.parametrize("dtype", PIXELS)
def test_the_cure_for_integers_is_of_their_range(dtype, augment):
    images = torch.tensor(PIXELS[dtype], dtype=dtype).view(1, 1, 1, 3)
    with pytest.raises(TypeError, match=f"got {dtype}; bring them to") as raised:
        augment(images)
    cure = re.search(r"as in (.*?)(,? where they fill|$)", str(raised.value))[1]
    found = eval(cure, {"images": images}).flatten()
    torch.testing.assert_close(found, torch.tensor([-1.0, 0, 1]), rtol=0, atol=5e-3)


def test_the_cure_for_masks():
    images = torch.tensor([False, True]).view(1, 1, 1, 2)
    with pytest.raises(TypeError, match=re.escape("as in 2 * images.float() - 1")):
        ADAPipe("bgc")(images)


def _nested():
    return torch.nested.nested_tensor([torch.ones(3, 4, 4)] * 2, layout=torch.jagged)


@pytest.mark.parametrize(
    ("said", "images"),
    [
        (r"torch.sparse_coo; pass \w*.to_dense\(\)", torch.ones(2, 3, 4, 4).to_sparse()),
        ("torch._mkldnn; pass", torch.ones(2, 3, 4, 4).to_mkldnn()),
        ("a nested tensor; give", _nested()),
        ("float8", torch.ones(2, 3, 4, 4).to(torch.float8_e4m3fn)),
    ],
    ids=["sparse", "mkldnn", "nested", "float8"],
)
def test_tensors_of_other_kinds(said, images):
    pipe, t = ADAPipe("bgc"), ADAPipe("bgc").sample(2)
    calls = {"ADAPipe": pipe, "Transform": t, "DiffAugment": DiffAugment()}
    if said != "float8":
        calls["Transform.geometry"] = t.geometry
        calls["APA"] = lambda x: APA(0.5)(x, x)
        calls["InstanceNoise"] = InstanceNoise(0.1, "constant")
    for name, call in calls.items():
        with pytest.raises(TypeError, match=f"^{name}: expected .*{said}"):
            call(images)
