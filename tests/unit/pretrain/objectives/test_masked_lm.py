"""The masked objective: its loss and gradients are those of whole logits in plain torch, whatever is in the batch."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_models import MODERNBERT, VOCAB_SIZE, filled, ragged_batch, small_encoder

from pretrain.compose import compose
from pretrain.config import PretrainConfig
from pretrain.data.batch import IGNORED, Slots, Vocabulary
from pretrain.errors import ConfigError
from pretrain.models.base import Layout
from pretrain.objectives.masked_lm import INIT_STD, MaskedLMConfig
from pretrain.objectives.masking import MaskingConfig
from pretrain.objectives.sentence_pairs import Sentences

MODERN = {**MODERNBERT, "window": 3, "global_every": 2}
LENGTHS = [7, 1, 12, 5]


def masked_batch(lengths=LENGTHS, seed=3, rate=0.4):
    """Return documents with random targets, segments and labels; the last document is no pair."""
    draw = torch.Generator().manual_seed(seed)
    batch = ragged_batch(lengths)
    chosen = torch.rand(len(batch.tokens), generator=draw) < rate
    targets = torch.where(chosen, torch.randint(VOCAB_SIZE, chosen.shape, generator=draw), IGNORED)
    labels = torch.randint(2, (len(lengths),), generator=draw)
    labels[-1] = IGNORED
    segments = (batch.positions > 3).long()
    return replace(batch, targets=targets, num_targets=int(chosen.sum()), segments=segments, labels=labels)


def objective(model, **settings):
    """Return the objective with its own parameters drawn."""
    with torch.device("meta"):
        module = MaskedLMConfig(**settings).build(model)
    if settings.get("sentences", Sentences.none) is not Sentences.none:
        draw = torch.Generator().manual_seed(1)
        for own in (module.pooler, module.sentence_classifier):
            own.to_empty(device="cpu")
            for parameter in own.parameters():
                parameter.data.normal_(0, 0.3, generator=draw)
    return module


def reference(module, batch):
    """Return the loss from whole logits, how many targets are the likeliest, and the sums over labels."""
    model = module.model
    hidden = model(batch.tokens, batch.positions, Layout.of(batch.offsets, batch.max_len), batch.segments)
    logits = F.linear(model.head_input(hidden), model.head_weight(), model.head_bias())
    total = F.cross_entropy(logits, batch.targets, ignore_index=IGNORED, reduction="sum")
    nll = total.detach()
    paid, right = [], 0
    for sequence, label in enumerate(batch.labels.tolist() if module.config.pairs else []):
        if label != IGNORED:
            begin, end = batch.offsets[sequence : sequence + 2].tolist()
            pooled = torch.tanh(F.linear(hidden[begin], module.pooler.dense.weight, module.pooler.dense.bias))
            pair = F.linear(pooled, module.sentence_classifier.weight, module.sentence_classifier.bias)
            paid.append(-pair.log_softmax(0)[label].item())
            right += int(pair[label] > pair[1 - label])
            expected = module.config.masking.rate * (end - begin)
            total = total - module.config.sentence_weight * expected * pair.log_softmax(0)[label]
    return total, nll, (logits.argmax(1) == batch.targets).sum(), [sum(paid), right, len(paid)]


@pytest.mark.parametrize("fields", [{}, {"tie_embeddings": False}, {"embedding_width": 10}, MODERN])
@pytest.mark.parametrize("settings", [{}, {"sentences": Sentences.sop, "sentence_weight": 0.7}])
def test_loss_and_gradients_are_those_of_whole_logits(fields, settings):
    model = small_encoder(**fields).double()
    with torch.no_grad():
        model.head_bias().normal_(generator=torch.Generator().manual_seed(9))
    module = objective(model, chunk_tokens=3, masking=MaskingConfig(rate=0.4), **settings).double()
    batch = masked_batch()
    loss, expected = module(batch), reference(module, batch)
    assert loss.total.item() == pytest.approx(expected[0].item(), rel=1e-12)
    assert loss.nll.item() == pytest.approx(expected[1].item(), rel=1e-12)
    assert loss.correct == expected[2]
    assert (loss.labels is None) is ("sentences" not in settings)
    assert loss.labels is None or loss.labels.tolist() == pytest.approx(expected[3], rel=1e-12)
    parameters = dict(module.named_parameters())
    found = torch.autograd.grad(loss.total, parameters.values())
    wanted = torch.autograd.grad(expected[0], parameters.values())
    for name, one, other in zip(parameters, found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-11, msg=lambda text, name=name: f"{name}: {text}")


@pytest.mark.parametrize("settings", [{}, {"sentences": Sentences.nsp}])
def test_without_any_target_every_gradient_is_there_and_zero(settings):
    """A rank whose micro-batch has no hidden token takes part like all others."""
    batch = masked_batch(rate=0.0)
    for labels in (None, torch.full((len(LENGTHS),), IGNORED)):
        module = objective(small_encoder(), **settings)
        loss = module(replace(batch, labels=labels, segments=None))
        loss.total.backward()
        assert loss.total == loss.nll == loss.correct == 0
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None and not parameter.grad.any(), name


def test_every_parameter_learns():
    """Nothing is left over for an engine to wait for, whether or not there are pairs."""
    for settings in ({}, {"sentences": Sentences.sop}):
        module = objective(small_encoder(), **settings)
        module(masked_batch()).total.backward()
        assert not [name for name, parameter in module.named_parameters() if parameter.grad is None]
    assert not [name for name, _ in objective(small_encoder()).named_parameters() if not name.startswith("model.")]


@pytest.mark.parametrize("settings", [{}, {"sentences": Sentences.sop}])
def test_a_batch_in_parts_sums_to_the_whole(settings):
    """Sums, not means, of pairs too: whatever the micro-batches, gradients add up to those of the global batch."""
    module, batch = objective(small_encoder(), **settings), masked_batch()
    module(batch).total.backward()
    expected = {name: parameter.grad.clone() for name, parameter in module.named_parameters()}
    module.zero_grad()
    bounds = batch.offsets.tolist()
    for sequence, length in enumerate(LENGTHS):
        own = slice(bounds[sequence], bounds[sequence + 1])
        part = replace(
            masked_batch([length]),
            **{name: getattr(batch, name)[own] for name in ("tokens", "positions", "targets", "segments")},
            labels=batch.labels[sequence : sequence + 1],
            num_targets=int((batch.targets[own] != IGNORED).sum()),
        )
        module(part).total.backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name], atol=2e-5, rtol=1e-5)


def test_only_masked_rows_go_through_the_head():
    module, batch = objective(small_encoder()), masked_batch()
    seen = []
    module.model.transform.register_forward_hook(lambda _, inputs, __: seen.append(len(inputs[0])))
    module(batch)
    assert seen == [batch.num_targets]


def test_operations_count_the_head_for_the_masked_share():
    model = small_encoder()
    module = MaskedLMConfig(masking=MaskingConfig(rate=0.3)).build(model)
    head = model.transform.dense.weight.numel() + model.head_weight().numel()
    assert model.flops_per_token(32) - module.flops_per_token(32) == pytest.approx(6 * 0.7 * head)


def test_what_tells_pairs_apart_begins_as_in_bert():
    module = objective(small_encoder(), sentences=Sentences.nsp)
    filled(module, seed=3)
    assert not module.pooler.dense.bias.any() and not module.sentence_classifier.bias.any()
    weights = torch.cat([module.pooler.dense.weight.flatten(), module.sentence_classifier.weight.flatten()])
    assert INIT_STD == 0.02 and weights.abs().max() <= 2 * INIT_STD
    cut = math.sqrt(1 - 2 * 2 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2)))  # of a normal, at two
    assert weights.std().item() == pytest.approx(INIT_STD * cut, rel=0.1)


def known(mask: int | None = 3) -> Vocabulary:
    special = np.arange(VOCAB_SIZE) < 5
    return Vocabulary(special, np.ones(VOCAB_SIZE, bool), special, mask, [1], [2])


def test_inputs_are_masked_pairs():
    draw = np.random.default_rng(0)
    tokens = np.concatenate([[1, *draw.integers(5, VOCAB_SIZE, 20), 2] for _ in range(8)])
    offsets = np.arange(0, len(tokens) + 1, 22)
    slots = Slots(
        tokens, tokens, offsets.astype(np.int32), offsets[::4].astype(np.int64), np.array([[0, 0, 0], [0, 0, 1]])
    )
    plain = MaskedLMConfig().examples(known, seed=1, seq_len=64)(slots)
    assert plain.segments is None and plain.labels is None
    assert plain.offsets.tolist() == offsets.tolist()
    assert (plain.targets[plain.targets != IGNORED] == tokens[plain.targets != IGNORED]).all()
    for sentences in (Sentences.nsp, Sentences.sop):
        made = MaskedLMConfig(sentences=sentences).examples(known, seed=1, seq_len=64)(slots)
        assert set(made.labels.tolist()) == {0, 1} and len(made.labels) == 8
        assert set(made.segments.tolist()) == {0, 1}
        assert made.offsets.tolist() == offsets.tolist()
        hidden = made.targets != IGNORED
        assert 0.05 < hidden.mean() < 0.3
        assert (np.where(hidden, made.targets, made.tokens)[made.offsets[:-1]] == 1).all()
        assert not (np.where(hidden, made.targets, made.tokens) == 3).any(), "masks stand for what the targets say"


def test_refuses_a_tokenizer_without_a_mask():
    with pytest.raises(ConfigError, match=r"objective=masked_lm: this tokenizer has no mask token"):
        MaskedLMConfig().examples(lambda: known(mask=None), seed=1, seq_len=64)


@pytest.mark.parametrize("frame", [([1], []), ([], [2])])
def test_refuses_pairs_of_a_tokenizer_without_a_whole_frame(frame):
    framed = replace(known(), prefix=frame[0], suffix=frame[1])
    MaskedLMConfig().examples(lambda: framed, seed=1, seq_len=64)
    with pytest.raises(ConfigError, match=r"objective\.sentences=sop: pairs need tokens before and after"):
        MaskedLMConfig(sentences=Sentences.sop).examples(lambda: framed, seed=1, seq_len=64)


@pytest.mark.parametrize("settings", [{"sentence_weight": 0.0}, {"sentence_weight": float("inf")}, {"chunk_tokens": 0}])
def test_refuses_by_name(settings):
    with pytest.raises(ValueError, match=rf"objective\.{next(iter(settings))}="):
        MaskedLMConfig(**settings)


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("model=decoder", "objective=masked_lm"),
        ("data.isolate_documents=false", "data.isolate_documents=false"),
        ("model.token_types=1", "model.token_types=1"),
    ],
)
def test_what_does_not_fit_together_is_refused_at_once(override, key):
    fitting = ["model=encoder", "objective=masked_lm", "objective.sentences=nsp"]
    assert isinstance(compose(fitting), PretrainConfig)
    with pytest.raises(ConfigError, match=key):
        compose([*fitting, override])
