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
"""Load ITK's modules before threads start.

ITK for Python loads its modules when they are first used, and changes the working directory of the whole process
meanwhile (``itk.support.base.LibraryLoader``): other threads that open a relative path then miss it, and two threads
that load at once can leave the process in another folder.
"""

from __future__ import annotations

import itk

# what reading of files and of DICOM series uses
READING = ("ImageIOFactory", "ImageFileReader", "ImageSeriesReader", "GDCMImageIO", "PyBuffer")


def load_itk_modules() -> None:
    """Load the modules that read images, in the thread that calls; a few seconds at the first call."""
    for name in READING:
        getattr(itk, name)
