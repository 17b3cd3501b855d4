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
"""Registration of one pair in memory: the network, the search for a start, instance optimization.

``registration_inferer`` leads; optimization is of two displacement fields (``field_optimization``) or of all weights
(``network_optimization``). Files and cases are not known here. It imports ``networks``, ``losses``, ``geometry`` and
``utils``.
"""

from scripts.inferers.registration_inferer import PreparePair, RegistrationInferer

__all__ = ["PreparePair", "RegistrationInferer"]
