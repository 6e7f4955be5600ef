"""What a critic returns beside its scores: features are refused, or picked apart, and not added."""

import collections
import dataclasses
import re
from typing import Any, NamedTuple

import pytest
import torch
from support import penalties
from support.penalties import seeded
from torch import nn

import gankernels as gk
from gankernels import augment, losses, regularizers
from gankernels import nn as gnn


class Critic(nn.Module):
    """With 8 channels of features."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.features, self.head = nn.Conv2d(3, 8, 3).double(), nn.Conv2d(8, 1, 3).double()

    def forward(self, x):
        h = torch.tanh(self.features(x))
        return self.head(h), h


D = Critic()
DRAW = torch.Generator().manual_seed(1)
REAL, FAKE = (torch.randn(4, 3, 8, 8, generator=DRAW, dtype=torch.float64) for _ in range(2))


def flip(x):
    return x.flip(3)


def on_samples(call):
    return lambda D, **k: call(D, REAL, FAKE, **k)


#: Every function that calls a critic.
CALLED = {
    **{name.removesuffix("_penalty"): on_samples(call) for name, call in penalties.CALLED.items()},
    "WGANGPPenalty": lambda D, **k: gnn.WGANGPPenalty()(D, REAL, FAKE, generator=seeded(), **k),
    "R1R2Penalty": lambda D, **k: gnn.R1R2Penalty(**k)(D, REAL, FAKE),
    "DRAGANPenalty": lambda D, **k: gnn.DRAGANPenalty(**k)(D, REAL, generator=seeded()),
    "ApproxR1Penalty": lambda D, **k: gnn.ApproxR1Penalty(**k)(D, REAL, generator=seeded()),
    "cr": lambda D, **k: regularizers.consistency_regularization(D, REAL, flip, **k),
    "bcr": lambda D, **k: regularizers.balanced_consistency_regularization(
        D, REAL, FAKE, flip, **k
    ),
    "zcr": lambda D, **k: regularizers.latent_consistency_discriminator(
        D, flip, REAL, generator=seeded(), **k
    ),
}


class Named(NamedTuple):
    logits: Any
    features: Any


@dataclasses.dataclass
class Output:
    logits: Any
    features: Any


#: What critics return, with the picks that find the scores.
RESULTS = {
    "features in a list": (lambda s, h: (s, [h]), [0, -2, lambda out: out[0]]),
    "features in a tuple": (lambda s, h: [s, (h, h)], [0]),
    "features first": (lambda s, h: ([h], s), [1, -1]),
    "nested scores": (lambda s, h: [[s]], [lambda out: out[0][0], 0]),
    "a dict": (lambda s, h: {"logits": s, "features": h}, ["logits", lambda out: out["logits"]]),
    "an ordered dict": (lambda s, h: collections.OrderedDict(logits=s), ["logits"]),
    "a NamedTuple": (Named, ["logits", 0]),
    "a NamedTuple of two scales": (lambda s, h: Named(s, s), ["logits"]),
    "a dataclass": (Output, ["logits", lambda out: out.logits]),
    "with None": (lambda s, h: (s, None), [0]),
    "with a number": (lambda s, h: [s, 1.0], [0]),
    "a flat tuple with a map of features": (lambda s, h: (s, h), [0]),
    "a score and a map of features": (lambda s, h: (s.flatten(1).sum(1, True), h), [0]),
}


@pytest.mark.parametrize("result", RESULTS)
@pytest.mark.parametrize("name", CALLED)
def test_features_are_refused_and_scores_picked(name, result):
    """Added up as scores, features made penalties 55 to 600,000 times too large."""
    make, picks = RESULTS[result]
    call = CALLED[name]

    def returns(x):
        return make(*D(x))

    smallest = {"features first": "1", "a dict": '"logits" if they are'}.get(result, "0")
    with pytest.raises((TypeError, ValueError), match=f"scores={smallest}"):
        call(returns)
    expected = call(
        (lambda x: D(x)[0].flatten(1).sum(1, keepdim=True))
        if "a score" in result
        else (lambda x: D(x)[0])
    )
    for pick in picks:
        assert torch.equal(call(returns, scores=pick), expected)


@pytest.mark.parametrize("result", RESULTS)
def test_results_that_are_given(result):
    """r1_penalty(D(x), x), 484.4 for 8.77 of a critic that returns its features."""
    make, _ = RESULTS[result]
    x = REAL.clone().requires_grad_()
    scores, features = D(x)
    if "a score" in result:
        scores = scores.flatten(1).sum(1, keepdim=True)
    for penalty in (gk.r1_penalty, gk.r2_penalty, gnn.R1Penalty()):
        with pytest.raises((TypeError, ValueError), match=r"pass the scores alone: D\(\w+\)\[0\]"):
            penalty(make(scores, features), x)
    with pytest.raises(TypeError, match="pass the scores alone"):
        gk.roth_penalty(make(scores, features), scores, x, x)
    if "flat" in result or "score and" in result:
        return  # lists of logits are averaged one by one, whatever their shapes
    for call in (
        lambda bad: losses.hinge.discriminator(bad, scores),
        lambda bad: losses.hinge.generator(bad),
        lambda bad: regularizers.LeCam()(bad, scores),
        lambda bad: regularizers.drift_penalty(bad),
    ):
        with pytest.raises(TypeError, match="pass only the"):
            call(make(scores, features))


#: Scores of several scales.
SCALES = {
    "maps of two sizes": lambda s: [s, s[:, :, 1:]],
    "a tuple": lambda s: (s, s),
    "flattened": lambda s: [s.flatten(1), s[:, :, 1:].flatten(1)],
    "few channels and fewer": lambda s: [s, torch.cat((s, s), 1)],
    "a score and a map": lambda s: [s.flatten(1).sum(1), s],
    "of two ranks": lambda s: [s.flatten(1).sum(1, True), s.flatten(1).sum(1)],
    "of tokens": lambda s: [s.flatten(1)[:, :, None], s.flatten(1)[:, :1, None]],
    "one": lambda s: [s],
}


@pytest.mark.parametrize("scales", SCALES)
def test_several_scales_are_taken(scales, recwarn):
    def returns(x):
        return SCALES[scales](D(x)[0])

    def added(x):
        return sum(s.reshape(len(s), -1).sum(1) for s in SCALES[scales](D(x)[0]))

    for name in ("r1_r2", "wgan_gp", "dragan", "approx_r1"):
        expected = CALLED[name](added)
        assert CALLED[name](returns).item() == pytest.approx(expected.item(), rel=1e-10)
    assert not [w for w in recwarn if "features" in str(w.message)]


def test_vectors_that_may_be_features_get_a_warning():
    """A map of scores, flattened, has the shape of features."""

    def returns(x):
        scores, features = D(x)
        return scores.flatten(1).sum(1, True), features.mean((2, 3))

    with pytest.warns(UserWarning, match=r"\(4, 1\), \(4, 8\).*say which are the scores"):
        gk.wgan_gp_penalty(returns, REAL, FAKE)


@pytest.mark.parametrize(
    "pick, error, message",
    [
        (True, TypeError, "expected scores to be a key, an index or a function"),
        (1.0, TypeError, "expected scores to be a key, an index or a function"),
        ([0], TypeError, "expected scores to be a key, an index or a function"),
        (2, ValueError, "expected the critic to return something at scores=2, got tuple of 2"),
        ("logits", ValueError, 'to return scores under "logits", got tuple'),
        (1, TypeError, "got a list with str"),
    ],
)
def test_picks_that_are_refused(pick, error, message):
    def returns(x):
        return D(x)[0], ["no tensor"]

    with pytest.raises(error, match="^wgan_gp_penalty: .*" + re.escape(message)):
        gk.wgan_gp_penalty(returns, REAL, FAKE, scores=pick)


def test_a_key_that_is_missing_and_those_there_are():
    with pytest.raises(ValueError, match='under "scores", got dict with logits, features'):
        gk.approx_r1_penalty(
            lambda x: dict(zip(("logits", "features"), D(x), strict=True)), REAL, scores="scores"
        )
    with pytest.raises(TypeError, match="of which scores=0 is one, got Tensor"):
        gk.approx_r1_penalty(lambda x: D(x)[0], REAL, scores=0)


def test_modules_show_and_keep_their_pick():
    module = gnn.WGANGPPenalty(scores="logits")
    assert repr(module) == "WGANGPPenalty(weight=10.0, center=1.0, scores='logits')"

    def returns(x):
        return dict(zip(("logits", "features"), D(x), strict=True))

    expected = CALLED["wgan_gp"](lambda x: D(x)[0])
    assert torch.equal(module(returns, REAL, FAKE, generator=seeded()), expected)
    other = module(lambda x: D(x), REAL, FAKE, generator=seeded(), scores=0)
    assert torch.equal(other, expected)
    with pytest.raises(TypeError, match="wgan_gp_penalty: expected scores to be a key"):
        gnn.WGANGPPenalty(scores=1.5)


LOSSES = [
    (name, getattr(losses, name))
    for name in losses.__all__
    if isinstance(getattr(losses, name), losses.Loss)
]
LOGITS = torch.randn(4, 1, generator=DRAW, dtype=torch.float64)
FEATURES = torch.randn(4, 64, 2, 2, generator=DRAW, dtype=torch.float64)
#: What takes logits that it adds up or averages, of one tensor or a list.
TAKES = {
    **{f"{name}.discriminator": lambda x, f=loss: f.discriminator(x, x) for name, loss in LOSSES},
    **{f"{name}.generator": lambda x, f=loss: f.generator(x, x) for name, loss in LOSSES},
    "LeCam": lambda x: regularizers.LeCam()(x, x),
    "drift_penalty": regularizers.drift_penalty,
    "ADAController": lambda x: augment.ADAController().update(x),
    "ADASchedule": lambda x: augment.ADASchedule(p=0.2, kimg=1).update(x),
}


@pytest.mark.parametrize("name", TAKES)
def test_a_flat_list_of_logits_and_features_is_refused(name):
    """The mean of the features counted as that of a second scale: hinge gave 4.6."""
    op = name.partition(".")[0]
    for pair in ((LOGITS, FEATURES), [FEATURES, LOGITS[:, :, None, None]]):
        with pytest.raises(ValueError, match=rf"^{op}.*: expected real_logits .*scores and feat"):
            TAKES[name](pair)
    with pytest.raises(TypeError, match=rf"^{op}.*: expected real_logits .*got Output"):
        TAKES[name](Output(LOGITS, FEATURES))
    for scales in ((LOGITS, FEATURES[:, :2]), [LOGITS[:, :, None], LOGITS], [FEATURES, FEATURES]):
        TAKES[name](scales)


class Output(NamedTuple):
    logits: torch.Tensor
    features: torch.Tensor


@pytest.mark.parametrize(
    "critic",
    [nn.Sequential(nn.Linear(6, 1)), nn.Linear(6, 1), lambda x: x],
    ids=["Sequential", "Linear", "function"],
)
def test_the_critic_in_place_of_its_scores(critic):
    x = torch.randn(5, 6, requires_grad=True)
    with pytest.raises(TypeError, match="call it on the samples, and pass what it returns"):
        losses.hinge.discriminator(critic, x[:, :1])
