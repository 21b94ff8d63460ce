"""Adapters of peft are found with their bases; what of them cannot be honoured is refused by name, without weights."""

import json
import re
import shutil

import pytest
import torch
from corpora import edit_json
from hugging_face_directories import write
from run_directories import LLAMA_SETTINGS, load_run, make_run, settings_of
from safetensors.torch import save_file
from small_models import LLAMA, small_decoder, small_encoder
from toys import ALONE

from pretrain.checkpoint.base import WEIGHT
from pretrain.checkpoint.load import fill
from pretrain.errors import CheckpointError, ConfigError
from pretrain.hub.adapter_files import ends_of
from pretrain.init_from import InitialWeights, settings_from, weights_from
from pretrain.trained.adapted import AdaptedSource
from pretrain.trained.model import load
from pretrain.trained.source import find_source

CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
NAME = "base_model.model.model.layers.0.self_attn.q_proj"
TENSORS = {f"{NAME}.lora_A.weight": torch.ones(2, 24), f"{NAME}.lora_B.weight": torch.full((24, 2), 0.5)}
MERGE = "merge it there (`merge_and_unload` and `save_pretrained`)"


def write_adapter(folder, config=CONFIG, tensors=TENSORS, base="base"):
    folder.mkdir(exist_ok=True)
    about = {"base_model_name_or_path": str(folder.parent / base)}
    (folder / "adapter_config.json").write_text(json.dumps(about | config))
    if tensors:
        save_file(tensors, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture
def adapter(tmp_path):
    """A directory of an adapter, beside its base."""
    write(tmp_path / "base", small_decoder(**LLAMA, layers=1))
    return write_adapter(tmp_path / "adapter")


REFUSED = {
    "peft_type=LOHA: only LORA is read": {"peft_type": "LOHA"},
    f"use_dora=True: is not supported; {MERGE}": {"use_dora": True},
    f"lora_bias=True: is not supported; {MERGE}": {"lora_bias": True},
    f"bias=lora_only: none is supported; {MERGE}": {"bias": "lora_only"},
    "layer_replication=[[0, 1], [0, 1]]: is not supported": {"layer_replication": [[0, 1], [0, 1]]},
    "trainable_token_indices=[1, 2]: is not supported": {"trainable_token_indices": [1, 2]},
    "target_parameters=['w']: is not supported": {"target_parameters": ["w"]},
    "use_qalora=True: is not supported": {"use_qalora": True},
    "a_later_one=7: is not supported": {"a_later_one": 7},
    "init_lora_weights=pissa: changes the base's weights before training": {"init_lora_weights": "pissa"},
    "base_model_name_or_path=None: name the model that it is for": {"base_model_name_or_path": None},
    "lora_alpha=True: must be a number": {"lora_alpha": True},
    "alpha_pattern={'(a+)+': 3}: only names with numbers are read": {"alpha_pattern": {"(a+)+": 3}},
    "target_modules=None: must be names, or a pattern": {"target_modules": None},
    "use_rslora=1: must be a bool": {"use_rslora": 1},
    "target_modules=experts: no layer of llama whose adapters are read": {"target_modules": ["q_proj", "experts"]},
    "target_modules=embed_tokens: no layer of llama": {"target_modules": ["embed_tokens"]},
    "target_modules=lm_head: no layer of llama": {"target_modules": ["lm_head"]},
}


@pytest.mark.parametrize(("message", "settings"), REFUSED.items(), ids=range(len(REFUSED)))
def test_what_cannot_be_honoured_is_refused_where_there_are_no_weights(adapter, message, settings):
    edit_json(adapter / "adapter_config.json", lambda config: config.update(settings))
    for file in (adapter / "adapter_model.safetensors", adapter.parent / "base" / "model.safetensors"):
        file.unlink()
    with pytest.raises(ConfigError, match=re.escape(f"{adapter / 'adapter_config.json'}: {message}")):
        find_source(str(adapter), first=True)


def test_a_quantized_base_an_adapter_of_an_adapter_and_a_base_that_is_gone_are_refused(adapter):
    base = adapter.parent / "base"
    edit_json(base / "config.json", lambda config: config.update(quantization_config={"bits": 4}))
    with pytest.raises(ConfigError, match=r"quantization_config=.*its weights are quantized"):
        find_source(str(adapter), first=True)
    for name, rule in (("adapter", "is an adapter itself"), ("gone", "no such directory")):
        write_adapter(adapter, base=name)
        with pytest.raises(
            ConfigError, match=f"base_model_name_or_path={re.escape(str(adapter.parent / name))}: {rule}"
        ):
            find_source(str(adapter), first=True)


TORN = {
    "holds no .lora_A.weight": {"base_model.model.score.weight": torch.ones(3, 24)},
    "no llama of the base's sizes has a place for .*lora_A.weight (2, 20)": {
        f"{NAME}.lora_A.weight": torch.ones(2, 20),
        f"{NAME}.lora_B.weight": torch.ones(24, 2),
    },
    "no llama of the base's sizes has a place for .*layers.3.": {
        name.replace("layers.0", "layers.3"): tensor for name, tensor in TENSORS.items()
    },
    "has a place for .*embed_tokens.weight (61, 24)": {
        **TENSORS,
        "base_model.model.model.embed_tokens.weight": torch.ones(61, 24),
    },
    "has a place for .*lora_magnitude_vector (24,)": {**TENSORS, f"{NAME}.lora_magnitude_vector": torch.ones(24)},
    "quantized weights are not read": {**TENSORS, f"{NAME}.quant": torch.ones(2, dtype=torch.int8)},
    "adapter_config.json is there, but no adapter_model.safetensors": {},
}


@pytest.mark.parametrize(("message", "tensors"), TORN.items(), ids=range(len(TORN)))
def test_tensors_without_a_place_are_refused_by_name(adapter, message, tensors):
    shutil.rmtree(adapter)
    write_adapter(adapter, tensors=tensors)
    with pytest.raises(CheckpointError, match=message.replace("(", r"\(").replace(")", r"\)")):
        find_source(str(adapter), first=True)


@pytest.mark.parametrize("body", ["", "transformer.", "model."])
def test_classes_call_the_body_in_different_ways(adapter, body):
    """Alone it has no name, and Llama's for question answering calls it `transformer`."""
    tensors = {
        name.replace("base_model.model.model.", f"base_model.model.{body}"): tensor for name, tensor in TENSORS.items()
    }
    shutil.rmtree(adapter)
    write_adapter(adapter, {**CONFIG, "target_modules": [f"{body}layers.0.self_attn.q_proj"]}, tensors)
    [difference] = find_source(str(adapter), first=True).adapter.differences.values()
    assert torch.equal(difference[0].up, torch.full((24, 2), 0.5))


def test_heads_of_tasks_are_left_alone_and_a_pooler_comes_along(tmp_path, caplog):
    caplog.set_level("INFO")
    write(tmp_path / "base", small_encoder(layers=1))
    layer, pooler = "base_model.model.bert.encoder.layer.0.output.dense", "base_model.model.bert.pooler.dense"
    tensors = {
        **{f"{layer}.lora_A.weight": torch.ones(2, 96), f"{layer}.lora_B.weight": torch.ones(24, 2)},
        **{f"{pooler}.weight": torch.full((24, 24), 3.0), f"{pooler}.bias": torch.ones(24)},
        **{"base_model.model.classifier.weight": torch.ones(3, 24), "base_model.model.classifier.bias": torch.ones(3)},
    }
    config = {**CONFIG, "target_modules": ["output.dense"], "task_type": "SEQ_CLS"}
    source = find_source(str(write_adapter(tmp_path / "adapter", config, tensors)), first=True)
    assert isinstance(source, AdaptedSource) and source.is_fine_tuned
    weights = source.weights(None)
    assert weights.weight_shapes()["pooler.dense.weight"] == (24, 24)
    assert torch.equal(weights("pooler.dense.weight", WEIGHT, 5, 3), torch.full((3,), 3.0))
    assert "the head of a task, and left alone: classifier.bias, classifier.weight" in caplog.text
    with pytest.raises(ConfigError, match="is fine-tuned for a task, no language model"):
        load(tmp_path / "adapter", device="cpu")


COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cached(cache, name, *, files):
    """Put files into the cache of the hub, as those of a repository's main."""
    repository = cache / f"models--org--{name}"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    for file in files:
        shutil.copy(file, snapshot)


def test_an_adapter_on_the_hub_brings_a_base_that_is_there_too(adapter, tmp_path, monkeypatch):
    edit_json(adapter / "adapter_config.json", lambda config: config.update(base_model_name_or_path="org/base"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    cached(tmp_path, "adapter", files=adapter.iterdir())
    cached(tmp_path, "base", files=(tmp_path / "base").iterdir())
    for name in ("org/adapter", str(adapter)):
        assert find_source(name, first=False) is None, "it waits until the base is fetched"
        source = find_source(name, first=True)
        assert source.name == (name if name == str(adapter) else f"org/adapter@{COMMIT}")
        added = source.weights(None)("model.blocks.0.attention.qkv.weight", WEIGHT, 24 * 10 + 5, 24)
        plain = source.base.weights(None)("model.blocks.0.attention.qkv.weight", WEIGHT, 24 * 10 + 5, 24)
        torch.testing.assert_close(added - plain, torch.full((24,), 2.0))  # alpha / r * 2 * 0.5


def test_pretraining_goes_on_from_an_adapter_over_a_run_of_ours(tmp_path, caplog):
    caplog.set_level("INFO")
    run = make_run(tmp_path / "run", *LLAMA_SETTINGS)
    adapter = str(write_adapter(tmp_path / "adapter", base="run"))
    taken, module = settings_from(adapter), load_run(run)
    assert taken["model"] == load(run, device="cpu").network and taken["tokenizer"].path == str(run / "tokenizer.json")
    source, initial = find_source(adapter, first=True), InitialWeights(module, 5)
    fill(module, weights_from(source, initial, settings_of(run), ALONE, tokenizer=run / "tokenizer.json"))
    name = "blocks.0.attention.qkv.weight"
    changed = module.model.get_parameter(name) - load_run(run).model.get_parameter(name)
    torch.testing.assert_close(changed, torch.cat([torch.full((24, 24), 2.0), torch.zeros(48, 24)]))  # 4 / 2 * 2 * 0.5
    assert load(adapter, device="cpu").step is None
    assert len(load(adapter, device="cpu").generate("the", max_tokens=3)) == 1


def test_a_directory_with_whole_weights_beside_an_adapter_has_two_meanings(adapter):
    for file in adapter.iterdir():
        shutil.copy(file, adapter.parent / "base")
    with pytest.raises(CheckpointError, match="holds an adapter of PEFT, which is not read; merge it"):
        find_source(str(adapter.parent / "base"), first=True)


def test_targets_are_the_shortest_names_that_mean_no_other_module():
    names = {f"m.layers.{n}.{name}": name != "mlp.gate" for n in (0, 1) for name in ("a.out", "mlp.out", "mlp.gate")}
    assert set(ends_of(names).values()) == {"out"}
    names["pooler.out"] = False
    assert set(ends_of(names).values()) == {"a.out", "mlp.out"}
    names["m.layers.1.a.out"] = False
    assert set(ends_of(names).values()) == {"m.layers.0.a.out", "mlp.out"}
