"""Workers use freed memory again, whatever Dask told their allocator."""

import os
import platform
import subprocess
import sys

import pytest

from ingest.allocator import keep_freed_memory

SCRIPT = """
import resource
import numpy as np
from ingest.allocator import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        np.ones(1 << 18)  # 2 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = faults()
keep_freed_memory()
faults()
print(first, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has mallopt")
def test_arrays_are_made_in_memory_that_was_freed():
    environment = {**os.environ, "MALLOC_TRIM_THRESHOLD_": "65536"}  # as Dask's nanny sets it
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, check=True, capture_output=True, text=True
    )
    before, after = map(int, done.stdout.split())
    assert before > 50 * 400  # 512 pages each, made anew each time
    assert after < before / 20


def test_it_may_be_asked_for_again():
    keep_freed_memory()
    keep_freed_memory()
