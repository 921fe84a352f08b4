// A probe that is only told of calls, where the kernel's is a kprobe without a post handler.
#include <molt/function.hpp>
#include <molt/module.hpp>

struct shown : molt::function<const char*()> {
  static constexpr const char* name = ":cmdline_proc_show";
};

static void trace(molt::call<shown>&) {
  molt_log(&molt_this_module, "cmdline_proc_show was called");
}

MOLT_MODULE("test_klp_kprobe", "1.0", "Apache-2.0", "tells of calls")
MOLT_BEFORE(shown, trace)
