"""Instructions about very short stories, to see that a model learns to answer in the format that it is asked for.

    python examples/synthetic_instructions.py data/synthetic

writes `instructions/`, with `train.jsonl`, `validation.jsonl` and `chat.jinja`. A record is about one story, such as
"One day, Tom, Lily and Sue went to the zoo. They saw a cat and a ball." It has a question, the format that is wanted,
and the answer: the same names "joined by commas", "joined by and" or "one on each line", the same place "in one word"
or "in a sentence". So an answer is right in one format alone, which stands in the instruction and nowhere else. Each
record holds this twice: as the columns `story`, `instruction` and `answer`, for `task.template`, and as `messages`, for
a model that reads chats; `chat.jinja` is a template for one that has none.

Nobody wrote these stories, and they have few words: a score on them says nothing of other instructions. Names and
things of a story in the validation set are never together in the training set, so that no list is an answer in both.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

NUM_RECORDS = {"train": 2400, "validation": 200}
VALIDATION_EVERY = 5  # groups of names or of things; one of them is for validation
SIZES = (2, 3)  # of such groups

NAMES = ["Amy", "Anna", "Ben", "Jack", "Lily", "Lucy", "Max", "Mia", "Sam", "Sue", "Tim", "Tom"]
THINGS = ["ball", "bird", "boat", "book", "cake", "car", "cat", "dog", "fish", "hat", "star", "tree"]
PLACES = ["beach", "farm", "garden", "lake", "park", "school", "shop", "zoo"]

LIST_FORMATS = {
    "Answer with commas.": ", ".join,
    "Answer with and.": " and ".join,
    "Write one on each line.": "\n".join,
}
PLACE_FORMATS = {
    "Answer in one word.": "{}".format,
    "Answer in a sentence.": "They went to the {}.".format,
}
CHAT_TEMPLATE = """\
{{ bos_token }}{% for message in messages %}
{% if message.role == "assistant" %}
Answer:
{{ message.content }}{{ eos_token }}
{% else %}
{{ message.content }}
{% endif %}
{% endfor %}
{% if add_generation_prompt %}
Answer:
{% endif %}
"""


class Story(NamedTuple):
    """What happened."""

    names: list[str]
    things: list[str]
    place: str

    @property
    def text(self) -> str:
        """The story in words."""
        seen = _spoken([f"a {thing}" for thing in self.things])
        return f"One day, {_spoken(self.names)} went to the {self.place}. They saw {seen}."


def main() -> None:
    """Write the records into the folder that the command line names."""
    parser = argparse.ArgumentParser(description="Make instructions about very short stories, and their answers.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("data/synthetic"))
    folder = parser.parse_args().folder / "instructions"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "chat.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    for split, number in NUM_RECORDS.items():
        file = folder / f"{split}.jsonl"
        made = records(split, number)
        file.write_text("".join(json.dumps(record) + "\n" for record in made), encoding="utf-8")
        print(f"{file}: {number:,} records")


def records(split: str, number: int) -> list[dict[str, Any]]:
    """Return so many records of "train" or "validation", of all kinds, none of them twice."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    draw = random.Random(split)
    while len(found) < number:
        story = Story(_group(NAMES, split, draw), _group(THINGS, split, draw), draw.choice(PLACES))
        instruction, answer = draw.choice([*questions(story)])
        found[story.text, instruction] = _record(story, instruction, answer)
    return [*found.values()]


def questions(story: Story) -> Iterator[tuple[str, str]]:
    """Yield each instruction about a story with its answer."""
    for question, words in (("Who went there?", story.names), ("What did they see?", story.things)):
        for asked, form in LIST_FORMATS.items():
            yield f"{question} {asked}", form(words)
    for asked, form in PLACE_FORMATS.items():
        yield f"Where did they go? {asked}", form(story.place)


def _group(words: list[str], split: str, draw: random.Random) -> list[str]:
    """Draw words that are together in this split alone."""
    while True:
        group = draw.sample(words, draw.choice(SIZES))
        if _held_out(group) == (split == "validation"):
            return group


def _held_out(group: Iterable[str]) -> bool:
    """Return whether words in any order are for validation."""
    return hashlib.sha256(" ".join(sorted(group)).encode()).digest()[0] % VALIDATION_EVERY == 0


def _spoken(words: list[str]) -> str:
    return ", ".join(words[:-1]) + f" and {words[-1]}"


def _record(story: Story, instruction: str, answer: str) -> dict[str, Any]:
    asked = {"role": "user", "content": f"{story.text} {instruction}"}
    messages = [asked, {"role": "assistant", "content": answer}]
    return {"story": story.text, "instruction": instruction, "answer": answer, "messages": messages}


if __name__ == "__main__":
    main()
