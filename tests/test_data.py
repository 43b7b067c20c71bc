"""Labels of data sets, and samplers: frequencies, shares of ranks, resumption, bad input."""

import copy
import itertools
import math
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, TensorDataset, random_split

import imbloss
from benchmarks.measure import peak_of_call
from imbloss import ClassBalancedBatchSampler, ImbalancedDatasetSampler, WeightedSampler, labels_of
from imbloss.data.draws import AliasTable, key_of, shuffled, words
from imbloss.data.members import FEW, Members

settings.register_profile("same", derandomize=True, deadline=None, database=None, max_examples=100)
settings.register_profile("explore", deadline=None, max_examples=2000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "same"))

COUNTS = [700, 200, 90, 10]
LABELS = torch.tensor(np.repeat(range(4), COUNTS))[torch.randperm(1000, generator=torch.Generator().manual_seed(1))]
LIKELY = 1e-3  # a p-value below is a failure; the draws are the same in every run

SHARES = {
    "balanced": [0.25] * 4,
    "sqrt": [c**0.5 for c in COUNTS],
    "effective": [c * (1 - 0.99) / (1 - 0.99**c) for c in COUNTS],
    "progressive": [0.4 * c / 1000 + 0.6 / 4 for c in COUNTS],
    "vector": [1, 0, 5, 2],
}


def sampler_of(strategy, **keywords):
    if strategy == "vector":
        strategy = torch.tensor(SHARES["vector"])
    sampler = ImbalancedDatasetSampler(LABELS, strategy=strategy, beta=0.99, epochs=5, **keywords)
    sampler.set_epoch(3)
    return sampler


def drawn(sampler):
    return torch.cat(list(sampler.stream()))


# ---- frequencies -------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("replacement", [True, False])
@pytest.mark.parametrize("strategy", SHARES)
def test_classes_are_as_frequent_as_asked(strategy, replacement):
    sampler = sampler_of(strategy, num_samples=200_000, replacement=replacement)
    expected = np.array(SHARES[strategy]) / sum(SHARES[strategy])
    assert sampler.prior(3).numpy() == pytest.approx(expected, rel=1e-6)
    counts = np.bincount(LABELS[drawn(sampler)], minlength=4)
    assert (counts[expected == 0] == 0).all()
    assert chisquare(counts[expected > 0], 200_000 * expected[expected > 0]).pvalue > LIKELY


def test_members_of_a_class_are_equally_frequent():
    draws = drawn(sampler_of("balanced", num_samples=200_000))
    for c in range(4):
        counts = np.bincount(draws[LABELS[draws] == c], minlength=1000)[c == LABELS]
        assert chisquare(counts).pvalue > LIKELY


def test_successive_draws_are_independent():
    draws = LABELS[drawn(sampler_of("balanced", num_samples=200_000))]
    for lag in (1, 2, 7):
        pairs = np.bincount(draws[:-lag] * 4 + draws[lag:], minlength=16)
        assert chisquare(pairs).pvalue > LIKELY


def test_without_replacement_a_class_is_used_up_before_it_is_dealt_again():
    draws = drawn(sampler_of("balanced", num_samples=5000, replacement=False))
    for c in range(4):
        of_class = draws[LABELS[draws] == c]
        for deck in of_class.split(COUNTS[c]):
            assert deck.unique().numel() == len(deck)
    tenth = [deck.tolist() for deck in draws[LABELS[draws] == 3].split(10)]
    assert len({tuple(deck) for deck in tenth}) == len(tenth)  # shuffled anew


def test_the_longest_strategy_of_progress_is_balance():
    sampler = ImbalancedDatasetSampler(LABELS, strategy="progressive", epochs=2)
    expected = [torch.tensor(COUNTS) / 1000, None, torch.full((4,), 0.25), torch.full((4,), 0.25)]
    for epoch in (0, 2, 3):
        assert torch.allclose(sampler.prior(epoch), expected[epoch].double())
    first, _, third = (np.bincount(LABELS[list(sampler)], minlength=4) for _ in range(3))  # epochs follow by themselves
    assert first[0] > 600 and third[0] < 350


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 6])
def test_all_orders_of_a_few_are_equally_frequent(size):
    times = 20_000
    keys = words(key_of(4, size), np.arange(times))
    orders = np.stack([shuffled(np.full(times, i), np.full(times, size), keys) for i in range(size)])
    counts = np.unique(orders, axis=1, return_counts=True)[1]
    assert len(counts) == math.factorial(size)
    assert size == 1 or chisquare(counts).pvalue > LIKELY


@pytest.mark.parametrize("size", [9, 32, 33, 50])
def test_pairs_of_many_are_equally_frequent(size):
    times = 100_000
    keys = words(key_of(5, size), np.arange(times))
    first, second = (shuffled(np.full(times, i), np.full(times, size), keys) for i in (0, 1))
    counts = np.bincount(first * size + second, minlength=size**2).reshape(size, size)
    apart = ~np.eye(size, dtype=bool)
    assert counts[~apart].sum() == 0 and chisquare(counts[apart]).pvalue > LIKELY


@given(st.integers(1, 5000), st.integers(0, 2**64 - 1))
def test_a_shuffle_is_a_permutation(size, key):
    moved = shuffled(np.arange(size), np.full(size, size), key)
    assert np.array_equal(np.sort(moved), np.arange(size))


@given(st.lists(st.floats(0, 1e300) | st.just(0.0) | st.floats(0, 1e-300), min_size=1, max_size=300))
def test_the_alias_table_holds_the_weights(weights):
    weights = np.array(weights)
    if weights.max() == 0:
        weights[0] = 1
    weights /= weights.max()
    table = AliasTable(weights)
    n = len(weights)
    share = table.threshold.copy()
    np.add.at(share, table.other, 1 - table.threshold)
    assert (share[weights == 0] == 0).all()
    assert share / n == pytest.approx(weights / weights.sum(), rel=1e-12, abs=1e-16)


def test_weights_are_kept():
    weights = torch.rand(50) ** 4 * (torch.arange(50) % 3 > 0)
    sampler = WeightedSampler(weights, num_samples=200_000)
    counts = np.bincount(drawn(sampler), minlength=50)
    expected = (weights.double() / weights.double().sum()).numpy()
    assert (counts[expected == 0] == 0).all()
    assert chisquare(counts[expected > 0], 200_000 * expected[expected > 0]).pvalue > LIKELY


def test_weights_without_replacement_are_drawn_one_after_the_other():
    """The chance of each ordered pair is w_i / W * w_j / (W - w_i)."""
    weights = np.array([0.5, 1.0, 0.0, 2.0, 4.0])
    pairs = np.zeros((5, 5))
    sampler = WeightedSampler(weights, num_samples=2, replacement=False)
    for _ in range(2000):
        pairs[tuple(sampler)] += 1
    total = weights.sum()
    expected = weights[:, None] / total * weights / (total - weights[:, None]) * (1 - np.eye(5))
    assert (pairs[expected == 0] == 0).all()
    assert chisquare(pairs[expected > 0], 2000 * expected[expected > 0]).pvalue > LIKELY


def test_more_weights_than_torch_takes():
    weights = torch.ones(2**24 + 2)
    weights[-1] = len(weights) - 1
    with pytest.raises(RuntimeError, match="2\\^24"):
        list(torch.utils.data.WeightedRandomSampler(weights, 2))
    draws = drawn(WeightedSampler(weights, num_samples=10_000))
    assert abs((draws == len(weights) - 1).double().mean() - 0.5) < 0.03
    others = draws[draws < len(weights) - 1]
    assert chisquare(np.bincount(others * 16 // len(weights), minlength=16)).pvalue > LIKELY


# ---- class-balanced batches --------------------------------------------------------------------------------------
def test_batches_hold_distinct_classes_and_members():
    sampler = ClassBalancedBatchSampler(LABELS, 3, 20, num_batches=1000)
    classes = np.zeros(4)
    for batch in sampler:
        there, counts = LABELS[batch].unique(return_counts=True)
        assert counts.tolist() == [20, 20, 20]
        classes[there] += 1
        for c in there.tolist():
            times = torch.bincount(torch.tensor(batch)[LABELS[batch] == c], minlength=1000)[c == LABELS]
            assert times.max() - times.min() <= 1  # class 3 has 10 members: each twice
    # choosing 3 of 4 leaves out one
    assert chisquare(1000 - classes).pvalue > LIKELY


def test_members_of_batches_are_equally_frequent():
    draws = drawn(ClassBalancedBatchSampler(LABELS, 2, 7, num_batches=10_000)).flatten()
    for c in range(4):
        assert chisquare(np.bincount(draws[LABELS[draws] == c], minlength=1000)[c == LABELS]).pvalue > LIKELY


def test_an_epoch_of_batches_draws_as_often_as_there_are_items():
    sampler = ClassBalancedBatchSampler(TensorDataset(torch.zeros(1000), LABELS), 4, 6)
    assert len(sampler) == 42 and sampler.batch_size == 24
    loader = DataLoader(TensorDataset(LABELS), batch_sampler=sampler)
    assert [len(y) for (y,) in loader] == [24] * 42


# ---- ranks, epochs, resumption -----------------------------------------------------------------------------------
KINDS = {
    "imbalanced": lambda **k: ImbalancedDatasetSampler(LABELS, num_samples=840, **k),
    "decks": lambda **k: ImbalancedDatasetSampler(LABELS, num_samples=840, replacement=False, **k),
    "indices": lambda **k: ImbalancedDatasetSampler(LABELS, indices=range(0, 1000, 2), num_samples=840, **k),
    "weighted": lambda **k: WeightedSampler(LABELS + 0.5, 840, **k),
    "weighted once": lambda **k: WeightedSampler(LABELS + 0.5, 840, replacement=False, **k),
    "batches": lambda **k: ClassBalancedBatchSampler(LABELS, 2, 3, num_batches=840, **k),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("ranks", [2, 3, 8])
def test_ranks_share_the_stream_of_one_process(kind, ranks):
    whole = list(KINDS[kind](seed=3))
    parts = [list(KINDS[kind](seed=3, num_replicas=ranks, rank=rank)) for rank in range(ranks)]
    assert [draw for together in zip(*parts, strict=True) for draw in together] == whole


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_draw_alike_often(kind):
    """840 draws for 11 ranks are 77 each; the stream goes on for the last of them."""
    parts = [list(KINDS[kind](num_replicas=11, rank=rank)) for rank in range(11)]
    assert {len(part) for part in parts} == {77} == {len(KINDS[kind](num_replicas=11, rank=0))}
    together = [draw for row in zip(*parts, strict=True) for draw in row]
    assert together[:840] == list(KINDS[kind]())


@settings(max_examples=30)
@given(
    st.sampled_from(sorted(KINDS)), st.integers(0, 2**64 - 1), st.integers(0, 3), st.integers(1, 9), st.integers(1, 9),
    st.floats(0, 1), st.integers(1, 100),
)  # fmt: skip
def test_a_resumed_stream_goes_on_where_it_was(kind, seed, epoch, before, after, share, chunk):
    """Also on another number of ranks, iterated or as tensors."""
    whole = KINDS[kind](seed=seed)
    whole.set_epoch(epoch)
    expected = list(whole)
    done = int(share * (840 // before))
    parts = [KINDS[kind](seed=seed, num_replicas=before, rank=rank) for rank in range(before)]
    states = []
    for part in parts:
        part.set_epoch(epoch)
        list(itertools.islice(part, done))
        states.append(part.state_dict())
    assert all(state == states[0] for state in states)
    rest = []
    for rank in range(after):
        part = KINDS[kind](num_replicas=after, rank=rank)
        part.load_state_dict(pickle.loads(pickle.dumps(states[0])))
        part.set_epoch(epoch)  # as trainers do
        rest.append([draw.tolist() for draws in part.stream(chunk) for draw in draws])
    rest = [draw for row in zip(*rest, strict=True) for draw in row]
    assert rest[: 840 - done * before] == expected[done * before :]
    if not done:
        assert rest[:840] == expected


@pytest.mark.parametrize("kind", KINDS)
def test_each_iteration_is_an_epoch_of_its_own(kind):
    sampler, other = KINDS[kind](), KINDS[kind]()
    epochs = [list(sampler) for _ in range(3)]
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]
    other.set_epoch(2)
    assert list(other) == epochs[2] and list(KINDS[kind](seed=1)) != epochs[0]
    other.set_epoch(0)
    assert list(other) == epochs[0]


def test_an_iteration_that_is_broken_off_ends_its_epoch():
    sampler = KINDS["imbalanced"]()
    epochs = [list(sampler) for _ in range(3)]
    sampler.set_epoch(0)
    assert list(itertools.islice(sampler, 5)) == epochs[0][:5]
    assert list(sampler) == epochs[1]
    sampler.set_epoch(2)
    list(itertools.islice(sampler, 5))
    sampler.set_epoch(2)  # again, from its start
    assert list(sampler) == epochs[2]


def test_iterators_that_are_not_begun_count_for_nothing():
    sampler = KINDS["imbalanced"]()
    iter(sampler), iter(sampler).__iter__()
    assert sampler.state_dict() == {"seed": 0, "epoch": 0, "position": 0, "length": 840}


def test_a_state_at_the_end_is_the_start_of_the_next_epoch():
    sampler, resumed = KINDS["imbalanced"](), KINDS["imbalanced"]()
    list(sampler)
    resumed.load_state_dict(sampler.state_dict())
    assert list(resumed) == list(sampler)


def test_a_state_at_the_last_draw_leaves_nothing_of_the_epoch():
    sampler, resumed = KINDS["imbalanced"](), KINDS["imbalanced"]()
    iterator = iter(sampler)
    list(itertools.islice(iterator, 840))
    resumed.load_state_dict(sampler.state_dict())
    assert list(iterator) == list(resumed) == []
    assert list(resumed) == list(sampler)


class Items(Dataset):
    """Its items are their own numbers."""

    def __init__(self, labels=LABELS):
        self.targets = labels

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        return index


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_plain_loader_goes_on_where_training_was(workers, ranks):
    """Its workers fetch ahead: training knows how far it is."""
    whole = DataLoader(Items(), 10, sampler=KINDS["imbalanced"](num_replicas=ranks, rank=0), num_workers=workers)
    expected = [batch.tolist() for batch in whole]
    sampler = KINDS["imbalanced"](num_replicas=ranks, rank=0)
    for step, _ in enumerate(DataLoader(Items(), 10, sampler=sampler, num_workers=workers), 1):
        if step == 7:
            state = sampler.state_dict(epoch=0, position=step * 10 * ranks)
            if workers == 0:
                assert state == sampler.state_dict()
            break
    resumed = KINDS["imbalanced"](num_replicas=ranks, rank=0)
    resumed.load_state_dict(state)
    rest = DataLoader(Items(), 10, sampler=resumed, num_workers=workers)
    assert [batch.tolist() for batch in rest] == expected[7:]


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")  # torchdata's
@pytest.mark.parametrize("kind, workers", [("decks", 0), ("batches", 0), ("decks", 2), ("batches", 2)])
@pytest.mark.parametrize("step", [3, 12, None])  # within the epoch, at its last batch, after it
def test_torchdata_resumes_by_itself(kind, workers, step):
    stateful = pytest.importorskip("torchdata.stateful_dataloader", reason="needs the extra recipes")

    def loader():
        if kind == "batches":
            batches = ClassBalancedBatchSampler(LABELS, 2, 5, num_batches=12)
            return stateful.StatefulDataLoader(Items(), batch_sampler=batches, num_workers=workers)
        decks = ImbalancedDatasetSampler(LABELS, num_samples=120, replacement=False)
        return stateful.StatefulDataLoader(Items(), 10, sampler=decks, num_workers=workers)

    whole = loader()
    expected = [[batch.tolist() for batch in whole] for _ in range(2)]
    first = loader()
    for number, _ in enumerate(first, 1):
        if number == step:
            state = first.state_dict()
            break
    if step is None:
        state = first.state_dict()
    resumed = loader()
    resumed.load_state_dict(state)
    if step is not None:
        assert [batch.tolist() for batch in resumed] == expected[0][step:]
    assert [batch.tolist() for batch in resumed] == expected[1]


@pytest.mark.parametrize("kind", KINDS)
def test_samplers_copy_and_pickle(kind):
    sampler = KINDS[kind](seed=5)
    list(itertools.islice(sampler, 3))
    others = copy.deepcopy(sampler), pickle.loads(pickle.dumps(sampler))
    assert [other.state_dict() for other in others] == [sampler.state_dict()] * 2
    epoch = list(sampler)
    assert [list(other) for other in others] == [epoch] * 2


def test_trainers_see_that_the_stream_is_sharded_already():
    assert isinstance(KINDS["imbalanced"](), torch.utils.data.DistributedSampler)


def test_streams_are_the_same_on_every_machine_and_in_every_version():
    """Stored draws: a resumed run must not depend on where it was begun."""
    assert [list(itertools.islice(KINDS[kind](seed=7), 8)) for kind in ("imbalanced", "decks", "weighted")] == STORED


# ---- members -----------------------------------------------------------------------------------------------------
@given(st.data())
def test_members_are_sorted_by_class(data):
    classes = data.draw(st.sampled_from([1, 3, 255, 256, 257, FEW, FEW + 1, 3 * FEW]))
    labels = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, classes, data.draw(st.integers(1, 3000)))
    members = Members(labels)
    assert np.array_equal(members.order, np.argsort(labels, kind="stable"))
    assert np.array_equal(members.counts, np.bincount(labels))


def test_members_of_several_parts_are_sorted_by_class():
    labels = np.random.default_rng(0).integers(0, 7, 2**19 + 5) ** 2
    assert np.array_equal(Members(labels).order, np.argsort(labels, kind="stable"))


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux's high-water mark")
def test_memory_is_one_int64_a_label():
    """So many that the buffers of a part, 6 to 13 MB with holes that were in the heap before, are small beside them."""
    labels = torch.randint(100, (16_000_000,))
    peak = peak_of_call(lambda: drawn(ImbalancedDatasetSampler(labels, num_samples=1000)))
    assert 8.0 <= peak / len(labels) < 9.5


# ---- labels ------------------------------------------------------------------------------------------------------
class Folder(Dataset):
    """As torchvision's DatasetFolder."""

    def __init__(self, labels, target_transform=None):
        self.samples = self.imgs = [(f"{i}.png", label) for i, label in enumerate(labels)]
        self.target_transform = target_transform

    def __len__(self):
        return len(self.samples)


class With(Dataset):
    def __init__(self, length=3, **attributes):
        self.length = length
        vars(self).update(attributes)

    def __len__(self):
        return self.length


FOUND = {
    "TensorDataset": (TensorDataset(torch.zeros(3, 2), torch.tensor([2, 0, 1])), [2, 0, 1]),
    "column of floats": (TensorDataset(torch.zeros(3, 2), torch.tensor([[1.0], [0.0], [1.0]])), [1, 0, 1]),
    "bfloat16": (torch.tensor([1, 0, 3], dtype=torch.bfloat16), [1, 0, 3]),
    "bool": ([True, False, True], [1, 0, 1]),
    "negative": (np.array([-1, 5, 10**12]), [-1, 5, 10**12]),
    "strings": (["cat", "ant", "cat"], [1, 0, 1]),
    "tensors": ([torch.tensor(4), torch.tensor(2), torch.tensor(2)], [4, 2, 2]),
    "tuple": ((4, 2, 2), [4, 2, 2]),
    "uint8": (np.array([255, 0, 1], np.uint8), [255, 0, 1]),
    "MNIST": (With(targets=torch.tensor([7, 0, 7])), [7, 0, 7]),
    "CIFAR": (With(targets=[7, 0, 7]), [7, 0, 7]),
    "SVHN": (With(labels=np.array([7, 0, 7]), targets=None), [7, 0, 7]),
    "Flowers": (With(_labels=[7, 0, 7]), [7, 0, 7]),
    "Caltech": (With(y=[7, 0, 7]), [7, 0, 7]),
    "DatasetFolder": (Folder([7, 0, 7]), [7, 0, 7]),
    "target_transform": (Folder([7, 0, 7], lambda label: int(label == 7)), [1, 0, 1]),
    "one-hot transform": (
        Folder([3, 0, 3], lambda c: torch.nn.functional.one_hot(torch.tensor(c), 4)),
        [3, 0, 3],
    ),
    "get_labels": (With(get_labels=lambda: [7, 0, 7]), [7, 0, 7]),
    "Subset": (Subset(Folder([9, 8, 7, 6]), [3, 3, 0]), [6, 6, 9]),
    "Subset of Subset": (Subset(Subset(Folder([9, 8, 7, 6]), [3, 1, 0]), [2, 1]), [9, 8]),
    "ConcatDataset": (ConcatDataset([Folder([1, 2]), TensorDataset(torch.zeros(1), torch.tensor([5]))]), [1, 2, 5]),
    "nested": (
        ConcatDataset([ConcatDataset([Folder([1, 2]), Folder([3])]), Subset(ConcatDataset([Folder([4, 5])]), [1])]),
        [1, 2, 3, 5],
    ),
    "strings of several parts": (ConcatDataset([Folder(["b", "a"]), Folder(["c"])]), [1, 0, 2]),
    "multi-label": (np.array([[1, 1, 0], [1, 0, 0], [1, 1, 1], [0, 0, 0]]), [1, 0, 2, 3]),
    "multi-label, equally rare": (torch.tensor([[1.0, 1.0], [0.0, 0.0]]), [0, 2]),
    # label 1 is the rarest of all, label 0 of the subset
    "multi-label Subset": (Subset(With(4, targets=torch.tensor([[1, 1], [0, 1], [1, 0], [1, 0]])), [0, 1]), [0, 1]),
    "empty": (torch.zeros(0, dtype=torch.int64), []),
}


@pytest.mark.parametrize("name", FOUND)
def test_labels_are_found(name):
    dataset, expected = FOUND[name]
    labels = labels_of(dataset)
    assert labels.dtype == torch.int64 and labels.tolist() == expected


def test_labels_of_a_random_split():
    parts = random_split(With(1000, targets=LABELS), [0.7, 0.3])
    for part in parts:
        assert torch.equal(labels_of(part), LABELS[part.indices])
    assert torch.equal(labels_of(ConcatDataset(parts)), LABELS[parts[0].indices + parts[1].indices])


def test_labels_of_pandas():
    pandas = pytest.importorskip("pandas")
    assert labels_of(pandas.Series([3, 1, 3])).tolist() == [3, 1, 3]
    assert labels_of(pandas.Series(["b", "a"])).tolist() == [1, 0]


def test_labels_of_hugging_face():
    datasets = pytest.importorskip("datasets", reason="needs the extra recipes")
    table = datasets.Dataset.from_dict({"text": list("abcd"), "label": [3, 1, 3, 0]})
    assert labels_of(table).tolist() == [3, 1, 3, 0]
    assert labels_of(table.select([3, 0]).shuffle(seed=0)).sum() == 3
    assert labels_of(Subset(table, [1, 1])).tolist() == [1, 1]
    named = table.rename_column("label", "kind").cast_column("kind", datasets.ClassLabel(num_classes=4))
    assert labels_of(named).tolist() == [3, 1, 3, 0]
    assert labels_of(datasets.concatenate_datasets([table, table])).tolist() == [3, 1, 3, 0] * 2
    with pytest.raises(TypeError, match=r"expected a column 'label' or 'labels', but got text: .*callback_get_label"):
        labels_of(table.remove_columns("label"))
    with pytest.raises(TypeError, match="callback_get_label"):
        labels_of(table.to_iterable_dataset())


def test_labels_of_torchvision(tmp_path):
    torchvision = pytest.importorskip("torchvision", reason="no torchvision beside this torch")
    for kind, numbers in {"cat": 2, "dog": 1}.items():
        (tmp_path / kind).mkdir()
        for i in range(numbers):
            (tmp_path / kind / f"{i}.png").write_bytes(b"")
    assert labels_of(torchvision.datasets.ImageFolder(str(tmp_path))).tolist() == [0, 0, 1]
    fake = torchvision.datasets.FakeData(5)
    with pytest.raises(TypeError, match="but got FakeData, which does not: pass labels=, or callback_get_label="):
        labels_of(fake)


UNFOUND = {
    "no labels": (With(), TypeError, "expected a data set that shows its labels, but got With, which does not"),
    "three tensors": (TensorDataset(*[torch.zeros(2)] * 3), TypeError, "of inputs and labels, but got 3 tensors"),
    "too few": (With(4, targets=[1, 2]), TypeError, "a label for each of the 4 items of With, but got 2"),
    "boxes": (With(targets=[{"boxes": 1}] * 3), TypeError, "expected targets to be whole numbers or strings"),
    "ragged": ([[1], [1, 2]], TypeError, "expected labels of shape"),
    "images": (torch.zeros(2, 3, 4), TypeError, r"but got float64 of shape \(2, 3, 4\)"),
    "class numbers in rows": ([[1, 2], [0, 1]], ValueError, r"expected labels 0 or 1, but got \[1, 2\] at index 0"),
    "fractions": ([0.0, 0.5], ValueError, "expected labels whole and finite, but got 0.5 at index 1"),
    "NaN": (torch.tensor([0.0, torch.nan]), ValueError, "expected labels whole and finite, but got nan at index 1"),
    "infinity": (torch.tensor([torch.inf]), ValueError, "expected labels whole and finite, but got inf at index 0"),
    "complex": (torch.zeros(2, dtype=torch.complex64), TypeError, "but got complex64"),
    "mixed": (ConcatDataset([Folder([1]), Folder(["a"])]), TypeError, "labels of one kind in a ConcatDataset"),
    "number": (3, TypeError, "expected a data set that shows its labels, but got int"),
}


@pytest.mark.parametrize("name", UNFOUND)
def test_labels_that_are_not_found_are_named(name):
    dataset, error, message = UNFOUND[name]
    with pytest.raises(error, match=message) as raised:
        labels_of(dataset)
    assert error is ValueError or "callback_get_label" in str(raised.value)


# ---- arguments ---------------------------------------------------------------------------------------------------
def members_drawn(*args, **keywords):
    """Item -> its share in the draws, in percent."""
    draws = drawn(ImbalancedDatasetSampler(*args, num_samples=20_000, **keywords))
    items, counts = draws.unique(return_counts=True)
    return dict(zip(items.tolist(), (counts / 200).tolist(), strict=True))


@pytest.mark.parametrize(
    "keywords",
    [
        {"labels": [5, 5, 5, 9]},
        {"labels": ["a", "a", "a", "b"]},
        {"labels": [-1, -1, -1, 10**15]},
        {"callback_get_label": lambda dataset: [5, 5, 5, 9]},
        {"callback_get_label": lambda dataset, index: dataset[index] // 3},
    ],
    ids=["numbers", "strings", "far apart", "of all", "of each"],
)
def test_the_ways_to_give_labels(keywords):
    shares = members_drawn(Items(torch.zeros(4)), **keywords)
    assert shares == pytest.approx({0: 16.7, 1: 16.7, 2: 16.7, 3: 50}, abs=1.5)


@pytest.mark.parametrize(
    "labels",
    [None, torch.tensor([0, 0, 1, 1, 1, 1]), [0, 1, 1]],
    ids=["found", "of items", "of indices"],
)
def test_indices_are_drawn_and_nothing_else(labels):
    dataset = With(6, targets=[0, 0, 1, 1, 1, 1])
    assert members_drawn(dataset, labels, [1, 5, 3]) == pytest.approx({1: 50, 3: 25, 5: 25}, abs=1.5)


def test_callbacks_with_indices():
    dataset = Items(torch.zeros(6))
    expected = pytest.approx({1: 50, 3: 25, 5: 25}, abs=1.5)
    assert members_drawn(dataset, indices=[1, 5, 3], callback_get_label=lambda d, i: int(i > 1)) == expected
    assert members_drawn(dataset, indices=[1, 5, 3], callback_get_label=lambda d: [0, 0, 1, 1, 1, 1]) == expected


def test_shares_by_class_number_may_name_absent_classes():
    sampler = ImbalancedDatasetSampler([0, 2, 2], strategy=[3, 0, 1, 0, 0])
    assert sampler.prior().tolist() == [0.75, 0, 0.25]
    assert ImbalancedDatasetSampler([7, 2]).prior().tolist() == [0, 0, 0.5, 0, 0, 0, 0, 0.5]


def test_one_class_and_one_sample_are_drawn():
    assert set(ImbalancedDatasetSampler([3, 3], num_samples=50)) == {0, 1}
    assert list(ImbalancedDatasetSampler([3], num_samples=3, replacement=False)) == [0, 0, 0]
    assert list(WeightedSampler([2.0], 3)) == [0, 0, 0]
    assert list(ClassBalancedBatchSampler([3], 1, 2)) == [[0, 0]]


def test_arguments_are_not_changed():
    labels, indices, weights = torch.tensor([1, 0, 0]), np.array([2, 0]), torch.tensor([4.0, 2.0, 0.0])
    before = [labels.clone(), indices.copy(), weights.clone()]
    drawn(ImbalancedDatasetSampler(labels, indices=indices, strategy=weights[:2]))
    drawn(WeightedSampler(weights))
    drawn(WeightedSampler(weights.numpy(), 2, replacement=False))
    drawn(ClassBalancedBatchSampler(labels, 2, 2, indices=indices))
    assert torch.equal(labels, before[0]) and np.array_equal(indices, before[1]) and torch.equal(weights, before[2])


TWO = [0, 0, 1]
BAD = {
    "strategy": (lambda: ImbalancedDatasetSampler(TWO, strategy="smote"), "expected strategy among balanced, sqrt"),
    "epochs": (lambda: ImbalancedDatasetSampler(TWO, strategy="progressive"), "expected epochs with strategy"),
    "no epochs": (lambda: ImbalancedDatasetSampler(TWO, strategy="progressive", epochs=0), "expected epochs > 0"),
    "beta": (lambda: ImbalancedDatasetSampler(TWO, strategy="effective", beta=1.0), r"expected beta in \[0, 1\)"),
    "shares": (lambda: ImbalancedDatasetSampler(TWO, strategy=[1.0]), "a share for each of 2 classes, but got 1"),
    "absent": (lambda: ImbalancedDatasetSampler(TWO, strategy=[1, 1, 1]), "a share of 0 for class 2, which has no"),
    "negative": (lambda: ImbalancedDatasetSampler(TWO, strategy=[1, -1]), "strategy >= 0 and finite, but got -1.0 at"),
    "nothing": (lambda: ImbalancedDatasetSampler(TWO, strategy=[0, 0]), "a weight > 0 among strategy, but got none"),
    "no items": (lambda: ImbalancedDatasetSampler([]), "expected items to draw from, but got none"),
    "no indices": (lambda: ImbalancedDatasetSampler(TWO, indices=[]), "expected items to draw from, but got none"),
    "outside": (lambda: ImbalancedDatasetSampler(TWO, indices=[0, 3]), r"expected indices in \[0, 3\), but got 3"),
    "below": (lambda: ImbalancedDatasetSampler(TWO, indices=[-1]), r"expected indices in \[0, 3\), but got -1"),
    "mask": (lambda: ImbalancedDatasetSampler(TWO, indices=[True, False, True]), "expected indices to be integers"),
    "lengths": (lambda: ImbalancedDatasetSampler(With(5), labels=TWO), "each of the 5 items, but got 3"),
    "both": (lambda: ImbalancedDatasetSampler(TWO, TWO, callback_get_label=len), "labels or callback_get_label, but"),
    "num_samples": (lambda: ImbalancedDatasetSampler(TWO, num_samples=0), "expected num_samples >= 1"),
    "seed": (lambda: ImbalancedDatasetSampler(TWO, seed=-1), "expected seed >= 0"),
    "large seed": (lambda: ImbalancedDatasetSampler(TWO, seed=2**64), r"expected seed < 2\^64"),
    "rank": (lambda: ImbalancedDatasetSampler(TWO, num_replicas=2, rank=2), r"expected rank in \[0, 2\), but got 2"),
    "replicas": (lambda: ImbalancedDatasetSampler(TWO, num_replicas=0), "expected num_replicas >= 1"),
    "weights": (lambda: WeightedSampler([1, math.nan]), "expected weights >= 0 and finite, but got nan at index 1"),
    "infinite": (lambda: WeightedSampler([math.inf]), "expected weights >= 0 and finite, but got inf at index 0"),
    "all zero": (lambda: WeightedSampler(torch.zeros(3)), "expected a weight > 0 among weights, but got none"),
    "no weights": (lambda: WeightedSampler([]), "expected a weight > 0 among weights, but got none"),
    "matrix": (lambda: WeightedSampler(torch.ones(2, 2)), r"expected weights to be numbers of shape \(N,\)"),
    "too many": (lambda: WeightedSampler([1, 0, 1], 3, replacement=False), "num_samples <= 2 weights > 0 without"),
    "classes": (lambda: ClassBalancedBatchSampler(TWO, 3, 1), "expected classes_per_batch <= 2 classes, but got 3"),
    "per class": (lambda: ClassBalancedBatchSampler(TWO, 2, 0), "expected samples_per_class >= 1"),
    "epoch": (lambda: ImbalancedDatasetSampler(TWO).set_epoch(-1), "expected epoch >= 0"),
    "chunk": (lambda: next(ImbalancedDatasetSampler(TWO).stream(0)), "expected chunk >= 1"),
    "position": (lambda: ImbalancedDatasetSampler(TWO).state_dict(epoch=1), "epoch and position together, but got 1"),
    "foreign": (
        lambda: ImbalancedDatasetSampler(TWO).load_state_dict({"x": 1}),
        "expected state_dict of a sampler of imbloss",
    ),
    "other": (
        lambda: ImbalancedDatasetSampler(TWO).load_state_dict(KINDS["imbalanced"]().state_dict()),
        "a sampler with 3 draws an epoch, but got 840",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name):
    call, message = BAD[name]
    with pytest.raises((ValueError, TypeError), match=message):
        call()


# ---- the package of that name ------------------------------------------------------------------------------------
README = """
from sampler import ImbalancedDatasetSampler

train_loader = torch.utils.data.DataLoader(
    train_dataset,
    sampler=ImbalancedDatasetSampler(train_dataset),
    batch_size=args.batch_size,
    **kwargs
)
"""


@pytest.mark.parametrize("dataset", [Items(), Subset(Items(), range(500))], ids=["all", "subset"])
def test_the_readme_of_imbalanced_dataset_sampler_runs(dataset):
    class Arguments:
        batch_size = 50

    names = {"torch": torch, "train_dataset": dataset, "args": Arguments, "kwargs": {"num_workers": 0}}
    exec(README.replace("from sampler import", "from imbloss import"), names)
    batches = list(names["train_loader"])
    assert len(batches) == len(dataset) / 50
    counts = torch.bincount(LABELS[torch.cat(batches)], minlength=4)
    assert chisquare(counts).pvalue > LIKELY


def test_exports():
    for name in ("ImbalancedDatasetSampler", "ClassBalancedBatchSampler", "WeightedSampler", "labels_of"):
        assert name in imbloss.__all__


STORED = [
    [377, 796, 471, 188, 472, 892, 540, 106],
    [49, 740, 761, 471, 583, 7, 485, 970],
    [172, 135, 966, 884, 874, 920, 510, 621],
]
