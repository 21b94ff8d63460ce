"""Evaluations of any text against transformers in float64, and what is refused before anything is measured."""

import gzip
import json
import math
import random
from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hugging_face_directories import write_released
from run_directories import GPT2_SETTINGS, TEXTS, make_run, word_pieces
from small_models import LLAMA, small_decoder, small_encoder
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from pretrain.data.batch import IGNORED
from pretrain.data.loader import DataConfig
from pretrain.data.packing import Packing
from pretrain.data.sources.base import TextSource
from pretrain.data.vocabulary import load_vocabulary
from pretrain.errors import ConfigError, DataError
from pretrain.files import read_json, sealed
from pretrain.objectives.masked_lm import MaskedLMConfig
from pretrain.tokenizer.base import load_tokenizer
from pretrain.trained.model import load
from pretrain.trained.texts import sources_of

WORDS = ["time", "year", "people", "way", "day", "man", "thing", "life", "child", "world", "school", "state"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with 12 uneven documents, some longer than 32 tokens, as paragraphs of a text and in other formats."""
    folder, draw = tmp_path_factory.mktemp("texts"), random.Random(3)
    documents = [" ".join(draw.choices(WORDS, k=draw.randint(1, 40))) for _ in range(12)]
    (folder / "text.txt").write_text("\n\n".join(documents))
    lines = "".join(json.dumps({"body": text}) + "\n" for text in documents[:5])
    (folder / "lines.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    pq.write_table(pa.table({"body": documents[5:8]}), folder / "rows.parquet")
    (folder / "documents.json").write_text(json.dumps(documents))
    return folder


def settings(folder, *more):
    return [f"data.prepare.root={folder / 'corpora'}", "data.prepare.workers=1", *more]


def documents_of(folder):
    return json.loads((folder / "documents.json").read_text())


@pytest.fixture(scope="module")
def decoder(tmp_path_factory):
    """A released decoder whose tokenizer ends documents, and its tokenizer."""
    directory = tmp_path_factory.mktemp("llama")
    tokenizer = write_released(directory, small_decoder(**LLAMA, kv_heads=2).config, WORDS * 9)
    return directory, tokenizer


def causal_reference(directory, tokenizer, documents, seq_len):
    """Return nll, how many are right, and targets of documents cut every `seq_len` tokens, one piece at a time."""
    model = AutoModelForCausalLM.from_pretrained(directory).double().eval()
    begin, end = tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")
    ids = [[begin, *tokenizer.encode(text, add_special_tokens=False).ids, end] for text in documents]
    nll, right, targets, at = 0.0, 0, 0, 0
    for document in ids:
        cuts = [0, *(cut for cut in range(1, len(document)) if (at + cut) % seq_len == 0), len(document)]
        at += len(document)
        for first, last in pairwise(cuts):
            with torch.no_grad():
                logits = model(torch.tensor([document[first:last]])).logits[0]
            following = document[first + 1 : last + 1]
            for row, target in zip(logits, following, strict=False):
                nll -= float(row.log_softmax(0)[target])
                right += int(row.argmax()) == target
                targets += 1
    return nll, right, targets


def test_a_released_decoder_is_measured_as_transformers_would(folder, decoder):
    directory, tokenizer = decoder
    found = load(directory, device="cpu").evaluate(
        folder / "text.txt", settings=settings(folder, "documents=blank_line")
    )
    documents = documents_of(folder)
    nll, right, targets = causal_reference(directory, tokenizer, documents, seq_len=32)
    size = sum(len(text.encode()) for text in documents)
    assert found == {
        "loss": pytest.approx(nll / targets, rel=1e-5),
        "perplexity": pytest.approx(math.exp(nll / targets), rel=1e-4),
        "accuracy": right / targets,
        "bits_per_byte": pytest.approx(nll / size / math.log(2), rel=1e-5),
        "documents": 12,
        "text_bytes": size,
        "tokens": targets + 12,  # nothing follows the last token of a document
        "targets": targets,
        "seq_len": 32,
    }


def test_a_released_encoder_is_measured_as_transformers_would(folder, tmp_path):
    write_released(tmp_path / "bert", small_encoder().config, WORDS * 9)
    model = load(tmp_path / "bert", device="cpu")
    changed = ["documents=blank_line", "objective.masking.rate=0.3", "seed=4", "data.seq_len=24"]
    found = model.evaluate(folder / "text.txt", settings=settings(folder, *changed))
    [corpus] = [path.parent for path in (folder / "corpora").glob("text-*/manifest.json") if is_of(path.parent, model)]
    data = DataConfig(seq_len=24, packing=Packing.windows, sources={"text": TextSource(paths=["-"])})
    held_out = data.held_out({"text": corpus}, {"text": "train"})
    objective = MaskedLMConfig()
    objective.masking.rate = 0.3
    examples = objective.examples(lambda: load_vocabulary(corpus), 4, 64)
    theirs = AutoModelForMaskedLM.from_pretrained(tmp_path / "bert").double().eval()
    nll, right, targets, tokens = 0.0, 0, 0, 0
    for slot in range(held_out.num_slots):
        inputs = examples(held_out.slots(torch.tensor([slot]).numpy()))
        tokens += len(inputs.tokens)
        for first, last in zip(inputs.offsets[:-1], inputs.offsets[1:], strict=True):
            with torch.no_grad():
                logits = theirs(torch.from_numpy(inputs.tokens[None, first:last])).logits[0]
            for row, target in zip(logits, inputs.targets[first:last].tolist(), strict=True):
                if target != IGNORED:
                    nll -= float(row.log_softmax(0)[target])
                    right += int(row.argmax()) == target
                    targets += 1
    assert targets > 20
    assert (found["tokens"], found["targets"], found["seq_len"]) == (tokens, targets, 24)
    assert found["accuracy"] == right / targets
    assert found["loss"] == pytest.approx(nll / targets, rel=1e-5)
    assert "bits_per_byte" not in found  # hidden tokens are not the text


def is_of(corpus, model):
    return load_tokenizer(corpus / "tokenizer.json").get_vocab() == model.tokenizer.get_vocab()


def test_texts_of_any_kind_are_measured_together(folder, decoder):
    model, own = load(decoder[0], device="cpu"), settings(folder, "field=body", "documents=blank_line")
    texts = [folder / "text.txt", folder / "lines.jsonl.gz", str(folder / "*.parquet")]
    together = model.evaluate(*texts, settings=own)
    cut = ["documents=blank_line", "field=body", "field=body"]
    apart = [model.evaluate(text, settings=settings(folder, word)) for text, word in zip(texts, cut, strict=True)]
    assert together["documents"] == sum(each["documents"] for each in apart) == 12 + 5 + 3
    assert together["targets"] == sum(each["targets"] for each in apart)
    nll = sum(each["loss"] * each["targets"] for each in apart)
    assert together["loss"] == pytest.approx(nll / together["targets"], rel=1e-6)
    [corpus] = (folder / "corpora").glob("jsonl-*")
    assert model.evaluate(corpus, settings=settings(folder)) == apart[1]  # prepared, and nothing of it held out


def test_a_folder_is_of_one_kind(tmp_path):
    for name in ("a.jsonl", "deep/b.jsonl", ".hidden.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"text": "a"}\n')
    assert [*sources_of([tmp_path])] == ["jsonl"]
    (tmp_path / "c.txt").write_text("c")
    with pytest.raises(ConfigError, match="holds files of jsonl and text; name those of one kind"):
        sources_of([tmp_path])


def test_cuts_and_bounds_are_those_that_are_asked_for(folder, decoder):
    model, own = load(decoder[0], device="cpu"), settings(folder, "documents=blank_line")
    whole = model.evaluate(folder / "text.txt", settings=own)
    windows = [*own, "data.packing=windows", "data.seq_len=16", "data.stride=4"]
    cut = model.evaluate(folder / "text.txt", settings=windows)
    assert cut["targets"] == whole["targets"] and cut["tokens"] > whole["tokens"] and cut["seq_len"] == 16
    seen = []
    few = [*own, "eval.max_slots=3", "train.micro_batch_size=2"]
    part = model.evaluate(folder / "text.txt", settings=few, progress=lambda *done: seen.append(done))
    assert part["tokens"] == 3 * 32 and "text_bytes" not in part
    assert seen == [(64, 96), (96, 96)]
    assert not model.module.training


def test_half_precision_is_another_measurement(folder, decoder):
    model, own = load(decoder[0], device="cpu"), settings(folder, "documents=blank_line")
    exact, half = (model.evaluate(folder / "text.txt", settings=own, precision=kind) for kind in ("fp32", "bf16"))
    assert exact["loss"] != half["loss"] == pytest.approx(exact["loss"], rel=0.02)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["documents=lines"], "documents=lines: takes one of auto, file, line, blank_line"),
        (["fild=body"], "fild=body: no setting of an evaluation; "),
        (["data.seq_lem=9"], "data.seq_lem=9: no setting of an evaluation; did you mean data.seq_len?"),
        (["optim.lr=1"], "optim.lr=1: no setting of an evaluation"),
        (["data.seq_len=long"], "data.seq_len=long: takes a whole number"),
        (["data.seq_len=1"], "data.seq_len=1: at least 2 tokens"),
        (["source=csv"], "source=csv: must be one of text, jsonl, parquet, hub, prepared"),
        (["documents"], "documents: has no value; type documents=VALUE"),
        (["data.stride=3"], "data.stride=3: only windows overlap"),
    ],
)
def test_a_setting_is_refused_by_name(folder, decoder, words, message):
    model = load(decoder[0], device="cpu")
    with pytest.raises(ConfigError) as refusal:
        model.evaluate(folder / "text.txt", settings=words)
    assert str(refusal.value).startswith(message)


def test_slots_longer_than_the_positions_are_refused(folder, tmp_path):
    model = load(make_run(tmp_path / "run", *GPT2_SETTINGS), device="cpu")
    with pytest.raises(ConfigError, match=r"data\.seq_len=64: more than the 32 tokens that .* has positions for"):
        model.evaluate(folder / "text.txt", settings=["data.seq_len=64"])


def test_a_text_that_is_not_there_is_refused(folder, decoder):
    model = load(decoder[0], device="cpu")
    with pytest.raises(ConfigError, match=r"nothing\.txt matches no file"):
        model.evaluate(folder / "nothing.txt", settings=settings(folder))
    with pytest.raises(ConfigError, match="no run that held out text; name a file"):
        model.evaluate()


def test_a_corpus_of_another_tokenizer_is_refused(folder, decoder, tmp_path):
    model = load(decoder[0], device="cpu")
    model.evaluate(folder / "lines.jsonl.gz", settings=settings(folder, "field=body"))
    [corpus] = (folder / "corpora").glob("jsonl-*")
    other = make_run(tmp_path / "run", model="encoder", tokenizer=word_pieces(), vocab_size=72)
    with pytest.raises(ConfigError, match=r"prepared with another tokenizer than that of .*run; name the text"):
        load(other, device="cpu").evaluate(corpus, settings=settings(folder))


def test_a_run_without_its_corpus_says_so(tmp_path):
    run = make_run(tmp_path / "run", *GPT2_SETTINGS)
    with pytest.raises(ConfigError, match="no run that held out text"):
        load(run, device="cpu").evaluate()
    record = read_json(run / "run.json") | {"corpora": {"text": str(tmp_path / "gone")}}
    (run / "run.json").write_bytes(sealed(record))
    with pytest.raises(DataError, match=r"gone: not there any more as .*run was trained on it; restore it, or name"):
        load(run, device="cpu").evaluate()


def test_text_in_which_no_token_is_hidden_is_refused(tmp_path):
    run = make_run(tmp_path / "run", model="encoder", tokenizer=word_pieces(), vocab_size=72)
    (tmp_path / "text.txt").write_text(TEXTS[0])
    with pytest.raises(DataError, match="tokens is a target, so there is nothing to measure; name more text"):
        load(run, device="cpu").evaluate(
            tmp_path / "text.txt", settings=settings(tmp_path, "objective.masking.rate=0.0001")
        )
