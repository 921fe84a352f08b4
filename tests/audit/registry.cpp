#include "registry.hpp"

void (*g_on_event)() = nullptr;
Registration* g_registration = nullptr;
