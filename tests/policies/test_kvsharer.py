"""KVSharer's map of layers, and its search on a model that is a table."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kvarena.framework.policy import checked_sharing
from kvarena.policies.compression.kvsharer import KVSharer
from kvarena.policies.compression.kvsharer_search import find_sharing, mean_cosine, ranked_pairs


class Table:
    """A model whose layers' K/V are given, and in which each pair that is shared costs so much similarity."""

    def __init__(self, sizes: list[float], costs: Mapping[tuple[int, int], float], kinds: str = "") -> None:
        self.kinds, self.vocab_size = kinds or "f" * len(sizes), 7
        self.sizes, self.costs = sizes, costs
        self.tried: list[dict[int, int]] = []
        self.asked: list[np.ndarray] = []

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def mean_cache(self, ids: np.ndarray) -> np.ndarray:
        return np.array([[[size, 0.0], [0.0, size]] for size in self.sizes], np.float32)

    def last_hidden(self, ids: np.ndarray, sharing: Mapping[int, int]) -> np.ndarray:
        self.asked.append(ids)
        if sharing:
            self.tried.append(dict(sharing))
        cosine = 1.0 - sum(self.costs.get(pair, 0.0) for pair in sharing.items())
        vector = np.array([cosine, (1 - cosine**2) ** 0.5], np.float32)
        return np.broadcast_to(vector, (*ids.shape, 2))


IDS = np.zeros((2, 3), np.int64)


class TestSearch:
    def test_the_most_different_pair_that_bears_it_comes_first(self) -> None:
        table = Table([0.0, 1.0, 3.0, 10.0], {(3, 0): 0.6, (3, 1): 0.4})
        assert find_sharing(table, IDS, 1, 0.5) == {3: 1}
        assert table.tried == [{3: 0}, {3: 1}]

    def test_it_goes_on_until_there_are_enough(self) -> None:
        table = Table([0.0, 1.0, 3.0, 10.0], {})
        assert find_sharing(table, IDS, 2, 0.5) == {2: 0, 3: 0}
        assert find_sharing(table, IDS, 3, 0.5) == {1: 0, 2: 0, 3: 0}

    def test_pairs_are_judged_together_with_those_kept_before(self) -> None:
        table = Table([0.0, 1.0, 3.0, 10.0], {(3, 0): 0.3, (2, 0): 0.3, (2, 1): 0.1})
        assert find_sharing(table, IDS, 2, 0.5) == {2: 1, 3: 0}

    def test_exactly_the_threshold_is_not_above_it(self) -> None:
        assert find_sharing(Table([0.0, 1.0], {(1, 0): 0.5}), IDS, 1, 0.5) == {}

    def test_a_source_that_comes_to_share_hands_its_users_on(self) -> None:
        table = Table([0.0, 9.0, 1.0], {(2, 0): 1.0})  # (0, 1), (1, 2), (0, 2) by distance
        assert find_sharing(table, IDS, 1, 0.5) == {1: 0}
        assert find_sharing(table, IDS, 2, 0.5) == {1: 0}  # (1, 2) would be (0, 2)
        assert {1: 0, 2: 0} in table.tried

    def test_only_layers_of_one_kind_pair(self) -> None:
        assert find_sharing(Table([0.0, 1.0, 9.0], {}, "fsf"), IDS, 3, 0.5) == {2: 0}

    def test_distances_are_the_mean_of_keys_and_values(self) -> None:
        cache = np.array([[[0, 0], [0, 0]], [[3, 4], [0, 0]], [[0, 2], [2, 0]]], np.float32)
        assert ranked_pairs(cache) == [(1, 2), (0, 1), (0, 2)]  # 2.91, 2.5, 2
        assert mean_cosine(np.eye(2), np.array([[1.0, 0.0], [1.0, 0.0]])) == 0.5


class TestKnobs:
    def test_a_map_is_what_it_says(self) -> None:
        assert KVSharer(layer_map={3: 1, 1: 0}).sharing(4) == {1: 0, 3: 0}
        assert not KVSharer(layer_map={}).shares

    def test_an_eighth_of_the_layers_by_default(self) -> None:
        assert [len(KVSharer().sharing(layers)) for layers in (1, 2, 8, 15, 16, 32)] == [0, 1, 1, 1, 2, 4]

    def test_without_a_model_the_last_layers_share(self) -> None:
        assert KVSharer(shared_layers=2).sharing(5) == {4: 2, 3: 2}
        assert KVSharer(shared_layers=0).sharing(5) == {}

    def test_calibration_tokens_are_drawn_by_seed_or_read(self, tmp_path: Path) -> None:
        def asked(**knobs: Any) -> Any:
            table = Table([0.0, 1.0], {})
            KVSharer(shared_layers=1, sequences=2, tokens=3, **knobs).sharing(2, table)
            return table.asked[0].tolist()

        (tmp_path / "text").write_text("abcdefgh")
        assert asked(text=str(tmp_path / "text")) == [[97, 98, 99], [100, 101, 102]]
        assert asked(seed=1) == asked(seed=1) != asked(seed=2)
        (tmp_path / "text").write_text("abc")
        with pytest.raises(ValueError, match="has 3 tokens; sequences x tokens are 2 x 3"):
            asked(text=str(tmp_path / "text"))

    @pytest.mark.parametrize(
        ("knobs", "message"),
        [
            ({"layer_map": {0: 1}}, "0: 1, which points upward"),
            ({"layer_map": {5: 2, 3: 3}}, "3: 3, which points to itself"),
            ({"layer_map": {2: -1}}, "2: -1, expected layers of the model: 0 and up"),
            ({"layer_map": {"2": 1}}, "'2': 1, expected two whole numbers"),
            ({"layer_map": {True: 0}}, "True: 0, expected two whole numbers"),
            ({"layer_map": [2, 1]}, "layer_map is .2, 1.; it must be null or later layer: earlier layer"),
            ({"layer_map": {1: 0}, "shared_layers": 1}, "one must be null"),
            ({"shared_layers": -1}, "shared_layers is -1"),
            ({"similarity": 1.5}, "similarity is 1.5"),
            ({"tokens": 0}, "tokens is 0"),
            ({"text": "/no/such/file"}, "there is no such file"),
        ],
    )
    def test_bad_knobs_are_refused(self, knobs: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            KVSharer(**knobs)

    def test_a_model_with_too_few_layers_is_refused(self) -> None:
        with pytest.raises(ValueError, match="9: 0, expected layers of the model: 0 to 3"):
            KVSharer(layer_map={9: 0}).sharing(4)
        with pytest.raises(ValueError, match="shared_layers is 4; of a model of 4 layers at most 3"):
            KVSharer(shared_layers=4).sharing(4)


def test_what_passes_the_check_points_down_to_layers_that_store() -> None:
    rng, passed = random.Random(0), 0
    for _ in range(3000):
        layers = rng.randint(1, 6)
        given = {rng.randint(-1, layers): rng.randint(-1, layers) for _ in range(rng.randint(0, 4))}
        sound = all(0 <= source < layer < layers for layer, source in given.items())
        if not sound:
            with pytest.raises(ValueError, match="layer_map has"):
                checked_sharing(given, layers)
            continue
        passed += 1
        found = checked_sharing(given, layers)
        assert found.keys() == given.keys()
        assert list(found) == sorted(found)
        for layer, source in found.items():
            assert source not in found
            assert source < layer
            assert found.get(given[layer], given[layer]) == source  # of the same chain
    assert 100 < passed < 2900
