// om_notify hears of every module's COMING, LIVE and GOING, and writes what it heard.
#include <molt/module.hpp>

MOLT_PARAM(std::string, veto, "", "the module whose COMING is refused with EACCES", MOLT_WRITABLE)

static const char* name_of(enum molt_module_state state) {
  switch (state) {
    case MOLT_MODULE_STATE_LIVE:
      return "LIVE";
    case MOLT_MODULE_STATE_COMING:
      return "COMING";
    case MOLT_MODULE_STATE_GOING:
      return "GOING";
    default:
      return "UNFORMED";
  }
}

static int notify(molt_notifier*, enum molt_module_state event, molt_module* module) {
  int refcount = molt_module_refcount(module);
  bool got = molt_module_try_get(module);
  if (got) molt_module_put(module);
  auto state = static_cast<enum molt_module_state>(molt_module_get_state(module));
  molt_log(&molt_this_module, "event %s module=%s state=%s refcount=%d try_get=%d", name_of(event),
           module->name, name_of(state), refcount, got);
  if (event == MOLT_MODULE_STATE_COMING && veto.get() == module->name) return -EACCES;
  return MOLT_NOTIFY_OK;
}

static molt_notifier notifier = {notify, 0, 0, &molt_this_module, nullptr};

static int start() { return molt_notifier_register(&notifier); }
static void finish() { molt_notifier_unregister(&notifier); }

MOLT_MODULE("om_notify", "1.0", "Apache-2.0", "tells of other modules' lives")
MOLT_INIT(start)
MOLT_EXIT(finish)
