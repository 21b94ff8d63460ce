"""What a run says of its export when it starts is what its export says."""

import json

import pytest
from hugging_face_directories import write_released
from run_directories import GPT2_SETTINGS, TEXTS, json_of, make_run, word_pieces
from small_models import LLAMA

from pretrain.compose import compose, compose_run
from pretrain.export import main
from pretrain.hub.export_dir import warn_unless_exportable
from pretrain.models.decoder import DecoderConfig
from pretrain.run import pretrain
from pretrain.tokenizer.base import load_tokenizer
from pretrain.tokenizer.bpe import BpeTokenizer

SMALL = {"max_seq_len": 32, "width": 8, "layers": 1, "heads": 2}
ROBERTA = ["model.position_offset=2", "model.token_types=1"]
PADDED = BpeTokenizer(vocab_size=270, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])


@pytest.mark.parametrize(
    ("model", "settings", "tokenizer", "refusal"),
    [
        ("decoder", GPT2_SETTINGS, None, None),
        ("decoder", ["model.window=4", "model.kv_heads=2"], None, "model.window=4: is not supported by GPT2LMHead"),
        ("decoder", ["model.window=4", "model.kv_heads=2"], None, "; model.kv_heads=2: is not supported by GPT2LM"),
        ("encoder", ROBERTA, PADDED.train(iter(TEXTS)), None),
        ("encoder", ROBERTA, word_pieces(), "model.position_offset=2: RobertaForMaskedLM counts positions from the id"),
        ("encoder", ["model.tie_embeddings=false"], word_pieces(), "model.tie_embeddings=false: is not supported"),
    ],
)
def test_a_run_warns_of_what_its_export_refuses(tmp_path, caplog, capsys, model, settings, tokenizer, refusal):
    run = make_run(tmp_path / "run", *settings, model=model, tokenizer=tokenizer)
    caplog.clear()
    loaded = compose_run(run).model, json_of(run / "run.json"), load_tokenizer(run / "tokenizer.json")
    warn_unless_exportable("pretrain", *loaded)
    assert main([str(run)]) == (2 if refusal else 0)
    expected = [f"python -m pretrain.export will refuse this run: {capsys.readouterr().err.strip()}"] if refusal else []
    assert [record.getMessage() for record in caplog.records] == expected
    assert not refusal or refusal in expected[0]


def test_all_that_ends_the_texts_of_a_run_is_in_both_files(tmp_path):
    run = make_run(tmp_path / "run", *GPT2_SETTINGS)
    record = json_of(run / "run.json")
    del record["sha256"]
    (run / "run.json").write_text(json.dumps(record | {"generation": {"eos_token_id": [3, 9]}}))
    assert main([str(run)]) == 0
    own = next(iter(record["document_frame"][1] or record["document_frame"][0]))
    for name in ("config.json", "generation_config.json"):
        assert json_of(run / "export" / name)["eos_token_id"] == [own, 3, 9]


@pytest.mark.slow
def test_what_ends_the_texts_of_a_released_model_ends_those_of_a_run_that_goes_on(tmp_path):
    tokenizer = write_released(tmp_path / "released", DecoderConfig(**LLAMA, **SMALL), TEXTS)
    ends = [tokenizer.token_to_id(token) for token in ("</s>", "<unk>")]
    (tmp_path / "released" / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    (tmp_path / "text.txt").write_text("\n".join(TEXTS * 9))
    settings = [
        *("data=text", f"data.sources.text.paths=[{tmp_path / 'text.txt'}]", f"data.prepare.root={tmp_path}"),
        *("data.seq_len=16", "data.prepare.held_out=0", f"init_from={tmp_path / 'released'}", f"run.root={tmp_path}"),
        *("train.batch_size=1", "train.micro_batch_size=1", "tracker.progress=false"),
    ]
    for steps in (1, 2):  # a run that is resumed does not read its source again
        run = pretrain(compose([*settings, f"train.steps={steps}"]))
    assert main([str(run)]) == 0
    assert json_of(run / "export" / "generation_config.json")["eos_token_id"] == ends
