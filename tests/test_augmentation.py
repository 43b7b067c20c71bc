"""Augmentation of rare classes: images, batches of them, and texts."""

import copy
import math
import pickle
import random
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import imbloss
from imbloss import (
    CMO,
    AugmentedDataset,
    CutMix,
    MixUp,
    RareClassTransform,
    ReMix,
    TextAugment,
    oversample_text,
)
from imbloss.data.text import PUNCTUATION, WordNet

COUNTS = torch.tensor([1000, 100, 10])
MIXES = {
    "MixUp": lambda **options: MixUp(3, **options),
    "CutMix": lambda **options: CutMix(3, **options),
    "ReMix": lambda **options: ReMix(COUNTS, **options),
    "CMO": lambda **options: CMO(COUNTS, **options),
}


def images(n, classes=3, seed=0, size=8):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, size, size, generator=generator), torch.randint(classes, (n,), generator=generator)


# ---- RareClassTransform ------------------------------------------------------------------------------------------
@given(
    counts=st.lists(st.integers(0, 10**6), min_size=1, max_size=20).filter(any),
    strength=st.floats(0, 10, allow_nan=False),
)
def test_probability_is_the_formula(counts, strength):
    augment = RareClassTransform(lambda x: x, counts, strength)
    for n, p in zip(counts, augment.probability.tolist(), strict=True):
        assert p == pytest.approx(min(max(strength * (1 - n / max(counts)), 0), 1))


def test_each_class_is_transformed_as_often_as_stated():
    augment = RareClassTransform(lambda x: x + 1, torch.tensor([100, 60, 0]), strength=1.0)
    torch.manual_seed(0)
    share = [sum(augment(0, label)[0] for _ in range(2000)) / 2000 for label in range(3)]
    assert share[0] == 0 and share[2] == 1
    assert share[1] == pytest.approx(0.4, abs=0.05)  # 4.5 standard errors


def test_of_several_labels_the_rarest_counts():
    augment = RareClassTransform(lambda x: x + 1, [10, 10, 0])
    assert augment(0, torch.tensor([1, 0, 1]))[0] == 1
    assert augment(0, torch.tensor([1.0, 1.0, 0.0]))[0] == 0
    assert augment(0, np.array([0, 0, 0]))[0] == 0


@pytest.mark.parametrize(
    "label, message",
    [
        (3, r"expected label in \[0, 3\), but got 3"),
        (-1, r"expected label in \[0, 3\)"),
        (torch.tensor(1.0), r"expected label in \[0, 3\)"),
        (torch.tensor([1, 2, 0]), "a class index or 3 numbers 0 and 1"),
        (torch.tensor([1, 0]), "a class index or 3 numbers 0 and 1"),
        ("cat", "expected label to be a class index"),
        (None, "expected label to be a class index"),
    ],
)
def test_bad_labels(label, message):
    with pytest.raises((TypeError, ValueError), match=message):
        RareClassTransform(lambda x: x, COUNTS)(0, label)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ((None, COUNTS), "expected transform to be callable"),
        ((abs, torch.tensor([0, 0])), "at least one class"),
        ((abs, []), "at least one class"),
        ((abs, [1, -1]), "expected counts >= 0"),
        ((abs, [1, math.nan]), "expected counts >= 0"),
        ((abs, [[1, 2]]), "expected counts of shape"),
        ((abs, COUNTS, -1), "expected strength"),
        ((abs, COUNTS, math.inf), "expected strength"),
    ],
)
def test_bad_arguments_of_the_transform(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        RareClassTransform(*arguments)


def _noise(x):
    return x + torch.rand(()) + np.random.rand() + random.random()  # noqa: NPY002, what a transform may use


def _rare_noise(**options):
    x, y = images(20)
    data = list(zip(x, y.tolist(), strict=True))
    return AugmentedDataset(data, RareClassTransform(_noise, [2, 1, 0], strength=2.0), **options)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_a_sample_does_not_depend_on_the_number_of_workers(context):
    data = _rare_noise(seed=3)
    alone = torch.cat([x for x, _ in DataLoader(data, batch_size=4)])
    workers = DataLoader(data, batch_size=4, num_workers=2, multiprocessing_context=context, persistent_workers=True)
    assert torch.equal(alone, torch.cat([x for x, _ in workers]))
    data.set_epoch(1)  # workers are running
    other = torch.cat([x for x, _ in workers])
    assert not torch.equal(alone, other)
    assert torch.equal(other, torch.cat([x for x, _ in DataLoader(data, batch_size=7)]))


def test_a_seeded_dataset_leaves_the_global_generators_alone():
    data = _rare_noise()
    torch.manual_seed(1), random.seed(1), np.random.seed(1)  # noqa: NPY002
    expected = torch.rand(()), random.random(), np.random.rand()  # noqa: NPY002
    torch.manual_seed(1), random.seed(1), np.random.seed(1)  # noqa: NPY002
    for i in range(len(data)):
        data[i]
    assert (torch.rand(()), random.random(), np.random.rand()) == expected  # noqa: NPY002


def test_indices_of_the_dataset():
    data = _rare_noise()
    assert torch.equal(data[-1][0], data[19][0])
    with pytest.raises(IndexError, match="expected index in"):
        data[20]
    assert len(list(data)) == 20
    with pytest.raises(TypeError, match="expected dataset to have __getitem__"):
        AugmentedDataset(iter([]), lambda x, y: (x, y))
    with pytest.raises(ValueError, match="expected seed"):
        AugmentedDataset([], lambda x, y: (x, y), seed=-1)


def test_transforms_of_kornia():
    augmentation = pytest.importorskip("kornia.augmentation")
    flip = augmentation.RandomHorizontalFlip(p=1.0, keepdim=True)
    x, y = images(6)
    augment = RareClassTransform(flip, [1, 1, 0])
    for image, label in zip(x, y.tolist(), strict=True):
        new, _ = augment(image, label)
        assert torch.equal(new, image.flip(-1) if label == 2 else image)
    crop = augmentation.RandomResizedCrop((8, 8), keepdim=True)
    data = AugmentedDataset(list(zip(x, y.tolist(), strict=True)), RareClassTransform(crop, [5, 1, 1], strength=2.0))
    workers = DataLoader(data, batch_size=3, num_workers=2)
    assert torch.equal(torch.cat([x for x, _ in workers]), torch.cat([x for x, _ in DataLoader(data)]))


# ---- batches -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("mix", MIXES)
@given(n=st.integers(0, 9), seed=st.integers(0, 2**32), alpha=st.floats(0.05, 5), size=st.integers(1, 12))
def test_targets_are_distributions(mix, n, seed, alpha, size):
    x, y = images(n, seed=seed, size=size)
    kept = x.clone()
    mixed = MIXES[mix](seed=seed, alpha=alpha)(x, y)
    assert mixed.x.shape == x.shape and mixed.x.dtype == x.dtype and mixed.target.shape == (n, 3)
    torch.testing.assert_close(mixed.target.sum(1), torch.ones(n))
    assert (mixed.target >= 0).all()
    assert torch.equal(x, kept)


@pytest.mark.parametrize("mix", ["MixUp", "CutMix", "CMO"])
def test_loss_of_a_mixture_is_the_mixture_of_losses(mix):
    x, y = images(64)
    target = MIXES[mix](seed=1)(x, y).target
    logits = torch.randn(64, 3, dtype=torch.float64)
    each = torch.stack([
        imbloss.cross_entropy(logits, torch.full_like(y, c), reduction="none") for c in range(3)
    ], 1)  # fmt: skip
    mixed = imbloss.cross_entropy(logits, target.double(), reduction="none")
    torch.testing.assert_close(mixed, (each * target).sum(1))


def test_mixup_is_the_formula():
    x, y = images(16)
    mixed = MixUp(3, seed=7)(x, y)
    # the share, and each row's partner, from what came out
    numbers = np.random.default_rng([7])
    share = numbers.beta(1.0, 1.0)
    partner = torch.randperm(16, generator=torch.Generator().manual_seed(int(numbers.integers(2**62))))
    torch.testing.assert_close(mixed.x, share * x + (1 - share) * x[partner])
    one_hot = torch.nn.functional.one_hot(y, 3).float()
    torch.testing.assert_close(mixed.target, share * one_hot + (1 - share) * one_hot[partner])


@given(seed=st.integers(0, 1000), n=st.integers(0, 20))
def test_remix_with_infinite_kappa_is_mixup(seed, n):
    x, y = images(n, seed=seed)
    remix, mixup = ReMix(COUNTS, kappa=math.inf, seed=seed)(x, y), MixUp(3, seed=seed)(x, y)
    assert torch.equal(remix.x, mixup.x) and torch.equal(remix.target, mixup.target)


@given(seed=st.integers(0, 1000), kappa=st.floats(1, 200), tau=st.floats(0, 1))
def test_remix_label_is_the_papers(seed, kappa, tau):
    x, y = images(12, seed=seed)
    remix = ReMix(COUNTS, kappa=kappa, tau=tau, seed=seed)
    target = remix(x, y).target
    numbers = np.random.default_rng([seed])
    share = numbers.beta(1.0, 1.0)
    partner = torch.randperm(12, generator=torch.Generator().manual_seed(int(numbers.integers(2**62))))
    for i, j in enumerate(partner.tolist()):
        n_i, n_j = int(COUNTS[y[i]]), int(COUNTS[y[j]])
        # with kappa 1 and equal counts both cases may hold, of the same class
        if n_i / n_j <= 1 / kappa and 1 - share < tau:
            of_label = 1.0
        elif n_i / n_j >= kappa and share < tau:
            of_label = 0.0
        else:
            of_label = share
        expected = torch.zeros(3, dtype=torch.float64)
        expected[y[i]] += of_label
        expected[y[j]] += 1 - of_label
        torch.testing.assert_close(target[i].double(), expected, atol=1e-6, rtol=0)


def test_remix_leans_to_the_rare_class():
    x, y = images(4000)
    gained = ReMix(COUNTS, seed=0)(x, y).target.sum(0) - MixUp(3, seed=0)(x, y).target.sum(0)
    assert gained[2] > 0 > gained[0]


@pytest.mark.parametrize("mix", ["CutMix", "CMO"])
def test_label_follows_the_area_that_was_pasted(mix):
    y = torch.tensor([0, 1] * 8)
    x = y.float()[:, None, None, None].expand(16, 1, 9, 7).contiguous()  # pixels are the class
    make = CutMix(2, seed=5) if mix == "CutMix" else CMO(torch.tensor([10, 1]), seed=5)
    shares = []
    for _ in range(50):
        mixed = make(x, y)
        torch.testing.assert_close(mixed.x.mean((1, 2, 3)), mixed.target[:, 1])
        shares.append(float(mixed.target[0, 0]))
    assert len(set(shares)) > 10


def test_cutmix_takes_images_of_any_dtype_and_probabilities():
    x = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8)
    target = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0], [0.2, 0.8]])
    mixed = CutMix(2, seed=0)(x, target)
    assert mixed.x.dtype == torch.uint8
    torch.testing.assert_close(mixed.target.sum(1), torch.ones(4))
    again = MixUp(2, seed=0)(mixed.x.double(), mixed.target)
    assert again.x.dtype == torch.float64 and again.target.dtype == torch.float64


def test_foregrounds_of_cmo_are_rare():
    x, y = images(2000)
    counts = torch.bincount(y) * torch.tensor([100, 10, 1])
    cmo = CMO(counts, seed=0)
    assert torch.equal(cmo.weights(y), counts[y].double() ** -1)
    pasted = torch.zeros(3)
    one_hot = torch.nn.functional.one_hot(y, 3)
    for _ in range(20):
        target = cmo(x, y).target
        pasted += ((target > 0) & (one_hot == 0)).sum(0)
    assert pasted[2] > 5 * pasted[1] > 25 * pasted[0]


def test_foregrounds_of_cmo_from_another_loader():
    x, y = torch.zeros(5, 1, 8, 8), torch.zeros(5, dtype=torch.int64)
    front = torch.ones(2, 1, 8, 8), torch.tensor([2, 1])
    mixed = CMO(COUNTS, seed=0)(x, y, foreground=front)
    share = mixed.x.mean((1, 2, 3))
    torch.testing.assert_close(mixed.target[:, 0], 1 - share)
    torch.testing.assert_close(mixed.target.gather(1, torch.tensor([[2], [1], [2], [1], [2]]))[:, 0], share)
    with pytest.raises(ValueError, match="expected foreground images"):
        CMO(COUNTS)(x, y, foreground=(torch.ones(2, 1, 4, 4), front[1]))
    with pytest.raises(ValueError, match="expected foreground images"):
        CMO(COUNTS)(x, y, foreground=(torch.ones(0, 1, 8, 8), front[1][:0]))


@pytest.mark.parametrize("mix", MIXES)
def test_a_seed_repeats_and_copies_go_on(mix):
    x, y = images(8)
    one, two = MIXES[mix](seed=11), MIXES[mix](seed=11)
    for _ in range(3):
        a, b = one(x, y), two(x, y)
        assert torch.equal(a.x, b.x) and torch.equal(a.target, b.target)
    assert not torch.equal(one(x, y).x, a.x)
    torch.manual_seed(5)
    unseeded = MIXES[mix]()(x, y)
    torch.manual_seed(5)
    assert torch.equal(MIXES[mix]()(x, y).x, unseeded.x)
    for copied in (copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        copied(x, y)


@pytest.mark.parametrize("mix", MIXES)
def test_batches_are_left_alone_as_often_as_asked(mix):
    x, y = images(8)
    one_hot = torch.nn.functional.one_hot(y, 3).float()
    never = MIXES[mix](p=0.0, seed=0)(x, y)
    assert torch.equal(never.x, x) and torch.equal(never.target, one_hot)
    half = MIXES[mix](p=0.5, seed=0)
    left = sum(torch.equal(half(x, y).x, x) for _ in range(200))
    assert 60 < left < 140


class _Collate:
    def __init__(self, mix):
        self.mix = mix

    def __call__(self, batch):
        x, y = zip(*batch, strict=True)
        return self.mix(torch.stack(x), torch.tensor(y))


def test_workers_do_not_repeat_each_other_nor_an_epoch_the_last():
    x, _ = images(4)
    data = [(x[i % 4], i % 3) for i in range(16)]  # each batch holds the same images

    def epoch(generator):
        collate = _Collate(MixUp(3, seed=0))
        loader = DataLoader(data, batch_size=4, num_workers=2, collate_fn=collate, generator=generator)
        return [batch for batch, _ in loader]

    generator = torch.Generator().manual_seed(0)
    first = epoch(generator)
    batches = first + epoch(generator)
    assert not any(torch.equal(a, b) for i, a in enumerate(batches) for b in batches[:i])
    assert torch.equal(torch.stack(first), torch.stack(epoch(torch.Generator().manual_seed(0))))


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda x, y: MixUp(3)(x, y + 1), IndexError, r"expected y in \[0, 3\), but got 3 at index"),
        (lambda x, y: MixUp(3)(x, -y), IndexError, r"expected y in \[0, 3\), but got -"),
        (lambda x, y: MixUp(3)(x.byte(), y), TypeError, "expected x of a floating dtype"),
        (lambda x, y: ReMix(COUNTS)(x.byte(), y), TypeError, "expected x of a floating dtype"),
        (lambda x, y: MixUp(3)(x, y[:-1]), ValueError, "expected y of shape"),
        (lambda x, y: MixUp(3)(x, y > 0), TypeError, "expected y to be a tensor of class indices"),
        (lambda x, y: MixUp(3)(x, torch.rand(8, 2)), ValueError, "expected y of shape"),
        (lambda x, y: ReMix(COUNTS)(x, torch.rand(8, 3)), TypeError, "expected y to be class indices"),
        (lambda x, y: CutMix(3)(x.flatten(1), y), TypeError, "3 or more dimensions"),
        (lambda x, y: CMO(COUNTS).weights(torch.tensor([3])), IndexError, "expected labels in"),
        (lambda x, y: MixUp(3)(x.tolist(), y), TypeError, "expected x to be a tensor"),
        (lambda x, y: MixUp(0), ValueError, "expected num_classes"),
        (lambda x, y: MixUp(3, alpha=0), ValueError, "expected alpha"),
        (lambda x, y: MixUp(3, p=1.5), ValueError, "expected p"),
        (lambda x, y: MixUp(3, seed=-1), ValueError, "expected seed"),
        (lambda x, y: ReMix(COUNTS, kappa=0.5), ValueError, "expected kappa"),
        (lambda x, y: ReMix(COUNTS, tau=2), ValueError, "expected tau"),
        (lambda x, y: ReMix(torch.tensor([1, 0])), ValueError, "expected counts > 0"),
        (lambda x, y: CMO(COUNTS, power=-1), ValueError, "expected power"),
    ],
)
def test_bad_batches(call, error, message):
    x, y = images(8)
    y[0] = 2
    with pytest.raises(error, match=message):
        call(x, y)


def test_where_nobody_can_look_a_bad_label_gives_nan(monkeypatch):
    x, y = images(4)
    y[1] = 7
    monkeypatch.setattr("imbloss.data.image.can_look", lambda tensor: False)
    target = MixUp(3, p=0.0)(x, y).target
    assert target[1].isnan().all() and not target[[0, 2, 3]].isnan().any()


# ---- texts -------------------------------------------------------------------------------------------------------
STORY = "the price of wheat rose by ten percent in chicago on friday after a dry week said traders"
TEXT = STORY.split()
SYNONYMS = {"wheat": ["corn"], "rose": ["climbed"], "dry": ["arid"]}
words = st.lists(st.text("abcdef", min_size=1, max_size=5), min_size=1, max_size=30)


@given(tokens=words, seed=st.integers(0, 10**6))
def test_swapping_keeps_the_words(tokens, seed):
    new = TextAugment(operations=("swap",), seed=seed)(tokens)
    assert Counter(new) == Counter(tokens)
    assert sum(a != b for a, b in zip(new, tokens, strict=True)) <= 2 * max(1, len(tokens) // 10)


@given(tokens=words, seed=st.integers(0, 10**6), alpha=st.floats(0, 1))
def test_deleting_leaves_a_part_in_order(tokens, seed, alpha):
    rest = iter(tokens)
    new = TextAugment(operations=("delete",), alpha=alpha, seed=seed)(tokens)
    assert new and all(token in rest for token in new)  # each found behind the last


@given(tokens=words, seed=st.integers(0, 10**6))
def test_aeda_only_adds_punctuation(tokens, seed):
    new = TextAugment("aeda", seed=seed)(tokens)
    assert [token for token in new if token not in PUNCTUATION] == tokens
    assert 1 <= len(new) - len(tokens) <= max(1, len(tokens) // 3)


def test_replacing_and_inserting_synonyms():
    replaced = TextAugment(operations=("replace",), synonyms=SYNONYMS, alpha=0.2)(TEXT)
    assert [SYNONYMS.get(old, [old])[0] for old in TEXT] == replaced  # 3 of 17 words
    inserted = TextAugment(operations=("insert",), synonyms=lambda word: ["x"] if word == "dry" else [])(TEXT)
    assert inserted.count("x") == 1 and [token for token in inserted if token != "x"] == TEXT
    assert TextAugment(operations=("replace",), synonyms={})(TEXT) == TEXT


def test_deleting_takes_the_share_asked_for():
    new = TextAugment(operations=("delete",), alpha=0.25)(["w"] * 10_000)
    assert len(new) == pytest.approx(7500, abs=200)  # 4.6 standard errors


def test_texts_keep_their_kind():
    augment = TextAugment(operations=("delete", "swap"), seed=2)
    assert isinstance(augment(" ".join(TEXT)), str) and isinstance(augment(TEXT), list)
    tokens = list(TEXT)
    augment(tokens)
    assert tokens == TEXT
    for nothing in ("", "   ", []):
        assert augment(nothing) == nothing
        assert TextAugment("aeda")(nothing) == nothing
    assert augment("one") == "one" and TextAugment(alpha=0.0, operations=("delete",))(TEXT) == TEXT


def test_rare_texts_change_more_often():
    augment = TextAugment("aeda", counts=[100, 60, 0], seed=0)
    changed = [sum(augment(TEXT, label) != TEXT for _ in range(1000)) / 1000 for label in range(3)]
    assert changed[0] == 0 and changed[2] == 1 and changed[1] == pytest.approx(0.4, abs=0.07)
    with pytest.raises(TypeError, match="expected label beside counts"):
        augment(TEXT)
    with pytest.raises(ValueError, match=r"expected label in \[0, 3\)"):
        augment(TEXT, 3)


class _Texts(torch.utils.data.Dataset):
    def __init__(self, augment, by_index):
        self.augment = augment
        self.by_index = by_index

    def __len__(self):
        return 12

    def __getitem__(self, index):
        return self.augment(" ".join(TEXT), index=index if self.by_index else None)


def test_an_index_makes_texts_independent_of_workers():
    augment = TextAugment(operations=("swap", "delete"), seed=4)
    data = _Texts(augment, by_index=True)
    alone = [text for batch in DataLoader(data, batch_size=2) for text in batch]
    assert alone == [text for batch in DataLoader(data, batch_size=2, num_workers=2) for text in batch]
    assert len(set(alone)) > 6
    augment.set_epoch(1)
    assert alone != [text for batch in DataLoader(data, batch_size=2) for text in batch]


def test_without_an_index_workers_differ_and_repeat():
    def epoch():
        data = _Texts(TextAugment(operations=("swap", "delete"), seed=4), by_index=False)
        loader = DataLoader(data, batch_size=6, num_workers=2, generator=torch.Generator().manual_seed(0))
        return list(loader)

    first = epoch()
    assert first[0] != first[1] and first == epoch()


WORDNET_LINES = {
    "data.noun": "  1 This is the licence\n00001740 03 n 02 grain 0 food_grain 0 001 @ 00001930 n 0000 | seeds\n"
    "00001741 03 n 01 alone 0 000 | no one else\n",
    "data.verb": "00001742 29 v 02 climb 0 rise 0 000 | go up\n",
    "data.adj": "00001743 00 a 02 dry(p) 0 arid 0 000 | without water\n",
    "data.adv": "00001744 02 r 01 barely 0 000 | hardly\n",
}


@pytest.mark.parametrize("kind", ["folder", "zip"])
def test_wordnet_files_are_read(tmp_path, kind):
    if kind == "zip":
        import zipfile

        place = tmp_path / "wordnet.zip"
        with zipfile.ZipFile(place, "w") as archive:
            for name, text in WORDNET_LINES.items():
                archive.writestr(f"wordnet/{name}", text)
    else:
        place = tmp_path
        for name, text in WORDNET_LINES.items():
            (place / name).write_text(text)
    wordnet = WordNet(place)
    assert wordnet("Grain") == ["food grain"] and wordnet("rise") == ["climb"] and wordnet("dry") == ["arid"]
    assert wordnet("alone") == [] and wordnet("unknown") == []


def test_wordnet_is_found_by_its_variables(tmp_path, monkeypatch):
    for name, text in WORDNET_LINES.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setenv("WNSEARCHDIR", str(tmp_path))
    assert WordNet()("rise") == ["climb"]
    assert TextAugment(operations=("replace",), synonyms=WordNet())("prices rise") == "prices climb"


def test_without_wordnet_the_message_says_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"expected the files data.noun, .* but found none\. Install it"):
        WordNet(tmp_path)
    monkeypatch.setattr(WordNet, "places", staticmethod(lambda: []))
    monkeypatch.setattr("imbloss.data.text._wordnet", WordNet)
    with pytest.raises(FileNotFoundError, match="expected WordNet on this machine, but found none"):
        TextAugment(operations=("replace",))("prices rise")


@given(
    labels=st.lists(st.integers(0, 4), max_size=30),
    seed=st.integers(0, 100),
)
def test_oversampling_balances_and_keeps(labels, seed):
    texts = [f"text number {i}" for i in range(len(labels))]
    new, new_labels = oversample_text(texts, labels, augment=TextAugment("aeda"), seed=seed)
    assert new[: len(texts)] == texts and new_labels[: len(labels)] == labels
    counts = Counter(new_labels)
    assert set(counts.values()) <= {max(Counter(labels).values(), default=0)} and set(counts) == set(labels)
    for text, label in zip(new, new_labels, strict=True):  # each copy is of its class
        original = int("".join(ch for ch in text if ch.isdigit()))
        assert labels[original] == label
    copies = Counter(int("".join(ch for ch in text if ch.isdigit())) for text in new)
    for label in set(labels):
        times = [copies[i] for i, other in enumerate(labels) if other == label]
        assert max(times) - min(times) <= 1


def test_oversampling_to_numbers():
    texts, labels = ["a b", "c d", "e f"], np.array([0, 0, 1])
    new, new_labels = oversample_text(texts, labels, augment=str.upper, sampling_strategy={1: 3})
    assert new == [*texts, "E F", "E F"] and new_labels == [0, 0, 1, 1, 1]
    for strategy, message in (
        ({0: 1}, r"expected sampling_strategy\[0\] to be at least the 2 texts"),
        ({7: 1}, r"expected sampling_strategy\[7\]"),
        ({1: 1.5}, r"expected sampling_strategy\[1\] to be an integer"),
        ("all", "expected sampling_strategy to be"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            oversample_text(texts, labels, augment=str.upper, sampling_strategy=strategy)
    with pytest.raises(ValueError, match="expected as many labels as texts"):
        oversample_text(texts, [0])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"method": "back-translation"}, "expected method"),
        ({"alpha": 1.1}, "expected alpha"),
        ({"operations": ()}, "expected operations among"),
        ({"operations": ("shuffle",)}, "expected operations among"),
        ({"operations": "swap"}, "expected operations among"),
        ({"synonyms": 3}, "expected synonyms to be a function or a dict"),
        ({"counts": [0]}, "at least one class"),
        ({"seed": -1}, "expected seed"),
    ],
)
def test_bad_arguments_of_texts(arguments, message):
    with pytest.raises((TypeError, ValueError), match=message):
        TextAugment(**arguments)
    with pytest.raises(TypeError, match="expected text to be a str or a list of str"):
        TextAugment()(b"bytes")
