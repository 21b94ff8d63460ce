"""Runs of task=seq2seq: the loss beside a hand computation, what they write beside `transformers`, and refusals."""

import itertools
import json
import random

import pytest
import torch
from finetuned_runs import write
from run_directories import LLAMA_SETTINGS, TEXTS, make_run
from small_models import BART, T5_GATED
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

import finetune
from finetune.config import FINETUNE
from finetune.report.__main__ import main as report
from pretrain.compose import compose
from pretrain.errors import ConfigError
from pretrain.models.base import Layout, Stream
from pretrain.objectives.base import Objective
from pretrain.tokenizer.bpe import BpeTokenizer
from pretrain.trained.model import load

SPECIAL = ["<pad>", "<s>", "</s>"]


def pairs(number: int) -> list[dict]:
    """Return words of one to four letters, which are to be turned around."""
    draw = random.Random(3)
    words = ["".join(draw.choices("abcd", k=1 + place % 4)) for place in range(number)]
    return [{"source": word, "target": word[::-1]} for word in words]


def source(folder, model: str, *settings: str, special: list[str] = SPECIAL):
    tokenizer = BpeTokenizer(vocab_size=267 + len(special), special_tokens=special).train(iter(TEXTS))
    about = {"tokenizer": tokenizer, "vocab_size": 270, "model": model}
    if model == "decoder":
        return make_run(folder / "source", *LLAMA_SETTINGS, **about)
    return make_run(folder / "source", *settings, decoder_start=0, **about)


def tuned(folder, *settings: str):
    """Return the run of some settings, a few steps long."""
    data = write(folder / "data.jsonl", pairs(24))
    words = [
        *("task=seq2seq", f"task.train={data}", f"task.validation={data}", f"run.root={folder}", "run.name=tuned"),
        *("task.max_source_tokens=12", "task.max_target_tokens=8", "train.batch_size=8", "train.epochs=1"),
        *("tracker.progress=false", "optim.lr=1e-2", *settings),
    ]
    return finetune.finetune(compose(words, root=FINETUNE))


def by_hand(module: Objective, sources: list[list[int]], targets: list[list[int]], start: int | None) -> float:
    """Return the mean negative log-likelihood of targets, each pair alone, in float64."""

    def stream(ids: list[int]) -> Stream:
        return Stream(
            torch.tensor(ids), torch.arange(len(ids)), torch.tensor([0, len(ids)], dtype=torch.int32), len(ids)
        )

    model, total, count = module.model.double(), 0.0, 0
    for read, written in zip(sources, targets, strict=True):
        seen = stream([*read, *written[:-1]] if start is None else [start, *written[:-1]])
        layout = Layout.of(seen.offsets, seen.max_len)
        inputs = () if start is None else (stream(read),)
        hidden = model(seen.tokens, seen.positions, layout, *inputs)
        logits = hidden[-len(written) :] @ model.head_weight().T
        total += functional.cross_entropy(logits, torch.tensor(written), reduction="sum").item()
        count += len(written)
    return total / count


@pytest.mark.parametrize("model", ["decoder", "encoder_decoder"])
def test_the_loss_is_of_targets_alone(tmp_path, model):
    opened = finetune.load(tuned(tmp_path, f"init_from={source(tmp_path, model)}", "task.metrics=[chrf]"))
    measured = opened.evaluate(str(tmp_path / "data.jsonl"))
    ids = lambda text: opened.tokenizer.encode(text, add_special_tokens=False).ids
    around = (lambda text: [1, *ids(text), 2]) if model == "encoder_decoder" else (lambda text: [1, *ids(text)])
    end = (lambda text: [1, *ids(text), 2]) if model == "encoder_decoder" else (lambda text: [*ids(text), 2])
    read = [around(pair["source"]) for pair in pairs(24)]
    written = [end(pair["target"]) for pair in pairs(24)]
    expected = by_hand(opened.module, read, written, 0 if model == "encoder_decoder" else None)
    assert measured["loss"] == pytest.approx(expected, abs=1e-5)
    assert {"perplexity", "accuracy", "chrf"} <= measured.keys()
    predicted = opened.predict(str(tmp_path / "data.jsonl"))
    assert [{side: one[side] for side in ("source", "target")} for one in predicted] == pairs(24)
    assert [one.keys() for one in opened.predict(["abc"])] == [{"place", "source", "prediction"}]
    record = json.loads((opened.path / "run.json").read_text())
    assert record["decoder_start"] == (0 if model == "encoder_decoder" else None)


def test_the_first_step_of_training_is_that_of_transformers_on_targets_alone(tmp_path):
    run = source(tmp_path, "decoder")
    tuned(
        tmp_path,
        *(f"init_from={run}", "dropout=0", "train.batch_size=24", "train.max_tokens=50", "log.every=1"),
        *("task.generate_examples=0", "eval.at_start=true"),
    )
    untuned, first, tuned_once = map(json.loads, (tmp_path / "tuned" / "metrics.jsonl").read_text().splitlines())

    opened = load(run, device="cpu")
    theirs = AutoModelForCausalLM.from_pretrained(opened.export(), dtype=torch.float64)
    ids = lambda text: opened.tokenizer.encode(text, add_special_tokens=False).ids
    total, count = 0.0, 0
    for pair in pairs(24):
        read, written = [1, *ids(pair["source"])], [*ids(pair["target"]), 2]
        logits = theirs(torch.tensor([read + written])).logits[0]
        total += functional.cross_entropy(logits[len(read) - 1 : -1], torch.tensor(written), reduction="sum")
        count += len(written)
    loss = total / count
    loss.backward()
    norm = sum(weight.grad.square().sum() for weight in theirs.parameters()).sqrt()
    assert (first["loss"], first["grad_norm"]) == pytest.approx((loss.item(), norm.item()), rel=1e-6)
    assert (untuned["step"], untuned["loss"]) == (0, pytest.approx(loss.item(), rel=1e-6))
    assert (tuned_once["step"], tuned_once["split"]) == (1, "validation")


def test_an_adapted_decoder_writes_what_transformers_does_with_its_export(tmp_path):
    run = tuned(tmp_path, f"init_from={source(tmp_path, 'decoder')}", "tuning=lora", "task.metrics=[exact_match]")
    opened = finetune.load(run)
    theirs = AutoModelForCausalLM.from_pretrained(opened.export()).eval()
    texts = [pair["source"] for pair in pairs(8)]
    for text, one in zip(texts, opened.predict(texts), strict=True):
        prompt = [1, *opened.tokenizer.encode(text, add_special_tokens=False).ids]
        ids = theirs.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=2, pad_token_id=0)
        assert one["prediction"] == opened.tokenizer.decode(ids[0, len(prompt) :].tolist())
    assert report([str(run)]) == 0
    assert "Examples" in (run / "report" / "report.md").read_text()


def test_the_export_of_a_chat_knows_its_template_and_where_answers_end(tmp_path, caplog):
    """The token that ends an answer is none of those around a document here, as with many released base models."""
    (tmp_path / "chat.jinja").write_text(
        "{{ bos_token }}{% for message in messages %}{{ message.role }}:{{ message.content }}<end>{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    )
    roles = {"source": "user", "target": "assistant"}
    chats = [[{"role": roles[side], "content": text} for side, text in pair.items()] for pair in pairs(24)]
    data = write(tmp_path / "chats.jsonl", [{"messages": chat} for chat in chats])
    opened = finetune.load(
        tuned(
            tmp_path,
            *(f"init_from={source(tmp_path, 'decoder', special=['<s>', '</s>', '<end>'])}", "tuning=lora"),
            *(f"task.train={data}", f"task.validation={data}", "task.columns.messages=messages"),
            *(f"task.chat_template={tmp_path / 'chat.jinja'}", "task.max_source_tokens=24", "task.generate_examples=0"),
        )
    )
    directory = opened.export()
    read, begin, end = AutoTokenizer.from_pretrained(directory), 0, 2
    for chat, one in zip(chats[:3], opened.predict(str(data)), strict=False):
        assert one["source"] == read.apply_chat_template(chat[:-1], add_generation_prompt=True, tokenize=False)
        ids = read.apply_chat_template(chat, return_dict=False)
        assert (ids[0], ids[-1]) == (begin, end)
    ends = AutoModelForCausalLM.from_pretrained(directory).generation_config.eos_token_id
    assert ends == [end, 1]
    opened.export(adapters=True)
    assert "another name" not in caplog.text, "the vocabulary's head is beside the body in all classes"


@pytest.mark.parametrize("fields", [BART, T5_GATED], ids=["bart", "t5"])
def test_a_tuned_encoder_decoder_is_in_transformers_what_it_is_here(tmp_path, fields):
    """Its export has the same logits for batches, which are padded there, and writes the same texts."""
    network = [f"model.{key}={getattr(value, 'value', value)}" for key, value in fields.items()]
    started = source(tmp_path, "encoder_decoder", *network, "model.init=gpt2", "model.init_std=0.3")
    opened = finetune.load(tuned(tmp_path, f"init_from={started}", "task.generate_examples=0", "optim.lr=1e-3"))
    directory = opened.export()
    theirs, encode = AutoModelForSeq2SeqLM.from_pretrained(directory).eval(), AutoTokenizer.from_pretrained(directory)
    texts = [pair["source"] for pair in pairs(8)]
    batch = encode(texts, padding=True, return_tensors="pt")
    encoded = opened.encode(pairs(8), labelled=True).examples
    ours, padded = encoded.batch(range(8)), batch["attention_mask"] == 0
    assert ours.source.tokens.equal(batch["input_ids"][~padded]) and padded.any()
    layout = Layout.of(ours.offsets, ours.max_len)
    with torch.no_grad():
        hidden = opened.module.model(ours.tokens, ours.positions, layout, ours.source)
        logits = functional.linear(hidden, opened.module.model.head_weight(), opened.module.model.head_bias())
    lengths = ours.offsets.diff()
    rows = torch.nn.utils.rnn.pad_sequence(ours.tokens.split(lengths.tolist()), batch_first=True)
    real = torch.arange(rows.shape[1]) < lengths[:, None]
    torch.testing.assert_close(logits, theirs(**batch, decoder_input_ids=rows).logits[real], atol=1e-4, rtol=1e-5)
    ids = theirs.generate(**batch, max_new_tokens=9, do_sample=False)[:, 1:9]  # BART's ninth must be the end
    written = [one["prediction"] for one in opened.predict(texts)]
    assert written == encode.batch_decode(ids, skip_special_tokens=True) and len(set(written)) > 2


def test_a_tiny_encoder_decoder_learns_to_reverse_words_it_has_not_seen(tmp_path):
    words = ["".join(letters) for size in range(1, 5) for letters in itertools.product("abcd", repeat=size)]
    random.Random(1).shuffle(words)
    parts = {"train": words[:300], "validation": words[-24:]}
    for name, part in parts.items():
        write(tmp_path / f"{name}.jsonl", [{"source": word, "target": word[::-1]} for word in part])
    files = [f"task.{name}={tmp_path / name}.jsonl" for name in parts]
    network = ["width=32", "layers=1", "heads=4", "max_seq_len=8", "order=pre", "positions=learned"]
    learning = ["train.batch_size=32", "train.epochs=24", "eval.every=1000", "task.max_source_tokens=8", "dropout=0"]
    more = [*(f"model.{each}" for each in network), *TOKENIZER, "task.metrics=[exact_match]"]
    run = tuned(tmp_path, *files, "model=encoder_decoder", *more, *learning)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    [last] = [row for row in rows if row["split"] == "validation"]
    assert last["exact_match"] == 1 and last["loss"] < 0.1


NETWORK = ["model=encoder_decoder", "model.width=16", "model.layers=1", "model.heads=2", "model.max_seq_len=32"]
TOKENIZER = ["tokenizer=bpe", "tokenizer.vocab_size=257"]


def test_from_nothing_a_tokenizer_is_trained_and_the_run_resumes_with_it(tmp_path):
    run = tuned(tmp_path, *NETWORK, *TOKENIZER, "task.generate_examples=0")
    record = json.loads((run / "run.json").read_text())
    assert (record["vocab_size"], record["document_frame"], record["decoder_start"]) == (257, [[0], []], 0)
    before = (run / "tokenizer.json").read_text()
    tuned(tmp_path, *NETWORK, *TOKENIZER, "task.generate_examples=0")
    assert (run / "tokenizer.json").read_text() == before
    assert len(finetune.load(run).predict(["abc", "d"])) == 2


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (NETWORK, "tokenizer is not given"),
        (["init_from=x", *NETWORK], "model=encoder_decoder: init_from=x brings its own"),
        ([*NETWORK, *TOKENIZER, "model.max_seq_len=10"], "task.max_source_tokens=12"),
        (["model=encoder", "model.max_seq_len=32", *TOKENIZER], "is an encoder, which writes nothing"),
        ([*NETWORK, *TOKENIZER, "tuning=frozen"], "tuning.blocks=0"),
        ([*NETWORK, *TOKENIZER, "task.metric=bleu", "task.generate_examples=0"], "task.metric=bleu"),
        ([*NETWORK, *TOKENIZER, "task.chat_template=x"], "task.chat_template=x: is for conversations"),
        ([*NETWORK, *TOKENIZER, "task.every_answer=true"], "task.every_answer=true: is for conversations"),
        ([*NETWORK, *TOKENIZER, "task.columns.messages=m", 'task.template="a {source}"'], "task.template='a {source}'"),
        ([*NETWORK, *TOKENIZER, "task.columns.messages=m", "task.columns.source=a"], "task.columns.source=a"),
        ([*NETWORK, *TOKENIZER, "task.generate.beams=2", "task.generate.length_penalty=51"], "length_penalty=51"),
        ([*NETWORK, *TOKENIZER, "strategy=fsdp2", "task.generate.beams=2"], "task.generate.beams=2"),
        ([*NETWORK, *TOKENIZER, "tokenizer.prefix=[]"], "start|no token"),
    ],
)
def test_what_cannot_be_is_refused_before_training(tmp_path, settings, said):
    with pytest.raises(ConfigError, match=said):
        tuned(tmp_path, *settings)
