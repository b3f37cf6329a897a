#include "support/devices.h"

#include <ostream>

namespace gemma {

const std::vector<DeviceKind>& device_kinds() {
  static const std::vector<DeviceKind> kinds = {
      {"Cpu", KvType::kF32, 1e-4, make_cpu_device},
      {"CpuBf16Cache", KvType::kBf16, 1e-2, make_cpu_device},
  };
  return kinds;
}

void PrintTo(const DeviceKind& kind, std::ostream* out) { *out << kind.name; }

}  // namespace gemma
