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
"""What is done to a case: MONAI's dictionary transforms, in the order of ``configs/inference.yaml``.

Before the network: load, check, intensities (``intensity`` chooses by modality; the HU window of CT is MONAI's
``ScaleIntensityRange``, set in the config), masks, labels, orientation, crop, pre-alignment. After it: transforms of
the world, warped label and metrics (``postprocessing``), the verdict (``add_quality``, by the rule of
``metrics.quality``), and ``outputs``, one class a kind of file, whose formats ``data`` writes. How files are read and
points computed is in ``data`` and ``geometry``. It imports all packages below it but ``networks`` and ``inferers``.
"""

from scripts.transforms.add_quality import AddQualityd
from scripts.transforms.checks import CheckImagesd, CheckLabelsd, CheckMasksd
from scripts.transforms.crop import CropToForegroundd
from scripts.transforms.intensity import ByModalityd, ScalePercentiles
from scripts.transforms.labels import CopyLabelsd
from scripts.transforms.load import LoadVolumesd
from scripts.transforms.masks import UseMasksd
from scripts.transforms.match_grid import MatchGridd
from scripts.transforms.orientation import MatchOrientationd, ReverseAxesd
from scripts.transforms.outputs.save import SaveOutputsd, check_outputs
from scripts.transforms.postprocessing import AddMetricsd, AddTransformsd, AddWarpedLabeld
from scripts.transforms.prealign import Prealignd

__all__ = [
    "AddMetricsd",
    "AddQualityd",
    "AddTransformsd",
    "AddWarpedLabeld",
    "ByModalityd",
    "CheckImagesd",
    "CheckLabelsd",
    "CheckMasksd",
    "CopyLabelsd",
    "CropToForegroundd",
    "LoadVolumesd",
    "MatchGridd",
    "MatchOrientationd",
    "Prealignd",
    "ReverseAxesd",
    "SaveOutputsd",
    "ScalePercentiles",
    "UseMasksd",
    "check_outputs",
]
