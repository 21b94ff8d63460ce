"""Of a directory we read what transformers reads, to equal logits; where the two could differ, we refuse by name."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from small_models import DISTILBERT, GPT_NEOX, LLAMA, MODERNBERT, ROBERTA, VOCAB_SIZE, small_decoder, small_encoder
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForMaskedLM

from pretrain.checkpoint.base import WEIGHT
from pretrain.errors import CheckpointError, ConfigError
from pretrain.hub.family import FAMILIES, family_for
from pretrain.hub.weights import HuggingFaceWeights
from pretrain.models.attention.sdpa import sdpa
from pretrain.models.base import Layout
from pretrain.trained.source import open_source

MODELS = {
    "gpt2": small_decoder(layers=1),
    "llama": small_decoder(**LLAMA, layers=1, kv_heads=2),
    "mistral": small_decoder(**LLAMA, layers=1, window=3),
    "gpt_neox": small_decoder(**GPT_NEOX, layers=1),
    "bert": small_encoder(layers=1),
    "roberta": small_encoder(**ROBERTA, layers=1),
    "distilbert": small_encoder(**DISTILBERT, layers=1),
    "modernbert": small_encoder(**MODERNBERT, layers=2, window=3, global_every=2),
}
UNTIED = {
    "gpt2": small_decoder(layers=1, tie_embeddings=False),
    "llama": small_decoder(**LLAMA, layers=1, tie_embeddings=False),
    "gpt_neox": small_decoder(**GPT_NEOX, layers=1, tie_embeddings=False),
    "distilbert": small_encoder(**DISTILBERT, layers=1, tie_embeddings=False),
    "modernbert": small_encoder(**MODERNBERT, layers=1, tie_embeddings=False),
}
IDS = torch.tensor([5, 9, 2, 60, 7, 7, 31])


def transformers_model(config, seed=1):
    """Return transformers' model of our configuration, with weights that leave no norm or bias at 1 or 0."""
    kind = AutoModelForCausalLM if config.kind.generates else AutoModelForMaskedLM
    model = kind.from_config(AutoConfig.for_model(**family_for(config).to_hf(config, VOCAB_SIZE))).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=generator)
    return model


@pytest.fixture(scope="module", params=MODELS)
def saved(request, tmp_path_factory):
    """A family's name, a model of transformers with tied embeddings, and the directory that it was saved to."""
    model = transformers_model(MODELS[request.param].config)
    directory = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(directory)
    return request.param, model, directory


@pytest.fixture
def copied(saved, tmp_path):
    """The same, with a copy of the directory."""
    name, model, directory = saved
    return name, model, shutil.copytree(directory, tmp_path / "model")


@torch.no_grad()
def logits(directory):
    """Return the logits of a directory by us and by transformers."""
    read = HuggingFaceWeights(directory, prefix="")
    ours = read.config.build(vocab_size=VOCAB_SIZE, attend=sdpa)
    for name, parameter in ours.named_parameters():
        parameter.copy_(read(name, WEIGHT, 0, parameter.numel()).reshape(parameter.shape))
    hidden = ours(IDS, torch.arange(len(IDS)), Layout.of(torch.tensor([0, len(IDS)]), len(IDS)))
    if read.config.kind.generates:
        found = hidden @ ours.head_weight().T
    else:
        found = ours.head_input(hidden) @ ours.head_weight().T + ours.head_bias()
    kind = AutoModelForCausalLM if read.config.kind.generates else AutoModelForMaskedLM
    theirs = kind.from_pretrained(directory, torch_dtype=torch.float32).eval()
    return found, theirs(IDS[None], attention_mask=torch.ones(1, len(IDS), dtype=torch.int64)).logits[0]


def check_equal(directory, model):
    """Both read the weights of a model."""
    ours, theirs = logits(directory)
    expected = model(IDS[None], attention_mask=torch.ones(1, len(IDS), dtype=torch.int64)).logits[0]
    torch.testing.assert_close(theirs, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def rewrite(directory, change):
    """Change the tensors of a directory of one file."""
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    save_file(tensors, directory / "model.safetensors")


def test_what_save_model_writes_is_read(copied):
    _, model, directory = copied
    save_model(model, str(directory / "model.safetensors"))
    check_equal(directory, model)


@pytest.mark.parametrize("both", [False, True], ids=["under the head's name", "under both names"])
def test_a_tied_tensor_may_have_either_name(copied, both):
    name, model, directory = copied

    def change(tensors):
        tied = FAMILIES[name].tensors.tied
        tensors.update({copy: tensors[source].clone() for copy, source in tied.items()})
        if not both:
            for source in set(tied.values()):
                del tensors[source]

    rewrite(directory, change)
    check_equal(directory, model)


def test_the_tied_tensors_are_those_of_transformers(saved):
    name, model, _ = saved
    theirs = model.all_tied_weights_keys
    if name == "gpt_neox":  # its name in files
        theirs = {"embed_out.weight": theirs["lm_head.weight"], **theirs}
    assert FAMILIES[name].tensors.tied == theirs


@pytest.mark.parametrize("other", [torch.ones(VOCAB_SIZE, 24), torch.ones(VOCAB_SIZE, 23), torch.tensor(1.0)])
def test_tied_tensors_that_differ_are_refused_by_name(copied, other):
    name, _, directory = copied
    copy, source = next(iter(FAMILIES[name].tensors.tied.items()))
    rewrite(directory, lambda tensors: tensors.update({copy: other}))
    with pytest.raises(CheckpointError, match=f"model: {copy} and {source} differ, which config.json says are tied"):
        HuggingFaceWeights(directory)


@pytest.mark.parametrize("name", UNTIED)
def test_an_untied_head_that_is_not_stored_is_absent_and_an_embedding_is_damage(name, tmp_path):
    model = transformers_model(UNTIED[name].config)
    model.save_pretrained(tmp_path)
    check_equal(tmp_path, model)
    copy, source = next(iter(FAMILIES[name].tensors.tied.items()))
    kept = load_file(tmp_path / "model.safetensors")
    head = [part for part in kept if part.rpartition(".")[0] == copy.rpartition(".")[0]]
    rewrite(tmp_path, lambda tensors: [tensors.pop(part) for part in head])
    assert HuggingFaceWeights(tmp_path).absent == [f"model.head.{part.rpartition('.')[2]}" for part in sorted(head)]
    save_file({part: tensor for part, tensor in kept.items() if part != source}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match=f"1 tensors differ: missing {source}"):
        HuggingFaceWeights(tmp_path)


OLD = {
    "gpt2": {"transformer.h.0.attn.bias": torch.ones(1, 1, 32, 32), "transformer.h.0.attn.masked_bias": torch.ones(1)},
    "llama": {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3)},
    "mistral": {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(3)},
    "gpt_neox": {
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq": torch.ones(3),
        "gpt_neox.layers.0.attention.bias": torch.ones(1, 1, 32, 32),
        "gpt_neox.layers.0.attention.masked_bias": torch.ones(()),
    },
    "bert": {"bert.embeddings.position_ids": torch.arange(32)[None], "bert.pooler.dense.weight": torch.ones(24, 24)},
    "roberta": {"roberta.embeddings.position_ids": torch.arange(34)[None], "roberta.pooler.dense.bias": torch.ones(24)},
    "distilbert": {"distilbert.embeddings.position_ids": torch.arange(32)[None]},
    "modernbert": {"model.rotary_emb.full_attention_inv_freq": torch.ones(3)},
}


def test_old_buffers_and_names_change_nothing(copied):
    name, model, directory = copied

    def change(tensors):
        tensors.update(OLD[name])
        for stored in list(tensors):
            old = stored.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[old] = tensors.pop(stored)

    rewrite(directory, change)
    check_equal(directory, model)


def test_the_whole_file_is_read_and_what_else_is_there_is_named(copied, caplog):
    _, model, directory = copied
    whole = (directory / "model.safetensors").read_bytes()
    transformers_model(MODELS[copied[0]].config, seed=2).save_pretrained(directory, max_shard_size="8KB")
    for name in ("model.safetensors", "model.fp16.safetensors", "consolidated.safetensors", "pytorch_model.bin"):
        (directory / name).write_bytes(whole)
    check_equal(directory, model)
    [said] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert (
        f"{directory}: read model.safetensors, as transformers does, and not consolidated.safetensors; model-0" in said
    )
    (directory / "model.safetensors").unlink()
    ours, theirs = logits(directory)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert "read model.safetensors.index.json, as transformers does, and not consolidated.saf" in caplog.text


def test_what_is_in_the_listed_files_is_read_listed_or_not(tmp_path):
    model = transformers_model(MODELS["llama"].config)
    model.save_pretrained(tmp_path, max_shard_size="8KB")
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    first = dict.fromkeys(content["weight_map"].values())
    content["weight_map"] = {name: file for name, file in content["weight_map"].items() if first.pop(file, 1) is None}
    index.write_text(json.dumps(content))
    check_equal(tmp_path, model)
    name, file = next(iter(content["weight_map"].items()))
    other = next(other for other in content["weight_map"].values() if other != file)
    save_file(load_file(tmp_path / other) | {name: load_file(tmp_path / file)[name] + 1}, tmp_path / other)
    with pytest.raises(CheckpointError, match=f"{name} is in model-0.* and in model-0.*; fetch or write it again"):
        HuggingFaceWeights(tmp_path)


WHOLE = "model.safetensors"


def moved(new):
    return lambda directory: (directory / WHOLE).rename(directory / new)


def written(data):
    return lambda directory: (directory / WHOLE).write_bytes(data)


def headed(head):
    """Write a file with this header, before 96 bytes of tensors."""
    data = head if isinstance(head, bytes) else json.dumps(head).encode()
    return written(len(data).to_bytes(8, "little") + data + bytes(96))


def with_tensor(name, tensor):
    return lambda directory: rewrite(directory, lambda tensors: tensors.update({name: tensor}))


def wrapped(prefix):
    def change(tensors):
        for name in list(tensors):
            tensors[prefix + name] = tensors.pop(name)

    return lambda directory: rewrite(directory, change)


def f32(begin, end, *shape):
    return {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
NORM = "bert.embeddings.LayerNorm"
UNREADABLE = "model.safetensors: not a readable safetensors file"
REFUSED = [
    (moved("model-00001-of-00002.safetensors"), "00002.safetensors are parts of one, and model.safetensors.index.json"),
    (moved("model.fp16.safetensors"), "no model.safetensors; rename the one that is meant: model.fp16.safetensors"),
    (moved("pytorch_model.bin"), "only safetensors are read, convert pytorch_model.bin (python -m pretrain.import_bin"),
    (written(b""), "model.safetensors: is empty; fetch or write"),
    (written(POINTER), "model.safetensors: a pointer of Git LFS, not the file itself"),
    (wrapped("module."), "the names of its tensors begin with 'module.', as a wrapper"),
    (wrapped("_orig_mod.module."), "the names of its tensors begin with '_orig_mod.module.', as a wrapper"),
    (wrapped("model."), "the names of its tensors begin with 'model.', as a wrapper"),
    (with_tensor(f"{NORM}.gamma", torch.ones(24)), f"{NORM}.gamma and {NORM}.weight are names of one tensor"),
    (with_tensor(f"{NORM}.bias", torch.ones(24).byte()), f"quantized weights are not read: {NORM}.bias (U8)"),
    # Headers that lie: of their length, of overlaps, of sizes that overflow, of types; and one that is no object.
    (written(b"\xff" * 7 + b"\x00" * 9), UNREADABLE),
    (headed({"a": f32(0, 48, 12), "b": f32(24, 96, 18)}), UNREADABLE),
    (headed({"a": f32(0, 96, 2**62, 2**62)}), UNREADABLE),
    (headed({"a": f32(0, 2**63, 2**61)}), UNREADABLE),
    (headed({"a": f32(0, 96, 24) | {"dtype": "F3"}}), UNREADABLE),
    (headed({"__metadata__": {"a": 3}, "a": f32(0, 96, 24)}), UNREADABLE),
    (headed(b"[" * 10_000), UNREADABLE),
]


@pytest.mark.parametrize(("change", "problem"), REFUSED)
def test_what_transformers_reads_otherwise_or_not_at_all_is_refused_by_name(change, problem, tmp_path):
    directory = tmp_path / "model"
    transformers_model(MODELS["bert"].config).save_pretrained(directory)
    HuggingFaceWeights(directory)
    change(directory)
    with pytest.raises(CheckpointError) as refused:
        HuggingFaceWeights(directory)
    assert problem in str(refused.value)


def test_an_adapter_is_refused_with_the_way_to_merge_it(tmp_path):
    transformers_model(MODELS["llama"].config).save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "base_model_name_or_path": "x"}))
    with pytest.raises(CheckpointError, match="holds an adapter of PEFT, which is not read; merge it"):
        HuggingFaceWeights(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(ConfigError, match=r"nor checkpoints \(a run\) in it; .*merge an adapter first"):
        open_source(str(tmp_path))
