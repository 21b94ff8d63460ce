"""An experiment written from a source composes to the source's network and tokenizer, setting by setting."""

from dataclasses import asdict
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
from pretrain.export import main as export
from pretrain.hub.weights import HuggingFaceWeights
from pretrain.models.decoder import DecoderConfig
from pretrain.models.encoder import EncoderConfig
from pretrain.models.layers import Activation
from pretrain.preset import main
from pretrain.tokenizer.base import describe, load_tokenizer
from pretrain.train.run_dir import read_record

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


def written(source, out, *overrides):
    """Return what the experiment written from a source, named `further`, composes to."""
    assert main([str(source), "--out", str(out), "--name", "further"]) == 0
    return compose(["experiment=further", f"hydra.searchpath=[file://{out.absolute()}]", *overrides])


@pytest.mark.parametrize("name", NETWORKS)
def test_what_transformers_writes_is_gone_on_from(tmp_path, name):
    tokenizer = write_released(tmp_path / "model", NETWORKS[name], TEXTS)
    cfg = written(tmp_path / "model", tmp_path / "own")
    theirs = HuggingFaceWeights(tmp_path / "model").config
    assert type(cfg.model) is type(theirs) and asdict(cfg.model) == asdict(theirs)
    assert cfg.init_from == str(tmp_path / "model") and cfg.run.name == "further"
    assert (
        cfg.objective.kind.generates == theirs.kind.generates
        and (cfg.data.packing is Packing.windows) != theirs.kind.generates
    )
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
    cfg = written(tmp_path / "model", tmp_path / "own", "data.seq_len=20")
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
def test_any_run_is_gone_on_from(tmp_path, model):
    @settings(max_examples=8, deadline=None)
    @given(st.sampled_from(BASES[model]), st.fixed_dictionaries(SHARED))
    def check(base, drawn):
        folder = tmp_path / str(next(number))
        changed = [f"model.{key}={'null' if value is None else value}" for key, value in drawn.items()]
        tokenizer = word_pieces() if model == "encoder" else None
        run = make_run(folder / "run", *base, *changed, model=model, tokenizer=tokenizer)
        cfg, theirs = written(run, folder / "own"), compose_run(run)
        assert type(cfg.model) is type(theirs.model) and asdict(cfg.model) == asdict(theirs.model)
        assert cfg.init_from == str(run) and cfg.objective.kind is theirs.objective.kind

    number = count()
    check()


def test_tokens_that_a_run_named_are_named_again(tmp_path):
    """Those of its tokenizer.json are others, which it would take by itself."""
    named = ["tokenizer.prefix=['[SEP]','[UNK]']", "tokenizer.suffix=[]", "tokenizer.mask='<hide>'"]
    run = make_run(tmp_path / "run", *named, model="encoder", tokenizer=word_pieces("<hide>"))
    cfg, record = written(run, tmp_path / "own"), read_record(run)
    facts = describe(Path(cfg.tokenizer.path), cfg.tokenizer)
    assert [facts.prefix, facts.suffix] == record["document_frame"] and facts.mask == record["mask"] is not None
    assert cfg.tokenizer.roles() == (["[SEP]", "[UNK]"], [], "<hide>")


def test_a_tokenizer_that_tells_no_frame_leaves_it_to_the_run(tmp_path):
    run = make_run(tmp_path / "run", *GPT2_SETTINGS)
    assert export([str(run)]) == 0
    file = run / "export" / "tokenizer.json"
    file.write_text(file.read_text().replace("<|endoftext|>", "<|ends|>"))
    cfg = written(run / "export", tmp_path / "own")
    assert (cfg.tokenizer.prefix, cfg.tokenizer.suffix) == (None, None)
    assert load_tokenizer(Path(cfg.tokenizer.path)).token_to_id("<|ends|>") is not None


def test_names_and_places(tmp_path, monkeypatch, capsys):
    """A name comes from the source, is not the source's own, and paths lead there from any directory."""
    monkeypatch.chdir(tmp_path)
    run = make_run(tmp_path / "runs" / "small-1.5", *GPT2_SETTINGS)
    assert main(["runs/small-1.5", "--out", "own"]) == 0
    file = tmp_path / "own" / "experiment" / "from-small-1.5.yaml"
    assert Path(capsys.readouterr().out.strip()).absolute() == file
    text = file.read_text()
    assert "python -m pretrain --config-dir own experiment=from-small-1.5 data=text" in text
    assert "280 rows" in text and "config.yaml" in text
    monkeypatch.chdir("/")
    cfg = compose(["experiment=from-small-1.5", f"hydra.searchpath=[file://{tmp_path}/own]"])
    assert (cfg.run.name, cfg.init_from, cfg.tokenizer.path) == (
        "from-small-1.5",
        str(run),
        str(run / "tokenizer.json"),
    )


def test_a_name_on_the_hub_is_pinned_to_its_commit(tmp_path, monkeypatch):
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "hub" / "models--org--name"
    write_released(repository / "snapshots" / commit, NETWORKS["roberta"], TEXTS)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert main(["org/name", "--out", str(tmp_path / "own")]) == 0
    cfg = compose(["experiment=from-name", f"hydra.searchpath=[file://{tmp_path}/own]"])
    assert cfg.init_from == f"org/name@{commit}"
    assert cfg.model == HuggingFaceWeights(repository / "snapshots" / commit).config
    assert Path(cfg.tokenizer.path).samefile(repository / "snapshots" / commit / "tokenizer.json")


@pytest.mark.parametrize(
    ("arguments", "code", "problem"),
    [
        (["nowhere"], 2, "init_from=nowhere: no such directory"),
        (["empty"], 4, "init_from=empty: no step is saved there"),
        (["run", "--name", "run"], 2, "--name=run: a run of that name would resume run; choose another"),
        (["run", "--name", "demo"], 2, "--name=demo: experiment=demo would find "),
        (["run", "--name", "my run"], 2, "--name=my run: letters, digits"),
        (["run", "--name", "there"], 2, "there.yaml: exists; choose another --name, or delete it"),
        (["run", "--out", "run/run.json"], 2, "--out=run/run.json: cannot be written"),
    ],
)
def test_refusals_say_what_to_do(tmp_path, monkeypatch, capsys, arguments, code, problem):
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "run", *GPT2_SETTINGS)
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    there = tmp_path / "own" / "experiment" / "there.yaml"
    there.parent.mkdir(parents=True)
    there.write_text("precious")
    assert main(["--out", "own", *arguments]) == code
    assert problem in capsys.readouterr().err
    assert there.read_text() == "precious" and list(there.parent.iterdir()) == [there]
