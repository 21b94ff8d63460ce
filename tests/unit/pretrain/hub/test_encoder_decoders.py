"""Our encoder-decoders equal those of transformers, family by family: theirs padded, ours ragged."""

import json
import re
from itertools import count

import pytest
import torch
import torch.nn.functional as F
from attention_laws import offsets
from hugging_face_directories import write
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_models import BART, MARIAN, MBART, T5, T5_GATED, T5_TIED, VOCAB_SIZE
from transformers import AutoConfig, AutoModelForSeq2SeqLM, BartConfig, BartForSequenceClassification

from pretrain.checkpoint.base import WEIGHT
from pretrain.errors import CheckpointError
from pretrain.hub.family import family_for
from pretrain.hub.weights import HuggingFaceWeights
from pretrain.models.attention.sdpa import sdpa
from pretrain.models.base import Layout, Stream
from pretrain.models.encoder_decoder import EncoderDecoderConfig
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


def check_files(theirs, directory):
    """What transformers writes is read, written again bit for bit, and read by transformers as what it was.

    Return our model.
    """
    theirs.save_pretrained(directory / "theirs")
    read = HuggingFaceWeights(directory / "theirs", prefix="")
    assert read.absent == []
    ours = read.config.build(vocab_size=VOCAB_SIZE, attend=sdpa)
    for name, parameter in ours.named_parameters():
        parameter.data.copy_(read(name, WEIGHT, 0, parameter.numel()).view_as(parameter))
    written = write(directory / "ours", ours, max_bytes=5_000)
    file = written / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | IDS))
    again = HuggingFaceWeights(written, prefix="")
    assert outright(again.config) == outright(ours.config)
    assert again.weight_shapes() == read.weight_shapes()
    for name, parameter in ours.named_parameters():
        assert torch.equal(again(name, WEIGHT, 0, parameter.numel()), parameter.detach().view(-1))
    loaded, tokens = AutoModelForSeq2SeqLM.from_pretrained(written).eval(), torch.arange(PAD + 1, 20)[None]
    inputs = {"input_ids": tokens, "decoder_input_ids": tokens.flip(1)}
    torch.testing.assert_close(loaded(**inputs).logits, theirs(**inputs).logits, atol=1e-5, rtol=1e-5)
    return ours


def outright(config):
    """Say what may be left to a rule, and nothing of how weights were drawn."""
    known = vars(config) | {key: getattr(config, rule) for key, rule in RULES.items()}
    return {key: value for key, value in known.items() if key != "init"}


RULES = {"mlp_width": "hidden_width", "decoder_layers": "num_decoder_layers", "attention_width": "all_heads_width"}


@pytest.mark.parametrize("name", FAMILIES)
def test_equals_transformers(tmp_path, name):
    pairs = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=4)

    @settings(max_examples=4, phases=[Phase.explicit, Phase.generate])  # shrinking takes minutes
    @given(models(name), pairs)
    def check(fields, lengths):
        config = EncoderDecoderConfig(**fields)
        assert family_for(config).model_type == name
        theirs = transformers_model(config)
        ours = check_files(theirs, tmp_path / str(next(number)))
        assert outright(ours.config) == outright(config)
        check_parity(ours, theirs, *map(list, zip(*lengths, strict=True)))

    number = count()
    check()


@pytest.mark.parametrize("fields", [T5_TIED, T5_GATED], ids=["1.0", "1.1"])
def test_distances_of_hundreds_of_tokens_fall_into_the_buckets_of_transformers(fields, tmp_path):
    theirs = transformers_model(EncoderDecoderConfig(**fields, max_seq_len=512, width=20, layers=2, heads=4))
    check_parity(check_files(theirs, tmp_path), theirs, [3, 300, 20], [300, 4, 17])


def stored_otherwise(directory, change=lambda tensors: None, **keys):
    """Return the directory of a small T5 1.1 of transformers, with other tensors and keys of config.json in it."""
    theirs = transformers_model(EncoderDecoderConfig(**T5_GATED, max_seq_len=32, width=8, layers=1, heads=2))
    theirs.save_pretrained(directory)
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    file = directory / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | keys))
    return directory


def without_head(tensors):
    del tensors["lm_head.weight"]


def with_equal_head(tensors):
    tensors["lm_head.weight"] = tensors["shared.weight"].clone()


@pytest.mark.parametrize("change", [lambda tensors: None, without_head, with_equal_head], ids=["other", "no", "equal"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("scaled", [False, True])
def test_heads_are_tied_and_scaled_as_in_transformers_whatever_the_flag_says(tmp_path, change, tied, scaled):
    stored_otherwise(tmp_path, change, tie_word_embeddings=tied, scale_decoder_outputs=scaled)
    read, theirs = HuggingFaceWeights(tmp_path).config, AutoModelForSeq2SeqLM.from_pretrained(tmp_path)
    assert read.tie_embeddings == (theirs.lm_head.weight is theirs.shared.weight)
    assert read.head_scale == theirs.config.scale_decoder_outputs == scaled


def test_a_classifier_of_an_encoder_decoder_is_read_without_its_head(tmp_path, caplog):
    """For which there is no place: such models write their answers."""
    described = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    described |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": VOCAB_SIZE}
    BartForSequenceClassification(BartConfig(**described)).save_pretrained(tmp_path)
    with caplog.at_level("INFO"):
        read = HuggingFaceWeights(tmp_path)
    [said] = caplog.messages
    assert "left alone: classification_head.dense.bias" in said and not read.absent


def test_what_older_files_store_twice_is_read_once(tmp_path):
    def change(tensors):
        tensors["encoder.embed_tokens.weight"] = tensors["shared.weight"].clone()
        tensors["decoder.embed_tokens.weight"] = tensors.pop("shared.weight")
        name = "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"
        tensors[name] = torch.ones(32, 2)

    read = HuggingFaceWeights(stored_otherwise(tmp_path, change))
    assert read.absent == [] and not read.config.tie_embeddings
    stored = load_file(tmp_path / "model.safetensors")["encoder.embed_tokens.weight"]
    assert torch.equal(read("model.embedding.weight", WEIGHT, 0, stored.numel()), stored.view(-1))

    other = load_file(tmp_path / "model.safetensors")
    other["decoder.embed_tokens.weight"] += 1
    save_file(other, tmp_path / "model.safetensors", metadata={"format": "pt"})
    rule = "decoder.embed_tokens.weight and shared.weight differ, and our models have one for both; leave out"
    with pytest.raises(CheckpointError, match=re.escape(rule)):
        HuggingFaceWeights(tmp_path)
