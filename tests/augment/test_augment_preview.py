"""python -m gankernels.augment --preview."""

import subprocess
import sys

import pytest
import torch

from gankernels.augment import ADAPipe, preview
from gankernels.augment.presets import TRANSFORMS

pytest.importorskip("matplotlib")
from PIL import Image


def pixels(file):
    with Image.open(file) as opened:
        opened = opened.convert("RGB")
        data = torch.frombuffer(bytearray(opened.tobytes()), dtype=torch.uint8)
        return data.view(opened.height, opened.width, 3).permute(2, 0, 1)


def as_bytes(image):
    return ((image.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)


def cell(sheet, row, column, height, width):
    top = preview._TOP + row * (height + preview._CAPTION)
    left = preview._LEFT + column * (width + preview._GAP)
    return sheet[:, top : top + height, left : left + width]


def test_every_transform_has_a_row():
    enabled = [name for row in preview.ROWS for name in row.settings if name != "imgfilter_bands"]
    names = [name for group in TRANSFORMS.values() for name in group]
    assert list(dict.fromkeys(enabled)) == names
    assert len(preview.ROWS) == 18
    assert len({row.label for row in preview.ROWS}) == 18
    bands = [row.settings["imgfilter_bands"] for row in preview.ROWS if "imgfilter" in row.settings]
    assert sorted(bands, reverse=True) == bands
    assert torch.equal(torch.tensor(bands), torch.eye(4))


@pytest.mark.parametrize("height, width", [(20, 20), (17, 26)])
def test_layout(tmp_path, height, width):
    """Every cell is, pixel by pixel, what the pipe gives."""
    image = 1.2 * torch.randn(3, height, width, generator=torch.Generator().manual_seed(0)).sin()
    file = tmp_path / "sheet.png"
    percentiles = (0.1, 0.5, 0.9)
    seen = []

    def progress(rows):
        for row in rows:
            seen.append(row)
            yield row

    preview.contact_sheet(image, file, percentiles=percentiles, progress=progress)
    assert seen == list(preview.ROWS)
    sheet = pixels(file)
    assert sheet.shape == (
        3,
        preview._TOP + 18 * (height + preview._CAPTION) + preview._MARGIN,
        preview._LEFT + 4 * (width + preview._GAP) + preview._MARGIN,
    )
    for i, row in enumerate(preview.ROWS):
        assert torch.equal(cell(sheet, i, 0, height, width), as_bytes(image))
        for k, q in enumerate(percentiles):
            generator = torch.Generator().manual_seed(0)
            expected = ADAPipe(None, **row.settings).preview(image[None], q, generator=generator)
            assert torch.equal(cell(sheet, i, k + 1, height, width), as_bytes(expected[0]))
        # A caption below the last image, a label to the left of the first.
        below = preview._TOP + i * (height + preview._CAPTION) + height
        assert sheet[:, below : below + preview._CAPTION].min() < 200
        assert sheet[:, below - height : below, : preview._LEFT - 5].min() < 128
    assert sheet[:, : preview._TOP].min() < 128


@pytest.mark.parametrize("name, said", [("xflip", "mirrored"), ("hue", "+144°"), ("xint", "+10 %")])
def test_captions(name, said):
    row = next(row for row in preview.ROWS if name in row.settings)
    t = ADAPipe(None, **row.settings).sample(1, percentile=0.9)
    assert row.say({k: v.item() for k, v in t.named().items()}).startswith(said)


def test_the_synthetic_image_shows_every_move():
    image = preview.synthetic_image(64)
    assert image.shape == (3, 64, 64)
    assert image.min() >= -1
    assert image.max() <= 1
    moved = [image.flip(2), image.flip(1), *(image.rot90(k, (1, 2)) for k in (1, 2, 3))]
    moved += [image.roll(5, 1), image.roll(5, 2), image.roll(1, 0), -image]
    assert all((image - other).abs().mean() > 0.15 for other in moved)


def test_read_image(tmp_path):
    file = tmp_path / "image.png"
    original = (torch.arange(3 * 24 * 24) % 251).to(torch.uint8).view(24, 24, 3)
    Image.frombytes("RGB", (24, 24), bytes(original.flatten().tolist())).save(file)
    got = preview.read_image(file, 24)
    assert torch.equal(as_bytes(got).permute(1, 2, 0), original)
    # The middle of what is not square, as gray, with an alpha channel.
    Image.new("LA", (40, 20), (255, 7)).save(file)
    got = preview.read_image(file, 16)
    assert torch.equal(got, torch.ones(3, 16, 16))


def test_from_the_command_line(tmp_path, capsys):
    file = tmp_path / "given.png"
    image = preview.synthetic_image(32)
    data = bytes(as_bytes(image).permute(1, 2, 0).flatten().tolist())
    Image.frombytes("RGB", (32, 32), data).save(file)
    for given in ([], [str(file)]):
        out = tmp_path / "sheet.png"
        assert preview.main(["--preview", *given, "--out", str(out), "--size", "32"]) == 0
        assert capsys.readouterr().out.strip() == str(out)
        sheet = pixels(out)
        assert torch.equal(cell(sheet, 17, 0, 32, 32), as_bytes(image))
        out.unlink()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--preview", "{}/missing.png"], "there is no file {}/missing.png; name another one"),
        (["--preview", "{}/text.png"], "{}/text.png cannot be read as an image"),
        (["--preview", "{}"], "{} cannot be read as an image"),
        (["--preview", "--size", "8"], "expected --size from 16 to 1024, got 8"),
        (["--preview", "--size", "16", "--out", "{}/none/sheet.png"], "cannot write"),
        (["--preview", "--size", "16", "--out", "{}/sheet.nothing"], "cannot write"),
    ],
)
def test_errors_are_one_line(tmp_path, capsys, arguments, said):
    (tmp_path / "text.png").write_text("no image")
    assert preview.main([a.format(tmp_path) for a in arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith(f"python -m gankernels.augment: {said.format(tmp_path)}")


def test_matplotlib_is_missing(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert preview.main(["--preview", "--size", "16"]) == 2
    assert "pip install 'gankernels[bench]'" in capsys.readouterr().err


@pytest.mark.slow
def test_as_a_program(tmp_path):
    command = [sys.executable, "-m", "gankernels.augment"]
    done = subprocess.run(
        [*command, "--preview", "missing.png"], capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert "there is no file missing.png" in done.stderr
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert "--preview" in done.stderr


@pytest.mark.parametrize(
    "error, said, image, options",
    [
        (TypeError, "to be a floating-point tensor, got list", [[0.0]], {}),
        (
            TypeError,
            "floating-point tensor, got uint8",
            torch.zeros(3, 8, 8, dtype=torch.uint8),
            {},
        ),
        (ValueError, r"shape \(3, H, W\), got \(1, 8, 8\)", torch.zeros(1, 8, 8), {}),
        (ValueError, "percentile to be below 1, got 5", torch.zeros(3, 8, 8), {"percentiles": [5]}),
        (ValueError, "percentile to be finite and", torch.zeros(3, 8, 8), {"percentiles": [0.0]}),
    ],
)
def test_bad_arguments(tmp_path, error, said, image, options):
    file = tmp_path / "sheet.png"
    with pytest.raises(error, match=f"contact_sheet: expected .*{said}"):
        preview.contact_sheet(image, file, **options)
    assert not file.exists()
