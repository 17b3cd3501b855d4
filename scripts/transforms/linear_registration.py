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
"""Linear registration of two ITK images by mutual information (Mattes), with ITK's v4 framework."""

from __future__ import annotations

import logging
from typing import Any

import itk
import numpy as np

logger = logging.getLogger(__name__)

LEAST_OVERLAP = 0.25  # of the fixed image; information over less of it counts less
ITERATIONS = 120


def _metric(images: list[Any]) -> Any:
    metric = itk.MattesMutualInformationImageToImageMetricv4[type(images[0]), type(images[1])].New()
    metric.SetNumberOfHistogramBins(32)
    metric.SetMaximumNumberOfWorkUnits(1)  # sums in one order: the same result each time
    return metric


def mutual_information(images: list[Any], matrix: np.ndarray) -> float:
    """Return the mutual information of two images where they overlap; less where they hardly do.

    Args:
        images: fixed and moving, ``itk.Image[itk.F, 3]``.
        matrix: (4, 4), fixed -> moving, LPS mm.
    """
    metric = _metric(images)
    metric.SetFixedImage(images[0])
    metric.SetMovingImage(images[1])
    metric.SetVirtualDomainFromImage(images[0])
    metric.SetMovingTransform(_affine(matrix))
    try:
        metric.Initialize()
        value = -float(metric.GetValue())
    except RuntimeError:  # no overlap at all
        return 0.0
    size = np.prod(itk.size(images[0]))
    return value * min(1.0, metric.GetNumberOfValidPoints() / size / LEAST_OVERLAP)


def _affine(matrix: np.ndarray, center: np.ndarray | None = None, kind: Any = None) -> Any:
    transform = (kind or itk.AffineTransform[itk.D, 3]).New()
    middle = np.zeros(3) if center is None else center
    transform.SetCenter([float(v) for v in middle])
    transform.SetMatrix(itk.matrix_from_array(np.ascontiguousarray(matrix[:3, :3])))
    offset = matrix[:3, 3] - middle + matrix[:3, :3] @ middle
    transform.SetTranslation([float(v) for v in offset])
    return transform


def rigid(matrix: np.ndarray, center: np.ndarray) -> Any:
    """Return an ITK transform of a matrix (4, 4), LPS mm, that turns about a center (3,) and shifts."""
    return _affine(matrix, center, itk.VersorRigid3DTransform[itk.D])


def as_kind(transform: Any, kind: str) -> Any:
    """Return a copy of a linear ITK transform as a rigid, similarity or affine one about the same center."""
    targets = {
        "rigid": itk.VersorRigid3DTransform[itk.D],
        "similarity": itk.Similarity3DTransform[itk.D],
        "affine": itk.AffineTransform[itk.D, 3],
    }
    return _affine(matrix_of(transform), np.array(list(transform.GetCenter())), targets[kind])


def matrix_of(transform: Any) -> np.ndarray:
    """Return a linear ITK transform as (4, 4)."""
    matrix = np.eye(4)
    matrix[:3, :3] = itk.array_from_matrix(transform.GetMatrix())
    matrix[:3, 3] = list(transform.GetOffset())
    return matrix


def refine(images: list[Any], transform: Any, levels: tuple[tuple[int, float], ...], first_step: float) -> Any:
    """Return a transform optimized for mutual information, or as it was if that found nothing better.

    Args:
        images: fixed and moving.
        transform: start; changed.
        levels: (shrink factor, blur in voxels), coarse to fine.
        first_step: in voxels.
    """
    before = matrix_of(transform)
    metric = _metric(images)
    optimizer = itk.RegularStepGradientDescentOptimizerv4[itk.D].New()
    optimizer.SetNumberOfIterations(ITERATIONS)
    optimizer.SetLearningRate(first_step * float(max(images[0].GetSpacing())))
    optimizer.SetMinimumStepLength(0.005)
    optimizer.SetRelaxationFactor(0.6)
    optimizer.SetReturnBestParametersAndValue(True)
    scales = itk.RegistrationParameterScalesFromPhysicalShift[type(metric)].New()
    scales.SetMetric(metric)
    optimizer.SetScalesEstimator(scales)
    registration = itk.ImageRegistrationMethodv4[type(images[0]), type(images[1])].New()
    registration.SetFixedImage(images[0])
    registration.SetMovingImage(images[1])
    registration.SetMetric(metric)
    registration.SetOptimizer(optimizer)
    registration.SetInitialTransform(transform)
    registration.InPlaceOn()
    registration.SetNumberOfLevels(len(levels))
    registration.SetShrinkFactorsPerLevel([factor for factor, _ in levels])
    registration.SetSmoothingSigmasPerLevel([sigma for _, sigma in levels])
    registration.SmoothingSigmasAreSpecifiedInPhysicalUnitsOff()
    try:
        registration.Update()
    except RuntimeError as error:  # the images moved apart
        logger.info("a linear refinement stopped (%s)", str(error).splitlines()[-1])
    if mutual_information(images, matrix_of(transform)) < mutual_information(images, before):
        return _affine(before, np.array(list(transform.GetCenter())), type(transform))
    return transform
