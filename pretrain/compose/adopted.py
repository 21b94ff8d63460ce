"""What a configuration with `init_from` takes over from the source: its network, its tokenizer, a gentle start.

Holds what is taken where nobody chose; what a source offers is its own to say.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from pretrain.errors import ConfigError
from pretrain.init_from import settings_from
from pretrain.registry import flattened, unflattened
from pretrain.settings.composing import Composed
from pretrain.settings.paths import expanded
from pretrain.tokenizer.file import TokenizerFile
from pretrain.train.run_dir.record import CONFIG_FILE, choice_of, read_config

NOT_CHOSEN = "default"  # in conf/pretrain.yaml: the user has chosen nothing of the group
ADOPTED = ("model", "tokenizer", "objective")  # groups that a source can choose

# Trained weights go on from where their learning rate ended, which is custom at a tenth of the peak (Brown et al. 2020;
# Touvron et al. 2023), and forget more above it (Parmar et al. 2024, "Reuse, Don't Retrain"). The optimizer's moments
# begin at zero, which a warm-up covers; its length hardly matters (Gupta et al. 2023, "How to (re)warm your model?").
PEAK_SHARE = 0.1
WARMUP_RATIO = 0.01


def adopt(composed: Composed, default: DictConfig, named: Collection[str]) -> list[str]:
    """Give pretraining with `init_from` what nobody chose, in place; return what was taken over, a line each.

    `default` is the configuration without words and files, `named` the settings that the user's have. Model, tokenizer
    and objective are those of the source. A run that resumes takes its own again, since its source may be gone.
    """
    cfg = composed.cfg
    wanted = [group for group in ADOPTED if composed.chosen.get(group) == NOT_CHOSEN]
    return [*(_choices(cfg, wanted, given_settings(cfg, default, named)) if wanted else []), *_gentle_start(cfg, named)]


def _choices(cfg: DictConfig, wanted: Sequence[str], given: dict[str, Any]) -> list[str]:
    run = Path(expanded(cfg.run.root, "run.root")) / cfg.run.name
    resuming = (run / CONFIG_FILE).exists() and any((run / "checkpoints").glob("step-*"))
    taken, said = _settings_of_run(run, wanted) if resuming else settings_from(cfg.init_from), []
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
    return said


def _gentle_start(cfg: DictConfig, named: Collection[str]) -> list[str]:
    """Lower the peak learning rate to one that trained weights bear, and warm up to it, unless the user's is given."""
    said, peak = [], cfg.optim.get("lr")
    if peak and "optim.lr" not in named:
        cfg.optim.lr = float(f"{PEAK_SHARE * peak:.3g}")
        said.append(f"optim.lr={cfg.optim.lr:g}, a tenth of the {peak:g} for random weights,")
    warm_up = {"schedule.warmup_steps", "schedule.warmup_ratio"}
    if not warm_up & set(named) and not cfg.schedule.warmup_steps and not cfg.schedule.warmup_ratio:
        cfg.schedule.warmup_ratio = WARMUP_RATIO
        said.append(f"schedule.warmup_ratio={WARMUP_RATIO:g}")
    return [f"{' and '.join(said).rstrip(',')}: a gentle start from {cfg.init_from}, unless given"] if said else []


def given_settings(cfg: DictConfig, default: DictConfig, named: Collection[str]) -> dict[str, Any]:
    """Return the settings, by dotted key, that the user's words and files name or a file sets to another value."""
    values, usual = (flattened(OmegaConf.to_container(each, resolve=False)) for each in (cfg, default))
    return {key: value for key, value in values.items() if key in named or value != usual.get(key)}


def _settings_of_run(run: Path, groups: Sequence[str]) -> dict[str, Any]:
    """Return what `settings_from` returned when the run began, from its config.yaml."""
    taken = {group: choice_of(run, group) for group in groups}
    tokenizer = taken.get("tokenizer")
    if isinstance(tokenizer, TokenizerFile) and not Path(tokenizer.path).exists():
        taken["tokenizer"] = replace(tokenizer, path=str(run / "tokenizer.json"))
    kept = read_config(run)
    return taken | {key: kept[key] for key in ("data.packing", "data.seq_len")}
