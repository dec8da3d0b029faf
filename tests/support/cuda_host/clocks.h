// Vector clocks, and what carries them between warps.
#pragma once
#include <cmath>
#include <cstdint>
#include <vector>

namespace host {

constexpr int MOST_AGENTS = 256, MOST_DEVICES = 2;

// How much of each agent's past is known.
struct Clock {
  uint32_t at[MOST_AGENTS] = {};
  void join(const Clock& other) {
    for (int i = 0; i < MOST_AGENTS; ++i) at[i] = at[i] < other.at[i] ? other.at[i] : at[i];
  }
};

// What releases have put on a word, by the device that they came from: at device scope and at system scope.
struct Released {
  Clock gpu[MOST_DEVICES], sys[MOST_DEVICES];
};

struct Access {
  uint32_t agent, time;
};
// The last write of a word and the reads since.
struct Shadow {
  Access write = {0, 0};
  bool atomic = false;
  std::vector<Access> reads;
};

struct Mbarrier {
  uint32_t arrivals, pending, phase = 0, agent = 0;
  int64_t bytes = 0;
  Clock now, done;
};

struct Barrier {
  uint32_t arrived = 0;
  Clock clock;
  std::vector<int> waiting;
};

struct Copy {
  char* to;
  const char* from;
  uint32_t bytes;
  uint64_t* barrier;
  Clock clock;
};

}  // namespace host
