"""What a configuration with `branch_from` takes over from the run that it branches off: what decides what is learnt.

Holds what is taken where nobody chose; what a branch may change is decided in `train.branches`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pretrain.compose.adopted import given_settings
from pretrain.errors import ConfigError
from pretrain.registry import unflattened
from pretrain.settings.alternatives import taken_back
from pretrain.settings.composing import Composed
from pretrain.settings.paths import expanded
from pretrain.tokenizer.file import TokenizerFile
from pretrain.train.branches.base import KEY, BranchData, Origin, check_one_source, newest_state
from pretrain.train.run_dir.base import CONFIG_FILE, TOKENIZER_FILE
from pretrain.trained.source import described_source

# Which run it is, where and how fast it runs, and what is kept of it: a branch has its own.
OWN = {"run", "plugins", "init_from", "branch_from", "branch", "strategy", "attention", "compile"}
OWN |= {"tracker", "log", "profile", "checkpoint", "replicas", "hooks"}


def branch_off(composed: Composed, default: Composed, named: Collection[str], read: Callable[[Path], Any]) -> list[str]:
    """Give pretraining with `branch_from` what nobody chose, in place; return what was taken over, a line each.

    `default` is the configuration without words and files, `named` the settings that the user's have, `read` returns
    the typed configuration of a run. `branch_from` gets the number of its step, and a cooldown begins there. A run that
    resumes takes its own settings again, since its origin may be gone. Raises `ConfigError` for what is no saved step,
    and for an `init_from` beside it.
    """
    cfg, said = composed.cfg, []
    check_one_source(cfg.branch_from, cfg.init_from)
    own = Path(expanded(cfg.run.root, "run.root")) / cfg.run.name
    if state := newest_state(own):
        known = state.get("facts", {}).get("branch")
        if known is None:
            return [f"{KEY}={cfg.branch_from}: left alone, {own} has steps of its own and goes on from these"]
        typed, step = f"{known['run']}@{known['step']}", known["step"]
        if cfg.branch_from not in (typed, known["run"]):
            said.append(f"{KEY}={cfg.branch_from}: left alone, {own} has branched off {typed} and goes on from there")
        run = own if (own / CONFIG_FILE).exists() else Origin.of(typed, cfg.run.root).run
    else:
        origin = Origin.of(cfg.branch_from, cfg.run.root).resolved()
        run, typed, step = origin.run, origin.typed, origin.step
    cfg.branch_from = typed
    taken = _take(composed, default, named, read(run), run)
    for key, instead in taken_back(cfg, named):
        said.append(f"left out {key} of {run}: {instead} stands in its place")
    if "from_step" in cfg.schedule and cfg.schedule.from_step is None:
        cfg.schedule.from_step = step
        said.append(f"schedule.from_step={step}, where the run branches off")
    return [f"what is not given is that of {run}: {', '.join(taken)}", *said]


def _take(composed: Composed, default: Composed, named: Collection[str], held: Any, run: Path) -> list[str]:
    """Take over the parts of the configuration `held` of a run that were not chosen; return their names."""
    cfg, given, taken = composed.cfg, given_settings(composed.cfg, default.cfg, named), []
    for name in (field.name for field in fields(held)):
        value = getattr(held, name)
        chosen = name in composed.chosen and (name in named or composed.chosen[name] != default.chosen.get(name))
        if name in OWN or (chosen and name != "data"):
            continue
        own = {key.removeprefix(f"{name}."): given[key] for key in given if key.startswith(f"{name}.")}
        if name == "tokenizer":
            value = _tokenizer(value, run, fresh=cfg.branch.data == BranchData["fresh"])
        if is_dataclass(value) and not isinstance(value, type):
            try:
                cfg[name] = _merged(cfg[name], value, own, texts=chosen)
            except OmegaConfBaseException as error:
                rule = f"{name} is that of {run}, which has no such setting; choose {name}= as well"
                raise ConfigError(f"{name}.{error.full_key}: {rule}") from None
        elif name not in given:
            cfg[name] = value
        taken.append(name)
    return taken


def _merged(now: DictConfig, theirs: Any, given: dict[str, Any], *, texts: bool) -> DictConfig:
    """Return a part of another run with the settings that are `given`; the texts of data that were chosen stay."""
    merged = OmegaConf.structured(theirs)
    if texts:
        merged.sources = now.sources
        given = {key: value for key, value in given.items() if not key.startswith("sources.")}
    merged = OmegaConf.merge(merged, unflattened(given))
    assert isinstance(merged, DictConfig)
    return merged


def _tokenizer(theirs: Any, run: Path, *, fresh: bool) -> Any:
    """Return the tokenizer of a run: the file that it had made, where other texts would make another one."""
    if isinstance(theirs, TokenizerFile):
        there = Path(theirs.path).exists()
        return theirs if there else replace(theirs, path=str((run / TOKENIZER_FILE).absolute()))
    return described_source(str(run), KEY).tokenizer_config() if fresh else theirs
