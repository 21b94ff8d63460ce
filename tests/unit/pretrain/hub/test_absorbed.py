"""What transformers computes with the weights of a model under muP is what ours computes with its factors."""

import json

import pytest
import torch
import torch.nn.functional as F
from hugging_face_directories import InMemory
from small_models import LLAMA, OLMO2, QWEN3, VOCAB_SIZE, ragged_batch, small_decoder
from transformers import AutoModelForCausalLM

from pretrain.hub.absorbed import absorbed
from pretrain.hub.family import family_for
from pretrain.hub.weights import write_weights
from pretrain.models.base import Layout

MUP = {"mup_base_width": 9, "mup_base_head_width": 2}
SHAPES = {
    "gpt2": {},  # tied, with biases; its projection is read whole
    "llama": {**LLAMA, "kv_heads": 2, "tie_embeddings": False, "attention_width": 40},
    "qwen3": {**QWEN3, "kv_heads": 2},
    "olmo2": {**OLMO2, "kv_heads": 2},
}


@pytest.mark.parametrize("name", SHAPES)
def test_transformers_computes_the_same(tmp_path, name):
    ours = small_decoder(**SHAPES[name], **MUP)
    generator = torch.Generator().manual_seed(1)
    for parameter in ours.parameters():  # no norm of 1, no bias of 0, which take any factor
        torch.nn.init.normal_(parameter, std=0.7, generator=generator)
    family = family_for(ours.config)
    assert family.model_type == name
    theirs = written(tmp_path, family, ours)
    batch = ragged_batch([5, 1, 17])
    layout = Layout.of(batch.offsets, batch.max_len)
    with torch.no_grad():
        logits = F.linear(ours(batch.tokens, batch.positions, layout), ours.head_weight())
        documents = batch.tokens.split([5, 1, 17])
        expected = torch.cat([theirs(input_ids=document[None]).logits[0] for document in documents])
    assert logits.std() > 0.5, "logits that say something"
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def written(directory, family, ours):
    """Return what transformers reads from an export."""
    parts = list(family.model_tensors(ours.config, VOCAB_SIZE, "model."))
    read = absorbed(InMemory(ours), ours.config)
    write_weights(directory, parts, read, dtype=torch.float32, max_bytes=10**9)
    (directory / "config.json").write_text(json.dumps(family.to_hf(ours.config, VOCAB_SIZE)))
    return AutoModelForCausalLM.from_pretrained(directory)


def test_without_mup_nothing_is_in_between():
    ours = small_decoder(mup_base_width=24)
    read = InMemory(ours)
    assert absorbed(read, ours.config) is read
