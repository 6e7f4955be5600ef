"""The Dirac-GAN: which methods converge, at which rate, against the closed forms of the paper."""

import builtins
import cmath
import math
import os
import subprocess
import sys

import pytest
import torch

from gankernels import dirac, r1_penalty

LR = 0.1
SLOPE = {"wgan": 1.0, "xy": 1.0}  # f'(0), else 1/2
CURVATURE = -0.25  # f''(0) of the logistic loss

UNREGULARISED = ("gan", "nsgan", "wgan", "xy")
CONVERGING = ("r1", "r2", "instance_noise", "consensus")


def slope(method):
    return SLOPE.get(method, 0.5)


def roots(trace, det):
    """Eigenvalues of a matrix (2, 2)."""
    root = cmath.sqrt(trace * trace / 4 - det)
    return trace / 2 + root, trace / 2 - root


def assert_same(got, expected, tolerance=1e-10):
    """Two pairs of complex numbers, in any order."""
    expected = torch.tensor(expected, dtype=torch.complex128)
    apart = [(got - e).abs().max().item() for e in (expected, expected.flip(0))]
    assert min(apart) < tolerance, f"{got.tolist()}, not {expected.tolist()}"


def radius(path):
    return path.norm(dim=1)


# --- eigenvalues ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", UNREGULARISED)
@pytest.mark.parametrize("lr", [0.02, 0.3])
def test_unregularized_simultaneous_steps_diverge(method, lr):
    f = slope(method)
    found = dirac.eigenvalues(method, lr=lr, alternating=False)
    assert_same(found, (1 + 1j * lr * f, 1 - 1j * lr * f))
    assert found.abs().min() > 1
    assert dirac.verdict(method, lr=lr, alternating=False) == "diverges"


@pytest.mark.parametrize("method", UNREGULARISED)
@pytest.mark.parametrize("lr", [0.02, 0.3])
def test_unregularized_alternating_steps_stay_on_the_unit_circle(method, lr):
    a = 1 - (lr * slope(method)) ** 2 / 2  # the paper's, with n_g = n_d = 1
    found = dirac.eigenvalues(method, lr=lr)
    assert_same(found, (a + 1j * (1 - a * a) ** 0.5, a - 1j * (1 - a * a) ** 0.5))
    assert (found.abs() - 1).abs().max() < 1e-12
    assert dirac.verdict(method, lr=lr) == "oscillates"


def test_too_large_alternating_steps_diverge():
    assert dirac.verdict("xy", lr=1.9) == "oscillates"
    assert dirac.verdict("xy", lr=2.1) == "diverges"


#: The Jacobian of the gradient vector field by theta, theta and psi, psi; off the diagonal it is
#: f'(0) and -f'(0).
FIELDS = {
    "r1": ({"gamma": 0.6}, lambda f: (0.0, -0.6)),
    "r1_overdamped": ({"gamma": 3.0}, lambda f: (0.0, -3.0)),
    "r2": ({"gamma": 0.6}, lambda f: (0.0, -0.6)),
    "instance_noise": ({"sigma": 1.3}, lambda f: (0.0, 2 * CURVATURE * 1.3**2)),
    "consensus": ({"gamma": 0.7}, lambda f: (-0.7 * f * f, -0.7 * f * f)),
}


@pytest.mark.parametrize("case", FIELDS)
def test_regularized_eigenvalues(case):
    hyper, diagonal = FIELDS[case]
    method, f = case.removesuffix("_overdamped"), 0.5
    a, d = diagonal(f)
    # Simultaneous: I + h V.
    vector_field = (dirac.eigenvalues(method, lr=LR, alternating=False, **hyper) - 1) / LR
    assert_same(vector_field, roots(a + d, a * d + f * f), 1e-9)
    # Alternating: the product of the critic's step and the generator's.
    critic = torch.tensor([[1.0, 0.0], [-LR * f, 1 + LR * d]], dtype=torch.float64)
    generator = torch.tensor([[1 + LR * a, LR * f], [0.0, 1.0]], dtype=torch.float64)
    both = dirac.jacobian(method, lr=LR, **hyper)
    torch.testing.assert_close(both, generator @ critic, rtol=0, atol=1e-12)
    assert_same(
        dirac.eigenvalues(method, lr=LR, **hyper), roots(both.trace().item(), both.det().item())
    )


def test_the_papers_closed_forms():
    def field_eigenvalues(method, **hyper):
        return (dirac.eigenvalues(method, lr=LR, alternating=False, **hyper) - 1) / LR

    def pair(real, inside):
        return real + cmath.sqrt(inside), real - cmath.sqrt(inside)

    for gamma in (0.3, 2.0):
        expected = pair(-gamma / 2, gamma**2 / 4 - 0.25)
        assert_same(field_eigenvalues("r1", gamma=gamma), expected, 1e-9)
        assert_same(field_eigenvalues("r2", gamma=gamma), expected, 1e-9)
        expected = pair(-gamma * 0.25, -0.25)
        assert_same(field_eigenvalues("consensus", gamma=gamma), expected, 1e-9)
    for sigma in (0.5, 1.5, 2.5):
        expected = pair(CURVATURE * sigma**2, CURVATURE**2 * sigma**4 - 0.25)
        assert_same(field_eigenvalues("instance_noise", sigma=sigma), expected, 1e-9)


@pytest.mark.parametrize("method", [name for name in dirac.METHODS if name != "wgan_gp"])
@pytest.mark.parametrize("alternating", [True, False])
def test_jacobian_is_the_derivative_of_the_step(method, alternating):
    h = 1e-5
    columns = []
    for point in ((h, 0.0), (0.0, h)):
        ahead, back = (
            dirac.simulate(
                method,
                steps=1,
                lr=LR,
                alternating=alternating,
                start=(sign * point[0], sign * point[1]),
            )[1]
            for sign in (1, -1)
        )
        columns.append((ahead - back) / (2 * h))
    got = dirac.jacobian(method, lr=LR, alternating=alternating)
    torch.testing.assert_close(got, torch.stack(columns, 1), rtol=0, atol=1e-8)


def test_jacobian_of_wgan_gp_is_refused():
    for op in (dirac.jacobian, dirac.eigenvalues):
        with pytest.raises(ValueError, match=f"{op.__name__}: expected a method that is smooth"):
            op("wgan_gp", lr=LR)
    assert dirac.verdict("wgan_gp", lr=LR) == "oscillates"


# --- trajectories --------------------------------------------------------------------------------


@pytest.mark.parametrize("method", CONVERGING)
@pytest.mark.parametrize("alternating", [True, False])
def test_regularized_training_converges_at_the_predicted_rate(method, alternating):
    path = dirac.simulate(method, steps=150, lr=LR, alternating=alternating, start=(0.01, 0.01))
    eigenvalues, vectors = torch.linalg.eig(dirac.jacobian(method, lr=LR, alternating=alternating))
    # In the basis of the eigenvectors every coordinate shrinks by its own modulus.
    modes = torch.linalg.solve(vectors, path.T.to(torch.complex128)).abs()
    rate = (modes[:, -1] / modes[:, 0]) ** (1 / 150)
    torch.testing.assert_close(rate, eigenvalues.abs(), rtol=0, atol=1e-5)
    assert rate.max() < 0.99
    assert dirac.verdict(method, lr=LR, alternating=alternating) == "converges"


@pytest.mark.parametrize("method", CONVERGING)
def test_regularized_training_converges_from_afar(method):
    assert radius(dirac.simulate(method, steps=300, lr=LR))[-1] < 2e-3


def test_minimax_gan_cycles():
    path = dirac.simulate("gan", steps=400, lr=LR)
    assert radius(path).min() > 1.3
    assert radius(path).max() < 1.5
    assert turns(path) > 2  # 400 steps of a tenth of at most f'(0), a half: up to 3.2 turns


def test_non_saturating_gan_has_no_rate():
    """On average d(r^2)/dt = -r^4 / 8, so r^2 falls as 8/t and not exponentially."""
    r = radius(dirac.simulate("nsgan", steps=1200, lr=0.2))
    first, second, third = (r[k - 40 : k + 1].mean() for k in (300, 600, 1200))
    assert 0.6 < second / first < 0.85
    assert 0.6 < third / second < 0.85
    assert third == pytest.approx((8 / 240) ** 0.5, rel=0.15)


def test_clipped_wgan_cycles_within_its_bounds():
    path = dirac.simulate("wgan", steps=400, lr=LR, c=0.5, start=(1.0, 1.0))
    assert path[1:, 1].abs().max() == 0.5
    assert radius(path)[-200:].min() > 0.4
    assert turns(path) > 3


def test_unclipped_start_is_clipped_by_the_first_step():
    assert dirac.simulate("wgan", steps=1, lr=LR, c=0.25)[1, 1] == 0.25


def test_wgan_gp_does_not_converge():
    path = dirac.simulate("wgan_gp", steps=400, lr=LR)
    assert radius(path)[-200:].min() > 0.5
    assert turns(path) > 2
    close = dirac.simulate("wgan_gp", steps=400, lr=LR, start=(0.01, 0.01))
    assert radius(close)[-200:].min() > 0.5  # driven away from the equilibrium
    # One step by hand: the critic's loss is psi theta + weight (|psi| - 1)^2, the other's its own.
    theta, psi = 0.3, -0.4
    psi_new = psi - LR * (theta - 2 * 0.7 * (0.4 - 1))
    step = dirac.simulate("wgan_gp", steps=1, lr=LR, weight=0.7, start=(theta, psi))[1]
    assert step.tolist() == pytest.approx([theta + LR * psi_new, psi_new], abs=1e-14)


def test_xy_alternating_keeps_an_invariant():
    x, y = dirac.simulate("xy", steps=500, lr=LR).unbind(1)
    invariant = x * x + y * y + LR * x * y
    torch.testing.assert_close(invariant, torch.full_like(x, 2 + LR), rtol=0, atol=1e-12)
    assert turns(torch.stack((x, y), 1)) > 7


def test_xy_simultaneous_spirals_out():
    r = radius(dirac.simulate("xy", steps=200, lr=LR, alternating=False))
    expected = 2**0.5 * (1 + LR * LR) ** (torch.arange(201, dtype=torch.float64) / 2)
    torch.testing.assert_close(r, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("method", ["gan", "nsgan", "wgan"])
def test_simultaneous_training_spirals_out_of_small_circles(method):
    path = dirac.simulate(method, steps=200, lr=LR, alternating=False, start=(0.01, 0.0))
    rate = (radius(path)[-1] / 0.01) ** (1 / 200)
    assert rate == pytest.approx((1 + (LR * slope(method)) ** 2) ** 0.5, abs=1e-5)


def turns(path):
    """How often the path goes around the equilibrium."""
    angle = torch.atan2(path[:, 1], path[:, 0])
    step = (angle.diff() + math.pi).remainder(2 * math.pi) - math.pi
    return step.sum().abs().item() / (2 * math.pi)


# --- steps by hand -------------------------------------------------------------------------------


def sigmoid(t):
    return 1 / (1 + math.exp(-t))


@pytest.mark.parametrize("alternating", [True, False])
def test_the_generator_does_not_look_through_the_critics_step(alternating):
    """Its gradient is taken with psi constant, though psi has just been computed from theta."""
    theta, psi, h = 0.8, -0.6, 0.5
    psi_new = psi - h * sigmoid(psi * theta) * theta
    seen = psi_new if alternating else psi
    theta_new = theta + h * sigmoid(-seen * theta) * seen
    got = dirac.simulate("nsgan", steps=1, lr=h, alternating=alternating, start=(theta, psi))
    assert got[1].tolist() == pytest.approx([theta_new, psi_new], abs=1e-14)


def test_one_step_of_r1_and_minimax_by_hand():
    theta, psi, h = 0.8, -0.6, 0.5
    psi_new = psi - h * (sigmoid(psi * theta) * theta + 0.3 * psi)
    theta_new = theta + h * sigmoid(-psi_new * theta) * psi_new
    for method in ("r1", "r2"):
        got = dirac.simulate(method, steps=1, lr=h, start=(theta, psi), gamma=0.3)[1]
        assert got.tolist() == pytest.approx([theta_new, psi_new], abs=1e-14)
    psi_new = psi - h * sigmoid(psi * theta) * theta
    theta_new = theta + h * sigmoid(psi_new * theta) * psi_new
    got = dirac.simulate("gan", steps=1, lr=h, start=(theta, psi))[1]
    assert got.tolist() == pytest.approx([theta_new, psi_new], abs=1e-14)


def test_expectations_over_noise():
    """Against samples: the critic's gradient with noise on data and generated points."""
    theta, psi, sigma = 0.7, 1.1, 0.8
    noise = torch.randn(400_000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    real, fake = sigma * noise, theta + sigma * noise
    by_psi = (torch.sigmoid(-psi * real) * real - torch.sigmoid(psi * fake) * fake).mean()
    by_theta = (torch.sigmoid(-psi * fake) * psi).mean()
    got = dirac.field_at("instance_noise", theta, psi, sigma=sigma)
    assert got == pytest.approx((by_theta.item(), by_psi.item()), abs=4e-3)


def test_consensus_field_by_hand():
    theta, psi, gamma, h = 0.7, -0.4, 0.9, 1e-5

    def v(theta, psi):
        t = theta * psi
        return sigmoid(-t) * psi, -sigmoid(t) * theta

    def energy(theta, psi):
        return gamma / 2 * sum(x * x for x in v(theta, psi))

    by_theta = (energy(theta + h, psi) - energy(theta - h, psi)) / (2 * h)
    by_psi = (energy(theta, psi + h) - energy(theta, psi - h)) / (2 * h)
    expected = v(theta, psi)[0] - by_theta, v(theta, psi)[1] - by_psi
    got = dirac.field_at("consensus", theta, psi, gamma=gamma)
    assert got == pytest.approx(expected, abs=1e-9)


def test_simulate_is_deterministic_and_draws_nothing():
    before = torch.get_rng_state()
    with torch.no_grad():
        paths = [dirac.simulate("wgan_gp", steps=5, lr=LR) for _ in range(2)]
    assert torch.equal(*paths)
    assert torch.equal(torch.get_rng_state(), before)
    assert paths[0].dtype == torch.float64
    assert not paths[0].requires_grad


def test_no_steps():
    assert dirac.simulate("r1", steps=0, lr=LR, start=(0.5, 2.0)).tolist() == [[0.5, 2.0]]


# --- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"method": "sgan"}, ValueError, "simulate: expected method to be one of gan, .*'sgan'"),
        ({"lr": 0}, ValueError, "simulate: expected lr to be finite and positive, got 0"),
        ({"lr": "fast"}, TypeError, "simulate: expected lr to be a number, got str"),
        ({"steps": -1}, ValueError, "simulate: expected steps to be 0 or more, got -1"),
        ({"steps": 2.5}, TypeError, "simulate: expected steps to be an int, got float"),
        ({"method": torch.ones(2).numpy()}, ValueError, "simulate: expected method to be one of"),
        ({"steps": 2**31}, ValueError, "simulate: expected steps to be at most 1,000,000, got"),
        ({"alternating": "no"}, TypeError, "simulate: expected alternating to be True or False"),
        ({"start": (1.0,)}, ValueError, "simulate: expected start to be theta and psi"),
        ({"start": ("1", "2")}, TypeError, "start to be theta and psi, .*, got one of str"),
        ({"start": (math.nan, 2.0)}, ValueError, "start to be theta and psi, two finite numbers"),
        ({"start": torch.ones(2)}, TypeError, "start to be theta and psi, .*, got Tensor"),
        ({"sigma": 1.0}, TypeError, "expected hyper-parameters of 'r1', gamma, got 'sigma'"),
        ({"gamma": -1.0}, ValueError, "simulate: expected gamma to be finite and not negative"),
        ({"method": "xy", "gamma": 1.0}, TypeError, "hyper-parameters of 'xy', none, got 'gamma'"),
    ],
)
def test_errors(change, error, message):
    arguments = {"method": "r1", "steps": 1, "lr": LR} | change
    with pytest.raises(error, match=message):
        dirac.simulate(**arguments)


def test_errors_name_the_function():
    with pytest.raises(ValueError, match=r"^jacobian: expected method"):
        dirac.jacobian("sgan", lr=LR)
    with pytest.raises(ValueError, match=r"^verdict: expected method"):
        dirac.verdict("sgan", lr=LR)
    with pytest.raises(ValueError, match=r"^field_at: expected method"):
        dirac.field_at("sgan", 0.0, 0.0)


# --- command -------------------------------------------------------------------------------------


def test_table(capsys):
    assert dirac.main([]) == 0
    lines = {line.split()[0]: line.split()[1:] for line in capsys.readouterr().out.splitlines()[3:]}
    assert set(lines) == set(dirac.METHODS)
    assert lines["nsgan"] == [
        *("1.00000", "1.00000", "oscillates"),
        *("1.00125", "1.00125", "diverges"),
    ]
    assert lines["r1"][2] == lines["r1"][5] == "converges"
    assert lines["wgan_gp"] == ["not", "smooth", "oscillates"] * 2


def test_plot(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    shown = []
    save = Figure.savefig

    def keep(figure, *args, **kwargs):
        shown.append(figure)
        save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    monkeypatch.chdir(tmp_path)
    names = ("gan", "r1")
    monkeypatch.setattr(dirac, "METHODS", {name: dirac.METHODS[name] for name in names})
    assert dirac.main(["--plot"]) == 0
    assert capsys.readouterr().out.strip() == "dirac.png"
    assert (tmp_path / "dirac.png").read_bytes().startswith(b"\x89PNG")
    titles = [panel.get_title() for panel in shown[0].axes if panel.get_visible()]
    assert titles == ["GAN (minimax)\noscillates", "R1\nconverges"]
    assert dirac.main(["--plot", "other.svg"]) == 0
    assert "<svg" in (tmp_path / "other.svg").read_text()


def test_plot_without_matplotlib(monkeypatch, capsys):
    real_import = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert dirac.main(["--plot"]) == 1
    assert "dirac: expected matplotlib" in capsys.readouterr().err
    with pytest.raises(ImportError, match="pip install matplotlib"):
        dirac.plot()


def test_command_imports_no_matplotlib():
    code = (
        "import runpy, sys; sys.argv = ['dirac', '--help']\n"
        "try: runpy.run_module('gankernels.dirac', run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert 'matplotlib' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert "--plot" in done.stdout


# --- R1 without a second derivative ---------------------------------------------------------------


def _r1_by(method):
    def losses(theta, psi, gamma):
        critic, generator = dirac._nsgan(theta, psi)
        penalty = r1_penalty(
            lambda x: psi * x,
            dirac._sample(dirac._DATA).expand(COPIES[method], 1),
            gamma=gamma,
            method=method,
            generator=torch.Generator().manual_seed(0),
        )
        return critic + penalty, generator

    return dirac.Method(f"R1 by {method}", losses, {"gamma": 0.8})


#: Draws of the noise in a step.
COPIES = {"difference": 1, "noise": 2000}


def numerical_eigenvalues(method, lr):
    """Of the step's central differences: autograd would take the direction for a constant."""
    h = 1e-4
    steps = [
        dirac.simulate(method, steps=1, lr=lr, start=start)[1]
        for start in ((h, 0.0), (-h, 0.0), (0.0, h), (0.0, -h))
    ]
    columns = [(steps[0] - steps[1]) / (2 * h), (steps[2] - steps[3]) / (2 * h)]
    return torch.linalg.eigvals(torch.stack(columns, 1))


@pytest.mark.parametrize("method, rel", [("difference", 1e-6), ("noise", 0.03)])
def test_r1_without_second_derivatives(method, rel, monkeypatch):
    """Eigenvalues and trajectories are those of R1: the critic is linear. By noise, in the mean."""
    monkeypatch.setitem(dirac.METHODS, "other", _r1_by(method))
    found, exact = numerical_eigenvalues("other", 0.3), dirac.eigenvalues("r1", lr=0.3)
    torch.testing.assert_close(found.abs().sort()[0], exact.abs().sort()[0], rtol=rel, atol=0)
    paths = [dirac.simulate(name, steps=60, lr=0.3) for name in ("other", "r1")]
    tolerance = 1e-10 if method == "difference" else 0.03
    torch.testing.assert_close(*paths, rtol=0, atol=tolerance)
