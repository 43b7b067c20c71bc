"""What the loss test reads: files of every kind, data sets by name, and what it says of bad ones."""

import gzip
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from imbloss.lab import DataError, load, sources
from imbloss.lab import data as lab_data
from imbloss.lab.data import NOTEBOOK_COUNTS, Vocabulary, long_tailed_counts

pd = pytest.importorskip("pandas")


@pytest.fixture(autouse=True)
def fresh():
    lab_data._read.cache_clear()


# ---- tables ------------------------------------------------------------------------------------------------------
def table(**columns):
    return pd.DataFrame({"a": [1.0, 2, 3, 4, 5, 6], "b": [True, False] * 3} | columns)


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_tables(tmp_path, suffix):
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    frame = table(label=["good", "bad", "good", "bad", "good", "good"])
    file = tmp_path / f"table{suffix}"
    frame.to_csv(file, index=False) if suffix == ".csv" else frame.to_parquet(file)
    found = sources.read(str(file))
    assert found.classes == ("bad", "good") and found.y.tolist() == [1, 0, 1, 0, 1, 1]
    assert found.x.tolist() == [[i + 1, float(i % 2 == 0)] for i in range(6)]
    data = load(str(file))
    assert data.kind == "table" and data.classes == ("bad", "good")


def test_the_column_of_classes(tmp_path):
    file = tmp_path / "table.csv"
    table(Class=[0, 1] * 3, kind=[2, 1, 0] * 2).to_csv(file, index=False)
    assert sources.read(str(file)).y.tolist() == [0, 1] * 3
    assert sources.read(str(file), target="kind").y.tolist() == [2, 1, 0] * 2
    with pytest.raises(DataError, match=r"expected a column 'color' in .*, but got a, b, Class, kind"):
        sources.read(str(file), target="color")


BAD_TABLES = {
    "no label": (table(), "expected a column y, target, label or class in .*, or --target, but got a, b"),
    "text": (table(c=["x"] * 6, y=[0, 1] * 3), "expected numbers in column 'c' of .*, but got 'x'"),
    "gap": (
        table(c=[1, None, 1, 1, 1, 1], y=[0, 1] * 3),
        "a number in each row of column 'c' of .*, but row 1 has none",
    ),
    "no class": (
        table(y=["a", None, "a", "b", "b", "b"]),
        "expected a label in each row of column 'y', but row 1 has none",
    ),
    "fractions": (table(y=[0.5] * 6), "expected integers or names in column 'y', but got 0.5"),
    "one class": (table(y=[0] * 6), "at least two classes in y, but got one"),
    "from 1": (table(y=[1, 2] * 3), "at least twice, the first being 0, but class 0 is there 0 times"),
    "once": (table(y=["a"] * 5 + ["b"]), r"at least twice, but class 1 \(b\) is there 1 times"),
    "empty": (table(y=[0] * 6)[:0], "expected rows in .*, but got none"),
    "only y": (pd.DataFrame({"y": [0, 1] * 3}), "expected a column of features beside 'y'"),
    "infinite": (table(c=[1, np.inf, 1, 1, 1, 1], y=[0, 1] * 3), "X to be finite and below 1e30, but row 1 is not"),
}


@pytest.mark.parametrize("bad", BAD_TABLES)
def test_bad_tables(bad, tmp_path):
    frame, message = BAD_TABLES[bad]
    frame.to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(DataError, match=message) as caught:
        load(str(tmp_path / "bad.csv"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["bad.csv", "bad.parquet", "bad.npz", "bad.txt"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00\x01" * 10, b'"a\nb"\n'])
def test_files_that_are_something_else(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        load(str(tmp_path / name))
    assert "\n" not in str(caught.value) and str(caught.value).startswith("expected")


def test_what_is_no_source(tmp_path):
    for source, message in (
        ("nowhere.csv", "expected data to be a file, but there is none at 'nowhere.csv'"),
        ("mnist", "expected data to be one of digits, fashion-mnist, .* but got 'mnist'"),
        (str(tmp_path), "expected a folder of images per class in .*, but got none"),
    ):
        with pytest.raises(DataError, match=message):
            load(source)


# ---- images ------------------------------------------------------------------------------------------------------
def test_a_folder_of_images(tmp_path):
    colours = {"cat": (10, 20, 30), "dog": (200, 0, 0)}
    for name, colour in colours.items():
        (tmp_path / name).mkdir()
        for i in range(4):
            Image.new("RGB", (40, 50), colour).save(tmp_path / name / f"{i}.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    found = sources.read(str(tmp_path))
    assert found.classes == ("cat", "dog") and found.y.tolist() == [0] * 4 + [1] * 4
    assert found.x.shape == (8, 3, sources.IMAGE_SIZE, sources.IMAGE_SIZE)
    assert found.x[0, :, 0, 0].tolist() == [10, 20, 30]
    data = load(str(tmp_path))
    assert data.kind == "image" and data.x_train.max() == 1
    (tmp_path / "dog" / "broken.png").write_bytes(b"no png")
    with pytest.raises(DataError, match=r"expected .*broken.png to be an image"):
        sources.read(str(tmp_path))


def test_grey_images_have_one_channel(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(2):
            Image.new("L", (8, 8), 100 + i).save(tmp_path / name / f"{i}.png")
    assert sources.read(str(tmp_path)).x.shape[1] == 1


# ---- texts -------------------------------------------------------------------------------------------------------
def test_a_file_of_texts(tmp_path):
    file = tmp_path / "texts.txt"
    file.write_text("".join(f"wheat\tWheat prices rose {i}%\n\noil\tOil, oil fell\n" for i in range(10)))
    data = load(str(file))
    assert data.kind == "text" and data.classes == ("oil", "wheat") and data.train_counts.tolist() == [7, 7]
    assert data.x_train.dtype == torch.int64 and data.x_train.max() < len(data.vocabulary)
    assert data.texts[int(data.y_train.tolist().index(0))] == ["oil", "oil", "fell"]
    assert torch.equal(data.vocabulary.encode(data.texts), data.x_train)
    file.write_text("wheat\tprices\noil prices fell\n")
    with pytest.raises(DataError, match=r"a label, a tab and a text in each line of .*, but line 2 has not"):
        sources.read(str(file))


def test_the_vocabulary_knows_training_words_only():
    vocabulary = Vocabulary.of(["a a b", "b c"])
    assert vocabulary.encode(["a b c d", "b", ""]).tolist() == [[2, 3, 1, 1], [3, 0, 0, 0], [1, 0, 0, 0]]
    assert len(vocabulary) == 4 and vocabulary.encode([]).shape[0] == 0


# ---- profiles ----------------------------------------------------------------------------------------------------
def test_profiles(tmp_path):
    y = np.repeat(np.arange(10), 1700)
    x = np.arange(17000.0)[:, None]
    np.savez(tmp_path / "a.npz", X=np.concatenate([x, x]), y=np.concatenate([y, y]))
    file = str(tmp_path / "a.npz")
    assert load(file, profile="notebook").train_counts.tolist() == list(NOTEBOOK_COUNTS)
    assert load(file, profile="notebook").test_counts.unique().numel() == 1
    assert load(file, profile="step", imbalance_ratio=10).train_counts.tolist() == [2380] * 5 + [238] * 5
    assert load(file, imbalance_ratio=10).train_counts.tolist() == long_tailed_counts(10, 2380, 10)
    with pytest.raises(DataError, match="expected profile among exp, step, notebook, but got 'flat'"):
        load(file, profile="flat")
    with pytest.raises(DataError, match="for profile notebook, but got 10 classes of at least"):
        load("digits", profile="notebook")


# ---- by name -----------------------------------------------------------------------------------------------------
def write_idx(path, array):
    header = bytes([0, 0, 8, array.ndim]) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()) if path.suffix == ".gz" else header + array.tobytes())


def test_files_of_mnist_are_read(tmp_path):
    generator = np.random.default_rng(0)
    images = {part: generator.integers(0, 256, (n, 28, 28), dtype=np.uint8) for part, n in (("train", 20), ("t10k", 8))}
    for part, suffix in (("train", ".gz"), ("t10k", "")):
        write_idx(tmp_path / f"{part}-images-idx3-ubyte{suffix}", images[part])
        labels = np.arange(len(images[part]), dtype=np.uint8) % 4
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte{suffix}", labels)
    found = sources.read(f"fashion-mnist:{tmp_path}")
    assert np.array_equal(found.x[:, 0], images["train"]) and np.array_equal(found.x_test[:, 0], images["t10k"])
    data = load(f"fashion-mnist:{tmp_path}", imbalance_ratio=5)
    assert data.train_counts.tolist() == [5, 2, 1, 1] and data.test_counts.tolist() == [2] * 4  # its own test set
    with pytest.raises(DataError, match="expected the files of Fashion-MNIST in"):
        sources.read(f"fashion-mnist:{tmp_path / 'nowhere'}")
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(b"\x01\x02\x03\x04"))
    with pytest.raises(DataError, match="to be bytes in the idx format"):
        sources.read(f"fashion-mnist:{tmp_path}")


@pytest.mark.parametrize("classes", [10, 100])
def test_batches_of_cifar_are_read(tmp_path, classes):
    folder = tmp_path / ("cifar-10-batches-py" if classes == 10 else "cifar-100-python")
    folder.mkdir()
    names = [*[f"data_batch_{i}" for i in range(1, 6)], "test_batch"] if classes == 10 else ["train", "test"]
    x = np.random.default_rng(0).integers(0, 256, (classes, 3072), dtype=np.uint8)
    key = b"labels" if classes == 10 else b"fine_labels"
    for name in names:
        (folder / name).write_bytes(pickle.dumps({b"data": x, key: list(range(classes))}))
    found = sources.read(f"cifar{classes}:{tmp_path}")
    assert found.x.shape == (classes * (len(names) - 1), 3, 32, 32) and found.x_test.shape[0] == classes
    assert np.array_equal(found.x_test.reshape(classes, -1), x)


def test_a_pickle_that_does_something_is_refused(tmp_path):
    class Runs:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    for name in ("train", "test"):
        (tmp_path / name).write_bytes(pickle.dumps({b"data": Runs()}))
    with pytest.raises(DataError, match="to be a batch of CIFAR, but reading it failed"):
        sources.read(f"cifar100:{tmp_path}")
    assert not (tmp_path / "ran").exists()


def test_reuters(tmp_path):
    for part, n in (("train", 3), ("test", 1)):
        rows = "".join(f"earn\tnet profit rose {i}\nship\tport strike\n" for i in range(n))
        (tmp_path / f"reuters-r8-{part}.tab").write_text("class\ttext\nd\ts\nclass\t\n" + rows)
    data = load(f"r8:{tmp_path}")
    assert data.classes == ("earn", "ship") and data.train_counts.tolist() == [3, 3]
    assert data.test_counts.tolist() == [1, 1]
    with pytest.raises(DataError, match=r"Reuters R8 is not in .*nowhere: `--data r8:FOLDER`"):
        load(f"r8:{tmp_path / 'nowhere'}")


def test_what_is_missing_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "FASHION_PLACES", ())
    monkeypatch.setattr(sources, "CACHE", tmp_path)
    monkeypatch.setattr(sources.importlib.util, "find_spec", lambda name: None)
    for name, message in (
        ("fashion-mnist", "Fashion-MNIST is not on this machine: `apt install dataset-fashion-mnist`, or `pip install"),
        ("cifar10", "CIFAR-10 is not on this machine: `--data cifar10:FOLDER` with cifar-10-batches-py in it, or"),
        ("shuttle:nowhere.rda", "Shuttle is not at nowhere.rda"),
    ):
        with pytest.raises(DataError, match=message):
            sources.read(name)


REAL = {
    "fashion-mnist": ((1, 28, 28), [6000, 3596, 2156, 1292, 774, 464, 278, 166, 100, 60]),
    "cifar10": ((3, 32, 32), [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]),
}


@pytest.mark.parametrize("name", REAL)
def test_the_real_data_long_tailed(name):
    shape, counts = REAL[name]
    try:
        data = load(name, imbalance_ratio=100)
    except DataError as missing:
        pytest.skip(str(missing))
    assert data.x_train.shape[1:] == shape and data.train_counts.tolist() == counts
    assert data.test_counts.tolist() == [1000] * 10
