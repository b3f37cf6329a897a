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
  double tolerance =
      0;  ///< largest absolute error of a logit against the naive reference; its origin stands in devices.cpp
  std::function<std::unique_ptr<Device>(const Model&, const CpuOptions&)>
      make;  ///< options that it has no use for are ignored
};

/// All kinds of device that this build has.
const std::vector<DeviceKind>& device_kinds();

void PrintTo(const DeviceKind& kind, std::ostream* out);

}  // namespace gemma
