"""The config.json of much used releases, as their pages on the hub show them: shapes and options, no weights.

Holds no tests; what keys say that no test reads is left out.
"""

LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
LLAMA3 |= {"rope_type": "llama3"}
OF_ALL = {"torch_dtype": "bfloat16", "use_cache": True, "initializer_range": 0.02, "hidden_act": "silu"}
LLAMA = OF_ALL | {
    **{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "attention_bias": False, "rms_norm_eps": 1e-5},
    **{"pretraining_tp": 1, "rope_scaling": None, "tie_word_embeddings": False, "num_attention_heads": 32},
}
LLAMA_3 = LLAMA | {
    **{"attention_dropout": 0.0, "bos_token_id": 128000, "eos_token_id": 128001, "max_position_embeddings": 131072},
    **{"mlp_bias": False, "num_key_value_heads": 8, "rope_theta": 500000.0, "vocab_size": 128256},
}
MISTRAL = OF_ALL | {
    **{"architectures": ["MistralForCausalLM"], "model_type": "mistral", "bos_token_id": 1, "eos_token_id": 2},
    **{"attention_dropout": 0.0, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8},
    **{"rms_norm_eps": 1e-5, "rope_theta": 1000000.0, "sliding_window": None, "tie_word_embeddings": False},
}
QWEN = OF_ALL | {
    **{"attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151643, "rms_norm_eps": 1e-6},
    **{"rope_theta": 1000000.0, "tie_word_embeddings": True, "use_sliding_window": False, "vocab_size": 151936},
}
QWEN2 = QWEN | {"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "use_mrope": False}
QWEN3 = QWEN | {
    **{"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "attention_bias": False, "eos_token_id": 151645},
    **{"head_dim": 128, "max_position_embeddings": 40960, "num_key_value_heads": 8, "rope_scaling": None},
    **{"rope_theta": 1000000, "sliding_window": None},
}
GEMMA3 = {
    **{"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "attention_bias": False},
    **{"attention_dropout": 0.0, "attn_logit_softcapping": None, "bos_token_id": 2, "eos_token_id": 1},
    **{"final_logit_softcapping": None, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh"},
    **{"initializer_range": 0.02, "max_position_embeddings": 32768, "num_attention_heads": 4, "pad_token_id": 0},
    **{"num_key_value_heads": 1, "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "rope_scaling": None},
    **{"sliding_window": 512, "torch_dtype": "bfloat16", "use_cache": True, "vocab_size": 262144},
}
OLMO2 = {
    **{"architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", "attention_bias": False, "attention_dropout": 0.0},
    **{"eos_token_id": 100257, "hidden_act": "silu", "initializer_range": 0.02, "max_position_embeddings": 4096},
    **{"pad_token_id": 100277, "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 500000},
    **{"tie_word_embeddings": False, "torch_dtype": "float32", "use_cache": True, "vocab_size": 100352},
}
NEOX = {
    **{"architectures": ["GPTNeoXForCausalLM"], "model_type": "gpt_neox", "bos_token_id": 0, "eos_token_id": 0},
    **{"hidden_act": "gelu", "initializer_range": 0.02, "layer_norm_eps": 1e-05, "max_position_embeddings": 2048},
    **{"rotary_emb_base": 10000, "rotary_pct": 0.25, "tie_word_embeddings": False, "torch_dtype": "float16"},
    **{"transformers_version": "4.24.0", "use_cache": True, "use_parallel_residual": True, "vocab_size": 50304},
}
PHI3 = {
    **{"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "attention_bias": False, "attention_dropout": 0.0},
    **{"auto_map": {"AutoConfig": "configuration_phi3.Phi3Config"}, "bos_token_id": 1, "eos_token_id": 32000},
    **{"embd_pdrop": 0.0, "hidden_act": "silu", "hidden_size": 3072, "initializer_range": 0.02},
    **{"intermediate_size": 8192, "max_position_embeddings": 4096, "num_attention_heads": 32, "num_hidden_layers": 32},
    **{"num_key_value_heads": 32, "original_max_position_embeddings": 4096, "pad_token_id": 32000, "resid_pdrop": 0.0},
    **{"rms_norm_eps": 1e-05, "rope_scaling": None, "rope_theta": 10000.0, "sliding_window": 2047},
    **{"tie_word_embeddings": False, "torch_dtype": "bfloat16", "transformers_version": "4.40.2", "use_cache": True},
    "vocab_size": 32064,
}
BERT = {
    **{"model_type": "bert", "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu", "hidden_dropout_prob": 0.1},
    **{"hidden_size": 768, "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-12},
    **{"max_position_embeddings": 512, "num_attention_heads": 12, "num_hidden_layers": 12, "type_vocab_size": 2},
    "vocab_size": 30522,
}
ROBERTA = {
    **{**BERT, "model_type": "roberta", "architectures": ["RobertaForMaskedLM"], "bos_token_id": 0, "eos_token_id": 2},
    **{"layer_norm_eps": 1e-05, "max_position_embeddings": 514, "pad_token_id": 1, "type_vocab_size": 1},
    "vocab_size": 50265,
}
ELECTRA = {
    **{**BERT, "model_type": "electra", "embedding_size": 128, "hidden_size": 256, "intermediate_size": 1024},
    **{"num_attention_heads": 4, "summary_activation": "gelu", "summary_last_dropout": 0.1, "summary_type": "first"},
    "summary_use_proj": True,
}
DEBERTA_V3 = {
    **{"model_type": "deberta-v2", "attention_probs_dropout_prob": 0.1, "hidden_act": "gelu", "hidden_size": 768},
    **{"hidden_dropout_prob": 0.1, "initializer_range": 0.02, "intermediate_size": 3072, "layer_norm_eps": 1e-7},
    **{"max_position_embeddings": 512, "relative_attention": True, "position_buckets": 256, "share_att_key": True},
    **{"norm_rel_ebd": "layer_norm", "pos_att_type": "p2c|c2p", "max_relative_positions": -1, "vocab_size": 128100},
    **{"position_biased_input": False, "num_attention_heads": 12, "num_hidden_layers": 12, "type_vocab_size": 0},
}
PUBLISHED = {  # the files, and the parameters of the networks that they describe
    "openai-community/gpt2": (
        {
            **{"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": "gelu_new"},
            **{"attn_pdrop": 0.1, "bos_token_id": 50256, "embd_pdrop": 0.1, "eos_token_id": 50256},
            **{"initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "n_ctx": 1024, "n_embd": 768, "n_head": 12},
            **{"n_layer": 12, "n_positions": 1024, "resid_pdrop": 0.1, "summary_activation": None},
            **{"summary_first_dropout": 0.1, "summary_proj_to_labels": True, "summary_type": "cls_index"},
            **{"summary_use_proj": True, "vocab_size": 50257},
            "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        },
        124_439_808,
    ),
    "meta-llama/Llama-3.1-8B": (
        LLAMA_3
        | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32}
        | {"rope_scaling": LLAMA3 | {"factor": 8.0}},
        8_030_261_248,
    ),
    "meta-llama/Llama-3.2-1B": (
        LLAMA_3
        | {"head_dim": 64, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16}
        | {"rope_scaling": LLAMA3 | {"factor": 32.0}, "tie_word_embeddings": True},
        1_235_814_400,
    ),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": (
        LLAMA
        | {"bos_token_id": 1, "eos_token_id": 2, "hidden_size": 2048, "intermediate_size": 5632, "rope_theta": 10000.0}
        | {"max_position_embeddings": 2048, "num_hidden_layers": 22, "num_key_value_heads": 4, "vocab_size": 32000},
        1_100_048_384,
    ),
    "HuggingFaceTB/SmolLM2-135M": (
        LLAMA
        | {"attention_dropout": 0.0, "bos_token_id": 0, "eos_token_id": 0, "hidden_size": 576, "mlp_bias": False}
        | {"initializer_range": 0.041666666666666664, "intermediate_size": 1536, "is_llama_config": True}
        | {"max_position_embeddings": 8192, "num_attention_heads": 9, "num_hidden_layers": 30}
        | {"num_key_value_heads": 3, "rope_interleaved": False, "rope_theta": 100000, "tie_word_embeddings": True}
        | {"vocab_size": 49152},
        134_515_008,
    ),
    "mistralai/Mistral-7B-v0.3": (
        MISTRAL | {"hidden_size": 4096, "max_position_embeddings": 32768, "num_hidden_layers": 32, "vocab_size": 32768},
        7_248_023_552,
    ),
    "mistralai/Mistral-Nemo-Base-2407": (
        MISTRAL
        | {"head_dim": 128, "hidden_size": 5120, "max_position_embeddings": 128000, "num_hidden_layers": 40}
        | {"vocab_size": 131072},
        12_247_782_400,
    ),
    "Qwen/Qwen2.5-0.5B": (
        QWEN2
        | {"hidden_size": 896, "intermediate_size": 4864, "max_position_embeddings": 32768, "max_window_layers": 24}
        | {"num_attention_heads": 14, "num_hidden_layers": 24, "num_key_value_heads": 2, "sliding_window": 32768},
        494_032_768,
    ),
    "Qwen/Qwen2.5-7B": (
        QWEN2
        | {"hidden_size": 3584, "intermediate_size": 18944, "max_position_embeddings": 131072, "max_window_layers": 28}
        | {"num_attention_heads": 28, "num_hidden_layers": 28, "num_key_value_heads": 4, "sliding_window": 131072}
        | {"tie_word_embeddings": False, "vocab_size": 152064},
        7_615_616_512,
    ),
    "Qwen/Qwen3-0.6B": (
        QWEN3
        | {"hidden_size": 1024, "intermediate_size": 3072, "max_window_layers": 28, "num_attention_heads": 16}
        | {"num_hidden_layers": 28},
        596_049_920,
    ),
    "Qwen/Qwen3-8B": (
        QWEN3
        | {"hidden_size": 4096, "intermediate_size": 12288, "max_window_layers": 36, "num_attention_heads": 32}
        | {"num_hidden_layers": 36, "tie_word_embeddings": False},
        8_190_735_360,
    ),
    "google/gemma-3-270m": (
        GEMMA3
        | {"_sliding_window_pattern": 6, "hidden_size": 640, "intermediate_size": 2048, "num_hidden_layers": 18}
        | {"layer_types": 3 * [*5 * ["sliding_attention"], "full_attention"], "use_bidirectional_attention": False}
        | {"rope_local_base_freq": 10000.0, "rope_theta": 1000000.0},
        268_098_176,
    ),
    "google/gemma-3-1b-pt": (
        GEMMA3
        | {"cache_implementation": "hybrid", "hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26}
        | {"eos_token_id": [1, 106], "rope_local_base_freq": 10000, "rope_theta": 1000000, "sliding_window_pattern": 6},
        999_885_952,
    ),
    # What text_config of google/gemma-3-27b-pt says, and its network of text: heads of 128, scores of 168.
    "gemma-3-27b, text alone": (
        GEMMA3
        | {"head_dim": 128, "hidden_size": 5376, "intermediate_size": 21504, "max_position_embeddings": 131072}
        | {"num_attention_heads": 32, "num_hidden_layers": 62, "num_key_value_heads": 16, "query_pre_attn_scalar": 168}
        | {"rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024, "vocab_size": 262208},
        27_009_346_304,
    ),
    "allenai/OLMo-2-0425-1B": (
        OLMO2
        | {"hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16, "num_hidden_layers": 16}
        | {"num_key_value_heads": 16},
        1_484_916_736,
    ),
    "allenai/OLMo-2-1124-7B": (
        OLMO2
        | {"hidden_size": 4096, "intermediate_size": 11008, "num_attention_heads": 32, "num_hidden_layers": 32}
        | {"num_key_value_heads": 32},
        7_298_617_344,
    ),
    "EleutherAI/pythia-70m": (
        {**NEOX, "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_hidden_layers": 6},
        70_426_624,
    ),
    "EleutherAI/pythia-1b": (
        {**NEOX, "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 8, "num_hidden_layers": 16},
        1_011_781_632,
    ),
    "EleutherAI/pythia-6.9b": (
        {
            **{**NEOX, "hidden_size": 4096, "intermediate_size": 16384, "num_attention_heads": 32},
            **{"num_hidden_layers": 32, "vocab_size": 50432},
        },
        6_857_302_016,
    ),
    "EleutherAI/gpt-neox-20b": (
        {
            **{key: value for key, value in NEOX.items() if key != "use_parallel_residual"},
            **{"attention_probs_dropout_prob": 0, "hidden_dropout_prob": 0, "hidden_act": "gelu_fast"},
            **{"hidden_size": 6144, "intermediate_size": 24576, "num_attention_heads": 64, "num_hidden_layers": 44},
            **{"vocab_size": 50432, "transformers_version": "4.19.0.dev0"},
        },
        20_554_567_680,
    ),
    "microsoft/Phi-3-mini-4k-instruct": (PHI3, 3_821_079_552),
    "google-bert/bert-base-uncased": (
        BERT
        | {"architectures": ["BertForMaskedLM"], "gradient_checkpointing": False, "pad_token_id": 0}
        | {"position_embedding_type": "absolute"},
        109_514_298,
    ),
    "FacebookAI/roberta-base": (ROBERTA, 124_697_433),
    "FacebookAI/xlm-roberta-base": (
        ROBERTA
        | {"architectures": ["XLMRobertaForMaskedLM"], "model_type": "xlm-roberta", "output_past": True}
        | {"position_embedding_type": "absolute", "vocab_size": 250002},
        278_295_186,
    ),
    "distilbert/distilbert-base-uncased": (
        {
            **{"architectures": ["DistilBertForMaskedLM"], "model_type": "distilbert", "activation": "gelu"},
            **{"attention_dropout": 0.1, "dim": 768, "dropout": 0.1, "hidden_dim": 3072, "initializer_range": 0.02},
            **{"max_position_embeddings": 512, "n_heads": 12, "n_layers": 6, "pad_token_id": 0, "qa_dropout": 0.1},
            **{"seq_classif_dropout": 0.2, "sinusoidal_pos_embds": False, "tie_weights_": True, "vocab_size": 30522},
        },
        66_985_530,
    ),
    "answerdotai/ModernBERT-base": (
        {
            **{"architectures": ["ModernBertForMaskedLM"], "model_type": "modernbert", "attention_bias": False},
            **{"attention_dropout": 0.0, "bos_token_id": 50281, "classifier_activation": "gelu"},
            **{"classifier_bias": False, "classifier_dropout": 0.0, "classifier_pooling": "mean"},
            **{"cls_token_id": 50281, "decoder_bias": True, "deterministic_flash_attn": False},
            **{"embedding_dropout": 0.0, "eos_token_id": 50282, "global_attn_every_n_layers": 3},
            **{"global_rope_theta": 160000.0, "gradient_checkpointing": False, "hidden_activation": "gelu"},
            **{"hidden_size": 768, "initializer_cutoff_factor": 2.0, "initializer_range": 0.02},
            **{"intermediate_size": 1152, "layer_norm_eps": 1e-05, "local_attention": 128},
            **{"local_rope_theta": 10000.0, "max_position_embeddings": 8192, "mlp_bias": False, "mlp_dropout": 0.0},
            **{"norm_bias": False, "norm_eps": 1e-05, "num_attention_heads": 12, "num_hidden_layers": 22},
            **{"pad_token_id": 50283, "position_embedding_type": "absolute", "sep_token_id": 50282},
            **{"tie_word_embeddings": True, "torch_dtype": "float32", "vocab_size": 50368},
        },
        149_655_232,
    ),
    "google/electra-small-discriminator": (ELECTRA | {"architectures": ["ElectraForPreTraining"]}, 13_549_057),
    "google/electra-base-discriminator": (
        ELECTRA
        | {"architectures": ["ElectraForPreTraining"], "embedding_size": 768, "hidden_size": 768}
        | {"intermediate_size": 3072, "num_attention_heads": 12, "position_embedding_type": "absolute"},
        109_483_009,
    ),
    "google/electra-base-generator": (  # whose embeddings are wider than its blocks
        ELECTRA
        | {"architectures": ["ElectraForMaskedLM"], "embedding_size": 768, "pad_token_id": 0}
        | {"position_embedding_type": "absolute"},
        33_740_602,
    ),
    "microsoft/deberta-v3-base": (DEBERTA_V3 | {"architectures": ["DebertaV2ForMaskedLM"]}, 184_551_780),
}
LLAMA_2 = LLAMA | {
    **{"bos_token_id": 1, "eos_token_id": 2, "hidden_size": 4096, "intermediate_size": 11008, "vocab_size": 32000},
    **{"max_position_embeddings": 4096, "num_hidden_layers": 32, "num_key_value_heads": 32},
}
LONGROPE = {"type": "longrope", "long_factor": [1.0] * 48, "short_factor": [1.0] * 48}
# What their files say, or may say; and how the refusal begins.
REFUSED = {
    "microsoft/deberta-v2-xlarge": (
        DEBERTA_V3
        | {"hidden_size": 1536, "intermediate_size": 6144, "num_attention_heads": 24, "num_hidden_layers": 24}
        | {"attention_head_size": 64, "conv_act": "gelu", "conv_kernel_size": 3},
        "conv_kernel_size=3 is not supported by model=encoder (0 is)",
    ),
    "microsoft/Phi-3-mini-128k-instruct": (
        {**PHI3, "max_position_embeddings": 131_072, "rope_scaling": LONGROPE},
        "rope_scaling.type=longrope is not supported by model=decoder (default is)",
    ),
    "microsoft/Phi-4-mini-instruct": (
        {
            **{**PHI3, "max_position_embeddings": 131_072, "rope_scaling": LONGROPE},
            **{"full_attn_mod": 1, "interpolate_factor": 1, "lm_head_bias": False, "mlp_bias": False},
            **{"num_attention_heads": 24, "num_key_value_heads": 8, "partial_rotary_factor": 0.75},
            **{"sliding_window": 262_144, "tie_word_embeddings": True, "vocab_size": 200_064},
        },
        "rope_scaling.type=longrope is not supported by model=decoder (default is)",
    ),
    "google/gemma-2-2b": (
        GEMMA3
        | {"architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "attn_logit_softcapping": 50.0}
        | {"final_logit_softcapping": 30.0, "sliding_window": 4096},
        "model_type=gemma2: is not supported; choose a model of ",
    ),
    "google/gemma-3-4b-pt": (
        {
            **{"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "mm_tokens_per_image": 256},
            **{"text_config": {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text"}},
            "vision_config": {"hidden_size": 1152, "image_size": 896, "model_type": "siglip_vision_model"},
        },
        "model_type=gemma3: is not supported, for it reads more than text; save its gemma3_text alone",
    ),
    "google/embeddinggemma-300m": (
        GEMMA3
        | {"_sliding_window_pattern": 6, "architectures": ["Gemma3TextModel"], "hidden_size": 768}
        | {"intermediate_size": 1152, "max_position_embeddings": 2048, "num_attention_heads": 3}
        | {"num_hidden_layers": 24, "use_bidirectional_attention": True},
        "use_bidirectional_attention=True is not supported by model=decoder (False is)",
    ),
    "Qwen/Qwen1.5-MoE-A2.7B": (
        QWEN | {"architectures": ["Qwen2MoeForCausalLM"], "model_type": "qwen2_moe", "num_experts": 60},
        "model_type=qwen2_moe: is not supported; choose a model of ",
    ),
    "Qwen/Qwen2.5-0.5B-Instruct-AWQ": (
        QWEN2
        | {"hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14, "num_hidden_layers": 24}
        | {"num_key_value_heads": 2, "quantization_config": {"bits": 4, "group_size": 128, "quant_method": "awq"}},
        "quantization_config={'bits': 4, 'group_size': 128, 'quant_method': 'awq'} is not supported by model=decoder "
        "(its weights are quantized; load them with transformers, `dequantize()` and save them)",
    ),
    "a Qwen 2 with a window in its upper layers": (
        QWEN2 | {"max_window_layers": 21, "num_hidden_layers": 28, "sliding_window": 4096, "use_sliding_window": True},
        "max_window_layers=21 is not supported by model=decoder (a window in all 28 layers is, 0, or in none)",
    ),
    "mistralai/Mixtral-8x7B-v0.1": (
        MISTRAL | {"architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 8},
        "model_type=mixtral: is not supported; choose a model of ",
    ),
    "TheBloke/Llama-2-7B-GPTQ": (
        LLAMA_2 | {"quantization_config": {"bits": 4, "desc_act": False, "quant_method": "gptq"}},
        "quantization_config={'bits': 4, 'desc_act': False, 'quant_method': 'gptq'} is not supported by model=decoder ",
    ),
    "a Llama 2 for texts of any length": (
        LLAMA_2 | {"rope_scaling": {"factor": 2.0, "type": "dynamic"}},
        "rope_scaling.type=dynamic is not supported by model=decoder (default, linear, llama3, yarn are)",
    ),
    "a Llama 2 with the YaRN of DeepSeek": (
        LLAMA_2 | {"rope_scaling": {"factor": 40, "mscale": 0.707, "mscale_all_dim": 0.707, "type": "yarn"}},
        "rope_scaling.mscale=0.707 is not supported by model=decoder (yarn frequencies have none)",
    ),
    "a Llama 2 with biases": (
        LLAMA_2 | {"attention_bias": True},
        "attention_bias=True is not supported by model=decoder (False is)",
    ),
    "allenai/Olmo-3-1025-7B": (
        OLMO2 | {"architectures": ["Olmo3ForCausalLM"], "model_type": "olmo3", "sliding_window": 4096},
        "model_type=olmo3: is not supported; choose a model of ",
    ),
    "jhu-clsp/ettin-decoder-150m": (
        {"architectures": ["ModernBertDecoderForCausalLM"], "model_type": "modernbert-decoder", "hidden_size": 768},
        "model_type=modernbert-decoder: is not supported; choose a model of ",
    ),
    "zhiheng-huang/bert-base-uncased-embedding-relative-key": (
        BERT | {"architectures": ["BertForMaskedLM"], "position_embedding_type": "relative_key"},
        "position_embedding_type=relative_key is not supported by model=encoder (absolute is)",
    ),
    "albert/albert-base-v2": (
        {"architectures": ["AlbertForMaskedLM"], "model_type": "albert", "embedding_size": 128, "num_hidden_groups": 1},
        "model_type=albert: is not supported; choose a model of ",
    ),
    "tiiuae/falcon-7b": (
        {"architectures": ["FalconForCausalLM"], "model_type": "falcon", "multi_query": True, "parallel_attn": True},
        "model_type=falcon: is not supported; choose a model of ",
    ),
    "bigscience/bloom-560m": (
        {"architectures": ["BloomForCausalLM"], "model_type": "bloom", "n_embed": 1024, "num_attention_heads": 16},
        "model_type=bloom: is not supported; choose a model of ",
    ),
}
