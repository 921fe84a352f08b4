// Where modules are kept while they are loaded, when there is no place: a clear error or a way
// around, never a crash, never a module that half is there. Each case is a process of its own,
// because the place is chosen once.
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <fstream>
#include <set>
#include <sstream>
#include <string>

#include <csignal>

#include "fixture.hpp"

namespace {

class Store : public ModuleTest {
 protected:
  // Runs `body` in a child; it answers "" for good, "SKIP ..." for why it cannot tell, else what was
  // wrong.
  static void in_child(const std::function<std::string()>& body) {
    int pipe_ends[2];
    ASSERT_EQ(pipe(pipe_ends), 0);
    pid_t child = fork();
    if (child == 0) {
      std::string wrong = body();
      if (!wrong.empty()) (void)!write(pipe_ends[1], wrong.data(), wrong.size());
      _exit(0);
    }
    close(pipe_ends[1]);
    std::string wrong(4096, '\0');
    ssize_t bytes = read(pipe_ends[0], wrong.data(), wrong.size());
    wrong.resize(bytes > 0 ? static_cast<std::size_t>(bytes) : 0);
    close(pipe_ends[0]);
    int status = 0;
    ASSERT_EQ(waitpid(child, &status, 0), child);
    EXPECT_TRUE(WIFEXITED(status)) << "signal " << WTERMSIG(status);
    if (wrong.starts_with("SKIP ")) GTEST_SKIP() << wrong.substr(5);
    EXPECT_EQ(wrong, "");
  }

  static std::string told(const char* what) {
    return std::string(what) + ": " + molt_last_error() + "\n";
  }

  // Loads, uses and unloads; or is refused with one of `errors`, a reason, and nothing left.
  static std::string good_or_refused(const std::vector<int>& errors) {
    Traces before = Traces::now();
    int result = molt_load(module_file("probe").c_str(), nullptr, 0, -1);
    if (result == 0) {
      if (on_probe(1) != 101) return told("loaded, and does not work");
      if (molt_unload("probe", 0, -1) != 0) return told("cannot be unloaded");
      if (*molt_last_error()) return told("not unmapped");
      return "";
    }
    std::string reason = molt_last_error();
    if (std::find(errors.begin(), errors.end(), -result) == errors.end()) {
      return "unexpected " + errno_text(result) + ": " + reason;
    }
    if (reason.empty()) return "no reason given";
    if (on_probe(1) != 0) return "refused, and its callback is there";
    return before.since();
  }

  static int start_in(const fs::path& folder) {
    molt_options options = {sizeof options, "store", folder.c_str(), nullptr, 0};
    return molt_start(&options);
  }
};

TEST_F(Store, StartedTwice) {
  Folder folder;
  in_child([&] {
    if (int error = start_in(folder.path())) return "molt_start: " + errno_text(error);
    if (start_in(folder.path()) != -EALREADY) return told("started twice");
    if (!*molt_last_error()) return std::string("no reason given");
    molt_stop();
    if (int error = start_in(folder.path())) return "molt_start again: " + errno_text(error);
    molt_stop();
    return good_or_refused({});
  });
}

TEST_F(Store, FolderThatIsNotThere) {
  in_child([] {
    setenv("MOLT_DIRECTORY", "/nonexistent/folder", 1);
    return good_or_refused({ENOENT, EACCES, EROFS});
  });
}

TEST_F(Store, FolderThatIsAFile) {
  Folder folder;
  std::ofstream(folder.path() / "file") << "x";
  in_child([&] {
    setenv("MOLT_DIRECTORY", (folder.path() / "file").c_str(), 1);
    return good_or_refused({ENOTDIR});
  });
}

TEST_F(Store, FolderWithoutPermission) {
  Folder folder;
  fs::permissions(folder.path(), fs::perms::none);
  if (geteuid() == 0) {
    in_child([&] {
      setenv("MOLT_DIRECTORY", folder.path().c_str(), 1);
      if (setresgid(65534, 65534, 65534) != 0 || setresuid(65534, 65534, 65534) != 0) {
        return std::string("SKIP cannot become another user");
      }
      int fd = open(module_file("probe").c_str(), O_RDONLY | O_CLOEXEC);
      if (fd < 0) return std::string("SKIP the build folder is not readable by other users");
      close(fd);
      return good_or_refused({EACCES, EPERM});
    });
    return;
  }
  in_child([&] {
    setenv("MOLT_DIRECTORY", folder.path().c_str(), 1);
    return good_or_refused({EACCES});
  });
}

TEST_F(Store, FullDisk) {
  if (geteuid() != 0) GTEST_SKIP() << "only root can mount a small file system";
  Folder folder;
  if (mount("none", folder.path().c_str(), "tmpfs", 0, "size=8k,mode=700") != 0) {
    GTEST_SKIP() << "cannot mount here: " << std::strerror(errno);
  }
  in_child([&] {
    if (int error = start_in(folder.path())) return "molt_start: " + errno_text(error);
    std::string wrong = good_or_refused({ENOSPC, ENOMEM});
    molt_stop();
    return wrong;
  });
  umount(folder.path().c_str());
}

TEST_F(Store, FileSizeLimit) {
  in_child([] {
    signal(SIGXFSZ, SIG_IGN);
    rlimit limit = {4096, 4096};
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0) return std::string("setrlimit");
    return good_or_refused({EFBIG, ENOSPC, ENOMEM});
  });
}

// Without ignoring the signal, a write beyond the limit ends the process: the runtime must not.
TEST_F(Store, FileSizeLimitWithItsSignal) {
  in_child([] {
    rlimit limit = {4096, 4096};
    if (setrlimit(RLIMIT_FSIZE, &limit) != 0) return std::string("setrlimit");
    return good_or_refused({EFBIG, ENOSPC, ENOMEM});
  });
}

TEST_F(Store, NoDescriptorLeft) {
  in_child([] {
    rlimit limit = {};
    getrlimit(RLIMIT_NOFILE, &limit);
    std::string wrong;
    // With 0, 1, 2 ... descriptors to spare.
    for (int spare = 0; spare < 8 && wrong.empty(); ++spare) {
      int next = dup(0);
      close(next);
      limit.rlim_cur = static_cast<rlim_t>(next + spare);
      if (setrlimit(RLIMIT_NOFILE, &limit) != 0) return std::string("setrlimit");
      Answer answer = molt_load(module_file("probe").c_str(), nullptr, 0, -1);
      limit.rlim_cur = 256;
      setrlimit(RLIMIT_NOFILE, &limit);
      if (answer.result == 0) {
        if (molt_unload("probe", 0, -1) != 0) wrong = told("cannot be unloaded");
      } else if (answer.reason.empty()) {
        wrong = "no reason";
      } else if (answer.result != -EMFILE && answer.result != -ENOMEM) {
        wrong =
            std::to_string(spare) + " spare: " + errno_text(answer.result) + ": " + answer.reason;
      }
    }
    return wrong;
  });
}

// The store is a folder of files that others can see and delete: what is loaded goes on.
TEST_F(Store, EmptiedWhileLoaded) {
  Folder folder;
  in_child([&] {
    if (int error = start_in(folder.path())) return "molt_start: " + errno_text(error);
    if (molt_load(module_file("probe").c_str(), nullptr, 0, -1) != 0) return told("load");
    for (const auto& entry : fs::recursive_directory_iterator(folder.path())) {
      if (entry.is_regular_file()) fs::remove(entry.path());
    }
    if (on_probe(1) != 101) return told("does not work any more");
    if (molt_unload("probe", 0, -1) != 0) return told("cannot be unloaded");
    if (*molt_last_error()) return told("not unmapped");
    std::string wrong = good_or_refused({});
    molt_stop();
    return wrong;
  });
}

// The next load of the same file is a copy of its own, although the name in the store is free: the loader would
// give the old object for a name that it knows.
TEST_F(Store, EmptiedWhileResident) {
  Folder folder;
  in_child([&] {
    if (int error = start_in(folder.path())) return "molt_start: " + errno_text(error);
    if (molt_load(module_file("probe").c_str(), nullptr, 0, -1) != 0) return told("load");
    if (on_probe(1) != 101) return told("does not work");
    if (molt_unload("probe", MOLT_UNLOAD_RESIDENT, -1) != 0) return told("unload");
    for (const auto& entry : fs::recursive_directory_iterator(folder.path())) {
      if (entry.is_regular_file()) fs::remove(entry.path());
    }
    if (molt_load(module_file("probe").c_str(), nullptr, 0, -1) != 0) return told("load again");
    std::set<std::string> files;
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
      std::istringstream words(line);
      std::string range, rights, offset, device, inode;
      words >> range >> rights >> offset >> device >> inode;
      if (line.find("/store/") != std::string::npos) files.insert(inode);
    }
    if (files.size() != 2) return std::to_string(files.size()) + " copies are mapped";
    if (molt_unload("probe", 0, -1) != 0) return told("unload again");
    molt_gc();
    molt_stop();
    return std::string();
  });
}

// A file that somebody else put into the store, under the right name, is not loaded for ours.
TEST_F(Store, FalseContentIsNotTrusted) {
  Folder folder;
  in_child([&] {
    if (int error = start_in(folder.path())) return "molt_start: " + errno_text(error);
    if (molt_load(module_file("probe").c_str(), nullptr, 0, -1) != 0) return told("load");
    std::vector<fs::path> files;
    for (const auto& entry : fs::recursive_directory_iterator(folder.path())) {
      if (entry.is_regular_file()) files.push_back(entry.path());
    }
    if (molt_unload("probe", 0, -1) != 0) return told("unload");
    for (const fs::path& file : files) {
      fs::remove(file);
      fs::copy_file(module_file("probe_2"), file);
    }
    std::string wrong = good_or_refused({EEXIST, EBADMSG, ENOEXEC, EIO});
    molt_stop();
    return wrong;
  });
}

}  // namespace
