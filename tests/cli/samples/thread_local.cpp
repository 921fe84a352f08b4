// glibc keeps a library whose thread_local objects still have destructors to run.
#include <molt/module.hpp>

#include <string>

thread_local std::string last_path;
std::string& use_last_path() { return last_path; }

MOLT_MODULE("thread_local", "1", "MIT", "")
