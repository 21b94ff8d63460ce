"""The checks that no slice of the configuration can make alone."""

import json

import pytest
from vocabularies import BERT, byte_level, word_piece

from pretrain.compose import compose
from pretrain.errors import ConfigError
from pretrain.objectives.span_corruption import Denoiser
from pretrain.prepare import hand_over
from pretrain.run import pretrain

FLASH = ["attention=flash", "precision=bf16"]


@pytest.mark.parametrize(
    ("overrides", "refusal"),
    [
        (
            ["optim=muon", "strategy=zero3", "strategy.offload_optimizer=nvme", "strategy.nvme_path=/disk"],
            r"optim=muon: keeps a momentum, which DeepSpeed cannot swap to NVMe; use optim=adamw, or offload to cpu",
        ),
        (["model.max_seq_len=32", "data.seq_len=64"], r"model\.max_seq_len=32: must be at least 64, which is data"),
        (["attention=flash"], r"precision=fp32: attention=flash computes in half precision"),
        (
            ["model=encoder_decoder", "model.positions=relative", "objective=span_corruption", *FLASH],
            r"model\.positions=relative: attention=flash adds no bias to scores; use attention=auto, flex or sdpa",
        ),
        (
            ["model=encoder", "model.positions=disentangled", "objective=masked_lm", *FLASH],
            r"model\.positions=disentangled: attention=flash adds no bias to scores; use attention=auto, flex or sdpa",
        ),
        (["attention=flex", "model.attention_dropout=0.1"], r"model\.attention_dropout=0\.1: .* no dropout of weights"),
        (["eval.choices=[a.jsonl]", "eval.every=0"], r"eval\.every=0: eval\.choices needs evaluations; set it"),
        (
            ["model=encoder", "objective=masked_lm", "eval.choices=[a.jsonl]"],
            r"eval\.choices=\['a\.jsonl'\]: model=encoder is bidirectional, and decoders alone are measured by them",
        ),
        (
            ["model=encoder_decoder", "objective=span_corruption", "eval.choices=[a.jsonl]"],
            r"eval\.choices=\['a\.jsonl'\]: model=encoder_decoder is encoder_decoder, and decoders alone are measured",
        ),
        (
            ["model=encoder_decoder", "objective=span_corruption", "eval.samples=[a]"],
            r"eval\.samples=\['a'\]: model=encoder_decoder is encoder_decoder and continues no text; leave them out",
        ),
        (
            ["tracker=wandb", "tracker.wandb_mode=offline", f"run.name={'n' * 129}"],
            r"run\.name='n+': has 129 characters",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(overrides, refusal):
    with pytest.raises(ConfigError, match=refusal):
        compose(["experiment=demo", *overrides])


@pytest.mark.parametrize("overrides", [["optim=muon"], ["optim=muon", "strategy=zero0"], ["strategy=zero3"]])
def test_what_goes_together_is_accepted(overrides):
    cfg = compose(["experiment=demo", *overrides])
    kinds = {"optim=muon": "MuonConfig", "strategy=zero0": "ZeROConfig", "strategy=zero3": "ZeROConfig"}
    for override in overrides:
        assert type(getattr(cfg, override.partition("=")[0])).__name__ == kinds[override]


TEXTS = ["a text of a few words", "another one, with words"] * 20
NO_MASK, NO_FRAME = (
    r"objective=masked_lm: this tokenizer has no mask token",
    r"objective\.sentences=nsp: pairs need",
)


@pytest.fixture
def masked(tmp_path):
    """Return what composes a masked run of one text with a tokenizer."""
    (tmp_path / "text.txt").write_text("\n".join(TEXTS))

    def composed(*overrides: str):
        return compose(
            [
                *("experiment=demo", "model=encoder", "objective=masked_lm", "data=text"),
                *(f"data.sources.text.paths=[{tmp_path}/text.txt]", "data.sources.text.documents=line"),
                *(f"data.prepare.root={tmp_path}/corpora", f"run.root={tmp_path}/runs", *overrides),
            ]
        )

    return composed


T5 = ["tokenizer=t5_4k", "tokenizer.vocab_size=400", "model=encoder_decoder", "objective=span_corruption"]


@pytest.mark.parametrize(
    ("overrides", "refusal"),
    [
        (["tokenizer.sentinels=0"], r"tokenizer\.special_tokens=.* must hold <pad>, <s>, </s>, <unk>, <mask>"),
        (["tokenizer.sentinels=5"], r"this tokenizer has 5 sentinels .*data\.seq_len=256 needs 14"),
        (["tokenizer=bpe_4k", "tokenizer.sentinels=9"], r"tokenizer\.suffix: this tokenizer puts no token after"),
        (["data.isolate_documents=false"], r"data\.isolate_documents=false: objective=span_corruption rewrites each"),
        (["objective.mixture=[{mean_span:0.1}]"], r"objective\.mixture\[0\]\.mean_span=0\.1: must be at least 1"),
        (["objective=denoising"], r"objective=denoising: this tokenizer has no mask token"),
        (["model=demo"], r"objective=span_corruption: does not fit model=decoder, which is causal"),
        (
            ["objective=fill_in_the_middle", "model=demo"],
            r"objective\.prefix_mark=<\|fim_prefix\|>: not a token of this tokenizer",
        ),
    ],
)
def test_a_corruption_that_cannot_work_is_refused_by_name(masked, overrides, refusal):
    with pytest.raises(ConfigError, match=refusal):
        masked(*T5, *overrides).check_tokenizer()


def test_a_mixture_of_denoisers_is_one_setting(masked):
    cfg = masked(*T5, "objective.mixture=[{density:0.5,mean_span:null},{weight:2}]")
    cfg.check_tokenizer()
    assert cfg.objective.mixture == [Denoiser(density=0.5, mean_span=None), Denoiser(weight=2.0)]


@pytest.mark.parametrize("entry", [pretrain, hand_over])
@pytest.mark.parametrize(
    ("overrides", "refusal"),
    [
        (["tokenizer=bpe"], NO_MASK),
        (["tokenizer=bpe", "tokenizer.special_tokens=['<s>','</s>','<hidden>']"], NO_MASK),
        (
            ["tokenizer=bpe", "tokenizer.mask='<hidden>'"],
            r"tokenizer\.mask: '<hidden>' is not in tokenizer\.special_tok",
        ),
        (["tokenizer=bpe", "tokenizer.special_tokens=['<|endoftext|>','<mask>']", "+nsp"], NO_FRAME),
        (["tokenizer=wordpiece", "tokenizer.suffix=[]", "+nsp"], NO_FRAME),
        (["tokenizer=file", "tokenizer.path=bytes"], NO_MASK),
        (
            ["tokenizer=file", "tokenizer.path=bert", "tokenizer.mask='<hidden>'"],
            r"tokenizer\.mask: '<hidden>' is not in",
        ),
        (["tokenizer=file", "tokenizer.path=bert", "tokenizer.prefix=[]", "+nsp"], NO_FRAME),
        (["tokenizer=file", "tokenizer.path=nowhere"], r"tokenizer\.path: cannot be read .*nowhere"),
    ],
)
def test_a_tokenizer_that_does_not_fit_is_refused_before_text_is_prepared(
    masked, tmp_path, monkeypatch, entry, overrides, refusal
):
    monkeypatch.chdir(tmp_path)
    word_piece(TEXTS, 60).save("bert")
    bytes_of = json.loads(byte_level(TEXTS, 300).to_str().replace("<mask>", "<hidden>"))
    (tmp_path / "bytes").write_text(json.dumps(bytes_of))
    pairs = ["objective.sentences=nsp", "model.token_types=2"] if "+nsp" in overrides else []
    cfg = masked(*(override for override in overrides if override != "+nsp"), *pairs)
    with pytest.raises(ConfigError, match=refusal):
        entry(cfg)
    assert not (tmp_path / "corpora").exists() and not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "overrides",
    [
        ["tokenizer=wordpiece"],
        ["tokenizer=unigram", "objective.sentences=sop"],
        ["tokenizer=bpe", "tokenizer.special_tokens=['<s>','</s>','<hidden>']", "tokenizer.mask='<hidden>'"],
        ["tokenizer=bpe", f"tokenizer.special_tokens={BERT}", "objective.sentences=nsp"],
        ["tokenizer=bpe", "model=decoder", "objective=causal_lm"],
    ],
)
def test_a_tokenizer_that_fits_is_accepted(masked, tmp_path, overrides):
    assert masked(*overrides).check_tokenizer() is None
    assert not (tmp_path / "corpora").exists(), "nothing is prepared for it"


def test_a_corpus_that_exists_has_a_tokenizer_of_its_own(tmp_path):
    prepared = [f"data.sources.prepared.path={tmp_path}/corpus", "tokenizer=bpe"]
    compose(["model=encoder", "objective=masked_lm", "data=prepared", *prepared]).check_tokenizer()


@pytest.mark.parametrize("typed", ["book.txt", "[book.txt]"])
def test_one_path_needs_no_brackets(typed):
    cfg = compose(["data=text", f"data.sources.text.paths={typed}"])
    assert cfg.data.sources["text"].paths == ["book.txt"]
