"""What `transformers` loads from an export computes what ours computes; nothing incomplete is ever found."""

import os
import shutil
import subprocess
import sys
import time

import pytest
import torch
from corpora import edit_json
from run_directories import GPT2_SETTINGS, LLAMA_SETTINGS, json_of, load_run, make_run
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from pretrain.export import main
from pretrain.models.base import Layout
from pretrain.tokenizer.base import load_tokenizer

LENGTHS = [7, 1, 32, 12]
OURS = {
    "gpt2": GPT2_SETTINGS,
    "gpt2, exact gelu": [*GPT2_SETTINGS, "model.activation=gelu", "model.mlp_width=40", "model.norm_eps=1e-3"],
    "gpt2, untied": [*GPT2_SETTINGS, "model.tie_embeddings=false", "model.heads=1"],
    "llama": [*LLAMA_SETTINGS, "model.kv_heads=2"],
    "llama, untied": [*LLAMA_SETTINGS, "model.kv_heads=1", "model.tie_embeddings=false", "model.rope_theta=5e5"],
    "llama, wide": [*LLAMA_SETTINGS, "model.mlp_width=56", "model.norm_eps=1e-6", "model.layers=3"],
    "gpt_neox": [*GPT2_SETTINGS, "model.order=parallel", "model.positions=rotary", "model.rotary_share=0.34"],
    "phi3": [*LLAMA_SETTINGS, "model.family=phi3", "model.kv_heads=2"],
    "gpt2, mup": [*GPT2_SETTINGS, "model.mup_base_width=16", "model.mup_base_head_width=4"],
    "llama, mup": [*LLAMA_SETTINGS, "model.kv_heads=2", "model.tie_embeddings=false", "model.mup_base_width=16"],
    "mistral": [*LLAMA_SETTINGS, "model.kv_heads=2", "model.window=5"],
}


@pytest.fixture
def small(tmp_path):
    return make_run(tmp_path / "small", *GPT2_SETTINGS)


def logits_of_both(run, export, dtype=torch.float32):
    """Return our logits and theirs of the same documents, (N, V) each."""
    ours = load_run(run).model
    theirs, report = AutoModelForCausalLM.from_pretrained(export, output_loading_info=True, dtype=dtype)
    assert not any(report.values())
    tokens = torch.randint(280, (sum(LENGTHS),), generator=torch.Generator().manual_seed(3))
    positions = torch.cat([torch.arange(length) for length in LENGTHS])
    offsets = torch.tensor([0, *LENGTHS], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    with torch.no_grad():
        hidden = ours(tokens, positions, Layout.of(offsets, max(LENGTHS)))
        expected = torch.cat([theirs(input_ids=document[None]).logits[0] for document in tokens.split(LENGTHS)])
    return hidden @ ours.head_weight().T, expected


@pytest.mark.parametrize("settings", OURS.values(), ids=OURS)
def test_transformers_computes_our_logits(tmp_path, settings):
    run = make_run(tmp_path / "run", *settings)
    assert main([str(run)]) == 0
    ours, theirs = logits_of_both(run, run / "export")
    assert ours.std() > 0.5, "logits that say something"
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_several_files_with_an_index(tmp_path):
    run = make_run(tmp_path / "run", *LLAMA_SETTINGS, "model.width=96", "model.layers=4", "model.init_std=0.1")
    assert main([str(run), "--shard-mb", "1", "--out", str(tmp_path / "out")]) == 0
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert [file.name for file in files] == [f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)]
    held = {file.name: load_file(file) for file in files}
    assert all(sum(tensor.nbytes for tensor in tensors.values()) <= 1e6 for tensors in held.values())
    index = json_of(tmp_path / "out" / "model.safetensors.index.json")
    assert index["weight_map"] == {name: file for file, tensors in held.items() for name in tensors}
    assert index["metadata"]["total_size"] == sum(t.nbytes for tensors in held.values() for t in tensors.values())
    torch.testing.assert_close(*logits_of_both(run, tmp_path / "out"), atol=1e-5, rtol=1e-5)


def test_a_tensor_larger_than_a_file_has_one_of_its_own(tmp_path):
    run = make_run(tmp_path / "run", *GPT2_SETTINGS, vocab_size=30_000)
    assert main([str(run), "--shard-mb", "1"]) == 0
    first = load_file(run / "export" / "model-00001-of-00002.safetensors")
    assert list(first) == ["transformer.wte.weight"]


@pytest.mark.parametrize(("dtype", "kind"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precision_is_rounded_once(small, dtype, kind):
    assert main([str(small), "--dtype", dtype]) == 0
    weights = load_file(small / "export" / "model.safetensors")
    ours = load_run(small).model.state_dict()
    assert torch.equal(weights["transformer.wte.weight"], ours["embedding.weight"].to(kind))
    assert torch.equal(weights["transformer.h.1.attn.c_attn.weight"], ours["blocks.1.attention.qkv.weight"].T.to(kind))
    assert AutoModelForCausalLM.from_pretrained(small / "export").dtype is kind


def test_values_outside_the_range_of_fp16_are_refused(tmp_path, capsys):
    run = make_run(tmp_path / "run", "model.init_std=1e6")
    assert main([str(run), "--dtype", "fp16"]) == 5
    assert "transformer.wte.weight: holds values that are no finite fp16" in capsys.readouterr().err
    assert not (run / "export").exists()
    assert not list(run.glob(".tmp-*"))


def test_the_tokenizer_gives_the_same_ids_and_knows_the_ends_of_documents(small):
    assert main([str(small)]) == 0
    theirs, ours = AutoTokenizer.from_pretrained(small / "export"), load_tokenizer(small / "tokenizer.json")
    for text in ("the time of the year", " two  spaces\n\tand tabs ", "Fête – ça va? 漢字 🙂", ""):
        assert theirs(text)["input_ids"] == ours.encode(text).ids
        assert theirs.decode(theirs(text)["input_ids"]) == text
    characters = theirs("<|endoftext|>", split_special_tokens=True)["input_ids"]
    assert characters == ours.encode("<|endoftext|>").ids, "text is only text, as in training"
    end = ours.token_to_id("<|endoftext|>")
    assert theirs("<|endoftext|>")["input_ids"] == [end]
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.model_max_length) == (end, end, 32)
    generation = GenerationConfig.from_pretrained(small / "export")
    assert (generation.bos_token_id, generation.eos_token_id) == (end, end)


def test_documents_framed_on_both_sides_and_on_none(small):
    for frame, begin, end in (([[3], [5, 6]], 3, 5), ([[], []], None, None)):
        edit_json(small / "run.json", lambda record, frame=frame: record.update(document_frame=frame))
        assert main([str(small)]) == 0
        config = AutoModelForCausalLM.from_pretrained(small / "export").config
        assert (config.bos_token_id, config.eos_token_id) == (begin, end)
        tokenizer = AutoTokenizer.from_pretrained(small / "export")
        assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (begin, end)


@pytest.mark.parametrize(
    ("settings", "refusal"),
    [
        (["model.positions=sinusoidal"], "model.positions=sinusoidal: is not supported by GPT2LMHeadModel"),
        (["model.norm=rmsnorm"], "model.norm=rmsnorm: is not supported by GPT2LMHeadModel"),
        (["model.window=4"], "model.window=4: is not supported by GPT2LMHeadModel, which has null only"),
        (["model.bias=false"], "model.bias=false: is not supported by GPT2LMHeadModel, which has true only"),
        (["model.kv_heads=2"], "model.kv_heads=2: is not supported by GPT2LMHeadModel"),
        (["model.activation=swiglu"], "model.activation=swiglu: is not supported by GPT2LMHeadModel"),
        ([*LLAMA_SETTINGS, "model.activation=gelu"], "model.activation=gelu: is not supported by LlamaForCausalLM"),
        ([*LLAMA_SETTINGS, "model.norm=layernorm"], "model.norm=layernorm: is not supported by LlamaForCausalLM"),
        ([*LLAMA_SETTINGS, "model.bias=true"], "model.bias=true: is not supported by LlamaForCausalLM"),
        (
            [*LLAMA_SETTINGS, "model.window=4", "model.global_every=2"],
            "model.global_every=2: is not supported by MistralForCausalLM, which has null only",
        ),
    ],
)
def test_models_of_no_family_are_refused_by_name(tmp_path, capsys, settings, refusal):
    run = make_run(tmp_path / "run", *settings)
    assert main([str(run)]) == 2
    assert refusal in capsys.readouterr().err
    assert not (run / "export").exists()


def test_a_chosen_step_and_what_is_refused(tmp_path, capsys):
    run = make_run(tmp_path / "run", step=7)
    make_run(tmp_path / "later", step=9, seed=2)
    shutil.copytree(tmp_path / "later" / "checkpoints" / "step-00000009", run / "checkpoints" / "step-00000009")
    assert main([str(run), "--step", "7"]) == 0
    about = json_of(run / "export" / "export.json")
    assert about == {"run": "run", "step": 7, "dtype": "fp32", "card": about["card"]}
    assert main([str(run), "--step", "7", "--dtype", "bf16"]) == 0, "the same step is exported anew"
    assert json_of(run / "export" / "export.json")["dtype"] == "bf16"

    assert main([str(run)]) == 2
    assert "holds step 7 of run run, not step 9 of run run; --overwrite" in capsys.readouterr().err
    assert main([str(tmp_path / "later"), "--out", str(run / "export")]) == 2
    assert main([str(run), "--overwrite"]) == 0
    about = json_of(run / "export" / "export.json")
    assert about == {"run": "run", "step": 9, "dtype": "fp32", "card": about["card"]}
    assert main([str(run), "--step", "8"]) == 4
    assert "step-00000008" in capsys.readouterr().err
    fragments = next((run / "checkpoints" / "step-00000007").glob("*.safetensors"))
    fragments.write_bytes(fragments.read_bytes()[:-1])
    assert main([str(run), "--step", "7", "--overwrite"]) == 4
    assert "the manifest says" in capsys.readouterr().err
    shutil.rmtree(run / "checkpoints")
    assert main([str(run)]) == 4
    assert "no step is saved there" in capsys.readouterr().err


def test_a_directory_that_is_no_export_is_never_replaced(small, tmp_path, capsys):
    precious = tmp_path / "precious"
    precious.mkdir()
    assert main([str(small), "--out", str(precious)]) == 0, "an empty one is as good as none"
    for taken in (tmp_path, small / "run.json"):
        assert main([str(small), "--out", str(taken), "--overwrite"]) == 2
        assert f"{taken}: exists and is no export" in capsys.readouterr().err
    assert (small / "run.json").exists()
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "nowhere: no such directory; name a run, a Hugging Face directory or" in capsys.readouterr().err
    assert main([str(small), "--out", str(small / "run.json" / "below")]) == 2
    assert "cannot be exported" in capsys.readouterr().err


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A run of 53M parameters, 211 MB, 131 MB of them the embedding."""
    settings = ["model.width=640", "model.heads=10", "model.layers=4", "data.seq_len=256"]
    return make_run(tmp_path_factory.mktemp("runs") / "large", *settings, vocab_size=51_200)


MEASURED = """
import re, sys, threading, time
from pathlib import Path
from pretrain.export import main

def status(key):
    return int(re.search(rf"^{key}:\\s*(\\d+) kB", Path("/proc/self/status").read_text(), re.M)[1]) * 1024

def watch():
    while True:
        peak[0] = max(peak[0], status("RssAnon"))
        time.sleep(0.001)

small, *arguments = sys.argv[1:]
assert main([small]) == 0  # every import is done
resident, anonymous = status("VmRSS"), status("RssAnon")
peak = [anonymous]
Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins here
threading.Thread(target=watch, daemon=True).start()
assert main(arguments) == 0
print(status("VmHWM") - resident, peak[0] - anonymous)
"""


def test_the_model_is_never_held(small, large, tmp_path):
    """Everything resident counts in the first figure, the mapped pages of the checkpoint too, which the system drops
    when it needs them; the second is what the process itself asks for."""
    arguments = [str(small), str(large), "--out", str(tmp_path / "out")]
    command = [sys.executable, "-c", MEASURED, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    resident, own = map(int, done.stdout.split()[-2:])
    weights = load_run(large).model.state_dict()
    size = sum(tensor.nbytes for tensor in weights.values())
    largest = max(tensor.nbytes for tensor in weights.values())
    assert size > 200e6
    assert resident < size + largest
    assert own < largest


def test_a_killed_export_leaves_nothing_that_looks_complete(large):
    command = [sys.executable, "-m", "pretrain.export", str(large), "--shard-mb", "30"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    while not list(large.glob(".tmp-export-*/model-00002-*")):
        assert process.poll() is None, "killed while it writes"
        time.sleep(0.0005)
    process.kill()
    process.wait()
    assert not (large / "export").exists()
    [torn] = large.glob(".tmp-export-*")
    assert not (torn / "model.safetensors.index.json").exists()
    assert not (torn / "config.json").exists()
    assert main([str(large)]) == 0
    assert not list(large.glob(".tmp-export-*")), "the next export clears what was torn"
