"""Replaced tokens: which are replaced and by what; the loss and its gradients are those of ElectraForPreTraining."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from slots_by_hand import FIRST_TEXT, MASK, PREFIX, SIZE, SUFFIX, slots_of, vocabulary
from small_models import ELECTRA, MODERNBERT, VOCAB_SIZE, filled, ragged_batch
from torch.utils.flop_counter import FlopCounterMode
from transformers import ElectraConfig, ElectraForPreTraining

from pretrain.compose import compose
from pretrain.data.batch import Batch
from pretrain.errors import ConfigError
from pretrain.hub.family import family_for
from pretrain.models.attention.eager import eager
from pretrain.models.encoder import EncoderConfig
from pretrain.objectives.masked_lm import INIT_STD
from pretrain.objectives.replaced_tokens import ReplacedTokensConfig, Replacements, Replacing

LENGTHS = [300, 1, 12, 257]
PAD = 0


def objective(seed=1, attend=eager, max_seq_len=300, **fields):
    """Return an encoder without a head inside the objective, filled as runs fill theirs, only wider."""
    fields = {"max_seq_len": max_seq_len, "width": 24, "layers": 2, "heads": 4, "init_std": 0.2, **fields}
    with torch.device("meta"):
        model = EncoderConfig(**fields).build(vocab_size=VOCAB_SIZE, attend=attend, head=False)
        module = ReplacedTokensConfig().build(model)
    return filled(module, seed)


def corrupted(lengths=LENGTHS, seed=3):
    """Return documents, a fifth of whose tokens count as replaced."""
    batch = ragged_batch(lengths, seed)
    targets = (torch.rand(sum(lengths), generator=torch.Generator().manual_seed(seed)) < 0.2).long()
    tokens = batch.tokens.clamp(min=1)
    return replace(batch, tokens=tokens, targets=targets, segments=tokens % 2, num_targets=len(targets))


documents = st.lists(st.integers(FIRST_TEXT, FIRST_TEXT + 30), max_size=12).map(lambda ids: [PREFIX, *ids, SUFFIX])
slots = st.lists(st.lists(documents, min_size=1, max_size=3), min_size=1, max_size=4)


@settings(max_examples=100)
@given(slots, st.sampled_from(Replacements), st.sampled_from([0.01, 0.15, 0.9]))
def test_text_alone_is_replaced_by_text_and_targets_say_where(slots, kind, rate):
    whole = slots_of(slots)
    made = Replacing(ReplacedTokensConfig(rate=rate, replacements=kind), vocabulary(), seed=7)(whole)
    special = whole.tokens < FIRST_TEXT
    assert (made.tokens[special] == whole.tokens[special]).all()
    assert (made.targets == (made.tokens != whole.tokens)).all() and made.targets.dtype == np.int64
    assert made.offsets is whole.offsets
    for begin, end in zip(whole.slots[:-1], whole.slots[1:], strict=True):
        own = whole.tokens[begin:end]
        others = made.tokens[begin:end][made.targets[begin:end] == 1]
        if kind is Replacements.unigram:
            assert set(others) <= set(own[own >= FIRST_TEXT]), "of its own slot, whatever else is in the batch"
        assert not set(others) & {PREFIX, SUFFIX, MASK}


def test_as_many_are_replaced_as_configured_and_as_often_as_they_are_in_the_text():
    draw = np.random.default_rng(0)
    ids = FIRST_TEXT + draw.choice(3, size=100_000, p=[0.6, 0.3, 0.1])
    whole = slots_of([[ids.tolist()]])
    made = Replacing(ReplacedTokensConfig(), vocabulary(), seed=7)(whole)
    kept = 0.6**2 + 0.3**2 + 0.1**2  # of the tokens that are drawn, those that are drawn in their own place
    assert made.targets.mean() == pytest.approx(0.15 * (1 - kept), rel=0.03)
    new = made.tokens[made.targets == 1]
    by_first = np.mean(new[ids[made.targets == 1] == FIRST_TEXT + 1] == FIRST_TEXT)
    assert by_first == pytest.approx(0.6 / 0.7, abs=0.03)
    uniform = Replacing(ReplacedTokensConfig(replacements=Replacements.uniform), vocabulary(), seed=7)(whole)
    new = uniform.tokens[uniform.targets == 1]
    assert uniform.targets.mean() == pytest.approx(0.15, rel=0.03)
    assert len(np.unique(new)) > 0.9 * (SIZE - 400 - FIRST_TEXT), "nearly every id of text"
    other = Replacing(ReplacedTokensConfig(), vocabulary(), seed=8)(whole)
    assert 0.05 < (other.targets != made.targets).mean() < 0.3


@pytest.mark.parametrize("fields", [ELECTRA, {"family": "electra"}], ids=["narrow", "as wide"])
def test_logits_losses_and_gradients_are_those_of_transformers(fields):
    module, batch = objective(**fields), corrupted()
    generator = torch.Generator().manual_seed(5)
    for parameter in module.parameters():  # no norm or bias at 1 or 0
        torch.nn.init.normal_(parameter, mean=float(parameter.ndim == 1), std=0.3, generator=generator)
    config, shapes = module.model.config, {name: parameter.shape for name, parameter in module.named_parameters()}
    family = family_for(config)
    network = family.to_hf(config, VOCAB_SIZE)
    theirs = ElectraForPreTraining(ElectraConfig(**network)).eval()
    parts = [part for part in family.model_tensors(config, VOCAB_SIZE, "model.") if part.ours in shapes]
    parts += family.objective_tensors(shapes)
    assert {part.theirs for part in parts} == {name for name, _ in theirs.named_parameters()}
    with torch.no_grad():
        for part in parts:
            own = module.get_parameter(part.ours).reshape(-1)[part.start : part.start + part.numel]
            theirs.get_parameter(part.theirs).copy_(own.reshape(part.shape))
    rows = {
        key: torch.nn.utils.rnn.pad_sequence(flat.split(LENGTHS), batch_first=True, padding_value=0)
        for key, flat in {
            "input_ids": batch.tokens,
            "attention_mask": torch.ones_like(batch.tokens),
            "token_type_ids": batch.segments,
            "labels": batch.targets,
        }.items()
    }
    expected = theirs(**rows)
    seen = []
    module.detector.register_forward_hook(lambda _, __, logits: seen.append(logits))
    loss = module(batch)
    [logits] = seen
    assert logits.std() > 0.05
    torch.testing.assert_close(logits, expected.logits[rows["attention_mask"].bool()], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss.total / batch.num_targets, expected.loss, atol=1e-6, rtol=1e-6)
    (loss.total / batch.num_targets).backward()
    expected.loss.backward()
    for part in parts:
        own = module.get_parameter(part.ours).grad.reshape(-1)[part.start : part.start + part.numel]
        torch.testing.assert_close(
            own.reshape(part.shape), theirs.get_parameter(part.theirs).grad, atol=1e-4, rtol=1e-4
        )
    right = (logits > 0) == (batch.targets == 1)
    assert loss.nll == loss.total and loss.correct == right.sum()
    assert loss.replaced.tolist() == [right[batch.targets == 1].sum(), batch.targets.sum()]


def test_it_works_with_any_encoder_and_every_parameter_learns():
    for fields in ({}, ELECTRA, MODERNBERT, {"tie_embeddings": False}):
        module = objective(**fields)
        assert not [name for name, _ in module.named_parameters() if "transform" in name or "head" in name]
        module(corrupted([9, 4])).total.backward()
        assert all(parameter.grad is not None for parameter in module.parameters())


def test_a_place_in_a_collective_counts_nothing():
    module = objective()
    loss = module(Batch.empty())
    loss.total.backward()
    assert loss.total == loss.correct == 0 and loss.replaced.tolist() == [0, 0]
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in module.parameters())


def test_a_batch_in_parts_sums_to_the_whole():
    lengths = [7, 1, 12, 5]
    module, batch = objective(), corrupted(lengths)
    whole = module(batch)
    bounds = [0, *np.cumsum(lengths).tolist()]
    sums = torch.zeros(4)
    for begin, end in itertools.pairwise(bounds):
        fields = {name: getattr(batch, name)[begin:end] for name in ("tokens", "targets", "segments")}
        part = module(replace(corrupted([end - begin]), **fields))
        sums += torch.stack([part.total.detach(), part.correct, *part.replaced])
    torch.testing.assert_close(sums, torch.stack([whole.nll, whole.correct, *whole.replaced]), atol=1e-4, rtol=1e-5)


def test_operations_are_those_that_torch_counts():
    module = objective(**ELECTRA)
    with FlopCounterMode(display=False) as counter:
        module(corrupted([32])).total.backward()
    assert module.flops_per_token(32) * 32 == counter.get_total_flops()


def test_the_detector_begins_as_in_bert():
    module = objective(width=64)
    assert not module.detector.dense.bias.any() and not module.detector.classifier.bias.any()
    cut = math.sqrt(1 - 2 * 2 * math.exp(-2) / math.sqrt(2 * math.pi) / math.erf(math.sqrt(2)))  # of a normal, at two
    assert module.detector.dense.weight.abs().max() <= 2 * INIT_STD
    assert module.detector.dense.weight.std().item() == pytest.approx(INIT_STD * cut, rel=0.05)


@pytest.mark.parametrize("rate", [0.0, 1.0, math.nan])
def test_refuses_by_name(rate):
    with pytest.raises(ValueError, match=r"objective\.rate="):
        ReplacedTokensConfig(rate=rate)


def test_decoders_and_names_of_no_choice_are_refused_at_once():
    compose(["model=encoder", "objective=replaced_tokens", "model.embedding_width=128"])
    with pytest.raises(ConfigError, match=r"objective=replaced_tokens: does not fit model=decoder"):
        compose(["model=decoder", "objective=replaced_tokens"])
    with pytest.raises(ConfigError, match=r"objective\.replacements"):
        compose(["model=encoder", "objective=replaced_tokens", "objective.replacements=generator"])
