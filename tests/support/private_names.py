"""The private names of other packages that bioproxy may use, and how to find those that it does use, in its source.

A private name is used in three ways: it is imported; it is looked up on an object, also on `self`, where a base class
has it; or a subclass has a method or an attribute of that name, which then takes the place of the base class's.  The
last is easily done by accident.  Names with two underscores in front are safe from that, and no concern here.
"""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import twisted
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementedBy

ROOT = Path(__file__).parent.parent.parent
SOURCES = sorted([*ROOT.glob("bioproxy/**/*.py"), *ROOT.glob("twisted/plugins/*.py")])


CLIENT = "twisted.web._newclient"
FACTORY = "twisted.web.client._HTTP11ClientFactory"
TRUST_ROOT = "twisted.internet._sslverify.IOpenSSLTrustRoot"

# Each private name, and why no public one would do.  Who needs another one adds it here, with a test below.
ALLOWED = {
    f"{CLIENT}.HTTP11ClientProtocol": "a subclass limits the head of an answer; an Agent has no setting for that",
    f"{CLIENT}.Request": "the type of what that class sends",
    f"{CLIENT}.STATUS": "the head is counted in this state of the parser",
    f"{CLIENT}.HEADER": "and in this one",
    "twisted.web.http._ChunkedTransferDecoder": "a subclass joins the chunks of one read",
    "_transferDecoders": "tells the parser to use that subclass",
    "_parser": "it has the headers of an answer that are for one connection, which the public response has not",
    FACTORY: "a subclass makes connections of our class, and does not log each of them",
    "_producer": "the connection behind a body's transport, which itself has only the polite end, endless over TLS",
    "_quiescentCallback": "our connections go back to the pool with it",
    "_factory": "tells the pool to use our factory",
    TRUST_ROOT: "the public trust roots are the system's list or some certificates, never both",
    "_addCACertsToContext": "its one method",
    "_respondToBadRequestAndDisconnect": "Twisted's refusal has neither a reason nor a length; ours does",
    "_finishRequestBody": "the end of a body, where its trailers can be judged",
    "_transferDecoder": "the reader of that body",
    "_trailerHeaders": "its trailers, which Twisted reads and tells nobody",
    "_handlingRequest": "whether bytes that come begin a new head, whose time is then limited",
    "_command": "the method, before there is a request that knows it",
    "_path": "the target, likewise",
    "_version": "the version, likewise",
    "_networkProducer": "a refused client's bytes are read on, so that it can read the answer",
    "_labelnames": "prometheus-client does not tell which labels a metric has; those of a removed template are removed",
}


class PrivateNames(SynchronousTestCase):
    """Base of tests that say which private name has changed."""

    def check(self, name: str, expected: object, found: object) -> None:
        """Check what a private name is or does."""
        self.assertEqual(
            expected, found, f"Twisted {twisted.__version__} has changed {name}.  It is relied on: {ALLOWED[name]}"
        )


def is_private(name: str) -> bool:
    """Tell whether a name begins with one underscore."""
    return re.match(r"_[^_]", name) is not None


def is_foreign(module: str) -> bool:
    """Tell whether a module belongs to another package than bioproxy and the standard library."""
    package = module.partition(".")[0]
    return package != "bioproxy" and package not in sys.stdlib_module_names


def imported(tree: ast.AST) -> Iterator[str]:
    """Yield the private names that a module imports from other packages, and all names from private modules."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and not node.level:
            full = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            full = [alias.name for alias in node.names]
        else:
            continue
        yield from (name for name in full if is_foreign(name) and any(map(is_private, name.split("."))))


def defined(tree: ast.AST) -> Iterator[str]:
    """Yield the private names that a module or class defines itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            name = node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            name = node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_self(node.value):
            name = node.attr
        else:
            continue
        if is_private(name):
            yield name


def looked_up(tree: ast.AST) -> Iterator[str]:
    """Yield the private names that a module looks up on objects, but for those on `self` that it defines."""
    own = set(defined(tree))
    modules = {
        alias.asname or alias.name for each in ast.walk(tree) if isinstance(each, ast.Import) for alias in each.names
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            if is_self(node.value) and node.attr in own:
                continue
            # `os._exit` is the standard library's, and documented.
            if not (isinstance(node.value, ast.Name) and node.value.id in modules & sys.stdlib_module_names):
                yield node.attr
        elif isinstance(node, ast.Call):
            names = {each.id for each in (node.func, *node.args) if isinstance(each, ast.Name)}
            if names & {"getattr", "setattr", "hasattr", "delattr"}:
                texts = [each.value for each in node.args if isinstance(each, ast.Constant)]
                yield from (text for text in texts if isinstance(text, str) and is_private(text))


def is_self(node: ast.expr) -> bool:
    """Tell whether an expression is the object or class whose method this is."""
    return isinstance(node, ast.Name) and node.id in ("self", "cls")


def overridden(cls: type[Any]) -> set[str]:
    """Return the private names of a class that a base class or an interface from another package has, too."""
    theirs = {name for interface in implementedBy(cls) for name in interface.names(all=True)}
    for base in cls.__mro__[1:]:
        if is_foreign(base.__module__):
            theirs |= set(vars(base)) | names_in(base)
    return names_in(cls) & theirs


def names_in(cls: type[Any]) -> set[str]:
    """Return the private names that a class defines in its source, on its objects as well."""
    try:
        source = inspect.getsource(cls)
    except (OSError, TypeError):  # made by a program, or in C
        return set()
    return set(defined(ast.parse(textwrap.dedent(source))))
