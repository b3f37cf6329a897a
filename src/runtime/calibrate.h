#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <span>
#include <string>
#include <vector>

#include "model/model.h"

namespace gemma {

/// How much each input of each matrix of the layers matters: the mean square of what it is while the model reads a
/// text. An error of a weight counts by that in the matrix's outputs. The embedding and the head are left out.
///
/// Computed on the CPU; the same for any number of threads.
/// @param tokens    ids, read in windows of at most 1024 (or the context), each with a <bos>.
/// @param threads   0: one for each core.
/// @param progress  called now and then with the tokens read and the tokens in all; returns false to stop. May be
/// empty.
/// @return by the matrix's name in a .gemma file, [columns] each.
/// @throws Error if there are too few tokens to tell anything, the memory does not suffice, or `progress` asked to
/// stop.
std::map<std::string, std::vector<float>> calibrate(const Model& model, std::span<const int> tokens, int bos,
                                                    int threads,
                                                    const std::function<bool(std::uint64_t, std::uint64_t)>& progress);

}  // namespace gemma
