"""Conversations as pairs: messages become text by the chat template of a tokenizer, and an answer is a target.

Holds which messages are good ones, and where templates are found; they run in `sandbox`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from finetune.answering.frame import Frame
from finetune.data.records import DataSet, name_of, read_records
from finetune.tasks.seq2seq.pairs import Pair
from pretrain.data.sources.bad_records import BadRecordError, BadRecords
from pretrain.errors import ConfigError
from pretrain.hub.weight_files import read_json
from pretrain.settings.paths import expanded

MESSAGES = "messages"  # role of the column
ANSWERER = "assistant"  # role of the messages that a model writes
TEMPLATE_FILE, SETTINGS_FILE = "chat_template.jinja", "tokenizer_config.json"  # beside a released checkpoint
_ANSWER = "answer"
_PROBE = [{"role": "user", "content": "question"}, {"role": ANSWERER, "content": _ANSWER}]
_FIX = "name a file with one: task.chat_template=FILE"

Message = dict[str, Any]  # its role, its content, and what else a template may read


class Conversation(NamedTuple):
    """Messages in their order."""

    messages: list[Message]
    place: str  # file and line


class ChatTemplate(NamedTuple):
    """How a conversation is written as text, in jinja2's language."""

    text: str
    tokens: dict[str, str]  # special tokens that it may name, by their roles, such as bos_token
    name: str  # where it is from, for messages

    def render(self, messages: Sequence[Message], *, asks: bool = False) -> str:
        """Return messages as text, with the beginning of an answer if it `asks` for one.

        The text is that of `apply_chat_template` in transformers. Raises `BadRecordError` for messages that the
        template refuses, `ConfigError` for a template that cannot be read.
        """
        from jinja2 import TemplateError

        from finetune.tasks.seq2seq.sandbox import compiled

        try:
            template = compiled(self.text)
        except (TemplateError, SyntaxError, RecursionError, MemoryError) as error:  # Python's, if it nests too deeply
            raise ConfigError(f"{self.name}: no template of jinja2 ({error}); correct it, or {_FIX}") from None
        refusals = (TypeError, ValueError, ArithmeticError, LookupError, RecursionError, MemoryError)
        try:
            text = template.render(messages=messages, add_generation_prompt=asks, **self.tokens)
            text.encode()  # a ValueError for half a character, a surrogate of UTF-16
            return text
        except (TemplateError, *refusals) as error:
            raise BadRecordError("the chat template refuses messages", f"{error}" or type(error).__name__) from None

    def end(self, tokenizer: Tokenizer) -> str | None:
        """Return the first token of the tokenizer's own that it writes after an answer, or None if there is none.

        Raises `ConfigError` for a template that refuses a question with its answer.
        """
        try:
            _, rest = _divided(self, _PROBE)
        except BadRecordError as error:
            why = f"{error.reason}: {error}"
            raise ConfigError(f"{self.name}: it cannot write a question and its answer ({why}); {_FIX}") from None
        _, answer, after = rest.partition(_ANSWER)
        if not answer:
            rule = "of a question and its answer it does not write the answer as it is, which is what a model learns"
            raise ConfigError(f"{self.name}: {rule}; {_FIX}")
        names = [token.content for token in tokenizer.get_added_tokens_decoder().values() if token.content in after]
        return min(names, key=after.index, default=None)


def find_chat_template(folder: Path, file: str | None, tokenizer: Tokenizer, frame: Frame) -> ChatTemplate:
    """Return the template of a `file` that the user named or, without one, of a released checkpoint's `folder`.

    There it is in `chat_template.jinja`, or in `tokenizer_config.json`, which also names the special tokens; those that
    it does not name are the ones of the frame. Raises `ConfigError` if there is no template.
    """
    settings = read_json(folder / SETTINGS_FILE) if (folder / SETTINGS_FILE).is_file() else {}
    around = {"bos_token": frame.prefix[:1], "eos_token": frame.end[:1]}
    tokens = {role: token for role, ids in around.items() for one in ids if (token := tokenizer.id_to_token(one))}
    for role, token in settings.items():
        content = token.get("content") if isinstance(token, dict) else token
        if role.endswith("_token") and isinstance(content, str):
            tokens[role] = content
    path = folder / TEMPLATE_FILE if file is None else Path(expanded(file, "task.chat_template"))
    if file is not None or path.is_file():
        try:
            return ChatTemplate(path.read_text(encoding="utf-8"), tokens, str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"task.chat_template={path}: cannot be read ({error}); correct it") from None
    found = settings.get("chat_template")
    if isinstance(found, list):  # several, by name
        found = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}.get("default")
    if not isinstance(found, str):
        rule = f"no chat template, neither {TEMPLATE_FILE} nor one in {SETTINGS_FILE}, which says how messages are read"
        raise ConfigError(f"{folder}: {rule}; {_FIX}")
    return ChatTemplate(found, tokens, str(folder / SETTINGS_FILE))


def chat_frame(template: ChatTemplate, tokenizer: Tokenizer, frame: Frame) -> Frame:
    """Return the frame of texts that a template wrote, in which special tokens stand as text.

    Of a decoder they begin with what the template writes, and end with its own token after an answer, if it has one.
    """
    if frame.start is not None:
        return frame._replace(markup=True)
    end = template.end(tokenizer)
    ids = {token.content: number for number, token in tokenizer.get_added_tokens_decoder().items()}
    return Frame(prefix=[], suffix=frame.end if end is None else [ids[end]], start=None, markup=True)


def read_conversations(source: DataSet, column: str, *, max_faults: float) -> list[Conversation]:
    """Read the conversations in a column of a data set: lists of messages, each with a `role` and a `content`.

    Bad ones are counted and left out. Raises `DataError` if their share is above `max_faults`.
    """
    bad = BadRecords(name_of(source), allowed=max_faults)
    conversations = []
    for record in read_records(source, {MESSAGES: column}, bad):
        with bad.counted(record.place):
            conversations.append(Conversation(_messages(record.values[MESSAGES]), record.place))
    bad.settle(len(conversations))
    return conversations


def chat_pairs(
    conversations: Sequence[Conversation],
    template: ChatTemplate,
    tokenizer: Tokenizer,
    *,
    labelled: bool,
    every_answer: bool,
    max_faults: float,
) -> list[Pair]:
    """Return the last answer of each conversation, or `every_answer`, as the target of what comes before it.

    If they are not `labelled`, all is the source but an answer at the end, which is the target. A special token in a
    message is refused, as one that ends a message there would let its author write the others. Bad conversations are
    counted and left out. Raises `DataError` if their share is above `max_faults`.
    """
    added = tokenizer.get_added_tokens_decoder().values()
    end = template.end(tokenizer)
    forbidden = {token.content for token in added if token.special} | ({end} if end else set())
    bad = BadRecords("conversations", allowed=max_faults)
    pairs: list[Pair] = []
    num_good = 0
    for messages, place in conversations:
        with bad.counted(place):
            _check_no_markup(messages, forbidden)
            if labelled:
                pairs += list(_answers(messages, place, template, end, every=every_answer))
            else:
                asked, answer = _asked(messages)
                pairs.append(Pair(template.render(asked, asks=True), answer, place))
            num_good += 1
    bad.settle(num_good)
    return pairs


def _messages(value: Any) -> list[Message]:
    """Return messages as plain values, without those that are null. Raises `BadRecordError` for anything else."""
    if not isinstance(value, list) or not value:
        raise BadRecordError("no list of messages", f"{value!a:.80}")
    messages = []
    for number, message in enumerate(value):
        if not isinstance(message, dict):
            raise BadRecordError("no message", f"number {number} is {message!a:.80}")
        try:
            whole = json.loads(json.dumps(message))
        except (TypeError, ValueError, RecursionError) as error:  # bytes, dates and the like of tables and of memory
            raise BadRecordError("a message that is no JSON", f"number {number}: {error}") from None
        plain = {str(key): entry for key, entry in whole.items() if entry is not None}
        if not (isinstance(plain.get("role"), str) and isinstance(plain.get("content"), str)):
            raise BadRecordError("a message without role and content", f"number {number} has {sorted(plain)}")
        messages.append(plain)
    return messages


def _check_no_markup(messages: list[Message], forbidden: set[str]) -> None:
    for number, message in enumerate(messages):
        texts = [*_strings(message)]  # its role, too, and all else that a template may write
        if found := next((token for token in forbidden if any(token in text for text in texts)), None):
            raise BadRecordError("a special token in a message", f"{found} in number {number}")


def _strings(value: Any) -> Iterator[str]:
    """Yield all strings in a value of JSON, keys of objects among them."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in (*value, *value.values()) if isinstance(value, dict) else value:
            yield from _strings(one)


def _asked(messages: list[Message]) -> tuple[list[Message], str | None]:
    """Return the messages without an answer at their end, and that answer; None: there is none."""
    *before, last = messages
    return (before, last["content"]) if last["role"] == ANSWERER else (messages, None)


def _answers(
    messages: list[Message], place: str, template: ChatTemplate, end: str | None, *, every: bool
) -> Iterator[Pair]:
    """Yield the last answer, or every one, with what is before it. Raises `BadRecordError` if there is none."""
    places = [number for number, message in enumerate(messages) if message["role"] == ANSWERER]
    if not places:
        raise BadRecordError("no answer", f"no message of {ANSWERER}, there are {[one['role'] for one in messages]}")
    for number in places if every else places[-1:]:
        prompt, rest = _divided(template, messages[: number + 1])
        target = rest.partition(end)[0] if end else rest
        if not target.strip():
            raise BadRecordError("empty answer", f"message {number}")
        yield Pair(prompt, target, place)


def _divided(template: ChatTemplate, messages: Sequence[Message]) -> tuple[str, str]:
    """Return a conversation as text up to its last message, which is an answer, and from there on."""
    if len(messages) == 1:
        raise BadRecordError("an answer without a question", f"{messages[0]['content']!r:.40}")
    prompt, whole = template.render(messages[:-1], asks=True), template.render(messages)
    if not whole.startswith(prompt):
        raise BadRecordError("the chat template writes another question once it is answered", f"{prompt[-40:]!r}")
    return prompt, whole[len(prompt) :]
