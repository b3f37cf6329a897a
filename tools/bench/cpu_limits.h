#pragma once

namespace gemma {

/// Bytes a second that this machine reads from memory with so many threads, the best of a few tries over a buffer that
/// is much larger than its caches. @param threads 0: one for each core.
double measure_read_bandwidth(int threads);

/// Float operations a second of products with float32 sums with so many threads: what reading prompts on the CPU, which
/// multiplies in float32, is held against. @param threads 0: one for each core.
double measure_multiply_rate(int threads);

}  // namespace gemma
