// conformance-host SCENARIO MODULES: a host process that goes through the steps of one scenario and
// prints its log in the form of the recorded kernel logs. The steps are in scenarios/, their
// meaning in `steps` below; README.md says how the log is judged.
//
// Exit code 0: all steps were taken (the log may still differ from what is expected), 1: a step
// could not be taken, 77: the scenario cannot run here; standard error says why.

#include <fcntl.h>
#include <grp.h>
#include <molt/livepatch.h>
#include <pthread.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <molt/host.hpp>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "control_client.hpp"
#include "modules/control.hpp"
#include "shown.hpp"

namespace fs = std::filesystem;
using nlohmann::json;
using Words = std::vector<std::string>;

static molt::hook<control_point> on_control;

extern "C" {
__attribute__((visibility("default"))) extern std::atomic<int> conformance_host_holds;
__attribute__((noipa, used, visibility("default"))) int conformance_host_waits();
}

namespace {
std::atomic<int> g_waiting{0};
std::mutex g_let_go_mutex;
std::condition_variable g_let_go;
}  // namespace

std::atomic<int> conformance_host_holds{0};
int conformance_host_waits() {
  std::unique_lock lock(g_let_go_mutex);
  g_waiting = 1;
  while (conformance_host_holds != 0) g_let_go.wait_for(lock, std::chrono::milliseconds(50));
  return 1;
}

namespace {

constexpr int patience_s = 20;  // for what must come; nothing here takes that long

struct CannotRunHere : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Where module descriptors lie, as told by COMING: the scenarios take and put references of modules
// in all of their states.
class Descriptors {
 public:
  Descriptors() { molt_notifier_register(&notifier_); }
  ~Descriptors() { molt_notifier_unregister(&notifier_); }
  molt_module* find(const std::string& name) {
    std::lock_guard lock(mutex_);
    auto found = known_.find(name);
    if (found == known_.end()) throw std::runtime_error("no module " + name);
    return found->second;
  }

 private:
  static int notify(molt_notifier* self, molt_module_state event, molt_module* module) {
    auto* all = static_cast<Descriptors*>(self->context);
    std::lock_guard lock(all->mutex_);
    if (event == MOLT_MODULE_STATE_COMING) all->known_[module->name] = module;
    if (event == MOLT_MODULE_STATE_GOING) {
      // Freed memory keeps what was in it; a leftover on a stack that points there makes it look used.
      all->known_[module->name] = nullptr;
      all->known_.erase(module->name);
    }
    return MOLT_NOTIFY_OK;
  }
  std::mutex mutex_;
  std::map<std::string, molt_module*> known_;
  // Last of all, so that a module is known until every other notifier has heard of its going.
  molt_notifier notifier_ = {notify, -1000, 0, nullptr, this};
};

std::string joined(const Words& words, std::size_t from) {
  std::string text;
  for (std::size_t i = from; i < words.size(); ++i) text += (i > from ? " " : "") + words[i];
  return text;
}

std::string result_text(int result) {
  if (result == 0) return "OK";
  const char* name = strerrorname_np(-result);
  return "-" + (name ? std::string(name) : std::to_string(-result));
}

// One of the operations of the recorded logs' `kmt` tool, and its result line.
struct Operation {
  std::string text;  // "init om_life.ko init_ret=-5"
  std::function<int()> run;
  std::string line = {};
  std::uint64_t log_end = 0;  // where the event log stood when it had returned

  void perform() {
    auto start = std::chrono::steady_clock::now();
    int result = run();
    std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    char seconds[32];
    std::snprintf(seconds, sizeof seconds, " (%.1fs)", took.count());
    line = "kmt " + text + " -> " + result_text(result) + seconds;
    if (result != 0) std::fprintf(stderr, "%s: %s\n", line.c_str(), molt_last_error());
  }
};

class Scenario {
 public:
  Scenario(fs::path modules, fs::path folder)
      : modules_(std::move(modules)), folder_(std::move(folder)) {
    std::ofstream(folder_ / "x_empty.ko");
    std::ofstream(folder_ / "x_garbage.ko") << std::string(4096, '#');
    // Half of a good file: its section headers, which come last, are missing.
    fs::copy_file(file("om_life.ko"), folder_ / "x_trunc.ko");
    fs::resize_file(folder_ / "x_trunc.ko", fs::file_size(folder_ / "x_trunc.ko") / 2);

    molt_options options = {sizeof options, "conformance", folder_.c_str(), nullptr, 0};
    if (int error = molt_start(&options)) {
      throw std::runtime_error("molt_start: " + result_text(error) + ": " + molt_last_error());
    }
    for (const auto& entry : fs::recursive_directory_iterator(folder_)) {
      if (entry.is_socket()) socket_ = entry.path();
    }
    client_ = std::make_unique<ControlClient>(socket_);
    if (client_->error() != 0) {
      throw std::runtime_error("control socket: " + std::string(std::strerror(client_->error())));
    }
  }

  void run(std::istream& script) {
    std::string text;
    for (int number = 1; std::getline(script, text); ++number) {
      Words words = split(text);
      if (words.empty()) continue;
      try {
        step(words);
      } catch (const CannotRunHere&) {
        throw;
      } catch (const std::exception& e) {
        throw std::runtime_error("line " + std::to_string(number) + ": " + text + ": " + e.what());
      }
    }
    if (!running_.empty()) throw std::runtime_error("a `join` is missing");
  }

 private:
  // Words between blanks; "" is an empty one; # begins a comment.
  static Words split(const std::string& text) {
    Words words;
    std::istringstream in(text);
    for (std::string word; in >> word && word[0] != '#';)
      words.push_back(word == "\"\"" ? "" : word);
    return words;
  }

  void step(Words words) {
    if (words[0] == "title") {
      print("# " + joined(words, 1));
    } else if (words[0] == "given") {
      words.erase(words.begin());
      quiet_ = true;
      step(words);
      quiet_ = false;
      log_from_ = read_events().at("next");
    } else if (words[0].size() == 2 && words[0][1] == ':') {
      std::string label = words[0];
      words.erase(words.begin());
      auto operation = std::make_unique<Operation>(operation_of(words));
      running_[label] = {
          std::thread([this, raw = operation.get()] {
            raw->perform();
            ControlClient own(socket_);
            raw->log_end = own.call("molt.Events", {{"since", 0}}).at("parameters").at("next");
          }),
          std::move(operation)};
    } else if (words[0] == "init" || words[0] == "del" || words[0] == "dropinit") {
      Operation operation = operation_of(words);
      operation.perform();
      if (quiet_ && operation.line.find("-> OK") == std::string::npos) {
        throw std::runtime_error(operation.line + ": " + molt_last_error());
      }
      print(operation.line);
    } else {
      auto found = steps.find(words[0]);
      if (found == steps.end()) throw std::runtime_error("no such step");
      if (words.size() < found->second.words + 1) throw std::runtime_error("words are missing");
      (this->*found->second.take)(words);
    }
  }

  // ---- The operations that give a result line. A word that begins with + is a flag: not printed.

  Operation operation_of(Words words) {
    std::uint32_t flags = 0;
    std::erase_if(words, [&](const std::string& word) {
      if (word == "+force") flags |= MOLT_LOAD_FORCE;
      if (word == "+unknown") flags |= 1u << 31;
      return word.starts_with("+");
    });
    words.resize(std::max<std::size_t>(words.size(), 2));
    std::string name = words[1], rest = joined(words, 2);
    std::string text = words[0] + " " + name + " " + rest;
    if (words[0] == "del") {
      // The kernel's number: O_TRUNC forces, O_NONBLOCK has no meaning any more.
      std::uint32_t force = std::strtoul(rest.c_str(), nullptr, 0) & O_TRUNC;
      return {text,
              [=] { return molt_unload(name.c_str(), force ? MOLT_UNLOAD_RESIDENT : 0, -1); }};
    }
    fs::path path = file(name);
    if (words[0] == "dropinit") return {text, [=, this] { return init_without_privilege(path); }};
    return {text, [=] {
              int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
              int result = molt_load_fd(fd, rest.c_str(), flags, -1);
              if (fd >= 0) close(fd);
              return result;
            }};
  }

  fs::path file(const std::string& name) const {
    fs::path here = folder_ / name;
    if (name.starts_with("/") || fs::exists(here)) return here;
    return modules_ / fs::path(name).replace_extension(".so");
  }

  // As another user, through the control socket: the one way by which another process can ask.
  int init_without_privilege(const fs::path& path) {
    if (geteuid() != 0) throw CannotRunHere("only root can become another user");
    int result = ask_as_nobody(path);
    if (result != -EACCES) return result;
    // Not even the socket's file lets another user in. Open that door: the peer's identity has to
    // be what bars the way.
    for (fs::path part = socket_; part != folder_.parent_path(); part = part.parent_path()) {
      chmod(part.c_str(), 0777);
    }
    return ask_as_nobody(path);
  }

  int ask_as_nobody(const fs::path& path) {
    std::fflush(nullptr);
    constexpr int cannot_become = 255;  // no errno is that large
    pid_t child = fork();
    if (child == 0) {
      int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
      constexpr uid_t nobody = 65534;
      if (setgroups(0, nullptr) != 0 || setresgid(nobody, nobody, nobody) != 0 ||
          setresuid(nobody, nobody, nobody) != 0) {
        _exit(cannot_become);
      }
      ControlClient client(socket_);
      if (client.error() != 0) _exit(client.error());
      _exit(error_of(client.call("molt.Load", {{"path", path.string()}}, fd)));
    }
    int status = 0;
    waitpid(child, &status, 0);
    if (!WIFEXITED(status)) throw std::runtime_error("the unprivileged client died");
    if (WEXITSTATUS(status) == cannot_become) {
      throw CannotRunHere("cannot become another user here, although root");
    }
    return -WEXITSTATUS(status);
  }

  // ---- Everything else.

  void join(const Words&) {
    for (auto& [label, run] : running_) {
      run.thread.join();
      print(label + " " + run.operation->line);
      ended_[label] = run.operation->log_end;
    }
    running_.clear();
  }

  // behind B: TEXT...: operation B had to wait until the event log had a line with TEXT.
  void behind(const Words& words) {
    json event = find_event(joined(words, 2));
    if (event.is_object() && event.at("seq") < ended_.at(words[1])) return;
    throw std::runtime_error("it did not wait");
  }

  void await(const Words& words) {
    std::string wanted = joined(words, 1);
    eventually([&] { return find_event(wanted).is_object(); });
  }

  void await_refcount(const Words& words) {
    molt_module* module = descriptors_.find(words[1]);
    int wanted = std::stoi(words[2]);
    eventually([&] { return molt_module_refcount(module) == wanted; });
  }

  void log(const Words&) {
    json batch = read_events();
    for (const json& event : batch.at("events")) {
      print("    | " + event.at("text").get<std::string>());
    }
    if (batch.value("lost", 0) != 0) throw std::runtime_error("events were lost");
    log_from_ = batch.at("next");
  }

  void proc(const Words&) {
    json reply = ask("molt.List", json::object());
    for (const json& module : reply.at("modules")) {
      std::string line = module.at("line");
      std::size_t address = line.find(" 0x");
      if (address != std::string::npos) {
        std::size_t end = line.find(' ', address + 1);
        line.replace(address, end == std::string::npos ? end : end - address, " 0xADDR");
      }
      print("    proc: " + line);
    }
  }

  void attribute(const Words& words) { print(value("modules/" + words[1])); }
  void locked(const Words&) { print(value("host/locked")); }
  void taint(const Words&) { print("tainted=" + value("host/taint")); }

  void set(const Words& words) {
    json reply = client_->call("molt.Set", {{"path", words[1]}, {"value", joined(words, 2)}});
    if (int error = error_of(reply)) {
      std::fprintf(stderr, "set: %s\n", reply.dump().c_str());
      print("write error: " + std::string(std::strerror(error)));
    }
  }

  // The module's folder as the recorded log of "plain load/unload" shows it.
  void inspect(const Words& words) {
    std::string at = "modules/" + words[1];
    json tree = ask("molt.Tree", {{"path", at}});
    std::map<std::string, json> children;
    for (const json& node : tree.at("nodes")) {
      std::string path = node.at("path");
      if (path.starts_with(at + "/")) path.erase(0, at.size() + 1);
      if (path != at && path.find('/') == std::string::npos) children[path] = node;
    }
    std::string names;
    for (const auto& [name, node] : children) names += name + " ";
    print(names);
    for (const char* name :
         {"refcnt", "initstate", "taint", "coresize", "initsize", "version", "srcversion"}) {
      if (children.count(name)) print("  " + std::string(name) + "=" + value(at + "/" + name));
    }
    for (const auto& [name, node] : children) {
      print(mode_text(node) + " /sys/module/" + words[1] + "/" + name);
    }
  }

  static std::string mode_text(const json& node) {
    const json& given = node.at("mode");
    unsigned mode = given.is_string() ? std::stoul(given.get<std::string>(), nullptr, 8)
                                      : given.get<unsigned>();
    std::string text = node.at("kind") == "object" ? "d" : "-";
    for (int bit = 8; bit >= 0; --bit) text += mode >> bit & 1 ? "xwr"[bit % 3] : '-';
    return text;
  }

  void holders(const Words& words) {
    std::string at = "modules/" + words[1] + "/holders";
    json tree = ask("molt.Tree", {{"path", at}});
    for (const json& node : tree.at("nodes")) {
      if (node.at("kind") != "link") continue;
      print("holders: " + fs::path(node.at("path").get<std::string>()).filename().string() +
            " -> " + node.at("target").get<std::string>());
    }
  }

  // Taking and putting a module's references from outside, whatever its state.
  void get(const Words& words) {
    molt_module* module = descriptors_.find(words[1]);
    bool got = molt_module_try_get(module);
    molt_log(module, "try_module_get=%d refcount=%d", got, molt_module_refcount(module));
  }
  void put(const Words& words) {
    molt_module* module = descriptors_.find(words[1]);
    int result = molt_module_put(module);
    if (result != 0) std::fprintf(stderr, "put: %s\n", molt_last_error());
    molt_log(module, "module_put refcount=%d", molt_module_refcount(module));
  }

  void control(const Words& words) {
    int result = on_control.call_named(words[1].c_str(), words[2].c_str());
    if (result != 0) throw std::runtime_error(result_text(result));
  }

  void lock(const Words&) { molt_lock_loading(); }

  // ---- Livepatches.

  // patches/... as the recorded logs spell it; the program is their vmlinux.
  static std::string spelt(std::string path) {
    const std::string program = program_invocation_short_name;
    for (std::size_t at; (at = path.find(program)) != std::string::npos;) {
      path.replace(at, program.size(), "vmlinux");
    }
    return path;
  }

  void write(const Words& words) {
    const std::string text = joined(words, 2);
    Operation operation{"write /sys/kernel/livepatch/" + words[1] + " " + text, [&] {
                          return -error_of(client_->call(
                              "molt.Set", {{"path", "patches/" + words[1]}, {"value", text}}));
                        }};
    operation.perform();
    if (quiet_ && operation.line.find("-> OK") == std::string::npos) {
      throw std::runtime_error(operation.line);
    }
    print(operation.line);
  }

  void patch_tree(const Words&) {
    std::vector<std::string> lines;
    const json tree = ask("molt.Tree", {{"path", "patches"}});
    for (const json& node : tree.at("nodes")) {
      std::string path = node.at("path");
      if (path == "patches") continue;
      path = spelt(path.substr(std::strlen("patches/")));
      std::string line = "    ./" + path;
      if (node.contains("value")) line += "=" + node.at("value").get<std::string>();
      lines.push_back(line);
    }
    std::sort(lines.begin(), lines.end());
    for (const std::string& line : lines) print(line);
  }

  void patch_names(const Words&) {
    std::string names;
    const json reply = ask("molt.Patches", json::object());
    for (const json& patch : reply.at("patches")) {
      names += (names.empty() ? "" : "  ") + patch.at("name").get<std::string>();
    }
    print(names);
  }

  void patch_attribute(const Words& words) { print(value("patches/" + words[1])); }

  void settle(const Words&) {
    if (molt_patch_wait(patience_s * 1000) != 0) throw std::runtime_error(molt_last_error());
  }
  void patch_gone(const Words& words) {
    eventually([&] {
      return error_of(client_->call("molt.Tree", {{"path", "patches/" + words[1]}})) == ENOENT;
    });
    settle(words);  // and its module is free
  }

  static int thread_called(const std::string& name) {
    for (const auto& task : fs::directory_iterator("/proc/self/task")) {
      std::string comm;
      std::getline(std::ifstream(task.path() / "comm"), comm);
      if (comm == name) return std::stoi(task.path().filename());
    }
    throw std::runtime_error("no thread " + name);
  }
  std::string patch_state(int tid) {
    return value("threads/" + std::to_string(tid) + "/patch_state");
  }
  void patch_states(const Words&) {
    print("    worker patch_state=" + patch_state(thread_called("ok_worker")) +
          " self=" + patch_state(gettid()));
  }
  void user_state(const Words&) { print(patch_state(thread_called("ok_user"))); }

  // A thread of the host that asks a module for something, and comes back from it whenever.
  void user(const Words& words) {
    users_.emplace_back([module = words[1], verb = words[2]] {
      pthread_setname_np(pthread_self(), "ok_user");
      on_control.call_named(module.c_str(), verb.c_str());
    });
  }
  void join_users(const Words&) {
    for (std::thread& user : users_) user.join();
    users_.clear();
  }
  // What is loaded from now on patches what that thread waits in (modules/ok_patch.cpp).
  void hold(const Words&) {
    conformance_host_holds = 1;
    users_.emplace_back([] { conformance_host_waits(); });
    while (g_waiting == 0) std::this_thread::yield();
  }
  void let_go(const Words& words) {
    conformance_host_holds = 0;
    g_let_go.notify_all();
    join_users(words);
  }
  // What wakes this host's threads up, where the kernel would.
  static void poke_thread(int tid) { tgkill(getpid(), tid, SIGUSR1); }
  void offer_poke(const Words&) {
    struct sigaction action = {};
    action.sa_handler = [](int) {};
    sigaction(SIGUSR1, &action, nullptr);
    molt_patch_set_poke(poke_thread);
  }
  // SIGSTOP and SIGCONT to all of us, from outside.
  void stop_and_continue(const Words&) {
    // Once the user waits: what comes before that interrupts nothing.
    const std::string path =
        "/proc/self/task/" + std::to_string(thread_called("ok_user")) + "/syscall";
    eventually([&] {
      long number = -1;
      std::ifstream(path) >> number;
      return number == SYS_epoll_wait || number == SYS_epoll_pwait;
    });
    std::fflush(nullptr);
    const pid_t child = fork();
    if (child == 0) {
      // SIGCONT takes back a SIGSTOP that has not stopped anybody yet.
      const pid_t host = getppid();
      kill(host, SIGSTOP);
      const std::string stat = "/proc/" + std::to_string(host) + "/stat";
      for (std::string text; text.find(") T ") == std::string::npos;) {
        std::getline(std::ifstream(stat), text);
      }
      kill(host, SIGCONT);
      _exit(0);
    }
    waitpid(child, nullptr, 0);
  }

  void forget(const Words&) { log_from_ = read_events().at("next"); }
  void echo(const Words& words) { print(joined(words, 1)); }

  // ---- The kernel's own tests: every command is a line of the log, and the log is all there is.

  void modprobe(const Words& words) {
    const bool wait = words[0] == "modprobe";
    molt_log(nullptr, "%% modprobe %s", joined(words, 1).c_str());
    Operation operation = operation_of([&] {
      Words init = words;
      init[0] = "init";
      init[1] += ".ko";
      return init;
    }());
    const int result = operation.run();
    if (result != 0) {
      std::fprintf(stderr, "modprobe %s: %s\n", words[1].c_str(), molt_last_error());
      molt_log(nullptr, "modprobe: ERROR: could not insert '%s': %s", words[1].c_str(),
               std::strerror(-result));
    }
    if (wait) settle(words);
  }
  void rmmod(const Words& words) {
    molt_log(nullptr, "%% rmmod %s", words[1].c_str());
    if (molt_unload(words[1].c_str(), 0, -1) != 0) throw std::runtime_error(molt_last_error());
  }
  void disable(const Words& words) {
    molt_log(nullptr, "%% echo 0 > /sys/kernel/livepatch/%s/enabled", words[1].c_str());
    if (molt_patch_set_enabled(words[1].c_str(), 0) != 0)
      throw std::runtime_error(molt_last_error());
    settle(words);
  }
  void parameter(const Words& words) {
    molt_log(nullptr, "%% echo %s > /sys/module/%s/parameters/%s", words[3].c_str(),
             words[1].c_str(), words[2].c_str());
    ask("molt.Set",
        {{"path", "modules/" + words[1] + "/parameters/" + words[2]}, {"value", words[3]}});
  }
  void show(const Words&) {
    for (const char* text : {cmdline_proc_show(), meminfo_proc_show()}) {
      if (std::strstr(text, "live patched") != nullptr) molt_log(nullptr, "%s", text);
    }
  }
  void redirect(const Words& words) {
    json reply = client_->call("molt.Set", {{"path", "host/redirect"}, {"value", words[1]}});
    const int error = error_of(reply);
    if (error != 0) {
      molt_log(nullptr, "livepatch: sysctl: setting key \"kernel.ftrace_enabled\": %s",
               std::strerror(error));
    } else {
      molt_log(nullptr, "livepatch: kernel.ftrace_enabled = %s", words[1].c_str());
    }
  }
  // Whoever owns the entry stands for a kprobe. Nobody calls the function meanwhile.
  void probe(const Words& words) {
    static unsigned char own = 0;
    auto* entry = reinterpret_cast<unsigned char*>(&cmdline_proc_show);
    if (words[1] == "1") own = *entry;
    const unsigned char byte = words[1] == "1" ? 0xcc : own;
    const int memory = open("/proc/self/mem", O_RDWR | O_CLOEXEC);
    const bool written = pwrite(memory, &byte, 1, reinterpret_cast<off_t>(entry)) == 1;
    close(memory);
    if (!written) throw std::runtime_error("cannot write to our own code");
    print(words[1] == "1" ? "probed" : "not probed");
  }
  void hammer(const Words& words) {
    hammering_ = true;
    not_patched_ = std::stoi(words[1]);
    for (int i = not_patched_; i > 0; --i) {
      users_.emplace_back([this] {
        bool seen = false;
        while (hammering_) {
          const bool patched = std::strstr(cmdline_proc_show(), "live patched") != nullptr;
          if (patched && !seen) --not_patched_;
          seen = seen || patched;
        }
      });
    }
  }
  void remaining(const Words& words) {
    eventually([&] { return not_patched_ == 0; });
    print("Remaining not livepatched processes: " + std::to_string(not_patched_));
    hammering_ = false;
    join_users(words);
  }
  // PATH MODE VALUE: what an attribute of a patch has to be; "-" is not to be read.
  void check(const Words& words) {
    const std::string path = "patches/" + words[1];
    const json tree = ask("molt.Tree", {{"path", path}});
    for (const json& node : tree.at("nodes")) {
      const std::string mode = mode_text(node);
      const std::string text = node.contains("value") ? node.at("value").get<std::string>() : "-";
      if (mode == words[2] && text == words[3]) return;
      throw std::runtime_error(path + " is " + mode + " " + text);
    }
  }
  void whole_log(const Words&) {
    json batch = read_events();
    for (const json& event : batch.at("events")) {
      const std::string text = event.at("text");
      const bool is_test = text.starts_with("%") || text.starts_with("livepatch:") ||
                           text.starts_with("test_klp") || text.starts_with("modprobe: ");
      if (is_test && text.find("TAINT_LIVEPATCH") == std::string::npos) print(spelt(text));
    }
  }

  // ---- Tools.

  void print(const std::string& line) {
    if (!quiet_) std::printf("%s\n", line.c_str());
    std::fflush(stdout);
  }

  json ask(const std::string& method, const json& parameters) {
    json reply = client_->call(method, parameters);
    if (error_of(reply) != 0) throw std::runtime_error(method + ": " + reply.dump());
    return reply.at("parameters");
  }
  // The first event since the last `log` with this text, or null.
  json find_event(const std::string& text) {
    json batch = read_events();
    for (const json& event : batch.at("events")) {
      if (event.at("text").get<std::string>().find(text) != std::string::npos) return event;
    }
    return nullptr;
  }
  json read_events() { return ask("molt.Events", {{"since", log_from_}}); }
  std::string value(const std::string& path) {
    json got = ask("molt.Get", {{"path", path}}).at("value");
    return got.is_string() ? got.get<std::string>() : got.dump();
  }

  void eventually(const std::function<bool()>& holds) {
    auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(patience_s);
    while (!holds()) {
      if (std::chrono::steady_clock::now() > deadline) throw std::runtime_error("it never came");
      // tidy: sleep-ok between two looks at something that tells nobody when it changes
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
  }

  struct Step {
    std::size_t words;  // after the first
    void (Scenario::*take)(const Words&);
  };
  static const std::map<std::string, Step> steps;

  struct Run {
    std::thread thread;
    std::unique_ptr<Operation> operation;
  };

  fs::path modules_, folder_;
  Descriptors descriptors_;
  std::string socket_;
  std::unique_ptr<ControlClient> client_;
  std::map<std::string, Run> running_;
  std::atomic<bool> hammering_{false};
  std::atomic<int> not_patched_{0};
  std::vector<std::thread> users_;
  std::map<std::string, std::uint64_t> ended_;
  std::uint64_t log_from_ = 0;
  bool quiet_ = false;
};

// Beside these: `title TEXT`; `given STEP`, whose output and events are left out; `init FILE [ARG]`,
// `del NAME [FLAGS]`, `dropinit FILE`, which print a result line; and `X: init ...`, the same at
// once on a thread of its own.
const std::map<std::string, Scenario::Step> Scenario::steps = {
    {"join", {0, &Scenario::join}},                      // print the result lines of all X:
    {"behind", {2, &Scenario::behind}},                  // X: TEXT   it had to wait for that event
    {"await", {1, &Scenario::await}},                    // TEXT      until an event contains it
    {"await-refcount", {2, &Scenario::await_refcount}},  // MODULE N
    {"log", {0, &Scenario::log}},                        // print the events since the last `log`
    {"proc", {0, &Scenario::proc}},                      // print the list of modules
    {"attribute", {1, &Scenario::attribute}},            // MODULE/NAME
    {"inspect", {1, &Scenario::inspect}},                // MODULE    all of its attributes
    {"holders", {1, &Scenario::holders}},                // MODULE
    {"locked", {0, &Scenario::locked}},
    {"taint", {0, &Scenario::taint}},
    {"set", {1, &Scenario::set}},          // PATH VALUE
    {"get", {1, &Scenario::get}},          // MODULE    try to take a reference
    {"put", {1, &Scenario::put}},          // MODULE
    {"control", {2, &Scenario::control}},  // MODULE VERB (modules/control.hpp)
    {"lock", {0, &Scenario::lock}},        // no loading any more
    {"write", {2, &Scenario::write}},      // PATCH/ATTRIBUTE VALUE
    {"lptree", {0, &Scenario::patch_tree}},
    {"lpls", {0, &Scenario::patch_names}},
    {"lpattr", {1, &Scenario::patch_attribute}},  // PATCH/ATTRIBUTE
    {"settle", {0, &Scenario::settle}},           // until no transition is under way
    {"gone", {1, &Scenario::patch_gone}},         // PATCH
    {"patchstate", {0, &Scenario::patch_states}},
    {"userstate", {0, &Scenario::user_state}},
    {"user", {2, &Scenario::user}},  // MODULE VERB, on a thread of its own
    {"joinusers", {0, &Scenario::join_users}},
    {"hold", {0, &Scenario::hold}},  // a thread waits in a function of the program
    {"letgo", {0, &Scenario::let_go}},
    {"offerpoke", {0, &Scenario::offer_poke}},
    {"stopcont", {0, &Scenario::stop_and_continue}},
    {"forget", {0, &Scenario::forget}},      // the events so far
    {"echo", {0, &Scenario::echo}},          // TEXT
    {"modprobe", {1, &Scenario::modprobe}},  // MODULE [ARGS]
    {"modprobe-nowait", {1, &Scenario::modprobe}},
    {"rmmod", {1, &Scenario::rmmod}},
    {"disable", {1, &Scenario::disable}},      // PATCH
    {"parameter", {3, &Scenario::parameter}},  // MODULE NAME VALUE
    {"show", {0, &Scenario::show}},            // the two functions that patches replace
    {"redirect", {1, &Scenario::redirect}},    // 0 or 1
    {"probe", {1, &Scenario::probe}},    // 1: another tool's int3 is where one of them begins; 0
    {"hammer", {1, &Scenario::hammer}},  // N threads call one of them without a pause
    {"remaining", {0, &Scenario::remaining}},  // until all of those have been in the new version
    {"check", {3, &Scenario::check}},          // PATCH/ATTRIBUTE MODE VALUE
    {"wholelog", {0, &Scenario::whole_log}},
};

}  // namespace

int main(int argc, char** argv) {
  std::ifstream steps(argc == 3 ? argv[1] : "");
  if (!steps) {
    std::fprintf(stderr, "usage: conformance-host SCENARIO MODULES\n");
    return 2;
  }
#if defined(__SANITIZE_THREAD__)
  // The runtime's thread has a descriptor table of its own; the thread sanitizer knows one table, and
  // takes descriptor 7 there and descriptor 7 here for one. Keep ours out of that thread's numbers.
  while (open("/dev/null", O_RDONLY | O_CLOEXEC) < 64) {
  }
#endif
  char folder[] = "/tmp/molt-conformance-XXXXXX";
  if (mkdtemp(folder) == nullptr) {
    std::perror(folder);
    return 1;
  }
  int result = 0;
  try {
    // Never destroyed: modules may be permanent, threads may stand in them.
    auto* scenario = new Scenario(argv[2], folder);
    scenario->run(steps);
  } catch (const CannotRunHere& e) {
    std::fprintf(stderr, "%s\n", e.what());
    result = 77;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "%s\n", e.what());
    result = 1;
  }
  molt_stop();
  std::error_code ignored;
  fs::remove_all(folder, ignored);
  std::fflush(nullptr);
  _exit(result);
}
