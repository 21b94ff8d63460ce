"""`python -m pretrain.replay RUN --from A --to B`: take recorded steps of a run again, and compare.

Holds the command, and the building of a run that writes nothing; the comparison is in `train.replaying`. Also a program
of ranks: under torchrun, or `python -m launch local nproc=2 -- pretrain.replay ...`.
"""

from __future__ import annotations

from pretrain.commands import start_command

if __name__ == "__main__":
    start_command()  # before the imports below, which take seconds

import argparse
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pretrain.commands import StopRequest, command
from pretrain.errors import ConfigError, check
from pretrain.settings.options import CommandParser
from pretrain.settings.plugins import add_plugins_option

if TYPE_CHECKING:
    from pretrain.distributed.world import World
    from pretrain.train.replaying import Taken

ELSEWHERE = ("strategy", "attention", "compile", "train.micro_batch_size", "train.micro_batch_tokens")  # may differ


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit code: 0 where the steps agree, 5 where they differ."""
    return command(parser(), replay, arguments)


def parser() -> CommandParser:
    """Return the options of the command."""
    description = (
        "Take recorded steps of a pretraining run again, on any ranks and strategy; compare loss and gradient norm. "
        "Nothing of the run is changed. Exit code 0: they agree, so the data or the recipe are to blame for what is "
        "wrong with the run. 5: they differ, so hardware or software are."
    )
    parser = CommandParser(
        prog="python -m pretrain.replay",
        description=description,
        example="python -m pretrain.replay runs/demo --from 9600 --to 9650",
    )
    parser.add_argument("run", metavar="RUN", help="run directory of pretraining, e.g. runs/demo")
    add_plugins_option(parser)
    begin = "optimizer step to begin after: a saved one, or the newest saved one before it"
    parser.add_argument("--from", dest="first", type=int, required=True, metavar="STEP", help=begin)
    parser.add_argument("--to", dest="last", type=int, required=True, metavar="STEP", help="last optimizer step")
    change = f"a setting that makes no other run: {', '.join(ELSEWHERE)}; may be repeated"
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=change)
    return parser


def replay(options: argparse.Namespace) -> str | None:
    """Replay as the command line says; return the verdict, on rank 0. Raises `NumericalError` if a step differs."""
    from pretrain.distributed.world import joined
    from pretrain.train.computing import products_of
    from pretrain.train.replaying import REORDERED, ROUNDED, SAME, recorded, verdict
    from pretrain.train.run_dir.record import read_record
    from pretrain.train.summary import versions

    run = Path(options.run)
    check(options.first >= 0, "--from", options.first, "0 or more optimizer steps")
    check(options.last > options.first, "--to", options.last, f"must be above --from={options.first}")
    record = read_record(run, "corpora")
    cfg = _configuration(run, options.set)
    check(options.last <= cfg.train.steps, "--to", options.last, f"the run has {cfg.train.steps} steps")
    before = recorded(run, options.first + 1, options.last)
    with joined(timedelta(minutes=cfg.run.timeout_minutes)) as world, products_of(cfg, world.device):
        computed = record.get("computing", "")
        exact = computed.startswith("products in fp32") and not cfg.precision.takes_tf32(world.device)
        begun, now = _taken_again(cfg, run, record, (options.first, options.last), world)
        notes = [f"begun at the saved step {begun}"] if begun < options.first else []
        theirs = record.get("versions", {})
        notes += [
            f"{name} was {theirs[name]} and is {version}"
            for name, version in versions().items()
            if theirs.get(name, version) != version
        ]
        if not exact:
            notes.append(
                f"{computed or 'products of unknown precision'}: differences up to {ROUNDED.loss:g} are rounding"
            )
        same = not options.set and world.size == record.get("ranks")
        said = verdict(before, now, ROUNDED if not exact else SAME if same else REORDERED, notes)
        return said if world.is_first else None


def _configuration(run: Path, changes: Sequence[str]) -> Any:
    """Return the configuration of a run with changes. Raises `ConfigError` for one that makes another run."""
    from pretrain.compose import compose_run
    from pretrain.distributed.world import device_type, world_size
    from pretrain.registry import choices
    from pretrain.strategy.compile import Scope
    from pretrain.train.micro_batches import said
    from pretrain.train.run_dir.record import choice_of

    for word in changes:
        key = word.partition("=")[0]
        if not any(key == name or key.startswith(f"{name}.") for name in ELSEWHERE):
            raise ConfigError(f"--set {word}: makes it another run; what may be set is {', '.join(ELSEWHERE)}")
    own = [f"attention={choices()[type(choice_of(run, 'attention'))][1]}"]
    chosen = any(word.startswith("attention=") for word in changes)
    cfg = compose_run(run, overrides=[*changes], attention=[] if chosen else own)
    ranks, device = world_size(), device_type()
    said(cfg.train, cfg.data.seq_len, ranks)
    cfg.strategy.check_machine(ranks=ranks, device_type=device, precision=cfg.precision)
    compiles = cfg.compile.on(device, cfg.strategy) is not Scope.none
    cfg.precision.check_machine(device_type=device, compiles=compiles)
    cfg.attention.build()
    return cfg


def _taken_again(
    cfg: Any, run: Path, record: dict[str, Any], span: tuple[int, int], world: World
) -> tuple[int, dict[int, Taken]]:
    """Return the step at which a replay of a span of steps begins, and what the steps give. A collective."""
    from functools import cache, partial

    from pretrain.compose import compose_run
    from pretrain.data.vocabulary import load_vocabulary
    from pretrain.run import build_module, course_of, fingerprints_of, rate_of, steps_of
    from pretrain.train.branches.base import data_start
    from pretrain.train.computing import start_kernels
    from pretrain.train.detours.base import read_detours
    from pretrain.train.loop import TrainState, train
    from pretrain.train.metrics import StepMeter
    from pretrain.train.micro_batches import said
    from pretrain.train.replaying import ReplayHooks

    first, last = span
    size = said(cfg.train, cfg.data.seq_len, world.size) or record.get("micro_batch", {}).get("size", 1)
    _check_dropout(compose_run(run), record, size, world)
    corpora = {name: Path(path) for name, path in record["corpora"].items()}
    stream, detours, start = cfg.data.train_stream(corpora, cfg.seed), read_detours(run), data_start(run)
    vocabulary = cache(partial(load_vocabulary, next(iter(corpora.values()))))
    examples = cfg.objective.examples(vocabulary, cfg.seed, cfg.data.seq_len)
    module = build_module(cfg, stream.manifest.vocab_size)
    strategy = cfg.strategy.build(world=world, precision=cfg.precision, compilation=cfg.compile)
    strategy.guard = cfg.guard.build()
    state, course = TrainState(), course_of(cfg, detours, start)
    model = _restored(
        cfg, run, record, first, module, strategy, fingerprints_of(cfg, stream, detours, start), state, world
    )
    begun = state.step
    start_kernels(cfg, cfg.model, world)
    hooks = ReplayHooks(world=world, meter=StepMeter(world.device), last=last)
    with steps_of(cfg, stream, examples, course, begun, size, world) as steps:
        train(
            model,
            strategy,
            steps,
            rate_of(cfg, course).multiplier,
            state,
            cfg=cfg.train,
            seed=cfg.seed,
            world=world,
            hooks=hooks,
            stop=StopRequest(""),
        )
    strategy.close()
    return begun, hooks.taken


def _restored(
    cfg: Any,
    run: Path,
    record: dict[str, Any],
    first: int,
    module: Any,
    strategy: Any,
    fingerprints: dict[str, Any],
    state: Any,
    world: World,
) -> Any:
    """Return the model of a module, filled from the newest step up to `first`, which `state` becomes the state of."""
    from pretrain.checkpoint.load import load_state, restore, saved_step
    from pretrain.init_from import InitialWeights
    from pretrain.train.detours.rewinding import saved_steps
    from pretrain.train.resuming import SavedRun, network_defaults, same_run
    from pretrain.train.run_dir.base import CHECKPOINTS

    initial = InitialWeights(module, cfg.seed)
    model = strategy.setup(module, cfg.optim.build)
    early = [step for step in saved_steps(run) if step <= first]
    if not early:
        rule = f"saved are {', '.join(map(str, saved_steps(run))) or 'none'}; begin at one of these"
        check(cfg.init_from is None, "--from", first, f"no step up to it is saved, and the run began elsewhere; {rule}")
        strategy.load_fragments(initial)
        return model
    step = saved_step(run / CHECKPOINTS, world, early[-1], record.get("steps"))
    saved = load_state(step, SavedRun)
    same_run(step, saved, fingerprints, network_defaults(cfg.model))
    restore(step, initial.shapes, strategy)
    state.step, state.tokens = saved["step"], saved["tokens"]
    return model


def _check_dropout(cfg: Any, record: dict[str, Any], size: int, world: World) -> None:
    """Refuse other ranks or micro-batches than the run `cfg` had where dropout draws by them. Raises `ConfigError`."""
    from pretrain.registry import plain
    from pretrain.train.micro_batches import said

    ranks = record.get("ranks", world.size)
    before = said(cfg.train, cfg.data.seq_len, ranks) or record.get("micro_batch", {}).get("size", size)
    rule = (
        f"it is drawn by rank and micro-batch, so {world.size} ranks with micro-batches of {size} take other steps "
        f"than the run, which had {ranks} with {before}; start as many, with train.micro_batch_size={before}"
    )
    for key, value in plain(cfg.model).items():
        if "dropout" in key and value:
            check((ranks, before) == (world.size, size), f"model.{key}", value, rule)


if __name__ == "__main__":
    from pretrain.compose import leave

    leave(main())
