"""What the `adapter_config.json` of PEFT says of a LoRA adapter (Hu et al. 2021), and what of it we cannot honour.

Holds settings; the tensors beside them are in `adapter_files`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pretrain.errors import ConfigError
from pretrain.hub.config_json import shown
from pretrain.hub.download import is_hub_name
from pretrain.hub.weight_files import read_json

ADAPTER_CONFIG = "adapter_config.json"
BASE = "base_model_name_or_path"
# What a task is called there: the end of the name of its class in transformers -> `task_type`.
_TASK_TYPES = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
    "ForConditionalGeneration": "SEQ_2_SEQ_LM",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
    "MTModel": "SEQ_2_SEQ_LM",
}
_OF_HEADS = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")

_READ = {BASE, "peft_type", "task_type", "r", "lora_alpha", "use_rslora", "alpha_pattern", "target_modules"}
_READ |= {"modules_to_save", "bias", "init_lora_weights"}
# Keys that say nothing of what a trained adapter computes: its tensors say which layers it is of, and its ranks.
_SILENT = {"auto_mapping", "revision", "peft_version", "inference_mode", "lora_dropout", "fan_in_fan_out"}
_SILENT |= {"rank_pattern", "exclude_modules", "layers_to_transform", "layers_pattern", "ensure_weight_tying"}
_SILENT |= {"megatron_config", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config"}
_SILENT |= {"qalora_group_size", "runtime_config", "parent_library", "base_model_class"}
_UNSET = (None, False, {}, [], "")
_INITIAL = (True, False, None, "gaussian", "eva", "orthogonal")  # ways to begin that leave the base as it was
_NAMES = re.compile(r"[\w.^$-]+")  # of a pattern: regular expressions of strangers may run for ever
_MERGE = "merge it there (`merge_and_unload` and `save_pretrained`)"


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """The settings of an adapter that we can honour."""

    base: str  # name of the model that it is for, as `init_from` takes it
    task: str | None  # `task_type`
    alpha: float
    alpha_pattern: dict[str, float]  # by the ends of names of modules, in the order in which they are looked at
    rslora: bool  # whether the scale is alpha / sqrt(rank) (Kalajdzievski 2023), not alpha / rank
    targets: list[str] | str  # ends of names of modules, or a regular expression, which the tensors make needless

    def scale(self, module: str, rank: int) -> float:
        """Return what the output of a module's adapter is multiplied by."""
        patterns = (key for key in self.alpha_pattern if re.match(rf"(.*\.)?({key})$", module))
        alpha = self.alpha_pattern.get(next(patterns, ""), self.alpha)
        return alpha / (math.sqrt(rank) if self.rslora else rank)

    @property
    def has_head(self) -> bool:
        """Whether it was trained with the head of a task, not with that of the vocabulary."""
        return self.task in _OF_HEADS

    def check_targets(self, known: Iterable[str], kind: str) -> None:
        """Raise `ConfigError` for a target that is none of the modules `known`, named below the body's name.

        They are those of a model of such a `kind`.
        """
        if isinstance(self.targets, str):
            return
        modules = [f".{name}" for name in known]
        for target in (f".{target}" for target in self.targets):
            # Whole names begin as they do in some class of the family.
            if not any(name.endswith(target) or target.endswith(name) for name in modules):
                ends = sorted({re.sub(r".*\.\d+\.", "", name[1:]) for name in modules})
                rule = f"no layer of {kind} whose adapters are read, which are {', '.join(ends)}"
                raise ConfigError(f"target_modules={shown(target[1:])}: {rule}; {_MERGE}")


def task_type(architecture: str) -> str:
    """Return what the task of a class in transformers is called there."""
    return next(kind for end, kind in _TASK_TYPES.items() if architecture.endswith(end))


def read_adapter_config(path: Path) -> AdapterConfig:
    """Read a directory's `adapter_config.json`; every refusal names the file.

    Raises `ConfigError` for what we cannot honour, `CheckpointError` for a damaged file.
    """
    theirs = read_json(path / ADAPTER_CONFIG)
    try:
        return _config(theirs)
    except ConfigError as error:
        raise ConfigError(f"{path / ADAPTER_CONFIG}: {error}") from None


def _config(theirs: dict[str, Any]) -> AdapterConfig:
    _expect(theirs, "peft_type", theirs.get("peft_type") == "LORA", "only LORA is read")
    for key, value in theirs.items():
        if key not in _READ | _SILENT and value not in _UNSET:
            raise ConfigError(f"{key}={shown(value)}: is not supported; {_MERGE}")
    _expect(theirs, "bias", theirs.get("bias", "none") == "none", f"none is supported; {_MERGE}")
    initial = theirs.get("init_lora_weights", True)
    rule = f"changes the base's weights before training, which the base does not say; {_MERGE}"
    _expect(theirs, "init_lora_weights", initial in _INITIAL, rule)
    base, targets, revision = theirs.get(BASE), theirs.get("target_modules"), theirs.get("revision")
    fix = "name the model that it is for: a directory, a run or a name on the hub"
    _expect(theirs, BASE, isinstance(base, str) and bool(base), fix)
    names = isinstance(targets, list) and all(isinstance(target, str) for target in targets)
    _expect(theirs, "target_modules", isinstance(targets, str) or names, "must be names, or a pattern")
    alpha, pattern = theirs.get("lora_alpha", 8), theirs.get("alpha_pattern") or {}
    _expect(theirs, "lora_alpha", _is_number(alpha), "must be a number")
    fits = isinstance(pattern, dict) and all(_NAMES.fullmatch(key) and _is_number(pattern[key]) for key in pattern)
    _expect(theirs, "alpha_pattern", fits, f"only names with numbers are read; {_MERGE}")
    for key, kind in (("task_type", str), ("revision", str), ("use_rslora", bool)):
        _expect(theirs, key, isinstance(theirs.get(key), kind | None), f"must be a {kind.__name__}")
    return AdapterConfig(
        base=f"{base}@{revision}" if revision and is_hub_name(str(base)) and "@" not in str(base) else str(base),
        task=theirs.get("task_type"),
        alpha=float(alpha),
        alpha_pattern=pattern,
        rslora=bool(theirs.get("use_rslora")),
        targets=targets,  # pyright: ignore[reportArgumentType] - checked above
    )


def _expect(theirs: dict[str, Any], key: str, fits: bool, rule: str) -> None:
    if not fits:
        raise ConfigError(f"{key}={shown(theirs.get(key))}: {rule}")


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)
