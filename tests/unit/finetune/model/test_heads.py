"""Every family's heads equal those of transformers with the same weights: logits, losses and gradients."""

from dataclasses import replace

import pytest
import torch
from attention_laws import offsets
from hugging_face_directories import rows_of_ours
from small_models import (
    DEBERTA,
    DISTILBERT,
    ELECTRA,
    GEMMA3,
    GPT_NEOX,
    LLAMA,
    MODERNBERT,
    OLMO2,
    PHI3,
    QWEN2,
    QWEN3,
    ROBERTA,
    VOCAB_SIZE,
    ragged_batch,
    small_decoder,
    small_encoder,
)
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from finetune.model.base import FineTuned
from finetune.model.heads import hf_tensors, pooled
from finetune.model.losses import AnswerSpans, CrossEntropy, MultiLabel, Regression
from pretrain.data.batch import IGNORED
from pretrain.errors import ConfigError
from pretrain.hub.family import FAMILIES, family_for, head_for
from pretrain.hub.task_heads import HeadKind, Pooling
from pretrain.models.attention.sdpa import sdpa
from pretrain.models.encoder_decoder import EncoderDecoderConfig

PAD = 1  # RoBERTa's; no text holds it
LENGTHS = [7, 2, 11, 5, 1]
MODELS = {
    "bert": small_encoder,
    "roberta": lambda: small_encoder(**ROBERTA),
    "deberta-v2": lambda: small_encoder(**DEBERTA),
    "xlm-roberta": lambda: small_encoder(**ROBERTA, family="xlm-roberta"),
    "electra": lambda: small_encoder(**ELECTRA),
    "distilbert": lambda: small_encoder(**DISTILBERT),
    "modernbert": lambda: small_encoder(**MODERNBERT, window=3, global_every=2),
    "gpt2": small_decoder,
    "llama": lambda: small_decoder(**LLAMA, tie_embeddings=False),
    "mistral": lambda: small_decoder(**LLAMA, window=4, kv_heads=2),
    "gpt_neox": lambda: small_decoder(**GPT_NEOX, tie_embeddings=False),
    "phi3": lambda: small_decoder(**PHI3, window=4, kv_heads=2),
    "olmo2": lambda: small_decoder(**OLMO2, kv_heads=2),
    "gemma3_text": lambda: small_decoder(**GEMMA3, window=4, global_every=2, global_first=1, local_rope_theta=1e4),
    "qwen2": lambda: small_decoder(**QWEN2, kv_heads=2),
    "qwen3": lambda: small_decoder(**QWEN3, attention_width=32),
}
WITH_SPANS = [name for name in MODELS if FAMILIES[name].heads.span is not None]
WITH_TOKENS = [name for name in MODELS if FAMILIES[name].heads.token is not None]
CLASSES = {
    HeadKind.sequence: AutoModelForSequenceClassification,
    HeadKind.span: AutoModelForQuestionAnswering,
    HeadKind.token: AutoModelForTokenClassification,
}


def pair(config, kind, loss, outputs, problem=None, dropout=0.5):
    """Return transformers' model of a task, random everywhere, and ours with the same weights."""
    network = family_for(config).to_hf(config, VOCAB_SIZE)
    labels = {"num_labels": outputs, "problem_type": problem, "pad_token_id": PAD}
    head = {"classifier_dropout": dropout, "seq_classif_dropout": dropout}
    theirs = CLASSES[kind].from_config(AutoConfig.for_model(**(network | labels | head))).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3, generator=generator)
    with torch.device("meta"):
        model = config.build(vocab_size=VOCAB_SIZE, attend=sdpa, head=False)
        ours = FineTuned(model, config, head_for(config, kind), kind, loss, outputs=outputs, dropout=dropout)
    ours = ours.to_empty(device="cpu").eval()
    ours.load_state_dict(as_ours(ours, config, kind, theirs, lambda parameter: parameter.detach()))
    assert type(theirs).__name__ == family_for(config).task_architecture(kind)
    return ours, theirs


def as_ours(ours, config, kind, theirs, read):
    """Return our names and layouts of what `read` gives for each of their parameters: itself or its gradient."""
    shapes = {name: parameter.shape for name, parameter in ours.named_parameters()}
    pieces = {}
    for part in hf_tensors(config, kind, VOCAB_SIZE, shapes):
        tensor = read(theirs.get_parameter(part.theirs))
        pieces.setdefault(part.ours, []).append(rows_of_ours(part, tensor))
    assert pieces.keys() == shapes.keys(), "every tensor of ours has a name there"
    return {name: torch.cat(parts) for name, parts in pieces.items()}


def batch_of(config, **fields):
    batch = ragged_batch(LENGTHS)
    batch.tokens[batch.tokens == PAD] = PAD + 1
    batch.targets[:] = IGNORED
    batch.segments = batch.tokens % config.token_types if getattr(config, "token_types", 0) else None
    batch.num_targets = len(LENGTHS)
    for name, value in fields.items():
        setattr(batch, name, value)
    return batch


def padded(flat, value=0):
    return torch.nn.utils.rnn.pad_sequence(flat.split(LENGTHS), batch_first=True, padding_value=value)


def check(ours, theirs, config, kind, batch, **labels):
    real = padded(torch.ones_like(batch.tokens))
    inputs = {"input_ids": padded(batch.tokens, PAD), "attention_mask": real}
    if batch.segments is not None:
        inputs["token_type_ids"] = padded(batch.segments)
    found, expected = ours(batch), theirs(**inputs, **labels)
    if kind is HeadKind.span:
        logits = torch.stack([expected.start_logits, expected.end_logits], dim=2)[real.bool()]
    else:
        logits = expected.logits if kind is HeadKind.sequence else expected.logits[real.bool()]
    assert logits.std() > 0.05, "logits that say something"
    torch.testing.assert_close(found.logits, logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.total / batch.num_targets, expected.loss, atol=1e-5, rtol=1e-5)
    (found.total / batch.num_targets).backward()
    expected.loss.backward()
    theirs_by_ours = as_ours(ours, config, kind, theirs, lambda parameter: parameter.grad)
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs_by_ours[name], atol=1e-5, rtol=1e-4)


def test_the_heads_of_every_family_are_compared():
    with_heads = [name for name, family in FAMILIES.items() if family.config_type is not EncoderDecoderConfig]
    assert sorted(MODELS) == sorted(with_heads)


@pytest.mark.parametrize("name", MODELS)
def test_a_label_for_each_text(name):
    config = MODELS[name]().config
    labels = torch.tensor([2, 0, 1, 1, 2])
    ours, theirs = pair(config, HeadKind.sequence, CrossEntropy(), 3, "single_label_classification")
    check(ours, theirs, config, HeadKind.sequence, batch_of(config, labels=labels), labels=labels)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_labels_that_may_hold_together(name):
    config = MODELS[name]().config
    labels = (torch.arange(len(LENGTHS) * 3).reshape(-1, 3) % 2).float()
    ours, theirs = pair(config, HeadKind.sequence, MultiLabel(), 3, "multi_label_classification")
    check(ours, theirs, config, HeadKind.sequence, batch_of(config, labels=labels), labels=labels)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_a_number_for_each_text(name):
    config = MODELS[name]().config
    labels = torch.linspace(-1.5, 2, len(LENGTHS))
    ours, theirs = pair(config, HeadKind.sequence, Regression(), 1, "regression")
    check(ours, theirs, config, HeadKind.sequence, batch_of(config, labels=labels), labels=labels)


@pytest.mark.parametrize("name", WITH_SPANS)
def test_a_span_of_each_text(name):
    """Theirs leaves padding in the softmax; ours has none, so texts are of one length here."""
    config = MODELS[name]().config
    labels = torch.tensor([[0, 0], [0, 1], [3, 9], [4, 4], [0, 0]])
    ours, theirs = pair(config, HeadKind.span, AnswerSpans(), 2)
    for sequence in range(len(LENGTHS)):
        begin, end = sum(LENGTHS[:sequence]), sum(LENGTHS[: sequence + 1])
        batch = batch_of(config)
        alone = ragged_batch(LENGTHS[sequence : sequence + 1])
        alone.tokens, alone.labels = batch.tokens[begin:end], labels[sequence][None]
        alone.segments = None if batch.segments is None else batch.segments[begin:end]
        alone.num_targets = 1
        inputs = {"input_ids": alone.tokens[None], "start_positions": alone.labels[:, 0]}
        inputs |= {"end_positions": alone.labels[:, 1]}
        if alone.segments is not None:
            inputs["token_type_ids"] = alone.segments[None]
        found, expected = ours(alone), theirs(**inputs)
        logits = torch.stack([expected.start_logits[0], expected.end_logits[0]], dim=1)
        torch.testing.assert_close(found.logits, logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.total, expected.loss, atol=1e-5, rtol=1e-5)
        found.total.backward()
        expected.loss.backward()
    theirs_by_ours = as_ours(ours, config, HeadKind.span, theirs, lambda parameter: parameter.grad)
    for parameter_name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs_by_ours[parameter_name], atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("name", WITH_TOKENS)
def test_a_label_for_each_token(name):
    config = MODELS[name]().config
    targets = torch.arange(sum(LENGTHS)) % 5
    targets[targets == 4] = IGNORED
    ours, theirs = pair(config, HeadKind.token, CrossEntropy(), 4)
    batch = batch_of(config, targets=targets, num_targets=int((targets != IGNORED).sum()))
    check(ours, theirs, config, HeadKind.token, batch, labels=padded(targets, IGNORED))


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name in MODELS for kind in HeadKind if FAMILIES[name].heads.of(kind) is None]
)
def test_a_task_that_transformers_has_no_class_for_is_trained_and_not_exported(name, kind):
    config = MODELS[name]().config
    with pytest.raises(ValueError, match="Unrecognized configuration class"):
        CLASSES[kind].from_config(AutoConfig.for_model(name))
    with torch.device("meta"):
        model = config.build(vocab_size=VOCAB_SIZE, attend=sdpa, head=False)
        ours = FineTuned(model, config, head_for(config, kind), kind, None, outputs=2, dropout=0.0)
    missing = family_for(config).task_architecture(kind)
    rule = f"transformers has no {missing}: this model cannot be exported"
    with pytest.raises(ConfigError, match=rule):
        list(hf_tensors(config, kind, VOCAB_SIZE, {name: each.shape for name, each in ours.named_parameters()}))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "fields"),
    [
        # theirs spares a branch of DistilBERT
        *((name, {"dropout": 0.2}) for name in ("bert", "roberta", "gpt2", "gpt_neox")),
        *((name, {"attention_dropout": 0.2}) for name in WITH_TOKENS if name != "modernbert"),
        ("modernbert", {"dropout": 0.1, "attention_dropout": 0.1}),  # theirs takes the second for a branch, too
    ],
)
def test_dropout_acts_where_theirs_does(name, fields):
    config = replace(MODELS[name]().config, **fields)
    ours, theirs = pair(config, HeadKind.token, None, 3, dropout=0.0)
    check_same_distribution(ours, theirs, batch_of(config), lambda logits, real: logits[real])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bert", "roberta", "electra", "distilbert", "modernbert"])
def test_dropout_of_heads_acts_where_theirs_does(name):
    config = MODELS[name]().config
    ours, theirs = pair(config, HeadKind.sequence, None, 3, dropout=0.2)
    check_same_distribution(ours, theirs, batch_of(config), lambda logits, _: logits)


def check_same_distribution(ours, theirs, texts, rows, copies=300, rounds=6):
    """Logits of the same texts, drawn over and over: equal means within their error, equal variances within 5 %."""
    batch, real = ragged_batch(LENGTHS * copies), padded(torch.ones_like(texts.tokens)).repeat(copies, 1)
    batch.tokens = texts.tokens.repeat(copies)
    inputs = {"input_ids": padded(texts.tokens, PAD).repeat(copies, 1), "attention_mask": real}
    if texts.segments is not None:
        batch.segments = texts.segments.repeat(copies)
        inputs["token_type_ids"] = padded(texts.segments).repeat(copies, 1)
    ours.train()
    theirs.train()
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(5)
        found = torch.cat([ours(batch).logits for _ in range(rounds)])
        expected = torch.cat([rows(theirs(**inputs).logits, real.bool()) for _ in range(rounds)])
    found, expected = (logits.reshape(rounds * copies, -1, 3) for logits in (found, expected))
    error = ((found.var(0) + expected.var(0)) / len(found)).sqrt()
    assert (found.mean(0) - expected.mean(0)).div(error).square().mean().sqrt() < 2
    assert (found.var(0) / expected.var(0)).mean() == pytest.approx(1, abs=0.05)


def test_what_stands_for_a_sequence():
    hidden = torch.randn(sum(LENGTHS), 6, generator=torch.Generator().manual_seed(2))
    texts = hidden.split(LENGTHS)
    for pooling, expected in (
        (Pooling.first, [text[0] for text in texts]),
        (Pooling.last, [text[-1] for text in texts]),
    ):
        torch.testing.assert_close(pooled(hidden, offsets(LENGTHS), pooling), torch.stack(expected))


def test_spans_and_labels_in_parts_sum_to_the_whole():
    """Whatever the micro-batches: sums over sequences, also where a rank has nothing left."""
    config = small_encoder().config
    labels = torch.tensor([[0, 0], [0, 1], [3, 9], [4, 4], [0, 0]])
    ours, _ = pair(config, HeadKind.span, AnswerSpans(), 2)
    whole = batch_of(config, labels=labels)
    ours(whole).total.backward()
    expected = {name: parameter.grad.clone() for name, parameter in ours.named_parameters()}
    ours.zero_grad()
    bounds = [0, *torch.tensor(LENGTHS).cumsum(0).tolist()]
    for first, last in ((0, 2), (2, 5)):
        own = slice(bounds[first], bounds[last])
        part = ragged_batch(LENGTHS[first:last])
        part.tokens, part.segments = whole.tokens[own], whole.segments[own]
        part.labels, part.num_targets = labels[first:last], last - first
        ours(part).total.backward()
    nothing = ragged_batch([1])
    nothing.num_targets, nothing.labels = 0, None
    ours(nothing).total.backward()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=2e-6, rtol=1e-5)


def test_smoothing_and_weights_are_torch_s_own():
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    labels = torch.tensor([2, 0, 1, 1, IGNORED])
    batch = ragged_batch(LENGTHS)
    batch.labels = labels
    smoothed, right = CrossEntropy(smoothing=0.1)(logits, batch)
    log_probabilities = logits.log_softmax(1)
    own = [row[label] for row, label in zip(log_probabilities, labels.tolist(), strict=True) if label != IGNORED]
    expected = -sum(0.9 * one + 0.1 * row.mean() for one, row in zip(own, log_probabilities[:4], strict=True))
    torch.testing.assert_close(smoothed, expected)
    weighted, _ = CrossEntropy(weights=(0.5, 2.0, 1.25))(logits, batch)
    weights = [1.25, 0.5, 2.0, 2.0]
    torch.testing.assert_close(weighted, -sum(weight * one for weight, one in zip(weights, own, strict=True)))
    assert right == (logits[:4].argmax(1) == labels[:4]).sum()
