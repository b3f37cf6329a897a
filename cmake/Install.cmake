# What `cmake --install` lays down: programs, headers, the library, its CMake package, the documents.
include(CMakePackageConfigHelpers)
set(GEMMA_PACKAGE_DIR ${CMAKE_INSTALL_LIBDIR}/cmake/gemma)

configure_package_config_file(${PROJECT_SOURCE_DIR}/cmake/gemmaConfig.cmake.in ${PROJECT_BINARY_DIR}/gemmaConfig.cmake
  INSTALL_DESTINATION ${GEMMA_PACKAGE_DIR} NO_SET_AND_CHECK_MACRO NO_CHECK_REQUIRED_COMPONENTS_MACRO)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/gemmaConfigVersion.cmake COMPATIBILITY SameMinorVersion)

install(TARGETS gemma EXPORT gemma ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR})
install(TARGETS gemma-run gemma-convert gemma-bench RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR})
install(DIRECTORY ${PROJECT_SOURCE_DIR}/include/gemma DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
install(EXPORT gemma NAMESPACE gemma:: FILE gemmaTargets.cmake DESTINATION ${GEMMA_PACKAGE_DIR})
install(FILES ${PROJECT_BINARY_DIR}/gemmaConfig.cmake ${PROJECT_BINARY_DIR}/gemmaConfigVersion.cmake
              ${PROJECT_SOURCE_DIR}/cmake/FindSentencePiece.cmake
  DESTINATION ${GEMMA_PACKAGE_DIR})
install(FILES README.md models.md LICENSE DESTINATION ${CMAKE_INSTALL_DOCDIR})
