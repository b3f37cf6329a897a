# The libraries that this project links, all of them from the distribution. Every one that is missing is named, together
# with its package.
set(GEMMA_MISSING "")

macro(gemma_require found name package)
  if(NOT ${found})
    list(APPEND GEMMA_MISSING "${name} (package ${package})")
  endif()
endmacro()

find_package(Threads REQUIRED)
find_package(nlohmann_json CONFIG QUIET)
gemma_require(nlohmann_json_FOUND "nlohmann/json" nlohmann-json3-dev)
find_package(CLI11 CONFIG QUIET)
gemma_require(CLI11_FOUND CLI11 libcli11-dev)
find_package(SentencePiece QUIET)
gemma_require(SentencePiece_FOUND SentencePiece libsentencepiece-dev)

find_package(PkgConfig QUIET)
gemma_require(PKG_CONFIG_FOUND pkg-config pkgconf)
if(PKG_CONFIG_FOUND)
  pkg_check_modules(Highway QUIET IMPORTED_TARGET libhwy)
  gemma_require(Highway_FOUND "Google Highway" libhwy-dev)
  pkg_check_modules(xxHash QUIET IMPORTED_TARGET libxxhash)
  gemma_require(xxHash_FOUND xxHash libxxhash-dev)
endif()

if(GEMMA_TESTS)
  find_package(GTest QUIET)
  gemma_require(GTest_FOUND GoogleTest "libgtest-dev, libgmock-dev")
  find_package(Python3 QUIET COMPONENTS Interpreter)
  gemma_require(Python3_FOUND Python python3)
endif()

if(GEMMA_MISSING)
  list(JOIN GEMMA_MISSING "\n  " GEMMA_MISSING)
  message(FATAL_ERROR "Not found:\n  ${GEMMA_MISSING}\nInstall what is missing with: tools/setup")
endif()
