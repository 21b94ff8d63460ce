"""Exports of encoder-decoders: transformers and we compute with them what their runs do, and know how texts begin."""

import json
import shutil

import pytest
import torch
import torch.nn.functional as F
from run_directories import TEXTS, make_run
from small_models import BART, MARIAN, T5_GATED, T5_TIED
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from pretrain.errors import ConfigError
from pretrain.hub.family import family_for
from pretrain.models.base import Layout, Stream
from pretrain.models.layers import Positions
from pretrain.objectives.denoising import DenoisingConfig
from pretrain.objectives.span_corruption import SpanCorruptionConfig
from pretrain.registry import plain
from pretrain.tokenizer.unigram import UnigramTokenizer
from pretrain.trained.model import load
from pretrain.trained.source import open_source

KINDS = {"bart": BART, "marian": MARIAN, "t5": T5_TIED, "t5, gated": T5_GATED}
SPECIAL = ["<pad>", "</s>", "<unk>", "<mask>", "<s>"]


@pytest.fixture(scope="module", params=KINDS)
def exported(request, tmp_path_factory):
    """A run, and the directory of its export."""
    fields = [f"model.{key}={getattr(value, 'value', value)}".lower() for key, value in KINDS[request.param].items()]
    run = make_run(
        *(tmp_path_factory.mktemp("runs") / "run", *fields, "model.init_std=0.3"),
        model="encoder_decoder",
        vocab_size=270,
        tokenizer=UnigramTokenizer(vocab_size=264, special_tokens=SPECIAL).train(iter(TEXTS)),
        decoder_start=0,
    )
    return run, load(run).export()


def test_transformers_computes_what_the_run_does_and_writes_texts(exported):
    run, directory = exported
    model, theirs = load(run).module.model, AutoModelForSeq2SeqLM.from_pretrained(directory).eval()
    encode = AutoTokenizer.from_pretrained(directory)
    text = encode("the time of the year", return_tensors="pt")
    [ids] = text["input_ids"].tolist()
    assert (encode.convert_ids_to_tokens(ids[0]), encode.convert_ids_to_tokens(ids[-1])) == ("<s>", "</s>")
    source, target = stream(ids), stream([0, *ids[:3]])
    layout = Layout.of(target.offsets, target.max_len)
    hidden = model(target.tokens, target.positions, layout, source)
    logits = F.linear(hidden, model.head_weight(), model.head_bias())
    expected = theirs(**text, decoder_input_ids=target.tokens[None]).logits[0]
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-5)
    written = theirs.generate(**text, max_new_tokens=5, do_sample=False)[0].tolist()
    assert written[0] == 0 and written[1] == logits_after_start(model, source).argmax()


def stream(ids):
    return Stream(torch.tensor(ids), torch.arange(len(ids)), torch.tensor([0, len(ids)], dtype=torch.int32), len(ids))


def logits_after_start(model, source):
    """Return the logits of the first token, in which padding is never chosen."""
    start = stream([0])
    hidden = model(start.tokens, start.positions, Layout.of(start.offsets, 1), source)
    logits = F.linear(hidden, model.head_weight(), model.head_bias())[0]
    logits[0] = -torch.inf if model.config.head_bias else logits[0]
    return logits


def test_an_export_is_a_source_of_the_same_model(exported):
    run, directory = exported
    ours, read = open_source(str(run)), open_source(str(directory))
    assert read.decoder_start == ours.decoder_start == 0
    assert read.template == tuple(ours.template) == ([4], [1])
    relative = read.network.positions is Positions.relative
    assert type(read.objective) is (SpanCorruptionConfig if relative else DenoisingConfig)
    rules = {"decoder_layers": 2, "mlp_width": 96, "init": None, "init_std": None, "attention_width": None}
    assert plain(read.network) | rules == plain(ours.network) | rules


def test_an_export_says_which_tokens_end_texts_and_which_are_never_written(exported):
    _, directory = exported
    said, how = (json.loads((directory / f"{name}.json").read_text()) for name in ("config", "generation_config"))
    ids = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 4, "decoder_start_token_id": 0}
    assert ids.items() <= said.items() and ids.items() <= how.items()
    name = family_for(open_source(str(directory)).network).model_type
    assert how.get("forced_eos_token_id") == said.get("forced_eos_token_id") == (None if name == "t5" else 1)
    assert how.get("bad_words_ids") == ([[0]] if name == "marian" else None)
    assert "AutoModelForSeq2SeqLM" in (directory / "README.md").read_text()


def test_a_release_that_does_not_say_how_targets_begin_is_refused_by_name(exported, tmp_path):
    _, directory = exported
    said = json.loads((directory / "config.json").read_text())
    for file in directory.iterdir():
        shutil.copy(file, tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(said | {"decoder_start_token_id": None}))
    (tmp_path / "generation_config.json").unlink()
    with pytest.raises(ConfigError, match="no decoder_start_token_id, the id that the decoder sees first; write it"):
        load(tmp_path).generate("time")
    (tmp_path / "generation_config.json").write_text(json.dumps({"decoder_start_token_id": 3}))
    assert open_source(str(tmp_path)).decoder_start == 3


def test_choices_are_for_decoders(exported):
    run, directory = exported
    for source in (run, directory):
        with pytest.raises(ConfigError, match=r"choices=\['a\.jsonl'\]: .* is encoder_decoder, and decoders alone"):
            load(source).evaluate(choices=["a.jsonl"])
