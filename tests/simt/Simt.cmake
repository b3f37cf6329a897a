# GEMMA_CUDA=SIMT: the kernels are compiled by the host's compiler and run on the CPU (simt.h). Takes the place of the CUDA
# Toolkit in what other folders ask for: GEMMA_KERNELS, the CUDA:: targets, and how sources in CUDA are compiled.
set(GEMMA_SIMT_ARCHITECTURE 90 CACHE STRING "Compute capability that SIMT plays: 80, 89 or 90")
set_property(CACHE GEMMA_SIMT_ARCHITECTURE PROPERTY STRINGS 80 89 90)

# -w: nvcc has its own warnings, and reports them.
set(GEMMA_SIMT_OPTIONS -w -include cuda_runtime.h -D__CUDACC__ -D__CUDA_ARCH__=${GEMMA_SIMT_ARCHITECTURE}0)
if(GEMMA_SIMT_ARCHITECTURE EQUAL 90)
  list(APPEND GEMMA_SIMT_OPTIONS -D__CUDA_ARCH_FEAT_SM90_ALL)
endif()

# The kernels, and in the place of those headers that are made of machine instructions the ones of kernels/ here. A header
# is looked for beside the file that includes it: so all of them lie in one folder, as links.
set(GEMMA_SIMT_KERNELS ${PROJECT_BINARY_DIR}/simt-kernels)
set(GEMMA_KERNELS ${GEMMA_SIMT_KERNELS})
file(MAKE_DIRECTORY ${GEMMA_SIMT_KERNELS})
file(GLOB sources CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/kernels/*.cu ${PROJECT_SOURCE_DIR}/kernels/*.cuh
     ${PROJECT_SOURCE_DIR}/kernels/*.h ${PROJECT_SOURCE_DIR}/kernels/*.cpp)
file(GLOB instructions CONFIGURE_DEPENDS ${PROJECT_SOURCE_DIR}/tests/simt/kernels/*.cuh)
foreach(source ${sources} ${instructions})
  cmake_path(GET source FILENAME name)
  file(CREATE_LINK ${source} ${GEMMA_SIMT_KERNELS}/${name} SYMBOLIC)
endforeach()
