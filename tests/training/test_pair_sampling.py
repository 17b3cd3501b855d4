# Copyright (c) uniGradICON bundle contributors
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#     http://www.apache.org/licenses/LICENSE-2.0
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Which pairs an epoch has: random, intra-subject, given, synthetic; several contrasts; nothing remembered."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from scripts.training.pair_sampling import VALIDATION_SEED, PairSet, build_sets
from scripts.utils.errors import InputError


def image(name: str, *contrasts: str, **entries: Any) -> dict[str, Any]:
    names = contrasts or ("image",)
    return {
        "set": "images",
        "subject": name,
        "images": {contrast: f"/data/{name}_{contrast}.nii" for contrast in names},
        "modalities": dict.fromkeys(names, "mr"),
        **entries,
    }


def draws(pair_set: PairSet, epoch: int = 1, seed: int = 0) -> list[Any]:
    return [pair_set.draw(seed, 0, epoch, number) for number in range(pair_set.size)]


def test_random_pairs_are_of_two_subjects_and_change_with_the_epoch() -> None:
    records = [image("a"), image("a2", subject="a"), image("b"), image("c")]
    (pair_set,), images = build_sets(records, 40)
    assert len(images) == 4
    subject_of = ["a", "a", "b", "c"]
    first = draws(pair_set)
    assert all(subject_of[draw.fixed] != subject_of[draw.moving] for draw in first)
    assert {draw.fixed for draw in first} == {0, 1, 2, 3}
    assert first == draws(pair_set)
    assert first != draws(pair_set, epoch=2)
    assert first != draws(pair_set, seed=1)
    assert len({draw.seed for draw in first}) == 40


def test_intra_subject_pairs_are_two_images_of_one_subject() -> None:
    records = [image(f"{s}{n}", subject=s, pairing="intra_subject") for s in "ab" for n in range(3)] + [image("c")]
    (pair_set,), _ = build_sets(records, 60)
    pairs = {(draw.fixed, draw.moving) for draw in draws(pair_set)}
    assert all(fixed // 3 == moving // 3 and fixed != moving for fixed, moving in pairs)
    assert len(pairs) == 12  # all of them, in both directions
    with pytest.raises(InputError, match="two images"):
        build_sets([image("a", pairing="intra_subject"), image("b")], 10)


def test_given_pairs_come_equally_often() -> None:
    records = [{"set": "p", "fixed": image(f"f{n}"), "moving": image(f"m{n}")} for n in range(5)]
    (pair_set,), images = build_sets(records, 12)
    assert len(images) == 10
    counts = Counter((d.fixed, d.moving) for epoch in range(5) for d in draws(pair_set, epoch))
    assert set(counts.values()) == {12}
    assert all(moving == fixed + 1 for fixed, moving in counts)


def test_sets_keep_their_own_number_of_pairs() -> None:
    records = [image("a", pairs_per_epoch=3), image("b"), {"set": "s", "synthetic": {}}]
    sets, _ = build_sets(records, 1000)
    assert [pair_set.size for pair_set in sets] == [3, 1000]


def test_the_network_sees_any_contrast_and_the_similarity_a_common_one() -> None:
    records = [image("a", "t1", "t2", "pd", label="/data/a.nii"), image("b", "t1", "t2")]
    (pair_set,), images = build_sets(records, 200)
    names = [item["image"].split("_")[1] for item in images]
    assert names == ["t1.nii", "t2.nii", "pd.nii", "t1.nii", "t2.nii"]
    seen = Counter((names[d.fixed], names[d.moving]) for d in draws(pair_set))
    assert len(seen) == 8  # every contrast of one with every one of the other, in both directions
    compared = Counter((names[d.fixed_similarity], names[d.moving_similarity]) for d in draws(pair_set))
    assert set(compared) == {("t1.nii", "t1.nii"), ("t2.nii", "t2.nii")}
    assert {d.fixed_anatomy for d in draws(pair_set)} == {0, 3}
    assert [("label" in item) for item in images] == [True, False, False, False, False]


def test_validation_takes_each_pair_once_and_neighbors_of_a_list_of_images() -> None:
    (pair_set,), _ = build_sets([image("a"), image("b"), image("c")], None)
    assert [(draw.fixed, draw.moving) for draw in draws(pair_set, epoch=0)] == [(0, 1), (1, 2)]
    given = [{"set": "p", "fixed": image(f"f{n}"), "moving": image(f"m{n}")} for n in range(3)]
    (pair_set,), _ = build_sets(given, None)
    assert [draw.fixed for draw in draws(pair_set, epoch=0)] == [0, 2, 4]


def test_synthetic_validation_pairs_are_never_training_pairs() -> None:
    (training,), _ = build_sets([{"set": "s", "synthetic": {}}], 50)
    (validation,), _ = build_sets([{"set": "s", "synthetic": {"pairs": 5}}], None)
    assert all(draw.seed < VALIDATION_SEED for draw in draws(training))
    held_out = draws(validation)
    assert len(held_out) == 5
    assert all(draw.seed >= VALIDATION_SEED for draw in held_out)
    assert all(draw.fixed == -1 for draw in held_out)


def test_images_and_labels_of_another_program_are_taken(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.nii.gz").touch()
    flat = [{"image": str(tmp_path / f"{name}.nii.gz"), "label": str(tmp_path / f"{name}.nii.gz")} for name in "ab"]
    (pair_set,), images = build_sets(flat, 4)
    assert {item["image_modality"] for item in images} == {"mr"}
    assert len({draw.fixed for draw in draws(pair_set)}) == 2


def test_what_gives_no_pairs_is_refused() -> None:
    with pytest.raises(InputError, match="two subjects"):
        build_sets([image("a")], 10)
    with pytest.raises(InputError, match="mixes"):
        build_sets([image("a"), image("b"), {"set": "images", "fixed": image("c"), "moving": image("d")}], 10)


@pytest.mark.parametrize("pairing", ["inter_subject", "intra_subject"])
def test_pairs_with_labels_get_a_fair_share_where_few_images_have_some(pairing: str) -> None:
    """With 3 of 10 images labelled, 1 of 15 random pairs would have labels in both images."""
    subjects = range(10) if pairing == "inter_subject" else [n // 5 for n in range(10)]
    records = [
        image(f"i{n}", subject=f"s{s}", pairing=pairing, **({"label": f"/data/{n}.nii"} if n < 3 else {}))
        for n, s in enumerate(subjects)
    ]
    (pair_set,), _ = build_sets(records, 200, prefer_labels=True)
    drawn = draws(pair_set)
    both = sum(draw.fixed < 3 and draw.moving < 3 for draw in drawn)
    assert 90 <= both <= 150
    assert {draw.fixed for draw in drawn} == set(range(10))
    assert drawn == draws(pair_set)
    (plain,), _ = build_sets(records, 200)
    assert sum(draw.fixed < 3 and draw.moving < 3 for draw in draws(plain)) < 60


def test_labels_change_no_draw_where_all_or_too_few_images_have_some() -> None:
    for count in (0, 1, 4):
        records = [image(str(n), **({"label": "/data/l.nii"} if n < count else {})) for n in range(4)]
        (preferring,), _ = build_sets(records, 40, prefer_labels=True)
        (plain,), _ = build_sets(records, 40)
        assert draws(preferring) == draws(plain)
