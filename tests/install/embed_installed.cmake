# Installs BUILD into a new prefix, builds SOURCE/examples/embed against it with COMPILER, and runs the results. A sanitized
# library (SANITIZE) needs a program that is linked in the same way.
set(flags "-Wall -Wextra -Werror")
if(SANITIZE)
  string(APPEND flags " -fsanitize=${SANITIZE}")
endif()
set(scratch ${BUILD}/embed_installed)
set(prefix ${scratch}/prefix)
file(REMOVE_RECURSE ${scratch})

function(run)
  execute_process(COMMAND ${ARGV} RESULT_VARIABLE status OUTPUT_VARIABLE output ERROR_VARIABLE errors)
  if(NOT status EQUAL 0)
    list(JOIN ARGV " " command)
    message(FATAL_ERROR "${command}\nfailed with ${status}\n${output}\n${errors}")
  endif()
  set(output "${output}" PARENT_SCOPE)
endfunction()

run(${CMAKE_COMMAND} --install ${BUILD} --prefix ${prefix})
run(${CMAKE_COMMAND} -S ${SOURCE}/examples/embed -B ${scratch}/embed -G ${GENERATOR}
    -D CMAKE_PREFIX_PATH=${prefix} -D CMAKE_CXX_COMPILER=${COMPILER} "-DCMAKE_CXX_FLAGS=${flags}")
run(${CMAKE_COMMAND} --build ${scratch}/embed)

run(${scratch}/embed/embed)
string(LENGTH "${output}" length)
if(length LESS 50)
  message(FATAL_ERROR "the program wrote ${length} bytes where a story was to come:\n${output}")
endif()

foreach(program IN ITEMS gemma-run gemma-convert)
  run(${prefix}/bin/${program} --version)
  if(NOT output MATCHES "[0-9]+\\.[0-9]+\\.[0-9]+")
    message(FATAL_ERROR "${program} --version tells no version:\n${output}")
  endif()
endforeach()
file(REMOVE_RECURSE ${scratch})
