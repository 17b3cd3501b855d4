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
"""Many pairs: lists of them, resuming, failures kept apart, several processes, the one table and its page.

``cases`` makes the list, ``run`` decides which pairs are left (by ``is_done`` of ``data.report``) and does them,
``table`` and ``page`` show the results. A single pair needs nothing from here. It imports all packages.
"""

from scripts.cohort.cases import load_cohort, require_cohort
from scripts.cohort.page import write_cohort_page
from scripts.cohort.run import CaseQueue, IsolateFailures, remaining_cases, run_cohort
from scripts.cohort.table import write_table

__all__ = [
    "CaseQueue",
    "IsolateFailures",
    "load_cohort",
    "remaining_cases",
    "require_cohort",
    "run_cohort",
    "write_cohort_page",
    "write_table",
]
