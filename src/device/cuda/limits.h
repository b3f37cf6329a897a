#pragma once

#include "device/device.h"

namespace gemma::cuda {

/// What the present GPU reaches: reads of a few GB, and bf16 matrix products with float32 sums of 8192 x 8192 x 8192.
/// @throws Error if its memory does not suffice, or CUDA fails.
DeviceLimits measure_limits();

}  // namespace gemma::cuda
