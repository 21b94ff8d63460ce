"""Hooks of one's own: code from outside of the clone that a run calls while it trains.

Holds what such a hook is, how its settings are read, and how a run calls it; what the loop itself calls is in `hooks`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import nn

from pretrain.distributed.world import World
from pretrain.errors import ConfigError, check
from pretrain.registry import choices, nearest, rebuilt
from pretrain.settings.messages import rule_of
from pretrain.tracking.base import Record
from pretrain.train.loop import TrainState

GROUP = "hook"  # of the registry

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class HookedRun:
    """What a hook sees of its run."""

    directory: Path  # of the run; a hook may keep files of its own there
    total_steps: int  # optimizer steps of the whole run
    state: TrainState  # where the run stands; it moves on with the run
    module: nn.Module  # what is trained, as the strategy wrapped it: its weights may be spread over the ranks
    world: World
    stop: Callable[[str], None]  # ask the run to end after this step, for a reason: it is saved, and its exit code is 0


class Hook:
    """A hook overrides the methods that it cares about.

    It may read, write files of its own, return values that go into the record, and ask the run to stop. It must leave
    alone what decides the run: weights, moments, the learning rate, and the data and their order, which are functions
    of the configuration. It keeps no state that a resumed run would miss; what it needs it can write into the run's
    directory.

    Every method is called on every rank, at the same step, and its time does not count as time of training. So it may
    use the collectives of `run.world`, then on all ranks alike, and does on `run.world.is_first` what is done once.
    What it raises ends the run, as any failure does: with the hook's name and the traceback, after the steps that are
    saved; the same command goes on from these. What `end` raises after another failure, or a stop, is logged.
    """

    def begin(self, run: HookedRun) -> None:
        """See the run before its first step, or the first one after a resume."""

    def logged(self, record: Record) -> Mapping[str, float] | None:
        """See a training record, with speed and memory as on this rank; return values to add to it."""

    def evaluated(self, record: Record) -> Mapping[str, float] | None:
        """See a validation record; return values to add to it."""

    def saved(self, step: int, path: Path, best: bool) -> None:
        """See that a checkpoint is on disk, and whether it is the best so far."""

    def end(self, exit_code: int) -> None:
        """See the end of the run: 0 done, 85 stopped on request, else it failed, and other ranks may be gone."""


class HookConfig:
    """The settings of a hook: a dataclass under `@register("hook", NAME)`, for `hooks.NAME.SETTING=VALUE`."""

    def build(self) -> Hook:
        """Return the hook."""
        raise NotImplementedError


def schema_of(root: type) -> DictConfig:
    """Return the schema of a root configuration whose `hooks` take any name: modules of the user's own bring them."""
    schema = OmegaConf.structured(root)
    OmegaConf.set_struct(schema.hooks, False)
    return schema


def hook_configs(hooks: Mapping[str, Any]) -> dict[str, HookConfig]:
    """Return the settings of each hook by its name, typed. Raises `ConfigError` by key."""
    known = {name: kind for kind, (group, name) in choices().items() if group == GROUP}
    for name, values in hooks.items():
        there = f"there are {', '.join(sorted(known))}" if known else "none is registered"
        rule = f"no such hook{nearest(name, known)} ({there}); plugins=[MODULE] imports the module that registers it"
        check(name in known, "hooks", name, rule)
        rule = f"takes settings, hooks.{name}.KEY=VALUE, or {{}} for its defaults"
        check(isinstance(values, Mapping | None), f"hooks.{name}", values, rule)
    return {name: _typed(name, known[name], values or {}) for name, values in hooks.items()}


def _typed(name: str, kind: Any, values: Mapping[str, Any]) -> HookConfig:
    settings = [field.name for field in fields(kind)]
    for key in values:
        if key not in settings:
            raise ConfigError(f"hooks.{name}.{key}: no such setting{nearest(key, settings)}")
    try:
        return rebuilt(f"{GROUP}={name}", dict(values))
    except OmegaConfBaseException as error:
        raise ConfigError(f"hooks.{name}.{error.full_key}: {rule_of(error)}") from None


class OwnHooks:
    """The hooks of a run by name, called one after another."""

    def __init__(self, hooks: Mapping[str, Hook], world: World) -> None:
        self._hooks = hooks
        self._world = world
        self._reason = ""  # why a hook of this rank asked to stop

    def begin(self, run: HookedRun) -> None:
        """Let each hook see the run."""
        self._call("begin", run)

    def logged(self, record: Record) -> Record:
        """Return a training record with what hooks add to it, under `NAME/KEY`."""
        return self._with_values(record, "logged")

    def evaluated(self, record: Record) -> Record:
        """Return a validation record with what hooks add to it, under `NAME/KEY`."""
        return self._with_values(record, "evaluated")

    def saved(self, step: int, path: Path, best: bool) -> None:
        """Tell each hook of a committed checkpoint."""
        self._call("saved", step, path, best)

    def end(self, exit_code: int) -> None:
        """Tell each hook of the end; where the run failed or was stopped, what a hook raises does not hide that."""
        try:
            self._call("end", exit_code)
        except Exception:
            if exit_code == 0:
                raise
            log.exception("a hook failed at the end of the run")

    def stop(self, reason: str) -> None:
        """Take note that a hook of this rank asks the run to end."""
        self._reason = self._reason or reason

    def stop_run(self) -> bool:
        """Whether a hook of any rank asked for the end, which is logged. A collective."""
        if not self._hooks or not any(self._world.sum_ints(int(bool(self._reason)))):
            return False
        reasons = dict.fromkeys(filter(None, self._world.gather(self._reason)))
        log.info("the run ends early, as hooks ask: %s", "; ".join(reasons))
        return True

    def _with_values(self, record: Record, method: str) -> Record:
        added = self._call(method, record)
        values = {f"{name}/{key}": value for name, own in added.items() for key, value in (own or {}).items()}
        for key, value in values.items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            check(number, f"hooks: {key}", value, "records hold numbers; return an int or a float")
        return {**record, **values}

    def _call(self, method: str, *arguments: object) -> dict[str, Any]:
        """Call a method of each hook and return what it returned by the hook's name, which an error notes as well."""
        returned = {}
        for name, hook in self._hooks.items():
            try:
                returned[name] = getattr(hook, method)(*arguments)
            except Exception as error:
                error.add_note(f"raised by the hook {name!r} of this run, in {method}()")
                raise
        return returned
