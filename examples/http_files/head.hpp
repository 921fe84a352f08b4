// head.hpp - what is sent with a file: the part of the server that examples/patches/ replaces live.
//
// A function can be replaced where it is called, not where the compiler has built it in: a livepatch
// written by hand names functions that lie in a file of their own here. `molt build` makes patches that
// know what was inlined where.
#pragma once

// Exported: new versions call some of it.
namespace http_files __attribute__((visibility("default"))) {

  struct Head {
    const char* type;      // Content-Type
    const char* sniffing;  // X-Content-Type-Options; null: none
  };

  // Of a file, by its name.
  const char* media_type(const char* path);

  // Fills in the head. A file that is not there is waited for, at most `patience_s`.
  void compose_head(int root, const char* path, int patience_s, Head* head);

  // Sleeps until somebody has PUT that file; at most so long.
  void await_file(int root, const char* path, int patience_s);
  // A file has been written.
  void announce_file();

}  // namespace )
