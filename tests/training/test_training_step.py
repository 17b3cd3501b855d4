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
"""One step of MONAI's trainer with the bundle's parts, against the published packages and without recomputing."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from monai.engines import SupervisedTrainer
from monai.transforms import Compose
from torch import Tensor

from scripts.losses.gradicon import GradICONLoss
from scripts.losses.similarity import create_similarity
from scripts.networks.checkpoint_files import translate_keys
from scripts.networks.registration_network import RegistrationNetwork
from scripts.training.augmentation import RandPairAffineNoised, RandPairAxesd
from scripts.training.pair_network import PairNetwork
from scripts.training.prepare_batch import PairInferer, PrepareTrainingPair, total_loss
from scripts.utils.errors import InputError
from tests.helpers.networks import import_reference, published_state, random_network, random_pair, reference_network

SHAPE = (26, 33, 29)
SEED = 17
RATE = 5e-5


def batch_of(pair: tuple[Tensor, Tensor], seed: int = SEED) -> dict[str, Any]:
    count = len(pair[0])
    return {
        "moving_image": pair[0],
        "fixed_image": pair[1],
        "seed": torch.full((count,), seed),
        "pair": [f"pair {n}" for n in range(count)],
    }


def step(
    network: RegistrationNetwork, batch: dict[str, Any], lambda_gradicon: float = 1.5, **arguments: Any
) -> tuple[dict[str, float], PairNetwork]:
    """Make one optimization step on a copy of the network; return the terms and the trained network."""
    trained = PairNetwork(copy.deepcopy(network), **arguments)
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=1,
        train_data_loader=[batch],
        network=trained,
        optimizer=torch.optim.Adam(trained.parameters(), lr=RATE),
        loss_function=total_loss,
        prepare_batch=PrepareTrainingPair(),
        inferer=PairInferer(GradICONLoss(create_similarity("lncc"), lambda_gradicon)),
    )
    trainer.run()
    return trainer.state.output[0]["pred"]["terms"], trained


@pytest.fixture
def reference(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    return import_reference(monkeypatch)


@pytest.mark.parametrize("stage", [1, 2])
def test_one_step_equals_the_reference(stage: int, reference: SimpleNamespace) -> None:
    pair, network = random_pair(SHAPE, batch=2), random_network(stage=stage)
    model = reference_network(reference, network, SHAPE)
    model.train()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn(1, 3, *(-(-n // 2) for n in SHAPE), generator=generator)
    full = torch.zeros(1, 3, *SHAPE)
    full[:, :, ::2, ::2, ::2] = noise
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "randn", lambda *a, **k: full)
        theirs = model(*pair)
    theirs.all_loss.backward()
    optimizer.step()

    ours, trained = step(network, batch_of(pair))

    names = {
        "loss": "all_loss",
        "similarity": "similarity_loss",
        "regularity": "inverse_consistency_loss",
        "transform_magnitude": "transform_magnitude",
        "folding": "flips",
    }
    for name, other in names.items():
        expected = float(getattr(theirs, other).detach())
        assert ours[name] == pytest.approx(expected, rel=1e-4), name
    assert ours["regularity"] > 1e-3

    mine, reference_weights = dict(trained.network.named_parameters()), dict(model.regis_net.named_parameters())
    published = published_state(trained.network)
    names_here = translate_keys(dict.fromkeys(published, torch.empty(0)))
    ends = {
        name: reference_weights[key]
        for key, name in zip(published, names_here, strict=True)
        if name.endswith((".down.0.weight", ".last.weight"))
    }
    assert len(ends) == 2 * (2 + stage)
    for name, expected in ends.items():
        assert (mine[name].grad - expected.grad).norm() <= 1e-3 * expected.grad.norm(), name
        assert expected.grad.norm() > 0
        torch.testing.assert_close(mine[name], expected, rtol=0, atol=0.02 * RATE)


@pytest.mark.parametrize("arguments", [{"activation_checkpointing": True}, {"channels_last": True}])
def test_recomputing_and_the_memory_format_give_the_same_step(arguments: dict[str, Any]) -> None:
    network, batch = random_network(), batch_of(random_pair(SHAPE, batch=2))
    # without the regularity, whose differences of 0.001 make much of the rounding of another memory format
    plain_terms, plain = step(network, batch, lambda_gradicon=0)
    terms, trained = step(network, batch, lambda_gradicon=0, **arguments)
    assert terms["loss"] == pytest.approx(plain_terms["loss"], rel=1e-5)
    for (name, expected), value in zip(plain.state_dict().items(), trained.state_dict().values(), strict=True):
        if name.endswith(("running_mean", "running_var")):
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-6, msg=name)
        elif name.endswith("num_batches_tracked"):
            assert value == expected == 2, name  # one batch, both directions
    gradients = [torch.cat([p.grad.flatten() for p in net.parameters()]) for net in (plain, trained)]
    assert (gradients[0] - gradients[1]).norm() < 1e-3 * gradients[0].norm()
    if "channels_last" not in arguments:
        assert torch.equal(*gradients)


def test_frozen_batch_norms_train_what_registers() -> None:
    network, batch = random_network(), batch_of(random_pair(SHAPE))
    image = torch.cat([batch["moving_image"], batch["fixed_image"]], dim=1)
    with torch.no_grad():
        registered = PairNetwork(network).eval()(image)
        trained = PairNetwork(copy.deepcopy(network), freeze_batch_norm=True).train()(image)
        by_the_pair = PairNetwork(copy.deepcopy(network)).train()(image)
    assert torch.equal(registered[0][-1], trained[0][-1])
    assert not torch.allclose(registered[0][-1], by_the_pair[0][-1])

    after = step(network, batch, freeze_batch_norm=True)[1]
    for name, value in after.network.state_dict().items():
        kept = name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        assert torch.equal(value, network.state_dict()[name]) == kept, name


def test_running_statistics_follow_a_batch_by_the_momentum() -> None:
    image = torch.cat(random_pair(SHAPE), dim=1)
    start = random_network()
    means = {}
    for momentum in (0.01, 1.0):
        network = PairNetwork(copy.deepcopy(start), batch_norm_momentum=momentum).train()
        network.network.displacements(image[:, :1], image[:, 1:])
        means[momentum] = network.network.unets[0].norm[0].running_mean
    before = start.unets[0].norm[0].running_mean
    torch.testing.assert_close(means[0.01], before + 0.01 * (means[1.0] - before), atol=1e-6, rtol=1e-4)
    assert not torch.allclose(means[0.01], before)
    with pytest.raises(InputError, match=r"batch_norm_momentum must be in \(0, 1\], got 0"):
        PairNetwork(start, batch_norm_momentum=0)


def test_less_is_kept_for_the_backward_pass_with_recomputing() -> None:
    image = torch.cat(random_pair((32, 32, 32)), dim=1)
    kept = []
    for recomputing in (False, True):
        network = PairNetwork(random_network(), activation_checkpointing=recomputing)
        size = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal size
            size += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            network(image)
        kept.append(size)
    assert kept[1] < 0.5 * kept[0]


def test_the_noise_follows_the_seed_of_the_pair() -> None:
    network, pair = random_network(), random_pair(SHAPE)
    regularity = [step(network, batch_of(pair, seed))[0]["regularity"] for seed in (1, 1, 2)]
    assert regularity[0] == regularity[1]
    assert regularity[0] != regularity[2]


def test_the_similarity_is_computed_on_the_other_contrast_where_there_is_one() -> None:
    network, pair = random_network(), random_pair(SHAPE)
    batch = batch_of(pair)
    plain_terms, _ = step(network, batch)
    same, _ = step(network, {**batch, "moving_similarity": pair[0], "fixed_similarity": pair[1]})
    other, _ = step(network, {**batch, "moving_similarity": pair[1], "fixed_similarity": pair[1]})
    assert same == plain_terms
    assert other["regularity"] == plain_terms["regularity"]  # the network saw the same
    assert other["similarity"] < 0.9 * plain_terms["similarity"]


def test_masks_and_labels_reach_the_objective_on_their_sides() -> None:
    network, (moving, fixed) = random_network().eval(), random_pair(SHAPE, batch=2)
    regions = {
        "moving_mask": (moving > 0.4).to(torch.uint8),
        "fixed_mask": (fixed > 0.6).to(torch.uint8),
        "moving_label": (moving * 4).to(torch.uint8),
        "fixed_label": (fixed * 5).to(torch.uint8),
    }
    objective = GradICONLoss(create_similarity("lncc"), dice_weight=0.7, require_labels=False)
    image, _, _, extras = PrepareTrainingPair()({**batch_of((moving, fixed)), **regions})
    with torch.no_grad():
        terms = PairInferer(objective)(image, PairNetwork(network), **extras)["terms"]
        transforms = network.register(moving, fixed), network.register(fixed, moving)
        generator = torch.Generator().manual_seed(SEED)
        expected = objective(*transforms, moving, fixed, generator=generator, **regions)._asdict()
    expected["dice_loss"] = expected.pop("dice")
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value.float().expand(2), msg=name)
    without = PairInferer(objective)(image, PairNetwork(network), seed=SEED)["terms"]
    assert without["similarity"][0] != terms["similarity"][0]
    assert "fixed_label" not in PrepareTrainingPair(with_labels=False)({**batch_of((moving, fixed)), **regions})[3]


def test_each_pair_of_a_batch_is_augmented_by_its_own_seed() -> None:
    moving, fixed = random_pair((12, 12, 12), batch=2)
    batch = {**batch_of((moving, fixed)), "seed": torch.tensor([5, 6]), "fixed_mask": (fixed > 0.5).to(torch.uint8)}
    augmentation = Compose([RandPairAxesd(), RandPairAffineNoised()])
    image, _, _, extras = PrepareTrainingPair(augmentation)(batch)
    for number, seed in enumerate((5, 6)):
        pair = {"moving_image": moving[number], "fixed_image": fixed[number], "fixed_mask": batch["fixed_mask"][number]}
        expected = Compose([RandPairAxesd(), RandPairAffineNoised()]).set_random_state(seed=seed)(pair)
        assert torch.equal(image[number, :1], expected["moving_image"])
        assert torch.equal(image[number, 1:], expected["fixed_image"])
        assert torch.equal(extras["fixed_mask"][number], expected["fixed_mask"])
        assert not torch.equal(image[number, :1], moving[number])


def test_pairs_without_common_labels_add_nothing_to_the_dice_loss() -> None:
    network = random_network()
    moving, fixed = random_pair(SHAPE, batch=2)
    loss = GradICONLoss(create_similarity("lncc"), dice_weight=1.0, require_labels=False)
    label = (moving > 0.5).int()
    transforms = network.register(moving, fixed), network.register(fixed, moving)

    def dice(moving_label: Tensor, fixed_label: Tensor) -> float:
        return loss(*transforms, moving, fixed, moving_label=moving_label, fixed_label=fixed_label).as_floats()["dice"]

    first_only = label.clone()
    first_only[1] = 0
    one, both = dice(first_only, label), dice(label, label)
    assert dice(label * 0, label) == 0
    assert 0 < one < both


def test_the_result_does_not_depend_on_what_else_is_random() -> None:
    network, batch = random_network(), batch_of(random_pair(SHAPE))
    torch.manual_seed(1)
    first, _ = step(network, batch)
    torch.manual_seed(2)
    assert step(network, batch)[0] == first
