"""Mistakes planted in a copy of the GPU loop's text, to show that the tests find them."""

from __future__ import annotations

COUNTER = "      add_release(counter_of(notify.counter), notify.counter & REMOTE);"
BUGS = {
    "acquire missing": [("if (uint32_t(lane()) < count) fence", "if (!BUG && uint32_t(lane()) < count) fence")],
    "early slot release": [
        ("    return slots +", "    if (BUG && lane() == 0) mbarrier_arrive(empty + place.stage);\n    return slots +"),
        ("if (lane() == 0) mbarrier_arrive(empty", "if (!BUG && lane() == 0) mbarrier_arrive(empty"),
    ],
    "wrong phase": [
        ("mbarrier_try(full + place.stage, place.parity)", "mbarrier_try(full + place.stage, BUG ? 0 : place.parity)")
    ],
    "threshold off by one": [("load(&step.run) * wait.count,", "load(&step.run) * wait.count - BUG,")],
    "counter not advanced": [(COUNTER, "      if (!BUG || i + 1 < count)" + COUNTER)],
    "device scope between devices": [("notify.counter & REMOTE);", "!BUG && (notify.counter & REMOTE));")],
    "no barrier before notifying": [
        ("    meet();\n    if (warp() == 0) notify", "    if (!BUG) meet();\n    if (warp() == 0) notify")
    ],
    "loader a step behind": [
        ("if (lane() == 0) w.await_agent(&w.b.passed", "if (!BUG && lane() == 0) w.await_agent(&w.b.passed")
    ],
    "loader doesn't acquire": [("fence(run.counter & REMOTE)", "if (!BUG) fence(run.counter & REMOTE)")],
    "full ring overwritten": [("while (!mbarrier_try(w.b.empty", "while (!BUG && !mbarrier_try(w.b.empty")],
    "step published without a release": [
        (
            "    fence(w.several);\n    TC_ROLLED for (uint32_t d = 0; d < w.l.devices; ++d) store",
            "    if (!BUG) fence(w.several);\n    TC_ROLLED for (uint32_t d = 0; d < w.l.devices; ++d) store",
        )
    ],
    "one epoch for all programs": [("++c.runs[next.program]", "++c.runs[BUG ? 0 : next.program]")],
    "tokens read after the next step has begun": [
        (
            "uint32_t(c.recent[i % RECENT]));",
            "uint32_t(BUG ? load(at<int32_t>(c.programs[s.program].next) + next.row + i - first)"
            " : c.recent[i % RECENT]));",
        )
    ],
    "another program begun with what was fetched": [
        ("if (now != program &&", "if ((!BUG || program == NONE) && now != program &&")
    ],
    "a record overwritten under the loader": [
        ("if (w.l.only_program == NONE)  //", "if (!BUG && w.l.only_program == NONE)  //")
    ],
    "loader in the first program": [
        ("program = load(&w.b.steps[steps % 2].program);", "program = BUG ? 0 : load(&w.b.steps[steps % 2].program);")
    ],
    "a follower that isn't known": [
        (
            "if (!ending) c.step.follower = known_follower(c.step, asked(), limits());",
            "if (!ending) c.step.follower = BUG ? next.program : known_follower(c.step, asked(), limits());",
        )
    ],
    "an abort in the place of an announced step": [
        ("asked(c.ending && s.follower == NONE)", "asked(c.ending && (BUG || s.follower == NONE))")
    ],
    "the follower of a record that isn't there yet": [
        ("if (!await_step(steps - 1)) return false;", "if (!BUG && !await_step(steps - 1)) return false;")
    ],
    "only the first of a step's ids": [("i < next.tokens; ++i)", "i < (BUG ? 1 : next.tokens); ++i)")],
    "only the first row of logits": [
        ("count * w.l.vocab; i += CONSUMERS", "(BUG ? 1 : count) * w.l.vocab; i += CONSUMERS")
    ],
    "expert chosen without its event": [("      if (!w.await(run.counter", "      if (!BUG && !w.await(run.counter")],
    "a mask isn't waited for": [("->allowed) != c.pauses) return;", "->allowed) != c.pauses - BUG) return;")],
    "the model's draft in the place of the script's": [("load(c.mail.script ?", "load(!BUG && c.mail.script ?")],
    "copies outlive the block": [
        (
            "while (!mbarrier_try(w.b.full + place.stage, place.parity ^ 1))",
            "while (!BUG && !mbarrier_try(w.b.full + place.stage, place.parity ^ 1))",
        )
    ],
}
PLANTED = list(BUGS)[:5]
"""The mistakes that any such protocol must be safe from; the others are this loop's own."""


def planted(text: str) -> str:
    """The headers with all the mistakes, each made only while it is chosen."""
    for number, changes in enumerate(BUGS.values(), 1):
        for old, new in changes:
            assert text.count(old) == 1, old
            text = text.replace(old, new.replace("BUG", f"(host::bug == {number})"))
    return text
