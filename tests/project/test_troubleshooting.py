"""docs/troubleshooting.md has every message of the package, and no other."""

import collections
import re

import pytest
import torch
from project import messages

import gankernels as gk

FOUND = messages.messages()
ENTRIES = messages.entries(messages.PAGE.read_text())
#: Said by Python code that has no such string: by a loop over names, or from C++.
COMPOSED = {
    "the kernels were compiled for ..., and ... is of architecture ...",
    "expected latents that require a gradient, got ones that do not...",
    "expected images that require a gradient, got ones that do not...",
    "expected device to ...",
    "expected ... multipliers",
    "expected ... constants",
}


def test_messages_were_found():
    assert len(FOUND) > 400
    assert len(ENTRIES) > 200


def test_every_message_has_an_entry():
    missing = [
        str(message)
        for message in FOUND
        if not any(messages.matches(entry, message.text) for entry in ENTRIES)
    ]
    assert not missing, "docs/troubleshooting.md: no entry for\n" + "\n".join(missing)


def test_every_entry_has_a_message():
    texts = [message.text for message in FOUND]
    stale = [
        entry
        for entry in ENTRIES
        if entry not in COMPOSED and not any(messages.matches(entry, text) for text in texts)
    ]
    assert stale == []
    assert set(ENTRIES) >= COMPOSED


def test_entries_are_of_something():
    """Of a message that is found by its words, not of all of them."""
    covered = collections.Counter(
        entry for entry in ENTRIES for message in FOUND if messages.matches(entry, message.text)
    )
    assert max(covered.values()) <= len(FOUND) // 10
    assert len(set(ENTRIES)) == len(ENTRIES)
    for entry in ENTRIES:
        words = set(re.findall(r"[\w.'=-]*\w", entry)) - {"expected", "got", "to", "be"}
        assert words, entry


# --- how they are read ----------------------------------------------------------------------------

SOURCE = """
OP = "name"
def check(op, x):
    wanted = f"{op}: expected x of {x.dtype}"
    if x is None:
        raise TypeError(f"{OP}: expected a tensor, got " + kind(x))
    if x.empty:
        warn_once("key", f"{op}: nothing in it")
        raise ValueError(f"{wanted}, got {x}; convert it")
    logger.warning("takes %s: %s", op, x)
    try:
        reason, copy = "it was not built", None
    except KeyError as error:
        raise type(error)(message) from None
"""


def test_messages_are_read_from_source():
    texts = [message.text for message in messages.messages_of(SOURCE, "x.py")]
    hole = messages.HOLE
    assert sorted(texts) == sorted(
        [
            f"expected a tensor, got {hole}",
            "nothing in it",
            f"expected x of {hole}, got {hole}; convert it",
            f"takes {hole}: {hole}",
            "it was not built",
        ]
    )


CPP_SOURCE = """
  STD_TORCH_CHECK(x.dim() == 1 && fits(x, y), op, ": expected ", name,
                  " of, at most, ", kMost + f(1, 2), " \\"elements\\"");
  STD_TORCH_CHECK(status == nullptr, op, ": ", status);
  if (n > 3) return "too many; cut them";
  return "float32";
  PyErr_SetString(PyExc_ValueError, "expected a name");
"""


def test_messages_are_read_from_cpp():
    found = messages.cpp_messages_of(CPP_SOURCE, "x.cpp")
    hole = messages.HOLE
    assert [(m.where, m.text) for m in found] == [
        ("x.cpp:2", f'expected {hole} of, at most, {hole} \\"elements\\"'),
        ("x.cpp:5", "too many; cut them"),
        ("x.cpp:7", "expected a name"),
    ]


def test_entries_are_read_from_a_page():
    page = (
        "- `expected a` \\\n  `expected b, got ...`\n\n  Text, `code`.\n\n- `` a `b` c ``\n\n  T.\n"
    )
    assert messages.entries(page) == ["expected a", "expected b, got ...", "a `b` c"]


@pytest.mark.parametrize(
    "entry, text, matched",
    [
        (
            "expected ... to be a number, got ...",
            f"expected {messages.HOLE} to be a number, got x",
            1,
        ),
        ("expected a", "expected a tensor", 1),
        ("expected a tensor", "expected a number", 0),
        ("a number", "expected a number", 0),
    ],
)
def test_entries_match_how_messages_begin(entry, text, matched):
    assert messages.matches(entry, text) == bool(matched)


# --- what is said when it happens -----------------------------------------------------------------

CASES = {
    "a number": lambda: gk.clip_weights_([torch.ones(2)], c="1"),
    "no gradient": lambda: gk.r1_penalty(torch.ones(2, 1), torch.ones(2, 3)),
    "nothing to fuse": lambda: gk.fuse_spectral_norm(torch.nn.Linear(2, 2)),
    "a setting": lambda: gk.wgan_gp_penalty(lambda x, **_: x, *torch.ones(2, 2, 3), gamma=1.0),
    "images": lambda: gk.augment.ADAPipe("bgc")(torch.ones(3, 8, 8)),
    "pairs": lambda: gk.losses.relativistic.discriminator(torch.ones(2), torch.ones(3)),
    "the critic": lambda: gk.losses.hinge.generator(torch.nn.Linear(2, 2)),
}


@pytest.mark.parametrize("name", CASES)
def test_messages_that_are_raised_have_entries(name):
    with pytest.raises((TypeError, ValueError)) as raised:
        CASES[name]()
    text = messages.without_name(str(raised.value))
    assert any(messages.matches(entry, text) for entry in ENTRIES), text
