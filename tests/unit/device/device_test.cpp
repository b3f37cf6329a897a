#include "unit/device/device_test.h"

#include <iostream>
#include <map>
#include <memory>

namespace gemma {
namespace {

// The largest errors of all comparisons, said at the end, so that the tolerances can be seen to fit.
class LargestErrors : public ::testing::Environment {
 public:
  void add(const std::string& kind, double error, double allowed) {
    Largest& largest = of_kind_[kind];
    if (error / allowed > largest.share) largest = {error, error / allowed};
  }

  void TearDown() override {
    for (const auto& [kind, largest] : of_kind_) {
      std::cout << "Largest error of a logit on " << kind << ": " << largest.error << ", " << 100 * largest.share
                << "% of what is tolerated\n";
    }
  }

 private:
  struct Largest {
    double error = 0;
    double share = 0;
  };
  std::map<std::string, Largest> of_kind_;
};

LargestErrors& largest_errors() {
  static LargestErrors& errors = *[] {
    auto made = std::make_unique<LargestErrors>();
    LargestErrors* const address = made.get();
    ::testing::AddGlobalTestEnvironment(made.release());  // GoogleTest takes it
    return address;
  }();
  return errors;
}

// Environments are to be known before the first test runs.
[[maybe_unused]] const LargestErrors& kAddedAtStart = largest_errors();

}  // namespace

::testing::AssertionResult is_close(const DeviceKind& kind, const Logits& found, const naive::Vectors& expected,
                                    double allowance) {
  const double error = largest_difference(found, expected);
  const double allowed = allowance * kind.tolerance;
  largest_errors().add(kind.name, error, allowed);
  if (error < allowed) return ::testing::AssertionSuccess();
  return ::testing::AssertionFailure() << "a logit is wrong by " << error << ", " << allowed << " is tolerated";
}

}  // namespace gemma
