"""Tells twistd that there is a command ``bioproxy``.

twistd imports every module in the folders named ``twisted/plugins`` along Python's path, and collects the objects in
them that provide the interface `IServiceMaker`.  This is how ``twistd bioproxy`` finds code that is not part of
Twisted.  The imports happen for *every* twistd command, also for ``twistd web``.  So this module only contains the
*name* of the module that does the work; twistd imports that one when the command is really ``bioproxy``.

There is no ``__init__.py`` beside this file or above it, and there must not be one: it would make this folder a package
named ``twisted``, which would hide Twisted itself.
"""

from twisted.application.service import ServiceMaker

bioproxy = ServiceMaker(
    "bioproxy",
    # The module must have `Options` (parses the command line) and `makeService` (returns the tree of services).
    "bioproxy.service",
    "A proxy that makes long prompts answer at once, in front of one llama.cpp llama-server.",
    # The name of the command.
    "bioproxy",
)
