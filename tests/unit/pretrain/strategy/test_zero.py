"""The configuration of ZeRO: refusals by name, and what DeepSpeed is told. Its steps are tested over real ranks."""

import pytest
from toys import ALONE

from pretrain.errors import ConfigError
from pretrain.strategy.activation_checkpointing import Recompute
from pretrain.strategy.compile import CompileConfig
from pretrain.strategy.precision import BF16, FP16, FP32
from pretrain.strategy.zero import Offload, ZeROConfig


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({"stage": 4}, r"strategy\.stage=4: choose 0, 1, 2 or 3"),
        ({"reduce_bucket": 0}, r"strategy\.reduce_bucket=0: must be at least 1"),
        ({"persistent_below": -1}, r"strategy\.persistent_below=-1: 0 \(none\) or more"),
        ({"stage": 2, "offload_parameters": Offload.cpu}, r"strategy\.offload_parameters=cpu: needs strategy=zero3"),
        ({"stage": 1, "hpz_ranks": 8}, r"strategy\.hpz_ranks=8: needs strategy=zero3"),
        ({"stage": 2, "quantized_weights": True}, r"strategy\.quantized_weights=true: needs strategy=zero3"),
        ({"stage": 0, "offload_optimizer": Offload.cpu}, r"strategy\.offload_optimizer=cpu: needs a stage of 1"),
        ({"sub_group": 0}, r"strategy\.sub_group=0: must be at least 1"),
        ({"stage": 3, "nvme_path": "disk"}, r"strategy\.nvme_path=disk: is for what lies on NVMe; set"),
        ({"stage": 2, "persistent_below": 9}, r"strategy\.persistent_below=9: is for strategy=zero3"),
        ({"nvme_threads": 0}, r"strategy\.nvme_threads=0: must be at least 1"),
        ({"stage": 2, "offload_optimizer": Offload.nvme}, r"strategy\.offload_optimizer=nvme: needs strategy=zero3"),
        ({"stage": 3, "offload_optimizer": Offload.nvme}, r"strategy\.offload_optimizer=nvme: .* strategy\.nvme_path"),
        (
            {"stage": 3, "offload_parameters": Offload.nvme},
            r"strategy\.offload_parameters=nvme: .* strategy\.nvme_path",
        ),
        (
            {"stage": 3, "offload_parameters": Offload.nvme, "nvme_path": "disk", "hpz_ranks": 2},
            r"strategy\.hpz_ranks=2: must be 1 with offload_parameters=nvme",
        ),
        (
            {"stage": 3, "activation_checkpointing": Recompute.selective},
            r"strategy\.activation_checkpointing=selective: .* set full",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(fields, refusal):
    with pytest.raises(ConfigError, match=refusal):
        ZeROConfig(**fields)


def test_what_the_device_or_the_ranks_cannot_do_is_refused():
    with pytest.raises(ConfigError, match=r"precision=fp16: DeepSpeed has no fp16 on a CPU"):
        ZeROConfig(stage=2).check_machine(ranks=2, device_type="cpu", precision=FP16())
    ZeROConfig(stage=2).check_machine(ranks=2, device_type="cuda", precision=FP16())
    quantized = ZeROConfig(stage=3, quantized_gradients=True)
    with pytest.raises(ConfigError, match=r"strategy\.quantized_gradients=true: needs GPUs"):
        quantized.check_machine(ranks=2, device_type="cpu", precision=FP32())
    with pytest.raises(ConfigError, match=r"strategy\.hpz_ranks=4: must divide the 6 ranks"):
        ZeROConfig(stage=3, hpz_ranks=4).check_machine(ranks=6, device_type="cpu", precision=FP32())


def test_deepspeed_is_told_what_the_settings_say():
    cfg = ZeROConfig(stage=3, reduce_bucket=7, gather_bucket=8, offload_optimizer=Offload.cpu, hpz_ranks=2)
    told = cfg.dictionary(BF16())
    zero = told["zero_optimization"]
    assert (zero["stage"], zero["reduce_bucket_size"], zero["stage3_prefetch_bucket_size"]) == (3, 7, 8)
    assert zero["offload_optimizer"]["device"] == "cpu" and "offload_param" not in zero
    assert zero["zero_hpz_partition_size"] == 2
    assert told["bf16"] == {"enabled": True, "check_grad_overflow": True}
    assert told["data_types"] == {"grad_accum_dtype": "fp32"}
    assert not {"bf16", "fp16"} & cfg.dictionary(FP32()).keys()
    assert not {"bf16", "fp16"} & ZeROConfig(stage=0).dictionary(BF16()).keys(), "stage 0 computes under autocast"


def test_deepspeed_is_told_where_to_swap_and_to_free_its_buffers_at_once():
    nvme = {"offload_optimizer": Offload.nvme, "offload_parameters": Offload.nvme, "nvme_path": "/disk"}
    told = ZeROConfig(stage=3, sub_group=9, nvme_threads=2, nvme_queue=3, **nvme).dictionary(FP32())
    zero = told["zero_optimization"]
    assert zero["offload_optimizer"] == {"device": "nvme", "pin_memory": False, "nvme_path": "/disk"}
    assert zero["offload_param"] == {"device": "nvme", "pin_memory": False, "nvme_path": "/disk", "max_in_cpu": 0}
    assert (zero["sub_group_size"], zero["stage3_max_live_parameters"], zero["stage3_max_reuse_distance"]) == (9, 1, 1)
    assert told["aio"] == {"intra_op_parallelism": 2, "queue_depth": 3}


def test_every_setting_reaches_deepspeed_under_its_own_name():
    cfg = ZeROConfig(
        stage=3,
        overlap=False,
        reduce_bucket=2,
        gather_bucket=3,
        live_parameters=5,
        persistent_below=7,
        sub_group=11,
        hpz_ranks=13,
        quantized_weights=True,
        offload_optimizer=Offload.nvme,
        nvme_path="/disk",
        nvme_threads=17,
        nvme_queue=19,
    )
    told = cfg.dictionary(FP32())
    assert told["zero_optimization"] == {
        "stage": 3,
        "overlap_comm": False,
        "reduce_bucket_size": 2,
        "allgather_bucket_size": 3,
        "stage3_prefetch_bucket_size": 3,
        "stage3_max_live_parameters": 5,
        "stage3_max_reuse_distance": 5,
        "stage3_param_persistence_threshold": 7,
        "sub_group_size": 11,
        "zero_hpz_partition_size": 13,
        "zero_quantized_weights": True,
        "zero_quantized_gradients": False,
        "memory_efficient_linear": False,
        "offload_optimizer": {"device": "nvme", "pin_memory": False, "nvme_path": "/disk"},
    }
    assert told["aio"] == {"intra_op_parallelism": 17, "queue_depth": 19}
    assert (told["train_micro_batch_size_per_gpu"], told["gradient_accumulation_steps"]) == (1, 1)


@pytest.mark.parametrize(
    ("fields", "precision", "memory"),
    # 1,200 parameters on 4 ranks: bytes of weights, gradients and optimizer (Rajbhandari et al. 2020, figure 1, with
    # gradients that are added up in fp32)
    [
        ({"stage": 0}, BF16(), (4 * 1200, 4 * 1200, 8 * 1200)),
        ({"stage": 1}, BF16(), (2 * 1200, (2 + 4) * 1200, 12 * 300)),
        ({"stage": 1}, FP32(), (4 * 1200, 4 * 300, 12 * 300)),
        ({"stage": 2}, BF16(), (2 * 1200, 4 * 300, 12 * 300)),
        ({"stage": 2, "offload_optimizer": Offload.cpu}, BF16(), (2 * 1200, 2 * 4 * 300, 12 * 300)),
        ({"stage": 3}, BF16(), (2 * 300, 4 * 300, 12 * 300)),
        ({"stage": 3}, FP32(), (4 * 300, 4 * 300, 12 * 300)),
        ({"stage": 3, "hpz_ranks": 2}, BF16(), (2 * (300 + 600), 4 * 300, 12 * 300)),
    ],
)
def test_what_a_rank_holds_of_a_sharded_model(fields, precision, memory):
    assert ZeROConfig(**fields).memory(1200, ranks=4, precision=precision) == memory


def test_on_nvme_a_rank_holds_a_sub_group_of_the_optimizer():
    nvme = {"offload_optimizer": Offload.nvme, "nvme_path": "/disk", "sub_group": 100}
    assert ZeROConfig(stage=3, **nvme).memory(8000, ranks=4, precision=BF16()) == (2 * 2000, 4 * 2000, 16 * 100)
    cfg = ZeROConfig(stage=3, offload_parameters=Offload.nvme, **nvme)
    assert cfg.memory(8000, ranks=4, precision=BF16()) == (2 * 400, 4 * 2000, 16 * 100)
    assert cfg.memory(80, ranks=4, precision=FP32()) == (4 * 80, 4 * 20, 16 * 20), "less than a sub-group"


@pytest.mark.parametrize("stage", [0, 2])
def test_the_dictionary_is_shown_on_request_at_every_stage(stage, caplog):
    with caplog.at_level("INFO", logger="pretrain"):
        cfg = ZeROConfig(stage=stage, log_dictionary=True)
        cfg.build(world=ALONE, precision=FP32(), compilation=CompileConfig())
    [shown] = [message for message in caplog.messages if message.startswith("DeepSpeed's configuration: ")]
    assert f'"stage": {stage}' in shown


@pytest.mark.parametrize(("scale", "power"), [(1.0, 0), (65536.0, 16), (40000.0, 15)])
def test_the_first_loss_scale_is_the_power_of_two_below(scale, power):
    told = ZeROConfig(stage=2).dictionary(FP16(initial_scale=scale, growth_every=30))["fp16"]
    assert told == {"enabled": True, "initial_scale_power": power, "loss_scale_window": 30, "hysteresis": 1}
