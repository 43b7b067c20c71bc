"""Small changes to texts of rare classes: EDA and AEDA, on strings or lists of tokens."""

import os
import random
import zipfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from imbloss.data.randomness import check_seed
from imbloss.data.rare import rarity, rarity_of
from imbloss.priors import check_number, describe

Text = TypeVar("Text", str, list[str])
Synonyms: TypeAlias = Callable[[str], Sequence[str]]

OPERATIONS = ("replace", "insert", "swap", "delete")
_NEED_SYNONYMS = ("replace", "insert")
PUNCTUATION = (".", ";", "?", ":", "!", ",")
# words that only hold a sentence together, and have no synonyms worth the name.
_HOLDING = """
a about above after again against all also although am an and any are as at be because been before being below between
both but by can could did do does doing down during each either else ever every few for from further had has have having
he her here hers herself him himself his how i if in into is it its itself just may me might more most much must my
myself neither no nor not now of off on once only or other our ours ourselves out over own same shall she should since
so some such than that the their theirs them themselves then there these they this those though through thus to too
under until up upon us very was we were what when where whether which while who whom whose why will with within without
would yet you your yours yourself yourselves
"""
_FUNCTION_WORDS = frozenset(_HOLDING.split())


class WordNet:
    """Synonyms from the database files of WordNet 3, read once: words that share a meaning, any part of speech.

    Args:
        folder: with data.noun, data.verb, data.adj and data.adv in it; a .zip file as nltk downloads it serves, too.
            None looks into $WNSEARCHDIR, $WNHOME/dict, the usual places of a system's package, and nltk's data.

    Raises:
        FileNotFoundError: no such files; says where they come from.
    """

    PARTS = ("data.noun", "data.verb", "data.adj", "data.adv")

    def __init__(self, folder: str | os.PathLike | None = None) -> None:
        self._meanings: dict[str, list[int]] = defaultdict(list)
        self._words: list[tuple[str, ...]] = []
        for lines in self._read(folder):
            for line in lines:
                if line.startswith(" "):  # the licence
                    continue
                fields = line.split(" ")
                count = int(fields[3], 16)
                words = tuple(word.split("(")[0].replace("_", " ") for word in fields[4 : 4 + 2 * count : 2])
                if count > 1:
                    for word in words:
                        self._meanings[word.lower()].append(len(self._words))
                    self._words.append(words)

    @classmethod
    def _read(cls, folder: str | os.PathLike | None) -> Iterable[list[str]]:
        for place in cls.places() if folder is None else [Path(folder)]:
            if place.suffix == ".zip" and place.is_file():
                with zipfile.ZipFile(place) as archive:
                    members = {Path(name).name: name for name in archive.namelist()}
                    if all(part in members for part in cls.PARTS):
                        return [archive.read(members[part]).decode().splitlines() for part in cls.PARTS]
            elif all((place / part).is_file() for part in cls.PARTS):
                return [(place / part).read_text(encoding="utf-8").splitlines() for part in cls.PARTS]
        where = "WordNet on this machine" if folder is None else f"the files {', '.join(cls.PARTS)} in {folder}"
        raise FileNotFoundError(
            f"expected {where}, but found none. Install it (`apt install wordnet-base`, or `pip install nltk` and "
            "`python -m nltk.downloader wordnet`), or do without: pass synonyms (a dict, or a function from a word to "
            'its synonyms), or operations=("swap", "delete"), or method="aeda".'
        )

    @staticmethod
    def places() -> list[Path]:
        environment = os.environ
        places = [Path(environment[name]) for name in ("WNSEARCHDIR",) if environment.get(name)]
        if environment.get("WNHOME"):
            places.append(Path(environment["WNHOME"]) / "dict")
        places += [
            Path(p) for p in ("/usr/share/wordnet", "/usr/local/WordNet-3.0/dict", "/opt/homebrew/share/wordnet")
        ]
        nltk = [Path(p) for p in environment.get("NLTK_DATA", "").split(os.pathsep) if p]
        nltk += [Path.home() / "nltk_data", Path("/usr/share/nltk_data"), Path("/usr/local/share/nltk_data")]
        for folder in nltk:
            places += [folder / "corpora" / "wordnet", folder / "corpora" / "wordnet.zip"]
        return places

    def __call__(self, word: str) -> list[str]:
        """Synonyms of a word, sorted; none for one that it does not know."""
        word = word.lower()
        found = {synonym for meaning in self._meanings.get(word, ()) for synonym in self._words[meaning]}
        return sorted(synonym for synonym in found if synonym.lower() != word)


@cache
def _wordnet() -> WordNet:
    return WordNet()


class TextAugment:
    r"""Changes a few words of a text, the more often the rarer its class.

    ``method="eda"`` does one of four things, drawn afresh for each text, to n = max(1, alpha times its words) words:
    replaces words by synonyms, inserts synonyms of its words anywhere, swaps pairs of words; or deletes each word with
    probability alpha (never all of them). ``method="aeda"`` inserts between 1 and a third as many punctuation marks as
    there are words, and changes no word.

    Args:
        method: "eda" or "aeda".
        alpha: share of a text's words that change, in [0, 1] (EDA).
        operations: which of "replace", "insert", "swap", "delete" (EDA).
        synonyms: a function from a word to its synonyms, or a dict of them; None reads WordNet (see
            :class:`imbloss.data.text.WordNet`) as soon as it is needed.
        counts: training texts per class, shape (C,): a text of class c then changes with probability
            clip(strength (1 - n_c / n_max), 0, 1); None changes every text.
        strength: see ``counts``; >= 0.
        seed: >= 0. Given an ``index``, the result depends on the seed, the epoch and that index only, whatever worker
            does it; without one, on the calls before it, and in a DataLoader worker on the worker's seed.

    Called with a text, its label (needed if there are ``counts``) and the text's index in the data set; returns
    a text of the same kind: a str is split at white space and joined by single spaces, a list of tokens becomes a new
    list. A text without words comes back as it is.

    Raises:
        FileNotFoundError: synonyms are needed, none were given, and WordNet is not installed.
        TypeError, ValueError: an argument of the wrong type or value; the message names it.

    Source: Wei & Zou, EDA: Easy Data Augmentation Techniques for Boosting Performance on Text Classification Tasks,
    EMNLP 2019. Karimi et al., AEDA: An Easier Data Augmentation Technique for Text Classification, EMNLP Findings 2021.

    >>> augment = TextAugment(operations=("swap",), seed=1)
    >>> augment("grain prices fell sharply")
    'prices grain fell sharply'
    >>> TextAugment("aeda", seed=0)(["grain", "prices", "fell"])
    ['grain', '.', 'prices', 'fell']
    """

    def __init__(
        self,
        method: str = "eda",
        *,
        alpha: float = 0.1,
        operations: Sequence[str] = OPERATIONS,
        synonyms: Synonyms | Mapping[str, Sequence[str]] | None = None,
        counts: Tensor | Sequence[float] | None = None,
        strength: float = 1.0,
        seed: int = 0,
    ) -> None:
        if method not in ("eda", "aeda"):
            raise ValueError(f'expected method to be "eda" or "aeda", but got {method!r}')
        check_number(alpha, "alpha", least=0, most=1)
        check_seed(seed)
        if isinstance(operations, str) or not operations or not set(operations) <= set(OPERATIONS):
            raise ValueError(f"expected operations among {OPERATIONS}, at least one, but got {operations!r}")
        if isinstance(synonyms, Mapping):
            table = {word.lower(): list(others) for word, others in synonyms.items()}
            synonyms = lambda word: table.get(word.lower(), [])  # noqa: E731
        elif synonyms is not None and not callable(synonyms):
            raise TypeError(f"expected synonyms to be a function or a dict, but got {describe(synonyms)}")
        self.method = method
        self.alpha = alpha
        self.operations = tuple(operations)
        self.probability = None if counts is None else rarity(counts, strength)
        self.seed = seed
        self.epoch = 0
        self._synonyms = synonyms
        self._random = random.Random(seed)
        self._worker_seed: int | None = None

    def set_epoch(self, epoch: int) -> None:
        """Which changes come next for texts with an index."""
        check_number(epoch, "epoch", least=0, whole=True)
        self.epoch = epoch

    def __call__(self, text: Text, label: int | Tensor | None = None, index: int | None = None) -> Text:
        if isinstance(text, str):
            tokens = text.split()
        elif isinstance(text, list) and all(isinstance(token, str) for token in text):
            tokens = list(text)
        else:
            raise TypeError(f"expected text to be a str or a list of str, but got {describe(text)}")
        draws = self._draws(index)
        if self.probability is not None:
            if label is None:
                raise TypeError("expected label beside counts, but got None")
            if draws.random() >= rarity_of(label, self.probability):
                return text
        if not tokens:
            return text
        tokens = self._aeda(tokens, draws) if self.method == "aeda" else self._eda(tokens, draws)
        if isinstance(text, str):
            return " ".join(tokens)
        return tokens

    def _draws(self, index: int | None) -> random.Random:
        if index is not None:
            return random.Random(f"{self.seed} {self.epoch} {index}")
        worker = get_worker_info()
        if worker is not None and worker.seed != self._worker_seed:
            self._random = random.Random(f"{self.seed} {worker.seed}")
            self._worker_seed = worker.seed
        return self._random

    def _aeda(self, tokens: list[str], draws: random.Random) -> list[str]:
        marks = draws.randint(1, max(1, len(tokens) // 3))
        # in front of a word each, no two in one place
        places = sorted(draws.sample(range(len(tokens)), min(marks, len(tokens))), reverse=True)
        for place in places:
            tokens.insert(place, draws.choice(PUNCTUATION))
        return tokens

    def _eda(self, tokens: list[str], draws: random.Random) -> list[str]:
        operation = draws.choice(self.operations)
        if self.alpha == 0:
            return tokens
        changes = max(1, int(self.alpha * len(tokens)))
        if operation == "swap":
            for _ in range(changes if len(tokens) > 1 else 0):
                i, j = draws.sample(range(len(tokens)), 2)
                tokens[i], tokens[j] = tokens[j], tokens[i]
            return tokens
        if operation == "delete":
            kept = [token for token in tokens if draws.random() >= self.alpha]
            return kept or [draws.choice(tokens)]
        synonyms = self._synonyms or _wordnet()
        words = [i for i, token in enumerate(tokens) if token.lower() not in _FUNCTION_WORDS]
        draws.shuffle(words)
        found = ((i, others) for i in words if (others := synonyms(tokens[i])))  # looked up as far as needed
        chosen = [(i, draws.choice(others)) for (i, others), _ in zip(found, range(changes), strict=False)]
        if operation == "replace":
            for i, synonym in chosen:
                tokens[i] = synonym
            return tokens
        for _, synonym in chosen:
            tokens.insert(draws.randint(0, len(tokens)), synonym)
        return tokens

    def __repr__(self) -> str:
        if self.method == "aeda":
            return "TextAugment('aeda')"
        return f"TextAugment(alpha={self.alpha}, operations={self.operations})"


def oversample_text(
    texts: Sequence[Text],
    labels: Sequence[int] | Tensor | np.ndarray,
    *,
    augment: Callable[[Text], Text] | None = None,
    sampling_strategy: str | Mapping[int, int] = "auto",
    seed: int = 0,
) -> tuple[list[Text], list[int]]:
    """The texts, followed by changed copies of those of rare classes.

    Args:
        texts: of any length, str or lists of str.
        labels: a class each; integers.
        augment: what changes a copy; None is ``TextAugment(seed=seed)``, which wants WordNet. Called with the text
            alone.
        sampling_strategy: "auto" brings every class to the size of the largest; a dict has the wanted number of texts
            of the classes in it, none smaller than it is.
        seed: which texts are copied once more than others, >= 0: a class's texts go round in a random order.

    Returns:
        New lists of texts and labels, the originals first and in order, then the copies, class by class.

    Raises:
        TypeError, ValueError: an argument of the wrong type or value; the message names it.

    >>> texts, labels = ["oil up", "oil down", "oil flat", "wheat down"], [0, 0, 0, 1]
    >>> texts, labels = oversample_text(texts, labels, augment=TextAugment(operations=("swap",)))
    >>> labels, texts[4:]
    ([0, 0, 0, 1, 1, 1], ['down wheat', 'down wheat'])
    """
    labels = [int(label) for label in torch.as_tensor(labels)] if len(labels) else []
    if len(texts) != len(labels):
        raise ValueError(f"expected as many labels as texts, but got {len(labels)} and {len(texts)}")
    check_seed(seed)
    members: dict[int, list[int]] = defaultdict(list)
    for i, label in enumerate(labels):
        members[label].append(i)
    largest = max((len(m) for m in members.values()), default=0)
    if isinstance(sampling_strategy, Mapping):
        wanted = dict(sampling_strategy)
        for label, number in wanted.items():
            check_number(number, f"sampling_strategy[{label!r}]", least=0, whole=True)
            if number < len(members.get(label, ())) or (number and label not in members):
                raise ValueError(
                    f"expected sampling_strategy[{label!r}] to be at least the {len(members.get(label, ()))} texts "
                    f"of that class, of which there must be one, but got {number}"
                )
    elif sampling_strategy == "auto":
        wanted = dict.fromkeys(members, largest)
    else:
        raise ValueError(f'expected sampling_strategy to be "auto" or a dict, but got {sampling_strategy!r}')
    augment = TextAugment(seed=seed) if augment is None else augment
    draws = random.Random(seed)
    all_texts, all_labels = list(texts), list(labels)
    for label in sorted(wanted):
        copies = wanted[label] - len(members.get(label, ()))
        order: list[int] = []
        for _ in range(copies):
            if not order:
                order = draws.sample(members[label], len(members[label]))
            all_texts.append(augment(texts[order.pop()]))
            all_labels.append(label)
    return all_texts, all_labels
