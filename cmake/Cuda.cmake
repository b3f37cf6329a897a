# Decides whether the CUDA device is built: GEMMA_HAS_CUDA. C++20 in device code needs CUDA 12.
set(GEMMA_CUDA AUTO CACHE STRING "Build the CUDA device: ON, OFF, or AUTO (where a CUDA Toolkit is installed)")
set_property(CACHE GEMMA_CUDA PROPERTY STRINGS AUTO ON OFF)
if(NOT GEMMA_CUDA MATCHES "^(AUTO|ON|OFF)$")
  message(FATAL_ERROR "GEMMA_CUDA is '${GEMMA_CUDA}'; choose AUTO, ON or OFF")
endif()

set(GEMMA_HAS_CUDA OFF)
if(NOT GEMMA_CUDA STREQUAL OFF)
  find_package(CUDAToolkit 12.0 QUIET)
  if(CUDAToolkit_FOUND AND CUDAToolkit_NVCC_EXECUTABLE)
    set(GEMMA_HAS_CUDA ON)
  elseif(GEMMA_CUDA STREQUAL ON)
    message(FATAL_ERROR "GEMMA_CUDA is ON, but no nvcc of CUDA 12 or newer was found. Install the CUDA Toolkit, name its "
                        "folder with -DCUDAToolkit_ROOT=DIR, or build for the CPU alone with -DGEMMA_CUDA=OFF")
  endif()
endif()

if(GEMMA_HAS_CUDA)
  message(STATUS "CUDA Toolkit ${CUDAToolkit_VERSION}: ${CUDAToolkit_NVCC_EXECUTABLE}. "
                 "This version has no CUDA device yet: it runs on the CPU.")
endif()
