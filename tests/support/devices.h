#pragma once

#include <functional>
#include <iosfwd>
#include <memory>
#include <string>
#include <vector>

#include "device/device.h"

namespace gemma {

/// One kind of device that every device test runs on.
struct DeviceKind {
  std::string name;  ///< letters only: it becomes part of a test's name
  KvType cache = KvType::kF32;
  /// Largest absolute error of a logit against the naive reference; its origin stands in devices.cpp.
  double tolerance = 0;
  /// Options that it has no use for are ignored.
  std::function<std::unique_ptr<Device>(const Model&, const CpuOptions&)> make;
  /// Hidden size, intermediate size and heads * head_dim must be multiples of this.
  int width_multiple = 1;
};

/// All kinds of device that this build has: the CPU as it is by default first, and where there is a GPU, that last.
const std::vector<DeviceKind>& device_kinds();

void PrintTo(const DeviceKind& kind, std::ostream* out);

}  // namespace gemma
