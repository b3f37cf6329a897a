// Finds the plug-in library with the CUDA device when it is first asked for, so that programs on the CPU never load
// CUDA.

#include <dlfcn.h>

#include <filesystem>
#include <string>
#include <system_error>

#include "device/device.h"
#include "gemma/error.h"

namespace gemma {
namespace {

constexpr const char* kPluginName = "libgemma-cuda.so";

using MakeDevice = Device*(const Model&, const CudaOptions&, std::string& error, bool& is_out_of_memory);
using MeasureLimits = bool(int ordinal, DeviceLimits&, std::string& error);
using CountDevices = int(std::string&);

struct Plugin {
  MakeDevice* make_device = nullptr;
  MeasureLimits* measure_limits = nullptr;
  CountDevices* count_devices = nullptr;
  std::string error;  // why there is none
};

/// Beside the program, or where its installed libraries are.
void* open_library(std::string& error) {
  std::error_code ignored;
  const std::filesystem::path folder = std::filesystem::read_symlink("/proc/self/exe", ignored).parent_path();
  for (const std::filesystem::path& place :
       {folder / kPluginName, folder / ".." / GEMMA_LIBRARY_FOLDER / kPluginName}) {
    if (!std::filesystem::exists(place, ignored)) continue;
    void* library = dlopen(place.c_str(), RTLD_NOW | RTLD_LOCAL);
    if (library == nullptr) error = std::string("the CUDA device cannot be loaded: ") + dlerror();
    return library;
  }
  error = "this build has no CUDA device (there is no " + std::string(kPluginName) + " beside the program)";
  return nullptr;
}

Plugin load_plugin() {
  Plugin plugin;
#ifndef GEMMA_SIMT  // which needs no driver
  // Without a driver there is no need to load CUDA's libraries, which are large.
  if (dlopen("libcuda.so.1", RTLD_LAZY | RTLD_LOCAL) == nullptr) {
    plugin.error = "this machine has no NVIDIA driver";
    return plugin;
  }
#endif
  void* library = open_library(plugin.error);
  if (library == nullptr) return plugin;
  plugin.make_device = reinterpret_cast<MakeDevice*>(dlsym(library, "gemma_make_cuda_device"));
  plugin.measure_limits = reinterpret_cast<MeasureLimits*>(dlsym(library, "gemma_measure_cuda_limits"));
  plugin.count_devices = reinterpret_cast<CountDevices*>(dlsym(library, "gemma_count_cuda_devices"));
  if (plugin.make_device == nullptr || plugin.count_devices == nullptr || plugin.measure_limits == nullptr) {
    plugin = {};
    plugin.error = std::string(kPluginName) + " is of another version than the program";
  }
  return plugin;
}

/// Loaded once and never unloaded.
const Plugin& plugin() {
  static const Plugin loaded = load_plugin();
  return loaded;
}

}  // namespace

int count_cuda_devices(std::string* why_not) {
  std::string error = plugin().error;
  const int count = plugin().count_devices != nullptr ? plugin().count_devices(error) : 0;
  if (why_not != nullptr) *why_not = count > 0 ? std::string() : error;
  return count;
}

bool has_cuda_device(std::string* why_not) { return count_cuda_devices(why_not) > 0; }

namespace {

void require_gpu(int ordinal) {
  std::string error;
  const int count = count_cuda_devices(&error);
  if (count == 0) throw Error(error + "; run it with --device cpu");
  if (ordinal >= count) {
    throw Error("there is no GPU " + std::to_string(ordinal) + ": this machine has " + std::to_string(count) +
                ", counted from 0; name one of them, or run it with --device cpu");
  }
}

}  // namespace

std::unique_ptr<Device> make_cuda_device(const Model& model, const CudaOptions& options) {
  require_gpu(options.ordinal);
  std::string error;
  bool is_out_of_memory = false;
  std::unique_ptr<Device> device(plugin().make_device(model, options, error, is_out_of_memory));
  if (device) return device;
  if (is_out_of_memory) throw OutOfMemory(error);
  throw Error(error);
}

DeviceLimits measure_cuda_limits(int ordinal) {
  require_gpu(ordinal);
  std::string error;
  DeviceLimits limits;
  if (!plugin().measure_limits(ordinal, limits, error)) throw Error(error);
  return limits;
}

}  // namespace gemma
