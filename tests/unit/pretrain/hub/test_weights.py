"""Hugging Face checkpoints: what is read is what `transformers` wrote, by slices; what does not fit is refused."""

import json
import re

import pytest
import torch
import torch.nn.functional as F
from hugging_face_directories import InMemory, in_memory, rows_of_ours, write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from small_models import (
    DEBERTA,
    DISTILBERT,
    GPT_NEOX,
    LLAMA,
    MODERNBERT,
    ROBERTA,
    VOCAB_SIZE,
    ragged_batch,
    small_decoder,
    small_encoder,
)
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
)

from pretrain.checkpoint.base import WEIGHT
from pretrain.errors import CheckpointError, ConfigError
from pretrain.hub.family import family_for
from pretrain.hub.weights import HuggingFaceWeights
from pretrain.models.base import Layout

FIELDS = {
    "gpt2": {"layers": 1},
    "gpt2, untied": {"layers": 1, "tie_embeddings": False, "mlp_width": 40},
    "llama": {**LLAMA, "layers": 1, "kv_heads": 2},
    "llama, untied": {**LLAMA, "layers": 1, "kv_heads": 1, "tie_embeddings": False, "mlp_width": 56},
    "gpt_neox": {**GPT_NEOX, "layers": 1, "tie_embeddings": False},
    "bert": {"layers": 2},
    "roberta": {**ROBERTA, "layers": 1},
    "distilbert": {**DISTILBERT, "layers": 1},
    "deberta": {**DEBERTA, "layers": 1, "shared_projections": False},
    "modernbert": {**MODERNBERT, "layers": 2, "window": 3, "global_every": 2},
    "modernbert, untied": {**MODERNBERT, "layers": 1, "bias": True, "tie_embeddings": False},
}


def small_model(name):
    build = small_decoder if name.startswith(("gpt", "llama")) else small_encoder
    return build(**FIELDS[name])


@pytest.fixture(scope="module", params=FIELDS)
def written(request, tmp_path_factory):
    """A model, and the directory that it was written to in several files."""
    model = small_model(request.param)
    directory = write(tmp_path_factory.mktemp("written") / "model", model, max_bytes=8_000)
    assert len(list(directory.glob("*.safetensors"))) > 2
    return InMemory(model), HuggingFaceWeights(directory)


def test_there_and_back_is_the_identity(written):
    ours, read = written
    assert read.weight_shapes() == {name: tensor.shape for name, tensor in ours.tensors.items()}
    for name, tensor in ours.tensors.items():
        assert read.kinds(name) == {WEIGHT: tensor.shape}
        assert torch.equal(read(name, WEIGHT, 0, tensor.numel()), tensor.reshape(-1))


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_run_of_any_tensor(written, data):
    ours, read = written
    name = data.draw(st.sampled_from(sorted(ours.tensors)))
    total = ours.tensors[name].numel()
    start = data.draw(st.integers(0, total))
    numel = data.draw(st.integers(0, total - start))
    assert torch.equal(read(name, WEIGHT, start, numel), ours(name, WEIGHT, start, numel))


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("form", ["one file", "several files", "the body alone", "half precision"])
def test_what_transformers_writes_is_read(tmp_path, name, form):
    config = small_model(name).config
    body = form == "the body alone"
    theirs = (AutoModelForCausalLM if config.kind.generates else AutoModelForMaskedLM).from_config(
        AutoConfig.for_model(**family_for(config).to_hf(config, VOCAB_SIZE)),
        dtype=torch.bfloat16 if form == "half precision" else torch.float32,
    )
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter)
    kept = theirs.base_model if body else theirs
    kept.save_pretrained(tmp_path, max_shard_size="8KB" if form == "several files" else "1GB")
    assert (tmp_path / "model.safetensors").exists() != (form == "several files")
    read = HuggingFaceWeights(tmp_path)
    parts = list(family_for(config).model_tensors(config, VOCAB_SIZE))
    head = [part for part in parts if not part.theirs.startswith(theirs.base_model_prefix)]
    assert read.absent == (sorted(f"model.{part.ours}" for part in head) if body else [])
    for part in parts:
        if body and part in head:
            continue
        tensor = in_memory(theirs, part).detach().float()
        expected = rows_of_ours(part, tensor).reshape(-1)
        assert torch.equal(read(f"model.{part.ours}", WEIGHT, part.start, part.numel), expected)


def test_both_heads_of_deberta_are_read(tmp_path, caplog):
    """`legacy` says under which names the head for tokens lies; released files hold other heads beside it."""
    config = small_encoder(**DEBERTA).config
    theirs = AutoModelForMaskedLM.from_config(
        AutoConfig.for_model(**family_for(config).to_hf(config, VOCAB_SIZE), legacy=False)
    )
    for parameter in theirs.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    theirs.save_pretrained(tmp_path)
    more = {
        "mask_predictions.dense.weight": torch.ones(2, 2),
        "deberta.embeddings.position_embeddings.weight": torch.ones(3, 2),
    }
    rewrite(tmp_path, lambda tensors: tensors.update(more))
    with caplog.at_level("INFO"):
        ours, read = small_encoder(**DEBERTA), HuggingFaceWeights(tmp_path)
    assert read.absent == []
    for name, parameter in ours.named_parameters():
        parameter.data.copy_(read(f"model.{name}", WEIGHT, 0, parameter.numel()).view_as(parameter))
    batch = ragged_batch([9])
    hidden = ours(batch.tokens, batch.positions, Layout.of(batch.offsets, 9))
    logits = F.linear(ours.head_input(hidden), ours.head_weight(), ours.head_bias())
    torch.testing.assert_close(logits, theirs.eval()(batch.tokens[None]).logits[0], atol=1e-5, rtol=1e-5)
    for name in more:
        assert name in caplog.text, "said"


def rewrite(directory, change):
    """Change the tensors of a directory of one file."""
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def test_stored_masks_and_stored_tied_heads_are_no_surprise(tmp_path):
    model = small_decoder()
    directory = write(tmp_path / "model", model)
    rewrite(directory, lambda tensors: tensors.update({"transformer.h.0.attn.bias": torch.ones(3)}))
    rewrite(directory, lambda tensors: tensors.update({"lm_head.weight": tensors["transformer.wte.weight"].clone()}))
    ours, read = InMemory(model), HuggingFaceWeights(directory)
    assert read.absent == [] and read.weight_shapes() == {name: each.shape for name, each in ours.tensors.items()}
    for name, tensor in ours.tensors.items():
        assert torch.equal(read(name, WEIGHT, 0, tensor.numel()), tensor.reshape(-1)), name


def renamed(tensors, change):
    """Change the names of tensors in place."""
    for name in list(tensors):
        tensors[change(name)] = tensors.pop(name)


OLD_FILES = {
    "gamma and beta": lambda t: renamed(t, lambda name: re.sub("Norm.weight$", "Norm.gamma", name)),
    "no prefix, but a head": lambda t: renamed(t, lambda name: name.removeprefix("bert.")),
    "both": lambda t: renamed(
        t,
        lambda name: name.removeprefix("bert.").replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"),
    ),
    "position ids": lambda t: t.update({"bert.embeddings.position_ids": torch.arange(32)[None]}),
    "repeated tensors": lambda t: t.update(
        {
            "cls.predictions.decoder.weight": t["bert.embeddings.word_embeddings.weight"].clone(),
            "cls.predictions.decoder.bias": t["cls.predictions.bias"].clone(),
        }
    ),
}


@pytest.mark.parametrize("change", OLD_FILES.values(), ids=OLD_FILES)
def test_old_files_of_bert_hold_the_same(tmp_path, change, caplog):
    model = small_encoder()
    directory = write(tmp_path / "model", model)
    rewrite(directory, change)
    read, ours = HuggingFaceWeights(directory), InMemory(model)
    assert not read.absent
    for name, tensor in ours.tensors.items():
        assert torch.equal(read(name, WEIGHT, 0, tensor.numel()), tensor.reshape(-1))
    assert not caplog.records


@pytest.mark.parametrize("prefix", ["bert.", ""])
def test_what_objectives_have_beside_the_model_is_read_too(tmp_path, caplog, prefix):
    directory = write(tmp_path / "model", small_encoder())
    beside = {f"{prefix}pooler.dense.bias": torch.randn(24), "cls.seq_relationship.weight": torch.randn(2, 24)}
    rewrite(directory, lambda tensors: renamed(tensors, lambda name: name.replace("bert.", prefix)))
    rewrite(directory, lambda tensors: tensors.update(beside))
    with caplog.at_level("INFO"):
        read = HuggingFaceWeights(directory)
    assert not caplog.records
    for name, theirs in zip(("pooler.dense.bias", "sentence_classifier.weight"), beside.values(), strict=True):
        assert read.weight_shapes()[name] == theirs.shape
        assert torch.equal(read(name, WEIGHT, 0, theirs.numel()), theirs.reshape(-1))


@pytest.mark.parametrize("task", [BertForSequenceClassification, BertForQuestionAnswering, BertForMultipleChoice])
def test_heads_of_tasks_are_read_or_named_and_left_alone(tmp_path, caplog, task):
    """Those that fine-tuning has are `head.*`; what is none of them is another task's."""
    model = small_encoder()
    theirs = task(BertConfig(**family_for(model.config).to_hf(model.config, VOCAB_SIZE)))
    theirs.save_pretrained(tmp_path)
    with caplog.at_level("INFO"):
        read = HuggingFaceWeights(tmp_path)
    if task is BertForMultipleChoice:
        [said] = caplog.messages
        assert said.endswith("left alone: classifier.bias, classifier.weight")
    else:
        assert not caplog.messages
        head = theirs.qa_outputs if task is BertForQuestionAnswering else theirs.classifier
        assert torch.equal(read("head.classifier.weight", WEIGHT, 0, 48), head.weight.detach().reshape(-1))
    assert {name.split(".")[1] for name in read.absent} == {"transform", "head"}
    expected = theirs.get_parameter("bert.embeddings.word_embeddings.weight").detach()
    assert torch.equal(read("model.embedding.weight", WEIGHT, 0, expected.numel()), expected.reshape(-1))


def test_a_part_of_a_layer_is_damage(tmp_path):
    directory = write(tmp_path / "model", small_encoder())
    rewrite(directory, lambda tensors: renamed(tensors, lambda name: name.removeprefix("bert.")))
    rewrite(directory, lambda tensors: tensors.pop("cls.predictions.transform.dense.bias"))
    with pytest.raises(CheckpointError, match=r"differ: missing cls.predictions.transform.dense.bias \(24,\)"):
        HuggingFaceWeights(directory)


DAMAGE = {
    "missing transformer.wpe.weight (32, 24)": lambda d: rewrite(d, lambda t: t.pop("transformer.wpe.weight")),
    "extra transformer.wxe.weight": lambda d: rewrite(d, lambda t: t.update({"transformer.wxe.weight": torch.ones(1)})),
    "transformer.wpe.weight is (2, 2), the model's (32, 24)": lambda d: rewrite(
        d, lambda t: t.update({"transformer.wpe.weight": torch.ones(2, 2)})
    ),
    "no model.safetensors; only safetensors are read": lambda d: (d / "model.safetensors").unlink(),
    "not a readable safetensors file": lambda d: (d / "model.safetensors").write_bytes(b"torn"),
    "model.safetensors: not a readable": lambda d: (d / "model.safetensors").write_bytes(
        (d / "model.safetensors").read_bytes()[:-1]
    ),
    "config.json: cannot be read": lambda d: (d / "config.json").write_text("{"),
}


@pytest.mark.parametrize("problem", DAMAGE)
def test_what_does_not_fit_is_refused_by_name(tmp_path, problem):
    directory = write(tmp_path / "model", small_decoder())
    DAMAGE[problem](directory)
    with pytest.raises(CheckpointError) as refused:
        HuggingFaceWeights(directory)
    assert problem in str(refused.value)


@pytest.fixture
def llama(tmp_path):
    """A Llama as `transformers` writes it, in several files."""
    config = LlamaConfig(
        vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=1, num_attention_heads=4
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama", max_shard_size="8KB")
    assert len(list((tmp_path / "llama").glob("*.safetensors"))) > 2
    return tmp_path / "llama"


def list_in_the_index(directory, name, file):
    index = directory / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"][name] = file
    index.write_text(json.dumps(content))


def first_file(directory):
    return min(directory.glob("*.safetensors"))


DAMAGED_INDEX = {
    "index.json: cannot be read": lambda d: (d / "model.safetensors.index.json").write_text("{"),
    "index.json: cannot be read (not a JSON object)": lambda d: (d / "model.safetensors.index.json").write_text("[]"),
    "index.json: has no weight_map from": lambda d: (d / "model.safetensors.index.json").write_text("{}"),
    "json: has no weight_map from": lambda d: list_in_the_index(d, "lm_head.weight", 3),
    "index.json: lists '../model.safetensors', which is no file beside it": lambda d: list_in_the_index(
        d, "lm_head.weight", "../model.safetensors"
    ),
    "index.json: lists '..', which is no file beside it": lambda d: list_in_the_index(d, "lm_head.weight", ".."),
    "-00001-of-00005.safetensors', which is no file beside it; fetch or": lambda d: first_file(d).unlink(),
    "-00001-of-00005.safetensors: not a readable safetensors file": lambda d: first_file(d).write_bytes(
        first_file(d).read_bytes()[:-1]
    ),
    "index.json: lists tensors that are not there: lm_head.weight in model-0": lambda d: list_in_the_index(
        d, "lm_head.weight", first_file(d).name
    ),
}


@pytest.mark.parametrize("problem", DAMAGED_INDEX)
def test_a_damaged_directory_of_several_files_is_refused_by_name(llama, problem):
    HuggingFaceWeights(llama)
    DAMAGED_INDEX[problem](llama)
    with pytest.raises(CheckpointError) as refused:
        HuggingFaceWeights(llama)
    assert str(refused.value).startswith(f"{llama}/model")
    assert problem in str(refused.value)
    assert "fetch or write it again" in str(refused.value)


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"model_type": "bloom"}, "model_type=bloom: is not supported"),
        ({"qk_norm": True}, "qk_norm=True is not supported by model=decoder"),
        ({"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "rope_parameters.rope_type=dynamic is not"),
        (
            {"num_attention_heads": 5},
            "num_attention_heads=5 is not supported by model=decoder (it divides",
        ),
        ({"model_type": ["llama"]}, "model_type=['llama']: is not supported"),
        ({"hidden_size": "24"}, "hidden_size='24': must be a whole number from 1 to 16777216"),
        ({"vocab_size": -1}, "vocab_size=-1: must be a whole number from 1 to 16777216"),
        ({"rope_parameters": 3}, "rope_parameters=3: must be an object"),
        ({"rope_parameters": {"rope_theta": "x"}}, "rope_parameters.rope_theta='x': must be a positive"),
        ({"transformers_weights": "a.safetensors"}, "transformers_weights=a.safetensors is not supported by"),
        ({"quantization_config": {"bits": 4}}, "quantization_config={'bits': 4} is not supported by"),
    ],
)
def test_every_refusal_of_a_configuration_names_its_file_once(llama, changed, problem):
    path = llama / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(ConfigError) as refused:
        HuggingFaceWeights(llama)
    assert str(refused.value).startswith(f"{path}: {problem}")
    assert str(refused.value).count("config.json") == 1
