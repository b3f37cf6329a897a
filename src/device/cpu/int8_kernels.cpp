#include "device/cpu/int8_kernels.h"

#include <vector>

#include "device/cpu/int8_targets.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__)
#include <sys/auxv.h>
#endif

namespace gemma {
namespace {

#if defined(__x86_64__)
// What not all compilers' __builtin_cpu_supports knows.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & (1u << 29)) != 0;
}

bool has_avx_vnni() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) != 0 && (eax & (1u << 4)) != 0;
}
#endif

std::vector<Int8Kernels> find_usable() {
  std::vector<Int8Kernels> usable;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
  if (has_avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("avx512vnni")) {
    usable.push_back(kInt8Avx512);
  }
  if (has_avx2 && has_avx_vnni()) usable.push_back(kInt8AvxVnni);
  if (has_avx2) usable.push_back(kInt8Avx2);
#elif defined(__aarch64__)
  constexpr unsigned long kDotProducts = 1ul << 20;  // HWCAP_ASIMDDP
  if ((getauxval(AT_HWCAP) & kDotProducts) != 0) usable.push_back(kInt8NeonDot);
  usable.push_back(kInt8Neon);
#endif
  usable.push_back(kInt8Portable);
  return usable;
}

}  // namespace

Int8Scratch::Int8Scratch(int columns) {
  // The widest panel is that of AVX-512: 32 outputs, in bytes, with a scale and a minimum for each group.
  const auto groups = static_cast<std::size_t>(padded_to_blocks(columns) / kGroupColumns);
  memory_ = Memory(groups * 32 * (kGroupColumns + 2 * sizeof(float)), "unpacked weights");
}

std::span<const Int8Kernels> usable_int8_kernels() {
  static const std::vector<Int8Kernels> usable = find_usable();
  return usable;
}

}  // namespace gemma
