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
"""The methods that the bundle is compared with, each by its own package and with that package's defaults.

A method takes the pair on its own grids and returns displacements. Packages are imported where they are used: none of
them is needed to register with the bundle (requirements-dev.lock).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import itk
import numpy as np
import torch
from torch import Tensor

from scripts.data.itk_images import Volume, field_ras, lps_geometry, to_itk_image
from scripts.geometry.warping import warp_image
from scripts.utils.tensors import plain


class MethodOptions(NamedTuple):
    """What some of the methods need to know."""

    seed: int = 0
    modality: str = "mr"
    """Of both images: ct or mr."""
    weights: str | None = None
    """Published checkpoint, for the reference package."""
    steps: int | None = None
    """Of its instance optimization; None for none."""
    network_shape: tuple[int, int, int] = (175, 175, 175)
    """Of its grid."""


class Displacements(NamedTuple):
    """What a method returns, world RAS mm."""

    forward_mm: Tensor
    """(3, I, J, K) on the fixed grid: to the moving point."""
    inverse_mm: Tensor | None
    """(3, I, J, K) on the moving grid: to the fixed point; None from methods without an inverse."""


Method = Callable[[Volume, Volume, MethodOptions], Displacements]


def elastix(*parameter_maps: str) -> Method:
    """Return elastix with its default parameter maps, by itk-elastix, starting from the centers of both images."""

    def register(moving: Volume, fixed: Volume, options: MethodOptions) -> Displacements:
        parameters = itk.ParameterObject.New()
        for number, name in enumerate(parameter_maps):
            chosen = parameters.GetDefaultParameterMap(name)
            if number == 0:  # without it, images that do not overlap in the world end in an error
                chosen["AutomaticTransformInitialization"] = ["true"]
            chosen["RandomSeed"] = [str(max(1, options.seed))]
            parameters.AddParameterMap(chosen)
        moving_image = to_itk_image(moving)
        _, result = itk.elastix_registration_method(
            to_itk_image(fixed), moving_image, parameter_object=parameters, log_to_console=False
        )
        with tempfile.TemporaryDirectory() as folder:  # it writes a file, too
            field = itk.transformix_deformation_field(
                moving_image, result, output_directory=folder, log_to_console=False
            )
        return Displacements(field_ras(itk.array_from_image(field).transpose(2, 1, 0, 3)), None)

    return register


def syn(moving: Volume, fixed: Volume, options: MethodOptions) -> Displacements:
    """Register with SyN (Avants et al., 2008) by antspyx: ``type_of_transform="SyN"``, affine and then deformable."""
    import ants

    def image(volume: Volume) -> Any:
        origin, spacing, direction = lps_geometry(volume.affine_ras)
        return ants.from_numpy(
            plain(volume.values).float().numpy(), origin.tolist(), spacing.tolist(), direction=direction
        )

    fixed_image, moving_image = image(fixed), image(moving)
    with tempfile.TemporaryDirectory() as folder:
        found = ants.registration(
            fixed_image,
            moving_image,
            type_of_transform="SyN",
            outprefix=f"{folder}/syn",
            random_seed=max(1, options.seed),
        )

        def field(grid: Any, other: Any, transforms: Any, invert: list[bool]) -> Tensor:
            path = ants.apply_transforms(
                grid, other, transforms, whichtoinvert=invert, compose=f"{folder}/composed_{len(invert)}_{invert[0]}_"
            )
            return field_ras(np.asarray(ants.image_read(path).numpy()))

        forward = field(fixed_image, moving_image, found["fwdtransforms"], [False, False])
        inverse = field(moving_image, fixed_image, found["invtransforms"], [True, False])
    return Displacements(forward, inverse)


def convex_adam(moving: Volume, fixed: Volume, options: MethodOptions) -> Displacements:
    """Register with convexAdam (Siebert et al., 2021), its defaults, the moving image brought to the fixed grid."""
    from convexAdam.convex_adam_MIND import convex_adam_pt
    from monai.data import MetaTensor

    nothing = torch.zeros(()).expand(3, *fixed.values.shape)
    source = MetaTensor(plain(moving.values)[None], affine=moving.affine_ras)
    lowest = float(source.min())
    moved = warp_image(source, nothing, fixed.values.shape, fixed.affine_ras, "linear", lowest)
    voxels = convex_adam_pt(
        plain(fixed.values).numpy(), np.ascontiguousarray(moved), device=torch.device("cpu"), dtype=torch.float32
    )
    field = torch.from_numpy(np.ascontiguousarray(np.moveaxis(voxels, -1, 0))).double()
    turn = plain(fixed.affine_ras).double()[:3, :3]
    return Displacements(torch.einsum("ab,bijk->aijk", turn, field).float(), None)


def unigradicon(moving: Volume, fixed: Volume, options: MethodOptions) -> Displacements:
    """Register with the reference package, zero-shot or with its instance optimization."""
    import unigradicon as package
    from icon_registration import itk_wrapper

    network = _reference_network(str(options.weights), tuple(options.network_shape))
    modality = {"mr": "mri"}.get(options.modality, options.modality)
    images = [to_itk_image(volume) for volume in (moving, fixed)]
    prepared = [package.preprocess(image, modality=modality) for image in images]
    forward, inverse = itk_wrapper.register_pair(network, *prepared, finetune_steps=options.steps)
    return Displacements(_dense(forward, images[1]), _dense(inverse, images[0]))


@lru_cache(maxsize=1)
def _reference_network(path: str, shape: tuple[int, int, int]) -> Any:
    import unigradicon as package

    network = package.make_network([1, 1, *shape], include_last_step=True)
    network.regis_net.load_state_dict(torch.load(Path(path), map_location="cpu", weights_only=True))
    network.eval()
    return network


def _dense(transform: Any, image: Any) -> Tensor:
    """Return an ITK transform on the grid of an image."""
    field_type = itk.Image[itk.Vector[itk.F, 3], 3]
    filter_ = itk.TransformToDisplacementFieldFilter[field_type, itk.D].New()
    filter_.SetTransform(transform)
    filter_.SetReferenceImage(image)
    filter_.SetUseReferenceImage(True)
    filter_.Update()
    return field_ras(itk.array_from_image(filter_.GetOutput()).transpose(2, 1, 0, 3))
