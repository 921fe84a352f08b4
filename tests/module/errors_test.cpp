// Every way in which loading and unloading can be refused: the code, the reason, and what is left.
#include <climits>
#include <cstddef>

#include "fixture.hpp"

namespace {

class Errors : public ModuleTest {};

TEST_F(Errors, NoFile) {
  EXPECT_TRUE(is(load(fs::path("/nonexistent/x.so")), -ENOENT, {"/nonexistent/x.so"}));
}

TEST_F(Errors, NoDescriptor) { EXPECT_TRUE(is(molt_load_fd(-1, nullptr, 0, -1), -EBADF)); }

TEST_F(Errors, DescriptorNotReadable) {
  int fd = open(module_file("probe").c_str(), O_PATH | O_CLOEXEC);
  EXPECT_TRUE(is(molt_load_fd(fd, nullptr, 0, -1), -EBADF));
  close(fd);
}

TEST_F(Errors, Folder) {
  Folder folder;
  Answer answer = load(folder.path());
  EXPECT_TRUE(answer.result == -EISDIR || answer.result == -EINVAL || answer.result == -ENOEXEC)
      << answer;
  EXPECT_FALSE(answer.reason.empty());
}

TEST_F(Errors, EmptyFile) {
  Folder folder;
  std::ofstream(folder.path() / "empty.so");
  EXPECT_TRUE(is(load(folder.path() / "empty.so"), -EINVAL, {"empty"}));
}

TEST_F(Errors, NoElf) {
  Folder folder;
  std::ofstream(folder.path() / "text.so") << "this is a text\n";
  EXPECT_TRUE(is(load(folder.path() / "text.so"), -ENOEXEC, {"ELF"}));
}

TEST_F(Errors, ShorterThanItsHeader) {
  Folder folder;
  std::ofstream(folder.path() / "short.so") << "\x7f"
                                               "ELF\2\1\1";
  EXPECT_TRUE(is(load(folder.path() / "short.so"), -ENOEXEC));
}

// Cut off anywhere, a module is refused or, where only unneeded parts are missing, works; it never
// takes the process with it.
TEST_F(Errors, TruncatedAnywhere) {
  Folder folder;
  fs::path file = folder.copy("probe", "cut.so");
  std::uintmax_t whole = fs::file_size(file);
  for (int part = 0; part < 64; ++part) {
    fs::copy_file(module_file("probe"), file, fs::copy_options::overwrite_existing);
    fs::resize_file(file, whole * static_cast<unsigned>(part) / 64);
    Answer answer = load(file);
    if (answer.result == 0) {
      EXPECT_TRUE(is(unload("probe"), 0));
    } else {
      EXPECT_TRUE(answer.result == -ENOEXEC || (part == 0 && answer.result == -EINVAL)) << answer;
      EXPECT_FALSE(answer.reason.empty());
    }
  }
}

// One byte of the ELF header wrong: the same. damage_test.cpp has more.
TEST_F(Errors, DamagedHeader) {
  Folder folder;
  for (std::uintmax_t at = 0; at < 64; ++at) {
    fs::path file = folder.copy("bare", "damaged" + std::to_string(at) + ".so");
    std::fstream bytes(file, std::ios::in | std::ios::out | std::ios::binary);
    bytes.seekg(static_cast<std::streamoff>(at));
    char byte = static_cast<char>(bytes.get());
    bytes.seekp(static_cast<std::streamoff>(at));
    bytes.put(static_cast<char>(byte ^ 0x55));
    bytes.close();
    Answer answer = load(file);
    if (answer.result == 0) {
      EXPECT_TRUE(is(unload("bare"), 0));
    } else {
      EXPECT_FALSE(answer.reason.empty()) << answer;
    }
  }
}

TEST_F(Errors, NotAModule) {
  Traces before = Traces::now();
  EXPECT_TRUE(is(load("no_module"), -ENOEXEC, {"MOLT_MODULE"}));
  EXPECT_EQ(before.since(), "");
}

TEST_F(Errors, OtherMagic) {
  Traces before = Traces::now();
  EXPECT_TRUE(is(load("bare_magic"), -ENOEXEC, {"molt-0"}));
  EXPECT_EQ(before.since(), "");
  EXPECT_TRUE(is(load("bare_magic", nullptr, MOLT_LOAD_FORCE), 0));
  EXPECT_TRUE(is(unload("bare"), 0));
}

TEST_F(Errors, OtherAbiIsNotForced) {
  Traces before = Traces::now();
  EXPECT_TRUE(is(load("bare_abi"), -ENOEXEC, {"99"}));
  EXPECT_TRUE(is(load("bare_abi", nullptr, MOLT_LOAD_FORCE), -ENOEXEC, {"99"}));
  EXPECT_EQ(before.since(), "");
}

TEST_F(Errors, BadNames) {
  Traces before = Traces::now();
  for (const char* file : {"bare_long_name", "bare_empty_name", "bare_slash_name"}) {
    Answer answer = load(file);
    EXPECT_TRUE(answer.result == -EINVAL || answer.result == -ENOEXEC) << file << ": " << answer;
  }
  EXPECT_EQ(before.since(), "");
}

TEST_F(Errors, UnresolvedFunction) {
  Traces before = Traces::now();
  Answer answer = load("unresolved");
  EXPECT_TRUE(answer.result == -ENOENT || answer.result == -ENOEXEC) << answer;
  EXPECT_NE(answer.reason.find("there_is_no_such_function"), std::string::npos) << answer;
  EXPECT_EQ(answer.reason.find("-lmolt"), std::string::npos) << answer;
  EXPECT_EQ(before.since(), "");
}

// What a module of a build of its own lacks that was not linked with libmolt.
TEST_F(Errors, UnresolvedFunctionOfMolt) {
  EXPECT_TRUE(is(load("unresolved_of_molt"), -ENOENT,
                 {"molt_there_is_no_such_function", "-lmolt", "molt_add_module()"}));
}

TEST_F(Errors, UnknownFlags) {
  EXPECT_TRUE(is(load("probe", nullptr, 1u << 30), -EINVAL, {"flag"}));
  ASSERT_TRUE(is(load("probe"), 0));
  EXPECT_TRUE(is(unload("probe", 1u << 30), -EINVAL, {"flag"}));
  EXPECT_TRUE(is(unload("probe"), 0));
}

TEST_F(Errors, NullPaths) {
  EXPECT_LT(molt_load(nullptr, nullptr, 0, -1), 0);
  EXPECT_LT(molt_replace(nullptr, nullptr, nullptr, 0, -1), 0);
  EXPECT_LT(molt_unload(nullptr, 0, -1), 0);
  EXPECT_LT(molt_disable(nullptr), 0);
  EXPECT_LT(molt_enable(nullptr), 0);
}

TEST_F(Errors, HookWithOtherSignature) {
  Traces before = Traces::now();
  EXPECT_TRUE(is(load("hook_wrong"), -EINVAL, {"test.probe", "i32(i32)", "i32(i64)"}));
  // It being optional does not help: the hook is there, and does not fit.
  EXPECT_TRUE(is(load("hook_wrong_optional"), -EINVAL, {"test.probe"}));
  EXPECT_EQ(before.since(), "");
}

TEST_F(Errors, HookThatIsMissing) {
  Traces before = Traces::now();
  EXPECT_TRUE(is(load("hook_missing"), -ENOENT, {"test.nowhere"}));
  EXPECT_EQ(before.since(), "");
  EXPECT_TRUE(is(load("hook_missing_optional"), 0));
  EXPECT_TRUE(is(unload("hook_missing_optional"), 0));
}

TEST_F(Errors, Parameters) {
  Traces before = Traces::now();
  EXPECT_TRUE(is(load("probe", "number=abc"), -EINVAL, {"number", "abc"}));
  EXPECT_TRUE(is(load("probe", "number="), -EINVAL, {"number"}));
  EXPECT_TRUE(is(load("probe", "number=99999999999999999999"), -EINVAL, {"number"}));
  EXPECT_TRUE(is(load("probe", "flag=maybe"), -EINVAL, {"flag", "maybe"}));
  EXPECT_EQ(board().inits, 0);
  EXPECT_EQ(before.since(), "");

  board().init = [](molt_module* self) {
    char value[64];
    for (const molt_param* p = self->params; p != self->params_end; ++p) {
      p->get(p->value, value, sizeof value);
      board().tell(std::string(p->name) + "=" + value);
    }
    return 0;
  };
  ASSERT_TRUE(is(load("probe", "  number=-7   flag  text=\"two words\"  nosuch=1 "), 0));
  std::vector<std::string> told = board().all_told();
  EXPECT_EQ(std::set<std::string>(told.begin(), told.end()),
            (std::set<std::string>{"number=-7", "flag=Y", "text=two words"}));
  EXPECT_TRUE(is(unload("probe"), 0));
}

TEST_F(Errors, NameIsLive) {
  ASSERT_TRUE(is(load("probe"), 0));
  EXPECT_TRUE(is(load("probe"), -EEXIST, {"probe"}));
  EXPECT_TRUE(is(load("probe_2"), -EEXIST, {"probe"}));
  EXPECT_EQ(board().inits, 1);
  EXPECT_EQ(on_probe(1), 101);
  EXPECT_TRUE(is(unload("probe"), 0));
}

TEST_F(Errors, NameIsGoing) {
  Gate gate;
  std::atomic<bool> entered{false};
  board().exit = [&](molt_module*) {
    entered = true;
    gate.wait();
  };
  ASSERT_TRUE(is(load("probe"), 0));
  molt_module* module = descriptor("probe");
  Sleeper unloader([] { EXPECT_TRUE(is(unload("probe"), 0)); });
  ASSERT_TRUE(eventually([&] { return entered.load(); }));
  EXPECT_TRUE(is(load("probe"), -EBUSY, {"probe"}));
  EXPECT_TRUE(is(load("probe_2"), -EBUSY, {"probe"}));
  EXPECT_TRUE(is(unload("probe"), -EBUSY, {"probe"}));
  EXPECT_EQ(molt_module_get_state(module), MOLT_MODULE_STATE_GOING);
  EXPECT_EQ(molt_module_refcount(module), -1);
  EXPECT_FALSE(molt_module_try_get(module));
  EXPECT_EQ(molt_module_find_get("probe"), nullptr);
  gate.open();
  unloader.join();
  EXPECT_TRUE(is(load("probe"), 0));
  EXPECT_TRUE(is(unload("probe"), 0));
}

TEST_F(Errors, NameIsComing) {
  std::atomic<bool> entered{false};
  Gate gate;
  board().init = [&](molt_module*) {
    entered = true;
    gate.wait();
    return 0;
  };
  Sleeper loader([] { EXPECT_TRUE(is(load("probe"), 0)); });
  ASSERT_TRUE(eventually([&] { return entered.load(); }));
  EXPECT_TRUE(is(unload("probe"), -EBUSY, {"probe"}));
  EXPECT_EQ(molt_module_find_get("probe"), nullptr) << "a reference to a module that is not live";
  EXPECT_EQ(on_probe(1), 0) << "a callback in force before init has succeeded";
  gate.open();
  loader.join();
  EXPECT_EQ(on_probe(1), 101);
  EXPECT_TRUE(is(unload("probe"), 0));
}

TEST_F(Errors, UnloadOfNothing) {
  EXPECT_TRUE(is(unload("nosuch"), -ENOENT, {"nosuch"}));
  EXPECT_TRUE(is(unload(""), -ENOENT));
  EXPECT_TRUE(is(unload(std::string(300, 'x').c_str()), -ENOENT));
  EXPECT_TRUE(is(molt_disable("nosuch"), -ENOENT, {"nosuch"}));
  EXPECT_TRUE(is(molt_enable("nosuch"), -ENOENT, {"nosuch"}));
  EXPECT_TRUE(is(replace("nosuch", "probe"), -ENOENT, {"nosuch"}));
}

TEST_F(Errors, OrderOfAHookThatIsNotThere) {
  EXPECT_TRUE(is(molt_hook_set_order("no.such.hook", "probe"), -ENOENT, {"no.such.hook"}));
  EXPECT_TRUE(is(molt_hook_set_order("test.probe", "unknown,probe"), 0));
  EXPECT_TRUE(is(molt_hook_set_order("test.probe", nullptr), 0));
}

TEST_F(Errors, Permanent) {
  ASSERT_TRUE(is(load("permanent"), 0));
  EXPECT_TRUE(is(unload("permanent"), -EBUSY, {"permanent", "exit"}));
  // Without a proof that its init left nothing running, only by force, and then resident.
  EXPECT_TRUE(is(unload("permanent", MOLT_UNLOAD_RESIDENT), 0));
  EXPECT_TRUE(is(unload("permanent"), -ENOENT));
}

TEST_F(Errors, NeitherInitNorExit) {
  Traces before = Traces::now();
  ASSERT_TRUE(is(load("bare"), 0));
  EXPECT_TRUE(is(unload("bare"), 0));
  EXPECT_EQ(before.since(), "");
}

TEST_F(Errors, LockIsForEver) {
  ASSERT_TRUE(is(load("probe"), 0));
  EXPECT_EXIT(
      {
        molt_lock_loading();
        bool good =
            molt_load(module_file("bare").c_str(), nullptr, 0, -1) == -EPERM &&
            std::strlen(molt_last_error()) > 0 && molt_unload("probe", 0, -1) == -EPERM &&
            molt_replace("probe", module_file("probe_2").c_str(), nullptr, 0, -1) == -EPERM &&
            on_probe(1) == 101;
        _exit(good ? 0 : 1);
      },
      testing::ExitedWithCode(0), "");
  EXPECT_TRUE(is(unload("probe"), 0)) << "the lock of a child locked the parent";
}

// ---- init fails: nothing is left.

class InitFails : public ModuleTest, public testing::WithParamInterface<int> {};

TEST_P(InitFails, NothingIsLeft) {
  int error = GetParam();
  // The first load creates the store and other things that stay.
  ASSERT_TRUE(is(load("probe"), 0));
  ASSERT_TRUE(is(unload("probe"), 0));
  Traces before = Traces::now();
  int expected = error > 0 ? -EINVAL : error;
  board().inits = board().exits = 0;
  board().init = [error](molt_module* self) {
    molt_offer(self, "kind", "thing", "structure");
    return error;
  };
  for (int i = 0; i < 3; ++i) {
    EXPECT_TRUE(is(load("probe"), expected, {"probe"}));
    expect_gone("probe", before);
    molt_module* owner = nullptr;
    EXPECT_EQ(molt_acquire("kind", "thing", &owner), nullptr);
  }
  EXPECT_EQ(board().inits, 3);
  EXPECT_EQ(board().exits, 0);
  board().init = nullptr;
  EXPECT_TRUE(is(load("probe"), 0));
  EXPECT_EQ(on_probe(1), 101);
  EXPECT_TRUE(is(unload("probe"), 0));
}

INSTANTIATE_TEST_SUITE_P(Answers, InitFails,
                         testing::Values(-EIO, -ENOMEM, -ENODEV, -EAGAIN, -EPERM, -4095, 1, 7, 4096,
                                         INT_MAX),
                         [](const auto& given) {
                           return given.param > 0 ? "positive" + std::to_string(given.param)
                                                  : "errno" + std::to_string(-given.param);
                         });

TEST_F(Errors, InitAnswersNonsense) {
  board().init = [](molt_module*) { return INT_MIN; };
  Answer answer = load("probe");
  EXPECT_LT(answer.result, 0);
  EXPECT_GE(answer.result, -4095) << "not an errno";
  EXPECT_TRUE(is(unload("probe"), -ENOENT));
}

TEST_F(Errors, InitThrows) {
  Traces before = Traces::now();
  EXPECT_TRUE(is(load("throwing"), -ECANCELED, {"throwing"}));
  EXPECT_EQ(before.since(), "");
}

// References that init leaked do not keep a failed module's name, but its memory: somebody may use it.
TEST_F(Errors, InitFailsWithReferences) {
  molt_gc();
  Traces before = Traces::now();
  molt_module* leaked = nullptr;
  board().init = [&](molt_module* self) {
    leaked = self;
    EXPECT_EQ(molt_module_get_state(self), MOLT_MODULE_STATE_COMING);
    EXPECT_EQ(molt_module_refcount(self), 1);
    EXPECT_TRUE(molt_module_try_get(self));
    molt_module_get(self);
    EXPECT_EQ(molt_module_refcount(self), 3);
    return -EIO;
  };
  EXPECT_TRUE(is(load("probe"), -EIO));
  EXPECT_TRUE(is(unload("probe"), -ENOENT));
  EXPECT_EQ(on_probe(1), 0);
  EXPECT_EQ(molt_gc(), 0);
  EXPECT_EQ(molt_module_put(leaked), 0);
  EXPECT_EQ(molt_gc(), 0);
  EXPECT_EQ(molt_module_put(leaked), 0);
  EXPECT_EQ(molt_gc(), 1);
  expect_gone("probe", before);
}

}  // namespace
