"""From a command line to a typed configuration, and from an error to an exit code.

Holds what every Hydra entry point shares; what runs is passed in. Of Hydra it uses the composing alone: what Hydra can
start, log to, search or instantiate is never reached, and settings of its own are refused.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from hydra.core.plugins import Plugins
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from pretrain.commands import exit_code_of
from pretrain.config import PretrainConfig, register_choices
from pretrain.distributed.world import rank, world_size
from pretrain.errors import ConfigError
from pretrain.errors.redaction import redacted
from pretrain.init_from import settings_from
from pretrain.registry import choices, flattened, nearest, typed, unflattened
from pretrain.settings.grammar import as_text, parsed, quoted
from pretrain.settings.own_folder import OwnFolder
from pretrain.settings.paths import expanded
from pretrain.settings.yaml_files import check_literal
from pretrain.tokenizer.file import TokenizerFile
from pretrain.tracking.background import sinks_still_working
from pretrain.train.run_dir import CONFIG_FILE, check_written_by, choice_of, read_config, read_nested_config

CONF = Path(__file__).parents[1] / "conf"  # by path: a folder `conf` where a command is typed would hide the package
OPTIONS = "--help, --cfg job, --resolve and --config-dir FOLDER"

log = logging.getLogger(__name__)

# Hydra would import such a package from wherever a command is typed.
sys.modules["hydra_plugins"] = None  # pyright: ignore[reportArgumentType]


class Root(NamedTuple):
    """A configuration that a command may name settings of."""

    name: str  # of its YAML file in conf/
    schema: type  # its dataclass
    register: Callable[[], None]  # fills Hydra's ConfigStore with it and with the choices of its groups
    usage: str  # how its command is typed
    groups: tuple[str, ...] = ()  # of choices, beside those that its fields are


USAGE = "python -m pretrain SETTINGS"
PRETRAIN = Root("pretrain", PretrainConfig, register_choices, USAGE, ("experiment", "source"))

NOT_CHOSEN = "default"  # in conf/pretrain.yaml: the user has chosen nothing of the group
ADOPTED = ("model", "tokenizer", "objective")  # groups that a source can choose
RUN_NODE = "config_of_a_run"  # in Hydra's ConfigStore


class Composed(NamedTuple):
    """What Hydra made of files and words."""

    cfg: DictConfig
    chosen: dict[str, str | None]  # group -> what was chosen of it


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; there are {OPTIONS}, and settings are typed KEY=VALUE")


def hydra_command(body: Callable[[Any], None], root: Root = PRETRAIN, words: Sequence[str] | None = None) -> NoReturn:
    """Run a command that Hydra configures: compose `words`, or else the command line, pass it to `body`, and exit."""
    try:
        code = exit_code_of(lambda: body(compose(sys.argv[1:] if words is None else words, root)))
    except Exception:  # a bug: print the traceback and exit with 1, as Python does
        sys.stderr.write(redacted(traceback.format_exc()))
        code = 1
    if world_size() > 1 or sinks_still_working():
        # A thread of gloo that drops a tensor while the interpreter is taken down aborts the process (2 of 10 runs
        # of 4 ranks, torch 2.13), and its exit code with it; and W&B's own hook waits for a server that is silent
        # (30 s, wandb 0.31). All our resources are closed by now: skip the teardown.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def compose(words: Sequence[str], root: Root = PRETRAIN) -> Any:
    """Return the typed configuration of a command line; exits after --help and --cfg. Raises `ConfigError`."""
    parser = _Parser(root.name, add_help=False, allow_abbrev=False)
    parser.add_argument("settings", nargs="*")
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--cfg", "-c", choices=["job"])
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--config-dir", "-cd", type=Path)
    parser.add_argument("--multirun", "-m", action="store_true")
    options = parser.parse_intermixed_args(words)
    if options.multirun:
        raise ConfigError(
            "--multirun: the jobs of a sweep would share one process and its process group; "
            f"`python -m launch local nproc=N -- {root.name} ...`, without --multirun, starts fresh ones for each"
        )
    composed = _composed(root, options.settings, options.config_dir)
    if options.help or options.cfg:
        print(_help(root, options.config_dir) if options.help else "", _shown(composed.cfg, options.resolve), sep="")
        sys.exit(0)
    cfg, said = _with_source(composed, options.settings, root)
    if said and rank() == 0:  # there is no log yet
        print(*redacted(said), sep="\n", file=sys.stderr, flush=True)
    return typed(cfg)


def configure(*settings: str, config_dir: str | Path | None = None) -> PretrainConfig:
    """Return the configuration that `settings` make: words as `python -m pretrain` takes them, such as "optim.lr=1e-3".

    `config_dir` is a folder of settings of your own. What is taken over from `init_from` is logged. Raises
    `ConfigError` for a setting that is refused.
    """
    return configured(settings, PRETRAIN, config_dir)


def configured(settings: Sequence[str], root: Root, config_dir: str | Path | None) -> Any:
    """Return the typed configuration that settings make for a root; see `configure`."""
    cfg, said = _with_source(_composed(root, settings, Path(config_dir) if config_dir else None), settings, root)
    for line in said:
        log.info("%s", line)
    return typed(cfg)


def compose_run(run: Path, root: Root = PRETRAIN, overrides: Sequence[str] = ()) -> Any:
    """Compose and type the configuration of a run directory, for looking at its model on the CPU.

    Its config.yaml holds values and the choices that type them, nothing else. `overrides` change it. Raises
    `ConfigError` for what is no run directory, for a run of another program, and for an override that is refused.
    """
    path = run / CONFIG_FILE
    if not path.exists():
        raise ConfigError(f"{run}: not a run directory (no {CONFIG_FILE}); name one such as runs/demo")
    check_written_by(root.name, run)
    root.register()
    held = read_nested_config(run)
    check_literal(held, path)
    _check_written(held, root, path)
    ConfigStore.instance().store(name=RUN_NODE, node=held)
    return typed(_composed(root, ["attention=sdpa", *overrides], name=RUN_NODE).cfg)  # flash and flex need a GPU


def _check_written(held: dict[str, Any], root: Root, path: Path) -> None:
    """Refuse a configuration of a run that chooses, or sets, what no run writes. Raises `ConfigError`."""
    settings, defaults = {field.name for field in fields(root.schema)}, held.get("defaults")
    for entry in defaults if isinstance(defaults, list) else [defaults]:
        [(place, name)] = entry.items() if isinstance(entry, dict) and len(entry) == 1 else [("", entry)]
        group, _, key = str(place).partition("@")
        chosen = (group, name) in choices().values() and (key or group).partition(".")[0] in settings
        if not chosen and entry not in (f"{root.name}_schema", "_self_"):
            raise ConfigError(
                f"{path}: defaults: {entry}: no choice that a run of {root.name} writes; restore the file"
            )
    if others := sorted(held.keys() - settings - {"defaults"}):
        raise ConfigError(f"{path}: {others[0]}: no such setting{nearest(others[0], settings)}")


def _composed(root: Root, words: Sequence[str], own: Path | None = None, name: str = "") -> Composed:
    """Let Hydra compose the root's file, or a node of its ConfigStore. `own` is a folder of the user's.

    Raises `ConfigError`.
    """
    root.register()
    Plugins.instance().register(OwnFolder)
    overrides = [parsed(word) for word in words]
    groups = {group for group, _ in choices().values()}
    for word, override in zip(words, overrides, strict=True):
        if override.is_sweep_override():
            rule = f"several values are a sweep, which `python -m launch local -- {root.name} ...` runs"
            raise ConfigError(f"{word}: {rule}; one text with a comma is typed {as_text(word)}")
        named = override.is_delete() or isinstance(override.value(), str | list | dict)
        if override.key_or_group in groups and not named:
            raise ConfigError(f"{word}: takes the name of a choice; --help lists them")
    if own and not own.is_dir():
        raise ConfigError(f"--config-dir {own}: no such folder")
    searched = [f"hydra.searchpath=[{quoted(f'own://{own.absolute()}')}]"] if own else []
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = hydra.compose(name or root.name, [*words, *searched], return_hydra_config=True)
    except (HydraException, ValueError, RecursionError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(_explained(error, partial(_settings, root, words, own, name))) from None
    chosen = dict(cfg.hydra.runtime.choices)
    with open_dict(cfg):
        del cfg["hydra"]
    _check_chosen(chosen, own)
    _keep_texts(cfg, overrides)
    return Composed(cfg, chosen)


def _check_chosen(chosen: Mapping[str, object], own: Path | None) -> None:
    """Refuse a choice that is no file below `conf/` or `own`, and one that both have."""
    for group, choice in chosen.items():
        file = Path(group, f"{choice}.yaml")
        if ".." in file.parts:
            raise ConfigError(f"{group}={choice}: leads out of the folder of settings; name one of its files")
        if own and (own / file).exists() and (CONF / file).exists():
            raise ConfigError(f"{own / file}: Headwater has its own {group}={choice}; give the file another name")


def _keep_texts(cfg: DictConfig, overrides: Sequence[Override]) -> None:
    """Give settings that are texts what was typed, where Hydra saw a number: init_from=2024.10 is not 2024.1."""
    for key, override in {override.key_or_group: override for override in overrides}.items():
        text = str(override.input_line).partition("=")[2]
        number = isinstance(override.value(), int | float) and re.fullmatch(r"[\w.+-]+", text)
        if number and isinstance(OmegaConf.select(cfg, key), str):
            OmegaConf.update(cfg, key, text)


def _help(root: Root, own: Path | None) -> str:
    """Return how the command is typed, and the choices of its groups."""
    lines = [root.usage, "", f"Options: {OPTIONS}", "", "== Groups: GROUP=CHOICE =="]
    for group in sorted({*(field.name for field in fields(root.schema)), *root.groups}):
        names = {name for kind, name in choices().values() if kind == group}
        names |= {file.stem for folder in filter(None, (CONF, own)) for file in (folder / group).glob("*.yaml")}
        lines += [f"{group}: {', '.join(sorted(names))}"] if names else []
    return "\n".join([*lines, "", "== Settings: KEY=VALUE ==", ""])


def _shown(cfg: DictConfig, resolve: bool) -> str:
    """Return a configuration as YAML, without secrets."""
    try:
        values = OmegaConf.to_container(cfg, resolve=resolve, enum_to_str=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key}: {error.msg}") from None
    return OmegaConf.to_yaml(OmegaConf.create(redacted(values)))


def _with_source(composed: Composed, words: Sequence[str], root: Root) -> tuple[DictConfig, list[str]]:
    """Give pretraining with `init_from` what nobody chose of model, tokenizer and objective: that of the source.

    A run that resumes takes its own again, since its source may be gone. Settings that were given stay given. Returns
    also what to say of what was taken.
    """
    cfg, wanted = composed.cfg, [group for group in ADOPTED if composed.chosen.get(group) == NOT_CHOSEN]
    if root is not PRETRAIN or not cfg.init_from or not wanted:
        return cfg, []
    run = Path(expanded(cfg.run.root, "run.root")) / cfg.run.name
    resuming = (run / CONFIG_FILE).exists() and any((run / "checkpoints").glob("step-*"))
    taken = _settings_of_run(run, wanted) if resuming else settings_from(cfg.init_from)
    given, said = _given(cfg, _composed(root, []).cfg, words), []
    for group in wanted:
        own = {key.removeprefix(f"{group}."): given[key] for key in given if key.startswith(f"{group}.")}
        if group == "tokenizer" and own:  # settings of a tokenizer that is to be trained
            continue
        try:
            cfg[group] = OmegaConf.merge(OmegaConf.structured(taken[group]), unflattened(own))
        except OmegaConfBaseException as error:
            rule = f"{group} is that of init_from={cfg.init_from}, which has no such setting; choose {group}= as well"
            raise ConfigError(f"{group}.{error.full_key}: {rule}") from None
        said.append(f"{group} is that of {run if resuming else cfg.init_from}, since {group}= is not given")
    if "model" in wanted:
        for key in ("data.packing", "data.seq_len"):
            if key in taken and key not in given and (key != "data.seq_len" or taken[key] < cfg.data.seq_len):
                OmegaConf.update(cfg, key, taken[key])
                said.append(f"{key}={taken[key]}, which suits the network of {cfg.init_from}")
    return cfg, said


def _given(cfg: DictConfig, default: DictConfig, words: Sequence[str]) -> dict[str, Any]:
    """Return the settings, by dotted key, that the command line names or a file sets to other than the default."""
    values, usual = (flattened(OmegaConf.to_container(each, resolve=False)) for each in (cfg, default))
    named = {word.partition("=")[0].lstrip("+") for word in words}
    return {key: value for key, value in values.items() if key in named or value != usual.get(key)}


def _settings_of_run(run: Path, groups: Sequence[str]) -> dict[str, Any]:
    """Return what `settings_from` returned when the run began, from its config.yaml."""
    taken = {group: choice_of(run, group) for group in groups}
    tokenizer = taken.get("tokenizer")
    if isinstance(tokenizer, TokenizerFile) and not Path(tokenizer.path).exists():
        taken["tokenizer"] = replace(tokenizer, path=str(run / "tokenizer.json"))
    kept = read_config(run)
    return taken | {key: kept[key] for key in ("data.packing", "data.seq_len")}


def _explained(error: Exception, known: Callable[[str], list[str]]) -> str:
    """Turn Hydra's error into a message that names the key, the rule and the nearest key or choice.

    `known` returns the names of all settings, given that of one that is refused.
    """
    message = str(error)
    if isinstance(error, RecursionError):
        return "defaults: files name each other in a circle; take one of them out"
    if found := re.search(r"Could not override '([^']+)'", message):
        inside = str(getattr(error.__cause__, "full_key", ""))  # of a dictionary that was given as a value
        key = inside if inside.startswith(f"{found[1]}.") else found[1]
        return f"{key}: no such setting{nearest(key, known(key))}"
    if found := re.search(r"In '([^']+)'.*\s+Key '[^']+' not in '[^']+'\s+full_key: (\S+)", message):
        return f"{found[1]}.yaml: {found[2]}: no such setting{nearest(found[2], known(found[2]))}"
    if found := re.search(r"Could not find '([^']+)'\s+Available options in '([^']+)':\n((?:\t[^\n]+\n)+)", message):
        options = found[3].split()
        choice = found[1].removeprefix(f"{found[2]}/")
        return f"{found[2]}={choice}: no such choice{nearest(choice, options)} (choices: {', '.join(options)})"
    if found := re.search(r"Error merging override (.+)", message):
        return f"{found[1]}: {str(error.__cause__).splitlines()[0]}"
    return " ".join(line.strip() for line in message.splitlines() if "type=" not in line and line.strip())


def _settings(root: Root, words: Sequence[str], own: Path | None, name: str, besides: str) -> list[str]:
    """Return the names of all settings under the choices that words make, `besides` a refused one."""
    names = [field.name for field in fields(root.schema)]
    groups = ConfigStore.instance().repo.keys() & set(names) - {besides}
    try:
        chosen = _composed(root, [word for word in words if word.partition("=")[0] in groups], own, name)
        composed = flattened(OmegaConf.to_container(chosen.cfg))
    except ConfigError:  # a choice that is required is made in a file
        composed = {}
    return [*([] if "." in besides else ["experiment", *names]), *composed]
