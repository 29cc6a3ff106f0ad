# In place of the package, which is not among the wheels: what it would find.
include(${CMAKE_CURRENT_LIST_DIR}/../generate.cmake)
find_package(action_msgs REQUIRED)
forget_foreign_headers()
