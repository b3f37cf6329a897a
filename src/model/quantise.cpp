#include "model/quantise.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cmath>
#include <cstring>
#include <optional>

#include "model/encode.h"
#include "model/matrix_parts.h"

namespace gemma {
namespace {

constexpr std::size_t kGroup = kGroupColumns;
constexpr std::size_t kGroupsOfBlock = kBlockColumns / kGroupColumns;
constexpr float kLargestQ8Code = 127;
constexpr float kLargestQ4Code = 15;
constexpr float kLargestByte = 255;

using Group = std::span<const float, kGroup>;
using Codes = std::array<float, kGroup>;  // whole numbers

// The sum of an array in an order that compilers can turn into vectors: halves are added until one number is left.
float total(Codes values) {
  for (std::size_t half = kGroup / 2; half > 0; half /= 2) {
    for (std::size_t i = 0; i < half; ++i) values[i] += values[i + half];
  }
  return values[0];
}

// The nearest whole number (even for ties) of a value below 2^22: the sum has no room for a fraction.
float round_small(float value) {
  constexpr float kShift = 12582912;  // 1.5 * 2^23
  return (value + kShift) - kShift;
}

f16 next_up(f16 value) { return {static_cast<std::uint16_t>(value.bits + 1)}; }

// What codes stand for: scale * code + offset.
struct Line {
  float scale = 0;
  float offset = 0;
};

// Sets the codes to the nearest ones on a line.
void round_to(const Line& line, Group x, float smallest, float largest, Codes& codes) {
  const float inverse = line.scale > 0 ? 1 / line.scale : 0;
  for (std::size_t i = 0; i < kGroup; ++i) {
    float code = (x[i] - line.offset) * inverse;
    code = code < smallest ? smallest : code;
    code = code > largest ? largest : code;
    codes[i] = round_small(code);
  }
}

float error_of(const Line& line, Group x, Group importance, const Codes& codes) {
  Codes errors;
  for (std::size_t i = 0; i < kGroup; ++i) {
    const float difference = line.scale * codes[i] + line.offset - x[i];
    errors[i] = importance[i] * (difference * difference);
  }
  return total(errors);
}

// Codes on a line, and how far they are from the weights.
struct Fit {
  Line line;
  Codes codes{};
  float error = 0;
};

Fit fit_to(const Line& line, Group x, Group importance, float smallest, float largest) {
  Fit fit{.line = line};
  round_to(line, x, smallest, largest, fit.codes);
  fit.error = error_of(line, x, importance, fit.codes);
  return fit;
}

// ---- q8 ----

// Scales tried below and above the one that makes the largest weight 127, in steps of float16.
constexpr int kQ8StepsDown = 8;
constexpr int kQ8StepsUp = 16;

void quantise_q8(Group x, Group importance, std::int8_t* codes, f16& scale) {
  float largest = 0;
  for (const float weight : x) largest = std::max(largest, std::fabs(weight));
  const int middle = to_f16(largest / kLargestQ8Code).bits;
  std::optional<Fit> best;
  for (int bits = std::max(0, middle - kQ8StepsDown); bits <= middle + kQ8StepsUp; ++bits) {
    const f16 candidate{static_cast<std::uint16_t>(bits)};
    if (to_float(candidate) > kLargestF16) break;
    const Fit fit = fit_to({to_float(candidate), 0}, x, importance, -kLargestQ8Code, kLargestQ8Code);
    if (best && fit.error >= best->error) continue;
    best = fit;
    scale = candidate;
    if (fit.error == 0) break;
  }
  for (std::size_t i = 0; i < kGroup; ++i) codes[i] = static_cast<std::int8_t>(best->codes[i]);
}

// ---- q4 ----

// The line that fits weights to given codes best, with an offset of at most zero.
Line least_squares(Group x, Group importance, const Codes& codes) {
  Codes w, wx, wc, wcc, wxc;
  for (std::size_t i = 0; i < kGroup; ++i) {
    w[i] = importance[i];
    wx[i] = importance[i] * x[i];
    wc[i] = importance[i] * codes[i];
    wcc[i] = wc[i] * codes[i];
    wxc[i] = wx[i] * codes[i];
  }
  const double sum_w = total(w);
  const double sum_x = total(wx);
  const double sum_c = total(wc);
  const double sum_cc = total(wcc);
  const double sum_xc = total(wxc);
  const double determinant = sum_w * sum_cc - sum_c * sum_c;
  if (determinant > 0) {
    const double scale = (sum_w * sum_xc - sum_x * sum_c) / determinant;
    const double offset = (sum_cc * sum_x - sum_c * sum_xc) / determinant;
    if (scale >= 0 && offset <= 0) return {static_cast<float>(scale), static_cast<float>(offset)};
  }
  return {sum_cc > 0 ? static_cast<float>(std::max(0.0, sum_xc / sum_cc)) : 0, 0};
}

// Lines tried: the weights' range over 14 steps, over 14.3, and so on. From 15 on the outermost codes are beyond the
// outermost weights, below it these are cut off; twenty lines instead of ten lower the error by another 0.2%.
constexpr int kQ4Lines = 10;
constexpr float kQ4FewestSteps = 14;
constexpr float kQ4StepsMore = 0.3f;
constexpr int kQ4Refinements = 8;  // of the best of them, at most

// The best line that could be stored exactly.
Line ideal_line(Group x, Group importance) {
  const auto [smallest, largest] = std::minmax_element(x.begin(), x.end());
  const float low = std::min(*smallest, 0.0f);
  const float range = *largest - low;
  if (!(range > 0)) return {0, low};

  std::optional<Fit> best;
  const auto refit = [&](const Codes& codes) {
    return fit_to(least_squares(x, importance, codes), x, importance, 0, kLargestQ4Code);
  };
  for (int i = 0; i < kQ4Lines; ++i) {
    Codes codes;
    round_to({range / (kQ4FewestSteps + kQ4StepsMore * static_cast<float>(i)), low}, x, 0, kLargestQ4Code, codes);
    const Fit fit = refit(codes);
    if (!best || fit.error < best->error) best = fit;
  }
  for (int i = 0; i < kQ4Refinements; ++i) {
    const Fit fit = refit(best->codes);
    if (fit.error >= best->error) break;
    best = fit;
  }
  return best->line;
}

// The smallest unit of which 255 reach the largest of some numbers that are not negative.
f16 unit_for(float largest) {
  const f16 unit = to_f16(largest / kLargestByte);
  return to_float(unit) * kLargestByte < largest && to_float(unit) < kLargestF16 ? next_up(unit) : unit;
}

// The multiples of a unit around a value, of those that a byte can hold.
std::array<float, 2> bytes_around(float value, float unit) {
  if (!(unit > 0)) return {0, 0};
  const float below = std::clamp(std::floor(value / unit), 0.0f, kLargestByte);
  return {below, std::min(below + 1, kLargestByte)};
}

struct Q4Block {
  std::uint8_t* codes;
  std::uint8_t* scales;
  std::uint8_t* minimums;
  f16& d;
  f16& m;
};

void quantise_q4(std::span<const float> x, std::span<const float> importance, const Q4Block& out) {
  const std::size_t groups = x.size() / kGroup;
  const auto group_of = [](std::span<const float> values, std::size_t group) {
    return Group(values.subspan(group * kGroup).first<kGroup>());
  };
  std::array<Line, kGroupsOfBlock> lines;
  float largest_scale = 0;
  float largest_minimum = 0;
  for (std::size_t group = 0; group < groups; ++group) {
    lines[group] = ideal_line(group_of(x, group), group_of(importance, group));
    largest_scale = std::max(largest_scale, lines[group].scale);
    largest_minimum = std::max(largest_minimum, -lines[group].offset);
  }
  out.d = unit_for(largest_scale);
  out.m = unit_for(largest_minimum);
  const float d = to_float(out.d);
  const float m = to_float(out.m);

  for (std::size_t group = 0; group < groups; ++group) {
    std::optional<Fit> best;
    for (const float scale : bytes_around(lines[group].scale, d)) {
      for (const float minimum : bytes_around(-lines[group].offset, m)) {
        const Fit fit =
            fit_to({d * scale, -m * minimum}, group_of(x, group), group_of(importance, group), 0, kLargestQ4Code);
        if (best && fit.error >= best->error) continue;
        best = fit;
        out.scales[group] = static_cast<std::uint8_t>(scale);
        out.minimums[group] = static_cast<std::uint8_t>(minimum);
      }
    }
    std::uint8_t* const codes = out.codes + group * kGroup / 2;
    for (std::size_t i = 0; i < kGroup / 2; ++i) {
      codes[i] = static_cast<std::uint8_t>(static_cast<int>(best->codes[i]) |
                                           static_cast<int>(best->codes[i + kGroup / 2]) << 4);
    }
  }
}

// ---- both ----

// The first weight that no scale of float16 reaches.
void check_range(WeightType type, std::span<const float> weights) {
  const float limit = kLargestF16 * (type == WeightType::kQ8 ? kLargestQ8Code : kLargestByte);
  const auto bad = std::find_if(weights.begin(), weights.end(), [limit](float w) { return std::fabs(w) > limit; });
  if (bad == weights.end()) return;
  throw NotFinite{static_cast<std::size_t>(bad - weights.begin()),
                  type == WeightType::kQ8 ? "a number too large for q8" : "a number too large for q4"};
}

}  // namespace

std::vector<std::vector<std::byte>> quantise(WeightType type, std::span<const float> weights, int columns,
                                             std::span<const float> importance) {
  assert(type != WeightType::kBf16 && columns % kGroupColumns == 0);
  const auto row_size = static_cast<std::size_t>(columns);
  assert(weights.size() % row_size == 0 && (importance.empty() || importance.size() == row_size));
  check_range(type, weights);
  std::vector<float> same;
  if (importance.empty()) {
    same.assign(row_size, 1);
    importance = same;
  }

  const std::size_t rows = weights.size() / row_size;
  std::vector<std::vector<std::byte>> parts;
  for (const MatrixPart& part : parts_of(type, static_cast<int>(rows), columns)) {
    parts.emplace_back(static_cast<std::size_t>(part.bytes()));
  }
  const auto bytes = [&parts](std::size_t part) { return reinterpret_cast<std::uint8_t*>(parts[part].data()); };
  const auto halves = [&parts](std::size_t part) { return reinterpret_cast<f16*>(parts[part].data()); };

  const std::size_t unit = type == WeightType::kQ8 ? kGroup : std::size_t{kBlockColumns};
  std::size_t unit_index = 0;
  for (std::size_t row = 0; row < rows; ++row) {
    for (std::size_t column = 0; column < row_size; column += unit, ++unit_index) {
      const std::size_t count = std::min(unit, row_size - column);
      const std::size_t first = row * row_size + column;
      const std::span<const float> x = weights.subspan(first, count);
      const std::span<const float> w = importance.subspan(column, count);
      if (type == WeightType::kQ8) {
        quantise_q8(x.first<kGroup>(), w.first<kGroup>(), reinterpret_cast<std::int8_t*>(bytes(0)) + first,
                    halves(1)[unit_index]);
      } else {
        quantise_q4(x, w,
                    {.codes = bytes(0) + first / 2,
                     .scales = bytes(1) + first / kGroup,
                     .minimums = bytes(2) + first / kGroup,
                     .d = halves(3)[unit_index],
                     .m = halves(4)[unit_index]});
      }
    }
  }
  return parts;
}

}  // namespace gemma
