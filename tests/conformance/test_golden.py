"""docs/golden.json: what gankernels computes, all that it computes, and right without torch."""

import functools
import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
from conformance import golden

import gankernels
from gankernels import augment, losses, ops, penalties, regularizers
from gankernels.ops.ada_parameters import VALUES

FILE = json.loads(golden.FILE.read_text())
CASES = {case["name"]: case for case in FILE["cases"]}


# --- the file is what gankernels computes --------------------------------------------------------


def differences(case, found):
    """Where results are not those of a case, by more than its tolerance."""
    wanted = {k: case[k] for k in ("expected", "gradients") if k in case}
    assert [k for k in wanted if sorted(wanted[k]) != sorted(found[k])] == []
    size = max(abs(n) for n in golden.flattened(wanted)) or 1.0
    bound = case.get("tolerance", FILE["tolerance"]) * size
    wrong = []
    for kind, arrays in wanted.items():
        for name, array in arrays.items():
            a, b = np.asarray(array), np.asarray(found[kind][name])
            if a.shape != b.shape or not (np.abs(a - b) <= bound).all():
                wrong.append(f"{kind}.{name}: expected {a}, got {b}")
    return wrong


def test_the_file_is_of_these_cases():
    """``python tests/conformance/golden.py --write``."""
    found = [golden.entry(case, {}) for case in golden.CASES]
    for case, entry in zip(FILE["cases"], json.loads(json.dumps(found)), strict=True):
        assert {k: x for k, x in case.items() if k not in ("expected", "gradients")} == entry
    assert {k: x for k, x in FILE.items() if k != "cases"} == json.loads(json.dumps(golden.head()))


def test_the_file_is_as_it_would_be_written():
    text = golden.FILE.read_text()
    assert golden.text_of(FILE) == text
    assert len(text) < 250_000


def test_names_are_unique():
    assert len(CASES) == len(golden.CASES) > 150


@pytest.mark.parametrize("case", golden.CASES, ids=lambda case: case.name)
def test_kernels(case, backend):
    assert differences(CASES[case.name], golden.compute(case, backend)) == []


@pytest.mark.parametrize("case", golden.CASES, ids=lambda case: case.name)
def test_reference(case):
    with gankernels.backend("reference"):
        assert differences(CASES[case.name], golden.compute(case)) == []


# --- nothing is forgotten ------------------------------------------------------------------------


def public_names():
    """What a case has to be of."""
    found = set()
    for module in (losses, penalties, regularizers, ops, augment):
        prefix = module.__name__.rpartition(".")[2]
        found |= {f"{prefix}.{name}" for name in module.__all__}
    for name in losses.__all__:
        loss = getattr(losses, name)
        if isinstance(loss, losses.Loss):
            sides = ("discriminator", "generator", "real", "fake")
            found |= {f"losses.{name}.{side}" for side in sides if hasattr(loss, side)}
    special = ("__call__", "__getitem__", "__len__")
    methods = [
        k for k, x in vars(augment.Transform).items() if callable(x) or type(x) is staticmethod
    ]
    return found | {f"Transform.{k}" for k in methods if k[0] != "_" or k in special}


def test_every_public_name_has_a_case():
    covered = set().union(*(golden.mentioned(case.call) for case in golden.CASES))
    wanted = public_names()
    assert len(wanted) > 70
    assert sorted(wanted - covered - golden.EXEMPT.keys()) == []
    assert sorted(golden.EXEMPT.keys() - wanted) == [], "there is no such name"
    assert sorted(golden.EXEMPT.keys() & covered) == [], "it has a case by now"


@pytest.mark.parametrize("column", [*VALUES, "yflip"])
def test_every_column_of_a_transform_has_a_case(column):
    nothing = float(column in golden.FACTORS)
    cases = [case for case in golden.CASES if "Transform.__call__" in golden.mentioned(case.call)]
    assert any(set(case.inputs.get(column, ())) - {nothing} for case in cases)


@pytest.mark.parametrize("case", FILE["cases"], ids=lambda case: case["name"])
def test_a_case_says_what_it_is(case):
    assert case["computes"]
    assert case["paper"]
    for group in re.findall(r"  \[([^\]]+)\]", case["computes"]):
        assert set(group.split(", ")) <= FILE["notes"].keys()


# --- NumPy: helpers, which take complex numbers as they are --------------------------------------


def real_of(x):
    """A constant: a step in the imaginary direction goes no further."""
    return np.real(x) + 0.0


def relu(x):
    return np.where(np.real(x) > 0, x, 0)


def magnitude(x):
    return np.where(np.real(x) < 0, -x, x)


def softplus(x):
    """-log s(-x)."""
    return relu(x) + np.log1p(np.exp(-magnitude(x)))


def norm(x):
    """Of each row."""
    return np.sqrt((x.reshape(len(x), -1) ** 2).sum(1))


def weight_of(o, usual=1.0):
    return o.get("weight", usual)


def numeric_gradients(restate, case):
    """By steps in the imaginary direction, exact to roundings."""
    inputs = arrays_of(case)
    found = {}
    for name in case.get("gradients", {}):
        x = inputs[name]
        grad = np.zeros(x.shape)
        for at in np.ndindex(x.shape):
            moved = x.astype(complex)
            moved[at] += 1e-30j
            value = restated_value(restate, case, {**inputs, name: moved})["value"]
            total = (value * inputs["cotangent"]).sum() if "cotangent" in inputs else value
            grad[at] = np.imag(total) / 1e-30
        found[name] = grad
    return found


def arrays_of(case):
    return {k: np.asarray(x) for k, x in case["inputs"].items()}


def restated_value(restate, case, inputs):
    found = restate(SimpleNamespace(**inputs), case.get("options", {}))
    return found if isinstance(found, dict) else {"value": found}


# --- NumPy: losses -------------------------------------------------------------------------------

RESTATED = {}


def restates(*names):
    def add(function):
        RESTATED.update(dict.fromkeys(names, function))
        return function

    return add


def cross_entropy(x, label):
    return (label * softplus(-x) + (1 - label) * softplus(x)).mean()


def of_label(x, name, usual, o):
    drawn = getattr(x, f"{name}_of_each", None)
    return o.get(name, usual) if drawn is None else drawn


def scales_of(x, side):
    several = [getattr(x, f"{side}_{i}") for i in (0, 1) if hasattr(x, f"{side}_{i}")]
    return several or [getattr(x, f"{side}_logits")]


def reduced(terms, o):
    return o.get("weight", 1) * sum(terms) / (len(terms) if o.get("scales") == "mean" else 1)


#: The terms of a tensor of real logits, of fake ones, and of the generator.
TERMS = {
    "minimax": (cross_entropy, cross_entropy, lambda f: -softplus(f).mean()),
    "non_saturating": (cross_entropy, cross_entropy, lambda f: softplus(-f).mean()),
    "least_squares": (
        lambda r, label: ((r - label) ** 2).mean(),
        lambda f, label: ((f - label) ** 2).mean(),
        lambda f: ((f - 1) ** 2).mean(),
    ),
    "hinge": (
        lambda r, label: relu(1 - r).mean(),
        lambda f, label: relu(1 + f).mean(),
        lambda f: -f.mean(),
    ),
    "wasserstein": (lambda r, label: -r.mean(), lambda f, label: f.mean(), lambda f: -f.mean()),
}


def sided(loss, side):
    of_real, of_fake, wanted = TERMS[loss]

    def restate(x, o):
        total = 0
        if side in ("discriminator", "real"):
            label = of_label(x, "real_label", 1, o)
            total = reduced([of_real(r, label) for r in scales_of(x, "real")], o)
        if side in ("discriminator", "fake"):
            label = of_label(x, "fake_label", 0, o)
            total = total + reduced([of_fake(f, label) for f in scales_of(x, "fake")], o)
        if side == "generator":
            if "label" in o:
                return ((x.fake_logits - o["label"]) ** 2).mean()
            return reduced([wanted(f) for f in scales_of(x, "fake")], o)
        return total

    return restate


for _loss in TERMS:
    for _side in ("discriminator", "generator", "real", "fake"):
        RESTATED[f"losses.{_loss}.{_side}"] = sided(_loss, _side)


@restates("losses.relativistic.discriminator")
def _(x, o):
    return softplus(x.fake_logits - x.real_logits).mean()


@restates("losses.relativistic.generator")
def _(x, o):
    return softplus(x.real_logits - x.fake_logits).mean()


def average(above, below):
    return softplus(below.mean() - above).mean() + softplus(below - above.mean()).mean()


@restates("losses.relativistic_average.discriminator")
def _(x, o):
    pairs = zip(scales_of(x, "real"), scales_of(x, "fake"), strict=True)
    return reduced([average(r, f) for r, f in pairs], o)


@restates("losses.relativistic_average.generator")
def _(x, o):
    return average(x.fake_logits, x.real_logits)


@restates("losses.feature_matching")
def _(x, o):
    terms = [getattr(x, f"fake_{i}") - real_of(getattr(x, f"real_{i}")) for i in range(3)]
    means = [(d**2 if o.get("norm") == "l2" else magnitude(d)).mean() for d in terms]
    return weight_of(o, 2.0) * sum(means) / (3 if o.get("layers") == "mean" else 1)


def best(logits, k):
    count = int(k * len(logits)) if isinstance(k, float) else k
    means = np.real(logits).reshape(len(logits), -1).mean(1)
    return logits[np.argsort(-means)[:count]]


@restates("losses.top_k")
def _(x, o):
    return best(x.fake_logits, o["k"])


@restates("losses.top_k: in a loss")
def _(x, o):
    return -best(x.fake_logits, o["k"]).mean()


@restates("losses.adaptive_weight")
def _(x, o):
    p, q = (math.sqrt((g**2).sum()) for g in (2 * (x.w - x.t), x.g))
    return weight_of(o, 0.8) * min(o.get("maximum", 1e4), p / (q + o.get("eps", 1e-4)))


# --- NumPy: penalties ----------------------------------------------------------------------------


def critic(x, points):
    return np.tanh(points @ x.W.T + x.b) @ x.a + points**2 @ x.c


def critic_gradient(x, points):
    a, c = (y if y.ndim == 1 else y.sum(1) for y in (x.a, x.c))
    return (a * (1 - np.tanh(points @ x.W.T + x.b) ** 2)) @ x.W + 2 * points * c


def norms_of(x, points, o, central=True):
    g = critic_gradient(x, points)
    n = norm(g)
    if o.get("method") != "difference":
        return n
    n = real_of(n)
    h = o["sigma"] * math.sqrt(points.shape[1])
    step = h * real_of(g) / n[:, None]
    behind = critic(x, points - step) if central else critic(x, points)
    q = (critic(x, points + step) - behind) / (2 * h if central else h)
    return n + q - real_of(q)


def with_center(n, center):
    return (n - center) ** 2


@restates("penalties.r1_penalty", "penalties.r2_penalty")
def _(x, o):
    points = x.real if hasattr(x, "real") else x.fake
    return o["gamma"] / 2 * with_center(norms_of(x, points, o), o.get("center", 0)).mean()


@restates("penalties.r1_penalty: some samples, with weights")
def _(x, o):
    raw = (x.sample_weight * norms_of(x, x.real[: o["first"]], o) ** 2).mean()
    return {"value": o["gamma"] / 2 * raw, "raw": raw}


@restates("penalties.r1_penalty: of each sample")
def _(x, o):
    return o["gamma"] / 2 * norms_of(x, x.real, o) ** 2


def grouped(g, index):
    squares = (g**2).sum(1)
    return np.sqrt(np.stack([squares[index == k].sum() for k in range(index.max() + 1)]))


@restates("penalties.r1_penalty: groups", "penalties.r1_penalty: groups by index")
def _(x, o):
    index = getattr(x, "index", np.array([0, 0, 1, 1]))
    n = grouped(critic_gradient(x, x.real), index)
    return o["gamma"] / 2 * with_center(n, o["center"]).mean()


@restates("penalties.r1_penalty: by differences of given logits")
def _(x, o):
    return o["gamma"] / 2 * (norms_of(x, x.real, o, central=False) ** 2).mean()


@restates("penalties.r1_penalty: by noise")
def _(x, o):
    q = (critic(x, x.real + o["sigma"] * x.noise) - critic(x, x.real)) / o["sigma"]
    c = o["center"]
    return o["gamma"] / 2 * (q**2 - 2 * c * math.sqrt(math.pi / 2) * magnitude(q) + c**2).mean()


@restates("penalties.roth_penalty")
def _(x, o):
    of_real = np.exp(-2 * softplus(critic(x, x.real))) * norms_of(x, x.real, o) ** 2
    of_fake = np.exp(-2 * softplus(-critic(x, x.fake))) * norms_of(x, x.fake, o) ** 2
    return o["gamma"] / 2 * (of_real.mean() + of_fake.mean())


@restates("penalties.r1_r2_penalty")
def _(x, o):
    return o["gamma"] / 2 * sum((norms_of(x, p, o) ** 2).mean() for p in (x.real, x.fake))


def between(x):
    return x.eps[:, None] * x.real + (1 - x.eps[:, None]) * x.fake


@restates("penalties.wgan_gp_penalty", "penalties.zero_centered_penalty")
def _(x, o, center=1.0):
    n = norms_of(x, between(x), o)
    return o["weight"] * with_center(n, o.get("center", center)).mean()


RESTATED["penalties.zero_centered_penalty"] = functools.partial(
    RESTATED["penalties.wgan_gp_penalty"], center=0.0
)


@restates("penalties.wgan_lp_penalty")
def _(x, o):
    return o["weight"] * (relu(norms_of(x, between(x), o) - o["center"]) ** 2).mean()


@restates("penalties.wgan_gp_penalty: groups")
def _(x, o):
    x.eps = np.repeat(x.eps, o["groups"])
    index = np.arange(len(x.real)) // o["groups"]
    return o["weight"] * (with_center(grouped(critic_gradient(x, between(x)), index), 1.0)).mean()


@restates("penalties.max_gradient_penalty")
def _(x, o):
    n = norms_of(x, between(x), o)
    return o["weight"] * n[np.argmax(np.real(n))] ** 2


@restates("penalties.dragan_penalty")
def _(x, o):
    factor = math.sqrt(o["scale"]) if o.get("noise") == "gaussian" else 0.5 * x.real.std(ddof=1)
    return o["weight"] * (with_center(norms_of(x, x.real + factor * x.noise, o), o["k"])).mean()


@restates("penalties.approx_r1_penalty", "penalties.approx_r2_penalty")
def _(x, o):
    if hasattr(x, "clean"):
        d = x.noisy - x.clean
    else:
        d = critic(x, x.x + o["sigma"] * x.noise) - critic(x, x.x)
    if d.ndim == 2 and o["heads"] == "sum":
        d = d.sum(1)
    weight = o["gamma"] / (2 * o["sigma"] ** 2) if "gamma" in o else weight_of(o, 100.0)
    return weight * (d**2).mean()


@restates("penalties.consensus_penalty")
def _(x, o):
    p = x.M @ x.psi + x.theta**3
    q = -x.M.T @ x.theta + 3 * x.psi**2
    return o["gamma"] / 2 * ((p**2).sum() + (q**2).sum())


@restates("penalties.orthogonal_regularization")
def _(x, o):
    total = 0
    for w in (x.first, x.second):
        A = w.reshape(len(w), -1)
        products, eye = A @ A.T, np.eye(len(A))
        off = products - eye if o.get("diagonal") else products * (1 - eye)
        total = total + (off**2).sum()
    return o["weight"] * total


def power_iteration(x, n, order="u_first"):
    """u, v, of which nothing is differentiated, and sigma."""
    A = x.weight.reshape(len(x.weight), -1)
    B, u, v = real_of(A), x.u, x.v
    for _ in range(n):
        for moved in ("uv", "vu")[order == "v_first"]:
            if moved == "u":
                u = B @ v / np.linalg.norm(B @ v)
            else:
                v = B.T @ u / np.linalg.norm(B.T @ u)
    return u, v, u @ A @ v


@restates("penalties.spectral_norm_regularization")
def _(x, o):
    u, v, sigma = power_iteration(x, o["n_power_iterations"])
    return {"value": o["weight"] / 2 * sigma**2, "u": u, "v": v}


@restates("ops.spectral_norm")
def _(x, o):
    u, v, sigma = power_iteration(x, o["n"], o.get("order", "u_first"))
    divided = x.weight / sigma
    if "max_norm" in o:
        divided = x.weight * (o["max_norm"] / sigma if np.real(sigma) > o["max_norm"] else 1.0)
    return {"value": divided, "sigma": sigma, "u": u, "v": v}


@restates("ops.spectral_normalize")
def _(x, o):
    _, _, sigma = power_iteration(x, 0)
    return {"value": x.weight / sigma, "sigma": sigma}


@restates("ops.power_iteration_")
def _(x, o):
    u, v, sigma = power_iteration(x, o["n"])
    return {"value": sigma, "u": u, "v": v}


@restates("ops.weight_norm")
def _(x, o):
    """The norms of rows, or of all; squares are not of absolute values."""
    rows = x.v.reshape(1 if o["dim"] is None else len(x.v), -1)
    norms = np.sqrt((rows**2).sum(1, keepdims=True))
    return (np.asarray(x.g).reshape(-1, 1) * rows / norms).reshape(x.v.shape)


def root(squares):
    """With no derivative at 0."""
    some = np.real(squares) > 0
    return np.where(some, np.sqrt(np.where(some, squares, 1)), 0)


def squares_of(g):
    return (g.reshape(len(g), -1) ** 2).sum(1)


@restates("ops.gradient_penalty")
def _(x, o):
    n = root(squares_of(x.grads))
    return {"value": o["weight"] * with_center(n, o["center"]).mean(), "norms": n}


@restates("ops.gradient_penalty: one-sided, weights, two inputs")
def _(x, o):
    n = root(squares_of(x.grads) + squares_of(x.others))
    return o["weight"] * (x.sample_weight * relu(n - o["center"]) ** 2).sum()


@restates("ops.gradient_penalty: of each input")
def _(x, o):
    both = (with_center(root(squares_of(g)), o["center"]).mean() for g in (x.grads, x.others))
    return o["weight"] * np.stack(list(both))


@restates("critic_step")
def _(x, o):
    adversarial = softplus(critic(x, x.fake) - critic(x, x.real)).mean()
    r1, r2 = (
        o[name] / 2 * (norms_of(x, p, o, central=False) ** 2).mean()
        for name, p in (("r1", x.real), ("r2", x.fake))
    )
    return {"value": adversarial + r1 + r2, "adversarial": adversarial, "r1": r1, "r2": r2}


@restates("nn.GradientNormalizer")
def _(x, o):
    square = total = 0.0
    found = []
    for g in x.gradients:
        square = o["decay"] * square + (1 - o["decay"]) * (g**2).sum()
        total = o["decay"] * total + 1 - o["decay"]
        found.append(o["scale"] * g / math.sqrt(square / total))
    return np.stack(found)


# --- NumPy: regularizers -------------------------------------------------------------------------


def lecam(real, fake, ema_real, ema_fake, o):
    if o.get("of") == "means":
        real, fake = real.mean(), fake.mean()
    terms = (relu(real - ema_fake) ** 2).mean(), (relu(ema_real - fake) ** 2).mean()
    return o["weight"] * sum(terms)


@restates("regularizers.LeCam")
def _(x, o):
    return lecam(x.real_logits, x.fake_logits, x.ema_real, x.ema_fake, o)


@restates(*(f"regularizers.LeCam: in training{t}" for t in ("", ", from zero", ", a late start")))
def _(x, o):
    emas = [0.0, 0.0] if o.get("from_zero") else None
    found = []
    for i, batch in enumerate(zip(x.reals, x.fakes, strict=True)):
        means = [real_of(y).mean() for y in batch]
        emas = emas or means
        emas = [o["decay"] * e + (1 - o["decay"]) * m for e, m in zip(emas, means, strict=True)]
        found.append(lecam(*batch, *emas, o) * (i >= o.get("start", 0)))
    return {"value": np.stack(found), "ema_real": emas[0], "ema_fake": emas[1]}


@restates("regularizers.drift_penalty")
def _(x, o):
    return o["weight"] * (x.real_logits**2).mean()


def generator(x, z):
    return np.tanh(z.reshape(len(z), -1) @ x.V.T + x.e)


def lengths(x):
    """||J^T y|| with the Jacobian of G."""
    y = x.noise.reshape(len(x.z), -1) / math.sqrt(4)
    g = ((1 - generator(x, x.z) ** 2) * y) @ x.V
    return np.sqrt((g.reshape(x.z.shape) ** 2).sum(-1).reshape(len(g), -1).mean(1))


@restates("regularizers.PathLength")
def _(x, o):
    return o["weight"] * ((lengths(x) - x.mean) ** 2).mean()


@restates("regularizers.PathLength: in training")
def _(x, o):
    of_batch = lengths(x)
    mean = (1 - o["decay"]) * x.mean + o["decay"] * real_of(of_batch).mean()
    return {"value": o["weight"] * ((of_batch - mean) ** 2).mean(), "mean": mean}


def inconsistency(a, b):
    return ((a - b) ** 2).reshape(len(a), -1).sum(1).mean()


@restates("regularizers.consistency_regularization")
def _(x, o):
    return o["weight"] * inconsistency(critic(x, x.real), critic(x, x.real_view))


@restates("regularizers.balanced_consistency_regularization")
def _(x, o):
    of_real, of_fake = (
        inconsistency(critic(x, p), critic(x, q))
        for p, q in ((x.real, x.real_view), (x.fake, x.fake_view))
    )
    return o["weight_real"] * of_real + o["weight_fake"] * of_fake


@restates("regularizers.latent_consistency_discriminator")
def _(x, o):
    near, far = generator(x, x.z), generator(x, x.z + o["std"] * x.noise)
    return o["weight"] * inconsistency(critic(x, near), critic(x, far))


@restates("regularizers.latent_consistency_generator")
def _(x, o):
    return -o["weight"] * inconsistency(generator(x, x.z), generator(x, x.z + o["std"] * x.noise))


@restates("regularizers.minibatch_stddev", "regularizers.MinibatchStdDev")
def _(x, o):
    batch, channels = x.x.shape[:2]
    count, parts = batch // o["group_size"], o["num_channels"]
    new = np.zeros((batch, parts, *x.x.shape[2:]), x.x.dtype)
    for i in range(count):
        group = x.x[i::count]
        std = np.sqrt(((group - group.mean(0)) ** 2).mean(0) + o["eps"])
        for k, part in enumerate(np.split(std, parts)):
            new[i::count, k] = part.mean()
    assert channels % parts == 0
    return np.concatenate((x.x, new), 1)


@restates("regularizers.MinibatchDiscrimination")
def _(x, o):
    M = np.einsum("na,abc->nbc", x.x, x.T)
    distance = magnitude(M[:, None] - M).sum(3)
    return np.concatenate((x.x, np.exp(-distance).sum(1)), 1)


@restates("regularizers.InstanceNoise")
def _(x, o):
    t = 2 / o.get("steps", 1)
    factors = {"constant": 1, "linear": 1 - t, "cosine": (1 + math.cos(math.pi * t)) / 2}
    return x.x + factors[o["schedule"]] * o["sigma"] * x.noise


@restates("regularizers.FadingBlur")
def _(x, o):
    sigma = o["sigma"] * (1 - int(x.seen) / o["images"])
    reach = np.arange(-int(3 * sigma), int(3 * sigma) + 1)
    taps = 2 ** -((reach / sigma) ** 2)
    taps = taps / taps.sum()
    images = x.x
    for axis in (2, 3):
        size = images.shape[axis]
        images = np.apply_along_axis(np.convolve, axis, images, taps)
        images = images.take(range(len(reach) // 2, len(reach) // 2 + size), axis)
    return images


@restates("regularizers.rotate_batch")
def _(x, o):
    turned = np.concatenate([np.rot90(x.x, k, (2, 3)) for k in range(4)])
    return {"value": turned, "labels": np.repeat(np.arange(4), len(x.x))}


@restates("regularizers.rotation_loss")
def _(x, o):
    chosen = x.rotation_logits[np.arange(len(x.labels)), x.labels]
    return o["weight"] * (np.log(np.exp(x.rotation_logits).sum(1)) - chosen).mean()


# --- NumPy: resampling ---------------------------------------------------------------------------

SYMLET = np.array(FILE["constants"]["symlet"])
BANDS = np.array(FILE["constants"]["bands"])


def test_the_symlet():
    """It is a half of an orthogonal pair: shifted by 2 it has no product with itself."""
    assert SYMLET.sum() == pytest.approx(1, abs=1e-12)
    for shift in range(2, 12, 2):
        assert SYMLET[shift:] @ SYMLET[:-shift] == pytest.approx(0, abs=1e-9)
    np.testing.assert_allclose(SYMLET @ SYMLET, 0.5, atol=1e-9)


def test_the_bands():
    """Low passes of the autocorrelation of the 4-tap Daubechies filter, at three dilations."""
    r = math.sqrt(3)
    daubechies = np.array([1 + r, 3 + r, 3 - r, 1 - r]) / 8
    half = np.convolve(daubechies, daubechies[::-1])
    low, bands = np.ones(1), []
    for stage in range(3):
        dilated = np.zeros(6 * 2**stage + 1)
        dilated[:: 2**stage] = half
        lower = np.convolve(low, dilated)
        bands.insert(0, np.pad(low, (len(lower) - len(low)) // 2) - lower)
        low = lower
    bands.insert(0, low)
    taps = [np.pad(b[len(b) // 2 :], (0, 21 - len(b) // 2)) for b in bands]
    np.testing.assert_allclose(BANDS, taps, atol=1e-15)


def reflected(n, size):
    n = n % max(1, 2 * (size - 1))
    return np.minimum(n, 2 * (size - 1) - n) if size > 1 else 0 * n


def plain_row(u, size, kernel, padding):
    """What a point at pixel u takes of the pixels of an axis."""
    row = np.zeros(size)
    low = int(np.rint(u)) if kernel == "nearest" else math.floor(u)
    for n, share in (
        ((low, 1.0),) if kernel == "nearest" else ((low, 1 - u + low), (low + 1, u - low))
    ):
        if padding == "reflection":
            row[reflected(n, size)] += share
        elif padding == "border":
            row[min(max(n, 0), size - 1)] += share
        elif 0 <= n < size:
            row[n] += share
    return row


def node_row(n, size, margins):
    """What a node at n / 2 takes of the pixels of an axis."""
    row = np.zeros(size)
    before, after = (10**9, 10**9) if margins is None else margins
    if -2 * before <= n < 2 * (size + after):
        for p in range(n // 2 - 4, n // 2 + 5):
            if 0 <= n + 5 - 2 * p < 12 and -before <= p < size + after:
                row[reflected(p, size)] += 2 * SYMLET[n + 5 - 2 * p]
    return row


def node_between(u, size, margins):
    n = math.floor(u)
    return (1 - u + n) * node_row(n, size, margins) + (u - n) * node_row(n + 1, size, margins)


def positions(A, size, to, i, j):
    """Where an output pixel (row, column) lies in the input, in pixels (column, row)."""
    at = A @ np.array([j - (to[1] - 1) / 2, i - (to[0] - 1) / 2, 1])
    return at[0] + (size[1] - 1) / 2, at[1] + (size[0] - 1) / 2


@functools.cache
def resampling(A, size, to, kernel="sym6", padding="reflection", margins=None, blits=True):
    """The matrix of one image's resampling."""
    A = np.array(A)
    corners = [positions(A, size, to, i, j) for i in (0, to[0] - 1) for j in (0, to[1] - 1)]
    turned = np.sort(np.abs(A[:, :2]).ravel()).tolist() == [0, 0, 1, 1] and A[:, :2].any(0).all()
    if blits and margins is None and turned and not np.mod(corners, 1).any():
        kernel = "nearest"
    if kernel != "sym6":
        rows = []
        for i, j in np.ndindex(*to):
            u, v = positions(A, size, to, i, j)
            of_row, of_column = (
                plain_row(a, n, kernel, padding) for a, n in ((v, size[0]), (u, size[1]))
            )
            rows.append(np.kron(of_row, of_column))
        return np.array(rows)
    of_axis = (None, None) if margins is None else (margins[2:], margins[:2])
    points = np.zeros((2 * to[0] + 10, 2 * to[1] + 10, size[0] * size[1]))
    for m, k in np.ndindex(points.shape[:2]):
        u, v = positions(A, size, to, (m - 5) / 2, (k - 5) / 2)
        of_row = node_between(2 * v, size[0], of_axis[0])
        points[m, k] = np.kron(of_row, node_between(2 * u, size[1], of_axis[1]))
    filtered = np.zeros((*to, points.shape[2]))
    for i, j in np.ndindex(*to):
        window = points[2 * i : 2 * i + 12, 2 * j : 2 * j + 12]
        filtered[i, j] = np.einsum("m,k,mkp->p", SYMLET, SYMLET, window)
    return filtered.reshape(-1, points.shape[2])


def tuples(x):
    return tuple(map(tuples, x)) if isinstance(x, (list, tuple)) else x


def resample(images, maps, to=None, **how):
    size = images.shape[2:]
    to = tuple(to or size)
    matrices = [resampling(tuples(A.tolist()), size, to, **how) for A in maps]
    found = [x.reshape(len(x), -1) @ R.T for x, R in zip(images, matrices, strict=True)]
    return np.stack(found).reshape(*images.shape[:2], *to)


def batch_margins(maps, size):
    """Left, right, top, bottom."""
    found = []
    x, y = (size[1] - 1) / 2, (size[0] - 1) / 2
    for row, half in ((0, x), (1, y)):
        reached = [(A @ (a, b, 1))[row] for A in maps for a in (-x, x) for b in (-y, y)]
        for sign in (-1, 1):
            most = max(sign * r for r in reached) + 6 - half
            found.append(math.ceil(min(max(most, 0), 2 * half)))
    return tuple(found)


@restates("ops.affine_resample")
def _(x, o):
    how = {"kernel": o.get("filter", "sym6"), "padding": o.get("padding_mode", "reflection")}
    if o.get("mode") == "stylegan2-ada":
        how["margins"] = batch_margins(x.inverse_maps, x.images.shape[2:])
    return resample(x.images, x.inverse_maps, o.get("output_size"), **how)


@restates("ops.affine_resample_transpose")
def _(x, o):
    to, size = x.grad.shape[2:], tuple(o["input_size"])
    matrices = [resampling(tuples(A.tolist()), size, to) for A in x.inverse_maps]
    found = [g.reshape(len(g), -1) @ R for g, R in zip(x.grad, matrices, strict=True)]
    return np.stack(found).reshape(*x.grad.shape[:2], *size)


@restates("maps_from_theta")
def _(x, o):
    size = np.array([5, 4]) - o["align_corners"]
    found = x.theta.copy()
    found[:, :, :2] *= size[:, None] / size  # of pixels to pixels
    found[:, :, 2] *= size / 2
    return found


def philox(seed, count):
    """N(0, 1) of Philox4x32-10 and Box and Muller, in float32."""
    counters = [np.arange((count + 3) // 4, dtype=np.uint64), *[np.uint64(0)] * 3]
    low = np.uint64(0xFFFFFFFF)
    a, b, c, d = (x + np.zeros_like(counters[0]) for x in counters)
    keys = [seed & 0xFFFFFFFF, seed >> 32]
    for _ in range(10):
        first, second = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        high = [x >> np.uint64(32) for x in (first, second)]
        k = [np.uint64(key) for key in keys]
        a, b, c, d = high[1] ^ b ^ k[0], second & low, high[0] ^ d ^ k[1], first & low
        steps = 0x9E3779B9, 0xBB67AE85
        keys = [(key + step) & 0xFFFFFFFF for key, step in zip(keys, steps, strict=True)]
    found = []
    for u, v in ((a, b), (c, d)):
        radius = np.sqrt(-2 * np.log(((u >> np.uint64(8)) + 1.0) / 2**24))
        angle = 2 * math.pi * (v >> np.uint64(8)) / 2**24
        found += [radius * np.cos(angle), radius * np.sin(angle)]
    return np.stack(found, 1).ravel()[:count]


def noise_of(seeds, shape):
    return np.stack([philox(int(s), math.prod(shape[1:])).reshape(shape[1:]) for s in seeds])


def cut(images, x, y, size):
    """Zeros in a box, center and size in fractions, of each image."""
    found = images.copy()
    height, width = images.shape[2:]
    for n, i, j in np.ndindex(len(images), height, width):
        far = abs((j + 0.5) / width - x[n]), abs((i + 0.5) / height - y[n])
        if max(far) < size[n] / 2:
            found[n, :, i, j] = 0
    return found


def colored(images, matrices, channels):
    found = images.copy()
    for n, A in enumerate(matrices):
        planes = images[n, channels]
        found[n, channels] = np.tensordot(A[:, :-1], planes, 1) + A[:, -1][:, None, None]
    return found


@restates("ops.affine_augment")
def _(x, o):
    noise = noise_of(x.seed, x.images.shape)
    found = resample(x.images, x.inverse_maps, kernel=o["filter"], padding=o["padding_mode"])
    found = colored(found, x.color, [0, 1, 2]) + x.sigma[:, None, None, None] * noise
    return {"value": cut(found, *x.box.T), "noise": noise}


@functools.cache
def band_matrix(gains, size):
    taps = np.array(gains) @ BANDS
    found = np.zeros((size, size))
    for i in range(size):
        for k in range(-21, 22):
            found[i, reflected(i + k, size)] += taps[abs(k)]
    return found


def filtered(images, gains, transpose=False):
    found = images.copy()
    for n, g in enumerate(gains):
        if (g != 1).any():
            rows, columns = (band_matrix(tuple(g.tolist()), size) for size in images.shape[2:])
            if transpose:
                rows, columns = rows.T, columns.T
            found[n] = rows @ images[n] @ columns.T
    return found


@restates("ops.image_filter")
def _(x, o):
    return filtered(x.images, x.gains)


@restates("ops.image_filter_transpose")
def _(x, o):
    return filtered(x.grad, x.gains, transpose=True)


# --- NumPy: transforms ---------------------------------------------------------------------------


def columns_of(x, batch):
    def column(name):
        return np.asarray(getattr(x, name, np.full(batch, float(name in golden.FACTORS))))

    return SimpleNamespace(**{name: column(name) for name in (*VALUES, "yflip")})


def scaling(x, y):
    return np.diag([x, y, 1.0])


def rotation(t):
    return np.array([[math.cos(t), -math.sin(t), 0], [math.sin(t), math.cos(t), 0], [0, 0, 1]])


def shift(x, y):
    return np.array([[1, 0, x], [0, 1, y], [0, 0, 1]])


def geometry(v, n, size):
    height, width = size
    turns = np.rint(rotation((v.rotate90[n] + 2 * v.yflip[n]) * math.pi / 2))
    whole = np.rint(v.xint_x[n] * width), np.rint(v.xint_y[n] * height)
    product = [
        scaling(1 - 2 * abs(v.xflip[n] - v.yflip[n]), 1) @ turns @ shift(-whole[0], -whole[1]),
        scaling(1 / v.scale[n], 1 / v.scale[n]) @ rotation(v.rotate_before[n]),
        scaling(1 / v.aniso[n], v.aniso[n]) @ rotation(v.rotate_after[n]),
        shift(-v.xfrac_x[n] * width, -v.xfrac_y[n] * height),
    ]
    return functools.reduce(np.matmul, product)[:2] + 0.0


def color(v, n, channels):
    b, c = v.brightness[n], v.contrast[n]
    axis = np.array([1, 1, 1, 0]) / math.sqrt(3)
    matrix = np.eye(4)
    matrix[:3, 3] = b
    matrix = np.diag([c, c, c, 1]) @ matrix
    matrix = (np.eye(4) - 2 * v.lumaflip[n] * np.outer(axis, axis)) @ matrix
    if channels == 1:
        rows = matrix[:3].mean(0)
        return np.array([[rows[:3].sum(), rows[3]]])
    cross = np.zeros((4, 4))
    cross[:3, :3] = np.cross(np.eye(3), axis[:3]).T * -1
    turn = np.eye(4) + math.sin(v.hue[n]) * cross + (1 - math.cos(v.hue[n])) * cross @ cross
    gray = np.outer(axis, axis)
    return ((gray + (np.eye(4) - gray) * v.saturation[n]) @ turn @ matrix)[:3]


def gains(v, n):
    found, power = np.ones(4), np.array([10, 1, 1, 1]) / 13
    for i in range(4):
        t = np.ones(4)
        t[i] = getattr(v, f"band_{i}")[n]
        if t[i] != 1:
            found = found * t / math.sqrt((power * t**2).sum())
    return found


MOVES = {*VALUES[:10], "yflip"}


def moved(images, v, names, kernel="sym6", mode="ideal", blits=True):
    """The geometry of a transform, and what it is composed to."""
    found = {}
    if names & MOVES:
        size = images.shape[2:]
        found["maps"] = np.stack([geometry(v, n, size) for n in range(len(images))])
        how = {"kernel": kernel, "blits": blits}
        if mode != "ideal":
            found["margins"] = how["margins"] = batch_margins(found["maps"], size)
        images = resample(images, found["maps"], **how)
    return images, found


@restates("Transform")
def _(x, o):
    v, names = columns_of(x, len(x.images)), set(vars(x))
    blits = o.get("lossless_blits", True)
    images, found = moved(x.images, v, names, mode=o.get("mode", "ideal"), blits=blits)
    if names & {"brightness", "contrast", "lumaflip", "hue", "saturation"}:
        channels = o.get("color_channels") or list(range(images.shape[1]))
        found["color"] = np.stack([color(v, n, len(channels)) for n in range(len(images))])
        images = colored(images, found["color"], channels)
    if names & {f"band_{i}" for i in range(4)}:
        found["gains"] = np.stack([gains(v, n) for n in range(len(images))])
        images = filtered(images, found["gains"])
    if hasattr(x, "seed"):
        noise = noise_of(x.seed, images.shape)
        images, found = images + v.noise[:, None, None, None] * noise, {"noise": noise}
    if hasattr(x, "cutout"):
        images = cut(images, v.cutout_x, v.cutout_y, v.cutout)
    return {"value": images, **({} if "yflip" in names else found)}


@restates("Transform.geometry")
def _(x, o):
    images = x.masks if hasattr(x, "masks") else x.images
    v = columns_of(x, len(images))
    return moved(images, v, set(vars(x)), o.get("filter", "nearest"))[0]


@restates("Transform.labels")
def _(x, o):
    v = columns_of(x, 2)
    angles = v.rotate90 * math.pi / 2, v.rotate_before, v.rotate_after, v.hue
    turns = [(np.cos(a) - 1, np.sin(a)) for a in angles]
    bands = [np.log2(getattr(v, f"band_{i}")) for i in range(4)]
    return np.stack(
        [
            *(v.xflip, v.yflip, *turns[0], v.xint_x * 8, v.xint_y * 8, np.log2(v.scale) * 5),
            *(*turns[1], np.log2(v.aniso) * 5, *turns[2], v.xfrac_x * 8, v.xfrac_y * 8),
            *(v.brightness * 5, np.log2(v.contrast) * 2, v.lumaflip, *turns[3]),
            *(np.log2(v.saturation), *bands, v.noise * 10, v.cutout * 2),
            *(2 * v.cutout_x - 1, 2 * v.cutout_y - 1),
        ],
        1,
    )


@restates("Transform.named")
def _(x, o):
    v = columns_of(x, 2)
    found = {name: getattr(v, name) for name in VALUES}
    return {"value": np.stack(list(found.values()), 1), **found}


#: The columns of random numbers.
GATED = (
    "xflip", "rotate90", "xint", "scale", "rotate_before", "aniso", "rotate_after", "xfrac",
    "brightness", "contrast", "lumaflip", "hue", "saturation", "band_0", "band_1", "band_2",
    "band_3", "noise", "cutout",
)  # fmt: skip
UNIFORM = (
    "xflip", "rotate90", "xint_x", "xint_y", "rotate_before", "rotate_after", "lumaflip", "hue",
    "cutout_x", "cutout_y", "seed",
)  # fmt: skip
NORMAL = (
    "scale", "aniso", "xfrac_x", "xfrac_y", "brightness", "contrast", "saturation", "band_0",
    "band_1", "band_2", "band_3", "noise",
)  # fmt: skip


def sampled(x, p):
    """The columns that ada_parameters decides for, and seeds; all multipliers are 1."""
    gate = dict(zip(GATED, x.uniforms.T, strict=False))
    u = dict(zip(UNIFORM, x.uniforms.T[len(GATED) :], strict=True))
    n = dict(zip(NORMAL, x.normals.T, strict=True))
    drawn = {
        "xflip": np.floor(2 * u["xflip"]), "rotate90": np.floor(4 * u["rotate90"]),
        **{k: (2 * u[k] - 1) / 8 for k in ("xint_x", "xint_y")},
        **{k: (2 * u[k] - 1) * math.pi for k in ("rotate_before", "rotate_after", "hue")},
        **{k: 2 ** (n[k] / 5) for k in ("scale", "aniso")},
        **{k: n[k] / 8 for k in ("xfrac_x", "xfrac_y")},
        "brightness": n["brightness"] / 5, "contrast": 2 ** (n["contrast"] / 2),
        "lumaflip": np.floor(2 * u["lumaflip"]), "saturation": 2 ** n["saturation"],
        **{f"band_{i}": 2 ** n[f"band_{i}"] for i in range(4)},
        "noise": np.abs(n["noise"]) / 10, "cutout": np.full(len(x.uniforms), 0.5),
        "cutout_x": u["cutout_x"], "cutout_y": u["cutout_y"],
    }  # fmt: skip
    found = {}
    for name, value in drawn.items():
        of = next(g for g in (name, name[:-2]) if g in gate)
        chance = 1 - math.sqrt(1 - p) if of.startswith("rotate_") else p
        found[name] = np.where(gate[of] < chance, value, float(name in golden.FACTORS))
    seed = np.floor(u["seed"] * 2**53).astype(np.int64)
    return SimpleNamespace(**found, yflip=np.zeros(len(seed))), seed


@restates("ops.ada_parameters")
def _(x, o):
    v, seed = sampled(x, float(x.p))
    rows = range(len(seed))
    return {
        "value": np.stack([getattr(v, name) for name in VALUES], 1),
        "seed": seed,
        "maps": np.stack([geometry(v, n, (4, 5)) for n in rows]),
        "color": np.stack([color(v, n, 3) for n in rows]),
        "gains": np.stack([gains(v, n) for n in rows]),
        "sigma": v.noise,
        "box": np.stack((v.cutout_x, v.cutout_y, v.cutout), 1),
    }


@restates("augment.ADAPipe")
def _(x, o):
    v, _ = sampled(x, o["p"])
    rows = range(len(x.images))
    images, _ = moved(x.images, v, MOVES)
    images = colored(images, [color(v, n, 3) for n in rows], [0, 1, 2])
    return filtered(images, [gains(v, n) for n in rows])


def shifted(images, u, o):
    """DiffAugment's translation."""
    found = np.zeros_like(images)
    height, width = images.shape[2:]
    for n, i, j in np.ndindex(len(images), height, width):
        at = []
        for k, (place, side) in enumerate(((j, width), (i, height))):
            reach = int(side * o["translation"] + 0.5)
            at.append(place + math.floor(u[n, 3 + k] * (2 * reach + 1)) - reach)
        if 0 <= at[0] < width and 0 <= at[1] < height:
            found[n, :, i, j] = images[n, :, at[1], at[0]]
    return found


def diff_cut(images, u, share):
    found = images.copy()
    for n in range(len(images)):
        ranges = []
        for k, side in enumerate(images.shape[:1:-1]):
            length = int(side * share + 0.5)
            first = math.floor(u[n, 5 + k] * (side + 1 - length % 2)) - length // 2
            ranges.append(slice(max(first, 0), max(first + length, 0)))
        found[n, :, ranges[1], ranges[0]] = 0
    return found


def diff_colored(images, u):
    b, s, c = (u[:, k, None, None, None] for k in range(3))
    images = images + b - 0.5
    mean = images.mean(1, keepdims=True)
    images = mean + 2 * s * (images - mean)
    mean = images.mean((1, 2, 3), keepdims=True)
    return mean + (c + 0.5) * (images - mean)


@restates("augment.DiffAugment")
def _(x, o, policy=()):
    images = x.images
    if "color" in policy:
        images = diff_colored(images, x.uniforms)
    if "translation" in policy:
        images = shifted(images, x.uniforms, o)
    if "cutout" in policy and getattr(x, "chance", 0) < o.get("p", 1):
        images = diff_cut(images, x.uniforms, o.get("cutout", 0.5))
    return images


@restates("ops.diff_augment_parameters")
def _(x, o):
    b, s, c = x.uniforms.T[:3]
    contrast = c + 0.5
    maps = np.zeros((len(b), 2, 3))
    box = np.full((len(b), 3), 0.5)
    for k, side in enumerate((5, 6)):
        maps[:, k, k] = 1
        maps[:, k, 2] = np.floor(x.uniforms[:, 3 + k] * 3) - 1
        odd = (3, 3)[k] % 2
        box[:, k] = (np.floor(x.uniforms[:, 5 + k] * (side + 1 - odd)) + odd / 2) / side
    weights = (contrast * 2 * s)[:, None, None] * np.eye(3)
    weights = weights + (contrast * (1 - 2 * s) / 3)[:, None, None]
    offsets = np.tile((b - 0.5)[:, None, None], (1, 3, 1))
    matrix = np.concatenate((weights, offsets), 2)
    return {"value": maps, "box": box, "color": matrix, "shade": 1 - contrast}


@restates("augment.APA")
def _(x, o):
    return np.where((x.chance < 0.5)[:, None], x.fake, x.real)


@restates("augment.ADAController")
def _(x, o):
    p, found, since = 0.0, [], o["interval"]
    for i in range(len(x.real_logits)):
        if (i + 1) % since == 0:
            seen = slice(i + 1 - since, i + 1)
            real = x.real_logits[seen]
            if o["metric"] == "rt":
                r = np.sign(real).mean()
            elif o["metric"] == "rv":
                fake, validation = x.fake_logits[seen].mean(), x.validation_logits[seen].mean()
                r = (real.mean() - validation) / (real.mean() - fake)
            else:
                r = ((real > 0).mean() + (x.fake_logits[seen] < 0).mean()) / 2
            p += np.sign(r - o["target"]) * real.size / (1000 * o["kimg"])
            p = min(max(p, 0), o["p_max"])
        found.append(p)
    return {"value": np.array(found), "r": r}


@restates("augment.ADASchedule")
def _(x, o):
    t = np.minimum(1, 4 * np.arange(1, len(x.real_logits) + 1) / (1000 * o["kimg"]))
    shares = {"fixed": np.ones_like(t), "linear": t, "cosine": (1 - np.cos(math.pi * t)) / 2}
    return o["p"] * shares[o["shape"]]


@restates("ops.ada_control_")
def _(x, o):
    total, count = x.state[0] + np.sign(x.real_logits).sum(), x.state[1] + x.real_logits.size
    sign = np.sign(total / count - o["target"])
    p = x.p + sign * (x.state[6] + 4) / (1000 * o["kimg"])
    assert (x.state[7] + 1) % o["interval"] == 0
    return {"value": p, "state": np.array([0, 0, 0, 0, 0, 0, 0, x.state[7] + 1])}


# --- right without torch -------------------------------------------------------------------------


def restated(name):
    """The function for a case: of its name, or of what stands before the colon."""
    if name.startswith("augment.DiffAugment: "):
        return functools.partial(RESTATED["augment.DiffAugment"], policy=policy_of(name))
    return RESTATED.get(name) or RESTATED[re.split("[:,]", name)[0]]


def policy_of(name):
    call = CASES[name]["call"]
    return re.search(r"DiffAugment\('([^']*)'", call)[1].split(",")


def check_without_torch(case):
    restate = restated(case["name"])
    expected = restated_value(restate, case, arrays_of(case))
    found = {"expected": {k: real_of(x) for k, x in expected.items()}}
    if "gradients" in case:
        found["gradients"] = numeric_gradients(restate, case)
    return differences(case, found)


@pytest.mark.parametrize("name", CASES)
def test_without_torch(name):
    assert check_without_torch(CASES[name]) == []


# --- what a fault in gankernels would do ---------------------------------------------------------


def doubled(found, *_, **__):
    return 2 * found


def of_half_the_gradient(found, *_, **__):
    return (found + found.detach()) / 2


def without_the_gradient_of_sigma(found, weights, *_, **__):
    return [weights[0] / found[1][0].detach()], found[1]


def turned_backwards(found, *_, **__):
    color = found.color
    if color is not None:
        color = color.clone()
        color[:, :, :3] = color[:, :, :3].mT
    return found._replace(color=color)


@pytest.mark.parametrize(
    "name, owner, function, fault",
    [
        ("penalties.wgan_gp_penalty", penalties, "wgan_gp_penalty", doubled),
        ("losses.hinge.fake", type(losses.hinge), "fake", of_half_the_gradient),
        ("ops.spectral_norm: u_first", ops, "spectral_norm", without_the_gradient_of_sigma),
        ("Transform: hue", ops, "ada_parameters", turned_backwards),
    ],
    ids=["value", "gradient", "spectral norm", "transform"],
)
def test_a_fault_is_seen_without_torch(name, owner, function, fault, monkeypatch):
    """A file written with it does not pass."""
    right = getattr(owner, function)
    first = 1 if isinstance(owner, type) else 0  # without self

    def wrong(*args, **kwargs):
        return fault(right(*args, **kwargs), *args[first:], **kwargs)

    monkeypatch.setattr(owner, function, wrong)
    (case,) = (case for case in golden.CASES if case.name == name)
    written = json.loads(json.dumps(golden.entry(case, golden.compute(case))))
    assert check_without_torch(written) != []
