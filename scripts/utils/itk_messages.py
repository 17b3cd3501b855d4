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
"""What ITK says of an error, as people can use it: without source files, addresses and names of functions."""

from __future__ import annotations

import re

_BEGINS = re.compile(r"(?:ITK ERROR|itk::ERROR):")
_SOURCE = re.compile(r"\S+\.(?:cxx|hxx|cpp|txx|c|h):\d+:?\s*(?:\([^)]*\):?)?\s*")  # path/itkNiftiImageIO.cxx:1070:
_OBJECT = re.compile(r"\b\w+ ?\(0x[0-9a-fA-F]+\):\s*")  # NiftiImageIO(0x557fe5b87cd0):
_NAMESPACE = re.compile(r"\bitk::(?:\w+::)*")
_SHEAR = "its affine has a shear, a zero spacing or no inverse; resample it, or repair its header (sform)"
LONGEST = 300


def itk_reason(error: Exception) -> str:
    """Return ITK's message as one line."""
    text = _BEGINS.split(str(error))[-1]
    if "orthonormal" in text:
        return _SHEAR
    text = text.split("The usual cause of this error")[0]  # a list of all classes follows
    for pattern in (_SOURCE, _OBJECT, _NAMESPACE):
        text = pattern.sub("", text)
    deepest = text.rsplit("[nrrd]", 1)
    if len(deepest) > 1:  # each level of that library repeats that there is trouble; the last one says which
        text = deepest[1].partition(":")[2] or deepest[1]
    reason = " ".join(text.split())
    return reason[:LONGEST] or type(error).__name__
