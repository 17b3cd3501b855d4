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
"""Other registration methods in the place of the bundle's inferer: same files, same measurements, same report."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from importlib import metadata
from typing import Any, NamedTuple

import torch
from monai.inferers import Inferer
from monai.transforms import Transform
from torch import Tensor

from scripts.data.case import NETWORK_IMAGES, Case, WorldTransforms
from scripts.data.itk_images import Volume
from scripts.evaluation.comparator_methods import (
    Method,
    MethodOptions,
    convex_adam,
    elastix,
    syn,
    unigradicon,
)
from scripts.geometry.grid_transform import GridTransform
from scripts.geometry.image_pair import Registration
from scripts.inferers.registration_inferer import PreparePair, RegistrationInferer
from scripts.transforms.postprocessing import AddTransformsd
from scripts.utils.errors import InputError
from scripts.utils.tensors import plain

logger = logging.getLogger(__name__)

BUNDLE, IDENTITY = "bundle", "identity"
INSTALL = "pip install --no-deps --require-hashes -r requirements-dev.lock"


class Comparator(NamedTuple):
    """A method and the package it comes from."""

    register: Method
    package: str


COMPARATORS = {
    "affine": Comparator(elastix("affine"), "itk-elastix"),
    "bspline": Comparator(elastix("affine", "bspline"), "itk-elastix"),
    "syn": Comparator(syn, "antspyx"),
    "convexadam": Comparator(convex_adam, "convexAdam"),
    "unigradicon": Comparator(unigradicon, "unigradicon"),
}
METHODS = (BUNDLE, IDENTITY, *COMPARATORS)


def describe_method(method: str) -> str:
    """Return the method's name, with package and version where it has one, for the report.

    Raises:
        InputError: an unknown method, or its package is not installed.
    """
    if method not in METHODS:
        raise InputError(f"method: expected one of {', '.join(METHODS)}, got '{method}'")
    if method not in COMPARATORS:
        return method
    package = COMPARATORS[method].package
    try:
        return f"{method} ({package} {metadata.version(package)})"
    except metadata.PackageNotFoundError:
        raise InputError(f"method {method} needs the package {package}, which is not installed: {INSTALL}") from None


class PrepareNativePair(PreparePair):
    """Give the inferer the images on their own grids, too, as ``native``: {"moving", "fixed", "modality"}."""

    def __call__(self, batchdata: dict[str, Any], *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        """Return what :class:`~scripts.inferers.registration_inferer.PreparePair` does, with ``native`` beside it."""
        image, targets, rest, extras = super().__call__(batchdata, *args, **kwargs)
        native: dict[str, Any] = {
            side: Volume(plain(batchdata[side])[0, 0].float(), plain(batchdata[side].affine).double().reshape(4, 4))
            for side in ("moving", "fixed")
        }
        native["modality"] = str(batchdata["fixed_modality"][0])
        return image, targets, rest, {**extras, "native": native}


class MethodInferer(Inferer):
    """The bundle's inferer, or another method behind the same interface.

    Args:
        method: one of :data:`METHODS`.
        bundle: the bundle's own inferer.
        options: for the methods that need them.

    Raises:
        InputError: as :func:`describe_method`, or the reference package without its weights.
    """

    def __init__(self, method: str, bundle: RegistrationInferer, options: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        describe_method(method)
        self.method, self.bundle = method, bundle
        self.options = MethodOptions(**dict(options or {}))
        if method == "unigradicon" and not self.options.weights:
            raise InputError("method unigradicon needs published weights: give --ckpt_path FILE or --model unigradicon")

    def check_network(self, network: Any) -> None:
        """Refuse a network that the bundle's inferer can't work with, where it is the method."""
        if self.method == BUNDLE:
            self.bundle.check_network(network)

    def __call__(
        self, inputs: Tensor, network: Any, *args: Any, native: Mapping[str, Any], **kwargs: Any
    ) -> Registration:
        """Register a pair; returns the bundle's result, or ``forward_mm``, ``inverse_mm`` and ``terms``.

        Where another method fails, its pair stays at the start, and ``terms`` says why.
        """
        if self.method == BUNDLE:
            return self.bundle(inputs, network, *args, **kwargs)
        began = time.perf_counter()
        if self.method == IDENTITY:
            return {"terms": {"seconds_registration": [0.0]}}
        options = self.options._replace(modality=native["modality"])
        terms: dict[str, Any] = {}
        result: Registration = {}
        try:
            with torch.enable_grad():  # the evaluator switches it off
                found = COMPARATORS[self.method].register(native["moving"], native["fixed"], options)
            if not all(bool(field.isfinite().all()) for field in found if field is not None):
                raise ValueError("it returned displacements that are not finite")
            result = {"forward_mm": found.forward_mm[None]}
            if found.inverse_mm is not None:
                result["inverse_mm"] = found.inverse_mm[None]
        except (RuntimeError, ValueError, ArithmeticError) as error:  # the pair stays as it was, and counts so
            reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
            logger.warning("method %s failed on a pair, which counts as not registered: %s", self.method, reason)
            terms["failure"] = [reason]
        return {**result, "terms": {**terms, "seconds_registration": [time.perf_counter() - began]}}


class AddMethodTransformsd(Transform):
    """Add the transforms of whatever method registered.

    As :class:`scripts.transforms.postprocessing.AddTransformsd` does.
    Displacements become ddfs on the images' own grids over the same start, field of view onto field of view, so that
    "before" means the same for all methods. The identity is that start.
    """

    def __call__(self, data: Case) -> Case:
        """Return the case with transforms."""
        pred = data["pred"]
        if "forward_ddf" in pred:
            return AddTransformsd()(data)
        fixed_affine, moving_affine = (plain(data[key].affine).double() for key in NETWORK_IMAGES)
        start = moving_affine @ torch.linalg.inv(fixed_affine)  # fixed world -> moving world
        if "forward_mm" not in pred:
            nothing = torch.zeros(3, *data["fixed_image"].shape[1:])
            return AddTransformsd()({**data, "pred": {**pred, "forward_ddf": nothing, "inverse_ddf": nothing}})
        displacement_mm, inverse = plain(pred["forward_mm"]), None
        forward = over_start(displacement_mm, data["fixed"].affine, start)
        if "inverse_mm" in pred:
            inverse = over_start(plain(pred["inverse_mm"]), data["moving"].affine, torch.linalg.inv(start))
        return {**data, "transforms": WorldTransforms(forward, inverse, forward, inverse, displacement_mm)}


def over_start(displacement_mm: Tensor, affine_ras: Tensor, start: Tensor) -> GridTransform:
    """Return a dense displacement as a transform whose ddf is measured from a start.

    Args:
        displacement_mm: (3, I, J, K), RAS mm, on the fixed grid: to the moving point.
        affine_ras: (4, 4) of that grid.
        start: (4, 4), fixed world -> moving world RAS mm; a ddf of 0 is this map.
    """
    affine = plain(affine_ras).double()
    moving_affine = start @ affine
    to_voxel = torch.linalg.inv(moving_affine)
    # ddf(i) = inv(M) (A i + u) - i: an affine part, taken from the grid, and the turned displacement
    offset = to_voxel @ affine - torch.eye(4, dtype=torch.float64)
    axes = [torch.arange(n, dtype=torch.float64) for n in displacement_mm.shape[1:]]
    ddf = torch.einsum("ab,bijk->aijk", to_voxel[:3, :3].float(), plain(displacement_mm).float())
    for row in range(3):
        i, j, k = (offset[row, column] * axes[column] for column in range(3))
        ddf[row] += (i.view(-1, 1, 1) + j.view(1, -1, 1) + (k + offset[row, 3]).view(1, 1, -1)).float()
    return GridTransform(ddf, affine, moving_affine)
