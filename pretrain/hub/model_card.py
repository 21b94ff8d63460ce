"""The model card of an export: README.md as the Hugging Face hub expects it, from what its run has recorded.

Holds what is said of the model, its data, its results and its licence. Nothing is guessed: what no file says is
unknown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pretrain.checkpoint.commit import step_number
from pretrain.checkpoint.load import load_state
from pretrain.data.manifest import SPLITS, Manifest
from pretrain.data.stream import CORPUS
from pretrain.errors import ConfigError, DataError
from pretrain.files import read_json
from pretrain.hub.download import is_hub_name
from pretrain.settings.options import version_of
from pretrain.settings.yaml_files import read_settings
from pretrain.tracking.jsonl import METRICS_FILE, last_record

CARD_FILE = "README.md"
LICENCE_FILE = "LICENSE"
UNKNOWN = "unknown"
MAX_SOURCES = 16  # runs that began from each other, before the chain is taken for a circle
# What the class of a model in transformers is for: the end of its name -> the hub's name of the task.
TASKS = {
    "SequenceClassification": "text-classification",
    "TokenClassification": "token-classification",
    "QuestionAnswering": "question-answering",
    "MaskedLM": "fill-mask",
    "ElectraForPreTraining": "feature-extraction",
    "PreTraining": "fill-mask",
    "ForConditionalGeneration": "text2text-generation",
    "MTModel": "text2text-generation",
    "LMHeadModel": "text-generation",
    "Model": "feature-extraction",  # without any head
}
METRICS = {  # ours -> the hub's, where they differ
    "f1_macro": "f1",
    "f1_micro": "f1",
    "matthews": "matthews_correlation",
    "spearman": "spearmanr",
    "pearson": "pearsonr",
}
SNIPPETS = {
    "text-generation": """\
from transformers import AutoModelForCausalLM, AutoTokenizer

name = "."  # this directory, or its name on the hub
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name)
prompt = tokenizer((tokenizer.bos_token or "") + "The ", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=8, pad_token_id=tokenizer.eos_token_id)[0]))
""",
    "text2text-generation": """\
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

name = "."  # this directory, or its name on the hub
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForSeq2SeqLM.from_pretrained(name)
source = tokenizer("A text.", return_tensors="pt")
print(tokenizer.decode(model.generate(**source, max_new_tokens=32)[0], skip_special_tokens=True))
""",
    "fill-mask": """\
from transformers import AutoModelForMaskedLM, AutoTokenizer

name = "."  # this directory, or its name on the hub
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForMaskedLM.from_pretrained(name)
text = tokenizer(f"The {tokenizer.mask_token or ''}", return_tensors="pt")
print(tokenizer.convert_ids_to_tokens(model(**text).logits[0].argmax(-1)))
""",
    "question-answering": """\
from transformers import AutoModelForQuestionAnswering, AutoTokenizer

name = "."  # this directory, or its name on the hub
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForQuestionAnswering.from_pretrained(name)
text = tokenizer("Who wrote it?", "Ada wrote it.", return_tensors="pt")
found = model(**text)
first, last = found.start_logits.argmax(), found.end_logits.argmax()
print(tokenizer.decode(text.input_ids[0][first : last + 1]))
""",
}
PIPELINE = """\
from transformers import pipeline

model = pipeline("{task}", model=".")  # this directory, or its name on the hub
print(model("A text."))
"""
ADAPTED = """\
from peft import PeftModel
from transformers import {architecture}

base = {architecture}.from_pretrained("{base}"{outputs})
model = PeftModel.from_pretrained(base, ".")  # this directory, or its name on the hub
"""
DATA_COLUMNS = ("data", "split", "documents or records", "tokens", "SHA-256 of the manifest's hashes")


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The run and the step that a card describes."""

    step: Path  # directory of the checkpoint
    record: Mapping[str, Any]  # the run's run.json
    settings: Mapping[str, Any]  # the run's config.yaml, by dotted key

    @property
    def started_from(self) -> str | None:
        """What gave the first weights: a path or `org/name@commit`; None for a run from scratch."""
        return self.record.get("init_from") or self.settings.get("init_from") or None


@dataclass(frozen=True, kw_only=True)
class Licence:
    """What is known of the terms that come with the weights that a run began from."""

    licence: str | None = None  # the hub's name of it, from the front matter of a card
    file: Path | None = None  # LICENSE, where no card names one
    base_model: str | None = None  # a name on the hub


def licence_of(source: str | None) -> Licence:
    """Return what the files of a source say: its own card or LICENSE, or that of what it began from itself.

    Asks no network: of a model on the hub it reads the cache.
    """
    for _ in range(MAX_SOURCES):
        hub = source is not None and "@" in source and is_hub_name(source)  # runs record it with its commit
        base = source.partition("@")[0] if source and hub else None
        folder = _folder(source, base) if source else None
        if folder is None:
            return Licence(base_model=base)
        card = _front_matter(folder / CARD_FILE)
        licence, named = card.get("license"), base or card.get("base_model")
        named = named if isinstance(named, str) else None
        if isinstance(licence, str) and licence != UNKNOWN:
            return Licence(licence=licence, base_model=named)
        if (folder / LICENCE_FILE).is_file():
            return Licence(file=folder / LICENCE_FILE, base_model=named)
        source = _began_from(folder)
        if source is None:
            return Licence(base_model=named)
    return Licence()


def model_card(origin: Origin, config: Mapping[str, Any], licence: Licence, base: str | None = None) -> str:
    """Return the card of an export whose config.json is `config`; of an adapter for the weights `base` if it is one."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    task = next((TASKS[end] for end in TASKS if config["architectures"][0].endswith(end)), "text-generation")
    name, measured = str(origin.record.get("name", "model")), _measured(origin)
    data = _data(origin)
    results = [
        EvalResult(
            task_type=task,
            dataset_type=data[0][0] if data else UNKNOWN,
            dataset_name=", ".join(dict.fromkeys(row[0] for row in data)) or UNKNOWN,
            dataset_split="validation",
            metric_type=METRICS.get(metric, metric),
            metric_name=metric,
            metric_value=value,
        )
        for metric, value in measured.items()
    ]
    terms: dict[str, Any] = {"license": licence.licence or UNKNOWN}
    if licence.file:
        terms = {"license": "other", "license_name": "of-the-base-model", "license_link": LICENCE_FILE}
    front = ModelCardData(
        library_name="peft" if base else "transformers",
        pipeline_tag=task,
        base_model=licence.base_model,
        datasets=_hub_data_sets(origin) or None,
        metrics=sorted({METRICS.get(metric, metric) for metric in measured}) or None,
        tags=["headwater", str(config["model_type"])],
        model_name=name if results else None,
        eval_results=results or None,
        **terms,
    )
    parts = [
        f"# {name}",
        _about(origin, config),
        f"## Use\n\n```python\n{_use(task, config, base)}```",
        "## Data\n\n" + (_table(DATA_COLUMNS, data) or "Not recorded."),
        f"## Results\n\nHeld out, at step {step_number(origin.step):,}.\n\n"
        + _table(("metric", "value"), [(metric, f"{value:.4f}") for metric, value in measured.items()])
        if measured
        else f"## Results\n\nThe run did not measure step {step_number(origin.step):,}.",
        "## Training\n\n" + _table(("setting", "value"), _training(origin)),
        "## Licence\n\n" + _terms(licence, origin.started_from),
    ]
    body = "\n\n".join(parts)
    return str(ModelCard(f"---\n{front.to_yaml()}\n---\n\n{body}\n"))


def _use(task: str, config: Mapping[str, Any], base: str | None) -> str:
    """Return the code that loads the model."""
    if base is None:
        return SNIPPETS.get(task, PIPELINE.format(task=task))
    outputs = f", num_labels={len(config['id2label'])}" if "id2label" in config else ""
    return ADAPTED.format(architecture=config["architectures"][0], base=base, outputs=outputs)


def _about(origin: Origin, config: Mapping[str, Any]) -> str:
    source, task = origin.started_from, origin.record.get("names") is not None
    how = f"{'fine-tuned' if task else 'pretrained'} from `{source}`" if source else "pretrained from scratch"
    size = origin.record.get("parameters")
    parameters = f" of {size:,} parameters" if size else ""
    versions = f"Headwater {version_of('headwater')}"
    step = f"step {step_number(origin.step):,} of its run"
    return f"A `{config['architectures'][0]}`{parameters}, {how} with {versions}; {step}."


def _data(origin: Origin) -> list[tuple[str, str, str, str, str]]:
    """Return what the run learnt from and was measured on: name, split, documents or records, tokens, hash."""
    seen, rows = load_state(origin.step).get("resume", {}), []
    for name, place in origin.record.get("corpora", {}).items():
        known = seen.get(f"{CORPUS}data.sources.{name}") or UNKNOWN
        try:
            manifest = Manifest.load(Path(place))
        except DataError:  # it is gone, or another
            manifest = None
        if manifest is None or not manifest.fingerprint.startswith(known):
            rows.append((name, "all", "-", "-", f"{known} (first digits)"))
            continue
        for split in SPLITS:
            if part := manifest.splits.get(split):
                rows.append((name, split, f"{part.documents:,}", f"{part.tokens:,}", manifest.fingerprint))
    for split, size in origin.record.get("records", {}).items():
        file = origin.settings.get(f"task.{'train' if split == 'training' else split}", UNKNOWN)
        digest = f"{seen.get(f'the {split} set', UNKNOWN)} (first digits)"
        rows.append((str(file), split, f"{size:,}", "-", digest))
    return rows


def _hub_data_sets(origin: Origin) -> list[str]:
    """Return the names on the hub of what the run learnt from."""
    names = [
        value for key, value in origin.settings.items() if key.startswith("data.sources.") and key.endswith(".path")
    ]
    names.append(str(origin.settings.get("task.train", "")).partition(":")[0])
    return sorted({str(name) for name in names if "/" in str(name) and is_hub_name(str(name)) and "." not in str(name)})


def _measured(origin: Origin) -> dict[str, float]:
    """Return the finite metrics of the step on held-out data; none if it was not measured."""
    path = origin.step.parents[1] / METRICS_FILE
    found = last_record(path.read_bytes(), "validation", step_number(origin.step)) if path.is_file() else None
    return {
        key: float(value)
        for key, value in (found or {}).items()
        if isinstance(value, int | float) and math.isfinite(value) and key not in ("step", "tokens") and "/" not in key
    }


def _training(origin: Origin) -> list[tuple[str, str]]:
    entries = origin.settings.get("defaults") or []
    chosen = {key: value for entry in entries if isinstance(entry, dict) for key, value in entry.items()}
    state = load_state(origin.step)
    shown = {
        "weights": origin.record.get("average"),
        "steps": f"{step_number(origin.step):,}",
        "tokens": f"{state['tokens']:,}" if "tokens" in state else None,
        "batch": _batch(origin.settings),
        "sequence length": origin.settings.get("data.seq_len", origin.settings.get("task.max_tokens")),
        "learning rate": origin.settings.get("optim.lr"),
        "optimizer, schedule": f"{chosen.get('optim', UNKNOWN)}, {chosen.get('schedule', UNKNOWN)}",
        "precision, strategy": f"{chosen.get('precision', UNKNOWN)}, {chosen.get('strategy', UNKNOWN)}",
        "ranks": origin.record.get("ranks"),
        "seed": origin.settings.get("seed"),
        "versions": ", ".join(f"{name} {version}" for name, version in origin.record.get("versions", {}).items()),
    }
    return [(name, str(value)) for name, value in shown.items() if value not in (None, "")]


def _batch(settings: Mapping[str, Any]) -> str | None:
    """Return the size of batches, of those that grow each size with its first step."""
    stages = settings.get("train.batch_growth")
    if stages:
        return ", ".join(f"{stage['size']} from step {stage['step']:,}" for stage in stages)
    return settings.get("train.batch_size")


def _terms(licence: Licence, source: str | None) -> str:
    if licence.licence:
        return (
            f"`{licence.licence}`, as the card of `{licence.base_model or source}` says, which the weights began from."
        )
    if licence.file:
        return f"That of `{source}`, which the weights began from: [{LICENCE_FILE}]({LICENCE_FILE})."
    return "Unknown: set `license` in the first lines of this file before you publish it."


def _folder(source: str, base: str | None) -> Path | None:
    """Return where the files of a source lie, None where they are not at hand."""
    if base is None:
        return Path(source) if Path(source).is_dir() else None
    from huggingface_hub import try_to_load_from_cache

    revision = source.partition("@")[2] or None
    found = try_to_load_from_cache(base, "config.json", revision=revision)
    return Path(found).parent if isinstance(found, str) else None


def _front_matter(path: Path) -> dict[str, Any]:
    """Return the front matter of a card as data, nothing for what cannot be read."""
    with suppress(OSError, ValueError, yaml.YAMLError, RecursionError):
        text = path.read_text(encoding="utf-8")[:100_000] if path.is_file() else ""
        begin, front, _ = text.split("---\n", 2)
        found = yaml.safe_load(front) if not begin.strip() else None
        return found if isinstance(found, dict) else {}
    return {}


def _began_from(folder: Path) -> str | None:
    """Return what a run, or the run of an export in it, began from itself."""
    run = folder if (folder / "run.json").is_file() else folder.parent
    with suppress(OSError, ValueError):
        if isinstance(source := read_json(run / "run.json").get("init_from"), str):
            return source
    with suppress(ConfigError):
        if (run / "config.yaml").is_file() and isinstance(
            source := read_settings(run / "config.yaml").get("init_from"), str
        ):
            return source
    return None


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    lines = [header, ("---",) * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
