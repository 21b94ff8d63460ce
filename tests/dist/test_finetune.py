"""Whole runs of fine-tuning in real processes: on several ranks, killed and resumed, ended early, refused."""

import json
import random
import shutil

import numpy as np
import pytest
import torch
from ranks import column, on_ranks, run
from run_directories import make_run, word_pieces
from test_pretrain import assert_close, assert_equal_runs, kill_when, logged
from toys import ALONE

from finetune.data.examples import Example, Examples
from finetune.evaluator import answers
from finetune.model.base import FineTuned
from finetune.model.losses import CrossEntropy
from launch.table import table_of
from pretrain.checkpoint.base import WEIGHT
from pretrain.checkpoint.commit import step_names
from pretrain.checkpoint.fragments import FragmentReader
from pretrain.checkpoint.load import load_manifest
from pretrain.data.batch import IGNORED
from pretrain.hub.family import head_for
from pretrain.hub.heads import HeadKind
from pretrain.init_from import InitialWeights
from pretrain.models.attention.sdpa import sdpa
from pretrain.models.encoder import EncoderConfig

WORDS = ["time", "year", "people", "way", "world", "life", "school", "state", "of", "the"]
VALIDATION = 7  # examples: a number that no number of ranks here divides
STEPS = 17  # of a run: 45 examples 3 times, 8 at a time


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with texts of uneven lengths in two classes, by their words, and with a tiny BERT and a tiny decoder."""
    folder = tmp_path_factory.mktemp("finetune")
    draw = random.Random(5)
    for name, size in (("train", 45), ("validation", VALIDATION), ("other", 45)):
        texts = [draw.choices(WORDS, k=draw.randint(1, 20)) for _ in range(size)]
        lines = [f"{' '.join(words)}\t{'yes' if words.count('time') else 'no'}\n" for words in texts]
        (folder / f"{name}.tsv").write_text("".join(["text\tlabel\n", *lines]))
    (folder / "unknown.tsv").write_text("text\tlabel\ntime\tyes\nworld\tmaybe\n")
    make_run(folder / "bert", "objective.sentences=nsp", model="encoder", tokenizer=word_pieces(), vocab_size=72)
    make_run(folder / "decoder")
    return folder


def tuned(name: str, *more: str) -> list[str]:
    """Return the overrides of a run that takes seconds."""
    return [
        f"run.name={name}",
        "task=classification",
        "task.train=train.tsv",
        "task.validation=validation.tsv",
        "task.max_tokens=32",
        "init_from=bert",
        "train.batch_size=8",
        "optim.lr=2e-3",
        "log.every=1",
        *more,
    ]


def tune(*overrides: str, ranks: int = 1, code: int = 0, cwd) -> str:
    """Run to the end, check the exit code, and return what was said on standard error."""
    return run(*overrides, ranks=ranks, code=code, cwd=cwd, program="finetune").stderr


def validation(directory, *keys: str) -> list:
    return [list(column(directory, key, "validation").items()) for key in keys]


def test_a_run_learns_and_leaves_what_it_promises(place, whole):
    losses = column(whole, "loss")
    assert sorted(losses) == list(range(1, STEPS + 1))
    assert np.mean([losses[step] for step in (15, 16, 17)]) < losses[1] - 0.05
    measured = column(whole, "accuracy", "validation")
    assert sorted(measured) == [3, 6, 9, 12, 15, 17]
    record = json.loads((whole / "run.json").read_text())
    assert (record["exit"], record["init_from"], record["names"]) == (0, "bert", ["no", "yes"])
    assert record["best_step"] == max(measured, key=lambda step: (measured[step], -step))
    log = (whole / "log.txt").read_text()
    assert "starting from the weights of bert" in log
    assert "head.classifier.weight, head.classifier.bias get initial values" in log
    assert f"at step {record['best_step']}" in log


def assert_alike(one, other) -> None:
    """Compare losses and gradient norms of two runs, step by step, what they have seen, and what they measure."""
    assert column(one, "tokens") == column(other, "tokens")
    for key, split in (("loss", "train"), ("grad_norm", "train"), ("loss", "validation")):
        first, second = column(one, key, split), column(other, key, split)
        assert first.keys() == second.keys() and len(first) >= 2
        assert list(second.values()) == pytest.approx(list(first.values()), rel=2e-5)


@pytest.fixture(scope="module")
def one_rank(place):
    """Directories of runs of each model on one rank, in micro-batches as large as steps, without dropout."""
    for model in ("bert", "decoder"):
        large = ["dropout=0", "train.max_tokens=512", f"init_from={model}"]
        tune(*tuned(f"one-{model}", *large), cwd=place)
    return place / "runs"


@pytest.mark.parametrize(
    ("model", "strategy"),
    [
        ("bert", "zero2"),
        ("decoder", "fsdp2"),
        pytest.param("bert", "ddp", marks=pytest.mark.slow),
        pytest.param("bert", "fsdp2", marks=pytest.mark.slow),
        pytest.param("decoder", "zero2", marks=pytest.mark.slow),
        pytest.param("decoder", "ddp", marks=pytest.mark.slow),
    ],
)
def test_ranks_strategies_and_micro_batches_do_not_change_the_run(place, one_rank, model, strategy):
    name = f"{model}-{strategy}"
    small = ["dropout=0", "train.max_tokens=32", f"init_from={model}", f"strategy={strategy}"]
    tune(*tuned(name, *small), ranks=2, cwd=place)
    one, two = one_rank / f"one-{model}", place / "runs" / name
    assert_alike(one, two)
    assert validation(one, "accuracy", "matthews") == validation(two, "accuracy", "matthews")


def spans_and_tags(folder):
    """Write questions of uneven contexts, some longer than a window, and sentences with tags; return their settings."""
    draw = random.Random(9)
    for split, size in (("train", 31), ("validation", VALIDATION)):
        questions, sentences = [], []
        for number in range(size):
            words = draw.choices(WORDS, k=draw.randint(3, 40))
            at = draw.randrange(len(words))
            answer = {"text": words[at], "answer_start": len(" ".join([*words[:at], ""]))}
            one = {"id": f"{number}", "question": f"the {words[at]}", "context": " ".join(words), "answers": [answer]}
            questions.append(json.dumps(one))
            tags = ["B-X" if word == "time" else "O" for word in words]
            sentences.append(json.dumps({"words": words, "tags": tags}))
        (folder / f"{split}-questions.jsonl").write_text("\n".join(questions))
        (folder / f"{split}-sentences.jsonl").write_text("\n".join(sentences))
    windows = ["task.max_tokens=32", "task.stride=8", "task.max_question_tokens=8"]
    return {"qa": ("questions", windows), "tokens": ("sentences", ["task.max_tokens=32"])}


@pytest.mark.slow
@pytest.mark.parametrize(("task", "metrics"), [("qa", ["exact_match", "f1"]), ("tokens", ["f1", "accuracy"])])
@pytest.mark.parametrize("strategy", ["zero2", "fsdp2"])
def test_ranks_do_not_change_runs_of_spans_and_tags(place, task, metrics, strategy):
    data, settings = spans_and_tags(place)[task]
    files = [f"task.{split}={split}-{data}.jsonl" for split in ("train", "validation")]
    steps = ["train.batch_size=8", "train.epochs=2", "optim.lr=2e-3", "log.every=1", "dropout=0"]
    runs = {"one": (1, ["train.max_tokens=512"]), "three": (3, ["train.max_tokens=32", f"strategy={strategy}"])}
    for name, (ranks, more) in runs.items():
        about = [f"run.name={task}-{strategy}-{name}", f"task={task}", "init_from=bert"]
        tune(*about, *files, *settings, *steps, *more, ranks=ranks, cwd=place)
    one, three = (place / "runs" / f"{task}-{strategy}-{name}" for name in runs)
    assert_alike(one, three)
    assert validation(one, *metrics) == validation(three, *metrics)


PARTLY = {"lora": ["tuning=lora", "tuning.rank=3", "optim.lr=2e-2"], "frozen": ["tuning=frozen", "tuning.blocks=1"]}


@pytest.fixture(scope="module")
def partly(place):
    """Directories of runs in which a part of the model learns, on one rank."""
    for tuning, settings in PARTLY.items():
        tune(*tuned(f"part-{tuning}", "dropout=0", "train.max_tokens=512", *settings), cwd=place)
    return place / "runs"


def tensors(directory) -> dict:
    """Return every weight of a run's newest step."""
    step = directory / "checkpoints" / step_names(directory / "checkpoints")[-1]
    read = FragmentReader(step, load_manifest(step)["tensors"])
    return {name: read(name, WEIGHT, 0, shape.numel()) for name, shape in read.weight_shapes().items()}


@pytest.mark.parametrize(
    ("tuning", "strategy"),
    [
        ("lora", "zero3"),
        ("frozen", "zero2"),
        pytest.param("frozen", "fsdp2", marks=pytest.mark.slow),
        pytest.param("frozen", "zero3", marks=pytest.mark.slow),
        pytest.param("lora", "ddp", marks=pytest.mark.slow),
        pytest.param("lora", "zero1", marks=pytest.mark.slow),
        pytest.param("lora", "fsdp2", marks=pytest.mark.slow),
    ],
)
def test_a_part_learns_alike_under_every_strategy_and_the_rest_stays(place, partly, tuning, strategy):
    name = f"part-{tuning}-{strategy}"
    small = ["dropout=0", "train.max_tokens=32", f"strategy={strategy}", *PARTLY[tuning]]
    tune(*tuned(name, *small), ranks=2, cwd=place)
    one, two = partly / f"part-{tuning}", place / "runs" / name
    losses = column(one, "loss")
    assert np.mean([losses[step] for step in (15, 16, 17)]) < losses[1] - 0.02
    assert_alike(one, two)
    source, found, ranks = tensors(place / "bert"), tensors(one), tensors(two)
    moved = {name for name, values in found.items() if name not in source or not torch.equal(values, source[name])}
    learns = ("lora_", "head.") if tuning == "lora" else ("model.blocks.1.", "head.", "model.final_norm")
    assert moved and all(any(part in name for part in learns) for name in moved)
    assert found.keys() == ranks.keys()
    assert all(torch.equal(found[name], ranks[name]) for name in found.keys() - moved)
    assert max((found[name] - ranks[name]).abs().max() for name in moved) <= 1e-4


def test_an_adapted_run_resumes_on_other_ranks_and_says_what_may_not_change(place, partly):
    settings = ["dropout=0", "train.max_tokens=512", "eval.every=5", *PARTLY["lora"]]
    kill_after(8, tuned("adapted", *settings), place)
    said = tune(*tuned("adapted", *settings, "tuning.rank=4"), code=3, cwd=place)
    assert "tuning was {'choice': 'lora', 'rank': 3" in said and "Traceback" not in said
    tune(*tuned("adapted", *settings, "strategy=zero3"), ranks=2, cwd=place)
    adapted = place / "runs" / "adapted"
    assert "resuming from" in (adapted / "log.txt").read_text()
    assert_close(partly / "part-lora", adapted, "loss", abs=1e-5)
    assert_close(partly / "part-lora", adapted, "grad_norm", abs=1e-5)


def measure(world, folder):
    """Write what a model answers to 7 examples, and its loss, to a file a rank."""
    draw = random.Random(3)
    rows = []
    for number in range(VALIDATION):
        length = draw.randint(1, 12)
        tags = [draw.choice([0, 1, 2, IGNORED]) for _ in range(length)]
        tokens = [draw.randrange(60) for _ in range(length)]
        rows.append(Example(tokens, [0] * length, label=number % 3, targets=tags))
    found = {}
    for kind in (HeadKind.sequence, HeadKind.token):
        examples = Examples.of(row._replace(label=None) if kind is HeadKind.token else row for row in rows)
        config = EncoderConfig(max_seq_len=12, width=24, layers=2, heads=4, init_std=0.3)
        with torch.device("meta"):
            model = config.build(vocab_size=60, attend=sdpa, head=False)
            module = FineTuned(model, config, head_for(config, kind), kind, CrossEntropy(), outputs=3, dropout=0.1)
        initial = InitialWeights(module, 1)
        for name, parameter in module.to_empty(device="cpu").named_parameters():
            parameter.data.copy_(initial(name, WEIGHT, 0, parameter.numel()).reshape(parameter.shape))
        for max_tokens in (12, 30):
            answer = answers(module, examples, kind=kind, outputs=3, max_tokens=max_tokens, world=world)
            found[f"{kind} {max_tokens}"] = [answer.loss, [logits.tolist() for logits in answer.logits]]
            shapes = [(3,)] * VALIDATION if kind is HeadKind.sequence else [(len(row.tokens), 3) for row in rows]
            assert [logits.shape for logits in answer.logits] == shapes
    (folder / f"{world.rank}-of-{world.size}.json").write_text(json.dumps(found))


def test_three_ranks_measure_seven_examples_as_one_does_bit_for_bit(tmp_path):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as ranks have
    measure(ALONE, tmp_path)
    torch.set_num_threads(threads)
    on_ranks(3, measure, tmp_path)
    one, *others = [
        json.loads((tmp_path / f"{ranks}.json").read_text()) for ranks in ("0-of-1", "0-of-3", "1-of-3", "2-of-3")
    ]
    assert all(other == one for other in others)
    assert all(0 < loss < 20 for loss, _ in one.values())


def interrupted(name: str) -> list[str]:
    """Return the overrides of a run that saves often, keeps little, and whose dropout is on."""
    return tuned(name, "dropout=0.2", "eval.every=3", "checkpoint.keep=1")


@pytest.fixture(scope="module")
def whole(place):
    tune(*interrupted("whole"), cwd=place)
    return place / "runs" / "whole"


def kill_after(rows: int, overrides: list[str], cwd) -> None:
    """Start a run and kill -9 it as soon as its metrics have so many rows and a step is saved."""
    directory = cwd / "runs" / overrides[0].removeprefix("run.name=")
    reached = lambda: logged(directory) >= rows and step_names(directory / "checkpoints")
    kill_when(reached, *overrides, cwd=cwd, program="finetune")


def test_killed_and_resumed_without_its_source_equals_never_interrupted(place, whole):
    overrides = [*interrupted("killed"), "init_from=source"]
    shutil.copytree(place / "bert", place / "source")
    kill_after(10, overrides, place)
    shutil.rmtree(place / "source")
    tune(*overrides, cwd=place)
    killed = place / "runs" / "killed"
    assert "resuming from" in (killed / "log.txt").read_text()
    assert_equal_runs(whole, killed)
    keys = ["loss", "accuracy", "f1", "f1_macro", "matthews"]
    assert validation(whole, *keys) == validation(killed, *keys)
    best = [json.loads((directory / "run.json").read_text())["best_step"] for directory in (whole, killed)]
    assert best[0] == best[1]
    kept = [f"step-{step:08d}" for step in sorted({best[0], STEPS})]
    assert step_names(whole / "checkpoints") == step_names(killed / "checkpoints") == kept


def test_a_run_that_stops_getting_better_ends_and_ends_again(place):
    """With steps this small nothing changes: the first evaluation stays the best one."""
    overrides = tuned("early", "optim.lr=1e-12", "eval.every=2", "eval.patience=3", "checkpoint.keep=1")
    tune(*overrides, ranks=2, cwd=place)
    early = place / "runs" / "early"
    left = [step_names(early / "checkpoints"), (early / "metrics.jsonl").read_text()]
    assert sorted(column(early, "loss", "validation")) == [2, 4, 6, 8]
    assert max(column(early, "loss")) == 8
    assert left[0] == ["step-00000002", "step-00000008"]
    said = tune(*overrides, cwd=place)
    assert left == [step_names(early / "checkpoints"), (early / "metrics.jsonl").read_text()]
    assert "at step 2" in said
    record = json.loads((early / "run.json").read_text())
    assert (record["exit"], record["best_step"]) == (0, 2)


def test_where_no_evaluation_has_a_value_the_last_step_counts_as_the_best(place):
    """A correlation with targets that are all equal has none, and is no reason to end early either."""
    for name, numbers in (("numbers", range(24)), ("equal", [1] * 5)):
        rows = [f"{WORDS[row % 7]} {WORDS[row % 10]}\t{number}\n" for row, number in enumerate(numbers)]
        (place / f"{name}.tsv").write_text("".join(["text\tlabel\n", *rows]))
    overrides = tuned("undefined", "task.train=numbers.tsv", "task.validation=equal.tsv", "task.problem=regression")
    overrides += ["train.epochs=2", "eval.every=2", "eval.patience=1", "checkpoint.keep=1"]
    said = tune(*overrides, ranks=2, cwd=place)
    assert said.count("pearson, spearman: no value: all targets are equal") == 1
    assert "no evaluation had a value of spearman: the last step, 6, counts as best" in said
    undefined = place / "runs" / "undefined"
    left = (undefined / "metrics.jsonl").read_text()
    assert left.count('"spearman": "NaN"') == 3 and "Infinity" not in left
    assert step_names(undefined / "checkpoints") == ["step-00000006"]
    tune(*overrides, cwd=place)  # it takes no step
    assert json.loads((undefined / "run.json").read_text())["best_step"] == 6
    assert (undefined / "metrics.jsonl").read_text() == left
    assert table_of([undefined]).splitlines()[1].split()[-2] == "nan"


@pytest.mark.parametrize(
    ("override", "code", "refusal"),
    [
        ("init_from=nothing", 2, "init_from=nothing: no such directory"),
        ("task.max_tokens=64", 2, "task.max_tokens=64: bert sees sequences of at most 32 tokens; lower it"),
        ("task.train=-", 2, "task.train=-: standard input can be read once, and a run may be resumed; name a file"),
        ("task.columns.text=sentence", 2, "task.columns.text=sentence: train.tsv has no such column"),
        ("task.validation=unknown.tsv", 3, "label is none of no, yes: 1 (unknown.tsv:3: 'maybe')"),
    ],
)
def test_what_cannot_be_learnt_is_refused_by_name(place, override, code, refusal):
    said = tune(*tuned("refused", override), code=code, cwd=place)
    assert refusal in said and "Traceback" not in said
    assert not (place / "runs" / "refused" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("override", "refusal"),
    [
        ("task.train=other.tsv", "the training set was "),
        ("task.metric=matthews", "task.metric was accuracy and is now matthews, which would make it another run"),
        ("scratch=true", "scratch was False and is now True, which would make it another run; restore it, or"),
        ("init_from=decoder", "init_from was bert and is now decoder, which would make it another run; restore it, or"),
    ],
)
def test_another_run_of_the_same_name_is_refused_by_what_differs(place, whole, override, refusal):
    before = (whole / "metrics.jsonl").read_text(), step_names(whole / "checkpoints")
    said = tune(*interrupted("whole"), override, code=3, cwd=place)
    assert refusal in said and "Traceback" not in said
    assert before == ((whole / "metrics.jsonl").read_text(), step_names(whole / "checkpoints"))
