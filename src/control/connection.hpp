// connection.hpp - one client of the control socket: bytes in, messages out of them, replies back.
//
// Everything here runs on the `molt` thread and never blocks. What a client may make the process
// keep: one request that is not complete (64 KiB and what one read brings), one file, one reply.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/fd.hpp"
#include "base/log.hpp"
#include "control/request.hpp"

namespace molt::control {

// Cuts the stream of bytes into messages, and finds out which of them a file belongs to.
class Inbox {
 public:
  enum class Next { none, message, too_long };
  struct Message {
    std::string text;
    Fd file;
  };

  // `file` came with the last of these bytes, as the kernel delivers it: a read ends behind the bytes
  // that a file was sent with. The second file of one message is closed.
  void append(const char* bytes, std::size_t count, Fd file);
  // Whether a decision can be made: a message is complete, or too long ever to be.
  bool is_ready() const;
  Next take(Message& message);
  bool is_empty() const { return bytes_.empty(); }

 private:
  std::string bytes_;
  std::size_t searched_ = 0;  // no terminator before here
  Fd file_;
  std::size_t file_at_ = 0;  // of the byte that it came with
};

// An operation of a client, on its way to a worker and back.
struct Job;

class Connection {
 public:
  Connection(std::uint64_t id, Fd socket, log::Requester peer);

  std::uint64_t id() const { return id_; }
  int socket() const { return socket_.get(); }
  const log::Requester& peer() const { return peer_; }
  const std::shared_ptr<Session>& session() const { return session_; }

  // Reads once. Whether anything came; look at has_request() and is_over() then.
  bool receive();
  // Writes what is left of the replies, as far as the client takes it.
  void flush();
  // Adds a reply (the terminator is added here) and flushes. Only when nothing is unsent.
  void send(std::string_view reply);
  // Nothing more is read; over as soon as everything is sent.
  void finish() { is_finishing_ = true; }
  void drop() { is_broken_ = true; }

  bool is_over() const;
  bool has_unsent() const { return sent_ < unsent_.size(); }
  // Whether the next request may be taken: one is there, and the last one is answered.
  bool has_request() const;
  Inbox::Next take_request(Inbox::Message& message) { return inbox_.take(message); }
  bool wants_input() const;
  // Nothing is under way or unsent; half a request at most has come.
  bool is_idle() const;

  // When the client has to have got on with what it has begun; far away if it has not begun.
  Deadline patience(int partial_ms, int unread_ms) const;
  std::int64_t last_active_ns() const { return active_ns_; }

  std::shared_ptr<Job> job;   // under way, or null
  bool is_streaming = false;  // events for ever
  bool is_behind = false;     // there are more events than fitted into the last reply
  std::uint64_t next_event = 0;
  std::uint32_t interest = 0;  // what epoll was told

 private:
  const std::uint64_t id_;
  const Fd socket_;
  const log::Requester peer_;
  const std::shared_ptr<Session> session_ = std::make_shared<Session>();

  Inbox inbox_;
  std::string unsent_;
  std::size_t sent_ = 0;
  bool has_ended_ = false;  // the client will send nothing more
  bool is_finishing_ = false;
  bool is_broken_ = false;
  std::int64_t active_ns_;       // bytes came or went
  std::int64_t partial_ns_ = 0;  // the first byte of the incomplete request came
};

}  // namespace molt::control
