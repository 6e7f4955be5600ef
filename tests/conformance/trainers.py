"""What public trainers compute by hand, and the lines of gankernels that compute the same.

``python tests/conformance/trainers.py --write`` writes the table of docs/migrate.md from here;
test_trainers.py runs both sides of every row. The formulas are restated here, from papers and from
what trainers were seen to compute; no line is theirs. Names in the code: ``D`` gives a score a
sample, ``scales`` a list of scores of three critics, ``features`` scores and lists of layers; ``G``
makes samples of ``z``; ``fake`` is ``G(z)``.
"""

from __future__ import annotations

import argparse
import textwrap
from dataclasses import dataclass
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs" / "migrate.md"


@dataclass(frozen=True)
class Trainer:
    """Both sides leave ``loss``. ``before`` is run once, ahead of training, for both."""

    who: str
    what: str
    theirs: str
    ours: str
    before: str = ""
    rtol: float = 1e-9  # of losses; moving averages are kept in float32


_GRADIENT = """\
x = {x}.detach().requires_grad_()
(g,) = torch.autograd.grad(D(x).sum(), x, create_graph=True)
"""


def _r1(factor: str, x: str = "real") -> str:
    return _GRADIENT.format(x=x) + f"loss = {factor} * g.square().flatten(1).sum(1).mean()"


_INTERPOLATES = """\
eps = torch.rand(len(real), 1, 1, 1, dtype=real.dtype)
x = (eps * real + (1 - eps) * fake.detach()).requires_grad_()
(g,) = torch.autograd.grad(D(x).sum(), x, create_graph=True)
norm = g.flatten(1).norm(2, 1)
"""

TRAINERS = [
    # --- penalties ---
    Trainer(
        "BasicSR, mmagic, lama, rosinality's StyleGAN2",
        "R1 with a weight and no 1/2",
        _r1("10.0"),
        "loss = gk.r1_penalty(D, real, gamma=20.0)",
    ),
    Trainer(
        "StyleGAN2-ADA, StyleGAN3, StudioGAN",
        "R1 with gamma / 2",
        _r1("10.0 / 2"),
        "real.requires_grad_()\nloss = gk.r1_penalty(D(real), real, gamma=10.0)",
    ),
    Trainer(
        "StyleGAN2, lazily",
        "R1 every 16 steps, times 16",
        "if step % 16 == 0:\n"
        + textwrap.indent(_r1("10.0 / 2 * 16"), "    ")
        + "\nelse:\n    loss = 0 * D(real).sum()",
        "real.requires_grad_(lazy.due)\nlogits = D(real)\n"
        "loss = lazy(logits, real) + 0 * logits.sum()",
        before="lazy = gk.nn.LazyRegularizer(gk.nn.R1Penalty(gamma=10.0), interval=16)",
    ),
    Trainer(
        "StarGAN v2",
        "cross entropy and R1 with 1/2",
        "a, b = D(real), D(fake.detach())\n"
        "adv = F.binary_cross_entropy_with_logits(a, torch.ones_like(a))\n"
        "adv = adv + F.binary_cross_entropy_with_logits(b, torch.zeros_like(b))\n"
        + _r1("adv + 0.5"),
        "loss = gk.critic_step(D, real, fake, loss=losses.non_saturating, r1=1.0).loss",
    ),
    Trainer(
        "R3GAN",
        "relativistic pairs, R1 and R2",
        "x, y = real.detach().requires_grad_(), fake.detach().requires_grad_()\n"
        "a, b = D(x), D(y)\n"
        "loss = F.softplus(b - a).mean()\n"
        "for s, p in ((a, x), (b, y)):\n"
        "    (g,) = torch.autograd.grad(s.sum(), p, create_graph=True)\n"
        "    loss = loss + 0.5 * g.square().sum((1, 2, 3)).mean()",
        "loss = gk.critic_step(D, real, fake, loss=losses.relativistic, r1=1.0, r2=1.0).loss",
    ),
    Trainer(
        "APT, Self-Forcing",
        "a step: relativistic pairs, R1 and R2 of noise with lambda 100 and sigma 0.01",
        "x = torch.cat((real, fake.detach()))\n"
        "(a, b), (p, q) = D(x).chunk(2), D(x + 0.01 * torch.randn_like(x)).chunk(2)\n"
        "loss = F.softplus(b - a).mean()\n"
        "loss = loss + 100 * (a - p).square().mean() + 100 * (b - q).square().mean()",
        'gamma = 2 * 100 * 0.01**2  # with method="difference" as well, without the noise\n'
        'how = {"method": "noise", "sigma": 0.01}\n'
        "loss = gk.critic_step(D, real, fake, r1=gamma, r2=gamma, **how).loss",
    ),
    Trainer(
        "HiFi-GAN's and VITS's critics, and others that return logits and features",
        "R1 of the logits",
        "x = real.detach().requires_grad_()\n"
        "logits, _ = features(x)\n"
        "(g,) = torch.autograd.grad(logits.sum(), x, create_graph=True)\n"
        "loss = 5 * g.square().flatten(1).sum(1).mean()",
        "loss = gk.r1_penalty(features, real, gamma=10.0, scores=0)",
    ),
    Trainer(
        "rosinality's, caogang's and most others' WGAN-GP",
        "between real and generated samples, two-sided",
        _INTERPOLATES
        + "loss = D(fake.detach()).mean() - D(real).mean() + 10 * ((norm - 1) ** 2).mean()",
        "penalty = gk.wgan_gp_penalty(D, real, fake, weight=10.0)\n"
        "loss = losses.wasserstein.discriminator(D(real), D(fake.detach())) + penalty",
    ),
    Trainer(
        "Petzka et al., WGAN-LP",
        "one-sided",
        _INTERPOLATES + "loss = 10 * (norm - 0.1).clamp_min(0).square().mean()",
        "loss = gk.wgan_lp_penalty(D, real, fake, weight=10.0, center=0.1)",
    ),
    Trainer(
        "GigaGAN and others of lucidrains', joliGEN, VQGAN of diffusers",
        "center 1 at given real samples",
        _GRADIENT.format(x="real") + "loss = 10 * ((g.flatten(1).norm(2, 1) - 1) ** 2).mean()",
        "loss = gk.r1_penalty(D, real, gamma=20.0, center=1.0)",
    ),
    Trainer(
        "DRAGAN",
        "around real samples",
        "noise = torch.rand(real.shape, dtype=real.dtype)\n"
        "x = (real + 0.5 * real.std() * noise).requires_grad_()\n"
        "(g,) = torch.autograd.grad(D(x).sum(), x, create_graph=True)\n"
        "loss = 10 * ((g.flatten(1).norm(2, 1) - 1) ** 2).mean()",
        "loss = gk.dragan_penalty(D, real)",
    ),
    Trainer(
        "trainers with a penalty centered at zero",
        "between samples",
        _INTERPOLATES + "loss = 10 * norm.square().mean()",
        "loss = gk.zero_centered_penalty(D, real, fake, weight=10.0)",
    ),
    Trainer(
        "CTGAN",
        "WGAN-GP on packs of rows, one coefficient a pack",
        "pack = lambda x: x.reshape(len(x) // 4, -1)\n"
        "eps = torch.rand(len(real) // 4, 1, dtype=real.dtype)\n"
        "x = eps * pack(real) + (1 - eps) * pack(fake.detach())\n"
        "x = x.detach().requires_grad_()\n"
        "score = D(x.view(real.shape)).view(-1, 4).sum(1)\n"
        "(g,) = torch.autograd.grad(score.sum(), x, create_graph=True)\n"
        "loss = 10 * ((g.norm(2, 1) - 1) ** 2).mean()",
        "packed = lambda x: D(x).view(-1, 4).sum(1)\n"
        "loss = gk.wgan_gp_penalty(packed, real, fake, groups=4)",
    ),
    Trainer(
        "rl_games' AMP, skrl",
        "gradient penalty of 5 at demonstrations, half of the cross entropies",
        "a, b = D(real), D(fake.detach())\n"
        "adv = 0.5 * (F.softplus(-a).mean() + F.softplus(b).mean())\n" + _r1("adv + 5"),
        "real.requires_grad_()\nlogits = D(real)\n"
        "loss = losses.non_saturating.discriminator(logits, D(fake.detach()), weight=0.5)\n"
        "loss = loss + gk.r1_penalty(logits, real, gamma=10.0)",
    ),
    Trainer(
        "MimicKit's AMP",
        "penalty of expert and agent samples, half each",
        "loss = 0\nfor p in (real, fake):\n"
        + textwrap.indent(_GRADIENT.format(x="p"), "    ")
        + "    loss = loss + 0.5 * 10 * g.square().flatten(1).sum(1).mean()",
        "loss = gk.r1_r2_penalty(D, real, fake, gamma=10.0)",
    ),
    Trainer(
        "TienKung's AMP and other forks of rsl_rl",
        "least squares to 1 and -1, penalty of 10 at expert samples",
        "a, b = D(real), D(fake.detach())\n"
        "adv = 0.5 * ((a - 1).square().mean() + (b + 1).square().mean())\n" + _r1("adv + 10"),
        "real.requires_grad_()\nlogits = D(real)\n"
        "loss = losses.least_squares.discriminator(\n"
        "    logits, D(fake.detach()), fake_label=-1, weight=0.5\n"
        ") + gk.r1_penalty(logits, real, gamma=20.0)",
    ),
    Trainer(
        "APT (Seaweed), Self-Forcing",
        "approximate R1",
        "noise = torch.randn(real.shape, dtype=real.dtype)\n"
        "loss = 100 * (D(real) - D(real + 0.01 * noise)).square().mean()",
        "loss = gk.approx_r1_penalty(D, real, sigma=0.01, weight=100.0)",
    ),
    Trainer(
        "FastGen, NVIDIA Model-Optimizer",
        "approximate R1, the mean over heads",
        "noise = torch.randn(real.shape, dtype=real.dtype)\n"
        "a, b = torch.cat(scales(real), 1), torch.cat(scales(real + 0.1 * noise), 1)\n"
        "loss = 20 * F.mse_loss(b, a)",
        'loss = gk.approx_r1_penalty(scales, real, sigma=0.1, weight=20.0, heads="mean")',
    ),
    Trainer(
        "Adversarial-Flow-Models",
        "approximate R1 over sigma^2, of the first samples, with weights",
        "noise = torch.randn(4, *real.shape[1:], dtype=real.dtype)\n"
        "d = (D(real[:4] + 0.1 * noise) - D(real[:4])) / 0.1\n"
        "loss = 0.5 * (w[:4] * d[:, 0].square()).mean()",
        "loss = gk.approx_r1_penalty(D, real, sigma=0.1, gamma=1.0, first=4, sample_weight=w[:4])",
        before="w = torch.linspace(0.5, 2, 8, dtype=torch.float64)",
    ),
    Trainer(
        "PGGAN",
        "WGAN-GP and the drift term",
        _INTERPOLATES + "loss = D(fake.detach()).mean() - D(real).mean()\n"
        "loss = loss + 10 * ((norm - 1) ** 2).mean() + 0.001 * D(real).square().mean()",
        "a = D(real)\n"
        "loss = gk.wgan_gp_penalty(D, real, fake) + regularizers.drift_penalty(a)\n"
        "loss = loss + losses.wasserstein.discriminator(a, D(fake.detach()))",
    ),
    # --- losses ---
    Trainer(
        "SNGAN, BigGAN, SAGAN",
        "hinge",
        "loss = F.relu(1 - D(real)).mean() + F.relu(1 + D(fake.detach())).mean()",
        "loss = losses.hinge.discriminator(D(real), D(fake.detach()))",
    ),
    Trainer(
        "VQGAN (taming-transformers), LDM, MAGVIT",
        "half of the hinge losses",
        "loss = 0.5 * (F.relu(1 - D(real)).mean() + F.relu(1 + D(fake.detach())).mean())",
        "loss = losses.hinge.discriminator(D(real), D(fake.detach()), weight=0.5)",
    ),
    Trainer(
        "VQGAN's adaptive weight",
        "the generator's loss as strong as the reconstruction's",
        "nll, adv = (fake - real).abs().mean(), -D(fake).mean()\n"
        "(a,) = torch.autograd.grad(nll, G[0].weight, retain_graph=True)\n"
        "(b,) = torch.autograd.grad(adv, G[0].weight, retain_graph=True)\n"
        "weight = 0.8 * (a.norm() / (b.norm() + 1e-4)).clamp(0, 1e4).detach()\n"
        "loss = nll + weight * adv",
        "nll, adv = (fake - real).abs().mean(), losses.hinge.generator(D(fake))\n"
        "loss = nll + losses.adaptive_weight(nll, adv, G[0].weight) * adv",
    ),
    Trainer(
        "BasicSR (multi-scale), SPADE",
        "hinge, averaged over scales",
        "loss = 0\nfor a, b in zip(scales(real), scales(fake.detach())):\n"
        "    loss = loss + (F.relu(1 - a).mean() + F.relu(1 + b).mean()) / 3",
        'loss = losses.hinge.discriminator(scales(real), scales(fake.detach()), scales="mean")',
    ),
    Trainer(
        "HiFi-GAN, BigVGAN, discriminators",
        "least squares, summed over critics",
        "loss = 0\nfor a, b in zip(scales(real), scales(fake.detach())):\n"
        "    loss = loss + (1 - a).square().mean() + b.square().mean()",
        "loss = losses.least_squares.discriminator(scales(real), scales(fake.detach()))",
    ),
    Trainer(
        "HiFi-GAN, BigVGAN, generators",
        "feature matching, times 2, and least squares",
        "_, f = features(real)\nscore, g = features(fake)\n"
        "loss = (1 - score).square().mean()\n"
        "for a, b in zip(sum(f, []), sum(g, [])):\n"
        "    loss = loss + 2 * (a.detach() - b).abs().mean()",
        "_, f = features(real)\nscore, g = features(fake)\n"
        "loss = losses.least_squares.generator(score) + losses.feature_matching(f, g, weight=2.0)",
    ),
    Trainer(
        "ESRGAN, traiNNer",
        "relativistic average",
        "a, b = D(real), D(fake.detach())\n"
        "loss = F.softplus(-(a - b.mean())).mean() + F.softplus(b - a.mean()).mean()\n"
        "loss = 0.5 * loss",
        "loss = losses.relativistic_average.discriminator(D(real), D(fake.detach()), weight=0.5)",
    ),
    Trainer(
        "trainers that go backward for real and fake apart",
        "sides of a loss",
        "loss = F.softplus(-D(real)).mean()\nloss = loss + F.softplus(D(fake.detach())).mean()",
        "loss = losses.non_saturating.real(D(real))\n"
        "loss = loss + losses.non_saturating.fake(D(fake.detach()))",
    ),
    Trainer(
        "DCGAN with one-sided label smoothing",
        "targets of 0.9",
        "a, b = D(real), D(fake.detach())\n"
        "loss = F.binary_cross_entropy_with_logits(a, torch.full_like(a, 0.9))\n"
        "loss = loss + F.binary_cross_entropy_with_logits(b, torch.zeros_like(b))",
        "loss = losses.minimax.discriminator(D(real), D(fake.detach()), real_label=0.9)",
    ),
    # --- regularizers ---
    Trainer(
        "LeCam",
        "against moving averages of the scores",
        "a, b = D(real), D(fake.detach())\n"
        "with torch.no_grad():\n"
        "    means = a.mean(), b.mean()\n"
        "    ema[:] = [m if e is None else 0.99 * e + 0.01 * m for e, m in zip(ema, means)]\n"
        "loss = F.relu(a - ema[1]).square().mean() + F.relu(ema[0] - b).square().mean()\n"
        "loss = 0.3 * loss",
        "loss = lecam(D(real), D(fake.detach()))",
        before="lecam = regularizers.LeCam(weight=0.3, decay=0.99)\nema = [None, None]",
        rtol=1e-6,
    ),
    Trainer(
        "CR-GAN",
        "consistency under an augmentation",
        "loss = 10 * (D(real) - D(real.flip(-1))).square().sum(1).mean()",
        "loss = regularizers.consistency_regularization(D, real, lambda x: x.flip(-1))",
    ),
    Trainer(
        "StyleGAN2's path length",
        "of the generator, with a moving mean",
        "x = G(z)\n"
        "y = torch.randn(x.shape, dtype=x.dtype) / (x.shape[2] * x.shape[3]) ** 0.5\n"
        "(g,) = torch.autograd.grad((x * y).sum(), z, create_graph=True)\n"
        "length = g.square().sum(1).sqrt()\n"
        "mean[0] = (mean[0] + 0.01 * (length.mean() - mean[0])).detach()\n"
        "loss = 2 * (length - mean[0]).square().mean()",
        "loss = path(G(z), z)",
        before="path = regularizers.PathLength(weight=2.0, decay=0.01)\nmean = [0.0]\n"
        "z.requires_grad_()",
        rtol=1e-6,
    ),
    Trainer(
        "BigGAN's orthogonal regularization",
        "of the weights of a layer, without the diagonal",
        "w = G[0].weight\nloss = 1e-4 * ((w @ w.T) * (1 - torch.eye(len(w)))).square().sum()",
        "loss = gk.orthogonal_regularization([G[0].weight], weight=1e-4)",
    ),
    Trainer(
        "WGAN",
        "weights are clipped before a step",
        "for p in D.parameters():\n    p.data.clamp_(-0.1, 0.1)\n"
        "loss = D(fake.detach()).mean() - D(real).mean()",
        "gk.clip_weights_(D.parameters(), 0.1)\n"
        "loss = losses.wasserstein.discriminator(D(real), D(fake.detach()))",
    ),
]


def table() -> str:
    """The text of docs/migrate.md below its heading."""
    parts = []
    for row in TRAINERS:
        parts.append(f"### {row.who}: {row.what}\n")
        if row.before:
            parts.append(f"Before training, of both:\n\n```python\n{row.before}\n```\n")
        parts.append(f"You have written\n\n```python\n{row.theirs}\n```\n")
        parts.append(f"write\n\n```python\n{row.ours}\n```\n")
    return "\n".join(parts)


BEGIN = "<!-- from tests/conformance/trainers.py: --write -->\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", required=True)
    parser.parse_args()
    head = DOCS.read_text().partition(BEGIN)[0]
    DOCS.write_text(head + BEGIN + "\n" + table())


if __name__ == "__main__":
    main()
