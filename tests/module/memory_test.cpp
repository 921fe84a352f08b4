// What becomes of a module's memory: freed and proven so, resident until gc, or pinned with a reason;
// and files that are overwritten while they are loaded.
#include <dlfcn.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <csignal>

#include "fixture.hpp"

namespace {

class Memory : public ModuleTest {
 protected:
  // What an earlier test left to be freed is not this one's.
  Memory() { molt_gc(); }
  // Lines of /proc/self/maps with this text.
  static int mappings(const std::string& text) {
    std::ifstream maps("/proc/self/maps");
    int count = 0;
    for (std::string line; std::getline(maps, line);) {
      count += line.find(text) != std::string::npos;
    }
    return count;
  }
  static bool is_mapped(const void* address) {
    unsigned char there = 0;
    auto page = reinterpret_cast<std::uintptr_t>(address) & ~std::uintptr_t{4095};
    return mincore(reinterpret_cast<void*>(page), 4096, &there) == 0;
  }
};

TEST_F(Memory, UnmappedMeansUnmapped) {
  Traces before = Traces::now();
  ASSERT_TRUE(is(load("probe"), 0));
  const void* address = descriptor("probe");
  EXPECT_TRUE(is_mapped(address));
  Answer answer = unload("probe");
  EXPECT_TRUE(is(answer, 0));
  EXPECT_EQ(answer.reason, "");
  EXPECT_FALSE(is_mapped(address));
  EXPECT_EQ(before.since(), "");
}

// Symbolizers map the file of what they name, to read in it, and keep it so.
TEST_F(Memory, AViewOfTheFileIsNotTheModule) {
  ASSERT_TRUE(is(load("probe"), 0));
  const void* address = descriptor("probe");
  Dl_info object{};
  ASSERT_NE(dladdr(address, &object), 0);
  const int file = open(object.dli_fname, O_RDONLY | O_CLOEXEC);
  void* view = mmap(nullptr, 4096, PROT_READ, MAP_PRIVATE, file, 0);
  ASSERT_NE(view, MAP_FAILED);
  close(file);
  Answer answer = unload("probe");
  EXPECT_TRUE(is(answer, 0));
  EXPECT_EQ(answer.reason, "");
  EXPECT_FALSE(is_mapped(address));
  munmap(view, 4096);
}

// ---- Files

TEST_F(Memory, OverwritingTheFileHarmsNobody) {
  Folder folder;
  fs::path file = folder.copy("probe", "probe.so");
  ASSERT_TRUE(is(load(file), 0));
  {
    std::fstream bytes(file, std::ios::in | std::ios::out | std::ios::binary);
    std::vector<char> junk(fs::file_size(file), '\xcc');
    bytes.write(junk.data(), static_cast<std::streamsize>(junk.size()));
  }
  EXPECT_EQ(on_probe(1), 101);
  fs::resize_file(file, 0);
  EXPECT_EQ(on_probe(1), 101);
  EXPECT_TRUE(is(unload("probe"), 0));
  EXPECT_EQ(board().exits, 1);
}

// The loader knows files by name and inode; we know them by content.
TEST_F(Memory, NewContentInTheSameFile) {
  Folder folder;
  fs::path file = folder.copy("probe", "module.so");
  ASSERT_TRUE(is(load(file), 0));
  EXPECT_EQ(on_probe(1), 101);
  ASSERT_TRUE(is(unload("probe"), 0));
  folder.copy("probe_2", "module.so");  // in place
  ASSERT_TRUE(is(load(file), 0));
  EXPECT_EQ(on_probe(1), 102);
  ASSERT_TRUE(is(unload("probe"), 0));
  folder.copy("probe", "new.so");
  fs::rename(folder.path() / "new.so", file);  // another inode
  ASSERT_TRUE(is(load(file), 0));
  EXPECT_EQ(on_probe(1), 101);
  EXPECT_TRUE(is(unload("probe"), 0));
}

TEST_F(Memory, DeletedFile) {
  Folder folder;
  fs::path file = folder.copy("probe", "gone.so");
  int fd = open(file.c_str(), O_RDONLY | O_CLOEXEC);
  fs::remove(file);
  ASSERT_TRUE(is(molt_load_fd(fd, nullptr, 0, -1), 0));
  close(fd);
  EXPECT_EQ(on_probe(1), 101);
  EXPECT_TRUE(is(unload("probe"), 0));
}

TEST_F(Memory, DescriptorIsBorrowed) {
  int fd = open(module_file("probe").c_str(), O_RDONLY | O_CLOEXEC);
  ASSERT_EQ(lseek(fd, 100, SEEK_SET), 100);
  ASSERT_TRUE(is(molt_load_fd(fd, nullptr, 0, -1), 0));
  EXPECT_EQ(lseek(fd, 0, SEEK_CUR), 100) << "somebody else's file position was moved";
  EXPECT_NE(fcntl(fd, F_GETFD), -1);
  close(fd);
  EXPECT_TRUE(is(unload("probe"), 0));
}

TEST_F(Memory, MemoryFile) {
  int fd = memfd_create("module", MFD_CLOEXEC);
  std::ifstream in(module_file("probe"), std::ios::binary);
  std::string bytes(std::istreambuf_iterator<char>(in), {});
  ASSERT_EQ(write(fd, bytes.data(), bytes.size()), static_cast<ssize_t>(bytes.size()));
  ASSERT_TRUE(is(molt_load_fd(fd, nullptr, 0, -1), 0));
  close(fd);
  EXPECT_EQ(on_probe(1), 101);
  EXPECT_TRUE(is(unload("probe"), 0));
}

// ---- Resident

TEST_F(Memory, ResidentUntilGc) {
  ASSERT_TRUE(is(load("bare"), 0));
  ASSERT_TRUE(is(unload("bare"), 0));
  Traces before = Traces::now();
  ASSERT_TRUE(is(load("probe"), 0));
  molt_module* module = molt_module_find_get("probe");
  ASSERT_TRUE(is(unload("probe"), -EAGAIN));
  board().exit = [](molt_module* self) {
    EXPECT_EQ(molt_module_refcount(self), 1);
    EXPECT_FALSE(molt_module_try_get(self));
  };
  Answer answer = unload("probe", MOLT_UNLOAD_RESIDENT);
  EXPECT_TRUE(is(answer, 0));
  board().exit = nullptr;
  EXPECT_EQ(board().exits, 1);
  EXPECT_EQ(on_probe(1), 0);
  EXPECT_TRUE(is_mapped(module));
  EXPECT_NE(before.since(), "");

  // The name is free: another, and even the same, can be loaded beside.
  ASSERT_TRUE(is(load("probe_2"), 0));
  EXPECT_EQ(on_probe(1), 102);
  EXPECT_EQ(molt_gc(), 0) << "somebody still holds a reference";
  EXPECT_TRUE(is_mapped(module));
  EXPECT_EQ(molt_module_put(module), 0);
  EXPECT_EQ(molt_gc(), 1);
  EXPECT_FALSE(is_mapped(module));
  EXPECT_EQ(on_probe(1), 102);
  EXPECT_TRUE(is(unload("probe"), 0));
  EXPECT_EQ(before.since(), "");
  EXPECT_EQ(molt_gc(), 0);
}

TEST_F(Memory, SameFileBesideItsResident) {
  ASSERT_TRUE(is(load("probe"), 0));
  ASSERT_TRUE(is(unload("probe", MOLT_UNLOAD_RESIDENT), 0));
  ASSERT_TRUE(is(load("probe"), 0)) << "the resident's memory must not be taken for the new one's";
  EXPECT_EQ(on_probe(1), 101);
  EXPECT_EQ(board().inits, 2);
  EXPECT_EQ(molt_gc(), 1);
  EXPECT_EQ(on_probe(1), 101);
  EXPECT_TRUE(is(unload("probe"), 0));
}

TEST_F(Memory, ResidentWithSomebodyInside) {
  Gate gate;
  std::atomic<bool> inside{false};
  board().call = [&](molt_module*, int) {
    inside = true;
    gate.wait();
    return 7;
  };
  ASSERT_TRUE(is(load("probe"), 0));
  const void* address = descriptor("probe");
  Sleeper caller([] { EXPECT_EQ(on_probe(1), 7); });
  ASSERT_TRUE(eventually([&] { return inside.load(); }));
  EXPECT_TRUE(is(unload("probe", 0, 30), -ETIMEDOUT, {"probe"}));
  EXPECT_EQ(molt_module_get_state(descriptor("probe")), MOLT_MODULE_STATE_LIVE);
  EXPECT_TRUE(is(unload("probe", MOLT_UNLOAD_RESIDENT, 30), 0));
  EXPECT_EQ(on_probe(1), 0) << "entered after it was removed";
  EXPECT_EQ(board().exits, 0) << "exit() while a thread is inside";
  EXPECT_EQ(molt_gc(), 0);
  EXPECT_TRUE(is_mapped(address));
  gate.open();
  caller.join();
  EXPECT_EQ(molt_gc(), 1);
  EXPECT_EQ(board().exits, 1);
  EXPECT_FALSE(is_mapped(address));
}

TEST_F(Memory, DisableAndEnable) {
  ASSERT_TRUE(is(load("probe"), 0));
  EXPECT_TRUE(is(molt_disable("probe"), 0));
  EXPECT_EQ(on_probe(1), 0);
  EXPECT_TRUE(is(molt_enable("probe"), 0));
  EXPECT_EQ(on_probe(1), 101);
  EXPECT_TRUE(is(molt_disable("probe"), 0));
  EXPECT_TRUE(is(unload("probe"), 0));
}

// ---- Pinned

TEST_F(Memory, NodeleteIsPinnedByName) {
  ASSERT_TRUE(is(load("with_nodelete"), 0));
  const void* address = descriptor("with_nodelete");
  Answer answer = unload("with_nodelete");
  EXPECT_TRUE(is(answer, 0, {"pinned", "NODELETE"}));
  EXPECT_TRUE(is_mapped(address));
  EXPECT_EQ(on_probe(1), 0);
  EXPECT_EQ(board().exits, 1);
  EXPECT_EQ(molt_gc(), 0);
  // Its memory stays; the name, and life, go on.
  ASSERT_TRUE(is(load("with_nodelete"), 0));
  EXPECT_EQ(on_probe(1), 103);
  EXPECT_TRUE(is(unload("with_nodelete"), 0));
}

TEST_F(Memory, ThreadLocalIsPinnedByName) {
  if (under_tsan) GTEST_SKIP() << not_under_tsan;
  ASSERT_TRUE(is(load("with_thread_local"), 0));
  const void* address = descriptor("with_thread_local");
  Gate gate;
  std::atomic<bool> called{false};
  Sleeper thread([&] {
    EXPECT_EQ(on_probe(100), 100);
    called = true;
    gate.wait();
  });
  ASSERT_TRUE(eventually([&] { return called.load(); }));
  EXPECT_TRUE(is(unload("with_thread_local"), 0, {"pinned", "thread_local"}));
  EXPECT_TRUE(is_mapped(address)) << "the thread's destructor is gone before the thread";
  EXPECT_EQ(molt_gc(), 0);
  gate.open();
  thread.join();
  EXPECT_EQ(molt_gc(), 1) << molt_last_error();
  EXPECT_FALSE(is_mapped(address));
}

TEST_F(Memory, UniqueSymbolIsPinnedByName) {
  ASSERT_TRUE(is(load("with_unique"), 0));
  EXPECT_EQ(on_probe(1), 1);
  EXPECT_TRUE(is(unload("with_unique"), 0, {"pinned", "UNIQUE"}));
}

// ---- Load nearly everything, keep what fits.

TEST_F(Memory, ProbeTwoHundredKeepFive) {
  Folder folder;
  std::ifstream in(module_file("numbered_000"), std::ios::binary);
  std::string original(std::istreambuf_iterator<char>(in), {});
  std::vector<fs::path> files;
  for (int i = 0; i < 200; ++i) {
    std::string name = "numbered_" + std::to_string(1000 + i).substr(1);
    std::string bytes = original;
    for (std::size_t at = 0; (at = bytes.find("numbered_000", at)) != std::string::npos; ++at) {
      bytes.replace(at, 12, name);
    }
    files.push_back(folder.path() / (name + ".so"));
    std::ofstream(files.back(), std::ios::binary) << bytes;
  }
  auto fits = [](const std::string& name) { return std::stoi(name.substr(9)) % 40 == 7; };
  board().init = [&](molt_module* self) { return fits(self->name) ? 0 : -ENODEV; };

  // One probe first: what the runtime itself needs comes once.
  EXPECT_TRUE(is(load(files[0], nullptr, MOLT_LOAD_PROBE), -ENODEV));
  Traces before = Traces::now();
  auto memory_kib = [] {
    std::ifstream status("/proc/self/status");
    for (std::string line; std::getline(status, line);) {
      if (line.starts_with("VmSize:")) return std::stol(line.substr(7));
    }
    return 0L;
  };
  // Another once, so that the allocator has what it takes for a round.
  for (const fs::path& file : files) {
    int result = molt_load(file.c_str(), nullptr, MOLT_LOAD_PROBE, -1);
    if (result == 0) {
      EXPECT_TRUE(is(unload(file.stem().c_str()), 0));
    }
  }
  EXPECT_EQ(before.since(), "");
  long empty_kib = memory_kib();

  int kept = 0;
  for (const fs::path& file : files) {
    int result = molt_load(file.c_str(), nullptr, MOLT_LOAD_PROBE, -1);
    EXPECT_EQ(result, fits(file.stem()) ? 0 : -ENODEV) << errno_text(result);
    kept += result == 0;
  }
  EXPECT_EQ(kept, 5);
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)  // they keep what was freed
  long size_kib = static_cast<long>(original.size() / 1024) + 64;
  EXPECT_LE(memory_kib() - empty_kib, kept * size_kib);
#else
  EXPECT_GT(empty_kib, 0);
#endif
  for (const fs::path& file : files) {
    if (fits(file.stem())) {
      EXPECT_TRUE(is(unload(file.stem().c_str()), 0));
    }
  }
  EXPECT_EQ(before.since(), "");
}

// A hundred lives leave no more than one.
TEST_F(Memory, ManyLives) {
  auto descriptors = [] { return Traces::now().descriptors.size(); };
  ASSERT_TRUE(is(load("probe"), 0));
  ASSERT_TRUE(is(unload("probe"), 0));
  Traces before = Traces::now();
  std::size_t open_before = descriptors();
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(is(load(i % 2 ? "probe" : "probe_2"), 0));
    ASSERT_EQ(on_probe(1), i % 2 ? 101 : 102);
    ASSERT_TRUE(is(unload("probe"), 0));
  }
  EXPECT_EQ(descriptors(), open_before);
  expect_gone("probe", before);
}

}  // namespace
