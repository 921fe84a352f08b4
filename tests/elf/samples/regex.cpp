#include <regex>

extern "C" void touch() {
  static bool found;
  found = std::regex_match("aaa", std::regex("a+"));
}
