"""Our models equal those of transformers, family by family, setting by setting: theirs padded, ours ragged."""

from itertools import count

import pytest
import torch
import torch.nn.functional as F
from hugging_face_directories import write
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import (
    DISTILBERT,
    ELECTRA,
    LLAMA,
    MODERNBERT,
    ROBERTA,
    VOCAB_SIZE,
    ragged_batch,
    small_decoder,
    small_encoder,
)
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from pretrain.checkpoint.base import WEIGHT
from pretrain.data.batch import IGNORED
from pretrain.hub.family import family_for
from pretrain.hub.weights import HuggingFaceWeights
from pretrain.models.base import Layout
from pretrain.models.layers import Activation

PAD = 1  # RoBERTa's; no document holds it
GELUS = [Activation.gelu, Activation.gelu_tanh]
SIZES = {
    "layers": st.integers(1, 4),
    "mlp_width": st.none() | st.integers(1, 50),
    "max_seq_len": st.just(16),
}
EPS = st.sampled_from([1e-12, 1e-5, 1e-3])
DECODERS = {
    "gpt2": {"activation": st.sampled_from(GELUS), "norm_eps": EPS, "tie_embeddings": st.booleans()},
    "llama": {
        **{key: st.just(value) for key, value in LLAMA.items()},
        "norm_eps": EPS,
        "tie_embeddings": st.booleans(),
        "rope_theta": st.sampled_from([1e2, 1e4, 5e5]),
    },
}
DECODERS["mistral"] = DECODERS["llama"] | {"window": st.integers(1, 20)}
ENCODERS = {
    "bert": {"token_types": st.integers(1, 3), "activation": st.sampled_from(GELUS), "norm_eps": EPS},
    "roberta": {key: st.just(value) for key, value in ROBERTA.items()} | {"norm_eps": EPS},
    "xlm-roberta": {key: st.just(value) for key, value in ROBERTA.items()} | {"family": st.just("xlm-roberta")},
    "electra": {
        "family": st.just("electra"),
        "token_types": st.integers(1, 3),
        "norm_eps": EPS,
        "embedding_width": st.none() | st.integers(1, 9).map(lambda half: 2 * half + 1),  # no width of blocks
    },
    "distilbert": {
        **{key: st.just(value) for key, value in DISTILBERT.items()},
        "activation": st.sampled_from(GELUS),
        "tie_embeddings": st.booleans(),
    },
    "modernbert": {
        **{key: st.just(value) for key, value in MODERNBERT.items()},
        "activation": st.sampled_from([Activation.geglu, Activation.swiglu]),
        "tie_embeddings": st.booleans(),
        "bias": st.booleans(),
        "norm_eps": EPS,
        "window": st.none() | st.integers(1, 20),
        "rope_theta": st.sampled_from([1e3, 160_000.0]),
        "local_rope_theta": st.sampled_from([1e2, 1e4]),
    },
}


@st.composite
def models(draw, name):
    """Draw the settings of a model of a family."""
    fields = draw(st.fixed_dictionaries(SIZES | (DECODERS | ENCODERS)[name]))
    heads = draw(st.integers(1, 5))
    fields |= {"heads": heads, "width": heads * 2 * draw(st.integers(1, 4))}
    if name in ("llama", "mistral"):
        fields["kv_heads"] = draw(st.sampled_from([count for count in range(1, heads + 1) if heads % count == 0]))
    if name == "modernbert" and fields["window"] is not None:
        fields["global_every"] = draw(st.none() | st.integers(1, 4))
    return fields


lengths_of_documents = st.lists(st.integers(1, 16), min_size=1, max_size=5)


def transformers_model(config):
    """Return transformers' model of this configuration, with weights that leave no norm or bias at 1 or 0."""
    theirs = AutoConfig.for_model(**{**family_for(config).to_hf(config, VOCAB_SIZE), "pad_token_id": PAD})
    model = (AutoModelForCausalLM if config.kind.generates else AutoModelForMaskedLM).from_config(theirs).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


def as_ours(config, theirs, read):
    """Return our names and layouts of what `read` gives for each parameter: itself or its gradient."""
    pieces = {}
    for part in family_for(config).model_tensors(config, VOCAB_SIZE):
        tensor = read(theirs.get_parameter(part.theirs))
        pieces.setdefault(part.ours, []).append(tensor.T if part.transposed else tensor)
    return {name: torch.cat(parts) for name, parts in pieces.items()}


def padded(flat, lengths, value):
    """Return documents that lie end to end (N,) as rows of one length."""
    return torch.nn.utils.rnn.pad_sequence(flat.split(lengths), batch_first=True, padding_value=value)


@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS])
def test_equals_transformers(tmp_path, name):
    @settings(max_examples=12, deadline=None)
    @given(models(name), lengths_of_documents)
    def check(fields, lengths):
        ours = small_decoder(**fields) if name in DECODERS else small_encoder(**fields)
        assert family_for(ours.config).model_type == name
        theirs = transformers_model(ours.config)
        ours.load_state_dict(as_ours(ours.config, theirs, lambda parameter: parameter.detach()))
        check_parity(ours, theirs, lengths)
        check_identity(ours, tmp_path / str(next(number)))

    number = count()
    check()


@pytest.mark.parametrize("name", ["xlm-roberta", "electra"])
def test_equals_transformers_in_long_texts(name):
    fields = {"xlm-roberta": {**ROBERTA, "family": name}, "electra": ELECTRA}[name]
    ours = small_encoder(**fields, max_seq_len=300, layers=3)
    theirs = transformers_model(ours.config)
    ours.load_state_dict(as_ours(ours.config, theirs, lambda parameter: parameter.detach()))
    check_parity(ours, theirs, [300, 1, 257, 64])


def check_identity(ours, directory):
    """What is exported and read again is the same, bit for bit."""
    read = HuggingFaceWeights(write(directory, ours, max_bytes=5_000))
    assert read.weight_shapes() == {f"model.{name}": parameter.shape for name, parameter in ours.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert torch.equal(read(f"model.{name}", WEIGHT, 0, parameter.numel()), parameter.detach().reshape(-1))


def check_parity(ours, theirs, lengths):
    batch = ragged_batch(lengths)
    tokens = torch.where(batch.tokens == PAD, PAD + 1, batch.tokens)
    inputs = {"input_ids": padded(tokens, lengths, PAD)}
    real = inputs["attention_mask"] = padded(torch.ones_like(tokens), lengths, 0)
    layout = Layout.of(batch.offsets, batch.max_len)
    if ours.config.kind.generates:
        hidden = ours(tokens, batch.positions, layout)
        logits = F.linear(hidden, ours.head_weight())
        targets = batch.targets
    else:
        segments = tokens % ours.config.token_types if ours.config.token_types else None
        if segments is not None:
            inputs["token_type_ids"] = padded(segments, lengths, 0)
        hidden = ours(tokens, batch.positions, layout, segments)
        logits = F.linear(ours.head_input(hidden), ours.head_weight(), ours.head_bias())
        targets = torch.where(tokens % 3 == 0, tokens, IGNORED)  # every third, say
    targets[0] = tokens[0]  # one at least
    found = theirs(**inputs, output_hidden_states=True)
    expected = found.logits[real.bool()]
    torch.testing.assert_close(hidden, found.hidden_states[-1][real.bool()], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)

    loss, expected_loss = F.cross_entropy(logits, targets), F.cross_entropy(expected, targets)
    torch.testing.assert_close(loss, expected_loss, atol=1e-6, rtol=1e-6)

    loss.backward()
    expected_loss.backward()
    gradients = as_ours(ours.config, theirs, lambda parameter: parameter.grad)
    assert gradients.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-4, rtol=1e-4)
