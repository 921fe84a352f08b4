// http-files - a multi-threaded HTTP file server that modules can change while it is busy.
//
//     http-files --root DIR [--port N] [--threads N]
//
//     GET  /a/file     the file below DIR
//     GET  /a/file?wait=S   the same; if it is not there, at most S seconds later, when it has been PUT
//     PUT  /a/file     creates or overwrites it
//     POST /a/file     creates it, and fails if it is there
//     GET  /healthz    "ok"
//     GET  /counters   totals per client, if a module keeps them
//
// The server itself limits nothing and counts nothing. It only says, at four places, that it is
// about to do something (hooks.hpp), and does it unless a module objects:
//
//     molt load -p PID limit_names.so deny='*.key'
//
// Each open connection keeps one thread busy; --threads bounds how many clients are served at once.

#include "head.hpp"
#include "hooks.hpp"

#include <molt/host.hpp>

#include <fcntl.h>
#include <httplib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <optional>
#include <string>
#include <thread>

namespace {

// The hooks. While nothing is attached, each call costs one load and one predicted branch.
molt::hook<http_files::request_point> on_request;
molt::hook<http_files::answer_point> on_answer;
molt::hook<http_files::open_point> on_open;
molt::hook<http_files::counters_point> on_counters;

class Descriptor {
 public:
  explicit Descriptor(int fd) : fd_(fd) {}
  ~Descriptor() {
    if (fd_ >= 0) ::close(fd_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int get() const { return fd_; }

 private:
  int fd_;
};

// The name that modules are shown and that is opened: one spelling for each file, so that no policy
// is evaded by "/pub/../keys//a.key". Nothing for what cannot be a file's name.
std::optional<std::string> normal_path(const std::string& requested) {
  if (requested.empty() || requested[0] != '/' || requested.find('\0') != std::string::npos) {
    return std::nullopt;
  }
  // An absolute path's normal form has no ".." left; its root stays "/", however many there were.
  std::string path = std::filesystem::path("/" + requested).lexically_normal().string();
  path.erase(0, path.find_first_not_of('/'));
  if (path.ends_with('/')) path.pop_back();
  return "/" + path;
}

// Opens a file below `root`, unless a module objects. A negative errno on failure.
int open_file(int root, const std::string& path, int flags, const std::string& client) {
  if (int error = on_open(path.c_str(), flags, client.c_str())) return error;
  // O_NONBLOCK: a FIFO in the folder must not hold a worker for ever.
  int fd = ::openat(root, path.c_str() + 1, flags | O_CLOEXEC | O_NONBLOCK, 0644);
  return fd >= 0 ? fd : -errno;
}

void fail(httplib::Response& response, int error) {
  switch (error) {
    case -EACCES:
    case -EPERM:
      response.status = 403;
      break;
    case -ENOENT:
    case -ENOTDIR:
    case -EISDIR:
    case -ENXIO:
      response.status = 404;
      break;
    case -EEXIST:
      response.status = 409;
      break;
    case -ENAMETOOLONG:
      response.status = 414;
      break;
    default:
      response.status = 500;
  }
  response.set_content(std::string(::strerrordesc_np(-error)) + "\n", "text/plain");
}

void send_file(int root, const httplib::Request& request, httplib::Response& response) {
  auto path = normal_path(request.path);
  if (!path) return fail(response, -ENOENT);
  http_files::Head head;
  http_files::compose_head(root, path->c_str(), std::atoi(request.get_param_value("wait").c_str()),
                           &head);
  Descriptor file(open_file(root, *path, O_RDONLY, request.remote_addr));
  if (file.get() < 0) return fail(response, file.get());
  struct stat info;
  if (::fstat(file.get(), &info) != 0) return fail(response, -errno);
  if (!S_ISREG(info.st_mode)) return fail(response, -ENOENT);

  std::string body(static_cast<std::size_t>(info.st_size), '\0');
  std::size_t size = 0;
  while (size < body.size()) {
    ssize_t got = ::read(file.get(), body.data() + size, body.size() - size);
    if (got < 0) return fail(response, -errno);
    if (got == 0) break;  // it has become shorter meanwhile
    size += static_cast<std::size_t>(got);
  }
  body.resize(size);
  if (head.sniffing != nullptr) response.set_header("X-Content-Type-Options", head.sniffing);
  response.set_content(std::move(body), head.type);
}

void receive_file(int root, int flags, const httplib::Request& request,
                  httplib::Response& response) {
  auto path = normal_path(request.path);
  if (!path) return fail(response, -ENOENT);
  Descriptor file(open_file(root, *path, O_WRONLY | O_CREAT | flags, request.remote_addr));
  if (file.get() < 0) return fail(response, file.get());
  for (std::size_t done = 0; done < request.body.size();) {
    ssize_t put = ::write(file.get(), request.body.data() + done, request.body.size() - done);
    if (put < 0) return fail(response, -errno);
    done += static_cast<std::size_t>(put);
  }
  http_files::announce_file();
  response.status = 201;
}

void send_counters(httplib::Response& response) {
  std::string text;
  http_files::CounterSink sink = {
      [](void* context, const char* client, std::uint64_t requests, std::uint64_t bytes) {
        *static_cast<std::string*>(context) += std::string(client) + " " +
                                               std::to_string(requests) + " " +
                                               std::to_string(bytes) + "\n";
      },
      &text};
  if (!on_counters(sink)) {
    response.status = 404;
    text = "no module keeps counters\n";
  }
  response.set_content(text, "text/plain");
}

void add_routes(httplib::Server& server, int root) {
  using httplib::Request;
  using httplib::Response;
  server.set_pre_routing_handler([](const Request& request, Response&) {
    on_request(request.remote_addr.c_str(), request.method.c_str(), request.path.c_str());
    return httplib::Server::HandlerResponse::Unhandled;
  });
  server.set_post_routing_handler([](const Request& request, Response& response) {
    std::uint64_t bytes = request.method == "HEAD" ? 0 : response.body.size();
    on_answer(request.remote_addr.c_str(), response.status, bytes);
  });
  server.Get("/healthz", [](const Request&, Response& response) {
    response.set_content("ok\n", "text/plain");
  });
  server.Get("/counters", [](const Request&, Response& response) { send_counters(response); });
  server.Get("/.*", [root](const Request& request, Response& response) {
    send_file(root, request, response);
  });
  server.Put("/.*", [root](const Request& request, Response& response) {
    receive_file(root, O_TRUNC, request, response);
  });
  server.Post("/.*", [root](const Request& request, Response& response) {
    receive_file(root, O_EXCL, request, response);
  });
}

}  // namespace

int main(int argc, char** argv) {
  std::string root_path;
  int port = 0;
  std::size_t threads = 8;
  CLI::App options("Serves the files of a folder over HTTP, and lets modules have a say");
  options.add_option("--root", root_path, "the folder")->required()->check(CLI::ExistingDirectory);
  options.add_option("--port", port, "of 127.0.0.1; 0: any free one")->check(CLI::Range(0, 65535));
  options.add_option("--threads", threads, "how many connections are served at once")
      ->check(CLI::Range(1, 1024));
  CLI11_PARSE(options, argc, argv);

  Descriptor root(::open(root_path.c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC));
  if (root.get() < 0) {
    std::fprintf(stderr, "http-files: %s: %s\n", root_path.c_str(), std::strerror(errno));
    return 1;
  }

  // All threads inherit this, so that only the sigwait() below takes these signals.
  sigset_t signals;
  sigemptyset(&signals);
  sigaddset(&signals, SIGINT);
  sigaddset(&signals, SIGTERM);
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);

  // From here on `molt` finds this process. A server that cannot be changed still serves.
  if (molt::start("http-files") != 0) {
    std::fprintf(stderr, "http-files: no modules: %s\n", molt_last_error());
  }

  httplib::Server server;
  server.new_task_queue = [threads] { return new httplib::ThreadPool(threads); };
  server.set_keep_alive_max_count(SIZE_MAX);
  server.set_tcp_nodelay(true);
  add_routes(server, root.get());

  if (port == 0) {
    port = server.bind_to_any_port("127.0.0.1");
  } else if (!server.bind_to_port("127.0.0.1", port)) {
    port = -1;
  }
  if (port < 0) {
    std::fprintf(stderr, "http-files: the port is taken\n");
    return 1;
  }

  std::thread listener([&server] { server.listen_after_bind(); });
  while (!server.is_running()) std::this_thread::yield();
  std::printf("ready on 127.0.0.1:%d pid %d\n", port, static_cast<int>(::getpid()));
  std::fflush(stdout);

  int signal = 0;
  sigwait(&signals, &signal);
  server.stop();
  listener.join();
  molt_stop();
  return 0;
}
