"""From a command line to a typed configuration, and from an error to an exit code.

Holds what every Hydra entry point shares; what runs is passed in.
"""

from __future__ import annotations

import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from pretrain.config import PretrainConfig, register_choices
from pretrain.distributed.world import rank, world_size
from pretrain.errors import ConfigError, exit_code_of
from pretrain.init_from import settings_from
from pretrain.registry import flattened, nearest, typed, unflattened
from pretrain.tokenizer.file import TokenizerFile
from pretrain.tracking.background import sinks_still_working
from pretrain.train.run_dir import check_written_by, choice_of, read_config

CONF = Path(__file__).parents[1] / "conf"  # by path: a folder `conf` where a command is typed would hide the package


class Root(NamedTuple):
    """A configuration that a command may name settings of."""

    name: str  # of its YAML file in conf/
    schema: type  # its dataclass
    register: Callable[[], None]  # fills Hydra's ConfigStore with it and with the choices of its groups


PRETRAIN = Root("pretrain", PretrainConfig, register_choices)

NOT_CHOSEN = "default"  # in conf/pretrain.yaml: the user has chosen nothing of the group
ADOPTED = ("model", "tokenizer", "objective")  # groups that a source can choose

Choices = dict[str, str | None]
"""Group -> what was chosen of it."""


class Place(NamedTuple):
    """Where a configuration to compose lies."""

    directory: Path
    name: str  # of its YAML file there


def hydra_command(body: Callable[[Any], None], root: Root = PRETRAIN) -> NoReturn:
    """Run a command that Hydra configures: compose its configuration, type it, pass it to `body`, and exit."""

    def run() -> None:
        composed = compose_command_line(root)
        if composed is not None:  # None after --help, --cfg and the like
            body(typed(composed))

    try:
        code = exit_code_of(run)
    except Exception:  # a bug: print the traceback and exit with 1, as Python does
        if world_size() == 1:
            raise
        traceback.print_exc()
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


def compose_command_line(root: Root) -> DictConfig | None:
    """Let Hydra compose `sys.argv`. Hydra starts nothing, writes nothing and handles none of our errors."""
    root.register()
    composed: list[tuple[DictConfig, Choices]] = []

    def keep(cfg: DictConfig) -> None:
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            raise ConfigError(
                "--multirun: the jobs of a sweep would share one process and its process group; "
                f"`python -m launch local nproc=N -- {root.name} ...`, without --multirun, starts fresh ones for each"
            )
        composed.append((cfg, dict(HydraConfig.get().runtime.choices)))

    os.environ["HYDRA_FULL_ERROR"] = "1"  # exceptions come to us as they are
    try:
        hydra.main(version_base="1.3", config_path=str(CONF), config_name=root.name)(keep)()
    except (HydraException, YAMLError) as error:
        raise ConfigError(_explained(error, root, sys.argv[1:], Place(CONF, root.name))) from None
    return _with_source(*composed[0], sys.argv[1:], root) if composed else None


def with_overrides(arguments: Sequence[str], *overrides: str) -> list[str]:
    """Return a command line with overrides behind its own, so that they win.

    Hydra takes overrides in one row, in which the last of a key wins, and its options before or behind it.
    """
    ends = [at for at, word in enumerate(arguments, 1) if word[:1] == "~" or ("=" in word and word[0] != "-")]
    end = max(ends, default=0)
    return [*arguments[:end], *overrides, *arguments[end:]]


def compose(
    overrides: list[str], config_dir: Path | None = None, config_name: str | None = None, root: Root = PRETRAIN
) -> Any:
    """Compose and type a configuration from Python: the presets, or the `config.yaml` of a run directory."""
    root.register()
    place = Place((config_dir or CONF).absolute(), config_name or root.name)
    try:
        with hydra.initialize_config_dir(str(place.directory), version_base="1.3"):
            composed = hydra.compose(place.name, overrides, return_hydra_config=True)
    except (HydraException, YAMLError) as error:
        raise ConfigError(_explained(error, root, overrides, place)) from None
    chosen = dict(composed.hydra.runtime.choices)
    with open_dict(composed):
        del composed["hydra"]
    return typed(_with_source(composed, chosen, overrides, root))


def _with_source(cfg: DictConfig, chosen: Choices, overrides: Sequence[str], root: Root) -> DictConfig:
    """Give pretraining with `init_from` what nobody chose of model, tokenizer and objective: that of the source.

    A run that resumes takes its own again, since its source may be gone. Settings that were given stay given.
    """
    wanted = [group for group in ADOPTED if chosen.get(group) == NOT_CHOSEN]
    if root is not PRETRAIN or not cfg.init_from or not wanted:
        return cfg
    run = Path(cfg.run.root).expanduser() / cfg.run.name
    resuming = (run / "config.yaml").exists() and any((run / "checkpoints").glob("step-*"))
    taken = _settings_of_run(run, wanted) if resuming else settings_from(cfg.init_from)
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        default = hydra.compose(root.name, [])
    given, said = _given(cfg, default, overrides), []
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
    if said and rank() == 0:  # there is no log yet
        print(*said, sep="\n", file=sys.stderr, flush=True)
    return cfg


def _given(cfg: DictConfig, default: DictConfig, overrides: Sequence[str]) -> dict[str, Any]:
    """Return the settings, by dotted key, that the command line names or a file sets to other than the default."""
    values, usual = (flattened(OmegaConf.to_container(each, resolve=False)) for each in (cfg, default))
    named = {override.partition("=")[0].lstrip("+") for override in overrides}
    return {key: value for key, value in values.items() if key in named or value != usual.get(key)}


def _settings_of_run(run: Path, groups: Sequence[str]) -> dict[str, Any]:
    """Return what `settings_from` returned when the run began, from its config.yaml."""
    taken = {group: choice_of(run, group) for group in groups}
    tokenizer = taken.get("tokenizer")
    if isinstance(tokenizer, TokenizerFile) and not Path(tokenizer.path).exists():
        taken["tokenizer"] = replace(tokenizer, path=str(run / "tokenizer.json"))
    kept = read_config(run)
    return taken | {key: kept[key] for key in ("data.packing", "data.seq_len")}


def compose_run(run: Path, root: Root = PRETRAIN, overrides: Sequence[str] = ()) -> Any:
    """Compose and type the configuration of a run directory, for looking at its model on the CPU.

    `overrides` change it. Raises `ConfigError` for what is no run directory, for a run of another program, and for an
    override that is refused.
    """
    if not (run / "config.yaml").exists():
        raise ConfigError(f"{run}: not a run directory (no config.yaml); name one such as runs/demo")
    check_written_by(root.name, run)
    changes = ["attention=sdpa", *overrides]  # flash and flex need a GPU
    return compose(changes, config_dir=run, config_name="config", root=root)


def _explained(error: HydraException | YAMLError, root: Root, overrides: list[str], place: Place) -> str:
    """Turn Hydra's error into a message that names the key, the rule and the nearest key or choice."""
    message = str(error)
    if found := re.search(r"Could not override '([^']+)'", message):
        key = found[1]
        return f"{key}: no such setting{nearest(key, _settings(root, overrides, place, besides=key))}"
    if found := re.search(r"Could not find '([^']+)'\s+Available options in '([^']+)':\n((?:\t[^\n]+\n)+)", message):
        options = found[3].split()
        choice = found[1].removeprefix(f"{found[2]}/")
        return f"{found[2]}={choice}: no such choice{nearest(choice, options)} (choices: {', '.join(options)})"
    if found := re.search(r"Error merging override (\S+)", message):
        return f"{found[1]}: {str(error.__cause__).splitlines()[0]}"
    return " ".join(line.strip() for line in message.splitlines() if "type=" not in line and line.strip())


def _settings(root: Root, overrides: list[str], place: Place, besides: str) -> list[str]:
    """Return the names of all settings under the choices of `place` and of `overrides`, `besides` a refused one."""
    names = [field.name for field in fields(root.schema)]
    groups = ConfigStore.instance().repo.keys() & set(names) - {besides}
    chosen = [override for override in overrides if override.partition("=")[0] in groups]
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(place.directory), version_base="1.3"):
            composed = flattened(OmegaConf.to_container(hydra.compose(place.name, chosen)))
    except HydraException:  # a choice that is required is made in a file
        composed = {}
    return [*([] if "." in besides else ["experiment", *names]), *composed]
