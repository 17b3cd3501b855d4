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
"""How good a result is: Dice, distances of surfaces and landmarks, folding, inconsistency, the verdict.

The rule of the verdict and its limits are in ``quality``; a pair that ended in an error is called failed by
``cohort.table``. Tables over many pairs are in ``evaluation``, measures during training in
``training.validation_metrics``. It imports ``geometry``, ``data``, ``losses`` and ``utils``.
"""
