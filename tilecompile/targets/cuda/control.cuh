// The commit task and the mailbox: one thread of the controller's block takes requests and decides what follows a step.
#pragma once

namespace tc {

struct Controller {
  const Worker& w;
  Control& c;

  TC_DEVICE Status& status() const { return *at<Status>(w.l.status); }

  // Notes a count where the host reads it.
  TC_DEVICE static void count_to(uint32_t& where, uint32_t count) { store_relaxed_sys(&where, count); }

  // The request, as the rules see it.
  TC_DEVICE Asked asked(bool aborted = false) const {
    const uint32_t drafts = c.mail.drafts == AUTO_DRAFTS ? c.depth.depth() : c.mail.drafts;
    return {c.mail.position, c.mail.count, c.mail.max_new, c.mail.logits != 0, drafts, c.generated, c.drafted, aborted};
  }
  TC_DEVICE Limits limits() const {
    return {c.programs, w.l.first_program, w.l.vocab, w.l.max_seq_len, c.mail.samples ? c.mail.stop_count : w.l.stop_count};
  }
  TC_DEVICE int32_t stop_id(uint32_t i) const {
    return load(c.mail.samples ? at<Sampling>(w.l.sampling)->stops + i : at<int32_t>(w.l.stops) + i);
  }

  // Publishes the record of the next step to all devices; the step before it is complete.
  TC_DEVICE void publish() const {
    const uint32_t n = c.sequence;
    // Who sees a part of this record also sees the number of the step before.
    fence(w.several);
    TC_ROLLED for (uint32_t d = 0; d < w.l.devices; ++d) {
      uint32_t* to = reinterpret_cast<uint32_t*>(&w.board_of(d).steps[n % 2]);
      for (uint32_t i = 0; i < sizeof(Step) / 4; ++i)
        store_relaxed_sys(to + i, reinterpret_cast<const uint32_t*>(&c.step)[i]);
    }
    fence(w.several);
    TC_ROLLED for (uint32_t d = 0; d < w.l.devices; ++d) store_relaxed_sys(&w.board_of(d).sequence, n);
  }

  // The id at a position: of the prompt, of the tokens that were taken last, or of the round's drafts.
  TC_DEVICE int32_t id_at(uint32_t position) const {
    const uint32_t i = position - c.mail.position;
    if (i < c.mail.count) return load(at<int32_t>(c.mail.ids) + i);
    const uint32_t token = i - c.mail.count;
    return token < c.generated ? c.recent[token % RECENT] : c.drafts[token - c.generated];
  }

  // Makes `counts` those before a step whose first id is at `position`; see targets/cpu/sampling.h. A step is never
  // further from the one before it than the tokens at hand reach.
  TC_DEVICE void count_before(uint32_t position) const {
    const uint32_t before = position < c.mail.text_begin ? 0 : position - c.mail.text_begin;
    const uint32_t until = before < c.generated ? before : c.generated;
    int32_t* const counts = at<int32_t>(w.l.counts);
    TC_ROLLED for (; c.counted < until; ++c.counted) {
      int32_t* const count = counts + c.recent[c.counted % RECENT];
      store(count, load(count) + 2);
    }
    TC_ROLLED for (; c.counted > until; --c.counted) {
      int32_t* const count = counts + c.recent[(c.counted - 1) % RECENT];
      store(count, load(count) - 2);
    }
  }

  // Starts the next step, and says what follows it if that is known; of a request that is to end it is not.
  TC_DEVICE void start(const Next& next, bool ending) const {
    c.step = {};
    describe(c.step, next, ++c.runs[next.program], ++c.sequence);
    if (!ending) c.step.follower = known_follower(c.step, asked(), limits());
    const uint32_t first = next.position + shift_of(c.programs[next.program]);
    TC_ROLLED for (uint32_t i = 0; i < next.tokens; ++i) store(at<int32_t>(w.l.ids) + i, id_at(first + i));
    store(at<int32_t>(w.l.position), int32_t(next.position));
    if (c.mail.counted) count_before(first);
    publish();
  }

  // Ends the kernel, in the place of a next step.
  TC_DEVICE void stop() const {
    c.step = {};
    c.step.sequence = ++c.sequence;
    c.step.program = NONE;
    publish();
  }

  TC_DEVICE void finish(uint32_t why) const {
    c.running = 0;
    store_relaxed_sys(&status().reason, why);
    store_release_sys(&status().state, IDLE);
  }

  // Between requests: starts the next one, or ends the kernel.
  TC_DEVICE void poll_mailbox() const {
    const Mailbox* mail = at<Mailbox>(w.l.mailbox);
    if (load_acquire_sys(&mail->stop)) return stop();
    const uint32_t request = load_acquire_sys(&mail->submitted);
    if (request == c.request) return;
    c.mail = load(mail);
    c.request = request;
    c.running = 1;
    c.generated = c.drafted = c.counted = 0;
    c.depth.begin(most_drafts(limits()));
    c.committed = nanoseconds();
    count_to(status().extended, c.extended = c.mail.position);
    TC_ROLLED for (int p = 0; p < int(MAX_PROGRAMS); ++p) count_to(status().program_steps[p], c.program_steps[p] = 0);
    TC_ROLLED for (int d = 0; d < int(MAX_DRAFTS); ++d) {
      count_to(status().proposed[d], c.proposed[d] = 0);
      count_to(status().accepted[d], c.accepted[d] = 0);
    }
    store_relaxed_sys(&status().fed, 0);
    store_relaxed_sys(&status().generated, 0);
    store_relaxed_sys(&status().reason, NO_REASON);
    store_relaxed_sys(&status().state, RUNNING);
    store_release_sys(&status().request, request);
    start(first_step(asked(), limits()), false);
  }

  // While a request is paused: goes on with it once the host has written the next mask.
  TC_DEVICE void poll_mask() const {
    const Mailbox* mail = at<Mailbox>(w.l.mailbox);
    const bool ending = poll(&mail->abort, true) == c.request || poll(&mail->stop, true);
    if (!ending && load_acquire_sys(&mail->allowed) != c.pauses) return;
    c.paused = 0;
    if (ending) return finish(ABORTED);
    store_relaxed_sys(&status().state, RUNNING);
    start(c.next, false);
  }

  // The sink: every other instruction of the step is done. Decides what follows, which only reads memory.
  TC_DEVICE void settle(const Step& s) const {
    const Mailbox* mail = at<Mailbox>(w.l.mailbox);
    c.ending = poll(&mail->abort, true) == c.request || poll(&mail->stop, true);
    c.now = asked(c.ending && s.follower == NONE);  // what was announced follows: loaders may be at it
    const int32_t* sampled = at<int32_t>(c.programs[s.program].next);
    c.next = decide(
        s, c.now, limits(), [&](uint32_t row) { return c.sampled[row] = load(sampled + row); },
        [&](uint32_t i) { return c.drafts[i]; }, [&](uint32_t i) { return stop_id(i); });
  }

  // Notes how long the step took, and what became of the drafts that it verified.
  TC_DEVICE void learn(const Step& s) const {
    if (c.mail.drafts != AUTO_DRAFTS) return;
    const uint64_t before = c.committed, ns = (c.committed = nanoseconds()) - before;
    c.depth.ran(s, c.programs[s.program], c.now.drafted, c.next.taken ? c.next.taken - 1 : 0, ns ? double(ns) : 1.0);
  }

  // The draft that the step has sampled, or what takes its place.
  TC_DEVICE int32_t new_draft(const Step& s) const {
    const int32_t* sampled = at<int32_t>(c.programs[s.program].next) + c.next.row;
    return draft_of(limits(), load(c.mail.script ? at<int32_t>(c.mail.script) + c.generated + c.drafted : sampled));
  }

  // Takes what the step sampled, and starts what comes next.
  TC_DEVICE void commit(const Step& s) const {
    const Next& next = c.next;
    const uint32_t first = c.generated;
    store_relaxed_sys(reinterpret_cast<uint32_t*>(&status().steps), ++c.steps);
    TC_ROLLED for (uint32_t i = 0; i < next.taken; ++i) c.recent[c.generated++ % RECENT] = c.sampled[next.row + i];
    if (next.drafted > c.drafted) c.drafts[c.drafted] = new_draft(s);
    c.drafted = next.drafted;
    learn(s);
    c.paused = next.reason == NO_REASON && next.taken && c.mail.masks;
    if (next.reason == NO_REASON && !c.paused) start(next, c.ending);  // first: the host can wait, the devices can't
    const bool drafts = c.programs[s.program].drafts;
    if (!drafts) store_relaxed_sys(&status().fed, fed_of(c.now, s.context));
    count_to(status().program_steps[s.program], ++c.program_steps[s.program]);
    if (extends(limits(), s, c.extended)) count_to(status().extended, c.extended = s.context);
    TC_ROLLED for (uint32_t d = 0; !drafts && next.taken && d < c.now.drafted; ++d) {
      count_to(status().proposed[d], ++c.proposed[d]);
      if (d + 1 < next.taken) count_to(status().accepted[d], ++c.accepted[d]);
    }
    if (next.taken) {
      TC_ROLLED for (uint32_t i = first; i < c.generated; ++i)
        store_relaxed_sys(at<uint32_t>(w.l.tokens) + i, uint32_t(c.recent[i % RECENT]));
      store_release_sys(&status().generated, c.generated);
    }
    if (next.reason != NO_REASON) finish(next.reason);
    if (c.paused) {
      store_release_sys(&status().pauses, ++c.pauses);
      store_release_sys(&status().state, PAUSED);
    }
  }
};

}  // namespace tc
