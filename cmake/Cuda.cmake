# Decides whether the CUDA device is built: GEMMA_HAS_CUDA. Kernels need CUDA 12.4.
set(GEMMA_CUDA AUTO CACHE STRING "Build the CUDA device: ON, OFF, AUTO (where a CUDA Toolkit is installed), or SIMT \
(its kernels run on the CPU, thread by thread: for tests where there is no GPU)")
set_property(CACHE GEMMA_CUDA PROPERTY STRINGS AUTO ON OFF SIMT)
if(NOT GEMMA_CUDA MATCHES "^(AUTO|ON|OFF|SIMT)$")
  message(FATAL_ERROR "GEMMA_CUDA is '${GEMMA_CUDA}'; choose AUTO, ON, OFF or SIMT")
endif()

set(GEMMA_HAS_CUDA OFF)
set(GEMMA_KERNELS ${PROJECT_SOURCE_DIR}/kernels)
if(NOT GEMMA_CUDA MATCHES "OFF|SIMT")
  find_package(CUDAToolkit 12.4 QUIET)
  if(CUDAToolkit_FOUND AND CUDAToolkit_NVCC_EXECUTABLE)
    set(GEMMA_HAS_CUDA ON)
  elseif(GEMMA_CUDA STREQUAL ON)
    message(FATAL_ERROR "GEMMA_CUDA is ON, but no nvcc of CUDA 12.4 or newer was found. Install the CUDA Toolkit, name its "
                        "folder with -DCUDAToolkit_ROOT=DIR, or build for the CPU alone with -DGEMMA_CUDA=OFF")
  endif()
endif()

if(GEMMA_HAS_CUDA)
  # For the GPU of this machine where there is one; else for Ampere, Ada, Hopper and Blackwell.
  if(NOT DEFINED CMAKE_CUDA_ARCHITECTURES)
    execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
                    OUTPUT_VARIABLE GEMMA_GPUS ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE)
    string(REGEX MATCH "[0-9]+\\.[0-9]+" GEMMA_GPU "${GEMMA_GPUS}")
    string(REPLACE "." "" GEMMA_GPU "${GEMMA_GPU}")
    # Hopper's own instructions need the name with an "a".
    string(REGEX REPLACE "^90$" "90a" GEMMA_GPU "${GEMMA_GPU}")
    if(GEMMA_GPU)
      set(CMAKE_CUDA_ARCHITECTURES ${GEMMA_GPU})
    elseif(CUDAToolkit_VERSION VERSION_GREATER_EQUAL 12.8)
      set(CMAKE_CUDA_ARCHITECTURES 80 86 89 90a 100 120)
    else()
      set(CMAKE_CUDA_ARCHITECTURES 80 86 89 90a)
    endif()
  endif()
  set(CMAKE_CUDA_COMPILER ${CUDAToolkit_NVCC_EXECUTABLE})
  enable_language(CUDA)
  # CMake 3.25 does not know that nvcc takes this flag.
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
  message(STATUS "CUDA Toolkit ${CUDAToolkit_VERSION}, for compute capability ${CMAKE_CUDA_ARCHITECTURES}")
endif()

if(GEMMA_CUDA STREQUAL SIMT)
  set(GEMMA_HAS_CUDA ON)
  include(${PROJECT_SOURCE_DIR}/tests/simt/Simt.cmake)
endif()

# Names the calling folder's sources in CUDA, which are C++ to SIMT.
function(gemma_cuda_sources)
  if(GEMMA_CUDA STREQUAL SIMT)
    set_source_files_properties(${ARGN} PROPERTIES LANGUAGE CXX COMPILE_OPTIONS "${GEMMA_SIMT_OPTIONS}")
  endif()
endfunction()
