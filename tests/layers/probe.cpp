// Compiled by nobody; see CMakeLists.txt.
