"""gankernels.augment: the pipe, and the transforms that it gives."""

import copy
import io
import math
import pickle

import pytest
import torch
from support.tensors import TOLERANCE, dtype_name
from torch import nn

import gankernels
from gankernels import ops, reference
from gankernels.augment import LABELS, PRESETS, ADAPipe, DiffAugment, Transform
from gankernels.augment.draws import draw_compat, preview_values
from gankernels.ops.ada_parameters import GROUPS, NORMALS, UNIFORMS, VALUES, AdaConstants

CHANNELS = {"gray": 1, "rgb": 3}


def seeded(seed=0, device="cpu"):
    return torch.Generator(device).manual_seed(seed)


def images_of(*shape, dtype=torch.float32, seed=1):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64).to(dtype)


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("there is no GPU")
    return request.param


# --- a call --------------------------------------------------------------------------------------


def by_hand(pipe, images, generator, module):
    """The passes over the images, spelled out."""
    uniforms = torch.rand(
        len(images), UNIFORMS, dtype=torch.float64, device=images.device, generator=generator
    )
    normals = torch.randn(
        len(images), NORMALS, dtype=torch.float64, device=images.device, generator=generator
    )
    m = pipe.settings.multipliers
    channels = images.shape[1] if m.color(3) else 0
    q = module.ada_parameters(
        pipe.p,
        m,
        uniforms=uniforms,
        normals=normals,
        height=images.shape[2],
        width=images.shape[3],
        color_channels=channels,
        dtype=images.dtype,
    )
    x = images
    if q.maps is not None:
        x = module.affine_augment(x, q.maps)
    if q.color is not None:
        x = module.affine_augment(x, color=q.color, color_channels=tuple(range(channels)))
    seed = None if q.sigma is None else q.seed
    if q.gains is not None:
        return module.image_filter(x, q.gains, sigma=q.sigma, seed=seed, box=q.box)
    return module.affine_augment(x, sigma=q.sigma, seed=seed, box=q.box)


@pytest.mark.parametrize("channels", CHANNELS.values(), ids=CHANNELS)
@pytest.mark.parametrize("preset", PRESETS)
def test_equals_the_reference_by_hand(preset, channels, device):
    pipe = ADAPipe(preset, p=0.7).to(device)
    images = images_of(6, channels, 18, 23, dtype=torch.float64).to(device)
    got = pipe(images, generator=seeded(3, device))
    expected = by_hand(pipe, images, seeded(3, device), reference)
    # Noise is computed in float32, whatever the images.
    tolerance = 1e-6 if pipe.settings.multipliers.noise else 1e-10
    torch.testing.assert_close(got, expected, rtol=0, atol=tolerance)
    assert not torch.equal(got, images)
    other = by_hand(pipe, images, seeded(4, device), reference)
    assert (got - other).abs().max() > 0.1  # a comparison that can fail


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=dtype_name)
@pytest.mark.parametrize("preset", ["bgc", "bgcfnc"])
def test_dtypes(preset, dtype, device):
    pipe = ADAPipe(preset, p=0.7).to(device)
    images = images_of(6, 3, 18, 23, dtype=dtype).to(device)
    got = pipe(images, generator=seeded(3, device))
    expected = pipe(images.double(), generator=seeded(3, device))
    assert got.dtype == dtype
    error = (got.double() - expected).abs().max() / expected.abs().max()
    # Two passes round twice.
    assert error < TOLERANCE[dtype] * (2 if preset == "bgcfnc" else 1)


def test_noise_and_cutout_come_last():
    pipe = ADAPipe(None, imgfilter=1, noise=1, cutout=1)
    t = pipe.sample(4, generator=seeded())
    images = images_of(4, 3, 32, 32)
    got = t(images)
    cut = t(images) == 0
    assert cut.flatten(1).sum(1).min() > 3 * 8 * 8  # exactly: nothing was filtered into the box
    noise = (got - t(torch.zeros_like(images)))[~cut]
    plain = ADAPipe(None, imgfilter=1)
    filtered = Transform(t.values, t.seed, plain.settings)(images)[~cut]
    torch.testing.assert_close(noise, filtered, rtol=0, atol=1e-5)  # white noise, not colored


def test_a_strength_of_zero_changes_no_bit():
    pipe = ADAPipe("bgcfnc", p=0.0)
    for dtype in (torch.float32, torch.bfloat16):
        images = images_of(3, 3, 9, 8, dtype=dtype).to(memory_format=torch.channels_last)
        images[0, 0, 0, 0] = -0.0
        got = pipe(images)
        assert torch.equal(got, images)
        assert got.data_ptr() != images.data_ptr()


@pytest.mark.parametrize("preset", ["bgc", "bgcfnc"])
def test_memory_format_is_kept(preset):
    pipe = ADAPipe(preset)
    images = images_of(3, 3, 16, 12)
    last = images.to(memory_format=torch.channels_last)
    plain, got = (pipe(x, generator=seeded()) for x in (images, last))
    assert got.is_contiguous(memory_format=torch.channels_last)
    assert plain.is_contiguous()
    torch.testing.assert_close(got, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("preset", ["bgcfnc", "blit", "color", "filter", "noise"])
def test_empty_batch(preset):
    images = torch.zeros(0, 3, 8, 8, requires_grad=True)
    got = ADAPipe(preset)(images)
    assert got.shape == images.shape
    got.sum().backward()
    assert images.grad.shape == images.shape
    assert len(ADAPipe(preset).sample(0)) == 0


def test_autocast_changes_nothing(device):
    pipe = ADAPipe("bgcfnc").to(device)
    images = images_of(4, 3, 12, 12).to(device)
    expected = pipe(images, generator=seeded(0, device))
    for name in ("native", "reference"):
        with gankernels.backend(name), torch.autocast(device, torch.bfloat16):
            got = pipe(images, generator=seeded(0, device))
        assert got.dtype == torch.float32
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-4)


def test_draws_come_from_the_generator():
    pipe, images = ADAPipe("bgcfnc"), images_of(4, 3, 12, 12)
    first, again, other = (pipe(images, generator=seeded(s)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(0)
    assert torch.equal(pipe(images), first)
    before = torch.get_rng_state()
    pipe(images, generator=seeded())
    assert torch.equal(torch.get_rng_state(), before)


def test_every_strength_takes_as_many_random_numbers():
    images, states = images_of(2, 3, 8, 8), []
    for pipe in (ADAPipe("bgcfnc", p=0.0), ADAPipe("bgcfnc", p=0.4), ADAPipe("blit")):
        generator = seeded()
        pipe(images, generator=generator)
        states.append(generator.get_state())
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[0], states[2])


def test_channels_that_are_no_color():
    rgb, depth = images_of(4, 3, 12, 12), images_of(4, 1, 12, 12)
    pipe = ADAPipe("color", color_channels=(0, 1, 2))
    t = pipe.sample(4, generator=seeded())
    got = t(torch.cat((rgb, depth), 1))
    assert torch.equal(got[:, 3:], depth)
    torch.testing.assert_close(got[:, :3], t(rgb), rtol=0, atol=1e-6)
    gray = ADAPipe("color", color_channels=(1,))(torch.cat((rgb, depth), 1), generator=seeded())
    assert torch.equal(gray[:, 2:], torch.cat((rgb, depth), 1)[:, 2:])
    assert not torch.equal(gray[:, 1], rgb[:, 1])
    # Hue alone is nothing to one channel; without color any number of channels will do.
    assert torch.equal(ADAPipe(None, hue=1)(depth), depth)
    assert ADAPipe("bg")(images_of(2, 5, 8, 8)).shape == (2, 5, 8, 8)


def test_stylegan2_ada_mode_and_lossless_blits():
    images = images_of(5, 3, 14, 10, dtype=torch.float64)
    for options in ({"mode": "stylegan2-ada"}, {"lossless_blits": False}):
        pipe = ADAPipe("bg", **options)
        t = pipe.sample(5, generator=seeded())
        maps = ops.ada_parameters(
            None, PRESETS["bg"], values=t.values, seed=t.seed, height=14, width=10
        ).maps
        assert torch.equal(t(images), ops.affine_augment(images, maps, **options))
        assert torch.equal(t.geometry(images, "sym6"), t(images))
        assert torch.equal(pipe(images, generator=seeded()), t(images))
    filtered, copied = (
        ADAPipe("blit", lossless_blits=lossless).sample(5, generator=seeded())
        for lossless in (False, True)
    )
    assert not torch.equal(filtered(images), copied(images))
    assert torch.equal(filtered.geometry(images, "sym6"), filtered(images))


def test_seed_compat_draws_as_published():
    for channels in (3, 1):
        pipe = ADAPipe("bgc", p=0.8, seed_compat=True)
        images = images_of(4, channels, 12, 12)
        uniforms, normals = draw_compat(4, PRESETS["bgc"], seeded(), color_channels=channels)
        expected = ops.ada_parameters(
            pipe.p, PRESETS["bgc"], uniforms=uniforms, normals=normals
        ).values
        t = pipe.sample(4, channels=channels, generator=seeded())
        assert torch.equal(t.values, expected)
        assert torch.equal(pipe(images, generator=seeded()), t(images))
        plain = ADAPipe("bgc", p=0.8).sample(4, channels=channels, generator=seeded())
        assert not torch.equal(plain.values, expected)


def test_preview_is_of_all_transforms_whatever_p():
    images = images_of(2, 3, 12, 12)
    pipe = ADAPipe("bgc", p=0.0, scale_std=0.4)
    got = pipe.preview(images, 0.8)
    t = pipe.sample(2, percentile=0.8)
    constants = AdaConstants(scale_std=0.4)
    assert torch.equal(t.values, preview_values(0.8, PRESETS["bgc"], 2, constants))
    assert torch.equal(got, t(images))
    assert torch.equal(ADAPipe("geom", p=0.0).preview(images, 0.5), images)
    noisy = ADAPipe("noise", p=0.0)
    first, again, other = (noisy.preview(images, 0.8, generator=seeded(s)) for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


# --- differentiation -----------------------------------------------------------------------------


def critic():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Softplus(), nn.Flatten(), nn.Linear(4 * 10 * 10, 1)
    ).double()


def test_r1_through_the_augmentation():
    """The penalty of the gradient by the image before augmentation, and its gradients."""
    D, pipe, found = critic(), ADAPipe("bgcfnc", noise=0), {}
    for name in ("native", "reference"):
        real = images_of(3, 3, 12, 12, dtype=torch.float64).requires_grad_()
        with gankernels.backend(name):
            logits = D(pipe(real, generator=seeded()))
            penalty = gankernels.r1_penalty(logits, real, gamma=10.0)
            weights = list(D.parameters())[:-1]  # the last bias has no part in it
            found[name] = [penalty, *torch.autograd.grad(penalty, (*weights, real))]
    for got, expected in zip(*found.values(), strict=True):
        assert expected.abs().max() > 1e-6
        torch.testing.assert_close(got, expected, rtol=1e-8, atol=1e-10)
    plain = gankernels.r1_penalty(D(real), real, gamma=10.0)
    assert abs(plain - found["native"][0]) > 1e-3


@pytest.mark.parametrize("preset", ["bgc", "bgcfnc"])
def test_gradients(preset):
    t = ADAPipe(preset).sample(2, generator=seeded())
    images = images_of(2, 3, 6, 5, dtype=torch.float64).requires_grad_()
    torch.autograd.gradcheck(t, images, fast_mode=True)
    torch.autograd.gradgradcheck(t, images, fast_mode=True)


def test_consistency_regularization():
    D, pipe = critic(), ADAPipe("bgc")
    real, fake = (images_of(3, 3, 12, 12, dtype=torch.float64, seed=s) for s in (1, 2))
    torch.manual_seed(5)
    got = gankernels.regularizers.balanced_consistency_regularization(D, real, fake, pipe)
    torch.manual_seed(5)
    expected = sum(
        10.0 * (D(x) - D(pipe(x))).square().flatten(1).sum(1).mean() for x in (real, fake)
    )
    torch.testing.assert_close(got, expected)
    got.backward()
    assert all(w.grad is not None for w in D.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["bgc", "bgcfnc"])
def test_compiles_into_one_graph(preset):
    torch._dynamo.reset()
    pipe = ADAPipe(preset, p=0.6, p_max=0.9)
    compiled = torch.compile(pipe, fullgraph=True, backend="aot_eager")
    images = images_of(4, 3, 12, 12).requires_grad_()
    for p in (0.6, 0.1):
        pipe.p = p  # a value, which nothing is specialized on
        with torch.compiler.set_stance("fail_on_recompile" if p == 0.1 else "default"):
            torch.manual_seed(0)
            got = compiled(images)
        torch.manual_seed(0)
        expected = pipe(images)
        assert torch.equal(got, expected)
        grads = [torch.autograd.grad(y.square().sum(), images)[0] for y in (got, expected)]
        torch.testing.assert_close(*grads)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def twice(x):
        t = pipe.sample(x.shape[0])
        return t(x), t(x.flip(3)), t.geometry(x), t[1:](x[1:])

    views = twice(images)
    t = pipe.sample(4)
    assert [v.shape for v in views] == [t(images).shape] * 3 + [(3, 3, 12, 12)]
    assert torch.equal(views[0][1:], views[3])


# --- leaks ---------------------------------------------------------------------------------------


def orientations(pipe, shares, n=20_000):
    """How often a corner is lit after augmentation, where it was lit with these shares."""
    corners = [(0, 0), (0, -1), (-1, -1), (-1, 0)]
    images = torch.zeros(n, 1, 6, 6)
    for start, corner in zip(range(4), corners, strict=True):
        first, last = (round(n * sum(shares[:k])) for k in (start, start + 1))
        images[first:last, 0, corner[0], corner[1]] = 1
    found = pipe(images, generator=seeded())
    return torch.stack([found[:, 0, y, x].double().mean() for y, x in corners])


@pytest.mark.parametrize("p", [0.3, 0.6, 0.9])
def test_what_is_below_p_1_does_not_leak(p):
    # Karras et al. 2020, section 2.2: quarter turns mix four orientations by a circulant, which can
    # be undone: only one distribution of images explains what is seen.
    shares = torch.tensor([0.55, 0.25, 0.15, 0.05], dtype=torch.float64)
    pipe = ADAPipe(None, rotate90=1.0, p=p)
    mixed = torch.full((4, 4), p / 4, dtype=torch.float64) + (1 - p) * torch.eye(4).double()
    found = orientations(pipe, shares.tolist())
    torch.testing.assert_close(found, mixed @ shares, rtol=0, atol=0.012)
    torch.testing.assert_close(mixed.inverse() @ found, shares, rtol=0, atol=0.012 / (1 - p))
    assert found.argsort(descending=True).tolist() == [0, 1, 2, 3]


def test_p_1_leaks():
    pipe = ADAPipe(None, rotate90=1.0, p=1.0)
    one, other = (orientations(pipe, shares) for shares in ([1.0, 0, 0, 0], [0.2, 0.3, 0.1, 0.4]))
    torch.testing.assert_close(one, torch.full((4,), 0.25).double(), rtol=0, atol=0.012)
    torch.testing.assert_close(one, other, rtol=0, atol=0.02)  # nobody can tell them apart


# --- transforms ----------------------------------------------------------------------------------


def test_a_sample_is_what_a_call_draws():
    for preset, p, constants in (
        ("bgcfnc", 0.5, {}),
        ("bg", 1.0, {"scale_std": 0.5, "rotate_max": 0.1}),
        ("color", {"color": 0.4}, {"brightness_std": 1}),
    ):
        pipe, images = ADAPipe(preset, p=p, **constants), images_of(5, 3, 13, 16)
        t = pipe.sample(5, generator=seeded())
        assert torch.equal(t(images), pipe(images, generator=seeded()))


def test_a_transform_repeats_itself():
    t = ADAPipe("bgcfnc").sample(3, generator=seeded())
    images = images_of(3, 3, 12, 12)
    pipe_moved_on = t(images)
    assert torch.equal(t(images), pipe_moved_on)
    assert t(images_of(3, 3, 20, 7)).shape == (3, 3, 20, 7)  # every size
    assert t(images_of(3, 1, 12, 12)).shape == (3, 1, 12, 12)


def test_p_and_the_pipe_do_not_reach_a_transform():
    pipe = ADAPipe("bgcfnc")
    t = pipe.sample(3)
    images = images_of(3, 3, 12, 12)
    before = t(images)
    pipe.p = 0.0
    assert torch.equal(t(images), before)
    with pytest.raises(AttributeError):
        t.values = t.values.clone()


@pytest.mark.parametrize(
    "index, chosen",
    [
        (2, [2]),
        (-1, [3]),
        (torch.tensor(1), [1]),
        (slice(1, 3), [1, 2]),
        (slice(None, None, 2), [0, 2]),
        ([3, 0], [3, 0]),
        (torch.tensor([2, 2]), [2, 2]),
        (torch.tensor([True, False, False, True]), [0, 3]),
    ],
    ids=str,
)
def test_index(index, chosen):
    t = ADAPipe("bgcfnc").sample(4, generator=seeded())
    images = images_of(4, 3, 12, 12)
    part = t[index]
    assert len(part) == len(chosen)
    assert torch.equal(part(images[chosen]), t(images)[chosen])


def test_iteration():
    t = ADAPipe("bg").sample(3)
    assert [len(one) for one in t] == [1, 1, 1]
    assert torch.equal(torch.cat([one.values for one in t]), t.values)


@pytest.mark.parametrize("index", [4, -5])
def test_index_beyond(index):
    with pytest.raises(IndexError, match=f"of 4 images, got {index}"):
        ADAPipe("bg").sample(4)[index]


@pytest.mark.parametrize("index", [1.0, "a", None, (0, 1), torch.zeros(2, 2, dtype=torch.long)])
def test_index_of_another_type(index):
    with pytest.raises(TypeError, match="expected an index, a slice, or a list"):
        ADAPipe("bg").sample(4)[index]


def test_masks_go_with_their_images():
    t = ADAPipe("blit").sample(8, generator=seeded())
    images = images_of(8, 1, 16, 16)
    moved = t(images)
    for dtype in (torch.int64, torch.uint8, torch.int32):
        labels = (images * 40).clamp(0, 255).to(dtype)
        got = t.geometry(labels)
        assert got.dtype == dtype
        assert torch.equal(got, (moved * 40).clamp(0, 255).to(dtype))
    mask = images > 0
    assert torch.equal(t.geometry(mask), moved > 0)
    large = torch.full((8, 1, 16, 16), 2**53 - 1)
    assert torch.equal(t.geometry(large), large)


def test_geometry_leaves_color_noise_and_cutout_out():
    t = ADAPipe("bgcfnc").sample(4, generator=seeded())
    images = images_of(4, 5, 16, 16, dtype=torch.float64)
    same = Transform(t.values, t.seed, ADAPipe("bg").settings)
    assert torch.equal(t.geometry(images, "sym6"), same(images))
    maps = ops.ada_parameters(
        None, PRESETS["bgcfnc"], values=t.values, seed=t.seed, height=16, width=16
    ).maps
    for name in ("nearest", "bilinear"):
        expected = reference.affine_resample(images, maps, filter=name, output_size=(16, 16))
        torch.testing.assert_close(t.geometry(images, name), expected, rtol=0, atol=1e-12)
    assert not torch.equal(t.geometry(images), t.geometry(images, "bilinear"))


def test_geometry_of_other_resolutions():
    """What is a fraction of the size moves as far, seen from afar."""
    blits = ADAPipe(None, xflip=1, rotate90=1).sample(16, generator=seeded())
    coarse = images_of(16, 1, 4, 4)
    fine = coarse.repeat_interleave(8, 2).repeat_interleave(8, 3)
    expected = blits.geometry(coarse).repeat_interleave(8, 2).repeat_interleave(8, 3)
    assert torch.equal(blits.geometry(fine), expected)
    shifts = ADAPipe(None, xfrac=1, xfrac_std=0.05).sample(4, generator=seeded())
    for size in (16, 64):
        ramp = torch.arange(size, dtype=torch.float64).expand(4, 1, size, size) / size
        moved = (ramp - shifts.geometry(ramp, "bilinear"))[:, 0, size // 2, size // 2]
        torch.testing.assert_close(moved, shifts.named()["xfrac_x"])


def test_geometry_without_any():
    labels = torch.arange(32).view(2, 1, 4, 4)
    got = ADAPipe("color").sample(2).geometry(labels)
    assert torch.equal(got, labels)
    assert got.data_ptr() != labels.data_ptr()


def test_geometry_in_stylegan2_ada_mode():
    t = ADAPipe("bg", mode="stylegan2-ada").sample(3, generator=seeded())
    images = images_of(3, 3, 16, 16)
    assert torch.equal(t.geometry(images, "sym6"), t(images))
    assert t.geometry(images > 0).dtype == torch.bool


@pytest.mark.parametrize("through", ["pickle", "torch.save", "state_dict", "deepcopy", "to"])
def test_save_and_load(through):
    t = ADAPipe("bgcfnc", imgfilter_bands=(1, 0.5, 0, 1), color_channels=[0, 1, 2]).sample(3)
    if through == "pickle":
        again = pickle.loads(pickle.dumps(t))
    elif through == "deepcopy":
        again = copy.deepcopy(t)
    elif through == "to":
        again = t.to("cpu")
    else:
        file = io.BytesIO()
        plain = through == "state_dict"
        torch.save(t.state_dict() if plain else t, file)
        file.seek(0)
        again = torch.load(file, weights_only=plain)
        if plain:
            again = Transform.from_state_dict(again)
    assert again.settings == t.settings
    images = images_of(3, 3, 12, 12)
    assert torch.equal(again(images), t(images))


@pytest.mark.parametrize(
    "change, said",
    [
        ({"values": torch.zeros(2, 23)}, "expected values of torch.float64"),
        ({"values": torch.zeros(2, 22).double()}, r"shape \(2, 23\), got float64"),
        ({"seed": torch.zeros(3, dtype=torch.int64)}, r"seed of torch.int64 and shape \(2,\)"),
        ({"mode": "old"}, "expected mode"),
        ({"color_channels": [2, 1, 0]}, "ascending"),
        ({"more": 1}, "expected what state_dict"),
    ],
)
def test_a_state_that_is_none(change, said):
    state = ADAPipe("bg").sample(2).state_dict()
    with pytest.raises(ValueError, match=said):
        Transform.from_state_dict({**state, **change})


def test_named():
    t = ADAPipe(None, xflip=1, rotate=1, cutout=1, cutout_size=0.25).sample(64, generator=seeded())
    named = t.named()
    assert tuple(named) == VALUES
    assert set(named["xflip"].tolist()) == {0.0, 1.0}
    assert named["rotate_before"].abs().max() <= math.pi
    assert (named["cutout"] == 0.25).all()
    assert (named["scale"] == 1).all()


def test_repr():
    pipe = ADAPipe(
        "blit", noise=0.5, p_max=0.8, color_channels=(0, 1, 2), p=dict.fromkeys(GROUPS, 0)
    )
    assert repr(pipe) == (
        "ADAPipe(xflip, rotate90, xint, noise=0.5, mode='ideal', p by groups, p_max=0.8, "
        "color_channels=(0, 1, 2))"
    )
    said = "Transform(5 on cpu: xflip, rotate90, xint, noise=0.5, mode='ideal')"
    assert repr(pipe.sample(5)) == said


# --- settings ------------------------------------------------------------------------------------


def test_presets():
    assert set(PRESETS) == {*GROUPS, "bg", "bgc", "bgcf", "bgcfn", "bgcfnc"}
    blit, geom = {"xflip", "rotate90", "xint"}, {"scale", "rotate", "aniso", "xfrac"}
    color = {"brightness", "contrast", "lumaflip", "hue", "saturation"}
    expected = {
        "blit": blit,
        "geom": geom,
        "color": color,
        "filter": {"imgfilter"},
        "noise": {"noise"},
        "cutout": {"cutout"},
        "bg": blit | geom,
        "bgc": blit | geom | color,
        "bgcf": blit | geom | color | {"imgfilter"},
        "bgcfn": blit | geom | color | {"imgfilter", "noise"},
        "bgcfnc": blit | geom | color | {"imgfilter", "noise", "cutout"},
    }
    for preset, names in expected.items():
        multipliers = ADAPipe(preset).settings.multipliers._asdict()
        assert multipliers.pop("imgfilter_bands") == (1, 1, 1, 1)
        assert {k: v for k, v in multipliers.items() if v} == dict.fromkeys(names, 1.0)
    assert ADAPipe().settings == ADAPipe("bgc").settings


def test_multipliers_and_constants_by_name():
    pipe = ADAPipe("blit", xflip=0, cutout=0.5, xint_max=0.25, imgfilter_bands=[0, 0, 0, 1])
    multipliers = pipe.settings.multipliers
    assert (multipliers.xflip, multipliers.rotate90, multipliers.cutout) == (0, 1, 0.5)
    assert multipliers.imgfilter_bands == (0, 0, 0, 1)
    named = pipe.sample(400, generator=seeded()).named()
    assert (named["xflip"] == 0).all()
    assert 0.2 < named["xint_x"].abs().max() <= 0.25
    assert 0.4 < (named["cutout"] > 0).double().mean() < 0.6


@pytest.mark.parametrize("mode", ["ideal", "stylegan2-ada"])
def test_the_strongest_settings_give_finite_images(mode):
    strongest = {name: 8.0 if name.endswith("_std") else 1e6 for name in AdaConstants._fields}
    strongest |= {"xfrac_std": 1e6, "brightness_std": 1e6, "noise_std": 1e6}
    for size in ((16, 12), (1, 5)):
        images = images_of(64, 3, *size).requires_grad_()
        found = ADAPipe("bgcfnc", mode=mode, **strongest)(images, generator=seeded())
        (grad,) = torch.autograd.grad(found.sum(), images)
        assert found.isfinite().all()
        assert grad.isfinite().all()


def test_probabilities():
    named = ADAPipe(None, p=0.3, rotate=1, brightness=0.5, contrast=5).sample(
        4000, generator=seeded()
    )
    named = named.named()
    rotated = (named["rotate_before"] != 0) | (named["rotate_after"] != 0)
    for happened, expected in (
        (rotated, 0.3),
        (named["brightness"] != 0, 0.15),
        (named["contrast"] != 1, 1.0),
    ):
        assert happened.double().mean().item() == pytest.approx(expected, abs=0.03)


@pytest.mark.parametrize("p", [{}, {"p": 0.2}, {"p": 0.1, "p_max": 0.5, "mode": "ideal"}])
def test_transforms_by_name_alone_are_all_that_happens(p):
    """As AugmentPipe(xflip=1, ...) of the published code; other arguments leave the default."""
    for names in (("xflip", "rotate90", "xint"), ("cutout",), ("hue", "imgfilter")):
        pipe = ADAPipe(**dict.fromkeys(names, 1), cutout_size=0.3, **p)
        assert pipe.settings == ADAPipe(None, **dict.fromkeys(names, 1), **p).settings
        assert {k for k, v in pipe.settings.multipliers._asdict().items() if v == 1} == set(names)
    assert ADAPipe(**p).settings == ADAPipe("bgc", **p).settings
    added = ADAPipe("bgc", cutout=0.5, hue=0, **p).settings.multipliers
    assert added == PRESETS["bgc"]._replace(cutout=0.5, hue=0)


@pytest.mark.parametrize(
    "error, said, arguments",
    [
        (TypeError, "got 'color_channel'; color_channels is meant", {"color_channel": (0,)}),
        (TypeError, "got 'prest'; preset is meant", {"prest": "bg"}),
        (TypeError, "got 'rotate90s'; rotate90", {"rotate90s": 1}),
        (ValueError, r'or a preset, as in ADAPipe\("bgc", scale_std=0.3\)', {"scale_std": 0.3}),
        (ValueError, r"scale_std to be at most 8, got 1e\+30", {"scale": 1, "scale_std": 1e30}),
        (ValueError, "contrast_std to be at most 8, got 9", {"contrast_std": 9}),
        (ValueError, r"xfrac_std to be at most 1e\+06, got", {"xfrac_std": 1e30}),
        (ValueError, "xflip to be finite, and at most 2.63 - 1", {"xflip": 10**400}),
        (TypeError, "lossless_blits to be True or False, got str", {"lossless_blits": "no"}),
        (TypeError, "seed_compat to be True or False, got int", {"seed_compat": 1}),
        (ValueError, "expected a preset of blit, .*, got 'bcg'", {"preset": "bcg"}),
        (TypeError, "expected preset to be a name or None, got float", {"preset": 0.5}),
        (TypeError, "got 'xfilp'; xflip or yflip is meant", {"xfilp": 1.0}),
        (TypeError, "expected settings by their names, got 'zzz'", {"zzz": 1.0}),
        (ValueError, "expected xflip to be finite and not negative, got -1", {"xflip": -1.0}),
        (ValueError, "expected scale to be finite and not negative, got nan", {"scale": math.nan}),
        (ValueError, "expected noise to be finite", {"noise": math.inf}),
        (TypeError, "expected xint to be a number, got str", {"xint": "1"}),
        (TypeError, "expected xint to be a number, got bool", {"xint": True}),
        (ValueError, "expected xint_max to be finite and not negative", {"xint_max": -0.1}),
        (ValueError, "expected imgfilter_bands to be 4 numbers", {"imgfilter_bands": (1, 1)}),
        (ValueError, "imgfilter_bands to be finite", {"imgfilter_bands": (1, 1, -1, 1)}),
        (ValueError, 'expected mode "ideal" or "stylegan2-ada", got \'new\'', {"mode": "new"}),
        (ValueError, "expected a transform with a multiplier above 0", {"preset": None}),
        (
            ValueError,
            "expected a transform with a multiplier above 0",
            {"preset": "filter", "imgfilter_bands": (0, 0, 0, 0)},
        ),
        (ValueError, "3 channels or 1, ascending", {"color_channels": (0, 1)}),
        (ValueError, "3 channels or 1, ascending", {"color_channels": (2, 1, 0)}),
        (ValueError, "3 channels or 1, ascending", {"color_channels": (-1,)}),
        (ValueError, "3 channels or 1, ascending", {"color_channels": 3}),
        (ValueError, "expected p_max to be at most 1, got 2", {"p_max": 2}),
        (ValueError, "expected p_max to be finite and positive, got 0", {"p_max": 0}),
        (ValueError, "expected p to be at most 1, got 1.5", {"p": 1.5}),
        (ValueError, "expected p to be finite and not negative, got nan", {"p": math.nan}),
        (ValueError, "expected p to be at most 0.5, its p_max, got 1.0", {"p_max": 0.5}),
        (ValueError, "got none for geom, color; give 0", {"p": {"blit": 1.0}}),
        (ValueError, "got none for blit; give 0", {"yflip": 1, "p": {"geom": 1.0}}),
        (ValueError, "expected yflip to be finite and not negative, got -1", {"yflip": -1}),
        (TypeError, "expected yflip to be a number, got str", {"yflip": "1"}),
        (TypeError, "got 'yfilp'; yflip", {"yfilp": 1}),
        (ValueError, "expected a transform with a multiplier above 0", {"yflip": 0}),
        (ValueError, "expected groups of blit, .*, got 'colors'", {"p": {"colors": 1.0}}),
        (ValueError, "expected p of geom to be at most 1, got 3", {"p": {"geom": 3}}),
        (TypeError, "expected p to be a number, got str", {"p": "0.5"}),
    ],
)
def test_bad_settings(error, said, arguments):
    with pytest.raises(error, match=f"^ADAPipe(.p)?: .*{said}"):
        ADAPipe(**arguments)


# --- upside down, and labels ---------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["ideal", "stylegan2-ada"])
@pytest.mark.parametrize("lossless", [True, False])
def test_yflip_is_upside_down(mode, lossless):
    """Before all else, so that the maps are those of the other values, mirrored in y."""
    images = images_of(40, 3, 9, 12, dtype=torch.float64)
    settings = {"mode": mode, "lossless_blits": lossless}
    pipe = ADAPipe("bgc", p=0.6, yflip=1, **settings)
    t = pipe.sample(40, generator=seeded())
    yflip = t.named()["yflip"]
    assert set(yflip.tolist()) == {0.0, 1.0}
    q = ops.ada_parameters(
        None,
        PRESETS["bgc"],
        values=t.values[:, :23],
        seed=t.seed,
        height=9,
        width=12,
        color_channels=3,
        dtype=images.dtype,
    )
    maps = q.maps.clone()
    maps[:, 1] *= (1 - 2 * yflip)[:, None]
    expected = ops.affine_augment(images, maps, color=q.color, **settings)
    torch.testing.assert_close(t(images), expected, rtol=0, atol=1e-9)
    assert torch.equal(pipe(images, generator=seeded()), t(images))
    nearest = ops.affine_resample(images, maps, filter="nearest", lossless_blits=lossless)
    assert (t.geometry(images) != nearest).double().mean() < 0.01  # ties


def test_yflip_before_other_flips_turns_and_shifts():
    images = images_of(64, 2, 6, 8)  # quarter turns are of pixels to pixels
    t = ADAPipe("blit", yflip=1).sample(64, generator=seeded())
    plain = Transform(t.values[:, :23], t.seed, ADAPipe("blit").settings)
    upside = torch.where(t.named()["yflip"][:, None, None, None] == 1, images.flip(2), images)
    assert torch.equal(t(images), plain(upside))
    assert not torch.equal(t(images), plain(images))


def test_yflip_alone_copies_pixels():
    images = images_of(64, 2, 5, 8)
    pipe = ADAPipe(yflip=1)
    t = pipe.sample(64, generator=seeded())
    yflip = t.named()["yflip"].bool()
    assert 20 < yflip.sum() < 44
    expected = torch.where(yflip[:, None, None, None], images.flip(2), images)
    assert torch.equal(t(images), expected)
    assert torch.equal(t.geometry(images > 0), expected > 0)
    assert torch.equal(pipe(images, generator=seeded()), expected)
    assert torch.equal(pipe.preview(images, 0.7), images.flip(2))
    assert torch.equal(pipe.preview(images, 0.3), images)
    clips = images[:, :, None].expand(-1, -1, 3, -1, -1)
    assert torch.equal(t(clips)[:, :, 2], expected)
    with gankernels.backend("reference"):
        assert torch.equal(t(images), expected)


@pytest.mark.parametrize(
    "p, multiplier, share",
    [(0.12, 1, 0.06), (0.5, 0.5, 0.125), (0.2, 1e8, 0.5), (0.0, 1, 0.0), ({"blit": 0.4}, 1, 0.2)],
    ids=str,
)
def test_the_probability_of_yflip(p, multiplier, share):
    pipe = ADAPipe(yflip=multiplier, p=p)
    found = pipe.sample(6000, generator=seeded()).named()["yflip"].mean().item()
    assert found == pytest.approx(share, abs=0.015)


@pytest.mark.parametrize("written, share", [(math.nan, 0), (7.0, 0.2), (-1.0, 0), (math.inf, 0.2)])
def test_yflip_by_a_p_that_the_device_wrote(written, share):
    pipe = ADAPipe(yflip=1, p=0.1, p_max=0.4)
    pipe.p.fill_(written)
    found = pipe.sample(6000, generator=seeded()).named()["yflip"].mean().item()
    assert found == pytest.approx(share, abs=0.02)


def test_yflip_draws_after_all_others():
    for options in ({}, {"seed_compat": True}):
        with_it, without = (ADAPipe("bgcfnc", **y, **options) for y in ({"yflip": 1}, {}))
        one, other = (pipe.sample(5, generator=seeded()) for pipe in (with_it, without))
        assert torch.equal(one.values[:, :23], other.values)
        assert torch.equal(one.seed, other.seed)
        assert "yflip" not in other.named()
    assert ADAPipe("bgc", yflip=0).settings == ADAPipe("bgc").settings


def test_yflip_is_kept():
    t, images = ADAPipe("bg", yflip=0.5).sample(6, generator=seeded()), images_of(6, 3, 9, 8)
    assert "xflip, yflip=0.5, rotate90" in repr(ADAPipe("bg", yflip=0.5))
    assert "xflip, yflip=0.5, rotate90" in repr(t)
    stream = io.BytesIO()
    torch.save(t.state_dict(), stream)
    stream.seek(0)
    for other in (
        Transform.from_state_dict(torch.load(stream, weights_only=True)),
        pickle.loads(pickle.dumps(t)),
        copy.deepcopy(t),
        t.to("cpu"),
    ):
        assert other.settings == t.settings
        assert torch.equal(other(images), t(images))
    assert torch.equal(t[2:4](images[2:4]), t(images)[2:4])
    state = t.state_dict() | {"values": t.values[:, :23]}
    with pytest.raises(ValueError, match=r"expected values of torch.float64 and shape \(6, 24\)"):
        Transform.from_state_dict(state)
    # One of before there was yflip.
    old = ADAPipe("bg").sample(2).state_dict()
    assert set(old["multipliers"]) == set(PRESETS["bg"]._fields)
    assert Transform.from_state_dict(old).settings.yflip == 0


def test_gradients_through_yflip():
    t = ADAPipe("bgc", yflip=1).sample(4, generator=seeded())
    images = images_of(4, 3, 4, 5, dtype=torch.float64).requires_grad_()
    torch.autograd.gradcheck(t, images, fast_mode=True)
    torch.autograd.gradgradcheck(lambda x: t(x) ** 2, images, fast_mode=True)


def test_labels_say_what_was_done():
    """Each column from the values by name, one sample at a time."""
    pipe = ADAPipe("bgcfnc", p=0.6, yflip=1, scale_std=0.3, cutout_size=0.4)
    t = pipe.sample(200, generator=seeded())
    labels = t.labels()
    assert labels.dtype == torch.float32
    assert labels.shape == (200, 28) == (200, len(LABELS))
    assert not labels.requires_grad
    for i in range(200):
        v = {name: x[i].item() for name, x in t.named().items()}
        expected = {
            "xflip": v["xflip"],
            "yflip": v["yflip"],
            "rotate90_cos": [0, -1, -2, -1][int(v["rotate90"])],
            "rotate90_sin": [0, 1, 0, -1][int(v["rotate90"])],
            "xint_x": v["xint_x"] / 0.125,
            "xint_y": v["xint_y"] / 0.125,
            "scale": math.log2(v["scale"]) / 0.2,
            "rotate_before_cos": math.cos(v["rotate_before"]) - 1,
            "rotate_before_sin": math.sin(v["rotate_before"]),
            "aniso": math.log2(v["aniso"]) / 0.2,
            "rotate_after_cos": math.cos(v["rotate_after"]) - 1,
            "rotate_after_sin": math.sin(v["rotate_after"]),
            "xfrac_x": v["xfrac_x"] / 0.125,
            "xfrac_y": v["xfrac_y"] / 0.125,
            "brightness": v["brightness"] / 0.2,
            "contrast": math.log2(v["contrast"]) / 0.5,
            "lumaflip": v["lumaflip"],
            "hue_cos": math.cos(v["hue"]) - 1,
            "hue_sin": math.sin(v["hue"]),
            "saturation": math.log2(v["saturation"]),
            **{f"band_{k}": math.log2(v[f"band_{k}"]) for k in range(4)},
            "noise": v["noise"] / 0.1,
            "cutout": v["cutout"] / 0.5,
            "cutout_x": 2 * v["cutout_x"] - 1 if v["cutout"] else 0,
            "cutout_y": 2 * v["cutout_y"] - 1 if v["cutout"] else 0,
        }
        assert list(expected) == list(LABELS)
        row = torch.tensor(list(expected.values()), dtype=torch.float64).float()
        torch.testing.assert_close(labels[i], row, rtol=1e-6, atol=1e-6)
    assert ((labels != 0).float().mean(0) > 0.05).all()
    assert ((labels == 0).float().mean(0) > 0.2).all()
    assert torch.equal(t[3:5].labels(), labels[3:5])


def test_labels_are_zero_where_nothing_is_done():
    images = images_of(100, 3, 8, 8)
    assert (ADAPipe("bgcfnc", yflip=1, p=0.0).sample(3).labels() == 0).all()
    t = ADAPipe("bgcfnc", yflip=1, p=0.06).sample(100, generator=seeded())
    left = (t.labels() == 0).all(1)
    assert 10 < left.sum() < 90
    untouched = (t(images) == images).flatten(1).all(1)
    assert torch.equal(left, untouched)
    lacking = ADAPipe(xflip=1).sample(50, generator=seeded()).labels()
    assert (lacking[:, 1:] == 0).all()
    assert ADAPipe("bgc").sample(0).labels().shape == (0, 28)


@pytest.mark.slow
def test_yflip_and_labels_compile_into_one_graph():
    torch._dynamo.reset()
    pipe, images = ADAPipe("bgc", yflip=1, p=0.5), images_of(4, 3, 12, 12)

    @torch.compile(fullgraph=True, backend="aot_eager")
    def both(x):
        t = pipe.sample(x.shape[0])
        return t(x), t.labels(), pipe(x)

    torch.manual_seed(0)
    found = both(images)
    torch.manual_seed(0)
    t = pipe.sample(4)
    for got, expected in zip(found, (t(images), t.labels(), pipe(images)), strict=True):
        torch.testing.assert_close(got, expected)


# --- p -------------------------------------------------------------------------------------------


def test_p_is_written_into_its_buffer():
    pipe = ADAPipe("bgc", p=0.25)
    buffer = pipe.p
    assert buffer.dtype == torch.float32
    assert buffer.shape == ()
    pipe.p = 0.5
    assert buffer == 0.5
    pipe.p = torch.tensor(0.75, dtype=torch.float64)
    assert buffer == 0.75
    pipe.set_p(1)
    assert buffer == 1
    assert pipe.p is buffer
    assert not list(pipe.parameters())


@pytest.mark.parametrize(
    "error, value",
    [
        (ValueError, 1.01),
        (ValueError, -0.01),
        (ValueError, math.nan),
        (ValueError, math.inf),
        (ValueError, torch.tensor(1.01)),
        (ValueError, torch.tensor(math.nan)),
        (ValueError, torch.zeros(6)),
        (ValueError, torch.zeros(1)),
        (ValueError, torch.tensor(True)),
        (ValueError, {"geom": 0.5}),
        (TypeError, "0.5"),
        (TypeError, None),
        (TypeError, True),
    ],
    ids=str,
)
def test_p_is_refused(error, value):
    pipe = ADAPipe("bgc", p=0.25)
    with pytest.raises(error, match=r"^ADAPipe\.p: expected"):
        pipe.p = value
    assert pipe.p == 0.25


def test_p_of_groups():
    pipe = ADAPipe("bgcfn", p={"blit": 0, "geom": 0, "color": 1, "filter": 0.5, "noise": 0})
    assert torch.equal(pipe.p, torch.tensor([0, 0, 1, 0.5, 0, 0]))
    t = pipe.sample(300, generator=seeded()).named()
    assert all((t[name] == 0).all() for name in ("xflip", "rotate_before", "noise", "xint_x"))
    assert (t["contrast"] != 1).all()
    assert (t["band_0"] != 1).double().mean().item() == pytest.approx(0.5, abs=0.1)
    buffer = pipe.p
    pipe.p = {"noise": 0.25, "geom": 1}
    assert torch.equal(buffer, torch.tensor([0, 1, 1, 0.5, 0.25, 0]))
    with pytest.raises(ValueError, match="expected p of noise to be at most 1"):
        pipe.p = {"geom": 0, "noise": 2}
    with pytest.raises(ValueError, match="got 'colors'"):
        pipe.p = {"geom": 0, "colors": 0}
    assert torch.equal(buffer, torch.tensor([0, 1, 1, 0.5, 0.25, 0]))
    pipe.p = 0.5
    assert (buffer == 0.5).all()
    pipe.p = torch.arange(6) / 8
    assert torch.equal(buffer, torch.arange(6) / 8)
    assert pipe.p is buffer


@pytest.mark.parametrize("p_max", [1.0, 0.4])
def test_p_that_the_device_wrote_is_clamped(p_max):
    pipe, bound = ADAPipe("bgc", p=0.1, p_max=p_max), ADAPipe("bgc", p=p_max)
    for written, acts in ((7.0, p_max), (-3.0, 0.0), (math.nan, 0.0), (math.inf, p_max)):
        pipe.p.fill_(written)
        bound.p = acts
        got, expected = (x.sample(50, generator=seeded()).values for x in (pipe, bound))
        assert torch.equal(got, expected)
    assert pipe.p.isinf()  # and left as it was


def test_p_of_a_gradient_is_not_kept():
    pipe = ADAPipe("bgc", p=0.25)
    pipe.p = torch.tensor(0.5, requires_grad=True)
    assert not pipe.p.requires_grad


@pytest.mark.parametrize("convert", ["half", "double", "bfloat16"])
def test_p_stays_float32(convert):
    pipe = nn.Sequential(ADAPipe("bgc", p=0.3))
    buffer = pipe[0].p
    getattr(pipe, convert)()
    assert pipe[0].p.dtype == torch.float32
    assert torch.equal(pipe[0].p, buffer)


def test_state_dict():
    for p in (0.3, dict.fromkeys(GROUPS, 0.3)):
        pipe, other = (
            ADAPipe("bgc", p=p),
            ADAPipe("bgc", p=dict.fromkeys(p, 0.9) if p != 0.3 else 0.9),
        )
        assert list(pipe.state_dict()) == ["p"]
        buffer = other.p
        other.load_state_dict(pipe.state_dict())
        assert other.p is buffer
        assert torch.equal(other.p, pipe.p)
        assert torch.equal(copy.deepcopy(pipe).p, pipe.p)
        assert torch.equal(pickle.loads(pickle.dumps(pipe)).p, pipe.p)


@pytest.mark.parametrize("p", [math.nan, -0.1, 1.1, math.inf])
@pytest.mark.parametrize("assign", [False, True])
def test_a_bad_p_is_not_loaded(p, assign):
    for before in (0.25, dict.fromkeys(GROUPS, 0.25)):
        model = nn.ModuleDict({"pipe": ADAPipe("bgc", p=before)})
        state = model.state_dict()
        bad = {"pipe.p": torch.full_like(state["pipe.p"], p)}
        with pytest.raises(RuntimeError, match=r"pipe\.p: expected p within \[0, 1\], got"):
            model.load_state_dict(bad, assign=assign)
        assert (model["pipe"].p == 0.25).all()
    with pytest.raises(RuntimeError, match="size mismatch"):
        ADAPipe("bgc").load_state_dict(bad | {"p": torch.zeros(6)}, strict=False)


def test_p_above_p_max_is_loaded_and_bounded():
    pipe = ADAPipe("bgc", p=0.2, p_max=0.4)
    pipe.load_state_dict({"p": torch.tensor(0.9)})
    expected = ADAPipe("bgc", p=0.4).sample(50, generator=seeded()).values
    assert torch.equal(pipe.sample(50, generator=seeded()).values, expected)


def test_deferred_initialization():
    with torch.device("meta"):
        pipe = ADAPipe("bgc", p=0.0)
    pipe.load_state_dict({"p": torch.tensor(0.25)}, assign=True)
    assert pipe.p == 0.25
    assert pipe.p.dtype == torch.float32
    assert pipe(images_of(2, 3, 8, 8)).shape == (2, 3, 8, 8)


def test_functional_call():
    pipe, images = ADAPipe("bgc", p=1.0), images_of(4, 3, 8, 8)
    got = torch.func.functional_call(pipe, {"p": torch.tensor(0.0)}, (images,))
    assert torch.equal(got, images)
    assert pipe.p == 1


# --- bad images ----------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["pipe", "transform", "preview"])
@pytest.mark.parametrize(
    "error, said, images",
    [
        (TypeError, "expected images to be a tensor or a list of them, got int", 5),
        (
            TypeError,
            r"got torch.uint8; bring them to \[-1, 1\] first",
            torch.zeros(2, 3, 8, 8, dtype=torch.uint8),
        ),
        (TypeError, "got torch.complex64; convert", torch.zeros(2, 3, 8, 8, dtype=torch.cfloat)),
        (TypeError, "float8", torch.zeros(2, 3, 8, 8).to(torch.float8_e5m2)),
        (
            ValueError,
            r"got \(3, 8, 8\); give an image as a batch of one, images\[None\]; audio",
            torch.zeros(3, 8, 8),
        ),
        (
            ValueError,
            r"\(B, C, H, W\) or clips \(B, C, T, H, W\), with pixels, got \(2, 3, 8, 0\)",
            torch.zeros(2, 3, 8, 0),
        ),
        (ValueError, r"with pixels, got \(2, 3, 0, 8, 8\)", torch.zeros(2, 3, 0, 8, 8)),
        (
            ValueError,
            r"got \(1, 2, 3, 4, 8, 8\); fold what is beyond into the batch",
            torch.zeros(1, 2, 3, 4, 8, 8),
        ),
        (ValueError, r"with pixels, got \(2, 0, 8, 8\)", torch.zeros(2, 0, 8, 8)),
        (
            ValueError,
            r"1 or 3 channels for color transforms, got 4; .* color_channels=\(0, 1, 2\)",
            torch.zeros(2, 4, 8, 8),
        ),
        (
            ValueError,
            "expected images on cpu, .*, got meta",
            torch.zeros(2, 3, 8, 8, device="meta"),
        ),
    ],
)
def test_bad_images(way, error, said, images):
    pipe = ADAPipe("bgc")
    t = pipe.sample(2)
    calls = {"pipe": pipe, "transform": t, "preview": lambda x: pipe.preview(x, 0.5)}
    state = torch.get_rng_state()
    with pytest.raises(error, match=f"^(ADAPipe|Transform|ADAPipe.preview): .*{said}"):
        calls[way](images)
    assert torch.equal(torch.get_rng_state(), state)  # refused before anything was drawn


def test_bad_channels_and_batches():
    pipe = ADAPipe("color", color_channels=(1, 2, 3))
    with pytest.raises(ValueError, match=r"channels \(1, 2, 3\) of color_channels, got 3"):
        pipe(torch.zeros(2, 3, 8, 8))
    t = ADAPipe("bg").sample(2)
    for call in (t, t.geometry):
        with pytest.raises(ValueError, match=r"expected 2 images, .*got 3; .* t\[:3\]"):
            call(torch.zeros(3, 3, 8, 8))
    with pytest.raises(ValueError, match=r'Transform\.geometry: expected filter "nearest"'):
        t.geometry(torch.zeros(2, 3, 8, 8), "bicubic")
    with pytest.raises(TypeError, match=r"got torch\.int64"):
        t.geometry(torch.zeros(2, 3, 8, 8, dtype=torch.long), "bilinear")
    with pytest.raises(ValueError, match=r"Transform\.geometry: .* got \(2, 8, 8\); give"):
        t.geometry(torch.zeros(2, 8, 8))


def test_bad_samples():
    pipe = ADAPipe("bg")
    with pytest.raises(TypeError, match="expected batch to be an integer, got float"):
        pipe.sample(2.0)
    with pytest.raises(ValueError, match="expected batch to be not negative, got -1"):
        pipe.sample(-1)
    for q in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="expected percentile to be"):
            pipe.preview(torch.zeros(2, 3, 8, 8), q)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_generator_of_another_device():
    pipe = ADAPipe("bg").to("cuda")
    for call in (lambda **k: pipe(torch.zeros(2, 3, 8, 8, device="cuda"), **k), pipe.sample):
        with pytest.raises(ValueError, match=r"a generator on cuda:0, where .* got one on cpu"):
            call(*([2] if call == pipe.sample else []), generator=torch.Generator())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_nothing_waits_for_the_device():
    pipe = ADAPipe("bgcfnc", p=0.5, p_max=0.9).to("cuda")
    images = images_of(4, 3, 32, 32).to("cuda").requires_grad_()
    mask = images > 0
    pipe(images).sum().backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for p in (0.6, torch.tensor(0.5), torch.tensor(0.4, device="cuda")):
            pipe.p = p
        pipe(images).sum().backward()
        t = pipe.sample(4)
        t[1:3](images[1:3])
        t.geometry(mask)
        t.labels()
        flipped = ADAPipe("bgc", yflip=1).to("cuda")
        flipped(images[:, :, None].expand(-1, -1, 2, -1, -1))
        flipped.sample(4).labels()
        DiffAugment(p=0.5, cutout=0.2)(images)
        pipe.preview(images, 0.3)
    finally:
        torch.cuda.set_sync_debug_mode("default")
