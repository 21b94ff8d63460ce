"""The configuration of ZeRO: refusals by name, and what DeepSpeed is told. Its steps are tested over real ranks."""

import pytest
from toys import ALONE

from pretrain.errors import ConfigError
from pretrain.precision import BF16, FP16, FP32
from pretrain.strategy.compilation import CompileConfig
from pretrain.strategy.recomputation import Recompute
from pretrain.strategy.zero import Offload, ZeROConfig


@pytest.mark.parametrize(
    ("fields", "refusal"),
    [
        ({"stage": 4}, r"strategy\.stage=4: choose 0, 1, 2 or 3"),
        ({"reduce_bucket": 0}, r"strategy\.reduce_bucket=0: must be at least 1"),
        ({"persistent_below": -1}, r"strategy\.persistent_below=-1: 0 \(none\) or more"),
        ({"stage": 2, "offload_parameters": Offload.cpu}, r"strategy\.offload_parameters=cpu: needs strategy=zero3"),
        ({"stage": 1, "hpz_ranks": 8}, r"strategy\.hpz_ranks=8: needs strategy=zero3"),
        ({"stage": 2, "quantized_weights": True}, r"strategy\.quantized_weights=True: needs strategy=zero3"),
        ({"stage": 0, "offload_optimizer": Offload.cpu}, r"strategy\.offload_optimizer=cpu: needs a stage of 1"),
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
    with pytest.raises(ConfigError, match=r"strategy\.quantized_gradients=True: needs GPUs"):
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


@pytest.mark.parametrize("stage", [0, 2])
def test_the_dictionary_is_shown_on_request_at_every_stage(stage, caplog):
    with caplog.at_level("INFO", logger="pretrain"):
        cfg = ZeROConfig(stage=stage, log_dictionary=True)
        cfg.build(world=ALONE, precision=FP32(), compilation=CompileConfig())
    [shown] = [message for message in caplog.messages if message.startswith("DeepSpeed is told")]
    assert f'"stage": {stage}' in shown


@pytest.mark.parametrize(("scale", "power"), [(1.0, 0), (65536.0, 16), (40000.0, 15)])
def test_the_first_loss_scale_is_the_power_of_two_below(scale, power):
    told = ZeROConfig(stage=2).dictionary(FP16(initial_scale=scale, growth_every=30))["fp16"]
    assert told == {"enabled": True, "initial_scale_power": power, "loss_scale_window": 30, "hysteresis": 1}
