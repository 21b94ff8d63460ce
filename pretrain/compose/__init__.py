"""From a command line to a typed configuration, and from an error to an exit code.

Holds what every command of Hydra's words shares; what runs is passed in.
"""

from __future__ import annotations

import argparse
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pretrain.commands import exit_code_of
from pretrain.compose.adopted import adopt
from pretrain.compose.branched import branch_off
from pretrain.config import PretrainConfig, register_choices
from pretrain.distributed.world import rank, world_size
from pretrain.errors import ConfigError, check
from pretrain.errors.nearest import nearest
from pretrain.errors.redaction import redacted
from pretrain.registry import choices, flattened, typed
from pretrain.settings.composing import Composed, Files, composed
from pretrain.settings.grammar import as_text, parsed, quoted
from pretrain.settings.habits import advice
from pretrain.settings.messages import rule_of
from pretrain.settings.options import version_text
from pretrain.settings.own_files import EXPERIMENT
from pretrain.settings.paths import expanded, is_there
from pretrain.settings.plugins import import_plugins
from pretrain.settings.yaml_files import check_literal
from pretrain.tracking.background import sinks_still_working
from pretrain.train.run_dir.record import CONFIG_FILE, check_written_by, made_with, read_nested_config

CONF = Path(__file__).parents[2] / "conf"  # by path: a folder `conf` where a command is typed would hide the package
OPTIONS = "--help, --version, --cfg job, --resolve and --config-dir FOLDER"

log = logging.getLogger(__name__)


class Root(NamedTuple):
    """A configuration that a command may name settings of."""

    name: str  # of its YAML file in conf/
    schema: type  # its dataclass
    register: Callable[[], None]  # fills Hydra's ConfigStore with it and with the choices of its groups
    usage: str  # how its command is typed
    groups: tuple[str, ...] = ()  # of choices, beside those that its fields are


USAGE = "python -m pretrain SETTINGS"
PRETRAIN = Root("pretrain", PretrainConfig, register_choices, USAGE, (EXPERIMENT, "source"))

RUN_NODE = "config_of_a_run"  # in Hydra's ConfigStore


def hydra_command(body: Callable[[Any], None], root: Root = PRETRAIN, words: Sequence[str] | None = None) -> NoReturn:
    """Run a command that Hydra configures: compose `words`, or else the command line, pass it to `body`, and exit."""
    try:
        code = exit_code_of(lambda: body(compose(sys.argv[1:] if words is None else words, root)))
    except Exception:  # a bug: print the traceback and exit with 1, as Python does
        sys.stderr.write(redacted(traceback.format_exc()))
        code = 1
    leave(code)


def leave(code: int) -> NoReturn:
    """End the process of a command that may be one of several ranks."""
    if world_size() > 1 or sinks_still_working():
        # A thread of gloo that drops a tensor while the interpreter is taken down aborts the process (2 of 10 runs
        # of 4 ranks, torch 2.13), and its exit code with it; and W&B's own hook waits for a server that is silent
        # (30 s, wandb 0.31). All our resources are closed by now: skip the teardown.
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def compose(words: Sequence[str], root: Root = PRETRAIN, *, quiet: bool = False) -> Any:
    """Return the typed configuration of a command line; exits after --help, --version and --cfg.

    What was left out, overridden or taken over is said on standard error, by the first rank and unless `quiet`. Raises
    `ConfigError`.
    """
    options = _options(words, root)
    if options.version:
        print(version_text())
        sys.exit(0)
    result, files = _composed(root, options.settings, options.config_dir)
    if options.help or options.cfg:
        print(_help(root, options.config_dir) if options.help else "", _shown(result.cfg, options.resolve), sep="")
        sys.exit(0)
    said = _completed(result, files, options.settings, root)
    if said and not quiet and rank() == 0:  # there is no log yet
        print(*redacted(said), sep="\n", file=sys.stderr, flush=True)
    return typed(result.cfg)


def configure(*settings: str, config_dir: str | Path | None = None) -> PretrainConfig:
    """Return the configuration that `settings` make: words as `python -m pretrain` takes them, such as "optim.lr=1e-3".

    `config_dir` is a folder of settings of your own. What was left out, overridden or taken over is logged. Raises
    `ConfigError` for a setting that is refused.
    """
    return configured(settings, PRETRAIN, config_dir)


def configured(settings: Sequence[str], root: Root, config_dir: str | Path | None) -> Any:
    """Return the typed configuration that settings make for a root; see `configure`."""
    for word in settings:
        rule = 'takes words as a command does, such as "optim.lr=1e-3"; *words passes on a list of them'
        check(isinstance(word, str), "configure", repr(word), rule)
        if word.startswith("-"):
            raise ConfigError(_no_option(word, settings, root))
    result, files = _composed(root, settings, Path(config_dir) if config_dir else None)
    for line in redacted(_completed(result, files, settings, root)):
        log.info("%s", line)
    return typed(result.cfg)


def _completed(result: Composed, files: Files, words: Sequence[str], root: Root) -> list[str]:
    """Take over what `init_from` or `branch_from` offers; return what is to be said of it all, a line each."""
    said = [*_overridden(words), *result.left_out]
    if root is PRETRAIN and (result.cfg.init_from or result.cfg.branch_from):
        default, _ = _composed(root, [])
        named = {*files.settings, *(key for word in words for key in _given(word))}
        branches = result.cfg.branch_from is not None
        said += branch_off(result, default, named, compose_run) if branches else adopt(result, default.cfg, named)
    return said


def compose_run(
    run: Path,
    root: Root = PRETRAIN,
    overrides: Sequence[str] = (),
    *,
    attention: Sequence[str] = ("attention=sdpa",),  # flash and flex need a GPU
) -> Any:
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
    words = [*attention, *overrides]
    return typed(_composed(root, words, name=RUN_NODE)[0].cfg)


def _check_written(held: dict[str, Any], root: Root, path: Path) -> None:
    """Refuse a configuration of a run that chooses, or sets, what no run writes. Raises `ConfigError`."""
    settings, defaults = {field.name for field in fields(root.schema)}, held.get("defaults")
    for entry in defaults if isinstance(defaults, list) else [defaults]:
        [(place, name)] = entry.items() if isinstance(entry, dict) and len(entry) == 1 else [("", entry)]
        group, _, key = str(place).partition("@")
        chosen = (group, name) in choices().values() and (key or group).partition(".")[0] in settings
        if not chosen and entry not in (f"{root.name}_schema", "_self_"):
            rule = made_with(path.parent) or "restore the file"
            raise ConfigError(f"{path}: defaults: {entry}: no choice that a run of {root.name} writes; {rule}")
    if others := sorted(held.keys() - settings - {"defaults"}):
        raise ConfigError(f"{path}: {others[0]}: no such setting{nearest(others[0], settings)}")


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}; there are {OPTIONS}, and settings are typed KEY=VALUE")


def _options(words: Sequence[str], root: Root) -> argparse.Namespace:
    """Return what the words are: options, and KEY=VALUE in `settings`. Raises `ConfigError`."""
    parser = _Parser(root.name, add_help=False, allow_abbrev=False)
    parser.add_argument("settings", nargs="*")
    parser.add_argument("--help", "-h", action="store_true")
    parser.add_argument("--version", action="store_true")
    parser.add_argument("--cfg", "-c", choices=["job"])
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--config-dir", "-cd", type=Path, action="append")
    parser.add_argument("--multirun", "-m", action="store_true")
    options, unknown = parser.parse_known_intermixed_args(words)
    if options.multirun:
        raise ConfigError(
            "--multirun: the jobs of a sweep would share one process and its process group; "
            f"`python -m launch local nproc=N -- {root.name} ...`, without --multirun, starts fresh ones for each"
        )
    if unknown:
        raise ConfigError(_no_option(unknown[0], words, root))
    folders = options.config_dir or [None]
    if len(folders) > 1:
        raise ConfigError(f"--config-dir: given {len(folders)} times; keep one, and name other files by their paths")
    options.config_dir = folders[0]
    return options


def _no_option(word: str, words: Sequence[str], root: Root) -> str:
    """Return the refusal of an option that does not exist: what is typed instead."""
    key, _, value = word.lstrip("-").partition("=")
    after = words[words.index(word) + 1 :][:1]
    if not value and after and "=" not in after[0] and not after[0].startswith("-"):
        [value] = after
        word = f"{word} {value}"
    cfg, name = _composed(root, [])[0].cfg, key.replace("-", "_")
    if OmegaConf.select(cfg, name, throw_on_missing=False) is not None:
        return f"{word}: settings are typed without dashes: {name}={value or 'VALUE'}"
    if name in ("config", "config_file", "config_name", "config_path"):
        return f"{word}: a file of settings is named by {EXPERIMENT}={value or 'FILE.yaml'}"
    if hint := advice(name, value, set(flattened(OmegaConf.to_container(cfg)))):
        return f"{word}: no such option{hint}"
    return f"{word}: no such option; there are {OPTIONS}, and settings are typed KEY=VALUE"


def _given(word: str) -> list[str]:
    """Return the dotted keys of the settings that a word gives a value."""
    key, value = _key(word), None if word.startswith("~") else parsed(word).value()
    return [key, *(each for each in flattened(value, f"{key}.") if isinstance(value, dict))]


def _key(word: str) -> str:
    return word.partition("=")[0].lstrip("+")


def _overridden(words: Sequence[str]) -> list[str]:
    """Return a line for each word that a later one overrides with another value; a launcher's begin with ++."""
    last = {_key(word): word for word in words}
    lost = [word for word in words if last[_key(word)] != word and not last[_key(word)].startswith("++")]
    return [f"{word} is overridden by {last[_key(word)]}, which stands after it" for word in lost if "=" in word]


def _composed(root: Root, words: Sequence[str], folder: Path | None = None, name: str = "") -> tuple[Composed, Files]:
    """Compose the root's file, or a node of Hydra's ConfigStore. `folder` holds files of the user's.

    Raises `ConfigError`.
    """
    root.register()
    for word in words:
        _check_bare(word, root)
    overrides = [parsed(word) for word in words]
    names = {field.name for field in fields(root.schema)}
    groups = {EXPERIMENT, *(group for group, _ in choices().values())}
    for word, override in zip(words, overrides, strict=True):
        _check_word(word, override, root, groups)
    if folder and not folder.is_dir():
        raise ConfigError(f"--config-dir {folder}: no such folder")
    values = [each.value() for each in overrides if each.key_or_group == "plugins" and not each.is_delete()]
    plugins = [str(name) for value in values if isinstance(value, list) for name in value]
    if "plugins" in names:
        import_plugins(plugins)
    own: dict[str, Path] = {}
    overrides = [_by_name(override, groups, own) for override in overrides]
    beside = next((path.parent.parent for key, path in own.items() if path.parent.name == key.partition("/")[0]), None)
    folder = folder or beside
    files = Files(CONF, own, folder)
    result = composed(name or root.name, overrides, files)
    _check_chosen(result.chosen, folder)
    _keep_texts(result.cfg, overrides)
    if "plugins" in names and not name:
        result.cfg.plugins = list(dict.fromkeys([*files.plugins, *plugins]))
    return result, files


def _check_bare(word: str, root: Root) -> None:
    """Refuse a word without a value, which may be a file or an experiment that is meant. Raises `ConfigError`."""
    key, equals, value = word.partition("=")
    if equals and not value.strip():
        raise ConfigError(f"{word}: has no value; nothing is {key}=null, and an empty text {key}='\"\"'")
    if not equals and (word.endswith((".yaml", ".yml")) or is_there(CONF / EXPERIMENT / f"{word}.yaml")):
        raise ConfigError(f"{word}: has no key; an experiment, or a file of settings, is named by {EXPERIMENT}={word}")


def _check_word(word: str, override: Override, root: Root, groups: set[str]) -> None:
    """Refuse a word that Hydra reads, and that no command here takes. Raises `ConfigError`."""
    if override.is_sweep_override():
        rule = f"several values are a sweep, which `python -m launch local -- {root.name} ...` runs"
        raise ConfigError(f"{word}: {rule}; one text with a comma is typed {as_text(word)}")
    value, group = None if override.is_delete() else override.value(), override.key_or_group
    named = str | list | dict if group == EXPERIMENT else str | dict
    if group in groups and not isinstance(value, named) and not override.is_delete():
        raise ConfigError(f"{word}: takes the name of a choice; --help lists them")
    if override.key_or_group == "plugins" and not isinstance(value, list):
        raise ConfigError(f"{word}: takes a list of modules: plugins=[my.module]")
    if override.is_delete() and override.key_or_group in groups:
        raise ConfigError(f"{word}: a choice cannot be taken away; choose another one: {override.key_or_group}=CHOICE")


def _by_name(override: Override, groups: set[str], own: dict[str, Path]) -> Override:
    """Return a choice of paths, GROUP=FILE.yaml, as one of GROUP/NAME in `own`. Raises `ConfigError`."""
    group, value = override.key_or_group, None if override.is_delete() else override.value()
    choices = [str(each) for each in (value if isinstance(value, list) else [value])]
    if group not in groups or not any(each.endswith((".yaml", ".yml")) for each in choices):
        return override
    names = [quoted(_named(each, group, own)) for each in choices]
    typed = f"[{','.join(names)}]" if isinstance(value, list) else names[0]
    return parsed(f"{override.get_key_element()}={typed}")


def _named(choice: str, group: str, own: dict[str, Path]) -> str:
    """Return the name of a choice of a group: of a path, that under which it stands in `own` from now on."""
    if not choice.endswith((".yaml", ".yml")):
        return choice
    path = Path(expanded(choice, group))
    if not is_there(path) or not path.is_file():
        stem = f"{group}={path.stem}" if is_there(CONF / group / f"{path.stem}.yaml") else ""
        raise ConfigError(f"{group}={choice}: no such file{f'; did you mean {stem}?' if stem else ''}")
    own[f"{group}/{path.stem}.yaml"] = path
    return f"{path.stem}.yaml"


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
    lines = [root.usage, "", f"Options: {OPTIONS}", "", "== Groups: GROUP=CHOICE, or GROUP=FILE.yaml of your own =="]
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
        raise ConfigError(f"{error.full_key}: {rule_of(error)}") from None
    return OmegaConf.to_yaml(OmegaConf.create(redacted(values)))
