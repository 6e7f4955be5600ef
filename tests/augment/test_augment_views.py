"""Augmentations of lists, of clips, and what they say of images of other types."""

import re
from functools import partial

import pytest
import torch

import gankernels
from gankernels.augment import APA, ADAController, ADAPipe, DiffAugment, _clips
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
        (ValueError, r"clips \(B, C, T, H, W\), with pixels, got \(4,\)", [torch.ones(4)]),
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

CLIPS = {
    **AUGMENTATIONS,
    "ratios": DiffAugment(cutout=0.2, translation=0.3),
    "p": DiffAugment("color", p=0.999),
    "stylegan2-ada geometry": lambda x, generator: (
        ADAPipe("bg", p=0.7, mode="stylegan2-ada").sample(4, generator=generator).geometry(x)
    ),
}


def clips_of(batch=4, channels=3, frames=5, size=(16, 12), dtype=torch.float32):
    x = torch.randn(batch, channels, frames, *size, generator=seeded(1), dtype=torch.float64)
    return x.to(dtype)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", CLIPS)
def test_a_clip_has_one_transform(name, channels):
    """Every frame is what it is as an image, from the same state, and from as many numbers."""
    augment, clips = CLIPS[name], clips_of(channels=channels)
    generator, alone = seeded(), seeded()
    found = augment(clips, generator=generator)
    frames = augment(list(clips.unbind(2)), generator=alone)
    assert torch.equal(generator.get_state(), alone.get_state())
    # torch's mean of an image, which DiffAugment's color is about, rounds by its strides.
    rounding = 1e-6 if isinstance(augment, DiffAugment) else 0
    close = partial(torch.testing.assert_close, rtol=rounding, atol=rounding)
    close(found, torch.stack(frames, 2))
    close(found[:, :, 3], augment(clips[:, :, 3], generator=seeded()))
    assert not torch.equal(found, clips)
    still = augment(clips[:, :, :1].expand_as(clips), generator=seeded())
    close(still, still[:, :, :1].expand_as(still))  # noise and cutout stand still


@pytest.mark.parametrize("preset", ["bg", "bgcfnc"])
def test_clips_on_every_device(backend, preset):
    """And upside down, beside the reference; and the gradient."""
    clips = clips_of(2, 3, 3, (8, 10), torch.float64)
    t = ADAPipe(preset, p=0.8, yflip=1).sample(2, generator=seeded())
    found = []
    for transform, x in ((t.to(backend), clips.to(backend)), (t, clips)):
        x.requires_grad_()
        with gankernels.backend("native" if x is not clips else "reference"):
            y = transform(x)
            (grad,) = torch.autograd.grad(y.square().sum(), x)
        found.append((y.detach().cpu(), grad.cpu()))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    x = clips.detach().to(backend)
    for augment in (DiffAugment(), DiffAugment(cutout=0.2, p=0.9)):
        torch.manual_seed(1)
        y = augment(x)
        torch.manual_seed(1)
        frames = augment(list(x.unbind(2)))
        torch.testing.assert_close(y, torch.stack(frames, 2), rtol=1e-12, atol=1e-12)


FORMATS = {
    "contiguous": lambda x: x,
    "channels_last_3d": lambda x: x.to(memory_format=torch.channels_last_3d),
    "frames of the batch": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "strided": lambda x: x.repeat_interleave(2, 4)[..., ::2],
    "expanded": lambda x: x[:, :1].expand_as(x),
}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("augment", [ADAPipe("bgcfnc", p=0.8), ADAPipe("bg"), DiffAugment()])
def test_memory_formats_of_clips(augment, name, dtype):
    clips = FORMATS[name](clips_of(dtype=dtype))
    found = augment(clips, generator=seeded())
    assert found.dtype == dtype
    assert found.shape == clips.shape
    expected = augment(clips.contiguous(), generator=seeded())
    rounding = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(found, expected, rtol=rounding, atol=rounding)
    if name in ("contiguous", "channels_last_3d", "frames of the batch"):
        assert found.stride() == clips.stride()


@pytest.mark.parametrize("name", ["channels_last_3d", "frames of the batch", "one channel"])
def test_clips_whose_frames_are_a_view_are_not_copied(name):
    clips = clips_of(channels=1) if name == "one channel" else FORMATS[name](clips_of())
    assert _clips.frames_of(clips).data_ptr() == clips.data_ptr()
    back = _clips.clips_of(_clips.frames_of(clips), clips)
    assert back.data_ptr() == clips.data_ptr()
    assert torch.equal(back, clips)


@pytest.mark.parametrize("name", ["bgcfnc", "stylegan2-ada", "geometry", "DiffAugment"])
def test_gradients_of_clips(name):
    clips = clips_of(4, 3, 2, (4, 5), torch.float64).requires_grad_()

    def run(x):
        return CLIPS[name](x, generator=seeded(3))

    assert torch.autograd.gradcheck(run, clips, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x: run(x) ** 2, clips, fast_mode=True)


def test_transforms_of_clips_are_objects_too():
    t, clips = ADAPipe("bgcfnc", p=0.8).sample(4, generator=seeded()), clips_of()
    found = t(clips)
    assert torch.equal(t(clips), found)
    assert torch.equal(t[1:3](clips[1:3]), found[1:3])
    assert torch.equal(t[[2]](clips[2:3]), found[2:3])
    assert torch.equal(t(clips[:, :, ::2]), found[:, :, ::2])  # of any number of frames
    both = t([clips, clips[:, :, 0]])  # for a critic of clips and one of images
    assert torch.equal(both[0][:, :, 0], both[1])
    for wrong in (clips[:3], clips.transpose(0, 2)):
        with pytest.raises(ValueError, match="expected 4 images, one for each that was drawn"):
            t(wrong)
        with pytest.raises(ValueError, match="expected 4 images, one for each that was drawn"):
            t.geometry(wrong)


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_masks_of_clips(dtype):
    t, masks = ADAPipe("bg").sample(4, generator=seeded()), clips_of(channels=1).gt(0).to(dtype)
    found = t.geometry(masks)
    assert found.dtype == dtype
    assert torch.equal(found, torch.stack(t.geometry(list(masks.unbind(2))), 2))
    color = ADAPipe("color").sample(4)
    assert torch.equal(color.geometry(masks), masks)
    assert color.geometry(masks).data_ptr() != masks.data_ptr()


def test_the_number_of_channels_of_clips():
    pipe = ADAPipe("bgc")
    with pytest.raises(ValueError, match="1 or 3 channels for color transforms, got 4"):
        pipe(clips_of(channels=4))
    chosen = ADAPipe("color", color_channels=(0, 1, 2))
    found = chosen(clips_of(channels=4))
    assert torch.equal(found[:, 3], clips_of(channels=4)[:, 3])


@pytest.mark.parametrize("augment", [ADAPipe("bgc"), DiffAugment(p=0.5)])
def test_empty_batches_of_clips(augment):
    clips = clips_of()[:0].requires_grad_()
    found = augment(clips)
    assert found.shape == clips.shape
    found.sum().backward()
    assert clips.grad.shape == clips.shape


def test_the_controller_of_a_pipe_of_clips():
    """p moves as with images: it is the scores that are counted, whatever they are of."""
    found = []
    for x in (clips_of(), clips_of()[:, :, 0]):
        pipe = ADAPipe("bgc", p=0.2)
        controller = ADAController(pipe, interval=1, kimg=1)
        scores = pipe(x, generator=seeded()).flatten(1).mean(1).abs()
        controller.update(scores)
        found.append(pipe.p.item())
    assert found[0] == found[1] > 0.2


@pytest.mark.slow
def test_clips_compile_into_one_graph():
    torch._dynamo.reset()
    for augment in (ADAPipe("bgcfnc", p=0.6), DiffAugment(p=0.5)):
        compiled = torch.compile(augment, fullgraph=True, backend="aot_eager")
        clips = clips_of()
        torch.manual_seed(0)
        expected = augment(clips)
        torch.manual_seed(0)
        torch.testing.assert_close(compiled(clips), expected)


@pytest.mark.parametrize("name", ["pipe", "transform", "geometry", "preview", "DiffAugment"])
def test_the_cure_for_audio(name):
    """The error's text, and that what it names takes audio."""
    pipe = ADAPipe("bgc")
    t = pipe.sample(4)
    calls = {
        "pipe": pipe,
        "transform": t,
        "geometry": t.geometry,
        "preview": lambda x: pipe.preview(x, 0.7),
        "DiffAugment": DiffAugment(),
    }
    audio = torch.randn(4, 1, 256, generator=seeded())
    with pytest.raises(ValueError, match=r"images\[None\]; audio \(B, C, L\) goes through APA and"):
        calls[name](audio)
    assert APA(0.5)(audio, audio).shape == audio.shape
    assert InstanceNoise(0.1, "constant")(audio).shape == audio.shape


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
