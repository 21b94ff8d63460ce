"""The decoder equals transformers' GPT-2 and Llama: logits, loss and gradients, document by document."""

import pytest
import torch
from small_models import LLAMA, VOCAB_SIZE, ragged_batch, small_decoder
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from pretrain.data.base import IGNORED
from pretrain.models.base import Layout
from pretrain.models.hub import family_for
from pretrain.models.layers import Activation
from pretrain.objectives.causal_lm import CausalLMConfig

LENGTHS = [7, 1, 32, 12]


def gpt2(config):
    return GPT2LMHeadModel(
        GPT2Config(
            vocab_size=VOCAB_SIZE,
            n_positions=config.max_seq_len,
            n_embd=config.width,
            n_layer=config.layers,
            n_head=config.heads,
            n_inner=config.mlp_width,
            layer_norm_epsilon=config.norm_eps,
            activation_function="gelu_new" if config.activation is Activation.gelu_tanh else "gelu",
            tie_word_embeddings=config.tie_embeddings,
            bos_token_id=0,
            eos_token_id=0,
            resid_pdrop=0,
            embd_pdrop=0,
            attn_pdrop=0,
        )
    )


def llama(config):
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB_SIZE,
            hidden_size=config.width,
            intermediate_size=config.mlp_width or 4 * config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.num_kv_heads,
            max_position_embeddings=config.max_seq_len,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=config.tie_embeddings,
        )
    )


def as_ours(config, theirs, read):
    """Return our names and layouts of what `read` gives for each parameter: itself or its gradient."""
    pieces = {}
    for part in family_for(config).parts(config, VOCAB_SIZE):
        tensor = read(theirs.get_parameter(part.theirs))
        pieces.setdefault(part.ours, []).append(tensor.T if part.transposed else tensor)
    return {name: torch.cat(parts) for name, parts in pieces.items()}


def check_parity(ours, theirs):
    for parameter in theirs.parameters():  # norms and biases away from 1 and 0 as well
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    ours.load_state_dict(as_ours(ours.config, theirs, lambda parameter: parameter.detach()))
    batch = ragged_batch(LENGTHS)

    hidden = ours(batch.tokens, batch.positions, Layout.of(batch.offsets, batch.max_len))
    expected = torch.cat([theirs(input_ids=document[None]).logits[0] for document in batch.tokens.split(LENGTHS)])
    torch.testing.assert_close(hidden @ ours.head_weight().T, expected, atol=1e-5, rtol=1e-5)

    loss = CausalLMConfig(chunk_tokens=13).build(ours)(batch).total / batch.num_targets
    expected_loss = torch.nn.functional.cross_entropy(expected, batch.targets, ignore_index=IGNORED)
    torch.testing.assert_close(loss, expected_loss, atol=1e-6, rtol=1e-6)

    loss.backward()
    expected_loss.backward()
    expected_gradients = as_ours(ours.config, theirs, lambda parameter: parameter.grad)
    gradients = {name: parameter.grad for name, parameter in ours.named_parameters()}
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"layers": 1, "heads": 1, "mlp_width": 40, "activation": Activation.gelu},
        {"width": 40, "heads": 5, "layers": 3, "tie_embeddings": False, "norm_eps": 1e-3},
    ],
)
def test_equals_gpt2(fields):
    ours = small_decoder(**fields)
    check_parity(ours, gpt2(ours.config))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"kv_heads": 2, "tie_embeddings": False, "mlp_width": 56},
        {"kv_heads": 1, "layers": 3, "rope_theta": 500_000.0, "norm_eps": 1e-6},
        {"width": 40, "heads": 5, "tie_embeddings": False},
    ],
)
def test_equals_llama(fields):
    ours = small_decoder(**LLAMA, **fields)
    check_parity(ours, llama(ours.config))
