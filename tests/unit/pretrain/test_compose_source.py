"""With init_from= alone, a configuration has the source's network and tokenizer, setting by setting."""

from dataclasses import asdict, replace
from itertools import count
from pathlib import Path

import pytest
from hugging_face_directories import write_released
from hypothesis import given, settings
from hypothesis import strategies as st
from run_directories import GPT2_SETTINGS, LLAMA_SETTINGS, MODERNBERT_SETTINGS, TEXTS, make_run, word_pieces
from small_models import DISTILBERT, LLAMA, MODERNBERT, ROBERTA

from pretrain.compose import compose, compose_run
from pretrain.data.packing import Packing
from pretrain.errors import ConfigError
from pretrain.export import main as export
from pretrain.hub.weights import HuggingFaceWeights
from pretrain.models.decoder import DecoderConfig
from pretrain.models.encoder import EncoderConfig
from pretrain.models.layers import Activation
from pretrain.tokenizer.base import describe, load_tokenizer
from pretrain.tokenizer.wordpiece import WordPieceTokenizer
from pretrain.train.run_dir.record import read_record

SMALL = {"width": 24, "layers": 2, "heads": 4, "max_seq_len": 32}
NETWORKS = {
    "gpt2": DecoderConfig(**SMALL),
    "gpt2, long": DecoderConfig(**SMALL | {"max_seq_len": 2000}, tie_embeddings=False, activation=Activation.gelu),
    "llama": DecoderConfig(**SMALL, **LLAMA, kv_heads=2, rope_theta=5e5, norm_eps=1e-6),
    "mistral": DecoderConfig(**SMALL | {"max_seq_len": 131_072}, **LLAMA, window=3, tie_embeddings=False),
    "bert": EncoderConfig(**SMALL, mlp_width=40, activation=Activation.gelu_tanh),
    "roberta": EncoderConfig(**SMALL, **ROBERTA),
    "distilbert": EncoderConfig(**SMALL, **DISTILBERT),
    "modernbert": EncoderConfig(**SMALL, **MODERNBERT, window=9, global_every=2, local_rope_theta=2e4),
}


def composed(source, *overrides):
    """Return the configuration of a run that starts from a source and chooses neither network nor tokenizer."""
    return compose([f"init_from={source}", *overrides])


@pytest.mark.parametrize("name", NETWORKS)
def test_what_transformers_writes_is_taken_over(tmp_path, name):
    tokenizer = write_released(tmp_path / "model", NETWORKS[name], TEXTS)
    cfg = composed(tmp_path / "model")
    theirs = HuggingFaceWeights(tmp_path / "model").config
    assert type(cfg.model) is type(theirs) and asdict(cfg.model) == asdict(theirs)
    generates = theirs.kind.generates
    assert cfg.objective.kind.generates == generates and (cfg.data.packing is Packing.windows) != generates
    assert cfg.data.seq_len == min(theirs.max_seq_len, 1024)
    cfg.check_tokenizer()
    prefix, suffix, mask = cfg.tokenizer.roles()
    if not theirs.kind.generates:
        framed = [prefix[0], *tokenizer.encode("time", add_special_tokens=False).tokens, suffix[0]]
        assert tokenizer.encode("time").tokens == framed
        assert mask in ("[MASK]", "<mask>")
    facts = describe(Path(cfg.tokenizer.path), cfg.tokenizer)
    assert facts.vocab_size == tokenizer.get_vocab_size()


def test_sequences_may_be_shorter_than_the_source_knows(tmp_path):
    write_released(tmp_path / "model", NETWORKS["bert"], TEXTS)
    cfg = composed(tmp_path / "model", "data.seq_len=20")
    assert (cfg.data.seq_len, cfg.model.max_seq_len) == (20, 32)


SHARED = {
    "layers": st.integers(1, 3),
    "mlp_width": st.none() | st.integers(1, 50),
    "norm_eps": st.sampled_from([1e-12, 1e-5, 0.1]),
    "rope_theta": st.floats(1.0, 1e6),
    "tie_embeddings": st.booleans(),
    "window": st.integers(1, 20),
    "global_every": st.none() | st.integers(1, 4),
    "dropout": st.sampled_from([0.0, 0.1]),
    "init": st.sampled_from(["gpt2", "olmo2", "bert", "modernbert"]),
    "init_std": st.floats(1e-4, 1.0),
}
BASES = {
    "decoder": [GPT2_SETTINGS, [*LLAMA_SETTINGS, "model.kv_heads=2"], ["model.positions=sinusoidal"]],
    "encoder": [MODERNBERT_SETTINGS, ["model.token_types=3"], ["model.position_offset=5"]],
}


@pytest.mark.parametrize("model", BASES)
def test_the_network_of_any_run_is_taken_over(tmp_path, model):
    @settings(max_examples=5)
    @given(st.sampled_from(BASES[model]), st.fixed_dictionaries(SHARED))
    def check(base, drawn):
        folder = tmp_path / str(next(number))
        changed = [f"model.{key}={'null' if value is None else value}" for key, value in drawn.items()]
        tokenizer = word_pieces() if model == "encoder" else None
        run = make_run(folder / "run", *base, *changed, model=model, tokenizer=tokenizer)
        cfg, theirs = composed(run), compose_run(run)
        assert type(cfg.model) is type(theirs.model) and asdict(cfg.model) == asdict(theirs.model)
        assert cfg.objective.kind is theirs.objective.kind

    number = count()
    check()


def test_tokens_that_a_run_named_are_named_again(tmp_path):
    """Those of its tokenizer.json are others, which it would take by itself."""
    named = ["tokenizer.prefix=['[SEP]','[UNK]']", "tokenizer.suffix=[]", "tokenizer.mask='<hide>'"]
    run = make_run(tmp_path / "run", *named, model="encoder", tokenizer=word_pieces("<hide>"))
    cfg, record = composed(run), read_record(run)
    facts = describe(Path(cfg.tokenizer.path), cfg.tokenizer)
    assert [facts.prefix, facts.suffix] == record["document_frame"] and facts.mask == record["mask"] is not None
    assert cfg.tokenizer.roles() == (["[SEP]", "[UNK]"], [], "<hide>")


def test_a_tokenizer_that_tells_no_frame_leaves_it_to_the_run(tmp_path):
    run = make_run(tmp_path / "run", *GPT2_SETTINGS)
    assert export([str(run)]) == 0
    file = run / "export" / "tokenizer.json"
    file.write_text(file.read_text().replace("<|endoftext|>", "<|ends|>"))
    cfg = composed(run / "export")
    assert (cfg.tokenizer.prefix, cfg.tokenizer.suffix) == (None, None)
    assert load_tokenizer(Path(cfg.tokenizer.path)).token_to_id("<|ends|>") is not None


def test_given_settings_stay_given(tmp_path, caplog):
    run = make_run(tmp_path / "run", *GPT2_SETTINGS, "model.dropout=0.1", "model.window=5")
    own = tmp_path / "own" / "experiment"
    own.mkdir(parents=True)
    (own / "mine.yaml").write_text("# @package _global_\nmodel: {window: 3}\n")
    cfg = composed(run, "experiment=mine", f"--config-dir={own.parent}", "model.dropout=0.0")
    theirs = compose_run(run).model
    assert cfg.model == replace(theirs, window=3, dropout=0.0) and theirs.dropout == 0.1 and theirs.window == 5
    assert isinstance(composed(run, "tokenizer=wordpiece").tokenizer, WordPieceTokenizer)
    assert composed(run, "tokenizer.vocab_size=777").tokenizer == compose(["tokenizer.vocab_size=777"]).tokenizer
    assert composed(run, "model=demo").model == compose(["model=demo"]).model


def test_what_was_taken_over_is_said(tmp_path, capsys):
    run = make_run(tmp_path / "run", *GPT2_SETTINGS)
    capsys.readouterr()
    composed(run, "objective=causal_lm")
    assert capsys.readouterr().err.splitlines() == [
        f"model is that of {run}, since model= is not given",
        f"tokenizer is that of {run}, since tokenizer= is not given",
        f"data.seq_len=32, which suits the network of {run}",
        "optim.lr=6e-05, a tenth of the 0.0006 for random weights, and schedule.warmup_ratio=0.01: "
        f"a gentle start from {run}, unless given",
    ]


@pytest.mark.parametrize(
    ("words", "start"),
    [
        ([], (6e-5, 0, 0.01)),
        (["model=demo", "tokenizer=bpe", "objective=causal_lm"], (6e-5, 0, 0.01)),
        (["experiment=llama_1b"], (3e-5, 2000, 0.0)),
        (["optim=muon", "schedule=wsd"], (6e-5, 0, 0.01)),
        (["optim.lr=6e-4"], (6e-4, 0, 0.01)),
        (["optim.lr=1e-5", "schedule.warmup_steps=0"], (1e-5, 0, 0.0)),
        (["schedule.warmup_ratio=0.2"], (6e-5, 0, 0.2)),
        (["experiment=mine.yaml"], (6e-4, 3, 0.0)),
        (["optim=slow.yaml", "schedule={warmup_steps: 0}"], (5e-3, 0, 0.0)),
        (["optim={lr: 6e-4}"], (6e-4, 0, 0.01)),
    ],
)
def test_a_trained_source_gets_a_gentle_start_unless_the_user_gives_another(tmp_path, monkeypatch, words, start):
    run = make_run(tmp_path / "run", *GPT2_SETTINGS)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("optim: {lr: 6.0e-4}\nschedule: {warmup_steps: 3}\n")
    (tmp_path / "slow.yaml").write_text("defaults: [adamw, _self_]\nlr: 0.005\n")
    cfg = composed(run, *words, "data.seq_len=32", "model.max_seq_len=32")
    assert (cfg.optim.lr, cfg.schedule.warmup_steps, cfg.schedule.warmup_ratio) == start


def test_a_setting_that_the_network_lacks_is_refused_by_name(tmp_path):
    write_released(tmp_path / "model", NETWORKS["bert"], TEXTS)
    with pytest.raises(ConfigError, match=r"^model.kv_heads: model is that of init_from=.*; choose model= as well$"):
        composed(tmp_path / "model", "+model.kv_heads=2")


def test_a_name_on_the_hub_needs_no_weights(tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--org--name"
    files = repository / "snapshots" / commit
    write_released(files, NETWORKS["roberta"], TEXTS)
    network = HuggingFaceWeights(files).config
    (files / "model.safetensors").unlink()
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    cfg = composed("org/name")
    assert cfg.model == network
    assert Path(cfg.tokenizer.path).samefile(files / "tokenizer.json")


def test_a_run_that_resumes_takes_its_own_again(tmp_path):
    """Also when its source is gone."""
    run = make_run(tmp_path / "run", *GPT2_SETTINGS, "tokenizer=file", "tokenizer.path=gone/tokenizer.json")
    cfg = composed("gone", f"run.root={tmp_path}", "run.name=run")
    theirs = compose_run(run)
    assert (cfg.model, cfg.objective) == (theirs.model, theirs.objective)
    assert cfg.tokenizer == replace(theirs.tokenizer, path=str(run / "tokenizer.json"))


@pytest.mark.parametrize(
    ("source", "kind", "problem"),
    [("nowhere", ConfigError, "init_from=nowhere: no such directory"), ("foreign", ConfigError, "model_type=bloom")],
)
def test_refusals_say_what_to_do(tmp_path, monkeypatch, source, kind, problem):
    monkeypatch.chdir(tmp_path)
    write_released(tmp_path / "foreign", NETWORKS["gpt2"], TEXTS)
    (tmp_path / "foreign" / "config.json").write_text('{"model_type": "bloom"}')
    with pytest.raises(kind, match=problem):
        composed(source)
