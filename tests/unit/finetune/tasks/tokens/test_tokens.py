"""Tags of words through tokens and back: a law over any words, tokenizers and lengths; transformers; bad input."""

import json

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, processors
from vocabularies import KINDS

from finetune.model.losses import ClassWeights
from finetune.tasks.tokens.alignment import NO_WORD, word_of_tokens
from finetune.tasks.tokens.sentences import Sentence, TagScheme
from finetune.tasks.tokens.task import TokensConfig
from pretrain.data.batch import IGNORED
from pretrain.errors import ConfigError, DataError

TEXTS = ["The people of São Paulo walk to the Tate, don't they?", "naïve coöperation in 2024: 漢字 and 🙂!", "a b c d"]
NAMES = ["O", "B-LOC", "B-PER", "I-LOC", "I-PER"]


def with_special_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer, with special tokens around a text."""
    first, last = ("[CLS]", "[SEP]") if tokenizer.token_to_id("[CLS]") is not None else ("<s>", "</s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(name, tokenizer.token_to_id(name)) for name in (first, last)]
    )
    tokenizer.encode_special_tokens = True
    return tokenizer


TOKENIZERS = {kind: with_special_tokens(train(TEXTS)) for kind, train in KINDS.items()}
bare = KINDS["byte_level"](TEXTS)
bare.encode_special_tokens = True
TOKENIZERS["without special tokens"] = bare

WORDS = st.one_of(
    st.sampled_from(
        ["São", "Paulo", "the", "don't", "[SEP]", "<mask>", "www.", "", " ", "\x01", "\ufe0f", "漢字", "🙂"]
    ),
    st.text(max_size=6),
    st.text("ab.🙂", min_size=30, max_size=120),
)
TAGGED = st.lists(st.lists(st.tuples(WORDS, st.sampled_from(NAMES)), min_size=1, max_size=30), min_size=1, max_size=3)


def sentences(tagged):
    return [Sentence([word for word, _ in row], [tag for _, tag in row], f"file:{n}") for n, row in enumerate(tagged)]


def ideal(encoded, names=NAMES):
    """Logits that are right at targets and noise elsewhere, one array a sequence."""
    examples = encoded.examples
    logits = np.random.default_rng(0).normal(size=(len(examples.tokens), len(names))).astype(np.float32)
    expected = np.flatnonzero(examples.targets != IGNORED) if examples.targets is not None else np.array([], int)
    if len(expected):
        logits[expected, examples.targets[expected]] = 20
    return np.split(logits, examples.offsets[1:-1]) if len(examples) else []


def readable(tokenizer, word):
    """Whether anything but space is left of a word."""
    clean = tokenizer.normalizer.normalize_str(word) if tokenizer.normalizer else word
    return any(not letter.isspace() for letter in clean)


@pytest.mark.parametrize("kind", TOKENIZERS)
@settings(max_examples=60)
@given(tagged=TAGGED, room=st.sampled_from([1, 2, 3, 7, 20, 510]))
@example(tagged=[[("a" * 90, "B-LOC"), (".", "I-LOC")]], room=5)
@example(tagged=[[("\x01", "B-PER")], [("the", "B-PER")]], room=5)
def test_every_word_has_one_target_and_gets_its_tag_back(kind, tagged, room):
    tokenizer, records = TOKENIZERS[kind], sentences(tagged)
    special = 0 if kind == "without special tokens" else 2
    task = TokensConfig(max_tokens=room + special)
    encoded = task.encode(records, tokenizer, NAMES)
    examples = encoded.examples
    assert (examples.lengths <= room + special).all()
    placed = 0
    predictions = list(task.predict(encoded, ideal(encoded), NAMES))
    for number, (sentence, found) in enumerate(zip(records, predictions, strict=True)):
        first = encoded.records[number].first
        assert found["words"] == sentence.words and len(first) == len(sentence.words)
        for word, tag, predicted, place in zip(sentence.words, sentence.tags, found["tags"], first, strict=True):
            if place == NO_WORD:
                assert not readable(tokenizer, word) and predicted == "O"
            else:
                assert predicted == tag and NAMES[examples.targets[place]] == tag
                placed += 1
        check_sequences(tokenizer, sentence, encoded, number, special)
    assert placed == sum(np.count_nonzero(record.first != NO_WORD) for record in encoded.records)
    if placed:
        assert placed == np.count_nonzero(examples.targets != IGNORED)


def owners_by_letter(words, offsets):
    """The word of each token: that of the last letter it stands for which is no space between words."""
    letters = [word for number, text in enumerate(words) for word in [*[number] * len(text), None]]
    inside = [[word for word in letters[start:end] if word is not None] for start, end in offsets]
    return [found[-1] if found else None for found in inside]


def check_sequences(tokenizer, sentence, encoded, number, special):
    """The sequences of a sentence hold its tokens in order; parts of one start with the first token of a word."""
    whole, side = tokenizer.encode(" ".join(sentence.words)), special // 2
    content = whole.ids[side : len(whole.ids) - side]
    owners = owners_by_letter(sentence.words, whole.offsets[side : len(whole.ids) - side])
    first = sorted(owners.index(word) for word in set(owners) - {None})
    examples = encoded.examples
    held = []  # places in the whole, of all sequences
    words = encoded.records[number].first
    for sequence in np.unique(np.searchsorted(examples.offsets, words[words != NO_WORD], side="right") - 1):
        places = slice(*examples.offsets[sequence : sequence + 2])
        tokens, targets = examples.tokens[places].tolist(), examples.targets[places]
        stop = len(tokens) - side
        start = 0 if stop - side == len(content) else next(place for place in first if place > max(held, default=-1))
        held += range(start, start + stop - side)
        assert tokens == [*whole.ids[:side], *content[start : held[-1] + 1], *whole.ids[len(whole.ids) - side :]]
        expected = [place - start + side for place in first if place in range(start, held[-1] + 1)]
        assert np.flatnonzero(targets != IGNORED).tolist() == expected
    assert set(first) <= set(held), "a word lost its first token"


@settings(max_examples=60)
@given(tagged=TAGGED)
def test_word_pieces_are_those_of_transformers(tagged):
    """ids and targets by the recipe of `run_ner`: words one by one, and targets where `word_ids` changes."""
    from transformers import PreTrainedTokenizerFast

    theirs = PreTrainedTokenizerFast(tokenizer_object=TOKENIZERS["word_piece"], split_special_tokens=True)
    for sentence in sentences(tagged):
        encoded = TokensConfig().encode([sentence], TOKENIZERS["word_piece"], NAMES)
        reference = theirs(sentence.words, is_split_into_words=True, return_token_type_ids=True)
        targets, before = [], None
        for word in reference.word_ids():
            targets.append(NAMES.index(sentence.tags[word]) if word not in (None, before) else -100)
            before = word
        if len(encoded.examples):
            assert encoded.examples.tokens.tolist() == reference["input_ids"]
            assert encoded.examples.segments.tolist() == reference["token_type_ids"]
            assert encoded.examples.targets.tolist() == targets
        else:
            assert set(targets) == {-100}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_all_tokens_of_a_word_may_have_its_tag(kind):
    words, tags = ["Paulo", "walks,", "naïvely", "…"], ["B-PER", "O", "I-LOC", "O"]
    task = TokensConfig(label_all_pieces=True)
    encoded = task.encode([Sentence(words, tags, "file:1")], TOKENIZERS[kind], NAMES)
    offsets = TOKENIZERS[kind].encode(" ".join(words)).offsets
    ends = np.cumsum([len(word) + 1 for word in words])
    for (start, end), target in zip(offsets, encoded.examples.targets, strict=True):
        blank = start == end or " ".join(words)[start:end].isspace()
        assert target == (IGNORED if blank else NAMES.index(tags[np.searchsorted(ends, end - 1, side="right")]))
    assert [found["tags"] for found in task.predict(encoded, ideal(encoded), NAMES)] == [tags]


def test_words_without_a_token_are_outside_and_logged(caplog):
    words, tags = ["the", "\x01", "\ufe0f", ""], ["B-LOC", "I-LOC", "O", "O"]
    task = TokensConfig()
    encoded = task.encode([Sentence(words, tags, "f:3", range(3, 7))], TOKENIZERS["word_piece"], NAMES)
    assert "3 words have no token (f:4: '\\x01', f:5: '\\ufe0f', f:6: ''): each is taken to be O" in caplog.text
    [found] = task.predict(encoded, ideal(encoded), NAMES)
    assert found["tags"] == ["B-LOC", "O", "O", "O"] and found["scores"][1:] == [None] * 3
    assert task.measure(encoded, ideal(encoded), NAMES)["accuracy"] == 3 / 4
    nothing = task.encode([Sentence(words[1:], tags[1:], "f:9")], TOKENIZERS["word_piece"], NAMES)
    assert len(nothing.examples) == 0 and len(nothing.records) == 1
    assert [found["tags"] for found in task.predict(nothing, [], NAMES)] == [["O", "O", "O"]]


def test_a_word_longer_than_a_sequence_is_logged(caplog):
    task = TokensConfig(max_tokens=6)
    task.encode([Sentence(["ab." * 9, "the"], ["O", "O"], "f:1")], TOKENIZERS["byte_level"], NAMES)
    assert "1 sentences have words longer than task.max_tokens" in caplog.text
    caplog.clear()
    task.encode([Sentence(["ab", "the"] * 9, ["O"] * 18, "f:1")], TOKENIZERS["byte_level"], NAMES)
    assert not caplog.records


@pytest.mark.parametrize(("max_tokens", "lengths"), [(2, [2, 2, 1]), (3, [3, 2]), (4, [4, 1]), (5, [5]), (9, [5])])
def test_sequences_are_as_few_as_it_takes(max_tokens, lengths):
    words = ["a", "b", "c", "d", "!"]
    encoded = TokensConfig(max_tokens=max_tokens + 2).encode(
        [Sentence(words, ["O"] * 5, "f:1")], TOKENIZERS["word_piece"], NAMES
    )
    assert (encoded.examples.lengths - 2).tolist() == lengths


def test_what_a_token_stands_for():
    """Offsets by hand: spaces go to the next word, but not to one of no letters; special tokens have none."""
    words = ["ab", "", "c", " ", "d"]  # "ab  c   d"
    offsets = np.array([(0, 0), (0, 1), (1, 2), (2, 4), (4, 5), (3, 4), (2, 3), (5, 9), (6, 7), (7, 8), (1, 5), (1, 1)])
    found = [None, 0, 0, None, 2, None, None, 4, 3, None, 2, None]
    assert word_of_tokens(offsets, words).tolist() == [NO_WORD if word is None else word for word in found]
    assert word_of_tokens(np.array([(0, 3), (3, 4)]), words).tolist() == [0, NO_WORD]


def test_a_sequence_holds_more_than_special_tokens():
    with pytest.raises(ConfigError, match=r"task.max_tokens=2: the tokenizer puts 2 tokens around a text; .* least 3"):
        TokensConfig(max_tokens=2).encode([Sentence(["a"], ["O"], "f:1")], TOKENIZERS["unigram"], NAMES)


def test_predictions():
    words = ["In", "São", "Paulo", "she", "met", "Ann"]
    tags = ["O", "B-LOC", "I-LOC", "O", "O", "B-PER"]
    task = TokensConfig()
    encoded = task.encode([Sentence(words, None, "f:1")], TOKENIZERS["unigram"], NAMES)
    assert encoded.examples.targets is None
    [record] = encoded.records
    logits = np.zeros((len(encoded.examples.tokens), len(NAMES)), dtype=np.float32)
    for place, tag, height in zip(record.first, tags, range(1, 7), strict=True):
        logits[place, NAMES.index(tag)] = height
    [found] = task.predict(encoded, [logits], NAMES)
    probability = [float(torch.tensor([height, 0, 0, 0, 0.0]).softmax(0)[0]) for height in range(1, 7)]
    assert found["text"] == "In São Paulo she met Ann" and found["words"] == words and found["tags"] == tags
    assert found["scores"] == pytest.approx(probability)
    place, person = found["entities"]
    assert place.pop("score") == pytest.approx((probability[1] + probability[2]) / 2)
    assert place == {"type": "LOC", "words": ["São", "Paulo"], "start": 3, "end": 12}
    assert found["text"][person["start"] : person["end"]] == "Ann" and json.dumps(found)
    plain = TokensConfig(scheme=TagScheme.none)
    assert "entities" not in next(plain.predict(encoded, [logits], NAMES))


def test_measures():
    task, records = TokensConfig(), [Sentence(["São", "Paulo", "met", "Ann"], ["B-LOC", "I-LOC", "O", "B-PER"], "f:1")]
    encoded = task.encode(records, TOKENIZERS["unigram"], NAMES)
    logits = ideal(encoded)
    assert task.measure(encoded, logits, NAMES)["f1"] == 1
    logits[0][encoded.records[0].first[3]] = [9, 0, 0, 0, 0]  # Ann is missed
    values = task.measure(encoded, logits, NAMES)
    assert (values["precision"], values["recall"], values["accuracy"]) == (1, 1 / 2, 3 / 4)
    assert task.metric == "f1" and values["f1"] == pytest.approx(2 / 3) and values["f1/LOC"] == 1
    plain = TokensConfig(scheme=TagScheme.none)
    assert plain.metric == "accuracy" and plain.measure(encoded, logits, NAMES) == {"accuracy": 3 / 4}
    with pytest.raises(DataError, match="f:1: no tags; training and evaluation need them"):
        task.measure(task.encode([records[0]._replace(tags=None)], TOKENIZERS["unigram"], NAMES), logits, NAMES)


def test_losses():
    names, records = NAMES[:2], [Sentence(["a", "b", "c", "d"], ["O", "O", "O", "B-LOC"], "f:1")]
    task = TokensConfig(class_weights=ClassWeights.balanced, label_smoothing=0.1)
    encoded = task.encode(records, TOKENIZERS["word_piece"], names)
    loss = task.loss(encoded, names)
    assert loss.weights == pytest.approx((4 / 6, 4 / 2)) and loss.smoothing == 0.1
    assert np.mean([loss.weights[target] for target in encoded.examples.targets if target != IGNORED]) == 1
    with pytest.raises(ConfigError, match=r"task.class_weights=balanced: no word .* has B-PER, I-LOC, I-PER; take"):
        task.loss(encoded, NAMES)
    plain = TokensConfig(label_smoothing=0.2).loss(encoded, NAMES)
    batch = encoded.examples.batch(np.array([0]))
    assert (plain.weights, plain.smoothing, batch.num_targets) == (None, 0.2, 4)
    assert plain(torch.tensor(ideal(encoded)[0]), batch)[1] == 4, "all are right"


@pytest.mark.parametrize("class_weights", ClassWeights)
@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_loss_with_smoothing_is_torchs_over_the_words_alone(smoothing, class_weights):
    """The reference sees one row a word and no ignored target; the sentences have 1, 5 and 3 words of many tokens."""
    words = [["Ann"], ["In", "São", "Paulo", "walks,", "naïvely"], ["the", "Paulo's", "Ann"]]
    tags = [["B-PER"], ["O", "B-LOC", "I-LOC", "O", "O"], ["O", "B-PER", "I-PER"]]
    records = [Sentence(*row, f"f:{number}") for number, row in enumerate(zip(words, tags, strict=True))]
    task = TokensConfig(label_smoothing=smoothing, class_weights=class_weights)
    encoded = task.encode(records, TOKENIZERS["byte_level"], NAMES)
    batch = encoded.examples.batch(np.arange(len(records)))
    first = np.concatenate([record.first for record in encoded.records])
    targets = torch.tensor([NAMES.index(tag) for row in tags for tag in row])
    assert batch.num_targets == len(first) == 9 and (batch.targets == IGNORED).sum() > 9
    logits = 3 * torch.randn(len(batch.targets), len(NAMES), generator=torch.Generator().manual_seed(3))
    weight = None
    if class_weights is ClassWeights.balanced:
        weight = 9 / (len(NAMES) * targets.bincount(minlength=len(NAMES)).double())
    expected = torch.nn.functional.cross_entropy(
        logits[first].double(), targets, weight=weight, reduction="sum", label_smoothing=smoothing
    )
    total, correct = task.loss(encoded, NAMES)(logits, batch)
    torch.testing.assert_close(total.double(), expected, rtol=1e-6, atol=0)
    assert correct == (logits[first].argmax(1) == targets).sum()
