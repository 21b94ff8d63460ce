"""Adapters go out to peft and come in from it: equal logits, and equal gradients of one step, either way."""

import json
import warnings

import pytest
import torch
import torch.nn.functional as F
from corpora import edit_json
from hugging_face_directories import AUTO_CLASSES, write
from peft import LoraConfig as TheirConfig
from peft import PeftModel, get_peft_model
from small_models import (
    BART,
    GPT_NEOX,
    LLAMA,
    MODERNBERT,
    ROBERTA,
    T5_GATED,
    VOCAB_SIZE,
    ragged_batch,
    ragged_pairs,
    small_decoder,
    small_encoder,
    small_encoder_decoder,
)
from toys import ALONE
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from finetune.init_from import base_of, weights_from
from finetune.model.adapters import exported
from finetune.model.base import FineTuned
from finetune.model.heads import hf_tensors
from finetune.model.language import AdaptedDecoder, AdaptedEncoderDecoder
from finetune.model.lora import LoraConfig, adapters_of, differences_of
from pretrain.checkpoint.load import fill, shapes_of
from pretrain.hub.adapter_config import task_type
from pretrain.hub.adapter_files import ADAPTER_WEIGHTS
from pretrain.hub.family import family_for, head_for
from pretrain.hub.heads import HeadKind
from pretrain.hub.weights import write_weights
from pretrain.init_from import InitialWeights
from pretrain.models.attention.sdpa import sdpa
from pretrain.models.base import Layout, ModelKind
from pretrain.trained.model import load
from pretrain.trained.source import find_source

MODELS = {
    "gpt2": small_decoder(layers=1),
    "llama": small_decoder(**LLAMA, layers=1, kv_heads=2),
    "gpt_neox": small_decoder(**GPT_NEOX, layers=1),
    "bert": small_encoder(layers=1),
    "roberta": small_encoder(**ROBERTA, layers=1),
    "modernbert": small_encoder(**MODERNBERT, layers=1),
    "t5": small_encoder_decoder(**T5_GATED, layers=1),
    "bart": small_encoder_decoder(**BART, layers=1),
}
LENGTHS, SOURCE_LENGTHS = [5, 1, 9], [7, 3, 2]
OUTPUTS = 3
CLASSES = {
    HeadKind.sequence: AutoModelForSequenceClassification,
    HeadKind.span: AutoModelForQuestionAnswering,
    HeadKind.token: AutoModelForTokenClassification,
}


class Values:
    """A reader of tensors by name."""

    def __init__(self, values):
        self.values = values

    def __call__(self, name, kind, start, numel):
        return self.values[name].detach().reshape(-1)[start : start + numel]


def adapted(model, tuning, kind=None):
    """Return a module with the weights of a model, and adapters and a head that are drawn."""
    with torch.device("meta"):
        new = model.config.build(vocab_size=VOCAB_SIZE, attend=sdpa, head=kind is None)
        tuning.prepare(new)
        if kind:
            outputs = 2 if kind is HeadKind.span else OUTPUTS
            head = head_for(model.config, kind)
            module = FineTuned(new, model.config, head, kind, None, outputs=outputs, dropout=0.0)
        else:
            objective = AdaptedEncoderDecoder if model.config.kind is ModelKind.encoder_decoder else AdaptedDecoder
            module = objective(new, label_smoothing=0.0, target_share=0.5)
    module.to_empty(device="cpu")
    generator, known = torch.Generator().manual_seed(2), dict(model.named_parameters())
    for name, parameter in module.named_parameters():
        own = known.get(name.removeprefix("model."))
        drawn = torch.randn(parameter.shape, generator=generator) * 0.1
        parameter.data.copy_(drawn if own is None else own)
    return module


def their_base(folder, model, kind=None):
    """Return transformers' model with our weights, from a body alone for a class that calls its body otherwise."""
    base = write(folder / "base", model)
    if kind and family_for(model.config).heads.of(kind).prefix:
        AutoModel.from_pretrained(base).save_pretrained(base)
    return (CLASSES[kind] if kind else AUTO_CLASSES[model.config.kind]).from_pretrained(
        base, **({} if kind in (None, HeadKind.span) else {"num_labels": OUTPUTS})
    )


def sent(folder, module, tuning, kind, values=None):
    """Write the adapters of a module as peft reads them, and return them."""
    config = module.model.config
    family = family_for(config)
    tensors = list(family.model_tensors(config, VOCAB_SIZE, "model."))
    if kind:
        tensors = list(hf_tensors(config, kind, VOCAB_SIZE, shapes_of(module)))
    values = values or dict(module.named_parameters())
    found = exported(tuning, differences_of(adapters_of(module.model), Values(values)), tensors)
    if folder:
        folder.mkdir()
        architecture = family.task_architecture(kind) if kind else family.architecture
        about = {"peft_type": "LORA", "task_type": task_type(architecture), "base_model_name_or_path": "x"}
        (folder / "adapter_config.json").write_text(json.dumps(about | found.config))
        read = Values({**values, **found.own})
        write_weights(folder, found.tensors, read, dtype=torch.float32, max_bytes=10**9, whole=ADAPTER_WEIGHTS)
    return found


def loaded(base, folder):
    """Return peft's model, which must find no tensor missing and none that it does not know."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        return PeftModel.from_pretrained(base, str(folder), is_trainable=True).eval()


def batch_of(config):
    """Return a batch without segments, which all models read."""
    pairs = config.kind is ModelKind.encoder_decoder
    batch = ragged_pairs(SOURCE_LENGTHS, LENGTHS) if pairs else ragged_batch(LENGTHS)
    batch.tokens[batch.tokens == 1] = 2  # RoBERTa's padding
    return batch


def their_rows(theirs, batch):
    """Return what their model computes of each sequence, end to end: (N, V), (N, C), or (S, C) of sequences."""
    rows = []
    tokens = batch.tokens.split(LENGTHS)
    sources = batch.source.tokens.split(SOURCE_LENGTHS) if batch.source else [None] * len(tokens)
    for ids, source in zip(tokens, sources, strict=True):
        inputs = (
            {"input_ids": ids[None]} if source is None else {"input_ids": source[None], "decoder_input_ids": ids[None]}
        )
        found = theirs(**inputs)
        both = [found.start_logits, found.end_logits] if "start_logits" in found else None
        rows.append(torch.stack(both, -1)[0] if both else found.logits[0])
    return torch.stack(rows) if rows[0].ndim == 1 else torch.cat(rows)


def our_rows(module, batch):
    """Return the same of our module."""
    if isinstance(module, FineTuned):
        kept = []
        handle = module.head.register_forward_hook(lambda layers, inputs, output: kept.append(output))
        module(batch)
        handle.remove()
        return kept[0]
    model, layout = module.model, Layout.of(batch.offsets, batch.max_len, batch.lengths)
    more = (batch.source,) if batch.source else ()
    hidden = model(batch.tokens, batch.positions, layout, *more)
    bias = model.head_bias() if batch.source else None
    return F.linear(hidden, model.head_weight(), bias)


def compared(module, theirs, batch):
    """Compare the logits, and compute the gradients of a sum of them."""
    ours, expected = our_rows(module, batch), their_rows(theirs, batch)
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    weight = torch.randn(ours.shape, generator=torch.Generator().manual_seed(9))
    (ours.log_softmax(-1) * weight).sum().backward()
    (expected.log_softmax(-1) * weight).sum().backward()


CASES = [
    *(("gpt2", None, None), ("gpt2", ["v", "q", "down"], None), ("llama", ["out", "up", "k"], None)),
    *(("gpt_neox", ["q", "v", "up"], None), ("t5", None, None), ("bart", ["qkv", "q", "kv", "up"], None)),
    *(("bert", None, HeadKind.sequence), ("roberta", ["up", "qkv"], HeadKind.sequence)),
    *(("modernbert", ["down", "q", "up"], HeadKind.sequence), ("gpt2", ["k"], HeadKind.token)),
    *(("bert", ["down", "v"], HeadKind.span), ("llama", ["v"], HeadKind.span)),
]


@pytest.mark.parametrize(("name", "layers", "kind"), CASES)
def test_peft_computes_and_learns_what_was_sent(tmp_path, name, layers, kind):
    model, tuning = MODELS[name], LoraConfig(rank=3, alpha=7.5, layers=layers)
    module = adapted(model, tuning, kind)
    found = sent(tmp_path / "adapter", module, tuning, kind)
    theirs = loaded(their_base(tmp_path, model, kind), tmp_path / "adapter")
    compared(module, theirs, batch_of(model.config))
    gradients = {key: value.grad for key, value in module.named_parameters() if value.grad is not None}
    expected = sent(None, module, tuning, kind, gradients).own
    for key, value in theirs.named_parameters():
        if "lora_" in key:
            ours = key.replace(".default", "")
            mask = found.own[ours] != 0  # what stands between those of fused projections is not ours
            torch.testing.assert_close(value.grad * mask, expected[ours], rtol=1e-4, atol=1e-5)


THEIRS = {  # their targets, and our layers
    "gpt2": (["c_attn", "mlp.c_proj"], ["qkv", "down"]),
    "llama": (["q_proj", "v_proj", "up_proj"], ["q", "v", "up"]),
    "gpt_neox": (["query_key_value"], ["qkv"]),
    "bert": (["query", "value"], ["q", "v"]),
    "modernbert": (["Wi"], ["gate", "up"]),
    "t5": (["q", "v", "wi_1"], ["q", "v", "up"]),
    "bart": (["k_proj", "fc1"], ["k", "up"]),
}
GENERATING = [name for name in THEIRS if MODELS[name].config.kind is not ModelKind.bidirectional]


def from_peft(folder, name, **settings):
    """Return a model of peft with adapters drawn, which it saved to `adapter` beside its base."""
    base = AUTO_CLASSES[MODELS[name].config.kind].from_pretrained(write(folder / "base", MODELS[name]))
    about = {"r": 4, "lora_alpha": 6, "target_modules": THEIRS[name][0], "init_lora_weights": False}
    theirs = get_peft_model(base, TheirConfig(**{**about, **settings})).eval()
    theirs.save_pretrained(folder / "adapter")
    return theirs


@pytest.mark.parametrize("name", THEIRS)
def test_what_peft_saved_is_added_to_its_base(tmp_path, name):
    pattern = {THEIRS[name][0][0]: 3}
    settings = {"use_rslora": name == "t5", "alpha_pattern": pattern, "rank_pattern": pattern}
    theirs = from_peft(tmp_path, name, **settings)
    batch = batch_of(MODELS[name].config)
    ours = load(tmp_path / "adapter", device="cpu")
    torch.testing.assert_close(ours.logits(batch), their_rows(theirs, batch).detach(), rtol=1e-5, atol=1e-5)


def begun(folder, name, **tuning):
    """Return a module filled with what it begins with, from an adapter."""
    model, tuning = MODELS[name], LoraConfig(**{"rank": 4, "alpha": 6.0, "layers": THEIRS[name][1], **tuning})
    module = adapted(model, tuning)
    source = find_source(str(folder / "adapter"), first=True)
    initial = InitialWeights(module, 1)
    adapters = adapters_of(module.model)
    fill(module, weights_from(source, initial, ALONE, names=[], kind=None, adapters=adapters))
    return module, base_of(source, adapters, run=folder / "run", scratch=False)


@pytest.mark.parametrize("name", GENERATING)
def test_what_peft_saved_learns_on(tmp_path, name, caplog):
    caplog.set_level("INFO")
    theirs = from_peft(tmp_path, name)
    module, base = begun(tmp_path, name)
    assert "the adapters go on from those of" in caplog.text and base == str(tmp_path / "base")
    compared(module, theirs, batch_of(MODELS[name].config))
    config, values = module.model.config, dict(theirs.named_parameters())
    tensors = {tensor.ours: [] for tensor in family_for(config).model_tensors(config, VOCAB_SIZE, "model.")}
    for tensor in family_for(config).model_tensors(config, VOCAB_SIZE, "model."):
        tensors[tensor.ours].append(tensor)
    for key, layer in adapters_of(module.model).items():
        ups = layer.lora_b.grad.split([part.rows for part in layer.adapted])
        for tensor in tensors[f"{key}weight"]:
            end = tensor.row + tensor.shape[0]
            inside = [at for at, part in enumerate(layer.adapted) if tensor.row <= part.row and part.end <= end]
            if not inside:
                continue
            stem = f"base_model.model.{tensor.theirs.removesuffix('weight')}"
            down, up = (values[f"{stem}lora_{matrix}.default.weight"].grad for matrix in "AB")
            own = sum(layer.lora_a.grad.split(4)[at] for at in inside)  # theirs is one for all
            torch.testing.assert_close(down, own, rtol=1e-4, atol=1e-5)
            rows = torch.cat([ups[at] for at in inside])
            rows = torch.cat([rows[run.ours - tensor.row :][: run.rows] for run in tensor.runs()])
            torch.testing.assert_close(up, rows, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"rank": 8, "alpha": 12.0}, "attention.qkv.weight has rank 4, and tuning.rank is 8"),
        (
            {"alpha": 4.0},
            "attention.qkv.weight is scaled by 1.5, and tuning.alpha / tuning.rank is 1",
        ),
        ({"layers": ["q", "up"]}, "tuning.layers leaves out a part of model.blocks.0.attention.qkv.weight"),
        ({"layers": ["qkv"]}, "tuning.layers leaves out model.blocks.0.mlp.up.weight"),
        ({"layers": ["qkv", "up"]}, "attention.qkv.weight has no k"),
    ],
)
def test_other_adapters_are_added_and_new_ones_begin(tmp_path, caplog, settings, why):
    caplog.set_level("INFO")
    theirs = from_peft(tmp_path, "llama")
    module, base = begun(tmp_path, "llama", **settings)
    assert f"is added to the weights of {tmp_path / 'base'}, as " in caplog.text and f"{why}\n" in caplog.text
    assert base is None
    assert not any(layer.lora_b.any() for layer in adapters_of(module.model).values())
    batch = batch_of(MODELS["llama"].config)
    torch.testing.assert_close(our_rows(module, batch), their_rows(theirs, batch), rtol=1e-5, atol=1e-5)


def test_a_pooler_that_peft_saved_stands_over_that_of_a_classifier(tmp_path):
    config = family_for(MODELS["bert"].config).to_hf(MODELS["bert"].config, VOCAB_SIZE)
    classifier = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**config))
    classifier.save_pretrained(tmp_path / "base")
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    about = {"r": 4, "target_modules": ["value"], "modules_to_save": ["pooler"], "task_type": "SEQ_CLS"}
    theirs = get_peft_model(base, TheirConfig(**about))
    saved = theirs.base_model.model.bert.pooler.modules_to_save.default.dense.weight
    saved.data.fill_(0.5)
    theirs.save_pretrained(tmp_path / "adapter")
    module = adapted(MODELS["bert"], LoraConfig(rank=4, layers=["v"]), HeadKind.sequence)
    source, initial = find_source(str(tmp_path / "adapter"), first=True), InitialWeights(module, 1)
    names = ["LABEL_0", "LABEL_1", "LABEL_2"]
    fill(module, weights_from(source, initial, ALONE, names=names, kind=HeadKind.sequence))
    assert torch.equal(module.head.pooler.dense.weight, saved)
    assert torch.equal(module.model.embedding.weight, classifier.bert.embeddings.word_embeddings.weight)


def test_what_was_put_side_by_side_comes_apart_again(tmp_path):
    tuning = LoraConfig(rank=3, alpha=7.5, layers=["q", "v", "out"])
    module = adapted(MODELS["gpt2"], tuning)
    write(tmp_path / "base", MODELS["gpt2"])
    found = sent(tmp_path / "adapter", module, tuning, None)
    assert found.config["rank_pattern"] == {"c_attn": 6} and found.config["alpha_pattern"] == {"c_attn": 15}
    base = {"base_model_name_or_path": str(tmp_path / "base")}
    edit_json(tmp_path / "adapter" / "adapter_config.json", lambda config: config.update(base))
    again, _ = begun(tmp_path, "gpt2", rank=3, alpha=7.5, layers=["q", "v", "out"])
    for name, value in module.named_parameters():
        assert torch.equal(value, again.get_parameter(name)), name
