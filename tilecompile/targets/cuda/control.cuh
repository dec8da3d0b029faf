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
    return {c.mail.position, c.mail.count, c.mail.max_new, c.mail.logits != 0,
            c.mail.drafts, c.generated, c.drafted, aborted};
  }
  TC_DEVICE Limits limits() const {
    return {c.programs, w.l.first_program, w.l.vocab, w.l.max_seq_len, w.l.stop_count};
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
    return token < c.generated ? c.newest[token - c.newest_begin] : c.drafts[token - c.generated];
  }

  // Starts the next step, and says what follows it if that is known; of a request that is to end it is not.
  TC_DEVICE void start(const Next& next, bool ending) const {
    c.step = {};
    describe(c.step, next, ++c.runs[next.program], ++c.sequence);
    if (!ending) c.step.follower = known_follower(c.step, asked(), limits());
    const uint32_t first = next.position + shift_of(c.programs[next.program]);
    TC_ROLLED for (uint32_t i = 0; i < next.tokens; ++i) store(at<int32_t>(w.l.ids) + i, id_at(first + i));
    store(at<int32_t>(w.l.position), int32_t(next.position));
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
    c.generated = c.drafted = 0;
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

  // The sink: every other instruction of the step is done. Takes what was sampled, and starts what comes next.
  TC_DEVICE void commit(const Step& s) const {
    const Mailbox* mail = at<Mailbox>(w.l.mailbox);
    const bool ending = poll(&mail->abort, true) == c.request || poll(&mail->stop, true);
    const Asked now = asked(ending && s.follower == NONE);  // what was announced follows: loaders may be at it
    store_relaxed_sys(reinterpret_cast<uint32_t*>(&status().steps), ++c.steps);
    const int32_t* sampled = at<int32_t>(c.programs[s.program].next);
    const Next next = decide(
        s, now, limits(), [&](uint32_t row) { return c.sampled[row] = load(sampled + row); },
        [&](uint32_t i) { return c.drafts[i]; }, [&](uint32_t i) { return load(at<int32_t>(w.l.stops) + i); });
    if (next.taken) {
      TC_ROLLED for (uint32_t i = 0; i < next.taken; ++i) c.newest[i] = c.sampled[next.row + i];
      c.newest_begin = c.generated;
      c.generated += next.taken;
    }
    if (next.drafted > c.drafted) c.drafts[c.drafted] = draft_of(limits(), load(sampled + next.row));
    c.drafted = next.drafted;
    if (next.reason == NO_REASON) start(next, ending);  // first: the host can wait, the devices can't
    const bool drafts = c.programs[s.program].drafts;
    if (!drafts) store_relaxed_sys(&status().fed, fed_of(now, s.context));
    count_to(status().program_steps[s.program], ++c.program_steps[s.program]);
    if (extends(limits(), s, c.extended)) count_to(status().extended, c.extended = s.context);
    TC_ROLLED for (uint32_t d = 0; !drafts && next.taken && d < now.drafted; ++d) {
      count_to(status().proposed[d], ++c.proposed[d]);
      if (d + 1 < next.taken) count_to(status().accepted[d], ++c.accepted[d]);
    }
    if (next.taken) {
      TC_ROLLED for (uint32_t i = 0; i < next.taken; ++i)
        store_relaxed_sys(at<uint32_t>(w.l.tokens) + c.newest_begin + i, uint32_t(c.newest[i]));
      store_release_sys(&status().generated, c.generated);
    }
    if (next.reason != NO_REASON) finish(next.reason);
  }
};

}  // namespace tc
