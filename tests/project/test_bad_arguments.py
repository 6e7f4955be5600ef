"""Whatever an argument is replaced by: no crash, no hang, no silence, and an error with a name.

The calls are made by ``tests/support/bad_arguments.py``, one process each.
"""

import json
import os
import re
import subprocess
import sys
import warnings
from collections import defaultdict
from pathlib import Path

import pytest
import torch
from support import ROOT, bad_arguments

import gankernels as gk
from gankernels import augment, dirac, ema, losses, ops, regularizers

pytestmark = pytest.mark.slow

ERRORS = {"TypeError", "ValueError", "RuntimeError", "NotImplementedError"}
#: Raised as torch's functions of the same name raise them; see problem().
AS_TORCH = {
    "nn.utils.spectral_norm": torch.nn.utils.spectral_norm,
    "nn.utils.remove_spectral_norm": torch.nn.utils.remove_spectral_norm,
    "parametrizations.spectral_norm": torch.nn.utils.parametrizations.spectral_norm,
}
#: Public, but nothing to call with arguments of one's own.
NOT_CALLED = {
    "CompiledStep": "returned by compile_step",
    "CriticStep": "returned by critic_step",
    "FusedSpectralNorm": "returned by fuse_spectral_norm",
    "FusedWeightNorm": "returned by fuse_weight_norm",
    "SpectralNorms": "returned by spectral_norms",
    "Transform": "returned by ADAPipe.sample; its calls are in the table",
    "Loss": "the type of losses.hinge and the others; their sides are in the table",
    "empty_cache": "takes nothing",
}


@pytest.fixture(scope="module")
def answers():
    """All calls, by two servers at a time."""
    program = Path(bad_arguments.__file__)
    servers = [
        subprocess.Popen(
            [sys.executable, str(program), "--part", str(k), "2"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])},
        )
        for k in range(2)
    ]
    found = defaultdict(list)
    for server in servers:
        out, errors = server.communicate()
        assert server.returncode == 0, errors
        for line in out.splitlines():
            row = json.loads(line)
            found[row["name"]].append(row)
    return found


def names_of(name):
    """Words of which an error has to have one: the function's or the class's name."""
    parts = name.removesuffix("()").split(".")
    return [part for part in parts if part not in ("nn", "utils", "ops", "losses", "dirac")]


def problem(row):
    """What is wrong with an answer; None where it is as it should be."""
    if "crashed" in row or "hung" in row:
        return f"{'crashed' if 'crashed' in row else 'hung'}: {row.get('crashed', row.get('hung'))}"
    if row["bad"] is None:
        return None if row.get("accepted") else f"a good call: {row['error']}: {row['message']}"
    if row.get("accepted"):
        return None if row["fits"] else "accepted in silence"
    if row["theirs"]:
        return None
    words = "|".join(map(re.escape, names_of(row["name"])))
    if not re.search(rf"(?<!\w)({words})(?!\w)", row["message"]):
        if as_torch(row):
            return None
        return f"names no function: {row['error']}: {row['message'][:200]}"
    # Of a dimension that a weight has not; torch raises it, too.
    named = {*ERRORS, "IndexError"} if row["name"] in AS_TORCH else ERRORS
    return None if row["error"] in named else f"{row['error']}: {row['message'][:200]}"


def as_torch(row):
    """Whether torch's own function says the same; it would take 2**31 steps if it was told to."""
    if row["name"] not in AS_TORCH or row["bad"] in ("2**31", "2**70"):
        return False
    _, arguments = bad_arguments.CALLS[row["name"]]()
    arguments[row["argument"]] = bad_arguments.BAD[row["bad"]]()
    try:
        AS_TORCH[row["name"]](**arguments)
    except Exception as error:
        return type(error).__name__ == row["error"]
    return False


@pytest.mark.parametrize("name", bad_arguments.CALLS)
def test_bad_arguments(name, answers):
    found = [(row, problem(row)) for row in answers[name]]
    assert len(found) == len(bad_arguments.cases_of(name))
    wrong = [f"{name}({row['argument']}={row['bad']}): {what}" for row, what in found if what]
    assert not wrong, "\n" + "\n".join(wrong)


def test_every_public_callable_is_in_the_table():
    public = {}
    for module in (gk, augment, ema, losses, gk.nn, ops, regularizers):
        for name in module.__all__:
            value = getattr(module, name)
            if callable(value):
                public[id(value)] = name
    called = {
        id(getattr(make()[0], "__func__", make()[0])) for make in bad_arguments.CALLS.values()
    }
    names = {name.removesuffix("()").split(".")[-1] for name in bad_arguments.CALLS}
    names |= {name.split(".")[1] for name in bad_arguments.CALLS if name.startswith("losses.")}
    missing = {n for key, n in public.items() if key not in called and n not in names}
    assert missing <= set(NOT_CALLED), f"add to CALLS: {sorted(missing - set(NOT_CALLED))}"
    assert callable(dirac.eigenvalues)


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ({"crashed": "SIGSEGV"}, "crashed: SIGSEGV"),
        ({"hung": "SIGXCPU"}, "hung: SIGXCPU"),
        ({"accepted": True, "fits": False}, "accepted in silence"),
        ({"accepted": True, "fits": True}, None),
        ({"error": "ValueError", "message": "sigma: no", "theirs": False}, None),
        ({"error": "ValueError", "message": "no", "theirs": False}, "names no function"),
        ({"error": "AttributeError", "message": "sigma: no", "theirs": False}, "AttributeError"),
        ({"error": "AttributeError", "message": "no", "theirs": True}, None),
    ],
)
def test_the_judge(row, found):
    said = problem({"name": "sigma", "argument": "model", "bad": "3", **row})
    assert said is None if found is None else said.startswith(found)


def test_a_crash_and_a_hang_are_seen(monkeypatch):
    def hang():
        while True:
            pass

    calls = {
        "crash": lambda: (lambda: os.abort(), {}),
        "hang": lambda: (hang, {}),
    }
    monkeypatch.setattr(bad_arguments, "CALLS", calls)
    monkeypatch.setattr(bad_arguments, "CPU_SECONDS", 1)
    assert bad_arguments.isolated("crash", None, None) == {"crashed": "SIGABRT"}
    assert bad_arguments.isolated("hang", None, None) in ({"hung": "SIGXCPU"}, {"hung": "SIGKILL"})


#: Operators whose example has arguments of the default dtype where they take float32 or float64.
OF_FLOAT32 = {"ada_control_", "ada_parameters", "affine_augment"}


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", sorted(bad_arguments.CALLS))
def test_right_arguments_are_taken_under_any_default_dtype(name, default):
    """Made under it or before, twice in turn where the call can be made again."""
    once = "spectral_norm" in name
    for made in (torch.float32, default):
        if made != torch.float32 and default != torch.float64 and name in OF_FLOAT32:
            continue
        try:
            torch.set_default_dtype(made)
            function, arguments = bad_arguments.CALLS[name]()
            torch.set_default_dtype(default)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                for _ in range(1 if once else 2):
                    function(**arguments)
        finally:
            torch.set_default_dtype(torch.float32)
