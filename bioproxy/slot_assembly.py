"""The lower half of the wiring diagram: from the metrics up to llama-server's slot.

Who knows whom can be read off the calls below.  The order is forced: a part gets what it needs in its constructor, so
that must have been made before.  This is why there are no circles, and why no part can be used half made.

One arrow goes the other way.  The watch notices first that llama-server has fallen asleep or is another process, and
the slot has to hear of it; but the watch belongs to the layer of llama-server, which does not know slots.  So the watch
only knows `Listeners`, plain functions with names for what happened, and they are connected to the slot here.  Twisted
uses the same means wherever something happens later: whoever wants to know hands in a function.

Making a part does nothing else: no file is read or written, nothing is sent, no timer is set.  Does not know what the
slot is used for (`bioproxy.assembly`).
"""

from __future__ import annotations

from functools import partial
from typing import Any

from bioproxy.llama.api import LlamaApi
from bioproxy.llama.model_identity import ModelIdentity
from bioproxy.llama.process_watch import Listeners, ProcessWatch
from bioproxy.llama.speed import Speed
from bioproxy.llama.upstream import Upstream
from bioproxy.operator.inspection import Advisor
from bioproxy.parts import Outside, SlotParts
from bioproxy.runtime.metrics import Metrics
from bioproxy.runtime.state_folder import StateFolder
from bioproxy.settings.api_keys import ApiKeys
from bioproxy.settings.configuration import Settings
from bioproxy.slot.content import SlotContent
from bioproxy.slot.conversation_saver import ConversationSaver
from bioproxy.slot.files import SlotFiles
from bioproxy.slot.folder import SlotFolder
from bioproxy.slot.gate import Gate
from bioproxy.slot.record import SnapshotRecord
from bioproxy.slot.reuse_check import ReuseCheck
from bioproxy.slot.slot import Slot


def assemble_slot(settings: Settings, reactor: Any, outside: Outside) -> SlotParts:
    """Make the parts up to the slot.  `reactor` is Twisted's reactor, or a clock that a test advances by hand."""
    # The metrics have a registry of their own instead of prometheus-client's global one, so that two bioproxies in one
    # process, as in tests, do not count together.
    metrics = Metrics()
    keys = ApiKeys(settings.api_key_file, settings.llama_api_key_file)
    state = StateFolder(settings.state_dir)

    # Every byte to llama-server goes through this one `Upstream`, so it can end all of them when llama-server is
    # unresponsive.  `LlamaApi` is the same, for bioproxy's own calls, with names for what they mean.
    upstream = Upstream(settings.llama_url, outside.agents, reactor, keys)
    llama = LlamaApi(upstream)
    identity = ModelIdentity(llama)
    # One speed for everybody: answers and warm-ups both teach it, and warm-ups choose their pieces by it.
    speed = Speed()

    gate = Gate(reactor, metrics, settings.queue_limit, settings.queue_timeout)
    # Three things are known of slot files, and each is known in one place: what is in them (the record, in our own
    # folder), what is on the disk (llama-server's folder), and whether restoring them helps.
    snapshots = SnapshotRecord(state)
    folder = SlotFolder(settings.slot_save_path, outside.free_space)
    reuse_check, content = ReuseCheck(), SlotContent(llama)
    files = SlotFiles(llama, identity, snapshots, folder, metrics, speed, reuse_check, reactor)
    saver = ConversationSaver(content, files, reuse_check, speed, settings.save_conversations)
    slot = Slot(identity, content, files, saver, reuse_check, metrics, reactor)

    # The arrow that goes the other way, and advice to the operator, who sees it in the log.
    advisor = Advisor(settings.llama_url, settings.slot_save_path)
    listeners = Listeners(
        fell_asleep=slot.llama_fell_asleep,
        another_process=slot.llama_restarted,
        slot_files=partial(setattr, files, "enabled"),
        advise=advisor.tell,
        what_helps=advisor.what_helps,
    )
    watch = ProcessWatch(llama, upstream, identity, listeners, metrics, reactor, settings.upstream_timeout)
    # By name: with eighteen of them, an order could be mistaken.
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
        reuse_check=reuse_check,
        content=content,
        files=files,
        saver=saver,
        slot=slot,
        watch=watch,
    )
