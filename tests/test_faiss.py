"""faiss's indexes as neighbours: equal to ours where they are exact, measured where they are not."""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import imbloss
from imbloss import FaissNeighbors

faiss = pytest.importorskip("faiss")


def clusters(n=3000, d=16, count=20):
    centres = 4 * torch.randn(count, d)
    return centres[torch.randint(count, (n,))] + torch.randn(n, d)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
@pytest.mark.parametrize("far", [0.0, 1e5])
def test_a_flat_index_finds_what_knn_finds(metric, far):
    """Far from the origin, too, where squares of coordinates in float32 have no digits left for distances."""
    points = (clusters() + (far if metric == "l2" else 0)).double()
    distances, indices = FaissNeighbors(6, metric=metric).fit(points).kneighbors(points[:500])
    expected, neighbours = imbloss.knn(points, 5, metric=metric)
    assert (indices[:, 0] == np.arange(500)).all() and indices.dtype == np.int64
    assert (indices[:, 1:] == neighbours[:500].numpy()).mean() > 0.999  # float32 swaps what is almost equally far
    np.testing.assert_allclose(distances[:, 1:], expected[:500].numpy(), rtol=1e-3, atol=1e-4)
    assert distances.dtype == np.float32 and (np.diff(distances) >= 0).all()


def test_recall_of_approximate_indexes():
    points = clusters()
    found = {}
    for index in ("flat", "hnsw", "IVF32,Flat", "HNSW8"):
        neighbours = FaissNeighbors(6, index=index, nprobe=1, ef_search=32).fit(points)
        found[index] = neighbours.recall(points, 5, sample=400)
    assert found["flat"].recall > 0.999 and found["flat"].excess < 1e-5
    assert found["hnsw"].recall > 0.97 and found["hnsw"].excess < 1e-2
    assert 0.3 < found["IVF32,Flat"].recall < 0.995 < 1 + found["IVF32,Flat"].excess
    neighbours.set_params(nprobe=1, ef_search=1)
    worse = neighbours.recall(points, 1, sample=400)
    assert worse.recall < 0.99  # ef_search counts, without building again
    assert neighbours.recall(points, 1, sample=400) == worse
    assert neighbours.set_params(ef_search=128).recall(points, 1, sample=400).recall > worse.recall


def test_recall_is_of_the_true_neighbours():
    """An index that answers with the wrong rows has a recall of 0."""
    points = clusters(500)
    neighbours = FaissNeighbors(6).fit(points)
    right = neighbours.kneighbors
    neighbours.kneighbors = lambda rows, k: (right(rows, k)[0] * 1.5, (right(rows, k)[1] + 250) % 500)
    found = neighbours.recall(points, 5)
    assert found.recall < 0.02 and 0.2 < found.excess < 0.5  # its fifth is the fourth, half as far again


@pytest.mark.parametrize(
    "name, parameter, own",
    [("SMOTE", "k_neighbors", 1), ("BorderlineSMOTE", "m_neighbors", 1), ("ADASYN", "n_neighbors", 1),
     ("EditedNearestNeighbours", "n_neighbors", 1), ("NearMiss", "n_neighbors", 0)],
)  # fmt: skip
def test_it_searches_for_samplers(name, parameter, own):
    X, y = clusters(400), (torch.arange(400) < 60).long()
    options = {} if name in ("EditedNearestNeighbours", "NearMiss") else {"random_state": 0}
    given = FaissNeighbors(5 + own)
    got = getattr(imbloss, name)(**{parameter: given}, **options).fit_resample(X, y)
    expected = getattr(imbloss, name)(**{parameter: 5}, **options).fit_resample(X, y)
    for one, other in zip(got, expected, strict=True):
        assert torch.equal(one, other)
    assert not hasattr(given, "index_")  # a copy was fitted


def test_it_searches_for_smotenc_and_for_imbalanced_learn():
    X, y = clusters(400), (torch.arange(400) < 60).long()
    X[:, 3] = torch.randint(4, (400,)).float()
    X_new, _ = imbloss.SMOTENC([3], random_state=0, k_neighbors=FaissNeighbors(6)).fit_resample(X, y)
    assert torch.equal(X_new, imbloss.SMOTENC([3], random_state=0).fit_resample(X, y)[0])
    rival = pytest.importorskip("imblearn.over_sampling").SMOTE
    for smote in (rival, pytest.importorskip("imbloss.sampling.imblearn").SMOTE):
        got = smote(k_neighbors=FaissNeighbors(6), random_state=0).fit_resample(X.numpy(), y.numpy())[0]
        np.testing.assert_allclose(got, rival(random_state=0).fit_resample(X.numpy(), y.numpy())[0], atol=1e-5)


def test_what_a_search_does_not_find_is_filled_in():
    """Two lists of a row's kind have fewer rows than are asked for."""
    points = torch.cat([torch.zeros(40, 2), torch.full((40, 2), 100.0)]) + torch.rand(80, 2)
    neighbours = FaissNeighbors(60, index="IVF2,Flat", nprobe=1).fit(points)
    distances, indices = neighbours.kneighbors(points)
    assert (indices[:, 39:] == indices[:, 39:40]).all() and (distances[:, 39:] == distances[:, 39:40]).all()
    assert (indices[:40] < 40).all() and (indices[40:] >= 40).all()
    neighbours.index_.reset()
    neighbours.index_.add(neighbours._prepared(points[:40]))
    with pytest.raises(RuntimeError, match="neighbours of every row, but it found none of row 40: raise nprobe"):
        neighbours.set_params(n_neighbors=3).kneighbors(points)


def test_graph_copies_and_representation():
    points = clusters(50)
    neighbours = FaissNeighbors(4).fit(points)
    graph = neighbours.kneighbors_graph(points[:7])
    assert graph.shape == (7, 50) and (graph.sum(1) == 4).all()
    assert (np.sort(graph.indices.reshape(7, 4)) == np.sort(neighbours.kneighbors(points[:7])[1])).all()
    again = pickle.loads(pickle.dumps(neighbours))
    assert (again.kneighbors(points)[1] == neighbours.kneighbors(points)[1]).all()
    assert copy.deepcopy(neighbours).get_params() == neighbours.get_params()
    assert repr(neighbours).startswith("FaissNeighbors(n_neighbors=4, index='flat', metric='l2', ef_search=64")


@pytest.mark.parametrize(
    "parameters, kind, message",
    [
        ({"n_neighbors": 0}, ValueError, "expected n_neighbors >= 1, but got 0"),
        ({"n_neighbors": 2.0}, TypeError, "expected n_neighbors to be an int, but got float 2.0"),
        ({"ef_search": 0}, ValueError, "expected ef_search >= 1, but got 0"),
        ({"nprobe": True}, TypeError, "expected nprobe to be an int, but got bool True"),
        ({"index": 3}, TypeError, 'index to be "flat", "hnsw" or a factory string, but got int 3'),
        ({"index": "nothing"}, ValueError, "faiss.index_factory at 16 columns, but got 'nothing': could not parse"),
        ({"index": "IVF99,Flat"}, ValueError, "index 'IVF99,Flat' can be made of, but got 50 rows: .*99"),
        ({"metric": "l1"}, ValueError, r"expected metric in \('l2', 'cosine'\), but got 'l1'"),
    ],
)
def test_parameters_that_do_not_fit(parameters, kind, message):
    with pytest.raises(kind, match=message):
        FaissNeighbors(**{"n_neighbors": 5, **parameters}).fit(clusters(50))


def test_data_that_do_not_fit():
    points = clusters(50)
    fitted, bad = FaissNeighbors(5).fit(points), points.clone()
    bad[3, 2] = torch.nan
    for call, kind, message in [
        (lambda: FaissNeighbors(5).kneighbors(points), RuntimeError, "expected fit before kneighbors"),
        (lambda: FaissNeighbors(5).recall(points, 3), RuntimeError, "expected fit before recall"),
        (lambda: fitted.kneighbors(points, 51), ValueError, r"n_neighbors in \[1, 50\], the rows fitted, but got 51"),
        (lambda: fitted.kneighbors(points[:, :3]), ValueError, "expected X of 16 columns, as fitted, but got 3"),
        (lambda: fitted.kneighbors(bad), ValueError, "expected X to be finite, but got nan in row 3"),
        (lambda: FaissNeighbors(5).fit(bad), ValueError, "expected X to be finite, but got nan in row 3"),
        (lambda: FaissNeighbors(5).fit(points[:0]), ValueError, "expected X of at least one row, but got none"),
        (lambda: fitted.recall(points[:9], 3), ValueError, "expected points of the 50 rows fitted, but got 9"),
        (lambda: fitted.recall(points, 50), ValueError, r"expected k in \[1, 49\], the other rows, but got 50"),
        (lambda: fitted.set_params(k=3), ValueError, "expected parameters among .*, but got 'k'"),
        (lambda: fitted.kneighbors("rows"), TypeError, "expected X to be a tensor, a numpy array or a pandas frame"),
    ]:
        with pytest.raises(kind, match=message):
            call()


def test_without_the_extra_the_error_names_it():
    code = "import sys, torch, imbloss; sys.modules['faiss'] = None; imbloss.FaissNeighbors(2).fit(torch.ones(3, 1))"
    root = Path(__file__).parent.parent
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)
    assert 'pip install "imbloss[faiss]"' in result.stderr
