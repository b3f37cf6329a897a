#include "support/devices.h"

#include <ostream>

namespace gemma {

const std::vector<DeviceKind>& device_kinds() {
  static const std::vector<DeviceKind> kinds = [] {
    std::vector<DeviceKind> all = {
        // Rounding to float32 in another order than here: 4e-6 measured over the drawn shapes, 2e-5 for a plain scalar
        // device.
        {"Cpu", KvType::kF32, 5e-5, make_cpu_device},
        // A key or value within float32's error of the middle between two bf16 numbers may be rounded to the other one,
        // which moves that number by 2^-8: 2e-3 measured in the worst row, 4e-5 in the middle one.
        {"CpuBf16Cache", KvType::kBf16, 1e-2, make_cpu_device},
        // The same with steps of 1/127 of the largest element: 1e-2 measured in the worst row, 8e-5 in the middle one.
        {"CpuQ8Cache", KvType::kQ8, 2e-2, make_cpu_device},
    };
    if (has_cuda_device()) {
      // Operands of matrix products are rounded to bf16. Doing that to the naive reference moves logits of up to 8 by
      // up to 0.05 over the drawn shapes, 0.02 in the middle one.
      const auto make = [](const Model& model, const CpuOptions& options) {
        return make_cuda_device(model, {.ordinal = 0, .max_rows = options.max_rows, .kv = options.kv});
      };
      // With steps of 1/127 as well, by up to 0.1 over the texts of all tests, 0.04 in the middle one of the drawn
      // shapes.
      all.push_back({"CudaQ8Cache", KvType::kQ8, 0.14, make, 32});
      all.push_back({"Cuda", KvType::kBf16, 0.1, make, 32});
    }
    return all;
  }();
  return kinds;
}

void PrintTo(const DeviceKind& kind, std::ostream* out) { *out << kind.name; }

}  // namespace gemma
