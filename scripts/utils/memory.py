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
"""Memory of the process: keep what was freed for the next tensor, and tell how much there is."""

from __future__ import annotations

import ctypes
import platform
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil
import torch

# of glibc's malloc.h
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_USUAL_MMAP_MAX = 65536
_USUAL_MMAP_THRESHOLD = 32 * 1024**2  # where glibc's own adaptation ends
_CGROUPS = Path("/sys/fs/cgroup")  # the limit of a container, which psutil does not ask for
_CONTAINER_LIMITS = (  # and what is used of them, by version of the control groups
    ("memory.max", "memory.current"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
)
_lock = threading.Lock()
_users = 0


@contextmanager
def keep_freed_memory() -> Iterator[None]:
    """Keep freed memory in the process while the context lasts, and give it back at its end.

    By default glibc asks the kernel for every large tensor anew, and the kernel fills its pages with zeros: up to half
    of the time of a registration on a CPU. Elsewhere than on Linux with glibc this does nothing.
    """
    global _users
    library = _glibc()
    if library is None:
        yield
        return
    with _lock:
        _users += 1
        if _users == 1:
            library.mallopt(_MMAP_MAX, 0)
            library.mallopt(_TRIM_THRESHOLD, -1)
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                library.mallopt(_MMAP_MAX, _USUAL_MMAP_MAX)
                library.mallopt(_MMAP_THRESHOLD, _USUAL_MMAP_THRESHOLD)
                library.mallopt(_TRIM_THRESHOLD, 2 * _USUAL_MMAP_THRESHOLD)
                library.malloc_trim(0)


def release_freed_memory() -> None:
    """Give freed memory back to the system now, also inside :func:`keep_freed_memory`: what is freed gets scattered."""
    library = _glibc()
    if library is not None:
        library.malloc_trim(0)


def available_memory(device: torch.device | str = "cpu") -> int:
    """Return the bytes that can still be allocated on a device; of a CPU, without pushing others out of memory."""
    device = torch.device(device)
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return int(free) + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    found = [int(psutil.virtual_memory().available)]
    for limit, usage in _CONTAINER_LIMITS:
        try:
            used = int((_CGROUPS / usage).read_text()) - _file_cache((_CGROUPS / usage).with_name("memory.stat"))
            found.append(int((_CGROUPS / limit).read_text()) - used)
        except (OSError, ValueError):
            continue
    return max(0, min(found))


def _file_cache(stat: Path) -> int:
    """Return the bytes of cached files that a control group would give up at once."""
    fields = dict(line.split() for line in stat.read_text().splitlines())
    return int(fields.get("total_inactive_file", fields.get("inactive_file", 0)))


@cache
def _glibc() -> Any:
    if platform.libc_ver()[0] != "glibc":
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


def reset_peak_memory() -> None:
    """Forget the peak of this process's memory, where the system can (Linux), and that of the GPU."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory_mib() -> float | None:
    """Return the most memory this process has held so far, MiB; None where the system does not tell."""
    with suppress(OSError, StopIteration):  # Linux; what ru_maxrss tells can't be reset
        lines = Path("/proc/self/status").read_text().splitlines()
        return round(int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 2**10, 1)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


def peak_gpu_memory_mib() -> float | None:
    """Return the most memory that tensors have held on the GPU, MiB; None without one."""
    return round(torch.cuda.max_memory_allocated() / 2**20, 1) if torch.cuda.is_available() else None
