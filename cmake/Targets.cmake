# How every target of this project is compiled.
function(gemma_target_options target)
  target_compile_features(${target} PUBLIC cxx_std_20)
  target_include_directories(${target} PUBLIC $<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>
                                              $<INSTALL_INTERFACE:${CMAKE_INSTALL_INCLUDEDIR}>
                                       PRIVATE ${PROJECT_SOURCE_DIR}/src)
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor -Woverloaded-virtual)
  if(GEMMA_WERROR)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
  if(GEMMA_SANITIZE)
    target_compile_options(${target} PUBLIC -fsanitize=${GEMMA_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=undefined)
    target_link_options(${target} PUBLIC -fsanitize=${GEMMA_SANITIZE})
  endif()
endfunction()

# One folder of the library: an object library that tests can link on its own.
#   gemma_module(gemma_model SOURCES config.cpp ... LINK nlohmann_json::nlohmann_json ...)
function(gemma_module target)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;LINK")
  add_library(${target} OBJECT ${arg_SOURCES})
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
