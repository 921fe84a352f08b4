#include "builder/diff_file.hpp"

#include <fcntl.h>
#include <fmt/format.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <set>

extern "C" char** environ;

namespace molt::builder {
namespace {

namespace fs = std::filesystem;

std::optional<std::string> read_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return std::nullopt;
  return std::string{std::istreambuf_iterator<char>(file), {}};
}

struct Said {
  int status = -1;
  std::string text;
};

Said run_patch(std::vector<std::string> words) {
  words.insert(words.begin(), "patch");
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  Said said;
  int ends[2];
  if (::pipe2(ends, O_CLOEXEC) != 0) return said;
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
  posix_spawn_file_actions_adddup2(&actions, ends[1], 1);
  posix_spawn_file_actions_adddup2(&actions, ends[1], 2);
  pid_t pid = -1;
  const int error = ::posix_spawnp(&pid, "patch", &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  ::close(ends[1]);
  char buffer[4096];
  for (;;) {
    const ssize_t n = ::read(ends[0], buffer, sizeof buffer);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) break;
    said.text.append(buffer, static_cast<std::size_t>(n));
  }
  ::close(ends[0]);
  if (error != 0) {
    said.text = "there is no patch(1): install the package patch";
    return said;
  }
  int status = 0;
  while (::waitpid(pid, &status, 0) < 0 && errno == EINTR) {
  }
  said.status = WIFEXITED(status) ? WEXITSTATUS(status) : 128;
  return said;
}

// git's "a/\\303\\274ber.c": what has other letters than ASCII's is quoted as in C.
std::string unquoted(const std::string& quoted) {
  std::string text;
  for (std::size_t i = 1; i < quoted.size() && quoted[i] != '"'; ++i) {
    if (quoted[i] != '\\' || i + 1 == quoted.size()) {
      text += quoted[i];
      continue;
    }
    const char c = quoted[++i];
    if (c >= '0' && c <= '3' && i + 2 < quoted.size()) {
      text += static_cast<char>(std::strtoul(quoted.substr(i, 3).c_str(), nullptr, 8));
      i += 2;
    } else {
      text += c == 'n' ? '\n' : c == 't' ? '\t' : c;
    }
  }
  return text;
}

// What a header line names, without `strip` leading folders; "" for /dev/null.
std::string name_in(std::string line, std::size_t skip, unsigned strip) {
  line.erase(0, skip);
  if (line.starts_with('"')) line = unquoted(line);
  if (const std::size_t tab = line.find('\t'); tab != line.npos) line.erase(tab);
  while (!line.empty() && (line.back() == '\r' || line.back() == ' ')) line.pop_back();
  if (line == "/dev/null") return "";
  for (unsigned i = 0; i < strip; ++i) {
    const std::size_t slash = line.find('/');
    if (slash == line.npos) return "";
    line.erase(0, slash + 1);
  }
  return line;
}

std::set<std::string> names_in(const std::string& text, unsigned strip) {
  std::set<std::string> names;
  std::size_t at = 0;
  std::string previous;
  while (at < text.size()) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    const std::string line = text.substr(at, end - at);
    at = end + 1;
    // A removed line may look like "--- "; a header comes in pairs.
    if (line.starts_with("+++ ") && previous.starts_with("--- ")) {
      names.insert(name_in(previous, 4, strip));
      names.insert(name_in(line, 4, strip));
    }
    for (const char* git : {"rename from ", "rename to ", "copy to "}) {
      if (line.starts_with(git)) names.insert(name_in(line, std::string_view(git).size(), 0));
    }
    previous = line;
  }
  names.erase("");
  // patch(1) does not touch what is outside of the tree; neither does what is put back.
  std::erase_if(names, [](const std::string& name) {
    return name.starts_with('/') || ("/" + name + "/").find("/../") != name.npos;
  });
  return names;
}

std::string first_complaint(const std::string& text) {
  std::string file;
  std::size_t at = 0;
  while (at < text.size()) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    const std::string line = text.substr(at, end - at);
    at = end + 1;
    if (line.starts_with("checking file ")) file = line.substr(14);
    if (line.find("FAILED") != line.npos || line.find("malformed") != line.npos ||
        line.find("can't find file") != line.npos || line.find("garbage") != line.npos ||
        line.find("there is no patch") != line.npos) {
      return file.empty() ? line : fmt::format("{}: {}", file, line);
    }
  }
  return text.substr(0, text.find('\n'));
}

// Files that are written from now on are newer than those written before, even where time stamps are
// the kernel's coarse clock.
void wait_for_a_tick() {
  timespec begin{};
  timespec now{};
  ::clock_gettime(CLOCK_REALTIME_COARSE, &begin);
  do {
    const timespec pause{0, 1'000'000};
    ::nanosleep(&pause, nullptr);
    ::clock_gettime(CLOCK_REALTIME_COARSE, &now);
  } while (now.tv_sec == begin.tv_sec && now.tv_nsec == begin.tv_nsec);
}

Status write_text(const std::string& path, const std::optional<std::string>& text) {
  std::error_code error;
  if (!text) {
    fs::remove(path, error);
    return {};
  }
  fs::create_directories(fs::path(path).parent_path(), error);
  errno = 0;
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file << *text;
  file.flush();
  if (!file) return fail(errno != 0 ? errno : EIO, "cannot write %s", path.c_str());
  return {};
}

}  // namespace

Result<std::vector<PatchedFile>> apply_diff(
    const std::string& diff, const std::string& tree,
    const std::function<Status(const std::vector<PatchedFile>&)>& before) {
  const auto text = read_text(diff);
  if (!text) return fail_errno(errno, "cannot read the diff %s", diff.c_str());
  const std::string absolute = fs::absolute(diff).string();
  const auto words = [&](unsigned strip, std::vector<std::string> more) {
    more.insert(more.end(), {fmt::format("-p{}", strip), "-d", tree, "-f", "-i", absolute});
    return more;
  };
  std::optional<unsigned> strip;
  std::string complaint;
  for (const unsigned tried : {1u, 0u}) {
    const Said said = run_patch(words(tried, {"--dry-run"}));
    if (said.status == 0) {
      strip = tried;
      break;
    }
    if (complaint.empty()) complaint = first_complaint(said.text);
  }
  if (!strip) {
    for (const unsigned tried : {1u, 0u}) {
      if (run_patch(words(tried, {"--dry-run", "-R"})).status == 0) {
        return fail(
            EALREADY,
            "%s is in the tree already: give the sources that the running program was built "
            "from",
            diff.c_str());
      }
    }
    return fail(EINVAL, "%s does not apply: %.150s", diff.c_str(), complaint.c_str());
  }
  std::vector<PatchedFile> files;
  for (const std::string& name : names_in(*text, *strip)) {
    files.push_back({name, read_text(tree + "/" + name), std::nullopt});
  }
  if (files.empty()) return fail(EINVAL, "%s is no unified diff", diff.c_str());
  if (auto done = before(files); !done) return pass(done);

  const Said said = run_patch(words(*strip, {"-s", "--no-backup-if-mismatch"}));
  for (PatchedFile& file : files) file.new_text = read_text(tree + "/" + file.path);
  if (said.status != 0) {
    if (auto done = write_old(files, tree); !done) return pass(done);
    return fail(EINVAL, "%s does not apply: %.150s", diff.c_str(),
                first_complaint(said.text).c_str());
  }
  // A diff that adds a file names another one beside it, which is neither here nor there.
  std::erase_if(files, [](const PatchedFile& file) { return file.old_text == file.new_text; });
  return files;
}

Status save_old(const std::vector<PatchedFile>& files, const std::string& path) {
  const std::string temporary = path + ".new";
  {
    errno = 0;
    std::ofstream out(temporary, std::ios::binary | std::ios::trunc);
    for (const PatchedFile& file : files) {
      const std::string text = file.old_text.value_or("");
      out << file.path << '\0' << (file.old_text ? 1 : 0) << ' ' << text.size() << '\n' << text;
    }
    out.flush();
    if (!out) return fail(errno != 0 ? errno : EIO, "cannot write %s", temporary.c_str());
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) {
    return fail_errno(errno, "cannot write %s", path.c_str());
  }
  return {};
}

Result<std::vector<PatchedFile>> read_old(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  if (!in) return fail(ENOENT, "cannot read %s", path.c_str());
  std::vector<PatchedFile> files;
  std::string name;
  while (std::getline(in, name, '\0')) {
    int has_text = 0;
    std::size_t bytes = 0;
    if (!(in >> has_text >> bytes) || in.get() != '\n') return fail(EIO, "%s ends", path.c_str());
    std::string text(bytes, '\0');
    in.read(text.data(), static_cast<std::streamsize>(bytes));
    if (!in) return fail(EIO, "%s ends", path.c_str());
    files.push_back({name, std::nullopt, std::nullopt});
    if (has_text != 0) files.back().old_text = std::move(text);
  }
  return files;
}

Status write_old(const std::vector<PatchedFile>& files, const std::string& tree) {
  wait_for_a_tick();
  for (const PatchedFile& file : files) {
    if (auto done = write_text(tree + "/" + file.path, file.old_text); !done) return done;
  }
  return {};
}

Status write_new(const std::vector<PatchedFile>& files, const std::string& tree) {
  wait_for_a_tick();
  for (const PatchedFile& file : files) {
    if (auto done = write_text(tree + "/" + file.path, file.new_text); !done) return done;
  }
  return {};
}

}  // namespace molt::builder
