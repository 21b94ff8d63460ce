"""Each element of our models has one place in Hugging Face's layout, and configurations survive both ways."""

import re
from dataclasses import replace

import pytest
import torch
from family_shapes import SHAPES, small_model
from hugging_face_directories import AUTO_CLASSES
from published import DEBERTA_V3
from small_models import (
    BART,
    ELECTRA,
    GEMMA3,
    GPT_NEOX,
    LLAMA,
    MARIAN,
    MBART,
    MODERNBERT,
    OLMO2,
    ROBERTA,
    T5_GATED,
    T5_TIED,
    VOCAB_SIZE,
)
from transformers import (
    AutoConfig,
    BartConfig,
    BertConfig,
    CamembertConfig,
    DebertaV2Config,
    DistilBertConfig,
    ElectraConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MarianConfig,
    MBartConfig,
    MistralConfig,
    ModernBertConfig,
    Olmo2Config,
    Phi3Config,
    RobertaConfig,
    T5Config,
    XLMRobertaConfig,
)

from pretrain.errors import ConfigError
from pretrain.hub.families.roberta import Roberta
from pretrain.hub.family import FAMILIES, check_family, family_for, family_of, head_for
from pretrain.hub.task_heads import HeadKind, HeadLayer
from pretrain.models.base import ModelConfig, ModelKind
from pretrain.models.decoder import DecoderConfig
from pretrain.models.encoder import EncoderConfig
from pretrain.models.encoder_decoder import EncoderDecoderConfig
from pretrain.models.init import Init
from pretrain.models.layers import Activation, Order, Positions


@pytest.mark.parametrize("name", SHAPES)
def test_each_element_lies_in_one_part_and_every_tensor_of_theirs_is_one(name):
    model = small_model(name)
    family = family_for(model.config)
    assert family.model_type == name.split(",")[0]
    covered = {name: torch.zeros(parameter.shape) for name, parameter in model.named_parameters()}
    parts = {part.theirs: part for part in family.model_tensors(model.config, VOCAB_SIZE)}
    for part in parts.values():
        assert part.shape[1:] == covered[part.ours].shape[1:]
        covered[part.ours].view(-1)[part.start : part.start + part.numel] += 1
    assert all(bool((count == 1).all()) for count in covered.values())

    with torch.device("meta"):
        config = AutoConfig.for_model(**{"pad_token_id": 0, **family.to_hf(model.config, VOCAB_SIZE)})
        theirs = AUTO_CLASSES[model.config.kind].from_config(config)
    assert type(theirs).__name__ == family.architecture
    shapes = {name: tuple(each.shape) for name, each in theirs.named_parameters() if each.requires_grad}
    if model.config.tie_embeddings:  # the copy comes first in XLM-RoBERTa
        shapes = {family.tensors.tied.get(name, name): shape for name, shape in shapes.items()}
    if getattr(model.config, "head_bias", False):
        shapes["final_logits_bias"] = (1, VOCAB_SIZE)
    if name == "t5, gated":  # which transformers ties until it reads another head
        shapes["lm_head.weight"] = shapes["shared.weight"]
    if "embed_out.weight" in parts:  # its name in files
        shapes["embed_out.weight"] = shapes.pop("lm_head.weight")
    assert shapes == {name: part.their_shape for name, part in parts.items()}


@pytest.mark.parametrize("name", SHAPES)
def test_our_configuration_comes_back(name):
    config = small_model(name).config
    theirs = family_for(config).to_hf(config, VOCAB_SIZE)
    assert family_of(theirs) is family_for(config)
    assert outright(family_of(theirs).from_hf(theirs)) == outright(config)
    assert outright(family_of(theirs).from_hf(AutoConfig.for_model(**theirs).to_dict())) == outright(config)


def outright(config):
    """Say what may be left to a rule, and leave out what only training asks for."""
    known = {"mlp_width": config.hidden_width}
    if config.kind is ModelKind.causal:
        known["kv_heads"] = config.num_kv_heads
    if config.kind is ModelKind.encoder_decoder:
        known |= {"decoder_layers": config.num_decoder_layers, "attention_width": config.all_heads_width}
        known["init"] = Init.t5
    return replace(config, **known)


def test_defining_a_family_adds_it_and_every_family_is_tested(monkeypatch):
    assert {name.partition(",")[0] for name in SHAPES} == FAMILIES.keys()
    monkeypatch.setattr("pretrain.hub.family.FAMILIES", FAMILIES.copy())

    class Camembert(Roberta):
        model_type = "camembert"
        architecture = "CamembertForMaskedLM"

    theirs = CamembertConfig(type_vocab_size=1).to_dict()
    assert isinstance(family_of(theirs), Camembert)
    ours = family_of(theirs).from_hf(theirs)
    assert ours.position_offset == 2
    assert isinstance(family_for(ours), Camembert), "it is named where another one computes the same"
    assert family_for(replace(ours, family=None)).model_type == "roberta", "of equals the first"
    assert "camembert" not in FAMILIES


def test_a_family_that_is_named_must_exist_and_compute_the_same():
    for family in (None, "bert", "electra"):
        config = EncoderConfig(max_seq_len=32, family=family)
        check_family(config)
        assert family_for(config).model_type == (family or "bert")
    head = head_for(EncoderConfig(max_seq_len=32, family="electra"), HeadKind.sequence)
    assert HeadLayer.gelu in head.layers and HeadLayer.pooler not in head.layers
    for family, refusal in (
        ("elektra", "model.family=elektra: must be one of bert, deberta-v2, distilbert, electra,"),
        ("gpt2", "model.family=gpt2: must be one of bert, "),
        ("roberta", "model.position_offset=0: is not supported by RobertaForMaskedLM"),
    ):
        config = EncoderConfig(max_seq_len=32, family=family)
        for refuse in (check_family, family_for, lambda config: head_for(config, HeadKind.token)):
            with pytest.raises(ValueError, match=refusal):
                refuse(config)


def test_a_model_from_outside_names_no_family_and_is_of_none():
    class Outside(ModelConfig):
        kind = ModelKind.causal

    check_family(Outside())
    assert head_for(Outside(), HeadKind.sequence) is FAMILIES["gpt2"].heads.sequence
    with pytest.raises(ConfigError, match="Outside: is none of "):
        family_for(Outside())


def test_what_transformers_writes_is_understood():
    gpt2 = GPT2Config(n_embd=24, n_head=2, n_layer=3).to_dict()
    assert family_of(gpt2).from_hf(gpt2) == DecoderConfig(max_seq_len=1024, width=24, heads=2, layers=3, kv_heads=None)
    size = {"hidden_size": 24, "intermediate_size": 40, "num_attention_heads": 4, "num_hidden_layers": 3}
    llama = LlamaConfig(**size, rope_parameters={"rope_type": "default", "rope_theta": 5e5}).to_dict()
    ours = {"width": 24, "mlp_width": 40, "heads": 4, "layers": 3, "tie_embeddings": False, "norm_eps": 1e-6, **LLAMA}
    assert family_of(llama).from_hf(llama) == DecoderConfig(max_seq_len=2048, kv_heads=4, rope_theta=5e5, **ours)
    mistral = MistralConfig(**size, num_key_value_heads=2, sliding_window=9).to_dict()
    assert family_of(mistral).from_hf(mistral) == DecoderConfig(max_seq_len=131072, kv_heads=2, window=9, **ours)
    phi3 = Phi3Config(**size, sliding_window=9).to_dict()
    ours |= {"kv_heads": 4, "window": 9, "norm_eps": 1e-5}
    assert family_of(phi3).from_hf(phi3) == DecoderConfig(max_seq_len=4096, family="phi3", **ours)
    neox = GPTNeoXConfig(**size | {"hidden_size": 32}).to_dict()
    ours = {"width": 32, "mlp_width": 40, "heads": 4, "layers": 3, "tie_embeddings": False}
    assert family_of(neox).from_hf(neox) == DecoderConfig(max_seq_len=2048, **ours, **GPT_NEOX | {"rotary_share": 0.25})
    bert = BertConfig(**size).to_dict()
    ours = {"width": 24, "mlp_width": 40, "heads": 4, "layers": 3}
    assert family_of(bert).from_hf(bert) == EncoderConfig(max_seq_len=512, **ours)
    roberta = RobertaConfig(**size, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5).to_dict()
    assert family_of(roberta).from_hf(roberta) == EncoderConfig(max_seq_len=512, **ours, **ROBERTA)
    xlm = XLMRobertaConfig(**size, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5).to_dict()
    named = EncoderConfig(max_seq_len=512, **ours, **ROBERTA, family="xlm-roberta")
    assert family_of(xlm).from_hf(xlm) == named
    electra = ElectraConfig(**size, embedding_size=10).to_dict()
    assert family_of(electra).from_hf(electra) == EncoderConfig(max_seq_len=512, **ours, **ELECTRA)
    electra = ElectraConfig(**size, embedding_size=24).to_dict()
    assert family_of(electra).from_hf(electra) == EncoderConfig(max_seq_len=512, **ours, family="electra")
    bart = BartConfig(d_model=24, encoder_layers=3, encoder_attention_heads=4, decoder_attention_heads=4).to_dict()
    ours = {"width": 24, "mlp_width": 4096, "heads": 4, "layers": 3, "decoder_layers": 12, "max_seq_len": 1024}
    assert family_of(bart).from_hf(bart) == EncoderDecoderConfig(**ours, **BART)
    ours |= {"heads": 16, "width": 1024, "layers": 12}
    for theirs, same in ((MBartConfig(), MBART), (MarianConfig(), MARIAN)):
        fields = ours | same | {"activation": Activation.gelu, "embedding_scale": False}
        assert family_of(theirs.to_dict()).from_hf(theirs.to_dict()) == EncoderDecoderConfig(**fields)
    ours = {"width": 24, "mlp_width": 2048, "heads": 8, "layers": 6, "decoder_layers": 6, "max_seq_len": 512}
    ours |= {"attention_width": 512, "init": Init.t5}
    for gated, same in ((False, T5_TIED), (True, T5_GATED)):
        more = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False} if gated else {}
        theirs = T5Config(d_model=24, **more).to_dict()
        assert theirs["tie_word_embeddings"], "whatever it is"
        assert family_of(theirs).from_hf(theirs) == EncoderDecoderConfig(**ours, **same)
    ours = {"width": 24, "mlp_width": 40, "heads": 4, "layers": 3}
    ours |= {"max_seq_len": 2048, "tie_embeddings": False}
    olmo = Olmo2Config(**size).to_dict()
    assert family_of(olmo).from_hf(olmo) == DecoderConfig(kv_heads=4, **ours, **OLMO2)
    gemma = Gemma3TextConfig(**size, head_dim=8, query_pre_attn_scalar=168).to_dict()
    windows = {"window": 4096, "rope_theta": 1e6, "local_rope_theta": 1e4}
    ours |= {"max_seq_len": 131_072, "tie_embeddings": True, "norm_eps": 1e-6, "attention_width": 32}
    expected = DecoderConfig(kv_heads=4, score_width=168, **windows, **ours, **GEMMA3)
    assert family_of(gemma).from_hf(gemma) == expected
    gemma = Gemma3TextConfig(**size | {"num_hidden_layers": 8}).to_dict()
    assert family_of(gemma).from_hf(gemma).global_every == 6 == family_of(gemma).from_hf(gemma).global_first + 1
    ours = {"width": 24, "mlp_width": 40, "heads": 4, "layers": 3}
    modern = ModernBertConfig(**size).to_dict()
    windows = {"window": 65, "global_every": 3}
    assert family_of(modern).from_hf(modern) == EncoderConfig(max_seq_len=8192, **ours, **MODERNBERT, **windows)


def test_configurations_of_older_versions_are_understood():
    theirs = LlamaConfig(hidden_size=24, num_attention_heads=4).to_dict()
    del theirs["rope_parameters"], theirs["head_dim"]
    assert family_of(theirs).from_hf({**theirs, "rope_theta": 5e5, "rope_scaling": None}).rope_theta == 5e5
    assert family_of(theirs).from_hf(theirs).rope_theta == 10_000
    theirs = {"model_type": "gemma3_text", "num_hidden_layers": 7, "rope_theta": 5e5, "rope_local_base_freq": 9e3}
    theirs |= {"sliding_window_pattern": 2, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
    ours = family_of(theirs).from_hf(theirs)
    assert (ours.rope_theta, ours.local_rope_theta, ours.rope_scaling.factor) == (5e5, 9e3, 8.0)
    assert [ours.layer_window(layer) for layer in range(4)] == [4096, None, 4096, None]
    theirs = {**ModernBertConfig(num_hidden_layers=7).to_dict(), "global_rope_theta": 5e4, "local_rope_theta": None}
    del theirs["rope_parameters"], theirs["layer_types"]
    ours = family_of(theirs).from_hf({**theirs, "global_attn_every_n_layers": 2})
    assert (ours.rope_theta, ours.local_rope_theta, ours.global_every) == (5e4, 5e4, 2)
    assert family_of(theirs).from_hf(theirs).global_every == 3
    bert = {"model_type": "bert", "hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert |= {"intermediate_size": 40, "max_position_embeddings": 9}
    assert family_of(bert).from_hf(bert) == EncoderConfig(max_seq_len=9, width=24, layers=1, heads=2, mlp_width=40)


PHI3_128K = {"model_type": "phi3", "max_position_embeddings": 131_072, "original_max_position_embeddings": 4096}
LONGROPE = {"long_factor": [1.0] * 48, "short_factor": [1.0] * 48}
BERT, MODERN, GEMMA = BertConfig().to_dict(), ModernBertConfig().to_dict(), Gemma3TextConfig().to_dict()


def test_the_released_deberta_is_understood():
    ours = EncoderConfig(
        max_seq_len=512, mlp_width=3072, norm_eps=1e-7, token_types=0, positions=Positions.disentangled
    )
    assert family_of(DEBERTA_V3).from_hf(DEBERTA_V3) == ours, "of which the rest are defaults"
    fine_tuned = {**DebertaV2Config(**DEBERTA_V3).to_dict(), "summary_type": "first", "cls_dropout": 0.15}
    assert family_of(fine_tuned).from_hf(fine_tuned) == ours


SUMMARISER, TRANSLATOR, TEXT_TO_TEXT = BartConfig().to_dict(), MarianConfig().to_dict(), T5Config().to_dict()


def rotary(layers, kind, **more):
    default = {"rope_type": "default", "rope_theta": 1e4}
    changed = {**default, **more, "rope_type": kind}
    return {**dict.fromkeys(("full_attention", "sliding_attention"), default), layers: changed}


@pytest.mark.parametrize(
    ("theirs", "refusal"),
    [
        (
            {"model_type": "bloom"},
            "model_type=bloom: is not supported; choose a model of bart, mbart, bert, deberta-v2, dist",
        ),
        (GPT2Config(scale_attn_by_inverse_layer_idx=True).to_dict(), "scale_attn_by_inverse_layer_idx=True is not"),
        (
            GPT2Config(activation_function="relu").to_dict(),
            "activation_function=relu is not supported by model=decoder (gelu_new, gelu",
        ),
        (LlamaConfig(attention_bias=True).to_dict(), "attention_bias=True is not supported"),
        (
            {**LlamaConfig().to_dict(), "qk_norm": True},
            "qk_norm=True is not supported by model=decoder (unknown, and may change",
        ),
        ({**LlamaConfig().to_dict(), "rope_interleaved": True}, "rope_interleaved=True is not"),
        (
            {**LlamaConfig().to_dict(), "is_causal": False},
            "is_causal=False is not supported by model=decoder (True is)",
        ),
        ({**TEXT_TO_TEXT, "is_causal": None}, "is_causal=None is not supported by model=encoder_decoder (True is)"),
        ({**BERT, "is_encoder_decoder": True}, "is_encoder_decoder=True is not"),
        ({**MODERN, "embedding_size": 128}, "embedding_size=128 is not"),
        (LlamaConfig(hidden_act="gelu").to_dict(), "hidden_act=gelu is not supported"),
        ({**LlamaConfig().to_dict(), "num_attention_heads": 24}, "num_attention_heads=24 is not supported"),
        (
            LlamaConfig(rope_parameters={"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}).to_dict(),
            "rope_type=dynamic is not supported",
        ),
        (
            {**LlamaConfig().to_dict(), "rope_parameters": {"type": "longrope", "factor": 4.0, "rope_theta": 1e4}},
            "type=longrope is not",
        ),
        (
            {**LlamaConfig().to_dict(), "rope_parameters": {"rope_type": "default", "factor": 4.0}},
            "rope_parameters.factor=4.0 is not",
        ),
        ({**PHI3_128K, "rope_scaling": LONGROPE | {"type": "su"}}, "rope_scaling.type=su is not supported"),
        ({**PHI3_128K, "rope_scaling": LONGROPE | {"type": "yarn"}}, "rope_scaling.type=yarn is not supported"),
        ({**PHI3_128K, "rope_parameters": LONGROPE | {"rope_type": "longrope"}}, "rope_type=longrope is not supported"),
        ({**PHI3_128K, "head_dim": 96}, "head_dim=96 is not supported"),
        ({**GPTNeoXConfig().to_dict(), "attention_bias": False}, "attention_bias=False is not supported"),
        (
            GPTNeoXConfig(rope_parameters={"rope_type": "dynamic", "factor": 2.0}).to_dict(),
            "rope_parameters.rope_type=dynamic is not supported",
        ),
        ({**MODERN, "rope_parameters": {"rope_theta": 5e4}}, "rope_parameters.rope_theta=50000.0 is not"),
        ({**LlamaConfig().to_dict(), "rope_scaling": {"type": "linear"}}, "rope_scaling.factor=None is not supported"),
        ({**MODERN, "rope_scaling": {"rope_type": "default", "factor": 2.0}}, "full_attention.factor=2.0 is not"),
        (
            {**BERT, "position_embedding_type": "relative_key"},
            "position_embedding_type=relative_key is not supported",
        ),
        ({**BERT, "is_decoder": True}, "is_decoder=True is not supported by model=encoder (False is)"),
        ({**BERT, "add_cross_attention": True}, "add_cross_attention=True is not"),
        (
            {**BERT, "hidden_act": "relu"},
            "hidden_act=relu is not supported by model=encoder (gelu, gelu_new",
        ),
        ({**BERT, "tie_word_embeddings": False}, "tie_word_embeddings=False is not"),
        ({**BERT, "pruned_heads": {"0": [1]}}, "pruned_heads={'0': [1]} is not"),
        (RobertaConfig(hidden_act="gelu_new").to_dict(), "hidden_act=gelu_new is not"),
        (DistilBertConfig(sinusoidal_pos_embds=True).to_dict(), "sinusoidal_pos_embds=True is not"),
        (DistilBertConfig(activation="relu").to_dict(), "activation=relu is not"),
        (ElectraConfig(hidden_act="gelu_new").to_dict(), "hidden_act=gelu_new is not supported by model=encoder (gelu"),
        (ElectraConfig(is_decoder=True).to_dict(), "is_decoder=True is not"),
        ({**ElectraConfig().to_dict(), "embedding_size": 0.5}, "embedding_size=0.5: must be a whole number"),
        (XLMRobertaConfig(add_cross_attention=True).to_dict(), "add_cross_attention=True is not"),
        ({**MODERN, "mlp_bias": True}, "mlp_bias=True is not"),
        ({**MODERN, "norm_bias": True}, "attention_bias=False is not"),
        ({**MODERN, "classifier_bias": True}, "classifier_bias=True is not"),
        ({**MODERN, "decoder_bias": False}, "decoder_bias=False is not"),
        ({**MODERN, "classifier_activation": "relu"}, "classifier_activation=relu is not"),
        (
            {**MODERN, "rope_parameters": rotary("full_attention", "yarn", factor=2.0)},
            "rope_type=yarn is not",
        ),
        (
            {**MODERN, "rope_parameters": rotary("sliding_attention", "linear", factor=2.0)},
            "rope_type=linear is not",
        ),
        ({**MODERN, "layer_types": ["full_attention"] * 2 + ["sliding_attention"] * 20}, "layer_types=['full_att"),
        (
            {**SUMMARISER, "decoder_attention_heads": 8},
            "decoder_attention_heads=8 is not supported by model=encoder_dec",
        ),
        ({**SUMMARISER, "decoder_ffn_dim": 8}, "decoder_ffn_dim=8 is not"),
        ({**SUMMARISER, "tie_word_embeddings": False}, "tie_word_embeddings=False is not"),
        ({**SUMMARISER, "normalize_before": True}, "normalize_before=True is not"),
        ({**SUMMARISER, "is_encoder_decoder": False}, "is_encoder_decoder=False is not"),
        ({**TRANSLATOR, "decoder_vocab_size": 9}, "decoder_vocab_size=9 is not"),
        ({**TRANSLATOR, "share_encoder_decoder_embeddings": False}, "share_encoder_decoder_embeddings=False is not"),
        ({**TEXT_TO_TEXT, "feed_forward_proj": "gated-relu"}, "feed_forward_proj=gated-relu is not"),
        ({**TEXT_TO_TEXT, "d_kv": 1 << 23}, "d_kv * num_heads=67108864: must be a whole number from 1 to 16777216"),
        ({**TEXT_TO_TEXT, "is_decoder": True}, "is_decoder=True is not"),
        ({**MODERN, "layer_types": ["full_attention"] * 21 + ["sliding_attention"]}, "layer_types=['full_att"),
        (
            {"model_type": "gemma3", "text_config": GEMMA},
            "model_type=gemma3: is not supported, for it reads more than text; save its gemma3_text alone",
        ),
        ({**GEMMA, "final_logit_softcapping": 30.0}, "final_logit_softcapping=30.0 is not supported by model=decoder"),
        ({**GEMMA, "attn_logit_softcapping": 50.0}, "attn_logit_softcapping=50.0 is not supported by model=decoder"),
        ({**GEMMA, "use_bidirectional_attention": True}, "use_bidirectional_attention=True is not supported"),
        ({**GEMMA, "attention_bias": True}, "attention_bias=True is not supported"),
        ({**GEMMA, "hidden_activation": "relu"}, "hidden_activation=relu is not supported by model=decoder (gelu_py"),
        (
            {**GEMMA, "layer_types": ["full_attention"] * 3 + ["sliding_attention"] * 23},
            "one of sliding_attention for each layer, but full_attention for every n-th, is)",
        ),
        ({**GEMMA, "sliding_window": None}, "sliding_window=null: must be a whole number from 1"),
        ({**GEMMA, "num_attention_heads": 7}, "num_attention_heads=7 is not supported"),
        ({**GEMMA, "rope_parameters": {"rope_theta": 1e4}}, "rope_parameters.rope_theta=10000.0 is not"),
        (
            {**GEMMA, "rope_parameters": rotary("sliding_attention", "linear", factor=2.0)},
            "rope_parameters.sliding_attention.rope_type=linear is not",
        ),
        (
            {**GEMMA, "rope_scaling": {"rope_type": "longrope", "factor": 8.0}},
            "rope_scaling.rope_type=longrope is not",
        ),
        (
            {"model_type": "gemma3_text", "rope_scaling": {"type": "linear", "factor": 8.0}},
            "rope_scaling.factor=8.0 is not supported by model=decoder (default frequencies have none)",
        ),
        (Olmo2Config(attention_bias=True).to_dict(), "attention_bias=True is not supported"),
        ({**DEBERTA_V3, "relative_attention": False}, "relative_attention=False is not supported by model=encoder"),
        ({**DEBERTA_V3, "position_biased_input": True}, "position_biased_input=True is not"),
        ({**DEBERTA_V3, "conv_kernel_size": 3}, "conv_kernel_size=3 is not supported by model=encoder (0 is)"),
        ({**DEBERTA_V3, "pos_att_type": "c2p|p2p"}, "pos_att_type=c2p|p2p is not"),
        ({**DEBERTA_V3, "pos_att_type": []}, "pos_att_type=[] is not supported by model=encoder (p2c and c2p are, or"),
        ({**DEBERTA_V3, "norm_rel_ebd": "rms_norm"}, "norm_rel_ebd=rms_norm is not"),
        ({**DEBERTA_V3, "embedding_size": 128}, "embedding_size=128 is not supported by model=encoder (768 is)"),
        ({**DEBERTA_V3, "attention_head_size": 32}, "attention_head_size=32 is not supported by model=encoder (64"),
        ({**DEBERTA_V3, "pooler_hidden_act": "tanh"}, "pooler_hidden_act=tanh is not"),
        ({**DEBERTA_V3, "position_buckets": 255}, "model.buckets=255: must be even"),
    ],
)
def test_what_we_do_not_have_is_refused_by_name(theirs, refusal):
    with pytest.raises(ConfigError, match=re.escape(refusal)):
        family_of(theirs).from_hf(theirs)


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({"token_types": 0, "norm_eps": 1e-5}, "model.token_types=0: is not supported by BertForMaskedLM"),
        ({"tie_embeddings": False}, "model.tie_embeddings=false: is not supported by BertForMaskedLM"),
        ({"window": 4}, "model.window=4: is not supported by BertForMaskedLM, which has null only"),
        (
            {"activation": Activation.geglu},
            "activation=geglu: is not supported by BertForMaskedLM, which has gelu and",
        ),
        ({"order": Order.pre}, "model.order=pre: is not supported by BertForMaskedLM"),
        (
            {"order": Order.pre, "window": 4},
            "which has post only; model.window=4: is not supported by BertForMaskedLM, which has null only: this",
        ),
        ({**ROBERTA, "bias": False}, "model.bias=false: is not supported by RobertaForMaskedLM"),
        ({**ROBERTA, "token_types": 0}, "model.token_types=0: is not supported by RobertaForMaskedLM"),
        ({**MODERNBERT, "activation": Activation.gelu}, "model.activation=gelu: is not supported by ModernBertFor"),
        ({**MODERNBERT, "token_types": 2}, "model.token_types=2: is not supported by ModernBertForMaskedLM"),
        ({**ELECTRA, "activation": Activation.relu}, "model.activation=relu: is not supported by ElectraForMaskedLM"),
        ({"embedding_width": 9, "family": "bert"}, "model.embedding_width=9: is not supported by BertForMaskedLM"),
        ({**ELECTRA, "position_offset": 2}, "model.position_offset=2: is not supported by ElectraForMaskedLM, which"),
    ],
)
def test_encoders_of_no_family_are_refused_by_name(fields, refusal):
    with pytest.raises(ConfigError, match=re.escape(refusal)):
        family_for(EncoderConfig(max_seq_len=32, **fields))


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({**BART, "embedding_norm": False}, "model.embedding_norm=false: is not supported by BartForConditional"),
        ({**MARIAN, "attention_width": 1024}, "model.attention_width=1024: is not supported by MarianMTModel"),
        ({**T5_TIED, "embedding_scale": True}, "model.embedding_scale=true: is not supported by T5ForConditional"),
        ({**T5_TIED, "activation": Activation.geglu}, "model.activation=geglu: is not supported by T5ForConditional"),
    ],
)
def test_encoder_decoders_of_no_family_are_refused_by_name(fields, refusal):
    with pytest.raises(ConfigError, match=re.escape(refusal)):
        family_for(EncoderDecoderConfig(max_seq_len=32, **fields))


def test_an_encoder_decoder_has_no_head_of_a_task():
    rule = "model=encoder_decoder: an encoder-decoder writes its answers and has no head for a sequence; choose task=se"
    with pytest.raises(ConfigError, match=re.escape(rule)):
        head_for(EncoderDecoderConfig(max_seq_len=32), HeadKind.sequence)


# Keys beside those that transformers writes today, as released files have them.
RELEASED = [
    {
        **{**GPT2Config().to_dict(), "n_ctx": 1024, "n_special": 0, "predict_special_tokens": True},
        "task_specific_params": {"text-generation": {"max_length": 50}},
    },
    {**LlamaConfig().to_dict(), "is_llama_config": True, "rope_interleaved": False, "transformers.js_config": {"a": 1}},
    {**LlamaConfig().to_dict(), "unsloth_fixed": True, "unsloth_version": "2024.9"},
    {**GPTNeoXConfig().to_dict(), "custom_pipelines": {"text-generation": {"impl": "pipeline.Pipeline"}}},
    {**BERT, "gradient_checkpointing": False, "position_embedding_type": "absolute", "pooler_fc_size": 768},
    {**RobertaConfig().to_dict(), "position_embedding_type": "absolute"},
    {**XLMRobertaConfig().to_dict(), "output_past": True},
    {**ElectraConfig().to_dict(), "position_embedding_type": "absolute", "summary_first_dropout": 0.1},
    {
        **{**SUMMARISER, "add_bias_logits": False, "add_final_layer_norm": False, "classif_dropout": 0.1},
        **{"normalize_before": False, "normalize_embedding": True, "num_hidden_layers": 12, "forced_bos_token_id": 0},
        **{"static_position_embeddings": False, "force_bos_token_to_be_generated": True, "save_step": 58},
    },
    {
        **{**TRANSLATOR, "add_bias_logits": False, "add_final_layer_norm": False, "bad_words_ids": [[58100]]},
        **{"normalize_before": False, "normalize_embedding": False, "static_position_embeddings": True},
        **{"num_hidden_layers": 12, "extra_pos_embeddings": 58101, "max_length": 512, "num_beams": 6},
    },
    {**TEXT_TO_TEXT, "output_past": True, "task_specific_params": {"a": 1}, "n_positions": 512, "use_cache": True},
    {**DistilBertConfig().to_dict(), "tie_weights_": True},
    {
        **{"model_type": "deberta-v2", "relative_attention": True, "position_biased_input": False},
        **{"pos_att_type": ["c2p"], "position_buckets": -1, "norm_rel_ebd": "none", "summary_type": "first"},
    },
    {**MODERN, "position_embedding_type": "absolute", "reference_compile": True, "gradient_checkpointing": False},
]


@pytest.mark.parametrize("theirs", RELEASED, ids=lambda theirs: theirs["model_type"])
def test_keys_that_change_nothing_are_no_reason_to_refuse(theirs):
    today = {key: value for key, value in theirs.items() if key in AutoConfig.for_model(theirs["model_type"]).to_dict()}
    assert len(today) < len(theirs)
    assert family_of(theirs).from_hf(theirs) == family_of(today).from_hf(today)
