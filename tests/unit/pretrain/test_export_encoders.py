"""What `transformers` loads from the export of an encoder computes what ours computes, and fills masks."""

import pytest
import torch
import torch.nn.functional as F
from corpora import edit_json
from run_directories import MODERNBERT_SETTINGS, TEXTS, json_of, load_run, make_run, word_pieces
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertForPreTraining, pipeline

from pretrain.export import main
from pretrain.models.base import Layout
from pretrain.tokenizer.base import load_tokenizer
from pretrain.tokenizer.bpe import BpeTokenizer

VOCAB_SIZE = 280
TEXT = "the time of the {} and the world"
ROBERTA = BpeTokenizer(vocab_size=270, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
OURS = {
    "bert": ["model.init_std=0.3", "model.norm_eps=1e-12"],
    "roberta": ["model.init_std=0.3", "model.position_offset=2", "model.token_types=1"],
    "distilbert": ["model.init_std=0.3", "model.token_types=0"],
    "deberta-v2": [
        *("model.init_std=0.3", "model.token_types=0", "model.positions=disentangled"),
        *("model.buckets=4", "model.max_distance=7", "model.shared_projections=false"),
    ],
    "modernbert": [*MODERNBERT_SETTINGS, "model.window=3", "model.global_every=2", "model.layers=3"],
}


@pytest.fixture(scope="module", params=OURS)
def run(request, tmp_path_factory):
    """A run of each family, exported."""
    tokenizer = ROBERTA.train(iter(TEXTS)) if request.param == "roberta" else word_pieces()
    path = tmp_path_factory.mktemp("runs") / request.param
    make_run(path, *OURS[request.param], model="encoder", tokenizer=tokenizer, vocab_size=VOCAB_SIZE)
    assert main([str(path)]) == 0
    assert json_of(path / "export" / "config.json")["model_type"] == request.param
    return path


def test_transformers_computes_our_logits(run):
    theirs, report = AutoModelForMaskedLM.from_pretrained(run / "export", output_loading_info=True)
    assert not any(report.values())
    tokenizer = AutoTokenizer.from_pretrained(run / "export")
    texts = [TEXT.format(tokenizer.mask_token), "people", "a way of life, a state of the world"]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = theirs(**inputs).logits[inputs["attention_mask"].bool()]
        ours = load_run(run).model
        lengths = inputs["attention_mask"].sum(1).tolist()
        tokens = inputs["input_ids"][inputs["attention_mask"].bool()]
        positions = torch.cat([torch.arange(length) for length in lengths])
        offsets = torch.tensor([0, *lengths]).cumsum(0).int()
        hidden = ours(tokens, positions, Layout.of(offsets, max(lengths)))
        logits = F.linear(ours.head_input(hidden), ours.head_weight(), ours.head_bias())
    assert logits.std() > 0.5, "logits that say something"
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_the_tokenizer_knows_its_special_tokens(run):
    theirs, ours = AutoTokenizer.from_pretrained(run / "export"), load_tokenizer(run / "tokenizer.json")
    config = AutoModelForMaskedLM.from_pretrained(run / "export").config
    tokens = {role: f"[{role.upper()}]" for role in ("cls", "sep", "pad", "mask", "unk")}
    if config.model_type == "roberta":
        tokens = {"cls": "<s>", "sep": "</s>", "pad": "<pad>", "mask": "<mask>", "unk": "<unk>"}
    for role, token in tokens.items():
        assert getattr(theirs, f"{role}_token") == token
        assert getattr(theirs, f"{role}_token_id") == getattr(config, f"{role}_token_id") == ours.token_to_id(token)
    assert theirs.model_max_length == 32
    assert not (run / "export" / "generation_config.json").exists()


def test_masks_are_filled(run):
    export = str(run / "export")
    tokenizer = AutoTokenizer.from_pretrained(export)
    text = TEXT.format(tokenizer.mask_token)
    [best, *_] = pipeline("fill-mask", model=export, tokenizer=export)(text)
    inputs = tokenizer(text, return_tensors="pt")
    [place] = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero().flatten().tolist()
    with torch.no_grad():
        logits = AutoModelForMaskedLM.from_pretrained(export)(**inputs).logits[0, place]
    assert best["token"] == int(logits.argmax())
    assert best["score"] == pytest.approx(float(logits.softmax(0).max()), abs=1e-5)


def test_a_mask_of_another_name_is_known_too(tmp_path):
    """Beside one of a usual name; and a run from before masks could be named has none on record."""
    special = ["<s>", "</s>", "<mask>", "<hidden>"]
    trained = BpeTokenizer(vocab_size=270, special_tokens=special, mask="<hidden>").train(iter(TEXTS))
    settings = ["tokenizer.mask='<hidden>'", "model.token_types=0", "model.norm_eps=1e-12"]
    run = make_run(tmp_path / "run", *settings, model="encoder", tokenizer=trained, vocab_size=VOCAB_SIZE)
    assert json_of(run / "run.json")["mask"] == 3
    for mask, name in ((3, "<hidden>"), (2, "<mask>")):
        out = tmp_path / name[1:-1]
        assert main([str(run), f"--out={out}"]) == 0
        theirs = AutoTokenizer.from_pretrained(out)
        assert theirs.mask_token == name
        assert theirs.mask_token_id == json_of(out / "config.json")["mask_token_id"] == mask
        edit_json(run / "run.json", lambda record: record.pop("mask", None))


def test_what_tells_pairs_apart_goes_with_bert(tmp_path):
    settings = ["objective.sentences=nsp", "model.init_std=0.3"]
    run = make_run(tmp_path / "run", *settings, model="encoder", tokenizer=word_pieces(), vocab_size=VOCAB_SIZE)
    assert main([str(run)]) == 0
    theirs, report = BertForPreTraining.from_pretrained(run / "export", output_loading_info=True)
    assert not any(report.values()) and theirs.config.architectures == ["BertForPreTraining"]
    inputs = AutoTokenizer.from_pretrained(run / "export")("the time of", "the world", return_tensors="pt")
    ours = load_run(run)
    with torch.no_grad():
        expected = theirs(**inputs).seq_relationship_logits
        tokens, segments = inputs["input_ids"][0], inputs["token_type_ids"][0]
        layout = Layout.of(torch.tensor([0, len(tokens)], dtype=torch.int32), len(tokens))
        hidden = ours.model(tokens, torch.arange(len(tokens)), layout, segments)
        found = ours.sentence_classifier(ours.pooler(hidden[:1]))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_what_a_family_has_no_place_for_is_left_out_and_said(tmp_path, caplog):
    settings = ["objective.sentences=nsp", "model.position_offset=2"]
    tokenizer = ROBERTA.train(iter(TEXTS))
    run = make_run(tmp_path / "run", *settings, model="encoder", tokenizer=tokenizer, vocab_size=VOCAB_SIZE)
    assert main([str(run)]) == 0
    said = "left out, as RobertaForMaskedLM has no place for them: pooler.dense.bias, pooler.dense.weight, sentence_"
    assert said in caplog.text
    assert json_of(run / "export" / "config.json")["architectures"] == ["RobertaForMaskedLM"]


def test_the_padding_token_of_roberta_must_be_where_its_positions_begin(tmp_path, capsys):
    settings = OURS["roberta"]
    run = make_run(tmp_path / "run", *settings, model="encoder", tokenizer=word_pieces(), vocab_size=VOCAB_SIZE)
    assert main([str(run)]) == 2
    assert "model.position_offset=2: RobertaForMaskedLM counts positions" in capsys.readouterr().err
    assert not (run / "export").exists()


def test_texts_are_framed_as_documents_were(run):
    """Whatever template the run's own tokenizer.json had, or had not."""
    theirs, ours = AutoTokenizer.from_pretrained(run / "export"), load_tokenizer(run / "tokenizer.json")
    prefix, suffix = json_of(run / "run.json")["document_frame"]
    assert prefix and suffix
    first, second = (ours.encode(text, add_special_tokens=False).ids for text in ("the world", "a year"))
    assert theirs("the world").input_ids == [*prefix, *first, *suffix]
    pair = theirs("the world", "a year")
    assert pair.input_ids == [*prefix, *first, *suffix, *second, *suffix]
    if "token_type_ids" in pair:
        assert pair.token_type_ids == [0] * len([*prefix, *first, *suffix]) + [1] * len([*second, *suffix])


def test_a_mask_takes_the_space_before_it(run):
    """In training it stood for a word with its space."""
    theirs = AutoTokenizer.from_pretrained(run / "export")
    hidden, shown = (theirs(f"people and {word}").input_ids for word in (theirs.mask_token, "the"))
    at = hidden.index(theirs.mask_token_id)
    assert hidden[:at] == shown[:at]
