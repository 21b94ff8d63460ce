"""What releases say of how their texts begin and end, in either file, becomes rules that a search obeys."""

import json
import logging

import pytest
import torch

from pretrain.errors import ConfigError
from pretrain.hub.generation_config import ENDS, generation_settings, read_rules, rules_of, with_end
from pretrain.models.generation.rules import Rules

RELEASES = {  # what released models say, and the rules that follow from it
    "opus-mt": (
        {"bad_words_ids": [[58]], "eos_token_id": 0, "forced_eos_token_id": 0, "num_beams": 6},
        Rules(last=0, banned=(58,), ends=(0,)),
    ),
    "bart-large-cnn": ({"forced_bos_token_id": 0, "forced_eos_token_id": 2}, Rules(first=0, last=2)),
    "a list of one": ({"forced_eos_token_id": [2], "suppress_tokens": [5, 6]}, Rules(last=2, banned=(5, 6))),
    "the end itself is not banned": ({"bad_words_ids": [[2], [4]], "eos_token_id": 2}, Rules(banned=(4,), ends=(2,))),
    "llama-3.1-instruct": ({"eos_token_id": [51, 58, 59], "temperature": 0.6}, Rules(ends=(51, 58, 59))),
    "nothing": ({"bad_words_ids": None, "forced_bos_token_id": None}, Rules()),
}


@pytest.mark.parametrize(("said", "rules"), RELEASES.values(), ids=RELEASES)
def test_rules_are_those_of_the_release(tmp_path, said, rules):
    (tmp_path / "config.json").write_text(json.dumps(said))
    assert read_rules(tmp_path, 60) == rules
    written = generation_settings(rules)
    assert rules_of(json.loads(json.dumps(written)), 60, tmp_path) == rules
    (tmp_path / "generation_config.json").write_text("{}")
    assert read_rules(tmp_path, 60) == Rules(), "where it is there it alone counts, as in transformers"


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"forced_eos_token_id": 60}, r"config\.json: forced_eos_token_id=60: must be a whole number from 0 to 59"),
        ({"forced_bos_token_id": [1, 2]}, "forced_bos_token_id=.*: several ids are not supported"),
        ({"bad_words_ids": [["a"]]}, "bad_words_ids='a': must be a whole number"),
        ({"suppress_tokens": "no"}, "suppress_tokens='no': must be a list"),
    ],
)
def test_what_are_no_ids_is_refused_by_name(tmp_path, said, message):
    (tmp_path / "config.json").write_text(json.dumps(said))
    with pytest.raises(ConfigError, match=message):
        read_rules(tmp_path, 60)


def test_what_ends_texts_is_there_once_and_an_end_of_the_run_s_own_comes_first():
    assert with_end({}, None) == {} and with_end({}, 3) == {ENDS: 3}
    assert with_end(generation_settings(Rules(ends=(5, 3))), 3)[ENDS] == [3, 5]
    assert with_end({ENDS: [4]}, None) == {ENDS: 4}


def test_words_of_several_ids_are_said_to_be_possible(tmp_path, caplog):
    (tmp_path / "config.json").write_text(json.dumps({"bad_words_ids": [[3, 4], [5]]}))
    with caplog.at_level(logging.WARNING):
        assert read_rules(tmp_path, 60) == Rules(banned=(5,))
    assert "bad_words_ids: 1 of several ids each may be written here" in caplog.text


def test_a_forced_token_stands_above_a_banned_one():
    scores = torch.zeros(2, 4)
    Rules(first=1, last=3, banned=(1, 3)).restrict(scores, place=0, full=[1])
    assert scores.isfinite().tolist() == [[False, True, False, False], [False, False, False, True]]
