// Who is running, and how to end it: what every part of the engine knows.
#pragma once

#include <cstring>
#include <string>

#include "emu/engine.h"

namespace gankernels::emu {

constexpr int kMaxThreads = 1024, kLanes = 32, kMaxWarps = kMaxThreads / kLanes;

struct Current {
  const char* kernel = "";
  int block = 0, thread = 0;
};
inline Current current;

// An error ends the launch.
struct Error {
  std::string text;
};

inline std::string text_of(const Where& where) {
  const char* slash = std::strrchr(where.file_name(), '/');
  return std::string(slash ? slash + 1 : where.file_name()) + ":" + std::to_string(where.line());
}

[[noreturn]] inline void fail(const std::string& text, const Where& where) {
  throw Error{std::string(current.kernel) + ": " + text + " at " + text_of(where) + ", thread " +
              std::to_string(current.thread) + " of block " + std::to_string(current.block)};
}

#if defined(GANKERNELS_TSAN)
extern "C" {
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#endif

// ThreadSanitizer watches memmove and delete in the engine, too, where fibers take turns.
struct Unwatched {
#if defined(GANKERNELS_TSAN)
  Unwatched() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unwatched() {
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
  }
#else
  Unwatched() {}
#endif
};

}  // namespace gankernels::emu
