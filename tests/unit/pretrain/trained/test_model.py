"""A model that is opened to be used: encoded, continued, refused, against transformers where that can say."""

import json
import logging
import shutil

import pytest
import torch
from hugging_face_directories import write_released
from run_directories import GPT2_SETTINGS, TEXTS, make_run, word_pieces
from small_models import BART, LLAMA, ROBERTA, T5_TIED, small_decoder, small_encoder, small_encoder_decoder
from tokenizers import processors
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerFast,
)
from vocabularies import byte_level

from pretrain.data.batch import IGNORED
from pretrain.errors import CheckpointError, ConfigError
from pretrain.hub.family import family_for
from pretrain.trained import generating
from pretrain.trained.model import load

WORDS = ["the", "time", "people", "and", "world", "a way", "school"]
GREEDILY = {"temperature": 0.0, "max_tokens": 9}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A decoder of 32 learned positions with two steps, 7 and 9."""
    folder = tmp_path_factory.mktemp("runs")
    run, later = make_run(folder / "run", *GPT2_SETTINGS), make_run(folder / "later", *GPT2_SETTINGS, step=9, seed=2)
    shutil.copytree(later / "checkpoints" / "step-00000009", run / "checkpoints" / "step-00000009")
    return run


@pytest.mark.parametrize("config", [small_decoder(**LLAMA).config, small_encoder(**ROBERTA).config])
def test_logits_of_ragged_texts_are_those_of_transformers(tmp_path, config):
    tokenizer = write_released(tmp_path / "model", config, WORDS * 9)
    model = load(tmp_path / "model", device="cpu")
    texts = ["the time", "a", "people and the world and people"]
    batch = model.encode(texts)
    found = model.logits(batch).split(batch.lengths)
    kind = AutoModelForCausalLM if config.kind.generates else AutoModelForMaskedLM
    theirs = kind.from_pretrained(tmp_path / "model").double().eval()
    around = [tokenizer.token_to_id("<s>")], [] if config.kind.generates else [tokenizer.token_to_id("</s>")]
    for text, logits in zip(texts, found, strict=True):
        ids = around[0] + tokenizer.encode(text, add_special_tokens=False).ids + around[1]
        with torch.no_grad():
            expected = theirs(torch.tensor([ids])).logits[0]
        torch.testing.assert_close(logits, expected.float(), atol=1e-5, rtol=1e-4)
    assert batch.num_targets == (sum(batch.lengths) - 3 if config.kind.generates else 0)


def test_each_of_several_ends_ends_a_text_of_a_decoder(tmp_path):
    """As Llama 3.1 says it, whose tokenizer puts nothing behind a text."""
    folder = tmp_path / "model"
    tokenizer = write_released(folder, small_decoder(**LLAMA, init_std=0.9).config, WORDS * 9)
    ids = torch.tensor([[tokenizer.token_to_id("<s>"), *tokenizer.encode("the time", add_special_tokens=False).ids]])
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    free = theirs.generate(ids, max_new_tokens=9, do_sample=False, eos_token_id=None)[0, ids.shape[1] :].tolist()
    file = folder / "generation_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"eos_token_id": [2, free[4], free[7]]}))
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    wanted = theirs.generate(ids, max_new_tokens=9, do_sample=False)[0, ids.shape[1] :].tolist()
    [[text]] = load(folder, device="cpu").generate("the time", **GREEDILY)
    assert len(wanted) < len(free)
    assert text == tokenizer.decode([*ids[0].tolist(), *wanted[:-1]]).removeprefix(tokenizer.decode(ids[0].tolist()))


@pytest.fixture(scope="module", params=[BART, T5_TIED], ids=["bart", "t5"])
def reader(request, tmp_path_factory):
    """A released encoder-decoder, ours and theirs, and its tokenizer."""
    folder = tmp_path_factory.mktemp("reader") / "model"
    config = small_encoder_decoder(**request.param).config
    tokenizer = byte_level(WORDS * 9)
    special = [(token, tokenizer.token_to_id(token)) for token in ("<s>", "</s>")]
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=special)
    described = family_for(config).to_hf(config, tokenizer.get_vocab_size())
    described |= {"decoder_start_token_id": 2, "eos_token_id": 2, "pad_token_id": 1, "bos_token_id": 0}
    theirs = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(**described)).eval()
    generator = torch.Generator().manual_seed(3)
    for name, parameter in theirs.named_parameters():
        if parameter.ndim > 1:
            parameter.data.normal_(std=0.4 if "embed" in name or "shared" in name else 0.9, generator=generator)
    theirs.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(folder)
    return load(folder, device="cpu"), theirs, tokenizer


def test_logits_of_targets_are_those_of_transformers(reader):
    model, theirs, tokenizer = reader
    sources, targets = ["the time", "people and the world and people"], ["a way of the world", "school"]
    batch = model.encode(sources, targets)
    for source, target, logits in zip(sources, targets, model.logits(batch).split(batch.lengths), strict=True):
        ids, labels = (torch.tensor([tokenizer.encode(text).ids]) for text in (source, target))
        with torch.no_grad():
            expected = theirs(ids, labels=labels).logits[0]
        torch.testing.assert_close(logits, expected, atol=1e-3, rtol=1e-4)
    assert batch.num_targets == len(batch.targets) and batch.targets[-1] == tokenizer.token_to_id("</s>")
    with pytest.raises(ConfigError, match="targets=1: an encoder-decoder needs one a text, 2"):
        model.encode(sources, "one")


def test_an_encoder_decoder_writes_of_its_sources_what_transformers_does(reader):
    model, theirs, tokenizer = reader
    sources = ["the time", "people and the world and people", "a way of school"]
    for ours, settings in (({"temperature": 0.0}, {"num_beams": 1}), ({"beams": 3}, {"num_beams": 3})):
        found = model.generate(sources, max_tokens=9, **ours)
        for source, [text] in zip(sources, found, strict=True):
            ids = torch.tensor([tokenizer.encode(source).ids])
            settings |= {"max_new_tokens": 9, "do_sample": False}
            assert text == tokenizer.decode(theirs.generate(ids, **settings)[0, 1:].tolist())
        assert len({text for [text] in found}) > 1


def test_special_tokens_are_read_and_written_on_request(reader):
    model, theirs, tokenizer = reader
    source, special = "the <s>time</s> and", [tokenizer.token_to_id("<s>"), tokenizer.token_to_id("</s>")]
    [[text]] = model.generate(source, **GREEDILY, markup=True)
    tokenizer.encode_special_tokens = False
    ids = tokenizer.encode(source).ids
    tokenizer.encode_special_tokens = True
    assert set(special) <= set(ids[1:-1]), "the reference reads them"
    [wanted] = theirs.generate(torch.tensor([ids]), max_new_tokens=9, do_sample=False).tolist()
    ended = wanted[1:-1] if wanted[-1] == special[1] else wanted[1:]
    assert text == tokenizer.decode(ended, skip_special_tokens=False)
    drawn = {"temperature": 9.0, "top_p": None, "samples": 40, "max_tokens": 9}
    [plain], [marked] = (model.generate(source, **drawn, markup=markup) for markup in (False, True))
    assert "<s>" in "".join(marked) and "</s>" not in "".join(marked) and "<s>" not in "".join(plain)


def test_the_targets_of_a_decoder_are_its_next_tokens(run):
    batch = load(run, device="cpu").encode(["the time", "way"])
    for ids, targets in zip(batch.tokens.split(batch.lengths), batch.targets.split(batch.lengths), strict=True):
        assert targets.tolist() == [*ids[1:].tolist(), IGNORED]


def test_a_step_of_a_run_is_chosen(run):
    newest, first = load(run, device="cpu"), load(run, step=7, device="cpu")
    assert (newest.step, first.step, newest.path, newest.name) == (9, 7, run, str(run))
    assert newest.generate("the ", **GREEDILY) != first.generate("the ", **GREEDILY)
    with pytest.raises(CheckpointError, match="step-00000008"):
        load(run, step=8)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there to be named")
@pytest.mark.parametrize(
    ("options", "message"),
    [({"step": "9"}, "step='9': must be"), ({"device": "cuda"}, "device=cuda: "), ({"device": "tpv"}, "device=tpv: ")],
)
def test_a_step_or_a_device_that_is_none_is_refused(run, options, message):
    with pytest.raises(ConfigError, match=message):
        load(run, **options)


@pytest.mark.parametrize("options", [GREEDILY, {"max_tokens": 9, "seed": 5, "top_p": 1.0, "samples": 3}])
def test_each_prompt_is_continued_as_if_it_were_alone(run, options, monkeypatch):
    monkeypatch.setattr(generating, "TEXTS_AT_A_TIME", 7)
    model, samples = load(run, device="cpu"), options.get("samples", 1)
    prompts = ["the time of", "", "a", "people and the world, a way of life"]
    found = model.generate([*prompts, *prompts], **options)
    assert found == [model.generate(prompt, **options)[0] for prompt in prompts] * 2
    assert [len(set(texts)) for texts in found] == [samples] * 8
    assert len({text for texts in found for text in texts}) == 4 * samples


def test_a_text_ends_with_the_positions_and_that_is_said(run, caplog):
    with caplog.at_level(logging.WARNING):
        [[long], [short]] = load(run, device="cpu").generate(["the " * 14, "a"], temperature=0.0, max_tokens=40)
    assert "was made for texts of 32 tokens, and the longest may get" in caplog.text
    assert long and short


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda model: model.generate(["a", "e" * 31]), "tokens of text 2=32: RUN has room for 31 here"),
        (lambda model: model.encode(["e" * 32]), "tokens of text 1=33: RUN has room for 32 here"),
        (lambda model: model.generate("a", samples=0), "samples=0: must be at least 1"),
        (lambda model: model.generate("a", top_p=2.0), "top_p=2.0: must lie in"),
        (lambda model: model.generate("a", stop=""), "stop='': must hold a character"),
        (lambda model: model.generate("a", no_repeat_ngram=2), "no_repeat_ngram=2: belongs to beam search"),
        (lambda model: model.generate("a", beams=2, samples=2), "samples=2: beam search finds one text"),
        (lambda model: model.encode("a", "b"), "targets=['b']: RUN is no encoder-decoder"),
    ],
)
def test_what_cannot_be_continued_is_refused_by_name(run, call, message):
    with pytest.raises(ConfigError) as refusal:
        call(load(run, device="cpu"))
    assert str(refusal.value).startswith(message.replace("RUN", str(run)))


def test_an_encoder_does_not_generate(tmp_path):
    run = make_run(tmp_path / "run", model="encoder", tokenizer=word_pieces(), vocab_size=72)
    with pytest.raises(ConfigError, match="is an encoder, which writes no text"):
        load(run, device="cpu").generate("a")


@pytest.mark.parametrize("config", [small_decoder().config, small_encoder().config])
def test_a_model_of_a_task_is_refused_with_what_runs_it(tmp_path, config):
    write_released(tmp_path / "base", config, TEXTS)
    AutoModelForSequenceClassification.from_pretrained(tmp_path / "base").save_pretrained(tmp_path / "task")
    with pytest.raises(ConfigError, match=r"task: is fine-tuned for a task.*python -m finetune\.predict"):
        load(tmp_path / "task")


def test_an_encoder_without_its_head_is_refused(tmp_path):
    write_released(tmp_path / "base", small_encoder().config, TEXTS)
    AutoModelForMaskedLM.from_pretrained(tmp_path / "base").bert.save_pretrained(tmp_path / "bare")
    with pytest.raises(ConfigError, match=r"bare: has no head that predicts tokens \(model\.head\.bias"):
        load(tmp_path / "bare")


def test_what_is_no_run_has_no_steps_and_is_exported_already(run, tmp_path):
    model = load(load(run, device="cpu").export(tmp_path / "export"), device="cpu")
    assert model.step is None
    with pytest.raises(ConfigError, match="is in the layout of transformers already"):
        model.export()
    with pytest.raises(ConfigError, match="step=7: only runs have steps"):
        load(tmp_path / "export", step=7)


def test_an_export_computes_what_its_run_does(run, tmp_path):
    model = load(run, device="cpu")
    exported = load(model.export(tmp_path / "export"), device="cpu")
    batch = model.encode(["the time of the year", "a"])
    assert torch.equal(exported.encode(["the time of the year", "a"]).tokens, batch.tokens)
    assert torch.equal(exported.logits(batch), model.logits(batch))
    assert exported.generate("the ", **GREEDILY) == model.generate("the ", **GREEDILY)


@pytest.mark.parametrize("name", ["./nowhere", "org/nowhere/deep", "."])
def test_what_is_no_model_is_refused_by_name(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refusal:
        load(name)
    assert str(refusal.value).startswith(f"{name}: ")
