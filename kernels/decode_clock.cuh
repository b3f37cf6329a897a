#pragma once

// Clocks in the decode kernel, for those who measure it: where a block's time goes, phase by phase.

#include "decode.cuh"
#include "decode_steps.cuh"
#include "ptx.cuh"

namespace gemma {

__device__ inline DecodePhase phase_of(Kind kind) {
  switch (kind) {
    case Kind::kQkv:
      return DecodePhase::kQkv;
    case Kind::kAttentionOut:
      return DecodePhase::kAttentionOut;
    case Kind::kGateUp:
      return DecodePhase::kGateUp;
    case Kind::kDown:
      return DecodePhase::kDown;
    case Kind::kHead:
      break;
  }
  return DecodePhase::kLogits;
}

/// What runs without clocks has this, which does nothing.
struct NoClock {
  __device__ explicit NoClock(const DecodeModel& /*model*/) {}
  __device__ void was_busy(DecodePhase /*phase*/) {}
  __device__ void has_waited(DecodePhase /*phase*/) {}
  __device__ void stop() {}
};

/// Adds up what passes between calls, for the first consumer of a block, which comes out of every barrier with the
/// others.
class PhaseClock {
 public:
  __device__ explicit PhaseClock(const DecodeModel& model)
      : profile_(model.profile + blockIdx.x),
        started_ns_(clock_nanoseconds()),
        started_(clock_cycles()),
        last_(started_) {
    for (DecodePhaseCycles& phase : phases_) phase = {};
  }

  /// What has passed since the last call belongs to the phase...
  __device__ void was_busy(DecodePhase phase) { phases_[static_cast<int>(phase)].busy += lap(); }
  /// ... or to the wait for the other blocks after it.
  __device__ void has_waited(DecodePhase phase) { phases_[static_cast<int>(phase)].waiting += lap(); }

  __device__ void stop() {
    if (threadIdx.x != 0) return;
    profile_->cycles = clock_cycles() - started_;
    profile_->nanoseconds = static_cast<long long>(clock_nanoseconds() - started_ns_);
    for (int i = 0; i < kDecodePhases; ++i) profile_->phases[i] = phases_[i];
  }

 private:
  __device__ long long lap() {
    const long long now = clock_cycles();
    const long long passed = now - last_;
    last_ = now;
    return passed;
  }

  DecodeBlockProfile* profile_;
  unsigned long long started_ns_;
  long long started_, last_;
  DecodePhaseCycles phases_[kDecodePhases];
};

}  // namespace gemma
