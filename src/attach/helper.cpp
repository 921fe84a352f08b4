#include "attach/helper.hpp"

#include "attach/freezer.hpp"
#include "attach/obstacles.hpp"

#include <signal.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <map>
#include <thread>

namespace molt::attach {

namespace {

constexpr std::size_t pages_bytes = 16 << 10;
constexpr std::uint32_t nap_ns = 100'000;
constexpr std::uint32_t patience = 30'000'000'000 / 1024;  // 30 s and more
// Not waited for longer with commands: the helper may be about to end. On a busy machine it may take seconds
// to copy the runtime.
constexpr std::chrono::seconds command_pause{20};
// However late a thread was found that could be borrowed: to give up what is begun would leave the helper and
// its pages there.
constexpr std::chrono::seconds least_for_a_call{25};
constexpr std::chrono::milliseconds between_tries{1};
constexpr std::chrono::milliseconds patience_with_sleepers{200};

template <class T>
std::span<const std::byte> bytes_of(const T& value) {
  return std::as_bytes(std::span(&value, 1));
}

void nap(std::chrono::microseconds time) { std::this_thread::sleep_for(time); }

// Between looks at what takes a millisecond, or ten where many are attached to: each look costs this
// program as much as the waiting is worth.
class Pace {
 public:
  void wait() {
    nap(time_);
    time_ = std::min(time_ * 3 / 2, longest);
  }

 private:
  static constexpr std::chrono::microseconds longest{500};
  std::chrono::microseconds time_{50};
};

// Whom of those that run to follow next: who has been followed least. What time is left is shared out, and
// grows from round to round: how busy the machine is shows only by that.
class Followed {
 public:
  pid_t next(const std::vector<pid_t>& threads) {
    const pid_t tid = *std::min_element(threads.begin(), threads.end(),
                                        [this](pid_t a, pid_t b) { return times_[a] < times_[b]; });
    round_ = times_[tid]++;
    candidates_ = threads.size();
    ++count_;
    return tid;
  }
  double patience_us(double left_us) const {
    const double share = left_us / (2.0 * static_cast<double>(candidates_));
    return std::min(left_us, std::max(share, first_us * (1 << std::min(round_, most_doublings))));
  }
  std::size_t count() const { return count_; }

 private:
  static constexpr double first_us = 50e3;
  static constexpr int most_doublings = 6;
  std::map<pid_t, int> times_;
  std::size_t count_ = 0;
  std::size_t candidates_ = 1;
  int round_ = 0;
};

// A program that has just begun makes threads, allocators and libraries ready, and what comes in between may meet locks
// in an order that never occurs later: redis hung once in 900 attaches in its first 100 ms, in jemalloc, which makes a
// thread under a lock of its own, while the loader wanted memory. So its first thread is to be seen asleep
// first, or to have had the time to come to it.
class Beginning {
 public:
  explicit Beginning(const Target& target) : target_(target), age_s_(age_s()) {}

  bool is_over() {
    if (is_over_) return true;
    if (!target_.is_loaded()) return false;
    const std::string task = target_.proc("task/" + std::to_string(target_.pid()));
    const std::string runs = read_text(task + "/schedstat");
    // It has not run since it was last seen asleep.
    is_over_ = age_s_ > young_s || (asleep(target_, target_.pid()) && runs == slept_at_);
    if (Clock::now() - begin_ > std::chrono::duration<double>(young_s)) is_over_ = true;
    slept_at_ = runs;
    return is_over_;
  }

 private:
  static constexpr double young_s = 2;

  double age_s() const {
    const std::string stat = read_text(target_.proc("stat"));
    // The second field is the name, which may contain anything; the third begins behind the last ')'.
    std::size_t at = stat.rfind(')');
    constexpr int start_field = 22;
    for (int field = 2; field < start_field && at != stat.npos; ++field)
      at = stat.find(' ', at + 1);
    if (at == stat.npos) return young_s;
    timespec now{};
    clock_gettime(CLOCK_BOOTTIME, &now);
    return static_cast<double>(now.tv_sec) -
           std::strtod(stat.c_str() + at, nullptr) / static_cast<double>(sysconf(_SC_CLK_TCK));
  }

  const Target& target_;
  const double age_s_;
  const Clock::time_point begin_ = Clock::now();
  std::string slept_at_;
  bool is_over_ = false;
};

// What went wrong, or that it was frozen or stopped in the meantime, which explains it.
tl::unexpected<Error> fail_at_rest(const Target& target, const Error& error) {
  const auto rests = standstill(target.pid());
  if (!rests) return tl::unexpected<Error>(error);
  return fail(rests->code, "process %d cannot be attached to: %s", target.pid(),
              rests->text.c_str());
}

}  // namespace

Result<Helper> Helper::start(Target& target, const Functions& functions, std::uint64_t code,
                             Clock::time_point deadline) {
  Helper helper(target);
  std::string why_not, last_why_not;
  Error last{EAGAIN, "borrow", ""};
  const Clock::time_point begin = Clock::now();
  Followed followed;
  Beginning beginning(target);
  for (;; nap(between_tries)) {
    // At the last look they may happen to run: who was in a signal handler before is the reason.
    if (!why_not.empty() &&
        (last_why_not.empty() || why_not.find(" 0 in signal handlers") == why_not.npos)) {
      last_why_not = why_not;
    }
    if (Clock::now() > deadline) {
      why_not = last_why_not;
      if (!why_not.empty() && !standstill(target.pid())) {
        return fail(EAGAIN,
                    "no thread of process %d sleeps in a plain system call: %s; what runs was "
                    "followed, and made none in time (tries: %zu)",
                    target.pid(), why_not.c_str(), followed.count());
      }
      return fail_at_rest(target, last);
    }
    if (auto done = target.refresh(); !done) return pass(done);
    why_not.clear();
    if (!beginning.is_over()) {
      last = fail(EAGAIN, "process %d has only just begun", target.pid()).value();
      continue;
    }
    const std::vector<Victim> victims = find_victims(target, stack_needed, &why_not);
    const auto pages = target.hole(pages_bytes);
    if (!pages) return fail(ENOMEM, "process %d has no address space left", target.pid());

    Frame frame = {};
    frame.map_address = *pages;
    frame.map_bytes = pages_bytes;
    frame.pthread_create = functions.pthread_create;
    frame.helper = code + stub().helper;
    frame.errno_location = functions.errno_location;
    // A blocked fault kills; and SIGTRAP is how code is changed under threads.
    frame.all_signals = ~std::uint64_t{0};
    for (int fault : {SIGTRAP, SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGSYS}) {
      frame.all_signals &= ~(std::uint64_t{1} << (fault - 1));
    }
    frame.shared.bytes = pages_bytes;
    frame.shared.pthread_self = functions.pthread_self;
    frame.shared.pthread_detach = functions.pthread_detach;
    frame.shared.munmap = functions.munmap;
    frame.shared.first_nap = nap_ns;
    frame.shared.patience = patience;

    bool lent = false;
    for (const Victim& victim : victims) {
      auto loan = borrow(target, victim, code, frame);
      if (loan) {
        helper.loan_ = *loan;
        ++helper.borrowed_;
        lent = true;
        break;
      }
      last = loan.error();
      if (last.code != EAGAIN) return pass(loan);
      // Each that has been frozen since would take the longest that a stop may take.
      if (find_freezer(target.pid())) return fail_at_rest(target, last);
    }
    // Threads that sleep for less than it takes to stop one are met at a call that they make.
    if (!lent && Clock::now() - begin > patience_with_sleepers) {
      const std::vector<pid_t> threads = find_runners(target);
      if (target.has_ended()) return fail(ESRCH, "process %d has ended", target.pid());
      if (threads.empty()) continue;
      const pid_t tid = followed.next(threads);
      const double left_us =
          std::chrono::duration<double, std::micro>(deadline - Clock::now()).count();
      auto loan = borrow_at_call(target, tid, code, frame, followed.patience_us(left_us));
      if (!loan) {
        if (loan.error().code != EAGAIN) return pass(loan);
        continue;
      }
      helper.loan_ = *loan;
      ++helper.borrowed_;
      lent = true;
    }
    if (!lent) continue;

    // The stub is on its way and nobody can call it back: it is waited for, whatever the deadline.
    const Clock::time_point give_up = Clock::now() + std::chrono::seconds(10);
    Shared shared = {};
    Pace pace;
    while (!target.read(*pages, std::as_writable_bytes(std::span(&shared, 1))) ||
           shared.created == 0) {
      if (Clock::now() > give_up) {
        return fail_at_rest(
            target, fail(ETIMEDOUT, "the thread that was borrowed from process %d does not run",
                         target.pid())
                        .value());
      }
      if (target.has_ended()) return fail(ESRCH, "process %d has ended", target.pid());
      pace.wait();
    }
    helper.pages_ = *pages;
    helper.last_ = Clock::now();
    if (shared.create_result != 0) {
      // No thread, so nobody unmaps the pages: they stay.
      helper.pages_ = 0;
      return fail_errno(static_cast<int>(shared.create_result),
                        "process %d cannot have one thread more", target.pid());
    }
    return helper;
  }
}

Helper::~Helper() {
  if (pages_ == 0) return;
  if (Clock::now() - last_ > command_pause) return;
  const std::uint64_t none = 0;
  const std::uint32_t next = command_ + 1;
  if (!target_->write(pages_ + offsetof(Shared, function), bytes_of(none)) ||
      !target_->write(pages_ + offsetof(Shared, command), bytes_of(next))) {
    return;
  }
  Shared shared;
  Pace pace;
  constexpr int looks = 5'000;
  for (int i = 0; i < looks && target_->read(pages_, std::as_writable_bytes(std::span(&shared, 1)));
       ++i) {
    pace.wait();
  }
}

Result<std::uint64_t> Helper::call(std::uint64_t function,
                                   std::initializer_list<std::uint64_t> arguments,
                                   Clock::time_point deadline) {
  if (Clock::now() - last_ > command_pause) {
    return fail(ETIMEDOUT, "the helper in process %d was kept waiting", target_->pid());
  }
  struct Call {
    std::uint64_t function;
    std::uint64_t arguments[6];
  } call = {};
  call.function = function;
  std::copy(arguments.begin(), arguments.end(), call.arguments);
  const std::uint32_t next = ++command_;
  if (!target_->write(pages_ + offsetof(Shared, function), bytes_of(call)) ||
      !target_->write(pages_ + offsetof(Shared, command), bytes_of(next))) {
    return fail(ESRCH, "process %d has ended", target_->pid());
  }
  deadline = std::max(deadline, Clock::now() + least_for_a_call);
  Shared shared = {};
  Pace pace;
  for (;;) {
    if (!target_->read(pages_, std::as_writable_bytes(std::span(&shared, 1)))) {
      return fail(ESRCH, "process %d has ended", target_->pid());
    }
    if (shared.done == next) break;
    if (Clock::now() > deadline) {
      last_ = {};
      return fail(ETIMEDOUT, "a call in process %d takes too long", target_->pid());
    }
    pace.wait();
  }
  last_ = Clock::now();
  return shared.result;
}

std::uint64_t Helper::put(std::span<const std::byte> bytes) {
  const std::size_t room = (bytes.size() + 15) & ~std::size_t{15};
  if (text_used_ + room > pages_bytes) return 0;
  const std::uint64_t at = pages_ + text_used_;
  if (!target_->write(at, bytes)) return 0;
  text_used_ += room;
  return at;
}

std::uint64_t Helper::put(std::string_view text) {
  std::vector<std::byte> bytes(text.size() + 1);
  std::memcpy(bytes.data(), text.data(), text.size());
  return put(bytes);
}

}  // namespace molt::attach
