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
"""Reading and writing files, and what a case and a list of cases are.

Volumes (``reading``; which affine of a NIfTI header counts: ``nifti_geometry``), DICOM series (``dicom_series``;
order of the slices: ``dicom_order``), images in memory, landmarks, transform files of ITK, ANTs and 3D Slicer
(``itk_transforms`` writes, ``transform_files`` reads and composes, ``foreign_transforms`` knows the kinds), fields of
other tools (``foreign_fields``, ``field_*``), cases and lists (``case``, ``cases``), public data sets, synthetic
pairs, the report. What is done with loaded images is in ``transforms``, but for resampling by any ITK transform,
``itk_resampling``. It imports ``geometry`` and ``utils``.
"""

from scripts.data.cases import load_cases, require_cases

__all__ = ["load_cases", "require_cases"]
