"""What a reply in words is worth, by the metrics of RULER and LongBench."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NUMBER = re.compile(r"\d+")
_NO_CODE = ("`", "#", "//")


@dataclass(frozen=True, slots=True)
class Answers:
    """What is right.

    Attributes
    ----------
    texts: right answers, at least one.
    metric: of :data:`METRICS`, by which a reply is judged.
    classes: all that there are, where the metric chooses one.
    one_line: only the reply's first line that is not empty counts.
    """

    texts: tuple[str, ...]
    metric: str = "found"
    classes: tuple[str, ...] = ()
    one_line: bool = False

    def worth(self, reply: str) -> float:
        """Of ``reply``, 0 to 1: by the answer that it fits best, or, for ``every``, the share of answers in it."""
        if self.metric == "every":
            return sum(_contains(reply, text) for text in self.texts) / len(self.texts)
        judge = METRICS[self.metric].judge
        return max(judge(reply, text, self.classes) for text in self.texts)

    def f1(self, reply: str) -> float:
        """The best F1 of the words of ``reply`` and of one answer."""
        return max(word_f1(reply, text) for text in self.texts)


def word_f1(reply: str, answer: str) -> float:
    """F1 of the words that ``reply`` and ``answer`` share, as often as both have them; case, punctuation and articles
    do not count (SQuAD)."""
    said, right = _normal(reply).split(), _normal(answer).split()
    shared = sum((Counter(said) & Counter(right)).values())
    return 2 * shared / (len(said) + len(right)) if shared else 0.0


def rouge_l(reply: str, answer: str) -> float:
    """ROUGE-L of a summary (Lin 2004, section 3.2) with F1, every word counted once: sentences end with full stops,
    words with spaces; shared are the words of a longest common subsequence of any two sentences."""
    said, right = _sentences(reply), _sentences(answer)
    shared = {word for one in said for other in right for word in _common(other, one)}
    total = sum(len({word for sentence in text for word in sentence}) for text in (said, right))
    return 2 * len(shared) / total if shared else 0.0


def _sentences(text: str) -> list[list[str]]:
    return [words for sentence in text.split(".") if (words := sentence.split())]


def _common(one: Sequence[str], other: Sequence[str]) -> list[str]:
    """A longest common subsequence."""
    rows = [[0] * (len(other) + 1)]
    for word in one:
        above, row = rows[-1], [0]
        for j, beside in enumerate(other):
            row.append(above[j] + 1 if word == beside else max(above[j + 1], row[j]))
        rows.append(row)
    found, i, j = list[str](), len(one), len(other)
    while i and j:
        if one[i - 1] == other[j - 1]:
            i, j = i - 1, j - 1
            found.append(one[i])
        elif rows[i - 1][j] > rows[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found[::-1]


def right_class(reply: str, answer: str, classes: Sequence[str]) -> float:
    """1 over the number of classes that ``reply`` names, if the right one is among them; a class whose name is a part
    of the right one's does not count."""
    named = {name for name in classes if name in reply and (name == answer or name not in answer)}
    return 1 / len(named) if answer in named else 0.0


def right_numbers(reply: str, answer: str) -> float:
    """Share of the numbers in ``reply`` that are the first one in ``answer``."""
    wanted, said = _NUMBER.search(answer), _NUMBER.findall(reply)
    return said.count(wanted.group()) / len(said) if wanted and said else 0.0


def code_similarity(reply: str, answer: str) -> float:
    """Similarity of ``answer`` and the first line of ``reply`` without comments or fences, in whole per cents."""
    lines = (line for line in reply.lstrip("\n").split("\n") if not any(mark in line for mark in _NO_CODE))
    ratio = SequenceMatcher(None, next(lines, ""), answer).ratio()
    return round(100 * ratio) / 100


def _contains(reply: str, text: str) -> bool:
    """Case, punctuation and articles do not count."""
    wanted = _normal(text)
    return f" {wanted} " in f" {_normal(reply)} " if wanted else text in reply


def _normal(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


@dataclass(frozen=True, slots=True)
class Metric:
    """``title``: for people; ``judge``: (reply, answer, classes) -> 0 to 1."""

    title: str
    judge: Callable[[str, str, Sequence[str]], float]


METRICS: Mapping[str, Metric] = {
    "found": Metric("answer found", lambda reply, answer, _: float(_contains(reply, answer))),
    "every": Metric("answers found", lambda reply, answer, _: float(_contains(reply, answer))),
    "f1": Metric("F1", lambda reply, answer, _: word_f1(reply, answer)),
    "rouge_l": Metric("ROUGE-L", lambda reply, answer, _: rouge_l(reply, answer)),
    "class": Metric("class", right_class),
    "number": Metric("number", lambda reply, answer, _: right_numbers(reply, answer)),
    "code": Metric("similarity", lambda reply, answer, _: code_similarity(reply, answer)),
}
