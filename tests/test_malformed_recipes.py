"""Malformed recipes: each gives its own sentence, before anything is loaded."""

import re
from pathlib import Path

import pytest

from vaopd.config import load_config, load_yaml, parse_overrides
from vaopd.errors import ConfigError

GOOD = b"student: {model: m}\ndata: {train: d}\n"
NOT_YAML = "^recipe .*recipe.yaml is not valid YAML: "


def bomb() -> bytes:
    """Return a billion values in a few lines: each list names the one before ten times."""
    lines = [b"a0: &a0 [" + b",".join([b"x"] * 10) + b"]"]
    for level in range(1, 9):
        names = b",".join([b"*a%d" % (level - 1)] * 10)
        lines.append(b"a%d: &a%d [%s]" % (level, level, names))
    return b"\n".join(lines)


RECIPES: list[tuple[str, bytes, str]] = [
    ("nothing", b"", "must be a mapping of sections, such as 'student:'"),
    ("a text", b"hello", "must be a mapping of sections, such as 'student:'"),
    ("a list", b"[student, teacher]", "must be a mapping of sections, such as 'student:'"),
    ("a billion values", bomb(), NOT_YAML + r"its aliases \(\*name\) stand for more than 10000"),
    ("an alias of itself", b"student: &a [*a]", NOT_YAML + "it is nested too deeply, or an alias"),
    ("deep lists", b"student: " + b"[" * 5000, NOT_YAML + "it is nested too deeply"),
    ("deep mappings", b"student: " + b"{a: " * 5000, NOT_YAML + "it is nested too deeply"),
    ("a large file", b"#" * 2_000_000, NOT_YAML + "it has more than 1048576 bytes, as no recipe"),
    ("a program", b"student: !!python/object/apply:os.system [id]", "could not determine a constr"),
    ("a name of Python", b"student: !!python/name:os.system", "could not determine a constructor"),
    ("an unknown tag", b"student: !own {model: m}", "could not determine a constructor for the ta"),
    ("a date that is none", GOOD + b"view: {ratio: 2020-13-45}", NOT_YAML + "month must be in 1"),
    ("a bool that is none", GOOD + b"view: {ratio: !!bool x}", "a value does not fit its tag"),
    ("an int that is none", GOOD + b"view: {ratio: !!int ''}", "a value does not fit its tag"),
    ("bytes that are none", GOOD + b"view: {ratio: !!binary z}", "failed to decode base64 data"),
    ("bytes", GOOD + b"training: {seed: !!binary aGk=}", "training.seed is b'hi': input should be"),
    ("a set", GOOD + b"training: !!set {a}", r"training is \{'a'\}, but it is a section; write tr"),
    ("a huge number", GOOD + b"training: {seed: 1" + b"0" * 400 + b"}", "has 401 digits; no key"),
    ("half a character", GOOD + b'view: {name: "\\ud800"}', r"line 3 holds half a character \('"),
    ("a key twice", GOOD + b"student: {model: n}", r"the key student comes twice \(line 3\); wr"),
    ("an inner key twice", GOOD + b"view: {ratio: 1, ratio: 1}", "the key ratio comes twice"),
    ("a number as key", GOOD + b"1: 2", "a key on line 3 is not a text; write it in quo"),
    ("null as key", GOOD + b"~: 2", "a key on line 3 is not a text; write it in quotes"),
    ("a list as key", GOOD + b"? [a]\n: 2", NOT_YAML + "a key on line 3 is not a text; wr"),
    ("no merge", GOOD + b"view: {<<: 3}", NOT_YAML + ".*expected a mapping or list of mappings"),
    ("two recipes", GOOD + b"---\n" + GOOD, NOT_YAML + "expected a single document"),
    ("an alias of nothing", b"student: *a", NOT_YAML + "found undefined alias 'a'"),
    ("a zero byte", b"student: \0", NOT_YAML + "unacceptable character #x0000"),
    ("a tab", b"student:\n\tmodel: m", NOT_YAML + ".*found character .* that cannot start any t"),
    ("UTF-16", "student: x".encode("utf-16"), NOT_YAML + "'utf-8' codec can't decode byte 0xff"),
    ("an image", b"\x89PNG\r\n\x1a\n" + bytes(99), NOT_YAML + "'utf-8' codec can't decode byte 0x"),
    ("an open bracket", b"student: {model: m", NOT_YAML + "while parsing a flow mapping"),
    ("not a number", GOOD + b"training: {learning_rate: .nan}", "learning_rate is nan: input shou"),
    ("endless", GOOD + b"training: {epochs: .inf}", "training.epochs is inf: input should be a fi"),
    ("below zero", GOOD + b"training: {epochs: -1}", "training.epochs is -1: input should be gre"),
    ("a list for a section", GOOD + b"training: [1]", r"training is \[1\], but it is a section"),
    ("null for a section", GOOD + b"training: null", "training is None, but it is a section"),
    ("a text of a million", GOOD + b"training: " + b"x" * 999_999, "training is 'xx+...x+', but"),
    ("a list of a million", GOOD + b"view: {ratio: [" + b"1," * 9000 + b"1]}", r"\.\.\.\]: input"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("recipe", "sentence"), [c[1:] for c in RECIPES], ids=[c[0] for c in RECIPES]
)
def test_a_malformed_recipe_is_one_sentence(tmp_path: Path, recipe: bytes, sentence: str):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(recipe)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    found = str(caught.value)
    assert re.search(sentence, found), found
    assert "\n" not in found and len(found) < 700


def test_a_recipe_is_no_longer_read_than_it_may_be(tmp_path: Path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(GOOD)
    with path.open("r+b") as file:
        file.truncate(50 * 2**30)
    with pytest.raises(ConfigError, match="it has more than 1048576 bytes"):
        load_config(path)


@pytest.mark.parametrize(
    "text", ["[", "!!bool x", "2020-13-45", "!!python/name:os.system", "&a [*a]"]
)
def test_an_override_is_read_with_the_same_care(text: str):
    with pytest.raises(ConfigError, match=r"^override 'view.ratio="):
        parse_overrides([f"view.ratio={text}"])


def test_aliases_and_merges_within_reason_are_read():
    text = "a: &a {x: 1}\nb: {<<: *a, y: 2}\nc: [*a, *a]"
    assert load_yaml(text) == {"a": {"x": 1}, "b": {"x": 1, "y": 2}, "c": [{"x": 1}, {"x": 1}]}
