"""Where a trained model comes from: another run, an export, a released checkpoint.

Holds how such a source is found and read, once; what of it fits a new module is in `init_from`, its use in `model`.
"""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pretrain import objectives
from pretrain.checkpoint.commit import step_names
from pretrain.checkpoint.fragments import FragmentReader
from pretrain.checkpoint.load import fragments_of, load_state
from pretrain.distributed.world import World
from pretrain.errors import CheckpointError, ConfigError, DataError
from pretrain.hub.config_json import check_value
from pretrain.hub.download import cached, fetch, is_hub_name
from pretrain.hub.export_dir import DECODER_START
from pretrain.hub.family import Family, HeadKind
from pretrain.hub.generation_config import read_rules, rules_of
from pretrain.hub.spm_files import MODEL_FILES
from pretrain.hub.weight_files import read_json
from pretrain.hub.weights import HuggingFaceWeights, read_network
from pretrain.models.base import ModelKind
from pretrain.models.generation.rules import Rules
from pretrain.models.layers import Positions
from pretrain.objectives.base import ObjectiveConfig
from pretrain.registry import choices, discover, plain
from pretrain.settings.paths import expanded
from pretrain.tokenizer.base import (
    FOR_TARGETS,
    TokenizerConfig,
    describe,
    find_mask,
    load_tokenizer,
    num_ids,
    tokenizer_sha256,
)
from pretrain.tokenizer.file import TokenizerFile
from pretrain.train.run_dir import CHECKPOINTS, RECORD_FILE, choice_of, read_record
from pretrain.trained.run_files import network_of, step_of, target_tokenizer_of, tokenizer_of

EMBEDDING = "model.embedding.weight"  # one row per token
MISSPELT = 0.85  # likeness from which a name that is not there is taken for that of a run


class Source(ABC):
    """A trained model that can be used, or that a run can start from. It is read on demand, and nothing twice."""

    def __init__(self, name: str, path: Path, key: str = "init_from") -> None:
        self.name = name  # what a run records: a path, or `org/name@commit`
        self.path = path  # directory of the run, or of the Hugging Face checkpoint
        self.typed = _typed(name, key)  # how refusals call it

    @property
    @abstractmethod
    def network(self) -> Any:
        """Our configuration of the network: a registered dataclass such as `DecoderConfig`."""

    @property
    @abstractmethod
    def is_fine_tuned(self) -> bool:
        """Whether it makes predictions of a task, by a head of its own."""

    @property
    @abstractmethod
    def objective(self) -> ObjectiveConfig:
        """What it was trained to predict, as far as that is known."""

    @property
    @abstractmethod
    def vocab_size(self) -> int:
        """The rows of the embedding: the ids of the tokenizer, and maybe padding for the hardware."""

    @property
    @abstractmethod
    def template(self) -> tuple[list[int], list[int]] | None:
        """The ids before and after a document; None: the tokenizer does not say."""

    @property
    @abstractmethod
    def mask(self) -> int | None:
        """The id of the mask token; None: the tokenizer has none."""

    @property
    @abstractmethod
    def decoder_start(self) -> int | None:
        """The id that a decoder sees before the first one of a target; None: no encoder-decoder, or nothing says it."""

    @property
    @abstractmethod
    def rules(self) -> Rules | None:
        """The rules that the texts of an encoder-decoder keep to; None: nothing says any."""

    @property
    def max_positions(self) -> int | None:
        """The tokens of a sequence that the network has positions for; None where it computes positions."""
        return self.network.max_seq_len if self.network.positions is Positions.learned else None

    def check(self) -> None:
        """Raise `CheckpointError` or `ConfigError` for a source that no run could start from; milliseconds."""
        file = self.path / "tokenizer.json"
        if file.is_file():  # with a tokenizer of its own a run needs none here
            try:
                tokenizer_of(self.path)
            except DataError as error:  # what is damaged is no corpus
                raise CheckpointError(str(error)) from None

    @abstractmethod
    def weights(self, world: World, step: int | None = None) -> HuggingFaceWeights | FragmentReader:
        """Return the reader of the weights: of a run, at `step` or the newest that verifies. A collective."""

    @abstractmethod
    def settings(self, weights: Any) -> dict[str, Any]:
        """Return the settings that these `weights` were trained with: `model.*` and the hash of the `tokenizer`."""

    @cached_property
    def tokenizer(self) -> Path:
        """The tokenizer.json. Raises `ConfigError` if there is none."""
        file = self.path / "tokenizer.json"
        if not file.is_file():
            fix = "name a directory with one beside its weights (save_pretrained of transformers' AutoTokenizer)"
            if old := next((name for name in MODEL_FILES if (self.path / name).is_file()), None):
                fix = f"write it from {old} (python -m pretrain.import_bin {self.path})"
            raise ConfigError(f"{self.typed}: no tokenizer.json, which says what the ids stand for; {fix}")
        return file

    def load_tokenizer(self) -> Tokenizer:
        """Load the tokenizer. Raises `ConfigError` if there is none, or one of another vocabulary."""
        return fitting(tokenizer_of(self.tokenizer.parent), self.vocab_size, self.tokenizer)

    def load_target_tokenizer(self) -> Tokenizer | None:
        """Load the tokenizer of targets; None: that of sources cuts them, too. Raises `ConfigError` for other ids."""
        found = target_tokenizer_of(self.path)
        if found is not None and found.get_vocab() != self.load_tokenizer().get_vocab():
            fix = "write both anew from the models of the release"
            raise ConfigError(f"{self.path / FOR_TARGETS}: its tokens have other ids than in tokenizer.json; {fix}")
        return found

    def tokenizer_config(self) -> TokenizerFile:
        """Return the settings that encode text as the model has seen it.

        Raises `ConfigError` without a tokenizer, and for one of sources beside another of targets.
        """
        if (self.path / FOR_TARGETS).is_file():
            rule = f"cuts sources by tokenizer.json and targets by {FOR_TARGETS}, so that no single text suits it"
            raise ConfigError(f"{self.typed}: {rule}; fine-tune it on pairs (python -m finetune task=seq2seq)")
        name_of: Any = load_tokenizer(self.tokenizer).id_to_token
        prefix, suffix = ([name_of(token) for token in ids] for ids in self.template) if self.template else (None, None)
        mask = None if self.mask is None else name_of(self.mask)
        return TokenizerFile(path=str(self.tokenizer.absolute()), prefix=prefix, suffix=suffix, mask=mask)

    @cached_property
    def _default_mask(self) -> int | None:
        ids = load_tokenizer(self.tokenizer).get_vocab(with_added_tokens=True)
        return ids.get(find_mask(ids) or "")


class ReleasedSource(Source):
    """A directory in Hugging Face's layout: an export of ours, or a released checkpoint."""

    @cached_property
    def _weights(self) -> HuggingFaceWeights:
        return HuggingFaceWeights(self.path)

    @cached_property
    def _described(self) -> tuple[Family, Any, int]:
        """The family and network of config.json and the rows of its embedding; the weights need not be there."""
        family, network, parts = read_network(self.path / "config.json")
        return family, network, next(part.shape[0] for part in parts if part.ours == EMBEDDING)

    @property
    def network(self) -> Any:
        return self._described[1]

    @property
    def is_fine_tuned(self) -> bool:
        return self.task is not None

    @property
    def task(self) -> HeadKind | None:
        """What the head of its class makes predictions for; None: it is no class for a task."""
        return self._described[0].task_of(read_json(self.path / "config.json"))

    @property
    def objective(self) -> ObjectiveConfig:
        family, network, _ = self._described
        named = read_json(self.path / "config.json").get("architectures") or []
        return objective_for(network, family.objective if family.pretraining in named else "")

    @property
    def vocab_size(self) -> int:
        return self._described[2]

    @property
    def template(self) -> tuple[list[int], list[int]] | None:
        try:
            own = _around(load_tokenizer(self.tokenizer))
            if own and self.network.kind is ModelKind.encoder_decoder:  # whose templates often have one side alone
                return own
            facts = describe(self.tokenizer, TokenizerConfig())
        except ConfigError:
            return None
        return facts.prefix, facts.suffix

    @property
    def mask(self) -> int | None:
        return self._default_mask

    @property
    def decoder_start(self) -> int | None:
        """That of config.json, else of generation_config.json, as transformers decides it."""
        if self.network.kind is not ModelKind.encoder_decoder:
            return None
        files = (self.path / "config.json", self.path / "generation_config.json")
        found = (read_json(file).get(DECODER_START) for file in files if file.is_file())
        start = next((each for each in found if each is not None), None)
        if start is not None:
            check_value(DECODER_START, start, int, most=self.vocab_size - 1)
        return start

    @property
    def rules(self) -> Rules | None:
        reads = self.network.kind is ModelKind.encoder_decoder
        return read_rules(self.path, self.vocab_size) if reads else None

    def check(self) -> None:
        """Refuse also damaged weights and unknown architectures."""
        _ = self._weights
        super().check()

    def weights(self, world: World, step: int | None = None) -> HuggingFaceWeights:
        return self._weights

    def settings(self, weights: Any) -> dict[str, Any]:
        settings = {f"model.{key}": value for key, value in plain(self.network).items()}
        if (self.path / "tokenizer.json").is_file():
            settings["tokenizer"] = tokenizer_sha256(self.tokenizer)[:16]
        return settings


class RunSource(Source):
    """A run directory of pretraining or of fine-tuning."""

    @cached_property
    def record(self) -> dict[str, Any]:
        """The run's run.json."""
        return read_record(self.path, "vocab_size", "document_frame")

    @property
    def is_fine_tuned(self) -> bool:
        return "names" in self.record  # of the head's outputs

    @cached_property
    def _network(self) -> Any:
        return network_of(self.path)

    @property
    def network(self) -> Any:
        return self._network

    @property
    def objective(self) -> ObjectiveConfig:
        discover(objectives)
        return choice_of(self.path, "objective")

    @property
    def vocab_size(self) -> int:
        return self.record["vocab_size"]

    @property
    def template(self) -> tuple[list[int], list[int]]:
        prefix, suffix = self.record["document_frame"]
        return prefix, suffix

    @property
    def mask(self) -> int | None:
        named = self.record.get("mask")  # not in runs older than the setting `tokenizer.mask`
        return self._default_mask if named is None else named

    @property
    def decoder_start(self) -> int | None:
        return self.record.get("decoder_start")

    @property
    def rules(self) -> Rules | None:
        kept = self.record.get("generation")
        return None if kept is None else rules_of(kept, self.vocab_size, self.path / RECORD_FILE)

    def check(self) -> None:
        """Refuse also a run without a saved step."""
        super().check()
        if not step_names(self.path / CHECKPOINTS):
            raise CheckpointError(f"{self.typed}: no step is saved there; name another, or train it first")

    def weights(self, world: World, step: int | None = None) -> FragmentReader:
        return fragments_of(step_of(self.path, world, step))

    def settings(self, weights: FragmentReader) -> dict[str, Any]:
        return load_state(weights.step).get("resume", {})


def find_source(name: str, *, first: bool, key: str = "init_from") -> Source | None:
    """Return the source of a name, checked; None on the ranks that wait while the `first` one fetches from the hub.

    `key` is the setting that it was typed as, if it was one. No collective, and milliseconds but for the fetching: it
    comes before hours of preparation. Raises `ConfigError` for what is no source and for a network that our models are
    not, `CheckpointError` for damaged files and for a run without a saved step.
    """
    if is_hub_name(name):
        if not first:
            return None
        if meant := _meant(name):  # to ask a hub that cannot be reached takes a minute
            raise ConfigError(f"{_typed(name, key)}: no such directory; {meant}")
        name = fetch(name, _typed(name, key))
    source = open_source(name, key)
    source.check()
    return source


def shared_source(source: Source | None, world: World) -> Source | None:
    """Return the source that rank 0 found, opened on the ranks that waited for it; None if it has none. A collective.

    Raises `ConfigError` on a rank that does not see it.
    """
    [name, *_] = world.gather(source.name if source else None)
    return None if name is None else source or open_source(name)  # rank 0 decides, for all ranks alike


def open_source(name: str, key: str = "init_from") -> Source:
    """Return the source at a path, or at a name on the hub whose files are in its cache. Raises `ConfigError`."""
    typed = _typed(name, key)
    path = cached(name, typed) if is_hub_name(name) else Path(expanded(name, key))
    if not path.exists():
        rule = "name a run, a Hugging Face directory or, as org/name@main, a checkpoint on the hub"
        raise ConfigError(f"{typed}: no such directory; {_meant(name) or rule}")
    if (path / "config.json").is_file():
        return ReleasedSource(name, path, key)
    if not (path / CHECKPOINTS).is_dir() and not (path / RECORD_FILE).is_file():
        rule = "neither config.json (Hugging Face) nor checkpoints (a run) in it"
        raise ConfigError(f"{_typed(str(path), key)}: {rule}; name such a directory (merge an adapter first)")
    return RunSource(name, path, key)


def _meant(name: str) -> str:
    """Return "did you mean RUN?" with the run here whose path is spelt most like a name, or nothing."""
    runs = [str(record.parent) for record in Path().glob(f"*/*/{RECORD_FILE}")]
    found = difflib.get_close_matches(name, runs, n=1, cutoff=MISSPELT)
    return f"did you mean {found[0]}?" if found else ""


def objective_for(network: Any, name: str = "") -> ObjectiveConfig:
    """Return the objective of a name, or else the usual one of such a network, with its own defaults."""
    discover(objectives)
    by_name = {name: kind for kind, (group, name) in choices().items() if group == "objective"}
    corruption = "span_corruption" if network.positions is Positions.relative else "denoising"  # T5's and BART's
    names = {
        ModelKind.causal: "causal_lm",
        ModelKind.bidirectional: "masked_lm",
        ModelKind.encoder_decoder: corruption,
    }
    return by_name[name or names[network.kind]]()  # pyright: ignore[reportReturnType]


def _around(tokenizer: Tokenizer) -> tuple[list[int], list[int]] | None:
    """Return the ids that a tokenizer itself puts before and after a text, None if it does neither."""
    whole, text = (tokenizer.encode("text", add_special_tokens=special).ids for special in (True, False))
    places = [at for at in range(len(whole)) if whole[at : at + len(text)] == text]
    if not text or not places or whole == text:
        return None
    return whole[: places[0]], whole[places[0] + len(text) :]


def fitting(tokenizer: Tokenizer, vocab_size: int, file: Path) -> Tokenizer:
    """Return the tokenizer. Raises `ConfigError` if the model's `vocab_size` has no row for one of its ids."""
    if (size := num_ids(tokenizer)) > vocab_size:
        rule = f"it has ids up to {size - 1}, but the model's embedding {vocab_size} rows"
        raise ConfigError(
            f"{file}: of another vocabulary: {rule}; put the tokenizer that the model was trained with there"
        )
    return tokenizer


def _typed(name: str, key: str) -> str:
    """Return a name as the user typed it: as a setting, or by itself."""
    return f"{key}={name}" if key else name
