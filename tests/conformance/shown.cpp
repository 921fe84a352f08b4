#include "shown.hpp"

const char* cmdline_proc_show() {
  asm volatile("");
  return "conformance";
}
const char* meminfo_proc_show() {
  asm volatile("");
  return "MemTotal";
}
