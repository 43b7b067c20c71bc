"""The sanitizers see what csrc does to torch's memory: only in `make sanitize`, whose core is compiled with them."""

import os
import subprocess
import sys

import pytest
from test_core import build_table

from imbloss import _C

FLAGS = _C.build_info().get("flags", "")
pytestmark = [
    pytest.mark.isa,
    pytest.mark.skipif("-fsanitize=address" not in FLAGS, reason="only with a core compiled for it"),
]

PLANTED = """
#include "simd.h"
extern "C" float one_lane_too_many(const float* p, long n) {
  return imbloss::load(p + n + 1 - imbloss::kLanes<float>).r[0][0];
}
extern "C" float past_the_end(const float* p, long n) { return p[n]; }
extern "C" int wraps_around(const float*, long n) { return static_cast<int>(n) * 2147483647; }
"""
CALL = """
import ctypes, sys, torch
function = getattr(ctypes.CDLL(sys.argv[1]), sys.argv[2])
x = torch.zeros(61)
function(ctypes.c_void_p(x.data_ptr()), ctypes.c_long(int(sys.argv[3])))
"""


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    (folder / "planted.cpp").write_text(PLANTED)
    csrc = os.path.join(os.path.dirname(__file__), "..", "csrc")
    flags = [*FLAGS.split(), *build_table().WARNINGS, f"-I{csrc}", "-shared", "-fPIC", "-fvisibility=default"]
    command = [os.environ.get("CXX", "g++"), *flags]
    subprocess.run([*command, str(folder / "planted.cpp"), "-o", str(folder / "planted.so")], check=True)
    return folder / "planted.so"


@pytest.mark.parametrize(
    "function, good, message",
    [
        ("one_lane_too_many", 60, "ERROR: AddressSanitizer"),
        ("past_the_end", 60, "ERROR: AddressSanitizer"),
        ("wraps_around", 1, "signed integer overflow"),
    ],
)
def test_a_planted_bug_is_caught(planted, function, good, message):
    """One number past a tensor of 61, read by the code and with the flags of the core."""
    for argument, caught in ((good, False), (61, True)):
        command = [sys.executable, "-c", CALL, str(planted), function, str(argument)]
        result = subprocess.run(command, capture_output=True, text=True)
        assert (result.returncode != 0) == (message in result.stderr) == caught, result.stderr
