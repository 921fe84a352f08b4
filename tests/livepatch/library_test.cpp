// Libraries that the program loads and unloads by plain dlopen() and dlclose() while patches name them.

#include <dlfcn.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <optional>
#include <set>
#include <vector>

#include "patching.hpp"
#include "plugin.hpp"
#include "targets.hpp"

namespace {

using Transcript = std::vector<std::string>;
std::mutex g_mutex;
Transcript g_transcript;
std::atomic<std::uint32_t> g_constructor_waits{0}, g_in_constructor{0};

}  // namespace

void lp_note(const char* what, int value) {
  std::lock_guard lock(g_mutex);
  g_transcript.push_back(value == 0 ? what : std::string(what) + " " + std::to_string(value));
}

void lp_plugin_wait() {
  if (g_constructor_waits == 0) return;
  g_in_constructor = 1;
  while (g_constructor_waits != 0) {
    syscall(SYS_futex, &g_constructor_waits, FUTEX_WAIT_PRIVATE, 1, nullptr, nullptr, 0);
  }
  g_in_constructor = 0;
}

namespace {

Transcript taken() {
  std::lock_guard lock(g_mutex);
  return std::exchange(g_transcript, {});
}

std::string path_of(const std::string& file) {
  return std::string(std::getenv("MOLT_LIB")) + "/livepatch/" + file;
}

// The library, as the program has it.
class Plugin {
 public:
  explicit Plugin(const std::string& file = "liblp_plugin.so")
      : handle_(dlopen(path_of(file).c_str(), RTLD_NOW)) {
    EXPECT_NE(handle_, nullptr) << dlerror();
  }
  ~Plugin() {
    if (handle_ != nullptr) dlclose(handle_);
  }
  Plugin(const Plugin&) = delete;
  Plugin& operator=(const Plugin&) = delete;
  void* code() const { return dlsym(handle_, "lp_plugin_answer"); }
  int answer() const { return reinterpret_cast<int (*)()>(code())(); }

 private:
  void* handle_;
};

bool is_loaded(const std::string& file) {
  void* handle = dlopen(path_of(file).c_str(), RTLD_NOW | RTLD_NOLOAD);
  if (handle != nullptr) dlclose(handle);
  return handle != nullptr;
}

const Transcript with_patch_waiting = {"pre_patch",    "post_patch",  "constructor 2",
                                       "destructor 2", "pre_unpatch", "post_unpatch"};

TEST(Library, IsPatchedBeforeItsConstructorsAndBackAfterItsDestructors) {
  taken();
  ASSERT_EQ(apply("lp_library"), "");
  EXPECT_EQ(taken(), Transcript{});
  for (int round = 0; round < 3; ++round) {
    {
      Plugin plugin;
      EXPECT_EQ(plugin.answer(), 2);
    }
    EXPECT_FALSE(is_loaded("liblp_plugin.so"));
    EXPECT_EQ(taken(), with_patch_waiting);
  }
  EXPECT_EQ(revert("lp_library"), "");
  Plugin plugin;
  EXPECT_EQ(plugin.answer(), 1);
  EXPECT_EQ(taken(), Transcript{"constructor 1"});
}

// What the other tests compare with: a library that is not seen (another namespace) is not patched.
TEST(Library, InAnotherNamespaceIsNotPatched) {
  ASSERT_EQ(apply("lp_library", ("object=" + path_of("liblp_bare.so")).c_str()), "");
  void* handle = dlmopen(LM_ID_NEWLM, path_of("liblp_bare.so").c_str(), RTLD_NOW);
  ASSERT_NE(handle, nullptr) << dlerror();
  EXPECT_EQ(reinterpret_cast<int (*)()>(dlsym(handle, "lp_plugin_answer"))(), 1);
  dlclose(handle);
  EXPECT_EQ(revert("lp_library"), "");
  taken();
}

TEST(Library, ThatWasThereBeforeCanGoAndComeAgain) {
  taken();
  {
    Plugin plugin;
    ASSERT_EQ(apply("lp_library"), "");
    EXPECT_EQ(plugin.answer(), 2);
  }
  EXPECT_FALSE(is_loaded("liblp_plugin.so"));
  EXPECT_EQ(taken(), (Transcript{"constructor 1", "pre_patch", "post_patch", "destructor 2",
                                 "pre_unpatch", "post_unpatch"}));
  {
    Plugin plugin;
    EXPECT_EQ(plugin.answer(), 2);
    EXPECT_EQ(revert("lp_library"), "");
    EXPECT_EQ(plugin.answer(), 1);
  }
  EXPECT_FALSE(is_loaded("liblp_plugin.so"));
  EXPECT_EQ(taken(), (Transcript{"pre_patch", "post_patch", "constructor 2", "pre_unpatch",
                                 "post_unpatch", "destructor 1"}));
}

// It went while no patch named it, so that nobody noticed, and lies now where it lay then.
TEST(Library, ThatWentUnwatchedIsPatchedWhenItComesToTheSamePlace) {
  std::set<void*> watched;  // places where it lay
  int again = 0;
  for (int round = 0; round < 20; ++round) {
    ASSERT_EQ(apply("lp_library"), "");
    Plugin plugin;
    ASSERT_EQ(plugin.answer(), 2) << "round " << round << ", " << again;
    again += !watched.insert(plugin.code()).second;
    ASSERT_EQ(revert("lp_library"), "");
  }
  EXPECT_GT(again, 0);
  taken();
}

// KERNEL.md P7.2: during the transition of the patch post_patch is put off, and pre_unpatch left out.
TEST(Library, ComesAndGoesDuringTheTransition) {
  lp_shared.hold = 1;
  std::thread sleeper([] { lp_sleeper(); });
  ASSERT_TRUE(eventually([] { return lp_shared.inside == 1; }));
  taken();
  ASSERT_EQ(load_patch("lp_library", "sleeper=1"), 0) << molt_last_error();
  { Plugin plugin; }
  EXPECT_EQ(taken(), (Transcript{"pre_patch", "constructor 2", "destructor 2", "post_unpatch"}));
  Plugin plugin;
  EXPECT_EQ(plugin.answer(), 2);
  EXPECT_EQ(taken(), (Transcript{"pre_patch", "constructor 2"}));
  lp_shared.hold = 0;
  syscall(SYS_futex, &lp_shared.hold, FUTEX_WAKE_PRIVATE, 100, nullptr, nullptr, 0);
  sleeper.join();
  EXPECT_EQ(molt_patch_wait(5000), 0) << molt_last_error();
  EXPECT_EQ(taken(), Transcript{"post_patch"});
  EXPECT_EQ(revert("lp_library"), "");
  EXPECT_EQ(plugin.answer(), 1);
  taken();
}

// Whoever sleeps in lp_sleeper is on the side that is left, and calls what is of that side when it wakes.
class SideOfASleeper {
 public:
  SideOfASleeper() {
    lp_shared.hold = 1;
    thread_ = std::thread([] { lp_sleeper(); });
    EXPECT_TRUE(eventually([] { return lp_shared.inside == 1; }));
  }
  ~SideOfASleeper() { answer_of(nullptr); }
  SideOfASleeper(const SideOfASleeper&) = delete;
  SideOfASleeper& operator=(const SideOfASleeper&) = delete;
  int answer_of(int (*function)()) {
    if (!thread_.joinable()) return 0;
    lp_shared.calls = function;
    lp_shared.hold = 0;
    syscall(SYS_futex, &lp_shared.hold, FUTEX_WAKE_PRIVATE, 100, nullptr, nullptr, 0);
    thread_.join();
    return lp_shared.called.exchange(0);
  }

 private:
  std::thread thread_;
};

TEST(Library, ThatComesDuringTheTransitionIsOfTwoSides) {
  {
    SideOfASleeper old_side;
    ASSERT_EQ(load_patch("lp_library", "sleeper=1"), 0) << molt_last_error();
    Plugin plugin;
    EXPECT_EQ(plugin.answer(), 2);
    EXPECT_EQ(old_side.answer_of(reinterpret_cast<int (*)()>(plugin.code())), 1);
    EXPECT_EQ(molt_patch_wait(5000), 0) << molt_last_error();
    EXPECT_EQ(plugin.answer(), 2);
  }
  SideOfASleeper new_side;
  ASSERT_EQ(molt_patch_set_enabled("lp_library", 0), 0) << molt_last_error();
  Plugin plugin;
  EXPECT_EQ(plugin.answer(), 1);
  EXPECT_EQ(new_side.answer_of(reinterpret_cast<int (*)()>(plugin.code())), 2);
  EXPECT_EQ(molt_patch_wait(5000), 0) << molt_last_error();
  EXPECT_EQ(plugin.answer(), 1);
  EXPECT_EQ(molt_unload("lp_library", 0, -1), 0) << molt_last_error();
  taken();
}

TEST(Library, ThatGoesDuringTheTransitionLeavesTheOthersTheirSides) {
  {
    SideOfASleeper old_side;
    {
      Plugin plugin;
      ASSERT_EQ(load_patch("lp_library", "sleeper=1"), 0) << molt_last_error();
    }
    EXPECT_EQ(old_side.answer_of(&lp_sleeper), 1);
    EXPECT_EQ(molt_patch_wait(5000), 0) << molt_last_error();
  }
  SideOfASleeper new_side;
  {
    Plugin plugin;
    ASSERT_EQ(molt_patch_set_enabled("lp_library", 0), 0) << molt_last_error();
  }
  EXPECT_EQ(new_side.answer_of(&lp_sleeper), 2);
  EXPECT_EQ(molt_patch_wait(5000), 0) << molt_last_error();
  EXPECT_EQ(molt_unload("lp_library", 0, -1), 0) << molt_last_error();
  taken();
}

// A patch that is enabled when the library is in the loader's list, and before it is the library's turn, comes to it
// before an older one.
TEST(Library, ThatIsPatchedBeforeItsTurnKeepsTheOrderOfPatches) {
  ASSERT_EQ(apply("lp_library", "object=liblp_second.so"), "");
  lp_shared.hold = 1;
  int loaded = -1;
  std::thread newer(
      [&] { loaded = load_patch("lp_library_three", "object=liblp_second.so waits=1"); });
  ASSERT_TRUE(eventually([] { return lp_shared.inside == 1; }));
  g_constructor_waits = 1;
  std::optional<Plugin> plugin;
  std::thread loader([&] { plugin.emplace("liblp_second.so"); });
  ASSERT_TRUE(eventually([] { return g_in_constructor == 1; }));
  lp_shared.hold = 0;
  syscall(SYS_futex, &lp_shared.hold, FUTEX_WAKE_PRIVATE, 100, nullptr, nullptr, 0);
  newer.join();
  EXPECT_EQ(loaded, 0) << molt_last_error();
  EXPECT_EQ(molt_patch_wait(5000), 0) << molt_last_error();
  g_constructor_waits = 0;
  syscall(SYS_futex, &g_constructor_waits, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
  loader.join();
  EXPECT_EQ(plugin->answer(), 3);
  EXPECT_EQ(revert("lp_library_three"), "");
  EXPECT_EQ(plugin->answer(), 2);
  EXPECT_EQ(revert("lp_library"), "");
  EXPECT_EQ(plugin->answer(), 1);
  taken();
}

// A module would be refused; a library cannot be.
TEST(Library, IsLoadedUnpatchedIfThePatchDoesNotFit) {
  taken();
  ASSERT_EQ(apply("lp_library", "missing=1"), "");
  {
    Plugin plugin;
    EXPECT_EQ(plugin.answer(), 1);
  }
  EXPECT_EQ(taken(), (Transcript{"constructor 1", "destructor 1"}));
  EXPECT_EQ(revert("lp_library"), "");
  ASSERT_EQ(apply("lp_library", "pre_patch_ret=-19"), "");
  {
    Plugin plugin;
    EXPECT_EQ(plugin.answer(), 1);
  }
  EXPECT_EQ(taken(), (Transcript{"pre_patch", "constructor 1", "destructor 1"}));
  EXPECT_EQ(revert("lp_library"), "");
}

// dlopen() maps it, and then does not find a symbol: neither constructors nor destructors are run.
TEST(Library, ThatFailsToLoadLeavesNothing) {
  taken();
  ASSERT_EQ(apply("lp_library", "object=liblp_broken.so"), "");
  for (int round = 0; round < 3; ++round) {
    EXPECT_EQ(dlopen(path_of("liblp_broken.so").c_str(), RTLD_NOW), nullptr);
  }
  EXPECT_EQ(taken(), Transcript{});
  EXPECT_EQ(revert("lp_library"), "");
}

// Without DT_INIT and DT_FINI nobody would be told: it stays.
TEST(Library, WithoutInitialisersStaysLoadedWhilePatched) {
  {
    Plugin bare("liblp_bare.so");
    ASSERT_EQ(apply("lp_library", "object=liblp_bare.so"), "");
    EXPECT_EQ(bare.answer(), 2);
  }
  EXPECT_TRUE(is_loaded("liblp_bare.so"));
  Plugin bare("liblp_bare.so");
  EXPECT_EQ(bare.answer(), 2);
  EXPECT_EQ(revert("lp_library"), "");
  EXPECT_EQ(bare.answer(), 1);
  taken();
}

// Who knows the symbols knows that nothing lies behind a short function. In a stripped library one without
// a name may, and then its bytes are nobody's to write.
TEST(Library, BytesBesideAFunctionOfAStrippedLibraryAreLeftAlone) {
  {
    Plugin tiny("liblp_tiny.so");
    EXPECT_EQ(apply("lp_library", "object=liblp_tiny.so"), "");
    EXPECT_EQ(tiny.answer(), 2);
    EXPECT_EQ(revert("lp_library"), "");
    EXPECT_EQ(tiny.answer(), 1);
  }
  void* handle = dlopen(path_of("liblp_tiny_stripped.so").c_str(), RTLD_NOW);
  ASSERT_NE(handle, nullptr) << dlerror();
  const auto* code = static_cast<const unsigned char*>(dlsym(handle, "lp_plugin_answer"));
  constexpr std::size_t around = 16;
  const std::string before(code - around, code + around);
  EXPECT_EQ(load_patch("lp_library", "object=liblp_tiny_stripped.so"), -ENOTSUP);
  EXPECT_NE(std::string(molt_last_error()).find("padding"), std::string::npos) << molt_last_error();
  EXPECT_EQ(std::string(code - around, code + around), before);
  dlclose(handle);
  taken();
}

// A static function that only .gnu_debugdata names.
TEST(Library, AStaticFunctionOfAStrippedLibraryIsFoundInItsDebugData) {
  Plugin hidden("liblp_hidden.so");
  EXPECT_EQ(hidden.answer(), 1);
  EXPECT_EQ(load_patch("lp_library", "object=liblp_hidden.so function=lp_unnamed"), -EINVAL);
  EXPECT_NE(std::string(molt_last_error()).find("(.gnu_debugdata)"), std::string::npos)
      << molt_last_error();
  ASSERT_EQ(apply("lp_library", "object=liblp_hidden.so function=lp_hidden"), "");
  EXPECT_EQ(hidden.answer(), 2);
  EXPECT_EQ(revert("lp_library"), "");
  EXPECT_EQ(hidden.answer(), 1);
  taken();
}

// One that only a separate debug file names, which is believed if it has the library's build-id.
TEST(Library, AStaticFunctionOfAStrippedLibraryIsFoundInItsDebugFile) {
  namespace fs = std::filesystem;
  const fs::path root = fs::path(testing::TempDir()) / ("molt-debug-" + std::to_string(getpid()));
  const fs::path file = root / ".build-id/01/d157a470.debug";
  fs::create_directories(file.parent_path());
  setenv("MOLT_DEBUG_DIRECTORY", root.c_str(), 1);
  Plugin distant("liblp_distant.so");
  EXPECT_EQ(distant.answer(), 1);
  const char* const which = "object=liblp_distant.so function=lp_hidden";
  EXPECT_EQ(load_patch("lp_library", which), -EINVAL);
  EXPECT_NE(std::string(molt_last_error()).find(file), std::string::npos) << molt_last_error();
  // It has the name, and another build-id.
  fs::copy_file(path_of("liblp_twins.so"), file);
  EXPECT_EQ(load_patch("lp_library", which), -EINVAL);
  fs::copy_file(path_of("liblp_distant.debug"), file, fs::copy_options::overwrite_existing);
  EXPECT_EQ(apply("lp_library", which), "");
  EXPECT_EQ(distant.answer(), 2);
  EXPECT_EQ(revert("lp_library"), "");
  EXPECT_EQ(distant.answer(), 1);
  unsetenv("MOLT_DEBUG_DIRECTORY");
  fs::remove_all(root);
  taken();
}

// Two static functions of one name: by name alone neither is meant.
TEST(Library, AFunctionIsFoundByItsPosition) {
  void* handle = dlopen(path_of("liblp_twins.so").c_str(), RTLD_NOW);
  ASSERT_NE(handle, nullptr) << dlerror();
  const auto answers = [&] {
    const auto call = [&](const char* name) {
      return reinterpret_cast<int (*)()>(dlsym(handle, name))();
    };
    return std::pair(call("lp_plugin_answer"), call("lp_plugin_twin"));
  };
  const std::string which = "object=liblp_twins.so function=lp_hidden position=";
  EXPECT_EQ(load_patch("lp_library", (which + "0").c_str()), -EINVAL);
  EXPECT_NE(std::string(molt_last_error()).find("ambiguity"), std::string::npos)
      << molt_last_error();
  EXPECT_EQ(load_patch("lp_library", (which + "3").c_str()), -EINVAL);
  EXPECT_NE(std::string(molt_last_error()).find("position 3"), std::string::npos)
      << molt_last_error();
  ASSERT_EQ(apply("lp_library", (which + "1").c_str()), "");
  const auto [answer, twin] = answers();
  EXPECT_EQ(answer + twin, 1 + 2);
  EXPECT_EQ(revert("lp_library"), "");
  ASSERT_EQ(apply("lp_library", (which + "2").c_str()), "");
  EXPECT_EQ(answers(), std::pair(twin, answer));
  EXPECT_EQ(revert("lp_library"), "");
  EXPECT_EQ(answers(), std::pair(1, 1));
  dlclose(handle);
  taken();
}

// A jump there would be jumped into.
TEST(Entry, ThatIsBranchedIntoIsRefused) {
  Plugin hidden("liblp_hidden.so");
  EXPECT_EQ(load_patch("lp_library", "object=liblp_hidden.so function=lp_branches_back"), -ENOTSUP);
  EXPECT_NE(std::string(molt_last_error()).find("branch"), std::string::npos) << molt_last_error();
  EXPECT_EQ(hidden.answer(), 1);
  taken();
}

// Maps the pages of a library's code anew, from its file.
void map_code(const void* code, int how) {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    unsigned long begin = 0, end = 0, offset = 0;
    int path_at = 0;
    ASSERT_EQ(
        std::sscanf(line.c_str(), "%lx-%lx %*s %lx %*s %*s %n", &begin, &end, &offset, &path_at),
        3);
    const auto at = reinterpret_cast<std::uintptr_t>(code);
    if (at < begin || at >= end) continue;
    const int file = open(line.c_str() + path_at, O_RDONLY | O_CLOEXEC);
    ASSERT_GE(file, 0) << line;
    void* where = reinterpret_cast<void*>(begin);
    EXPECT_EQ(mmap(where, end - begin, PROT_READ | PROT_EXEC, how | MAP_FIXED, file,
                   static_cast<off_t>(offset)),
              where);
    close(file);
    return;
  }
  ADD_FAILURE() << "the code is nowhere";
}

// What is written there would be seen by everybody who has the file mapped.
TEST(Entry, InASharedMappingIsRefused) {
  void* handle = dlopen(path_of("liblp_hidden.so").c_str(), RTLD_NOW);
  ASSERT_NE(handle, nullptr) << dlerror();
  const auto answer = reinterpret_cast<int (*)()>(dlsym(handle, "lp_plugin_answer"));
  map_code(reinterpret_cast<const void*>(answer), MAP_SHARED);
  EXPECT_EQ(load_patch("lp_library", "object=liblp_hidden.so"), -ENOTSUP);
  EXPECT_NE(std::string(molt_last_error()).find("is mapped shared"), std::string::npos)
      << molt_last_error();
  EXPECT_EQ(answer(), 1);
  map_code(reinterpret_cast<const void*>(answer), MAP_PRIVATE);
  EXPECT_EQ(apply("lp_library", "object=liblp_hidden.so"), "");
  EXPECT_EQ(answer(), 2);
  EXPECT_EQ(revert("lp_library"), "");
  EXPECT_EQ(answer(), 1);
  dlclose(handle);
  taken();
}

// Takes all that is free within 4 GiB of it. What was taken.
std::vector<std::pair<void*, std::size_t>> occupy_around(const void* code) {
  constexpr std::uintptr_t reach = std::uintptr_t{1} << 32, page = 4096;
  const auto at = reinterpret_cast<std::uintptr_t>(code) & ~(page - 1);
  std::vector<std::pair<void*, std::size_t>> taken;
  taken.reserve(10'000);
  const auto take = [&](std::uintptr_t from, std::uintptr_t to) {
    if (from >= to) return;
    void* wanted = reinterpret_cast<void*>(from);
    void* got = mmap(wanted, to - from, PROT_NONE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE, -1, 0);
    if (got == wanted) taken.emplace_back(got, to - from);
  };
  std::ifstream maps("/proc/self/maps");
  std::uintptr_t from = at - reach;
  for (std::string line; std::getline(maps, line);) {
    unsigned long begin = 0, end = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx", &begin, &end) != 2) continue;
    if (end <= from) continue;
    take(from, std::min<std::uintptr_t>(begin, at + reach));
    from = end;
  }
  return taken;
}

// In a process of its own: no trampoline has been made there before.
void apply_without_room() {
  Plugin hidden("liblp_hidden.so");
  const auto answer = [&] { return hidden.answer(); };
  void* handle = dlopen(path_of("liblp_hidden.so").c_str(), RTLD_NOW | RTLD_NOLOAD);
  const auto taken = occupy_around(dlsym(handle, "lp_plugin_answer"));
  const int refused = load_patch("lp_library", "object=liblp_hidden.so");
  std::fprintf(stderr, "refused with %d: %s\n", refused, molt_last_error());
  const int meanwhile = answer();
  for (const auto& [at, size] : taken) munmap(at, size);
  const std::string then = apply("lp_library", "object=liblp_hidden.so");
  std::fprintf(stderr, "then: %s\n", then.c_str());
  const int at_last = answer();
  const bool held = refused == -ENOMEM && meanwhile == 1 && then.empty() && at_last == 2;
  _exit(held && revert("lp_library").empty() && answer() == 1 ? 0 : 1);
}
TEST(Entry, WithoutNearMemoryIsRefused) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(apply_without_room(), testing::ExitedWithCode(0), "within 2 GiB");
}

// L5: a thread that sleeps in a constructor holds the dynamic loader's lock, and no operation needs it.
TEST(Library, OperationsGoOnWhileAConstructorSleeps) {
  // Modules are loaded by dlopen() too: only what needs no load is done meanwhile.
  ASSERT_EQ(apply("lp_library"), "");
  g_constructor_waits = 1;
  std::thread loader([] { Plugin plugin; });
  ASSERT_TRUE(eventually([] { return g_in_constructor == 1; }));
  EXPECT_EQ(molt_patch_set_enabled("lp_library", 0), 0) << molt_last_error();
  EXPECT_EQ(molt_patch_wait(5000), 0) << molt_last_error();
  g_constructor_waits = 0;
  syscall(SYS_futex, &g_constructor_waits, FUTEX_WAKE_PRIVATE, 1, nullptr, nullptr, 0);
  loader.join();
  EXPECT_EQ(molt_unload("lp_library", 0, -1), 0) << molt_last_error();
  taken();
}

// What an old word on its stack says of it for ever, the thread refutes when the loader calls us on its way.
TEST(Library, AThreadThatLoadsChangesOverThere) {
  std::atomic<int> step{0};
  const auto come_to = [&](int next) {
    step.store(next, std::memory_order_release);
    step.notify_all();
  };
  const auto wait_for = [&](int awaited) {
    for (int now = step.load(std::memory_order_acquire); now < awaited;
         now = step.load(std::memory_order_acquire)) {
      step.wait(now, std::memory_order_acquire);
    }
  };
  std::thread holder([&] {
    volatile auto word = reinterpret_cast<std::uintptr_t>(&lp_sleeper) + 5;
    come_to(1);
    wait_for(2);
    { Plugin plugin; }
    wait_for(3);
    EXPECT_NE(word, 0U);
  });
  wait_for(1);
  EXPECT_EQ(load_patch("lp_library", "sleeper=1"), 0) << molt_last_error();
  EXPECT_EQ(molt_patch_wait(300), -ETIMEDOUT);
  come_to(2);
  EXPECT_EQ(molt_patch_wait(5000), 0) << molt_last_error();
  come_to(3);
  holder.join();
  EXPECT_EQ(revert("lp_library"), "");
  taken();
}

// Patches come and go, and their callbacks load libraries, while two threads load and unload the one
// that is patched: nothing waits for ever, nothing faults, and constructor and destructor of one life
// of it see what the callbacks between them say.
TEST(Library, ComesAndGoesWhilePatchesDo) {
  std::atomic<bool> stop{false};
  std::atomic<long> lives{0}, wrong{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&] {
      for (int life = 1; !stop; ++life) {
        {
          Plugin plugin;
          const int answer = plugin.answer();
          if (answer != 1 && answer != 2) ++wrong;
          ++lives;
        }
        // The loader's lock goes to whoever asks first after its release, which is who has just released it: the
        // callbacks' dlopen() would wait until chance favours it.
        // tidy: sleep-ok gives a lock away that knows no turns
        if (life % 4 == 0) std::this_thread::sleep_for(std::chrono::microseconds(200));
      }
    });
  }
  const std::string loads = "loads=" + path_of("liblp_other.so");
  const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(1500);
  constexpr int patience_ms = 30'000;  // the stops of the broken build are long beside many others
  std::string failure;
  // They are seldom seen in user mode, and hardly ever sleep: they change over when the loader calls us.
  for (int rounds = 0; failure.empty() && (rounds < 2 || std::chrono::steady_clock::now() < until);
       ++rounds) {
    failure = apply("lp_library", loads.c_str(), patience_ms);
    if (failure.empty()) failure = revert("lp_library", patience_ms);
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  ASSERT_EQ(failure, "");
  EXPECT_EQ(wrong, 0);
  EXPECT_GT(lives, 3);
  EXPECT_FALSE(is_loaded("liblp_plugin.so"));
  const Transcript all = taken();
  long patched = 0, unpatched = 0;
  for (const std::string& line : all) {
    patched += line == "pre_patch";
    unpatched += line == "post_unpatch";
  }
  EXPECT_EQ(patched, unpatched);
  EXPECT_GT(patched, 0);
}

TEST(Library, ComesAndGoesInTheChildOfAFork) {
  ASSERT_EQ(apply("lp_library"), "");
  {
    Plugin before;
    const pid_t child = fork();
    if (child == 0) {
      taken();
      void* handle = dlopen(path_of("liblp_plugin.so").c_str(), RTLD_NOW);
      bool fine = reinterpret_cast<int (*)()>(dlsym(handle, "lp_plugin_answer"))() == 2;
      dlclose(handle);
      dlclose(handle);  // the parent's
      fine = fine && taken() == Transcript{"destructor 2", "pre_unpatch", "post_unpatch"};
      { Plugin again; }
      fine = fine && taken() == with_patch_waiting;
      _exit(fine ? 0 : 1);
    }
    int status = -1;
    waitpid(child, &status, 0);
    EXPECT_EQ(status, 0);
    EXPECT_EQ(before.answer(), 2);
  }
  EXPECT_EQ(revert("lp_library"), "");
  taken();
}

}  // namespace
