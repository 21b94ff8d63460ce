"""Examples are what transformers trains on, padding aside; cuts are counted, and keep what a model needs."""

import logging

import pytest
import torch
import vocabularies
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast
from transformers.models.bart.modeling_bart import shift_tokens_right

from finetune.answering.frame import Frame, prompts_of
from finetune.tasks.seq2seq.encoding import Cuts, encode_pairs
from finetune.tasks.seq2seq.pairs import Pair
from pretrain.data.batch import IGNORED
from pretrain.errors import ConfigError, DataError

TEXTS = [("a dog", "ein Hund"), ("two cats sit on a mat </s>", "zwei"), ("so", "<s> drei Katzen sitzen auf der Matte")]
PAIRS = [Pair(source, target, f"line {number}") for number, (source, target) in enumerate(TEXTS)]
BEGIN, PAD, END = 0, 1, 2  # <s>, <pad>, </s> of `vocabularies.byte_level`


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = vocabularies.byte_level([" ".join(pair) for pair in TEXTS])
    tokenizer.encode_special_tokens = True  # as `load_tokenizer` leaves it
    return tokenizer


def encode(pairs, tokenizer, frame, source=99, target=99, **changes):
    return encode_pairs(pairs, tokenizer, frame, max_source_tokens=source, max_target_tokens=target, **changes)


def rows(examples) -> list[dict[str, list[int]]]:
    """Return each example's arrays as lists."""
    found = []
    for one in range(len(examples)):
        own = slice(*examples.offsets[one : one + 2])
        row = {"tokens": examples.tokens[own].tolist()}
        if examples.targets is not None:
            row["targets"] = examples.targets[own].tolist()
        if examples.source is not None:
            row["source"] = examples.source.tokens[slice(*examples.source.offsets[one : one + 2])].tolist()
        found.append(row)
    return found


@pytest.mark.parametrize(("prefix", "start"), [([BEGIN], END), ([], PAD)], ids=["bart", "t5"])
def test_encoder_decoders_see_what_they_see_in_transformers(tokenizer, prefix, start):
    theirs = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", split_special_tokens=True)
    names = ["<s>"] * len(prefix)
    ids = [("<s>", BEGIN), ("</s>", END)]
    theirs._tokenizer.post_processor = TemplateProcessing([*names, "$A", "</s>"], special_tokens=ids)
    batch = theirs(
        [text for text, _ in TEXTS], text_target=[text for _, text in TEXTS], padding=True, return_tensors="pt"
    )
    labels = torch.where(batch["labels"] == PAD, IGNORED, batch["labels"])
    shifted = shift_tokens_right(labels, PAD, start)

    frame = Frame(prefix, [END], start)
    encoded = encode(PAIRS, tokenizer, frame)
    for row, source, seen, tokens, targets in zip(
        rows(encoded.examples), batch["input_ids"], batch["attention_mask"], shifted, labels, strict=True
    ):
        size = int((targets != IGNORED).sum())
        assert row["source"] == source[seen.bool()].tolist()
        assert row["tokens"] == tokens[:size].tolist()
        assert row["targets"] == targets[:size].tolist()
    assert encoded.pairs == PAIRS
    assert prompts_of(encoded.examples, frame) == [[start]] * 3


@pytest.mark.parametrize(("prefix", "suffix"), [([BEGIN], [END]), ([END], [])], ids=["llama", "gpt2"])
def test_decoders_learn_targets_and_their_end_alone(tokenizer, prefix, suffix):
    frame = Frame(prefix, suffix, None)
    encoded = encode(PAIRS, tokenizer, frame)
    prompts = [prefix + tokenizer.encode(source, add_special_tokens=False).ids for source, _ in TEXTS]
    for row, prompt, (_, target) in zip(rows(encoded.examples), prompts, TEXTS, strict=True):
        answer = [*tokenizer.encode(target, add_special_tokens=False).ids, END]
        input_ids, labels = prompt + answer, [IGNORED] * len(prompt) + answer  # as transformers' models take them
        assert row == {"tokens": input_ids[:-1], "targets": labels[1:]}  # which they shift themselves
    assert prompts_of(encoded.examples, frame) == prompts
    asked = encode([*PAIRS[:2], PAIRS[2]._replace(target=None)], tokenizer, frame, labelled=False)
    assert [row["tokens"] for row in rows(asked.examples)] == prompts == prompts_of(asked.examples, frame)
    assert asked.examples.targets is None


def test_special_tokens_in_texts_are_characters_unless_a_template_wrote_them(tokenizer):
    pairs = [Pair("</s>", "<s>", "")]
    [row] = rows(encode(pairs, tokenizer, Frame([BEGIN], [END], None)).examples)
    assert row["tokens"].count(END) == 0 and row["targets"].count(BEGIN) == 0
    [row] = rows(encode(pairs, tokenizer, Frame([], [END], None, markup=True)).examples)
    assert row == {"tokens": [END, BEGIN], "targets": [BEGIN, END]}
    assert tokenizer.encode_special_tokens


def test_cuts_keep_what_stands_around_texts_and_teach_no_end(tokenizer, caplog):
    ids = [[tokenizer.encode(text, add_special_tokens=False).ids for text in pair] for pair in TEXTS]
    lengths = [[len(each) for each in pair] for pair in ids]
    assert lengths[1][0] > 6 > lengths[0][0] and lengths[2][1] > 5 > lengths[1][1] + 1
    with caplog.at_level(logging.INFO):
        found = encode(PAIRS, tokenizer, Frame([BEGIN], [END], PAD), source=8, target=6)
    row = rows(found.examples)
    assert row[1]["source"] == [BEGIN, *ids[1][0][:6], END]
    assert row[2]["targets"] == [BEGIN, *ids[2][1][:5]] and row[2]["tokens"] == [PAD, *row[2]["targets"][:-1]]
    assert row[1]["targets"] == [BEGIN, *ids[1][1], END]
    sources, targets = (max(side) + 2 for side in zip(*lengths, strict=True))
    assert found.cuts == Cuts(1, 1, sources, targets)
    said = f"3 pairs; 1 sources cut to task.max_source_tokens=8 (the longest has {sources}), 1 targets cut to "
    assert f"{said}task.max_target_tokens=6 (the longest has {targets})" in caplog.text

    row = rows(encode(PAIRS, tokenizer, Frame([BEGIN], [END], None), source=7, target=6).examples)
    prompt = [BEGIN, *ids[1][0][-6:]]  # what stands before the answer stays
    assert row[1] == {"tokens": prompt + ids[1][1], "targets": [IGNORED] * 6 + ids[1][1] + [END]}
    assert row[2]["targets"][-6:] == ids[2][1][:6] and row[2]["tokens"][-5:] == ids[2][1][:5]


def test_an_example_that_just_fits_is_whole(tokenizer):
    for frame in (Frame([BEGIN], [END], PAD), Frame([BEGIN], [END], None)):
        whole = encode(PAIRS, tokenizer, frame)
        fitting = encode(PAIRS, tokenizer, frame, whole.cuts.longest_source, whole.cuts.longest_target)
        assert fitting.cuts[:2] == (0, 0) and fitting.examples.sha256 == whole.examples.sha256
        closer = encode(PAIRS, tokenizer, frame, whole.cuts.longest_source - 1, whole.cuts.longest_target - 1)
        assert closer.cuts[:2] == (1, 1)


def test_sides_without_tokens_and_limits_without_room_are_refused(tokenizer):
    words = vocabularies.word_piece(["dog hund"])
    silent = Pair("\u200b\x01", "dog", "line 7")  # a normaliser removes such letters
    frame = Frame([2], [3], 0)
    with pytest.raises(DataError, match=r"1 of 2 records are bad.*no token in a source: 1 \(line 7:"):
        encode([Pair("dog", "hund", "line 6"), silent], words, frame)
    kept = encode([silent, Pair("dog", "hund", "line 6")], words, frame, max_faults=0.5)
    assert [pair.place for pair in kept.pairs] == ["line 6"] and len(kept.examples) == 1
    for key, limits, frame in (
        ("max_source_tokens=2: must be above 2", {"source": 2}, Frame([BEGIN], [END], PAD)),
        ("max_target_tokens=1: must be above 1", {"target": 1}, Frame([BEGIN], [END], None)),
    ):
        with pytest.raises(ConfigError, match=rf"task\.{key}, the special tokens of a"):
            encode(PAIRS, tokenizer, frame, **limits)
    with pytest.raises(ConfigError, match="an answer would never end"):
        encode(PAIRS, tokenizer, Frame([], [], None))
