#pragma once

#include <string>

#include "bench/report.h"

namespace gemma {

/// The roofline of the device with what was measured on it, and, if attention was measured, its time against the
/// length of the prompt: an SVG document.
std::string plot(const Report& report);

}  // namespace gemma
