"""A run may begin with the weights of another or of a Hugging Face directory; what does not fit is refused."""

import pytest
import torch
from run_directories import GPT2_SETTINGS, LLAMA_SETTINGS, TEXTS, load_run, make_run, settings_of, word_pieces
from toys import ALONE, take_step, toy_strategy

from pretrain.checkpoint.base import WEIGHT
from pretrain.checkpoint.fragments import FragmentReader
from pretrain.checkpoint.load import load_manifest, newest_step
from pretrain.checkpoint.save import CheckpointConfig, Checkpoints
from pretrain.errors import CheckpointError, ConfigError
from pretrain.export import main
from pretrain.init_from import InitialWeights, SourceWeights, weights_from
from pretrain.tokenizer.bpe import BpeTokenizer
from pretrain.trained.source import open_source


def begin(source, module, settings, tokenizer=None):
    """Return what a run of this module, these settings and this tokenizer (else the source's) would begin with."""
    tokenizer = tokenizer or source / "tokenizer.json"
    return weights_from(open_source(str(source)), InitialWeights(module, 1), settings, ALONE, tokenizer=tokenizer)


def test_moments_stay_behind(tmp_path):
    module, strategy = toy_strategy()
    take_step(module, strategy, seed=1)
    Checkpoints(tmp_path, CheckpointConfig(), ALONE).save(1, strategy, {"tokens": 11}, required=True)
    step = newest_step(tmp_path, ALONE)
    reader = FragmentReader(step, load_manifest(step)["tensors"])
    assert len(reader.kinds("model.embedding.weight")) > 1

    _, begun = toy_strategy()
    begun.load_fragments(SourceWeights(reader, reader.weight_shapes(), reader))
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in begun.module.state_dict().items())
    assert not begun.optimizer.state


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run", *LLAMA_SETTINGS, "model.kv_heads=2", "model.tie_embeddings=false")


def test_a_run_and_its_export_are_the_same_weights(run, caplog):
    assert main([str(run)]) == 0
    module = load_run(run)
    for source in (run, run / "export"):
        read = begin(source, module, settings_of(run))
        for name, tensor in module.named_parameters():
            assert read.kinds(name) == {WEIGHT: tensor.shape}
            assert torch.equal(read(name, WEIGHT, 3, 5), tensor.detach().reshape(-1)[3:8])
    assert not [record for record in caplog.records if record.levelname == "WARNING"], "nothing differs"


@pytest.mark.parametrize("export", [False, True])
@pytest.mark.parametrize(
    ("settings", "refusal"),
    [
        (["model.layers=3"], "missing model.blocks.2.mlp.up.weight (192, 24)"),
        (["model.width=48"], "model.blocks.0.attention.out.weight is (24, 24), the model's (48, 48)"),
        (["model.tie_embeddings=true"], "extra model.head.weight (280, 24)"),
        (["model.heads=2", "model.kv_heads=1"], "model.heads is 2, that of"),  # the same shapes, another network
        (["model.mup_base_width=12"], "model.mup_base_width is 12, that of"),
        (["model.positions=sinusoidal"], "model.positions is sinusoidal, that of"),
    ],
)
def test_weights_that_do_not_fit_are_refused(run, tmp_path, export, settings, refusal):
    if export:
        main([str(run)])
    like = [*LLAMA_SETTINGS, "model.kv_heads=2", "model.tie_embeddings=false"]
    other = make_run(tmp_path / "other", *like, *settings)
    with pytest.raises(CheckpointError) as refused:
        source = run / "export" if export else run
        begin(source, load_run(other), settings_of(other))
    assert refusal in str(refused.value)
    assert str(run) in str(refused.value)


def test_gelus_are_told_apart(tmp_path):
    run = make_run(tmp_path / "run", *GPT2_SETTINGS)
    settings = settings_of(run) | {"model.activation": "gelu"}
    with pytest.raises(CheckpointError, match=r"model.activation is gelu, that of .* gelu_tanh"):
        begin(run, load_run(run), settings)


def test_terms_of_scores_are_told_apart(tmp_path):
    """With shared projections the same weights serve any of them."""
    run = make_run(tmp_path / "run", "model.positions=disentangled", model="encoder", tokenizer=word_pieces())
    settings = settings_of(run) | {"model.position_to_content": False}
    with pytest.raises(CheckpointError, match=r"model.position_to_content is False, that of .* True"):
        begin(run, load_run(run), settings)


@pytest.mark.parametrize("export", [False, True])
def test_what_may_change_is_said(run, caplog, export):
    main([str(run)])
    changed = {"model.rope_theta": 5e5, "model.window": 9, "tokenizer": "another"}
    settings = settings_of(run) | changed
    begin(run / "export" if export else run, load_run(run), settings)
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert [line.split(", that of")[0] for line in said] == [f"init_from: {key} is {changed[key]}" for key in changed]


def test_what_changes_of_the_rotary_scaling_is_said(tmp_path, caplog):
    scaling = [f"model.rope_scaling.{each}" for each in ("kind=llama3", "factor=8", "original_length=16")]
    run = make_run(tmp_path / "run", *LLAMA_SETTINGS, *scaling)
    theirs = settings_of(run)
    same = {"fast_turns": 4.0, "truncate": False}  # the default of the kind, and what it does not use
    begin(run, load_run(run), theirs | {"model.rope_scaling": theirs["model.rope_scaling"] | same})
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    begin(run, load_run(run), {key: value for key, value in theirs.items() if key != "model.rope_scaling"})
    assert f"init_from: model.rope_scaling.kind is none, that of {run} llama3" in caplog.messages


def test_a_step_from_before_a_setting_has_its_default(tmp_path, caplog):
    later = ["model.rope_scaling", "model.qk_norm", "model.rotary_share", "model.score_width"]
    settings = {}

    def forgets(initial, known):
        settings.update(known)
        for key in later:
            del known[key]
        return initial

    run = make_run(tmp_path / "run", *LLAMA_SETTINGS, weights=forgets)
    assert settings_of(run).keys().isdisjoint(later)
    begin(run, load_run(run), settings)
    assert not [record for record in caplog.records if record.levelname == "WARNING"]
    with pytest.raises(CheckpointError, match=r"model.rotary_share is 0.5, that of .* 1.0"):
        begin(run, load_run(run), settings | {"model.rotary_share": 0.5})


def test_ids_of_other_tokens_are_refused(run, tmp_path):
    """The same number of ids and the same shapes, but the tokens are those of another text."""
    backwards = BpeTokenizer(vocab_size=280).train(text[::-1] for text in TEXTS)
    other = make_run(tmp_path / "other", tokenizer=backwards)
    changed = settings_of(run) | {"tokenizer": "another"}
    with pytest.raises(CheckpointError, match=r"of 280 ids stand for other tokens than there.* tokenizer.path=.*run"):
        begin(run, load_run(run), changed, other / "tokenizer.json")


def test_what_is_neither_is_refused(run, tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere: no such directory"):
        begin(tmp_path / "nowhere", load_run(run), settings_of(run))
