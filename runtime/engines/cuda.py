"""What the machine's GPU is, by NVIDIA's driver alone."""

from __future__ import annotations

import ctypes

# CUdevice_attribute of the driver API's cuDeviceGetAttribute.
MAJOR, MINOR = 75, 76


def compute_capability() -> str | None:
    """The first GPU's, as "8.9"; None where there is no GPU or no driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    device, value, numbers = ctypes.c_int(), ctypes.c_int(), []
    if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(device), 0):
        return None
    for attribute in (MAJOR, MINOR):
        if driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, device):
            return None
        numbers.append(str(value.value))
    return ".".join(numbers)
