"""Released checkpoints of every family learn a step on two ranks under each strategy, and go back to transformers."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from equivalence import VOCABULARY, pack, sequences, start, strategies, train
from equivalence import save as save_step
from hugging_face_directories import AUTO_CLASSES
from ranks import on_ranks
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig

from pretrain.checkpoint.base import WEIGHT
from pretrain.checkpoint.fragments import FragmentReader
from pretrain.checkpoint.load import load_manifest
from pretrain.data.batch import IGNORED
from pretrain.hub.family import FAMILIES
from pretrain.hub.weights import HuggingFaceWeights, read_network, write_weights
from pretrain.models.attention.sdpa import sdpa
from pretrain.models.base import Layout, ModelKind
from pretrain.models.decoder import DecoderConfig
from pretrain.models.encoder_decoder import EncoderDecoderConfig
from pretrain.models.generation.generate import generate
from pretrain.models.generation.sampling import Sampler
from pretrain.objectives.causal_lm import CausalLMConfig
from pretrain.objectives.masked_lm import MaskedLMConfig

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]  # s; many engines on few cores, and others may use them too

PAD = 1  # RoBERTa's; no document holds it, as transformers gives its row no gradient
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
COMMON = {**SIZES, "vocab_size": VOCABULARY, "max_position_embeddings": 32, "pad_token_id": PAD}
GROUPED = {**COMMON, "num_key_value_heads": 2}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
FULL, LOCAL = "full_attention", "sliding_attention"
RELEASED = {  # what their config.json says beside the defaults
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32, "vocab_size": VOCABULARY, "pad_token_id": PAD},
    "llama": {**GROUPED, "rope_parameters": {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3}},
    "mistral": {**GROUPED, "sliding_window": 5},
    "qwen2": GROUPED,
    "qwen3": {**GROUPED, "head_dim": 12},
    "gemma3_text": {**GROUPED, "head_dim": 12, "sliding_window": 5, "layer_types": [LOCAL, FULL]},
    "olmo2": GROUPED,
    "phi3": {**GROUPED, "sliding_window": 5},
    "gpt_neox": COMMON,
    "bert": COMMON,
    "roberta": {**COMMON, "max_position_embeddings": 34},
    "distilbert": {
        "dim": 32,
        "hidden_dim": 48,
        "n_layers": 2,
        "n_heads": 4,
        "vocab_size": VOCABULARY,
        "pad_token_id": PAD,
    },
    "modernbert": {**COMMON, "local_attention": 8},
    "xlm-roberta": {**COMMON, "max_position_embeddings": 34},
    "electra": {**COMMON, "embedding_size": 20},
    "deberta-v2": {
        **{**COMMON, "relative_attention": True, "position_buckets": 4, "max_relative_positions": 9},
        **{"pos_att_type": "p2c|c2p", "share_att_key": True, "norm_rel_ebd": "layer_norm"},
        **{"position_biased_input": False, "type_vocab_size": 0},
    },
}
STRATEGIES = ["ddp", "zero3", "fsdp2"]


def texts(step):
    """Return the documents of a global batch, without the padding token."""
    return [torch.where(document <= PAD, PAD + 1, document) for document in sequences(step)]


def join(documents, masked):
    """Join documents; the targets of masked language models are tokens that the text alone chooses."""
    batch = pack([torch.where(document <= PAD, PAD + 1, document) for document in documents])
    if not masked:
        return batch
    targets = torch.where(batch.tokens % 3 == 0, batch.tokens, IGNORED)
    return replace(batch, targets=targets, num_targets=int((targets != IGNORED).sum()))


def build(config):
    with torch.device("meta"):
        model = config.build(vocab_size=VOCABULARY, attend=sdpa)
        return (CausalLMConfig if config.kind is ModelKind.causal else MaskedLMConfig)().build(model)


def released(directory, name):
    """Let transformers write a random model of a family, no norm at 1 and no bias at 0, and return it."""
    config = AutoConfig.for_model(name, **RELEASED[name])
    kind = ModelKind.causal if FAMILIES[name].config_type is DecoderConfig else ModelKind.bidirectional
    theirs = AUTO_CLASSES[kind].from_config(config).eval()
    draw = torch.Generator().manual_seed(5)
    for parameter in theirs.parameters():
        parameter.data += torch.randn(parameter.shape, generator=draw) * 0.1
    theirs.save_pretrained(directory)
    return theirs


def logits_of(theirs, documents):
    """Return transformers' logits of documents, (N, V)."""
    tokens, real = (
        pad_sequence(rows, batch_first=True, padding_value=fill)
        for rows, fill in ((documents, PAD), ([torch.ones_like(document) for document in documents], 0))
    )
    return theirs(input_ids=tokens, attention_mask=real).logits[real.bool()]


def first_step(theirs, masked):
    """Return the loss in nats a target, and the norm of its gradient, that transformers finds for the first batch."""
    batch = join(sequences(0), masked)
    loss = F.cross_entropy(logits_of(theirs, texts(0)), batch.targets, ignore_index=IGNORED)
    loss.backward()
    gradients = [parameter.grad for parameter in theirs.parameters() if parameter.grad is not None]
    return loss.item(), torch.nn.utils.get_total_norm(gradients).item()


def learn(world, place, names, expected):
    for name in names:
        weights = HuggingFaceWeights(place / name)
        masked = weights.config.kind is not ModelKind.causal
        for chosen in STRATEGIES:
            strategy, make = strategies(world.size)[chosen], partial(build, weights.config)
            _, wrapped, running = start(world, strategy, make=make, initial=weights)
            course = train(world, wrapped, running, range(1), 3, join=partial(join, masked=masked))
            assert (course.losses[0], course.norms[0]) == pytest.approx(expected[name], rel=2e-5), (name, chosen)
            save_step(world, running, place / f"{name}-{chosen}", 1)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A directory of every family, and what two ranks made of it."""
    place, expected = tmp_path_factory.mktemp("released"), {}
    for name in RELEASED:
        theirs = released(place / name, name)
        expected[name] = first_step(theirs, FAMILIES[name].config_type is not DecoderConfig)
    on_ranks(2, learn, place, list(RELEASED), expected)
    return place


def test_every_family_is_here():
    assert RELEASED.keys() == {name for name, each in FAMILIES.items() if each.config_type is not EncoderDecoderConfig}


@pytest.mark.parametrize("name", RELEASED)
def test_what_learned_on_two_ranks_goes_back_to_transformers(place, name):
    family, config, parts = read_network(place / name / "config.json")
    model, found = build(config).model.to_empty(device="cpu").eval(), []
    before = HuggingFaceWeights(place / name)
    for chosen in STRATEGIES:
        step = place / f"{name}-{chosen}" / "step-00000001"
        read = FragmentReader(step, load_manifest(step)["tensors"])
        for own, parameter in model.named_parameters():
            learned = read(f"model.{own}", WEIGHT, 0, parameter.numel())
            assert not torch.equal(learned, before(f"model.{own}", WEIGHT, 0, parameter.numel())), own
            parameter.data.copy_(learned.view(parameter.shape))
        out = place / f"{name}-{chosen}" / "export"
        out.mkdir()
        (out / "config.json").write_text(json.dumps({**family.to_hf(config, VOCABULARY), "pad_token_id": PAD}))
        write_weights(out, parts, read, dtype=torch.float32, max_bytes=20_000)
        theirs = AUTO_CLASSES[config.kind].from_pretrained(out).eval()
        with torch.no_grad():
            found.append(logits_of(theirs, texts(1)))
            torch.testing.assert_close(own_logits(model, config), found[-1], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found[1:], found[:1] * 2, atol=1e-3, rtol=1e-3)  # Adam's first step magnifies rounding
    if config.kind is ModelKind.causal:
        check_generation(model, theirs)


def own_logits(model, config):
    batch = join(sequences(1), masked=False)
    hidden = model(batch.tokens, batch.positions, Layout.of(batch.offsets, batch.max_len))
    if config.kind is ModelKind.causal:
        return F.linear(hidden, model.head_weight())
    return F.linear(model.head_input(hidden), model.head_weight(), model.head_bias())


def check_generation(model, theirs):
    """With our cache the likeliest tokens are those of transformers, which computes every text anew."""
    prompts = texts(2)
    found = generate(model, prompts, Sampler(temperature=0.0), max_tokens=12)
    for prompt, ids in zip(prompts, found, strict=True):
        logits = theirs(input_ids=torch.cat([prompt, torch.tensor(ids)])[None]).logits[0, len(prompt) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(ids)[:, None])[:, 0]
        torch.testing.assert_close(chosen, logits.amax(1), atol=1e-5, rtol=0)
