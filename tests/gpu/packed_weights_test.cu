// Quantised weights on the GPU: packing, what lanes read of a unit, unpacking, and the embedding, each against
// dequantise() and the layout that packed_weights.cuh describes. Nothing is rounded on the way but by what dequantise()
// itself does and by bf16, so everything must agree to the last bit.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <ostream>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cuda_error.h"
#include "decode_digits.cuh"
#include "device/cuda/handles.h"
#include "device/cuda/weight_loader.h"
#include "device/cuda/weight_slabs.h"
#include "embed.cuh"
#include "launch.cuh"
#include "model/dequantise.h"
#include "model/matrix_parts.h"
#include "pack_weights.cuh"
#include "packed_weights.cuh"
#include "unpack_weights.cuh"

namespace gemma {
namespace {

constexpr std::size_t kRest = 64;  // poisoned bytes behind an output
constexpr int kPoison = 0xa5;

std::size_t z(int number) { return static_cast<std::size_t>(number); }

/// GPU memory that is poisoned at first, as is a rest behind it.
template <class T>
class Memory {
 public:
  explicit Memory(std::size_t size) : size_(size), bytes_(size * sizeof(T) + kRest) {
    check_cuda(cudaMemset(bytes_.data(), kPoison, bytes_.bytes()));
    check_cuda(cudaDeviceSynchronize());  // the tests' streams do not wait for what is on its way
  }
  explicit Memory(const std::vector<T>& values) : Memory(values.size()) {
    check_cuda(cudaMemcpy(data(), values.data(), size_ * sizeof(T), cudaMemcpyHostToDevice));
    check_cuda(cudaDeviceSynchronize());
  }

  T* data() const { return reinterpret_cast<T*>(bytes_.data()); }

  /// Fails the test if anything behind the end was written to.
  std::vector<T> download() const {
    check_cuda(cudaDeviceSynchronize());
    std::vector<std::byte> all(bytes_.bytes());
    check_cuda(cudaMemcpy(all.data(), bytes_.data(), all.size(), cudaMemcpyDeviceToHost));
    EXPECT_TRUE(std::all_of(all.end() - kRest, all.end(), [](std::byte byte) { return byte == std::byte{kPoison}; }))
        << "written behind the end";
    std::vector<T> values(size_);
    std::memcpy(values.data(), all.data(), size_ * sizeof(T));
    return values;
  }

 private:
  std::size_t size_;
  cuda::Buffer<std::byte> bytes_;
};

struct Case {
  WeightType type;
  int outputs;
  int columns;
  bool is_gate_up = false;

  MatrixShape shape() const { return {outputs, columns, is_gate_up}; }
};

void PrintTo(const Case& of, std::ostream* out) {
  *out << name_of(of.type) << ", " << of.outputs << " x " << of.columns << (of.is_gate_up ? ", gate and up" : "");
}

/// A matrix with every code that there can be.
class RandomMatrix {
 public:
  explicit RandomMatrix(const Case& of) {
    std::mt19937 random(7);
    for (const MatrixPart& part : parts_of(of.type, of.outputs, of.columns)) {
      std::vector<std::byte>& bytes = parts_.emplace_back(static_cast<std::size_t>(part.bytes()));
      if (part.type == DType::kF16) {
        for (std::size_t i = 0; i < bytes.size(); i += 2) {
          const f16 half = to_f16(1e-4f * static_cast<float>(1 + random() % 1000));
          std::memcpy(&bytes[i], &half, 2);
        }
      } else {
        for (std::byte& byte : bytes) {
          byte = static_cast<std::byte>(random() & 0xff);
          if (part.type == DType::kI8 && byte == std::byte{0x80}) byte = std::byte{0x81};
        }
      }
    }
    std::vector<const std::byte*> starts, starts_on_gpu;
    for (const std::vector<std::byte>& bytes : parts_) {
      starts.push_back(bytes.data());
      starts_on_gpu.push_back(on_gpu_.emplace_back(bytes).data());
    }
    host_ = make_matrix(of.type, of.outputs, of.columns, starts);
    gpu_ = make_matrix(of.type, of.outputs, of.columns, starts_on_gpu);
  }

  const Matrix& host() const { return host_; }
  const Matrix& gpu() const { return gpu_; }

 private:
  std::vector<std::vector<std::byte>> parts_;
  std::vector<Memory<std::byte>> on_gpu_;
  Matrix host_, gpu_;
};

std::vector<std::vector<float>> dequantised(const Matrix& matrix) {
  std::vector<std::vector<float>> rows;
  for (int row = 0; row < matrix.rows; ++row) dequantise(matrix, row, rows.emplace_back(z(matrix.columns)));
  return rows;
}

/// The units of a matrix as packed_weights.cuh says where each number is.
template <WeightType kType>
std::vector<std::byte> expected_units(const Matrix& matrix, const MatrixShape& shape) {
  std::vector<std::byte> units(packed_bytes(kType, shape.outputs, shape.columns));
  const int units_of_tile = units_in_tile(shape.columns);
  const auto put = [](std::byte* to, const auto& value) { std::memcpy(to, &value, sizeof value); };
  for (int tile = 0; tile < shape.tiles(); ++tile) {
    for (int row = 0; row < kPieceRows; ++row) {
      const int output = output_of(shape, tile, row);
      if (output >= shape.outputs) continue;
      for (int column = 0; column < shape.columns; ++column) {
        std::byte* unit = &units[z(tile * units_of_tile + column / kUnitColumns) * z(unit_bytes(kType))];
        const int in_unit = column % kUnitColumns;
        const int step = in_unit / kGroupColumns;
        const std::size_t group = z(output) * z(matrix.groups()) + z(column / kGroupColumns);
        std::byte& code = unit[code_byte<kType>(row, in_unit)];
        if constexpr (kType == WeightType::kQ8) {
          code = static_cast<std::byte>(matrix.q8.codes[z(output) * z(shape.columns) + z(column)]);
          put(unit + q8_scale_byte(row, step), matrix.q8.scales[group]);
        } else {
          const int in_group = column % kGroupColumns;
          const int two = matrix.q4.codes[group * (kGroupColumns / 2) + z(in_group % (kGroupColumns / 2))];
          const int four_bits = in_group < kGroupColumns / 2 ? two & 15 : two >> 4;
          code |= static_cast<std::byte>(four_bits << (index_in_lane<kType>(in_group) % 2 * 4));
          const std::size_t block = z(output) * z(matrix.blocks()) + z(column / kBlockColumns);
          put(unit + q4_scale_byte(row, step, false), matrix.q4.scales[group]);
          put(unit + q4_scale_byte(row, step, true), matrix.q4.minimums[group]);
          put(unit + q4_factor_byte(row, false), matrix.q4.d[block]);
          put(unit + q4_factor_byte(row, true), matrix.q4.m[block]);
        }
      }
    }
  }
  return units;
}

Memory<std::byte> packed(const RandomMatrix& matrix, const Case& of, cudaStream_t stream) {
  Memory<std::byte> units(packed_bytes(of.type, of.outputs, of.columns));
  launch_pack_weights(matrix.gpu(), of.is_gate_up, units.data(), stream);
  return units;
}

class PackedWeights : public ::testing::TestWithParam<Case> {
 protected:
  const RandomMatrix matrix_{GetParam()};
  const std::vector<std::vector<float>> weights_ = dequantised(matrix_.host());
  const cuda::Stream stream_;
};

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const WeightType type : {WeightType::kQ8, WeightType::kQ4}) {
    for (const auto& [outputs, columns] : {std::pair{8, 256}, {1, 32}, {13, 288}, {64, 1024}, {35, 544}, {7, 224}})
      all.push_back({type, outputs, columns});
    for (const auto& [half, columns] : {std::pair{4, 256}, {1, 32}, {6, 320}, {35, 96}, {64, 512}})
      all.push_back({type, 2 * half, columns, true});
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(Of, PackedWeights, ::testing::ValuesIn(cases()), [](const auto& info) {
  const Case& of = info.param;
  return std::string(name_of(of.type)) + "_" + std::to_string(of.outputs) + "_by_" + std::to_string(of.columns) +
         (of.is_gate_up ? "_gate_up" : "");
});

TEST_P(PackedWeights, LieWhereTheLayoutSaysWithZerosBeyondTheMatrix) {
  const Case& of = GetParam();
  const std::vector<std::byte> found = packed(matrix_, of, stream_).download();
  const std::vector<std::byte> expected =
      (of.type == WeightType::kQ8 ? expected_units<WeightType::kQ8> : expected_units<WeightType::kQ4>)(matrix_.host(),
                                                                                                       of.shape());
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t i = 0; i < found.size(); ++i) {
    ASSERT_EQ(found[i], expected[i]) << "unit " << i / z(unit_bytes(of.type)) << ", byte "
                                     << i % z(unit_bytes(of.type));
  }
}

/// One warp reads a unit as the decode kernels do. Of each step: codes [32 lanes][4 pairs][2], then scale and minimum
/// of the outputs 2t and 2t + 1 [32 lanes][2][2].
template <WeightType kType>
__global__ void lanes_kernel(const std::byte* units, float* codes, float* scales) {
  __shared__ __align__(16) std::byte unit[unit_bytes(kType)];
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < unit_bytes(kType); i += 32)
    unit[i] = units[static_cast<std::size_t>(blockIdx.x) * unit_bytes(kType) + i];
  __syncwarp();
  constexpr int kStepsInLoad = UnitLayout<kType>::kStepsInLoad;
#pragma unroll
  for (int step = 0; step < kUnitSteps; ++step) {
    const int at = (static_cast<int>(blockIdx.x) * kUnitSteps + step) * 32 + lane;
    std::uint32_t operand[4];
    unpack_step<kType>(operand, load_codes<kType>(unit, step / kStepsInLoad), step % kStepsInLoad);
    for (int pair = 0; pair < 4; ++pair) {
      codes[at * 8 + pair * 2] = __uint_as_float(operand[pair] << 16);
      codes[at * 8 + pair * 2 + 1] = __uint_as_float(operand[pair] & 0xffff0000u);
    }
    const GroupScales<kType> of_step = load_scales<kType>(unit, step);
    scales[at * 4] = of_step.scale.x;
    scales[at * 4 + 1] = of_step.minimum.x;
    scales[at * 4 + 2] = of_step.scale.y;
    scales[at * 4 + 3] = of_step.minimum.y;
  }
}

TEST_P(PackedWeights, ReachEachLaneAsTheTensorCoresTakeThem) {
  const Case& of = GetParam();
  const MatrixShape shape = of.shape();
  const int units_of_tile = units_in_tile(of.columns);
  const int count = shape.tiles() * units_of_tile;
  const Memory<std::byte> units = packed(matrix_, of, stream_);
  const Memory<float> codes(z(count * kUnitSteps * 32 * 8)), scales(z(count * kUnitSteps * 32 * 4));
  const auto kernel = of.type == WeightType::kQ8 ? lanes_kernel<WeightType::kQ8> : lanes_kernel<WeightType::kQ4>;
  launch_kernel(kernel, static_cast<unsigned>(count), 32, stream_, units.data(), codes.data(), scales.data());
  const std::vector<float> found_codes = codes.download(), found_scales = scales.download();

  for (int unit = 0; unit < count; ++unit) {
    for (int step = 0; step < kUnitSteps; ++step) {
      const std::size_t first = z((unit * kUnitSteps + step) * 32);
      for (int row = 0; row < kPieceRows; ++row) {
        const int output = output_of(shape, unit / units_of_tile, row);
        // Lanes t = row / 2 of all groups of four have the scales of this output.
        const float* scale = &found_scales[(first + z(row / 2)) * 4 + z(row % 2 * 2)];
        for (int lane = row / 2; lane < 32; lane += 4)
          ASSERT_EQ(std::memcmp(scale, &found_scales[(first + z(lane)) * 4 + z(row % 2 * 2)], 8), 0);
        for (int in_step = 0; in_step < kGroupColumns; ++in_step) {
          const int column = unit % units_of_tile * kUnitColumns + step * kGroupColumns + in_step;
          const bool is_there = output < of.outputs && column < of.columns;
          const int lane = row * 4 + in_step % 8 / 2;
          const float code = found_codes[(first + z(lane)) * 8 + z(in_step / 8 * 2 + in_step % 2)];
          const float expected = is_there ? weights_[z(output)][z(column)] : 0;
          ASSERT_EQ(scale[0] * code - scale[1], expected) << "output " << output << ", column " << column;
        }
      }
    }
  }
}

TEST_P(PackedWeights, UnpackToBf16RowByRow) {
  const Case& of = GetParam();
  const MatrixShape shape = of.shape();
  const Memory<std::byte> units = packed(matrix_, of, stream_);
  const int rows = of.is_gate_up ? of.outputs : shape.tiles() * kPieceRows;
  const Memory<bf16> out(z(rows) * z(of.columns));
  launch_unpack_weights(of.type, units.data(), shape, reinterpret_cast<__nv_bfloat16*>(out.data()), stream_);
  const std::vector<bf16> found = out.download();
  for (int row = 0; row < rows; ++row) {
    for (int column = 0; column < of.columns; ++column) {
      const float weight = row < of.outputs ? weights_[z(row)][z(column)] : 0;
      ASSERT_EQ(found[z(row) * z(of.columns) + z(column)].bits, to_bf16(weight).bits)
          << "row " << row << ", column " << column;
    }
  }
}

TEST_P(PackedWeights, UnpackInSlabsToPartsOfTheMatrix) {
  const Case& of = GetParam();
  const MatrixShape shape = of.shape();
  const Memory<std::byte> units = packed(matrix_, of, stream_);
  for (const std::size_t elements : {cuda::least_slab(of.columns), cuda::least_slab(of.columns) * 2 + 40}) {
    for (const cuda::WeightSlab& slab : cuda::cut_into_slabs(shape, elements)) {
      const Memory<bf16> out(elements);
      launch_unpack_weights(of.type, units.data() + packed_bytes(of.type, kPieceRows, of.columns) * z(slab.first_tile),
                            slab.shape, reinterpret_cast<__nv_bfloat16*>(out.data()), stream_);
      const std::vector<bf16> found = out.download();
      for (int row = 0; row < slab.shape.outputs; ++row) {
        const int part = row / slab.outputs();  // 1: of up
        const int output = part * (of.outputs / 2) + slab.first_output() + row % slab.outputs();
        for (int column = 0; column < of.columns; ++column) {
          ASSERT_EQ(found[z(row) * z(of.columns) + z(column)].bits, to_bf16(weights_[z(output)][z(column)]).bits)
              << "first tile " << slab.first_tile << ", row " << row << ", column " << column;
        }
      }
    }
  }
}

TEST_P(PackedWeights, AreTheEmbeddingsOfTokens) {
  const Case& of = GetParam();
  if (of.is_gate_up) return;  // as no embedding is
  const Memory<std::byte> units = packed(matrix_, of, stream_);
  std::vector<int> tokens;
  for (int token = 0; token < of.outputs; ++token) tokens.push_back(of.outputs - 1 - token);
  tokens.push_back(0);
  const Memory<int> token(tokens);
  const Memory<float> x(tokens.size() * z(of.columns));
  constexpr float kScale = 48.25f;
  launch_embed(token.data(), units.data(), of.type, kScale, static_cast<int>(tokens.size()), of.columns, x.data(),
               stream_);
  const std::vector<float> found = x.download();
  for (std::size_t row = 0; row < tokens.size(); ++row) {
    for (std::size_t column = 0; column < z(of.columns); ++column) {
      ASSERT_EQ(found[row * z(of.columns) + column], weights_[z(tokens[row])][column] * kScale)
          << "token " << tokens[row] << ", column " << column;
    }
  }
}

// --- whole matrices ---

TEST(WeightSlabs, CoverAMatrixWithWholeTilesAndKeepWithinTheirRoom) {
  for (const MatrixShape& matrix :
       {MatrixShape{2 * 36864, 4608, true}, MatrixShape{2 * 14336, 3584, true}, MatrixShape{2 * 9216, 2304, true},
        MatrixShape{4608, 36864, false}, MatrixShape{256000, 2304, false}, MatrixShape{256, 96, false},
        MatrixShape{2 * 160, 96, true}, MatrixShape{2 * 32, 32, true}}) {
    for (const std::size_t elements : {std::size_t{32} << 20, std::size_t{8192} * 4608, std::size_t{20} << 20,
                                       std::size_t{600'000}, cuda::least_slab(matrix.columns)}) {
      if (elements < cuda::least_slab(matrix.columns)) continue;
      int next_tile = 0;
      for (const cuda::WeightSlab& slab : cuda::cut_into_slabs(matrix, elements)) {
        ASSERT_EQ(slab.first_tile, next_tile);
        ASSERT_GT(slab.shape.outputs, 0);
        ASSERT_EQ(slab.outputs() % 8, 0);  // what the matrix products take
        ASSERT_LE(z(slab.shape.tiles() * kPieceRows) * z(matrix.columns), elements);
        next_tile += slab.shape.tiles();
      }
      ASSERT_EQ(next_tile, matrix.tiles()) << matrix.outputs << " x " << matrix.columns << " in " << elements;
    }
  }
}

/// How inputs are made, and multiplied.
struct Way {
  bool is_bf16;  ///< lanes make whole numbers of what they have in bf16, else threads of four neighbouring inputs each
  bool is_f16;   ///< numbers and codes are multiplied as float16, else as bytes

  /// Whether a product's inputs are whole numbers times their scale.
  bool are_scaled() const { return is_f16 && !is_bf16; }
  /// What inputs are rounded to multiples of: of normalised rows, not less than float16 holds.
  float unit(float largest) const {
    const float own = std::ldexp(1.0f, std::ilogb(largest) - 10);
    return is_bf16 ? own : std::max(own, 0x1p-24f);
  }
};

std::ostream& operator<<(std::ostream& out, const Way& way) {
  return out << (way.is_bf16 ? "bf16 as " : "float32 as ") << (way.is_f16 ? "float16" : "digits");
}

/// One warp makes whole numbers of a row of 256 inputs, and multiplies a unit by them step by step.
/// @param groups    [8], as they were made
/// @param sums      [8 steps][8 outputs]
template <WeightType kType>
__global__ void digits_kernel(const float* inputs, Way way, const std::byte* units, DigitGroup* groups, float* sums) {
  __shared__ __align__(16) std::byte unit[unit_bytes(kType)];
  __shared__ __align__(16) std::byte digits[kUnitSteps * kDigitStepBytes];
  __shared__ float whole[kUnitColumns];
  const int lane = static_cast<int>(threadIdx.x);
  for (int i = lane; i < unit_bytes(kType); i += 32) unit[i] = units[i];
  const DigitRow row{digits, groups};
  for (int i = 0; i < 2; ++i) {
    const int four = lane + 32 * i;
    const float* const own = inputs + 4 * four;
    const float4 x[1] = {{own[0], own[1], own[2], own[3]}};
    make_digits_of_units<true, kLeastScaleOfHalves>(
        x, [&](int, const FourDigits& made, const DigitGroup& group) { row.put(four, made, group); });
    make_halves_of_units<true>(x, [&](int, const uint2& pairs, const DigitGroup& group) {
      const DigitPlace place(four);
      if (way.is_f16 && DigitPlace::is_first(four)) groups[place.step] = group;
      const std::uint32_t words[2] = {pairs.x, pairs.y};
      for (int j = 0; j < 2; ++j) {
        __half2 pair;
        memcpy(&pair, &words[j], 4);
        const float2 two = __half22float2(pair);
        whole[4 * four + 2 * j] = two.x;
        whole[4 * four + 2 * j + 1] = two.y;
      }
    });
  }
  __syncwarp();
  constexpr int kStepsInLoad = UnitLayout<kType>::kStepsInLoad;
#pragma unroll
  for (int step = 0; step < kUnitSteps; ++step) {
    const auto words_of = [&](const auto& pair_at) {
      const int column = kDigitColumns * step + 2 * (lane % 4);
      return uint4{pair_at(column), pair_at(column + 8), pair_at(column + 16), pair_at(column + 24)};
    };
    uint4 own = *reinterpret_cast<const uint4*>(digits + step * kDigitStepBytes + lane % 4 * 16);
    if (way.is_bf16) {
      own = words_of([&](int column) { return pack_bf16(inputs[column], inputs[column + 1]); });
      const DigitGroup group = way.is_f16 ? make_halves<true>(own) : make_digits<true>(own);
      if (lane == 0) groups[step] = group;
    } else if (way.is_f16) {
      own = words_of([&](int column) { return pack_f16(whole[column], whole[column + 1]); });
    }
    const uint4 codes = load_codes<kType>(unit, step / kStepsInLoad);
    float2 two;
    if (way.is_f16) {
      std::uint32_t b[4];
      unpack_halves<kType>(b, codes, step % kStepsInLoad);
      float sum[4] = {};
      multiply_accumulate_f16(sum, own.x, own.x, own.y, own.y, b[0], b[1]);
      multiply_accumulate_f16(sum, own.z, own.z, own.w, own.w, b[2], b[3]);
      two = {ldexpf(sum[0], kHalfExponent<kType>), ldexpf(sum[1], kHalfExponent<kType>)};
    } else {
      std::uint32_t b[2];
      unpack_step<kType>(b, codes, step % kStepsInLoad);
      two = multiply_digits(own, b);
    }
    if (lane >= 4) continue;  // whose rows of the operand are the same
    sums[step * kPieceRows + 2 * lane] = two.x;
    sums[step * kPieceRows + 2 * lane + 1] = two.y;
  }
}

constexpr Way kWays[] = {{false, false}, {false, true}, {true, false}, {true, true}};

class Digits : public ::testing::TestWithParam<WeightType> {
 protected:
  struct Found {
    std::vector<DigitGroup> groups;
    std::vector<float> sums;
  };
  Found multiply(const std::vector<float>& inputs, const Way& way) {
    const Memory<float> in(inputs);
    const Memory<std::byte> units = packed(matrix_, of_, stream_);
    const Memory<DigitGroup> groups(kUnitSteps);
    const Memory<float> sums(kUnitSteps * kPieceRows);
    const auto kernel = of_.type == WeightType::kQ8 ? digits_kernel<WeightType::kQ8> : digits_kernel<WeightType::kQ4>;
    launch_kernel(kernel, 1, 32, stream_, in.data(), way, units.data(), groups.data(), sums.data());
    return {groups.download(), sums.download()};
  }
  int code(int output, int column) const {
    const Matrix& matrix = matrix_.host();
    if (of_.type == WeightType::kQ8) return matrix.q8.codes[z(output) * kUnitColumns + z(column)];
    const int in_group = column % kGroupColumns;
    const std::size_t group = z(output) * kUnitSteps + z(column / kGroupColumns);
    const int two = matrix.q4.codes[group * (kGroupColumns / 2) + z(in_group % (kGroupColumns / 2))];
    return in_group < kGroupColumns / 2 ? two & 15 : two >> 4;
  }

  const Case of_{GetParam(), kPieceRows, kUnitColumns};
  const RandomMatrix matrix_{of_};
  const cuda::Stream stream_;
};

INSTANTIATE_TEST_SUITE_P(Of, Digits, ::testing::Values(WeightType::kQ8, WeightType::kQ4),
                         [](const auto& info) { return std::string(name_of(info.param)); });

TEST_P(Digits, HoldInputsTo11BitsOfTheLargestAndMultiplyExactly) {
  for (const Way& way : kWays) {
    std::mt19937 random(11);
    std::vector<float> inputs(kUnitColumns);
    for (std::size_t i = 0; i < inputs.size(); ++i) {
      const int step = static_cast<int>(i / kDigitColumns);
      const float magnitude = std::ldexp(1.0f, way.is_bf16 ? step * 12 - 44 : step * 4 - 18);
      inputs[i] = magnitude * (static_cast<float>(random() % 20001) - 10000) / 10000;
    }
    // What is just below a power of two is rounded up to it; a largest number with others that vanish beside it.
    inputs[3 * kDigitColumns + 7] = -std::nextafter(64.0f, 0.0f);
    inputs[4 * kDigitColumns + 31] = way.is_bf16 ? 1e15f : 65504.0f;
    if (way.is_bf16) {
      for (float& input : inputs) input = __bfloat162float(__float2bfloat16_rn(input));
    }
    const Found found = multiply(inputs, way);
    for (int step = 0; step < kUnitSteps; ++step) {
      const DigitGroup& group = found.groups[z(step)];
      const auto own = inputs.begin() + step * kDigitColumns;
      float largest = 0;
      for (int i = 0; i < kDigitColumns; ++i) largest = std::max(largest, std::abs(own[i]));
      const float unit = way.unit(largest);
      EXPECT_EQ(group.scale, way.are_scaled() ? 1 : unit);
      int whole[kDigitColumns], sum = 0;
      for (int i = 0; i < kDigitColumns; ++i) sum += whole[i] = static_cast<int>(std::nearbyint(own[i] / unit));
      EXPECT_EQ(group.sum, static_cast<float>(sum) * unit);
      for (int output = 0; output < kPieceRows; ++output) {
        int expected = 0;
        for (int i = 0; i < kDigitColumns; ++i) expected += whole[i] * code(output, step * kDigitColumns + i);
        EXPECT_EQ(found.sums[z(step * kPieceRows + output)], static_cast<float>(expected) * unit / group.scale)
            << "step " << step << ", output " << output << ", " << way;
      }
    }
  }
}

TEST_P(Digits, AddUpTheLargestNumbersExactly) {
  for (const Way& way : kWays) {
    // As large as a number can be, with the sign of an output's code: nothing cancels in that output's sums.
    const float size = way.is_bf16 ? 0x1.fep5f : std::nextafter(64.0f, 0.0f);
    std::vector<float> inputs;
    for (int column = 0; column < kUnitColumns; ++column) inputs.push_back(code(3, column) < 0 ? -size : size);
    const Found found = multiply(inputs, way);
    for (int step = 0; step < kUnitSteps; ++step) {
      for (int output = 0; output < kPieceRows; ++output) {
        int expected = 0;
        for (int i = 0; i < kDigitColumns; ++i) {
          const int column = step * kDigitColumns + i;
          expected += static_cast<int>(std::nearbyint(inputs[z(column)] / way.unit(size))) * code(output, column);
        }
        EXPECT_EQ(found.sums[z(step * kPieceRows + output)],
                  static_cast<float>(expected) * way.unit(size) / found.groups[z(step)].scale)
            << "step " << step << ", output " << output << ", " << way;
        if (output == 3 && GetParam() == WeightType::kQ8) {
          EXPECT_GT(expected, 1 << 21);
        }
      }
    }
  }
}

TEST_P(Digits, OfNothingAreZerosAndOfWhatIsNotFiniteNoNumbers) {
  for (const Way& way : kWays) {
    std::vector<float> inputs(kUnitColumns, 0.0f);
    inputs[1 * kDigitColumns] = std::numeric_limits<float>::infinity();
    inputs[2 * kDigitColumns + 31] = std::numeric_limits<float>::quiet_NaN();
    inputs[3 * kDigitColumns + 5] = -std::numeric_limits<float>::infinity();
    inputs[4 * kDigitColumns + 6] = std::numeric_limits<float>::denorm_min();
    inputs[5 * kDigitColumns + 7] = way.is_bf16 ? 0x1.fep127f : 65504.0f;
    const Found found = multiply(inputs, way);
    for (int step = 0; step < kUnitSteps; ++step) {
      const bool is_finite = step < 1 || step > 3;
      EXPECT_EQ(std::isfinite(found.groups[z(step)].sum), is_finite) << "step " << step;
      if (!is_finite) continue;
      EXPECT_GE(found.groups[z(step)].scale, std::numeric_limits<float>::min());
      const float sum = found.groups[z(step)].sum;
      EXPECT_EQ(sum, step == 5 ? inputs[5 * kDigitColumns + 7] : 0) << "step " << step << ", " << way;
      EXPECT_EQ(found.sums[z(step * kPieceRows)],
                sum / found.groups[z(step)].scale * static_cast<float>(code(0, step * kDigitColumns + 7)));
    }
  }
}

TEST(LoadedBytes, AreThoseOfTheFileForTheMatricesOfGemma2) {
  for (const WeightType type : {WeightType::kQ8, WeightType::kQ4}) {
    for (const auto& [rows, columns] : {std::pair{256000, 2304},
                                        {18432, 2304},
                                        {2304, 9216},
                                        {4096, 2304},
                                        {28672, 3584},
                                        {3584, 14336},
                                        {73728, 4608},
                                        {4608, 36864},
                                        {4608, 4096}}) {
      const Matrix matrix{.type = type, .rows = rows, .columns = columns};
      EXPECT_EQ(cuda::loaded_bytes(matrix), matrix.bytes()) << rows << " x " << columns;
    }
  }
}

class LoadedWeights : public ::testing::TestWithParam<Case> {};

// Of more than one block of 8 MiB, the last of them not full.
INSTANTIATE_TEST_SUITE_P(Of, LoadedWeights,
                         ::testing::Values(Case{WeightType::kQ8, 9005, 2304}, Case{WeightType::kQ8, 9012, 2304, true},
                                           Case{WeightType::kQ4, 17005, 2304}, Case{WeightType::kQ4, 17004, 2336, true},
                                           Case{WeightType::kQ8, 10, 4'000'000}));

TEST_P(LoadedWeights, ArePackedAsIfTheyHadComeInOnePiece) {
  const Case& of = GetParam();
  const RandomMatrix matrix(of);
  const cuda::Stream stream;
  const std::vector<std::byte> expected = packed(matrix, of, stream).download();
  constexpr std::size_t kOffset = 512;
  std::vector<cuda::LoadPiece> pieces;
  const std::vector<float> norm(100, 1.5f);
  cuda::add_pieces(norm, 0, pieces);
  cuda::add_pieces(matrix.host(), of.is_gate_up, kOffset, pieces);
  ASSERT_GT(pieces.size(), 2);
  ASSERT_GT(cuda::staging_bytes(pieces), 0);
  const Memory<std::byte> memory(kOffset + cuda::loaded_bytes(matrix.host()));
  cuda::load_pieces(pieces, memory.data());
  const std::vector<std::byte> found = memory.download();
  EXPECT_EQ(std::memcmp(found.data(), norm.data(), 400), 0);
  ASSERT_EQ(found.size() - kOffset, expected.size());
  const auto difference = std::mismatch(expected.begin(), expected.end(), found.begin() + kOffset).first;
  EXPECT_EQ(difference, expected.end()) << "byte " << difference - expected.begin();
}

}  // namespace
}  // namespace gemma
