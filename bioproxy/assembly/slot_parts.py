"""The lower half of the wiring diagram: from the metrics up to llama-server's slot.

Who knows whom can be read off the calls below.  The order is forced: a part gets what it needs in its constructor, so
that must have been made before.  This is why there are no circles, and why no part can be used half made.

One arrow goes the other way.  The watch notices first that llama-server has fallen asleep or is another process, and
the slot has to hear of it; but the watch belongs to the layer of llama-server, which does not know slots.  So the watch
only knows `Listeners`, plain functions with names for what happened, and they are connected to the slot here.  Twisted
uses the same means wherever something happens later: code that wants to know hands in a function.

Making a part does nothing else: no file is read or written, nothing is sent, no timer is set.  Does not know what the
slot is used for (`bioproxy.assembly`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

from bioproxy.assembly.outside import Outside
from bioproxy.assembly.parts import SlotParts
from bioproxy.gate.gate import Gate
from bioproxy.llama.api import LlamaApi
from bioproxy.llama.model_identity import ModelIdentity
from bioproxy.llama.process_watch import Listeners, ProcessWatch
from bioproxy.llama.speed import Speed
from bioproxy.llama.upstream import Upstream
from bioproxy.operator.advice import of_trouble
from bioproxy.operator.inspection import Advisor
from bioproxy.runtime.metrics import Metrics
from bioproxy.runtime.state_folder import StateFolder
from bioproxy.settings.api_keys import ApiKeys
from bioproxy.settings.configuration import Settings
from bioproxy.slot.content import SlotContent
from bioproxy.slot.conversation_saver import ConversationSaver
from bioproxy.slot.parking import Parking
from bioproxy.slot.slot import Slot
from bioproxy.slot_files.files import SlotFiles
from bioproxy.slot_files.folder import SlotFolder
from bioproxy.slot_files.loading import FileLoader
from bioproxy.slot_files.record import SnapshotRecord
from bioproxy.slot_files.reuse_check import ReuseCheck
from bioproxy.slot_files.saving import FileSaver
from bioproxy.slot_files.shelf import Shelf


def assemble_slot(settings: Settings, reactor: Any, outside: Outside) -> SlotParts:
    """Make the parts up to the slot.

    `settings` are those of the start.  `reactor` is Twisted's reactor, or a clock that a test advances by hand.
    `outside` is the way to llama-server and to its disk.

    An arrow means "knows and calls"::

        ProcessWatch --> LlamaApi, ModelIdentity, Upstream (to give up)
        Slot ----------> SlotContent ------> LlamaApi    what the slot holds
             |---------> ConversationSaver > SlotFiles   what is worth a save
             |---------> SlotFiles --------> FileSaver, FileLoader, Shelf
             |---------> Parking ----------> LlamaApi    what no file has
             `---------> ReuseCheck                      whether it helped
        FileSaver, FileLoader, Shelf ------> LlamaApi, SnapshotRecord, SlotFolder
        LlamaApi ------> Upstream ---------> the network
    """
    # The metrics have a registry of their own instead of prometheus-client's global one, so that two bioproxies in one
    # process, as in tests, do not count together.
    metrics = Metrics()
    # Neither reads its files yet: keys may belong to root, and the folder is locked first (`bioproxy.service`).
    keys = ApiKeys(settings.api_key_file, settings.llama_api_key_file)
    # (Records are small files here; slot files, which are large, are in llama-server's own folder.)
    state = StateFolder(settings.state_dir)

    # Every byte to llama-server goes through this one `Upstream`, so it can end all of them when llama-server is
    # unresponsive.  `LlamaApi` is the same, for bioproxy's own calls, with names for what they mean.
    # It gets the keys because bioproxy's own calls need the key of llama-server, and always the latest one: a reload
    # may bring another.
    upstream = Upstream(settings.llama_url, outside.agents, reactor, keys)
    # There is no state in it, so it can be shared by all.
    llama = LlamaApi(upstream)
    # Asked before a file is restored: llama-server itself would restore the state of another model of the same shape.
    identity = ModelIdentity(llama)
    # One speed for everybody: answers and warm-ups both teach it, and warm-ups choose their pieces by it.
    speed = Speed()

    # The gate stands beside the slot and not in it: it knows turns, and nothing of what is done in them.  Its
    # numbers are first values; a reload may change them.
    gate = Gate(reactor, metrics, settings.queue_limit, settings.queue_timeout, settings.patience, settings.linger)
    # Three things are known of slot files, and each is known in one place: what is in them (the record, in our own
    # folder), what is on the disk (llama-server's folder), and whether restoring them helps.
    snapshots = SnapshotRecord(state)
    # A llama.cpp of bioproxy's own gets a folder of bioproxy's making, if there is none.
    folder = SlotFolder(settings.slot_save_path, outside.free_space, makes=outside.child is not None)
    # Neither of these two is ever stored.  After a restart nothing is believed, and the first answers teach it again.
    reuse_check, content = ReuseCheck(), SlotContent(llama, reactor)
    # The shelf removes old files, so it needs both the record and the folder.
    shelf = Shelf(snapshots, folder, metrics, settings.prompts_limit, settings.conversations_limit)
    # The two ways between the slot and a file.  Both measure how long that takes, for all parts that decide whether it
    # is worth its time.
    file_saver = FileSaver(llama, identity, snapshots, folder, shelf, metrics, speed, reactor)
    file_loader = FileLoader(llama, snapshots, folder, metrics, speed, reactor)
    # All saves and restores go through `SlotFiles`, so the record and the disk cannot drift apart unnoticed.
    files = SlotFiles(identity, snapshots, folder, shelf, file_saver, file_loader, reuse_check)
    # The saver decides whether a conversation is worth a save: it needs to know what the slot holds, how long a save
    # takes, and whether restored conversations are of use.
    # Those on templates are saved in any case; others only where learning is on.
    saver = ConversationSaver(content, files, reuse_check, speed, settings.save_conversations, learned_from(settings))
    # What no file has is kept by llama-server itself, in its memory.
    parking = Parking(llama, content, files, metrics)
    # What all others see of these parts; the slot adds no state to theirs.  Requests and warm-ups know the slot, and
    # none of the parts behind it.
    slot = Slot(identity, content, files, saver, reuse_check, parking, metrics, reactor)

    # The arrow that goes the other way, and advice to the operator, who sees it in the log. Advice is logged when
    # another process of llama-server is found: which of its options are unwise behind a proxy like this.
    advisor = Advisor(settings.llama_url, settings.slot_save_path)
    # What is in the slot is lost when llama-server sleeps or is restarted.  Files stay, but whether they can be used at
    # all depends on how it was started; that is a plain assignment to an attribute of `files`.
    listeners = Listeners(
        fell_asleep=slot.llama_fell_asleep,
        another_process=slot.llama_restarted,
        slot_files=partial(setattr, files, "enabled"),
        advise=advisor.tell,
        what_helps=lambda error: of_trouble(error).fix,
    )
    # The watch can end all calls of `upstream` at once: when llama-server is unresponsive, each of them would wait
    # for its own time-out otherwise, one after the other.
    # It runs from the start to the end of the service, whatever llama-server does, and is the only one to say "up".
    watch = ProcessWatch(llama, upstream, identity, listeners, metrics, reactor, settings.upstream_timeout)
    # The child asks the watch whether it answers, and tells in turn why it does not; requests wait for it.
    if (child := outside.child) is not None:
        child.look, child.count_restart = watch.look, metrics.llama_restarts
        # With a key of the user's that bioproxy does not know, clients that know it can be served all the same.
        child.is_up = lambda: watch.up or watch.wants_key
        upstream.child = child
        # Other programs of this machine can find its port, and web pages in a browser, too.
        keys.of_child = child.key
    # By name: with so many parts, an order could be mistaken.
    return SlotParts(
        settings=settings,
        outside=outside,
        metrics=metrics,
        keys=keys,
        state=state,
        upstream=upstream,
        llama=llama,
        identity=identity,
        speed=speed,
        gate=gate,
        snapshots=snapshots,
        folder=folder,
        shelf=shelf,
        reuse_check=reuse_check,
        content=content,
        files=files,
        saver=saver,
        slot=slot,
        watch=watch,
    )


def learned_from(settings: Settings) -> int | None:
    """Return the number of tokens from which on prompts are learned, and conversations without a template kept.

    `None` if they are not: because the operator does not want it, or because bioproxy does not see the slot folder and
    could never remove a file again.
    """
    return settings.learn_minimum if settings.learn and settings.slot_save_path is not None else None
