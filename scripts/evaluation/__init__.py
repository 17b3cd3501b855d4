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
"""Comparing methods over pairs with labels or landmarks: a run, other methods in the inferer's place, tables, plots.

A method to compare with is a function in ``comparator_methods`` and an entry of ``COMPARATORS`` in ``comparators``.
Also the paper's data sets (``benchmarks``) and Learn2Reg's submission. The measures themselves are in ``metrics``. It
imports all packages but ``cohort``.
"""

from scripts.evaluation.benchmarks import choose_benchmark
from scripts.evaluation.comparators import AddMethodTransformsd, MethodInferer, PrepareNativePair, describe_method
from scripts.evaluation.metrics import AddEvaluationMetricsd
from scripts.evaluation.run import MeasurePeakMemory, remaining_cases, require_data, write_evaluation

__all__ = [
    "AddEvaluationMetricsd",
    "AddMethodTransformsd",
    "MeasurePeakMemory",
    "MethodInferer",
    "PrepareNativePair",
    "choose_benchmark",
    "describe_method",
    "remaining_cases",
    "require_data",
    "write_evaluation",
]
