"""Files and words together: who chose, who set, what is left out, and what is refused by file and line."""

import re
from itertools import product

import pytest

from finetune.config import FINETUNE
from pretrain.compose import CONF, compose, configure
from pretrain.errors import ConfigError
from pretrain.models.encoder import EncoderConfig
from pretrain.optim.muon import MuonConfig
from pretrain.registry import choices
from pretrain.settings.yaml_files import place
from pretrain.tokenizer.bpe import BpeTokenizer
from pretrain.tokenizer.file import TokenizerFile

TUNING = ["task=classification", "init_from=x", "task.train=a", "task.validation=b"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder, away from the clone, where a command is typed."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refused(*words, root=None) -> str:
    with pytest.raises(ConfigError) as told:
        compose(words, **({"root": root} if root else {}))
    return str(told.value)


def test_a_file_does_not_block_a_change_of_choice(folder, capsys):
    text = "seed: 4\ntokenizer:\n  special_tokens: [<a>]\n  vocab_size: 2048\n  prefix: [<a>]\n"
    write(folder / "mine.yaml", text)
    cfg = compose(["experiment=mine.yaml", "tokenizer=file", "tokenizer.path=x"])
    assert cfg.tokenizer == TokenizerFile(path="x", prefix=["<a>"]) and cfg.seed == 4
    assert capsys.readouterr().err.splitlines() == [
        "mine.yaml:3: left out tokenizer.special_tokens, tokenizer.vocab_size: tokenizer=file has no such setting"
    ]
    kept = compose(["experiment=mine.yaml"])
    assert isinstance(kept.tokenizer, BpeTokenizer) and kept.tokenizer.vocab_size == 2048


@pytest.mark.parametrize(
    ("word", "told"),
    [("--lr", r"^--lr: no such option.*optim\.lr"), (5, "^configure=5: takes words"), (["a=1"], "takes words")],
)
def test_in_python_as_in_a_shell_what_is_no_setting_is_refused(word, told):
    with pytest.raises(ConfigError, match=told):
        configure(word)


def test_nor_does_it_block_another_source(folder, capsys):
    write(folder / "mine.yaml", "data:\n  seq_len: 64\n  sources:\n    text:\n      paths: [a]\n")
    cfg = compose(["experiment=mine.yaml", "data=jsonl", "data.sources.jsonl.paths=[b]"])
    assert (cfg.data.seq_len, list(cfg.data.sources)) == (64, ["jsonl"])
    assert capsys.readouterr().err == "mine.yaml:4: left out data.sources.text: data=jsonl has no such setting\n"
    assert refused("experiment=mine.yaml").startswith("mine.yaml:5: data.sources.text.paths")


def test_words_may_be_long_and_files_may_stand_in_a_list(folder):
    paths = [f"chapter_{number:03}_of_my_book.txt" for number in range(40)]
    assert compose(["data=text", f"data.sources.text.paths=[{','.join(paths)}]"]).data.sources["text"].paths == paths
    assert "no such setting" in refused(f"{'x' * 5000}=1")
    assert "no such file" in refused(f"experiment={'x' * 5000}.yaml")
    write(folder / "mine.yaml", "seed: 4\n")
    cfg = compose(["experiment=[demo,mine.yaml]"])
    assert (cfg.seed, cfg.run.name) == (4, "demo")


def test_nor_does_one_that_another_file_builds_on(folder, capsys):
    write(folder / "own/experiment/base.yaml", "optim: {beta1: 0.8, lr: 1e-3}\nmodel: {layers: 2, norm: rmsnorm}\n")
    text = "defaults: [base, override /optim: muon, override /model: encoder, override /objective: masked_lm]\n"
    write(folder / "own/experiment/top.yaml", text)
    for words in (["experiment=own/experiment/top.yaml"], ["--config-dir=own", "experiment=top"]):
        cfg = compose(words)
        assert isinstance(cfg.optim, MuonConfig) and cfg.optim.lr == 1e-3
        assert isinstance(cfg.model, EncoderConfig) and cfg.model.layers == 2
        said, other = capsys.readouterr().err.splitlines()
        assert said.endswith(
            "left out optim.beta1: optim=muon, chosen in own/experiment/top.yaml:1, has no such setting"
        )
        assert other.startswith("own/experiment/base.yaml:2: left out model.norm: model=encoder, chosen in ")


def test_of_a_preset_of_ours_no_other_than_what_the_new_choice_lacks_is_left_out(capsys):
    cfg = compose(["experiment=demo_bert", "model=demo", "objective=causal_lm", "tokenizer=bpe_4k", "optim=muon"])
    assert (cfg.run.name, cfg.tokenizer.vocab_size, type(cfg.optim)) == ("demo_bert", 4096, MuonConfig)
    assert re.fullmatch(
        r"conf/experiment/demo_bert.yaml:\d+: left out objective.masking: .*\n", capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("words", "sizes", "left_out"),
    [
        ([], (None, 512), ["base.yaml:1: left out train.micro_batch_size: train.micro_batch_tokens=512 stands"]),
        (["train.micro_batch_size=null"], (None, 512), ["train.micro_batch_tokens=512"]),
        (["train={micro_batch_size: auto}"], ("auto", None), ["train.micro_batch_tokens=512", "micro_batch_size=auto"]),
    ],
)
def test_of_two_settings_that_say_the_same_the_later_one_stands(folder, capsys, words, sizes, left_out):
    write(folder / "own/experiment/base.yaml", "train: {micro_batch_size: 4}\n")
    write(folder / "own/experiment/top.yaml", "defaults: [base]\ntrain: {micro_batch_tokens: 512}\n")
    train = compose(["--config-dir=own", "experiment=top", *words]).train
    assert (train.micro_batch_size, train.micro_batch_tokens) == sizes
    said = capsys.readouterr().err.splitlines()
    assert len(said) == len(left_out) and all(end in line for end, line in zip(left_out, said, strict=True))


def test_two_settings_that_say_the_same_are_not_typed_together(capsys):
    told = refused("train.micro_batch_size=4", "train.micro_batch_tokens=512")
    assert told.endswith("train.micro_batch_size=4 says it as well; leave out one of the two")
    told = refused("experiment=demo", "schedule.warmup_steps=40", "schedule.warmup_ratio=0.1")
    assert told.endswith("schedule.warmup_steps=40 says it as well; leave out one of the two")
    assert compose(["experiment=demo", "schedule.warmup_ratio=0.1"]).schedule.warmup_steps == 0


def test_in_fine_tuning_and_for_its_own_defaults_it_is_the_same(folder, capsys):
    write(folder / "mine.yaml", "task: {max_tokens: 64, stride: 8}\ntrain: {epochs: 2}\n")
    cfg = compose([*TUNING, "experiment=mine.yaml", "optim=muon"], FINETUNE)
    assert (cfg.task.max_tokens, cfg.train.epochs) == (64, 2)
    assert capsys.readouterr().err == "mine.yaml:1: left out task.stride: task=classification has no such setting\n"


@pytest.mark.slow
@pytest.mark.parametrize("preset", sorted(path.stem for path in (CONF / "experiment").glob("*.yaml")))
def test_any_choice_can_be_changed_in_any_preset(preset):
    """It composes, or a rule between two settings refuses it by a key."""
    groups = ("model", "tokenizer", "objective", "optim", "schedule")
    words = [f"{group}={name}" for group, name in choices().values() if group in groups and name != "bigram"]
    for word in words:
        try:
            compose([f"experiment={preset}", word], quiet=True)
        except ConfigError as error:
            assert "no such setting" not in str(error) and re.match(r"[a-z_.]+=", str(error)), f"{word}: {error}"


HEADERS = ["", "# @package _global_\n", "\ufeff# @package _global_\n\n"]
LISTS = ["", "defaults: [override /optim: muon]\n", "defaults: [gpt2_124m, override /optim: muon, _self_]\n"]


@pytest.mark.parametrize(("header", "chosen"), [*product(HEADERS, LISTS)])
def test_an_experiment_is_a_file_anywhere(folder, monkeypatch, header, chosen):
    path = write(folder / "some where" / "mine.yaml", f"{header}{chosen}seed: 7\nrun: {{name: b}}\n")
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    monkeypatch.setenv("PLACE", str(path.parent))
    for named in (path, "../some where/mine.yaml", "'$PLACE/mine.yaml'"):
        cfg = compose([f"experiment={named}", "train.steps=3"])
        assert (cfg.seed, cfg.run.name, cfg.train.steps) == (7, "b", 3)
        assert isinstance(cfg.optim, MuonConfig) == bool(chosen) and (cfg.data.seq_len == 1024)


def test_beside_an_experiment_lie_the_other_groups_of_its_folder(folder):
    write(folder / "own/experiment/mine.yaml", "defaults: [override /model: small]\n")
    write(folder / "own/model/small.yaml", "defaults: [decoder]\nlayers: 3\n")
    assert compose(["experiment=own/experiment/mine.yaml"]).model.layers == 3
    write(folder / "own/model/demo.yaml", "defaults: [decoder]\nlayers: 3\n")
    assert "Headwater has its own model=demo" in refused("experiment=own/experiment/mine.yaml", "model=demo")


def test_any_group_takes_a_file_and_one_with_the_name_of_ours_is_itself(folder):
    write(folder / "demo.yaml", "defaults: [demo]\nwidth: 24\n")
    write(folder / "first.yml", "# @package _global_\ndefaults: [demo]\nseed: 6\n")
    cfg = compose(["model=demo.yaml", "experiment=./first.yml"])
    assert (cfg.model.width, cfg.seed, cfg.run.name) == (24, 6, "demo")
    source = "defaults: [packed, /source@sources.mine: text]\nsources: {mine: {paths: [first.yml]}}\n"
    write(folder / "texts.yaml", source)
    assert compose(["data=texts.yaml"]).data.sources["mine"].paths == ["first.yml"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("tokenizer:\n  vocab_sizz: 5\n", r":2: tokenizer\.vocab_sizz: no such setting"),
        ("optim:\n  lr: fast\n", r":2: optim\.lr=fast: takes a number$"),
        ("optim: {momentum: 0.9}\n", r":1: optim\.momentum: no such setting of the optim that is chosen; optim=muon"),
        ("defaults: [override /optim: muon]\noptim: {beta1: 1}\n", r":2: optim\.beta1: .* optim=adamw would have it"),
        ("train: {max_steps: 5}\n", r":1: train\.max_steps: no such setting; here it is train\.steps$"),
        ("lr: 1\n", r":1: lr: no such setting; here it is optim\.lr"),
        ("run: 5\n", r":1: run=5: holds settings of its own"),
        ("run: {name: }\n", r":1: run\.name=null: cannot be null"),
        ("seed: 1\ntrain.steps: 5\n", r":2: train\.steps: in a file a setting stands below its group.*train: \{steps"),
        ("model: demo\n", r":1: model: a choice is made under defaults: `- override /model: demo`"),
        ("experiment: demo\n", r":1: experiment: another experiment is named under defaults: `- demo`"),
        (
            "defaults: [model: demo]\n",
            r":1: defaults: model: an experiment changes a choice by `- override /model: demo`",
        ),
        ("defaults: [/model: demo]\n", r"changes a choice by `- override /model: demo`"),
        ("defaults: [override model: demo]\n", r"changes a choice by `- override /model: demo`"),
        ("defaults: [overide /modle: demo]\n", r":1: defaults: overide: before a group there may be `override`"),
        ("defaults: [override /modle: demo]\n", r": defaults: override /modle: no such group to override"),
        ("defaults: [override /model@x: demo]\n", r": defaults: override /model@x: .* did you mean /model\?"),
        (
            "seed: 1\ndefaults: [override /model: dmeo]\n",
            r":2: defaults: model=dmeo: no such choice; did you mean demo\?",
        ),
        ("defaults: [base]\n", r": defaults: experiment/base: no such file"),
        ("defaults: {model: demo}\n", r"defaults"),
        ("defaults: [{override /model: demo, override /optim: muon}]\n", r": defaults: .*: one choice a line"),
        (
            "defaults: [override /model: demo, gpt2_124m]\n",
            r"override model: demo stands before experiment: gpt2_124m;",
        ),
        ("defaults: [_self_, _self_]\n", r": defaults: _self_ is there twice"),
        ("defaults: [override /model: '${x}']\n", r"\$\{x\}: refers to no group"),
        ("- a\n", r": cannot be read \(holds no settings"),
        ("seed: 1\n\tx: 2\n", r":2: begins with a tab; YAML is indented by spaces"),
        ("seed: 1\nseed: 2\n", r":2: seed is there twice; keep one"),
        ("run: {name: 'a\n", r":2: cannot be read as YAML"),
        ("# @package _globl_\nseed: 1\n", r":1: @package _globl_: the keys of an experiment are those of the root"),
        ("# @packge _global_\nseed: 1\n", r":1: @packge: there is only `# @package NAME`"),
        ("# @package _global_ x\nseed: 1\n", r":1: a line that begins with # @ is `# @package NAME`"),
        ("seed: ${nope}\n", r"^seed: refers to nope, and there is no such setting"),
        ("plugins: my.module\n", r":1: plugins: takes a list of modules"),
        ("plugins: [no_such]\n", r":1: plugins: no_such: no such module"),
    ],
)
def test_a_file_that_is_wrong_is_told_by_its_line(folder, text, told):
    write(folder / "mine.yaml", text)
    message = refused("experiment=mine.yaml")
    assert re.search(told, message), message
    assert "Config search path" not in message and "\n" not in message


def test_a_value_that_does_not_fit_a_changed_choice_names_file_and_word(folder):
    write(folder / "mine.yaml", "seed: 1\nmodel:\n  norm: rmsnorm\n  layers: two\n")
    message = refused("experiment=mine.yaml", "model=gpt2_124m")
    assert message == "mine.yaml:4: model.layers=two: takes a whole number (model=gpt2_124m is chosen)"


def test_a_file_that_is_not_there_is_told_with_the_preset_of_its_name():
    assert refused("experiment=demo.yaml") == "experiment=demo.yaml: no such file; did you mean experiment=demo?"
    assert refused("model=own.yaml") == "model=own.yaml: no such file"


def test_a_line_is_found_by_its_key(tmp_path):
    path = write(tmp_path / "x.yaml", "a: {b: 1,\n  c: {d: 2}}\n# x\na.b: 3\n")
    assert [place(path, key) for key in ("a", "a.c.d", "a.c.x", "a.b", "z")] == [
        f"{path}:1",
        f"{path}:2",
        f"{path}:2",
        f"{path}:4",
        str(path),
    ]


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("~x", "~x: x: no such setting"),
        ("~model", "~model: a choice cannot be taken away; choose another one: model=CHOICE"),
        ("~optim.lr", "~optim.lr: a setting cannot be taken away; leave it out for its default"),
        ("~seed", "~seed: a setting cannot be taken away; leave it out for its default"),
        ("model=[decoder,encoder]", "takes the name of a choice"),
        ("data.sources=texts", "data.sources=texts: holds settings of its own"),
        ("+model=decoder", "model is chosen twice; .* a command by model=CHOICE without +"),
        ("++model=decoder", "++model=decoder: a choice is typed without +: model=decoder"),
        ("+optim.lr=1", "+optim.lr=1: is there already; type it without the +: optim.lr=1"),
        ("+x=1", "x: no such setting"),
        ("a.b@c=1", "a.b@c=1: a.b is no group"),
        ("train.steps=1e3", "train.steps=1e3: takes a whole number; type train.steps=1000"),
        ("tracker.progress=maybe", "tracker.progress=maybe: takes true or false"),
        ("data.packing=foo", "data.packing=foo: takes one of concat, best_fit, windows"),
        ("tokenizer.special_tokens=a", "takes a list; type 'tokenizer.special_tokens=[a]'"),
        ("optim.lr=null", "optim.lr=null: cannot be null"),
        ("optim.lr=inf", "optim.lr=inf: must be above 0, and finite"),
        ("optim.lr={a: 1}", "optim.lr={a: 1}: takes a number"),
        ("run=5", "run=5: holds settings of its own; name one of those"),
        ("run.name.x=1", "run.name.x=1: takes a text"),
        ("data.sources.text.paths=[a]", "no source of this name is chosen; data=text brings data.sources.text"),
        ("run.root=${nope}", "run.root: refers to nope, and there is no such setting"),
        ("run.root=${oc.env:NO_SUCH}", "run.root: the environment variable NO_SUCH is not set"),
        ("run.root=${oc.nope:1}", "run.root: there is no function oc.nope"),
        ("run.root=${run.root}", "run.root: refers to itself"),
        ("init_from=", "init_from=: has no value; nothing is init_from=null"),
        ("model=", "model=: has no value"),
        ("config.yaml", "config.yaml: has no key; .* is named by experiment=config.yaml"),
        ("demo", "demo: has no key; .* is named by experiment=demo"),
        ("plugins=mine", "plugins=mine: takes a list of modules: plugins=[my.module]"),
        ("plugins=[5]", "plugins: '5' is not the name of a module"),
    ],
)
def test_words_that_are_wrong_are_told(word, told):
    message = refused(word)
    assert all(part in message for part in told.split(".*")), message


def test_one_key_given_twice_is_said(capsys):
    cfg = compose(["seed=1", "model=demo", "seed=2", "+model.layers=3".removeprefix("+"), "model=decoder", "seed=2"])
    assert cfg.seed == 2 and cfg.model.layers == 3
    assert capsys.readouterr().err.splitlines() == [
        "seed=1 is overridden by seed=2, which stands after it",
        "model=demo is overridden by model=decoder, which stands after it",
    ]
    assert "--config-dir: given 2 times" in refused("--config-dir", "a", "--config-dir", "b")


def test_what_is_composed_in_a_notebook_leaves_its_own_hydra_alone():
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    with initialize_config_dir(str(CONF), version_base="1.3"):
        mine = GlobalHydra.instance().hydra
        compose(["seed=2"])
        assert GlobalHydra.instance().hydra is mine
