"""What people type who come from other programs, and what it is called here.

Holds names from the Hugging Face Trainer, nanoGPT, torchtitan and Megatron-LM. They serve refusals alone: a setting has
one name, and another one is never accepted in silence.
"""

from __future__ import annotations

from collections.abc import Collection

from pretrain.settings.paths import is_there

# Their names -> ours. Of several of ours the first that the command has is meant; what holds a space is advice.
_HABITS = {
    "lr learning_rate max_lr peak_lr base_lr": ["optim.lr"],
    "min_lr lr_min min_lr_ratio min_lr_factor decay_lr": ["schedule.floor is a share of the peak learning rate"],
    "lr_scheduler lr_scheduler_type lr_decay_style scheduler": ["schedule"],
    "warmup warmup_iters warmup_steps num_warmup_steps lr_warmup_iters": ["schedule.warmup_steps"],
    "warmup_ratio warmup_fraction lr_warmup_fraction": ["schedule.warmup_ratio"],
    "optimizer optimizer_type optim_type": ["optim"],
    "weight_decay wd": ["optim.weight_decay"],
    "adam_beta1": ["optim.beta1"],
    "adam_beta2": ["optim.beta2"],
    "adam_eps adam_epsilon": ["optim.eps"],
    "clip_grad grad_clip gradient_clipping max_grad_norm max_norm": ["train.clip_norm"],
    "iters max_iters max_steps num_steps num_training_steps total_steps train_iters training_steps steps": [
        "train.steps",
        "train.epochs counts how often each example is seen",
    ],
    "epoch epochs num_epochs num_train_epochs max_epochs": [
        "train.epochs",
        "train.steps counts optimizer steps; an epoch is (tokens of the corpus) / (train.batch_size x data.seq_len) "
        "of them",
    ],
    "bs batch_size global_batch_size train_batch_size": ["train.batch_size"],
    "device_batch_size local_batch_size micro_batch_size per_device_batch_size per_device_train_batch_size": [
        "train.micro_batch_size",
        "train.max_tokens is what a rank computes at once, and train.batch_size counts examples over all ranks",
    ],
    "grad_accum grad_accumulation_steps gradient_accumulation_steps accumulate_grad_batches": [
        "it follows from train.batch_size, which is counted over all micro-batches and ranks"
    ],
    "block_size context_length ctx_len max_length max_position_embeddings max_seq_len max_seq_length n_ctx n_positions "
    "seq_len seq_length sequence_length": ["data.seq_len", "task.max_tokens"],
    "depth n_layer n_layers num_layers num_hidden_layers": ["model.layers"],
    "n_head n_heads num_attention_heads num_heads": ["model.heads"],
    "n_kv_head n_kv_heads num_key_value_heads num_query_groups": ["model.kv_heads"],
    "d_model dim emb_dim hidden_dim hidden_size n_embd": ["model.width"],
    "d_ff ffn_hidden_size ffn_dim intermediate_size": ["model.mlp_width"],
    "dropout hidden_dropout hidden_dropout_prob": ["model.dropout"],
    "vocab_size": ["tokenizer.vocab_size"],
    "tokenizer_name tokenizer_path tokenizer_type tokenizer_name_or_path": ["tokenizer=file tokenizer.path=PATH"],
    "bf16 fp16 fp32 fp8 float8 mixed_precision dtype torch_dtype": ["precision=fp32, bf16, fp16 or fp8"],
    "tf32 allow_tf32": ["precision.tf32"],
    "compile torch_compile": ["compile=auto, none, block or model"],
    "ac gradient_checkpointing activation_checkpoint activation_checkpointing recompute_activations": [
        "strategy.activation_checkpointing=none, selective or full"
    ],
    "deepspeed fsdp zero zero_stage distributed_strategy": ["strategy=zero0 to zero3, fsdp2 or hsdp"],
    "devices gpus ngpu nproc_per_node num_gpus world_size": ["nproc", "python -m launch local nproc=N -- PROGRAM ..."],
    "nnodes num_nodes": ["nodes", "python -m launch slurm cluster=NAME nodes=N -- PROGRAM ..."],
    "out_dir output_dir save save_dir dump_folder job_dir": [
        "run.root is the folder of all runs, run.name a run in it"
    ],
    "name run_name exp_name experiment_name job_name wandb_run_name": ["run.name"],
    "overwrite_output_dir": ["a run goes on where it was; another run.name begins anew"],
    "resume resume_from resume_from_checkpoint load load_checkpoint checkpoint ckpt_path auto_resume": [
        "the same command with the same run.name goes on; init_from=PATH starts a new run with the weights of another"
    ],
    "base_model model model_name model_name_or_path pretrained pretrained_model_name_or_path": [
        "init_from=PATH or org/name names trained weights"
    ],
    "eval_interval eval_iters_interval eval_steps eval_freq val_check_interval": ["eval.every"],
    "eval_iters eval_batches limit_val_batches": ["eval.max_slots"],
    "early_stopping_patience": ["eval.patience"],
    "log_freq log_interval logging_steps": ["log.every"],
    "checkpoint_interval save_every save_interval save_steps": ["checkpoint.every", "eval.every"],
    "save_total_limit keep_latest_k": ["checkpoint.keep"],
    "dataset dataset_name dataset_path data_path data_dir input_file train_data train_file train_files": [
        "task.train",
        "data=text data.sources.text.paths=[FILE]; --help lists the choices of data=",
    ],
    "val_file valid_file validation_file eval_file": ["task.validation", "data.prepare.held_out is a share of data"],
    "num_proc num_workers preprocessing_num_workers dataloader_num_workers": ["data.prepare.workers"],
    "report_to wandb wandb_log wandb_project enable_wandb": ["tracker=wandb; --help lists the choices of tracker="],
    "manual_seed random_seed training_seed": ["seed"],
    "mlm": ["objective=masked_lm"],
    "mlm_probability masking_ratio": ["objective.masking.rate"],
    "lora use_lora peft": ["tuning=lora"],
    "config config_file config_path job_config_file job.config_file": ["experiment"],
}
_OURS = {theirs: ours for names, ours in _HABITS.items() for theirs in names.split()}


def advice(key: str, value: str, known: Collection[str]) -> str:
    """Return "; here it is X=VALUE" for a name of the field's; `known` are the settings of the command. Else nothing.

    Several words for one thing are looked up by their last part: `optim.learning_rate`, `training.steps`.
    """
    if key in known:
        return ""
    name = key.lower().replace("-", "_")
    for ours in _OURS.get(name) or _OURS.get(name.rpartition(".")[2], []):
        if " " in ours or "=" in ours:
            return f"; here: {ours}"
        if ours in known:
            return f"; here it is {ours}={value}" if value else f"; here it is {ours}"
    return ""


def instead_of(group: str, choice: str, known: Collection[str]) -> str:
    """Return "; X" where something else than a choice was named, such as a checkpoint as `model`. Else nothing.

    `known` are the choices of the group.
    """
    named = "/" in choice or is_there(choice)
    family = any(name.startswith(f"{choice}_") for name in known)
    if group == "model" and (named or family):
        source = choice if named else "PATH or org/name"
        return f"; trained weights, with their network, are named by init_from={source}"
    if group == "tokenizer" and named:
        return f"; a tokenizer that exists is named by tokenizer=file tokenizer.path={choice}"
    if group == "data" and named:
        return f"; files of text are named by data=text data.sources.text.paths=[{choice}]"
    return ""
