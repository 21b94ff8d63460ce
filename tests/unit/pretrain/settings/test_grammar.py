"""Words of a command line: Hydra's grammar, and the quoting that works where it bites."""

import re
import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.compose import compose
from pretrain.errors import ConfigError
from pretrain.settings.grammar import as_text, is_hydras, parsed, quoted


def suggested(word: str) -> str:
    """Return the word that a refusal suggests, as the shell hands it over."""
    with pytest.raises(ConfigError) as refused:
        parsed(word)
    [typed] = shlex.split(re.search(r"as text, type (.*)", str(refused.value), re.DOTALL)[1])
    return typed


@pytest.mark.parametrize(
    ("value", "bites"),
    [
        ("a=b", "'='"),
        ("runs/epoch=3-step=9.ckpt", "'='"),
        ("介绍", "'介'"),
        ("Größe", "'ö'"),
        ("~/runs", "'~'"),
        ("it's", '"\'"'),
        ('say "hi"', "'\"'"),
        ("a#b", "'#'"),
        ("a(1).txt", "a(1)"),
        ("$(touch x)", "'('"),
        ("`touch x`", "'`'"),
        ("a;b & c", "';'"),
        ("a\nb", r"'\n'"),
        ("<pad>", "'<'"),
        ("[a", "cannot be read"),
        ("{a}", "cannot be read"),
        ("🙂", "'🙂'"),
    ],
)
def test_what_bites_is_named_and_the_suggestion_works(value, bites):
    with pytest.raises(ConfigError) as refused:
        parsed(f"run.root={value}")
    assert bites in str(refused.value).partition("; as text")[0]
    assert parsed(suggested(f"run.root={value}")).value() == value


@settings(max_examples=300)
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12))
def test_any_text_can_be_quoted(text):
    assert parsed(f"key={quoted(text)}").value() == text


def test_the_elements_of_a_list_are_quoted_one_by_one():
    assert parsed(suggested("paths=[a.txt,b=1.txt, c(2).txt,3]")).value() == ["a.txt", "b=1.txt", "c(2).txt", 3]


def test_a_comma_is_a_sweep_and_the_text_with_it_is_told():
    with pytest.raises(
        ConfigError, match=r"^init_from=a,b: several values are a sweep, which `python -m launch"
    ) as told:
        compose(["init_from=a,b"])
    assert str(told.value).endswith(as_text("init_from=a,b")) and as_text("init_from=a,b") == "'init_from=\"a,b\"'"


@pytest.mark.parametrize(
    ("word", "rule"),
    [
        ("", "one is typed KEY=VALUE"),
        ("=5", "one is typed KEY=VALUE"),
        ("~", "one is typed KEY=VALUE"),
        ("介=1", "one is typed KEY=VALUE"),
        ("run.name = x", "one is typed KEY=VALUE"),
        ("run.name", "has no value; type run.name=VALUE, without spaces"),
        ("seed=range(a)", "str is incompatible"),
        ("model=null", "takes the name of a choice"),
        ("model=5", "takes the name of a choice"),
        ("run-name=x", "here it is run.name=x"),
        ("--optim.lr=1", "settings are typed without dashes: optim.lr=1"),
        ("--info", "there are --help, --version, --cfg job, --resolve and --config-dir FOLDER"),
    ],
)
def test_other_slips_are_told_too(word, rule):
    with pytest.raises(ConfigError) as refused:
        compose([word])
    assert rule in str(refused.value)


@pytest.mark.parametrize("text", ["2024.10", "1e-5", "05", "007", "1_000", "True", "yes", "inf", "1.50", "0x10", "on"])
def test_a_text_that_looks_like_a_number_stays_what_was_typed(text):
    assert compose([f"run.root={text}"]).run.root == text
    assert compose([f"init_from={text}", "init_from=null"]).init_from is None, "the last of a key wins"


def test_numbers_stay_numbers():
    cfg = compose(["optim.lr=1e-5", "train.steps=1_000", "schedule.warmup_steps=7"])
    assert (cfg.optim.lr, cfg.train.steps) == (1e-5, 1000)


@pytest.mark.parametrize(
    "name", ["hydra", "hydra.run.dir", "hydra/launcher", "_global_.hydra.x", "_global_._global_.hydra"]
)
def test_names_of_hydras_own(name):
    assert is_hydras(name)


@pytest.mark.parametrize("name", ["hydras", "hydra_notes", "hydra-notes", "data.sources.hydra.path", "source"])
def test_names_that_only_sound_so(name):
    assert not is_hydras(name)
