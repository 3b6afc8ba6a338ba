"""Tells twistd that there is a command ``bioproxy``.

twistd imports every module in folders named ``twisted/plugins`` along Python's path and looks in them for
objects like this one.  It happens for *every* twistd command, so this module only names the module that does
the work; that is imported when somebody really asks for ``bioproxy``.

There is no ``__init__.py`` beside this file or above it, and there must not be: it would hide Twisted itself.
"""

from twisted.application.service import ServiceMaker

bioproxy = ServiceMaker(
    "bioproxy",
    "bioproxy.service",
    "A proxy that makes long prompts answer at once, in front of one llama.cpp llama-server.",
    "bioproxy",
)
