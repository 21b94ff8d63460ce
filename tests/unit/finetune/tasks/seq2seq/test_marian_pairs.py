"""A release with a tokenizer for each side is fine-tuned, used and exported with both, as transformers uses it."""

import json
import shutil

import pytest
import torch
from finetuned_runs import write
from marian_tokenizers import SOURCES, TARGETS, write_marian_tokenizers
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, MarianConfig, MarianMTModel, MarianTokenizer

import finetune
from finetune.config import FINETUNE
from pretrain.compose import PRETRAIN, compose
from pretrain.errors import ConfigError, DataError
from pretrain.import_bin import main as import_files
from pretrain.tokenizer.base import load_tokenizer
from pretrain.trained.model import load

KEPT = {"source.spm", "target.spm", "vocab.json", "target_tokenizer.json", "tokenizer.json"}
PAIRS = [{"source": source, "target": target} for source, target in zip(SOURCES, TARGETS, strict=True)]


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A directory as transformers writes it, with the tokenizers that `import_bin` made of its models."""
    directory = tmp_path_factory.mktemp("released") / "opus"
    directory.mkdir()
    ids = write_marian_tokenizers(directory)
    sizes = {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in SIZES.items()}
    special = {"pad_token_id": ids["<pad>"], "decoder_start_token_id": ids["<pad>"], "eos_token_id": 0}
    torch.manual_seed(1)
    model = MarianMTModel(MarianConfig(vocab_size=len(ids), d_model=16, init_std=0.4, **sizes, **special))
    model.final_logits_bias[0, ids["<pad>"]] = 30.0  # what is likeliest everywhere, and must not be written
    model.generation_config.update(bad_words_ids=[[ids["<pad>"]]], forced_eos_token_id=0, max_length=None)
    model.save_pretrained(directory)
    assert import_files([str(directory)]) == 0
    return directory


SIZES = {"layers": 1, "attention_heads": 2, "ffn_dim": 24}


@pytest.fixture(scope="module")
def tuned(release, tmp_path_factory):
    """A run of one step, which was started once more when the release was gone."""
    folder = tmp_path_factory.mktemp("tuned")
    source = shutil.copytree(release, folder / "release")
    words = settings(folder, source)
    run = finetune.finetune(compose(words, root=FINETUNE))
    before = {name: (run / name).read_bytes() for name in KEPT}
    shutil.rmtree(source)
    finetune.finetune(compose(words, root=FINETUNE))
    assert {name: (run / name).read_bytes() for name in KEPT} == before
    return run


def settings(folder, source):
    data = write(folder / "data.jsonl", PAIRS)
    return [
        *("task=seq2seq", f"init_from={source}", f"task.train={data}", f"task.validation={data}"),
        *(f"run.root={folder}", "run.name=run", "task.max_source_tokens=60", "task.max_target_tokens=30"),
        *("train.batch_size=4", "tracker.progress=false", "train.epochs=1", "optim.lr=1e-4", "task.metrics=[chrf]"),
    ]


def test_a_run_learns_and_measures_what_transformers_does(release, tuned):
    opened, theirs = finetune.load(tuned), MarianTokenizer.from_pretrained(release)
    encoded = opened.encode(PAIRS, labelled=True).examples
    labels = theirs(SOURCES, text_target=TARGETS)
    rows = zip(encoded.source.offsets, encoded.source.offsets[1:], strict=False)
    assert [encoded.source.tokens[low:high].tolist() for low, high in rows] == labels["input_ids"]
    assert encoded.targets.tolist() == [token for ids in labels["labels"] for token in ids]
    assert opened.evaluate(PAIRS)["chrf"] >= 0


def test_an_export_has_the_ids_of_both_sides_and_writes_the_same_texts(release, tuned, tmp_path):
    exported = finetune.load(tuned).export(tmp_path / "export")
    assert {path.name for path in exported.iterdir()} >= KEPT
    tokenizer, model = AutoTokenizer.from_pretrained(exported), AutoModelForSeq2SeqLM.from_pretrained(exported).eval()
    assert type(tokenizer) is MarianTokenizer
    theirs, again = MarianTokenizer.from_pretrained(release), load(exported)
    assert tokenizer(SOURCES, text_target=TARGETS) == theirs(SOURCES, text_target=TARGETS)
    for beams in (1, 3):
        how = {"max_new_tokens": 30, "do_sample": False, "num_beams": beams}
        read = [tokenizer(text, return_tensors="pt") for text in SOURCES]
        texts = [tokenizer.decode(model.generate(**each, **how)[0], skip_special_tokens=True) for each in read]
        opened = finetune.load(tuned, settings=[f"task.generate.beams={beams}"])
        assert [answer["prediction"] for answer in opened.predict(SOURCES)] == texts
        assert again.generate(SOURCES, beams=beams, max_tokens=30) == [[text] for text in texts]
    batch = again.encode(SOURCES, TARGETS)
    assert batch.targets.tolist() == [token for ids in theirs(text_target=TARGETS)["input_ids"] for token in ids]


def test_two_tokenizers_are_refused_where_there_is_one_text(release, tmp_path):
    rule = "cuts sources by tokenizer.json and targets by target_tokenizer.json, so that no single text suits it"
    with pytest.raises(ConfigError, match=rule):
        compose([f"init_from={release}", f"run.root={tmp_path}"], root=PRETRAIN)
    (tmp_path / "text.txt").write_text("the time of the year\n" * 20)
    with pytest.raises(ConfigError, match=rule):
        load(release).evaluate(tmp_path / "text.txt")


def test_a_tokenizer_of_targets_that_is_another_or_gone_is_refused(release, tuned, tmp_path):
    run = shutil.copytree(tuned, tmp_path / "run")
    file = run / "target_tokenizer.json"
    file.write_bytes((run / "tokenizer.json").read_bytes())
    with pytest.raises(DataError, match=r"target_tokenizer\.json: another tokenizer"):
        finetune.load(run)
    file.unlink()
    with pytest.raises(DataError, match=r"target_tokenizer\.json: not a readable tokenizer"):
        finetune.load(run)
    other = shutil.copytree(release, tmp_path / "other")
    tokenizer = load_tokenizer(other / "target_tokenizer.json")
    tokenizer.add_tokens(["more"])
    tokenizer.save(str(other / "target_tokenizer.json"))
    with pytest.raises(ConfigError, match=r"target_tokenizer\.json: its tokens have other ids than in tokenizer\.json"):
        finetune.finetune(compose(settings(other, other), root=FINETUNE))


def test_the_record_of_a_run_says_the_rules_of_the_release(release, tuned):
    pad = json.loads((release / "config.json").read_text())["pad_token_id"]
    said = json.loads((tuned / "run.json").read_text())["generation"]
    assert said == {
        **{"forced_bos_token_id": None, "forced_eos_token_id": 0, "bad_words_ids": [[pad]]},
        "eos_token_id": [0],
    }
