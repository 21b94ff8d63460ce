"""Our models equal those of transformers, family by family, setting by setting: theirs padded, ours ragged."""

from itertools import count

import pytest
import torch
import torch.nn.functional as F
from hugging_face_directories import in_memory, rows_of_ours, write
from hypothesis import given, settings
from hypothesis import strategies as st
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
from pretrain.models.layers import Activation, Order, QKNorm
from pretrain.models.rotary import NO_SCALING, RopeScaling, Scaling

PAD = 1  # RoBERTa's; no document holds it
GELUS = [Activation.gelu, Activation.gelu_tanh]
SIZES = {
    "layers": st.integers(1, 4),
    "mlp_width": st.none() | st.integers(1, 50),
    "max_seq_len": st.just(300),
}
EPS = st.sampled_from([1e-12, 1e-5, 1e-3])
FACTORED = {"factor": st.sampled_from([1.0, 2.0, 8.0])}
TURNS = {
    "original_length": st.integers(8, 64),
    "slow_turns": st.sampled_from([0.5, 1.0]),
    "fast_turns": st.sampled_from([None, 2.0, 8.0]),
    **FACTORED,
}
FACTORS = {"truncate": st.booleans(), "attention_factor": st.sampled_from([None, 0.7, 1.3])}
SCALINGS = (
    st.builds(RopeScaling)
    | st.builds(RopeScaling, kind=st.just(Scaling.linear), **FACTORED)
    | st.builds(RopeScaling, kind=st.just(Scaling.llama3), **TURNS)
    | st.builds(RopeScaling, kind=st.just(Scaling.yarn), **TURNS, **FACTORS)
)
DECODERS = {
    "gpt2": {"activation": st.sampled_from(GELUS), "norm_eps": EPS, "tie_embeddings": st.booleans()},
    "llama": {
        **{key: st.just(value) for key, value in LLAMA.items()},
        "norm_eps": EPS,
        "tie_embeddings": st.booleans(),
        "rope_theta": st.sampled_from([1e2, 1e4, 5e5]),
        "rope_scaling": SCALINGS,
    },
}
DECODERS["mistral"] = DECODERS["llama"] | {"window": st.integers(1, 20)}
DECODERS["qwen2"] = DECODERS["llama"] | {"qkv_bias": st.just(True), "window": st.none() | st.integers(1, 20)}
DECODERS["qwen3"] = DECODERS["llama"] | {"qk_norm": st.just(QKNorm.head), "window": st.none() | st.integers(1, 20)}
DECODERS["gpt_neox"] = {
    **{key: st.just(value) for key, value in GPT_NEOX.items()},
    "order": st.sampled_from([Order.parallel, Order.pre]),
    "activation": st.sampled_from(GELUS),
    "norm_eps": EPS,
    "tie_embeddings": st.booleans(),
    "rope_theta": st.sampled_from([1e2, 1e4]),
    "rope_scaling": st.sampled_from([NO_SCALING, RopeScaling(kind=Scaling.yarn, factor=4.0, original_length=8)]),
}
DECODERS["phi3"] = DECODERS["llama"] | {"window": st.none() | st.integers(1, 20), "rope_scaling": st.just(NO_SCALING)}
# Norms of what branches return make rounding as large as it is beside small values: no narrow branches, no tiny eps.
DECODERS["olmo2"] = {
    **DECODERS["llama"],
    **{key: st.just(value) for key, value in OLMO2.items()},
    "mlp_width": st.none() | st.integers(16, 50),
    "norm_eps": st.sampled_from([1e-6, 1e-3]),
}
DECODERS["gemma3_text"] = {
    **DECODERS["olmo2"],
    **{key: st.just(value) for key, value in GEMMA3.items()},
    "activation": st.sampled_from([Activation.geglu_tanh, Activation.geglu]),
    "mlp_width": st.none() | st.integers(24, 50),
    "score_width": st.none() | st.integers(8, 40),
    "window": st.none() | st.integers(1, 20),
    "local_rope_theta": st.sampled_from([1e2, 1e4]),
    "rope_scaling": st.sampled_from([RopeScaling(), RopeScaling(kind=Scaling.linear, factor=8.0)]),
}
GROUPED = ("llama", "mistral", "qwen2", "qwen3", "phi3", "olmo2", "gemma3_text")
PARTLY_ROTARY = ("gpt_neox", "phi3")
BRANCH_NORMS = ("olmo2", "gemma3_text")
LONG = {
    "xlm-roberta": {**ROBERTA, "family": "xlm-roberta", "max_seq_len": 300},
    "electra": {**ELECTRA, "max_seq_len": 300},
    "deberta-v2": DEBERTA,
    "gpt_neox": GPT_NEOX,
    "phi3": {**PHI3, "window": 50},
    "olmo2": {**OLMO2, "kv_heads": 2, "norm_eps": 1e-6},
    "gemma3_text": {
        **{**GEMMA3, "kv_heads": 2, "norm_eps": 1e-6, "attention_width": 40, "score_width": 8, "layers": 3},
        **{"window": 50, "global_every": 2, "global_first": 1, "rope_theta": 1e6, "local_rope_theta": 1e4},
        "rope_scaling": RopeScaling(kind=Scaling.linear, factor=8.0),
    },
}
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
    "deberta-v2": {
        **{key: st.just(value) for key, value in DEBERTA.items()},
        "activation": st.sampled_from(GELUS),
        "token_types": st.integers(0, 2),
        "buckets": st.sampled_from([None, 4, 10]),
        "max_distance": st.integers(7, 40),
        "shared_projections": st.booleans(),
        "distance_norm": st.booleans(),
        "norm_eps": EPS,
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
    if name in PARTLY_ROTARY:  # shares of whole pairs, and less than a head, as others have it
        fields["width"] += 2 * heads
        pairs = fields["width"] // heads // 2
        fields["rotary_share"] = draw(st.integers(1, pairs - 1)) / pairs
    if name in ("llama", "mistral", "qwen2", "qwen3"):
        fields["attention_width"] = draw(st.none() | st.integers(1, 4).map(lambda half: heads * 2 * half))
    if name in GROUPED:
        fields["kv_heads"] = draw(st.sampled_from([count for count in range(1, heads + 1) if heads % count == 0]))
    if name in BRANCH_NORMS:
        fields["width"] = heads * 2 * draw(st.integers(6, 8))
        fields["attention_width"] = draw(st.none() | st.integers(4, 6).map(lambda pairs: heads * 2 * pairs))
    if name == "deberta-v2":
        terms = draw(st.sampled_from([(True, True), (True, False), (False, True)]))
        fields |= dict(zip(("content_to_position", "position_to_content"), terms, strict=True))
    if name in ("modernbert", "gemma3_text") and fields["window"] is not None:
        every = fields["global_every"] = draw(st.none() | st.integers(1, 4))
        fields["global_first"] = draw(st.integers(0, (every or 1) - 1))
    return fields


lengths_of_documents = st.lists(st.integers(1, 16), min_size=1, max_size=4).flatmap(
    lambda lengths: st.integers(1, 300).map(lambda last: [*lengths, last])
)


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
        tensor = read(in_memory(theirs, part))
        pieces.setdefault(part.ours, []).append(rows_of_ours(part, tensor))
    return {name: torch.cat(parts) for name, parts in pieces.items()}


def padded(flat, lengths, value):
    """Return documents that lie end to end (N,) as rows of one length."""
    return torch.nn.utils.rnn.pad_sequence(flat.split(lengths), batch_first=True, padding_value=value)


@pytest.mark.parametrize("name", [*DECODERS, *ENCODERS])
def test_equals_transformers(tmp_path, name):
    @settings(max_examples=12, derandomize=True)
    @given(models(name), lengths_of_documents)
    def check(fields, lengths):
        ours = small_decoder(**fields) if name in DECODERS else small_encoder(**fields)
        assert family_for(ours.config).model_type == name
        check_parity(ours, filled_as(ours), lengths)
        check_identity(ours, tmp_path / str(next(number)))

    number = count()
    check()


@pytest.mark.parametrize("name", LONG)
def test_long_texts_equal_too(name):
    """Longer than windows and than any that other configurations see here."""
    ours = (small_decoder if name in DECODERS else small_encoder)(**LONG[name])
    check_parity(ours, filled_as(ours), [5, 1, 300])


def filled_as(ours):
    """Return transformers' model of the same configuration, and give ours its weights."""
    theirs = transformers_model(ours.config)
    ours.load_state_dict(as_ours(ours.config, theirs, lambda parameter: parameter.detach()))
    return theirs


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
