"""The synthetic instructions: one right answer each, in one format; no list of validation is in training; two forms."""

import json
import sys

import pytest
from tokenizers import Tokenizer, decoders, models

from examples.synthetic_instructions import NUM_RECORDS, Story, main, questions
from finetune.answering.base import Codec
from finetune.config import FINETUNE
from pretrain.compose import compose
from pretrain.models.base import ModelKind


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["synthetic_instructions.py", str(folder)])
        main()
    return folder / "instructions"


def records(folder, split):
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text().splitlines()]


def test_questions_about_a_story():
    story = Story(["Tom", "Lily", "Sue"], ["cat", "ball"], "zoo")
    assert story.text == "One day, Tom, Lily and Sue went to the zoo. They saw a cat and a ball."
    assert dict(questions(story)) == {
        "Who went there? Answer with commas.": "Tom, Lily, Sue",
        "Who went there? Answer with and.": "Tom and Lily and Sue",
        "Who went there? Write one on each line.": "Tom\nLily\nSue",
        "What did they see? Answer with commas.": "cat, ball",
        "What did they see? Answer with and.": "cat and ball",
        "What did they see? Write one on each line.": "cat\nball",
        "Where did they go? Answer in one word.": "zoo",
        "Where did they go? Answer in a sentence.": "They went to the zoo.",
    }


def test_training_and_validation_share_no_story_and_no_list(folder):
    seen = {split: records(folder, split) for split in NUM_RECORDS}
    assert {split: len(made) for split, made in seen.items()} == NUM_RECORDS
    for made in seen.values():
        assert len({(one["story"], one["instruction"]) for one in made}) == len(made)
        kinds = [one["instruction"] for one in made]
        assert len(set(kinds)) == 8 and all(kinds.count(kind) > len(made) / 16 for kind in kinds)
    stories, lists = (
        [{key(one) for one in made if wanted(one)} for made in seen.values()]
        for key, wanted in (
            (lambda one: one["story"], lambda one: True),
            (
                lambda one: frozenset(one["answer"].replace(",", " ").replace(" and ", " ").split()),
                lambda one: not one["instruction"].startswith("Where"),
            ),
        )
    )
    assert not stories[0] & stories[1] and not lists[0] & lists[1]


def test_columns_and_messages_are_the_same_tokens(folder, tmp_path):
    characters = sorted({*(folder / "validation.jsonl").read_text(), "\n"})
    vocabulary = {token: number for number, token in enumerate(["<unk>", "<s>", "</s>", *characters])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    codec = Codec(tokenizer=tokenizer, kind=ModelKind.causal, frame=([1], [2]), start=None, chat_template=None)
    both = []
    for form in (
        ["task.columns.messages=messages", f"task.chat_template={folder}/chat.jinja"],
        [
            'task.template="{story} {instruction}\\nAnswer:\\n"',
            "task.columns.source=story",
            "task.columns.target=answer",
        ],
    ):
        file = folder / "validation.jsonl"
        cfg = compose(
            ["task=seq2seq", f"task.train={file}", f"task.validation={file}", "init_from=x", *form], root=FINETUNE
        )
        both.append(
            cfg.task.encode(cfg.task.records(str(file)), cfg.task.with_chat_template(codec, tmp_path), labelled=True)
        )
    assert both[0].examples.sha256 == both[1].examples.sha256
    first = records(folder, "validation")[0]
    written = [token for token in both[0].examples.part([0]).targets if token > 0]
    assert tokenizer.decode(written) == first["answer"]
