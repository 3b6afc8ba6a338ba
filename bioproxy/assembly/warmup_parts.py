"""The part of the wiring diagram that knows prompts: which ones there are, and what is done while no user waits.

Four kinds of parts meet here.  Some know *texts and prompts*: the poller, what was learned, the catalogue of both.
One *decides* and changes nothing: the schedule.  Some *do* one piece of work and decide nothing: the warm-up, the head
start.  And the warmer puts them together.  So a decision can be tested without a llama-server, and a piece of work
without waiting for the moment when it is due.

On Twisted: the work goes on in *rounds*, which a `Periodic` calls: a timer that calls a coroutine, and is set again
only when that coroutine has ended.  The one of the poller is made here, because a reload may change its interval; all
others are made in `bioproxy.assembly.assemble`.

Making a part does nothing else: no file is read, nothing is sent, no timer is set.  Does not know requests, but for the
reader, which a head start needs as well.
"""

from __future__ import annotations

from typing import Any

from bioproxy.assembly.outside import Outside
from bioproxy.assembly.parts import SlotParts, WarmupParts
from bioproxy.assembly.sharing import assemble_sharing
from bioproxy.assembly.slot_parts import learned_from
from bioproxy.learning.prompt_learning import PromptLearning
from bioproxy.learning.shape_learning import ShapeLearning
from bioproxy.llama.prefix_tokens import Prefixes
from bioproxy.prompts.catalogue import Catalogue
from bioproxy.prompts.learned_prompts import LearnedPrompts
from bioproxy.prompts.template_poller import TemplatePoller
from bioproxy.proxy.request_reader import RequestReader
from bioproxy.runtime.periodic import Periodic
from bioproxy.settings.configuration import Settings
from bioproxy.warmup.attempts import Attempts
from bioproxy.warmup.forgetting import Forgetting
from bioproxy.warmup.head_start import HeadStart
from bioproxy.warmup.head_start_evaluation import HeadStartEvaluation
from bioproxy.warmup.idle_work import IdleWork
from bioproxy.warmup.last_talk import LastTalk
from bioproxy.warmup.prompt_tokens import PromptTokens
from bioproxy.warmup.readiness import Readiness
from bioproxy.warmup.resume import Resume
from bioproxy.warmup.schedule import Schedule
from bioproxy.warmup.warmer import Warmer
from bioproxy.warmup.warmup import Warmup


def assemble_warmups(settings: Settings, reactor: Any, outside: Outside, lower: SlotParts) -> WarmupParts:
    """Make the parts that know prompts, above the `lower` ones, which know the slot.

    `settings` are those of the start.  `reactor` is Twisted's reactor, or a clock that a test advances by hand.
    `outside` has the threads that read templates and the process that parses large requests.

    An arrow means "knows and calls"::

        Warmer ---> Schedule ----> Catalogue --> TemplatePoller, LearnedPrompts
             |----> Attempts ----> Warmup --> Gate, Slot, Resume
             |----> HeadStart ---> LastTalk, HeadStartEvaluation --> Warmup
             |----> IdleWork                     what else an idle slot is good for
             |----> Readiness                    how warm each prompt is
             `----> Forgetting                   all parts that know something of a prompt
    """
    # Short names for what is used more than once below.
    metrics, speed, llama = lower.metrics, lower.speed, lower.llama
    gate, slot, watch = lower.gate, lower.slot, lower.watch

    # The poller knows texts, the catalogue knows prompts (a text in the shape in which clients send it), the schedule
    # knows which prompt is due, and the warmer does it.
    poller = TemplatePoller(settings.templates, outside.in_thread, metrics)
    # The rounds come every few seconds, and a reload may change how many.  A thread reads what has changed.
    polling = Periodic(reactor, settings.poll_interval, poller.poll, "poller")
    # What clients put before a template, learned from their first questions.  It is kept in a file, which is read when
    # the services start.
    shape_learning = ShapeLearning(lower.state)
    # The catalogue asks for the shape each time, because clients may change it with any question.
    # Beside the templates it has what was learned from requests.  That is kept in files only, and where bioproxy cannot
    # see the folder, it could not remove them either.
    minimum = learned_from(settings)
    learned = LearnedPrompts(lower.state)
    # Decides which beginnings of requests become prompts.  It asks llama-server for tokens only while nobody waits, and
    # only while llama-server is up.
    prompt_learning = PromptLearning(learned, llama, watch, reactor, minimum)
    # What other bioproxies have computed.  Without `shared_shelf` it does nothing, and nobody has to ask.
    shared = assemble_sharing(settings, lower, reactor, outside)
    # An arrow that goes upwards: the learning must know what others have found worth a file, and knows no shelf.
    prompt_learning.shelf_tokens = shared.prompt_tokens
    catalogue = Catalogue(poller, shape_learning.shape, learned)
    # `ahead` is whether prompts are warmed up before anybody has asked for them (`warmup`).  What it must know of the
    # gate is one number, for how long no user was there, and of the shelf one answer; so it gets functions for these.
    schedule = Schedule(
        catalogue,
        shape_learning,
        slot,
        watch,
        reactor,
        ahead=settings.warmup,
        idle_seconds=gate.stats.idle_seconds,
        learns=minimum is not None,
        is_computed_elsewhere=shared.is_computed_elsewhere,
    )
    # What need not be computed again, because a file has it; warm-ups and head starts both begin with that.
    resume = Resume(slot, llama)
    # The schedule decides and changes nothing; the warm-up does one piece of work and decides nothing.  The warmer puts
    # them together.  It gets the gate as well, because it must not begin anything while a user is there.
    warmup = Warmup(gate, slot, resume, metrics, speed, reactor, settings.warmup_chunk)
    # Its tokens are remembered, so that a warm-up that is interrupted again and again has them made once.
    prompt_tokens = PromptTokens(Prefixes(llama), watch, settings.learn_minimum)
    # Another one: before a question the slot may be cut back to exactly its prompt, for which the tokens must be known.
    slot.facts.tokens_of = prompt_tokens.remembered
    # Large bodies are parsed in another process.  In tests `elsewhere` is a plain call, so that they need no process.
    reader = RequestReader(poller, outside.elsewhere, settings.max_body, minimum)
    # Reads a conversation once more when it was answered, to guess how it goes on. That is two parts: one looks after
    # each answer whether a head start is worth its time, the other one carries it out. It uses the warm-up's size of
    # pieces, so that a user who comes waits for no longer than for a warm-up.
    evaluation = HeadStartEvaluation(gate, slot, resume, watch, warmup, speed)
    last_talk = LastTalk(metrics, settings.head_start)
    head_start = HeadStart(last_talk, gate, slot, llama, watch, evaluation, reactor, reader.read)
    # What is told of prompts, and what is to be done when one of them goes.
    counts = prompt_tokens.counts
    readiness = Readiness(catalogue, schedule, slot, warmup, shape_learning, prompt_learning, metrics, counts)
    forgetting = Forgetting(prompt_learning, schedule, warmup, slot, counts)
    # Saves what would be lost, and puts back what was in the slot, when nothing is due.
    idle_work = IdleWork(catalogue, schedule, prompt_tokens, gate, slot, watch, lower.snapshots.flush_uses)
    # One try of one prompt, and what comes of it.
    attempts = Attempts(
        schedule,
        catalogue,
        shape_learning,
        prompt_tokens,
        warmup,
        idle_work,
        shared,
        gate,
        slot,
        forgetting,
        metrics,
        reactor,
    )
    # Twice a second the warmer asks the others, in this order: is there something to be learned, is a head start
    # possible, is a prompt due, is there anything else that an idle slot is good for?  Computing happens inside the
    # gate, where a user's arrival cancels it.
    warmer = Warmer(schedule, prompt_learning, attempts, head_start, idle_work, readiness, forgetting, gate, watch)
    # The slot's shelf removes files, and does not know who would make them again.
    lower.shelf.removed = forgetting.file_removed
    # By name, since the order of so many could be mistaken.  The parts that are only used by these, such as `Prefixes`
    # and the evaluation of head starts, are in no table.
    return WarmupParts(
        poller=poller,
        polling=polling,
        shape_learning=shape_learning,
        learned=learned,
        prompt_learning=prompt_learning,
        shared=shared,
        catalogue=catalogue,
        schedule=schedule,
        prompt_tokens=prompt_tokens,
        warmup=warmup,
        reader=reader,
        last_talk=last_talk,
        warmer=warmer,
        readiness=readiness,
        forgetting=forgetting,
    )
