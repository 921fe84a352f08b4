// molt-load-client - sends HTTP requests at a constant rate, and measures what a user would feel.
//
//     molt-load-client --port N [--rate N] [--connections N] [--clients N] [--seconds N]
//                      [--json FILE] REQUEST...
//
// It is open-loop: requests are due at fixed times, whether or not earlier ones were answered, and a
// latency counts from the time at which the request was *due*. A closed loop, which sends the next
// request when the last is answered, hides a pause of the server: it sends nothing meanwhile.
//
// REQUEST is `[COUNT*][?]METHOD PATH`. The list is sent round and round. An answer other than 2xx is
// a failure; `?` marks guarded requests, of which the phase says what is expected.
//
// Without --seconds it does what the lines on its standard input say. It prints "began NAME" when a
// phase has begun; when all requests of an earlier one are answered, "answered NAME CLIENT NUMBER" for
// each of its clients, and then "ended NAME".
//
//     phase NAME [allowed|refused|either]   go on as phase NAME; guarded requests must be answered
//                                           by 2xx (the default), by 403, or by either
//     stop                                  end, as do SIGTERM and the end of the input
//
// Every phase has connections of its own, from clients of its own: phase 3 comes from 127.0.3.1,
// 127.0.3.2 and so on. So a server that counts per client can be compared exactly with what each
// phase has seen, while the next phase is already running. Connections are opened one by one; the
// first request on each is sent at once, beside the rate.

#include "histogram.hpp"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <deque>
#include <fstream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

namespace {

constexpr std::uint64_t second_ns = 1'000'000'000;
// A request that is not answered for so long is a failure.
constexpr std::uint64_t patience_ns = 10 * second_ns;

std::uint64_t now_ns() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return static_cast<std::uint64_t>(t.tv_sec) * second_ns + static_cast<std::uint64_t>(t.tv_nsec);
}

[[noreturn]] void die(const std::string& what) {
  std::fprintf(stderr, "molt-load-client: %s: %s\n", what.c_str(), std::strerror(errno));
  std::exit(2);
}

struct Request {
  std::string text;  // as it is sent
  bool guarded = false;
};

// `[COUNT*][?]METHOD PATH`, COUNT times.
void add_requests(std::string_view spec, std::vector<Request>& mix) {
  unsigned long count = 1;
  if (auto star = spec.find('*'); star < spec.find(' ')) {
    count = std::strtoul(std::string(spec.substr(0, star)).c_str(), nullptr, 10);
    spec.remove_prefix(star + 1);
  }
  Request made;
  made.guarded = spec.starts_with('?');
  if (made.guarded) spec.remove_prefix(1);
  auto space = spec.find(" /");
  if (space == std::string_view::npos || count == 0 || count > 10000) {
    errno = EINVAL;
    die("a request is [COUNT*][?]METHOD PATH, not '" + std::string(spec) + "'");
  }
  std::string_view method = spec.substr(0, space);
  std::string body = method == "GET" ? "" : "sent by molt-load-client\n";
  made.text = std::string(spec) + " HTTP/1.1\r\nHost: 127.0.0.1\r\n";
  if (!body.empty()) made.text += "Content-Length: " + std::to_string(body.size()) + "\r\n";
  made.text += "\r\n" + body;
  mix.insert(mix.end(), count, made);
}

struct Answer {
  int status = 0;
  std::size_t size = 0;  // head and body
  bool close = false;    // the server ends the connection after it
};

// Parses the head of an answer; false as long as it is not complete. Status 0: not understood.
bool parse_head(std::string_view text, Answer& out) {
  auto end = text.find("\r\n\r\n");
  if (end == std::string_view::npos) return false;
  std::string head(text.substr(0, end + 2));
  for (char& c : head) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  auto length = head.find("\r\ncontent-length:");
  if (!head.starts_with("http/1.1 ") || length == std::string::npos) return true;
  out.status = std::atoi(head.c_str() + std::strlen("http/1.1 "));
  out.size = end + 4 + std::strtoull(head.c_str() + length + 17, nullptr, 10);
  out.close = head.find("\r\nconnection: close\r\n") != std::string::npos;
  return true;
}

enum class Expected { allowed, refused, either };

struct Phase;

struct Connection {
  Phase* owner = nullptr;
  int fd = -1;
  std::string client;             // the address it comes from
  const Request* busy = nullptr;  // the request that is under way
  std::uint64_t due_ns = 0;       // when it was due
  std::string received;
};

struct Phase {
  std::string name;
  Expected guarded = Expected::allowed;
  int number = 0;  // third part of its clients' addresses
  std::uint64_t begin_ns = 0, end_ns = 0;
  std::vector<std::unique_ptr<Connection>> connections;
  std::deque<Connection*> idle;   // longest idle first: none is idle for so long that it is closed
  std::deque<std::uint64_t> due;  // requests that found no idle connection yet

  Histogram latency;
  std::uint64_t failures = 0;
  std::uint64_t refused = 0;                      // guarded requests answered by 403 as expected
  std::map<std::string, std::uint64_t> answered;  // by client
  std::string first_failure;

  bool quiet() const { return due.empty() && idle.size() == connections.size(); }
  void fail(const std::string& why) {
    if (failures++ == 0) first_failure = why;
  }
};

class LoadClient {
 public:
  int port = 0;
  double rate = 1000;
  int connections = 8;
  int clients = 4;
  double seconds = 0;
  std::string json;
  std::vector<Request> mix;

  int run() {
    set_up();
    while (!stopped_ || !phases_quiet()) {
      send_what_is_due();
      end_old_phases();
      arm_timer();
      epoll_event events[64];
      int count = epoll_wait(epoll_, events, 64, -1);
      if (count < 0 && errno != EINTR) die("epoll_wait");
      for (int i = 0; i < count; ++i) handle(events[i]);
      give_up_on_the_lost();
    }
    end_old_phases();
    return report();
  }

 private:
  // epoll's data is one of these marks, or a connection.
  static inline char timer_mark, signal_mark, input_mark;

  int epoll_ = -1, timer_ = -1, signals_ = -1;
  std::string input_;
  std::vector<std::unique_ptr<Phase>> phases_;
  Phase* current_ = nullptr;  // gets what is due
  Phase* opening_ = nullptr;  // its connections are being opened; takes over when all are
  std::uint64_t next_due_ns_ = 0;
  std::uint64_t stop_ns_ = UINT64_MAX;
  std::size_t next_request_ = 0;
  bool stopped_ = false;

  std::uint64_t interval_ns() const {
    return static_cast<std::uint64_t>(static_cast<double>(second_ns) / rate);
  }

  void watch(int fd, void* mark) const {
    epoll_event event = {EPOLLIN, {mark}};
    if (epoll_ctl(epoll_, EPOLL_CTL_ADD, fd, &event) != 0) die("epoll_ctl");
  }

  void set_up() {
    prctl(PR_SET_TIMERSLACK, 1);
    std::signal(SIGPIPE, SIG_IGN);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigprocmask(SIG_BLOCK, &set, nullptr);
    epoll_ = epoll_create1(EPOLL_CLOEXEC);
    timer_ = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    signals_ = signalfd(-1, &set, SFD_CLOEXEC);
    if (epoll_ < 0 || timer_ < 0 || signals_ < 0) die("set-up");
    watch(timer_, &timer_mark);
    watch(signals_, &signal_mark);
    if (seconds > 0) {
      begin_phase("run", Expected::allowed);
    } else {
      watch(STDIN_FILENO, &input_mark);
    }
  }

  // Phases -----------------------------------------------------------------------------------------

  void begin_phase(const std::string& name, Expected guarded) {
    if (phases_.size() >= 250 || opening_ != nullptr) {
      errno = EBUSY;
      die("phase " + name);
    }
    phases_.push_back(std::make_unique<Phase>());
    opening_ = phases_.back().get();
    opening_->name = name;
    opening_->guarded = guarded;
    opening_->number = static_cast<int>(phases_.size());
    opening_->begin_ns = now_ns();
    open_next_connection();
  }

  void open_next_connection() {
    if (opening_->connections.size() == static_cast<std::size_t>(connections)) {
      std::uint64_t now = now_ns();
      if (current_ == nullptr) {
        next_due_ns_ = now + interval_ns();
        if (seconds > 0) stop_ns_ = now + static_cast<std::uint64_t>(seconds * second_ns);
      }
      current_ = opening_;
      opening_ = nullptr;
      std::printf("began %s\n", current_->name.c_str());
      std::fflush(stdout);
      return;
    }
    auto made = std::make_unique<Connection>();
    made->owner = opening_;
    made->client =
        "127.0." + std::to_string(opening_->number) + "." +
        std::to_string(1 + opening_->connections.size() % static_cast<std::size_t>(clients));
    opening_->connections.push_back(std::move(made));
    Connection& it = *opening_->connections.back();
    std::uint64_t now = now_ns();
    open(it);
    send(it, now);
  }

  bool phases_quiet() const {
    for (const auto& each : phases_) {
      if (each->end_ns == 0 && !each->quiet()) return false;
    }
    return true;
  }

  // A phase that another one follows ends when all of its requests are answered.
  void end_old_phases() {
    for (const auto& each : phases_) {
      bool over = each.get() != opening_ && (each.get() != current_ || stopped_);
      if (!over || each->end_ns != 0 || !each->quiet()) continue;
      each->end_ns = now_ns();
      for (const auto& it : each->connections) ::close(it->fd);
      for (const auto& [client, number] : each->answered) {
        std::printf("answered %s %s %ju\n", each->name.c_str(), client.c_str(), number);
      }
      std::printf("ended %s\n", each->name.c_str());
      std::fflush(stdout);
    }
  }

  // Requests ---------------------------------------------------------------------------------------

  void send_what_is_due() {
    std::uint64_t now = now_ns();
    if (now >= stop_ns_) stop();
    while (current_ != nullptr && !stopped_ && next_due_ns_ <= now) {
      current_->due.push_back(next_due_ns_);
      next_due_ns_ += interval_ns();
    }
    for (const auto& each : phases_) {
      while (!each->due.empty() && !each->idle.empty()) {
        Connection* it = each->idle.front();
        each->idle.pop_front();
        send(*it, each->due.front());
        each->due.pop_front();
      }
    }
  }

  void arm_timer() const {
    // Without a schedule, the timer still ends the wait for answers that never come.
    std::uint64_t at = now_ns() + second_ns / 10;
    if (current_ != nullptr && !stopped_) at = std::min({at, next_due_ns_, stop_ns_});
    itimerspec when = {};
    when.it_value.tv_sec = static_cast<time_t>(at / second_ns);
    when.it_value.tv_nsec = static_cast<long>(at % second_ns);
    timerfd_settime(timer_, TFD_TIMER_ABSTIME, &when, nullptr);
  }

  void open(Connection& it) const {
    it.received.clear();
    it.fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int on = 1;
    ::setsockopt(it.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    ::setsockopt(it.fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    sockaddr_in from = {};
    from.sin_family = AF_INET;
    inet_pton(AF_INET, it.client.c_str(), &from.sin_addr);
    sockaddr_in to = from;
    to.sin_port = htons(static_cast<std::uint16_t>(port));
    inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
    if (::bind(it.fd, reinterpret_cast<sockaddr*>(&from), sizeof from) != 0 ||
        ::connect(it.fd, reinterpret_cast<sockaddr*>(&to), sizeof to) != 0) {
      die("connect from " + it.client);
    }
    watch(it.fd, &it);
  }

  void send(Connection& it, std::uint64_t due_ns) {
    it.busy = &mix[next_request_++ % mix.size()];
    it.due_ns = due_ns;
    // A request is far smaller than a socket's buffer: it goes in whole, or the connection is broken,
    // which the next read tells.
    (void)!::send(it.fd, it.busy->text.data(), it.busy->text.size(), MSG_NOSIGNAL);
  }

  void receive(Connection& it) {
    char buffer[65536];
    ssize_t got = ::recv(it.fd, buffer, sizeof buffer, MSG_DONTWAIT);
    if (got < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (got <= 0) {
      if (it.busy != nullptr) {
        it.owner->fail(it.busy->text.substr(0, it.busy->text.find(" HTTP")) + ": connection lost");
        done(it);
      }
      reopen(it);
      return;
    }
    it.received.append(buffer, static_cast<std::size_t>(got));
    Answer reply;
    if (!parse_head(it.received, reply) || it.received.size() < reply.size) return;
    if (it.busy == nullptr || it.received.size() > reply.size) reply.status = 0;
    judge(it, reply.status);
    it.received.clear();
    done(it);
    if (reply.close || reply.status == 0) reopen(it);
  }

  void judge(Connection& it, int status) const {
    Phase& in = *it.owner;
    ++in.answered[it.client];
    bool refused = status == 403;
    bool good = status >= 200 && status < 300;
    if (it.busy != nullptr && it.busy->guarded && in.guarded != Expected::allowed) {
      if (refused) ++in.refused;
      if (refused || (good && in.guarded == Expected::either)) return;
    } else if (good) {
      return;
    }
    in.fail((it.busy == nullptr ? "" : it.busy->text.substr(0, it.busy->text.find(" HTTP"))) +
            ": status " + std::to_string(status));
  }

  // The request is over, answered or not.
  void done(Connection& it) {
    if (it.busy == nullptr) return;
    it.owner->latency.add(now_ns() - it.due_ns);
    it.busy = nullptr;
    it.owner->idle.push_back(&it);
    if (it.owner == opening_) open_next_connection();
  }

  void reopen(Connection& it) const {
    ::close(it.fd);
    open(it);
  }

  void give_up_on_the_lost() {
    std::uint64_t now = now_ns();
    for (const auto& each : phases_) {
      if (each->end_ns != 0) continue;
      for (const auto& it : each->connections) {
        if (it->busy == nullptr || now < it->due_ns + patience_ns) continue;
        each->fail(it->busy->text.substr(0, it->busy->text.find(" HTTP")) + ": no answer");
        reopen(*it);
        done(*it);
      }
      while (!each->due.empty() && now > each->due.front() + patience_ns) {
        each->fail("no connection was free");
        each->latency.add(now - each->due.front());
        each->due.pop_front();
      }
    }
  }

  // Commands ---------------------------------------------------------------------------------------

  void handle(const epoll_event& event) {
    if (event.data.ptr == &timer_mark) {
      std::uint64_t expirations;
      (void)!::read(timer_, &expirations, sizeof expirations);
    } else if (event.data.ptr == &signal_mark) {
      stop();
    } else if (event.data.ptr == &input_mark) {
      read_commands();
    } else {
      receive(*static_cast<Connection*>(event.data.ptr));
    }
  }

  void stop() {
    if (stopped_) return;
    stopped_ = true;
    opening_ = nullptr;
    epoll_ctl(epoll_, EPOLL_CTL_DEL, signals_, nullptr);
    if (seconds <= 0) epoll_ctl(epoll_, EPOLL_CTL_DEL, STDIN_FILENO, nullptr);
  }

  void read_commands() {
    char buffer[4096];
    ssize_t got = ::read(STDIN_FILENO, buffer, sizeof buffer);
    if (got <= 0) return stop();
    input_.append(buffer, static_cast<std::size_t>(got));
    for (std::size_t end; (end = input_.find('\n')) != std::string::npos;) {
      command(input_.substr(0, end));
      input_.erase(0, end + 1);
    }
  }

  void command(const std::string& line) {
    char name[64] = "", guarded[16] = "allowed";
    if (line == "stop") return stop();
    bool known = std::sscanf(line.c_str(), "phase %63s %15s", name, guarded) >= 1;
    std::string_view how = guarded;
    if (!known || (how != "allowed" && how != "refused" && how != "either")) {
      std::fprintf(stderr, "molt-load-client: not understood: %s\n", line.c_str());
      return;
    }
    begin_phase(name, how == "allowed"   ? Expected::allowed
                      : how == "refused" ? Expected::refused
                                         : Expected::either);
  }

  // Report -----------------------------------------------------------------------------------------

  int report() const {
    nlohmann::ordered_json out = {{"schema", 1}, {"rate", rate}};
    out["phases"] = nlohmann::ordered_json::array();
    std::uint64_t failures = 0;
    std::printf("%-12s %9s %9s %9s %9s %9s %9s %9s %9s   (latency in us)\n", "phase", "requests",
                "failures", "refused", "p50", "p90", "p99", "p99.9", "max");
    for (const auto& each : phases_) {
      const Histogram& h = each->latency;
      auto us = [](std::uint64_t ns) { return static_cast<double>(ns / 100) / 10; };
      double p50 = us(h.percentile(50)), p90 = us(h.percentile(90)), p99 = us(h.percentile(99)),
             p999 = us(h.percentile(99.9)), max = us(h.max());
      std::printf("%-12s %9ju %9ju %9ju %9.1f %9.1f %9.1f %9.1f %9.1f\n", each->name.c_str(),
                  h.count(), each->failures, each->refused, p50, p90, p99, p999, max);
      if (each->failures > 0) std::printf("  first failure: %s\n", each->first_failure.c_str());
      failures += each->failures;
      out["phases"].push_back(
          {{"name", each->name},
           {"seconds", static_cast<double>(each->end_ns - each->begin_ns) / second_ns},
           {"requests", h.count()},
           {"failures", each->failures},
           {"refused", each->refused},
           {"latency_us",
            {{"p50", p50}, {"p90", p90}, {"p99", p99}, {"p99.9", p999}, {"max", max}}},
           {"answered", each->answered}});
    }
    std::fflush(stdout);
    if (!json.empty()) {
      std::ofstream file(json);
      file << out.dump(2) << "\n";
      if (!file.flush()) die(json);
    }
    return failures == 0 ? 0 : 1;
  }
};

}  // namespace

int main(int argc, char** argv) {
  LoadClient client;
  std::vector<std::string> specs;
  CLI::App options("Sends HTTP requests to 127.0.0.1 at a constant rate and measures latencies");
  options.add_option("--port", client.port, "of the server")
      ->required()
      ->check(CLI::Range(1, 65535));
  options.add_option("--rate", client.rate, "requests a second")->check(CLI::Range(1.0, 1e6));
  options.add_option("--connections", client.connections, "kept open")->check(CLI::Range(1, 1000));
  options.add_option("--clients", client.clients, "addresses the connections of a phase come from")
      ->check(CLI::Range(1, 250));
  options.add_option("--seconds", client.seconds,
                     "run so long, in one phase, and read no commands");
  options.add_option("--json", client.json, "write the report to this file as well");
  options.add_option("requests", specs, "[COUNT*][?]METHOD PATH")->required();
  CLI11_PARSE(options, argc, argv);
  for (const auto& spec : specs) add_requests(spec, client.mix);
  return client.run();
}
