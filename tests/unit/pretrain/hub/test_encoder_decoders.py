"""Our encoder-decoders equal those of transformers, family by family: theirs padded, ours ragged."""

from itertools import count

import pytest
import torch
import torch.nn.functional as F
from attention_laws import offsets
from hugging_face_directories import write
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import BART, MARIAN, MBART, T5, VOCAB_SIZE, small_encoder_decoder
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from pretrain.checkpoint.base import WEIGHT
from pretrain.hub.family import family_for
from pretrain.hub.weights import HuggingFaceWeights
from pretrain.models.base import Layout, Stream
from pretrain.models.layers import Activation

PAD, END = 1, 2
IDS = {"pad_token_id": PAD, "eos_token_id": END, "decoder_start_token_id": PAD}
LONGEST = 320
UNGATED = [Activation.relu, Activation.gelu, Activation.gelu_tanh, Activation.silu]
FAMILIES = {
    "bart": {key: st.just(value) for key, value in BART.items()},
    "mbart": {key: st.just(value) for key, value in MBART.items()},
    "marian": {key: st.just(value) for key, value in MARIAN.items()},
    "t5": {key: st.just(value) for key, value in T5.items()},
}
for name in ("bart", "mbart", "marian"):
    FAMILIES[name] |= {"activation": st.sampled_from(UNGATED), "embedding_scale": st.booleans()}
FAMILIES["mbart"]["head_bias"] = st.booleans()
FAMILIES["t5"] |= {
    "activation": st.sampled_from([*UNGATED, Activation.geglu_tanh, Activation.swiglu]),
    "tie_embeddings": st.booleans(),
    "head_scale": st.booleans(),
    "norm_eps": st.sampled_from([1e-6, 1e-3]),
    "buckets": st.sampled_from([8, 32]),
    "max_distance": st.sampled_from([20, 128]),
}
SIZES = {
    "max_seq_len": st.just(LONGEST),
    "layers": st.integers(1, 3),
    "decoder_layers": st.integers(1, 3),
    "mlp_width": st.none() | st.integers(1, 50),
}


@st.composite
def models(draw, name):
    """Draw the settings of a model of a family."""
    fields = draw(st.fixed_dictionaries(SIZES | FAMILIES[name]))
    heads = draw(st.integers(1, 4))
    fields |= {"heads": heads, "width": heads * 2 * draw(st.integers(1, 4))}
    if name == "t5":
        fields |= {"width": draw(st.integers(3, 20)), "attention_width": heads * draw(st.integers(1, 6))}
    return fields


def transformers_model(config):
    """Return transformers' model of this configuration, with weights that leave no norm or bias at 1 or 0."""
    described = family_for(config).to_hf(config, VOCAB_SIZE) | IDS
    theirs = AutoModelForSeq2SeqLM.from_config(AutoConfig.for_model(**described)).eval()
    if not config.tie_embeddings:  # as loading does for a file with another head
        theirs.lm_head.weight = torch.nn.Parameter(theirs.lm_head.weight.detach().clone())
    generator = torch.Generator().manual_seed(1)
    for parameter in theirs.parameters():
        if parameter.requires_grad:  # not the sinusoids
            torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    if config.head_bias:
        theirs.final_logits_bias.normal_(generator=generator)
    return theirs


def tensor_of(theirs, part):
    """Return their tensor of a part, in our layout, and its gradient."""
    if part.is_row:
        return theirs.get_buffer(part.theirs)[0], None
    parameter = theirs.get_parameter(part.theirs)
    return parameter.detach(), parameter.grad


def as_ours(config, theirs, which):
    """Return our names of their tensors (0) or of their gradients (1)."""
    pieces = {}
    for part in family_for(config).model_tensors(config, VOCAB_SIZE):
        pieces.setdefault(part.ours, []).append(tensor_of(theirs, part)[which])
    return {name: torch.cat(parts) for name, parts in pieces.items() if parts[0] is not None}


def stream(lengths, seed):
    """Return random sequences without padding tokens, end to end."""
    tokens = torch.randint(PAD + 1, VOCAB_SIZE, (sum(lengths),), generator=torch.Generator().manual_seed(seed))
    positions = torch.cat([torch.arange(length) for length in lengths])
    return Stream(tokens, positions, offsets(lengths), max(lengths), lengths)


def padded(flat, lengths):
    """Return sequences that lie end to end as rows of one length, and which of these are real."""
    rows = torch.nn.utils.rnn.pad_sequence(flat.split(lengths), batch_first=True, padding_value=PAD)
    real = torch.arange(rows.shape[1]) < torch.tensor(lengths)[:, None]
    return rows, real


def check_parity(ours, theirs, sources, targets):
    """Compare states, logits, loss and gradients for pairs of such lengths."""
    source, target = stream(sources, 1), stream(targets, 2)
    layout = Layout.of(target.offsets, target.max_len, target.lengths)
    hidden = ours(target.tokens, target.positions, layout, source)
    logits = F.linear(hidden, ours.head_weight(), ours.head_bias())
    (inputs, seen), (outputs, real) = padded(source.tokens, sources), padded(target.tokens, targets)
    found = theirs(
        input_ids=inputs,
        attention_mask=seen.long(),
        decoder_input_ids=outputs,
        decoder_attention_mask=real.long(),
        output_hidden_states=True,
    )
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(ours.encode(source), found.encoder_last_hidden_state[seen], **close)
    scale = ours.config.width**-0.5 if ours.config.head_scale else 1.0
    torch.testing.assert_close(hidden, found.decoder_hidden_states[-1][real] * scale, **close)
    expected = found.logits[real]
    torch.testing.assert_close(logits, expected, **close)
    aims = torch.randint(VOCAB_SIZE, (len(logits),), generator=torch.Generator().manual_seed(3))
    loss, expected_loss = F.cross_entropy(logits, aims), F.cross_entropy(expected, aims)
    torch.testing.assert_close(loss, expected_loss, atol=1e-6, rtol=1e-6)
    loss.backward()
    expected_loss.backward()
    gradients = as_ours(ours.config, theirs, 1)
    own = dict(ours.named_parameters())
    assert own.keys() - gradients.keys() <= {"logit_bias"}
    for name, gradient in gradients.items():
        torch.testing.assert_close(own[name].grad, gradient, atol=1e-4, rtol=1e-4)


def check_identity(ours, directory):
    """What is exported and read again is the same, bit for bit; transformers reads the same, too."""
    read = HuggingFaceWeights(write(directory, ours, max_bytes=5_000))
    assert outright(read.config) == outright(ours.config)
    assert read.weight_shapes() == {f"model.{name}": parameter.shape for name, parameter in ours.named_parameters()}
    for name, parameter in ours.named_parameters():
        assert torch.equal(read(f"model.{name}", WEIGHT, 0, parameter.numel()), parameter.detach().reshape(-1))
    theirs = AutoModelForSeq2SeqLM.from_pretrained(directory, **IDS)
    for name, tensor in as_ours(ours.config, theirs, 0).items():
        assert torch.equal(ours.get_parameter(name), tensor), name


def outright(config):
    """Say what may be left to a rule, and nothing of how weights were drawn."""
    known = vars(config) | {key: getattr(config, rule) for key, rule in RULES.items()}
    return {key: value for key, value in known.items() if key != "init"}


RULES = {"mlp_width": "hidden_width", "decoder_layers": "num_decoder_layers", "attention_width": "all_heads_width"}


@pytest.mark.parametrize("name", FAMILIES)
def test_equals_transformers(tmp_path, name):
    pairs = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=4)

    @settings(max_examples=6, deadline=None)
    @given(models(name), pairs)
    def check(fields, lengths):
        ours = small_encoder_decoder(**fields)
        assert family_for(ours.config).model_type == name
        theirs = transformers_model(ours.config)
        ours.load_state_dict(as_ours(ours.config, theirs, 0))
        check_identity(ours, tmp_path / str(next(number)))
        check_parity(ours, theirs, *map(list, zip(*lengths, strict=True)))

    number = count()
    check()
