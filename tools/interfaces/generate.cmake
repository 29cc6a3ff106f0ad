# What both packages need. Type support for C is what rclpy uses; Fast DDS's for C needs C++'s.
foreach(needed
    ament_cmake
    rosidl_cmake
    rosidl_generator_type_description
    rosidl_generator_c
    rosidl_generator_cpp
    rosidl_typesupport_introspection_c
    rosidl_typesupport_fastrtps_cpp
    rosidl_typesupport_fastrtps_c
    rosidl_typesupport_c
    rosidl_generator_py)
  find_package(${needed} REQUIRED)
endforeach()

# Call it when all is found. The wheels' targets name Python headers where the wheels were built.
function(forget_foreign_headers)
  get_property(targets DIRECTORY PROPERTY IMPORTED_TARGETS)
  foreach(target ${targets})
    if(target MATCHES "__rosidl_generator_py$")
      set_target_properties(${target} PROPERTIES INTERFACE_INCLUDE_DIRECTORIES "")
    endif()
  endforeach()
endfunction()
