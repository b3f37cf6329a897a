# How every target of this project is compiled. No fast-math, and a product and a sum are fused only where the code says
# so: an expression must give the same bits wherever the compiler puts it.
add_compile_options(-ffp-contract=off)
if(GEMMA_SANITIZE)
  add_compile_options(-fsanitize=${GEMMA_SANITIZE} -fno-sanitize-recover=all -fno-omit-frame-pointer)
  add_link_options(-fsanitize=${GEMMA_SANITIZE})
endif()

function(gemma_target_options target)
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR}/include ${PROJECT_SOURCE_DIR}/src)
  # Designated initialisers leave the other members to their defaults on purpose.
  set(warnings -Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual -Wno-missing-field-initializers)
  # GCC's optimiser sees faults in library code that it inlines into ours: 12 in std::string, 14 in nlohmann/json.
  if(CMAKE_CXX_COMPILER_ID STREQUAL GNU)
    if(CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
      list(APPEND warnings -Wno-restrict)
    else()
      list(APPEND warnings -Wno-array-bounds -Wno-maybe-uninitialized)
    endif()
  endif()
  if(GEMMA_WERROR)
    list(APPEND warnings -Werror)
  endif()
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:${warnings}>)
endfunction()

# One folder of the library, which tests can link on its own. LINK names the libraries it uses and the modules below it.
#   gemma_module(gemma_model SOURCES config.cpp ... LINK nlohmann_json::nlohmann_json ...)
function(gemma_module target)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;LINK")
  add_library(${target} STATIC ${arg_SOURCES})
  gemma_target_options(${target})
  target_link_libraries(${target} PUBLIC ${arg_LINK})
endfunction()

# A GoogleTest program whose tests carry a CTest label.
#   gemma_test(model_test LABEL unit SOURCES config_test.cpp ... LINK gemma_model ...)
function(gemma_test target)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "LABEL" "SOURCES;LINK")
  add_executable(${target} ${arg_SOURCES})
  gemma_target_options(${target})
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR}/tests)
  target_compile_definitions(${target} PRIVATE GEMMA_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  target_link_libraries(${target} PRIVATE ${arg_LINK} GTest::gtest GTest::gmock GTest::gtest_main)
  include(GoogleTest)
  gtest_discover_tests(${target} DISCOVERY_TIMEOUT 60 PROPERTIES LABELS "${arg_LABEL}" TIMEOUT 300)
endfunction()

# A GoogleTest program that needs a GPU: one CTest test, gpu.NAME, since starting CUDA takes longer than most of its
# tests. Skipped where there is no GPU.
#   gemma_gpu_test(sample_test SOURCES sample_test.cu ... LINK gemma_kernels ...)
function(gemma_gpu_test target)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;LINK")
  add_executable(${target} ${arg_SOURCES} ${PROJECT_SOURCE_DIR}/tests/gpu/main.cpp)
  gemma_target_options(${target})
  target_include_directories(${target} PRIVATE ${PROJECT_SOURCE_DIR}/tests)
  target_compile_definitions(${target} PRIVATE GEMMA_SOURCE_DIR="${PROJECT_SOURCE_DIR}")
  target_link_libraries(${target} PRIVATE ${arg_LINK} gemma_device GTest::gtest)
  add_dependencies(${target} gemma-cuda)
  add_test(NAME gpu.${target} COMMAND ${target})
  set_tests_properties(gpu.${target} PROPERTIES LABELS gpu TIMEOUT 300 SKIP_RETURN_CODE 77)
endfunction()
