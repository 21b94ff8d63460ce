"""What a trained model is to who uses one, or starts a run from it, wherever it comes from.

Holds the base class; the kinds of sources, and how one is found, are in `source` and `adapted`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from pretrain.checkpoint.fragments import FragmentReader
from pretrain.checkpoint.low_rank import Summed
from pretrain.distributed.world import World
from pretrain.errors import CheckpointError, ConfigError, DataError
from pretrain.hub.family import Family, family_for
from pretrain.hub.spm_files import MODEL_FILES
from pretrain.hub.weights import HuggingFaceWeights
from pretrain.models.generation.rules import Rules
from pretrain.models.layers import Positions
from pretrain.objectives.base import ObjectiveConfig
from pretrain.tokenizer.base import FOR_TARGETS, find_mask, load_tokenizer, num_ids
from pretrain.tokenizer.file import TokenizerFile
from pretrain.trained.run_files import target_tokenizer_of, tokenizer_of

EMBEDDING = "model.embedding.weight"  # one row per token
PAIRS = "sentence_classifier.weight"  # of what tells pairs of sentences apart, in an objective or a file of BERT
Weights = HuggingFaceWeights | FragmentReader | Summed
"""The weights of a source: a reader that knows their shapes."""


class Source(ABC):
    """A trained model that can be used, or that a run can start from. It is read on demand, and nothing twice."""

    def __init__(self, name: str, path: Path, key: str = "init_from") -> None:
        self.name = name  # what a run records: a path, or `org/name@commit`
        self.path = path  # directory of the run, or of the Hugging Face checkpoint
        self.typed = typed_as(name, key)  # how refusals call it

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
        """The rules that the texts of a model that writes keep to; None: nothing says any."""

    @property
    def family(self) -> Family:
        """The family whose names its tensors have in Hugging Face's layout. Raises `ConfigError` if it is of none."""
        return family_for(self.network)

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
    def weights(self, world: World, step: int | None = None) -> Weights:
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


def fitting(tokenizer: Tokenizer, vocab_size: int, file: Path) -> Tokenizer:
    """Return the tokenizer. Raises `ConfigError` if the model's `vocab_size` has no row for one of its ids."""
    if (size := num_ids(tokenizer)) > vocab_size:
        rule = f"it has ids up to {size - 1}, but the model's embedding {vocab_size} rows"
        raise ConfigError(
            f"{file}: of another vocabulary: {rule}; put the tokenizer that the model was trained with there"
        )
    return tokenizer


def typed_as(name: str, key: str) -> str:
    """Return a name as the user typed it: as a setting, or by itself."""
    return f"{key}={name}" if key else name
