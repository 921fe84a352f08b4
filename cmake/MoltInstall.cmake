# What `cmake --install` puts where, and how others find it: find_package(molt) and pkg-config.

include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/molt)

install(TARGETS molt molt-cli EXPORT moltTargets)
install(EXPORT moltTargets NAMESPACE molt:: DESTINATION ${package_dir})
install(DIRECTORY include/molt DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})

configure_package_config_file(cmake/moltConfig.cmake.in ${PROJECT_BINARY_DIR}/moltConfig.cmake
  INSTALL_DESTINATION ${package_dir} NO_SET_AND_CHECK_MACRO)
# Before 1.0 a minor version may change the interface.
write_basic_package_version_file(${PROJECT_BINARY_DIR}/moltConfigVersion.cmake
  COMPATIBILITY SameMinorVersion)
install(FILES
  ${PROJECT_BINARY_DIR}/moltConfig.cmake
  ${PROJECT_BINARY_DIR}/moltConfigVersion.cmake
  cmake/MoltModule.cmake
  cmake/MoltCheckModule.cmake
  cmake/molt-module.map
  DESTINATION ${package_dir})

# The way from molt.pc up to the prefix, so that the installed tree may be moved.
file(RELATIVE_PATH MOLT_PC_TO_PREFIX
  ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig ${CMAKE_INSTALL_PREFIX})
configure_file(cmake/molt.pc.in ${PROJECT_BINARY_DIR}/molt.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/molt.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig)

# Man pages: man/molt.1.scd becomes molt.1.
find_program(SCDOC scdoc)
file(GLOB manuals CONFIGURE_DEPENDS man/*.scd)
if(SCDOC)
  set(pages)
  foreach(manual IN LISTS manuals)
    cmake_path(GET manual STEM LAST_ONLY page)
    string(REGEX MATCH "[0-9]$" section ${page})
    set(output ${PROJECT_BINARY_DIR}/man/${page})
    add_custom_command(OUTPUT ${output} DEPENDS ${manual} VERBATIM
      COMMAND sh -c "mkdir -p man && '${SCDOC}' < '${manual}' > '${output}'")
    list(APPEND pages ${output})
    install(FILES ${output} DESTINATION ${CMAKE_INSTALL_MANDIR}/man${section})
  endforeach()
  add_custom_target(manuals ALL DEPENDS ${pages})
elseif(manuals)
  message(STATUS "No scdoc: man pages are left out")
endif()

# Completion, where the shells look for it.
install(FILES completion/molt.bash
  DESTINATION ${CMAKE_INSTALL_DATADIR}/bash-completion/completions RENAME molt)
install(FILES completion/_molt DESTINATION ${CMAKE_INSTALL_DATADIR}/zsh/site-functions)
