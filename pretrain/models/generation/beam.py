"""Beam search: of each prompt the likeliest text that a search with a bounded number of texts under way finds.

Holds the choice of texts; a step of the model is in `steps`. Scores and stopping are those of transformers' `generate`,
so that settings found with it mean the same here. B beams are texts under way that follow one prompt.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from pretrain.errors import check
from pretrain.models.generation.rules import IMPOSSIBLE, NO_RULES, Rules
from pretrain.models.generation.steps import Generator, going_on, room, steps_of

MAX_PENALTY = 50.0  # a million tokens to this power is a float yet

_Candidate = tuple[float, int, int]  # log-probability of a text, the beam that it follows, its newest token


@dataclass(frozen=True, kw_only=True)
class BeamSearch:
    """How texts are searched for. Raises `ValueError` for a setting out of range."""

    beams: int = 4  # texts under way for each prompt, B
    length_penalty: float = 1.0  # a finished text scores its log-probability over its tokens to this power
    # When B texts are finished: True stops; False goes on while the likeliest one under way would be among them if it
    # ended now; "never" while it would at any length.
    early_stopping: bool | Literal["never"] = False
    no_repeat_ngram: int = 0  # tokens; no text has so many tokens in a row twice, its prompt counted; 0: any may repeat
    min_tokens: int = 0  # before so many no text ends

    def __post_init__(self) -> None:
        check(self.beams >= 1, "beams", self.beams, "must be at least 1")
        stops = (True, False, "never")
        check(self.early_stopping in stops, "early_stopping", self.early_stopping, "must be True, False or 'never'")
        for name in ("no_repeat_ngram", "min_tokens"):
            check(getattr(self, name) >= 0, name, getattr(self, name), "must not be negative; 0 is off")
        check_penalty(self.length_penalty, "length_penalty")

    def score(self, log_probability: float, tokens: int) -> float:
        """Return what a text of so many tokens after its prompt scores."""
        return log_probability / tokens**self.length_penalty


def check_penalty(exponent: float, key: str) -> None:
    """Raise `ConfigError` for an exponent of lengths by which scores would not be finite numbers."""
    check(abs(exponent) <= MAX_PENALTY, key, exponent, f"must lie between {-MAX_PENALTY:g} and {MAX_PENALTY:g}")


@dataclass
class _Texts:
    """The texts that follow one prompt."""

    prompt: list[int]
    room: int  # tokens that may follow the prompt
    running: list[list[int]] = field(default_factory=lambda: [[]])  # the beams' tokens so far, the likeliest first
    finished: list[tuple[float, list[int]]] = field(
        default_factory=list
    )  # with their scores, the best first; B at most
    done: bool = False

    @property
    def best(self) -> list[int]:
        """The finished text with the best score; the likeliest unfinished one where nothing can follow any."""
        return self.finished[0][1] if self.finished else self.running[0]

    def advance(self, candidates: list[_Candidate], search: BeamSearch, stop_ids: Collection[int]) -> list[_Candidate]:
        """Take candidates of (log-probability, beam, token), the likeliest first; return those that go on, B at most.

        Those that end are finished texts if they are among the B likeliest: the others are there so that B go on.
        """
        going: list[_Candidate] = []
        for rank, (log_probability, beam, token) in enumerate(candidates):
            ids = [*self.running[beam], token]
            if token in stop_ids or len(ids) == self.room:
                if rank < search.beams:
                    self.finished.append((search.score(log_probability, len(ids)), ids))
            elif len(going) < search.beams:
                going.append((log_probability, beam, token))
        self.finished = sorted(self.finished, key=lambda text: -text[0])[: search.beams]
        self.done = not going or self._settled(going[0][0], search)
        if not self.done:
            going += [(IMPOSSIBLE, *going[0][1:])] * (search.beams - len(going))  # chosen only when nothing else can be
            self.running = [[*self.running[beam], token] for _, beam, token in going]
        return going

    def _settled(self, likeliest: float, search: BeamSearch) -> bool:
        """Return whether the search ends, its likeliest text under way having this log-probability."""
        if len(self.finished) < search.beams:
            return False
        if search.early_stopping is True:
            return True
        longest = search.early_stopping == "never" and search.length_penalty > 0
        tokens = self.room if longest else len(self.running[0]) + 1
        return search.score(likeliest, tokens) <= self.finished[-1][0]


@torch.no_grad()
def beam_search(
    model: Generator,
    prompts: Sequence[Tensor],
    search: BeamSearch,
    *,
    max_tokens: int,
    stop_ids: Collection[int],
    sources: Sequence[Tensor] | None = None,
    rules: Rules = NO_RULES,
) -> list[list[int]]:
    """Return the ids that continue each prompt best, the stop id included; prompts and errors are those of `generate`.

    A text is what it would be if its prompt were alone, up to the order of floating-point sums.
    """
    rooms = room(model, prompts, sources, max_tokens)
    found = [_Texts(prompt.tolist(), space) for prompt, space in zip(prompts, rooms, strict=True)]
    steps = steps_of(model, prompts, sources)
    logits = steps.begin()
    under_way, scores = found, torch.zeros(len(found), 1, device=logits.device)  # (S, B) log-probabilities of beams
    while True:
        log_probabilities = logits.log_softmax(dim=-1)
        _restrict(log_probabilities, under_way, search, stop_ids, rules)
        chosen = _advance(under_way, log_probabilities, scores, search, stop_ids)
        if all(texts.done for texts in under_way):
            return [texts.best for texts in found]
        kept = going_on(len(under_way), [row for row, texts in enumerate(under_way) if texts.done])
        before = scores.shape[1]
        rows = [row * before + beam for row in kept for _, beam, _ in chosen[row]]
        steps.select(rows, search.beams)
        under_way = [under_way[row] for row in kept]
        scores = torch.tensor([[text[0] for text in chosen[row]] for row in kept], device=logits.device)
        tokens = [token for row in kept for _, _, token in chosen[row]]
        logits = steps.step(torch.tensor(tokens, device=logits.device))


def _advance(
    under_way: list[_Texts], log_probabilities: Tensor, scores: Tensor, search: BeamSearch, stop_ids: Collection[int]
) -> list[list[_Candidate]]:
    """Let each prompt's texts go on by one token; return (log-probability, beam, token) of the B that do, for each.

    So many candidates are looked at that B of them go on even if all beams end. Equal ones stand by beam and token.
    """
    vocabulary = log_probabilities.shape[-1]
    totals = (log_probabilities.unflatten(0, scores.shape) + scores.unsqueeze(-1)).flatten(1)  # (S, B V)
    count = max(2, 1 + len(stop_ids)) * search.beams
    rule = f"needs {count} candidates, more than the vocabulary of {vocabulary} has; take fewer"
    check(count <= vocabulary, "beams", search.beams, rule)
    values, places = (found.tolist() for found in totals.topk(count))
    chosen = []
    for texts, *row in zip(under_way, values, places, strict=True):
        ordered = sorted(zip(*row, strict=True), key=lambda candidate: (-candidate[0], candidate[1]))
        candidates = [(value, *divmod(place, vocabulary)) for value, place in ordered if value > IMPOSSIBLE]
        chosen.append(texts.advance(candidates, search, stop_ids))
    return chosen


def _restrict(
    log_probabilities: Tensor, under_way: list[_Texts], search: BeamSearch, stop_ids: Collection[int], rules: Rules
) -> None:
    """Make impossible, in place, what a search may not choose, in (S B, V) log-probabilities of the next token."""
    length = len(under_way[0].running[0])  # of all: they began together
    if length < search.min_tokens:
        log_probabilities[:, list(stop_ids)] = IMPOSSIBLE
    beams = [(texts, ids) for texts in under_way for ids in texts.running]
    if search.no_repeat_ngram:
        for row, (texts, ids) in enumerate(beams):
            log_probabilities[row, _repeating(texts.prompt + ids, search.no_repeat_ngram)] = IMPOSSIBLE
    full = [row for row, (texts, _) in enumerate(beams) if length + 1 == texts.room]
    rules.restrict(log_probabilities, place=length, full=full)


def _repeating(ids: list[int], size: int) -> list[int]:
    """Return the tokens that would make the last `size` tokens of a text some that it has already."""
    begin = len(ids) - size + 1
    return [ids[place + size - 1] for place in range(begin) if ids[place : place + size - 1] == ids[begin:]]
